import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from metarl.evaluation import RandomPlayer, play_trials
from metarl.evaluation.tabular_players import (
    BEB,
    OPSRL,
    PSRL,
    UCRL2,
    EpsilonGreedyPlanner,
    KnownMDP,
    backward_induction,
    optimistic_expectation,
)
from metarl.trials import Transition
from metarl_envs import make_family


def random_models(num_models=4, num_states=3, num_actions=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (num_models, num_states, num_actions)
    return rng.normal(1, 1, shape), rng.dirichlet(np.ones(num_states), shape)


def test_backward_induction_finds_the_best_of_all_policies():
    rewards, transitions = random_models()
    horizon, (num_models, num_states, num_actions) = 3, rewards.shape
    every_state = np.arange(num_states)
    for model in range(num_models):
        best = np.full(num_states, -np.inf)
        rules = list(itertools.product(range(num_actions), repeat=num_states))  # one action per state
        for policy in itertools.product(rules, repeat=horizon):
            values = np.zeros(num_states)
            for rule in reversed(policy):
                values = rewards[model, every_state, rule] + transitions[model, every_state, rule] @ values
            best = np.maximum(best, values)
        action_values = backward_induction(rewards, transitions, horizon)
        np.testing.assert_allclose(action_values[0, model].max(-1), best)


def test_optimistic_expectation_solves_its_linear_programme():
    rng = np.random.default_rng(1)
    for _ in range(20):
        _, transitions = random_models(1, 4, 2, seed=rng.integers(1000))
        values, radius = rng.normal(size=(1, 4)), rng.uniform(0, 2.5, (1, 4, 2))
        found = optimistic_expectation(transitions, radius, values)
        for state, action in np.ndindex(4, 2):
            center = transitions[0, state, action]
            # variables p' and |p' - p|: maximise p' . v subject to sum |p' - p| <= radius
            eye = np.eye(4)
            limits = np.block([[eye, -eye], [-eye, -eye], [np.zeros((1, 4)), np.ones((1, 4))]])
            bounds = np.concatenate([center, -center, [radius[0, state, action]]])
            total = np.concatenate([np.ones(4), np.zeros(4)])[None]
            solution = linprog(np.concatenate([-values[0], np.zeros(4)]), limits, bounds, total, [1.0])
            assert found[0, state, action] == pytest.approx(-solution.fun, abs=1e-9)


def test_optimistic_expectation_at_its_ends():
    _, transitions = random_models()
    values = np.random.default_rng(2).normal(size=(4, 3))
    nothing = optimistic_expectation(transitions, np.zeros((4, 3, 2)), values)
    np.testing.assert_allclose(nothing, np.einsum("bsat,bt->bsa", transitions, values))
    everything = optimistic_expectation(transitions, np.full((4, 3, 2), 2.0), values)
    np.testing.assert_allclose(everything, np.broadcast_to(values.max(-1)[:, None, None], (4, 3, 2)))


def family_with(**kwargs):
    return make_family("metarl/TabularMDP-v0", **{"num_states": 3, "num_actions": 2, "num_steps": 4, **kwargs})


def teach(player, tasks, visits):
    """Show the player every state and action of its tasks `visits` times, successors in their true proportions."""
    means, transitions = tasks.params["means"], tasks.params["transitions"]
    rng = np.random.default_rng(0)
    for state, action in np.ndindex(means.shape[1:3]):
        shares = transitions[:, state, action].cumsum(-1)
        for visit in range(visits):
            successors = np.minimum((shares <= (visit + 0.5) / visits).sum(-1), shares.shape[-1] - 1)
            full = np.full(len(tasks), 0)
            rewards = means[:, state, action] + rng.normal(size=len(tasks)) * 0.01
            player.observe(Transition(full + state, full + action, rewards, full > 0, full > 0, successors))


@pytest.mark.parametrize("make", [PSRL, OPSRL, BEB, UCRL2, EpsilonGreedyPlanner])
def test_what_is_well_known_is_played_optimally(make):
    family = family_with(reward_std=0.01)
    tasks = family.sample(6, "test", 0)
    player = make(family)
    player.start_trials(tasks, np.random.default_rng(1))
    teach(player, tasks, 400)
    player.steps = 0
    player.act(np.zeros(6, np.int64))
    truth = backward_induction(tasks.params["means"], tasks.params["transitions"], family.num_steps)
    chosen = np.take_along_axis(truth, player.plan[..., None], -1)[..., 0]
    assert (truth.max(-1) - chosen).max() < 0.15  # nothing is lost but where actions are nearly as good


def test_posterior_of_a_taught_model():
    family = family_with(reward_std=2.0, mean_prior=(1.0, 0.5), concentration=0.7)
    player = PSRL(family, prior_shift=0.0)
    player.start_trials(family.sample(1, "test", 0), np.random.default_rng(1))
    one = np.array([1])
    for successor, reward in ((0, 3.0), (2, 4.0)):
        player.observe(Transition(one, one, np.array([reward]), one > 1, one > 1, np.array([successor])))
    rewards, transitions = player.expected_model(slice(None))
    precision = 1 / 0.25 + 2 / 4
    np.testing.assert_allclose(rewards[0, 1, 1], (1 / 0.25 + 7 / 4) / precision)
    np.testing.assert_allclose(transitions[0, 1, 1], np.array([1.7, 0.7, 1.7]) / 4.1, rtol=1e-6)
    np.testing.assert_allclose(rewards[0, 0, 0], 1.0)
    assert player.visits(slice(None))[0, 1, 1] == 2
    samples = [player.sampled_model(slice(None)) for _ in range(4000)]
    drawn_rewards = np.array([r[0, 1, 1] for r, _ in samples])
    drawn = np.array([p[0, 1, 1] for _, p in samples])
    assert drawn_rewards.mean() == pytest.approx(rewards[0, 1, 1], abs=0.03)
    assert drawn_rewards.std() == pytest.approx(precision**-0.5, abs=0.02)
    np.testing.assert_allclose(drawn.sum(-1), 1, rtol=1e-5)
    shares = np.array([1.7, 0.7, 1.7]) / 4.1
    np.testing.assert_allclose(drawn.mean(0), shares, atol=0.02)
    np.testing.assert_allclose(drawn.var(0), shares * (1 - shares) / 5.1, atol=0.005)


def test_prior_shift_lowers_the_expected_rewards():
    family = family_with(mean_prior=(2.0, 0.5))
    player = EpsilonGreedyPlanner(family, prior_shift=-1.0)
    player.start_trials(family.sample(2, "test", 0), np.random.default_rng(1))
    np.testing.assert_allclose(player.expected_model(slice(None))[0], 1.5)


def test_epsilon_one_is_random():
    family = make_family("metarl/TabularMDP-v0")
    returns = play_trials(EpsilonGreedyPlanner(family, epsilon=1.0), family, family.sample(2000, "test", 1), seed=2).sum(1)
    assert returns.mean() == pytest.approx(100, abs=3)


def test_the_oracle_reaches_the_ceiling():
    family = make_family("metarl/TabularMDP-v0")
    tasks = family.sample(2000, "test", 1)
    regret = family.ceiling(tasks)[:, None] - play_trials(KnownMDP(family), family, tasks, seed=2)
    assert abs(regret.mean()) < 4 * regret.std() / np.sqrt(regret.size)


PUBLISHED = {  # Duan et al. 2016, table 2: total over 10 and over 25 episodes, and the settings that give them
    "random": (RandomPlayer, {}, 100.1, 250.2),
    "PSRL": (PSRL, {}, 138.1, 408.8),
    "OPSRL": (OPSRL, {}, 144.1, 425.2),  # by far the slowest
    "UCRL2": (UCRL2, {"scale": 0.2}, 146.6, 424.1),
    "BEB": (BEB, {"bonus": 2.0}, 150.2, 427.8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_scores(name):
    """Within 3 standard errors of two samples: the published one, taken to be of 1,000 MDPs, and ours."""
    make, settings, ten, twenty_five = PUBLISHED[name]
    for episodes, num_tasks, published in ((10, 1000 if make is OPSRL else 2000, ten), (25, 250, twenty_five)):
        family = make_family("metarl/TabularMDP-v0", num_episodes=episodes)
        tasks = family.sample(num_tasks, "test", 5)
        returns = play_trials(make(family, **settings), family, tasks, seed=6).sum(1)
        assert returns.mean() == pytest.approx(published, abs=3 * returns.std() * np.hypot(num_tasks**-0.5, 1000**-0.5))


def test_tuned_optimism_beats_the_greedy_player():
    family = make_family("metarl/TabularMDP-v0", num_episodes=25)
    tasks = family.sample(1000, "test", 7)
    players = EpsilonGreedyPlanner(family), BEB(family), UCRL2(family)
    greedy, beb, ucrl = (play_trials(player, family, tasks, seed=8).sum(1) for player in players)
    for optimistic in (beb, ucrl):
        gain = optimistic - greedy
        assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))


def test_arguments_are_checked():
    family = family_with()
    for make, message in [
        (lambda: OPSRL(family, num_samples=0), "num_samples must be at least 1, got 0"),
        (lambda: UCRL2(family, scale=-1.0), "scale must be at least 0, got -1.0"),
        (lambda: UCRL2(family, delta=1.0), "delta must be between 0 and 1, got 1.0"),
        (lambda: BEB(family, bonus=-1.0), "bonus must be at least 0, got -1.0"),
        (lambda: EpsilonGreedyPlanner(family, epsilon=2.0), "epsilon must be between 0 and 1, got 2.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()

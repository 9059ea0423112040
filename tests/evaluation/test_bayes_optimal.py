from functools import lru_cache

import numpy as np
import pytest

from metarl.evaluation import play_trials
from metarl.evaluation.bayes_optimal import BayesOptimal, bayes_optimal_value, count_states, solve_beliefs
from metarl_envs import make_family


def value_by_histories(num_arms, num_pulls, prior):
    """The optimum over everything that can be remembered: recursion over whole histories, arms told apart."""
    a, b = prior

    def best(history):
        if len(history) == num_pulls:
            return 0.0
        options = []
        for arm in range(num_arms):
            rewards = [reward for pulled, reward in history if pulled == arm]
            chance = (a + sum(rewards)) / (a + b + len(rewards))
            options.append(chance * (1 + best([*history, (arm, 1)])) + (1 - chance) * best([*history, (arm, 0)]))
        return max(options)

    return best([])


@pytest.mark.parametrize("prior", [(1.0, 1.0), (2.0, 5.0), (0.5, 0.5)])
@pytest.mark.parametrize(("num_arms", "num_pulls"), [(2, 1), (2, 3), (3, 3), (2, 5)])
def test_value_is_that_of_the_best_policy_over_histories(num_arms, num_pulls, prior):
    assert solve_beliefs(num_arms, num_pulls, prior).value == pytest.approx(
        value_by_histories(num_arms, num_pulls, prior), abs=1e-12
    )


@pytest.mark.parametrize("variant", ["uniform", "easy", "medium", "hard"])
def test_dependent_values_are_those_of_the_best_policy_over_histories(variant):
    points = (np.arange(20_000) + 0.5) / 20_000  # the first arm's mean, by numerical integration
    low = {"easy": 0.1, "medium": 0.25, "hard": 0.4}.get(variant)
    points = points if low is None else np.array([low, 1 - low])

    @lru_cache
    def best(history):
        if len(history) == 4:
            return 0.0
        weights = np.ones(len(points))
        for arm, reward in history:
            mean = points if arm == 0 else 1 - points
            weights = weights * (mean if reward else 1 - mean)
        first = float(weights @ points / weights.sum())
        return max(
            chance * (1 + best((*history, (arm, 1)))) + (1 - chance) * best((*history, (arm, 0)))
            for arm, chance in ((0, first), (1, 1 - first))
        )

    family = make_family("metarl/TwoArmedBandit-v0", variant=variant, num_pulls=4)
    assert bayes_optimal_value(family) == pytest.approx(best(()), abs=1e-6)


@pytest.mark.parametrize(("num_arms", "value"), [(5, 6.660), (10, 6.714), (50, 6.714)])
def test_ten_pulls(num_arms, value):
    family = make_family("metarl/BernoulliBandit-v0", num_arms=num_arms, num_pulls=10)
    assert bayes_optimal_value(family) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(
    ("variant", "known", "regret"),
    [
        ("independent", 2 / 3, 1.748),
        ("uniform", 3 / 4, 1.221),
        ("easy", 0.9, 0.625),
        ("medium", 0.75, 1.0),
        ("hard", 0.6, 2.312),
    ],
)
def test_regret_after_a_hundred_pulls_of_two_arms(variant, known, regret):
    """Wang et al. 2016's five families; `known` is the expected mean of the better arm."""
    family = make_family("metarl/TwoArmedBandit-v0", variant=variant)
    assert 100 * known - bayes_optimal_value(family) == pytest.approx(regret, abs=5e-4)


@pytest.mark.parametrize("prior", [(1.0, 1.0), (2.0, 5.0)])
def test_player_earns_the_value(prior):
    family = make_family("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=8, prior=prior)
    returns = play_trials(BayesOptimal(family), family, family.sample(20_000, "test", 1), seed=2).sum(1)
    assert returns.mean() == pytest.approx(bayes_optimal_value(family), abs=4 * returns.std() / np.sqrt(len(returns)))


def test_player_may_play_fewer_or_more_pulls_than_planned():
    family = make_family("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=4)
    tasks = family.sample(10, "test", 0)
    assert play_trials(BayesOptimal(family), family, tasks, episodes=2).shape == (10, 2)
    assert play_trials(BayesOptimal(family), family, tasks, episodes=7).shape == (10, 7)


def test_states_are_counted():
    assert count_states(5, 1) == 1
    assert count_states(5, 2) == 1 + 2  # nothing seen; one arm with a success or a failure
    assert count_states(5, 3) == 1 + 2 + 3 + 3  # two pulls of one arm, or one pull of each of two
    assert count_states(1, 3) == 1 + 2 + 3
    assert count_states(50, 500, limit=1e6) > 1e6


def test_what_is_out_of_reach_is_named():
    family = make_family("metarl/BernoulliBandit-v0", num_arms=5, num_pulls=100)
    for attempt in (BayesOptimal, bayes_optimal_value):
        with pytest.raises(ValueError, match=r"at most 5,000,000 belief states .* got 5 arms and 100 pulls"):
            attempt(family)
    gaussian = make_family("metarl/GaussianBandit-v0")
    for attempt in (BayesOptimal, bayes_optimal_value):
        with pytest.raises(ValueError, match="family must be a bandit with Bernoulli rewards"):
            attempt(gaussian)

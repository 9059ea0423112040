import numpy as np
import pytest

from metarl.evaluation import RandomPlayer, play_trials
from metarl.evaluation.arm_beliefs import BetaBeliefs, MirroredBeliefs, NormalBeliefs, exact_beliefs
from metarl.evaluation.bandit_players import (
    UCB1,
    EpsilonGreedy,
    FiniteHorizonGittins,
    GittinsIndex,
    OptimisticThompsonSampling,
    ThompsonSampling,
)
from metarl.trials import Transition
from metarl_envs import make_family


def bandit(num_pulls, num_arms, **kwargs):
    return make_family("metarl/BernoulliBandit-v0", num_arms=num_arms, num_pulls=num_pulls, **kwargs)


def mean_return(player, family, num_tasks):
    returns = play_trials(player, family, family.sample(num_tasks, "test", 1), seed=2).sum(1)
    return returns.mean(), returns.std() / np.sqrt(num_tasks)


PUBLISHED = {  # Duan et al. 2016, table 1: pulls, arms -> random, Thompson sampling, UCB1, Gittins
    (10, 5): (5.0, 5.7, 6.7, 6.6),
    (10, 10): (5.0, 5.5, 6.7, 6.6),
    (10, 50): (5.1, 5.2, 6.6, 6.5),
    (100, 5): (49.9, 74.7, 78.0, 78.3),
    (100, 50): (49.8, 64.5, 84.3, 85.2),
}


@pytest.mark.parametrize(("pulls", "arms"), PUBLISHED)
def test_published_scores(pulls, arms):
    """Within 3 standard errors of two samples: the published one, taken to be of 1,000 bandits, and ours."""
    family = bandit(pulls, arms)
    num_tasks = 20_000 if pulls * arms < 500 else 4000 if arms < 50 or pulls < 100 else 2000
    players = RandomPlayer(family), ThompsonSampling(family), UCB1(family), GittinsIndex(family)
    for player, published in zip(players, PUBLISHED[pulls, arms], strict=True):
        mean, error = mean_return(player, family, num_tasks)
        both = np.hypot(error, error * np.sqrt(num_tasks / 1000))
        assert mean == pytest.approx(published, abs=3 * both + 0.05), player.name  # and published figures are rounded


def test_order_of_players_at_a_hundred_pulls():
    family = bandit(100, 5)
    tasks = family.sample(3000, "test", 3)
    players = EpsilonGreedy(family), UCB1(family), GittinsIndex(family), FiniteHorizonGittins(family)
    greedy, ucb, gittins, finite = (play_trials(player, family, tasks, seed=4).sum(1).mean() for player in players)
    assert greedy + 1 < ucb < gittins < finite + 0.05


def test_auers_constant_explores_too_much():
    family = bandit(10, 5)
    assert mean_return(UCB1(family, scale=1.0), family, 4000)[0] < 6.0


def test_optimistic_thompson_sampling_beats_thompson_sampling():
    family = bandit(100, 5)
    optimistic, error = mean_return(OptimisticThompsonSampling(family), family, 3000)
    assert optimistic > mean_return(ThompsonSampling(family), family, 3000)[0] + error


def test_gaussian_players_beat_the_greedy_one():
    family = make_family("metarl/GaussianBandit-v0", num_arms=10, num_pulls=100)
    scores = [mean_return(player, family, 1000)[0] for player in (EpsilonGreedy(family, 0.0), UCB1(family))]
    assert scores[0] + 20 < scores[1]
    assert mean_return(ThompsonSampling(family), family, 1000)[0] > scores[0] + 10


def test_players_keep_the_training_prior_out_of_distribution():
    family = bandit(10, 5, ood_prior=(0.5, 8.0))
    player = GittinsIndex(family)
    player.start_trials(family.sample(3, "ood", 0), np.random.default_rng(0))
    np.testing.assert_allclose(player.beliefs.mean, 0.5)


def test_beta_beliefs():
    beliefs = BetaBeliefs(2, 2, (2.0, 3.0))
    beliefs.update(np.array([0, 1]), np.array([1.0, 0.0]))
    beliefs.update(np.array([0, 0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(beliefs.mean, [[3 / 7, 2 / 5], [3 / 6, 2 / 6]])
    np.testing.assert_allclose(beliefs.width, 1 / np.sqrt([[7, 5], [6, 6]]))


def test_normal_beliefs_follow_bayes_rule():
    beliefs = NormalBeliefs(1, 2, prior_mean=0.5, prior_std=2.0, noise_std=3.0)
    for reward in (1.0, 4.0, -2.5):
        beliefs.update(np.array([1]), np.array([reward]))
    precision = 1 / 4 + 3 / 9
    np.testing.assert_allclose(beliefs.mean, [[0.5, (0.5 / 4 + 2.5 / 9) / precision]])
    np.testing.assert_allclose(beliefs.width, [[2.0, precision**-0.5]])


@pytest.mark.parametrize(("prior_std", "noise_std", "mean"), [(1.0, 0.0, 7.0), (0.0, 1.0, 0.5), (0.0, 0.0, 0.5)])
def test_normal_beliefs_without_noise_or_spread(prior_std, noise_std, mean):
    beliefs = NormalBeliefs(1, 2, 0.5, prior_std, noise_std)
    beliefs.update(np.array([0]), np.array([7.0]))
    np.testing.assert_allclose(beliefs.mean, [[mean, 0.5]])
    np.testing.assert_allclose(beliefs.width, [[0.0, prior_std]])


@pytest.mark.parametrize("pair", [None, (0.25, 0.75)])
def test_mirrored_beliefs_learn_from_either_arm(pair):
    ones, others = MirroredBeliefs(1, (1.0, 1.0), pair), MirroredBeliefs(1, (1.0, 1.0), pair)
    for reward in (1.0, 1.0, 0.0, 1.0):
        ones.update(np.array([0]), np.array([reward]))
        others.update(np.array([1]), np.array([1 - reward]))
    expected = 4 / 6 if pair is None else (0.75 * 9 + 0.25) / 10  # odds 3**3 / 3
    np.testing.assert_allclose(ones.mean, [[expected, 1 - expected]])
    np.testing.assert_allclose(others.mean, ones.mean)
    draws = np.array([ones.sample(np.random.default_rng(seed))[0] for seed in range(2000)])
    np.testing.assert_allclose(draws.sum(1), 1)
    assert draws[:, 0].mean() == pytest.approx(expected, abs=0.02)


def test_mirrored_beliefs_stay_finite_in_long_trials():
    beliefs = MirroredBeliefs(1, (1.0, 1.0), (0.1, 0.9))
    beliefs.for_first += 100_000
    np.testing.assert_allclose(beliefs.mean, [[0.9, 0.1]])


def test_ties_are_broken_at_random():
    player = EpsilonGreedy(bandit(10, 5), epsilon=0.0)
    player.start_trials(bandit(10, 5).sample(5000, "test", 0), np.random.default_rng(0))
    counts = np.bincount(player.act(np.zeros(5000, np.int64)), minlength=5)
    assert counts.min() > 850


def test_epsilon_is_how_often_a_random_arm_is_pulled():
    family = bandit(10, 4)
    player = EpsilonGreedy(family, epsilon=0.2)
    player.start_trials(family.sample(20_000, "test", 0), np.random.default_rng(0))
    zeros = np.zeros(20_000, np.int64)
    player.observe(Transition(zeros, zeros + 2, np.ones(20_000), zeros == 0, zeros > 0, zeros))
    assert (player.act(zeros) == 2).mean() == pytest.approx(0.8 + 0.2 / 4, abs=0.01)


def test_arguments_are_checked():
    family = bandit(10, 5)
    with pytest.raises(ValueError, match=r"epsilon must be between 0 and 1, got 1\.5"):
        EpsilonGreedy(family, epsilon=1.5)
    with pytest.raises(ValueError, match="scale must be at least 0, got -1"):
        UCB1(family, scale=-1)
    with pytest.raises(ValueError, match="family must be a bandit, got metarl/GridNavi-v0"):
        exact_beliefs(make_family("metarl/GridNavi-v0"), 3)

"""Advantages and returns against numbers worked by hand and against a recursion over explicit trial segments."""

import math

import numpy as np
import pytest
import torch

from metarl.returns import gae, linear_baseline, time_in_episode


def column(*numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype)[:, None]


def ends(*flags):
    return torch.tensor(flags, dtype=torch.bool)[:, None]


def random_rows(seed, steps=17, rows=6, end_probability=0.3):
    """Rewards, values, ends of trials and what follows them, in which garbage marks what must not be read."""
    rng = np.random.default_rng(seed)
    rewards, values, following = rng.normal(size=(3, steps, rows))
    trial_end = rng.random((steps, rows)) < end_probability
    trial_end[-1] = True
    bootstrap = np.where(trial_end, np.where(rng.random((steps, rows)) < 0.5, 0.0, following), np.nan)
    return rewards, values, trial_end, bootstrap


def as_tensors(*arrays):
    return [torch.as_tensor(array) for array in arrays]


def segments(trial_end):
    """`(row, first step, last step)` of every trial."""
    for row in range(trial_end.shape[1]):
        start = 0
        for stop in np.flatnonzero(trial_end[:, row]).tolist():
            yield row, start, stop
            start = stop + 1


def slow_gae(rewards, values, trial_end, bootstrap, gamma, gae_lambda):
    """Eq. 11 and 16 of Schulman et al. 2016: the sum over all later temporal differences of the same trial."""
    advantages = np.full(rewards.shape, np.nan)
    for row, start, stop in segments(trial_end):
        expected = [*values[start : stop + 1, row].tolist(), float(bootstrap[stop, row])]
        deltas = [rewards[start + k, row] + gamma * expected[k + 1] - expected[k] for k in range(stop + 1 - start)]
        for k in range(len(deltas)):
            terms = [(gamma * gae_lambda) ** i * delta for i, delta in enumerate(deltas[k:])]
            advantages[start + k, row] = math.fsum(terms)
    return advantages


def test_two_trials_by_hand():
    # One row, gamma = 1/2 and lambda = 1/2, so that every temporal difference further off counts a quarter.
    # The first trial has three steps and ends terminated; the second has two and is cut where 8 was expected to follow.
    rewards = column(1, 2, 4, 0, 6)
    values = column(2, 4, 6, 8, 4)
    trial_end = ends(0, 0, 1, 0, 1)
    bootstrap = column(-1e9, -1e9, 0, -1e9, 8)
    # deltas: 1 + 4/2 - 2 = 1,  2 + 6/2 - 4 = 1,  4 + 0 - 6 = -2 | 0 + 4/2 - 8 = -6,  6 + 8/2 - 4 = 6
    advantages, returns = gae(rewards, values, trial_end, bootstrap, 0.5, 0.5)
    torch.testing.assert_close(advantages, column(1.125, 0.5, -2, -4.5, 6), atol=0, rtol=0)
    torch.testing.assert_close(returns, column(3.125, 4.5, 4, 3.5, 10), atol=0, rtol=0)


def test_returns_cross_the_ends_of_episodes():
    # Two episodes of two steps in one trial. Only the last step pays: what the first episode is for, it earns here.
    zeros = column(0, 0, 0, 0)
    advantages, _ = gae(column(0, 0, 0, 1), zeros, ends(0, 0, 0, 1), zeros, 0.9, 1.0)
    torch.testing.assert_close(advantages, column(0.9**3, 0.9**2, 0.9, 1))


def test_nothing_crosses_the_end_of_a_trial():
    arrays = random_rows(0, steps=8, rows=2, end_probability=0)
    arrays[2][3] = True
    arrays[3][3] = 0.0
    advantages, _ = gae(*as_tensors(*arrays), 0.99, 0.95)
    rewards, *rest = (array.copy() for array in arrays)
    rewards[4:] += 100.0
    other, _ = gae(*as_tensors(rewards, *rest), 0.99, 0.95)
    assert torch.equal(advantages[:4], other[:4])
    assert not torch.isclose(advantages[4:], other[4:]).any()


def test_a_truncated_trial_is_bootstrapped_and_a_terminated_one_is_not():
    for bootstrap, expected in ((0.0, 1.0), (5.0, 1.0 + 0.9 * 5.0)):
        _, returns = gae(column(1), column(7), ends(1), column(bootstrap), 0.9, 0.5)
        torch.testing.assert_close(returns, column(expected))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 0.3), (1.0, 1.0), (0.5, 0.0), (0.0, 0.7)])
def test_equals_a_slow_recursion(gamma, gae_lambda, seed):
    arrays = random_rows(seed)
    advantages, returns = gae(*as_tensors(*arrays), gamma, gae_lambda)
    expected = slow_gae(*arrays, gamma, gae_lambda)
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12, rtol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + arrays[1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.97, 0.3])
def test_lambda_one_gives_discounted_monte_carlo_returns(gamma):
    rewards, values, trial_end, bootstrap = random_rows(4)
    _, returns = gae(*as_tensors(rewards, values, trial_end, bootstrap), gamma, 1.0)
    for row, start, stop in segments(trial_end):
        for t in range(start, stop + 1):
            later = [*rewards[t : stop + 1, row].tolist(), float(bootstrap[stop, row])]
            expected = sum(gamma**i * reward for i, reward in enumerate(later))
            assert returns[t, row].item() == pytest.approx(expected, abs=1e-12)


def test_lambda_zero_gives_one_step_targets():
    rewards, values, trial_end, bootstrap = random_rows(5)
    _, returns = gae(*as_tensors(rewards, values, trial_end, bootstrap), 0.8, 0.0)
    after = np.where(trial_end, np.nan_to_num(bootstrap), np.concatenate([values[1:], values[-1:]]))
    np.testing.assert_allclose(returns.numpy(), rewards + 0.8 * after, atol=1e-12)


def test_perfect_values_leave_no_advantage():
    rewards, _, trial_end, bootstrap = random_rows(6)
    _, values = gae(*as_tensors(rewards, np.zeros_like(rewards), trial_end, bootstrap), 0.95, 1.0)
    for gae_lambda in (0.0, 0.6, 1.0):
        advantages, _ = gae(*as_tensors(rewards, values.numpy(), trial_end, bootstrap), 0.95, gae_lambda)
        torch.testing.assert_close(advantages, torch.zeros_like(advantages), atol=1e-12, rtol=0)


def test_single_precision_is_kept():
    arrays = [a if a.dtype == bool else a.astype(np.float32) for a in random_rows(7)]
    advantages, returns = gae(*as_tensors(*arrays), 0.99, 0.95)
    assert advantages.dtype == returns.dtype == torch.float32
    np.testing.assert_allclose(advantages.numpy(), slow_gae(*arrays, 0.99, 0.95), atol=1e-5)


def test_every_row_must_end():
    zeros = torch.zeros(3, 2)
    trial_end = torch.tensor([[0, 0], [0, 1], [1, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match="end must be set on the last step of every row: what follows it was not"):
        gae(zeros, zeros, trial_end, zeros, 0.9, 0.9)


# -- the linear baseline -----------------------------------------------------------------------------------------


def fitted(observations, times, returns, weights, ridge):
    """Weighted ridge regression of one task by NumPy's least squares, with the ridge as further rows."""
    t = times[:, None] / 100
    observations = np.clip(observations, -10, 10)
    features = np.concatenate([observations, observations**2, t, t**2, t**3, np.ones_like(t)], 1)
    scale = np.sqrt(weights)[:, None]
    rows = np.concatenate([scale * features, np.sqrt(ridge) * np.eye(features.shape[1])])
    targets = np.concatenate([scale[:, 0] * returns, np.zeros(features.shape[1])])
    coefficients, *_ = np.linalg.lstsq(rows, targets)
    return features @ coefficients


def steps_of_tasks(tasks=3, steps=60, size=2):
    rng = np.random.default_rng(0)
    observations = 4 * rng.normal(size=(tasks, steps, size))
    times = rng.integers(0, 200, (tasks, steps))
    returns = 5 + observations[..., 0] - 0.3 * observations[..., 1] ** 2 + times / 50 + rng.normal(size=(tasks, steps))
    return observations, times, returns, rng.uniform(0, 2, (tasks, steps))


@pytest.mark.parametrize("ridge", [1e-5, 1.0])
def test_the_linear_baseline_is_weighted_ridge_regression_task_by_task(ridge):
    observations, times, returns, weights = steps_of_tasks()
    weights[:, ::7] = 0
    assert np.abs(observations).max() > 10  # some are clipped
    ours = linear_baseline(*as_tensors(observations, times, returns, weights), ridge=ridge)
    for task in range(3):
        arrays = (array[task] for array in (observations, times, returns, weights))
        np.testing.assert_allclose(ours[task].numpy(), fitted(*arrays, ridge), atol=1e-6)


def test_the_linear_baseline_predicts_what_its_features_explain():
    observations, times, _, weights = steps_of_tasks()
    observations = np.clip(observations, -10, 10)
    t = times / 100
    known = 3 + observations[..., 0] - 2 * observations[..., 1] ** 2 + t - 4 * t**2 + 0.5 * t**3
    values = linear_baseline(*as_tensors(observations, times, known, weights))
    np.testing.assert_allclose(values.numpy(), known, rtol=1e-4, atol=1e-3)


def test_steps_without_weight_do_not_enter_the_fit():
    observations, times, returns, weights = steps_of_tasks()
    weights[:, 40:] = 0
    ours = linear_baseline(*as_tensors(observations, times, returns, weights))
    returns[:, 40:] = 1e6
    assert torch.equal(linear_baseline(*as_tensors(observations, times, returns, weights)), ours)
    short = linear_baseline(*as_tensors(*(array[:, :40] for array in (observations, times, returns, weights))))
    torch.testing.assert_close(ours[:, :40], short, rtol=1e-9, atol=1e-9)


def test_tasks_are_fitted_apart():
    observations, times, returns, weights = steps_of_tasks()
    ours = linear_baseline(*as_tensors(observations, times, returns, weights))
    returns[1] += 100 * returns[1] ** 2
    other = linear_baseline(*as_tensors(observations, times, returns, weights))
    torch.testing.assert_close(other[[0, 2]], ours[[0, 2]])
    assert not torch.isclose(other[1], ours[1]).any()


def test_the_linear_baseline_of_observations_that_never_vary():
    # Bandits: one-hot observations and times say nothing, so the fit is the mean, although the features are dependent.
    returns = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    zeros = torch.zeros(2, 5, dtype=torch.int64)
    values = linear_baseline(torch.ones(2, 5, 1), zeros, returns, torch.ones(2, 5))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor([[0.6] * 5, [3.0] * 5]), rtol=0, atol=1e-5)


def test_fewer_steps_than_features():
    generator = torch.Generator().manual_seed(0)
    observations, returns = torch.randn(2, 3, 20, generator=generator), torch.randn(2, 3, generator=generator)
    values = linear_baseline(observations, torch.arange(3).expand(2, 3), returns, torch.ones(2, 3))
    torch.testing.assert_close(values, returns, rtol=0, atol=1e-3)  # it can fit them all, and nothing overflows
    one = linear_baseline(observations[:, :1], torch.zeros(2, 1), returns[:, :1], torch.ones(2, 1))
    torch.testing.assert_close(one, returns[:, :1], rtol=0, atol=1e-3)


def test_time_in_episode_by_hand():
    starts = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1], [1, 0, 1, 1, 0, 0]], dtype=torch.bool)
    expected = [[0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0], [0, 1, 0, 0, 1, 2]]
    assert time_in_episode(starts.T).T.tolist() == expected

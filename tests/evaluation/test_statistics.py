import time

import numpy as np
import pytest
from scipy.stats import trim_mean

from metarl.evaluation.statistics import estimate, interquartile_mean, paired_difference


@pytest.mark.parametrize("n", [4, 8, 100])
def test_iqm_is_the_trimmed_mean_where_n_is_divisible_by_4(n):
    scores = np.random.default_rng(n).normal(size=(n, 3))
    np.testing.assert_allclose(interquartile_mean(scores), trim_mean(scores, 0.25, axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 3.0], 2.0),
        ([0.0, 1.0, 5.0], (0.25 * 0 + 1 + 0.25 * 5) / 1.5),  # boundary scores count a quarter each
        ([10.0, 0.0, 1.0, 2.0, 3.0], (0.75 * 1 + 2 + 0.75 * 3) / 2.5),
        ([0, 0, 1, 1, 1, 1, 9], (0.25 * 0 + 3 * 1 + 0.25 * 1) / 3.5),
    ],
)
def test_iqm_counts_boundary_scores_in_part(scores, expected):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 9, 50])
def test_iqm_equals_that_of_fourfold_scores(n):
    """Repeating every score changes no quantile, and makes the number of scores divisible by 4."""
    scores = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(scores) == pytest.approx(trim_mean(np.repeat(scores, 4), 0.25), rel=1e-12)


def test_iqm_takes_an_axis():
    scores = np.arange(24.0).reshape(2, 12)
    np.testing.assert_allclose(interquartile_mean(scores, axis=1), [5.5, 17.5])


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_shapes_and_values(statistic):
    scores = np.random.default_rng(0).normal(size=(3, 40, 5))
    expected = {"mean": lambda x: x.mean(0), "iqm": interquartile_mean}[statistic]
    for part, pooled in [(scores, scores.reshape(-1, 5)), (scores[0], scores[0])]:
        result = estimate(part, statistic)
        np.testing.assert_allclose(result.value, expected(pooled), rtol=1e-12)
        assert result.low.shape == result.high.shape == (5,)
        assert (result.low < result.value).all()
        assert (result.value < result.high).all()
    assert isinstance(estimate(scores[0, :, 0], statistic).low, float)


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_intervals_cover_the_truth_as_often_as_they_say(statistic):
    """2,000 normal samples of 100 tasks; the standard error of the share is half a percent."""
    scores = 3 + np.random.default_rng(5).normal(size=(100, 2000))
    _, low, high = estimate(scores, statistic)
    assert 0.93 < ((low < 3) & (high > 3)).mean() < 0.965
    _, low, high = estimate(scores, statistic, confidence=0.5)
    assert 0.46 < ((low < 3) & (high > 3)).mean() < 0.54


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_intervals_of_strata_cover_the_truth(statistic):
    """Strata with different means are held fixed: only the tasks within them are drawn anew."""
    rng = np.random.default_rng(6)
    levels = np.array([-1.0, 0.0, 1.0])[:, None, None]
    scores = levels + rng.normal(size=(3, 40, 300))
    _, low, high = estimate(scores, statistic, resamples=400)
    assert 0.915 < ((low < 0) & (high > 0)).mean() < 0.98


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_one_stratum_agrees_with_a_plain_bootstrap(statistic):
    rng = np.random.default_rng(2)
    scores = rng.exponential(size=203)
    drawn = scores[rng.integers(203, size=(4000, 203))]
    plain = drawn.mean(1) if statistic == "mean" else interquartile_mean(drawn, axis=1)
    result = estimate(scores, statistic, resamples=4000)
    width = result.high - result.low
    np.testing.assert_allclose([result.low, result.high], np.quantile(plain, [0.025, 0.975]), atol=0.04 * width)


def test_strata_narrow_the_interval_when_they_explain_the_spread():
    scores = np.array([0.0, 10.0])[:, None, None] + np.random.default_rng(0).normal(size=(2, 50, 1))
    stratified, mixed = estimate(scores), estimate(scores.reshape(-1, 1))
    assert (stratified.high - stratified.low)[0] < 0.3 * (mixed.high - mixed.low)[0]


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_constant_scores_have_a_point_as_interval(statistic):
    for scores in (np.full((9, 2), 2.5), np.full((2, 9, 2), 2.5)):
        np.testing.assert_allclose(estimate(scores, statistic), 2.5, rtol=1e-12)


def test_one_task_has_no_interval():
    value, low, high = estimate(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(value, [1, 2])
    assert np.isnan([low, high]).all()


def test_results_depend_on_the_seed_alone():
    scores = np.random.default_rng(0).normal(size=(30, 4))
    np.random.default_rng(1).normal()
    np.testing.assert_array_equal(estimate(scores, seed=3), estimate(scores, seed=3))
    assert not np.array_equal(estimate(scores, seed=3).low, estimate(scores, seed=4).low)


def test_paired_difference_is_narrower_than_the_spread_of_tasks():
    rng = np.random.default_rng(0)
    first = 100 * rng.normal(size=500)
    second = first + 1 + 0.1 * rng.normal(size=500)
    value, low, high = paired_difference(first, second)
    assert value == pytest.approx((second - first).mean())
    assert 0.97 < low < 1 < high < 1.03


def test_paired_difference_keeps_precision_of_integers():
    assert paired_difference(np.array([3, 3], np.uint8), np.array([1, 1], np.uint8)).value == -2


def test_20_000_tasks_of_100_episodes_take_seconds():  # one resampling per column would take a minute
    scores = np.random.default_rng(0).random((20_000, 100))
    start = time.process_time()
    estimate(scores, "mean")
    estimate(scores, "iqm")
    assert time.process_time() - start < 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": np.zeros(())}, r"scores must have 1 to 3 axes .* got shape \(\)"),
        ({"scores": np.zeros((2, 2, 2, 2))}, r"scores must have 1 to 3 axes .* got shape \(2, 2, 2, 2\)"),
        ({"scores": np.zeros((0, 3))}, r"scores must not be empty, got shape \(0, 3\)"),
        ({"scores": [[1.0, 2.0], [3.0, np.nan]]}, r"scores must be finite, got nan at index \(1, 1\)"),
        ({"scores": np.ones(3), "statistic": "median"}, "statistic must be 'mean' or 'iqm', got 'median'"),
        ({"scores": np.ones(3), "resamples": 0}, "resamples must be at least 1, got 0"),
        ({"scores": np.ones(3), "confidence": 95}, "confidence must be between 0 and 1, got 95"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate(**arguments)


def test_differences_need_equal_shapes():
    with pytest.raises(ValueError, match=r"second must have the shape of first, \(3,\), got \(4,\)"):
        paired_difference(np.ones(3), np.ones(4))

"""Means, interquartile means and their bootstrap intervals over tasks, for all episodes at once.

Everywhere below, `scores` has one of the shapes

    [N]         one number per task
    [N, E]      one column per episode (or per anything else that is scored separately)
    [S, N, E]   the same in S strata, such as training seeds

Intervals answer "what if other tasks had been drawn?": they contain the randomness of tasks, environment and player.
What another training seed would have done is in them only as far as the strata's own tasks say so, because strata are
held fixed. Columns get one interval each; the intervals of different episodes are not simultaneous.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

Statistic = Literal["mean", "iqm"]

_BLOCK = 2**22
"""Resampling counts worked on at once: 32 MiB as float64. Smaller blocks are no faster, and slower on busy machines."""


class Estimate(NamedTuple):
    """A statistic with the bounds of its interval: floats, or arrays `[E]`."""

    value: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float


def interquartile_mean(scores: np.ndarray, axis: int = 0) -> np.ndarray | float:
    """Mean of the middle half of the `n` scores along `axis`.

    With sorted scores x_(1) <= ... <= x_(n), score i covers the stretch [i - 1, i] of [0, n] and counts by how much of
    that stretch lies in [n/4, 3n/4]:

        IQM = 2/n * sum_i |[i - 1, i] & [n/4, 3n/4]| x_(i)

    This is the mean of the empirical quantile function over levels 1/4 to 3/4. Where n is divisible by 4 it equals the
    25 % trimmed mean that Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice",
    recommend; elsewhere the two boundary scores count in part instead of being dropped whole.
    """
    ordered = np.sort(np.moveaxis(_finite(scores), axis, 0), axis=0)
    return np.tensordot(_middle_half(np.ones(len(ordered))), ordered, axes=1)[()]


def estimate(
    scores: np.ndarray,
    statistic: Statistic = "mean",
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean or interquartile mean over all tasks of all strata, with its stratified percentile bootstrap interval.

    Each resample draws N of the N tasks with replacement within every stratum (Agarwal et al. 2021, section 4.1). With
    c[r, i] the times resample r drew task i, a resampled mean is a row of `c @ scores / N`. Resampling treats tasks
    alike, so the counts of the tasks *in sorted order* are distributed as the counts themselves, and with one stratum
    the resampled interquartile means of all columns are one product with the sorted scores as well: 20,000 tasks x 100
    episodes take half a second. With several strata the sorted order mixes them differently in every column, so
    columns are worked through one by one, S * N * resamples operations each.

    Args:
        scores: `[N]`, `[N, E]` or `[S, N, E]`, finite.
        statistic: "mean" or "iqm".
        resamples: bootstrap resamples.
        confidence: share of intervals meant to hold the true value.
        seed: of the resampling, which has a generator of its own.

    Returns:
        Floats for `[N]`, else arrays `[E]`. Bounds are NaN where strata hold one task: nothing can be resampled.
    """
    scores = _finite(scores)
    if not 1 <= scores.ndim <= 3:
        raise ValueError(f"scores must have 1 to 3 axes ([N], [N, E] or [S, N, E]), got shape {scores.shape}")
    if statistic not in ("mean", "iqm"):
        raise ValueError(f"statistic must be 'mean' or 'iqm', got {statistic!r}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")

    strata = scores[None, :, None] if scores.ndim == 1 else scores.reshape(-1, *scores.shape[-2:])
    num_strata, num_tasks, num_columns = strata.shape
    pooled = strata.reshape(-1, num_columns)
    value = pooled.mean(0) if statistic == "mean" else interquartile_mean(pooled)
    if num_tasks == 1:
        low = high = np.full(num_columns, np.nan)
    else:
        resampled = _resampled(pooled, statistic, _counts(num_strata, num_tasks, resamples, seed), num_strata)
        tail = (1 - confidence) / 2
        low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    if scores.ndim == 1:
        return Estimate(float(value[0]), float(low[0]), float(high[0]))
    return Estimate(value, low, high)


def paired_difference(first: np.ndarray, second: np.ndarray, statistic: Statistic = "mean", **options) -> Estimate:
    """How much `second` scores above `first` on the same tasks, with its interval; `options` are `estimate`'s.

    The statistic is taken over the differences task by task, so what makes a task easy or hard for both cancels. The
    mean of differences is the difference of means; the interquartile mean of differences is what the difference is on
    the middle half of tasks, which in general is not the difference of the two interquartile means.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise ValueError(f"second must have the shape of first, {first.shape}, got {second.shape}")
    return estimate(np.subtract(second, first, dtype=np.float64), statistic, **options)


@lru_cache(maxsize=1)  # all players of one task set are resampled alike, for the mean and for the IQM
def _counts(num_strata: int, num_tasks: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample drew each task, `[resamples, S * N]`; 20 MB for 20,000 tasks and 1,000 resamples."""
    rng = np.random.default_rng(seed)
    size = num_strata * num_tasks
    counts = np.empty((resamples, size), np.uint8)  # one of N tasks is drawn 256 times with probability below 1e-500
    for rows in _blocks(resamples, size):
        block = counts[rows]
        draws = rng.integers(num_tasks, size=(len(block) * num_strata, num_tasks))
        draws += num_tasks * np.arange(len(draws))[:, None]
        block[...] = np.bincount(draws.ravel(), minlength=block.size).reshape(block.shape)
    counts.flags.writeable = False
    return counts


def _blocks(rows: int, row_size: int) -> Iterator[slice]:
    step = max(1, _BLOCK // row_size)
    return (slice(start, start + step) for start in range(0, rows, step))


def _resampled(pooled: np.ndarray, statistic: Statistic, counts: np.ndarray, num_strata: int) -> np.ndarray:
    """The statistic of every resample, `[resamples, E]`, from `pooled [S * N, E]` and `counts [resamples, S * N]`."""
    resampled = np.empty((len(counts), pooled.shape[1]))
    if statistic == "iqm":
        order = np.argsort(pooled, axis=0).T
        ordered = np.take_along_axis(pooled, order.T, 0)
    for rows in _blocks(*counts.shape):
        block = counts[rows].astype(np.float64)
        if statistic == "mean":
            resampled[rows] = block @ pooled / len(pooled)
        elif num_strata == 1:
            resampled[rows] = _middle_half(block) @ ordered
        else:
            for column, places in enumerate(order):
                resampled[rows, column] = _middle_half(block[:, places]) @ ordered[:, column]
    return resampled


def _middle_half(counts: np.ndarray) -> np.ndarray:
    """Weights `[..., n]`, adding up to 1, with which sorted scores that occur `counts [..., n]` times enter the IQM."""
    weights = np.cumsum(counts, axis=-1)  # where the stretch of each score ends
    total = weights[..., -1:].copy()
    np.clip(weights, total / 4, 3 * total / 4, out=weights)
    weights *= 2 / total
    weights[..., 1:] -= weights[..., :-1].copy()
    weights[..., 0] -= 0.5
    return weights


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.size == 0:
        raise ValueError(f"scores must not be empty, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(scores))[0]) if scores.ndim else ()
        raise ValueError(f"scores must be finite, got {scores[place]} at index {place}")
    return scores

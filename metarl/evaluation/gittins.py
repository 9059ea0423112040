"""Gittins indices of a Bernoulli arm with a Beta(a, b) prior, by calibration.

The index of an arm is the sure reward per pull, lambda, at which one would as soon retire to lambda as pull the arm at
least once more. For every lambda of a grid, dynamic programming over successes s and failures f gives what pulling on
is worth more than retiring, which falls with lambda; the index is where it crosses zero, interpolated between the two
grid points around it, which is accurate to about 5e-5 (Gittins, Glazebrook & Weber 2011, "Multi-armed bandit allocation
indices", chapter 8).
"""

from functools import lru_cache

import numpy as np

MAX_FINITE_PULLS = 200
"""Largest horizon of `finite_horizon_indices`: its work and its table grow with the cube."""

_GRID = np.linspace(0.0, 1.0, 257)


@lru_cache(maxsize=16)
def discounted_indices(num_pulls: int, discount: float, prior: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Indices `[num_pulls, num_pulls]` by successes and failures (fewer than `num_pulls` pulls), else 0.

    With the retirement reward lambda per step for ever, V(s, f) = max(lambda / (1 - discount), C(s, f)) where

        C(s, f) = m (1 + discount V(s + 1, f)) + (1 - m) discount V(s, f + 1),   m = (a + s) / (a + b + s + f)

    and the index is the lambda at which both are equal. The recursion starts 4 effective horizons beyond the last pull,
    as if the arm's mean were known there to be m.
    """
    if not 0 < discount < 1:
        raise ValueError(f"discount must be between 0 and 1, got {discount}")
    a, b = prior
    depth = num_pulls + int(np.ceil(4 / (1 - discount)))
    retire = _GRID[:, None] / (1 - discount)
    values = np.maximum(retire, (a + np.arange(depth + 1)) / (a + b + depth) / (1 - discount))  # [lambda, s]
    table = np.zeros((num_pulls, num_pulls))
    for pulls in range(depth - 1, -1, -1):
        successes = np.arange(pulls + 1)
        mean = (a + successes) / (a + b + pulls)
        pull = mean * (1 + discount * values[:, 1:]) + (1 - mean) * discount * values[:, :-1]
        if pulls < num_pulls:
            table[successes, pulls - successes] = _crossing(pull - retire)
        values = np.maximum(retire, pull)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=4)
def finite_horizon_indices(num_pulls: int, prior: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Indices `[num_pulls + 1, num_pulls, num_pulls]` by pulls left, successes and failures, as float32.

    With lambda charged for every pull, what r pulls are worth at most when one may stop at any time is V_r = max(0, C_r),

        C_r(s, f) = m - lambda + m V_{r-1}(s + 1, f) + (1 - m) V_{r-1}(s, f + 1)

    and the index for r pulls left is the lambda at which C_r = 0. Entries with s + f + r > num_pulls mean nothing.
    """
    a, b = prior
    successes, failures = np.ogrid[:num_pulls, :num_pulls]
    means = (a + successes) / (a + b + successes + failures)
    table = np.zeros((num_pulls + 1, num_pulls, num_pulls), np.float32)
    values = np.zeros((len(_GRID), num_pulls + 1, num_pulls + 1))  # [lambda, s, f]
    for left in range(1, num_pulls + 1):
        size = num_pulls - left + 1
        mean = means[:size, :size]
        pull = mean * (1 + values[:, 1:, :-1]) + (1 - mean) * values[:, :-1, 1:] - _GRID[:, None, None]
        table[left, :size, :size] = _crossing(pull)
        values = np.maximum(pull, 0)
    table.flags.writeable = False
    return table


def _crossing(advantage: np.ndarray) -> np.ndarray:
    """Where on the grid `advantage [lambda, ...]`, which falls along its first axis from above 0 to below, is zero."""
    last = np.clip((advantage > 0).sum(0) - 1, 0, len(_GRID) - 2)[None]
    above = np.take_along_axis(advantage, last, 0)[0]
    below = np.take_along_axis(advantage, last + 1, 0)[0]
    return (last[0] + above / (above - below)) * _GRID[1]

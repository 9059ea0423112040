"""Counter-based random numbers, one independent stream per slot, drawn for the whole batch at once.

A slot's numbers are a pure function of its seed and of how many numbers it has drawn. Neither the number of slots
beside it nor what they do changes them, so a single environment and a slot of a batch see the same noise. The
generator is SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"): the i-th output
is `mix(key + i * golden_ratio)`, which needs no sequential state and vectorises over slots and draws.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53

Rows = slice | np.ndarray
"""Which slots: `slice(None)` for all, or a boolean mask or an index array."""

ALL = slice(None)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit integers whose output bits look independent of the input's."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the algorithm; scalars would warn about it
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        return x ^ (x >> np.uint64(31))


class Streams:
    """`num_slots` independent random streams.

    Every method draws for the slots in `rows` and leaves the other streams untouched; results have the leading shape
    `[len(rows)]`.
    """

    def __init__(self, num_slots: int):
        self.keys = np.zeros(num_slots, np.uint64)
        self.counters = np.zeros(num_slots, np.uint64)

    def seed(self, seeds: np.ndarray, rows: Rows = ALL) -> None:
        """Restart the streams in `rows` from non-negative integer `seeds`."""
        self.keys[rows] = mix(np.asarray(seeds, np.uint64) + _GOLDEN)
        self.counters[rows] = 0

    def uniform(self, *shape: int, rows: Rows = ALL) -> np.ndarray:
        """Floats in [0, 1), shape `[len(rows), *shape]`."""
        count = int(np.prod(shape, dtype=np.int64))
        counters = self.counters[rows]
        starts = self.keys[rows] + counters * _GOLDEN
        if count == 1:
            bits = mix(starts)[:, None]
        else:
            bits = mix(starts[:, None] + np.arange(count, dtype=np.uint64) * _GOLDEN)
        self.counters[rows] = counters + np.uint64(count)
        return ((bits >> np.uint64(11)) * _TO_UNIT).reshape(len(starts), *shape)

    def normal(self, *shape: int, rows: Rows = ALL) -> np.ndarray:
        """Standard normal floats by Box-Muller, shape `[len(rows), *shape]`; each takes two numbers of its stream."""
        u = self.uniform(2, *shape, rows=rows)
        return np.sqrt(-2.0 * np.log1p(-u[:, 0])) * np.cos(2.0 * np.pi * u[:, 1])

    def categorical(self, probabilities: np.ndarray, rows: Rows = ALL) -> np.ndarray:
        """One index per slot from `probabilities [len(rows), K]` by inversion of the cumulative sum."""
        cumulative = np.cumsum(probabilities, axis=-1)
        u = self.uniform(rows=rows)[:, None] * cumulative[:, -1:]  # the last sum may be off 1 by rounding
        return np.minimum((cumulative <= u).sum(-1), probabilities.shape[-1] - 1)

"""Causal attention over a sliding window of steps: what SNAIL, GTrXL and the memory network share.

A window of `W` steps is the present step and the `W - 1` before it, as far as they belong to the same trial. What a core
needs of earlier steps lies in a cache `[B, W - 1, F]`: oldest first, newest last, zeros where nothing has happened yet.
A float32 counter `[B, 1]` in the core's state says how many places at its end are filled (in bfloat16, 256 + 1 is 256).
One function serves stepping (one query, a full cache) and scanning (many queries): there is no second path that could
disagree.

The *age* of a step is how many steps ago it was; the present step has age 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarl.memory.base import MemoryCore, State, clear

QUERIES_AT_ONCE = 128
"""Long sequences are attended to in spans of so many steps, so that time and memory grow with `T`, not its square."""


class WindowCore(MemoryCore):
    """A core that sees a window of steps: one function runs it over many steps in parallel, and over a single one."""

    watched = "steps, the present one on top"

    @property
    def places(self) -> int:
        """Past steps in the window: places of its caches."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step; its cost does not depend on how many went before."""
        y, state, _ = self._run(x[:, None], state, None, self.places)
        return y[:, 0], state

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps in parallel."""
        state, reset = settle(state, self.initial_state(x.shape[1]), reset)
        y, state, _ = self._run(x.transpose(0, 1).contiguous(), state, reset, int(state[0].max()))
        return y.transpose(0, 1).contiguous(), state

    def weights(self, x: Tensor, state: State) -> list[Tensor]:
        """What each attention of a step on `x` from `state` looks at, `[B, H, 1, W]`, oldest first."""
        return self._run(x[:, None], state, None, self.places)[2]

    def _run(self, x: Tensor, state: State, reset: Tensor | None, used: int) -> tuple[Tensor, State, list[Tensor]]:
        """`x [B, T, I]` to `y [B, T, O]`, the next state and the weights, reading `used` places of the caches."""
        raise NotImplementedError


class Span(NamedTuple):
    """Some neighbouring queries, and the keys that at least one of them may see."""

    queries: slice
    keys: slice
    bias: Tensor  # [B, 1, queries, keys]: 0 where a query may see a key, else -inf


def settle(state: State, fresh: State, reset: Tensor | None) -> tuple[State, Tensor | None]:
    """Do the resets before the first step; `None` instead of `reset` if no others are left."""
    if reset is None:
        return state, None
    if reset[0].any():
        state = clear(state, fresh, reset[0])
    return state, reset if reset[1:].any() else None


def steps_before(count: Tensor, steps: int, reset: Tensor | None) -> Tensor:
    """How many earlier steps of its trial each of `steps` steps has, `[B, T]`, given the counter `count [B, 1]`."""
    time = torch.arange(steps, dtype=count.dtype, device=count.device)
    start = -count  # when each trial began
    if reset is not None:
        start = torch.where(reset.T, time, start).cummax(1).values
    return time - start


def extend(cache: Tensor, new: Tensor, used: int | None = None) -> Tensor:
    """The last `used` places of the cache `[B, ..., C, F]` (all by default), then `new [B, ..., T, F]`."""
    places = cache.shape[-2]
    return torch.cat([cache[..., places - (places if used is None else used) :, :], new], -2)


def keep(extended: Tensor, places: int, count: Tensor | None) -> Tensor:
    """The next cache: the last `places` of `extended [B, ..., S, F]`, padded with zeros if it has fewer.

    Places that `count [B, 1]` does not cover become zeros; `None` says that they are zeros already.
    """
    cache = extended[..., max(extended.shape[-2] - places, 0) :, :]
    if cache.shape[-2] < places:
        cache = F.pad(cache, (0, 0, places - cache.shape[-2], 0))
    if count is None:
        return cache
    filled = torch.arange(places - 1, -1, -1, dtype=count.dtype, device=count.device) < count
    return torch.where(filled.view(-1, *[1] * (cache.dim() - 3), places, 1), cache, 0.0)


def plan(before: Tensor, cached: int, window: int) -> list[Span]:
    """Who may see whom.

    Args:
        before: earlier steps of its trial that each step has, `[B, T]`.
        cached: places of the cache before the first step's own key.
        window: steps seen at most, the present one included.
    """
    steps = before.shape[1]
    before = before.clamp(max=window - 1)[:, None, :, None]
    spans = []
    for start in range(0, steps, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, steps)
        first, last = max(cached + start - window + 1, 0), cached + stop
        present, past = (
            torch.arange(*ends, dtype=before.dtype, device=before.device) for ends in ((start, stop), (first, last))
        )
        age = cached + present[:, None] - past
        hidden = (age < 0) | (age > before[:, :, start:stop])
        bias = torch.zeros(hidden.shape, dtype=before.dtype, device=before.device).masked_fill_(hidden, -torch.inf)
        spans.append(Span(slice(start, stop), slice(first, last), bias))
    return spans


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: list[Span],
    q_age: Tensor | None = None,
    k_age: Tensor | None = None,
    v_age: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sum_j w_j (v_j + v_age[a_j])` with `w = softmax_j(q . k_j + q_age . k_age[a_j])`, `a_j` the age of step `j`.

    Args:
        q: queries `[B, H, T, D]`, already scaled; `H` heads.
        k: keys of the cache and the steps `[B, H, S, D]`.
        v: their values `[B, H, S, V]`.
        spans: from `plan`.
        q_age: queries for ages `[B, H, T, D]`.
        k_age: keys of ages `[H, W, D]`, oldest first.
        v_age: values of ages `[H, W, V]`, oldest first.

    Returns:
        What was read `[B, H, T, V]`, and the last span's weights.
    """
    reads = []
    for queries, keys, bias in spans:
        scores = q[:, :, queries] @ k[:, :, keys].mT + bias.to(q.dtype)
        if k_age is not None:
            scores = _AddByKey.apply(scores, q_age[:, :, queries] @ k_age[:, -scores.shape[-1] :].mT)
        weights = scores.softmax(-1)
        read = weights @ v[:, :, keys]
        if v_age is not None:
            ages = v_age[:, -scores.shape[-1] :]
            read = read + _ByAge.apply(weights, ages.shape[1]) @ ages
        reads.append(read)
    return reads[0] if len(reads) == 1 else torch.cat(reads, 2), weights


class _AddByKey(torch.autograd.Function):
    """Adds scores by age `[..., T, A]` to scores by key `[..., T, S]`; where nobody may see, adds anything finite.

    Both are oldest first, and the last query's own key is the last column, so that query `t`'s column for an age lies
    one further left than query `t + 1`'s. In memory, row `t` begins `A` numbers after the row before it; read as if
    that were `A - 1`, every row has moved one place further right. What runs over an edge are a neighbour's numbers.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, by_age: Tensor) -> Tensor:
        *lead, steps, keys = scores.shape
        ages = ctx.ages = by_age.shape[-1]
        by_age = by_age.contiguous()
        offset = by_age.storage_offset() + steps - 1 + ages - keys
        return scores + by_age.as_strided((*lead, steps, keys), (*by_age.stride()[:-2], ages - 1, 1), offset)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, _shift_to_ages(grad, ctx.ages)


class _ByAge(torch.autograd.Function):
    """From weights by key `[..., T, S]`, zero where nobody may see, to weights by age `[..., T, A]`."""

    @staticmethod
    def forward(ctx, weights: Tensor, ages: int) -> Tensor:
        ctx.keys = weights.shape[-1]
        return _shift_to_ages(weights, ages)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _AddByKey.apply(grad.new_zeros(*grad.shape[:-1], ctx.keys), grad), None


def _shift_to_ages(x: Tensor, ages: int) -> Tensor:
    """The inverse of the shift in `_AddByKey`; what runs over an edge are zeros, for keys after a query's own."""
    *lead, steps, keys = x.shape
    flat = F.pad(x.flatten(-2), (steps - 1 + ages - keys, 0))
    return flat.as_strided((*lead, steps, ages), (*flat.stride()[:-1], keys + 1, 1))

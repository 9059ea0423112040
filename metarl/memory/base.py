"""The protocol of memory cores: what an agent keeps while time passes."""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarl.plain import check_compiler

State = tuple[Tensor, ...]
"""A core's state: tensors with leading axis `B`, one row per trial."""

SPAN = 100.0
"""Steps that the slowest units of a gated core remember for, before training: a trial's length, in order of magnitude."""


class MemoryCore(nn.Module):
    """A recurrent core, in the manner of haiku's `RNNCore`.

    `scan` must equal `T` calls of `step` with the state cleared to `initial_state` wherever `reset` is set; rows of
    the batch never influence each other.

    Attributes:
        input_size: features of `x`.
        output_size: features of `y`.
    """

    input_size: int
    output_size: int
    watched: ClassVar[str] = "units"
    """What the places are that `watch` tells about."""

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Optional arguments of the constructor, and their values."""
        return {name: p.default for name, p in inspect.signature(cls).parameters.items() if p.default is not p.empty}

    def initial_state(self, batch_size: int) -> State:
        """The state of `batch_size` trials in which nothing has happened yet."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: `x [B, input_size]` to `y [B, output_size]` and the next state."""
        raise NotImplementedError

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps: `x [T, B, input_size]` to `y [T, B, output_size]` and the final state.

        Where `reset [T, B]` (bool) is set, the state is cleared before that step.
        """
        raise NotImplementedError

    def restart(self, state: State, rows: Tensor) -> State:
        """`state` with `rows [B]` (bool) as at the start of a trial: cleared, unless a core keeps something beyond it."""
        return clear(state, self.initial_state(len(rows)), rows)

    @torch.no_grad()
    def watch(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """What a step on `x [B, input_size]` from `state` does with the memory, to be drawn: names and values `[B, K]`.

        Weights over places in memory that are read or written; for cores without such places, the next state.
        """
        state = self.step(x, state)[1]
        return {"state" if len(state) == 1 else f"state {i}": part.flatten(1) for i, part in enumerate(state, 1)}


class StepCore(MemoryCore):
    """A core that computes one step after the other, and may have its step compiled.

    Attributes:
        compiled: learn with the step put through `torch.compile`, which takes up to a minute for each number of trials,
            needs a C++ compiler, and is 1.4 (MANN) to 2 times (DNC) faster from then on; numbers differ by rounding.
    """

    compiled: bool = False

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps, one after the other.

        Raises:
            ValueError: where the step is to be compiled, and no compiler is there.
        """
        if not (self.compiled and torch.is_grad_enabled()):
            return scan_by_steps(self, x, state, reset)
        with warnings.catch_warnings():  # the compiler looks at the gradients of everything that it is given
            warnings.filterwarnings("ignore", "The .grad attribute", UserWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            return scan_by_steps(self, x, state, reset, self._compiled_step)

    @cached_property
    def _compiled_step(self) -> Callable[["StepCore", Tensor, State], tuple[Tensor, State]]:
        check_compiler("compiled")
        step = type(self).step
        # a copy of the code: PyTorch compiles one code for so many shapes and settings only, and cores have their own
        return torch.compile(FunctionType(step.__code__.replace(), step.__globals__, closure=step.__closure__))


def check_flag(name: str, value: bool) -> bool:
    """`value` if it is true or false, else a `ValueError`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def check_slice(name: str, ends: Sequence[int], size: int) -> slice:
    """`ends = (start, stop)` as a slice of `size` features, else a `ValueError`."""
    whole = isinstance(ends, list | tuple) and len(ends) == 2 and all(type(end) is int for end in ends)
    if not whole or not 0 <= ends[0] < ends[1] <= size:
        raise ValueError(f"{name} must be (start, stop) with 0 <= start < stop <= {size}, got {ends!r}")
    return slice(*ends)


def check_span(span: float) -> float:
    """`span` if it is one, else a `ValueError`."""
    if not isinstance(span, int | float) or not 2 <= span < math.inf:
        raise ValueError(f"span must be at least 2 steps, and finite, got {span!r}")
    return float(span)


def clear(state: State, fresh: State, rows: Tensor) -> State:
    """`state` with `rows [B]` (bool) replaced by `fresh`."""
    return tuple(torch.where(rows.view(-1, *[1] * (s.dim() - 1)), f, s) for s, f in zip(state, fresh, strict=True))


def name_heads(name: str, weights: Tensor) -> dict[str, Tensor]:
    """Weights `[B, H, N]` by head: `name`, or `name 1`, `name 2` and so on."""
    if weights.shape[1] == 1:
        return {name: weights[:, 0]}
    return {f"{name} {head + 1}": w for head, w in enumerate(weights.unbind(1))}


def scan_by_steps(
    core: MemoryCore, x: Tensor, state: State, reset: Tensor | None, step: Callable | None = None
) -> tuple[Tensor, State]:
    """`core.scan` as a loop over `core.step`, or a `step(core, x, state)` that does the same."""
    step = step or type(core).step
    some = [False] * len(x) if reset is None else reset.any(1).tolist()
    outputs = []
    for t, (now, cleared) in enumerate(zip(x.unbind(), some, strict=True)):  # the gradient of x[t] is as large as x
        if cleared:
            state = core.restart(state, reset[t])
        y, state = step(core, now, state)
        outputs.append(y)
    return torch.stack(outputs), state


def scan_fused(
    kernel: Callable[[Tensor, State, bool], tuple[Tensor, State]],
    x: Tensor,
    state: State,
    fresh: State,
    reset: Tensor | None,
    rows_at_once: int,
) -> tuple[Tensor, State]:
    """Run a fused recurrent `kernel` over sequences that may be reset in the middle.

    A fused kernel cannot clear its state between two steps, so before each such step an extra one is inserted, a
    *reset token*, whose input drives the gates so far that the state becomes exactly zero. Rows with fewer tokens
    than others are filled at the end with *hold tokens*, which keep the state exactly. Both are two extra input
    channels (reset, hold); the cost is a few more steps instead of a loop over time.

    Args:
        kernel: `(x, state, with_tokens) -> (y, state)`; with tokens, `x` has the two extra channels. Its first state
            tensor is its output.
        x: inputs `[T, B, input_size]`.
        state: initial state.
        fresh: the cleared state (zeros).
        reset: bool `[T, B]` or None.
        rows_at_once: the batch is run in chunks of so many rows: kernels are fastest while a chunk's activations stay
            in the processor's cache.
    """
    if reset is not None:
        state = clear(state, fresh, reset[0])
    chunks = []
    for start in range(0, x.shape[1], rows_at_once):
        rows = slice(start, start + rows_at_once)
        chunk_state = tuple(s[rows].contiguous() for s in state)
        if reset is None or not (inner := reset[1:, rows]).any():
            chunks.append(kernel(x[:, rows].contiguous(), chunk_state, False))
            continue
        tokens, positions = _insert_tokens(x[:, rows], inner)
        y, final = kernel(tokens, chunk_state, True)
        y = y.gather(0, positions[..., None].expand(-1, -1, y.shape[-1]))
        chunks.append((y, (y[-1], *final[1:])))
    if len(chunks) == 1:
        return chunks[0]
    outputs, finals = zip(*chunks, strict=True)
    return torch.cat(outputs, 1), tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def _insert_tokens(x: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """`x` with tokens `[T + R, B, input_size + 2]`, and where the real steps went, `[T, B]`.

    `inner [T - 1, B]` marks the resets after the first step; `R` is the largest number of them in a row.
    """
    steps, rows, size = x.shape
    shift = torch.cat([inner.new_zeros(1, rows), inner]).cumsum(0)
    positions = torch.arange(steps, device=x.device)[:, None] + shift
    length = steps + int(shift[-1].max())
    wide = torch.cat([x, x.new_zeros(steps, rows, 2)], -1)
    tokens = x.new_zeros(length, rows, size + 2)
    tokens[..., -2] = 1.0  # whatever is not overwritten by a real step is a reset token ...
    after_end = torch.arange(length, device=x.device)[:, None] > positions[-1]
    tokens[..., -2].masked_fill_(after_end, 0.0)
    tokens[..., -1].masked_fill_(after_end, 1.0)  # ... or, past the row's last step, a hold token
    return tokens.scatter(0, positions[..., None].expand_as(wide), wide), positions

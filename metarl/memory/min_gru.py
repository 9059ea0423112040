"""Minimal gated recurrent unit (Feng et al. 2024, "Were RNNs all we needed?"): gates that do not read the state.

The recurrence is then linear in the state: all products with weights are taken for all steps at once, and what is left per
step is a multiplication and an addition. Departures: tanh in place of the paper's g, which keeps states within (-1, 1);
update biases that start the units at every time scale, as in the other gated cores; that one addition and multiplication in
a loop, not in a parallel scan, which on a CPU moves more memory than it saves.
"""

import torch
from torch import Tensor, nn

from metarl.memory.base import SPAN, MemoryCore, State, check_span


class MinGRUCore(MemoryCore):
    """State `(h,)`, `[B, output_size]`.

    `z = sigmoid(W x + b)`, `n = tanh(V x + c)`, `h' = (1 - z) h + z n`, all of them `[B, output_size]`; `y = h'`. Update
    biases are `-log u` with `u` uniform in [1, span - 1], so that the units' memories last from 1 to `span` steps (chrono
    initialisation, Tallec & Ollivier 2018).

    Args:
        input_size: features of `x`.
        output_size: units.
        span: steps that the slowest units remember for.
    """

    def __init__(self, input_size: int, output_size: int, span: float = SPAN):
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.gates = nn.Linear(input_size, 2 * output_size)
        with torch.no_grad():
            self.gates.bias.zero_()
            bias = self.gates.bias[:output_size]
            bias.copy_(-torch.empty_like(bias).uniform_(1.0, check_span(span) - 1.0).log())

    def initial_state(self, batch_size: int) -> State:
        """Zeros `(h,)`."""
        return (self.gates.weight.new_zeros(batch_size, self.output_size),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step."""
        keep, new = self._terms(x)
        h = torch.addcmul(new, keep, state[0])
        return h, (h,)

    def scan(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps; a reset is a step that keeps nothing."""
        keep, new = self._terms(x)
        if reset is not None:
            keep = keep.masked_fill(reset[..., None], 0.0)
        y = LinearRecurrence.apply(keep, new, state[0])
        return y, (y[-1],)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`1 - z` and `z n`."""
        update, candidate = self.gates(x).chunk(2, -1)
        return torch.sigmoid(-update), torch.sigmoid(update) * torch.tanh(candidate)


class LinearRecurrence(torch.autograd.Function):
    """`h[t] = a[t] h[t-1] + b[t]` for `a, b [T, ...]` and `h[-1] [...]`, elementwise.

    Its gradient is the same recurrence backwards: with `g[t] = dL/dh[t] + a[t+1] g[t+1]`, that of `b[t]` is `g[t]`, and that
    of `a[t]` is `g[t] h[t-1]`.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, start: Tensor) -> Tensor:
        """All `h [T, ...]`."""
        h = torch.empty_like(b)
        previous = start
        for row, keep, new in zip(h.unbind(0), a.unbind(0), b.unbind(0), strict=True):
            previous = torch.addcmul(new, keep, previous, out=row)
        ctx.save_for_backward(a, h, start)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients with respect to `a`, `b` and `start`."""
        a, h, start = ctx.saved_tensors
        g = torch.empty_like(grad)
        carried = torch.zeros_like(start)
        for t in range(len(g) - 1, -1, -1):
            torch.add(grad[t], carried, out=g[t])
            carried = a[t] * g[t]
        return g * torch.cat([start[None], h[:-1]]), g, carried

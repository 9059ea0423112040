"""Recurrent cells for rules: one set of weights for all numbers, or one per task; and how gradients are put to them.

`[N, features, P]` is the layout throughout, see `Coordinatewise`.
"""

import math

import torch
from torch import Tensor, nn

from metarl.updates.base import columns


class Linear(nn.Module):
    """`W x + b` on `x [N, I, P]`: `[N, O, P]`. Weights are uniform in +-`bound`, or +-1/sqrt(I); 0 makes them zeros.

    Args:
        input_size: `I`.
        output_size: `O`.
        like: a tensor on the device and in the precision of the weights.
        bound: largest weight at the start.
    """

    def __init__(self, input_size: int, output_size: int, like: Tensor, bound: float | None = None):
        super().__init__()
        bound = 1.0 / math.sqrt(input_size) if bound is None else bound
        self.weight = nn.Parameter(like.new_empty(output_size, input_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(like.new_empty(output_size).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, O, P]`."""
        return columns(x, self.weight, self.bias)


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), as `torch.nn.LSTMCell` but for its single bias.

    State `(h, c)`, `[N, H, P]` each.

    Args:
        input_size: features of `x [N, I, P]`.
        hidden_size: units, `H`.
        like: see `Linear`.
    """

    def __init__(self, input_size: int, hidden_size: int, like: Tensor):
        super().__init__()
        self.hidden_size = hidden_size
        self.gates = Linear(input_size + hidden_size, 4 * hidden_size, like, 1.0 / math.sqrt(hidden_size))

    def start(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros for `params [N, P]`."""
        zeros = params.new_zeros(len(params), self.hidden_size, params.shape[1])
        return zeros, zeros.clone()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The next state."""
        h, c = state
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014), as `torch.nn.GRUCell`. State `h [N, H, P]`.

    Args:
        input_size: features of `x [N, I, P]`.
        hidden_size: units, `H`.
        like: see `Linear`.
    """

    def __init__(self, input_size: int, hidden_size: int, like: Tensor):
        super().__init__()
        self.hidden_size = hidden_size
        bound = 1.0 / math.sqrt(hidden_size)
        self.from_input = Linear(input_size, 3 * hidden_size, like, bound)
        self.from_state = Linear(hidden_size, 3 * hidden_size, like, bound)

    def start(self, params: Tensor) -> Tensor:
        """Zeros for `params [N, P]`."""
        return params.new_zeros(len(params), self.hidden_size, params.shape[1])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The next state."""
        reset, update, new = self.from_input(x).chunk(3, 1)
        h_reset, h_update, h_new = self.from_state(h).chunk(3, 1)
        new = (new + (reset + h_reset).sigmoid() * h_new).tanh()
        return new.lerp(h, (update + h_update).sigmoid())


def log_and_sign(x: Tensor, p: float) -> Tensor:
    """`x [N, P]` as two features `[N, 2, P]`: `(log|x| / p, sign x)`, or `(-1, e^p x)` where `|x| < e^-p`.

    Andrychowicz et al. 2016, appendix A. So logarithm and sign both stay bounded, however small the numbers.
    """
    return torch.stack([x.abs().clamp_min(math.exp(-p)).log() / p, (math.exp(p) * x).clamp(-1.0, 1.0)], 1)

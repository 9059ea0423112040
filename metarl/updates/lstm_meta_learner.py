"""The LSTM meta-learner (Ravi & Larochelle 2017, "Optimization as a model for few-shot learning").

Section 3: the parameters are the cell state of an LSTM, `p' = f p + i (-g)`: the input gate `i` is a learning rate for
every number at every step, the forget gate `f` says what is left of the number itself. As in the paper's experiments there
are two layers: an ordinary LSTM of 20 units reads gradient and loss, by their logarithms and signs; the gates read its
output `h`, the number and what they were themselves:

    i' = sigmoid(W_I [h, p, i] + b_I),  f' = sigmoid(W_F [h, p, f] + b_F)

All weights are shared between the numbers, and every number has a state of its own. `b_F` starts large and `b_I` small,
so that training starts near gradient descent. The cell state's learned start, `c_0`, is MAML's starting point.

Departures from the paper:

- The gates' change of a number is multiplied by `rate / sigmoid(b_I)` for the initial `b_I`, so that `rate` is where the
  learning rate starts; where that quotient is 1, it is the paper's rule.
- `W_I` and `W_F` start at zero, so that the rule is at first exactly `p - rate (g + k p)`, with a small constant `k`.
- Derivatives flow through its inputs, where the caller lets them; the paper drops them (`second_order=False`).
- No batch normalisation is spoken of here: that is the network's affair.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metarl.plain import check_count
from metarl.updates.base import Coordinatewise, check_positive, columns
from metarl.updates.recurrent import LSTM, Linear, log_and_sign


class LSTMMetaLearner(Coordinatewise):
    """Parameters as the cell state of an LSTM, whose gates are learned.

    State `((h, c), gates)`: the first layer's, `[N, hidden, P]` each, and the last `(i, f)`, `[N, 2, P]`, zeros at first.

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        hidden: units of the first layer.
        p: in the preprocessing of gradients and losses: those below `e^-p` count as small.
        input_bias: `b_I` at the start.
        forget_bias: `b_F` at the start.
    """

    method = "LSTM meta-learner"
    starts_as = "sgd"

    def __init__(
        self,
        params: Mapping[str, Tensor],
        rate: float,
        hidden: int = 20,
        p: float = 10.0,
        input_bias: float = -2.0,
        forget_bias: float = 8.0,
    ):
        super().__init__(params, rate)
        check_count("hidden", hidden)
        self.p = check_positive("p", p)
        for name, value in (("input_bias", input_bias), ("forget_bias", forget_bias)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")
        self.gain = 1.0 + math.exp(-input_bias)  # one over the input gate at the start
        self.reader = LSTM(4, hidden, self.rate)
        self.gates = Linear(hidden + 2, 2, self.rate, 0.0)
        with torch.no_grad():
            self.gates.bias.copy_(self.rate.new_tensor([input_bias, forget_bias]))

    def start(self, params: Tensor) -> tuple:
        """Zeros."""
        return self.reader.start(params), params.new_zeros(len(params), 2, params.shape[1])

    def move(self, grads: Tensor, state: tuple, params: Tensor, losses: Tensor | None) -> tuple[Tensor, tuple]:
        """As in the base class; a loss that nobody knows counts as 0."""
        reader_state, gates = state
        losses = torch.zeros_like(grads[:, 0]) if losses is None else losses
        read = log_and_sign(losses[:, None], self.p).expand(-1, -1, grads.shape[1])
        h, c = self.reader(torch.cat([log_and_sign(grads, self.p), read], 1), reader_state)
        # the last input differs between the two gates: each reads itself
        shared, own = self.gates.weight[..., :-1], self.gates.weight[..., -1:]
        sums = columns(torch.cat([h, params[:, None]], 1), shared, self.gates.bias) + own * gates
        gates = sums.sigmoid()
        learn, keep = gates[:, 0], gates[:, 1]  # taken apart by `unbind`, torch.compile (2.13) gets derivatives wrong
        return self.gain * ((keep - 1.0) * params - learn * grads), ((h, c), gates)

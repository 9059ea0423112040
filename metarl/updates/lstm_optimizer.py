"""The LSTM optimizer (Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent").

Section 2.1: an LSTM with two layers of 20 units, the same for all numbers but with a state for each of them, reads a
gradient and gives a change: `p' = p + out(h)`. Appendix A: gradients are put to it by their logarithm and sign.

Departures from the paper:

- By default it starts from Adam: changes are Adam's plus `scale out(h)`, and `out` starts at zero. `base=None` is the
  paper's, where changes are `scale out(h)` alone and `out` starts at random.
- All changes are multiplied by `rate`.
- Derivatives flow through its inputs, where the caller lets them; the paper drops them (`second_order=False`).
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from metarl.plain import check_count
from metarl.updates.base import Coordinatewise, check_positive
from metarl.updates.hand_made import Adam
from metarl.updates.recurrent import LSTM, Linear, log_and_sign


class LSTMOptimizer(Coordinatewise):
    """Changes by an LSTM that remembers, for every number, the gradients that there were.

    State `(layers, base)`: for every layer `(h, c)`, `[N, hidden, P]` each; the state of Adam, or ().

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        hidden: units of a layer.
        layers: LSTMs on top of each other.
        p: in the preprocessing of gradients: those below `e^-p` count as small.
        scale: what the LSTM's output is multiplied by.
        base: adam, or None.
    """

    method = "MAML, LSTM optimizer"

    def __init__(
        self,
        params: Mapping[str, Tensor],
        rate: float,
        hidden: int = 20,
        layers: int = 2,
        p: float = 10.0,
        scale: float = 0.1,
        base: Literal["adam"] | None = "adam",
    ):
        super().__init__(params, rate)
        if base not in ("adam", None):
            raise ValueError(f"base must be adam or None, got {base!r}")
        check_count("hidden", hidden)
        check_count("layers", layers)
        self.p = check_positive("p", p)
        self.scale = check_positive("scale", scale)
        self.base = None if base is None else Adam(params, rate)
        self.layers = nn.ModuleList(LSTM(hidden if layer else 2, hidden, self.rate) for layer in range(layers))
        self.out = Linear(hidden, 1, self.rate, None if base is None else 0.0)

    def start(self, params: Tensor) -> tuple:
        """Zeros."""
        return tuple(layer.start(params) for layer in self.layers), () if self.base is None else self.base.start(params)

    def move(self, grads: Tensor, state: tuple, params: Tensor, losses: Tensor | None) -> tuple[Tensor, tuple]:
        """As in the base class."""
        states, base_state = state
        x, after = log_and_sign(grads, self.p), []
        for layer, before in zip(self.layers, states, strict=True):
            after.append(layer(x, before))
            x = after[-1][0]
        change = self.scale * self.out(x)[:, 0]
        if self.base is not None:
            base_move, base_state = self.base.move(grads, base_state, params, losses)
            change = base_move + change
        return change, (tuple(after), base_state)

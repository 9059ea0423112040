"""Optim4RL (Lan, Mahmood, Yan & Xu 2023, "Learning to optimize for reinforcement learning").

Gradients of reinforcement learning are small, of widely different sizes and noisy. So the networks read logarithms, and
what they give is put into the form of an adaptive optimizer, `p' = p - rate m / sqrt(v)`, section 5. Two recurrent
networks, the same for all numbers but with a state for each of them:

    h1 = GRU1(sign g, log|g|),  a, b = MLP1(h1),  m = sign(g) s exp(b)  with  s = 1 where a > -1, else -1
    h2 = GRU2(2 log|g|),            c = MLP2(h2),  v = exp(c)

No derivative passes through what they read; that of `s` is taken to be that of `tanh(a + 1)`.

Departures from the paper, whose structure is taken from memory and from reading the authors' first public code:

- By default it starts from Adam: `m` holds Adam's mean in place of `sign(g)`, `v` is multiplied by Adam's, and the last
  layers start at zero. `base=None` is the paper's, with all layers at random.
- In the authors' code `s` is 1 or 0; here it is a sign, as it is called.
- Later code of theirs reads `g` and `g^2`, without logarithms and without `s`; that is not offered.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from metarl.plain import check_count
from metarl.updates.base import Coordinatewise
from metarl.updates.hand_made import Adam
from metarl.updates.recurrent import GRU, Linear

SMALLEST = 1e-18
"""Added to the size of a gradient before its logarithm is taken."""


class Optim4RL(Coordinatewise):
    """Changes `-m / sqrt(v)`, with `m` and `v` from two recurrent networks.

    State `(h1, h2, base)`: `[N, hidden, P]` each, and the state of Adam, or ().

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        hidden: units of each recurrent network.
        width: units of both hidden layers of each MLP.
        base: adam, or None.
    """

    method = "MAML, Optim4RL"

    def __init__(
        self,
        params: Mapping[str, Tensor],
        rate: float,
        hidden: int = 8,
        width: int = 16,
        base: Literal["adam"] | None = "adam",
    ):
        super().__init__(params, rate)
        if base not in ("adam", None):
            raise ValueError(f"base must be adam or None, got {base!r}")
        check_count("hidden", hidden)
        check_count("width", width)
        self.base = None if base is None else Adam(params, rate)
        self.rnn1, self.rnn2 = GRU(2, hidden, self.rate), GRU(1, hidden, self.rate)
        self.mlp1, self.mlp2 = (self._mlp(hidden, width, outputs) for outputs in (2, 1))

    def _mlp(self, hidden: int, width: int, outputs: int) -> nn.Sequential:
        last = Linear(width, outputs, self.rate, None if self.base is None else 0.0)
        return nn.Sequential(Linear(hidden, width, self.rate), nn.ReLU(), Linear(width, width, self.rate), nn.ReLU(), last)

    def start(self, params: Tensor) -> tuple:
        """Zeros."""
        base = () if self.base is None else self.base.start(params)
        return self.rnn1.start(params), self.rnn2.start(params), base

    def move(self, grads: Tensor, state: tuple, params: Tensor, losses: Tensor | None) -> tuple[Tensor, tuple]:
        """As in the base class."""
        h1, h2, base_state = state
        sign, log = grads.detach().sign(), (grads.detach().abs() + SMALLEST).log()
        h1 = self.rnn1(torch.stack([sign, log], 1), h1)
        h2 = self.rnn2(2.0 * log[:, None], h2)
        outputs = self.mlp1(h1)
        turn, mean = outputs[:, 0], outputs[:, 1]
        soft = (turn + 1.0).tanh()
        flip = torch.where(soft < 0, -1.0, 1.0) + (soft - soft.detach())  # a step, with the derivative of `soft`
        if self.base is None:
            direction = -sign
        else:
            direction, base_state = self.base.move(grads, base_state, params, losses)
        return direction * flip * (mean - 0.5 * self.mlp2(h2)[:, 0]).exp(), (h1, h2, base_state)

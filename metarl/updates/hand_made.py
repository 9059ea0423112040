"""Hand-made rules, as in `torch.optim`: what learned ones are compared with, and start from.

Each equals its twin there, step by step. `g` are the gradients; `g^2` is taken as `g^2 + TINY`, see `square`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metarl.updates.base import TINY, Coordinatewise, check_decay, check_positive


class Momentum(Coordinatewise):
    """`b = momentum b + g`; `p - rate b` (Polyak 1964; `torch.optim.SGD(momentum=...)`). State `b [N, P]`.

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        momentum: what is left of `b` after a step.
    """

    method = "MAML, momentum"

    def __init__(self, params: Mapping[str, Tensor], rate: float, momentum: float = 0.9):
        super().__init__(params, rate)
        self.momentum = check_decay("momentum", momentum)

    def start(self, params: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(params)

    def move(self, grads: Tensor, state: Tensor, params: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        buffer = self.momentum * state + grads
        return -buffer, buffer


class Nesterov(Momentum):
    """`b = momentum b + g`; `p - rate (g + momentum b)` (Nesterov 1983; `torch.optim.SGD(nesterov=True)`).

    State and arguments as in `Momentum`.
    """

    method = "MAML, Nesterov"

    def move(self, grads: Tensor, state: Tensor, params: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        buffer = self.momentum * state + grads
        return -(grads + self.momentum * buffer), buffer


class Adagrad(Coordinatewise):
    """`s = s + g^2`; `p - rate g / (sqrt(s) + eps)` (Duchi, Hazan & Singer 2011; `torch.optim.Adagrad`). State `s [N, P]`.

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        eps: added to the divisor.
    """

    method = "MAML, Adagrad"

    def __init__(self, params: Mapping[str, Tensor], rate: float, eps: float = 1e-10):
        super().__init__(params, rate)
        self.eps = check_positive("eps", eps)

    def start(self, params: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(params)

    def move(self, grads: Tensor, state: Tensor, params: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        squares = state + square(grads)
        return -grads / (squares.sqrt() + self.eps), squares


class Adadelta(Coordinatewise):
    """`s = rho s + (1 - rho) g^2`; `d = sqrt(u + eps) / sqrt(s + eps) g`; `u = rho u + (1 - rho) d^2`; `p - rate d`.

    Zeiler 2012, "ADADELTA", algorithm 1; `torch.optim.Adadelta`. State `(s, u)`, `[N, P]` each.

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        rho: what is left of the averages after a step.
        eps: added to both averages.
    """

    method = "MAML, Adadelta"

    def __init__(self, params: Mapping[str, Tensor], rate: float, rho: float = 0.9, eps: float = 1e-6):
        super().__init__(params, rate)
        self.rho = check_decay("rho", rho)
        self.eps = check_positive("eps", eps)

    def start(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return torch.zeros_like(params), torch.zeros_like(params)

    def move(
        self, grads: Tensor, state: tuple[Tensor, Tensor], params: Tensor, losses: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As in the base class."""
        squares, moved = state
        squares = self.rho * squares + (1.0 - self.rho) * square(grads)
        step = ((moved + self.eps) / (squares + self.eps)).sqrt() * grads
        return -step, (squares, self.rho * moved + (1.0 - self.rho) * step * step)


class RMSprop(Coordinatewise):
    """`v = alpha v + (1 - alpha) g^2`; `p - rate g / (sqrt(v) + eps)`; `torch.optim.RMSprop`.

    Tieleman & Hinton 2012, "RMSProp", lecture 6.5 of a course. State `v [N, P]`.

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        alpha: what is left of `v` after a step.
        eps: added to the divisor.
    """

    method = "MAML, RMSprop"

    def __init__(self, params: Mapping[str, Tensor], rate: float, alpha: float = 0.99, eps: float = 1e-8):
        super().__init__(params, rate)
        self.alpha = check_decay("alpha", alpha)
        self.eps = check_positive("eps", eps)

    def start(self, params: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(params)

    def move(self, grads: Tensor, state: Tensor, params: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        squares = self.alpha * state + (1.0 - self.alpha) * square(grads)
        return -grads / (squares.sqrt() + self.eps), squares


class Adam(Coordinatewise):
    """`p - rate m / (sqrt(v) + eps)`, with `m` and `v` the unbiased averages of `g` and `g^2` over time.

    Kingma & Ba 2015, "Adam", algorithm 1; `torch.optim.Adam`. State `(m, v, t)`: `[N, P]`, `[N, P]`, steps taken `[N]`.

    Args:
        params: see `Coordinatewise`.
        rate: see `Coordinatewise`.
        beta1: what is left of the average of `g` after a step.
        beta2: what is left of the average of `g^2` after a step.
        eps: added to the divisor.
    """

    method = "MAML, Adam"

    def __init__(
        self, params: Mapping[str, Tensor], rate: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ):
        super().__init__(params, rate)
        self.beta1 = check_decay("beta1", beta1)
        self.beta2 = check_decay("beta2", beta2)
        self.eps = check_positive("eps", eps)

    def start(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Zeros."""
        return torch.zeros_like(params), torch.zeros_like(params), params.new_zeros(len(params))

    def move(
        self, grads: Tensor, state: tuple[Tensor, Tensor, Tensor], params: Tensor, losses: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """As in the base class."""
        mean, squares, step = state
        step = step + 1.0
        mean = mean.lerp(grads, newest(self.beta1, step)[:, None])
        squares = squares.lerp(square(grads), newest(self.beta2, step)[:, None])
        return -mean / (squares.sqrt() + self.eps), (mean, squares, step)


def square(grads: Tensor) -> Tensor:
    """`g^2 + TINY`: the square root of an average of it has a derivative also where all gradients were 0."""
    return grads * grads + TINY


def newest(decay: float, step: Tensor) -> Tensor:
    """The weight of the newest of `step [N]` terms in an unbiased exponential average, `(1 - decay) / (1 - decay^step)`.

    So `average + weight (new - average)` is at once what Adam's `m / (1 - beta^t)` is. `expm1` keeps it exact in float32.
    """
    log = math.log(decay) if decay else -math.inf
    return (decay - 1.0) / torch.expm1(step * log)

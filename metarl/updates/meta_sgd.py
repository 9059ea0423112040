"""Gradient descent with a learned rate for every single parameter."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metarl.batched import Params
from metarl.updates.base import UpdateRule


class MetaSGD(UpdateRule):
    """`p - rates * g`, elementwise (Li et al. 2017, "Meta-SGD", eq. 3); rates may become negative.

    Departure: all rates start at one value, where the paper draws them.

    Args:
        params: the parameters that it will change, without a task axis.
        rate: where all rates start.
    """

    method = "Meta-SGD"

    def __init__(self, params: Mapping[str, Tensor], rate: float):
        super().__init__()
        self.rates = nn.ParameterDict({_key(n): nn.Parameter(torch.full_like(p, rate)) for n, p in params.items()})

    def update(self, grads: Params, state: tuple, params: Params, losses: Tensor) -> tuple[Params, tuple]:
        """As in the base class."""
        return {**params, **{n: params[n] - self.rates[_key(n)] * grad for n, grad in grads.items()}}, state


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ParameterDict takes no dots

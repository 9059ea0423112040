"""Gradient descent with one rate for all parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metarl.batched import Params
from metarl.updates.base import UpdateRule


class SGD(UpdateRule):
    """`p - rate * g` (the inner step of MAML, Finn et al. 2017, eq. 1).

    Args:
        params: the parameters that it will change, without a task axis; read for their device.
        rate: the step size, or where it starts.
        learned: whether the outer loop trains it.
    """

    method = "MAML"

    def __init__(self, params: Mapping[str, Tensor], rate: float, learned: bool = False):
        super().__init__()
        device = next(iter(params.values())).device
        rate = torch.tensor(rate, device=device)
        if learned:
            self.rate = nn.Parameter(rate)
        else:
            self.register_buffer("rate", rate, persistent=False)

    def update(self, grads: Params, state: tuple, params: Params, losses: Tensor) -> tuple[Params, tuple]:
        """As in the base class."""
        return {**params, **{name: params[name] - self.rate * grad for name, grad in grads.items()}}, state


class LearnedSGD(SGD):
    """`p - rate * g` with a rate that the outer loop trains."""

    method = "MAML, learned rate"

    def __init__(self, params: Mapping[str, Tensor], rate: float):
        super().__init__(params, rate, learned=True)

"""The protocol of update rules: how gradients become parameter changes."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarl.batched import Params

TINY = 1e-30
"""Added to squared gradients, so that roots of their averages have a derivative where all of them were 0."""


class UpdateRule(nn.Module):
    """How gradients become parameter changes, for `N` tasks at once; what of it is learned are its own parameters.

    As optax's `GradientTransformation`, but it gives parameters in place of differences and may read them and the loss.
    All of it can be differentiated, so that the outer loop trains what is learned.

    A rule is made with (parameters to change, without a task axis; rate). To call it is to call `update`, so that
    `torch.func.functional_call` can put other weights in place.

    Attributes:
        method: what the field calls MAML with this rule.
    """

    method: ClassVar[str] = "MAML, own rule"

    def init(self, params: Params) -> Any:
        """The state at the start of a trial, for `params [N, ...]`; most rules have none."""
        return ()

    def update(self, grads: Params, state: Any, params: Params, losses: Tensor) -> tuple[Params, Any]:
        """One step.

        Args:
            grads: gradients `[N, ...]` of the parameters to change; those that are left out stay as they are.
            state: from `init` or the last `update`.
            params: all parameters `[N, ...]`.
            losses: what the gradients are of, `[N]`.

        Returns:
            all parameters after the step, and the state.
        """
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Params, Any]:
        """`update`."""
        return self.update(*args, **kwargs)


class Coordinatewise(UpdateRule):
    """A rule that treats every single number of the parameters alike: `P` numbers of `N` tasks, side by side as `[N, P]`.

    So what it has learned on one network fits every other one. A subclass says what to do with `[N, P]` in `start` and
    `move`. Its own parameters have a leading axis `[N, ...]` too while it is trained, a set for every task
    (`torch.func.functional_call` puts them in place): both forms must do. What the numbers share is laid out as
    `[N, features, P]`, and `columns` is how to multiply it by weights of either form; `x[..., None]` makes a vector of
    weights, of either form, fit `[N, P]`.

    Every tensor in a state has the leading axis `N`: so that tasks can start afresh, and be taken out, row by row.

    Args:
        params: the parameters to change, without a task axis: their shapes and order, device and precision.
        rate: the step size, which all moves are proportional to.
    """

    starts_as: ClassVar[str] = "adam"
    """Name of the hand-made rule that an untrained one equals or is near to, unless an option `base` says otherwise."""
    rate: Tensor

    def __init__(self, params: Mapping[str, Tensor], rate: float):
        super().__init__()
        self.shapes = {name: value.shape for name, value in params.items()}
        self.register_buffer("rate", next(iter(params.values())).new_tensor(float(rate)), persistent=False)

    def start(self, params: Tensor) -> Any:
        """The state at the start of a trial, for `params [N, P]`: nested tuples or dictionaries of tensors `[N, ...]`."""
        return ()

    def move(self, grads: Tensor, state: Any, params: Tensor, losses: Tensor | None) -> tuple[Tensor, Any]:
        """What to add to `params [N, P]` PER UNIT OF `rate`, and the next state.

        `losses [N]` is None where nobody knows the loss, as in a `torch.optim.Optimizer` without a closure.
        """
        raise NotImplementedError

    def in_place(self) -> Callable[..., tuple[Tensor, Any]]:
        """A function like `move` for `N = 1`, without derivatives, as fast as can be, with the weights as they are now.

        It may write over the state that it is given, and over the moves that it gave before.
        """
        return self.move

    def init(self, params: Params) -> Any:
        """As in the base class."""
        return self.start(self.flatten(params))

    def update(
        self, grads: Params, state: Any, params: Params, losses: Tensor | None, **signals: Params
    ) -> tuple[Params, Any]:
        """As in the base class, for gradients of ALL parameters that the rule was made with.

        `signals` are what else is known about every number, `[N, ...]` as the gradients, for rules whose `move` takes them.
        """
        flat, known = self.flatten(params), {name: self.flatten(values) for name, values in signals.items()}
        moves, state = self.move(self.flatten(grads), state, flat, losses, **known)
        return {**params, **self.unflatten(flat + self.rate * moves)}, state

    def flatten(self, values: Params) -> Tensor:
        """Those of `values [N, ...]` that the rule changes, side by side: `[N, P]`."""
        return torch.cat([values[name].reshape(len(values[name]), -1) for name in self.shapes], 1)

    def unflatten(self, flat: Tensor) -> Params:
        """`[N, P]` as `flatten` took it: by name and in shape."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], 1)
        return {name: part.reshape(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def columns(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`weight [O, I]`, or one per task `[N, O, I]`, times `x [N, I, P]`, plus `bias [O]` or `[N, O]`: `[N, O, P]`."""
    product = torch.bmm(weight.expand(len(x), -1, -1), x)
    return product if bias is None else product + bias[..., None]


def check_decay(name: str, value: float) -> float:
    """`value`, what is left of an average after a step; a `ValueError` unless it is from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """`value`; a `ValueError` unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return float(value)

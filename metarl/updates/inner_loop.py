"""The inner loop: adapting the parameters of all tasks at once by an update rule, so that it can be differentiated."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.batched import Params
from metarl.updates.base import UpdateRule


class Diverged(ValueError):
    """The parameters, the loss or the answers of a task are no longer finite. `task` is its number among those adapted."""

    def __init__(self, task: int, message: str):
        super().__init__(task, message)  # both, so that it can be sent from other processes
        self.task = task

    def __str__(self) -> str:
        return self.args[1]


def inner_step(
    rule: UpdateRule,
    params: Params,
    state: Any,
    loss: Callable[[Params], Tensor],
    *,
    adapted: Collection[str],
    second_order: bool = False,
    functional: bool = False,
) -> tuple[Params, Any, Tensor]:
    """One step of every task on its own loss.

    Gradients are those of the SUM over tasks, whose parameters are apart: so each task gets the gradient of its own loss,
    not divided by the number of tasks.

    Args:
        rule: the update rule.
        params: `[N, ...]`.
        state: of the rule.
        loss: from parameters to one loss per task, `[N]`.
        adapted: names of the parameters that change (ANIL, Raghu et al. 2020, adapts the last layer only).
        second_order: let derivatives flow through the gradients (MAML) and the losses that a rule may read; otherwise
            these are taken as constants (FOMAML).
        functional: use `torch.func`'s gradient, which `torch.compile` understands; the numbers are the same.

    Returns:
        parameters and state after the step, and the losses before it `[N]`.
    """

    def total(changing: Params) -> tuple[Tensor, Tensor]:
        losses = loss({**params, **changing})
        return losses.sum(), losses

    changing = {name: params[name] for name in adapted}
    if functional:
        grads, losses = torch.func.grad(total, has_aux=True)(changing)
        if not second_order:
            grads = {name: grad.detach() for name, grad in grads.items()}
    else:
        outer = torch.is_grad_enabled()  # otherwise parameters may say that they have derivatives, as views, but have none
        with torch.enable_grad():
            changing = {n: p if outer and p.requires_grad else p.detach().requires_grad_() for n, p in changing.items()}
            summed, losses = total(changing)
            found = torch.autograd.grad(summed, changing.values(), create_graph=second_order)
            grads = dict(zip(changing, found, strict=True))
    known = losses if second_order else losses.detach()  # a rule that reads them
    return *rule.update(grads, state, params, known), losses


def check_adapted(params: Params, losses: Tensor, step: int | np.ndarray) -> None:
    """Raise `Diverged`, naming the first task that is not finite after gradient step `step` (or its own, `[N]`), from 1."""
    finite = torch.isfinite(losses)
    for value in params.values():
        finite = finite & torch.isfinite(value[:, None].flatten(1)).all(1)
    if not finite.all():
        task = int((~finite).nonzero()[0])
        step = np.broadcast_to(step, len(finite))[task]
        raise Diverged(task, f"the inner loop diverged at gradient step {step}: the adapted parameters are not finite")

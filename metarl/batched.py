"""Networks with one set of parameters per task: all tasks in one forward.

`Params` maps the names of a module's parameters to tensors with a leading task axis `[N, *shape]`. Gradients of a sum over
tasks with respect to them are gradients per task. Linear layers become batched matrix products, several times faster than
a loop over tasks or `torch.func.vmap`; what is between them has no parameters and needs no change.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metarl.kernels import linear

Params = dict[str, Tensor]
"""Parameters by name, each `[N, *shape]`."""

TaskBatching = Literal["auto", "batched", "loop"]
"""How tasks run through layers other than linear ones: side by side, one after another, or as is faster."""

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def for_tasks(params: Mapping[str, Tensor], num_tasks: int) -> Params:
    """The same parameters for every one of `num_tasks` tasks; gradients flow back to `params`, summed over tasks."""
    return {name: value.expand(num_tasks, *value.shape) for name, value in params.items()}


def of_task(params: Params, task: int) -> Params:
    """The parameters of one task, without the task axis."""
    return {name: value[task] for name, value in params.items()}


def subset(params: Params, prefix: str) -> Params:
    """The parameters of the submodule `prefix`, under the names that it has for them."""
    return {name.removeprefix(f"{prefix}."): value for name, value in params.items() if name.startswith(f"{prefix}.")}


def call_batched(module: nn.Module, params: Params, x: Any, how: TaskBatching = "auto") -> Tensor:
    """`module` on `x [N, M, ...]` (or a dictionary of such), task `n` with its own parameters: `[N, M, ...]`.

    Sequences of linear layers and of layers without parameters run as batched matrix products. A module with a method
    `forward_batched(params, x)` does it itself. Any other goes through `torch.func.vmap` or, one task after another,
    through a loop: where it holds convolutions on a CPU, whose grouped form is slow there, and where it holds batch
    normalisation, whose second derivatives under `vmap` are wrong (PyTorch 2.13).
    """
    return bind(module, params, how)(x)


def bind(module: nn.Module, params: Params, how: TaskBatching = "auto") -> Callable[[Any], Tensor]:
    """`call_batched` as a function of `x` alone, for many calls: which way each layer goes is found out once."""
    if hasattr(module, "forward_batched"):
        return partial(module.forward_batched, params)
    if type(module).forward is nn.Sequential.forward and len({*module}) == len(module):  # no layer is in it twice
        return bind_all(dict(module.named_children()), params, how)
    if type(module) is nn.Linear:
        return partial(_linear, module, params, how)
    if not params and not (any(True for _ in module.buffers()) or _has(module, _BATCH_NORM)):
        return partial(_without_parameters, module, how)
    return partial(_by_task, module, params, how)


def bind_all(modules: Mapping[str, nn.Module], params: Params, how: TaskBatching = "auto") -> Callable[[Any], Tensor]:
    """Modules one after another, each with those of `params` that start with its name."""
    return partial(_in_turn, [bind(module, subset(params, name), how) for name, module in modules.items()])


def _in_turn(layers: Sequence[Callable[[Any], Tensor]], x: Any) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _linear(module: nn.Linear, params: Params, how: TaskBatching, x: Tensor) -> Tensor:
    return linear(x, params["weight"], params.get("bias")) if x.ndim == 3 else _by_task(module, params, how, x)


def _without_parameters(module: nn.Module, how: TaskBatching, x: Any) -> Tensor:
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if isinstance(x, Tensor) else _by_task(module, {}, how, x)


def _by_task(module: nn.Module, params: Params, how: TaskBatching, x: Any) -> Tensor:
    leaf = next(iter(x.values())) if isinstance(x, dict) else x
    if how == "loop" or _loop_is_better(module, leaf.device, how):
        own = _apart(params) if params else [{}] * len(leaf)
        each = _apart(x) if isinstance(x, dict) else x.unbind()
        return torch.stack([functional_call(module, *one) for one in zip(own, each, strict=True)])
    return vmap(lambda p, one: functional_call(module, p, (one,)), randomness="different")(params, x)


def _loop_is_better(module: nn.Module, device: torch.device, how: TaskBatching) -> bool:
    return _has(module, _BATCH_NORM) or (how == "auto" and device.type == "cpu" and _has(module, _CONVOLUTIONS))


def _has(module: nn.Module, kind: Any) -> bool:
    return any(isinstance(layer, kind) for layer in module.modules())


def _apart(values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """One dictionary per task. By `unbind`: the gradient of `value[n]` is as large as all of `value`, and mostly zeros."""
    tasks = zip(*(value.unbind() for value in values.values()), strict=True)
    return [dict(zip(values, task, strict=True)) for task in tasks]

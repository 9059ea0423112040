"""How dormant the neurons of a network are: what OPEN (Goldie et al. 2024) tells its update rule.

A neuron's score is its mean activity, without signs, over that of its layer (Sokar et al. 2023, "The dormant neuron
phenomenon in deep reinforcement learning", eq. 1). OPEN's rule reads the score; here it reads how much is missing to 1, so
that 0 says that nothing is the matter.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metarl.batched import Params, call_batched, subset
from metarl.updates.base import UpdateRule


def dormancy(activations: Tensor) -> Tensor:
    """Of the `H` neurons of a layer, `[N, H]`: 0 for those at least as active as their layer's mean, 1 for silent ones.

    Args:
        activations: of `N` tasks on `M` inputs, `[N, M, H]`.
    """
    activity = activations.abs().mean(1)
    smallest = torch.finfo(activity.dtype).tiny  # in a layer that is silent all are dormant
    return (1.0 - activity / activity.mean(1, keepdim=True).clamp_min(smallest)).clamp_min(0.0)


def spread(dormancy: Tensor, shape: Sequence[int]) -> Tensor:
    """`dormancy [N, H]` of neurons for the numbers that lead into them, `[N, *shape]`, where `shape` begins with `H`."""
    return dormancy.reshape(*dormancy.shape, *[1] * (len(shape) - 1)).expand(len(dormancy), *shape)


def dormancy_of_layers(layers: nn.Sequential, params: Params, x: Tensor) -> Params:
    """How dormant the neuron is that each number leads into, in the shapes of `params [N, ...]`, on inputs `x [N, M, ...]`.

    `layers` are linear ones, each followed by its activation.
    """
    found: Params = {}
    names: list[str] = []
    for name, layer in layers.named_children():
        x = call_batched(layer, subset(params, name), x)
        if isinstance(layer, nn.Linear):
            names = [f"{name}.{kind}" for kind, _ in layer.named_parameters()]
        else:
            silent = dormancy(x)
            found |= {one: spread(silent, params[one].shape[1:]) for one in names}
    return found


def reads_dormancy(rule: UpdateRule) -> bool:
    """Whether the rule takes dormancy as an input."""
    return hasattr(rule, "move") and "dormancy" in inspect.signature(rule.move).parameters

"""What policies are put together from: reading observations, and layers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from torch import Tensor, nn

from metarl.kernels import Tanh
from metarl.trials import TensorObs

_OBSERVABLE = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiBinary, gym.spaces.MultiDiscrete)


def default_extractor(space: gym.Space) -> type[BaseFeaturesExtractor]:
    """The features extractor that fits an observation space.

    Raises:
        ValueError: when observations of the space cannot be read.
    """
    nested = isinstance(space, gym.spaces.Dict)
    if any(not isinstance(leaf, _OBSERVABLE) for leaf in (space.values() if nested else [space])):
        names = ", ".join(kind.__name__ for kind in _OBSERVABLE)
        raise ValueError(f"observation space must be one of {names}, or a flat Dict of these, got {space}")
    return PartsExtractor if nested else FlattenExtractor


PICTURE = 36
"""Pixels along each side from which on convolutions (`NatureCNN`) read a picture in a `Dict`: they need as many."""


class PartsExtractor(CombinedExtractor):
    """Stable-Baselines3's, for pictures with their channels last too, and for small ones, which are flattened."""

    def __init__(self, observation_space: gym.spaces.Dict, cnn_output_dim: int = 256):
        parts = OrderedDict(observation_space.items())
        pictures = [key for key, part in parts.items() if _is_picture(part)]
        last = [key for key in pictures if not is_image_space_channels_first(parts[key])]
        for key, part in parts.items():
            if key in last:
                height, width, channels = part.shape
                parts[key] = gym.spaces.Box(0, 255, (channels, height, width), np.uint8)
            elif key not in pictures:
                parts[key] = gym.spaces.Box(-np.inf, np.inf, (gym.spaces.flatdim(part),))
        super().__init__(gym.spaces.Dict(parts), cnn_output_dim)
        for key in last:
            self.extractors[key] = nn.Sequential(_ChannelsFirst(), self.extractors[key])


class _ChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, -3)


def _is_picture(space: gym.Space) -> bool:
    """Whether convolutions can read it: of its three sides, the channels are the shortest."""
    return is_image_space(space) and sorted(space.shape)[1] >= PICTURE


def check_sizes(**lists: Sequence[int]) -> None:
    """Raise a `ValueError` unless each argument is a list of layer sizes."""
    for name, sizes in lists.items():
        if isinstance(sizes, str) or not isinstance(sizes, Sequence):
            raise ValueError(f"{name} must be a list of sizes, got {sizes!r}")
        if any(size != int(size) or size < 1 for size in sizes):
            raise ValueError(f"{name} must be a list of sizes of at least 1, got {sizes!r}")


def mlp(input_size: int, sizes: Sequence[int]) -> nn.Sequential:
    """Tanh layers of `sizes`."""
    layers: list[nn.Module] = []
    for size in sizes:
        layers += [nn.Linear(input_size, size), Tanh()]
        input_size = size
    return nn.Sequential(*layers)


class NormalisedValue:
    """A policy's `value_head` gives values in units of a running mean and standard deviation of the returns.

    The layer is rescaled when these move, so that its predictions do not (Pop-Art, van Hasselt et al. 2016): gradients
    keep one scale whatever the rewards' and the trial's length.
    """

    value_head: nn.Linear
    value_mean: Tensor
    value_std: Tensor

    def make_value_scale(self) -> None:
        """Start with mean 0 and deviation 1."""
        self.register_buffer("value_mean", torch.zeros(()))
        self.register_buffer("value_std", torch.ones(()))

    def denormalise(self, values: Tensor) -> Tensor:
        """What the value outputs say, in units of the returns."""
        return values * self.value_std + self.value_mean

    def normalise(self, returns: Tensor) -> Tensor:
        """Returns in the units of the value outputs."""
        return (returns - self.value_mean) / self.value_std

    @torch.no_grad()
    def track_returns(self, returns: Tensor, rate: float) -> None:
        """Move the running mean and standard deviation towards those of `returns`, keeping all predictions."""
        returns = returns.double()  # the variance is a small difference where returns are large
        old_mean, old_std = self.value_mean.double(), self.value_std.double()
        mean = torch.lerp(old_mean, returns.mean(), rate)
        second = torch.lerp(old_std**2 + old_mean**2, returns.square().mean(), rate)
        mean, std = mean.float(), (second - mean**2).clamp(min=1e-8).sqrt().float()
        self.value_head.weight.mul_(self.value_std / std)
        self.value_head.bias.copy_((self.denormalise(self.value_head.bias) - mean) / std)
        self.value_mean.copy_(mean)
        self.value_std.copy_(std)


def preprocess(observations: TensorObs, space: gym.Space, lead: int) -> TensorObs:
    """Observations with `lead` leading axes, as features extractors take them: one batch axis, one-hot, images in [0, 1]."""
    observations = map_leaves(_from_zero(observations, space), lambda o: o.reshape(-1, *o.shape[lead:]))
    return map_leaves(preprocess_obs(observations, space), lambda o: o if o.dim() > 1 else o[:, None])  # a Box of one number


def _from_zero(observations: TensorObs, space: gym.Space) -> TensorObs:
    """Observations with those of `Discrete` spaces counted from 0, wherever the space starts."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _from_zero(observations[key], part) for key, part in space.items()}
    start = getattr(space, "start", 0)
    return observations - torch.as_tensor(start, device=observations.device) if np.any(start) else observations


def map_leaves(observations: TensorObs, function: Callable[[Tensor], Tensor]) -> TensorObs:
    """`function` of every leaf."""
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)

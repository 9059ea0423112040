"""Action distributions as output layers of a policy: a linear map to parameters, and functions of the parameters."""

import math

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


class CategoricalHead(nn.Module):
    """Actions of `Discrete(n)`: parameters are log-probabilities `[..., n]`."""

    def __init__(self, input_size: int, space: gym.spaces.Discrete):
        super().__init__()
        self.start = int(space.start)
        self.feature_size = int(space.n)
        self.linear = nn.Linear(input_size, self.feature_size)

    def forward(self, y: Tensor) -> Tensor:
        """Log-probabilities of all actions."""
        # over the leading axis the CPU kernel works on whole vectors: ten times faster for a handful of actions
        return torch.log_softmax(self.linear(y).movedim(-1, 0), 0).movedim(0, -1)

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        """One action per row, by inversion of the cumulative distribution."""
        cumulative = params.exp().movedim(-1, 0).cumsum(0)  # over the leading axis, for speed as above
        u = torch.rand(params.shape[:-1], generator=generator, device=params.device)
        return (u * cumulative[-1] >= cumulative[:-1]).sum(0)

    def mode(self, params: Tensor) -> Tensor:
        """The likeliest action."""
        return params.argmax(-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """`[...]`."""
        return params.gather(-1, actions[..., None])[..., 0]

    def entropy(self, params: Tensor) -> Tensor:
        """In nats, `[...]`."""
        return -(params.exp() * params).sum(-1)

    def features(self, actions: Tensor) -> Tensor:
        """The previous action as an input of the policy: one-hot `[..., n]`."""
        return nn.functional.one_hot(actions, self.feature_size).float()

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them."""
        actions = actions.cpu().numpy()
        return actions + self.start if self.start else actions


class GaussianHead(nn.Module):
    """Actions of a `Box`: parameters are the mean `[..., D]`; the standard deviation is learned, equal in all states.

    Actions are in units of the box's half range around its centre (unbounded dimensions: as they are), so that one
    initial standard deviation suits every environment. The environment receives them clipped to the box; likelihoods
    are of the unclipped ones. Log-probabilities sum over action dimensions.
    """

    def __init__(self, input_size: int, space: gym.spaces.Box, initial_log_std: float = -0.5):
        super().__init__()
        if len(space.shape) != 1:
            raise ValueError(f"a Box of actions must have one axis, got shape {space.shape}")
        self.feature_size = space.shape[0]
        self.linear = nn.Linear(input_size, self.feature_size)
        self.log_std = nn.Parameter(torch.full((self.feature_size,), initial_log_std))
        bounded = space.bounded_below & space.bounded_above
        self._low, self._high, self._dtype = space.low, space.high, space.dtype
        limits = np.stack([space.low, space.high]).astype(np.float64)
        low, high = np.where(bounded, limits, [[-1.0], [1.0]])
        self._centre = (low + high) / 2
        self._half_range = np.where(low < high, (high - low) / 2, 1.0)
        limits = torch.as_tensor((limits - self._centre) / self._half_range, dtype=torch.float32)
        self.register_buffer("_limits", limits, persistent=False)  # the box in the head's units, [2, D]

    def forward(self, y: Tensor) -> Tensor:
        """Means."""
        return self.linear(y)

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        """One action per row."""
        noise = torch.empty_like(params).normal_(generator=generator)
        return params + self.log_std.exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        """The mean."""
        return params

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """`[...]`."""
        z = (actions - params) * torch.exp(-self.log_std)
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """In nats, `[...]`."""
        total = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return total.expand(params.shape[:-1])

    def features(self, actions: Tensor) -> Tensor:
        """The previous action as an input of the policy: what the environment received, in the head's units."""
        return actions.clamp(*self._limits)

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them."""
        actions = self._centre + self._half_range * actions.cpu().numpy()
        return np.clip(actions, self._low, self._high).astype(self._dtype)


def make_head(input_size: int, space: gym.Space) -> CategoricalHead | GaussianHead:
    """The output layer that fits an action space."""
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(input_size, space)
    if isinstance(space, gym.spaces.Box):
        return GaussianHead(input_size, space)
    raise ValueError(f"action space must be Discrete or Box, got {space}")

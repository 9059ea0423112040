"""Action distributions as output layers of a policy: a map to parameters, and functions of these parameters alone.

`forward_batched` is the map for policies with one set of parameters per task (see `metarl.batched`). Heads tell the `shape`
and `dtype` of one action, and the `feature_size` of its features.
"""

import math

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from metarl.batched import Params
from metarl.kernels import linear


class _LogProbabilities(nn.Module):
    """What heads have in common whose parameters are the log-probabilities of one choice, or of several side by side."""

    linear: nn.Linear

    def forward(self, y: Tensor) -> Tensor:
        """Log-probabilities of all possibilities."""
        return self.finish(self.linear(y))

    def forward_batched(self, params: Params, y: Tensor) -> Tensor:
        """The same for `y [N, M, ...]`, task by task."""
        return self.finish(linear(y, params["linear.weight"], params["linear.bias"]))

    def entropy(self, params: Tensor) -> Tensor:
        """In nats, `[...]`."""
        return -(params.exp() * params).sum(-1)

    def kl(self, params: Tensor, others: Tensor) -> Tensor:
        """`KL(params || others)` in nats, `[...]`."""
        return (params.exp() * (params - others)).sum(-1)


class CategoricalHead(_LogProbabilities):
    """Actions of `Discrete(n)`: parameters are log-probabilities `[..., n]`."""

    def __init__(self, input_size: int, space: gym.spaces.Discrete):
        super().__init__()
        self.shape, self.dtype = (), torch.int64
        self.start = int(space.start)
        self.feature_size = int(space.n)
        self.linear = nn.Linear(input_size, self.feature_size)

    def finish(self, outputs: Tensor) -> Tensor:
        """Parameters from the outputs of `linear`."""
        return _log_softmax(outputs)

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        """One action per row, by inversion of the cumulative distribution."""
        return _invert(params, generator)

    def mode(self, params: Tensor) -> Tensor:
        """The likeliest action."""
        return params.argmax(-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """`[...]`."""
        return params.gather(-1, actions[..., None])[..., 0]

    def features(self, actions: Tensor) -> Tensor:
        """The previous action as an input of the policy: one-hot `[..., n]`."""
        return one_hot(actions, self.feature_size).float()

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them."""
        actions = actions.cpu().numpy()
        return actions + self.start if self.start else actions


class MultiCategoricalHead(_LogProbabilities):
    """Actions of `MultiDiscrete` or `MultiBinary`: `D` independent choices.

    Parameters are the log-probabilities of each choice's `n_d` possibilities, side by side `[..., sum n_d]`.
    Log-probabilities, entropies and divergences sum over choices.
    """

    def __init__(self, input_size: int, space: gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        super().__init__()
        if len(space.shape) != 1:
            raise ValueError(f"actions of {type(space).__name__} must have one axis, got shape {space.shape}")
        binary = isinstance(space, gym.spaces.MultiBinary)
        self.sizes = [2] * space.n if binary else space.nvec.tolist()
        self.shape, self.dtype = space.shape, torch.int64
        self.start = 0 if binary else space.start
        self._dtype = space.dtype
        self.feature_size = sum(self.sizes)
        self.linear = nn.Linear(input_size, self.feature_size)

    def finish(self, outputs: Tensor) -> Tensor:
        """Parameters from the outputs of `linear`."""
        return torch.cat([_log_softmax(part) for part in outputs.split(self.sizes, -1)], -1)

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        """One action `[D]` per row."""
        return torch.stack([_invert(part, generator) for part in params.split(self.sizes, -1)], -1)

    def mode(self, params: Tensor) -> Tensor:
        """The likeliest action."""
        return torch.stack([part.argmax(-1) for part in params.split(self.sizes, -1)], -1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """`[...]`."""
        return (params * self.features(actions)).sum(-1)

    def features(self, actions: Tensor) -> Tensor:
        """The previous action as an input of the policy: one-hot `[..., sum n_d]`."""
        choices = zip(actions.unbind(-1), self.sizes, strict=True)
        return torch.cat([one_hot(part, size) for part, size in choices], -1).float()

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them."""
        return (actions.cpu().numpy() + self.start).astype(self._dtype)


class GaussianHead(nn.Module):
    """Actions of a `Box`: parameters are the mean and the logarithm of the standard deviation, `[..., 2 D]`.

    The standard deviation is learned, and equal in all states.

    Actions are in units of the box's half range around its centre (unbounded dimensions: as they are), so that one
    initial standard deviation suits every environment. The environment receives them clipped to the box; likelihoods
    are of the unclipped ones. Log-probabilities sum over action dimensions.
    """

    def __init__(self, input_size: int, space: gym.spaces.Box, initial_log_std: float = -0.5):
        super().__init__()
        if len(space.shape) != 1:
            raise ValueError(f"a Box of actions must have one axis, got shape {space.shape}")
        self.feature_size = space.shape[0]
        self.shape, self.dtype = space.shape, torch.float32
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

    @property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre and half range of the box `[D]`: an action of the environment is `centre + half_range * a`."""
        return self._centre, self._half_range

    def forward(self, y: Tensor) -> Tensor:
        """Means and log standard deviations."""
        return self.finish(self.linear(y))

    def finish(self, outputs: Tensor) -> Tensor:
        """Parameters from the outputs of `linear`, the means."""
        return torch.cat([outputs, self.log_std.expand_as(outputs)], -1)

    def forward_batched(self, params: Params, y: Tensor) -> Tensor:
        """The same for `y [N, M, ...]`, task by task."""
        mean = linear(y, params["linear.weight"], params["linear.bias"])
        return torch.cat([mean, params["log_std"][:, None].expand_as(mean)], -1)

    def sample(self, params: Tensor, generator: torch.Generator | None) -> Tensor:
        """One action per row."""
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)

    def mode(self, params: Tensor) -> Tensor:
        """The mean."""
        return params.chunk(2, -1)[0]

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """`[...]`."""
        mean, log_std = params.chunk(2, -1)
        z = (actions - mean) * torch.exp(-log_std)
        return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """In nats, `[...]`."""
        return (params.chunk(2, -1)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, params: Tensor, others: Tensor) -> Tensor:
        """`KL(params || others)` in nats, `[...]`."""
        (mean, log_std), (other_mean, other_log_std) = params.chunk(2, -1), others.chunk(2, -1)
        gap = 2 * (log_std - other_log_std)
        return (0.5 * (gap.exp() + ((mean - other_mean) * torch.exp(-other_log_std)).square() - 1 - gap)).sum(-1)

    def features(self, actions: Tensor) -> Tensor:
        """The previous action as an input of the policy: what the environment received, in the head's units."""
        return actions.clamp(*self._limits)

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them."""
        actions = self._centre + self._half_range * actions.cpu().numpy()
        return np.clip(actions, self._low, self._high).astype(self._dtype)


def _log_softmax(x: Tensor) -> Tensor:
    # over the leading axis the CPU kernel works on whole vectors: ten times faster for a handful of actions
    return torch.log_softmax(x.movedim(-1, 0), 0).movedim(0, -1)


def _invert(log_probs: Tensor, generator: torch.Generator | None) -> Tensor:
    cumulative = log_probs.exp().movedim(-1, 0).cumsum(0)  # over the leading axis, for speed as above
    u = torch.rand(log_probs.shape[:-1], generator=generator, device=log_probs.device)
    return (u * cumulative[-1] >= cumulative[:-1]).sum(0)


Head = CategoricalHead | MultiCategoricalHead | GaussianHead


def make_head(input_size: int, space: gym.Space) -> Head:
    """The output layer that fits an action space."""
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(input_size, space)
    if isinstance(space, gym.spaces.Box):
        return GaussianHead(input_size, space)
    if isinstance(space, gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
        return MultiCategoricalHead(input_size, space)
    raise ValueError(f"action space must be Discrete, MultiDiscrete, MultiBinary or Box, got {space}")

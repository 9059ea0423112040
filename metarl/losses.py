"""Losses as pure functions of policy outputs and recorded data. All take and give tensors of any one shape."""

import torch
from torch import Tensor


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"arguments must share one shape, got {shapes}")


def ppo_clip(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Clipped surrogate loss (Schulman et al. 2017, eq. 7), per step.

    `-min(r A, clip(r, 1 - eps, 1 + eps) A)` with `r = exp(log_probs - old_log_probs)`.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """Value loss `(v - target)^2 / 2`, per step."""
    _same_shape(values=values, targets=targets)
    return 0.5 * (values - targets).square()


def approximate_kl(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """Estimate of `KL(old || new)` from samples of old, per step: `(r - 1) - log r` (Schulman 2020), never negative."""
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs)
    log_ratio = log_probs - old_log_probs
    return torch.expm1(log_ratio) - log_ratio

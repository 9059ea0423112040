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


def policy_gradient(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """`-log pi(a|s) A`, per step (Williams 1992).

    Its first derivative is that of the expected return, estimated from samples of `pi`. Its second is not: the derivative of
    the sampling distribution is missing (Foerster et al. 2018; Rothfuss et al. 2019, section 3).
    """
    _same_shape(log_probs=log_probs, advantages=advantages)
    return -log_probs * advantages


def likelihood_ratio(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """`-r A` with `r = pi(a|s) / pi_old(a|s)`, per step: low-variance curvature (LVC, Rothfuss et al. 2019).

    Derivatives are those of the expected return without the terms across time of the second one: what an earlier action
    changes about the distribution of a later one.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    return -torch.exp(log_probs - old_log_probs) * advantages


def dice(log_probs: Tensor, advantages: Tensor, episode: Tensor) -> Tensor:
    """Surrogate whose derivatives of ANY order are unbiased (DiCE, Foerster et al. 2018), per step.

    In the form that takes advantages (Farquhar et al. 2019, "Loaded DiCE", eq. 14): `-(M_t - M_{t-1}) A_t`, where `M_t` is
    the magic box of all log-probabilities of the episode up to step t: 1 in value, with the derivatives of the likelihood.
    Its value is zero everywhere.

    Args:
        log_probs: `[..., T]`, time last.
        advantages: `[..., T]`; returns to go, less any baseline of the state.
        episode: `[..., T]`, the number of the episode that a step belongs to, not falling along the row.
    """
    _same_shape(log_probs=log_probs, advantages=advantages, episode=episode)
    score = log_probs - log_probs.detach()
    total = score.cumsum(-1)
    first = torch.ones_like(episode, dtype=torch.bool)
    first[..., 1:] = episode[..., 1:] != episode[..., :-1]
    position = torch.arange(score.shape[-1], device=score.device).expand_as(episode)
    start = torch.where(first, position, 0).cummax(-1).values
    before_episode = (total - score).gather(-1, start)
    upto = total - before_episode
    return -(torch.exp(upto) - torch.exp(upto - score)) * advantages

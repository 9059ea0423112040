"""Returns and advantages over trials."""

import torch
from torch import Tensor


def trial_gae(
    rewards: Tensor,
    values: Tensor,
    trial_end: Tensor,
    bootstrap: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) that run across episodes and stop at trial ends.

    Inside a trial the successor of an episode's last step is the first step of the next episode: what is learned in
    one episode pays in the next, so returns cross episode ends, terminated or truncated alike (Duan et al. 2016,
    section 2.2). Where a trial ends or is cut, its continuation is worth `bootstrap`: zero after a termination, the
    value of the state reached where an outside limit cut it.

    Args:
        rewards: `[T, B]`.
        values: `[T, B]`, what was expected before each step.
        trial_end: `[T, B]`, whether the step is the last of its trial, or of what was recorded of it.
        bootstrap: `[T, B]`, value of what would have followed; read only where `trial_end`.
        gamma: discount per step.
        gae_lambda: exponential weight.

    Returns:
        advantages and returns (the value targets `advantages + values`), `[T, B]`.
    """
    if not trial_end[-1].all():
        raise ValueError("trial_end must be set on the last step of every row: what follows it was not recorded")
    following = torch.cat([values[1:], values[-1:]])
    deltas = rewards + gamma * torch.where(trial_end, bootstrap, following) - values
    carry = gamma * gae_lambda * (~trial_end).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        running = deltas[t] + carry[t] * running
        advantages[t] = running
    return advantages, advantages + values

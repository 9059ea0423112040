"""Returns and advantages over trials."""

import torch
from torch import Tensor


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, end: Tensor, bootstrap: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16) that stop where `end` says.

    For agents with a memory that is where TRIALS end: inside one, the successor of an episode's last step is the first
    step of the next episode. What is learned in one episode pays in the next, so returns cross episode ends, terminated or
    truncated alike (Duan et al. 2016, section 2.2). For policies that stay as they are between gradient steps it is where
    episodes end. Beyond an end, the continuation is worth `bootstrap`: zero after a termination, the value of the state
    reached where an outside limit cut it.

    Args:
        rewards: `[T, B]`.
        values: `[T, B]`, what was expected before each step.
        end: `[T, B]`, whether the step is the last one that counts together, or the last that was recorded.
        bootstrap: `[T, B]`, value of what would have followed; read only at ends.
        gamma: discount per step.
        gae_lambda: exponential weight.

    Returns:
        advantages and returns (the value targets `advantages + values`), `[T, B]`.
    """
    if not end[-1].all():
        raise ValueError("end must be set on the last step of every row: what follows it was not recorded")
    following = torch.cat([values[1:], values[-1:]])
    deltas = rewards + gamma * torch.where(end, bootstrap, following) - values
    carry = gamma * gae_lambda * (~end).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for delta, carried, advantage in reversed([*zip(deltas, carry, advantages, strict=True)]):
        running = torch.addcmul(delta, carried, running, out=advantage)
    return advantages, advantages + values


def time_in_episode(episode_start: Tensor) -> Tensor:
    """Steps since the episode began, `[T, B]`, from whether a step is an episode's first, `[T, B]`."""
    steps = torch.arange(len(episode_start), device=episode_start.device)[:, None].expand_as(episode_start)
    return steps - torch.where(episode_start, steps, 0).cummax(0).values


def linear_baseline(observations: Tensor, times: Tensor, returns: Tensor, weights: Tensor, ridge: float = 1e-5) -> Tensor:
    """Returns as predicted by ridge regression, fitted for each task on its own steps (Duan et al. 2016b, section 5).

    Features: observations (clipped to [-10, 10]), their squares, `t/100` and its square and cube, and 1.

    Args:
        observations: `[N, M, F]`.
        times: steps since the episode began, `[N, M]`.
        returns: discounted returns to go, `[N, M]`.
        weights: of the steps in the fit, `[N, M]`; 0 leaves one out.
        ridge: strength of the regularisation, for weights that sum to the number of steps.

    Returns:
        predictions `[N, M]`.
    """
    observations = observations.double().clamp(-10, 10)
    times = times.double()[..., None] / 100
    ones = torch.ones_like(times)
    features = torch.cat([observations, observations.square(), times, times.square(), times**3, ones], -1)
    weighted = (features * weights.double()[..., None]).mT
    strength = ridge * torch.eye(features.shape[-1], dtype=torch.float64, device=features.device)
    coefficients = torch.linalg.solve(weighted @ features + strength, weighted @ returns.double()[..., None])
    return (features @ coefficients)[..., 0].to(returns.dtype)

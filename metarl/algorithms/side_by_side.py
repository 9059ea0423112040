"""Agents side by side: `N` networks, each drawn and acting on its own, that may share the noise they live in."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.batched import Params
from metarl.distributions import Head
from metarl.policies import AdaptedPolicy, GradientPolicy
from metarl.returns import time_in_episode
from metarl.trials import TensorObs, Trials
from metarl_envs import TaskFamily, TaskVectorEnv

LARGEST_OUTPUT = 80.0
"""Bound on the outputs that agents act by: its exponential is finite, and what has diverged can go on acting."""


def fresh_params(policy: GradientPolicy, num: int, generator: torch.Generator) -> Params:
    """Parameters `[N, ...]` of `num` networks, each drawn as when a `GradientPolicy` is made.

    Linear layers are uniform within `1 / sqrt(inputs)` (PyTorch's default). The last layers are orthogonal with gain 0.01
    and have no bias: a nearly uniform policy, and values near zero.
    """
    params = {}
    for name, like in policy.initial_params().items():
        layer, kind = name.rpartition(".")[::2]
        if kind == "log_std":
            params[name] = like.detach().repeat(num, 1)
        elif not layer.startswith(("policy_head", "value_head")):
            bound = policy.get_submodule(layer).in_features ** -0.5
            params[name] = torch.empty(num, *like.shape).uniform_(-bound, bound, generator=generator)
        elif kind == "bias":
            params[name] = torch.zeros(num, *like.shape)
        else:
            wide = like.shape[0] < like.shape[1]
            normal = torch.randn(num, max(like.shape), min(like.shape), generator=generator)
            q, r = torch.linalg.qr(normal)
            q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # so that it is uniform, as in `nn.init.orthogonal_`
            params[name] = 0.01 * (q.mT if wide else q)
    return params


def mean_returns(trials: Trials, num_agents: int, longest: int) -> Tensor:
    """The mean undiscounted return per episode of each agent, `[N]`, from slots `[T, N K]` grouped by agent.

    Over the episodes that began no later than `T - longest`, so that short ones, which are over in time more often, do
    not count for more; where `T` is shorter, over each slot's first `T` steps.
    """
    steps = torch.arange(len(trials.rewards))[:, None]
    counts = steps - time_in_episode(trials.episode_start) <= max(len(steps) - longest, 0)
    total, episodes = (
        (counts * x).unflatten(1, (num_agents, -1)).sum((0, 2)) for x in (trials.rewards, trials.episode_start)
    )
    return total / episodes


class Agents(AdaptedPolicy):
    """`N` agents, in blocks of `N / copies` that draw their actions with the same random numbers."""

    def __init__(self, policy: GradientPolicy, params: Params, copies: int):
        super().__init__(policy, params)
        if copies > 1:
            self.policy_head = _TwinHead(policy.policy_head, copies)

    def act(self, observations: TensorObs, memory: None, task: None = None) -> tuple[Tensor, Tensor, None]:
        """As in the base class, with outputs that can be acted by."""
        params, values, _ = super().act(observations, memory, task)
        return params.nan_to_num().clamp(-LARGEST_OUTPUT, LARGEST_OUTPUT), values, None


class _TwinHead:
    """A head that draws the actions of each of `copies` blocks of slots with the same random numbers."""

    def __init__(self, head: Head, copies: int):
        self.copies, self.log_prob, self.to_env = copies, head.log_prob, head.to_env
        self._sample = head.sample

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Actions `[B, ...]`."""
        state, actions = generator.get_state(), []
        for part in params.chunk(self.copies):
            generator.set_state(state)
            actions.append(self._sample(part, generator))
        return torch.cat(actions)


class TwinEnvs(TaskVectorEnv):
    """Environments in `copies` blocks of slots that are seeded alike."""

    def __init__(self, num_envs: int, copies: int, family: TaskFamily):
        super().__init__(num_envs, family=family, autoreset_mode="Disabled")
        self.copies = copies

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As in the base class, but for the seeds: slot `i` of each block has `seed + i`."""
        if seed is not None:
            seed = np.tile(seed + np.arange(self.num_envs // self.copies), self.copies)
        return super().reset(seed=seed, options=options)

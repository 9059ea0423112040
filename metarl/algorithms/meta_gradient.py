"""The mathematics of gradient-based adaptation: batches of steps per task, inner losses, and the loss after adaptation.

Everything is a function of what it is given. Steps lie as `[N, M]`: `N` tasks, `M = T K` steps of `K` slots, time first.
Each step has a weight, and a task's weights sum to 1; so a loss is an average over the task's steps, and a test may weigh
trajectories by their exact probability instead of sampling them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl import losses
from metarl.batched import Params, for_tasks
from metarl.policies import GradientPolicy
from metarl.policies.parts import map_leaves
from metarl.returns import gae, linear_baseline, time_in_episode
from metarl.trials import TensorObs, Trials
from metarl.updates import check_adapted, inner_step

InnerObjective = Literal["likelihood_ratio", "dice", "log_prob"]
Baseline = Literal["linear", "network", "none"]


@dataclass(frozen=True)
class TaskBatch:
    """Steps in `N` tasks, with what is to be learned from them. All but `inputs` and `actions` are `[N, M]`."""

    inputs: TensorObs  # [N, M, ...], as `GradientPolicy.features` takes them
    actions: Tensor  # [N, M, ...]
    log_probs: Tensor  # of the policy that acted
    advantages: Tensor
    targets: Tensor  # of the value network, normalised
    weights: Tensor
    episode: Tensor  # number of the episode within its slot
    slots: int  # K

    def tasks(self, rows: slice) -> "TaskBatch":
        """The batch of some of the tasks."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "slots"}
        return TaskBatch(**{name: map_leaves(part, lambda x: x[rows]) for name, part in parts.items()}, slots=self.slots)

    def timed(self, x: Tensor) -> Tensor:
        """`x [N, M]` as `[N, K, T]`, time last."""
        return x.unflatten(1, (-1, self.slots)).mT


class Settings(NamedTuple):
    """What the functions below need to know; fields as in `MAMLConfig`."""

    inner_objective: InnerObjective = "likelihood_ratio"
    baseline: Baseline = "linear"
    gamma: float = 0.99
    gae_lambda: float = 1.0
    normalise_advantages: bool = True
    second_order: bool = True
    every_step: bool = False
    value_coef: float = 0.5
    clip_range: float = 0.2
    entropy_coef: float = 0.0
    kl_coef: float = 0.0


@torch.no_grad()
def make_batch(policy: GradientPolicy, trials: Trials, num_tasks: int, valid: Tensor, settings: Settings) -> TaskBatch:
    """Batch of `trials`, whose slots `[T, N K]` are grouped by task; only `valid` steps count.

    The baseline is the value network's estimate, or a linear function fitted to each task's own returns; with that one
    and with none, an episode that is cut counts as ended: they see finite episodes, and time is a feature. Advantages are
    normalised per task by their mean and STANDARD DEVIATION (not the variance).
    """
    done = trials.terminated | trials.truncated
    end = done | trials.trial_end
    weights = _by_task(valid.float(), num_tasks)
    weights = weights / weights.sum(1, keepdim=True)
    inputs = map_leaves(policy.preprocessed(trials.observations, 2), lambda x: _by_task(x, num_tasks))
    if settings.baseline == "network":
        values, bootstrap = trials.values, trials.bootstrap
    else:
        bootstrap = values = torch.zeros_like(trials.rewards)
    if settings.baseline == "linear":
        _, returns = gae(trials.rewards, values, end, bootstrap, settings.gamma, 1.0)
        times = _by_task(time_in_episode(trials.episode_start), num_tasks)
        observed = inputs if isinstance(inputs, Tensor) else torch.cat([v.flatten(2) for v in inputs.values()], -1)
        counts = weights * (weights > 0).sum(1, keepdim=True)
        fitted = linear_baseline(observed.flatten(2), times, _by_task(returns, num_tasks), counts)
        values = fitted.unflatten(1, (len(values), -1)).transpose(0, 1).flatten(1)
    advantages, returns = gae(trials.rewards, values, end, bootstrap, settings.gamma, settings.gae_lambda)
    advantages = _by_task(advantages, num_tasks)
    if settings.normalise_advantages:
        mean = (weights * advantages).sum(1, keepdim=True)
        variance = (weights * (advantages - mean).square()).sum(1, keepdim=True)
        advantages = (advantages - mean) / (variance.sqrt() + 1e-8)
    returns = _by_task(returns, num_tasks)
    return TaskBatch(
        inputs=inputs,
        actions=_by_task(trials.actions, num_tasks),
        log_probs=_by_task(trials.log_probs, num_tasks),
        advantages=advantages,
        targets=policy.normalise(returns) if settings.baseline == "network" else returns,
        weights=weights,
        episode=_by_task(trials.episode_start.cumsum(0), num_tasks),
        slots=trials.rewards.shape[1] // num_tasks,
    )


def _by_task(x: Tensor, num_tasks: int) -> Tensor:
    """`[T, N K, ...]` as `[N, T K, ...]`."""
    return x.unflatten(1, (num_tasks, -1)).transpose(0, 1).flatten(1, 2)


def inner_loss(policy: GradientPolicy, params: Params, batch: TaskBatch, settings: Settings) -> Tensor:
    """What an inner step descends, `[N]`."""
    features = policy.features(params, batch.inputs)
    log_probs = policy.policy_head.log_prob(policy.action_params(params, features), batch.actions)
    match settings.inner_objective:
        case "likelihood_ratio":
            per_step = losses.likelihood_ratio(log_probs, batch.log_probs, batch.advantages)
        case "log_prob":
            per_step = losses.policy_gradient(log_probs, batch.advantages)
        case "dice":
            timed = losses.dice(batch.timed(log_probs), batch.timed(batch.advantages), batch.timed(batch.episode))
            per_step = timed.mT.flatten(1)
    return (batch.weights * per_step).sum(1) + _value_loss(policy, params, features, batch, settings)


def _value_loss(policy: GradientPolicy, params: Params, features: Tensor, batch: TaskBatch, settings: Settings) -> Tensor:
    if policy.value_head is None:
        return torch.zeros_like(batch.weights[:, 0])
    errors = losses.squared_error(policy.values(params, features), batch.targets)
    return settings.value_coef * (batch.weights * errors).sum(1)


def adapt(
    policy: GradientPolicy,
    params: Params,
    state: Any,
    batch: TaskBatch,
    settings: Settings,
    *,
    second_order: bool = False,
    functional: bool = False,
) -> tuple[Params, Any, Tensor]:
    """One step of the policy's update rule on `batch`: parameters, state, and the losses before it `[N]`."""
    return inner_step(
        policy.rule,
        params,
        state,
        lambda p: inner_loss(policy, p, batch, settings),
        adapted=policy.adapted,
        second_order=second_order,
        functional=functional,
    )


def take_step(
    policy: GradientPolicy, params: Params, state: Any, batch: TaskBatch, settings: Settings, step: int | np.ndarray
) -> tuple[Params, Any]:
    """`adapt` without derivatives: parameters and state after gradient step `step` (or each task's own, `[N]`), from 1.

    Raises:
        Diverged: naming the first task whose parameters or loss are not finite, and its step.
    """
    params, state, losses_before = adapt(policy, params, state, batch, settings)
    params, state = tree_map(torch.detach, (params, state))
    check_adapted(params, losses_before, step)
    return params, state


def adapted_params(policy: GradientPolicy, batches: Sequence[TaskBatch], settings: Settings) -> list[Params]:
    """The parameters before and after each of the steps, without derivatives: `len(batches) + 1` of them.

    Raises:
        Diverged: as in `take_step`.
    """
    params = policy.starting_params(len(batches[0].weights))
    state = policy.rule.init(params)
    stages = [params]
    for step, batch in enumerate(batches):
        params, state = take_step(policy, params, state, batch, settings, step + 1)
        stages.append(params)
    return stages


@torch.no_grad()
def action_params_of(policy: GradientPolicy, params: Params, batch: TaskBatch) -> Tensor:
    """Parameters of the action distributions in `batch`, `[N, M, ...]`."""
    return policy.action_params(params, policy.features(params, batch.inputs))


def meta_loss(
    policy: GradientPolicy,
    batches: Sequence[TaskBatch],
    old_action_params: Sequence[Tensor] | None,
    settings: Settings,
    functional: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss AFTER adapting to all but the last of `batches`, on the last one: `[N]`, and what to report, `[N]` each.

    PPO's clipped surrogate after adaptation (MAML, Finn et al. 2017; PPO, Schulman et al. 2017), plus `kl_coef` times the
    divergence of the policies before each inner step from those that collected its batch (ProMP, Rothfuss et al. 2019,
    eq. 13). With `every_step` the losses after each of the inner steps are averaged (MAML++, Antoniou et al. 2019,
    section 4, with constant weights).

    Args:
        policy: whose `initial_params` and rule receive the gradient.
        batches: one per inner step, each collected by the policy that the steps before it led to, and one after them.
        old_action_params: of the policies that collected `batches[:-1]`; needed for the KL penalty only.
        settings: of the losses.
        functional: as in `inner_step`.
    """
    params = for_tasks(policy.initial_params(), len(batches[-1].weights))
    state = policy.rule.init(params)
    penalty = torch.zeros_like(batches[-1].weights[:, 0])
    outer = []
    for step, batch in enumerate(batches):
        last = step + 1 == len(batches)
        if settings.kl_coef and not last:
            now = policy.action_params(params, policy.features(params, batch.inputs))
            penalty = penalty + (batch.weights * policy.policy_head.kl(old_action_params[step], now)).sum(1)
        if last or (settings.every_step and step):
            outer.append(_outer_loss(policy, params, batch, settings))
        if not last:
            order = {"second_order": settings.second_order, "functional": functional}
            params, state, _ = adapt(policy, params, state, batch, settings, **order)
    total = sum(loss for loss, _ in outer) / len(outer) + settings.kl_coef * penalty
    return total, {**outer[-1][1], "inner_kl": penalty.detach()}


def _outer_loss(
    policy: GradientPolicy, params: Params, batch: TaskBatch, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of adapted parameters on what they collected, `[N]`, and its parts."""
    features = policy.features(params, batch.inputs)
    action_params = policy.action_params(params, features)
    log_probs = policy.policy_head.log_prob(action_params, batch.actions)
    surrogate = losses.ppo_clip(log_probs, batch.log_probs, batch.advantages, settings.clip_range)
    approximate_kl = losses.approximate_kl(log_probs, batch.log_probs)
    entropy = policy.policy_head.entropy(action_params)
    parts = {"policy_loss": surrogate, "entropy": entropy, "approx_kl": approximate_kl}
    parts = {name: (batch.weights * value).sum(1) for name, value in parts.items()}
    parts["value_loss"] = _value_loss(policy, params, features, batch, settings)
    total = parts["policy_loss"] + parts["value_loss"] - settings.entropy_coef * parts["entropy"]
    return total, {name: value.detach() for name, value in parts.items()}

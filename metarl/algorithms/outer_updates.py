"""How a starting point learns from trials of many tasks: PPO after adaptation, with gradients through it, or Reptile."""

from collections.abc import Callable, Iterator

import torch

from metarl.algorithms.maml_config import MAMLConfig
from metarl.algorithms.meta_gradient import TaskBatch, action_params_of, adapted_params, meta_loss
from metarl.batched import Params
from metarl.policies import GradientPolicy
from metarl.updates import Diverged

CHUNK, COMPILED_CHUNK = 4096, 20_000
"""Steps that go through the outer loss at once: the graph of a few tasks stays in the processor's cache. Compiled code
stores less, and gains more from fewer calls, where steps are small."""


def update(
    policy: GradientPolicy, batches: list[TaskBatch], config: MAMLConfig, loss: Callable = meta_loss
) -> dict[str, float]:
    """PPO epochs, in each of which the inner steps are taken anew from where the last epoch led.

    `loss` is `meta_loss` as it is, or compiled.
    """
    settings = config.settings
    policy.set_training_mode(False)  # as when the steps were collected: adapting must be the same everywhere
    old = None
    if config.kl_coef:
        stages = adapted_params(policy, batches[:-1], settings)[:-1]
        old = [action_params_of(policy, params, batch) for params, batch in zip(stages, batches, strict=False)]
    sums: dict[str, float] = {}
    for _ in range(config.epochs):
        policy.optimizer.zero_grad()
        for rows in chunks(batches[-1], chunk_size(policy, config)):
            part = [batch.tasks(rows) for batch in batches]
            part_old = None if old is None else [params[rows] for params in old]
            losses, metrics = loss(policy, part, part_old, settings, functional=config.compile)
            if not torch.isfinite(losses).all():
                adapted_params(policy, batches[:-1], settings)  # names the gradient step, if one of them diverged
                task = rows.start + int((~torch.isfinite(losses)).nonzero()[0])
                raise Diverged(task, f"the loss after gradient step {config.inner_steps} is not finite")
            (losses.sum() / config.num_tasks).backward()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        if not torch.isfinite(norm):
            raise _diverged_gradient(policy, batches, old, config)
        policy.optimizer.step()
    return {name: value / (config.num_tasks * config.epochs) for name, value in sums.items()}


def _diverged_gradient(
    policy: GradientPolicy, batches: list[TaskBatch], old: list[torch.Tensor] | None, config: MAMLConfig
) -> ValueError:
    """What to say where the outer gradient is not finite: which task's, and through how many of its inner steps."""
    parameters = list(policy.parameters())
    for steps in range(1, config.inner_steps + 1):
        for task in range(config.num_tasks):
            rows = slice(task, task + 1)
            part = [batch.tasks(rows) for batch in (*batches[:steps], batches[-1])]
            loss, _ = meta_loss(policy, part, None if old is None else [params[rows] for params in old], config.settings)
            found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
            if not all(grad is None or torch.isfinite(grad).all() for grad in found):
                return Diverged(task, f"the inner loop diverged: the gradient through gradient step {steps} is not finite")
    return ValueError(f"the outer gradient is not finite: lower inner_rate, got {config.inner_rate}, or learning_rate")


def reptile_update(policy: GradientPolicy, batches: list[TaskBatch], config: MAMLConfig) -> dict[str, float]:
    """One step of the starting point towards the mean of the parameters adapted to ALL batches (Nichol et al. 2018)."""
    policy.set_training_mode(False)
    adapted: Params = adapted_params(policy, batches, config.settings)[-1]
    distance = 0.0
    for name, value in policy.initial_params().items():
        value.grad = value.detach() - adapted[name].mean(0)
        distance += float(value.grad.square().sum())
    policy.optimizer.step()
    return {"distance_to_adapted": distance**0.5}


def chunk_size(policy: GradientPolicy, config: MAMLConfig) -> int:
    """Steps that go through the outer loss at once: fewer where features are learned, and kept for every step."""
    return COMPILED_CHUNK if config.compile and policy.inputs_are_fixed else CHUNK


def chunks(batch: TaskBatch, steps: int) -> Iterator[slice]:
    """Rows of tasks, at most about `steps` steps at a time."""
    num_tasks, per_task = batch.weights.shape
    most = min(num_tasks, max(1, steps // per_task))
    size = max(part for part in range(1, most + 1) if num_tasks % part == 0)  # all alike, as compiled code wants them
    for start in range(0, num_tasks, size):
        yield slice(start, start + size)

"""MAML-PPO: policies that adapt by gradient steps, and a starting point from which few of them suffice.

Finn et al. 2017, "Model-agnostic meta-learning" (MAML); Schulman et al. 2017 (PPO); Rothfuss et al. 2019, "ProMP". One
algorithm, whose settings give the others: `second_order=False` is FOMAML, `update_rule="meta_sgd"` Meta-SGD (Li et al.
2017), `adapted="head"` ANIL (Raghu et al. 2020), `kl_coef` above 0 ProMP, `outer_update="reptile"` Reptile (Nichol et al.
2018). Departures: PPO in place of MAML's TRPO; Reptile's difference of parameters goes through Adam; ProMP's KL
coefficient is fixed.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, get_type_hints

import gymnasium as gym
import numpy as np
import torch
from torch.utils._pytree import tree_map

from metarl.algorithms.base import MetaAlgorithm
from metarl.algorithms.learner import GradientLearner, as_batch, split_trial_observation
from metarl.algorithms.meta_gradient import (
    Baseline,
    InnerObjective,
    Settings,
    TaskBatch,
    action_params_of,
    adapted_params,
    make_batch,
    meta_loss,
    take_step,
)
from metarl.algorithms.players import GradientPlayer
from metarl.batched import Params, TaskBatching
from metarl.collection import collect_trials
from metarl.plain import convert
from metarl.policies import AdaptedPolicy, GradientPolicy
from metarl.schedules import final_rate, geometric, set_learning_rate
from metarl.trials import to_tensor
from metarl.updates import RULES, Diverged
from metarl_envs import TaskFamily, TaskSet

MOST_STEPS = 20_000_000
"""Steps that an iteration may hold in memory."""
CHUNK, COMPILED_CHUNK = 4096, 20_000
"""Steps that go through the outer loss at once: the graph of a few tasks stays in the processor's cache. Compiled code
stores less, and gains more from fewer calls, where steps are small."""
LARGEST_FOR_LINEAR = 512
"""Numbers in an observation up to which the linear baseline is fitted."""


@dataclass(frozen=True)
class MAMLConfig:
    """Hyperparameters of MAML-PPO."""

    num_tasks: int = 20
    """Tasks per iteration."""
    episodes_per_update: int = 20
    """Episodes in a task from which each gradient step is taken."""
    inner_steps: int = 1
    """Gradient steps within a trial during training; afterwards there may be any number, for better or worse."""
    update_rule: str = "sgd"
    """How gradients change parameters: sgd, learned_sgd (a learned rate), meta_sgd (one per parameter), lstm_meta_learner,
    learned (an MLP on top of Adam), lstm, optim4rl, a hand-made rule such as adam, or your own."""
    inner_rate: float = 0.1
    """Step size of the update rule, or where it starts; rules that start from Adam move every number by about this much."""
    adapted: Literal["all", "head", "body"] = "all"
    """Which parameters adapt: all, those of the action layer (ANIL), or all but those."""
    second_order: bool = True
    """Differentiate through the inner gradients (MAML), or take them as constants (FOMAML)."""
    inner_objective: InnerObjective = "likelihood_ratio"
    """Surrogate of the inner step: likelihood_ratio (low-variance curvature), dice (unbiased), or log_prob (plain)."""
    every_step: bool = False
    """Let the outer loss be the mean of those after each inner step (MAML++), in place of that after the last."""
    outer_update: Literal["ppo", "reptile"] = "ppo"
    """PPO's loss after adaptation, or a step towards the adapted parameters (Reptile)."""
    train_split: str = "train"
    """Split of the family that training tasks come from."""
    learning_rate: float = 3e-3
    """Adam's step size of the outer loop at the start."""
    final_learning_rate: float | None = None
    """Adam's step size at the end, a tenth of the first by default; it moves geometrically between the two."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.9
    """Weight of longer advantage estimates."""
    baseline: Baseline = "linear"
    """What advantages are measured from: linear (fitted per task), network (a value network that adapts too), or none."""
    epochs: int = 5
    """Outer updates per iteration, each of which adapts anew."""
    clip_range: float = 0.2
    """PPO's bound on the change of an action's probability ratio after adaptation."""
    kl_coef: float = 0.0
    """Weight of the divergence from the policies that collected the inner steps' episodes (ProMP)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus after adaptation."""
    value_coef: float = 0.5
    """Weight of the value loss, in normalised units, with the network baseline."""
    max_grad_norm: float = 1.0
    """Bound on the outer gradient's norm."""
    return_rate: float = 0.1
    """Rate at which the running mean and deviation of returns follow an iteration's, with the network baseline."""
    task_batching: TaskBatching = "auto"
    """How tasks run through layers that are not linear: batched, loop, or (auto) a loop for convolutions on a CPU."""
    compile: bool = False
    """Compile the outer update with torch.compile: the same numbers, faster, after about a minute of compiling."""

    def __post_init__(self):
        for name, hint in get_type_hints(MAMLConfig).items():
            convert(getattr(self, name), hint, name)
        for name in ("num_tasks", "episodes_per_update", "inner_steps", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda", "return_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "inner_rate", "clip_range", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.update_rule not in RULES:
            raise ValueError(f"update_rule must be one of {', '.join(RULES)}, got {self.update_rule!r}")
        if self.final_learning_rate is not None and not 0 < self.final_learning_rate < math.inf:
            raise ValueError(f"final_learning_rate must be above 0, got {self.final_learning_rate}")
        for name in ("kl_coef", "entropy_coef", "value_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.outer_update == "reptile" and (self.kl_coef or self.entropy_coef or self.every_step):
            raise ValueError("kl_coef, entropy_coef and every_step must be left out with outer_update reptile")
        if self.outer_update == "reptile" and self.update_rule != "sgd":
            raise ValueError(
                f"update_rule must be sgd with outer_update reptile, which trains no rule, got {self.update_rule}"
            )

    def resolved(self) -> Self:
        """The same with the value that None stands for."""
        return dataclasses.replace(self, final_learning_rate=self.final_learning_rate or final_rate(self.learning_rate))

    @property
    def num_envs(self) -> int:
        """Episodes played side by side."""
        return self.num_tasks * self.episodes_per_update

    @property
    def settings(self) -> Settings:
        """What the mathematics needs to know."""
        return Settings(**{name: getattr(self, name) for name in Settings._fields if name != "normalise_advantages"})


class MAMLPPO(MetaAlgorithm):
    """MAML with PPO as the outer loop. `MlpPolicy`; with a `features_extractor_class` also for images."""

    config_class = MAMLConfig
    config: MAMLConfig
    policy: GradientPolicy
    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": GradientPolicy}

    def _make_policy(self) -> GradientPolicy:
        config = self.config
        if config.compile and not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "c++")))):
            raise ValueError("compile needs a C++ compiler: none of g++, clang++ and c++ is installed, and CXX names none")
        policy = self.policy_class(
            self.observation_space,
            self.action_space,
            with_value=config.baseline == "network",
            update_rule=config.update_rule,
            inner_rate=config.inner_rate,
            adapted=config.adapted,
            task_batching=config.task_batching,
            **self.policy_kwargs,
        )
        policy.optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)
        return policy

    def _take_family(self, family: TaskFamily) -> None:
        if self.config.episodes_per_update * family.max_episode_steps < 2:
            raise ValueError(
                "episodes_per_update must be at least 2 where an episode is a single step, got 1: "
                "advantages are compared with each other"
            )
        size = gym.spaces.flatdim(family.observation_space)
        if self.config.baseline == "linear" and size > LARGEST_FOR_LINEAR:
            raise ValueError(
                f"baseline must be network or none where observations hold more than {LARGEST_FOR_LINEAR} numbers, got "
                f"linear for {size}: it is solved for in every task"
            )
        longest = self.config.num_envs * family.max_episode_steps * (self.config.inner_steps + 1)
        if longest > MOST_STEPS:
            raise ValueError(
                f"num_tasks x episodes_per_update x steps x (inner_steps + 1) must be at most {MOST_STEPS:,} steps, "
                f"got {longest:,}: {self.config.num_tasks} x {self.config.episodes_per_update} x "
                f"{family.max_episode_steps} x {self.config.inner_steps + 1}"
            )
        super()._take_family(family)

    @property
    def _meta_loss(self) -> Callable:
        """`meta_loss`; with `compile`, its forward, the gradients of the inner steps within, and its backward compiled."""
        if not self.config.compile:
            return meta_loss
        settings = self.config.settings
        if settings not in self._compiled:
            from metarl.compilation import compiled  # which takes seconds to import

            self._compiled[settings] = compiled(meta_loss, self.policy.device, "this policy's loss after adaptation")
        return self._compiled[settings]

    @cached_property
    def _compiled(self) -> dict[Settings, Callable]:
        """`meta_loss` compiled, by settings; what else is no tensor, in a rule say, stays as in the first call."""
        return {}

    def episodes_in(self, family: TaskFamily) -> int:
        """Episodes of a trial: those of each inner step, and those after the last."""
        return self.config.episodes_per_update * (self.config.inner_steps + 1)

    # -- one iteration -------------------------------------------------------------------------------------------

    def _iterate(self, callback: Any) -> bool:
        progress = 1.0 - self._current_progress_remaining
        tasks = self.family.sample(self.config.num_tasks, self.config.train_split, self.rngs["tasks"])
        played = self._rollout(callback, tasks)
        if played is None:
            return False
        batches, returns = played
        config = self.config
        set_learning_rate(self.policy.optimizer, geometric(config.learning_rate, config.final_learning_rate, progress))
        states = self.policy.state_dict(), self.policy.optimizer.state_dict()
        # deepcopy takes a millisecond
        before = tree_map(lambda value: value.clone() if isinstance(value, torch.Tensor) else value, states)
        try:
            if config.outer_update == "reptile":
                metrics = reptile_update(self.policy, batches, config)
            else:
                metrics = update(self.policy, batches, config, self._meta_loss)
        except BaseException as error:  # some epochs may be done: none of them counts
            self.policy.load_state_dict(before[0])
            self.policy.optimizer.load_state_dict(before[1])
            if isinstance(error, Diverged):
                raise self._naming_task(error, tasks) from error
            raise
        if self.policy.value_head is not None:
            targets = torch.cat([batch.targets[batch.weights > 0] for batch in batches])
            self.policy.track_returns(self.policy.denormalise(targets), config.return_rate)
        self._n_updates += 1 if config.outer_update == "reptile" else config.epochs
        self._record(returns, metrics)
        return True

    def _rollout(self, callback: Any, tasks: TaskSet) -> tuple[list[TaskBatch], np.ndarray] | None:
        """A batch before each inner step and one after them, and the returns `[inner_steps + 1, N K]`."""
        config, policy = self.config, self.policy
        policy.set_training_mode(False)
        slots = tasks[np.repeat(np.arange(config.num_tasks), config.episodes_per_update)]

        def on_step(rewards: np.ndarray, dones: np.ndarray) -> bool:
            self.num_timesteps += self.n_envs
            ended = dones & (step == config.inner_steps)  # trials end with the episodes after the last inner step
            callback.update_locals({"rewards": rewards, "dones": ended})
            return callback.on_step()

        params = policy.starting_params(config.num_tasks)
        state = policy.rule.init(params)
        batches, returns = [], []
        for step in range(config.inner_steps + 1):
            trials = collect_trials(
                self.envs,
                AdaptedPolicy(policy, params),
                num_steps=self.family.max_episode_steps,
                episodes_per_trial=1,
                split=config.train_split,
                rng=self.rngs["tasks"],
                generator=self.generator,
                tasks=slots,
                whole=config.compile,  # every other length would be compiled anew
                on_step=on_step,
            )
            if trials is None:
                return None
            batches.append(make_batch(policy, trials, config.num_tasks, trials.first, config.settings))
            returns.append((trials.rewards * trials.first).sum(0).cpu().numpy())
            lengths = trials.first.sum(0).cpu().numpy()
            if step < config.inner_steps:
                try:
                    params, state = take_step(policy, params, state, batches[-1], config.settings, step + 1)
                except Diverged as error:
                    raise self._naming_task(error, tasks) from error
        callback.update_locals(locals())
        callback.on_rollout_end()
        self.ep_info_buffer.extend(
            {"r": r, "l": length, "t": 0.0} for r, length in zip(returns[-1].tolist(), lengths.tolist(), strict=True)
        )
        return batches, np.array(returns)

    def _naming_task(self, error: Diverged, tasks: TaskSet) -> Diverged:
        shown = {name: values[error.task].tolist() for name, values in tasks.params.items() if values[error.task].size <= 20}
        return Diverged(
            error.task,
            f"{error} (task {error.task} {shown} of iteration at step {self.num_timesteps:,}): "
            f"lower inner_rate, got {self.config.inner_rate}",
        )

    def _record(self, returns: np.ndarray, metrics: dict[str, float]) -> None:
        for step, value in enumerate(returns.mean(1)):
            self.logger.record(f"rollout/return_after_{step}_steps", float(value))
        self.logger.record("train/learning_rate", self.policy.optimizer.param_groups[0]["lr"])
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)

    # -- using what was learned ----------------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """What the field calls an algorithm with these settings."""
        config = self.config
        if config.outer_update == "reptile":
            return "Reptile"
        name = RULES[config.update_rule].method
        if config.adapted == "head":
            name = "ANIL"
        elif config.adapted == "body":
            name = "BOIL"
        if config.kl_coef and name == "MAML":
            name = "ProMP"
        return name if config.second_order else "FOMAML" if name == "MAML" else f"first-order {name}"

    def player(self, deterministic: bool = False) -> GradientPlayer:
        """The agent as a player of whole batches of trials.

        Raises:
            ValueError: when it is to be deterministic.
        """
        if deterministic:
            raise ValueError(
                "deterministic must be False for an agent that adapts by gradient steps: episodes that are all alike have "
                "no gradient. Adapt with sampled actions; then the learner's predict(..., deterministic=True) acts likeliest"
            )
        return GradientPlayer(self.policy, self.config.settings, self.config.episodes_per_update, self.method)

    def adapt(
        self,
        env: gym.Env,
        episodes: int = 0,
        *,
        gradient_steps: int | None = None,
        seed: int | None = None,
        deterministic: bool = False,
    ) -> GradientLearner:
        """As in the base class; in place of `episodes` the number of `gradient_steps` may be given, any number."""
        if gradient_steps is None:
            return super().adapt(env, episodes, seed=seed, deterministic=deterministic)
        if episodes:
            raise ValueError(f"episodes must be left out with gradient_steps, got {episodes}")
        learner = super().adapt(env, seed=seed, deterministic=deterministic)
        return learner.adapt(env, gradient_steps, seed)

    def _learner(self, seed: int, deterministic: bool) -> GradientLearner:
        return GradientLearner(self.player(deterministic), seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Actions of the starting point, before any adaptation, for one observation or a batch `[B, ...]`.

        As in Stable-Baselines3; `adapt` and `evaluate` give the policies that have adapted. Sampled actions are drawn with
        torch's global generator.
        """
        self.policy.set_training_mode(False)
        own, *_ = split_trial_observation(observation, self.observation_space)
        batch, single = as_batch(own, self.observation_space)
        actions = self.policy._predict(to_tensor(batch, self.policy.device), deterministic).numpy()
        return (actions[0] if single else actions), None


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

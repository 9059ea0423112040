"""MAML-PPO: policies that adapt by gradient steps, and a starting point from which few of them suffice.

Finn et al. 2017, "Model-agnostic meta-learning" (MAML); Schulman et al. 2017 (PPO); Rothfuss et al. 2019, "ProMP". One
algorithm, whose settings give the others: `second_order=False` is FOMAML, `update_rule="meta_sgd"` Meta-SGD (Li et al.
2017), `adapted="head"` ANIL (Raghu et al. 2020), `kl_coef` above 0 ProMP, `outer_update="reptile"` Reptile (Nichol et al.
2018). Departures: PPO in place of MAML's TRPO; Reptile's difference of parameters goes through Adam; ProMP's KL
coefficient is fixed.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch.utils._pytree import tree_map

from metarl.algorithms.base import MetaAlgorithm
from metarl.algorithms.learner import GradientLearner, as_batch, split_trial_observation
from metarl.algorithms.maml_config import MAMLConfig
from metarl.algorithms.meta_gradient import Settings, TaskBatch, make_batch, meta_loss, take_step
from metarl.algorithms.outer_updates import reptile_update, update
from metarl.algorithms.players import GradientPlayer
from metarl.collection import collect_trials
from metarl.plain import check_compiler
from metarl.policies import AdaptedPolicy, GradientPolicy
from metarl.schedules import geometric, set_learning_rate
from metarl.trials import to_tensor
from metarl.updates import RULES, Diverged
from metarl_envs import TaskFamily, TaskSet

MOST_STEPS = 20_000_000
"""Steps that an iteration may hold in memory."""
LARGEST_FOR_LINEAR = 512
"""Numbers in an observation up to which the linear baseline is fitted."""


class MAMLPPO(MetaAlgorithm):
    """MAML with PPO as the outer loop. `MlpPolicy`; with a `features_extractor_class` also for images."""

    config_class = MAMLConfig
    config: MAMLConfig
    policy: GradientPolicy
    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": GradientPolicy}

    def _make_policy(self) -> GradientPolicy:
        config = self.config
        if config.compile:
            check_compiler("compile")
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

"""RL²: a recurrent policy that learns within a trial by its memory, trained across trials by PPO.

Duan et al. 2016, "RL²: Fast reinforcement learning via slow reinforcement learning"; Wang et al. 2016, "Learning to
reinforcement learn". Departures: PPO (Schulman et al. 2017) in place of TRPO and A3C, Pop-Art value outputs, and as options
a curriculum over the trial's length and a value function that is told the task: `critic_sees_task`, an asymmetric
actor-critic (Pinto et al. 2018) that reads the task beside the memory, not in its place, and so leaves the policy's
gradient unbiased (Baisero & Amato 2022).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from metarl import losses
from metarl.algorithms.base import MetaAlgorithm
from metarl.algorithms.learner import as_batch, split_trial_observation, unpack_memory
from metarl.algorithms.players import MemoryPlayer
from metarl.algorithms.task_parameters import TaskParameters
from metarl.collection import collect_trials
from metarl.policies import TrialPolicy
from metarl.returns import gae
from metarl.schedules import final_rate, geometric, set_learning_rate
from metarl.trials import Trials, batch_size_of, to_tensor
from metarl_envs import TaskFamily


@dataclass(frozen=True)
class RL2Config:
    """Hyperparameters of RL²."""

    num_envs: int = 256
    """Trials played side by side."""
    episodes_per_trial: int | None = None
    """Episodes in one task; the family's own trial length by default."""
    num_steps: int | None = None
    """Steps per environment and iteration; the longest possible trial by default, and never less."""
    train_split: str = "train"
    """Split of the family that training tasks come from."""
    learning_rate: float = 2e-3
    """Adam's step size at the start."""
    final_learning_rate: float | None = None
    """Adam's step size at the end, a tenth of the first by default; it moves geometrically between the two."""
    gamma: float = 0.99
    """Discount per step, across the episodes of a trial."""
    gae_lambda: float = 0.9
    """Weight of longer advantage estimates."""
    clip_range: float = 0.2
    """PPO's bound on the change of an action's probability ratio."""
    epochs: int = 4
    """Passes over each iteration's trials."""
    minibatches: int | None = None
    """Updates per pass, each on some of the trials; by default 16, and less where that would be below 8 trials each."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus at the start."""
    final_entropy_coef: float = 0.0
    """Weight of the entropy bonus at the end; it moves linearly."""
    critic_sees_task: bool = False
    """Tell the value function, which only training needs, the task's parameters: advantages without the luck of the task."""
    value_coef: float = 0.5
    """Weight of the value loss, in normalised units."""
    max_grad_norm: float = 0.5
    """Bound on the gradient's norm."""
    target_kl: float | None = None
    """Stop an iteration's updates when the policy has moved further than this (in nats); None never stops."""
    return_rate: float = 0.1
    """Rate at which the running mean and deviation of returns follow an iteration's."""
    curriculum_start: int | None = None
    """Episodes per trial at the start of training, if it should grow from there."""
    curriculum_fraction: float = 0.5
    """Share of training after which trials have their full length."""

    def __post_init__(self):
        for name in ("num_envs", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("minibatches", "episodes_per_trial", "num_steps", "curriculum_start"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda", "return_rate", "curriculum_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "clip_range", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("final_learning_rate", "target_kl"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.minibatches is not None and self.minibatches > self.num_envs:
            raise ValueError(f"minibatches must be at most num_envs ({self.num_envs}), got {self.minibatches}")

    def resolved(self) -> Self:
        """The same with the values that None stands for, but those that stand for the length of the family's trials."""
        return dataclasses.replace(
            self,
            final_learning_rate=self.final_learning_rate or final_rate(self.learning_rate),
            minibatches=self.updates_per_epoch,
        )

    @property
    def updates_per_epoch(self) -> int:
        """Minibatches in each pass over an iteration's trials."""
        return self.minibatches or max(1, min(16, self.num_envs // 8))


class RL2PPO(MetaAlgorithm):
    """RL² with PPO. A policy for every memory core; `MlpPolicy` is the one without a memory."""

    config_class = RL2Config
    config: RL2Config
    policy: TrialPolicy
    _task_parameters: TaskParameters | None = None
    policy_aliases: ClassVar[dict[str, Any]] = {
        "LstmPolicy": "lstm",
        "GruPolicy": "gru",
        "MlpPolicy": "identity",
        "MinGruPolicy": "min_gru",
        "NtmPolicy": "ntm",
        "MannPolicy": "mann",
        "DncPolicy": "dnc",
        "EpisodicPolicy": "episodic",
        "SnailPolicy": "snail",
        "GtrxlPolicy": "gtrxl",
        "KeyValuePolicy": "key_value",
    }

    def _make_policy(self) -> TrialPolicy:
        core = self.policy_class if isinstance(self.policy_class, str) else None
        for name in ("core", "task_size") if core else ():
            if name in self.policy_kwargs:
                instead = "the policy's name says it" if name == "core" else "critic_sees_task says it"
                raise ValueError(f"policy_kwargs must not hold {name}, got {self.policy_kwargs[name]!r}: {instead}")
        make = TrialPolicy if core else self.policy_class
        kwargs = {"core": core, **self.policy_kwargs} if core else self.policy_kwargs
        if self._task_parameters is not None:
            kwargs = {**kwargs, "task_size": len(self._task_parameters.mean)}
        policy = make(self.observation_space, self.action_space, **kwargs)
        policy.optimizer = torch.optim.Adam(policy.parameters(), lr=self.config.learning_rate, eps=1e-5, fused=True)
        return policy

    def _take_family(self, family: TaskFamily) -> None:
        config = self.config
        episodes = config.episodes_per_trial or family.episodes_per_trial
        longest = episodes * family.max_episode_steps
        if config.num_steps is not None and config.num_steps < longest:
            raise ValueError(
                f"num_steps must hold a whole trial: {episodes} episodes x {family.max_episode_steps} "
                f"steps = {longest}, got {config.num_steps}"
            )
        if config.curriculum_start is not None and config.curriculum_start > episodes:
            raise ValueError(
                f"curriculum_start must be at most episodes_per_trial ({episodes}), got {config.curriculum_start}"
            )
        self._task_parameters = self._read_tasks(family) if config.critic_sees_task else None
        super()._take_family(family)

    def _read_tasks(self, family: TaskFamily) -> TaskParameters:
        parameters, before = TaskParameters(family), self._task_parameters
        if before is not None and len(parameters.mean) != len(before.mean):
            raise ValueError(
                f"env must have {len(before.mean)} numbers as task parameters, which critic_sees_task reads, "
                f"got {len(parameters.mean)}"
            )
        return parameters

    # -- one iteration -------------------------------------------------------------------------------------------

    def _iterate(self, callback: Any) -> bool:
        progress = 1.0 - self._current_progress_remaining
        episodes = curriculum_episodes(self.config, self.episodes_per_trial, progress)
        trials = self._rollout(callback, episodes)
        if trials is None:
            return False
        set_learning_rate(
            self.policy.optimizer, geometric(self.config.learning_rate, self.config.final_learning_rate, progress)
        )
        metrics = update(self.policy, trials, self.config, progress, self.rngs["minibatches"])
        self._n_updates += self.config.epochs
        self._record(trials, episodes, metrics)
        return True

    @torch.no_grad()
    def _rollout(self, callback: Any, episodes: int) -> Trials | None:
        self.policy.set_training_mode(False)
        full = self.config.num_steps or self.episodes_per_trial * self.family.max_episode_steps

        def on_step(rewards: np.ndarray, dones: np.ndarray) -> bool:
            self.num_timesteps += self.n_envs
            callback.update_locals({"rewards": rewards, "dones": dones})  # an episode of `get_env()` is a trial
            return callback.on_step()

        trials = collect_trials(
            self.envs,
            self.policy,
            num_steps=full if episodes == self.episodes_per_trial else episodes * self.family.max_episode_steps,
            episodes_per_trial=episodes,
            split=self.config.train_split,
            rng=self.rngs["tasks"],
            generator=self.generator,
            read_task=self._task_parameters,
            on_step=on_step,
        )
        callback.update_locals(locals())
        if trials is not None:
            callback.on_rollout_end()
        return trials

    def _record(self, trials: Trials, episodes: int, metrics: dict[str, float]) -> None:
        returns, lengths = trials.episode_returns(episodes), trials.trial_lengths(episodes)
        latest = zip(returns[-100:].sum(-1).tolist(), lengths[-100:].tolist(), strict=True)
        self.ep_info_buffer.extend({"r": total, "l": length, "t": 0.0} for total, length in latest)
        self.logger.record("rollout/trial_return", float(returns.sum(-1).mean()))
        self.logger.record("rollout/first_episode_return", float(returns[:, 0].mean()))
        self.logger.record("rollout/last_episode_return", float(returns[:, -1].mean()))
        self.logger.record("rollout/episodes_per_trial", episodes)
        self.logger.record("train/learning_rate", self.policy.optimizer.param_groups[0]["lr"])
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in metrics.items():
            self.logger.record(f"train/{name}", value)

    # -- using what was learned ----------------------------------------------------------------------------------

    def player(self, deterministic: bool = False) -> MemoryPlayer:
        """The agent as a player of whole batches of trials."""
        name = f"RL² ({type(self.policy.core).__name__.removesuffix('Core')})" + ", likeliest actions" * deterministic
        return MemoryPlayer(self.policy, name=name, deterministic=deterministic)

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        *,
        reward: Any = None,
        done: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Actions for one observation or a batch `[B, ...]`, and the memory to hand back as `state` with the next.

        As in Stable-Baselines3's recurrent algorithms; `adapt` and `evaluate` are more convenient. In each row the
        policy also reads what its last action brought: from observations of `get_env()`, or from `reward` and `done`.

        Args:
            observation: of the family, or of `get_env()` (with the previous reward and done).
            state: what the last call returned; None at the start of trials.
            episode_start: where a TRIAL starts `[B]`: the memory is cleared there, and only there.
            deterministic: take the likeliest actions. Otherwise they are drawn with torch's global generator.
            reward: reward of the last step `[B]`; rows that start a trial ignore it.
            done: whether the last step ended an episode `[B]`; rows that start a trial ignore it.

        Raises:
            ValueError: when a trial goes on and reward or done is missing, or when shapes do not fit.
        """
        own, *context = split_trial_observation(observation, self.observation_space)
        batch, single = as_batch(own, self.observation_space)
        given = [read if said is None else said for said, read in ((reward, context[0]), (done, context[1]))]
        self.policy.set_training_mode(False)
        memory = unpack_memory(self.policy, state, batch_size_of(batch, self.observation_space), episode_start, *given)
        params, _, core = self.policy.act(to_tensor(batch, self.policy.device), memory)
        head = self.policy.policy_head
        actions = head.mode(params) if deterministic else head.sample(params, None)
        played = head.to_env(actions)
        return (played[0] if single else played), tuple(part.cpu().numpy() for part in (*core, actions))


def curriculum_episodes(config: RL2Config, full: int, progress: float) -> int:
    """Episodes per trial at `progress` in [0, 1]: geometric growth from `curriculum_start` to `full`."""
    if config.curriculum_start is None or progress >= config.curriculum_fraction:
        return full
    return round(config.curriculum_start * (full / config.curriculum_start) ** (progress / config.curriculum_fraction))


def update(
    policy: TrialPolicy, trials: Trials, config: RL2Config, progress: float, rng: np.random.Generator
) -> dict[str, float]:
    """PPO epochs over whole trials: advantages, then minibatches of rows, each scanned from its trials' starts."""
    policy.set_training_mode(True)
    advantages, returns = gae(
        trials.rewards, trials.values, trials.trial_end, trials.bootstrap, config.gamma, config.gae_lambda
    )
    policy.track_returns(returns, config.return_rate)
    targets = policy.normalise(returns)
    advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    entropy_coef = config.entropy_coef + progress * (config.final_entropy_coef - config.entropy_coef)
    inputs = None
    if policy.inputs_are_fixed:
        with torch.no_grad():
            inputs = policy.inputs(trials.observations, *trials.previous())

    sums: dict[str, Tensor] = {}
    count = 0
    for rows in minibatches(trials.rewards.shape[1], config, rng):
        if inputs is not None:
            batch_inputs = inputs[:, rows]
        else:
            batch_inputs = policy.inputs(*_take((trials.observations, *trials.previous()), rows))
        parts = loss_terms(policy, trials, rows, batch_inputs, advantages[:, rows], targets[:, rows], config.clip_range)
        if config.target_kl is not None and parts["approx_kl"] > config.target_kl:
            break
        loss = parts["policy_loss"] + config.value_coef * parts["value_loss"] - entropy_coef * parts["entropy"]
        policy.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        policy.optimizer.step()
        count += 1
        for name, value in {**parts, "loss": loss, "grad_norm": norm}.items():
            sums[name] = sums.get(name, 0) + value.detach()
    metrics = {name: float(total) / count for name, total in sums.items()}
    unexplained = (returns - trials.values).var(correction=0) / (returns.var(correction=0) + 1e-8)
    metrics["explained_variance"] = float(1 - unexplained)
    return metrics


def loss_terms(
    policy: TrialPolicy, trials: Trials, rows: Tensor, inputs: Tensor, advantages: Tensor, targets: Tensor, clip_range: float
) -> dict[str, Tensor]:
    """Policy loss, value loss, entropy and divergence from the acting policy, each a mean over `rows` of trials."""
    task = None if trials.task is None else trials.task[:, rows]
    params, values = policy.scan(inputs, policy.core.initial_state(len(rows)), trials.trial_start[:, rows], task)
    log_probs = policy.policy_head.log_prob(params, trials.actions[:, rows])
    old_log_probs = trials.log_probs[:, rows]
    with torch.no_grad():
        kl = losses.approximate_kl(log_probs, old_log_probs).mean()
    return {
        "policy_loss": losses.ppo_clip(log_probs, old_log_probs, advantages, clip_range).mean(),
        "value_loss": losses.squared_error(values, targets).mean(),
        "entropy": policy.policy_head.entropy(params).mean(),
        "approx_kl": kl,
    }


def minibatches(num_rows: int, config: RL2Config, rng: np.random.Generator) -> Iterator[Tensor]:
    """Row indices: every row once per epoch, in random order."""
    for _ in range(config.epochs):
        yield from torch.as_tensor(rng.permutation(num_rows)).tensor_split(config.updates_per_epoch)


def _take(parts: tuple, rows: Tensor) -> list:
    return [{k: v[:, rows] for k, v in p.items()} if isinstance(p, dict) else p[:, rows] for p in parts]

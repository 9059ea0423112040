"""Stable-Baselines3's PPO as a learner within the trial: from trained weights, or from scratch in every task."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from metarl.algorithms.baselines import default_policy
from metarl.algorithms.vec_env import GymnasiumVecEnv
from metarl.trials import check_finite
from metarl.updates import Diverged
from metarl_envs import TaskFamily, TaskSet
from metarl_envs.family import check_at_least

_INHERITED = (
    "learning_rate", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "clip_range_vf", "normalize_advantage",
    "ent_coef", "vf_coef", "max_grad_norm", "use_sde", "sde_sample_freq", "target_kl", "policy_kwargs", "device",
)  # fmt: skip
"""Settings that fine-tuning takes over from the model."""
_OF_THE_NETWORK = ("policy", "policy_kwargs", "use_sde")
_OF_THE_TRIAL = ("env", "n_steps", "seed", "rollout_buffer_class", "rollout_buffer_kwargs", "_init_setup_model")


class FineTuningPlayer:
    """PPO (Schulman et al. 2017) that trains in the task it plays, with an update after every `K` episodes.

    Each task starts from the model's weights, or from freshly initialised ones, and with a fresh optimizer. The updates
    are Stable-Baselines3's own, in one `learn` per trial. It learns from what counts and from nothing else: every episode
    is played with sampled actions, and its return is recorded.

    Between two updates the weights stand still, so `K` consecutive episodes are `K` independent ones: they are played side
    by side, one per environment, and learnt from as whole episodes. A rollout takes as many steps as the longest episode
    may; environments whose episode ends early wait, and their waiting is left out of the update. No update follows the
    last episode of a trial: where `K` is not below the trial's length, the model plays as in `StablePlayer`.

    What it costs: some 0.4 ms per step of a rollout and 1 ms per minibatch and epoch, for every task one by one; with the
    defaults a quarter of a second for an update from 1,000 steps. Let `evaluate` play some 50 tasks, not its default.

    Args:
        model: trained on the family, for example by `train_ppo`; None: from scratch.
        episodes_per_update: `K`.
        name: how tables and pictures call it.
        policy: only from scratch: Stable-Baselines3's name or class of the policy, by default as in `train_ppo`.
        ppo_settings: further arguments of `PPO`. Their defaults are the model's settings or, from scratch, PPO's own but for
            `device="cpu"`. Schedules run over one trial.
    """

    def __init__(
        self, model: PPO | None, episodes_per_update: int, name: str | None = None, policy: Any = None, **ppo_settings: Any
    ):
        check_at_least("episodes_per_update", episodes_per_update, 1)
        _check_settings(ppo_settings if policy is None else {"policy": policy, **ppo_settings}, model)
        self.model = model
        self.episodes_per_update = episodes_per_update
        self.name = name or ("PPO from scratch" if model is None else "fine-tuned PPO")
        self._policy = policy if model is None else model.policy_class
        inherited = {"device": "cpu"} if model is None else {setting: getattr(model, setting) for setting in _INHERITED}
        self._settings = {"batch_size": 64, **inherited, **ppo_settings}

    def play(
        self,
        family: TaskFamily,
        tasks: TaskSet,
        *,
        episodes: int,
        seed: int = 0,
        on_task: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Undiscounted returns `[N, episodes]` of one trial per task.

        A task's returns depend on `seed`, the task and its place in `tasks`, never on the other tasks.

        Raises:
            Diverged: naming the task, where training destroyed the policy.
            ValueError: at a reward that is not finite, naming environment, task and step since the last update.
        """
        if self.episodes_per_update * family.max_episode_steps < 2:
            raise ValueError("episodes_per_update must be at least 2 where an episode is one step, got 1")
        returns = np.zeros((len(tasks), episodes))
        for index in range(len(tasks)):
            task_seed = int(np.random.default_rng([seed, index]).integers(2**31))
            returns[index] = self._play_task(family, tasks, index, episodes, task_seed)
            if on_task is not None:
                on_task(1)
        return returns

    def _play_task(self, family: TaskFamily, tasks: TaskSet, index: int, episodes: int, seed: int) -> np.ndarray:
        num_envs = min(self.episodes_per_update, episodes + 1)  # without an update more would do nothing
        envs = _TrialInRounds(family, tasks, index, episodes, num_envs)
        try:
            ppo = self._make_ppo(envs, family.max_episode_steps, seed)
            rounds = -(-episodes // num_envs)
            ppo.learn(rounds * num_envs * ppo.n_steps, callback=lambda *_: not envs.finished)
        except ValueError as error:
            # what PyTorch says of probabilities that are none or, where it does not check these, the environment of actions
            if not str(error).startswith(("Expected parameter", "actions must be finite")):
                raise
            raise Diverged(
                index, f"task {index}: PPO diverged, its policy's actions have no distribution any more"
            ) from error
        finally:
            envs.close()
        return envs.returns

    def _make_ppo(self, envs: GymnasiumVecEnv, n_steps: int, seed: int) -> PPO:
        """PPO before its first step in a task."""
        policy = self._policy or default_policy(envs.observation_space)
        buffer = _DictEpisodesBuffer if isinstance(envs.observation_space, spaces.Dict) else _EpisodesBuffer
        # the constructor warns of any batch size that does not divide the rollout, whose length is not known before it
        settings = {**self._settings, "batch_size": n_steps * envs.num_envs}
        ppo = PPO(policy, envs, n_steps=n_steps, seed=seed, rollout_buffer_class=buffer, **settings)
        ppo.batch_size = self._settings["batch_size"]
        if self.model is not None:
            for kind in ("observation_space", "action_space"):
                expected, given = getattr(self.model, kind), getattr(ppo, kind)
                if given != expected:
                    raise ValueError(f"family must have the model's {kind}, {expected}, got {given}")
            ppo.policy.load_state_dict(self.model.policy.state_dict())
        return ppo


class _TrialInRounds(GymnasiumVecEnv):
    """The `episodes` of a trial in rounds of one per slot, each round as long as the longest episode may be.

    What a slot does after its episode is neither counted nor, in `_EpisodesBuffer`, learnt from; once all of them wait, the
    environment stands still. A round's last step is `done` in every slot, so that the next one starts episodes in all.
    """

    def __init__(self, family: TaskFamily, tasks: TaskSet, index: int, episodes: int, num_envs: int):
        envs = family.make_vec(num_envs)
        envs.set_tasks(tasks[np.full(num_envs, index)])
        super().__init__(envs)
        self.returns = np.zeros(episodes)
        self._task = index
        self._episode = np.arange(num_envs) - num_envs

    def reset(self) -> VecEnvObs:
        """Start the next round."""
        self._episode += self.num_envs
        self._waiting = self._episode >= len(self.returns)
        self._step = 0
        self._observations = super().reset()
        return self._observations

    @property
    def finished(self) -> bool:
        """Whether the trial is over."""
        return bool(self._waiting.all() and self._episode[-1] >= len(self.returns) - 1)

    def step_wait(self) -> VecEnvStepReturn:
        """Observations `[B, ...]`, rewards `[B]`, dones `[B]`, and one info per slot."""
        if self._waiting.all():
            rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
            infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        else:
            self._observations, rewards, dones, infos = super().step_wait()
            task = self._task - int(np.isfinite(rewards).argmin())
            check_finite("reward", rewards, self.envs, self._step, task)
            played = ~self._waiting
            self.returns[self._episode[played]] += rewards[played]
            self._waiting |= dones
        self._step += 1
        if self._step == self.envs.family.max_episode_steps:
            return self.reset(), rewards, np.ones_like(dones), infos
        return self._observations, rewards, dones, infos


class _EpisodesBuffer(RolloutBuffer):
    """Keeps the first episode of every environment, which must have started with the rollout, and drops the rest."""

    def __init__(self, buffer_size: int, *args: Any, n_envs: int = 1, **kwargs: Any):
        self._room = buffer_size, n_envs
        super().__init__(buffer_size, *args, n_envs=n_envs, **kwargs)

    def reset(self) -> None:
        """Make room for a rollout."""
        self.buffer_size, self.n_envs = self._room
        super().reset()

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """As Stable-Baselines3 does; then leave only what is kept, as if one environment had played it."""
        super().compute_returns_and_advantage(last_values, dones)
        kept = (self.episode_starts.cumsum(0) == 1).T.ravel()  # [B * T]

        def left(values: np.ndarray) -> np.ndarray:
            return self.swap_and_flatten(values)[kept][:, None]

        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            setattr(self, name, left(getattr(self, name)))
        nested = isinstance(self.observations, dict)
        self.observations = {k: left(x) for k, x in self.observations.items()} if nested else left(self.observations)
        self.buffer_size, self.n_envs = int(kept.sum()), 1


class _DictEpisodesBuffer(_EpisodesBuffer, DictRolloutBuffer):
    """The same for observations in a dictionary."""


def _check_settings(settings: dict[str, Any], model: PPO | None) -> None:
    """Raise where PPO does not take a setting, or where it is not the caller's to choose."""
    known = inspect.signature(PPO).parameters
    for name, value in settings.items():
        if name not in known:
            raise TypeError(f"PPO has no parameter {name!r}: it has {', '.join(known)}")
        if name in _OF_THE_TRIAL:
            raise ValueError(f"{name} must be left out, because it follows from the trial, got {value!r}")
        if model is not None and name in _OF_THE_NETWORK:
            raise ValueError(f"{name} must be left out with a model, which brings its network, got {value!r}")

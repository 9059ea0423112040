"""Stable-Baselines3's own PPO beside the adaptive agents: trained on the same families, scored in the same way.

One policy for all tasks, `train_ppo` and `StablePlayer`; one that is told the task, `train_ppo(oracle=True)` and
`OraclePlayer`. PPO that goes on training, or starts, in each new task is in `metarl.algorithms.fine_tuning`.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from metarl.algorithms.task_parameters import TaskParameters
from metarl.algorithms.vec_env import GymnasiumVecEnv
from metarl.trials import Observations, Transition
from metarl_envs import TaskFamily, TaskSet, make_family
from metarl_envs.family import check_at_least

_STEPS_PER_UPDATE = 2048
"""Stable-Baselines3's default, which is meant for one environment."""


def train_ppo(
    family: TaskFamily | str,
    total_timesteps: int,
    *,
    num_envs: int = 8,
    split: str = "train",
    oracle: bool = False,
    seed: int = 0,
    policy: Any = None,
    progress_bar: bool = False,
    **ppo_settings: Any,
) -> PPO:
    """Train PPO (Schulman et al. 2017) on a family's tasks, a new task in every episode.

    Play the model with `StablePlayer`, or with `OraclePlayer` where it is one. It is an ordinary Stable-Baselines3 model
    otherwise, with `save`, `load` and `learn`.

    Args:
        family: a family, or an id for `make_family`.
        total_timesteps: environment steps; the last rollout is finished, so that up to `n_steps * num_envs - 1` more
            are played (`model.num_timesteps` tells).
        num_envs: environments side by side.
        split: where tasks are drawn from.
        oracle: show the policy the task's parameters as well (`TaskParameters`).
        seed: seeds weights, tasks, environments and actions.
        policy: Stable-Baselines3's name or class of the policy; by default `MultiInputPolicy` for `Dict` observations, else
            `MlpPolicy`, which reads `Discrete` ones as one-hot.
        progress_bar: show progress.
        ppo_settings: further arguments of `PPO`. Their defaults are its own, but for `device="cpu"` and an `n_steps` that
            shares its 2,048 steps per update out among the environments.
    """
    check_at_least("total_timesteps", total_timesteps, 1)
    family = make_family(family) if isinstance(family, str) else family
    parameters = TaskParameters(family) if oracle else None
    envs: VecEnv = GymnasiumVecEnv(family.make_vec(num_envs, split=split, episodes_per_task=1))
    if parameters is not None:
        envs = OracleVecEnv(envs, parameters)
    settings = {"device": "cpu", "n_steps": max(_STEPS_PER_UPDATE // num_envs, 1), **ppo_settings}
    model = PPO(policy or default_policy(envs.observation_space), VecMonitor(envs), seed=seed, **settings)
    return model.learn(total_timesteps, progress_bar=progress_bar)


def default_policy(observation_space: gym.Space) -> str:
    """The name of Stable-Baselines3's policy for such observations."""
    return "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"


class StablePlayer:
    """Any Stable-Baselines3 model without a memory as a player: it acts, and never adapts.

    Args:
        model: trained on the family's observations, for example by `train_ppo`.
        name: how tables and pictures call it.
        deterministic: take the likeliest action instead of sampling.
    """

    def __init__(self, model: BaseAlgorithm, name: str | None = None, deterministic: bool = False):
        self.model = model
        self.name = name or type(model).__name__
        self.deterministic = deterministic

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """There is nothing to forget; `rng` seeds the sampling of actions."""
        self.model.set_random_seed(int(rng.integers(2**31)))

    def act(self, observations: Observations) -> np.ndarray:
        """Actions `[B, ...]`."""
        actions: Any = self.model.predict(observations, deterministic=self.deterministic)[0]
        return actions

    def observe(self, transition: Transition) -> None:
        """Nothing is learned from it."""


class OraclePlayer(StablePlayer):
    """A model that is told each task's parameters: what one policy gets when nothing need be found out.

    Args:
        model: trained by `train_ppo(family, ..., oracle=True)`.
        family: the family it was trained on, whose training tasks the parameters are standardised by.
        name: how tables and pictures call it.
        deterministic: take the likeliest action instead of sampling.
    """

    def __init__(
        self, model: BaseAlgorithm, family: TaskFamily | str, name: str = "oracle PPO", deterministic: bool = False
    ):
        super().__init__(model, name, deterministic)
        self.parameters = TaskParameters(make_family(family) if isinstance(family, str) else family)

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Read the parameters of `tasks`; `rng` seeds the sampling of actions."""
        super().start_trials(tasks, rng)
        self._task = self.parameters(tasks.params)

    def act(self, observations: Observations) -> np.ndarray:
        """Actions `[B, ...]`."""
        return super().act(self.parameters.beside(observations, self._task))


class OracleVecEnv(VecEnvWrapper):
    """Shows each slot the parameters of its task.

    Args:
        venv: over a `TaskVectorEnv`.
        parameters: of its family.
    """

    venv: GymnasiumVecEnv

    def __init__(self, venv: VecEnv, parameters: TaskParameters):
        super().__init__(venv, parameters.observation_space)
        self.parameters = parameters

    def reset(self) -> VecEnvObs:
        """Start an episode in every slot."""
        observations = self.venv.reset()
        self._task = self.parameters(self.venv.envs.tasks.params)
        return self.parameters.beside(observations, self._task)

    def step_wait(self) -> VecEnvStepReturn:
        """As the environment's. An episode's last observation holds the task that it was played in, not the next one."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for slot in np.flatnonzero(dones).tolist():
            last = infos[slot]["terminal_observation"]
            infos[slot]["terminal_observation"] = self.parameters.beside(last, self._task[slot])
        if dones.any():
            self._task = self.parameters(self.venv.envs.tasks.params)
        return self.parameters.beside(observations, self._task), rewards, dones, infos

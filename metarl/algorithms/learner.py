"""Acting with a memory: whole batches of trials for evaluation, and one learner on one new task."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from metarl_envs import TaskSet

from metarl.policies import Memory, TrialPolicy
from metarl.trials import Observations, Transition, to_tensor


class MemoryPlayer:
    """Plays trials with a `TrialPolicy`; adaptation is what its memory takes in.

    Args:
        policy: the policy.
        name: how tables and pictures call it.
        deterministic: take the likeliest action instead of sampling.
    """

    def __init__(self, policy: TrialPolicy, name: str = "agent", deterministic: bool = False):
        self.policy = policy
        self.name = name
        self.deterministic = deterministic

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Empty the memory for one trial per task."""
        self.start(len(tasks), int(rng.integers(2**31)))

    def start(self, batch_size: int, seed: int) -> None:
        """Empty the memory for `batch_size` trials; `seed` draws the actions."""
        self.policy.set_training_mode(False)
        self.memory: Memory = self.policy.initial_memory(batch_size)
        self._generator = torch.Generator(self.policy.device).manual_seed(seed)

    @torch.no_grad()
    def act(self, observations: Observations) -> np.ndarray:
        """Actions `[B, ...]` as the environment takes them."""
        head = self.policy.policy_head
        params, _, self._core = self.policy.act(to_tensor(observations, self.policy.device), self.memory)
        self._actions = head.mode(params) if self.deterministic else head.sample(params, self._generator)
        return head.to_env(self._actions)

    def observe(self, transition: Transition) -> None:
        """Take in what came of the last actions."""
        done = transition.terminated | transition.truncated
        self.memory = self.policy.remember(self._core, self._actions, transition.rewards, done)


class Learner:
    """An agent on ONE task that goes on adapting as it acts.

    Tell it what came of each action, by `observe` or by acting in `watch(env)`, which does that by itself:

        obs, _ = env.reset()
        action, _ = learner.predict(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        learner.observe(reward, terminated, truncated)

    Attributes:
        returns: undiscounted return of every episode played so far.
    """

    def __init__(self, policy: TrialPolicy, seed: int, deterministic: bool = False):
        self.observation_space = policy.observation_space
        self.action_space = policy.action_space
        self.returns: list[float] = []
        self._player = MemoryPlayer(policy, deterministic=deterministic)
        self._player.start(1, seed)
        self._return = 0.0
        self._waiting = False

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool | None = None
    ) -> tuple[Any, None]:
        """The action for one observation; the second value is None (the memory stays inside).

        Accepts a batch of one as well, so that Stable-Baselines3's helpers work on `watch(env)`. `state` and
        `episode_start` are ignored: the memory outlives episodes.

        Raises:
            RuntimeError: when the outcome of the last action was not observed.
            ValueError: when the observation does not fit the space.
        """
        if self._waiting:
            raise RuntimeError(
                "predict was called twice without observe(reward, terminated, truncated) in between: "
                "the learner adapts by seeing what its actions bring (or act in learner.watch(env))"
            )
        space = self.observation_space
        single = _fits(observation, space)
        batch = _add_axis(observation) if single else observation
        if not single and not (_fits(_first(batch), space) and _length(batch) == 1):
            raise ValueError(f"observation must fit {space}, got {_shape(observation)}")
        if deterministic is not None:
            self._player.deterministic = deterministic
        action = self._player.act(batch)
        self._waiting = True
        return (action[0] if single else action), None

    def observe(self, reward: float, terminated: bool, truncated: bool = False) -> None:
        """What came of the last action.

        Raises:
            RuntimeError: when there was no action.
            ValueError: when the reward is not finite.
        """
        if not self._waiting:
            raise RuntimeError("observe was called without a predict before it")
        if not np.isfinite(reward):
            raise ValueError(f"reward must be finite, got {reward}")
        flags = np.array([[terminated], [truncated]], bool)
        self._player.observe(Transition(None, None, np.array([reward]), *flags, None))
        self._waiting = False
        self._return += float(reward)
        if terminated or truncated:
            self.returns.append(self._return)
            self._return = 0.0

    def watch(self, env: gym.Env) -> gym.Env:
        """`env`, wrapped so that every step is observed by this learner."""
        return _Watched(env, self)

    def run_episode(self, env: gym.Env, seed: int | None = None) -> float:
        """Play one episode, adapting, and give its return."""
        observation, _ = env.reset(seed=seed)
        while True:
            action, _ = self.predict(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            self.observe(reward, terminated, truncated)
            if terminated or truncated:
                return self.returns[-1]


class _Watched(gym.Wrapper):
    def __init__(self, env: gym.Env, learner: Learner):
        super().__init__(env)
        self._learner = learner

    def step(self, action: Any):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._learner.observe(reward, terminated, truncated)
        return observation, reward, terminated, truncated, info


def _fits(observation: Any, space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return isinstance(observation, dict) and all(k in observation and _fits(observation[k], s) for k, s in space.items())
    return np.shape(observation) == space.shape


def _add_axis(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _add_axis(value) for key, value in observation.items()}
    return np.asarray(observation)[None]


def _first(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _first(value) for key, value in observation.items()}
    return observation[0] if np.ndim(observation) else observation


def _length(observation: Any) -> int:
    return _length(next(iter(observation.values()))) if isinstance(observation, dict) else np.shape(observation)[0]


def _shape(observation: Any) -> str:
    if isinstance(observation, dict):
        return str({key: np.shape(value) for key, value in observation.items()})
    return f"shape {np.shape(observation)}"

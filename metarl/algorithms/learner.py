"""One learner on one new task, and the reading of single observations and memories."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from torch import Tensor

from metarl.algorithms.export import check_exportable, to_stable_baselines
from metarl.algorithms.players import AdaptivePlayer, GradientPlayer
from metarl.batched import of_task
from metarl.policies import Memory, TrialPolicy
from metarl.trials import Observations, Transition


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

    def __init__(self, player: AdaptivePlayer, seed: int):
        self.observation_space = player.policy.observation_space
        self.action_space = player.policy.action_space
        self.returns: list[float] = []
        self._player = player
        self._player.start(1, seed)
        self._return = 0.0
        self._step = 0
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
        batch, single = as_batch(observation, self.observation_space)
        if _length(batch) != 1:
            raise ValueError(f"observation must fit {self.observation_space}, got {_shape(observation)}")
        action = self._player.act(batch, deterministic)
        self._waiting = True
        return (action[0] if single else action), None

    def observe(self, reward: float, terminated: bool, truncated: bool = False, next_observation: Any = None) -> None:
        """What came of the last action.

        `next_observation` is read only by agents with a value network, where an episode was truncated; without it, the
        state before is taken for it.

        Raises:
            RuntimeError: when there was no action.
            ValueError: when the reward is not finite.
        """
        if not self._waiting:
            raise RuntimeError("observe was called without a predict before it")
        if not np.isfinite(reward):
            where = f"step {self._step} of episode {len(self.returns) + 1}"
            raise ValueError(f"reward must be finite, got {reward} in {where}")
        flags = np.array([[terminated], [truncated]], bool)
        successor = None if next_observation is None else as_batch(next_observation, self.observation_space)[0]
        self._waiting = False
        self._player.observe(Transition(None, None, np.array([reward]), *flags, successor))
        self._return += float(reward)
        self._step += 1
        if terminated or truncated:
            self.returns.append(self._return)
            self._return, self._step = 0.0, 0

    def check_exportable(self) -> None:
        """Raise a `ValueError`, with the reason, where `export` would: an agent with a memory is no ordinary policy."""
        raise ValueError("only agents that adapt by gradient steps can be exported: what this one has learned is its memory")

    def export(self, path: str | Path) -> Path:
        """Write the policy as it is now for Stable-Baselines3; see `check_exportable`."""
        self.check_exportable()

    def watch(self, env: gym.Env) -> gym.Env:
        """`env`, wrapped so that every step is observed by this learner."""
        return _Watched(env, self)

    def run_episode(self, env: gym.Env, seed: int | None = None) -> float:
        """Play one episode, adapting, and give its return."""
        observation, _ = env.reset(seed=seed)
        while True:
            action, _ = self.predict(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            self.observe(reward, terminated, truncated, observation)
            if terminated or truncated:
                return self.returns[-1]


class GradientLearner(Learner):
    """A learner that adapts by gradient steps, one after every `episodes_per_update` episodes.

    What it has become is an ordinary policy: `stable_baselines()` gives it as Stable-Baselines3's PPO.
    """

    _player: GradientPlayer

    @property
    def gradient_steps(self) -> int:
        """Steps taken so far."""
        return int(self._player.updates[0])

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters as they are now, by name."""
        return of_task(self._player.params, 0)

    def adapt(self, env: gym.Env, gradient_steps: int, seed: int | None = None) -> Self:
        """Play as many episodes as it takes for so many further gradient steps."""
        if gradient_steps < 0 or gradient_steps != int(gradient_steps):
            raise ValueError(f"gradient_steps must be at least 0, got {gradient_steps}")
        wanted = self.gradient_steps + gradient_steps
        while self.gradient_steps < wanted:
            self.run_episode(env, seed)
            seed = None
        return self

    def stable_baselines(self, **options: Any) -> PPO:
        """The policy as it is now, as Stable-Baselines3's PPO; `options` are of its constructor, for training on.

        Raises:
            ValueError: when Stable-Baselines3 cannot take the spaces, with the reason.
        """
        return to_stable_baselines(self._player.policy, self.params, **options)

    def check_exportable(self) -> None:
        """Raise a `ValueError`, with the reason, at spaces that Stable-Baselines3 cannot take."""
        check_exportable(self.observation_space, self.action_space)

    def export(self, path: str | Path) -> Path:
        """Write `stable_baselines()` to a file that `PPO.load(path, env)` reads; without a suffix, `.zip` is appended."""
        path = Path(path) if Path(path).suffix else Path(path).with_suffix(".zip")
        model = self.stable_baselines()
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
        return path


class _Watched(gym.Wrapper):
    def __init__(self, env: gym.Env, learner: Learner):
        super().__init__(env)
        self._learner = learner

    def step(self, action: Any):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._learner.observe(reward, terminated, truncated, observation)
        return observation, reward, terminated, truncated, info


def split_trial_observation(observation: Any, space: gym.Space) -> tuple[Any, Any, Any]:
    """The family's own observation, the previous reward and the previous done, from an observation of `TrialVecEnv`.

    Any other observation is returned as it is, with None and None.
    """
    nested = isinstance(space, gym.spaces.Dict)
    names = {key: f"observation/{key}" for key in space} if nested else {"": "observation"}
    wanted = {*names.values(), "previous_reward", "previous_done"}
    if not isinstance(observation, dict) or not wanted <= observation.keys():
        return observation, None, None
    own = {key: observation[name] for key, name in names.items()}
    return own if nested else own[""], observation["previous_reward"], observation["previous_done"]


def unpack_memory(
    policy: TrialPolicy, state: tuple[np.ndarray, ...] | None, rows: int, trial_start: Any, reward: Any, done: Any
) -> Memory:
    """The memory of `rows` trials from arrays: the core's state and the last actions, `state`, and what these brought.

    Raises:
        ValueError: when something is missing or does not fit.
    """
    memory = policy.initial_memory(rows)
    if state is None:
        return memory
    model = (*memory.core, memory.previous_action)
    expected, got = [tuple(part.shape) for part in model], [np.shape(part) for part in state]
    if got != expected:
        raise ValueError(f"state must be what predict returned for {rows} rows, of shapes {expected}, got {got}")
    starts = _row("episode_start", False if trial_start is None else trial_start, rows).astype(bool)
    if not starts.all() and (reward is None or done is None):
        raise ValueError(
            "reward and done must be given where a trial goes on, for the policy reads what its last action brought: "
            "pass reward= and done= to predict, or use model.get_env(), model.adapt(env) or evaluate"
        )
    reward = np.where(starts, 0, _row("reward", 0 if reward is None else reward, rows))
    if not np.isfinite(reward).all():
        raise ValueError(f"reward must be finite, got {reward[~np.isfinite(reward)][0]}")
    done = _row("done", 0 if done is None else done, rows)
    *core, actions = (torch.tensor(part, dtype=m.dtype, device=policy.device) for part, m in zip(state, model, strict=True))
    return policy.forget(policy.remember(tuple(core), actions, reward, done), starts)


def _row(name: str, values: Any, rows: int) -> np.ndarray:
    """`values`, one per row or one for all, as `[rows]`; `[rows, 1]` is what observations hold."""
    shape = np.shape(values)
    if shape not in ((), (rows,), (rows, 1)):
        raise ValueError(f"{name} must have shape ({rows},), got {shape}")
    return np.resize(np.asarray(values), rows)


def as_batch(observation: Any, space: gym.Space) -> tuple[Observations, bool]:
    """`observation` as a batch `[B, ...]`, and whether it was a single one.

    Raises:
        ValueError: when it is neither one observation of `space` nor a batch of them.
    """
    if _fits(observation, space, ()):
        return _map_arrays(observation, lambda x: x[None]), True
    if _fits(observation, space, (rows := _length(observation),)) and rows:
        return _map_arrays(observation, lambda x: x), False
    raise ValueError(f"observation must fit {space}, got {_shape(observation)}")


def _fits(observation: Any, space: gym.Space, lead: tuple[int, ...]) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return isinstance(observation, dict) and all(
            key in observation and _fits(observation[key], part, lead) for key, part in space.items()
        )
    return not isinstance(observation, dict) and np.shape(observation) == (*lead, *space.shape)


def _map_arrays(observation: Any, function: Callable[[np.ndarray], np.ndarray]) -> Observations:
    if isinstance(observation, dict):
        return {key: _map_arrays(value, function) for key, value in observation.items()}
    return function(np.asarray(observation))


def _length(observation: Any) -> int:
    if isinstance(observation, dict):
        return _length(next(iter(observation.values()), ()))
    return np.shape(observation)[0] if np.ndim(observation) else 0


def _shape(observation: Any) -> str:
    if isinstance(observation, dict):
        return str({key: np.shape(value) for key, value in observation.items()})
    return f"shape {np.shape(observation)}"

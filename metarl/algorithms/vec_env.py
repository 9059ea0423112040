"""Gymnasium's vector environments, and whole trials, as Stable-Baselines3's `VecEnv`."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from metarl_envs import TaskFamily, make_family

Observations = np.ndarray | dict[str, Any]


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment for Stable-Baselines3; equals its `DummyVecEnv` over the single environments.

    Args:
        envs: a vector environment of `B` slots whose autoreset mode is `SAME_STEP` or `DISABLED`.
    """

    def __init__(self, envs: gym.vector.VectorEnv):
        mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ValueError(
                f"envs must have autoreset mode SAME_STEP or DISABLED, got {mode.name}: "
                "its extra step after every episode is no transition"
            )
        self.envs = envs
        self._same_step = mode is AutoresetMode.SAME_STEP
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start an episode in every slot, with the seeds of `seed()` and the options of `set_options()` if any wait."""
        seeds = None if self._seeds[0] is None else list(self._seeds)
        observations, infos = self.envs.reset(seed=seeds, options=self._options[0] or None)
        self.reset_infos = _split(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def set_options(self, options: dict[str, Any] | None = None) -> None:
        """Options of the next reset: one dictionary for the whole batch."""
        if not isinstance(options, dict | None):
            raise ValueError(f"options must be one dictionary for the whole batch, got {type(options).__name__}")
        self._options = [options or {}] * self.num_envs

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions `[B, ...]` that `step_wait` will play."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Observations `[B, ...]`, rewards `[B]`, dones `[B]`, and one info per slot."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        done = terminated | truncated
        ended = np.flatnonzero(done).tolist()
        slot_infos = _split(infos, self.num_envs)
        if ended and self._same_step:  # infos of ended slots are of their reset already
            terminal = [_at(infos["final_obs"], slot) for slot in ended]
            last_infos, reset_infos = _split(infos.get("final_info", {}), self.num_envs), slot_infos.copy()
        elif ended:
            terminal = [_at(observations, slot) for slot in ended]
            observations, infos = self.envs.reset(options={"reset_mask": done})
            last_infos, reset_infos = slot_infos, _split(infos, self.num_envs)
        for i, slot in enumerate(ended):
            self.reset_infos[slot] = reset_infos[slot]
            slot_infos[slot] = {**last_infos[slot], "terminal_observation": terminal[i]}
        for info, cut in zip(slot_infos, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut
        return observations, rewards.astype(np.float32), done, slot_infos

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute in each of the slots `indices`; what the slots share is repeated."""
        if hasattr(self.envs, "get_attr"):
            values = self.envs.get_attr(attr_name)
        else:
            values = (getattr(self.envs, attr_name),) * self.num_envs
        return [values[slot] for slot in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute to `value` in the slots `indices`."""
        slots = list(self._get_indices(indices))
        values = [value] * self.num_envs if len(slots) == self.num_envs else self.get_attr(attr_name)
        for slot in slots:
            values[slot] = value
        self.envs.set_attr(attr_name, values)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """What the method returns in each of the slots `indices`, if slots are environments of their own."""
        single = getattr(self.envs, "envs", None)
        if single is None:
            raise AttributeError(f"{type(self.envs).__name__} steps all slots as one, there is no {method_name!r} per slot")
        return [single[slot].get_wrapper_attr(method_name)(*args, **kwargs) for slot in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the single environments have this wrapper."""
        single = getattr(self.envs, "envs", None)
        return [single is not None and is_wrapped(single[slot], wrapper_class) for slot in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture of each slot."""
        images = None if self.render_mode is None else self.envs.render()
        return [None] * self.num_envs if images is None else list(images)

    def close(self) -> None:
        """Release the environments."""
        self.envs.close()


class TrialVecEnv(GymnasiumVecEnv):
    """Whole trials as Stable-Baselines3's episodes: its recurrent algorithms then learn to adapt, as RL² does.

    An episode of this environment is `episodes_per_trial` consecutive episodes in one task, and `dones` are the ends of
    trials, after which the slot has a new task. Where the trial's last episode was truncated, `TimeLimit.truncated` is
    set, and on-policy algorithms bootstrap. The observation (a `Dict`) also holds what just happened, zeros at the
    first step of a trial only:

    - `observation`: the family's; of a `Dict` every leaf, under names such as `observation/position`,
    - `previous_action`: one-hot `[n]` for `Discrete(n)`, else as it was played (`MultiDiscrete` counted from 0),
    - `previous_reward [1]`,
    - `previous_done [1]`: 1 if the step before ended an episode.

    Args:
        family: a task family, or an id for `metarl_envs.make_family`.
        num_envs: number of trials `B` side by side.
        split: where tasks are drawn from.
        episodes_per_trial: the family's own trial length by default.
    """

    def __init__(
        self, family: TaskFamily | str, num_envs: int = 1, split: str = "train", episodes_per_trial: int | None = None
    ):
        self.family = make_family(family) if isinstance(family, str) else family
        self.episodes_per_trial = self.family.episodes_per_trial if episodes_per_trial is None else episodes_per_trial
        if self.episodes_per_trial < 1:
            raise ValueError(f"episodes_per_trial must be at least 1, got {self.episodes_per_trial}")
        envs = self.family.make_vec(
            num_envs, split=split, episodes_per_task=self.episodes_per_trial, autoreset_mode=AutoresetMode.DISABLED
        )
        super().__init__(envs)
        self.observation_space = spaces.Dict(
            {
                **_flatten(envs.single_observation_space),
                "previous_action": _previous_action_space(envs.single_action_space),
                "previous_reward": spaces.Box(-np.inf, np.inf, (1,), np.float32),
                "previous_done": spaces.Box(0, 1, (1,), np.float32),
            }
        )
        self._episode = np.zeros(num_envs, np.int64)

    def reset(self) -> VecEnvObs:
        """Start a trial in every slot, each in a new task unless tasks were set."""
        if self._seeds[0] is None:  # without a seed, slots that are in the middle of a trial would keep their task
            self.seed(int(self.envs.np_random.integers(2**31)))
        observations = super().reset()
        self._episode[:] = 0
        keys = ("previous_action", "previous_reward", "previous_done")
        context = {key: np.zeros((self.num_envs, *self.observation_space[key].shape), np.float32) for key in keys}
        return {**_flatten(observations), **context}

    def step_wait(self) -> VecEnvStepReturn:
        """Observations `[B, ...]`, rewards `[B]`, ends of trials `[B]`, and one info per slot."""
        observations, rewards, terminated, truncated, _ = self.envs.step(self._actions)
        rewards = rewards.astype(np.float32)
        done = terminated | truncated
        self._episode += done
        ended = self._episode >= self.episodes_per_trial
        context = {
            "previous_action": self._encode(self._actions),
            "previous_reward": rewards[:, None].copy(),
            "previous_done": done.astype(np.float32)[:, None],
        }
        infos = [{"TimeLimit.truncated": cut} for cut in (ended & truncated).tolist()]
        if ended.any():
            final = {**_flatten(observations), **context}
            for slot in np.flatnonzero(ended).tolist():
                infos[slot]["terminal_observation"] = _at(final, slot)
            for values in context.values():
                values[ended] = 0
            self._episode[ended] = 0
        if done.any():
            observations, _ = self.envs.reset(options={"reset_mask": done})
        return {**_flatten(observations), **context}, rewards, ended, infos

    def _encode(self, actions: np.ndarray) -> np.ndarray:
        """Actions as features, a fresh array `[B, ...]`."""
        if not isinstance(self.action_space, spaces.Discrete):
            return (actions - getattr(self.action_space, "start", 0)).astype(np.float32)
        one_hot = np.zeros((self.num_envs, self.action_space.n), np.float32)
        one_hot[np.arange(self.num_envs), np.asarray(actions) - self.action_space.start] = 1
        return one_hot


def _previous_action_space(space: gym.Space) -> spaces.Box:
    if isinstance(space, spaces.Discrete):
        return spaces.Box(0, 1, (int(space.n),), np.float32)
    if isinstance(space, spaces.Box):
        low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)  # trials start with zeros
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        most = np.asarray(getattr(space, "nvec", np.full(space.shape, 2)) - 1, np.float32)
        return spaces.Box(np.zeros_like(most), most, dtype=np.float32)
    raise ValueError(f"actions must be Discrete, MultiDiscrete, MultiBinary or Box, got {space}")


def _flatten(tree: Any, name: str = "observation") -> dict[str, Any]:
    """Leaves of nested dictionaries (of arrays or spaces) under path-like names (PyTorch allows no dots)."""
    if not isinstance(tree, dict | spaces.Dict):
        return {name: tree}
    return {key: leaf for part, value in tree.items() for key, leaf in _flatten(value, f"{name}/{part}").items()}


def _at(observations: Observations, slot: int) -> Any:
    """A copy of one slot's observation."""
    if isinstance(observations, dict):
        return {key: _at(values, slot) for key, values in observations.items()}
    if observations.dtype == object:  # Gymnasium's own vector environments list final observations
        return observations[slot]
    return observations[slot].copy()


def _split(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """One info per slot from Gymnasium's dictionary of arrays, where `_key` masks the slots that have `key`.

    What tells of ended episodes is left out.
    """
    slot_infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        if key in ("final_obs", "final_info") or (key.startswith("_") and key[1:] in infos):
            continue
        rows = values if not isinstance(values, dict) else _split(values, num_envs)
        for slot in np.flatnonzero(infos.get(f"_{key}", np.ones(num_envs, bool))).tolist():
            slot_infos[slot][key] = rows[slot]
    return slot_infos

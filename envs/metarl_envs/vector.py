"""Batched environments with one task per slot, and the single environment that is their one-slot view."""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from metarl_envs.family import Arrays, TaskFamily, TaskSet, build_family, check_at_least
from metarl_envs.streams import ALL, Rows, Streams


def _render_metadata(family: TaskFamily) -> dict[str, Any]:
    """What Gymnasium's wrappers ask before they draw. `gym.make` asks the class, which cannot know the family."""
    return {"render_modes": [*family.render_modes], "render_fps": family.render_fps}


def _timed(method: Callable) -> Callable:
    """`method`, adding the time that it takes to `self.seconds`."""

    @wraps(method)
    def run(self: "TaskVectorEnv", *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start

    return run


class TaskVectorEnv(gym.vector.VectorEnv):
    """A Gymnasium vector environment over a task family: slot `i` plays task `i`.

    Until tasks are given (`set_tasks`, `reset(options={"tasks": ...})` or `set_attr("task", [...])`) each slot draws
    its own from `split`, a new one after every `episodes_per_task` episodes; given tasks stay. The k-th own task of a
    slot depends on the seed, the slot and k alone, never on what the other slots do.

    Args:
        num_envs: number of slots `B`.
        family: a family, or its import path `"module:Class"` with `family_kwargs`.
        split: where slots draw tasks of their own from.
        episodes_per_task: episodes after which a slot draws a new task; the family's trial length by default.
        autoreset_mode: `SAME_STEP` (an ended episode is reset in the same step, its last observation is in
            `infos["final_obs"]`) or `DISABLED` (the caller resets with `options={"reset_mask": ...}`).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}
    seconds: float = 0.0
    """How long `reset` and `step` have taken so far."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        family: TaskFamily | str,
        split: str = "train",
        episodes_per_task: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        **family_kwargs: Any,
    ):
        check_at_least("num_envs", num_envs, 1)
        self.family = build_family(family, **family_kwargs)
        if render_mode not in (None, *self.family.render_modes):
            allowed = " or ".join(["None", *map(repr, self.family.render_modes)])
            raise ValueError(f"render_mode must be {allowed} for {self.family.label}, got {render_mode!r}")
        self.render_mode = render_mode
        if split not in self.family.splits:
            raise ValueError(f"split must be one of {', '.join(self.family.splits)}, got {split!r}")
        self.num_envs = num_envs
        self.split = split
        self.episodes_per_task = self.family.episodes_per_trial if episodes_per_task is None else episodes_per_task
        check_at_least("episodes_per_task", self.episodes_per_task, 1)
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.NEXT_STEP:
            raise ValueError("autoreset_mode must be SAME_STEP or DISABLED, got NEXT_STEP: its extra step is no transition")
        self.metadata = {**self.metadata, "autoreset_mode": mode, **_render_metadata(self.family)}
        self._autoreset = mode is AutoresetMode.SAME_STEP

        self.single_observation_space = self.family.observation_space
        self.single_action_space = self.family.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._streams = Streams(num_envs)
        self._seeded = False
        self._own_tasks = True
        self._tasks: Arrays | None = None
        self._state = self.family.make_state(num_envs)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._episodes = np.zeros(num_envs, np.int64)
        self._trials = np.zeros(num_envs, np.int64)  # own tasks that each slot has had
        self._task_seed = 0
        self._drawn: dict[int, Arrays] = {}  # own tasks by number, for slots that are not as far yet

    # -- tasks ---------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> TaskSet:
        """The tasks being played, one per slot."""
        if self._tasks is None:
            raise gym.error.ResetNeeded("call reset or set_tasks before asking for tasks")
        params = {name: values.copy() for name, values in self._tasks.items()}
        return TaskSet(self.family.env_id, self.family.kwargs, self.split, params)

    def set_tasks(self, tasks: TaskSet | Arrays, rows: Rows = ALL) -> None:
        """Give the slots in `rows` these tasks, in order. Reset those slots next: their episodes would go on in them."""
        params = tasks.params if isinstance(tasks, TaskSet) else tasks
        expected = len(np.arange(self.num_envs)[rows])
        count = len(next(iter(params.values())))
        if count != expected:
            raise ValueError(f"tasks must hold one task per slot ({expected}), got {count}")
        if self._tasks is None and expected < self.num_envs:
            raise gym.error.ResetNeeded("call reset before giving tasks to some slots only")
        self._write_tasks(params, rows)
        self._own_tasks = False

    def _write_tasks(self, params: Arrays, rows: Rows) -> None:
        if self._tasks is None:
            model = self.family.draw(1, self.split, np.random.default_rng(0))  # for names, shapes and types
            self._tasks = {name: np.zeros((self.num_envs, *v.shape[1:]), v.dtype) for name, v in model.items()}
        if params.keys() != self._tasks.keys():
            raise ValueError(f"tasks must have the parameters {sorted(self._tasks)}, got {sorted(params)}")
        for name, values in params.items():
            shape, given = self._tasks[name].shape[1:], np.shape(values)[1:]
            if given != shape:
                raise ValueError(f"task parameter {name!r} must have shape {shape} per task, got {given}")
            self._tasks[name][rows] = values
        self.family.enter(self._tasks, self._state, rows)

    # -- Gymnasium's interface -----------------------------------------------------------------------------------

    @_timed
    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray | Arrays, dict[str, Any]]:
        """Start an episode in every slot, or in those of `options["reset_mask"]` (boolean `[B]`).

        Args:
            seed: slot `i` is seeded with `seed + i`, or with `seed[i]`, if it is reset. Without one, the streams go on.
            options: `reset_mask`, or `tasks`, a `TaskSet` (or its arrays) with one task per slot.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        rows: Rows = ALL if mask is None else self._check_mask(mask)
        seeding = seed is not None or not self._seeded
        if seeding:
            self._seed(seed, rows)
        if (tasks := options.pop("tasks", None)) is not None:
            if mask is not None:
                raise ValueError("options must not hold both tasks and reset_mask: use set_tasks(tasks, rows) before reset")
            self.set_tasks(tasks)
        if self._own_tasks:
            if seeding and rows is ALL:
                self._task_seed = int(self.np_random.integers(2**63))
                self._drawn.clear()
                self._trials[:] = 0
                self._draw_tasks(np.ones(self.num_envs, bool))
            else:
                self._renew_tasks(rows)
        self._begin(rows)
        return self.family.observe(self._tasks, self._state), {}

    @_timed
    def step(self, actions: np.ndarray) -> tuple[np.ndarray | Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play one step in every slot: observations, rewards, terminated, truncated `[B]`, and infos."""
        if self.closed:
            raise gym.error.ClosedEnvironmentError("step needs an environment that is not closed")
        if not self._seeded:
            raise gym.error.ResetNeeded("call reset before step")
        rewards, terminated = self.family.step(self._tasks, self._state, self._check_actions(actions), self._streams)
        self._elapsed += 1
        over = self._elapsed >= self.family.max_episode_steps
        if "truncated" in self._state:
            over |= self._state["truncated"]
        if self.family.time_limit_terminates:
            terminated = terminated | over
            truncated = np.zeros(self.num_envs, bool)
        else:
            truncated = over & ~terminated
        observations = self.family.observe(self._tasks, self._state)
        infos: dict[str, Any] = {}
        if self._autoreset:
            done = terminated | truncated
            if done.any():
                infos = {"final_obs": observations, "_final_obs": done}
                rows = ALL if done.all() else done
                if self._own_tasks:
                    self._renew_tasks(rows)
                self._begin(rows)
                observations = self.family.observe(self._tasks, self._state)
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of every slot, with `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        if self._tasks is None:
            raise gym.error.ResetNeeded("call reset before render")
        return tuple(self.family.frames(self._tasks, self._state))

    def set_attr(self, name: str, values: Any) -> None:
        """`set_attr("task", [...])` gives slot `i` the task `values[i]` (a dictionary of parameters or a task set).

        One task that is not in a list goes to all slots.
        """
        if name != "task":
            raise AttributeError(f"only the attribute 'task' can be set per slot, got {name!r}")
        values = values if isinstance(values, list | tuple) else [values] * self.num_envs
        params = [v.params if isinstance(v, TaskSet) else {k: np.asarray(x)[None] for k, x in v.items()} for v in values]
        if len({frozenset(p) for p in params}) != 1:
            raise ValueError(f"tasks must all have the same parameters, got {[sorted(p) for p in params]}")
        self.set_tasks({key: np.concatenate([p[key] for p in params]) for key in params[0]})

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """`get_attr("task")` gives each slot's task; other attributes are shared by all slots."""
        if name == "task":
            return tuple({key: values[i] for key, values in self.tasks.params.items()} for i in range(self.num_envs))
        return (getattr(self, name),) * self.num_envs

    def close_extras(self, **kwargs: Any) -> None:
        """Release what the family's state holds."""
        self.family.close(self._state)

    # -- inside --------------------------------------------------------------------------------------------------

    def _seed(self, seed: int | Sequence[int] | None, rows: Rows) -> None:
        if not self._seeded and rows is not ALL:
            raise gym.error.ResetNeeded("the first reset must be without reset_mask")
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        if isinstance(seed, int | np.integer):
            seed = range(int(seed), int(seed) + self.num_envs)
        elif len(seed) != self.num_envs:
            raise ValueError(f"seed must be one integer or one per slot ({self.num_envs}), got {len(seed)}")
        super().reset(seed=int(seed[0]))  # refuses negative seeds
        self._streams.seed(np.asarray(seed, np.uint64)[rows], rows)
        self._seeded = True

    def _begin(self, rows: Rows) -> None:
        self._elapsed[rows] = 0
        self._episodes[rows] += 1
        self.family.reset(self._tasks, self._state, rows, self._streams)

    def _renew_tasks(self, rows: Rows) -> None:
        """Draw new tasks for those of `rows` that have played `episodes_per_task` episodes in theirs."""
        ended = np.zeros(self.num_envs, bool)
        ended[rows] = self._episodes[rows] >= self.episodes_per_task
        if ended.any():
            self._draw_tasks(ended)

    def _draw_tasks(self, slots: np.ndarray) -> None:
        """Give each of `slots` (a mask) its next own task: row i of a batch drawn for all slots at once."""
        self._trials[slots] += 1
        self._episodes[slots] = 0
        for trial in np.unique(self._trials[slots]).tolist():
            if trial not in self._drawn:
                rng = np.random.default_rng([self._task_seed, trial])
                self._drawn[trial] = self.family.sample(self.num_envs, self.split, rng).params
            rows = slots & (self._trials == trial)
            self._write_tasks({name: values[rows] for name, values in self._drawn[trial].items()}, rows)
        slowest = self._trials.min()
        self._drawn = {trial: params for trial, params in self._drawn.items() if trial > slowest}

    def _check_mask(self, mask: Any) -> Rows:
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"reset_mask must be boolean of shape ({self.num_envs},), got {mask.dtype} {mask.shape}")
        return ALL if mask.all() else mask

    def _check_actions(self, actions: Any) -> np.ndarray:
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        space = self.single_action_space
        if isinstance(space, gym.spaces.Discrete):
            if actions.dtype.kind not in "iu":
                raise ValueError(f"actions must be integers, got {actions.dtype}")
            low, high = space.start, space.start + space.n
            if actions.min() < low or actions.max() >= high:
                wrong = actions[(actions < low) | (actions >= high)][0]
                raise ValueError(f"actions must be in [{low}, {high}), got {wrong}")
        elif not np.isfinite(actions).all():
            slot = int(np.argwhere(~np.isfinite(actions))[0][0])
            raise ValueError(f"actions must be finite, got {actions[slot]} in slot {slot}")
        return actions


class TaskEnv(gym.Env):
    """One slot of a `TaskVectorEnv` as an ordinary Gymnasium environment; equal to that slot step by step.

    `reset(options={"task": {...}})`, or setting `task`, fixes the task; otherwise one is drawn from `split`, a new
    one after every `episodes_per_task` episodes.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, *, family: TaskFamily | str, render_mode: str | None = None, **options: Any):
        family_names = {"split", "episodes_per_task"}
        env_options = {key: options.pop(key) for key in family_names & options.keys()}
        self.family = build_family(family, **options)
        self._envs = self.family.make_vec(1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **env_options)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, **_render_metadata(self.family)}
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space

    @property
    def task(self) -> dict[str, np.ndarray]:
        """Parameters of the current task."""
        return self._envs.get_attr("task")[0]

    @task.setter
    def task(self, task: dict[str, Any] | TaskSet) -> None:
        self._envs.set_attr("task", [task])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; `options={"task": ...}` changes the task first."""
        super().reset(seed=seed)
        if options and "task" in options:
            self.task = options["task"]
        if seed is None and not self._envs._seeded:
            seed = int(self.np_random.integers(2**31))
        observations, _ = self._envs.reset(seed=seed)
        return self._first(observations), {}

    def step(self, action: Any):
        """Play one step: observation, reward, terminated, truncated, info."""
        observations, rewards, terminated, truncated, _ = self._envs.step(np.asarray(action)[None])
        return self._first(observations), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:
        """A picture `[height, width, 3]`, with `render_mode="rgb_array"`."""
        frames = self._envs.render()
        return None if frames is None else frames[0]

    def _first(self, observations: np.ndarray | Arrays) -> Any:
        if isinstance(observations, dict):
            return {key: self._first(values) for key, values in observations.items()}
        return observations[0]

    def close(self) -> None:
        """Release the batched environment."""
        self._envs.close()

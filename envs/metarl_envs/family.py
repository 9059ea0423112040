"""Task families: distributions over tasks that share spaces, and the task sets drawn from them."""

import dataclasses
import hashlib
import importlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np

from metarl_envs.streams import Rows, Streams, mix

if TYPE_CHECKING:
    from metarl_envs.vector import TaskVectorEnv

Arrays = dict[str, np.ndarray]
"""A struct of arrays that share their leading axis."""

_UNREADABLE = (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What NumPy and the constructor raise on files that are not task sets."""

_MAX_EMPTY_DRAWS = 1000
"""Draws in a row without a task of the wanted side after which there is none; .75**1000 is below 1e-124."""


@dataclass(frozen=True)
class TaskSet:
    """`N` tasks of one family, as a struct of arrays: `params[name]` has shape `[N, ...]`."""

    env_id: str
    family_kwargs: Mapping[str, Any]
    split: str
    params: Arrays

    def __post_init__(self):
        lengths = {name: len(values) for name, values in self.params.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"params must share one leading axis, but their lengths are {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    def __getitem__(self, rows: int | slice | np.ndarray) -> "TaskSet":
        """The tasks in `rows`, always as a task set (an integer gives a set of one)."""
        if isinstance(rows, int | np.integer):
            rows = np.arange(len(self))[rows : rows + 1 or None]
            if not len(rows):
                raise IndexError(f"task index must be below {len(self)}")
        return dataclasses.replace(self, params={name: values[rows] for name, values in self.params.items()})

    @cached_property
    def hash(self) -> str:
        """SHA-256 of family, split and parameters: equal exactly when two sets hold the same tasks in the same order."""
        digest = hashlib.sha256(json.dumps([self.env_id, dict(self.family_kwargs), self.split], sort_keys=True).encode())
        for name in sorted(self.params):
            values = np.ascontiguousarray(self.params[name])
            digest.update(f"{name}{values.dtype.str}{values.shape}".encode() + values.tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write an `.npz` file (no pickles) and return its path."""
        path = Path(path)
        path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"env_id": self.env_id, "family_kwargs": dict(self.family_kwargs), "split": self.split}
        np.savez(path, header=np.array(json.dumps(header)), **{f"param_{k}": v for k, v in self.params.items()})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "TaskSet":
        """Read what `save` wrote. Raises `ValueError` when the file is not a task set."""
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                params = {name.removeprefix("param_"): file[name] for name in file.files if name != "header"}
            return cls(params=params, **header)
        except FileNotFoundError:
            raise
        except _UNREADABLE as error:
            raise ValueError(f"{path} is not a task set written by TaskSet.save: {error}") from error


@dataclass(frozen=True)
class TaskFamily:
    """A distribution over tasks with shared spaces. Subclasses are frozen dataclasses whose fields are its parameters.

    Dynamics are batched: one task per slot, `B` slots side by side, NumPy arrays with leading axis `B`. `tasks` and
    `state` below are dictionaries of such arrays; methods that change the state write into it.

    Splits: `train` and `test` are disjoint by construction. Every task falls on one side of a fixed partition
    (`held_out`), `train` keeps one side and every other split the other side. For continuous parameters the side is a
    hash of the parameters' bits, independent of everything that matters, so both splits follow the same distribution.
    A split named `all`, where a family has one, keeps both sides.
    """

    env_id: ClassVar[str] = ""
    """Canonical Gymnasium id: `make_family(env_id, **family.kwargs)` builds an equal family."""
    structure: ClassVar[str | None] = None
    """What kind of problem this is ("bernoulli_bandit", ...); classical players are looked up by it."""
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    time_limit_terminates: ClassVar[bool] = False
    """Whether the step limit is part of the task (finite horizon: `terminated`) or an outside cut (`truncated`)."""
    held_out_fraction: ClassVar[float] = 0.25
    render_modes: ClassVar[tuple[str, ...]] = ()
    """`("rgb_array",)` where `frames` is implemented."""
    render_fps: ClassVar[int] = 10
    """Frames that are a second of the task's own time."""

    # -- what a subclass says ------------------------------------------------------------------------------------

    @property
    def observation_space(self) -> gym.Space:
        """Space of one slot's observation."""
        raise NotImplementedError

    @property
    def action_space(self) -> gym.Space:
        """Space of one slot's action."""
        raise NotImplementedError

    @property
    def episodes_per_trial(self) -> int:
        """How many consecutive episodes in one task make a trial, unless the user says otherwise."""
        raise NotImplementedError

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode ends at the latest."""
        raise NotImplementedError

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Parameters of `num_tasks` tasks from the distribution of `split`, before the partition is applied."""
        raise NotImplementedError

    def make_state(self, num_slots: int) -> Arrays:
        """Uninitialised state arrays for `num_slots` slots."""
        raise NotImplementedError

    def enter(self, tasks: Arrays, state: Arrays, rows: Rows) -> None:
        """New tasks were given to `rows`: their next episode is the first. For families that count."""

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Start an episode in `rows`: write `state[name][rows]`."""
        raise NotImplementedError

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Advance all slots in place. Returns rewards `[B]` and terminated `[B]`.

        The step limit is counted outside. Episodes that are cut short for another reason are marked in a boolean array
        `state["truncated"]`.
        """
        raise NotImplementedError

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray | Arrays:
        """A fresh array of observations `[B, ...]`."""
        raise NotImplementedError

    def check_drawing(self) -> None:
        """Raise a `gymnasium.error.DependencyNotInstalled` where `frames` would, for want of a way to draw."""

    def frames(self, tasks: Arrays, state: Arrays) -> list[np.ndarray]:
        """A picture `[height, width, 3]` of every slot, in bytes."""
        raise NotImplementedError

    def close(self, state: Arrays) -> None:
        """Release what `state` holds beyond memory."""

    def ceiling(self, tasks: TaskSet) -> np.ndarray | None:
        """Expected return of one episode `[N]` for the best player that knows the task; None where not computable."""
        return None

    def occurrences(self, tasks: TaskSet, episodes: int) -> np.ndarray | None:
        """How often the situation of each episode came before in its trial `[N, episodes]`; None where none comes back."""
        return None

    # -- what every family shares --------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """What messages and pictures call this family."""
        return self.env_id

    @property
    def kwargs(self) -> dict[str, Any]:
        """The parameters as JSON-compatible values."""
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}))

    @property
    def horizon(self) -> int:
        """Steps after which a trial of the default length ends at the latest."""
        return self.episodes_per_trial * self.max_episode_steps

    def held_out(self, params: Arrays) -> np.ndarray | None:
        """Which tasks `[N]` belong to the held-out side. None: too few tasks exist to hold any out."""
        digest = np.zeros(len(next(iter(params.values()))), np.uint64)
        for name in sorted(params):
            bits = np.ascontiguousarray(params[name], np.float64).reshape(len(digest), -1).view(np.uint64)
            for column in bits.T:
                digest = mix(digest ^ column)
        return (digest >> np.uint64(11)) * 2.0**-53 < self.held_out_fraction

    def sample(self, num_tasks: int, split: str = "train", rng: np.random.Generator | int | None = None) -> TaskSet:
        """Draw `num_tasks` tasks of `split` with `rng` (a generator or a seed)."""
        if split not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)} for {self.label}, got {split!r}")
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
        rng = np.random.default_rng(rng)
        parts: list[Arrays] = []
        missing = num_tasks
        empty_draws = 0
        while missing:
            params = self.draw(missing, split, rng)
            side = None if split == "all" else self.held_out(params)
            if side is not None:
                keep = ~side if split == "train" else side
                params = {name: values[keep] for name, values in params.items()}
            count = len(next(iter(params.values())))
            empty_draws = 0 if count else empty_draws + 1
            if empty_draws == _MAX_EMPTY_DRAWS:
                raise ValueError(f"{self!r} has too few tasks to be split: none of them belongs to {split!r}")
            parts.append(params)
            missing -= count
        params = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return TaskSet(self.env_id, self.kwargs, split, params)

    def make_vec(self, num_envs: int = 1, **options: Any) -> "TaskVectorEnv":
        """A batched environment with one task per slot; `options` are `TaskVectorEnv`'s."""
        from metarl_envs.vector import TaskVectorEnv  # the environment imports the family, not the other way round

        return TaskVectorEnv(num_envs, family=self, **options)


def make_family(env_id: str, **kwargs: Any) -> TaskFamily:
    """The task family registered as `env_id`, with `kwargs` over its registered parameters.

    Any other Gymnasium environment becomes a `ContextFamily`: one task, unless `kwargs` gives `ranges`.

    Raises:
        gymnasium.error.Error: when no such environment is registered (Gymnasium suggests near names).
        TypeError: when a parameter is not one of the family's.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    preset = dict(gym.spec(name).kwargs)
    family_class = preset.pop("family", None)
    if family_class is None:
        family_class, preset = "metarl_envs.context:ContextFamily", {"env": env_id}
    return build_family(family_class, **{**preset, **kwargs})


def build_family(family: "str | TaskFamily", **kwargs: Any) -> TaskFamily:
    """An instance from a family or its import path `"module:Class"`, checking the parameters' names."""
    if isinstance(family, TaskFamily):
        return dataclasses.replace(family, **kwargs) if kwargs else family
    module, name = family.split(":")
    family_class = getattr(importlib.import_module(module), name)
    known = [f.name for f in dataclasses.fields(family_class)]
    unknown = sorted(set(kwargs) - set(known))
    if unknown:
        raise TypeError(f"{name} has no parameter {unknown[0]!r}: it has {', '.join(known)}")
    return family_class(**kwargs)


def check_at_least(name: str, value: float, bound: float) -> None:
    """Raise unless `value >= bound`, naming the argument, its bound and the value."""
    if not (isinstance(value, Real) and value >= bound):
        raise ValueError(f"{name} must be at least {bound}, got {value!r}")


def check_above(name: str, value: float, bound: float) -> None:
    """Raise unless `value > bound` and finite, naming the argument, its bound and the value."""
    if not (isinstance(value, Real) and bound < value < math.inf):
        raise ValueError(f"{name} must be above {bound}, got {value!r}")


def ascending(name: str, pair: Any) -> tuple[float, float]:
    """`pair` as two floats, the lower first; raises naming the argument where it is something else."""
    low, high = two_numbers(name, pair)
    if not low < high:
        raise ValueError(f"{name} must be two numbers, the lower first, got {pair!r}")
    return low, high


def two_numbers(name: str, pair: Any) -> tuple[float, float]:
    """`pair` as two floats (lists come from YAML and JSON); raises naming the argument where it is something else."""
    try:
        first, second = (float(value) for value in pair)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two numbers, got {pair!r}") from None
    return first, second

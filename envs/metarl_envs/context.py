"""Any registered Gymnasium environment, plus ranges for its physical parameters, as a task family.

Two functions say how parameters reach an environment; register your class with either when attributes are not enough:

    @derived_attributes.register
    def _(env: MyEnv):                      # attributes computed in MyEnv's constructor, which would go stale
        return {"inertia": env.mass * env.radius**2}

    @set_parameters.register
    def _(env: MyMujocoEnv, parameters):    # parameters that are not attributes at all
        env.model.body_mass[1] = parameters["torso_mass"]
"""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from metarl_envs.classic_control import BATCHED, BatchedDynamics, Constants
from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_at_least
from metarl_envs.streams import Rows, Streams

Ranges = Mapping[str, tuple[float, float]]

_SPACES = gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary
_THESE = "Box, Discrete, MultiDiscrete or MultiBinary"


@singledispatch
def derived_attributes(env: gym.Env) -> dict[str, Any]:
    """Attributes that `env` (unwrapped) computes from others in its constructor, recomputed from those others' values.

    None unless a function is registered for the class of `env` or one of its bases.
    """
    return {}


@derived_attributes.register
def _(env: CartPoleEnv) -> dict[str, Any]:
    return {"total_mass": env.masspole + env.masscart, "polemass_length": env.masspole * env.length}


@singledispatch
def set_parameters(env: gym.Env, parameters: Mapping[str, float]) -> None:
    """Give `env` (unwrapped) these physical parameters. By default they are attributes of it.

    Raises:
        ValueError: when `env` has no such numeric attribute, or derives it from others.
    """
    for name, value in parameters.items():
        if not _is_number(inspect.getattr_static(env, name, None)):
            known = ", ".join(numeric_attributes(env))
            raise ValueError(f"ranges names {name!r}, no numeric attribute of {type(env).__name__}: it has {known}")
        setattr(env, name, value)
    for name, value in derived_attributes(env).items():
        if name in parameters:
            known = ", ".join(numeric_attributes(env))
            raise ValueError(f"ranges names {name!r}, which {type(env).__name__} derives from others: vary some of {known}")
        setattr(env, name, value)


def numeric_attributes(env: gym.Env) -> list[str]:
    """Names of the attributes of `env` (unwrapped) that ranges may be given for."""
    names = [name for name in dir(env) if not name.startswith("_") and _is_number(inspect.getattr_static(env, name, None))]
    return [name for name in names if name not in derived_attributes(env)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


@dataclass(frozen=True)
class ContextFamily(TaskFamily):
    """One environment under different physics: each parameter in `ranges` is drawn uniformly and independently.

    A parameter is set before each reset and reaches the environment through `set_parameters`. Spaces stay those of the
    environment as registered, but for observations in tuples and nested dictionaries: their parts become one dictionary, by
    names such as `body/position` or, in tuples, `0`. Without ranges there is one task, the plain environment.

    CartPole and Pendulum are stepped in closed form for the whole batch, with the same trajectories (`batched`).

    Task parameters: `{name: [N]}` for the names in `ranges`; `{"only_task": [N]}` (zeros) when there are none.
    """

    env_id: ClassVar[str] = "metarl/Context-v0"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")

    env: str = "CartPole-v1"
    """Gymnasium id of the environment; `"module:id"` imports the module that registers it first."""
    ranges: Ranges = field(default_factory=dict)
    """Lowest and highest value of each parameter that varies."""
    ood_ranges: Ranges = field(default_factory=dict)
    """Lowest and highest value of parameters in the `ood` split, where each is drawn from what lies outside of its
    range. By default half the range's width beyond either end, but a bound never comes closer to zero than half of the
    range's own and never crosses it: what is positive stays positive."""
    num_episodes: int = 5
    """Episodes in a trial."""
    num_steps: int | None = None
    """Steps after which an episode is truncated; None: as registered."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the environment's constructor."""
    batched: bool = field(default=True, compare=False)
    """Use closed-form dynamics where there are some. Changes speed alone, so it is no part of a task set's identity."""

    def __post_init__(self):
        check_at_least("num_episodes", self.num_episodes, 1)
        if "family" in self._spec.kwargs:
            raise ValueError(f"env must be a plain environment, got the task family {self.env}")
        if self.max_episode_steps is None:
            raise ValueError(f"num_steps must be given for {self.env}, which is registered without a limit, got None")
        check_at_least("num_steps", self.max_episode_steps, 1)
        for argument in ("ranges", "ood_ranges"):
            if not isinstance(getattr(self, argument), Mapping):
                raise ValueError(f"{argument} must map names to (lowest, highest), got {getattr(self, argument)!r}")
            pairs = {name: _checked(argument, name, pair) for name, pair in getattr(self, argument).items()}
            object.__setattr__(self, argument, pairs)
        if unknown := sorted(self.ood_ranges.keys() - self.ranges.keys()):
            raise ValueError(f"ood_ranges must name parameters in ranges ({', '.join(self.ranges)}), got {unknown[0]!r}")
        for name, (low, high) in self._outer.items():
            if low > self.ranges[name][0] or high < self.ranges[name][1]:
                raise ValueError(f"ood_ranges[{name!r}] must enclose its range {self.ranges[name]}, got {(low, high)}")
        if self._outer == self.ranges:  # nothing lies outside
            object.__setattr__(self, "splits", ("train", "test"))
        self._spaces  # noqa: B018 builds the environment once, so that wrong names are told here

    @cached_property
    def _outer(self) -> Ranges:
        """What the `ood` split reaches out to."""
        return {name: self.ood_ranges.get(name, _extrapolate(*pair)) for name, pair in self.ranges.items()}

    @cached_property
    def _spec(self) -> gym.envs.registration.EnvSpec:
        module, _, name = self.env.rpartition(":")
        if module:
            importlib.import_module(module)
        return gym.spec(name)

    @cached_property
    def _spaces(self) -> tuple[gym.Space, gym.Space]:
        env = self._make_env()
        set_parameters(env.unwrapped, {name: low for name, (low, _) in self.ranges.items()})
        if not isinstance(env.action_space, _SPACES):
            raise ValueError(f"env must have {_THESE} actions, got {env.action_space} in {self.env}")
        if not self._known:
            self._check_play(env)
        env.close()
        return env.observation_space, env.action_space

    def _check_play(self, env: gym.Env) -> None:
        """A `ValueError`, in one line, where the first step does not go as the environment's spaces say."""
        env.action_space.seed(0)
        for call, count in ((lambda: env.reset(seed=0), 2), (lambda: env.step(env.action_space.sample()), 5)):
            if not (isinstance(result := call(), tuple) and len(result) == count):
                says = "(observation, info) from reset" if count == 2 else "five values from step"
                raise ValueError(f"env must give {says}, got {result!r} in {self.env}")
            seen = result[0] if isinstance(result[0], dict) else {"": result[0]}
            for name, part in _parts(env.observation_space, env.observation_space).items():
                leaf = seen.get(name)
                if leaf is None or np.shape(leaf) != part.shape or not _in_range(leaf, part):
                    where = f"{name} in observations" if name else "observations"
                    raise ValueError(f"env must give {where} of its own {part}, got {leaf!r} in {self.env}")
        reward = result[1]
        if np.shape(reward) or not isinstance(reward, float | int | np.number | np.bool_):
            raise ValueError(f"env must give rewards that are numbers, got {reward!r} in {self.env}")

    def _make_env(self) -> gym.Env:
        # steps are counted outside, and checks on every step would cost more than most environments
        try:
            env = gym.make(self.env, max_episode_steps=-1, disable_env_checker=True, **self.env_kwargs)
        except (AttributeError, ImportError) as error:
            raise ValueError(f"env {self.env} cannot be made: {error}") from error
        space = env.observation_space
        parts = _parts(space, space)
        for part in parts.values():
            if not isinstance(part, _SPACES):
                raise ValueError(f"env must have observations of {_THESE} parts, got {space} in {self.env}")
            if 0 in part.shape or (isinstance(part, gym.spaces.MultiDiscrete) and len(part.shape) > 1):
                raise ValueError(f"env must have observations of lists of choices and of numbers, got {part} in {self.env}")
        if parts.keys() == {""} or (isinstance(space, gym.spaces.Dict) and parts.keys() == space.keys()):
            return env
        return gym.wrappers.TransformObservation(env, lambda seen: _parts(seen, space), gym.spaces.Dict(parts))

    @cached_property
    def _constants(self) -> Constants:
        """What the closed-form dynamics take where tasks say nothing."""
        return {**self._known.constants, **self._known.options, **self._spec.kwargs, **self.env_kwargs}

    @cached_property
    def _known(self) -> BatchedDynamics | None:
        """The closed-form dynamics, if they understand every parameter and argument."""
        known = BATCHED.get(self._spec.entry_point)
        if known is None or self._spec.additional_wrappers or not self.ranges.keys() <= known.constants.keys():
            return None
        understood = known.constants.keys() | known.options.keys()
        return known if {**self._spec.kwargs, **self.env_kwargs}.keys() <= understood else None

    @property
    def _dynamics(self) -> BatchedDynamics | None:
        return self._known if self.batched else None

    @property
    def label(self) -> str:
        """The id, and the environment that it is made of."""
        return f"{self.env_id} of {self.env}"

    @property
    def kwargs(self) -> dict[str, Any]:
        """The parameters as JSON-compatible values, without `batched`."""
        return {name: value for name, value in super().kwargs.items() if name != "batched"}

    @property
    def observation_space(self) -> gym.Space:
        """The environment's."""
        return self._spaces[0]

    @property
    def action_space(self) -> gym.Space:
        """The environment's."""
        return self._spaces[1]

    @property
    def episodes_per_trial(self) -> int:
        """`num_episodes`."""
        return self.num_episodes

    @property
    def max_episode_steps(self) -> int:
        """`num_steps`, or as registered."""
        return self._spec.max_episode_steps if self.num_steps is None else self.num_steps

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Parameters `[N]` each."""
        if not self.ranges:
            return {"only_task": np.zeros(num_tasks, np.int64)}
        if split == "ood":
            return {name: _draw_outside(*self.ranges[name], *self._outer[name], num_tasks, rng) for name in self.ranges}
        return {name: rng.uniform(low, high, num_tasks) for name, (low, high) in self.ranges.items()}

    def held_out(self, params: Arrays) -> np.ndarray | None:
        """By the parameters' bits; without ranges there is nothing to hold out."""
        return super().held_out(params) if self.ranges else None

    def make_state(self, num_slots: int) -> Arrays:
        """Closed form: the physical state and each slot's own constants. Else one environment per slot."""
        if self._dynamics:
            constants = {name: np.zeros(num_slots) for name in self.ranges}
            return {"physics": np.zeros((num_slots, self._dynamics.state_size)), **constants}
        envs = np.empty(num_slots, object)
        envs[:] = [self._make_env() for _ in range(num_slots)]
        return {"envs": envs, "observations": np.empty(num_slots, object), "truncated": np.zeros(num_slots, bool)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Set the parameters and reset, with a seed from each slot's stream."""
        slots = np.arange(len(streams.keys))[rows]
        seeds = (streams.uniform(rows=rows) * 2**31).astype(np.int64).tolist()
        if self._dynamics:
            for name in self.ranges:
                state[name][rows] = tasks[name][rows]
            for slot, seed in zip(slots, seeds, strict=True):
                state["physics"][slot] = self._dynamics.initial(np.random.Generator(np.random.PCG64(seed)))
            return
        for slot, seed in zip(slots, seeds, strict=True):
            env = state["envs"][slot]
            set_parameters(env.unwrapped, {name: float(tasks[name][slot]) for name in self.ranges})
            state["observations"][slot], _ = env.reset(seed=seed)

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """One step of the environment, or of its closed form."""
        actions = actions.astype(self.action_space.dtype, copy=False)
        if self._dynamics:
            own = {name: state[name] for name in self.ranges}
            return self._dynamics.step(state["physics"], actions, {**self._constants, **own})
        observations, truncated = state["observations"], state["truncated"]
        rewards, terminated = np.empty(len(actions)), np.empty(len(actions), bool)
        for slot, env in enumerate(state["envs"]):
            observations[slot], rewards[slot], terminated[slot], truncated[slot], _ = env.step(actions[slot])
        return rewards, terminated

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray | Arrays:
        """The environment's observations `[B, ...]`."""
        if self._dynamics:
            return self._dynamics.observe(state["physics"])
        out = create_empty_array(self.observation_space, len(state["envs"]), fn=np.empty)
        return concatenate(self.observation_space, state["observations"], out)

    def close(self, state: Arrays) -> None:
        """Close the environments."""
        for env in state.get("envs", ()):
            env.close()

    def ceiling(self, tasks: TaskSet) -> np.ndarray | None:
        """CartPole: the pole stays up until the step limit. None elsewhere."""
        best = self._known and self._known.highest_return(self.max_episode_steps, self._constants)
        return None if best is None else np.full(len(tasks), best)


def _parts(values: Any, space: gym.Space, name: str = "") -> dict[str, Any]:
    """The innermost parts of `values` of such a space, or of the space itself, by the path to each."""
    if not isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        return {name: values}
    inner = space.items() if isinstance(space, gym.spaces.Dict) else enumerate(space)
    paths = ((f"{name}/{key}" if name else str(key), key, part) for key, part in inner)
    return {place: leaf for path, key, part in paths for place, leaf in _parts(values[key], part, path).items()}


def _in_range(leaf: Any, part: gym.Space) -> bool:
    """Whether choices are among those that there are; numbers may be any."""
    if isinstance(part, gym.spaces.Box | gym.spaces.MultiBinary):
        return True
    count = part.n if isinstance(part, gym.spaces.Discrete) else part.nvec
    return bool(np.all((leaf >= part.start) & (leaf < part.start + count)))


def _checked(argument: str, name: str, pair: Any) -> tuple[float, float]:
    """`pair` as two floats; lists come from YAML and JSON."""
    try:
        low, high = (float(value) for value in pair)
    except (TypeError, ValueError):
        low = high = np.nan
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"{argument}[{name!r}] must be two finite numbers, the lower first, got {pair}")
    return low, high


def _extrapolate(low: float, high: float) -> tuple[float, float]:
    """The default out-of-distribution range, as documented at `ContextFamily.ood_ranges`."""
    reach = (high - low) / 2
    lower = low - reach if low < 0 else max(low - reach, low / 2)
    upper = high + reach if high > 0 else min(high + reach, high / 2)
    return lower, upper


def _draw_outside(low: float, high: float, lower: float, upper: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform on [lower, low) and [high, upper), or on [low, high) where those are empty."""
    below, above = low - lower, upper - high
    if below + above == 0:
        return rng.uniform(low, high, count)
    u = rng.uniform(0, below + above, count)
    return np.where(u < below, lower + u, high + (u - below))

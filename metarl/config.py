"""What a training is made of, as one checked value: `TrainingConfig`, read from YAML, Python or the command line."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_type_hints

import gymnasium as gym
import torch

from metarl.algorithms.base import MetaAlgorithm
from metarl.algorithms.maml import MAMLPPO
from metarl.algorithms.rl2 import RL2PPO
from metarl.plain import check_known, convert, from_plain, shallow
from metarl.run_folder import read_yaml
from metarl_envs import TaskFamily, make_family
from metarl_envs.family import check_at_least

ALGORITHMS: dict[str, type[MetaAlgorithm]] = {"rl2": RL2PPO, "maml": MAMLPPO}
"""What `TrainingConfig.algorithm` may name."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a run is evaluated."""

    split: str = "test"
    """Split of the family that tasks are drawn from: train, test and, where the family has one, ood."""
    num_tasks: int | None = None
    """Number of tasks, one trial in each; by default 20,000, or fewer where trials are long."""
    episodes: int | None = None
    """Episodes per trial; as many as the agent was trained with by default."""
    seed: int = 0
    """Seed of the tasks, the environments and the players: runs evaluated with equal ones can be compared."""
    deterministic: bool = False
    """Take the likeliest action instead of sampling."""
    references: bool = True
    """Let the family's classical players play the same tasks for comparison."""
    reference_tasks: int | None = None
    """Let classical players play the first so many tasks only, where they are slow."""

    def __post_init__(self):
        for name in ("num_tasks", "episodes", "reference_tasks"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides how a training goes.

    Nested values may be plain, as read from YAML: `hyperparameters={"gamma": 0.9}`. All values are checked, and filled
    up with the family's and the algorithm's defaults, when a config is made.
    """

    algorithm: str = "rl2"
    """Name of the algorithm."""
    env: str
    """Gymnasium id of a task family (see `metarl envs`), or of any environment, which is then a family of one task."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the family."""
    policy: str | None = None
    """Name of the policy, of its memory core for rl2 (MlpPolicy has no memory); for maml MlpPolicy. By default the first."""
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the policy; rl2: core_size, core_kwargs, encoder, bypass, skip, heads; maml: hidden, log_std_init."""
    total_timesteps: int = 1_000_000
    """Environment steps to train for, over all environments; whole iterations are played."""
    seed: int = 0
    """Seed of everything random: equal configs give equal agents."""
    device: str = "cpu"
    """PyTorch device of the policy."""
    threads: int = 1
    """CPU threads of PyTorch. Other numbers may change results in the last digits."""
    checkpoint_every: int = 200_000
    """Environment steps between checkpoints; each iteration saves one at most."""
    keep: int = 3
    """Number of checkpoints kept, the latest ones."""
    hyperparameters: Any = None
    """Hyperparameters of the algorithm."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the run is evaluated unless told otherwise."""

    def __post_init__(self):
        for name, hint in get_type_hints(TrainingConfig).items():
            object.__setattr__(self, name, convert(getattr(self, name), hint, name))
        check_known(f"algorithm {self.algorithm!r}", self.algorithm, ALGORITHMS)
        policies = self.algorithm_class.policy_aliases
        object.__setattr__(self, "policy", self.policy or next(iter(policies)))
        check_known(f"policy {self.policy!r}", self.policy, policies)
        for name in ("total_timesteps", "threads", "checkpoint_every", "keep"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be cpu, cuda or another of PyTorch's, got {self.device!r}") from error
        if not isinstance(self.hyperparameters, self.algorithm_class.config_class):
            hyperparameters = from_plain(self.algorithm_class.config_class, self.hyperparameters or {}, "hyperparameters.")
            object.__setattr__(self, "hyperparameters", hyperparameters)
        object.__setattr__(
            self, "env_kwargs", {f.name: getattr(self.family, f.name) for f in dataclasses.fields(self.family)}
        )

    @property
    def algorithm_class(self) -> type[MetaAlgorithm]:
        """What `algorithm` names."""
        return ALGORITHMS[self.algorithm]

    @cached_property
    def family(self) -> TaskFamily:
        """The task family that `env` and `env_kwargs` describe."""
        return checked_family(self.env, self.env_kwargs)

    @classmethod
    def from_yaml(cls, path: str | Path, env: str | None = None) -> Self:
        """Read a config from a YAML file, running no code. With another `env`, the file's `env_kwargs` do not count.

        Raises:
            ValueError: in one line that names the file, at what is not YAML, an unknown key, or a wrong value.
        """
        values = read_yaml(path)
        if env is not None and env != values.get("env"):
            values = {**values, "env": env, "env_kwargs": {}}
        try:
            return from_plain(cls, values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def plain(self) -> dict[str, Any]:
        """The config as nested dictionaries of plain values, with the defaults of family, algorithm and evaluation."""
        return dataclasses.asdict(self)

    def resolved(self) -> Self:
        """The same with the values that None stands for, and with the policy's defaults.

        What hangs on the length of the family's trials stays open: they may be longer or shorter when evaluated.
        """
        return dataclasses.replace(
            self,
            policy_kwargs=self.make_model().policy.kwargs,
            hyperparameters=self.hyperparameters.resolved(),
        )

    def make_model(self) -> MetaAlgorithm:
        """The untrained agent."""
        try:
            return self.algorithm_class(
                self.policy,
                self.family,
                policy_kwargs=dict(self.policy_kwargs),
                config=self.hyperparameters,
                seed=self.seed,
                device=self.device,
            )
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"policy_kwargs do not fit {self.policy}: {error}") from error


def checked_family(env: str, env_kwargs: Mapping[str, Any] | None = None) -> TaskFamily:
    """The family `env` with `env_kwargs` over its defaults, their names and types checked.

    Raises:
        ValueError: in one line, at an unknown environment (naming a near one) or parameter, or a wrong value.
    """
    env_kwargs = dict(env_kwargs or {})
    try:
        family = make_family(env)
    except (gym.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"env must be a Gymnasium id (see `metarl envs`), got {env!r}: {error}") from error
    except ValueError:  # families that cannot do without a parameter
        if not env_kwargs:
            raise
        family = _fitting(env, lambda: make_family(env, **env_kwargs))
    return _fitting(env, lambda: from_plain(type(family), {**shallow(family), **env_kwargs}, "env_kwargs."))


def _fitting(env: str, make: Callable[[], TaskFamily]) -> TaskFamily:
    try:
        return make()
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"env_kwargs do not fit {env}: {error}") from error

"""What a training is made of, as one checked value, read from YAML, Python or the command line.

`TrainingConfig` for agents on a task family, `OptimizerConfig` for update rules; what they share is `RunConfig`.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import gymnasium as gym
import numpy as np
import torch

import metarl.fewshot.config  # noqa: F401 - its kind of config puts itself into CONFIGS
from metarl.algorithms.base import MetaAlgorithm
from metarl.algorithms.learned_optimizer import OptimizerTraining, OptimizerTrainingConfig, make_problem, make_rule
from metarl.algorithms.maml import MAMLPPO
from metarl.algorithms.rl2 import RL2PPO
from metarl.plain import check_known, from_plain, shallow
from metarl.problems import PROBLEMS, Problem, tune
from metarl.problems.tuning import OPTIONS
from metarl.run_config import CONFIGS, RunConfig, check_available, check_device, from_values
from metarl.updates import HAND_MADE, RULES
from metarl.yaml_text import read_yaml
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
class TrainingConfig(RunConfig):
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
    device: str = "cpu"
    """PyTorch device of the policy."""
    hyperparameters: Any = None
    """Hyperparameters of the algorithm."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the run is evaluated unless told otherwise."""

    algorithms: ClassVar = tuple(ALGORITHMS)

    def __post_init__(self):
        super().__post_init__()
        check_known(f"algorithm {self.algorithm!r}", self.algorithm, ALGORITHMS)
        policies = self.algorithm_class.policy_aliases
        object.__setattr__(self, "policy", self.policy or next(iter(policies)))
        check_known(f"policy {self.policy!r}", self.policy, policies)
        check_device(self.device)
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
        return from_values(cls, values, path)

    def resolved(self) -> Self:
        """The same with the values that None stands for, and with the policy's defaults.

        What hangs on the length of the family's trials stays open: they may be longer or shorter when evaluated.
        """
        return dataclasses.replace(
            self,
            policy_kwargs={**self.policy_kwargs, **self.make_model().policy.kwargs},
            hyperparameters=self.hyperparameters.resolved(),
        )

    def make_model(self) -> MetaAlgorithm:
        """The untrained agent."""
        check_available(self.device)
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

    def restore(self, state: dict[str, Any]) -> MetaAlgorithm:
        """As in the base class."""
        return self.algorithm_class.from_state(state, self.family, config=self.hyperparameters, device=self.device)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(RunConfig):
    """Everything that decides how the training of an update rule goes."""

    algorithm: Literal["learned-optimizer"] = "learned-optimizer"
    """Always this."""
    family: str = "quadratics"
    """What the rule optimises: quadratics, digits, or the Gymnasium id of a task family, whose agents PPO trains."""
    family_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the task family, with an id."""
    problem_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the problem: kind and dimensions of quadratics, hidden_sizes of digits, slots and epochs of PPO, ..."""
    rule: str = "mlp"
    """The rule to train: mlp, lstm, optim4rl, lstm_meta_learner."""
    rule_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the rule, such as hidden and base."""
    rate: float | None = None
    """The rule's step size; by default the best one of its base (Adam where it names none) on training problems."""
    total_timesteps: int = 10_000_000
    """Inner steps to train for, over all inner trainings."""
    checkpoint_every: int = 500_000
    """Inner steps between checkpoints; each iteration saves one at most."""
    hyperparameters: OptimizerTrainingConfig = field(default_factory=OptimizerTrainingConfig)
    """Hyperparameters of the training."""

    algorithms: ClassVar = ("learned-optimizer",)

    def __post_init__(self):
        super().__post_init__()
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be above 0, got {self.rate}")
        with torch.random.fork_rng(devices=[]):  # what is wrong with the rule is told at once
            make_rule(self.rule, self.rate or 1.0, self.rule_kwargs, self.problem)
        self.hyperparameters.resolved_for(self.problem)

    @cached_property
    def problem(self) -> Problem:
        """What the rule is to optimise."""
        try:
            return make_problem(self.family, self.family_kwargs, self.problem_kwargs)
        except (gym.error.Error, ModuleNotFoundError, TypeError) as error:
            raise ValueError(
                f"family must be {', '.join(PROBLEMS)} or a Gymnasium id, got {self.family!r}: {error}"
            ) from error

    def resolved(self) -> Self:
        """The same with the values that None stands for. Tuning the rate may take a minute."""
        rate, rule_kwargs = self.rate, dict(self.rule_kwargs)
        if rate is None:
            base = rule_kwargs.get("base") or RULES[self.rule].starts_as
            check_known(f"base {base!r}", base, HAND_MADE)
            tuning = self.problem.tuning
            grid = tuning.get("options", OPTIONS).get(base, {})
            grid = {name: [rule_kwargs[name]] if name in rule_kwargs else values for name, values in grid.items()}
            best = tune(self.problem, [base], np.random.default_rng(self.seed), **{**tuning, "options": {base: grid}})[base]
            taken = inspect.signature(RULES[self.rule]).parameters
            rate, rule_kwargs = best.rate, {**{n: v for n, v in best.options.items() if n in taken}, **rule_kwargs}
        hyperparameters = self.hyperparameters.resolved_for(self.problem)
        return dataclasses.replace(self, rate=rate, rule_kwargs=rule_kwargs, hyperparameters=hyperparameters)

    def make_model(self) -> OptimizerTraining:
        """The training before its first iteration."""
        names = ("family", "rule", "rate", "family_kwargs", "problem_kwargs", "rule_kwargs", "seed")
        return OptimizerTraining(**{name: getattr(self, name) for name in names}, config=self.hyperparameters)

    def restore(self, state: dict[str, Any]) -> OptimizerTraining:
        """As in the base class."""
        return OptimizerTraining.from_state(state)


def read_config(path: str | Path) -> RunConfig:
    """The config in a YAML file, of the kind that its algorithm has.

    Raises:
        ValueError: in one line that names the file, at what is not YAML, an unknown key, or a wrong value.
    """
    algorithm = read_yaml(path).get("algorithm", "rl2")
    known = isinstance(algorithm, str) and algorithm in CONFIGS
    return (CONFIGS[algorithm] if known else TrainingConfig).from_yaml(path)


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

"""Training update rules on families of inner trainings: learned optimizers.

Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent"; Metz et al. 2020, "Tasks, stability,
architecture, and compute". What the problems are is in `metarl.problems` and `metarl.algorithms.training_problem`, how
gradients for the rule are estimated in `metarl.algorithms.estimators`; here they meet, with Adam for the rule's weights.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

import torch

from metarl.algorithms.estimators import PES, STREAMS, TBPTT, Estimator, Objective
from metarl.algorithms.training_problem import PPOProblem
from metarl.checkpoint import CheckpointError
from metarl.outer_loop import OuterLoop
from metarl.plain import check_known, configured, convert, from_plain
from metarl.problems import PROBLEMS, Problem
from metarl.schedules import geometric, set_learning_rate
from metarl.seeding import spawn
from metarl.updates import HAND_MADE, RULES, Coordinatewise
from metarl.updates.dormancy import reads_dormancy
from metarl.updates.weights import SavedRule, save_rule
from metarl_envs import make_family

LEARNED = [n for n, rule in RULES.items() if issubclass(rule, Coordinatewise) and n not in HAND_MADE]
"""Names of the rules that can be trained: those that learn, and fit networks of any shape."""
EVOLVED = ("rank", "deviation")
"""Objectives that evolution strategies alone can have."""


@dataclass(frozen=True)
class OptimizerTrainingConfig:
    """How an update rule is trained."""

    estimator: Literal["tbptt", "pes"] | None = None
    """Truncated back-propagation, or persistent evolution strategies; by default the first where losses have derivatives."""
    num_problems: int = 128
    """Inner trainings side by side."""
    window: int = 20
    """Inner steps between two updates of the rule."""
    shortest: int | None = None
    """Steps of the shortest inner training; they are drawn up to the longest, by default all are as long as evaluated."""
    longest: int | None = None
    """Steps of the longest inner training; by default as long as evaluated."""
    objective: Objective | None = None
    """What is made small: loss, relative, log, deviation, rank (these with pes only); by default relative or deviation."""
    first_order: bool = True
    """Take the gradients given to the rule as constants; otherwise tbptt counts second derivatives too, and costs more."""
    max_row_norm: float | None = None
    """Bound on the norm of the gradient of every single inner training (tbptt); none by default."""
    sigma: float = 0.02
    """Standard deviation of the perturbations of pes."""
    learning_rate: float = 1e-3
    """Adam's step size for the rule's weights at the start."""
    final_learning_rate: float | None = None
    """Adam's step size at the end, a hundredth of the first by default; it moves geometrically between the two."""
    max_grad_norm: float = 1.0
    """Bound on the norm of the estimated gradient."""

    def __post_init__(self):
        for name, hint in get_type_hints(OptimizerTrainingConfig).items():
            object.__setattr__(self, name, convert(getattr(self, name), hint, name))
        for name in ("num_problems", "window", "shortest", "longest"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("sigma", "learning_rate", "final_learning_rate", "max_grad_norm", "max_row_norm"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if self.estimator == "pes" and self.num_problems % 2:
            raise ValueError(f"num_problems must be even with pes, whose problems come in pairs, got {self.num_problems}")
        if self.estimator == "tbptt" and self.objective in EVOLVED:
            raise ValueError(f"objective must be loss, relative or log with tbptt, got {self.objective}")

    def resolved_for(self, problem: Problem) -> Self:
        """The same with the values that None stands for on `problem`."""
        if self.estimator == "tbptt" and not problem.differentiable:
            raise ValueError(f"estimator must be pes for {problem.name}, whose returns have no derivatives, got tbptt")
        if self.objective in ("relative", "log") and not problem.differentiable:
            raise ValueError(f"objective must be loss, deviation or rank for returns, of either sign, got {self.objective}")
        estimator = self.estimator or ("tbptt" if problem.differentiable else "pes")
        if estimator == "pes" and not (self.first_order and self.max_row_norm is None):
            raise ValueError("first_order and max_row_norm are for tbptt, and must be left out with pes")
        # PES sees losses before each step only: with one more, what the last step does counts too
        longest = self.longest or max(problem.horizon + (estimator == "pes"), self.shortest or 0)
        lengths = {"shortest": self.shortest or longest, "longest": longest}
        if lengths["shortest"] > longest:
            raise ValueError(f"shortest must be at most longest ({longest}), got {self.shortest}")
        objective = self.objective or ("relative" if problem.differentiable else "deviation")
        rate = self.final_learning_rate or self.learning_rate / 100
        return dataclasses.replace(self, estimator=estimator, objective=objective, final_learning_rate=rate, **lengths)

    def make_estimator(self) -> Estimator:
        """The estimator that a resolved config describes."""
        lengths = (self.shortest, self.longest)
        if self.estimator == "pes":
            return PES(self.window, self.objective, lengths, self.sigma)
        return TBPTT(self.window, self.objective, lengths, self.first_order, self.max_row_norm)


class OptimizerTraining(OuterLoop):
    """Trains an update rule; it counts inner steps, over all inner trainings.

    Args:
        family: name in `metarl.problems.PROBLEMS`, or the Gymnasium id of a task family, whose agents PPO trains then.
        rule: name in `metarl.updates.RULES`.
        rate: the rule's step size, which stays as it is.
        family_kwargs: parameters of the task family, with an id.
        problem_kwargs: parameters of the problem, such as `hidden_sizes`.
        rule_kwargs: parameters of the rule.
        config: hyperparameters; single ones may be given by name instead or on top.
        tensorboard_log, verbose, seed: as in Stable-Baselines3.
    """

    unit = "inner steps"
    config_class = OptimizerTrainingConfig

    def __init__(
        self,
        family: str,
        rule: str = "mlp",
        rate: float = 1e-2,
        *,
        family_kwargs: Mapping[str, Any] | None = None,
        problem_kwargs: Mapping[str, Any] | None = None,
        rule_kwargs: Mapping[str, Any] | None = None,
        config: OptimizerTrainingConfig | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int = 0,
        **hyperparameters: Any,
    ):
        super().__init__(tensorboard_log, verbose)
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be above 0, got {rate}")
        rule_kwargs = as_json("rule_kwargs", rule_kwargs)
        self.seed = seed
        self.problem = make_problem(family, family_kwargs, problem_kwargs)
        self.made_of = {
            "family": family,
            "rule": rule,
            "rate": float(rate),
            "family_kwargs": dict(family_kwargs or {}),
            "problem_kwargs": dict(problem_kwargs or {}),
            "rule_kwargs": dict(rule_kwargs or {}),
        }
        self.config = configured(OptimizerTrainingConfig, config, hyperparameters).resolved_for(self.problem)
        torch.manual_seed(seed)
        self.rule = make_rule(rule, rate, rule_kwargs, self.problem)
        self.optimizer = torch.optim.Adam(self.rule.parameters(), lr=self.config.learning_rate)
        self.estimator = self.config.make_estimator()
        self.estimator.start(self.problem, self.rule, self.config.num_problems, spawn(seed, STREAMS))

    def _iterate(self) -> dict[str, float]:
        config = self.config
        rate = geometric(config.learning_rate, config.final_learning_rate, self.progress)
        set_learning_rate(self.optimizer, rate)
        gradients, metrics = self.estimator.step()
        for name, parameter in self.rule.named_parameters():
            parameter.grad = gradients[name]
        norm = torch.nn.utils.clip_grad_norm_(self.rule.parameters(), config.max_grad_norm)
        if norm.isfinite():  # otherwise nothing is known about where to go
            self.optimizer.step()
        self.num_timesteps += config.num_problems * config.window
        return {
            "train/learning_rate": rate,
            "train/grad_norm": float(norm),
            **{f"inner/{name}": value for name, value in metrics.items()},
        }

    def saved_rule(self) -> SavedRule:
        """The rule as it is, apart from the parameters of this problem."""
        made = self.made_of
        weights = {name: value.clone() for name, value in self.rule.state_dict().items()}
        return SavedRule(made["rule"], made["rule_kwargs"], made["rate"], weights)

    def export(self, path: str | Path) -> Path:
        """Write the rule as a file for `LearnedOptimizer(weights=...)`; it ends in `.safetensors`."""
        return save_rule(path, self.rule, self.made_of["rule"], self.made_of["rule_kwargs"])

    # -- saving and loading --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As in the base class."""
        return {
            "algorithm": type(self).__name__,
            **self.made_of,
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "total_timesteps": self._total_timesteps,
            "weights": {name: value.clone() for name, value in self.rule.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "estimator": self.estimator.state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """As in the base class."""
        try:
            self.rule.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise CheckpointError(f"checkpoint must be of this rule and version of metarl: {error}") from error
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.estimator.set_state(state["estimator"])
        self.num_timesteps, self._total_timesteps = state["num_timesteps"], state["total_timesteps"]

    @classmethod
    def from_state(cls, state: dict[str, Any], **options: Any) -> Self:
        """One that goes on from `state()`; `options` are further arguments of the constructor."""
        if state.get("algorithm") != cls.__name__:
            raise CheckpointError(f"checkpoint must be of {cls.__name__}, got {state.get('algorithm')!r}")
        names = ("family", "rule", "rate", "family_kwargs", "problem_kwargs", "rule_kwargs", "seed")
        config = from_plain(OptimizerTrainingConfig, state["config"], "config.")
        model = cls(**{name: state[name] for name in names}, config=config, **options)
        model.set_state(state)
        return model


def make_problem(
    family: str, family_kwargs: Mapping[str, Any] | None = None, problem_kwargs: Mapping[str, Any] | None = None
) -> Problem:
    """A problem by name, or PPO on a task family by the family's id.

    Raises:
        ValueError: at an unknown name or parameter, or a wrong value.
    """
    if family in PROBLEMS:
        if family_kwargs:
            raise ValueError(f"family_kwargs go with an environment's id, but family is {family}")
        return from_plain(PROBLEMS[family], problem_kwargs or {}, "problem_kwargs.")
    if "/" not in family and ":" not in family and "-v" not in family:
        check_known(f"family {family!r} is no Gymnasium id and", family, PROBLEMS)
    tasks = make_family(family, **(family_kwargs or {}))
    return from_plain(PPOProblem, {**(problem_kwargs or {}), "family": tasks}, "problem_kwargs.")


def as_json(name: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """`options` as JSON gives them back: what a rule's file can hold."""
    try:
        return json.loads(json.dumps(dict(options or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be what JSON can hold: {error}") from error


def make_rule(name: str, rate: float, options: Mapping[str, Any] | None, problem: Problem) -> Coordinatewise:
    """The rule `name` for `problem`.

    Raises:
        ValueError: at an unknown rule or option.
    """
    check_known(f"rule {name!r}", name, LEARNED)
    try:
        rule = RULES[name](problem.template(), rate, **(options or {}))
    except TypeError as error:
        raise ValueError(f"rule_kwargs do not fit {name}: {error}") from error
    if isinstance(problem, PPOProblem) and problem.dormancy and not reads_dormancy(rule):
        raise ValueError(f"problem_kwargs.dormancy must be false with {name}, which does not read it, got true")
    return rule

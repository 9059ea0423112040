"""Settings of MAML-PPO and its relatives."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Self, get_type_hints

from metarl.algorithms.meta_gradient import Baseline, InnerObjective, Settings
from metarl.batched import TaskBatching
from metarl.plain import convert
from metarl.schedules import final_rate
from metarl.updates import RULES


@dataclass(frozen=True)
class MAMLConfig:
    """Hyperparameters of MAML-PPO."""

    num_tasks: int = 20
    """Tasks per iteration."""
    episodes_per_update: int = 20
    """Episodes in a task from which each gradient step is taken."""
    inner_steps: int = 1
    """Gradient steps within a trial during training; afterwards there may be any number, for better or worse."""
    update_rule: str = "sgd"
    """How gradients change parameters: sgd, learned_sgd (a learned rate), meta_sgd (one per parameter), lstm_meta_learner,
    learned (an MLP on top of Adam), lstm, optim4rl, a hand-made rule such as adam, or your own."""
    inner_rate: float = 0.1
    """Step size of the update rule, or where it starts; rules that start from Adam move every number by about this much."""
    adapted: Literal["all", "head", "body"] = "all"
    """Which parameters adapt: all, those of the action layer (ANIL), or all but those."""
    second_order: bool = True
    """Differentiate through the inner gradients (MAML), or take them as constants (FOMAML)."""
    inner_objective: InnerObjective = "likelihood_ratio"
    """Surrogate of the inner step: likelihood_ratio (low-variance curvature), dice (unbiased), or log_prob (plain)."""
    every_step: bool = False
    """Let the outer loss be the mean of those after each inner step (MAML++), in place of that after the last."""
    outer_update: Literal["ppo", "reptile"] = "ppo"
    """PPO's loss after adaptation, or a step towards the adapted parameters (Reptile)."""
    train_split: str = "train"
    """Split of the family that training tasks come from."""
    learning_rate: float = 3e-3
    """Adam's step size of the outer loop at the start."""
    final_learning_rate: float | None = None
    """Adam's step size at the end, a tenth of the first by default; it moves geometrically between the two."""
    gamma: float = 0.99
    """Discount per step."""
    gae_lambda: float = 0.9
    """Weight of longer advantage estimates."""
    baseline: Baseline = "linear"
    """What advantages are measured from: linear (fitted per task), network (a value network that adapts too), or none."""
    epochs: int = 5
    """Outer updates per iteration, each of which adapts anew."""
    clip_range: float = 0.2
    """PPO's bound on the change of an action's probability ratio after adaptation."""
    kl_coef: float = 0.0
    """Weight of the divergence from the policies that collected the inner steps' episodes (ProMP)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus after adaptation."""
    value_coef: float = 0.5
    """Weight of the value loss, in normalised units, with the network baseline."""
    max_grad_norm: float = 1.0
    """Bound on the outer gradient's norm."""
    return_rate: float = 0.1
    """Rate at which the running mean and deviation of returns follow an iteration's, with the network baseline."""
    task_batching: TaskBatching = "auto"
    """How tasks run through layers that are not linear: batched, loop, or (auto) a loop for convolutions on a CPU."""
    compile: bool = False
    """Compile the outer update with torch.compile: the same numbers, faster, after about a minute of compiling."""

    def __post_init__(self):
        for name, hint in get_type_hints(MAMLConfig).items():
            convert(getattr(self, name), hint, name)
        for name in ("num_tasks", "episodes_per_update", "inner_steps", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda", "return_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "inner_rate", "clip_range", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.update_rule not in RULES:
            raise ValueError(f"update_rule must be one of {', '.join(RULES)}, got {self.update_rule!r}")
        if self.final_learning_rate is not None and not 0 < self.final_learning_rate < math.inf:
            raise ValueError(f"final_learning_rate must be above 0, got {self.final_learning_rate}")
        for name in ("kl_coef", "entropy_coef", "value_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.outer_update == "reptile" and (self.kl_coef or self.entropy_coef or self.every_step):
            raise ValueError("kl_coef, entropy_coef and every_step must be left out with outer_update reptile")
        if self.outer_update == "reptile" and self.update_rule != "sgd":
            raise ValueError(
                f"update_rule must be sgd with outer_update reptile, which trains no rule, got {self.update_rule}"
            )

    def resolved(self) -> Self:
        """The same with the value that None stands for."""
        return dataclasses.replace(self, final_learning_rate=self.final_learning_rate or final_rate(self.learning_rate))

    @property
    def num_envs(self) -> int:
        """Episodes played side by side."""
        return self.num_tasks * self.episodes_per_update

    @property
    def settings(self) -> Settings:
        """What the mathematics needs to know."""
        return Settings(**{name: getattr(self, name) for name in Settings._fields if name != "normalise_advantages"})

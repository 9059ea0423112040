"""Problems that update rules are trained and measured on, and hand-made rules tuned to them."""

from metarl.problems.base import Instances, Problem, Run, instances_hash, restart, unroll
from metarl.problems.classifiers import DigitClassifiers
from metarl.problems.quadratics import Quadratics
from metarl.problems.tuning import Tuned, tune

PROBLEMS: dict[str, type[Problem]] = {"quadratics": Quadratics, "digits": DigitClassifiers}
"""Problems by name."""

__all__ = [
    "PROBLEMS",
    "DigitClassifiers",
    "Instances",
    "Problem",
    "Quadratics",
    "Run",
    "Tuned",
    "instances_hash",
    "restart",
    "tune",
    "unroll",
]

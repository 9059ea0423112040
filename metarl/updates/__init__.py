"""Update rules: how gradients become parameter changes, within a trial."""

from metarl.updates.base import UpdateRule
from metarl.updates.inner_loop import Diverged, check_adapted, inner_step
from metarl.updates.meta_sgd import MetaSGD
from metarl.updates.sgd import SGD, LearnedSGD

RULES: dict[str, type[UpdateRule]] = {"sgd": SGD, "learned_sgd": LearnedSGD, "meta_sgd": MetaSGD}
"""Rules by name; each is made with (parameters to change, rate). One of your own is put in here: `RULES["mine"] = Mine`."""

__all__ = ["RULES", "SGD", "Diverged", "LearnedSGD", "MetaSGD", "UpdateRule", "check_adapted", "inner_step"]

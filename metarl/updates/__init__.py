"""Update rules: how gradients become parameter changes, within a trial."""

from metarl.updates.base import Coordinatewise, UpdateRule
from metarl.updates.hand_made import Adadelta, Adagrad, Adam, Momentum, Nesterov, RMSprop
from metarl.updates.inner_loop import Diverged, check_adapted, inner_step
from metarl.updates.lstm_meta_learner import LSTMMetaLearner
from metarl.updates.lstm_optimizer import LSTMOptimizer
from metarl.updates.meta_sgd import MetaSGD
from metarl.updates.mlp import LearnedMLP
from metarl.updates.optim4rl import Optim4RL
from metarl.updates.sgd import SGD, LearnedSGD

RULES: dict[str, type[UpdateRule]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "rmsprop": RMSprop,
    "adam": Adam,
    "learned_sgd": LearnedSGD,
    "meta_sgd": MetaSGD,
    "mlp": LearnedMLP,
    "learned": LearnedMLP,  # the same
    "lstm": LSTMOptimizer,
    "lstm_meta_learner": LSTMMetaLearner,
    "optim4rl": Optim4RL,
}
"""Rules by name; each is made with (parameters to change, rate). One of your own is put in here: `RULES["mine"] = Mine`."""

HAND_MADE = ("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam")
"""Names of the rules that have nothing to learn."""

__all__ = [
    "HAND_MADE",
    "RULES",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Coordinatewise",
    "Diverged",
    "LSTMMetaLearner",
    "LSTMOptimizer",
    "LearnedMLP",
    "LearnedSGD",
    "MetaSGD",
    "Momentum",
    "Nesterov",
    "Optim4RL",
    "RMSprop",
    "UpdateRule",
    "check_adapted",
    "inner_step",
]

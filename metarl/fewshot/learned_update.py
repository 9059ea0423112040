"""Few-shot learning by learned update rules: the LSTM meta-learner, and the learned optimizers of `metarl.updates`.

Ravi & Larochelle 2017 ("Optimization as a model for few-shot learning"): the network's parameters are the cell state of an
LSTM that reads gradients and losses; its start is learned as MAML's. As in the paper, gradients are constants for the
meta-gradient (section 3.2). Departures: those of the rules, see their files; every step is on the whole support set.
"""

from typing import Any

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.gradient import GradientLearner


class LSTMMetaLearner(GradientLearner):
    """Parameters as the cell state of an LSTM, whose gates are learned.

    Arguments as in `GradientLearner`.
    """

    def __init__(self, spec: TaskSpec, **options: Any):
        defaults = {"update_rule": "lstm_meta_learner", "second_order": False, "steps": 5}
        super().__init__(spec, **{**defaults, **options})


class LearnedUpdate(GradientLearner):
    """A small network decides about every move, starting as gradient descent.

    Arguments as in `GradientLearner`.
    """

    def __init__(self, spec: TaskSpec, **options: Any):
        defaults = {"update_rule": "learned", "rule_kwargs": {"base": "sgd"}, "second_order": False, "steps": 5}
        super().__init__(spec, **{**defaults, **options})

"""MAML and its first-order form (Finn, Abbeel & Levine 2017), ANIL (Raghu et al. 2020), and Meta-SGD (Li et al. 2017).

MAML learns a starting point from which a few gradient steps on a support set do well on the queries:
`min_theta sum_T L_T(theta - rate grad L_T(theta))` (eq. 1). Derivatives flow through the inner gradients; the first-order
form (section 5.2) takes these for constants. ANIL adapts the last layer only. Meta-SGD learns a rate for every parameter.

Departure: batch normalisation takes each task's own statistics, see `metarl.fewshot.networks`; by default queries are
normalised by the support set's, where the paper is transductive.
"""

from typing import Any

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.gradient import GradientLearner
from metarl.fewshot.options import fixed


class MAML(GradientLearner):
    """A learned starting point.

    Arguments as in `GradientLearner`.
    """


class FOMAML(GradientLearner):
    """MAML without second derivatives.

    Arguments as in `GradientLearner`; `second_order` is False.
    """

    def __init__(self, spec: TaskSpec, **options: Any):
        super().__init__(spec, **fixed(options, FOMAML, second_order=False))


class ANIL(GradientLearner):
    """MAML that adapts the last layer only.

    Arguments as in `GradientLearner`; `head_only` is True.
    """

    def __init__(self, spec: TaskSpec, **options: Any):
        super().__init__(spec, **fixed(options, ANIL, head_only=True))


class MetaSGD(GradientLearner):
    """MAML with a learned rate for every parameter.

    Arguments as in `GradientLearner`; `update_rule` is "meta_sgd".
    """

    def __init__(self, spec: TaskSpec, **options: Any):
        super().__init__(spec, **fixed(options, MetaSGD, update_rule="meta_sgd"))

"""Prototypical Networks (Snell, Swersky & Zemel 2017).

Classes are the means of their support examples' features (eq. 1); a query's logits are minus its squared Euclidean
distances to them (eq. 2), which makes the classifier linear in the features (section 2.4).

Departure: batch normalisation takes each task's own statistics, see `metarl.fewshot.networks`.
"""

from typing import Any

import torch
from torch import Tensor

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import Stats, embedding


class PrototypicalNetwork(FewShotLearner):
    """Nearest class mean in a learned space.

    Args:
        spec: of the tasks.
        network: arguments of `metarl.fewshot.networks.embedding`.
    """

    kinds = ("classification",)
    any_ways = True

    def __init__(self, spec: TaskSpec, **network: Any):
        super().__init__(spec)
        self.network, _ = embedding(spec, **network)

    def condition(self, support_x: Tensor, support_y: Tensor) -> tuple[Tensor, Stats]:
        """Prototypes `[N, C, F]`, and what the support set was normalised by."""
        features, stats = self.network(support_x)
        return self.class_means(features, support_y), stats

    def answer(self, kept: tuple[Tensor, Stats], query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        prototypes, stats = kept
        features, _ = self.network(query_x, stats=None if transductive else stats)
        return -squared_distances(features, prototypes)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances `[N, Q, C]` of the rows of `x [N, Q, F]` to those of `y [N, C, F]`."""
    middle = y.mean(1, keepdim=True)  # far from 0, the difference of large numbers would be left
    x, y = x - middle, y - middle
    lengths = x.square().sum(-1)[..., None] + y.square().sum(-1)[:, None]
    return torch.baddbmm(lengths, x, y.mT, alpha=-2.0)

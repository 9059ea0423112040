"""Relation Networks (Sung et al. 2018, "Learning to compare: relation network for few-shot learning").

A class is the sum of its support examples' feature maps (section 3.2); a second network compares a query's maps with it,
the two concatenated, and gives their relation score in [0, 1] (eq. 1), a sigmoid. Scores are trained by squared error
towards 1 for the query's class and 0 for the others (eq. 2).

The relation module is the paper's: two blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 pooling, then fully
connected layers with 8 units and 1. Convolving concatenated maps is the sum of convolving each, so the first convolution
runs once for each query and each class, not for each pair of them.

As in the paper, only the first two of the four blocks before it halve the maps: on small pictures, maps of 2 x 2 would leave
little to compare.

Departures: where a class has more examples than in training, or fewer, it is their mean times the number in training, as
sums of other sizes are like nothing that the relation module has learned from; maps that are smaller than 2 x 2 are not
pooled further; without maps, linear layers take the place of convolutions, as in the paper's zero-shot module; batch
normalisation takes each task's own statistics, see `metarl.fewshot.networks`: those of the relation module are of the
support examples paired with all classes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import BatchNorm, Stats, TaskNetwork, embedding


class RelationNetwork(FewShotLearner):
    """A learned comparison of queries with classes. Classification only: scores are of belonging together.

    Logits are the log-odds of relation scores, whose sigmoids these are.

    Args:
        spec: of the tasks.
        network: arguments of `metarl.fewshot.networks.embedding`; `halvings` is 2 by default.
    """

    kinds = ("classification",)
    any_ways = True

    def __init__(self, spec: TaskSpec, **network: Any):
        super().__init__(spec)
        if spec.pictures and network.get("halvings") is None:
            network["halvings"] = 2
        self.network, features = embedding(spec, **network)
        *layers, last = self.network.layers
        if isinstance(last, nn.Flatten):  # pictures
            self.network = TaskNetwork(layers)
            with torch.no_grad():
                channels, *size = self.network(torch.zeros(1, 1, *spec.shape))[0].shape[2:]
            halves = [nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for bias in (True, False)]
            first, size = self._block_end(channels, size)
            second, size = self._block_end(channels, size)
            features = channels * math.prod(size)
            layers = [*first, nn.Conv2d(channels, channels, 3, padding=1), *second, nn.Flatten()]
        else:
            halves = [nn.Linear(features, features, bias=bias) for bias in (True, False)]
            layers = [nn.ReLU()]
        self.of_query, self.of_class = (TaskNetwork([half]) for half in halves)
        self.relation = TaskNetwork([*layers, nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 1)])

    def _block_end(self, channels: int, size: list[int]) -> tuple[list[nn.Module], list[int]]:
        """What follows a convolution in a block, and the size of its maps."""
        pools = min(size) >= 2
        layers = [*([BatchNorm(channels)] if self.network.normalises else []), nn.ReLU(), *([nn.MaxPool2d(2)] * pools)]
        return layers, [length // 2 for length in size] if pools else size

    def condition(self, support_x: Tensor, support_y: Tensor) -> tuple[Tensor, Stats, Stats]:
        """The classes' half of the first layer `[N, C, ...]`, and what the support set and its pairs were normalised by."""
        maps, stats = self.network(support_x)
        sums = self.spec.shots * self.class_means(maps.flatten(2), support_y).unflatten(2, maps.shape[2:])
        classes, _ = self.of_class(sums)
        _, pair_stats = self.relation(self._pairs(maps, classes))
        return classes, stats, pair_stats

    def answer(self, kept: tuple[Tensor, Stats, Stats], query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        classes, stats, pair_stats = kept
        maps, _ = self.network(query_x, stats=None if transductive else stats)
        logits, _ = self.relation(self._pairs(maps, classes), stats=None if transductive else pair_stats)
        return logits.view(*maps.shape[:2], classes.shape[1])

    def task_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of each task's relation scores, `[N]`."""
        return (outputs.sigmoid() - one_hot(targets, outputs.shape[-1])).square().mean((1, 2))

    def _pairs(self, maps: Tensor, classes: Tensor) -> Tensor:
        """The first layer on all pairs of `maps [N, M, ...]` with the classes: `[N, M C, ...]`."""
        return (self.of_query(maps)[0][:, :, None] + classes[:, None]).flatten(1, 2)

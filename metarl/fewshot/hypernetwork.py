"""A network that reads a task's support set and writes the weights of another one (Ha, Dai & Le 2017, "HyperNetworks").

Codes are means over examples, so that their order does not matter. Written weights `w` are linear in `h(code)`, as in the
paper's static hypernetworks, with a bias `w_0`, the starting point that all tasks share:

    code = mean_i g(features(x_i), y_i);  w = w_0 + W h(code);  loss = alpha error(queries; w) + beta mean |w|

In regression, all layers are written like this. In classification, `g` reads features only, hidden layers are written from
the mean over all examples, and a class's row of the last layer from this and the mean over the class's own: so a class's
place does not matter, and there may be any number of classes. (One code of examples joined with their labels, which wrote
everything, stayed at chance for as long as this form takes to tell classes apart.) Of vectors, the written network has the
vectors themselves as inputs; of pictures and texts, learned features.

Departures from the paper: it writes the layers of one large network from learned codes, here codes are read from examples;
the sparsity term is not the paper's, and is a mean, not a sum, so that `beta` fits networks of any size. Batch
normalisation takes each task's own statistics, see `metarl.fewshot.networks`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from metarl.batched import Params
from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.learner import FewShotLearner, check_weight
from metarl.fewshot.networks import Stats, TaskNetwork, embedding
from metarl.kernels import linear
from metarl.plain import check_count


class HyperNetwork(FewShotLearner):
    """Writes a network for every task.

    Args:
        spec: of the tasks.
        layers: units of the hidden layers of the written network; by default (40, 40) on vectors, otherwise (32,).
        codes: numbers in a code.
        alpha: weight of the error on the queries.
        beta: weight of the mean absolute value of the written weights.
        network: arguments of `metarl.fewshot.networks.embedding`, which makes features of examples.

    Raises:
        ValueError: in one line, at values out of range.
    """

    any_ways = True

    def __init__(
        self,
        spec: TaskSpec,
        layers: Sequence[int] | None = None,
        codes: int = 128,
        alpha: float = 1.0,
        beta: float = 1e-3,
        **network: Any,
    ):
        super().__init__(spec)
        check_count("codes", codes)
        self.alpha, self.beta = check_weight("alpha", alpha), check_weight("beta", beta)
        self.on_features = bool(spec.vocabulary) or spec.pictures
        sizes = tuple(layers) if layers is not None else ((32,) if self.on_features else (40, 40))
        if min(sizes, default=0) < 1:
            raise ValueError(f"layers must be sizes of at least 1, got {layers}")
        self.network, features = embedding(spec, **network)
        hidden: list[nn.Module] = [nn.Flatten()]
        for i, o in pairwise([features if self.on_features else math.prod(spec.shape), *sizes]):
            hidden += [nn.Linear(i, o), nn.ReLU()]
        self.hidden = TaskNetwork(hidden)  # its own parameters are the bias of what is written
        weights = sum(value.numel() for value in self.hidden.parameters())
        read, told = (features, 2 * codes) if spec.classification else (features + spec.outputs, codes)
        self.reader = nn.Sequential(nn.Linear(read, codes), nn.ReLU(), nn.Linear(codes, codes))
        self.hidden_writer = nn.Sequential(nn.Linear(codes, codes), nn.ReLU(), nn.Linear(codes, weights, bias=False))
        self.row = sizes[-1] + 1  # numbers that are written of the last layer for each output
        last = self.row * (1 if spec.classification else spec.outputs)
        self.last_writer = nn.Sequential(nn.Linear(told, codes), nn.ReLU(), nn.Linear(codes, last))
        with torch.no_grad():
            self.hidden_writer[-1].weight.mul_(0.1)  # the networks of all tasks start near the same one

    def condition(self, support_x: Tensor, support_y: Tensor) -> tuple[Params, Stats]:
        """The written weights `[N, ...]`, and what the support set was normalised by."""
        features, stats = self.network(support_x)
        if self.spec.classification:
            read = self.reader(features)
            task, classes = read.mean(1), self.class_means(read, support_y)
            told = torch.cat([task[:, None].expand_as(classes), classes], -1)  # [N, C, ...]
        else:
            task = self.reader(torch.cat([features, support_y], -1)).mean(1)
            told = task[:, None]
        start = self.hidden.initial_params()
        parts = self.hidden_writer(task).split([value.numel() for value in start.values()], 1)
        written = {
            name: value + part.view(-1, *value.shape) for (name, value), part in zip(start.items(), parts, strict=True)
        }
        last = self.last_writer(told).view(len(task), -1, self.row)
        return {**written, "last.weight": last[..., :-1], "last.bias": last[..., -1]}, stats

    def answer(self, kept: tuple[Params, Stats], query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        written, stats = kept
        if self.on_features:
            query_x, _ = self.network(query_x, stats=None if transductive else stats)
        return linear(self.hidden(query_x, written)[0], written["last.weight"], written["last.bias"])

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """`alpha` times the error on the queries plus `beta` times the mean absolute weight, `[N]`."""
        kept = self.condition(episodes.support_x, episodes.support_y)
        errors = self.task_losses(self.answer(kept, episodes.query_x, transductive), episodes.query_y)
        weights = torch.cat([value.flatten(1) for value in kept[0].values()], 1)
        return self.alpha * errors + self.beta * weights.abs().mean(1)

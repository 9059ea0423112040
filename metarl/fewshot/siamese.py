"""Siamese networks (Koch, Zemel & Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition").

One network maps both examples of a pair to features `h_1`, `h_2`; the pair is of one class with probability
`p = sigmoid(sum_j alpha_j |h_1j - h_2j|)` (section 3.1), trained by binary cross-entropy on pairs (section 3.2). A query has
the class whose example is likeliest its pair (section 4.3).

Departures:

- A bias is added to the sum: without one, two equal examples would have `p = 1/2`, whatever is learned.
- The distance may also be Euclidean, or 1 minus the cosine, with one learned factor in place of `alpha`.
- Pairs are all those of a query with a support example, as at test; pairs of one class weigh as much as the others in all,
  where the paper draws as many of each.
- With several shots, a class's logit is the mean of its examples' log-odds `log p / (1 - p)`.
- The network, Adam and batch normalisation are those of the other learners here; affine distortions are an option of
  data sets of pictures (`augment`).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import Stats, embedding
from metarl.plain import check_known


def componentwise(x: Tensor, y: Tensor) -> Tensor:
    """Absolute differences `[N, Q, S, F]` of the rows of `x [N, Q, F]` and `y [N, S, F]`."""
    return (x[:, :, None] - y[:, None]).abs()


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances `[N, Q, S, 1]` of the rows of `x [N, Q, F]` and `y [N, S, F]`."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")[..., None]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """1 minus the cosines `[N, Q, S, 1]` of the angles between the rows of `x [N, Q, F]` and `y [N, S, F]`."""
    return 1.0 - (normalize(x, dim=-1) @ normalize(y, dim=-1).mT)[..., None]


DISTANCES = {"l1": componentwise, "l2": euclidean, "cosine": cosine}


class SiameseNetwork(FewShotLearner):
    """Learns whether two examples are of one class.

    Args:
        spec: of the tasks.
        distance: of the features of a pair: "l1", weighted by component, "l2" or "cosine".
        network: arguments of `metarl.fewshot.networks.embedding`.

    Raises:
        ValueError: in one line, at an unknown distance.
    """

    kinds = ("classification",)
    any_ways = True

    def __init__(self, spec: TaskSpec, distance: Literal["l1", "l2", "cosine"] = "l1", **network: Any):
        super().__init__(spec)
        check_known(f"distance {distance!r}", distance, DISTANCES)
        self.network, features = embedding(spec, **network)
        self.distance = distance
        self.weighting = nn.Linear(features if distance == "l1" else 1, 1)
        # at the start log-odds are 10 (1/2 - distance), of components' mean or root mean square, which has both signs and is
        # as sure as a bounded cosine has to be; from a bias of 0, Adam would take thousands of steps to get there
        nn.init.constant_(self.weighting.weight, -10.0 / {"l1": features, "l2": features**0.5, "cosine": 1.0}[distance])
        nn.init.constant_(self.weighting.bias, 5.0)

    def condition(self, support_x: Tensor, support_y: Tensor) -> tuple[Tensor, Tensor, Stats]:
        """Features `[N, S, F]`, labels as rows `[N, S, C]`, and what the support set was normalised by."""
        features, stats = self.network(support_x)
        return features, self.one_hot(support_y), stats

    def log_odds(self, kept: tuple[Tensor, Tensor, Stats], query_x: Tensor, transductive: bool = False) -> Tensor:
        """That a query and a support example are of one class, `[N, Q, S]`; arguments as in `answer`."""
        support, _, stats = kept
        features, _ = self.network(query_x, stats=None if transductive else stats)
        return self.weighting(DISTANCES[self.distance](features, support))[..., 0]

    def answer(self, kept: tuple[Tensor, Tensor, Stats], query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        members = kept[1]
        return self.log_odds(kept, query_x, transductive) @ (members / members.sum(1, keepdim=True))

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """The binary cross-entropy of pairs, `[N]`: the mean over those of one class and over the others, halved each."""
        kept = self.condition(episodes.support_x, episodes.support_y)
        log_odds = self.log_odds(kept, episodes.query_x, transductive)
        same = (episodes.query_y[:, :, None] == episodes.support_y[:, None]).to(log_odds.dtype)
        share = same.mean((1, 2), keepdim=True)
        weight = 0.5 * (same / share + (1.0 - same) / (1.0 - share))
        return binary_cross_entropy_with_logits(log_odds, same, weight, reduction="none").mean((1, 2))

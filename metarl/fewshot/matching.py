"""Matching Networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra 2016, "Matching networks for one shot learning").

The answer is the mean of the support set's labels or targets, weighted by attention, `y = sum_i a(x, x_i) y_i` (eq. 1):
`a` is the softmax over the support set of the cosines of `f(x)` and `g(x_i)` (section 2.1.1).

With full-context embeddings (section 2.1.2), where `f'` and `g'` are the network (here the same for both):

- `g(x_i) = forth_i + back_i + g'(x_i)`, the outputs of an LSTM that reads the support set from its start and of one that
  reads it from its end (appendix A.2). So the order of the support set MATTERS; without full context, it does not.
- `f(x) = h_K`: `h^_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1})` (eq. 3), `h_k = h^_k + f'(x)` (eq. 4),
  `r_{k-1} = sum_i softmax_i(h_{k-1} . g(x_i)) g(x_i)` (eq. 5, 6), from `h^_0 = c_0 = 0`, which the paper leaves open.

Departures: cosines are divided by a temperature, since a softmax of numbers in [-1, 1] is never sure; regression, which
eq. 1 covers; batch normalisation takes each task's own statistics, see `metarl.fewshot.networks`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import Stats, embedding
from metarl.plain import check_count
from metarl.updates.base import check_positive


class MatchingNetwork(FewShotLearner):
    """Attention over the support set.

    Args:
        spec: of the tasks.
        fce: use full-context embeddings.
        steps: of the LSTM that reads the support set for a query, `K`; only with full context.
        temperature: of the attention; 1 as in the paper.
        learn_temperature: whether it is learned from there on.
        network: arguments of `metarl.fewshot.networks.embedding`.

    Raises:
        ValueError: in one line, at values out of range.
    """

    any_ways = True

    def __init__(
        self,
        spec: TaskSpec,
        fce: bool = False,
        steps: int = 5,
        temperature: float = 0.1,
        learn_temperature: bool = True,
        **network: Any,
    ):
        super().__init__(spec)
        self.draws = fce
        self.steps = check_count("steps", steps) if fce else 0
        scale = torch.tensor(-math.log(check_positive("temperature", temperature)))
        self.log_scale = nn.Parameter(scale, requires_grad=learn_temperature)
        self.network, features = embedding(spec, **network)
        self.g = nn.LSTM(features, features, batch_first=True, bidirectional=True) if fce else None
        self.f = nn.LSTMCell(2 * features, features) if fce else None

    def condition(self, support_x: Tensor, support_y: Tensor) -> tuple[Tensor, Tensor, Stats]:
        """`g(x_i) [N, S, F]`, labels as rows `[N, S, C]` or targets, and what the support set was normalised by."""
        features, stats = self.network(support_x)
        if self.g is not None:
            forth, back = self.g(features)[0].chunk(2, -1)
            features = forth + back + features
        return features, self.one_hot(support_y), stats

    def answer(self, kept: tuple[Tensor, Tensor, Stats], query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class; logits are the logarithms of probabilities."""
        support, labels, stats = kept
        features, _ = self.network(query_x, stats=None if transductive else stats)
        features = self._in_context(features, support)
        cosines = normalize(features, dim=-1) @ normalize(support, dim=-1).mT
        attention = (self.log_scale.exp() * cosines).log_softmax(-1)  # [N, Q, S]
        if self.spec.classification:
            return (attention[..., None] + labels.log()[:, None]).logsumexp(2)
        return attention.exp() @ labels

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """As in the base class; with full context, support sets are shuffled, since their order matters."""
        return super().losses(episodes.shuffled() if self.draws else episodes, transductive)

    def _in_context(self, x: Tensor, support: Tensor) -> Tensor:
        """`f [N, Q, F]` of queries `x`; `f'` itself without full context."""
        hidden, cell = x, torch.zeros_like(x).flatten(0, 1)
        for _ in range(self.steps):
            read = (hidden @ support.mT).softmax(-1) @ support
            # the LSTM's weights on `r` are on the side of its input, which is the same sum
            new, cell = self.f(torch.cat([x, read], -1).flatten(0, 1), (hidden.flatten(0, 1), cell))
            hidden = new.view_as(x) + x
        return hidden

"""Meta Networks (Munkhdalai & Yu 2017): slow weights learned over tasks, fast weights made of a task's gradients.

Algorithm 1, for a support set `(x'_i, y'_i)`. A network `u` with slow weights `Q` represents examples, and a base learner
`b` with slow weights `W` solves the task:

- task level: `Q* = d(mean_i grad_Q loss(u(x'_i; Q), y'_i))`
- example level: `W*_i = m(grad_W loss(b(x'_i; W), y'_i))`, kept in a memory under the key `r'_i = u(x'_i; Q, Q*)`
- a query `x` reads it: `W* = sum_i softmax_i(s cos(u(x; Q, Q*), r'_i)) W*_i`, and the answer is `b(x; W, W*)`

A layer with weights of both kinds adds what either makes of its input, each after its own nonlinearity (layer augmentation):
`relu(W x) + relu(W* x)`; the last layer `W x + W* x`. `m` and `d` are small networks that treat every weight alike; they
read a gradient's logarithm and sign. Derivatives flow through the gradients, too.

Departures:

- `d` reads the mean of the gradients; the paper has an LSTM read one after the other. It costs less, and the order of the
  support set does not matter.
- Only fully connected layers have fast weights, one of `u` and two of `b`; the embeddings before them have slow ones.
- The error of `u` is cross-entropy for any number of shots (the paper: contrastive beyond one). With squared errors in place
  of cross-entropy it is a learner of regression too.
- `s` is learned and starts at 10: a softmax of bare cosines is hardly more than a mean.
- What the networks of `m` and `d` give, less 1, is multiplied by the sign and divided by the number of the layer's inputs:
  fast weights start small and against the gradient. Otherwise all units of a layer may start dead, by what is drawn.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import Stats, embedding
from metarl.plain import check_count
from metarl.updates.recurrent import Linear, log_and_sign


class Memory(NamedTuple):
    """What is kept of support sets of `S` examples; `F` features, `H` units."""

    task: Tensor  # Q*, [N, H, F + 1]: the last column of weights is the bias
    keys: Tensor  # r', [N, S, H]
    hidden: Tensor  # W*, [N, S, H, F + 1]
    output: Tensor  # W* of the last layer, [N, S, C, H + 1]
    stats: tuple[Stats, Stats]  # of the support sets, in the embeddings of u and b


class MetaNetwork(FewShotLearner):
    """Fast weights, read from a memory by similarity, beside slow ones.

    Args:
        spec: of the tasks.
        size: units of the layers with fast weights, `H`.
        network: arguments of `metarl.fewshot.networks.embedding`, for both `u` and `b`.
    """

    def __init__(self, spec: TaskSpec, size: int = 64, **network: Any):
        super().__init__(spec)
        check_count("size", size)
        self.u, features = embedding(spec, **network)
        self.b, _ = embedding(spec, **network)
        self.u_hidden, self.u_output = nn.Linear(features, size), nn.Linear(size, spec.outputs)
        self.b_hidden, self.b_output = nn.Linear(features, size), nn.Linear(size, spec.outputs)
        self.d, self.m = WeightGenerator(), WeightGenerator()
        self.log_strength = nn.Parameter(torch.tensor(math.log(10.0)))

    def condition(self, support_x: Tensor, support_y: Tensor) -> Memory:
        """Fast weights for each task, and for each example of its support set."""
        u, u_stats = self.u(support_x)
        b, b_stats = self.b(support_x)
        tasks, examples = u.shape[:2]

        def u_error(hidden: Tensor) -> Tensor:
            return self.task_losses(self.u_output(affine(u, hidden[:, None]).relu()), support_y).sum()

        def b_error(hidden: Tensor, output: Tensor) -> Tensor:
            return self.task_losses(affine(affine(b, hidden).relu(), output), support_y).sum() * examples

        # weights are given to each task, or each example, anew: so the gradient of the sum is one for each
        slow = weights(self.u_hidden).expand(tasks, -1, -1)
        task = self.d(torch.func.grad(u_error)(slow))
        slow = [weights(layer).expand(tasks, examples, -1, -1) for layer in (self.b_hidden, self.b_output)]
        hidden, output = map(self.m, torch.func.grad(b_error, (0, 1))(*slow))
        return Memory(task, self._represent(u, task), hidden, output, (u_stats, b_stats))

    def answer(self, kept: Memory, query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        u_stats, b_stats = (None, None) if transductive else kept.stats
        r = self._represent(self.u(query_x, stats=u_stats)[0], kept.task)
        similar = normalize(r, dim=-1) @ normalize(kept.keys, dim=-1).mT
        attention = (self.log_strength.exp() * similar).softmax(-1)
        b, _ = self.b(query_x, stats=b_stats)
        h = self.b_hidden(b).relu() + read(b, kept.hidden, attention).relu()
        return self.b_output(h) + read(h, kept.output, attention)

    def _represent(self, u: Tensor, task: Tensor) -> Tensor:
        return self.u_hidden(u).relu() + affine(u, task[:, None]).relu()


class WeightGenerator(nn.Module):
    """Gradients `[N, ..., I]` of layers with `I` inputs to fast weights of the same shape, each number by itself.

    Args:
        hidden: units of the network that all numbers share.
        p: gradients below `e^-p` count as small, see `log_and_sign`.
    """

    def __init__(self, hidden: int = 20, p: float = 7.0):
        super().__init__()
        self.p = p
        like = torch.zeros(())
        self.layers = nn.Sequential(Linear(2, hidden, like), nn.ReLU(), Linear(hidden, 1, like))

    def forward(self, grads: Tensor) -> Tensor:
        """Fast weights."""
        features = log_and_sign(grads.flatten(1), self.p)
        made = (self.layers(features) - 1.0) * features[:, 1:]
        return made.view(grads.shape) / grads.shape[-1]


def weights(layer: nn.Linear) -> Tensor:
    """Weights and bias in one, `[O, I + 1]`."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1)


def affine(x: Tensor, weight: Tensor) -> Tensor:
    """`x [N, M, I]` by weights and biases of each task and example `[N, M or 1, O, I + 1]`: `[N, M, O]`."""
    return (weight[..., :-1] @ x[..., None])[..., 0] + weight[..., -1]


def read(x: Tensor, memory: Tensor, attention: Tensor) -> Tensor:
    """`x [N, Q, I]` by weights read from `memory [N, S, O, I + 1]` with `attention [N, Q, S]`: `[N, Q, O]`.

    What all entries make of a query is less to hold than the weights that each query reads.
    """
    made = torch.einsum("nqi,nsoi->nqso", x, memory[..., :-1]) + memory[:, None, :, :, -1]
    return (attention[..., None] * made).sum(2)

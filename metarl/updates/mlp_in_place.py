"""The moves of `LearnedMLP` for one training, without derivatives, in memory that is reserved once.

For a policy of ten thousand numbers most of the time of `LearnedMLP.move` goes into fetching new memory and into operations
on a handful of numbers. Here each array has its place, and what depends on the time only is computed for many steps ahead.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from metarl.updates.mlp import LearnedMLP

AHEAD = 256
"""Steps for which what depends on the time only is computed at once."""


class InPlace:
    """`move` of a `LearnedMLP` with the weights that it has now, as `Coordinatewise.in_place` says. Without `TINY`."""

    def __init__(self, rule: "LearnedMLP"):
        self.rule = rule
        places, (first, *later) = rule.places[0], [weight.detach() for weight in rule.weights]
        x = places.new_empty(rule.averages + 5, places.shape[1])
        x[:2] = places
        self._x, self._mean = x, x[3]
        self._scaled_grads, self._scaled_means, self._logs, self._params = x[2:3], x[3:-2], x[-2:-1], x[-1:]
        # the first input is 1: its weights are what time adds; the last one, dormancy, is not known
        self._weight = torch.cat([first[:, :1], first[:, :-1]], 1)
        self._from_time = self._weight[:, :1]
        self._first = places.new_empty(len(first), places.shape[1])
        biases = [*(bias.detach()[:, None] for bias in rule.biases), None]
        self._later = [(w, b, places.new_empty(len(w), places.shape[1])) for w, b in zip(later, biases, strict=True)]
        self._amount, self._free = self._later[-1][2].split(1)
        self._root, self._divisor, self._moves = (torch.empty_like(places[:1]) for _ in range(3))
        self._one, self._eps = places.new_tensor(1.0), places.new_tensor(rule.eps)  # faster than Python's numbers
        self._start, self._table = 0, []

    @torch.no_grad()
    def __call__(
        self, grads: Tensor, state: tuple[Tensor, Tensor, Tensor], params: Tensor, losses: Any = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """See `Coordinatewise.in_place`."""
        means, squares, step = state
        newest, newest_square, hidden, outputs, of_gradient, mixture = self._at(int(step))
        root, divisor, moves, means = self._root, self._divisor, self._moves, means[0]
        step += self._one
        means.lerp_(grads, newest)
        squares.lerp_(torch.mul(grads, grads, out=root), newest_square)
        torch.add(torch.sqrt(squares, out=root), self._eps, out=divisor)

        torch.div(grads, divisor, out=self._scaled_grads)
        torch.div(means, divisor, out=self._scaled_means)
        torch.log10(divisor, out=self._logs)
        torch.clamp(params, -self.rule.bound, self.rule.bound, out=self._params)
        torch.mm(mixture, means, out=moves).add_(grads, alpha=of_gradient)
        if self.rule.base == "adam":
            moves += self._mean

        self._from_time.copy_(hidden)
        x = torch.mm(self._weight, self._x, out=self._first)
        for weight, bias, place in self._later:
            x = torch.mm(weight, x.relu_(), out=place)
            x += outputs if bias is None else bias
        root.div_(divisor).mul_(self._free)
        return torch.addcmul(root, moves, self._amount.exp_(), value=-1.0, out=moves), state

    def _at(self, step: int) -> tuple[Tensor, float, Tensor, Tensor, float, Tensor]:
        """What is needed at the step after `step`: as columns, rows and numbers that fit the arrays above."""
        if not self._start <= step < self._start + len(self._table):
            self._start = step
            steps = torch.arange(step + 1, step + 1 + AHEAD, dtype=self._x.dtype, device=self._x.device)
            newest, hidden, outputs, mixture = self.rule.timed(steps)
            self._table = list(
                zip(
                    newest[:, :-1, None],
                    newest[:, -1].tolist(),
                    hidden[..., None],
                    outputs[..., None],
                    mixture[:, 0].tolist(),
                    mixture[:, None, 1:],
                    strict=True,
                )
            )
        return self._table[step - self._start]

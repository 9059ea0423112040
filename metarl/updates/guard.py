"""The guard of learned update rules: where one diverges, the parameters go back by a step and on with Adam, for good.

It watches the norms of gradients and moves, and the loss where somebody knows it. One of them diverges where it is not
finite, or above `EXPLODED` times both its first value and its running (geometric) mean: so it may grow slowly, as losses of
Q-learning do, and may jump back to where it began, as after a long time without rewards, but not grow exponentially.

- Diverging moves are not taken: Adam's step stands in for them.
- A diverging gradient or loss is the work of the step before: that step is taken back, and the one that Adam would have
  taken there stands in for it. The gradient itself is not used.

Adam's averages are kept from the start, so that it takes over smoothly. A rule whose moves keep their usual size while the
loss rises little by little is not caught, and where nobody knows the loss and gradients are clipped, its moves alone tell.
`Guarded` guards `N` tasks at once, each by itself; `LearnedOptimizer` guards each group of parameters.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metarl.batched import Params
from metarl.updates.base import Coordinatewise, UpdateRule

EXPLODED = 1000.0
"""How many times its usual size a norm or a loss is when it has diverged."""
_FAR = math.log(EXPLODED)
MEMORY = 100
"""Steps that the running mean goes back."""
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's, as in Kingma & Ba 2015."""

GRADIENTS, MOVES, LOSS = range(3)
"""What is watched: norms of gradients and moves, and the absolute loss. A loss far below zero is no divergence."""


class Level:
    """How large a size usually is: `first` and `usual` are the logarithms of the first one and of their running mean.

    Sizes of 0 say nothing, as those of gradients before the first reward.
    """

    def __init__(self, first: float | None = None, usual: float | None = None):
        self.first, self.usual = first, usual

    def exceeded(self, size: float) -> bool:
        """Whether `size` is not finite, or far above what is usual; from now on it counts among the usual ones."""
        if not abs(size) < math.inf:
            return True
        if size == 0:
            return False
        log = math.log(abs(size))
        if self.first is None or self.usual is None:
            self.first = self.usual = log
        limit = max(self.first, self.usual) + _FAR
        self.usual += (log - self.usual) / MEMORY
        return size > 0 and log > limit


def adam(mean: Tensor, square: Tensor, count: Tensor | int) -> Tensor:
    """Adam's step per unit of rate, for its averages of `count` gradients; 0 where there was none."""
    count = torch.as_tensor(count, dtype=mean.dtype, device=mean.device).clamp_min(1.0)
    bias1, bias2 = (-torch.expm1(count * math.log(beta)) for beta in (BETA1, BETA2))
    return -mean / bias1 / ((square / bias2).sqrt() + EPS)


class Guarded(UpdateRule):
    """A rule that falls back to Adam, task by task, where it diverges; Adam takes the rule's rate.

    Its state is that of the rule, `rule`, and: whether Adam has taken over, `fallen [N]`; Adam's averages `mean` and
    `square [N, P]` of `count [N]` gradients; the parameters before the last step, `before [N, P]`; and the logarithms of the
    first sizes and their running means, `first` and `usual [N, 3]`, NaN before there are any. Not to be differentiated.

    Args:
        rule: the rule.
    """

    def __init__(self, rule: Coordinatewise):
        super().__init__()
        self.rule = rule
        self.method = rule.method

    def init(self, params: Params) -> dict[str, Any]:
        """As in the base class."""
        flat = self.rule.flatten(params)
        unseen = flat.new_full((len(flat), 3), math.nan)
        return {
            "rule": self.rule.start(flat),
            "fallen": torch.zeros(len(flat), dtype=torch.bool, device=flat.device),
            "mean": torch.zeros_like(flat),
            "square": torch.zeros_like(flat),
            "count": flat.new_zeros(len(flat)),
            "before": flat,
            "first": unseen,
            "usual": unseen.clone(),
        }

    @torch.no_grad()
    def update(
        self, grads: Params, state: dict[str, Any], params: Params, losses: Tensor | None, **signals: Params
    ) -> tuple[Params, dict[str, Any]]:
        """As in the base class."""
        rule, fallen = self.rule, state["fallen"]
        flat, grad = rule.flatten(params), rule.flatten(grads)
        known = {name: rule.flatten(values) for name, values in signals.items()}
        moves, inner = rule.move(grad, state["rule"], flat, losses, **known)
        norms = vector_norm(grad, dim=1), vector_norm(moves, dim=1)
        sizes = torch.stack([*norms, torch.zeros_like(norms[0]) if losses is None else losses], 1)
        exceeded, levels = self._judge(sizes, state)

        falling = ~fallen & exceeded.any(1)
        back = falling & (exceeded[:, GRADIENTS] | exceeded[:, LOSS])  # the step before is taken back
        blind = fallen & ~norms[0].isfinite()  # nothing to go by: the parameters stay
        unused = (back | blind)[:, None]
        mean = torch.where(unused, state["mean"], state["mean"].lerp(grad, 1.0 - BETA1))
        square = torch.where(unused, state["square"], state["square"].lerp(grad * grad, 1.0 - BETA2))
        count = torch.where(unused[:, 0], state["count"], state["count"] + 1.0)
        fallen = fallen | falling
        moves = torch.where(fallen[:, None], adam(mean, square, count[:, None]).masked_fill(blind[:, None], 0.0), moves)
        after = torch.where(back[:, None], state["before"], flat) + rule.rate * moves
        averages = {"mean": mean, "square": square, "count": count}
        return {**params, **rule.unflatten(after)}, {"rule": inner, "fallen": fallen, **averages, "before": flat, **levels}

    @staticmethod
    def _judge(sizes: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Level` does for one size: which of `sizes [N, 3]` are exceeded, and levels that follow them."""
        first, usual = state["first"], state["usual"]
        exceeded = ~sizes.isfinite() | (sizes.log() > torch.maximum(first, usual) + _FAR)
        logs = sizes.abs().log()
        seen, new = sizes != 0, first.isnan()
        usual = torch.where(seen, torch.where(new, logs, usual.lerp(logs, 1.0 / MEMORY)), usual)
        return exceeded, {"first": torch.where(seen & new, logs, first), "usual": usual}

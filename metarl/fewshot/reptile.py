"""Reptile (Nichol, Achiam & Schulman 2018, algorithm 1): move the starting point towards where each task's training ends.

The inner training takes `steps` steps of Adam without momentum, as the released code does, on minibatches of ALL examples of
an episode; afterwards it takes `test_steps` on the support set. The outer gradient is `theta - phi`, that of the loss
`|theta - phi|^2 / 2` with `phi` as a constant.

Departures: this gradient goes to the trainer's Adam, as every learner's does, where the paper moves a share of the way to
`phi`; and the inner Adam begins anew in each task, where the released code's second moments go on from task to task.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.batched import for_tasks
from metarl.fewshot.episodes import Episodes, TaskSpec, in_order, permutations
from metarl.fewshot.gradient import GradientLearner
from metarl.plain import check_count
from metarl.updates import inner_step


class Reptile(GradientLearner):
    """A starting point in the midst of what tasks lead to.

    Args:
        spec: of the tasks.
        batch_size: examples in an inner minibatch.
        options: see `GradientLearner`.
    """

    draws = True
    default_rate = 1e-3

    def __init__(self, spec: TaskSpec, batch_size: int = 10, **options: Any):
        defaults = {"update_rule": "adam", "rule_kwargs": {"beta1": 0.0}, "steps": 5, "test_steps": 50}
        super().__init__(spec, **{**defaults, "second_order": False, **options})
        self.batch_size = check_count("batch_size", batch_size)

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """Half the squared distance from the starting point to where each task's training ends, `[N]`."""
        x = torch.cat([episodes.support_x, episodes.query_x], 1)
        y = torch.cat([episodes.support_y, episodes.query_y], 1)
        start = for_tasks(self.network.initial_params(), len(x))
        end = self._trained(x, y)
        return sum((start[name] - end[name]).square().flatten(1).sum(1) for name in self.adapted) / 2.0

    @torch.no_grad()
    def _trained(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        params = for_tasks(self.network.initial_params(), len(x))
        state = self.rule.init({name: params[name] for name in self.adapted})
        rounds = -(-self.steps * self.batch_size // x.shape[1])
        orders = torch.cat([permutations(*x.shape[:2]) for _ in range(rounds)], 1)
        for step in range(self.steps):
            chosen = orders[:, step * self.batch_size : (step + 1) * self.batch_size]
            part_x, part_y = in_order(x, chosen), in_order(y, chosen)
            params, state, _ = inner_step(
                self.rule,
                params,
                state,
                lambda p, x=part_x, y=part_y: self.task_losses(self.network(x, p)[0], y),
                adapted=self.adapted,
                functional=self.functional,
            )
            params, state = tree_map(torch.detach, (params, state))
        return params

"""Few-shot learning by gradient steps on the support set: what MAML and its relatives share.

All tasks adapt side by side, with parameters `[N, ...]`, by the update rules and the inner loop that MAML-PPO uses too.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.batched import Params, for_tasks
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import Stats, network_for
from metarl.fewshot.options import checked
from metarl.plain import check_count, check_known
from metarl.updates import RULES, check_adapted, inner_step
from metarl.updates.base import check_positive


class Adapted(NamedTuple):
    """What gradient learners keep of support sets."""

    params: Params  # those that were adapted, [N, ...]
    stats: Stats  # of the support sets, under these parameters; empty where nothing is normalised


class GradientLearner(FewShotLearner):
    """A network, and an update rule that adapts it.

    Args:
        spec: of the tasks.
        rate: the rule's step size, or where it starts.
        steps: gradient steps on a support set while meta-training.
        test_steps: afterwards; as many by default.
        second_order: let derivatives flow through the inner gradients; otherwise they count as constants (FOMAML).
        update_rule: name in `metarl.updates.RULES`.
        rule_kwargs: further arguments of the rule.
        head_only: adapt the last layer only.
        network: arguments of `metarl.fewshot.networks.embedding`.

    Raises:
        ValueError: in one line, at an unknown rule or values out of range; while adapting, `Diverged`.
    """

    default_rate: ClassVar[float | None] = None
    """By default 0.1 in classification and 0.01 in regression, whose errors are larger numbers."""

    def __init__(
        self,
        spec: TaskSpec,
        rate: float | None = None,
        steps: int = 1,
        test_steps: int | None = None,
        second_order: bool = True,
        update_rule: str = "sgd",
        rule_kwargs: Mapping[str, Any] | None = None,
        head_only: bool = False,
        **network: Any,
    ):
        super().__init__(spec)
        self.steps = check_count("steps", steps)
        self.test_steps = steps if test_steps is None else check_count("test_steps", test_steps)
        self.second_order = second_order
        self.network = network_for(spec, **network)
        params = self.network.initial_params()
        last = len(self.network.layers) - 1
        self.adapted = [name for name in params if not head_only or name.startswith(f"layers.{last}.")]
        self.shared, self.own = slice(0, last if head_only else 0), slice(last if head_only else 0, None)
        check_known(f"update_rule {update_rule!r}", update_rule, RULES)
        if rate is None:
            rate = self.default_rate or (0.1 if spec.classification else 0.01)
        check_positive("rate", rate)
        makers, given = [RULES[update_rule]], ("params", "rate")
        rule_kwargs = checked(f"{update_rule}: rule_kwargs.", rule_kwargs or {}, makers, given)
        self.rule = RULES[update_rule]({name: params[name] for name in self.adapted}, rate, **rule_kwargs)

    def condition(self, support_x: Tensor, support_y: Tensor, steps: int | None = None) -> Adapted:
        """Adapt to the support sets, by `steps` gradient steps or as many as the learner takes.

        Raises:
            Diverged: outside meta-training, naming the first task and step that are not finite.
        """
        if steps is None:
            steps = self.steps if self.training and torch.is_grad_enabled() else self.test_steps
        x, stats = self.network(support_x, layers=self.shared)
        start = self.network.initial_params()
        params = for_tasks({name: start[name] for name in self.adapted}, len(x))
        state = self.rule.init(params)
        for step in range(steps):
            params, state, losses = inner_step(
                self.rule,
                params,
                state,
                lambda p: self.task_losses(self.network(x, p, layers=self.own)[0], support_y),
                adapted=self.adapted,
                second_order=self.second_order and torch.is_grad_enabled(),
                functional=self.functional,
            )
            if not torch.is_grad_enabled():
                params, state = tree_map(torch.detach, (params, state))
                check_adapted(params, losses.detach(), step + 1)
        if not stats and self.network.normalises:
            stats = self.network(x, params, layers=self.own)[1]
        return Adapted(params, stats)

    def answer(self, kept: Adapted, query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        stats = None if transductive else kept.stats
        x, _ = self.network(query_x, stats=stats, layers=self.shared)
        return self.network(x, kept.params, stats, self.own)[0]

"""SNAIL (Mishra, Rohaninejad, Chen & Abbeel 2018, section 3 and appendix): `metarl.memory.snail`, reading.

The support set comes with its labels, in random order while training, then a query without one. Convolutions have 128
filters, in two blocks.

Departures: those of the core, whose keys and values all have 128 features (paper: 64 to 512 and 32 to 256); see also
`metarl.fewshot.recurrent`. The paper builds a network for each length `S + 1`; here one takes all up to `context`. Keys
start with the weights of queries, so that examples alike attend to one another before anything is learned;
`docs/decisions.md` has what that is worth.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.recurrent import MemoryLearner, Read


class SNAIL(MemoryLearner):
    """Causal convolutions and attention over the support set.

    Args:
        spec: of the tasks.
        size: features that the core puts out.
        core_kwargs: of `metarl.memory.snail.SNAILCore`, on top of those named above and of a `context` of 32 steps.
        network: arguments of `metarl.fewshot.networks.embedding`.
    """

    def __init__(self, spec: TaskSpec, size: int = 128, core_kwargs: Mapping[str, Any] | None = None, **network: Any):
        defaults = {"context": 32, "attention_first": True, "filters": 128, "key_size": 128, "value_size": 128}
        super().__init__(spec, "snail", size, {**defaults, **(core_kwargs or {})}, late_labels=False, **network)
        with torch.no_grad():
            for attention in self.core.attentions:
                for values in attention.parameters():
                    queries, keys, _ = values.split([self.core.key_size, self.core.key_size, self.core.value_size])
                    keys.copy_(queries)

    def condition(self, support_x: Tensor, support_y: Tensor) -> Read:
        """As in the base class; a `ValueError`, in one line, at support sets that the core's context does not hold."""
        self.check_support(support_x.shape[1])
        return super().condition(support_x, support_y)

    def check_support(self, examples: int) -> None:
        """As in the base class."""
        if examples >= self.core.context:
            raise ValueError(
                f"context must be at least {examples + 1} for support sets of {examples} examples, "
                f"got {self.core.context}: it is one of core_kwargs"
            )

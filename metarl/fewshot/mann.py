"""Memory-augmented neural network (Santoro, Bartunov, Botvinick, Wierstra & Lillicrap 2016): `metarl.memory.mann`, reading.

As in the paper, a sequence of examples comes in random order with each label one step late, and the error at all steps is
made small; a controller of 200 units has 4 heads on 128 slots of 40 numbers, and usage fades by 0.99.

Departures: those of the core, where `strengths` are on and heads start `apart`; pictures pass through convolutions (the
paper's are flattened), normalised by those so far. See `metarl.fewshot.recurrent` too.

It needs many sequences at a time, and guesses for long: points (`experiments/supervised_memory.py`) are recalled after some
25,000 of them, as are glyphs, in batches of 64 with Adam at 0.002.
"""

from collections.abc import Mapping
from typing import Any

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.recurrent import MemoryLearner


class MANN(MemoryLearner):
    """A memory that is written where it is least used and read by content.

    Args:
        spec: of the tasks.
        size: units of the controller.
        core_kwargs: of `metarl.memory.mann.MANNCore`, on top of those named above.
        network: arguments of `metarl.fewshot.networks.embedding`.
    """

    def __init__(self, spec: TaskSpec, size: int = 200, core_kwargs: Mapping[str, Any] | None = None, **network: Any):
        core = {"num_slots": 128, "slot_size": 40, "num_reads": 4, "decay": 0.99, "strengths": True, **(core_kwargs or {})}
        core.setdefault("apart", core["num_reads"] != 1)
        super().__init__(spec, "mann", size, core, **network)

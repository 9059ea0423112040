"""Few-shot learning by reading: a memory core goes through the support set example by example.

What is learned of a task is the core's state, as in RL² (Hochreiter, Younger & Conwell 2001; Santoro et al. 2016; Mishra
et al. 2018). A step reads an example's features and a label, in one of two ways:

- late (Santoro et al. 2016, section 2): `(x_1, 0), (x_2, y_1), ..., (x_S, y_{S-1})`, then a query with `y_S`. Every step
  is a question, as its label comes with the next one: training takes the error at ALL steps of a sequence.
- at once (Mishra et al. 2018, section 3): `(x_1, y_1), ..., (x_S, y_S)`, then a query without a label.

Every query is asked on its own, from the state after the support set. Order matters to a memory, so training shuffles.

Departures: features are normalised, each example by itself (Ba et al. 2016), whatever embedding they come from; where labels
come late, convolutions are normalised by the pictures so far, as the statistics of all of them would tell of later ones; the
1 of a class's label is as large as the features of an example are long, beside which a mere 1 is overlooked for thousands of
sequences; and a label has a further number that tells it from none, as a target in regression may be 0.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from metarl.fewshot.episodes import Episodes, TaskSpec, in_order, permutations
from metarl.fewshot.learner import FewShotLearner, check_answers
from metarl.fewshot.networks import Stats, embedding
from metarl.fewshot.options import checked
from metarl.memory import CORES, State
from metarl.memory.base import check_flag
from metarl.plain import check_count, check_known


class Read(NamedTuple):
    """What is kept of support sets."""

    state: State  # of the core, [N, ...]
    label: Tensor  # that comes with a query, [N, 1, C + 1]
    stats: Stats  # of the support sets


class MemoryLearner(FewShotLearner):
    """An embedding, a memory core, and a linear layer.

    Args:
        spec: of the tasks.
        core: name in `metarl.memory.CORES`.
        size: features that the core puts out; units of its controller, where it has one.
        core_kwargs: further arguments of the core.
        late_labels: labels come one step after their examples, otherwise with them.
        network: arguments of `metarl.fewshot.networks.embedding`.

    Raises:
        ValueError: in one line, at an unknown core or values out of range.
    """

    draws = True

    def __init__(
        self,
        spec: TaskSpec,
        core: str = "lstm",
        size: int = 128,
        core_kwargs: Mapping[str, Any] | None = None,
        late_labels: bool = True,
        **network: Any,
    ):
        super().__init__(spec)
        check_known(f"core {core!r}", core, CORES)
        check_count("size", size)
        self.late_labels = check_flag("late_labels", late_labels)
        self.network, features = embedding(spec, **network, past=self.late_labels)
        self.norm = nn.LayerNorm(features)
        size_of_labels = torch.tensor(features**0.5 if spec.classification else 1.0)
        # kept with parameters, which are of no use with labels of another length
        self.register_buffer("label_size", size_of_labels, persistent=spec.classification)
        core_kwargs = checked(f"{core}: core_kwargs.", core_kwargs or {}, [CORES[core]], ("input_size", "output_size"))
        self.core = CORES[core](features + spec.outputs + 1, size, **core_kwargs)
        self.head = nn.Linear(size, spec.outputs)

    def condition(self, support_x: Tensor, support_y: Tensor) -> Read:
        """Read support sets, in the order given."""
        x, stats = self._features(support_x)
        labels = self._labels(support_y)
        if not self.late_labels:
            labels = labels.roll(-1, 1)  # the empty one goes to the query
        _, state = self._scan(x, labels[:, :-1], self.core.initial_state(len(x)))
        return Read(state, labels[:, -1:], stats)

    def answer(self, kept: Read, query_x: Tensor, transductive: bool = False) -> Tensor:
        """As in the base class."""
        x, _ = self._features(query_x, None if transductive and not self.late_labels else kept.stats)
        tasks, queries = x.shape[:2]
        state = tuple(part.repeat_interleave(queries, 0) for part in kept.state)
        y, _ = self._scan(x.flatten(0, 1)[:, None], kept.label.repeat_interleave(queries, 0), state)
        return y.unflatten(0, (tasks, queries))[:, :, 0]

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """The error at all steps of shuffled sequences; with labels at once, on queries after shuffled support sets."""
        if self.late_labels:
            order = permutations(len(episodes.query_x), episodes.support_x.shape[1] + episodes.query_x.shape[1])
            return self.task_losses(*self.recite(episodes, order))
        return super().losses(episodes.shuffled(), transductive)

    def recite(self, episodes: Episodes, order: Tensor) -> tuple[Tensor, Tensor]:
        """Answers at every step, and what would have been right, to all examples of episodes as one sequence each.

        Args:
            episodes: support sets and queries, `T = S + Q` examples in each.
            order: `[N, T]`, a permutation of the support set's examples and the queries behind them, for each episode.

        Returns:
            outputs `[N, T, C]` and labels `[N, T]`, or predictions and targets `[N, T, D]`.

        Raises:
            ValueError: in one line, where labels come with their examples.
        """
        if not self.late_labels:
            raise ValueError("late_labels must be true for answers at every step, got False")
        x = in_order(torch.cat([episodes.support_x, episodes.query_x], 1), order)
        y = in_order(torch.cat([episodes.support_y, episodes.query_y], 1), order)
        features, _ = self._features(x)
        outputs, _ = self._scan(features, self._labels(y)[:, :-1], self.core.initial_state(len(x)))
        return outputs, y

    def _features(self, x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Stats]:
        features, stats = self.network(x, stats=stats)
        return self.norm(features), stats

    def _labels(self, y: Tensor) -> Tensor:
        """No label, then all of them: `[N, 1 + S, C + 1]`."""
        return pad(pad(self.one_hot(y), (0, 1), value=1.0), (0, 0, 1, 0)) * self.label_size

    def _scan(self, x: Tensor, labels: Tensor, state: State) -> tuple[Tensor, State]:
        """Steps `[N, T, ...]` to outputs `[N, T, C]` and the next state."""
        y, state = self.core.scan(torch.cat([x, labels], -1).transpose(0, 1), state)
        return self.head(y).transpose(0, 1), state


@torch.no_grad()
def accuracy_by_instance(learner: MemoryLearner, episodes: Episodes, generator: torch.Generator) -> Tensor:
    """Accuracy at the first, ... `K`-th example of a class, in every episode `[N, K]` (Santoro et al. 2016, table 1).

    All examples of an episode are one sequence, in an order that `generator` draws; labels come one step late. `K` is the
    number of examples of the class that has most, and NaN stands where an episode has no class with so many; at the first
    nothing but guessing is possible.

    Raises:
        ValueError: in one line, at regression, and at learners whose labels come with their examples; `Diverged` where an
            answer is not finite.
    """
    if not learner.spec.classification:
        raise ValueError("tasks must be classification for accuracy by instance, got regression")
    order = permutations(len(episodes.query_x), episodes.support_x.shape[1] + episodes.query_x.shape[1], generator)
    outputs, labels = learner.recite(episodes, order)
    check_answers(outputs, classification=True)
    came = nn.functional.one_hot(labels, learner.spec.outputs)
    instance = came.cumsum(1).gather(-1, labels[..., None])[..., 0] - 1
    right = (outputs.argmax(-1) == labels).double()
    at = nn.functional.one_hot(instance).double()
    return (right[..., None] * at).sum(1) / at.sum(1)

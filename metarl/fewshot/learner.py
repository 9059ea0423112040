"""What few-shot learners share: `learner(support_x, support_y, query_x)`, its loss, and adapting to a person's own data."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.updates import Diverged


class FewShotLearner(nn.Module):
    """Learns a task from its support set; its own parameters are trained over many tasks.

    A subclass says `condition` and `answer`, for `N` tasks side by side that never see one another; and `losses` where
    meta-training is not by the error on the queries. A constructor takes the `TaskSpec` first, and plain values by name.

    Attributes:
        kinds: of tasks that it can learn.
        any_ways: whether it takes tasks with other numbers of classes than it was made for.
        trained: whether there is anything to train over tasks.
        functional: let gradients that it takes be those of `torch.func`, which `torch.compile` understands; the numbers are
            the same.
        draws: whether `losses` draws random numbers (by PyTorch's global generator, which the trainer seeds).
        prepare: from a person's examples, such as texts or rows of a table, to those of episodes: what `adapt` and
            predictors are given goes through it. `load_few_shot_run` sets it; by default examples are taken as they are.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "regression")
    any_ways: ClassVar[bool] = False
    trained: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    functional: bool = False
    prepare: Callable[[Any], np.ndarray] | None = None

    def __init__(self, spec: TaskSpec):
        super().__init__()
        kind = "classification" if spec.classification else "regression"
        if kind not in self.kinds:
            raise ValueError(f"{type(self).__name__} is for {' and '.join(self.kinds)} only, but the tasks are {kind}")
        self.spec = spec

    def condition(self, support_x: Tensor, support_y: Tensor) -> Any:
        """What is kept of the support sets `[N, S, ...]`: nested tensors `[N, ...]`."""
        raise NotImplementedError

    def answer(self, kept: Any, query_x: Tensor, transductive: bool = False) -> Tensor:
        """Logits `[N, Q, C]`, or predictions `[N, Q, D]`, for `query_x [N, Q, ...]`.

        `transductive`: batch normalisation takes its statistics from all queries together, so that an answer depends on
        the others; by default it takes those of the support set.
        """
        raise NotImplementedError

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, transductive: bool = False) -> Tensor:
        """Support sets `[N, S, ...]` and queries `[N, Q, ...]` to logits `[N, Q, C]` or predictions `[N, Q, D]`."""
        return self.answer(self.condition(support_x, support_y), query_x, transductive)

    def losses(self, episodes: Episodes, transductive: bool = False) -> Tensor:
        """What meta-training makes small, `[N]`: the error on the queries."""
        outputs = self(episodes.support_x, episodes.support_y, episodes.query_x, transductive)
        return self.task_losses(outputs, episodes.query_y)

    def task_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy, or squared error, of each task, `[N]`."""
        if self.spec.classification:
            return cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)
        return (outputs - targets).square().mean((1, 2))

    def one_hot(self, labels: Tensor) -> Tensor:
        """Labels `[N, S]` as rows `[N, S, C]` with a 1; targets `[N, S, D]` as they are.

        `C` is the number of classes in an episode; for learners that take any, that of the labels given.
        """
        if not self.spec.classification:
            return labels
        # what is compiled cannot look at labels; there are no other ways in training
        any_ways = self.any_ways and not torch.compiler.is_compiling()
        ways = int(labels.max()) + 1 if any_ways else self.spec.outputs
        return nn.functional.one_hot(labels, ways).to(self.like.dtype)

    def class_means(self, values: Tensor, labels: Tensor) -> Tensor:
        """The mean of `values [N, S, F]` over the examples of each class, `[N, C, F]`."""
        members = self.one_hot(labels)
        return members.mT @ values / members.sum(1)[..., None]

    @property
    def like(self) -> Tensor:
        """A tensor of the type, and on the device, that the learner computes with."""
        return next(self.parameters(), torch.empty(()))

    def check_fits(self, spec: TaskSpec, training: bool = False) -> None:
        """A `ValueError`, in one line, unless the learner was made for tasks such as `spec` says."""
        for name in ("classification", "shape", "outputs", "vocabulary"):
            if name == "outputs" and self.any_ways and self.spec.classification and not training:
                continue
            if (made := getattr(self.spec, name)) != (given := getattr(spec, name)):
                raise ValueError(
                    f"{name} of the episodes must be that of {type(self).__name__}'s tasks, {made}, got {given}"
                )

    def check_support(self, examples: int) -> None:
        """A `ValueError`, in one line, unless support sets may have so many examples in all."""

    def adapt(self, support_x: Any, support_y: np.ndarray | Tensor) -> "Predictor":
        """Learn one task, `support_x [S, ...]` with labels `[S]` from 0, or targets `[S, D]`.

        Examples are those of episodes; with `prepare`, those that it takes, such as texts. Pictures may be of uint8.

        Raises:
            ValueError: in one line, at examples of another shape, features that are not finite, and labels out of range.
        """
        x = self.examples("support_x", support_x)
        y = _numbers("support_y", support_y)
        if len(y) != len(x):
            raise ValueError(f"support_y must be as many as support_x ({len(x)}), got {len(y)}")
        if self.spec.classification:
            y = self._checked_labels(y)
        else:
            y = y.to(self.like).view(len(x), -1)
            if y.shape[1] != self.spec.outputs:
                raise ValueError(
                    f"support_y must be {self.spec.outputs} finite numbers per example, got shape {(*y.shape,)}"
                )
            if not (finite := y.isfinite().all(1)).all():
                raise ValueError(f"support_y must be finite, but that of example {int((~finite).nonzero()[0])} is not")
        with torch.no_grad():
            return Predictor(self, self.condition(x[None], y[None]))

    def examples(self, name: str, x: np.ndarray | Tensor) -> Tensor:
        """`x [M, ...]`, prepared, as a tensor; a `ValueError` unless it is as the learner knows examples."""
        if self.prepare is not None:
            try:
                x = self.prepare(x.numpy(force=True) if isinstance(x, Tensor) else x)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        x = _numbers(name, x)
        shape = (*x.shape,)
        if not len(x) or shape[1:] != self.spec.shape:
            raise ValueError(f"{name} must have the shape (M, {', '.join(map(str, self.spec.shape))}), M > 0, got {shape}")
        if self.spec.vocabulary:
            if x.is_floating_point() or x.min() < 0 or x.max() >= self.spec.vocabulary:
                raise ValueError(f"{name} must be tokens from 0 to {self.spec.vocabulary - 1}")
            return x.long().to(self.like.device)
        of_bytes = x.dtype == torch.uint8 and (self.spec.pictures or self.spec.unit)
        x = x.to(self.like) / (255.0 if of_bytes else 1.0)
        if not (finite := x.flatten(1).isfinite().all(1)).all():
            raise ValueError(f"{name} must be finite, but example {int((~finite).nonzero()[0])} is not")
        if self.spec.unit and not -1 <= x.min() <= x.max() <= 2:  # resizing may go somewhat beyond
            raise ValueError(f"{name} must be of uint8, or numbers from 0 to 1, got {x.min():g} to {x.max():g}")
        return x

    def _checked_labels(self, y: Tensor) -> Tensor:
        if y.ndim != 1 or y.is_floating_point():
            raise ValueError(f"support_y must be whole numbers, one per example, got shape {(*y.shape,)} of {y.dtype}")
        present = y.unique()
        most = self.spec.outputs
        if self.any_ways:
            most = len(present)
            if (missing := (present != torch.arange(most)).nonzero()).numel() and present[0] >= 0:
                raise ValueError(f"support_y must have an example of every class, but none has label {int(missing[0])}")
        if present[0] < 0 or present[-1] >= most:
            raise ValueError(f"support_y must be labels from 0 to {most - 1}, got {int(present[0])} to {int(present[-1])}")
        return y.long().to(self.like.device)


def check_weight(name: str, value: float) -> float:
    """`value`; a `ValueError` unless it can be the weight of a part of a loss."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def check_answers(outputs: Tensor, classification: bool) -> None:
    """Raise `Diverged`, naming the first task and example whose `outputs [N, Q, ...]` are no answer.

    Predictions must be finite. Logits may be minus infinity, which says that a class is out of the question, but not all of
    an example's.
    """
    if classification:
        wrong = outputs.isnan().any(-1) | outputs.isposinf().any(-1) | outputs.isneginf().all(-1)
    else:
        wrong = ~outputs.isfinite().all(-1)
    if wrong.any():
        task, example = wrong.nonzero()[0].tolist()
        raise Diverged(task, f"the answer to example {example} is not finite")


def _numbers(name: str, values: np.ndarray | Tensor) -> Tensor:
    """`values` as a tensor with at least one axis; a `ValueError` unless they are numbers."""
    array = values.numpy(force=True) if isinstance(values, Tensor) else values
    array = np.array(array, ndmin=1, order="C")  # a copy: tensors cannot be read-only, nor go backwards
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be numbers, got {array.dtype}")
    if array.dtype.kind != "b" and array.dtype != np.uint8:  # to what tensors can be of
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
    return torch.from_numpy(array)


class Predictor:
    """A task, learned: called with examples `[Q, ...]`, it gives logits `[Q, C]` or predictions `[Q, D]`."""

    def __init__(self, learner: FewShotLearner, kept: Any):
        self.learner, self.kept = learner, kept

    @torch.no_grad()
    def __call__(self, query_x: np.ndarray | Tensor, transductive: bool = False) -> Tensor:
        """See the class; `transductive` as in `FewShotLearner.answer`.

        Raises:
            ValueError: in one line, at examples of another shape, or not finite; `Diverged` where an answer is not.
        """
        outputs = self.learner.answer(self.kept, self.learner.examples("query_x", query_x)[None], transductive)
        check_answers(outputs, self.learner.spec.classification)
        return outputs[0]

    def predict(self, query_x: np.ndarray | Tensor) -> np.ndarray:
        """The likeliest labels `[Q]`, or the predictions `[Q, D]`."""
        outputs = self(query_x)
        return (outputs.argmax(-1) if self.learner.spec.classification else outputs).numpy(force=True)

"""The protocol of problems that update rules are trained and measured on: `N` inner trainings side by side."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from metarl.batched import Params
from metarl.updates import UpdateRule

Instances = dict[str, Tensor]
"""What tells one inner training from another, by name, each `[N, ...]`."""

T = TypeVar("T")


class Run(NamedTuple):
    """`N` inner trainings under way. Every tensor in it has the leading axis `N`."""

    params: Params
    state: Any  # of the update rule
    instances: Instances
    age: Tensor  # inner steps taken


class Problem:
    """A distribution over inner trainings; each has its instance, its initial parameters and its minibatches.

    What is random is drawn from the generators that are given, for all rows at once. Where a method takes `copies`, the
    rows are so many blocks of equal length, of which each has the same instances and receives the same random numbers:
    the two halves of antithetic pairs, or the rates of a grid.

    A subclass says `sample`, `start`, `template` and `losses`, and `draw` where there are minibatches. One without a
    loss that can be differentiated says `advance` and `measure` instead of `losses`.

    Attributes:
        name: what messages and tables call it.
        horizon: steps of an inner training, as it is evaluated.
        splits: known to `sample`.
        differentiable: whether there are `losses`; otherwise what is to be made small is minus a return.
        tuning: how hand-made rules are tuned on it unless told otherwise: arguments of `metarl.problems.tuning.tune`.
    """

    name: str
    horizon: int
    splits: ClassVar[Sequence[str]] = ("train", "test")
    differentiable: ClassVar[bool] = True
    tuning: ClassVar[Mapping[str, Any]] = {"num": 256}

    def sample(self, num: int, split: str, rng: np.random.Generator) -> Instances:
        """Draw `num` instances of `split`."""
        raise NotImplementedError

    def start(self, instances: Instances, rng: np.random.Generator) -> Params:
        """Initial parameters `[N, ...]`."""
        raise NotImplementedError

    def template(self) -> dict[str, Tensor]:
        """Parameters of one inner training, without the axis of tasks: what an update rule is made with."""
        raise NotImplementedError

    def draw(self, instances: Instances, rng: np.random.Generator) -> Any:
        """What is random about one step, such as a minibatch: nested tensors `[N, ...]`."""
        return ()

    def losses(self, params: Params, instances: Instances, batch: Any) -> Tensor:
        """One loss per row `[N]`, of its own parameters only, that can be differentiated."""
        raise NotImplementedError

    def gradients(self, params: Params, instances: Instances, batch: Any, first_order: bool = True) -> tuple[Params, Tensor]:
        """Gradients `[N, ...]` of each row's own loss, and the losses `[N]`.

        Where `first_order` both are constants; otherwise both can be differentiated by `params`, which require gradients.
        """
        with torch.enable_grad():
            if first_order:
                params = {name: value.detach().requires_grad_() for name, value in params.items()}
            losses = self.losses(params, instances, batch)
            found = torch.autograd.grad(losses.sum(), params.values(), create_graph=not first_order)
        return dict(zip(params, found, strict=True)), losses.detach() if first_order else losses

    def begin(self, rule: UpdateRule, instances: Instances, rng: np.random.Generator, copies: int = 1) -> Run:
        """Inner trainings at their start, `copies` times as many as there are instances."""
        params = repeat(self.start(instances, rng), copies)
        age = torch.zeros(len(tree_leaves(params)[0]), dtype=torch.int64)
        return Run(params, rule.init(params), repeat(instances, copies), age)

    def shared(self, run: Run, rng: np.random.Generator, copies: int = 1) -> Any:
        """`draw` for all rows of a run, the same in each of the `copies`."""
        first = tree_map(lambda leaf: leaf[: len(run.age) // copies], run.instances)
        return repeat(self.draw(first, rng), copies)

    def advance(self, run: Run, rule: UpdateRule, rng: np.random.Generator, copies: int = 1) -> tuple[Run, Tensor]:
        """One inner step of all rows. Gradients are constants for whatever is differentiated (Andrychowicz et al. 2016).

        Returns:
            the run after it, and what is to be made small `[N]`, as it was before the step.
        """
        grads, losses = self.gradients(run.params, run.instances, self.shared(run, rng, copies))
        params, state = rule.update(grads, run.state, run.params, losses)
        return run._replace(params=params, state=state, age=run.age + 1), losses

    def measure(self, run: Run, rng: np.random.Generator, copies: int = 1) -> Tensor:
        """What is to be made small `[N]`, as it is now."""
        with torch.no_grad():
            return self.losses(run.params, run.instances, self.shared(run, rng, copies))


@torch.no_grad()
def unroll(
    problem: Problem, rule: UpdateRule, instances: Instances, steps: int, rng: np.random.Generator, copies: int = 1
) -> Tensor:
    """What is to be made small before each of `steps` inner steps and after the last: `[steps + 1, N]`, without derivatives.

    `N` is `copies` times the number of instances. The mean loss of an inner training is that of rows 1 to `steps`, as
    the first is not the rule's doing.
    """
    run = problem.begin(rule, instances, rng, copies)
    measures = []
    for _ in range(steps):
        run, before = problem.advance(run, rule, rng, copies)
        measures.append(before)
    return torch.stack([*measures, problem.measure(run, rng, copies)])


def with_tensors(rule: UpdateRule, tensors: Mapping[str, Tensor], function: Callable[[UpdateRule], T]) -> T:
    """What `function` gives for `rule` with `tensors` in the places of its parameters and buffers of these names.

    With a leading axis `[N, ...]` there is a set for each of `N` inner trainings, if the rule allows that, as a
    `Coordinatewise` one does; its rate is then `[N, 1]`.
    """
    return functional_call(_Calling(rule), {f"rule.{name}": value for name, value in tensors.items()}, (function,))


class _Calling(nn.Module):
    """Calls what it is given with its rule: `functional_call` knows `forward` only."""

    def __init__(self, rule: UpdateRule):
        super().__init__()
        self.rule = rule

    def forward(self, function: Callable[[UpdateRule], T]) -> T:
        return function(self.rule)


def restart(run: Run, rows: Tensor, fresh: Run) -> Run:
    """`run` with the inner trainings in `rows [N]` (bool) replaced by those in `fresh`."""
    return choose(rows, fresh, run)


def choose(rows: Tensor, yes: T, no: T) -> T:
    """Nested tensors `[N, ...]` from `yes` where `rows [N]` (bool) is set, else from `no`."""
    return tree_map(lambda a, b: torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


def repeat(tree: T, copies: int) -> T:
    """Nested tensors `[N, ...]`, `copies` times after one another."""
    return tree_map(lambda leaf: leaf.repeat(copies, *[1] * (leaf.ndim - 1)), tree) if copies > 1 else tree


def split_stream(problem: Problem, num: int, split: str, rng: np.random.Generator) -> np.random.Generator:
    """A generator for `num` instances of `split`: the splits' streams differ even for equal states of `rng`.

    Raises:
        ValueError: at a split that `problem` has not, or a number below 1.
    """
    if split not in problem.splits:
        raise ValueError(f"split must be one of {', '.join(problem.splits)} for {problem.name}, got {split!r}")
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    key = np.frombuffer(hashlib.sha256(split.encode()).digest(), "<u4").tolist()
    return np.random.default_rng(np.random.SeedSequence(rng.integers(2**32, size=8).tolist(), spawn_key=key))


def instances_hash(instances: Instances) -> str:
    """SHA-256: equal exactly when two sets hold the same instances in the same order."""
    digest = hashlib.sha256()
    for name in sorted(instances):
        values = np.ascontiguousarray(instances[name].numpy(force=True))
        digest.update(f"{name}{values.dtype.str}{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()

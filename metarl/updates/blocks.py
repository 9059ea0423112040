"""Parameters that step together by one update rule, flat and in place: what `LearnedOptimizer` is made of."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.linalg import vector_norm

from metarl.updates import guard
from metarl.updates.base import Coordinatewise


class Block:
    """Tensors of one device and precision that have always had their gradients at the same steps: one state for all.

    Args:
        params: the tensors, which are changed in place; `P` numbers together.
        indices: which ones of their group they are.
        rule: made for these tensors.
        guarded: whether to watch for divergence, see `metarl.updates.guard`.
        compiled: whether to use `torch.compile` for the rule's moves.

    Attributes:
        rule_state: for one task.
        adam: averages `(mean, square)` `[1, P]`, or () without a guard.
        seen: gradients in these averages.
        before: the parameters before the last step, `[1, P]`, or None without a guard or a step.
        distance: norm of the last step.
        steps: taken.
        fallen: whether Adam has taken over.
    """

    def __init__(
        self, params: Sequence[Tensor], indices: Sequence[int], rule: Coordinatewise, guarded: bool, compiled: bool = False
    ):
        self.params, self.indices = list(params), list(indices)
        self.rule, self.guarded, self.compiled = rule.requires_grad_(False), guarded, compiled
        flat = flatten(self.params)
        self.rule_state = rule.start(flat)
        self.adam = (torch.zeros_like(flat), torch.zeros_like(flat)) if guarded else ()
        self.before: Tensor | None = None
        self.levels = [guard.Level() for _ in range(3)]
        self.steps, self.seen, self.distance, self.fallen = 0, 0, 0.0, False
        self._views: tuple[int, tuple[Tensor, ...]] | None = None
        self._move: Callable[..., Any] | None = None

    def step(self, grads: Sequence[Tensor], rate: float, loss: Any) -> tuple[int, float] | None:
        """One step.

        Args:
            grads: of all parameters.
            rate: the step size.
            loss: a number or a tensor of one, or None.

        Returns:
            None; or what diverged and how large it is, as `(guard.GRADIENTS, 12.3)`: the block is with Adam now (`fallen`),
            or stays as it is where it was with Adam already and its gradients are not finite.
        """
        grad = flatten(grads)
        if self.fallen:
            return self._adam_step(grad, rate)
        flat = flatten(self.params)
        if loss is not None:
            loss = torch.as_tensor(loss, dtype=flat.dtype, device=flat.device).detach().reshape(1)
        if self._move is None:
            self._move = torch.compile(self.rule.move, dynamic=False) if self.compiled else self.rule.in_place()
        moves, self.rule_state = self._move(grad, self.rule_state, flat, loss)
        if self.guarded:
            squared = grad[0].dot(grad[0]), moves[0].dot(moves[0])  # both, before the first is waited for
            sizes = [*(math.sqrt(value) for value in squared), 0.0 if loss is None else float(loss)]
            for kind in (guard.LOSS, guard.GRADIENTS, guard.MOVES):  # the last may be the fault of the others
                if self.levels[kind].exceeded(sizes[kind]):
                    self._fall_back(kind, grad, flat, rate)
                    return kind, sizes[kind]
            self._average(grad)
            self.before, self.distance = flat, abs(rate) * sizes[guard.MOVES]
        self._write(moves, rate)
        return None

    def _fall_back(self, fault: int, grad: Tensor, flat: Tensor, rate: float) -> None:
        """Adam's step in place of the one at fault; see `metarl.updates.guard`."""
        if fault == guard.MOVES:
            self._average(grad)
        elif self.before is not None:
            # not where somebody else has changed the parameters since, as by loading others
            moved, slack = float(vector_norm(flat - self.before)), 1e-3 * self.distance + 1e-6 * float(vector_norm(flat))
            if abs(moved - self.distance) <= slack:
                torch._foreach_copy_(self.params, _unflatten_dense_tensors(self.before[0], self.params))
        self.fallen = True
        self._write(guard.adam(*self.adam, self.seen), rate)

    def _adam_step(self, grad: Tensor, rate: float) -> tuple[int, float] | None:
        size = float(vector_norm(grad))
        if not math.isfinite(size):
            return guard.GRADIENTS, size
        self._average(grad)
        self._write(guard.adam(*self.adam, self.seen), rate)
        return None

    def _average(self, grad: Tensor) -> None:
        mean, square = self.adam
        mean.lerp_(grad, 1.0 - guard.BETA1)
        square.mul_(guard.BETA2).addcmul_(grad, grad, value=1.0 - guard.BETA2)
        self.seen += 1

    def _write(self, moves: Tensor, rate: float) -> None:
        if self._views is None or self._views[0] != moves.data_ptr():  # rules may give their moves in the same place
            self._views = moves.data_ptr(), _unflatten_dense_tensors(moves[0], self.params)
        torch._foreach_add_(self.params, self._views[1], alpha=rate)
        self.steps += 1

    def take(self, places: Sequence[int], rule: Coordinatewise) -> "Block":
        """A block of some of the tensors, by their places here, with what is known of them. `rule` is made for them."""
        params, indices = [self.params[i] for i in places], [self.indices[i] for i in places]
        block = Block(params, indices, rule, self.guarded, self.compiled)
        numbers = numbers_of(self.params, places)
        state = self.state_dict()
        if self.before is not None:
            block.before = flatten(params)
            # how far these ones went alone
            state["distance"] = float(vector_norm(block.before - narrow(self.before, block.before, numbers)))
        tensors = _map(lambda whole, part: narrow(whole, part, numbers), state["tensors"], block.state_dict()["tensors"])
        block.load_state_dict({**state, "tensors": tensors})
        return block

    def state_dict(self) -> dict[str, Any]:
        """Tensors, copied, and primitives."""
        tensors = {"rule": self.rule_state, "adam": self.adam, "before": () if self.before is None else self.before}
        return {
            **{name: getattr(self, name) for name in ("indices", "guarded", "steps", "seen", "distance", "fallen")},
            "levels": [[level.first, level.usual] for level in self.levels],
            "tensors": _map(lambda tensor, _: tensor.clone(), tensors, tensors),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """What `state_dict` gave for the same tensors. A `ValueError` where it does not fit."""
        tensors = saved["tensors"]
        if isinstance(tensors["before"], Tensor):
            self.before = flatten(self.params)
        ours = {"rule": self.rule_state, "adam": self.adam, "before": () if self.before is None else self.before}
        tensors = _map(_copied, ours, tensors)
        self.rule_state, self.adam = tensors["rule"], tensors["adam"]
        self.before = tensors["before"] if self.before is not None else None
        self.levels = [guard.Level(*level) for level in saved["levels"]]
        for name in ("steps", "seen", "distance", "fallen"):
            setattr(self, name, saved[name])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": None, "_move": None}


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of `tensors` in new memory: `[1, P]`. A `ValueError` at sparse ones."""
    try:
        flat = _flatten_dense_tensors(tensors) if len(tensors) > 1 else tensors[0].detach().reshape(-1).clone()
    except RuntimeError:
        layouts = {tensor.layout for tensor in tensors} - {torch.strided}
        if layouts:
            raise ValueError(f"gradients must be dense, got {layouts.pop()}") from None
        raise
    return flat[None]


def numbers_of(tensors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Where the numbers of the tensors at `places` are among all of them."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + tensor.numel())
    return torch.cat([torch.arange(starts[i], starts[i + 1]) for i in places])


def narrow(whole: Tensor, part: Tensor, numbers: Tensor) -> Tensor:
    """What `whole` says of `numbers`: a tensor with the shape of `part`, which differs along the axis of numbers only."""
    axes = [axis for axis in range(whole.ndim) if whole.shape[axis] != part.shape[axis]]
    return whole.index_select(axes[0], numbers.to(whole.device)) if axes else whole.clone()


def _copied(like: Tensor, saved: Tensor) -> Tensor:
    if like.shape != saved.shape:
        raise ValueError(f"a tensor of shape {tuple(saved.shape)} where {tuple(like.shape)} is needed")
    return torch.empty_like(like).copy_(saved)


def _map(function: Callable[[Tensor, Tensor], Tensor], first: Any, second: Any) -> Any:
    """`function` of all pairs of tensors in two nests of the same structure."""
    if isinstance(first, Tensor):
        return function(first, second)
    if isinstance(first, dict):
        if first.keys() != second.keys():
            raise ValueError(f"entries {sorted(second)} where {sorted(first)} are needed")
        return {key: _map(function, value, second[key]) for key, value in first.items()}
    return type(first)(_map(function, *pair) for pair in zip(first, second, strict=True))

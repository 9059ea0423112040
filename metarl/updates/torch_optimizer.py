"""Update rules as `torch.optim` optimizers: where Adam stood, as in Stable-Baselines3's `optimizer_class`."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarl.plain import check_known
from metarl.updates import RULES
from metarl.updates.base import Coordinatewise
from metarl.updates.blocks import Block, narrow, numbers_of
from metarl.updates.weights import SavedRule, read_rule

_LOG = logging.getLogger("metarl")
_WATCHED = ("norm of the gradients", "norm of the moves", "loss")
_PRECISIONS = (torch.float32, torch.float64)


class LearnedOptimizer(torch.optim.Optimizer):
    """A learned (or hand-made) update rule where `torch.optim.Adam` would stand.

        PPO("MlpPolicy", env, policy_kwargs=dict(optimizer_class=LearnedOptimizer, optimizer_kwargs=dict(weights="NAME")))

    As in `torch.optim`, parameters that have no gradient in a step are left alone, and so is what the rule knows of them.
    `step(closure)` tells the rule the loss. `state_dict` holds all that the next steps depend on, the weights of the rule
    too: so training goes on equal to the bit, whatever has become of the file. `load_state_dict` puts them in place of those
    that the optimizer was made with. A Stable-Baselines3 model whose file is gone loads with another rule in its stead:

        PPO.load(path, custom_objects={"policy_kwargs": dict(optimizer_class=LearnedOptimizer,
                                                             optimizer_kwargs=dict(rule="adam"))})

    Args:
        params: parameters of 32 or 64 bits, or groups of them with an `lr` or `guard` of their own.
        lr: the step size, which all steps are proportional to. None: the one that the rule was trained at.
        weights: a trained rule: its name, or a file that ends in `.safetensors`; see `metarl.updates.weights`.
        rule: in place of `weights`, the name of a hand-made rule in `metarl.updates.RULES`, such as "adam".
        options: keyword arguments of that rule.
        guard: go on with Adam, for good, where a group of parameters diverges; see `metarl.updates.guard`. The logger
            "metarl" says so once per group. No step that is not finite is taken then.
        horizon: steps that training will take, for rules that ask for it.
        compile: use `torch.compile` for the rule's arithmetic, which takes seconds at the first step and a C++ compiler.
            Faster for rules with recurrent networks only; results differ by rounding.

    Raises:
        ValueError: in one line, at an unknown name or file, wrong options, and parameters that the rule cannot change.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        weights: str | Path | None = None,
        rule: str | None = None,
        options: Mapping[str, Any] | None = None,
        guard: bool = True,
        horizon: int | None = None,
        compile: bool = False,
    ):
        self._rule = _find(lr, weights, rule, options, horizon)
        self._compile = compile
        self._blocks: list[list[Block]] = []  # of each group
        super().__init__(params, {"lr": self._rule.rate if lr is None else lr, "guard": guard})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in `torch.optim.Optimizer`.

        Raises:
            ValueError: in one line, at a wrong `lr` or `guard`, and where the rule cannot change the parameters.
        """
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
            made = self._make(self.param_groups[-1], [0])
        except ValueError:
            self.param_groups.pop()
            raise
        if not self._rule.weights:  # of an untrained rule: drawn once, and the same for all
            self._rule = replace(self._rule, weights={name: value.clone() for name, value in made.state_dict().items()})
        self._blocks.append([])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient.

        Args:
            closure: computes the loss anew, and its gradients, and returns it.

        Returns:
            what `closure` returns, or None.

        Raises:
            ValueError: at sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            for block, grads in self._with_gradients(number, group):
                fallen = block.fallen
                fault = block.step(grads, group["lr"], loss)
                if fault is not None and not fallen:
                    self._fall_back(number, block, *fault)
                elif fault is not None and not group.get("blind"):
                    group["blind"] = True
                    _LOG.warning("parameter group %d: gradients are not finite, such steps are left out", number)
        return loss

    def _with_gradients(self, number: int, group: dict[str, Any]) -> list[tuple[Block, list[Tensor]]]:
        """The blocks to step, with their gradients. Blocks are split, and new ones made, until each has all or none."""
        blocks, ready = self._blocks[number], []
        for block in list(blocks):
            grads = [param.grad for param in block.params]
            missing = [place for place, grad in enumerate(grads) if grad is None]
            if len(missing) == len(grads):
                continue
            if missing:
                there = [place for place, grad in enumerate(grads) if grad is not None]
                parts = [block.take(p, self._make(group, [block.indices[i] for i in p])) for p in (there, missing)]
                blocks.remove(block)
                blocks += parts
                block, grads = parts[0], [grads[place] for place in there]
            ready.append((block, grads))
        if sum(len(block.params) for block in blocks) < len(group["params"]):
            for block in self._newcomers(group, blocks):
                blocks.append(block)
                ready.append((block, [param.grad for param in block.params]))
        return ready

    def _newcomers(self, group: dict[str, Any], blocks: list[Block]) -> list[Block]:
        """Blocks of the parameters that have a gradient for the first time, by device and precision."""
        known = {index for block in blocks for index in block.indices}
        kinds: dict[Any, list[int]] = {}
        for index, param in enumerate(group["params"]):
            if index not in known and param.grad is not None:
                kinds.setdefault((param.device, param.dtype), []).append(index)
        made = [self._block(group, indices) for indices in kinds.values()]
        for block in made:
            block.fallen = any(other.fallen for other in blocks)
        return made

    def _block(self, group: dict[str, Any], indices: list[int]) -> Block:
        params = [group["params"][index] for index in indices]
        return Block(params, indices, self._make(group, indices), group["guard"], self._compile)

    def _make(self, group: dict[str, Any], indices: list[int]) -> Coordinatewise:
        """The rule for some parameters of a group; what it knows of them, such as their depth, is from the whole group."""
        names = _names(group)
        whole = self._rule.make(dict(zip(names, group["params"], strict=True)))
        rule = self._rule.make({names[index]: group["params"][index] for index in indices})
        numbers = numbers_of(group["params"], indices)
        for ours, theirs in zip(rule.buffers(), whole.buffers(), strict=True):
            ours.copy_(narrow(theirs, ours, numbers))
        return rule

    def _fall_back(self, number: int, fallen: Block, kind: int, size: float) -> None:
        for block in self._blocks[number]:
            block.fallen = True
        what = f"{_WATCHED[kind]} {f'exploded ({size:.3g})' if math.isfinite(size) else 'not finite'}"
        message = "parameter group %d goes on with Adam at rate %g: %s at step %d"
        _LOG.warning(message, number, self.param_groups[number]["lr"], what, fallen.steps)

    def state_dict(self) -> dict[str, Any]:
        """As in `torch.optim.Optimizer`: tensors and primitives."""
        blocks = [[block.state_dict() for block in blocks] for blocks in self._blocks]
        return {**super().state_dict(), "rule": vars(self._rule).copy(), "blocks": blocks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `torch.optim.Optimizer`; what is loaded is copied.

        Raises:
            RuntimeError: in one line, when this is the state of another optimizer, or does not fit the parameters.
            ValueError: when the groups do not fit.
        """
        if not {"rule", "blocks"} <= state_dict.keys():
            raise RuntimeError(f"state_dict is not that of a LearnedOptimizer: it has {', '.join(map(str, state_dict))}")
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        try:
            self._rule = SavedRule(**state_dict["rule"])
            self._blocks = [
                [self._loaded(group, saved) for saved in blocks]
                for group, blocks in zip(self.param_groups, state_dict["blocks"], strict=True)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise RuntimeError(f"state_dict does not fit: {error}") from None

    def _loaded(self, group: dict[str, Any], saved: dict[str, Any]) -> Block:
        block = self._block(group, saved["indices"])
        block.load_state_dict(saved)
        return block

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rule": self._rule, "_compile": self._compile, "_blocks": self._blocks}


def _find(
    lr: float | None, weights: str | Path | None, name: str | None, options: Mapping[str, Any] | None, horizon: int | None
) -> SavedRule:
    """The rule that the optimizer's arguments mean."""
    if (weights is None) == (name is None):
        raise ValueError(f"one of weights and rule must be given, got weights={weights!r}, rule={name!r}")
    known = [key for key, kind in RULES.items() if issubclass(kind, Coordinatewise)]
    if weights is not None:
        if options is not None:
            raise ValueError(f"options go with rule, weights have their own, got {options!r}")
        found = read_rule(weights)
    else:
        if lr is None:
            raise ValueError(f"lr must be given for rule {name!r}, got None")
        found = SavedRule(name, dict(options or {}), float(lr), {})
    check_known(f"rule {found.name!r}", found.name, known)
    return found if horizon is None else replace(found, options={**found.options, "horizon": horizon})


def _check_group(group: dict[str, Any]) -> None:
    rate, guarded = group["lr"], group["guard"]
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
        raise ValueError(f"lr must be a finite number of at least 0, got {rate!r}")
    if not isinstance(guarded, bool):
        raise ValueError(f"guard must be true or false, got {guarded!r}")
    for param in group["params"]:
        if param.dtype not in _PRECISIONS:
            raise ValueError(f"params must be of torch.float32 or torch.float64, got {param.dtype}")


def _names(group: dict[str, Any]) -> list[str]:
    """Names of a group's parameters; where nobody has told them, a weight and the bias after it share a layer's."""
    if "param_names" in group:
        return group["param_names"]
    names, layer, last = [], -1, None
    for param in group["params"]:
        bias = last is not None and last.ndim > 1 and param.shape == last.shape[:1]
        layer += not bias
        names.append(f"{layer}.{'bias' if bias else 'weight'}")
        last = param
    return names

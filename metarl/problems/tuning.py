"""Hand-made rules at their best: rates, and momentum, tuned on training problems, all rates of a grid side by side."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metarl.problems.base import Problem, unroll, with_tensors
from metarl.updates import RULES
from metarl.updates.base import Coordinatewise

Measure = Literal["mean", "final"]

RATES = tuple(float(f"{10 ** (k / 6):.2g}") for k in range(-24, 13))
"""Six in every power of ten, from 1e-4 to 100."""

MOMENTA = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)

OPTIONS: dict[str, dict[str, Sequence[Any]]] = {"momentum": {"momentum": MOMENTA}, "nesterov": {"momentum": MOMENTA}}
"""What else than the rate is tuned, by the name of the rule."""


@dataclass(frozen=True)
class Tuned:
    """What was best for one rule."""

    rate: float
    options: dict[str, Any]
    mean: float
    """Over instances and the steps from the first on, as `unroll` counts them."""
    final: float
    """Over instances, after the last step."""
    at_edge: bool
    """Whether a lower or higher rate, outside the grid, might be better."""


def tune(
    problem: Problem,
    names: Sequence[str],
    rng: np.random.Generator,
    *,
    measure: Measure = "mean",
    num: int = 512,
    steps: int | None = None,
    rates: Sequence[float] = RATES,
    options: Mapping[str, Mapping[str, Sequence[Any]]] = OPTIONS,
) -> dict[str, Tuned]:
    """The best rate and options of each rule, on `num` instances of the split `train`, the same for all.

    Args:
        problem: what to tune on.
        names: of rules.
        rng: draws instances, initial parameters and minibatches.
        measure: what is to be small: the mean loss over steps, or the loss after the last.
        num: instances.
        steps: of an inner training; the problem's horizon by default.
        rates: to be tried.
        options: values of keyword arguments to be tried with each rate, by the name of the rule.

    Raises:
        ValueError: at an unknown measure, or where a rule diverges at all rates.
    """
    found = sweep(problem, names, rng, num=num, steps=steps, rates=rates, options=options)
    return {name: best_of(settings, measure) for name, settings in found.items()}


def sweep(
    problem: Problem,
    names: Sequence[str],
    rng: np.random.Generator,
    *,
    num: int = 512,
    steps: int | None = None,
    rates: Sequence[float] = RATES,
    options: Mapping[str, Mapping[str, Sequence[Any]]] = OPTIONS,
) -> dict[str, list[Tuned]]:
    """All settings of each rule that do not diverge, from which `best_of` chooses; arguments and errors as in `tune`."""
    instances, seed = problem.sample(num, "train", rng), int(rng.integers(2**63))
    found: dict[str, list[Tuned]] = {name: [] for name in names}
    for name, settings in found.items():
        grid = options.get(name, {})
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            losses = unroll_rates(problem, name, rates, instances, steps or problem.horizon, seed, **chosen)
            means, finals = losses[1:].mean((0, 2)), losses[-1].mean(1)
            for k in means.isfinite().nonzero()[:, 0].tolist():
                edge = rates[k] in (min(rates), max(rates))
                settings.append(Tuned(float(rates[k]), chosen, means[k].item(), finals[k].item(), edge))
        if not settings:
            raise ValueError(f"{name} diverges on {problem.name} at all rates, of which the lowest is {min(rates)}")
    return found


def best_of(settings: Sequence[Tuned], measure: Measure) -> Tuned:
    """The setting whose `measure` is smallest.

    Raises:
        ValueError: at an unknown measure.
    """
    if measure not in ("mean", "final"):
        raise ValueError(f"measure must be one of mean, final, got {measure!r}")
    return min(settings, key=attrgetter(measure))


def unroll_rates(
    problem: Problem, name: str, rates: Sequence[float], instances: Any, steps: int, seed: int, **options: Any
) -> Tensor:
    """`unroll` of a rule at each of `rates`, with the same random numbers: `[steps + 1, len(rates), N]`."""
    rule = RULES[name](problem.template(), rates[0], **options)
    num = len(next(iter(instances.values())))

    def run(rule: Any, copies: int) -> Tensor:
        return unroll(problem, rule, instances, steps, np.random.default_rng(seed), copies).unflatten(1, (copies, num))

    if isinstance(rule, Coordinatewise):
        each = torch.tensor(rates, dtype=torch.float32).repeat_interleave(num)[:, None]
        return with_tensors(rule, {"rate": each}, lambda rule: run(rule, len(rates)))
    return torch.cat([run(RULES[name](problem.template(), rate, **options), 1) for rate in rates], 1)

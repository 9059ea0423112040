"""Gradients for the training of update rules, estimated from short windows of long inner trainings, `N` side by side.

- `TBPTT`: back-propagation through the steps of a window, what came before it taken as constant (Andrychowicz et al. 2016,
  section 2.1). The gradients that a rule is given are constants (the dashed edges of figure 2) where it is `first_order`.
- `PES`: persistent evolution strategies (Vicol, Metz & Sohl-Dickstein 2021, "Unbiased gradient estimation in unrolled
  computation graphs with persistent evolution strategies", algorithm 2), which needs no derivatives and no loss that has
  any. Inner trainings run in antithetic pairs; what a pair's weights were moved by is summed over all windows since the
  pair started, and that takes away the bias of truncation.

Both know a problem only through `metarl.problems.base.Problem`. Inner trainings end at lengths drawn for each, and start
at different times, so that every window sees all ages (Vicol et al.).

Departures: the losses of an inner training may be transformed (`Objective`); rows that diverge count as the worst of all, or
not at all; and the gradient of each row may be bounded.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from metarl.problems.base import Problem, Run, restart, with_tensors
from metarl.seeding import generator_state, restore_generator
from metarl.updates import UpdateRule

Objective = Literal["loss", "relative", "log", "deviation", "rank"]
"""What is made small, from the losses `f` of an inner training and its first one, `f0`:

- "loss": `f`. Hard instances weigh most.
- "relative": `f / f0`
- "log": `log(f / f0 + FLOOR)`. All orders of magnitude weigh alike.
- "deviation": the losses of a window, divided by their root mean square difference within pairs; `PES` only, for returns.
- "rank": 0 or 1, for the better and worse of a pair in a window; `PES` only.
"""

FLOOR = 1e-6
"""Relative losses that "log" takes no further notice of."""

STREAMS = ("instances", "starts", "batches", "lengths", "perturbations")
"""Names of the generators that an estimator draws from."""

Gradients = dict[str, Tensor]


class Estimator:
    """`N` inner trainings under way, and gradients from one window of steps after another.

    Args:
        steps: inner steps in a window.
        objective: see `Objective`.
        lengths: the shortest and longest inner training, drawn for each so that their logarithms are uniform; by default
            all have the problem's horizon. They end with the first window that reaches their length.

    Raises:
        ValueError: at numbers out of range or an unknown objective.
    """

    objectives: tuple[str, ...] = get_args(Objective)
    copies = 1
    """Rows in a group with the same instance, initial parameters and minibatches, `N / copies` rows apart."""

    def __init__(self, steps: int = 20, objective: Objective = "loss", lengths: tuple[int, int] | None = None):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if objective not in self.objectives:
            raise ValueError(f"objective must be one of {', '.join(self.objectives)}, got {objective!r}")
        if lengths is not None and not 1 <= lengths[0] <= lengths[1]:
            raise ValueError(f"lengths must be two integers of at least 1 in rising order, got {lengths}")
        self.steps = steps
        self.objective = objective
        self.lengths = lengths

    def start(self, problem: Problem, rule: UpdateRule, num: int, rngs: Mapping[str, np.random.Generator]) -> None:
        """Begin `num` inner trainings of `problem` by `rule`, whose ends are spread evenly over time.

        `rngs` has a generator for each of `STREAMS`.

        Raises:
            ValueError: when `num` is not a positive multiple of the rows in a group, or `rule` does not take weights with a
                leading axis, a set for every row.
        """
        if num < 1 or num % self.copies:
            raise ValueError(f"num must be a positive multiple of {self.copies}, got {num}")
        self.problem, self.rule, self.num = problem, rule, num
        self.rngs = {name: rngs[name] for name in STREAMS}
        self._check_rule()
        self.run = self._fresh()
        whole = self._draw_lengths()
        self.ends = torch.from_numpy(self.rngs["lengths"].integers(1, whole.numpy() + 1)).repeat(self.copies)
        self.firsts = torch.ones(num)

    def step(self) -> tuple[Gradients, dict[str, float]]:
        """Advance by a window.

        Returns:
            the estimate of the gradient of the objective, averaged over inner trainings and steps, with respect to the
            rule's parameters, by name; and what to report, as they were in this window: `loss`, averaged over rows and
            steps, `diverged`, the share of rows that are no longer finite, and `restarted`, that of new ones.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly, for a checkpoint."""
        return {
            "run": tree_leaves(self.run),
            "ends": self.ends,
            "firsts": self.firsts,
            "rngs": {name: generator_state(rng) for name, rng in self.rngs.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after `start` with the same arguments."""
        self.run = tree_unflatten(state["run"], tree_flatten(self.run)[1])
        self.ends, self.firsts = state["ends"], state["firsts"]
        for name, rng in self.rngs.items():
            restore_generator(rng, state["rngs"][name])

    # -- what both share -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _check_rule(self) -> None:
        """Refuse a rule for which `w[0]` is always its first weight, never the first row's."""
        template = self.problem.template().items()
        params = {name: torch.stack([value + 1.0, value - 1.0, value + 0.5]) for name, value in template}
        losses = next(iter(params.values())).new_ones(3)

        def step(rule: UpdateRule) -> dict[str, Tensor]:
            return rule.update(params, rule.init(params), params, losses)[0]

        weights = {name: value.expand(3, *value.shape) for name, value in self.rule.named_parameters()}
        try:
            by_row, alike = with_tensors(self.rule, weights, step), step(self.rule)
            fits = all(torch.allclose(by_row[name], alike[name], rtol=1e-4, atol=1e-5, equal_nan=True) for name in alike)
        except (RuntimeError, IndexError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                "rule must take weights with a leading axis, a set for every inner training, but "
                f"{type(self.rule).__name__} does not: see metarl.updates.base.Coordinatewise"
            )

    @torch.no_grad()
    def _fresh(self) -> Run:
        instances = self.problem.sample(self.num // self.copies, "train", self.rngs["instances"])
        return self.problem.begin(self.rule, instances, self.rngs["starts"], self.copies)

    def _draw_lengths(self) -> Tensor:
        """The lengths of new inner trainings, `[N / copies]`."""
        low, high = self.lengths or (self.problem.horizon,) * 2
        logs = self.rngs["lengths"].uniform(math.log(low), math.log(high + 1), self.num // self.copies)
        return torch.from_numpy(np.clip(np.exp(logs), low, high).astype(np.int64))

    def _restart(self, diverged: Tensor) -> Tensor:
        """Put new inner trainings in place of those that are over or have `diverged [N]`; which they were, `[N]`."""
        groups = (diverged | (self.run.age >= self.ends)).view(self.copies, -1).any(0)
        rows = groups.repeat(self.copies)
        if rows.any():
            self.run = restart(self.run, rows, self._fresh())
            self.ends = torch.where(rows, self._draw_lengths().repeat(self.copies), self.ends)
        return rows

    def _note_firsts(self, before: Tensor) -> None:
        """Keep the first losses of rows that have just begun, from the losses before a window `[N]`."""
        self.firsts = torch.where(self.run.age == 0, before.abs(), self.firsts)


class TBPTT(Estimator):
    """Truncated back-propagation through time.

    The gradient of a window is that of the objective after each of its steps. The losses' gradients with respect to the
    inner parameters are known from the inner steps; they are where back-propagation through the rule starts, so in first
    order no loss keeps its graph. Rows that are not finite, or whose gradients are not, are left out of the estimate. At the
    edge of stability a few rows' gradients are far larger than all others and decide it, unless `max_row_norm` bounds them.

    Args:
        steps: see `Estimator`.
        objective: "loss", "relative" or "log"; see `Objective`.
        lengths: see `Estimator`.
        first_order: whether gradients that the rule is given count as constants. Otherwise the estimate is exact within a
            window: what an inner step does to the gradients after it (the inner losses' second derivatives) counts too,
            as far as the rule lets derivatives through.
        max_row_norm: bound on the norm of the gradient of one row, before their mean is taken.
    """

    objectives = ("loss", "relative", "log")

    def __init__(
        self,
        steps: int = 20,
        objective: Objective = "loss",
        lengths: tuple[int, int] | None = None,
        first_order: bool = True,
        max_row_norm: float | None = None,
    ):
        super().__init__(steps, objective, lengths)
        if max_row_norm is not None and not 0 < max_row_norm < math.inf:
            raise ValueError(f"max_row_norm must be above 0 and finite, got {max_row_norm}")
        self.first_order = first_order
        self.max_row_norm = max_row_norm

    def step(self) -> tuple[Gradients, dict[str, float]]:
        """As in the base class."""
        batches = [self.problem.shared(self.run, self.rngs["batches"]) for _ in range(self.steps + 1)]
        # each row has weights of its own, so that gradients are known by row, and none can spoil another's
        weights = {
            name: value.detach().expand(self.num, *value.shape).clone().requires_grad_()
            for name, value in self.rule.named_parameters()
        }
        gradients, end, losses = with_tensors(self.rule, weights, partial(self._window, batches, weights))
        finite = losses.isfinite().all(0)
        for leaf in tree_leaves((end.params, end.state)):
            finite = finite & leaf.reshape(self.num, -1).isfinite().all(1)
        self._note_firsts(losses[0])
        self.run = end
        restarted = self._restart(~finite)
        parts = {
            "loss": losses[1:, finite].mean(),
            "diverged": (~finite).float().mean(),
            "restarted": restarted.float().mean(),
        }
        return self._average(gradients, finite), {name: value.item() for name, value in parts.items()}

    def _average(self, gradients: Gradients, finite: Tensor) -> Gradients:
        """The mean of `gradients [N, ...]` over rows that are `finite [N]`, each made as small as `max_row_norm`."""
        flat = torch.cat([value.reshape(self.num, -1).double() for value in gradients.values()], 1)
        norms = flat.norm(dim=1)  # in double, where squares of all that float32 can hold are finite
        finite = finite & norms.isfinite()  # the product of many steps may be too large to be held
        factors = finite / finite.sum().clamp_min(1).double()
        if self.max_row_norm is not None:
            factors = factors * (self.max_row_norm / norms).clamp_max(1.0)
        mean = (factors[finite] @ flat[finite]).split([value[0].numel() for value in gradients.values()])
        return {
            name: part.view(value.shape[1:]).to(value) for (name, value), part in zip(gradients.items(), mean, strict=True)
        }

    def _window(self, batches: list[Any], weights: Gradients, rule: UpdateRule) -> tuple[Gradients, Run, Tensor]:
        """The gradients of rows by their `weights`, the run after the window, and the losses `[steps + 1, N]`."""
        run, firsts = self.run, self.firsts
        outputs, pulls, seen = [], [], []
        with torch.enable_grad():
            for step, batch in enumerate(batches):
                # the first parameters do not depend on the weights, and nothing is done with the last gradients
                order = {} if self.first_order or step in (0, self.steps) else {"first_order": False}
                grads, losses = self.problem.gradients(run.params, run.instances, batch, **order)
                seen.append(losses.detach())
                if step == 0:
                    firsts = torch.where(run.age == 0, seen[0].abs(), firsts)
                else:
                    slopes = self._slopes(seen[-1], firsts) / self.steps
                    outputs += [run.params[name] for name in grads]
                    pulls += [slopes.view(-1, *[1] * (grad.ndim - 1)) * grad.detach() for grad in grads.values()]
                if step < self.steps:
                    params, state = rule.update(grads, run.state, run.params, losses)
                    run = run._replace(params=params, state=state, age=run.age + 1)
            found = torch.autograd.grad(outputs, list(weights.values()), pulls, materialize_grads=True)
        return dict(zip(weights, found, strict=True)), tree_map(torch.detach, run), torch.stack(seen)

    def _slopes(self, losses: Tensor, firsts: Tensor) -> Tensor:
        """The objective's derivative by the losses, `[N]`."""
        match self.objective:
            case "loss":
                return torch.ones_like(losses)
            case "relative":
                return 1.0 / firsts
        return 1.0 / (losses + FLOOR * firsts)


class PES(Estimator):
    """Persistent evolution strategies, with antithetic pairs: rows `i` and `i + N / 2`.

    With the perturbations `e` of a window, drawn for each pair, the weights of its rows are `w + e` and `w - e`; with `s`
    the sum of a pair's perturbations since it began and `L+`, `L-` the mean objectives of its rows in this window, the
    estimate is the mean over pairs of `s (L+ - L-) / (2 sigma^2)`. Its expectation is the gradient of the objective
    averaged over perturbations, without bias for "loss" and "relative".

    Args:
        steps: see `Estimator`.
        objective: see `Objective`.
        lengths: see `Estimator`.
        sigma: standard deviation of the perturbations.
        persistent: otherwise `s` holds this window's perturbation only: truncated evolution strategies (Metz et al. 2019).
    """

    copies = 2

    def __init__(
        self,
        steps: int = 20,
        objective: Objective = "loss",
        lengths: tuple[int, int] | None = None,
        sigma: float = 0.01,
        persistent: bool = True,
    ):
        super().__init__(steps, objective, lengths)
        if not sigma > 0:
            raise ValueError(f"sigma must be above 0, got {sigma}")
        self.sigma = sigma
        self.persistent = persistent

    def start(self, problem: Problem, rule: UpdateRule, num: int, rngs: Mapping[str, np.random.Generator]) -> None:
        """As in the base class."""
        super().start(problem, rule, num, rngs)
        self.sums = {name: value.new_zeros(num // 2, *value.shape) for name, value in rule.named_parameters()}

    def state(self) -> dict[str, Any]:
        """As in the base class."""
        return {**super().state(), "sums": self.sums}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """As in the base class."""
        super().set_state(state)
        self.sums = state["sums"]

    @torch.no_grad()
    def step(self) -> tuple[Gradients, dict[str, float]]:
        """As in the base class."""
        drawn = {name: self._noise(value) for name, value in self.sums.items()}
        self.sums = {name: value + drawn[name] for name, value in self.sums.items()} if self.persistent else drawn
        weights = {n: torch.cat([w + drawn[n], w - drawn[n]]) for n, w in self.rule.named_parameters()}
        end, losses = with_tensors(self.rule, weights, self._window)
        self._note_firsts(losses[0])
        diverged = ~losses.isfinite().all(0)
        for leaf in tree_leaves((end.params, end.state)):
            diverged = diverged | ~leaf.reshape(self.num, -1).isfinite().all(1)
        factors = (self._differences(losses, diverged) / (self.num * self.sigma**2)).to(losses)
        gradients = {name: torch.tensordot(factors.to(value), value, 1) for name, value in self.sums.items()}
        self.run = end
        restarted = self._restart(diverged)
        kept = ~restarted[: self.num // 2]
        self.sums = {name: value * kept.view(-1, *[1] * (value.ndim - 1)) for name, value in self.sums.items()}
        parts = {
            "loss": losses[:, ~diverged].mean(),
            "diverged": diverged.float().mean(),
            "restarted": restarted.float().mean(),
        }
        return gradients, {name: value.item() for name, value in parts.items()}

    def _noise(self, like: Tensor) -> Tensor:
        noise = self.rngs["perturbations"].standard_normal(like.shape, np.float32)
        return torch.from_numpy(noise).to(like) * self.sigma

    def _window(self, rule: UpdateRule) -> tuple[Run, Tensor]:
        """The run after a window with perturbed weights, and the losses before each of its steps, `[steps, N]`."""
        run, losses = self.run, []
        for _ in range(self.steps):
            run, before = self.problem.advance(run, rule, self.rngs["batches"], self.copies)
            losses.append(before)
        return run, torch.stack(losses)

    def _differences(self, losses: Tensor, diverged: Tensor) -> Tensor:
        """`L+ - L-` of each pair, `[N / 2]`, where rows that diverged have the worst objective of all others."""
        losses = losses.double()  # where they are finite, so are their means
        if self.objective == "relative":
            losses = losses / self.firsts
        elif self.objective == "log":
            losses = (losses / self.firsts + FLOOR).log()
        means = losses.mean(0)
        worst = means[~diverged].max() if not diverged.all() else means.new_zeros(())
        worst = worst + 1.0 if self.objective == "rank" else worst  # it loses against the worst of the others, too
        plus, minus = torch.where(diverged, worst, means).chunk(2)
        match self.objective:
            case "deviation":
                return (plus - minus) / (plus - minus).square().mean().sqrt().clamp_min(1e-12)
            case "rank":
                return (plus - minus).sign()
        return plus - minus

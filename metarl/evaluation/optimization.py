"""How well an update rule optimises: losses over the steps of held-out inner trainings, beside tuned hand-made rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarl.evaluation.plots import DARK, LIGHT, style, tidy, write
from metarl.evaluation.report import (
    decimals,
    html_facts,
    html_figure,
    html_page,
    html_table,
    html_yaml,
    save_page,
    save_rows,
    show_estimate,
    text_table,
    versions,
)
from metarl.evaluation.statistics import Estimate, estimate
from metarl.problems import Problem, Tuned, instances_hash, unroll
from metarl.problems.tuning import best_of, sweep
from metarl.updates import HAND_MADE, RULES, UpdateRule


@dataclass(frozen=True)
class OptimizationCurve:
    """What one rule made of `N` held-out problems, and what others made of the same ones.

    Hand-made rules were tuned on training problems twice: for the mean over all steps, and for what is left at the end.

    Attributes:
        name: of the rule.
        problem: its name.
        split, seed, task_hash: of the problems.
        losses: before each step and after the last, `[steps + 1, N]`; minus the return where `returns`.
        returns: whether to read them as returns, with the sign turned.
        final: those of the rule that was tuned for the end, `[N]`; the same rule's last row where nothing was tuned.
        setting: rates and the like, as text.
        references: curves of other rules, on the same problems.
    """

    name: str
    problem: str
    split: str
    seed: int
    task_hash: str
    losses: np.ndarray
    returns: bool = False
    final: np.ndarray | None = None
    setting: str = ""
    references: tuple["OptimizationCurve", ...] = field(default=())

    @property
    def steps(self) -> int:
        """Inner steps."""
        return len(self.losses) - 1

    @property
    def shown(self) -> np.ndarray:
        """Losses, or returns, `[steps + 1, N]`."""
        return -self.losses if self.returns else self.losses

    @property
    def mean(self) -> Estimate:
        """Over steps from the first one on and problems, with its interval over problems; nan where one diverged."""
        return _estimate(self.shown[1:].mean(0))

    @property
    def end(self) -> Estimate:
        """After the last step, with its interval over problems; of the rule that was tuned for it."""
        final = self.losses[-1] if self.final is None else self.final
        return _estimate(-final if self.returns else final)

    @property
    def diverged(self) -> float:
        """Share of problems that did not stay finite."""
        return float((~np.isfinite(self.losses).all(0)).mean())

    @property
    def everyone(self) -> list["OptimizationCurve"]:
        """The rule, then the others from best to worst by their mean."""
        sign = -1.0 if self.returns else 1.0
        return [self, *sorted(self.references, key=lambda curve: np.nan_to_num(sign * curve.mean.value, nan=np.inf))]

    # -- showing ---------------------------------------------------------------------------------------------------

    def table_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows, as text."""
        what = "return" if self.returns else "loss"
        means, ends = ([getattr(curve, name) for curve in self.everyone] for name in ("mean", "end"))
        digits = [decimals([e for e in column if np.isfinite(e.value)]) for column in (means, ends)]
        header = ["rule", f"mean {what}, steps 1 to {self.steps}", f"{what} after {self.steps}", "diverged", "settings"]
        rows = [
            [curve.name, show_estimate(m, digits[0]), show_estimate(e, digits[1]), f"{curve.diverged:.0%}", curve.setting]
            for curve, m, e in zip(self.everyone, means, ends, strict=True)
        ]
        return header, rows

    def table(self) -> str:
        """The table as text."""
        return text_table(*self.table_rows())

    def plot(self, path: str | Path | None = None, *, dark: bool = False) -> Figure:
        """Means over problems by step, with 95 % intervals; losses on a logarithmic scale."""
        theme = DARK if dark else LIGHT
        with style(theme):
            figure = Figure(figsize=(7.6, 4.2), dpi=160, layout="constrained")
            axes = figure.add_subplot()
            steps = np.arange(self.steps + 1)
            colors = [theme.agents[0], *(theme.references[i % len(theme.references)] for i in range(len(self.references)))]
            for i, (curve, color) in enumerate(zip(self.everyone, colors, strict=True)):
                fine = np.isfinite(curve.shown).all(1)
                value, low, high = estimate(curve.shown[fine].T)
                look = {"color": color, "lw": 2.2 if i == 0 else 1.2, "ls": "-" if i == 0 else DASHES[i % len(DASHES)]}
                axes.plot(steps[fine], value, label=curve.name, zorder=3 - i / 100, **look)
                axes.fill_between(steps[fine], low, high, color=color, alpha=0.18, lw=0)
            if not self.returns:
                axes.set_yscale("log")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("PPO iterations" if self.returns else "steps of the rule")
            axes.set_ylabel("return per episode (mean, 95 % interval)" if self.returns else "loss (mean, 95 % interval)")
            axes.set_title(self.subject, loc="left", fontsize=9, color=theme.faint, pad=10)
            tidy(axes, theme)
            figure.legend(loc="outside right center", labelcolor=theme.ink)
            write(figure, path)
        return figure

    @property
    def subject(self) -> str:
        """What was optimised."""
        return f"{self.problem}, {self.split} (n = {self.losses.shape[1]:,})"

    def save_csv(self, path: str | Path) -> Path:
        """One row per rule and step: mean and interval over problems."""
        header = ["rule", "step", "return" if self.returns else "loss", "low", "high"]
        rows = ([curve.name, step, *_estimate(scores)] for curve in self.everyone for step, scores in enumerate(curve.shown))
        return save_rows(path, header, rows)

    def save_html(self, path: str | Path, *, config: Mapping[str, Any] | None = None) -> Path:
        """A page that needs nothing but itself: picture, table, what was run."""
        sections = [
            html_figure(lambda dark: self.plot(dark=dark), self.subject),
            html_table(*self.table_rows()),
            "<p>Hand-made rules are tuned on training problems: for the mean over steps in the first column and the "
            "picture, for the end in the second.</p>",
            html_facts({"problems": self.task_hash, "seed": self.seed, **versions()}),
        ]
        if config is not None:
            sections.append(f"<details><summary>Configuration</summary>{html_yaml(config)}</details>")
        return save_page(path, html_page(f"{self.name} as an optimizer", self.subject, sections))

    # -- keeping ---------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What tables are built from, as JSON has it."""
        return {
            "problem": self.problem,
            "split": self.split,
            "problems": self.losses.shape[1],
            "steps": self.steps,
            "task_hash": self.task_hash,
            "returns": self.returns,
            "rules": [
                {
                    "name": curve.name,
                    "mean": [float(x) for x in curve.mean],
                    "end": [float(x) for x in curve.end],
                    "diverged": curve.diverged,
                    "setting": curve.setting,
                }
                for curve in self.everyone
            ],
        }


DASHES: Sequence[Any] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def evaluate_optimizer(
    rule: UpdateRule,
    problem: Problem,
    *,
    name: str = "learned",
    split: str = "test",
    num_problems: int = 512,
    steps: int | None = None,
    seed: int = 0,
    returns: bool = False,
    tuned: Mapping[str, Mapping[str, Tuned]] | None = None,
    baselines: Sequence[str] = HAND_MADE,
    tuning: Mapping[str, Any] | None = None,
) -> OptimizationCurve:
    """Let `rule` and tuned hand-made ones optimise the same held-out problems.

    Args:
        rule: made for `problem.template()`.
        problem: what to optimise.
        name: how tables and pictures call the rule.
        split: of the problems.
        num_problems: how many.
        steps: of an inner training; the problem's horizon by default.
        seed: of problems, initial parameters and minibatches, which all rules share, and of tuning.
        returns: whether the problem's measure is minus a return.
        tuned: settings by measure ("mean", "final") and rule, as `tune_baselines` gives them; tuned anew by default.
        baselines: names of hand-made rules.
        tuning: arguments of `metarl.problems.tuning.sweep`, on top of those of `problem.tuning`.
    """
    steps = steps or problem.horizon
    if tuned is None:
        tuned = tune_baselines(problem, baselines, steps=steps, seed=seed, **{**problem.tuning, **(tuning or {})})
    instances = problem.sample(num_problems, split, np.random.default_rng([seed, 0]))

    def play(rule: UpdateRule) -> np.ndarray:
        return unroll(problem, rule, instances, steps, np.random.default_rng([seed, 1])).double().numpy()

    shared = {
        "problem": problem.name,
        "split": split,
        "seed": seed,
        "task_hash": instances_hash(instances),
        "returns": returns,
    }
    references = []
    for baseline in baselines:
        by_measure = {}
        for measure in ("mean", "final"):
            best = tuned[measure][baseline]
            by_measure[measure] = play(RULES[baseline](problem.template(), best.rate, **best.options))
        setting = "; ".join(dict.fromkeys(_setting(tuned[measure][baseline]) for measure in ("mean", "final")))
        references.append(
            OptimizationCurve(baseline, losses=by_measure["mean"], final=by_measure["final"][-1], setting=setting, **shared)
        )
    losses = play(rule)
    return OptimizationCurve(name, losses=losses, references=tuple(references), **shared)


def tune_baselines(
    problem: Problem, baselines: Sequence[str] = HAND_MADE, *, steps: int | None = None, seed: int = 0, **tuning: Any
) -> dict[str, dict[str, Tuned]]:
    """Hand-made rules tuned on training problems, for the mean over steps and for the end; arguments as of `sweep`."""
    found = sweep(problem, baselines, np.random.default_rng([seed, 2]), steps=steps, **tuning)
    return {measure: {name: best_of(settings, measure) for name, settings in found.items()} for measure in ("mean", "final")}


def _setting(best: Tuned) -> str:
    parts = [f"rate {best.rate:g}", *(f"{name} {value:g}" for name, value in best.options.items())]
    return ", ".join(parts) + (" (edge of the grid)" if best.at_edge else "")


def _estimate(scores: np.ndarray) -> Estimate:
    return estimate(scores) if np.isfinite(scores).all() else Estimate(np.nan, np.nan, np.nan)

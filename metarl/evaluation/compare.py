"""Comparing runs that were evaluated on the same tasks, task by task."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.evaluation.curve import AdaptationCurve
from metarl.evaluation.plots import plot_adaptation
from metarl.evaluation.report import (
    decimals,
    html_facts,
    html_figure,
    html_page,
    html_table,
    run_facts,
    save_page,
    save_rows,
    show_estimate,
    text_table,
    versions,
)
from metarl.evaluation.statistics import Estimate, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Comparison:
    """Curves on one task set, under names that differ. Made by `compare`."""

    curves: tuple[AdaptationCurve, ...]
    """The first is what the others are compared with."""
    names: tuple[str, ...]
    """One per curve."""

    @property
    def ranked_references(self) -> list[AdaptationCurve]:
        """References of the first curve that has any, from best to worst."""
        return next((curve.ranked_references for curve in self.curves if curve.references), [])

    @cached_property
    def differences(self) -> tuple[Estimate, ...]:
        """Per curve: mean return per trial above the first curve's, paired by task, with its 95 % interval."""
        return tuple(self._difference(curve) for curve in self.curves)

    def _difference(self, curve: AdaptationCurve) -> Estimate:
        first = self.curves[0].returns[: curve.num_tasks]  # references may have played only the first tasks
        return paired_difference(first.sum(1), curve.returns.sum(1))

    def table(self) -> str:
        """A text table with a row per curve and reference."""
        return text_table(*self.table_rows())

    def table_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of `table`, as text."""
        references = self.ranked_references
        curves = [*self.curves, *references]
        differences = [*self.differences, *map(self._difference, references)]
        digits = decimals([c.total for c in curves])
        digits_difference = decimals(differences)
        digits_episode = decimals([c.pre_adaptation for c in curves])
        rows = []
        for name, curve, difference in zip([*self.names, *(c.name for c in references)], curves, differences, strict=True):
            rows.append(
                [
                    name,
                    show_estimate(curve.total, digits),
                    "" if curve is self.curves[0] else show_estimate(difference, digits_difference, sign="+"),
                    show_estimate(curve.pre_adaptation, digits_episode),
                    show_estimate(curve.post_adaptation, digits_episode),
                ]
            )
        return ["player", "return per trial", f"above {self.names[0]}", "first episode", "last episode"], rows

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """All curves over each other, written to `path`; `options` are `plots.plot_adaptation`'s."""
        return plot_adaptation(self.curves, path, names=self.names, **options)

    def save_csv(self, path: str | Path) -> Path:
        """Write a line per curve and episode: mean, IQM, and mean difference to the first curve, with intervals."""
        columns = [f"{name}{bound}" for name in ("mean", "iqm", "difference") for bound in ("", "_low", "_high")]
        rows = []
        for name, curve in zip(self.names, self.curves, strict=True):
            difference = paired_difference(self.curves[0].returns, curve.returns)
            for episode, values in enumerate(zip(*curve.mean, *curve.iqm, *difference, strict=True), start=1):
                rows.append([name, episode, *values, curve.num_tasks])
        return save_rows(path, ["player", "episode", *columns, "n"], rows)

    def save_html(self, path: str | Path, *, title: str = "Comparison") -> Path:
        """Write one self-contained page: picture, table, what was run."""
        first = self.curves[0]
        caption = f"Return in each episode of a trial: means over the same {first.num_tasks:,} {first.split} tasks."
        sections = [
            html_figure(lambda dark: self.plot(dark=dark), caption),
            "<h2>Scores</h2>",
            html_table(*self.table_rows(), emphasised=len(self.curves)),
            '<p class="note">In brackets: 95 % bootstrap intervals over tasks; another training seed is not in them. '
            "Differences are taken task by task; each interval stands for itself.</p>",
            "<h2>What was run</h2>",
        ]
        facts = {key: value for key, value in run_facts(first).items() if key not in ("trained for", "evaluation seed")}
        for name, curve in zip(self.names, self.curves, strict=True):
            steps = "not trained" if curve.training_steps is None else f"trained for {curve.training_steps:,} steps"
            facts[name] = f"{curve.name}, {steps}, evaluation seed {curve.seed}"
        sections += [html_facts(facts), "<h2>Versions</h2>", html_facts(versions())]
        return save_page(path, html_page(title, f"on {first.label}", sections))


def compare(curves: Sequence[AdaptationCurve], names: Sequence[str] | None = None) -> Comparison:
    """Put curves side by side that were measured on the same tasks.

    Args:
        curves: at least two; the first is what the others are compared with.
        names: what to call them, by default their own names, numbered where they repeat.

    Raises:
        ValueError: when the curves are of different tasks or of trials of different length, naming both curves.
    """
    curves = tuple(curves)
    if len(curves) < 2:
        raise ValueError(f"curves must hold at least 2 curves, got {len(curves)}")
    names = distinct([curve.name for curve in curves], names)
    for name, curve in zip(names[1:], curves[1:], strict=True):
        if curve.task_hash != curves[0].task_hash:
            raise ValueError(
                f"curves must be of the same tasks, but {names[0]!r} played {_tasks(curves[0])} "
                f"and {name!r} {_tasks(curve)}: evaluate both with the same tasks= or family, split, num_tasks and seed"
            )
        if curve.num_episodes != curves[0].num_episodes:
            raise ValueError(
                f"curves must be of trials of the same length, but {names[0]!r} played {curves[0].num_episodes} episodes "
                f"and {name!r} {curve.num_episodes}"
            )
    return Comparison(curves, names)


def _tasks(curve: AdaptationCurve) -> str:
    return f"{curve.num_tasks:,} {curve.split} tasks of {curve.label} (hash {curve.task_hash[:12]})"


def distinct(own: Sequence[str], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """`names` after a check, by default `own` ones with the second "RL2" called "RL2 (2)", and so on."""
    if names is None:
        counts = [own[: i + 1].count(name) for i, name in enumerate(own)]
        return tuple(name if count == 1 else f"{name} ({count})" for name, count in zip(own, counts, strict=True))
    if len(names) != len(own) or len(set(names)) != len(names):
        raise ValueError(f"names must hold {len(own)} different names, got {list(names)}")
    return tuple(names)

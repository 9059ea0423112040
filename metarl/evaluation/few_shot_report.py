"""Tables, pictures and pages of what few-shot learners score, side by side."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.evaluation.few_shot_plots import CURVES, plot_few_shot
from metarl.evaluation.report import (
    decimals,
    html_ending,
    html_facts,
    html_figure,
    html_page,
    html_table,
    save_page,
    save_rows,
    show_estimate,
    text_table,
)
from metarl.evaluation.statistics import Estimate, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarl.evaluation.few_shot import FewShotScores

Setting = tuple[str, int | str]
"""("inductive", ""), ("transductive", ""), or one of `CURVES` with a number."""

COLUMNS = 10
"""Numbers of instances that a table shows; files hold all."""

COSTS = ("ms per episode", "memory (MB)", "gradients", "parameters")


class FewShotReport(ABC):
    """What a learner beside its references, and several learners compared, are shown by.

    A subclass says who is shown. Accuracies are shown in percent, and written to files as they are, from 0 to 1.
    """

    @property
    @abstractmethod
    def everyone(self) -> "dict[str, FewShotScores]":
        """All by name, on the same episodes; the first is what the others are compared with."""

    @property
    @abstractmethod
    def num_learners(self) -> int:
        """How many of them stand out; the rest are references."""

    @property
    def first(self) -> "FewShotScores":
        """What the others are compared with."""
        return next(iter(self.everyone.values()))

    @property
    def measure(self) -> str:
        """What is shown."""
        return "accuracy (%)" if self.first.accuracy else "MSE"

    @property
    def scale(self) -> float:
        """What scores are multiplied by where they are shown."""
        return 100.0 if self.first.accuracy else 1.0

    @cached_property
    def differences(self) -> dict[str, Estimate]:
        """Mean score of each above the first one's, paired by episode; below 0 is better where scores are errors."""
        return {name: paired_difference(self.first.scores, one.scores) for name, one in self.everyone.items()}

    def at(self, setting: str) -> list[int]:
        """The numbers, of one of `CURVES`, for which somebody has scores."""
        return sorted({number for one in self.everyone.values() for name, number in one.means if name == setting})

    def table(self) -> str:
        """A text table with a row per learner."""
        return text_table(*self.table_rows())

    def table_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of `table`, as text; differences of accuracies are in percentage points."""
        everyone = list(self.everyone.values())
        normalises = any(one.transductive is not None for one in everyone)
        columns = {"learner": list(self.everyone)}
        columns[self.measure + ", inductive" * normalises] = self.shown([one.mean for one in everyone])
        if normalises:
            columns["transductive"] = self.shown([one.means.get(("transductive", "")) for one in everyone])
        if len(everyone) > 1:
            name, *others = self.differences
            columns[f"difference to {name}"] = self.shown([None, *(self.differences[other] for other in others)], "+")
        if any(one.cost is not None for one in everyone):
            columns |= zip(COSTS, zip(*map(_costs, everyone), strict=True), strict=True)
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]

    def further_tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """Header and rows of the tables by gradient steps, by shots and by instance, where there are such scores."""
        tables = []
        for setting in CURVES:
            at = self.at(setting)
            if at := at[:COLUMNS] if setting == "instance" else at:
                cells = {name: [one.means.get((setting, k)) for k in at] for name, one in self.everyone.items()}
                cells = {name: row for name, row in cells.items() if any(row)}
                shown = iter(self.shown([cell for row in cells.values() for cell in row]))
                rows = [[name, *(next(shown) for _ in at)] for name in cells]
                tables.append(([f"{self.measure} by {setting}", *map(str, at)], rows))
        return tables

    def shown(self, estimates: Sequence[Estimate | None], sign: str = "") -> list[str]:
        """Estimates as text, with as many digits as suit all of them; intervals also where all scores are equal."""
        scaled = [estimate and Estimate(*(self.scale * part for part in estimate)) for estimate in estimates]
        digits = decimals([estimate for estimate in scaled if estimate])
        return [show_estimate(estimate, digits, sign, points=True) if estimate else "" for estimate in scaled]

    def plot(self, path: str | Path | None = None, *, dark: bool = False) -> "Figure":
        """Scores with intervals and, where they are known, by gradient steps, shots and instance; written to `path`."""
        return plot_few_shot(self, path, dark=dark)

    def save_csv(self, path: str | Path) -> Path:
        """Write a line per learner and setting: mean score, difference to the first learner's, intervals, cost.

        `at`: how many gradient steps, or shots, or the instance. Costs are those of an episode in the inductive setting.
        """
        score = "accuracy" if self.first.accuracy else "mse"
        header = ["learner", "setting", "at", *(f"{n}{end}" for n in (score, "difference") for end in ("", "_low", "_high"))]
        costs = ["seconds", "memory", "gradient_evaluations", "parameters"]
        rows = []
        for name, one in self.everyone.items():
            for (setting, at), scores in one.settings.items():
                base = self.first.settings.get((setting, at))
                difference = [""] * 3 if base is None else paired_difference(base, scores)
                costly = one.cost is not None and setting == "inductive"
                cost = [getattr(one.cost, part) if costly else "" for part in costs]
                rows.append([name, setting, at, *one.means[setting, at], *difference, len(scores), *cost])
        return save_rows(path, [*header, "n", *costs], rows)

    def save_html(self, path: str | Path, *, title: str | None = None, config: Mapping[str, Any] | None = None) -> Path:
        """Write one self-contained page: picture, tables, what was run, and `config` as YAML.

        The title is the names of the learners by default.
        """
        first, everyone = self.first, self.everyone
        names = list(everyone)[: self.num_learners]
        sections = [
            html_figure(lambda dark: self.plot(dark=dark), f"Mean {self.measure} over episodes and its 95 % interval."),
            "<h2>Scores</h2>",
            html_table(*self.table_rows(), emphasised=self.num_learners),
            *(html_table(*table, emphasised=0) for table in self.further_tables()),
            f'<p class="note">{_NOTE}</p>',
            "<h2>What was run</h2>",
        ]
        facts = {
            "episodes": f"{first.num_episodes:,} of {first.dataset}, split {first.split}, seed {first.seed}, "
            f"SHA-256 {first.episodes_hash[:16]}"
        }
        for name, one in everyone.items():
            trained = "" if one.training_episodes is None else f", trained for {one.training_episodes:,} episodes"
            timed = "" if one.cost is None else f", timed with {one.cost.batch} side by side on {one.cost.threads} thread(s)"
            facts[name] = one.name + trained + timed
        sections.append(html_facts(facts))
        sections += html_ending(config)
        return save_page(path, html_page(title or ", ".join(names), f"on {first.subject}", sections))


def _costs(scores: "FewShotScores") -> list[str]:
    cost = scores.cost
    if cost is None:
        return [""] * len(COSTS)
    rounded = [f"{float(f'{value:.3g}'):,.10g}" for value in (1e3 * cost.seconds, cost.memory / 1e6)]
    return [*rounded, f"{cost.gradient_evaluations:,}", f"{cost.parameters:,}"]


_NOTE = (
    "In brackets: 95 % bootstrap intervals over episodes; another training seed is not in them. Differences are paired by "
    "episode, those of accuracies in percentage points. Inductive: queries are normalised by the statistics of the support "
    "set. Transductive: by those of all queries of an episode together, so that an answer depends on the others. Time is "
    "wall-clock time to learn and answer an episode, on the machine it was run on. Memory is the most that tensors hold at "
    "one time for an episode alone, beyond the parameters and the episode. Gradients: how many are taken in an episode."
)

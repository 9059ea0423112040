"""What a player scored in each episode of a trial, over many tasks: estimates, tables, files."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.evaluation.npz import reading_npz, save_npz
from metarl.evaluation.plots import plot_adaptation
from metarl.evaluation.report import decimals, save_rows, show_estimate, text_table
from metarl.evaluation.statistics import Estimate, estimate, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class AdaptationCurve:
    """What one player scored, episode by episode, on `N` tasks of `E` episodes each.

    All intervals are 95 % bootstrap intervals over tasks (`metarl.evaluation.statistics`).
    """

    name: str
    """The player's name."""
    env_id: str
    """Which task family."""
    family_kwargs: Mapping[str, Any]
    """Its parameters."""
    split: str
    """The split the tasks are from."""
    task_hash: str
    """SHA-256 of the tasks: curves are comparable task by task exactly where it is equal."""
    returns: np.ndarray
    """Undiscounted return of every episode, `[N, E]`."""
    seed: int = 0
    """Seed of the play (and of the tasks, unless they were given)."""
    label: str = ""
    """What tables and pictures call the task family; `env_id` by default."""
    training_steps: int | None = None
    """Environment steps the player was trained for, if it was."""
    episodes_per_update: int | None = None
    """Episodes between two gradient steps of the player, if it adapts by such."""
    ceiling: np.ndarray | None = None
    """Expected return of one episode for a player that knows the task, `[N]`, where that can be computed."""
    occurrences: np.ndarray | None = None
    """How often the situation of each episode came before in its trial, `[N, E]`, in families where situations come back."""
    references: tuple["AdaptationCurve", ...] = ()
    """What other players scored on the same tasks, or on the first of them."""

    def __post_init__(self):
        object.__setattr__(self, "label", self.label or self.env_id)
        if self.returns.ndim != 2 or 0 in self.returns.shape:
            raise ValueError(f"returns must have shape [tasks, episodes], both at least 1, got {self.returns.shape}")
        if self.ceiling is not None and self.ceiling.shape != (self.num_tasks,):
            raise ValueError(f"ceiling must have shape ({self.num_tasks},), one value per task, got {self.ceiling.shape}")

    @property
    def num_tasks(self) -> int:
        """`N`."""
        return self.returns.shape[0]

    @property
    def num_episodes(self) -> int:
        """`E`."""
        return self.returns.shape[1]

    @cached_property
    def _estimates(self) -> dict[str, Estimate]:
        """Both statistics of every episode and, in the last column, of the trial."""
        columns = np.column_stack([self.returns, self.returns.sum(1)])
        return {"mean": estimate(columns, "mean"), "iqm": estimate(columns, "iqm")}

    def _column(self, statistic: str, column: int | slice) -> Estimate:
        return Estimate(*(part[column] for part in self._estimates[statistic]))

    @property
    def mean(self) -> Estimate:
        """Mean return of each episode, arrays `[E]`."""
        return self._column("mean", slice(-1))

    @property
    def iqm(self) -> Estimate:
        """Interquartile mean return of each episode, arrays `[E]`."""
        return self._column("iqm", slice(-1))

    @property
    def total(self) -> Estimate:
        """Mean return of a whole trial."""
        return self._column("mean", -1)

    @property
    def total_iqm(self) -> Estimate:
        """Interquartile mean return of a whole trial."""
        return self._column("iqm", -1)

    @property
    def pre_adaptation(self) -> Estimate:
        """Mean return of the first episode, in which nothing is known of the task."""
        return self._column("mean", 0)

    @property
    def post_adaptation(self) -> Estimate:
        """Mean return of the last episode."""
        return self._column("mean", -2)

    @cached_property
    def by_update(self) -> Estimate | None:
        """Mean return of an episode after 0, 1, 2 ... gradient steps, arrays `[U]`; None for players that take none."""
        every = self.episodes_per_update
        if every is None:
            return None
        stages = [self.returns[:, start : start + every].mean(1) for start in range(0, self.num_episodes, every)]
        return estimate(np.column_stack(stages))

    @cached_property
    def by_occurrence(self) -> Estimate | None:
        """Mean return of an episode whose situation comes for the first, second ... time, arrays `[K]`.

        Over the tasks that have such episodes, as far as at least half of them do; None where none comes back.
        """
        return self._by_occurrence(self.returns)

    @cached_property
    def regret_by_occurrence(self) -> Estimate | None:
        """How far the mean return of such an episode is below the ceiling, arrays `[K]`; None without a ceiling too."""
        return None if self.ceiling is None else self._by_occurrence(self.ceiling[:, None] - self.returns)

    def _by_occurrence(self, scores: np.ndarray) -> Estimate | None:
        if self.occurrences is None:
            return None
        columns = []
        for count in range(self.num_episodes):
            among = self.occurrences == count
            rows = among.any(1)
            if rows.mean() < 0.5:
                break
            columns.append(estimate((scores * among)[rows].sum(1) / among[rows].sum(1)))
        return Estimate(*np.transpose(columns))

    @cached_property
    def gain(self) -> Estimate:
        """Mean return of the last episode above the first one's, task by task."""
        return paired_difference(self.returns[:, 0], self.returns[:, -1])

    @cached_property
    def regret(self) -> Estimate | None:
        """Mean return of a whole trial below that of a player that knows the task; None without a ceiling.

        regret = E * ceiling - sum of the trial's returns. Realised returns make a single task's regret noisy, and
        possibly negative; the mean is unbiased.
        """
        if self.ceiling is None:
            return None
        return estimate(self.num_episodes * self.ceiling - self.returns.sum(1))

    @property
    def ranked_references(self) -> list["AdaptationCurve"]:
        """References from best to worst mean return per trial."""
        return sorted(self.references, key=lambda curve: -curve.total.value)

    def table(self) -> str:
        """A text table with a row per player: this one first, then the references from best to worst.

        The last column puts the return per trial on a scale from the random player (0 %) to the Bayes-optimal player
        or, where that is not among the references, to the ceiling (100 %).
        """
        return text_table(*self.table_rows())

    def table_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of `table`, as text."""
        curves = [self, *self.ranked_references]
        digits = decimals([c.total for c in curves])
        digits_iqm = decimals([c.total_iqm for c in curves])
        digits_episode = decimals([c.pre_adaptation for c in curves])
        header = ["player", "return per trial", "IQM", "first episode", "last episode"]
        rows = [
            [
                curve.name,
                show_estimate(curve.total, digits),
                show_estimate(curve.total_iqm, digits_iqm),
                show_estimate(curve.pre_adaptation, digits_episode),
                show_estimate(curve.post_adaptation, digits_episode),
            ]
            for curve in curves
        ]
        if self.ceiling is not None:
            episode = estimate(self.ceiling)
            known = Estimate(*(self.num_episodes * part for part in episode))
            shown = show_estimate(episode, digits_episode)
            rows.append(["knows the task", show_estimate(known, digits), "", shown, shown])
        if (scale := self._scale()) is not None:
            title, floor, top = scale
            header.append(title)
            scores = [curve.total.value for curve in curves] + [known.value for _ in rows[len(curves) :]]
            for row, score in zip(rows, scores, strict=True):
                row.append(f"{(score - floor) / (top - floor):.1%}")
        return header, rows

    def further_tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """Header and rows of the tables that only some players or families have: by gradient steps, and by occurrence."""
        tables = (self.updates_rows(), self.occurrence_rows(), self.occurrence_rows(regret=True))
        return [table for table in tables if table is not None]

    def updates_rows(self) -> tuple[list[str], list[list[str]]] | None:
        """Header and rows of a table of `by_update`, as text; None for players that take no gradient steps."""
        if self.by_update is None:
            return None
        stages = [Estimate(*parts) for parts in zip(*self.by_update, strict=True)]
        rows = [[str(step), show_estimate(stage, decimals(stages))] for step, stage in enumerate(stages)]
        return ["gradient steps", "return per episode"], rows

    def occurrence_rows(self, regret: bool = False) -> tuple[list[str], list[list[str]]] | None:
        """Header and rows of a table of `by_occurrence` or, if asked for, `regret_by_occurrence`: a row per player.

        None where no situation comes back, or there is no ceiling to regret.
        """
        name = "regret_by_occurrence" if regret else "by_occurrence"
        if getattr(self, name) is None:
            return None
        curves = [self, *self.ranked_references]
        stages = [[Estimate(*parts) for parts in zip(*getattr(curve, name), strict=True)] for curve in curves]
        count = min(map(len, stages))  # references may have played fewer tasks
        stages = [row[:count] for row in stages]
        digits = decimals(stages[0])
        rows = [[c.name, *(show_estimate(e, digits) for e in row)] for c, row in zip(curves, stages, strict=True)]
        if self.ceiling is not None and not regret:
            known = show_estimate(estimate(self.ceiling), digits)
            rows.append(["knows the task", *[known] * count])
        title = f"{'regret' if regret else 'return'} per episode, by occurrence"
        return [title, *(str(k + 1) for k in range(count))], rows

    def _scale(self) -> tuple[str, float, float] | None:
        """Title, zero and full mark of the scale that returns per trial are also given on.

        It runs from the random player to the Bayes-optimal one or, where that did not play, to the ceiling.
        """
        totals = {curve.name.lower(): float(curve.total.value) for curve in self.references}
        floor = next((score for name, score in totals.items() if name.startswith("random")), None)
        top = next((score for name, score in totals.items() if name.startswith("bayes")), None)
        title = "random to ceiling" if top is None else "random to Bayes"
        if top is None and self.ceiling is not None:
            top = float(self.num_episodes * self.ceiling.mean())
        return None if floor is None or top is None or top <= floor else (title, floor, top)

    def plot(self, path: str | Path | None = None, **options: Any) -> "Figure":
        """The curve among its references, written to `path`; `options` are `plots.plot_adaptation`'s."""
        return plot_adaptation(self, path, **options)

    def save_csv(self, path: str | Path) -> Path:
        """Write a line per player and episode: means, interquartile means, their intervals, number of tasks."""
        header = ["player", "episode", "mean", "mean_low", "mean_high", "iqm", "iqm_low", "iqm_high", "n"]
        rows = (
            [curve.name, episode, *values, curve.num_tasks]
            for curve in (self, *self.references)
            for episode, values in enumerate(zip(*curve.mean, *curve.iqm, strict=True), start=1)
        )
        return save_rows(path, header, rows)

    def save_npz(self, path: str | Path) -> Path:
        """Write everything, returns of single tasks included, to an `.npz` file without pickles; return its path."""
        curves = (self, *self.references)
        arrays = {f"returns_{i}": curve.returns for i, curve in enumerate(curves)}
        for name in ("ceiling", "occurrences"):
            arrays |= {f"{name}_{i}": part for i, c in enumerate(curves) if (part := getattr(c, name)) is not None}
        kept = {f.name for f in dataclasses.fields(self)} - {"returns", "ceiling", "occurrences", "references"}
        header = [{name: getattr(curve, name) for name in sorted(kept)} for curve in curves]
        return save_npz(path, header, arrays, default=dict)

    @classmethod
    def load(cls, path: str | Path) -> "AdaptationCurve":
        """Read what `save_npz` wrote. Raises `ValueError` when the file is something else."""
        with reading_npz(path, "an adaptation curve written by AdaptationCurve.save_npz") as (header, arrays):
            curves = [
                cls(
                    returns=arrays[f"returns_{i}"],
                    ceiling=arrays.get(f"ceiling_{i}"),
                    occurrences=arrays.get(f"occurrences_{i}"),
                    **fields,
                )
                for i, fields in enumerate(header)
            ]
            return dataclasses.replace(curves[0], references=tuple(curves[1:]))

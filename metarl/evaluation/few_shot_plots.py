"""Pictures of what few-shot learners score: all of them side by side, and curves over gradient steps and so on."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from metarl.evaluation.plots import DARK, LIGHT, MARKERS, Theme, style, tidy, write
from metarl.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from metarl.evaluation.few_shot_report import FewShotReport

CURVES = ("gradient steps", "shots", "instance")
"""Settings that come with a number: of gradient steps, of shots, of the examples of a class up to the one asked about."""
CHANCE = {"lw": 1.1, "ls": (0, (6, 3)), "zorder": 1}
APART = 20.0
"""Errors whose largest is more than so many times the smallest are drawn on a logarithmic axis."""


def plot_few_shot(report: "FewShotReport", path: str | Path | None = None, *, dark: bool = False) -> Figure:
    """Mean scores with 95 % intervals, a row per learner; beside them, curves over what `CURVES` names, if any.

    Colours and markers of the curves are those of the rows. Hollow markers: transductive scores, with the lower numbers.

    Args:
        report: who is drawn.
        path: where to write the picture; the suffix says the format.
        dark: light ink on dark ground.
    """
    theme = DARK if dark else LIGHT
    curves = [(setting, at) for setting in CURVES if len(at := report.at(setting)) > 1]
    with style(theme):
        row = 0.45 if any(one.transductive is not None for one in report.everyone.values()) else 0.32
        height = max(3.3 if curves else 0.0, 1.3 + row * len(report.everyone))
        figure = Figure(figsize=(7.2 + 3.3 * len(curves), height), dpi=160, layout="constrained")
        rows, *panels = figure.subplots(1, 1 + len(curves), squeeze=False, width_ratios=[1.25, *[1] * len(curves)])[0]
        figure.get_layout_engine().set(wspace=0.04)
        subject = textwrap.fill(report.first.subject, 105 + 50 * len(curves))
        figure.suptitle(subject, x=0.01, ha="left", fontsize=9, color=theme.faint)
        looks = _looks(report, theme)
        _draw_rows(rows, report, looks, theme)
        for axes, (setting, at) in zip(panels, curves, strict=True):
            _draw_curves(axes, report, setting, at, looks, theme)
        handles = {handle.get_label(): handle for axes in panels for handle in axes.containers}
        if names := [name for name in report.everyone if name in handles]:
            options = {"loc": "outside lower right", "ncols": 1 + len(curves), "labelcolor": theme.ink}
            figure.legend([handles[name] for name in names], names, **options)
        write(figure, path)
    return figure


def _looks(report: "FewShotReport", theme: Theme) -> dict[str, dict[str, Any]]:
    """Colour and marker of each; colours come again with other markers."""
    looks = {}
    for i, name in enumerate(report.everyone):
        stands_out = i < report.num_learners
        number, colors = (i, theme.agents) if stands_out else (i - report.num_learners, theme.references)
        turn, place = divmod(number, len(colors))
        marker = MARKERS[(place + turn + (not stands_out)) % len(MARKERS)]
        looks[name] = {"color": colors[place], "marker": marker, "zorder": 4 if stands_out else 3}
    return looks


def _draw_rows(axes: Axes, report: "FewShotReport", looks: Mapping[str, dict], theme: Theme) -> None:
    everyone, places = report.everyone, range(len(report.everyone))
    normalises = any(one.transductive is not None for one in everyone.values())
    for setting, side in (("inductive", -0.2), ("transductive", 0.2)):
        estimates = [one.means.get((setting, "")) for one in everyone.values()]
        shown = zip(everyone.items(), estimates, report.shown(estimates), strict=True)
        for place, ((name, one), found, text) in enumerate(shown):
            if found is None:
                continue
            height = place if one.transductive is None else place + side
            look = looks[name] if setting == "inductive" else {**looks[name], "mfc": theme.background}
            _dot(axes, report.scale, height, found, look)
            axes.annotate(
                text,
                (1.0, height),
                xycoords=axes.get_yaxis_transform(),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=theme.ink if place < report.num_learners else theme.faint,
                annotation_clip=False,
            )
    axes.set_yticks(places, list(everyone))
    for place, label in enumerate(axes.get_yticklabels()):
        label.set_color(theme.ink if place < report.num_learners else theme.faint)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(everyone) - 0.4, -0.6)
    axes.set_xlabel(f"{report.measure}, 95 % interval" + "\nfilled: inductive, hollow: transductive" * normalises)
    if report.first.accuracy:
        axes.axvline(100.0 / report.first.outputs, color=theme.faint, **CHANCE)
        axes.annotate("chance", (100.0 / report.first.outputs, 1.0), xycoords=axes.get_xaxis_transform(), **_note(theme))
    else:
        scores = [estimate for one in everyone.values() for (_, at), estimate in one.means.items() if at == ""]
        _scale_errors(axes, "x", scores)
    tidy(axes, theme, "x")


def _dot(axes: Axes, scale: float, place: float, estimate: Estimate, look: Mapping[str, Any]) -> None:
    value, low, high = (scale * part for part in estimate)
    axes.errorbar(value, place, xerr=[[value - low], [high - value]], ms=5, elinewidth=1.6, **look)


def _draw_curves(
    axes: Axes, report: "FewShotReport", setting: str, at: list[int], looks: Mapping[str, dict], theme: Theme
) -> None:
    drawn = []
    for i, (name, one) in enumerate(report.everyone.items()):
        if known := [k for k in at if (setting, k) in one.means]:
            estimates = [one.means[setting, k] for k in known]
            drawn += estimates
            value, low, high = report.scale * np.transpose(estimates)
            width = 1.8 if i < report.num_learners else 1.1
            spread = np.abs([value - low, high - value])
            axes.errorbar(known, value, spread, ms=4.5, lw=width, elinewidth=1.4, label=name, **looks[name])
    axes.set_xlabel(setting)
    axes.set_ylabel(report.measure)
    ticks = at[:1]
    for k in at[1:]:
        if k - ticks[-1] >= (at[-1] - at[0]) / 12:  # others would touch
            ticks.append(k)
    axes.set_xticks(ticks)
    if report.first.accuracy:
        axes.axhline(100.0 / report.first.outputs, color=theme.faint, **CHANCE)
    else:
        _scale_errors(axes, "y", drawn)
    tidy(axes, theme)


def _scale_errors(axes: Axes, along: str, estimates: list[Estimate]) -> None:
    """Errors from 0 on, or on a logarithmic axis where they are far apart."""
    values = [estimate.value for estimate in estimates]
    if max(values) <= APART * min(values):
        axes.set(**{f"{along}lim": (0.0, None)})
        return
    if min(values) <= 0:
        return
    axes.set(**{f"{along}scale": "log"})
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _note(theme: Theme) -> dict[str, Any]:
    return {
        "xytext": (0, 2),
        "textcoords": "offset points",
        "ha": "center",
        "fontsize": 8.5,
        "style": "italic",
        "color": theme.faint,
    }

"""Pictures of adaptation curves, drawn with Matplotlib's objects (no pyplot, no global state)."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from metarl.evaluation.statistics import Estimate, Statistic

if TYPE_CHECKING:
    from metarl.evaluation.curve import AdaptationCurve

MARKERS_UP_TO = 30
"""Up to so many episodes are drawn as points with error bars, more as lines with bands."""


class Theme(NamedTuple):
    """Colours. Those of agents are Okabe & Ito's, which people of all colour visions can tell apart."""

    background: str
    ink: str
    faint: str
    grid: str
    agents: tuple[str, ...]
    references: tuple[str, ...]


LIGHT = Theme(
    background="#ffffff",
    ink="#1c1f24",
    faint="#636a75",
    grid="#e6e8ec",
    agents=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    references=("#8b95a3", "#b39b74", "#7fa08c", "#a58cac", "#b88a83", "#7d9fb8", "#a3a56f"),
)
DARK = Theme(
    background="#16181d",
    ink="#e8eaee",
    faint="#9aa2ae",
    grid="#2b2f37",
    agents=("#4aa8e0", "#ff8a3d", "#2ec99a", "#e79ac5", "#f2b632", "#8ccdf5"),
    references=("#77808d", "#92805f", "#678474", "#88738e", "#98726c", "#678397", "#87895b"),
)
_DASHES = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "D", "^", "v", "P")
_REFERENCE_MARKERS = ("s", "D", "^", "v", "P", "X", "p")


class _Line(NamedTuple):
    """One curve as it is drawn."""

    name: str
    scores: Estimate
    color: str
    marker: str
    dashes: str | tuple
    is_agent: bool


def plot_adaptation(
    curves: "AdaptationCurve | Sequence[AdaptationCurve]",
    path: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    statistic: Statistic = "mean",
    dark: bool = False,
) -> Figure:
    """Return per episode over the episodes of a trial, with 95 % intervals.

    One curve is drawn among its references; several are drawn over each other, among the references of the first that
    has any. Vertical lines stand where gradient steps are taken. The ceiling is a mean over tasks, so pictures of
    interquartile means go without.

    Args:
        curves: what to draw.
        path: where to write the picture; the suffix says the format.
        names: what to call the curves, by default their own names.
        statistic: "mean" or "iqm". Where returns take few values, as in bandits that pay 0 or 1, interquartile means
            jump to the ends of the range; means do not.
        dark: light ink on dark ground.
    """
    curves = [curves] if hasattr(curves, "returns") else list(curves)
    names = [curve.name for curve in curves] if names is None else list(names)
    theme = DARK if dark else LIGHT
    with style(theme):
        figure = Figure(figsize=(7.6, 4.4), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        lines = _lines(list(zip(names, curves, strict=True)), attrgetter(statistic), theme)
        _draw(axes, lines, _ceiling(curves[0], statistic), theme)
        axes.set_ylabel(_label(statistic))
        axes.set_xlabel("episode in the trial")
        axes.set_title(_subject(curves[0]), loc="left", fontsize=9, color=theme.faint, pad=10)
        for step in _updates(curves):
            axes.axvline(step + 0.5, color=theme.grid, lw=0.8, zorder=0)
        _mark_first_episode(axes, [line for line in lines if line.is_agent], theme)
        _label_ends(axes, lines, _ceiling(curves[0], statistic), theme)
        write(figure, path)
    return figure


def plot_splits(
    curves: "Mapping[str, AdaptationCurve]",
    path: str | Path | None = None,
    *,
    statistic: Statistic = "mean",
    dark: bool = False,
) -> Figure:
    """One agent's curves on several task sets side by side on one scale, such as `{"train": ..., "test": ...}`."""
    theme = DARK if dark else LIGHT
    with style(theme):
        figure = Figure(figsize=(0.4 + 2.8 * len(curves), 3.7), dpi=160, layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        legend = {}
        for axes, (title, curve) in zip(panels, curves.items(), strict=True):
            lines = _lines([(curve.name, curve)], attrgetter(statistic), theme)
            _draw(axes, lines, _ceiling(curve, statistic), theme, max_ticks=6)
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_title(f"{curve.num_tasks:,} tasks", loc="right", fontsize=8.5, color=theme.faint)
            axes.set_xlabel("episode in the trial")
            handles, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(reversed(labels), reversed(handles), strict=True))  # agents above references
        panels[0].set_ylabel(_label(statistic))
        columns = min(len(legend), 1 + len(curves))
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=columns, labelcolor=theme.ink)
        write(figure, path)
    return figure


def plot_recall(
    curves: "AdaptationCurve | Sequence[AdaptationCurve]",
    path: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    dark: bool = False,
) -> Figure:
    """What an episode earns, by how often its situation came before, with 95 % intervals; arguments as `plot_adaptation`'s.

    Raises:
        ValueError: when nothing comes back in the curves' family.
    """
    curves = [curves] if hasattr(curves, "returns") else list(curves)
    names = [curve.name for curve in curves] if names is None else list(names)
    if any(curve.by_occurrence is None for curve in curves):
        raise ValueError(f"recall cannot be shown: nothing comes back in {curves[0].label}")
    theme = DARK if dark else LIGHT
    with style(theme):
        figure = Figure(figsize=(7.6, 4.2), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        lines = _lines(list(zip(names, curves, strict=True)), attrgetter("by_occurrence"), theme)
        _draw(axes, lines, _ceiling(curves[0], "mean"), theme)
        axes.set_ylabel(_label("mean"))
        axes.set_xlabel("how often its situation has come, this time included")
        axes.set_title(_subject(curves[0]), loc="left", fontsize=9, color=theme.faint, pad=10)
        _label_ends(axes, lines, _ceiling(curves[0], "mean"), theme)
        write(figure, path)
    return figure


def _lines(
    curves: "Sequence[tuple[str, AdaptationCurve]]", scores: "Callable[[AdaptationCurve], Estimate]", theme: Theme
) -> list[_Line]:
    """References first, so that agents are drawn over them."""
    references = next((curve.references for _, curve in curves if curve.references), ())
    lines = []
    for i, curve in enumerate(references):
        color, marker, dashes = _cycle(i, theme.references, _REFERENCE_MARKERS, _DASHES)
        lines.append(_Line(curve.name, scores(curve), color, marker, dashes, is_agent=False))
    for i, (name, curve) in enumerate(curves):
        color, marker = _cycle(i, theme.agents, MARKERS)
        lines.append(_Line(name, scores(curve), color, marker, "solid", is_agent=True))
    return lines


def _cycle(index: int, *looks: Sequence) -> list:
    return [look[index % len(look)] for look in looks]


def _draw(axes: Axes, lines: Sequence[_Line], ceiling: float | None, theme: Theme, max_ticks: int = 11) -> None:
    episodes = max(len(line.scores.value) for line in lines)
    for line in lines:
        x = np.arange(1, len(line.scores.value) + 1)
        value, low, high = line.scores
        known = np.isfinite(low)
        look = {"color": line.color, "zorder": 4 if line.is_agent else 3}
        width = 2.2 if line.is_agent else 1.2
        if episodes > MARKERS_UP_TO:
            axes.plot(x, value, lw=width, ls=line.dashes, label=line.name, **look)
            axes.fill_between(x, low, high, alpha=0.28 if line.is_agent else 0.16, lw=0, color=line.color, zorder=2)
            continue
        size = 6.5 if line.is_agent else 4
        points = {"marker": line.marker, "ms": size, "mec": theme.background, "mew": 0.6}
        axes.plot(x, value, lw=width, ls=line.dashes, label=line.name, **points, **look)
        axes.errorbar(
            x[known],
            value[known],
            np.abs(np.stack([value - low, high - value]))[:, known],
            ls="none",
            elinewidth=width * 0.7,
            capsize=size * 0.5,
            **look,
        )
    if ceiling is not None:
        axes.axhline(ceiling, color=theme.ink, lw=1.1, ls=(0, (6, 3)), zorder=1, label="ceiling: task known")
    margin = max(0.5, 0.015 * episodes) if episodes > 1 else 0.5
    axes.set_xlim(1 - margin, episodes + margin)
    axes.set_xticks(_episode_ticks(episodes, max_ticks))
    axes.margins(y=0.1)
    tidy(axes, theme)


def tidy(axes: Axes, theme: Theme, along: Literal["x", "y"] = "y") -> None:
    """A grid for one axis, below everything, and no frame on the far sides."""
    axes.grid(axis=along, color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _episode_ticks(episodes: int, max_ticks: int) -> list[int]:
    """All episodes of a short trial; of a long one the first, and round numbers."""
    if episodes <= 12:
        return list(range(1, episodes + 1))
    ticks = MaxNLocator(nbins=max_ticks - 1, steps=[1, 2, 5, 10], integer=True).tick_values(0, episodes)
    return [1, *(int(tick) for tick in ticks if 1 < tick <= episodes)]


def _mark_first_episode(axes: Axes, agents: Sequence[_Line], theme: Theme) -> None:
    """A ring around every agent's first episode, named once, on the side of the axes from which the agents move away."""
    for line in agents:
        axes.plot(1, line.scores.value[0], "o", ms=12, mfc="none", mec=line.color, mew=1.4, zorder=5, label="_ring")
    firsts = [line.scores.value[0] for line in agents]
    rising = np.mean([line.scores.value[-1] for line in agents]) >= np.mean(firsts)
    axes.annotate(
        "before adaptation",
        (1, min(firsts) if rising else max(firsts)),
        xytext=(11, 0.03 if rising else 0.97),
        textcoords=("offset points", "axes fraction"),
        va="bottom" if rising else "top",
        fontsize=8.5,
        style="italic",
        color=theme.faint,
        arrowprops={"arrowstyle": "-", "color": theme.faint, "lw": 0.7, "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 6},
        path_effects=[withStroke(linewidth=2.5, foreground=theme.background)],
        zorder=6,
    )


def _label_ends(axes: Axes, lines: Sequence[_Line], ceiling: float | None, theme: Theme) -> None:
    """Name every line where it ends, to the right of the axes, moving names apart where they would overlap."""
    ends = [(line.scores.value[-1], line.name, line.color, line.is_agent, len(line.scores.value)) for line in lines]
    if ceiling is not None:
        ends.append((ceiling, "ceiling: task known", theme.ink, False, None))
    ends.sort(key=lambda end: end[0])
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    heights = (np.array([end[0] for end in ends]) - low) / (high - low)
    gap = 13.5 / (72 * axes.figure.get_figheight() * 0.78)  # a line of text, as a share of the axes' height
    for (value, name, color, is_agent, episodes), height in zip(ends, spread(heights, gap), strict=True):
        axes.annotate(
            name,
            (right if episodes is None else episodes, value),
            xycoords="data",
            xytext=(1.035, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5 if is_agent else 8.5,
            fontweight="bold" if is_agent else "normal",
            color=color if is_agent else theme.ink if episodes is None else theme.faint,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 4},
            annotation_clip=False,
        )


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Positions as near as possible (least squares) to sorted `heights` in [0, 1] that are at least `gap` apart.

    With p_i = q_i + i * gap the q_i must not fall: an isotonic regression, q_i = max_{j<=i} min_{k>=i} mean(x_j..x_k).
    """
    n = len(heights)
    gap = min(gap, 1 / max(n - 1, 1))
    steps = gap * np.arange(n)
    x = heights - steps
    q = [max(min(x[j : k + 1].mean() for k in range(i, n)) for j in range(i + 1)) for i in range(n)]
    return np.clip(q, 0, 1 - gap * (n - 1)) + steps


def _ceiling(curve: "AdaptationCurve", statistic: Statistic) -> float | None:
    return None if curve.ceiling is None or statistic != "mean" else float(curve.ceiling.mean())


def _updates(curves: "Sequence[AdaptationCurve]") -> range:
    """The episodes after which gradient steps are taken, where all that take any take them together, and not too often."""
    every = {curve.episodes_per_update for curve in curves} - {None}
    if len(every) != 1 or curves[0].num_episodes > 12 * max(every):
        return range(0)
    return range(max(every), curves[0].num_episodes, max(every))


def _label(statistic: Statistic) -> str:
    return "return per episode (mean, 95 % interval)" if statistic == "mean" else "return per episode (IQM, 95 % interval)"


def _subject(curve: "AdaptationCurve") -> str:
    return f"{curve.label}, {curve.split} tasks (n = {curve.num_tasks:,})"


def write(figure: Figure, path: str | Path | None) -> None:
    """Save the picture if there is a path, making its folder."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def style(theme: Theme):
    """Settings for the figure being drawn; they end with the `with` block."""
    return matplotlib.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9.5,
            "figure.facecolor": theme.background,
            "savefig.facecolor": theme.background,
            "axes.facecolor": theme.background,
            "axes.formatter.useoffset": False,  # returns are read off the axis, not added up
            "axes.edgecolor": theme.faint,
            "axes.labelcolor": theme.ink,
            "axes.titlecolor": theme.ink,
            "axes.titlesize": 10,
            "text.color": theme.ink,
            "xtick.color": theme.faint,
            "ytick.color": theme.faint,
            "xtick.labelcolor": theme.ink,
            "ytick.labelcolor": theme.ink,
            "legend.frameon": False,
            "legend.fontsize": 9,
        }
    )

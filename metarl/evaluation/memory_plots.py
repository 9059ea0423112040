"""Pictures of memories: what they read and write in a trial, and how far back they reach."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from metarl.evaluation.plots import LIGHT, Theme, style, write
from metarl.evaluation.remembering import FORGOTTEN, Reach, Remembered

MOST_PANELS = 8
"""Heat maps in a picture; a gated transformer has one per layer and head."""


def plot_memory(trial: Remembered, reach: Reach | None = None, path: str | Path | None = None, *, title: str = "") -> Figure:
    """What a memory reads and writes over one trial, as heat maps over time, above how far back it reaches.

    Weights are drawn on one scale from 0 to 1, with more room for small ones (square roots), and states, of either sign, on
    one around 0 that leaves out the largest hundredth. Thin lines end episodes; what the steps brought stands on top. Places
    of a window that were never filled are left out.

    Args:
        trial: from `remember`.
        reach: from `reach`.
        path: where to write the picture; the suffix says the format.
        title: what is shown.
    """
    theme = LIGHT
    panels = {name: _filled(weights) for name, weights in list(trial.weights.items())[:MOST_PANELS]}
    heights = [0.55, *(float(np.clip(0.045 * w.shape[1], 0.7, 1.8)) for w in panels.values())]
    heights += [1.9] * (reach is not None)
    with style(theme):
        figure = Figure(figsize=(8.4, 0.9 + sum(heights) + 0.28 * len(heights)), dpi=160, layout="constrained")
        rewards, *maps = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights})
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=theme.faint)
        _draw_rewards(rewards, trial, theme)
        for axes, (name, weights) in zip(maps, panels.items(), strict=False):
            _draw_weights(figure, axes, f"{name}\n({trial.places})", weights, trial.episode_ends, theme)
            axes.set_xticklabels([])
        maps[len(panels) - 1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        maps[len(panels) - 1].set_xlabel("step of the trial" + _left_out(len(trial.weights)))
        if reach is not None:
            _draw_reach(maps[-1], reach, theme)
        write(figure, path)
    return figure


def _filled(weights: np.ndarray) -> np.ndarray:
    """Without the first places `[T, K]` in which there is never anything."""
    used = np.flatnonzero(weights.any(0))
    return weights[:, used[0] :] if len(used) else weights


def _left_out(count: int) -> str:
    return f" ({MOST_PANELS} of {count} weightings are shown)" if count > MOST_PANELS else ""


def _draw_rewards(axes: Axes, trial: Remembered, theme: Theme) -> None:
    steps = np.arange(len(trial.rewards))
    axes.vlines(steps, 0, trial.rewards, color=theme.agents[0], lw=max(0.8, 180 / len(steps)) if len(steps) < 200 else 0.8)
    axes.axhline(0, color=theme.grid, lw=0.8, zorder=0)
    axes.set_ylabel("reward", rotation=0, ha="right", va="center")
    _share_time(axes, trial.episode_ends, theme)
    axes.set_xticklabels([])
    axes.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_weights(
    figure: Figure, axes: Axes, name: str, weights: np.ndarray, episode_ends: np.ndarray, theme: Theme
) -> None:
    if weights.min() < 0:
        top = float(np.quantile(np.abs(weights), 0.99)) or 1.0
        colours = {"cmap": "RdBu_r", "norm": Normalize(-top, top)}
    else:
        colours = {"cmap": "magma_r", "norm": PowerNorm(0.5, 0, max(1.0, float(weights.max())))}
    image = axes.imshow(weights.T, aspect="auto", interpolation="nearest", origin="lower", **colours)
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes.set_yticks([])
    _share_time(axes, episode_ends, theme)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
    bar.ax.yaxis.set_major_locator(MaxNLocator(2))
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _share_time(axes: Axes, episode_ends: np.ndarray, theme: Theme) -> None:
    axes.set_xlim(-0.5, len(episode_ends) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ends = np.flatnonzero(episode_ends[:-1])
    if len(ends) <= 100:
        axes.vlines(ends + 0.5, 0, 1, transform=axes.get_xaxis_transform(), color=theme.faint, lw=0.5)


def _draw_reach(axes: Axes, reach: Reach, theme: Theme) -> None:
    axes.plot(reach.steps, reach.missing, color=theme.agents[0], marker="o", ms=3)
    axes.axhline(FORGOTTEN, color=theme.faint, lw=0.8, ls=(0, (5, 2)))
    axes.axvline(reach.length, color=theme.agents[1], lw=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps that are remembered, the present one included")
    axes.set_ylabel("share of what\nmemory decides\nthat is missing", rotation=0, ha="right", va="center")
    axes.set_title(str(reach), loc="right", fontsize=9, color=theme.agents[1])
    axes.grid(axis="y", color=theme.grid, lw=0.8)

"""Tables as text and HTML, and one-page reports that need nothing but the file itself."""

import base64
import csv
import html
import io
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import yaml

from metarl.evaluation.plots import plot_adaptation, plot_recall, plot_splits
from metarl.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarl.evaluation.curve import AdaptationCurve

PACKAGES = ("metarl-toolkit", "torch", "numpy", "gymnasium", "stable-baselines3", "mujoco")
"""Packages whose versions a report names where they are installed."""


def decimals(estimates: Sequence[Estimate]) -> int:
    """Decimal places (0 to 4) that show two digits of the width of the narrowest interval."""
    widths = [e.high - e.low for e in estimates if e.high > e.low]
    return int(np.clip(1 - math.floor(math.log10(min(widths))), 0, 4)) if widths else 2


def show_estimate(estimate: Estimate, digits: int, sign: str = "", *, points: bool = False) -> str:
    """A number with its interval, "6.66 [6.64, 6.68]"; alone where that is unknown or, unless `points`, a point."""
    form = f"{sign}.{digits}f"
    if not (estimate.high >= estimate.low if points else estimate.high > estimate.low):
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns: the first to the left, the others to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    rows = [header, ["-" * width for width in widths], *rows]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], emphasised: int = 1) -> str:
    """The same as HTML; the first `emphasised` rows stand out."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    starts = ['<tr class="agent">' if i < emphasised else "<tr>" for i in range(len(rows))]
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"{start}{row}</tr>" for start, row in zip(starts, cells, strict=True))
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def html_facts(facts: Mapping[str, Any]) -> str:
    """Names and values, side by side."""
    items = "\n".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>\n{items}\n</dl>"


def html_figure(draw: Callable[..., "Figure"], caption: str) -> str:
    """The picture that `draw(dark=...)` returns, as embedded SVG in the reader's colours."""
    light, dark = (_svg(draw(dark=is_dark)) for is_dark in (False, True))
    caption = html.escape(caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def html_page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A self-contained page from sections of HTML."""
    title, subtitle = html.escape(title), html.escape(subtitle)
    return _PAGE.format(title=title, subtitle=subtitle, style=_STYLE, body="\n".join(sections))


def html_ending(config: Mapping[str, Any] | None) -> list[str]:
    """The last sections of a page: `config`, where there is one, and versions."""
    configuration = [] if config is None else ["<h2>Configuration</h2>", html_yaml(config)]
    return [*configuration, "<h2>Versions</h2>", html_facts(versions())]


def html_yaml(config: Mapping[str, Any]) -> str:
    """`config` as YAML."""
    return f"<pre>{html.escape(readable(config))}</pre>"


def versions() -> dict[str, str]:
    """Python's version and those of the installed `PACKAGES`."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_report(
    path: str | Path,
    curves: "AdaptationCurve | Mapping[str, AdaptationCurve]",
    *,
    title: str | None = None,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML page on one agent: curves, tables, what was run, with which configuration and versions.

    Args:
        path: the file to write.
        curves: a curve, or several under the names of their task sets, such as `{"test": ..., "ood": ...}`; the first
            is shown large.
        title: heading; the agent's name by default.
        config: the run's configuration, shown as YAML.
        facts: more about the run, name by name, such as `{"wall time": "12 min"}`.
    """
    named = {curves.split: curves} if hasattr(curves, "returns") else dict(curves)
    first = next(iter(named.values()))
    sections = [html_figure(lambda dark: plot_adaptation(first, dark=dark), _caption(first))]
    if first.by_occurrence is not None:
        caption = "What an episode earns, by how often its situation came before in the trial."
        sections.append(html_figure(lambda dark: plot_recall(first, dark=dark), caption))
    if len(named) > 1:
        *others, last = named
        caption = f"{first.name} on {', '.join(others)} and {last} tasks, on one scale."
        sections.append(html_figure(lambda dark: plot_splits(named, dark=dark), caption))
    for name, curve in named.items():
        heading = f"Scores on {name} tasks" if len(named) > 1 else "Scores"
        sections += [f"<h2>{html.escape(heading)}</h2>", html_table(*curve.table_rows())]
        sections += [html_table(*table, emphasised=0) for table in curve.further_tables()]
    scaled = any("random to" in title for curve in named.values() for title in curve.table_rows()[0])
    sections.append(f'<p class="note">{html.escape(_NOTE + _SCALE_NOTE * scaled)}</p>')
    sections += ["<h2>What was run</h2>", html_facts({**run_facts(first), **(facts or {})})]
    sections += html_ending(config)
    return save_page(path, html_page(title or first.name, f"on {first.label}", sections))


def run_facts(curve: "AdaptationCurve") -> dict[str, Any]:
    """What a curve itself says about how it came to be."""
    facts = {
        "environment": curve.env_id,
        "parameters": ", ".join(f"{k} = {v}" for k, v in curve.family_kwargs.items()) or "none",
        "tasks": f"{curve.num_tasks:,} of split {curve.split}, SHA-256 {curve.task_hash[:16]}",
        "trial": f"{curve.num_episodes:,} episode{'s' if curve.num_episodes > 1 else ''}",
        "evaluation seed": curve.seed,
    }
    if curve.training_steps is not None:
        facts["trained for"] = f"{curve.training_steps:,} steps"
    return facts


def readable(config: Mapping[str, Any]) -> str:
    """A configuration as YAML; what YAML has no word for is written as text."""
    return yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True).rstrip()


def save_rows(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write rows as CSV, numbers to ten digits, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([f"{cell:.10g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return path


def save_page(path: str | Path, page: str) -> Path:
    """Write `page` as UTF-8 and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _caption(curve: "AdaptationCurve") -> str:
    caption = f"Return in each episode of a trial: mean over {curve.num_tasks:,} {curve.split} tasks and its 95 % interval."
    return caption + (" The dashed line is what a player that knows the task expects." if curve.ceiling is not None else "")


def _svg(figure: "Figure") -> str:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "metarl"}):  # equal figures give equal files
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_NOTE = (
    "In brackets: 95 % bootstrap intervals over tasks; another training seed is not in them. IQM: mean of the middle half "
    "of trials."
)
_SCALE_NOTE = (
    " The last column puts the return per trial on a scale from the random player, 0 %, to the Bayes-optimal player or, "
    "without one, to the ceiling (who knows the task), 100 %."
)

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1c1f24; --faint: #636a75; --rule: #e2e5ea;
  --soft: #f5f6f8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181d; --ink: #e8eaee; --faint: #9aa2ae; --rule: #2f343d;
  --soft: #1e2128; --accent: #4aa8e0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 68rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.1rem; }
.subtitle, .note, figcaption { color: var(--faint); }
.subtitle { margin: .25rem 0 2rem; }
.note, figcaption { font-size: .875rem; }
figcaption { margin-top: .5rem; }
figure { margin: 0 0 1.5rem; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
.wide + .wide { margin-top: 1.5rem; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); }
td { white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
th { color: var(--faint); font-weight: 500; vertical-align: bottom; }
.agent td { font-weight: 600; }
.agent td:first-child { color: var(--accent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: 0; font-size: .9rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; padding: 1rem 1.25rem; overflow-x: auto; border-radius: 6px; background: var(--soft);
  font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
@media print { body { max-width: none; padding: 0; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} {subtitle}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="subtitle">{subtitle}</p>
{body}
</body>
</html>
"""

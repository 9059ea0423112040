"""Write the tables of README.md and docs/results.md from the files in `experiments/results/`: none is typed by hand.

python experiments/tables.py            # rewrite them
python experiments/tables.py --check    # exit 1 if they are not what the results say
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from result_files import read_result
from tables_few_shot import FEW_SHOT
from tables_memory import MEMORY
from tables_speed import SPEEDS

PAGES = [Path(__file__).parent.parent / name for name in ("README.md", "docs/results.md")]


@dataclass(frozen=True)
class Target:
    """One row of the table of trained agents."""

    preset: str
    task: str
    published: str
    target: float
    measure: str = "total"
    """`total` return of a trial, `regret` against the best arm, or `episodes 3, 4` (the lower of the two)."""
    split: str = "test"


TARGETS = [
    Target("bandit-5x10", "Bernoulli bandit, 5 arms, 10 pulls", "6.7 (RL²), 6.66 (Bayes)", 6.60),
    Target("bandit-10x10", "Bernoulli bandit, 10 arms, 10 pulls", "6.7 (RL²), 6.71 (Bayes)", 6.64),
    Target("bandit-5x100", "Bernoulli bandit, 5 arms, 100 pulls, likeliest action", "78.7 (RL²), 78.3 (Gittins)", 78.3),
    Target("two-armed-uniform", "Two-armed dependent bandit, 100 pulls: regret", "1.21 (Bayes)", 1.3 * 1.21, "regret"),
    Target("tabular-10", "Tabular MDP, 10 episodes, 128 units", "156.2 (RL²), 159.1 (SNAIL)", 157.3),
    Target("tabular-10-large", "Tabular MDP, 10 episodes, 256 units, likeliest action", "156.2 (RL²), 159.1 (SNAIL)", 157.3),
    Target("gridnavi", "GridNavi, 5 held-out goals: the lower of episodes 3 and 4", "", 10.0, "episodes 3, 4"),
    Target(
        "gridnavi-all",
        "GridNavi, all 21 goals (VariBAD's protocol): the lower of episodes 3 and 4",
        "11.07 (known goal)",
        10.0,
        "episodes 3, 4",
        "all",
    ),
]


def agents() -> str:
    """RL² on held-out tasks beside what was published and what was aimed at."""
    lines = [
        "| task | published | target | | RL² here, 95 % interval (one value per seed) | steps | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        result = read_result(f"{target.preset}.json")
        if result is None:
            continue
        values = [_measure(target, row["splits"][target.split]) for row in result["seeds"] if target.split in row["splits"]]
        steps = max(row["steps"] for row in result["seeds"]) / 1e6
        minutes = max(row["training_seconds"] for row in result["seeds"]) / 60
        bound = f"{'≤' if target.measure == 'regret' else '≥'} {target.target:.4g}"
        shown = "; ".join(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in values)
        reached = [
            value <= target.target if target.measure == "regret" else value >= target.target for value, _, _ in values
        ]
        mark = "reached" if all(reached) else "NOT reached"
        lines.append(
            f"| {target.task} | {target.published} | {bound} | {mark} | {shown} | {steps:.1f} M | {minutes:.1f} min |"
        )
    return "\n".join(lines)


def _measure(target: Target, scores: dict) -> tuple[float, float, float]:
    if target.measure == "regret":
        value, low, high = scores["total"]
        best = scores["ceiling"] * len(scores["episodes"]["mean"])
        return best - value, best - high, best - low
    if target.measure == "episodes 3, 4":
        episode = min((2, 3), key=lambda e: scores["episodes"]["mean"][e])
        return tuple(scores["episodes"][key][episode] for key in ("mean", "low", "high"))
    return tuple(scores["total"])


def references() -> str:
    """Classical players beside their published scores."""
    lines = ["| setting | player | published | here, 95 % interval | tasks |", "|---|---|---|---|---|"]
    for setting in read_result("references.json") or []:
        optimum = setting.get("bayes_optimal")
        if optimum and optimum.get("value"):
            lines.append(f"| {setting['name']} | Bayes-optimal, exact value | | {optimum['value']:.3f} | |")
        for row in setting["players"]:
            published = "" if row["published"] is None else f"{row['published']:g}"
            scores = f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            lines.append(f"| {setting['name']} | {row['player']} | {published} | {scores} | {setting['num_tasks']:,} |")
    return "\n".join(lines)


def context() -> str:
    """RL² against PPO without a memory on families of one environment."""
    lines = [
        "| family | split, actions | seed | RL², first episode | last | PPO, per episode | RL² - PPO, per trial | steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("cartpole-context", "pendulum-context", "walker2d-dynamics"):
        for row in (read_result(f"{name}-vs-ppo.json") or {"seeds": []})["seeds"]:
            for key, scores in row["splits"].items():
                ours, theirs = scores["episodes"], row["ppo"]["splits"][key]["episodes"]
                value, low, high = row["difference"][key]
                value, low, high = (round(-x, 1) + 0.0 for x in (value, high, low))  # no "-0.0"
                difference = f"{value:.1f} [{low:.1f}, {high:.1f}]"
                average = sum(theirs["mean"]) / len(theirs["mean"])
                lines.append(
                    f"| {name} | {key} | {row['seed']} | {_episode(ours, 0)} | {_episode(ours, -1)} | {average:.1f} "
                    f"| {difference} | {row['steps'] / 1e6:.1f} M |"
                )
    return "\n".join(lines)


def _episode(episodes: dict, index: int) -> str:
    mean, low, high = (episodes[key][index] for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


STEPS = [
    ("maml-navigation", "2-D navigation", 20, ((-40.4, None), (-11.7, -11.7), (-3.3, None), (-3.2, -3.2))),
    (
        "maml-halfcheetah-direction",
        "HalfCheetah forward / backward, 100 steps",
        None,
        ((-50.7, None), (293.2, 293), (313.5, None), (315.7, 315)),
    ),
]
"""Preset, task, minutes of training at most, and for each number of gradient steps what was published and aimed at."""


def gradient_steps() -> str:
    """MAML-PPO after each number of gradient steps, beside what was published and what was aimed at."""
    lines = [
        "| task | published | target | | here, 95 % interval (one cell per seed) | steps | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, task, minutes, wanted in STEPS:
        result = read_result(f"{preset}.json") or {"seeds": []}
        for step, (published, target) in enumerate(wanted):
            found = [row["splits"]["test"]["by_update"][step] for row in result["seeds"]]
            after = f"{task}, return per episode after {step} gradient step{'s' * (step != 1)}"
            lines += _steps_row(after, f"{published} (MAML)", target, minutes, found, result)
        if preset == "maml-halfcheetah-direction":
            result = read_result("halfcheetah-direction.json") or {"seeds": []}
            for episode, name in enumerate(("first", "second")):
                scores = [row["splits"]["test"]["episodes"] for row in result["seeds"]]
                found = [[score[key][episode] for key in ("mean", "low", "high")] for score in scores]
                lines += _steps_row(f"The same by RL², {name} episode", "", None, None, found, result)
    result = read_result("maml-bandit-5x100.json") or {"seeds": []}
    found = [row["splits"]["test"]["total"] for row in result["seeds"]]
    lines += _steps_row("Bernoulli bandit, 5 arms, 100 pulls, a gradient step every 10", "67.1", 67.1, 20, found, result)
    return "\n".join(lines)


def _steps_row(
    task: str, published: str, target: float | None, within: float | None, found: list, result: dict
) -> list[str]:
    if not found:
        return []
    shown = "; ".join(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in found)
    steps = max(row["steps"] for row in result["seeds"]) / 1e6
    minutes = max(row["training_seconds"] for row in result["seeds"]) / 60
    reached = target is not None and minutes < (within or minutes + 1) and all(value > target for value, _, _ in found)
    mark = "" if target is None else "reached" if reached else "NOT reached"
    bound = "" if target is None else f"> {target:g}" + (f" in {within} min" if within else "")
    return [f"| {task} | {published} | {bound} | {mark} | {shown} | {steps:.1f} M | {minutes:.1f} min |"]


def methods() -> str:
    """Every way of adapting on one family: first episodes, last ones, and the whole trial."""
    lines = [
        "| family, split | method | first update's episodes | last ones | return per trial, 95 % interval, per seed "
        "| steps | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in ("gridnavi", "cartpole-context", "halfcheetah-velocity"):
        result = read_result(f"methods-{family}.json")
        if result is None:
            continue
        every = result["episodes_per_update"]
        for split in result["seeds"][0]["methods"]["RL²"]["splits"]:
            for method in result["seeds"][0]["methods"]:
                rows = [seed["methods"][method] for seed in result["seeds"]]
                scores = [row["splits"][split] for row in rows]
                means = [score["episodes"]["mean"] for score in scores]
                first = "; ".join(f"{sum(mean[:every]) / every:.1f}" for mean in means)
                last = "; ".join(f"{sum(mean[-every:]) / every:.1f}" for mean in means)
                totals = "; ".join("{:.0f} [{:.0f}, {:.0f}]".format(*score["total"]) for score in scores)
                steps = f"{max(row['steps'] for row in rows) / 1e6:.1f} M" if rows[0]["steps"] else "none"
                seconds = max(row["training_seconds"] for row in rows)
                minutes = f"{seconds / 60:.1f} min" if seconds else ""
                lines.append(f"| {family}, {split} | {method} | {first} | {last} | {totals} | {steps} | {minutes} |")
    return "\n".join(lines)


def optimizers() -> str:
    """Learned optimizers beside the best hand-made rule, on what they were trained on and on what they were not."""
    lines = [
        "| trained on | measured on | rule | mean | best hand-made rule | at the end | best hand-made rule |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("gaussian", "gaussian-lstm", "uniform-lstm", "digits", "cartpole"):
        result = read_result(f"optimizer-{name}.json")
        if result is None:
            continue
        for target in result["targets"]:
            cells = [_optimizer_cells(target, measure) for measure in ("mean", "end")]
            subject = (
                f"{target['label']}: {target['problem']}, {target['steps']} {'iterations' if target['returns'] else 'steps'}"
            )
            rule = target["rules"][0]["name"]
            lines.append(f"| {name} | {subject} | {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _optimizer_cells(target: dict, measure: str) -> str:
    sign = -1 if target["returns"] else 1
    ours, *others = target["rules"]
    best = min((row for row in others if row[measure][0] == row[measure][0]), key=lambda row: sign * row[measure][0])
    shown = [f"{row[measure][0]:.4g} [{row[measure][1]:.4g}, {row[measure][2]:.4g}]" for row in (ours, best)]
    return f"{shown[0]} | {best['name']} {shown[1]}"


def drop_in() -> str:
    """A learned optimizer in Stable-Baselines3's PPO, by rate."""
    rows = read_result("drop-in-cartpole.json") or []
    lines = ["| optimizer | learning rate | return of the trained policy |", "|---|---|---|"]
    for row in rows:
        mean, low, high = row["mean"]
        lines.append(f"| {row['optimizer']} | {row['rate']:g} | {mean:.0f} [{low:.0f}, {high:.0f}] |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "agents": agents,
    "references": references,
    "context": context,
    "maml": gradient_steps,
    "methods": methods,
    "optimizers": optimizers,
    "drop_in": drop_in,
    **FEW_SHOT,
    **MEMORY,
    **SPEEDS,
}


def render(text: str) -> str:
    """`text` with everything between `<!-- table:NAME -->` and `<!-- end -->` made anew."""

    def table(match: re.Match) -> str:
        return f"<!-- table:{match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something would change")
    options = parser.parse_args(arguments)
    for page in PAGES:
        text = page.read_text()
        try:
            rendered = render(text)
        except ValueError as error:
            sys.exit(f"{page.name}: {error}")
        if options.check:
            if text != rendered:
                sys.exit(f"{page.name} is not up to date: run python experiments/tables.py")
        else:
            page.write_text(rendered)


if __name__ == "__main__":
    main()

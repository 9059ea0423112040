"""Train a learned optimizer, measure it on what it was trained on and on what it was not, and put it into the package.

    python experiments/learned_optimizers.py optimizer-gaussian
    python experiments/learned_optimizers.py optimizer-cartpole --ship

A name is a preset of metarl. Hand-made rules beside it are tuned on training problems of each target, for the mean over
all steps and for the end. Runs live in `runs/optimizers/NAME` and are continued there. Result:
`experiments/results/NAME.json` and a picture per target; with `--ship` also the rule and its card in the package.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reproduce import PRESETS, RESULTS, train_run

from metarl.algorithms.learned_optimizer import OptimizerTraining, make_problem
from metarl.config import OptimizerConfig
from metarl.evaluation import OptimizationCurve, evaluate_optimizer
from metarl.run_folder import RunFolder
from metarl.training import load_optimizer_run
from metarl.updates.weights import FOLDER

RUNS = Path("runs/optimizers")


@dataclass(frozen=True)
class Target:
    """What a rule is measured on."""

    label: str
    family: str
    problem_kwargs: Mapping[str, Any] = field(default_factory=dict)
    family_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_problems: int = 512
    steps: int | None = None


def quadratics(kind: str) -> tuple[Target, ...]:
    """Those it was trained on, twice as long, and twice as wide."""
    return (
        Target("as trained", "quadratics", {"kind": kind}),
        Target("200 steps", "quadratics", {"kind": kind}, steps=200),
        Target("20 dimensions", "quadratics", {"kind": kind, "dimensions": 20}),
    )


AGENTS = (
    Target(
        "cart-pole",
        "metarl/CartPoleContext-v0",
        {"slots": 2, "num_steps": 100, "hidden": [16, 16], "horizon": 10},
        {"num_steps": 100},
    ),
    Target("GridNavi", "metarl/GridNavi-v0", {"slots": 8, "hidden": [16, 16], "horizon": 20}),
)
TARGETS: dict[str, tuple[Target, ...]] = {
    "optimizer-gaussian": quadratics("gaussian"),
    "optimizer-gaussian-lstm": quadratics("gaussian"),
    "optimizer-uniform-lstm": quadratics("uniform"),
    "optimizer-digits": (
        Target("as trained", "digits"),
        Target("ReLU", "digits", {"activation": "relu"}),
        Target("two layers", "digits", {"hidden_sizes": [20, 20]}),
    ),
    "optimizer-cartpole": AGENTS,
}
"""By preset; the first is what it is trained on."""


def measure(model: OptimizerTraining, target: Target, name: str) -> OptimizationCurve:
    """How the rule does on a target, beside hand-made rules tuned to it."""
    problem = make_problem(target.family, target.family_kwargs, target.problem_kwargs)
    saved = model.saved_rule()
    return evaluate_optimizer(
        saved.make(problem.template()),
        problem,
        name=name,
        num_problems=target.num_problems,
        steps=target.steps,
        returns=not problem.differentiable,
    )


def write_card(name: str, result: Mapping[str, Any], config: OptimizerConfig) -> str:
    """What the rule was trained on, for how long, where it wins and where it loses."""
    hours = result["training_seconds"] / 3600
    lines = [
        f"# {name.removeprefix('optimizer-')}",
        "",
        f"A `{config.rule}` update rule, trained on {result['targets'][0]['problem']} by "
        f"{config.hyperparameters.estimator} for {result['inner_steps']:,} inner steps "
        f"({hours:.1f} hours on one thread of a CPU), seed {config.seed}. Its rate is {config.rate:g}: that is the "
        "learning rate for trainings like those; for longer ones and larger networks try smaller rates too, as for Adam.",
        "",
        f"Made by `{result['command']}`. On held-out problems, beside hand-made rules tuned on training problems of each "
        "target, with 95 % intervals over problems:",
        "",
    ]
    for target in result["targets"]:
        what, steps = ("return", "iterations") if target["returns"] else ("loss", "steps")
        lines += [
            f"**{target['label']}**: {target['problem']}, {target['steps']} {steps}, {target['problems']} problems. "
            f"{verdict(target)}",
            "",
            f"| rule | mean {what} | {what} at the end |",
            "|---|---|---|",
            *(f"| {row['name']} | {show(row['mean'])} | {show(row['end'])} |" for row in target["rules"]),
            "",
        ]
    return "\n".join(lines)


def verdict(target: Mapping[str, Any]) -> str:
    """Whether the rule is better than the best other one: by intervals that do not overlap, or not, or within them."""
    sign = -1 if target["returns"] else 1
    ours, *others = target["rules"]
    parts = []
    for measure, name in (("mean", "mean"), ("end", "end")):
        best = min((o for o in others if o[measure][0] == o[measure][0]), key=lambda o: sign * o[measure][0])
        (low, high), (their_low, their_high) = ((r[measure][1], r[measure][2]) for r in (ours, best))
        if ours[measure][0] != ours[measure][0]:
            word = "diverges, against"
        elif (high < their_low) if sign > 0 else (low > their_high):
            word = "wins against"
        elif (low > their_high) if sign > 0 else (high < their_low):
            word = "loses to"
        else:
            word = "cannot be told from"
        parts.append(f"by the {name} it {word} {best['name']}")
    return f"{parts[0]}, {parts[1]}.".capitalize()


def show(estimate: Sequence[float]) -> str:
    """A number with its interval, to four digits."""
    value, low, high = estimate
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or continue, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TARGETS, help="a preset of metarl")
    parser.add_argument("--ship", action="store_true", help="put the rule and its card into the package")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    name = options.name
    folder, seconds = train_run(OptimizerConfig.from_yaml(PRESETS / f"{name}.yaml"), RUNS / name)
    model = load_optimizer_run(folder)
    config = OptimizerConfig.from_yaml(RunFolder.open(folder).config_file)
    targets = []
    for target in TARGETS[name]:
        curve = measure(model, target, config.rule)
        print(f"{target.label}\n{curve.table()}\n", flush=True)
        curve.plot(RESULTS / f"{name}-{target.label.replace(' ', '-')}.png")
        targets.append({"label": target.label, **curve.summary()})
    result = {
        "preset": name,
        "command": f"python experiments/learned_optimizers.py {name}",
        "inner_steps": model.num_timesteps,
        "training_seconds": seconds,
        "trained_with": json.loads(json.dumps(config.plain())),
        "targets": targets,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    if options.ship:
        short = name.removeprefix("optimizer-")
        model.export(FOLDER / f"{short}.safetensors")
        (FOLDER / f"{short}.md").write_text(write_card(name, result, config))


if __name__ == "__main__":
    main()

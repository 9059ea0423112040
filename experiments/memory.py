"""Memory cores side by side: one problem that needs a memory, several cores, equal steps and settings.

    python experiments/memory.py repeat-previous
    python experiments/memory.py t-maze --cores lstm gtrxl --seeds 0 1 2

All cores have 64 outputs, the same layer before and after them and the same PPO; where a problem needs more places in
memory than a core has by default, `PROBLEMS` says so. Scored on held-out tasks at the end of training, actions sampled.

Runs live in `runs/memory/` and are continued there. Result: `experiments/results/memory-PROBLEM.json`, the learning curves
beside it as a picture, and where situations come back also what is recalled of them.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from reproduce import RESULTS, score, train_config, trained_as
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.algorithms.rl2 import RL2PPO
from metarl.config import TrainingConfig
from metarl.evaluation import AdaptationCurve, plot_recall
from metarl.memory import CORES
from metarl.training import curve_file, evaluate_run, load_run, show_memory

RUNS = Path("runs/memory")
POLICIES = {core: name for name, core in RL2PPO.policy_aliases.items()}
SIZE = 64
"""Outputs of every core."""


@dataclass(frozen=True)
class Problem:
    """What the cores are trained on."""

    env: str
    steps: int
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    core_kwargs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """By core, where its defaults do not fit the problem."""
    cores: tuple[str, ...] = tuple(CORES)
    num_tasks: int = 2000
    """Held-out tasks."""


COMPILED = {name: {"compiled": True} for name in ("ntm", "mann", "dnc")}
WIDE = {
    "ntm": {"num_slots": 64, "compiled": True},
    "mann": {"num_slots": 64, "compiled": True},
    "dnc": {"num_slots": 64, "compiled": True},
    "episodic": {"num_slots": 64},
    "gtrxl": {"context": 128},
    "key_value": {"num_slots": 128},
}
"""Room for what a hundred steps bring."""

PROBLEMS = {
    "repeat-previous": Problem("metarl/RepeatPrevious-v0", 1_000_000),
    "repeat-first": Problem("metarl/RepeatFirst-v0", 1_000_000),
    "count-recall": Problem("metarl/CountRecall-v0", 1_000_000, core_kwargs=COMPILED),
    "autoencode": Problem("metarl/Autoencode-v0", 2_000_000, core_kwargs=WIDE),
    "t-maze": Problem(
        "metarl/TMaze-v0",
        2_000_000,
        {"length": 100},
        {"gamma": 0.995, "gae_lambda": 0.98},
        core_kwargs=WIDE,
        cores=("identity", "lstm", "gru", "min_gru", "snail", "gtrxl", "key_value"),
    ),
    "barcode": Problem(
        "metarl/BarcodeBandit-v0",
        3_000_000,
        {},
        {"num_envs": 64, "minibatches": 4, "gamma": 0.8, "entropy_coef": 0.02},
        {"encoder": [64], "bypass": [0, 10]},  # the barcode reaches the core as it is, to be the key, as in Ritter et al.
        core_kwargs={"episodic": {"context_slice": [0, 10], "num_slots": 8}},
        cores=("lstm", "episodic"),
        num_tasks=1000,
    ),
    "minigrid-memory": Problem(
        "minigrid_views:MiniGridMemoryS7-v0",
        1_000_000,
        {"num_episodes": 1},
        {"num_envs": 32, "entropy_coef": 0.05, "final_entropy_coef": 0.005},  # it has to learn to look round first
        core_kwargs={"gtrxl": {"context": 128}},
        cores=("snail", "lstm", "gru", "gtrxl"),
        num_tasks=500,
    ),
    "bandit-5x10": Problem(
        "metarl/BernoulliBandit-v0",
        3_000_000,
        {"num_arms": 5, "num_pulls": 10},
        {"final_learning_rate": 3e-4, "gae_lambda": 0.3, "entropy_coef": 0.03},
        cores=("lstm", "snail", "gtrxl", "mann"),
        num_tasks=20_000,
    ),
    "tabular-10": Problem(
        "metarl/TabularMDP-v0",
        5_000_000,
        {},
        {"gamma": 0.95, "gae_lambda": 0.5, "entropy_coef": 0.06},
        {"encoder": [256]},
        core_kwargs={**WIDE, "mann": {**WIDE["mann"], "strengths": True, "apart": True}},
        cores=("lstm", "snail", "gtrxl", "mann"),
    ),
}
SETTINGS = {"minibatches": 8}
"""Over the defaults of RL², for every problem and core."""


def make_config(name: str, core: str, seed: int) -> TrainingConfig:
    """What one core is trained with."""
    problem = PROBLEMS[name]
    return TrainingConfig(
        env=problem.env,
        env_kwargs=problem.env_kwargs,
        policy=POLICIES[core],
        policy_kwargs={"core_size": SIZE, "core_kwargs": problem.core_kwargs.get(core, {}), **problem.policy_kwargs},
        total_timesteps=problem.steps,
        seed=seed,
        hyperparameters={**SETTINGS, **problem.hyperparameters},
    )


def run_core(name: str, core: str, seed: int) -> dict:
    """Train or continue one core, and score it. Returns its row of the result file; the curve stays in the run folder."""
    folder, row = train_config(make_config(name, core, seed), run_folder(name, core, seed))
    model = load_run(folder)
    again = model.family.structure == "barcode_bandit"
    curve = evaluate_run(folder, num_tasks=PROBLEMS[name].num_tasks, references=again, progress_bar=False)
    row = {"core": core, "parameters": sum(p.numel() for p in model.policy.parameters()), "reach": None, **row}
    if model.policy.core.initial_state(1):
        picture, far = show_memory(folder, split="test")
        if again:
            shutil.copy(picture, RESULTS / f"memory-{name}-{core}-seed{seed}.png")
        row["reach"] = {"length": far.length, "nats": far.nats}
    row["splits"]["test"] = score(curve)
    if curve.by_occurrence is not None:
        row["by_occurrence"] = np.transpose(curve.by_occurrence).tolist()
    row["learning_curve"] = learning_curve(folder)
    print(
        f"{name} {core} seed {seed}: {curve.total.value:.3f} in {row['training_seconds']:.0f} s, {row['reach']}", flush=True
    )
    return row


def run_folder(name: str, core: str, seed: int) -> Path:
    """Where a core is trained."""
    return RUNS / f"{name}-{core}-seed{seed}"


def read_rows(name: str) -> dict[tuple[str, int], dict]:
    """Rows of the result file by core and seed: those that were trained as they would be now."""
    path = RESULTS / f"memory-{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {
        (row["core"], row["seed"]): row
        for row in rows
        if trained_as(row["trained_with"], make_config(name, row["core"], row["seed"]))
    }


def learning_curve(folder: Path, points: int = 60) -> list[list[float]]:
    """Steps and sampled return per trial, averaged over `points` equal stretches of training."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    scalars = events.Scalars("rollout/trial_return")
    chunks = np.array_split(np.array([[event.step, event.value] for event in scalars]), min(points, len(scalars)))
    return [chunk.mean(0).round(4).tolist() for chunk in chunks]


def draw(name: str, rows: Sequence[dict]) -> None:
    """Learning curves of all cores, seeds as lines of one colour."""
    cores = list(dict.fromkeys(row["core"] for row in rows))
    colours = dict(zip(CORES, matplotlib.colormaps["tab20"].colors, strict=False))
    figure = Figure(figsize=(7.6, 4.2), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for core in cores:
        for i, row in enumerate(r for r in rows if r["core"] == core):
            label = core if i == 0 else None
            steps, returns = np.transpose(row["learning_curve"])
            axes.plot(steps / 1e6, returns, color=colours[core], lw=1.6, label=label)
    ceiling = rows[0]["splits"]["test"]["ceiling"]
    if ceiling is not None:
        axes.axhline(
            ceiling * len(rows[0]["splits"]["test"]["episodes"]["mean"]), color="black", lw=1, ls="--", label="ceiling"
        )
    axes.set_xlabel("million environment steps")
    axes.set_ylabel("sampled return per trial, in training")
    axes.set_title(PROBLEMS[name].env, loc="left", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(RESULTS / f"memory-{name}.png")


def draw_recall(name: str, cores: Sequence[str], seed: int = 0) -> None:
    """Returns by occurrence of one seed of all cores, if their runs are there."""
    files = [curve_file(run_folder(name, core, seed), "test") for core in cores]
    if all(file.exists() for file in files):
        plot_recall([AdaptationCurve.load(file) for file in files], RESULTS / f"memory-{name}-recall.png", names=cores)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cores and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--cores", nargs="+", choices=CORES, help="which cores, by default all that the problem is for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    name = options.problem
    rows = read_rows(name)
    for seed in options.seeds:
        for core in options.cores or PROBLEMS[name].cores:
            rows[core, seed] = run_core(name, core, seed)
            order = sorted(rows, key=lambda key: (list(CORES).index(key[0]), key[1]))
            seeds = " ".join(str(number) for number in sorted({number for _, number in rows}))
            result = {
                "problem": name,
                "command": f"python experiments/memory.py {name} --seeds {seeds}",
                "rows": [rows[key] for key in order],
            }
            (RESULTS / f"memory-{name}.json").write_text(json.dumps(result, ensure_ascii=False) + "\n")
            draw(name, result["rows"])
    if "by_occurrence" in result["rows"][0]:
        draw_recall(name, list(dict.fromkeys(core for core, _ in order)))


if __name__ == "__main__":
    main()

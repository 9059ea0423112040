"""Train a preset with one or several seeds, score held-out tasks at the END of training, store the result.

    python experiments/reproduce.py bandit-5x10 --seeds 0 1 2
    python experiments/reproduce.py gridnavi --splits test all

Runs live in `runs/reproduce/NAME-seedS`. A run that was stopped is continued exactly where its last checkpoint left it,
a finished one is only scored. Results go to `experiments/results/NAME.json`, from which `experiments/tables.py` writes
the README's tables.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from result_files import RESULTS

import metarl
from metarl.config import RunConfig, TrainingConfig, read_config
from metarl.plain import from_plain
from metarl.progress import Progress
from metarl.training import evaluate_run, load_run, resume, train

PRESETS = Path(metarl.__file__).parent / "presets"


def preset_config(name: str, seed: int) -> TrainingConfig:
    """What a seed of a preset is trained with."""
    config = TrainingConfig.from_yaml(PRESETS / f"{name}.yaml")
    return TrainingConfig(**{**config.plain(), "seed": seed})


def train_seed(name: str, seed: int) -> tuple[Path, dict]:
    """Train or continue one seed. Returns its folder and the start of its row in the result file."""
    return train_config(preset_config(name, seed), Path("runs/reproduce") / f"{name}-seed{seed}")


def train_config(config: TrainingConfig, folder: Path) -> tuple[Path, dict]:
    """Train in `folder`, or continue there. Returns it and the start of a row in the result file."""
    folder, seconds = train_run(config, folder)
    return folder, {
        "seed": config.seed,
        "trained_with": trained_with(config),
        "steps": load_run(folder).num_timesteps,
        "training_seconds": seconds,
        "splits": {},
    }


def train_run(config: RunConfig, folder: Path) -> tuple[Path, float]:
    """Train in `folder`, or continue there. Returns it and how many seconds training took."""
    if (folder / "config.yaml").exists():
        made_by = read_config(folder / "config.yaml")
        asked = {**config.plain(), **{name: made_by.plain()[name] for name in KEPT if name in made_by.plain()}}
        if made_by.resolved() != type(config)(**asked).resolved():
            sys.exit(f"{folder} was trained with other settings than there are now: move it away, or train it again")
        resume(folder, callback=Progress(), progress_bar=False)
    else:
        train(config, folder, callback=Progress(), progress_bar=False)
    return folder, json.loads((folder / "progress.json").read_text())["training_seconds"]


KEPT = ("evaluation",)
"""Settings that may be others than a run was trained with."""


def trained_with(config: TrainingConfig) -> dict:
    """The config as JSON gives it back, without how the run is evaluated."""
    plain = config.plain()
    del plain["evaluation"]
    return json.loads(json.dumps(plain))


def trained_as(recorded: dict | None, config: TrainingConfig) -> bool:
    """Whether `trained_with` in a result file is that of `config`; settings that came later had their defaults."""
    try:
        return recorded is not None and trained_with(from_plain(type(config), recorded)) == trained_with(config)
    except ValueError:
        return False


def read_rows(path: Path, name: str) -> dict[int, dict]:
    """Rows of a result file by seed: those that were trained as the preset is now."""
    rows = json.loads(path.read_text())["seeds"] if path.exists() else []
    return {row["seed"]: row for row in rows if trained_as(row.get("trained_with"), preset_config(name, row["seed"]))}


def write_rows(path: Path, name: str, script: str, rows: dict[int, dict]) -> None:
    """Write a result file, with the command that makes it anew."""
    result = {
        "preset": name,
        "command": f"python experiments/{script} {name} --seeds {' '.join(map(str, sorted(rows)))}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **({"mujoco": importlib.metadata.version("mujoco")} if "mujoco" in sys.modules else {}),
        "seeds": [rows[seed] for seed in sorted(rows)],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def run_seed(name: str, seed: int, splits: Sequence[str], num_tasks: int, references: bool) -> dict:
    """Train or continue one seed, and score it. Returns a row of the result file."""
    folder, row = train_seed(name, seed)
    settings = {"num_tasks": num_tasks, "references": references, "progress_bar": False}
    settings["deterministic"] = preset_config(name, seed).evaluation.deterministic
    for split in splits:
        curve = evaluate_run(folder, split=split, **settings)
        row["splits"][split] = score(curve)
        print(curve.table(), flush=True)
    return row


def score(curve) -> dict:
    """What is kept of a curve: totals and episodes with their intervals, and the players beside it."""
    return {
        "tasks": curve.num_tasks,
        "task_hash": curve.task_hash,
        "total": list(curve.total),
        "total_iqm": list(curve.total_iqm),
        "episodes": {name: values.tolist() for name, values in zip(("mean", "low", "high"), curve.mean, strict=True)},
        "by_update": None if curve.by_update is None else np.transpose(curve.by_update).tolist(),
        "ceiling": None if curve.ceiling is None else float(curve.ceiling.mean()),
        "references": {other.name: list(other.total) for other in curve.references},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a preset of metarl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--splits", nargs="+", default=["test"], help="splits to score")
    parser.add_argument("--num-tasks", type=int, default=20_000, help="tasks per split")
    parser.add_argument("--references", action="store_true", help="let classical players play the same tasks (first seed)")
    options = parser.parse_args(arguments)
    path = RESULTS / f"{options.name}.json"
    rows = read_rows(path, options.name)
    for seed in options.seeds:
        references = options.references and seed == options.seeds[0]
        rows[seed] = run_seed(options.name, seed, options.splits, options.num_tasks, references)
        write_rows(path, options.name, "reproduce.py", rows)


if __name__ == "__main__":
    main()

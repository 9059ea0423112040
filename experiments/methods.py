"""Every way of adapting on one family, side by side: RL², MAML-PPO and its relatives, and PPO with and without adaptation.

    python experiments/methods.py gridnavi --seeds 0 1 2
    python experiments/methods.py cartpole-context --seeds 0
    python experiments/methods.py halfcheetah-velocity --splits test ood

All are trained for the same number of environment steps, on training tasks, and play trials of the same length on the same
held-out tasks; those that run PPO in every task play the first of them only. The trial is that of MAML: its gradient steps
are taken after every `episodes_per_update` episodes, and fine-tuning and training from scratch update as often. Their
learning rate is the best of four on TRAINING tasks, which is not in the budget. RL² and the oracle have nothing to wait for;
RL² is trained by its own preset, on shorter trials than it is played in here.

Runs live in `runs/methods/`, and are continued there; what was made with other settings is refused.
Result: `experiments/results/methods-FAMILY.json` and a picture per seed and split beside it.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from reproduce import PRESETS, RESULTS, score, train_config, trained_as, trained_with
from stable_baselines3 import PPO

from metarl.algorithms.baselines import OraclePlayer, StablePlayer, train_ppo
from metarl.algorithms.fine_tuning import FineTuningPlayer
from metarl.config import TrainingConfig
from metarl.evaluation import AdaptationCurve, evaluate
from metarl.evaluation.plots import plot_adaptation
from metarl.training import load_run

RUNS = Path("runs/methods")
GRADIENT_METHODS: dict[str, dict[str, Any]] = {
    "MAML": {},
    "FOMAML": {"second_order": False},
    "Meta-SGD": {"update_rule": "meta_sgd"},
    "ProMP": {"kl_coef": 0.1},
    "Reptile": {"outer_update": "reptile", "every_step": False},
}
"""Hyperparameters over those of the family's preset for MAML."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Among which PPO's learning rate in a new task is chosen, on training tasks."""


@dataclasses.dataclass(frozen=True)
class Family:
    """What is compared on one family."""

    maml: str
    """Preset of MAML."""
    rl2: str
    """Preset of RL²; trained for as many steps as the others."""
    episodes: int
    """Of a trial."""
    ppo: dict[str, Any]
    """Settings of multi-task and oracle PPO."""
    num_tasks: int = 2000
    """Held-out tasks; those that train in every one play the first 50."""
    methods: tuple[str, ...] = tuple(GRADIENT_METHODS)
    """Which of `GRADIENT_METHODS`."""


FAMILIES = {
    "gridnavi": Family(
        "maml-gridnavi", "gridnavi", 40, {"num_envs": 16, "batch_size": 256, "gamma": 0.97, "ent_coef": 0.01}
    ),
    "cartpole-context": Family(
        "maml-cartpole-context", "cartpole-context", 20, {"num_envs": 8, "n_steps": 256, "batch_size": 256, "gamma": 0.98}
    ),
    "halfcheetah-velocity": Family(
        "maml-halfcheetah-velocity",
        "halfcheetah-velocity",
        30,
        {"num_envs": 64, "n_steps": 128, "batch_size": 512, "gamma": 0.99},
        num_tasks=500,
        methods=("MAML", "Meta-SGD"),
    ),
}
IN_TASK = 50
"""Held-out tasks for the players that train in every one."""


def configs(family: Family, seed: int) -> dict[str, TrainingConfig]:
    """One training per meta-learner."""
    base = TrainingConfig.from_yaml(PRESETS / f"{family.maml}.yaml").plain()
    rl2 = TrainingConfig.from_yaml(PRESETS / f"{family.rl2}.yaml").plain()
    made = {"RL²": TrainingConfig(**{**rl2, "seed": seed, "total_timesteps": base["total_timesteps"]})}
    for name in family.methods:
        hyperparameters = {**base["hyperparameters"], **GRADIENT_METHODS[name]}
        made[name] = TrainingConfig(**{**base, "seed": seed, "hyperparameters": hyperparameters})
    return made


def trained_ppo(path: Path, family: Family, config: TrainingConfig, oracle: bool) -> tuple[PPO, float]:
    """PPO on the training tasks, from a file where it is there already, and the seconds that it took."""
    facts = path.with_suffix(".json")
    settings = {"env_kwargs": dict(config.env_kwargs), "steps": config.total_timesteps, "seed": config.seed, **family.ppo}
    if facts.exists():
        kept = json.loads(facts.read_text())
        if kept["settings"] != json.loads(json.dumps(settings)):
            sys.exit(f"{path} was trained with other settings than there are now: move it away")
        return PPO.load(path, device="cpu"), kept["seconds"]
    start = time.monotonic()
    model = train_ppo(config.family, config.total_timesteps, oracle=oracle, seed=config.seed, **family.ppo)
    seconds = time.monotonic() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    facts.write_text(json.dumps({"seconds": seconds, "settings": settings}))
    return model, seconds


def tuned(make: Callable[[float], FineTuningPlayer], family: Family, config: TrainingConfig) -> FineTuningPlayer:
    """The player with the learning rate that earns most on 20 training tasks."""
    options = {"split": "train", "num_tasks": 20, "episodes": family.episodes, "seed": 1, "references": False}
    scores = {rate: evaluate(make(rate), config.family, **options).total.value for rate in RATES}
    best = max(scores, key=scores.get)
    print(f"  {make(best).name}: learning rate {best:g} of {', '.join(f'{r:g}: {s:.1f}' for r, s in scores.items())}")
    return make(best)


def run_seed(name: str, seed: int, splits: Sequence[str]) -> dict:
    """Train and score everything with one seed, draw the pictures, and return what is kept."""
    family = FAMILIES[name]
    kept: dict[str, dict] = {}
    players: dict[str, tuple[Any, int]] = {}
    trainings = configs(family, seed)
    for method, config in trainings.items():
        folder, row = train_config(config, RUNS / f"{name}-{method}-seed{seed}")
        kept[method] = {"steps": row["steps"], "training_seconds": row["training_seconds"], "splits": {}}
        players[method] = load_run(folder).player(), family.num_tasks
        print(f"{method}: {row['steps']:,} steps in {row['training_seconds']:.0f} s", flush=True)
    config = trainings["MAML"]
    models = {}
    for kind in ("multi-task", "oracle"):
        path = RUNS / f"{name}-{kind}-ppo-seed{seed}.zip"
        models[kind], seconds = trained_ppo(path, family, config, oracle=kind == "oracle")
        kept[f"{kind} PPO"] = {"steps": models[kind].num_timesteps, "training_seconds": seconds, "splits": {}}
        print(f"{kind} PPO: {models[kind].num_timesteps:,} steps in {seconds:.0f} s", flush=True)
    players["multi-task PPO"] = StablePlayer(models["multi-task"], "multi-task PPO"), family.num_tasks
    players["oracle PPO"] = OraclePlayer(models["oracle"], config.family), family.num_tasks
    every = config.hyperparameters.episodes_per_update
    gamma = family.ppo.get("gamma", 0.99)
    fine = {"n_epochs": 10, "gamma": gamma}
    for method, model in {"fine-tuned PPO": models["multi-task"], "PPO from scratch": None}.items():
        players[method] = (
            tuned(lambda rate, m=model: FineTuningPlayer(m, every, learning_rate=rate, **fine), family, config),
            IN_TASK,
        )
        kept[method] = {"steps": kept["multi-task PPO"]["steps"] if model else 0, "training_seconds": 0.0, "splits": {}}
    for split in splits:
        curves: dict[str, AdaptationCurve] = {}
        tasks = config.family.sample(family.num_tasks, split, 0)
        for method, (player, count) in players.items():
            start = time.monotonic()
            curve = evaluate(player, config.family, tasks=tasks[:count], episodes=family.episodes, references=False)
            curves[method] = dataclasses.replace(curve, name=method)
            kept[method]["splits"][split] = score(curve)
            print(f"{split} {method}: {curve.total.value:.2f} per trial, {time.monotonic() - start:.0f} s", flush=True)
        agents = [curve for method, curve in curves.items() if "PPO" not in method]
        others = tuple(curve for method, curve in curves.items() if "PPO" in method)
        agents[0] = dataclasses.replace(agents[0], references=others)
        plot_adaptation(agents, RESULTS / f"methods-{name}-{split}-seed{seed}.png")
    return {"seed": seed, "trained_with": _trained_with(name, seed), "methods": kept}


def _trained_with(name: str, seed: int) -> dict:
    """All that decides what is trained, as JSON gives it back."""
    family = FAMILIES[name]
    plain = {method: trained_with(config) for method, config in configs(family, seed).items()}
    return json.loads(json.dumps({"configs": plain, "ppo": family.ppo, "episodes": family.episodes}))


def _trained_as(recorded: dict, name: str, seed: int) -> bool:
    """Whether that is what would be trained now; settings that came later had their defaults."""
    asked, now = configs(FAMILIES[name], seed), _trained_with(name, seed)
    same = all(trained_as(recorded["configs"].get(method), config) for method, config in asked.items())
    return same and {**recorded, "configs": None} == {**now, "configs": None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds and write the result file after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--splits", nargs="+", default=["test"], help="splits to score")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = RESULTS / f"methods-{options.family}.json"
    rows = {row["seed"]: row for row in json.loads(path.read_text())["seeds"]} if path.exists() else {}
    rows = {seed: row for seed, row in rows.items() if _trained_as(row["trained_with"], options.family, seed)}
    for seed in options.seeds:
        rows[seed] = run_seed(options.family, seed, options.splits)
        result = {
            "family": options.family,
            "command": f"python experiments/methods.py {options.family} --seeds {' '.join(map(str, sorted(rows)))}",
            "episodes": FAMILIES[options.family].episodes,
            "episodes_per_update": TrainingConfig.from_yaml(
                PRESETS / f"{FAMILIES[options.family].maml}.yaml"
            ).hyperparameters.episodes_per_update,
            "seeds": [rows[seed] for seed in sorted(rows)],
        }
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

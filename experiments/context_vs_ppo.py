"""RL² against Stable-Baselines3's PPO on families of one environment under different physics.

    python experiments/context_vs_ppo.py cartpole-context
    python experiments/context_vs_ppo.py pendulum-context

Both train on the same family for the same number of steps; both then play the same held-out tasks, of `test` and of `ood`
(parameters outside of the training ranges), and their adaptation curves are put side by side, once with sampled and once
with the likeliest actions, as the pictures show. PPO has no memory: its curve shows what one policy for all tasks gets. Its
hyperparameters are near those that the RL Zoo gives for these environments, its rate falling to 0 over the whole training.
A gap that is there in the first episode is one of training; what an agent adapts is what comes on top in later ones.
Result: `experiments/results/NAME-vs-ppo.json` and a picture per split beside it.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from reproduce import RESULTS, preset_config, read_rows, score, train_seed, write_rows
from stable_baselines3 import PPO

from metarl.algorithms import baselines
from metarl.algorithms.baselines import StablePlayer
from metarl.config import TrainingConfig
from metarl.evaluation import evaluate
from metarl.evaluation.compare import compare
from metarl.training import load_run

PPO_SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "cartpole-context": (
        8,
        {
            "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
            "learning_rate": "lin_0.001", "clip_range": "lin_0.2",
        },
    ),
    "pendulum-context": (
        4,
        {"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "learning_rate": "lin_0.001"},
    ),
    "walker2d-dynamics": (64, {"n_steps": 128, "batch_size": 512, "gamma": 0.99, "gae_lambda": 0.95, "n_epochs": 10}),
}  # fmt: skip
"""Number of environments and hyperparameters (without gSDE, which is exploration of another kind)."""


def train_ppo(name: str, config: TrainingConfig, seed: int) -> tuple[PPO, float]:
    """PPO on the family's training tasks, a new task per episode. Returns the model and the seconds it took."""
    num_envs, settings = PPO_SETTINGS[name]
    settings = {key: _schedule(value) for key, value in settings.items()}
    start = time.monotonic()
    model = baselines.train_ppo(config.family, config.total_timesteps, num_envs=num_envs, seed=seed, **settings)
    return model, time.monotonic() - start


def _schedule(value: Any) -> Any:
    """`lin_X`: linear from X to 0."""
    if isinstance(value, str):
        first = float(value.removeprefix("lin_"))
        return lambda remaining: first * remaining
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both, score both, write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(PPO_SETTINGS), help="a preset of metarl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds")
    parser.add_argument("--num-tasks", type=int, default=20_000, help="tasks per split")
    options = parser.parse_args(arguments)
    path = RESULTS / f"{options.name}-vs-ppo.json"
    rows = read_rows(path, options.name)
    for seed in options.seeds:
        config = preset_config(options.name, seed)
        torch.set_num_threads(config.threads)
        folder, row = train_seed(options.name, seed)
        adaptive = load_run(folder)
        memoryless, seconds = train_ppo(options.name, config, seed)
        row |= {"ppo": {"steps": memoryless.num_timesteps, "training_seconds": seconds, "splits": {}}, "difference": {}}
        for split in ("test", "ood"):
            for deterministic in (False, True):
                players = adaptive.player(deterministic), StablePlayer(memoryless, "PPO (no memory)", deterministic)
                curves = [
                    evaluate(player, config.family, split=split, num_tasks=options.num_tasks, references=False)
                    for player in players
                ]
                comparison = compare(curves)
                key = f"{split}, {'likeliest' if deterministic else 'sampled'} actions"
                print(f"\n{key}\n{comparison.table()}", flush=True)
                row["splits"][key], row["ppo"]["splits"][key] = map(score, curves)
                row["difference"][key] = list(comparison.differences[1])
            comparison.plot(RESULTS / f"{options.name}-{split}-seed{seed}.png")
        rows[seed] = row
        write_rows(path, options.name, "context_vs_ppo.py", rows)


if __name__ == "__main__":
    main()

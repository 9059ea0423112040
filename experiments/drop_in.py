"""A learned optimizer where Adam stood in Stable-Baselines3's PPO, in trainings longer and networks larger than its own.

    python experiments/drop_in.py cartpole

`CartPole-v1` for 12,000 steps: 512 steps an iteration, 4 epochs of 8 minibatches, two layers of 64 units (768 steps of the
optimizer; the rule `cartpole` was trained for 160 steps of networks of 16 units). Each optimizer at several rates, five
seeds; scored by the mean return of 20 episodes of what comes out. Result: `experiments/results/drop-in-NAME.json`.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from reproduce import RESULTS
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from metarl import LearnedOptimizer
from metarl.evaluation.statistics import estimate

RATES = (3e-4, 1e-3, 5e-3, 2e-2, 5.6e-2)
SEEDS = range(5)
STEPS = 12_000


def score(weights: str | None, rate: float, seed: int) -> float:
    """The return of the trained policy."""
    learned = {"optimizer_class": LearnedOptimizer, "optimizer_kwargs": {"weights": weights}}
    options = {"n_steps": 512, "n_epochs": 4, "batch_size": 64, "learning_rate": rate, "device": "cpu"}
    model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=learned if weights else {}, seed=seed, **options)
    model.learn(STEPS)
    model.env.seed(10_000 + seed)
    return evaluate_policy(model, model.env, n_eval_episodes=20)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="name of a rule that comes with the package, or its file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for name, weights in {"adam": None, options.weights: options.weights}.items():
        for rate in RATES:
            scores = [score(weights, rate, seed) for seed in SEEDS]
            mean = list(estimate(np.array(scores)))
            rows.append({"optimizer": name, "rate": rate, "returns": scores, "mean": mean})
            print(rows[-1], flush=True)
    RESULTS.joinpath(f"drop-in-{options.weights}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What a step of a learned optimizer costs beside Adam's, in a training of about ten thousand parameters.

    python experiments/speed/optimizers.py

Stable-Baselines3's policy with two layers of 64 units (9,797 numbers in 12 tensors), on one thread. Before each step the
gradients of a minibatch of 64 are computed and clipped, as in PPO: a step alone, again and again, would find all that it
needs in the cache, and cost two thirds of that. Optimizers take turns, so that a machine that slows down slows all of them
down; medians over the steps. All of ours are guarded unless it is said. `--compile` adds rules by `torch.compile`.

Ends with status 1 if the MLP rule costs more than twice fused Adam. Result: `experiments/results/speed-optimizers.json`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch
from machines import keep
from stable_baselines3.common.policies import ActorCriticPolicy
from stopwatch import CLOCK

from metarl import LearnedOptimizer

RESULT = "speed-optimizers.json"
BASE, MEASURED, LIMIT = "Adam, fused", "learned", 2.0
"""What costs are divided by; the rule that must not cost more than `LIMIT` times that."""
LEARNED = ("learned", "lstm_meta_learner", "optim4rl", "lstm")
BATCH, IN_A_ROW, WARM_UP = 64, 5, 5

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def optimizers(compiled: bool) -> dict[str, Make]:
    """All that is measured, by name."""

    def ours(rule: str, **options) -> Make:
        return lambda params: LearnedOptimizer(params, lr=3e-4, rule=rule, **options)

    made: dict[str, Make] = {
        BASE: lambda params: torch.optim.Adam(params, lr=3e-4, fused=True),
        "Adam": lambda params: torch.optim.Adam(params, lr=3e-4),
        "Adam, foreach": lambda params: torch.optim.Adam(params, lr=3e-4, foreach=True),
        "adam": ours("adam"),
        "learned, no guard": ours("learned", guard=False),
    }
    made |= {name: ours(name) for name in LEARNED}
    if compiled:
        made |= {f"{name}, compiled": ours(name, compile=True) for name in LEARNED}
    return made


class Training:
    """A policy, and one optimizer for it."""

    def __init__(self, make: Make):
        observations, actions = gym.spaces.Box(-np.inf, np.inf, (8,)), gym.spaces.Discrete(4)
        self.policy = ActorCriticPolicy(observations, actions, lambda _: 0.0)
        self.params = list(self.policy.parameters())
        self.optimizer = make(self.params)
        self.data = torch.randn(BATCH, 8), torch.randint(4, (BATCH,)), torch.randn(BATCH)

    def step(self) -> float:
        """Seconds that one step takes, without its gradients."""
        observations, actions, returns = self.data
        values, log_prob, entropy = self.policy.evaluate_actions(observations, actions)
        loss = (returns - values[:, 0]).square().mean() - (log_prob * returns).mean() - 0.01 * entropy.mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 0.5)
        start = CLOCK()
        self.optimizer.step()
        return CLOCK() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write it down; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=150)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainings = {name: Training(make) for name, make in optimizers(options.compile).items()}
    times = {name: [] for name in trainings}
    for turn in range(options.turns + WARM_UP):
        for name, training in trainings.items():
            taken = [training.step() for _ in range(IN_A_ROW)]
            if turn >= WARM_UP:
                times[name] += taken
    cost = {name: 1e6 * statistics.median(values) for name, values in times.items()}
    rows = [{"optimizer": name, "step_us": us, "ratio": us / cost[BASE]} for name, us in cost.items()]
    print(f"{'optimizer':32}{'a step, us':>12}{'x fused Adam':>14}")
    for row in rows:
        print(f"{row['optimizer']:32}{row['step_us']:12.0f}{row['ratio']:14.2f}")
    parameters = sum(param.numel() for param in next(iter(trainings.values())).params)
    result = {"command": "python experiments/speed/optimizers.py", "parameters": parameters, "limit": LIMIT, "rows": rows}
    if options.compile:
        result["command"] += " --compile"
    keep(RESULT, result)
    if cost[MEASURED] > LIMIT * cost[BASE]:
        print(f"the MLP rule costs {cost[MEASURED] / cost[BASE]:.2f} times fused Adam, and at most {LIMIT:g} are allowed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

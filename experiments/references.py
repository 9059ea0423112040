"""Scores of classical players and exact optima, beside the published ones.

    python experiments/references.py [--only tabular] [--fraction 0.1]
    python experiments/references.py --tune

Every setting plays all its players on the same held-out tasks and writes its part of `experiments/results/references.json`
when it is done, so that a run can be stopped and parts can be repeated. `--tune` prints what the free parameters of the
players were chosen by: mean returns on training tasks.

Seconds are processor time on one thread. Published figures are Duan et al. 2016 ("RL²", tables 1 and 2); they are means
over samples too, which we take to be of 1,000 tasks.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metarl.evaluation.bandit_players import UCB1, EpsilonGreedy, GittinsIndex
from metarl.evaluation.play import play_trials
from metarl.evaluation.references import bayes_optimal_value, oracle, reference_players, tune
from metarl.evaluation.tabular_players import BEB, PSRL, UCRL2, EpsilonGreedyPlanner
from metarl.trials import Player
from metarl_envs import TaskFamily, make_family

OUTPUT = Path(__file__).parent / "results" / "references.json"


@dataclass
class Setting:
    """One row of a published table."""

    name: str
    env_id: str
    kwargs: dict = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    num_tasks: int = 20_000
    split: str = "test"
    more_players: Callable[[TaskFamily], list[Player]] = lambda family: []


def bandit(pulls: int, arms: int, random: float, thompson: float, ucb: float, gittins: float, **options) -> Setting:
    """A row of Duan's table 1."""
    published = {"random": random, "Thompson sampling": thompson, "UCB1": ucb, "Gittins index": gittins}
    kwargs = {"num_arms": arms, "num_pulls": pulls}
    return Setting(f"bernoulli {pulls} pulls {arms} arms", "metarl/BernoulliBandit-v0", kwargs, published, **options)


def tabular(episodes: int, random: float, psrl: float, opsrl: float, ucrl: float, beb: float, **options) -> Setting:
    """A row of Duan's table 2."""
    published = {"random": random, "PSRL": psrl, "OPSRL": opsrl, "UCRL2": ucrl, "BEB": beb}
    published |= {"UCRL2, c = 0.2": ucrl, "BEB, beta = 2": beb, "BEB, beta = 5": beb, "PSRL, true prior": psrl}
    kwargs = {"num_episodes": episodes}
    options["more_players"] = _tabular_variants
    return Setting(f"tabular {episodes} episodes", "metarl/TabularMDP-v0", kwargs, published, **options)


def _tabular_variants(family: TaskFamily) -> list[Player]:
    """The settings that come nearest to the published scores, where they are not our defaults."""
    variants = {
        "PSRL, true prior": PSRL(family, prior_shift=0.0),
        "UCRL2, c = 0.2": UCRL2(family, scale=0.2),
        "BEB, beta = 2": BEB(family, bonus=2.0),
        "BEB, beta = 5": BEB(family, bonus=5.0),
    }
    for name, player in variants.items():
        player.name = name
    return list(variants.values())


SETTINGS = [  # what matters most comes first
    bandit(10, 5, 5.0, 5.7, 6.7, 6.6),
    bandit(10, 10, 5.0, 5.5, 6.7, 6.6),
    bandit(10, 50, 5.1, 5.2, 6.6, 6.5),
    tabular(10, 100.1, 138.1, 144.1, 146.6, 150.2),
    tabular(25, 250.2, 408.8, 425.2, 424.1, 427.8),
    *(
        Setting(f"two-armed {variant}", "metarl/TwoArmedBandit-v0", {"variant": variant})
        for variant in ("independent", "uniform", "easy", "medium", "hard")
    ),
    bandit(100, 5, 49.9, 74.7, 78.0, 78.3),
    bandit(100, 10, 49.9, 76.7, 82.4, 82.8),
    bandit(100, 50, 49.8, 64.5, 84.3, 85.2),
    bandit(500, 5, 249.8, 402.0, 405.8, 405.8),
    bandit(500, 10, 249.0, 429.5, 437.1, 437.8),
    Setting("gridnavi", "metarl/GridNavi-v0", split="all"),
    Setting("navigation", "metarl/Navigation2D-v0", num_tasks=5000),
    *(Setting(f"gaussian {pulls} pulls 5 arms", "metarl/GaussianBandit-v0", {"num_pulls": pulls}) for pulls in (10, 100)),
    tabular(50, 499.7, 904.4, 930.7, 918.9, 917.8, num_tasks=5000),
    bandit(500, 50, 249.6, 427.2, 457.6, 463.7, num_tasks=5000),
    tabular(100, 999.4, 1939.5, 1973.9, 1942.1, 1935.1, num_tasks=2500),
    tabular(75, 749.9, 1417.1, 1449.2, 1427.6, 1422.6, num_tasks=2500),
]


def run(setting: Setting, fraction: float) -> dict:
    """Play all players; the setting's part of the results."""
    family = make_family(setting.env_id, **setting.kwargs)
    tasks = family.sample(max(2, round(fraction * setting.num_tasks)), setting.split, np.random.default_rng(0))
    known = family.episodes_per_trial * family.ceiling(tasks)
    print(f"{setting.name}: {len(tasks):,} tasks, known task {known.mean():.3f}", flush=True)
    rows = []
    knowing = oracle(family)
    for player in [*reference_players(family), *setting.more_players(family), *([knowing] if knowing else [])]:
        start = time.process_time()
        returns = play_trials(player, family, tasks, seed=1).sum(1)
        seconds = time.process_time() - start
        published = setting.published.get(player.name)
        rows.append({"player": player.name, **interval("", returns), **interval("regret_", known - returns)})
        rows[-1] |= {"published": published, "seconds": round(seconds, 2)}
        error = (rows[-1]["high"] - rows[-1]["low"]) / 2
        print(
            f"  {player.name:30}{returns.mean():10.3f} ± {error:6.3f}   published {published}   {seconds:6.1f} s", flush=True
        )
    return {
        "name": setting.name,
        "env_id": setting.env_id,
        "kwargs": setting.kwargs,
        "split": setting.split,
        "num_tasks": len(tasks),
        "task_hash": tasks.hash,
        "known_task": float(known.mean()),
        "bayes_optimal": exact_optimum(family),
        "players": rows,
    }


def interval(prefix: str, scores: np.ndarray) -> dict[str, float]:
    """Mean over tasks and its normal 95 % interval."""
    mean, error = float(scores.mean()), 1.96 * float(scores.std(ddof=1)) / len(scores) ** 0.5
    return {f"{prefix}mean": mean, f"{prefix}low": mean - error, f"{prefix}high": mean + error}


def exact_optimum(family: TaskFamily) -> dict[str, float] | None:
    """The Bayes-optimal value and its regret against knowing the task, where they can be computed."""
    try:
        value = bayes_optimal_value(family)
    except ValueError:
        return None
    return {"value": value, "regret": family.num_pulls * expected_best_mean(family) - value}


def expected_best_mean(family: TaskFamily) -> float:
    """Expected mean of the best arm over the training distribution with a uniform prior."""
    pair = getattr(family, "pair", None)
    if pair is not None:
        return max(pair)
    return 0.75 if family.structure == "dependent_bandit" else family.num_arms / (family.num_arms + 1)


def tune_all() -> None:
    """Print what free parameters score on training tasks."""
    for pulls, arms in ((10, 5), (10, 50), (30, 10), (100, 5), (100, 50), (500, 10)):
        family = make_family("metarl/BernoulliBandit-v0", num_arms=arms, num_pulls=pulls)
        gaussian = make_family("metarl/GaussianBandit-v0", num_arms=arms, num_pulls=pulls)
        count = 20_000 if pulls < 100 else 3000
        show(f"UCB1 c, {pulls} x {arms}", family, lambda c, f=family: UCB1(f, c), (0.05, 0.1, 0.15, 0.2, 0.25), count)
        show(f"epsilon, {pulls} x {arms}", family, lambda e, f=family: EpsilonGreedy(f, e), (0, 0.01, 0.05, 0.1), count)
        discounts = [1 - 1 / (share * pulls) for share in (0.3, 0.5, 0.7)]
        show(f"Gittins discount, {pulls} x {arms}", family, lambda d, f=family: GittinsIndex(f, d), discounts, count)
        show(f"UCB1 c, normal, {pulls} x {arms}", gaussian, lambda c, f=gaussian: UCB1(f, c), (0.3, 0.4, 0.5, 0.7), count)
        show(
            f"epsilon, normal, {pulls} x {arms}", gaussian, lambda e, f=gaussian: EpsilonGreedy(f, e), (0, 0.01, 0.05), count
        )
    for episodes, count in ((10, 4000), (25, 2000), (50, 1000), (100, 600)):
        family = make_family("metarl/TabularMDP-v0", num_episodes=episodes)
        show(f"BEB beta, {episodes}", family, lambda b, f=family: BEB(f, b), (2, 5, 7, 10, 14, 20), count)
        show(f"UCRL2 c, {episodes}", family, lambda c, f=family: UCRL2(f, c), (0.02, 0.03, 0.05, 0.1, 0.2), count)
        show(f"PSRL prior_shift, {episodes}", family, lambda s, f=family: PSRL(f, s), (-2.0, -1.0, 0.0), count)
        show(f"epsilon, {episodes}", family, lambda e, f=family: EpsilonGreedyPlanner(f, e), (0, 0.02, 0.05), count)


def show(title: str, family: TaskFamily, make_player: Callable[[float], Player], values, num_tasks: int) -> None:
    """Tune and print."""
    scores = tune(make_player, family, values, num_tasks=num_tasks)
    print(f"{title:32}", "  ".join(f"{value:.4g}: {score:.2f}" for value, score in scores.items()), flush=True)


def main() -> None:
    """Run the settings that were asked for and merge them into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run settings whose name contains this")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the tasks to play")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where results are merged into")
    parser.add_argument("--tune", action="store_true", help="print scores on training tasks instead")
    options = parser.parse_args()
    if options.tune:
        tune_all()
        return
    for setting in SETTINGS:
        if options.only not in setting.name:
            continue
        part = run(setting, options.fraction)
        done = json.loads(options.output.read_text()) if options.output.exists() else []
        parts = {old["name"]: old for old in done} | {setting.name: part}
        ordered = [parts[name] for name in [s.name for s in SETTINGS] if name in parts]
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Which classical players and exact optima a task family can be compared with.

Players are looked up by `family.structure`, what kind of problem the family says it is; no family is named here. All
but oracles are honest: they know the distribution of training tasks, as a trained agent does, not the task.
"""

from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np

from metarl.evaluation.bandit_players import (
    UCB1,
    EpsilonGreedy,
    FiniteHorizonGittins,
    GittinsIndex,
    OptimisticThompsonSampling,
    ThompsonSampling,
)
from metarl.evaluation.barcode_players import PerfectRecall
from metarl.evaluation.bayes_optimal import BayesOptimal, bayes_optimal_value, count_states
from metarl.evaluation.navigation_players import GridSearch, KnownGoalGrid, KnownGoalPoint, Trilateration
from metarl.evaluation.play import play_trials
from metarl.evaluation.tabular_players import BEB, OPSRL, PSRL, UCRL2, EpsilonGreedyPlanner, KnownMDP
from metarl.trials import Observations, Player, Transition
from metarl_envs import TaskFamily, TaskSet

__all__ = ["RandomPlayer", "bayes_optimal_value", "oracle", "reference_players", "tune"]

_QUICK = 5_000_000
"""Belief states times arms that dynamic programming works through in about five seconds."""

_QUICK_GITTINS_PULLS, _QUICK_FINITE_PULLS = 500, 100
"""Pulls up to which discounted and finite-horizon Gittins indices take about three seconds."""


class RandomPlayer:
    """Acts uniformly at random in a `Discrete` or bounded `Box` space; in others, as `space.sample` does."""

    name = "random"

    def __init__(self, family: TaskFamily):
        self.space = family.action_space

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Take the generator."""
        self.rng = rng
        self.num_tasks = len(tasks)
        self.space.seed(int(rng.integers(2**31)))

    def act(self, observations: Observations) -> np.ndarray:
        """Random actions `[B, ...]`."""
        space = self.space
        if isinstance(space, gym.spaces.Discrete):
            return self.rng.integers(space.start, space.start + space.n, self.num_tasks)
        if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f" and space.is_bounded():
            return self.rng.uniform(space.low, space.high, (self.num_tasks, *space.shape)).astype(space.dtype)
        return np.stack([space.sample() for _ in range(self.num_tasks)])

    def observe(self, transition: Transition) -> None:
        """Nothing to learn."""


def reference_players(family: TaskFamily) -> list[Player]:
    """The players that scores on `family` are set beside: a random one, and the classical ones for its structure.

    Each is ready within seconds, so the Bayes-optimal player is here only where its dynamic programme is small. Where it
    is not, the finite-horizon Gittins index stands in, which comes close to it, in trials of 100 pulls or less. Bandit
    players plan for the family's `num_pulls`.
    """
    return [RandomPlayer(family), *_PLAYERS.get(family.structure, lambda _: [])(family)]


def oracle(family: TaskFamily) -> Player | None:
    """The player that reads the task and does the best that can be done in it; None where there is none."""
    return _ORACLES[family.structure](family) if family.structure in _ORACLES else None


def tune(
    make_player: Callable[[float], Player],
    family: TaskFamily,
    values: Sequence[float],
    *,
    num_tasks: int = 2000,
    episodes: int | None = None,
    seed: int = 0,
) -> dict[float, float]:
    """Mean return per trial on TRAINING tasks for each of `values`, all on the same tasks and noise.

    `max(scores, key=scores.get)` is the best value. The defaults of classical players' free parameters were found so,
    with 20,000 bandits or 4,000 MDPs.
    """
    tasks = family.sample(num_tasks, "train", np.random.default_rng(seed))
    return {
        value: float(play_trials(make_player(value), family, tasks, episodes=episodes, seed=seed).sum(1).mean())
        for value in values
    }


def _bernoulli_players(family: TaskFamily) -> list[Player]:
    players = [EpsilonGreedy(family), ThompsonSampling(family), OptimisticThompsonSampling(family), UCB1(family)]
    players += _gittins(family)
    arms = min(family.num_arms, family.num_pulls)
    if arms * count_states(family.num_arms, family.num_pulls, _QUICK / arms) <= _QUICK:
        players.append(BayesOptimal(family))
    elif family.num_pulls <= _QUICK_FINITE_PULLS:
        players.append(FiniteHorizonGittins(family))
    return players


def _dependent_players(family: TaskFamily) -> list[Player]:
    return [UCB1(family), *_gittins(family), ThompsonSampling(family), BayesOptimal(family)]


def _gittins(family: TaskFamily) -> list[Player]:
    return [GittinsIndex(family)] if family.num_pulls <= _QUICK_GITTINS_PULLS else []


def _gaussian_players(family: TaskFamily) -> list[Player]:
    return [EpsilonGreedy(family), ThompsonSampling(family), OptimisticThompsonSampling(family), UCB1(family)]


def _tabular_players(family: TaskFamily) -> list[Player]:
    return [EpsilonGreedyPlanner(family), PSRL(family), OPSRL(family), UCRL2(family), BEB(family)]


def _navigation_players(family: TaskFamily) -> list[Player]:
    return [Trilateration(family)] if family.goal_radius is None else []


_PLAYERS: dict[str | None, Callable[[TaskFamily], list[Player]]] = {
    "bernoulli_bandit": _bernoulli_players,
    "dependent_bandit": _dependent_players,
    "gaussian_bandit": _gaussian_players,
    "tabular_mdp": _tabular_players,
    "grid_navigation": lambda family: [GridSearch(family)],
    "navigation": _navigation_players,
    "barcode_bandit": lambda family: [PerfectRecall(family)],
}

_ORACLES: dict[str | None, Callable[[TaskFamily], Player]] = {
    "tabular_mdp": KnownMDP,
    "grid_navigation": KnownGoalGrid,
    "navigation": KnownGoalPoint,
}

"""Trials: the stretches of consecutive episodes in one task over which agents adapt, and who plays them."""

from typing import NamedTuple, Protocol

import numpy as np
from metarl_envs import TaskSet

Observations = np.ndarray | dict[str, np.ndarray]


class Transition(NamedTuple):
    """One step in each of `B` slots. `next_observations` is the true successor, also where an episode ended."""

    observations: Observations  # [B, ...]
    actions: np.ndarray  # [B, ...]
    rewards: np.ndarray  # [B]
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool
    next_observations: Observations  # [B, ...]


class Player(Protocol):
    """Anything that plays `B` trials side by side: learned agents, classical players, oracles.

    Honest players read only `len(tasks)`; oracles read the parameters.
    """

    name: str

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Forget everything and get ready for one trial in each of `tasks`."""

    def act(self, observations: Observations) -> np.ndarray:
        """Actions `[B, ...]`."""

    def observe(self, transition: Transition) -> None:
        """Learn from the step just played."""

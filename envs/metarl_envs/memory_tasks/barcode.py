"""Barcode bandits that come back (Ritter et al. 2018, "Been there, done that: meta-learning with episodic recall")."""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_at_least
from metarl_envs.streams import Rows, Streams


@dataclass(frozen=True)
class BarcodeBandit(TaskFamily):
    """Several bandits take turns, each told by a barcode that is in view; one arm of each pays well.

    What was found out about a bandit is worth remembering until its barcode comes back, several bandits later. An episode is
    `num_pulls` pulls at one bandit; a trial brings every bandit `num_occurrences` times, in random order.

    Tasks hold the barcodes `codes [N, contexts, bits]`, all different, the best arm of each `best [N, contexts]`, and which
    bandit each episode is about, `order [N, episodes]`. The best arm pays 1 with probability `high`, the others with `low`.
    """

    env_id: ClassVar[str] = "metarl/BarcodeBandit-v0"
    structure: ClassVar[str | None] = "barcode_bandit"
    time_limit_terminates: ClassVar[bool] = True

    num_contexts: int = 5
    """Bandits in a trial."""
    num_occurrences: int = 5
    """How often each of them comes."""
    num_arms: int = 5
    """Arms of each."""
    num_pulls: int = 10
    """Pulls in an episode."""
    num_bits: int = 10
    """Length of a barcode."""
    high: float = 0.9
    """How often the best arm pays."""
    low: float = 0.1
    """How often the others do."""

    def __post_init__(self):
        for name in ("num_contexts", "num_occurrences", "num_pulls"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("num_arms", self.num_arms, 2)
        if not (1 <= self.num_bits <= 30 and 2**self.num_bits >= self.num_contexts):
            raise ValueError(
                f"num_bits must be at most 30, and enough for {self.num_contexts} contexts, got {self.num_bits}"
            )
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must be probabilities, low below high, got {self.low} and {self.high}")

    @property
    def observation_space(self) -> gym.Space:
        """The barcode."""
        return gym.spaces.MultiBinary(self.num_bits)

    @property
    def action_space(self) -> gym.Space:
        """The arm."""
        return gym.spaces.Discrete(self.num_arms)

    @property
    def episodes_per_trial(self) -> int:
        """Every bandit as often as it comes."""
        return self.num_contexts * self.num_occurrences

    @property
    def max_episode_steps(self) -> int:
        """`num_pulls`."""
        return self.num_pulls

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Different barcodes, uniform arms, a random order."""
        contexts, known = self.num_contexts, 2**self.num_bits
        if 4 * contexts**2 > known:  # numbers would hardly ever all be different
            numbers = np.array([rng.choice(known, contexts, replace=False) for _ in range(num_tasks)])
        else:
            numbers = rng.integers(known, size=(num_tasks, contexts))
            while (twice := _repeats(numbers)).any():
                numbers[twice] = rng.integers(known, size=(int(twice.sum()), contexts))
        codes = (numbers[..., None] >> np.arange(self.num_bits)) & 1
        order = np.broadcast_to(np.arange(self.episodes_per_trial) % contexts, (num_tasks, self.episodes_per_trial))
        return {
            "codes": codes.astype(np.int8),
            "best": rng.integers(self.num_arms, size=(num_tasks, contexts)),
            "order": rng.permuted(order, axis=1),
        }

    def make_state(self, num_slots: int) -> Arrays:
        """The number of the episode `[B]`, counted from the first in this task."""
        return {"episode": np.full(num_slots, -1)}

    def enter(self, tasks: Arrays, state: Arrays, rows: Rows) -> None:
        """Start before the first bandit."""
        state["episode"][rows] = -1

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Go on to the next bandit; after the last one, to the first."""
        episode = state["episode"]
        episode[rows] = (episode[rows] + 1) % self.episodes_per_trial

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Pull an arm."""
        slots = np.arange(len(actions))
        best = tasks["best"][slots, self._context(tasks, state)]
        pays = np.where(actions == best, self.high, self.low)
        return (streams.uniform() < pays).astype(float), np.zeros(len(actions), bool)

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The barcode `[B, bits]`."""
        return tasks["codes"][np.arange(len(state["episode"])), self._context(tasks, state)]

    def _context(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        return tasks["order"][np.arange(len(state["episode"])), state["episode"]]

    def occurrences(self, tasks: TaskSet, episodes: int) -> np.ndarray:
        """How often the bandit of each episode came before `[N, episodes]`, from 0."""
        order = np.take(tasks.params["order"], np.arange(episodes) % self.episodes_per_trial, axis=1)
        return np.stack([(order[:, :e] == order[:, e : e + 1]).sum(1) for e in range(episodes)], 1)

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """The best arm from the first pull on."""
        return np.full(len(tasks), self.num_pulls * self.high)


def _repeats(numbers: np.ndarray) -> np.ndarray:
    """Which rows `[N]` hold a number twice."""
    ordered = np.sort(numbers, axis=1)
    return (ordered[:, 1:] == ordered[:, :-1]).any(1)

"""Card games that a memory decides: RepeatPrevious, RepeatFirst, Autoencode and CountRecall (Morad et al. 2023, "POPGym").

A task is the order of a shuffled deck, an episode deals it once, and a trial is one episode. Rules and rewards are those of
POPGym's easy variants by default: the best possible return is 1, and each wrong answer costs what a right one earns.
"""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_at_least
from metarl_envs.streams import Rows, Streams

DECK = 52
"""Cards in a deck, thirteen of each of four suits."""


@dataclass(frozen=True)
class CardGame(TaskFamily):
    """Cards are dealt one by one, and questions about earlier ones asked.

    Tasks hold the kind of every card in the order in which they are dealt, `cards [N, 52 num_decks]`. The length of an
    episode is part of the game.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    time_limit_terminates: ClassVar[bool] = True
    kinds: ClassVar[int] = 4
    """Kinds of cards that the game tells apart: suits, or colours."""

    num_decks: int = 1
    """Decks shuffled together."""

    def __post_init__(self):
        check_at_least("num_decks", self.num_decks, 1)

    @property
    def num_cards(self) -> int:
        """Cards in all decks."""
        return DECK * self.num_decks

    @property
    def observation_space(self) -> gym.Space:
        """The card on top."""
        return gym.spaces.Discrete(self.kinds)

    @property
    def action_space(self) -> gym.Space:
        """A kind of card."""
        return gym.spaces.Discrete(self.kinds)

    @property
    def episodes_per_trial(self) -> int:
        """One."""
        return 1

    @property
    def max_episode_steps(self) -> int:
        """The first card is dealt at the start, and one more in every step."""
        return self.num_cards - 1

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Shuffled decks."""
        return {"cards": self._shuffled(num_tasks, rng)}

    def _shuffled(self, num_tasks: int, rng: np.random.Generator) -> np.ndarray:
        deck = np.arange(self.num_cards) % self.kinds
        return rng.permuted(np.broadcast_to(deck, (num_tasks, self.num_cards)), axis=1)

    def make_state(self, num_slots: int) -> Arrays:
        """Steps of the episode `[B]`."""
        return {"time": np.zeros(num_slots, np.int64)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Deal the first card."""
        state["time"][rows] = 0

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Judge the answer, then deal the next card."""
        time = state["time"]
        right, asked = self._judge(tasks, time, actions)
        time += 1
        rewards = np.where(right, 1.0, -1.0) * asked / self.num_questions
        return rewards, np.zeros(len(time), bool)

    @property
    def num_questions(self) -> int:
        """Steps in which an answer counts."""
        raise NotImplementedError

    def _judge(self, tasks: Arrays, time: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the answer in step `time` is right `[B]`, and whether it counts `[B]`."""
        raise NotImplementedError

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The card on top `[B]`."""
        return _pick(tasks["cards"], state["time"])

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """1: every question can be answered by who remembers."""
        return np.ones(len(tasks))


@dataclass(frozen=True)
class RepeatPrevious(CardGame):
    """Name the suit of the `k`-th last card, the one on top being the first. Answers count once there are so many."""

    env_id: ClassVar[str] = "metarl/RepeatPrevious-v0"

    k: int = 4
    """How far back, counted from 1 for the card on top."""

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.k < self.num_cards:
            raise ValueError(f"k must be from 1 to {self.num_cards - 1}, got {self.k}")

    @property
    def num_questions(self) -> int:
        """All steps but the first `k - 1`."""
        return self.num_cards - self.k

    def _judge(self, tasks: Arrays, time: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = time + 1 - self.k
        return actions == _pick(tasks["cards"], np.maximum(at, 0)), at >= 0


@dataclass(frozen=True)
class RepeatFirst(CardGame):
    """Name the suit of the first card, in every step."""

    env_id: ClassVar[str] = "metarl/RepeatFirst-v0"

    @property
    def num_questions(self) -> int:
        """All steps."""
        return self.num_cards - 1

    def _judge(self, tasks: Arrays, time: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return actions == tasks["cards"][:, 0], np.ones(len(time), bool)


@dataclass(frozen=True)
class Autoencode(CardGame):
    """See all the cards, then name their suits in reverse order. The observation is (1, card) while cards are dealt.

    With the last card it turns to (0, card), and to (0, 0) from then on.
    """

    env_id: ClassVar[str] = "metarl/Autoencode-v0"

    @property
    def observation_space(self) -> gym.Space:
        """Whether cards are still dealt, and the card on top."""
        return gym.spaces.MultiDiscrete([2, self.kinds])

    @property
    def max_episode_steps(self) -> int:
        """All cards are dealt, then all are named."""
        return 2 * self.num_cards - 1

    @property
    def num_questions(self) -> int:
        """One per card."""
        return self.num_cards

    def _judge(self, tasks: Arrays, time: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = self.max_episode_steps - 1 - time  # from the last card down to the first
        return actions == _pick(tasks["cards"], np.minimum(at, self.num_cards - 1)), at < self.num_cards

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """Whether cards are still dealt, and the card on top `[B, 2]`."""
        time, last = state["time"], self.num_cards - 1
        card = np.where(time <= last, _pick(tasks["cards"], np.minimum(time, last)), 0)
        return np.stack([time < last, card], -1).astype(np.int64)


@dataclass(frozen=True)
class CountRecall(CardGame):
    """Say how many cards of a colour were dealt so far. The observation is (the card on top, the colour asked for).

    The colours asked for come from a deck of their own, `queries [N, 52 num_decks]`.
    """

    env_id: ClassVar[str] = "metarl/CountRecall-v0"
    kinds: ClassVar[int] = 2

    @property
    def observation_space(self) -> gym.Space:
        """The card on top and the colour asked for."""
        return gym.spaces.MultiDiscrete([self.kinds, self.kinds])

    @property
    def action_space(self) -> gym.Space:
        """A number of cards."""
        return gym.spaces.Discrete(self.num_cards // self.kinds + 1)

    @property
    def num_questions(self) -> int:
        """All steps."""
        return self.num_cards - 1

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Two shuffled decks."""
        return {"cards": self._shuffled(num_tasks, rng), "queries": self._shuffled(num_tasks, rng)}

    def make_state(self, num_slots: int) -> Arrays:
        """Steps of the episode `[B]`, and how many cards of each colour were dealt `[B, 2]`."""
        return {**super().make_state(num_slots), "counts": np.zeros((num_slots, self.kinds), np.int64)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Deal the first card."""
        super().reset(tasks, state, rows, streams)
        state["counts"][rows] = tasks["cards"][rows, :1] == np.arange(self.kinds)

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Judge the answer, then deal the next card."""
        time, counts = state["time"], state["counts"]
        right = actions == _pick(counts, _pick(tasks["queries"], time))
        time += 1
        counts += _pick(tasks["cards"], time)[:, None] == np.arange(self.kinds)
        return np.where(right, 1.0, -1.0) / self.num_questions, np.zeros(len(time), bool)

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The card on top and the colour asked for `[B, 2]`."""
        return np.stack([_pick(tasks[name], state["time"]) for name in ("cards", "queries")], -1)


def _pick(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`values[b, at[b]]` for every row."""
    return values[np.arange(len(at)), at]

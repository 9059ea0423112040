"""Mazes that a memory decides: T-mazes, and a dark room with a key and a door."""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_at_least
from metarl_envs.streams import Rows, Streams

_MOVES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])  # right, left, up, down


@dataclass(frozen=True)
class TMaze(TaskFamily):
    """Walk down a corridor and turn to the side that a sign at its beginning told (Bakker 2001; Ni et al. 2023).

    Tasks hold the `side [N]`, 1 (up) or -1 (down): two tasks, so none is held out. Actions are right, left, up and down;
    what runs into a wall stays. The observation is (sign, at the junction): the side at the sign and 0 elsewhere, and 1
    where the corridor ends. Turning at the junction ends the episode, with reward 1 on the right side and 0 on the wrong
    one. Each step but the last after which one is less far than steps were played costs `1 / (length + 1)`; in the active
    maze, less far than steps but one.

    Passive: the sign is where an episode starts. Active: it is a step to the left of there, and must be fetched.

    Departures from Ni et al.'s environment: there a step costs one over the corridor's length, so that the worst return is
    -1, and the sign is shown at the first visit only.
    """

    env_id: ClassVar[str] = "metarl/TMaze-v0"
    structure: ClassVar[str | None] = "t_maze"
    time_limit_terminates: ClassVar[bool] = True

    length: int = 20
    """Steps from the sign to the junction."""
    active: bool = False
    """Whether the sign must be fetched."""

    def __post_init__(self):
        check_at_least("length", self.length, 2)

    @property
    def label(self) -> str:
        """The id of its passive or active form."""
        return "metarl/TMazeActive-v0" if self.active else self.env_id

    @property
    def observation_space(self) -> gym.Space:
        """The sign and the junction."""
        return gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    @property
    def action_space(self) -> gym.Space:
        """Right, left, up, down."""
        return gym.spaces.Discrete(len(_MOVES))

    @property
    def episodes_per_trial(self) -> int:
        """One."""
        return 1

    @property
    def max_episode_steps(self) -> int:
        """Steps of the best way: down the corridor and round the corner, and in the active maze to the sign first."""
        return self.length + 1 + self.active

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Either side, equally likely."""
        return {"side": rng.choice([-1, 1], num_tasks)}

    def held_out(self, params: Arrays) -> None:
        """None: both tasks are needed for training."""
        return None

    def make_state(self, num_slots: int) -> Arrays:
        """Steps from the sign `[B]`, and steps of the episode `[B]`."""
        return {"position": np.zeros(num_slots, np.int64), "time": np.zeros(num_slots, np.int64)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Go to the start."""
        state["position"][rows] = int(self.active)
        state["time"][rows] = 0

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Walk, or turn."""
        position, time = state["position"], state["time"]
        along, across = _MOVES[actions].T
        turns = (position == self.length) & (across != 0)
        right = turns & (across == tasks["side"])
        position[:] = np.clip(position + along, 0, self.length)
        time += 1
        late = (position < np.minimum(time - self.active, self.length)) & ~turns & (time < self.max_episode_steps)
        return right - late / (self.length + 1), turns

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The sign and the junction `[B, 2]`."""
        position = state["position"]
        return np.stack([tasks["side"] * (position == 0), position == self.length], -1).astype(np.float32)

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """1: the best way, and the right side."""
        return np.ones(len(tasks))


@dataclass(frozen=True)
class KeyToDoor(TaskFamily):
    """Find a key, then a door, in a dark room where only one's own place is seen (Laskin et al. 2023, "Dark key-to-door").

    Tasks hold the cells of the `key [N, 2]` and of the `door [N, 2]`. Episodes start in the middle. Stepping on the key for
    the first time pays 1, and so does stepping on the door with the key, which ends the episode. Actions are right, left,
    up, down and stay. The observation is x and y divided by `num_cells - 1`: neither the key nor having it is seen.
    """

    env_id: ClassVar[str] = "metarl/DarkKeyToDoor-v0"
    structure: ClassVar[str | None] = "key_to_door"
    time_limit_terminates: ClassVar[bool] = True

    num_cells: int = 9
    """Cells along each side of the room; odd, so that there is a middle."""
    num_steps: int = 50
    """Steps in an episode at most."""
    num_episodes: int = 5
    """Episodes in a trial."""

    def __post_init__(self):
        check_at_least("num_cells", self.num_cells, 3)
        if self.num_cells % 2 == 0:
            raise ValueError(f"num_cells must be odd, got {self.num_cells}")
        check_at_least("num_steps", self.num_steps, 1)
        check_at_least("num_episodes", self.num_episodes, 1)

    @property
    def observation_space(self) -> gym.Space:
        """The scaled position."""
        return gym.spaces.Box(0.0, 1.0, (2,), np.float32)

    @property
    def action_space(self) -> gym.Space:
        """Right, left, up, down, stay."""
        return gym.spaces.Discrete(len(_MOVES) + 1)

    @property
    def episodes_per_trial(self) -> int:
        """`num_episodes`."""
        return self.num_episodes

    @property
    def max_episode_steps(self) -> int:
        """`num_steps`."""
        return self.num_steps

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Two different cells, neither of them the middle."""
        count, middle = self.num_cells**2, self.num_cells**2 // 2
        key = rng.integers(count - 1, size=num_tasks)
        door = (key + 1 + rng.integers(count - 2, size=num_tasks)) % (count - 1)  # any of the others
        cells = (np.stack(np.divmod(cell + (cell >= middle), self.num_cells), -1) for cell in (key, door))
        return dict(zip(("key", "door"), cells, strict=True))

    def make_state(self, num_slots: int) -> Arrays:
        """The cell `[B, 2]` and whether the key was found `[B]`."""
        return {"position": np.zeros((num_slots, 2), np.int64), "has_key": np.zeros(num_slots, bool)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Go to the middle."""
        state["position"][rows] = self.num_cells // 2
        state["has_key"][rows] = False

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Move, then look what is there."""
        position, has_key = state["position"], state["has_key"]
        moves = np.concatenate([_MOVES, np.zeros((1, 2), np.int64)])[actions]
        np.clip(position + moves, 0, self.num_cells - 1, out=position)
        at_door = has_key & (position == tasks["door"]).all(-1)
        finds = ~has_key & (position == tasks["key"]).all(-1)
        has_key |= finds
        return (finds | at_door).astype(float), at_door

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The scaled position `[B, 2]`."""
        return (state["position"] / (self.num_cells - 1)).astype(np.float32)

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """Both rewards, if the shortest way is short enough; else the key's, if it can be had."""
        key, door = tasks.params["key"], tasks.params["door"]
        to_key = np.abs(key - self.num_cells // 2).sum(-1)
        return (to_key <= self.num_steps) * 1.0 + (to_key + np.abs(door - key).sum(-1) <= self.num_steps)

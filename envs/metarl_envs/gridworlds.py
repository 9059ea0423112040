"""GridNavi (Zintgraf et al. 2020, "VariBAD"): search a grid for a goal cell that cannot be seen."""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_at_least
from metarl_envs.streams import Rows, Streams

_MOVES = np.array([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])  # stay, up, right, down, left
_GOAL_REWARD, _STEP_REWARD = 1.0, -0.1


@dataclass(frozen=True)
class GridNavi(TaskFamily):
    """Walk a grid in search of a goal cell that cannot be seen (Zintgraf et al. 2020, "VariBAD").

    Tasks hold the cell of the `goal [N, 2]` as integers x, y. Every episode starts in cell (0, 0) and lasts `num_steps`
    steps, on the goal or not; the horizon is part of the task. Actions are stay, up, right, down and left; moves into a
    wall do nothing. The reward is +1 in every step that ends on the goal, else -0.1. The observation is x and y divided
    by `num_cells - 1`, so that it lies in [0, 1] (VariBAD shows the bare coordinates).

    The start and the cells that touch it are no goals, which leaves 21 goals at the default size. Split `all` is
    VariBAD's protocol: every goal, in training and in evaluation. `train` and `test` share the goals out: `test` has
    the cells where `(x + 2 y) % 5 == 4`, at the default size one in every row and every column, and `train` the rest.
    """

    env_id: ClassVar[str] = "metarl/GridNavi-v0"
    structure: ClassVar[str | None] = "grid_navigation"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "all")
    time_limit_terminates: ClassVar[bool] = True

    num_cells: int = 5
    """Cells along each side of the grid."""
    num_steps: int = 15
    """Steps in an episode (the horizon)."""
    num_episodes: int = 4
    """Episodes in a trial."""

    def __post_init__(self):
        check_at_least("num_cells", self.num_cells, 3)
        check_at_least("num_steps", self.num_steps, 1)
        check_at_least("num_episodes", self.num_episodes, 1)

    @property
    def observation_space(self) -> gym.Space:
        """The scaled position."""
        return gym.spaces.Box(0.0, 1.0, (2,), np.float32)

    @property
    def action_space(self) -> gym.Space:
        """Stay, up, right, down, left."""
        return gym.spaces.Discrete(len(_MOVES))

    @property
    def episodes_per_trial(self) -> int:
        """`num_episodes`."""
        return self.num_episodes

    @property
    def max_episode_steps(self) -> int:
        """`num_steps`."""
        return self.num_steps

    @property
    def goals(self) -> np.ndarray:
        """Every cell that can be the goal, `[G, 2]`."""
        cells = np.stack(np.divmod(np.arange(self.num_cells**2), self.num_cells), -1)
        return cells[cells.max(-1) > 1]

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Goals `[N, 2]`, uniform."""
        goals = self.goals
        return {"goal": goals[rng.integers(len(goals), size=num_tasks)]}

    def held_out(self, params: Arrays) -> np.ndarray:
        """The goals `[N]` on a lattice that meets every row and column."""
        x, y = params["goal"].T
        return (x + 2 * y) % 5 == 4

    def make_state(self, num_slots: int) -> Arrays:
        """The cell `[B, 2]`."""
        return {"position": np.zeros((num_slots, 2), np.int64)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Go to the start."""
        state["position"][rows] = 0

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Move, then look whether this is the goal."""
        position = state["position"]
        np.clip(position + _MOVES[actions], 0, self.num_cells - 1, out=position)
        on_goal = (position == tasks["goal"]).all(-1)
        return np.where(on_goal, _GOAL_REWARD, _STEP_REWARD), np.zeros(len(position), bool)

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The scaled position `[B, 2]`, float32."""
        return (state["position"] / (self.num_cells - 1)).astype(np.float32)

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """The return `[N]` of the shortest way to the goal, then staying; 11.07 on average over the 21 goals."""
        steps_outside = np.minimum(tasks.params["goal"].sum(-1) - 1, self.num_steps)
        return _STEP_REWARD * steps_outside + _GOAL_REWARD * (self.num_steps - steps_outside)

"""Players for goals that cannot be seen: oracles that read the goal, a systematic search, and trilateration."""

import numpy as np

from metarl.trials import Observations, Transition
from metarl_envs import TaskFamily, TaskSet

_STAY, _UP, _RIGHT, _DOWN, _LEFT = range(5)


def _grid_action(offsets: np.ndarray) -> np.ndarray:
    """A move `[B]` of a shortest way along `offsets [B, 2]`: across first, then up or down; stay where there is none."""
    across = np.where(offsets[:, 0] > 0, _RIGHT, _LEFT)
    along = np.where(offsets[:, 1] > 0, _UP, np.where(offsets[:, 1] < 0, _DOWN, _STAY))
    return np.where(offsets[:, 0] != 0, across, along)


class KnownGoalGrid:
    """The oracle of GridNavi: reads the goal, goes there by a shortest way and stays."""

    name = "known goal"

    def __init__(self, family: TaskFamily):
        self.family = family

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Read the goals."""
        self.targets = tasks.params["goal"].astype(np.int64)

    def act(self, observations: Observations) -> np.ndarray:
        """A move towards the goal `[B]`."""
        return _grid_action(self.targets - self.cells(observations))

    def cells(self, observations: Observations) -> np.ndarray:
        """The cells `[B, 2]` that observations speak of."""
        return np.rint(observations * (self.family.num_cells - 1)).astype(np.int64)

    def observe(self, transition: Transition) -> None:
        """Nothing to learn."""


class GridSearch(KnownGoalGrid):
    """Heads for the nearest cell that can still be the goal; of equally near ones the lowest, then the rightmost.

    What it finds it keeps for the rest of the trial. On 5 x 5 cells with 15 steps and uniform goals this is
    Bayes-optimal, with expected returns of 4.0 and from then on 11.07, the ceiling. For in the first episode the k-th
    cell to be looked at cannot be entered before step k + 1, which it is, for 14 of 21 cells; and those left for the
    second episode lie so that the search passes each one by a shortest way.
    """

    name = "systematic search"

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Any of the family's goals may be it, whatever split is played."""
        size = self.family.num_cells
        self.open = np.zeros((len(tasks), size, size), bool)
        self.open[:, *self.family.goals.T] = True
        self.found = np.zeros(len(tasks), bool)
        self.targets = np.zeros((len(tasks), 2), np.int64)
        self._grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1)

    def act(self, observations: Observations) -> np.ndarray:
        """A move towards the goal or the next cell to look at `[B]`."""
        size = self.family.num_cells
        cells = self.cells(observations)
        distances = np.abs(self._grid - cells[:, None, None]).sum(-1)
        rank = (distances * size + self._grid[..., 1]) * size - self._grid[..., 0]
        cost = np.where(self.open, rank, np.iinfo(np.int64).max).reshape(len(cells), -1)
        nearest = np.stack(np.divmod(cost.argmin(-1), size), -1)
        targets = np.where(self.found[:, None], self.targets, nearest)
        return _grid_action(targets - cells)

    def observe(self, transition: Transition) -> None:
        """A positive reward marks the goal; any other rules the cell out."""
        cells = self.cells(transition.next_observations)
        hit = (transition.rewards > 0) & ~self.found
        self.targets[hit] = cells[hit]
        self.found |= hit
        self.open[np.arange(len(cells)), *cells.T] = False


class KnownGoalPoint:
    """The oracle of 2-D navigation: reads the goal and walks towards it as fast as it may."""

    name = "known goal"

    def __init__(self, family: TaskFamily):
        self.family = family

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Read the goals."""
        self.targets = tasks.params["goal"]

    def act(self, observations: Observations) -> np.ndarray:
        """The displacement towards the goal `[B, 2]`, float32."""
        limit = self.family.max_step
        return np.clip(self.targets - observations, -limit, limit).astype(np.float32)

    def observe(self, transition: Transition) -> None:
        """Nothing to learn."""


class Trilateration(KnownGoalPoint):
    """Finds the goal from three distances, then walks there: for rewards that are minus the distance to the goal.

    With positions p_i at distances d_i, `|p_i - g|² = d_i²` gives two linear equations for the goal g:

        2 (p_i - p_1) . g = |p_i|² - d_i² - |p_1|² + d_1²,   i = 2, 3
    """

    name = "trilateration"

    def __init__(self, family: TaskFamily):
        super().__init__(family)
        if family.goal_radius is not None:
            raise ValueError(f"goal_radius must be None, rewards that tell the distance, got {family.goal_radius}")
        self._corners = family.max_step * np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Head for the first of three places to measure from."""
        self.targets = np.broadcast_to(self._corners[0], (len(tasks), 2))
        self._positions: list[np.ndarray] = []
        self._distances: list[np.ndarray] = []

    def observe(self, transition: Transition) -> None:
        """Measure three times, then compute the goals."""
        if len(self._positions) == len(self._corners):
            return
        self._positions.append(transition.next_observations.astype(np.float64))
        self._distances.append(-transition.rewards)
        if len(self._positions) < len(self._corners):
            self.targets = np.broadcast_to(self._corners[len(self._positions)], self.targets.shape)
            return
        points, distances = np.stack(self._positions, 1), np.stack(self._distances, 1)  # [B, 3, 2], [B, 3]
        powers = (points**2).sum(-1) - distances**2
        self.targets = np.linalg.solve(2 * (points[:, 1:] - points[:, :1]), (powers[:, 1:] - powers[:, :1])[..., None])[
            ..., 0
        ]

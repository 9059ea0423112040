"""Navigation of a point on a plane towards a goal that only the rewards tell of.

One family covers the three versions in use. `metarl/Navigation2D-v0` is that of MAML (Finn et al. 2017): goals in a
square, reward minus the distance, an episode ends at the goal. `metarl/Navigation2DSemicircle-v0` and
`metarl/Navigation2DSparse-v0` are the point robot of PEARL (Rakelly et al. 2019) and VariBAD (Zintgraf et al. 2020):
goals on a unit semicircle, episodes of full length, rewards dense or only near the goal.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_above, check_at_least
from metarl_envs.streams import Rows, Streams


@dataclass(frozen=True)
class Navigation2D(TaskFamily):
    """A point on a plane walks towards a goal that only the rewards tell of.

    Tasks hold the position of the `goal [N, 2]`; every episode starts at the origin. The observation is the position.
    An action is a displacement, clipped to `max_step` in each coordinate. The reward is computed after the move: minus
    the distance to the goal or, with a `goal_radius`, 1 minus the distance within that radius and 0 outside it. The step
    limit is an outside cut, so it truncates.

    A trial is 3 episodes by default, as in the RL² and VariBAD runs of Zintgraf et al. (2020) on the point robot.
    """

    env_id: ClassVar[str] = "metarl/Navigation2D-v0"
    structure: ClassVar[str | None] = "navigation"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")

    goal_region: Literal["square", "semicircle"] = "square"
    """Where goals lie: uniform in a square around the origin, or on the upper half of a circle."""
    goal_extent: float = 0.5
    """Half the side of the square, or the radius of the semicircle."""
    ood_scale: float = 1.5
    """Goals of the `ood` split lie outside the region, up to this many times as far; above 1."""
    goal_radius: float | None = None
    """Distance within which a sparse reward is paid, in (0, 1]; None: the dense reward."""
    done_within: float | None = 0.01
    """An episode ends when both coordinates are closer to the goal than this; None: it never ends early."""
    max_step: float = 0.1
    """Largest displacement per step in each coordinate."""
    num_steps: int = 100
    """Steps in an episode."""
    num_episodes: int = 3
    """Episodes in a trial."""

    def __post_init__(self):
        if self.goal_region not in ("square", "semicircle"):
            raise ValueError(f"goal_region must be square or semicircle, got {self.goal_region!r}")
        check_above("goal_extent", self.goal_extent, 0)
        check_above("ood_scale", self.ood_scale, 1)
        check_above("max_step", self.max_step, 0)
        check_at_least("num_steps", self.num_steps, 1)
        check_at_least("num_episodes", self.num_episodes, 1)
        if self.goal_radius is not None and not 0 < self.goal_radius <= 1:
            raise ValueError(f"goal_radius must be None or in (0, 1], got {self.goal_radius}")
        if self.done_within is not None:
            check_above("done_within", self.done_within, 0)
            if self.goal_radius is not None:  # ending the episode would punish reaching the goal
                raise ValueError(f"done_within must be None when goal_radius is set, got {self.done_within}")

    @property
    def observation_space(self) -> gym.Space:
        """The position, within the square that an episode can reach."""
        reach = self.max_step * self.num_steps
        return gym.spaces.Box(-reach, reach, (2,), np.float32)

    @property
    def action_space(self) -> gym.Space:
        """The displacement."""
        return gym.spaces.Box(-self.max_step, self.max_step, (2,), np.float32)

    @property
    def episodes_per_trial(self) -> int:
        """`num_episodes`."""
        return self.num_episodes

    @property
    def max_episode_steps(self) -> int:
        """`num_steps`."""
        return self.num_steps

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Goals `[N, 2]`; those of `ood` are uniform in the frame around the square, or in the ring around the arc."""
        if self.goal_region == "square":
            goals = rng.uniform(-1, 1, (num_tasks, 2))
            if split == "ood":
                edge = np.abs(goals).max(-1, keepdims=True)  # its square is uniform: so is the area that it encloses
                goals *= np.sqrt(1 + (self.ood_scale**2 - 1) * edge**2) / edge
        else:
            angles = rng.uniform(0, np.pi, num_tasks)
            goals = np.stack([np.cos(angles), np.sin(angles)], -1)
            if split == "ood":
                goals *= np.sqrt(rng.uniform(1, self.ood_scale**2, (num_tasks, 1)))
        return {"goal": self.goal_extent * goals}

    def make_state(self, num_slots: int) -> Arrays:
        """The position `[B, 2]`."""
        return {"position": np.zeros((num_slots, 2))}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Go to the origin."""
        state["position"][rows] = 0.0

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Move, then compare with the goal."""
        state["position"] += np.clip(actions.astype(np.float64), -self.max_step, self.max_step)
        return self._judge(tasks["goal"] - state["position"])

    def _judge(self, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards `[B]` and whether the goal is reached `[B]`, from the way that is left `[B, 2]`."""
        distances = np.sqrt(offsets[:, 0] ** 2 + offsets[:, 1] ** 2)
        if self.goal_radius is None:
            rewards = -distances
        else:
            rewards = np.where(distances <= self.goal_radius, 1.0 - distances, 0.0)
        if self.done_within is None:
            return rewards, np.zeros(len(rewards), bool)
        return rewards, np.abs(offsets).max(-1) < self.done_within

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The position `[B, 2]`, float32."""
        return state["position"].astype(np.float32)

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """The return `[N]` of walking towards the goal in both coordinates as fast as allowed, then standing on it.

        This is optimal: after every step it leaves the least possible way in both coordinates at once, and rewards
        never rise with either, nor does an episode end later.
        """
        offsets = tasks.params["goal"].astype(np.float64)
        returns = np.zeros(len(offsets))
        playing = np.ones(len(offsets), bool)
        for _ in range(self.num_steps):
            offsets -= np.clip(offsets, -self.max_step, self.max_step)
            rewards, reached = self._judge(offsets)
            returns += rewards * playing
            playing &= ~reached
        return returns

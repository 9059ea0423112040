"""Ant with a direction or a goal (Finn et al. 2017; Rakelly et al. 2019; Zintgraf et al. 2020)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from metarl_envs.family import Arrays, check_above
from metarl_envs.mujoco.locomotion import Balancing, angles, unit
from metarl_envs.mujoco.simulation import Simulation, Slots


@dataclass(frozen=True, kw_only=True)
class Ant(Balancing):
    """Gymnasium's Ant-v5 without contact forces."""

    file: ClassVar[str] = "ant.xml"
    frame_skip: ClassVar[int] = 5
    simulation: ClassVar[type[Simulation]] = Slots  # v5 measures velocity by the torso's place before the last stage

    ctrl_cost_weight: float = 0.5
    reset_noise_scale: float = 0.1
    healthy_reward: float = 1.0
    healthy_z_range: tuple[float, float] = (0.2, 1.0)

    @property
    def position_size(self) -> int:
        """The torso's place in the plane."""
        return 2

    def location(self, simulation: Slots) -> np.ndarray:
        """The torso's place as MuJoCo's last stage left it `[B, 2]`."""
        return simulation.read("xpos")[:, 1, :2]

    def healthy(self, simulation: Slots) -> np.ndarray:
        """Everything finite, the torso neither down nor up in the air."""
        low, high = self.healthy_z_range
        z = simulation.qpos[:, 2]
        finite = np.isfinite(simulation.qpos).all(-1) & np.isfinite(simulation.qvel).all(-1)
        return finite & (low <= z) & (z <= high)


@dataclass(frozen=True, kw_only=True)
class AntDirection(Ant):
    """Walk in the task's direction, `angle [N]` in radians: paid is the velocity that way.

    Weights are v5's, which are those of Rakelly et al. (2019) but for the contacts. All directions are tasks, so
    there is no `ood`.
    """

    env_id: ClassVar[str] = "metarl/AntDirection-v0"

    directions: Literal["two", "all"] = "all"
    """Forward and backward only, or every direction in the plane."""

    def __post_init__(self):
        super().__post_init__()
        if self.directions not in ("two", "all"):
            raise ValueError(f"directions must be two or all, got {self.directions!r}")

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Uniform angles, or 0 and pi."""
        if self.directions == "two":
            return {"angle": rng.choice([0.0, math.pi], num_tasks)}
        return {"angle": angles(num_tasks, rng)}

    def held_out(self, params: Arrays) -> np.ndarray | None:
        """None of two."""
        return None if self.directions == "two" else super().held_out(params)

    def rewards(self, tasks: Arrays, location: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """The velocity's component in the direction, and what being healthy is worth."""
        return (velocity * unit(tasks["angle"])).sum(-1) + healthy * self.healthy_reward


@dataclass(frozen=True, kw_only=True)
class AntGoal(Ant):
    """Walk to the task's `goal [N, 2]`, in metres: paid is minus the distance, along the axes, from it.

    Where the ant is counts here, so it is observed too, as with v5's `exclude_current_positions_from_observation=False`.
    Episodes do not end early, and being healthy is worth nothing, as in the literature.
    """

    env_id: ClassVar[str] = "metarl/AntGoal-v0"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")

    ctrl_cost_weight: float = 0.1
    healthy_reward: float = 0.0
    terminate_when_unhealthy: bool = False
    goal_radius: float = 3.0
    """Goals are uniform in a disc of this radius, in metres."""
    ood_scale: float = 1.5
    """Goals of the `ood` split lie outside the disc, up to this many times as far; above 1."""

    def __post_init__(self):
        super().__post_init__()
        check_above("goal_radius", self.goal_radius, 0)
        check_above("ood_scale", self.ood_scale, 1)

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Goals `[N, 2]`, uniform in the disc or in the ring around it."""
        area = rng.uniform(1, self.ood_scale**2, num_tasks) if split == "ood" else rng.uniform(0, 1, num_tasks)
        return {"goal": self.goal_radius * np.sqrt(area)[:, None] * unit(angles(num_tasks, rng))}

    @property
    def observation_size(self) -> int:
        """Those of the robot, and where it is."""
        return super().observation_size + self.position_size

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """All positions and velocities `[B, ...]`."""
        return np.concatenate([state["simulation"].qpos[:, : self.position_size], super().observe(tasks, state)], -1)

    def rewards(self, tasks: Arrays, location: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """`-|x - goal|_1`, and what being healthy is worth."""
        return healthy * self.healthy_reward - np.abs(location - tasks["goal"]).sum(-1)

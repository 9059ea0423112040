"""What the robots share: the step of Gymnasium's v5 environments, for a batch, with a task's reward in place of theirs."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, ascending, check_at_least
from metarl_envs.mujoco.simulation import Rollouts, Simulation, load_model
from metarl_envs.streams import Rows, Streams


@dataclass(frozen=True, kw_only=True)
class Locomotion(TaskFamily):
    """A robot of Gymnasium's MuJoCo environments (v5). Subclasses say what a task is, and what is paid in it.

    Observations are those of v5 with the default switches, external contact forces apart. The step limit is an outside
    cut, so it truncates.
    """

    file: ClassVar[str]
    """The model's file among Gymnasium's."""
    frame_skip: ClassVar[int]
    """MuJoCo's steps in one step."""
    simulation: ClassVar[type[Simulation]] = Rollouts
    render_modes: ClassVar[tuple[str, ...]] = ("rgb_array",)
    normal_velocities: ClassVar[bool] = True
    """Whether v5 starts with normal velocities; otherwise they are uniform."""

    ctrl_cost_weight: float
    """Cost per step of the sum of squared actions."""
    reset_noise_scale: float
    """How far positions and velocities at the start of an episode are spread."""
    num_steps: int = 200
    """Steps in an episode."""
    num_episodes: int = 2
    """Episodes in a trial."""
    threads: int | None = field(default=None, compare=False)
    """Threads of the simulation, all cores by default. Changes speed alone, so it is no part of a task set's identity."""

    def __post_init__(self):
        for name in ("num_steps", "num_episodes"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("ctrl_cost_weight", "reset_noise_scale"):
            check_at_least(name, getattr(self, name), 0)
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise ValueError(f"threads must be a whole number of at least 1, got {self.threads!r}")

    @cached_property
    def model(self) -> Any:
        """MuJoCo's model of the robot as it is by default."""
        return load_model(self.file)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The parameters as JSON-compatible values, without `threads`."""
        return {name: value for name, value in super().kwargs.items() if name != "threads"}

    @property
    def observation_space(self) -> gym.Space:
        """Positions, without where it is, and velocities."""
        return gym.spaces.Box(-np.inf, np.inf, (self.observation_size,), np.float64)

    @property
    def observation_size(self) -> int:
        """Numbers in an observation."""
        return self.model.nq - self.position_size + self.model.nv

    @property
    def position_size(self) -> int:
        """Coordinates of where the robot is, which are not observed."""
        return 1

    @property
    def action_space(self) -> gym.Space:
        """Torques, in the actuators' units."""
        low, high = self.model.actuator_ctrlrange.T.astype(np.float32)
        return gym.spaces.Box(low, high, dtype=np.float32)

    @property
    def episodes_per_trial(self) -> int:
        """`num_episodes`."""
        return self.num_episodes

    @property
    def max_episode_steps(self) -> int:
        """`num_steps`."""
        return self.num_steps

    # -- what a robot, and a task, says ------------------------------------------------------------------------------

    def location(self, simulation: Simulation) -> np.ndarray:
        """Where each robot is, `[B, position_size]`: what velocities are measured by."""
        return simulation.qpos[:, : self.position_size].copy()

    def healthy(self, simulation: Simulation) -> np.ndarray:
        """Whether each robot is in a state from which it can go on, `[B]`."""
        return np.ones(len(simulation.qpos), bool)

    def rewards(self, tasks: Arrays, location: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """What is paid `[B]` for being at `location [B, D]` and having come there with `velocity [B, D]` (m/s)."""
        raise NotImplementedError

    def effort(self, actions: np.ndarray) -> np.ndarray:
        """What `ctrl_cost_weight` weighs `[B]`, in the actions' own precision, as v5 does."""
        return np.square(actions).sum(-1)

    def ends(self, healthy: np.ndarray) -> np.ndarray:
        """Whether episodes end `[B]`."""
        return np.zeros(len(healthy), bool)

    def set_dynamics(self, tasks: Arrays, simulation: Simulation, slots: np.ndarray) -> None:
        """Give `slots` the dynamics of their tasks."""

    # -- the family's interface --------------------------------------------------------------------------------------

    def make_state(self, num_slots: int) -> Arrays:
        """The simulation, and where its robots are."""
        simulation = self.simulation(self.model, num_slots, self.frame_skip, self.threads)
        return {"simulation": simulation, "location": np.zeros((num_slots, self.position_size))}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Place the robots as v5 does, in their tasks' dynamics."""
        simulation, model = state["simulation"], self.model
        self.set_dynamics(tasks, simulation, np.arange(len(state["location"]))[rows])
        scale = self.reset_noise_scale
        qpos = model.qpos0 + scale * (2 * streams.uniform(model.nq, rows=rows) - 1)
        if self.normal_velocities:
            qvel = scale * streams.normal(model.nv, rows=rows)
        else:
            qvel = scale * (2 * streams.uniform(model.nv, rows=rows) - 1)
        simulation.place(rows, qpos, qvel)
        state["location"][rows] = self.location(simulation)[rows]

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """One step of the simulation, and what it pays."""
        simulation = state["simulation"]
        simulation.step(actions)
        location = self.location(simulation)
        velocity = (location - state["location"]) / simulation.dt
        state["location"] = location
        healthy = self.healthy(simulation)
        rewards = self.rewards(tasks, location, velocity, healthy)
        return rewards - self.ctrl_cost_weight * self.effort(actions), self.ends(healthy)

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """Positions and velocities `[B, ...]`."""
        simulation = state["simulation"]
        return np.concatenate([simulation.qpos[:, self.position_size :], simulation.qvel], -1)

    def check_drawing(self) -> None:
        """Raise where nothing draws without a screen."""
        from metarl_envs.mujoco.rendering import backend

        backend()

    @property
    def render_fps(self) -> int:
        """Steps per second of the robot's time."""
        return round(1 / (self.model.opt.timestep * self.frame_skip))

    def frames(self, tasks: Arrays, state: Arrays) -> list[np.ndarray]:
        """A picture of every robot `[240, 320, 3]`, with a red ball at its goal if there is one."""
        from metarl_envs.mujoco.rendering import camera  # needs OpenGL, which nothing else does

        goals = [[[*goal, 0.15]] for goal in tasks["goal"]] if "goal" in tasks else [()] * len(state["location"])
        view = camera(self.file, from_above=self.position_size == 2)
        return [view.picture(qpos, goal) for qpos, goal in zip(state["simulation"].qpos, goals, strict=True)]

    def close(self, state: Arrays) -> None:
        """Stop the simulation's threads."""
        state["simulation"].close()


@dataclass(frozen=True, kw_only=True)
class Balancing(Locomotion):
    """A robot that can fall: it is paid for being healthy, and an episode ends when it is not."""

    healthy_reward: float
    """Paid for each step after which the robot is healthy."""
    healthy_z_range: tuple[float, float]
    """Heights of the torso, in metres, in which the robot is healthy."""
    terminate_when_unhealthy: bool = True
    """End the episode when the robot is not healthy."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "healthy_z_range", ascending("healthy_z_range", self.healthy_z_range))
        check_at_least("healthy_reward", self.healthy_reward, 0)

    def ends(self, healthy: np.ndarray) -> np.ndarray:
        """As `terminate_when_unhealthy` says."""
        return ~healthy if self.terminate_when_unhealthy else super().ends(healthy)


def angles(num_tasks: int, rng: np.random.Generator) -> np.ndarray:
    """Directions in the plane, uniform in [0, 2 pi)."""
    return rng.uniform(0, 2 * math.pi, num_tasks)


def unit(angle: np.ndarray) -> np.ndarray:
    """Vectors of length 1 `[N, 2]` in these directions."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)

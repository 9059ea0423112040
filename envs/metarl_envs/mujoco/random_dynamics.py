"""Walker2d and Hopper, with masses, damping and friction of its own (Rakelly et al. 2019; Rothfuss et al. 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from metarl_envs.family import Arrays, ascending, check_above
from metarl_envs.mujoco.locomotion import Balancing
from metarl_envs.mujoco.simulation import Simulation, Slots

MASS_BASE, DAMPING_BASE, FRICTION_BASE = 1.5, 1.3, 1.5


@dataclass(frozen=True, kw_only=True)
class RandomDynamics(Balancing):
    """Run forward with an unknown body: every mass, damping and friction is multiplied by a factor of its own.

    Task parameters: `mass [N, bodies]`, `damping [N, joints]` and `friction [N, geoms]`, factors `b**u` with `u` uniform in
    [-`log_scale`, `log_scale`] and `b` 1.5 for masses and friction, 1.3 for damping. Departure: inertias follow their
    body's mass, as in a body of the same shape, where the original draws them independently; and the coefficients of
    one geom's friction share a factor. Those of `ood` reach out to `ood_log_scale`, at least one of them beyond
    `log_scale`.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")
    simulation: ClassVar[type[Simulation]] = Slots  # with such masses the solver does mind where it starts
    normal_velocities: ClassVar[bool] = False

    healthy_reward: float = 1.0
    ctrl_cost_weight: float = 1e-3
    reset_noise_scale: float = 5e-3
    healthy_angle_range: tuple[float, float]
    """Inclinations of the torso, in radians, in which the robot is healthy."""
    log_scale: float = 3.0
    """How far exponents reach in training and test tasks."""
    ood_log_scale: float = 4.0
    """How far exponents reach in `ood` tasks."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "healthy_angle_range", ascending("healthy_angle_range", self.healthy_angle_range))
        check_above("log_scale", self.log_scale, 0)
        check_above("ood_log_scale", self.ood_log_scale, self.log_scale)

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Factors."""
        model = self.model
        sizes = (model.nbody - 1, model.nv - 3, model.ngeom)
        if split != "ood":
            exponents = rng.uniform(-self.log_scale, self.log_scale, (num_tasks, sum(sizes)))
        else:
            exponents = rng.uniform(-self.ood_log_scale, self.ood_log_scale, (num_tasks, sum(sizes)))
            rows, columns = np.arange(num_tasks), rng.integers(sum(sizes), size=num_tasks)
            beyond = rng.uniform(self.log_scale, self.ood_log_scale, num_tasks)
            exponents[rows, columns] = np.copysign(beyond, exponents[rows, columns])
        mass, damping, friction = np.split(exponents, np.cumsum(sizes)[:-1], -1)
        return {"mass": MASS_BASE**mass, "damping": DAMPING_BASE**damping, "friction": FRICTION_BASE**friction}

    def set_dynamics(self, tasks: Arrays, simulation: Simulation, slots: np.ndarray) -> None:
        """Multiply the robot's own values."""
        model = self.model
        for slot in slots:
            mass, damping, friction = (tasks[name][slot] for name in ("mass", "damping", "friction"))
            simulation.set_dynamics(
                slot,
                {
                    "body_mass": model.body_mass * [1.0, *mass],
                    "body_inertia": model.body_inertia * np.array([1.0, *mass])[:, None],
                    "dof_damping": model.dof_damping * [1.0, 1.0, 1.0, *damping],  # the first three only say where it is
                    "geom_friction": model.geom_friction * friction[:, None],
                },
            )

    def healthy(self, simulation: Simulation) -> np.ndarray:
        """Upright."""
        z, angle = simulation.qpos[:, 1], simulation.qpos[:, 2]
        (low, high), (least, most) = self.healthy_z_range, self.healthy_angle_range
        return (low < z) & (z < high) & (least < angle) & (angle < most)

    def rewards(self, tasks: Arrays, location: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """The velocity forward, and what being healthy is worth."""
        return velocity[:, 0] + healthy * self.healthy_reward

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """Positions, and velocities within 10 `[B, ...]`."""
        observations = super().observe(tasks, state)
        velocities = observations[:, -self.model.nv :]
        np.clip(velocities, -10, 10, out=velocities)
        return observations


@dataclass(frozen=True, kw_only=True)
class Walker2dDynamics(RandomDynamics):
    """Gymnasium's Walker2d-v5 with dynamics that vary."""

    env_id: ClassVar[str] = "metarl/Walker2dDynamics-v0"
    file: ClassVar[str] = "walker2d_v5.xml"
    frame_skip: ClassVar[int] = 4

    healthy_z_range: tuple[float, float] = (0.8, 2.0)
    healthy_angle_range: tuple[float, float] = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class HopperDynamics(RandomDynamics):
    """Gymnasium's Hopper-v5 with dynamics that vary."""

    env_id: ClassVar[str] = "metarl/HopperDynamics-v0"
    file: ClassVar[str] = "hopper.xml"
    frame_skip: ClassVar[int] = 4

    healthy_z_range: tuple[float, float] = (0.7, float("inf"))
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)

    def healthy(self, simulation: Simulation) -> np.ndarray:
        """Upright, and nothing out of bounds."""
        within = (np.abs(simulation.qpos[:, 2:]) < 100).all(-1) & (np.abs(simulation.qvel) < 100).all(-1)
        return super().healthy(simulation) & within

"""Humanoid with a direction to walk in (Rakelly et al. 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from metarl_envs.family import Arrays, check_at_least
from metarl_envs.mujoco.locomotion import Balancing, angles, unit
from metarl_envs.mujoco.simulation import Simulation, Slots


@dataclass(frozen=True, kw_only=True)
class HumanoidDirection(Balancing):
    """Gymnasium's Humanoid-v5 without contact forces. Paid is the velocity in the task's direction, `angle [N]` in radians.

    Weights are v5's, which are those of Rakelly et al. (2019) but for the contacts. All directions are tasks, so
    there is no `ood`.
    """

    env_id: ClassVar[str] = "metarl/HumanoidDirection-v0"
    file: ClassVar[str] = "humanoid.xml"
    frame_skip: ClassVar[int] = 5
    simulation: ClassVar[type[Simulation]] = Slots  # its solver stops early, and v5 observes what MuJoCo leaves in its data
    normal_velocities: ClassVar[bool] = False

    ctrl_cost_weight: float = 0.1
    reset_noise_scale: float = 0.01
    healthy_reward: float = 5.0
    healthy_z_range: tuple[float, float] = (1.0, 2.0)
    forward_reward_weight: float = 1.25
    """Paid per m/s in the task's direction."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least("forward_reward_weight", self.forward_reward_weight, 0)

    @property
    def position_size(self) -> int:
        """The place in the plane."""
        return 2

    @property
    def observation_size(self) -> int:
        """Positions and velocities of joints, inertias and velocities of bodies, forces of actuators."""
        model = self.model
        return super().observation_size + 16 * (model.nbody - 1) + model.nv - 6

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """As v5, `[B, ...]`."""
        simulation = state["simulation"]
        extra = [simulation.read("cinert")[:, 1:], simulation.read("cvel")[:, 1:], simulation.read("qfrc_actuator")[:, 6:]]
        return np.concatenate([super().observe(tasks, state), *(part.reshape(len(part), -1) for part in extra)], -1)

    def location(self, simulation: Slots) -> np.ndarray:
        """The centre of mass in the plane as MuJoCo's last stage left it `[B, 2]`."""
        masses = self.model.body_mass
        return np.einsum("b,nbj->nj", masses, simulation.read("xipos")[..., :2]) / masses.sum()

    def effort(self, actions: np.ndarray) -> np.ndarray:
        """As in `Locomotion`; v5 takes this robot's from MuJoCo, in double precision."""
        return super().effort(actions.astype(np.float64))

    def healthy(self, simulation: Slots) -> np.ndarray:
        """The torso neither down nor up in the air."""
        low, high = self.healthy_z_range
        return (low < simulation.qpos[:, 2]) & (simulation.qpos[:, 2] < high)

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Uniform angles `[N]`."""
        return {"angle": angles(num_tasks, rng)}

    def rewards(self, tasks: Arrays, location: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """The weighted velocity in the direction, and what being healthy is worth."""
        along = (velocity * unit(tasks["angle"])).sum(-1)
        return self.forward_reward_weight * along + healthy * self.healthy_reward

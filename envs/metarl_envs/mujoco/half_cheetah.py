"""HalfCheetah with a direction or a velocity to run at (Finn et al. 2017; ranges of Rothfuss et al. 2019)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from metarl_envs.family import Arrays, ascending, check_above
from metarl_envs.mujoco.locomotion import Locomotion


@dataclass(frozen=True, kw_only=True)
class HalfCheetah(Locomotion):
    """Gymnasium's HalfCheetah-v5. Actions cost half as much as there by default, as in the meta-learning literature."""

    file: ClassVar[str] = "half_cheetah.xml"
    frame_skip: ClassVar[int] = 5

    ctrl_cost_weight: float = 0.05
    reset_noise_scale: float = 0.1


@dataclass(frozen=True, kw_only=True)
class HalfCheetahDirection(HalfCheetah):
    """Run forward or backward: paid is the velocity in the task's `direction [N]`, 1 or -1.

    There are two tasks, so none can be held out: `test` draws from the same two as `train`, and nothing lies beyond them.
    The horizon is that of Rothfuss et al. (2019), half of Finn et al.'s.
    """

    env_id: ClassVar[str] = "metarl/HalfCheetahDirection-v0"

    num_steps: int = 100

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Either direction, equally likely."""
        return {"direction": rng.choice([-1.0, 1.0], num_tasks)}

    def held_out(self, params: Arrays) -> None:
        """None: both tasks are needed for training."""
        return None

    def rewards(self, tasks: Arrays, location: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """`direction * v`."""
        return tasks["direction"] * velocity[:, 0]


@dataclass(frozen=True, kw_only=True)
class HalfCheetahVelocity(HalfCheetah):
    """Run at the task's `velocity [N]` (m/s): paid is minus the distance from it."""

    env_id: ClassVar[str] = "metarl/HalfCheetahVelocity-v0"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")

    velocities: tuple[float, float] = (0.0, 3.0)
    """Lowest and highest velocity, in m/s."""
    ood_velocity: float = 4.0
    """Velocities of the `ood` split lie between the highest one and this."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "velocities", ascending("velocities", self.velocities))
        check_above("ood_velocity", self.ood_velocity, self.velocities[1])

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Uniform velocities `[N]`."""
        low, high = self.velocities
        return {
            "velocity": rng.uniform(high, self.ood_velocity, num_tasks)
            if split == "ood"
            else rng.uniform(low, high, num_tasks)
        }

    def rewards(self, tasks: Arrays, location: np.ndarray, velocity: np.ndarray, healthy: np.ndarray) -> np.ndarray:
        """`-|v - velocity|`."""
        return -np.abs(velocity[:, 0] - tasks["velocity"])

"""Families of Gymnasium environments, batched in NumPy, one task per slot. Importing it registers them all."""

import importlib.util
from typing import Any

import gymnasium as gym

from metarl_envs.context import ContextFamily
from metarl_envs.family import TaskFamily, TaskSet, make_family
from metarl_envs.vector import TaskEnv, TaskVectorEnv

__all__ = [
    "ContextFamily",
    "TaskEnv",
    "TaskFamily",
    "TaskSet",
    "TaskVectorEnv",
    "families",
    "make_family",
    "register_family",
]


def register_family(env_id: str, family: str, **kwargs: Any) -> None:
    """Register the family class at import path `family` ("module:Class") with Gymnasium, single and vector."""
    gym.register(
        env_id,
        entry_point="metarl_envs.vector:TaskEnv",
        vector_entry_point="metarl_envs.vector:TaskVectorEnv",
        kwargs={"family": family, **kwargs},
    )


def families() -> list[str]:
    """Ids of all registered task families whose packages are installed, in order of registration."""
    with_mujoco = importlib.util.find_spec("mujoco") is not None
    families = {env_id: spec.kwargs["family"] for env_id, spec in gym.registry.items() if "family" in spec.kwargs}
    return [i for i, family in families.items() if with_mujoco or not str(family).startswith("metarl_envs.mujoco.")]


register_family("metarl/BernoulliBandit-v0", "metarl_envs.bandits:BernoulliBandit")
register_family("metarl/GaussianBandit-v0", "metarl_envs.bandits:GaussianBandit")
register_family("metarl/TwoArmedBandit-v0", "metarl_envs.bandits:TwoArmedBandit")
for _variant in ("Independent", "Uniform", "Easy", "Medium", "Hard"):
    register_family(f"metarl/TwoArmed{_variant}-v0", "metarl_envs.bandits:TwoArmedBandit", variant=_variant.lower())
register_family("metarl/TabularMDP-v0", "metarl_envs.tabular:TabularMDP")
register_family("metarl/Navigation2D-v0", "metarl_envs.navigation:Navigation2D")
_point_robot = {"goal_region": "semicircle", "goal_extent": 1.0, "done_within": None}
register_family("metarl/Navigation2DSemicircle-v0", "metarl_envs.navigation:Navigation2D", **_point_robot)
register_family(
    "metarl/Navigation2DSparse-v0", "metarl_envs.navigation:Navigation2D", **_point_robot, goal_radius=0.2, num_steps=20
)
register_family("metarl/GridNavi-v0", "metarl_envs.gridworlds:GridNavi")
register_family("metarl/Context-v0", "metarl_envs.context:ContextFamily")
register_family(
    "metarl/CartPoleContext-v0",
    "metarl_envs.context:ContextFamily",
    env="CartPole-v1",
    ranges={"length": (0.3, 1.0), "gravity": (6.0, 14.0)},
)
register_family(
    "metarl/PendulumContext-v0",
    "metarl_envs.context:ContextFamily",
    env="Pendulum-v1",
    ranges={"g": (6.0, 14.0), "m": (0.5, 1.5), "l": (0.7, 1.3)},
)
register_family("metarl/HalfCheetahDirection-v0", "metarl_envs.mujoco.half_cheetah:HalfCheetahDirection")
register_family("metarl/HalfCheetahVelocity-v0", "metarl_envs.mujoco.half_cheetah:HalfCheetahVelocity")
register_family("metarl/AntDirection-v0", "metarl_envs.mujoco.ant:AntDirection")
register_family("metarl/AntGoal-v0", "metarl_envs.mujoco.ant:AntGoal")
register_family("metarl/HumanoidDirection-v0", "metarl_envs.mujoco.humanoid:HumanoidDirection")
register_family("metarl/Walker2dDynamics-v0", "metarl_envs.mujoco.random_dynamics:Walker2dDynamics")
register_family("metarl/HopperDynamics-v0", "metarl_envs.mujoco.random_dynamics:HopperDynamics")
for _game in ("RepeatPrevious", "RepeatFirst", "Autoencode", "CountRecall"):
    register_family(f"metarl/{_game}-v0", f"metarl_envs.memory_tasks.cards:{_game}")
register_family("metarl/TMaze-v0", "metarl_envs.memory_tasks.mazes:TMaze")
register_family("metarl/TMazeActive-v0", "metarl_envs.memory_tasks.mazes:TMaze", active=True)
register_family("metarl/DarkKeyToDoor-v0", "metarl_envs.memory_tasks.mazes:KeyToDoor")
register_family("metarl/BarcodeBandit-v0", "metarl_envs.memory_tasks.barcode:BarcodeBandit")

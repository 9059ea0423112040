"""MiniGrid's memory task as a plain Gymnasium environment: `minigrid_views:MiniGridMemoryS7-v0` (extra `minigrid`).

The agent sees an object in a small room, walks down a corridor and has to turn to the one of two objects that is the same.
MiniGrid gives numbers for kind, colour and state of each cell in view; here they are one-hot. The text of the mission,
always the same, and the compass direction are left out. From elsewhere: `PYTHONPATH=experiments metarl evaluate RUN`.
"""

import gymnasium as gym
import minigrid  # noqa: F401 - registers its environments
import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

KINDS = tuple(len(names) for names in (OBJECT_TO_IDX, COLOR_TO_IDX, STATE_TO_IDX))
ONE_HOT = [np.eye(count, dtype=np.float32) for count in KINDS]


class OneHotView(gym.ObservationWrapper):
    """The cells in view `[7 * 7 * (kinds + colours + states)]`, each number one-hot."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        cells = int(np.prod(env.observation_space["image"].shape[:2]))
        self.observation_space = gym.spaces.Box(0.0, 1.0, (cells * sum(KINDS),), np.float32)

    def observation(self, observation: dict) -> np.ndarray:
        """One-hot codes of all cells."""
        numbers = np.moveaxis(observation["image"], -1, 0)
        return np.concatenate([codes[part] for codes, part in zip(ONE_HOT, numbers, strict=True)], -1).ravel()


def memory(**kwargs) -> gym.Env:
    """MiniGrid-MemoryS7-v0, with one-hot views."""
    return OneHotView(gym.make("MiniGrid-MemoryS7-v0", **kwargs))


gym.register("MiniGridMemoryS7-v0", memory, max_episode_steps=245)

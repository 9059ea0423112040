"""Task parameters as numbers: for oracles, which act on them, and for value functions that training tells the task."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from metarl.trials import Observations
from metarl_envs import TaskFamily
from metarl_envs.family import Arrays

_SAMPLE = 1000
"""Training tasks from which mean and deviation of task parameters are taken."""


class TaskParameters:
    """Task parameters as `P` numbers that a network can read, and where observations hold them.

    All parameters of a task in the order of their names, flattened, standardised by mean and deviation over a sample of
    training tasks (always the same one) and float32; what never varies is 0. Observations that are vectors get them
    appended; any others become a `Dict` with the key `task`, beside `observation` or the keys that there are.
    """

    def __init__(self, family: TaskFamily):
        sample = family.sample(_SAMPLE, "train", 0).params
        for name, values in sample.items():
            if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
                example = values[0].tolist()
                raise ValueError(
                    f"family must have finite numbers as task parameters, got {name}={example!r} in {family.label}"
                )
        self._shapes = {name: values.shape[1:] for name, values in sorted(sample.items())}
        flat = self._flatten(sample)
        varies = np.ptp(flat, 0) > 0  # rounding gives what is constant a mean and a deviation that are not quite its own
        self.mean = np.where(varies, flat.mean(0), flat[0])  # [P]
        self.deviation = np.where(varies, flat.std(0), 1.0)  # [P]
        self.observation_space = self._space(family.observation_space)
        self._appended = isinstance(self.observation_space, spaces.Box)

    def __call__(self, params: Arrays) -> np.ndarray:
        """The standardised parameters `[B, P]`, float32."""
        shapes = {name: np.shape(values)[1:] for name, values in sorted(params.items())}
        if shapes != self._shapes:
            raise ValueError(f"tasks must have parameters of the shapes {self._shapes}, got {shapes}")
        return ((self._flatten(params) - self.mean) / self.deviation).astype(np.float32)

    def beside(self, observations: Observations, parameters: np.ndarray) -> Observations:
        """Observations that hold the standardised `parameters`: of a batch `[B, ...]`, or of one slot `[...]`."""
        if self._appended:
            return np.concatenate([observations, parameters], axis=-1, dtype=np.float32, casting="unsafe")
        return {**(observations if isinstance(observations, dict) else {"observation": observations}), "task": parameters}

    def _flatten(self, params: Arrays) -> np.ndarray:
        """All parameters as float64, `[B, P]`."""
        return np.concatenate([np.asarray(params[n], np.float64).reshape(len(params[n]), -1) for n in self._shapes], axis=1)

    def _space(self, space: gym.Space) -> gym.Space:
        if isinstance(space, spaces.Box) and len(space.shape) == 1:
            return spaces.Box(-np.inf, np.inf, (space.shape[0] + len(self.mean),), np.float32)
        parts = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
        if "task" in parts:
            raise ValueError(f"family must have no observation 'task', where an oracle reads the task, got {space}")
        return spaces.Dict({**parts, "task": spaces.Box(-np.inf, np.inf, self.mean.shape, np.float32)})

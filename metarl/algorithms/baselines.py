"""Stable-Baselines3's own algorithms beside the adaptive ones: trained on the same families, scored in the same way."""

from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from metarl.trials import Observations, Transition
from metarl_envs import TaskSet


class StablePlayer:
    """Any Stable-Baselines3 model without a memory as a player: it acts, and never adapts.

    Args:
        model: trained on the family's observations, for example on `GymnasiumVecEnv(family.make_vec(8))`.
        name: how tables and pictures call it.
        deterministic: take the likeliest action instead of sampling.
    """

    def __init__(self, model: BaseAlgorithm, name: str | None = None, deterministic: bool = False):
        self.model = model
        self.name = name or type(model).__name__
        self.deterministic = deterministic

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """There is nothing to forget; `rng` seeds the sampling of actions."""
        self.model.set_random_seed(int(rng.integers(2**31)))

    def act(self, observations: Observations) -> np.ndarray:
        """Actions `[B, ...]`."""
        actions: Any = self.model.predict(observations, deterministic=self.deterministic)[0]
        return actions

    def observe(self, transition: Transition) -> None:
        """Nothing is learned from it."""

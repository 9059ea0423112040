"""Trials: the stretches of consecutive episodes in one task over which agents adapt, and who plays them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl_envs import TaskFamily, TaskSet, TaskVectorEnv

Observations = np.ndarray | dict[str, np.ndarray]
TensorObs = Tensor | dict[str, Tensor]


class Transition(NamedTuple):
    """One step in each of `B` slots. `next_observations` is the true successor, also where an episode ended."""

    observations: Observations  # [B, ...]
    actions: np.ndarray  # [B, ...]
    rewards: np.ndarray  # [B]
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool
    next_observations: Observations  # [B, ...]
    playing: np.ndarray | None = None  # [B] bool, whether the slot's trial goes on after this step; None: all do


class Player(Protocol):
    """Anything that plays `B` trials side by side: learned agents, classical players, oracles.

    Honest players read only `len(tasks)`; oracles read the parameters.
    """

    name: str

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Forget everything and get ready for one trial in each of `tasks`."""

    def act(self, observations: Observations) -> np.ndarray:
        """Actions `[B, ...]`."""

    def observe(self, transition: Transition) -> None:
        """Learn from the step just played."""


class SelfPlayer(Protocol):
    """Whoever steps the environment itself, such as an algorithm whose training in a task is its trial."""

    name: str

    def play(
        self,
        family: TaskFamily,
        tasks: TaskSet,
        *,
        episodes: int,
        seed: int,
        on_task: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Undiscounted returns `[N, episodes]` of every episode of one trial per task.

        `on_task` is called with the number of tasks finished after each, or after several.
        """


@dataclass
class Trials:
    """`B` rows of `T` consecutive steps. Each row starts with a trial; when one ends, the next follows at once.

    `episode_start` and `trial_start` mark first steps; `trial_end` marks the last step of a trial or of the row, and
    `bootstrap` holds what the policy expected after it (zero after a termination that ended the trial). All `[T, B]`.
    """

    observations: TensorObs  # [T, B, ...]
    actions: Tensor  # [T, B, ...]
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    episode_start: Tensor
    trial_start: Tensor
    trial_end: Tensor
    bootstrap: Tensor
    log_probs: Tensor
    values: Tensor
    task: Tensor | None = None  # [T, B, P], the task as numbers, where a value function reads it

    def previous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Previous action, reward, done, and whether there is a previous step in the trial: `Memory`'s, `[T, B, ...]`."""
        done = (self.terminated | self.truncated).float()
        return _shift(self.actions), _shift(self.rewards), _shift(done), (~self.trial_start).float()

    @property
    def first(self) -> Tensor:
        """Whether a step belongs to the first trial of its row, `[T, B]`."""
        return self.trial_start.cumsum(0) == 1

    def episode_returns(self, episodes_per_trial: int) -> np.ndarray:
        """Undiscounted returns `[trials, episodes]` of the trials that were recorded to their end."""
        trial, complete = self._trials(episodes_per_trial)
        done = (self.terminated | self.truncated).cpu().numpy().T.ravel()
        ended = np.cumsum(done) - done  # episodes ended before this step, over everything
        first = np.flatnonzero(np.diff(trial, prepend=-1))  # the first step of each trial
        episode = ended - ended[first][trial]
        returns = np.zeros((len(complete), episodes_per_trial))
        np.add.at(returns, (trial, episode), self.rewards.cpu().numpy().T.ravel())
        return returns[complete]

    def trial_lengths(self, episodes_per_trial: int) -> np.ndarray:
        """Steps `[trials]` of the trials that were recorded to their end."""
        trial, complete = self._trials(episodes_per_trial)
        return np.bincount(trial)[complete]

    def _trials(self, episodes_per_trial: int) -> tuple[np.ndarray, np.ndarray]:
        """Which trial each step belongs to, row after row `[B * T]`, and which of the trials are complete."""
        done = (self.terminated | self.truncated).cpu().numpy().T.ravel()
        trial = np.cumsum(self.trial_start.cpu().numpy().T.ravel()) - 1
        return trial, np.bincount(trial, weights=done) == episodes_per_trial


def check_finite(name: str, values: Observations, envs: TaskVectorEnv, step: int, first_task: int = 0) -> None:
    """Raise a `ValueError` with `name`, environment, task and step unless all `values [B, ...]` are finite."""
    if isinstance(values, dict):
        for key, part in values.items():
            check_finite(f"{name} {key}", part, envs, step, first_task)
    elif values.dtype.kind == "f" and not np.isfinite(values).all():
        slot, *place = np.argwhere(~np.isfinite(values))[0].tolist()
        task = {key: numbers[slot].tolist() for key, numbers in envs.tasks.params.items()}
        where = f"{envs.family.label}, task {first_task + slot} {task}, step {step}"
        raise ValueError(f"{name} must be finite, got {values[slot, *place]} from {where}")


def to_tensor(observations: Observations, device: torch.device) -> TensorObs:
    """Observations on `device`, sharing memory where possible."""
    if isinstance(observations, dict):
        return {key: torch.as_tensor(value, device=device) for key, value in observations.items()}
    return torch.as_tensor(observations, device=device)


def batch_size_of(observations: Observations, space: gym.Space) -> int:
    """Leading axis of a batch of observations; raises unless they are a batch of `space`'s."""
    if isinstance(space, gym.spaces.Dict):
        return batch_size_of(observations[next(iter(space))], space[next(iter(space))])
    shape = np.shape(observations)
    if len(shape) != len(space.shape) + 1 or shape[1:] != space.shape:
        raise ValueError(f"observations must have shape (batch, *{space.shape}), got {shape}")
    return shape[0]


def _shift(x: Tensor) -> Tensor:
    """`x` one step later; the first step's content is meaningless and must be masked."""
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])

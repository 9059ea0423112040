"""Random tabular MDPs with a finite horizon (Duan et al. 2016, "RL²", after Osband et al. 2013).

Every entry of the transition table and of the reward means is drawn at random, so nothing carries over from one task
to the next but how to explore. A trial is `num_episodes` episodes of `num_steps` steps in one MDP.
"""

from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_above, check_at_least, two_numbers
from metarl_envs.streams import Rows, Streams

_CHUNK = 1024  # tasks per chunk of value iteration: a few MB of transitions at the default sizes


@dataclass(frozen=True)
class TabularMDP(TaskFamily):
    """Random MDPs with few states, in which transitions and rewards must be found out (Duan et al. 2016).

    Tasks hold `transitions [N, S, A, S]` (the last axis sums to 1) and expected rewards `means [N, S, A]`. Every
    episode starts in state 0 and lasts `num_steps` steps; the horizon is part of the task, so its end is a
    termination. The observation is the state.
    """

    env_id: ClassVar[str] = "metarl/TabularMDP-v0"
    structure: ClassVar[str | None] = "tabular_mdp"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")
    time_limit_terminates: ClassVar[bool] = True

    num_states: int = 10
    """Number of states S."""
    num_actions: int = 5
    """Number of actions A."""
    num_steps: int = 10
    """Steps in an episode (the horizon)."""
    num_episodes: int = 10
    """Episodes in a trial."""
    mean_prior: tuple[float, float] = (1.0, 1.0)
    """Mean and standard deviation of the normal distribution that expected rewards are drawn from."""
    concentration: float = 1.0
    """Concentration of the symmetric Dirichlet distribution that transitions are drawn from; 1 is uniform."""
    reward_std: float = 1.0
    """Standard deviation of one reward around its mean."""
    ood_mean_prior: tuple[float, float] = (1.0, 2.0)
    """`mean_prior` of the `ood` split: by default, choices that matter more."""
    ood_concentration: float = 0.2
    """`concentration` of the `ood` split: by default, transitions that are nearly deterministic."""

    def __post_init__(self):
        check_at_least("num_states", self.num_states, 1)
        check_at_least("num_actions", self.num_actions, 2)
        check_at_least("num_steps", self.num_steps, 1)
        check_at_least("num_episodes", self.num_episodes, 1)
        check_at_least("reward_std", self.reward_std, 0)
        for name in ("concentration", "ood_concentration"):
            check_above(name, getattr(self, name), 0)
        for name in ("mean_prior", "ood_mean_prior"):
            object.__setattr__(self, name, two_numbers(name, getattr(self, name)))
            check_above(f"{name}[1]", getattr(self, name)[1], 0)

    @property
    def observation_space(self) -> gym.Space:
        """The state."""
        return gym.spaces.Discrete(self.num_states)

    @property
    def action_space(self) -> gym.Space:
        """The action."""
        return gym.spaces.Discrete(self.num_actions)

    @property
    def episodes_per_trial(self) -> int:
        """`num_episodes`."""
        return self.num_episodes

    @property
    def max_episode_steps(self) -> int:
        """`num_steps`."""
        return self.num_steps

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """`transitions [N, S, A, S]` and `means [N, S, A]`."""
        ood = split == "ood"
        mean, std = self.ood_mean_prior if ood else self.mean_prior
        concentration = self.ood_concentration if ood else self.concentration
        shape = (num_tasks, self.num_states, self.num_actions)
        return {
            "transitions": rng.dirichlet(np.full(self.num_states, concentration), shape),
            "means": rng.normal(mean, std, shape),
        }

    def held_out(self, params: Arrays) -> np.ndarray:
        """The side `[N]`, told by `means` alone: no two tasks share them, and hashing transitions would take far longer."""
        return super().held_out({"means": params["means"]})

    def make_state(self, num_slots: int) -> Arrays:
        """The current state `[B]` and the index of each slot."""
        return {"current": np.zeros(num_slots, np.int64), "slots": np.arange(num_slots)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Go to state 0."""
        state["current"][rows] = 0

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Draw a reward for leaving the current state, then the next state."""
        where = state["slots"], state["current"], actions
        rewards = tasks["means"][where] + self.reward_std * streams.normal()
        state["current"][:] = streams.categorical(tasks["transitions"][where])
        return rewards, np.zeros(len(rewards), bool)

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """The state `[B]`."""
        return state["current"].copy()

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """The optimal value `[N]` of state 0, by value iteration over the horizon."""
        parts = []
        for start in range(0, len(tasks), _CHUNK):
            params = tasks[start : start + _CHUNK].params
            values = np.zeros((len(params["means"]), self.num_states))
            for _ in range(self.num_steps):
                action_values = params["means"] + np.einsum("nsat,nt->nsa", params["transitions"], values)
                values = action_values.max(-1)
            parts.append(values[:, 0])
        return np.concatenate(parts)

"""Multi-armed bandits: Bernoulli (Duan et al. 2016), Gaussian, and the five two-armed families of Wang et al. 2016.

One pull is one episode, so a trial of `num_pulls` episodes is one bandit problem and an agent's adaptation curve is
its reward per pull. There is nothing to observe: the observation is the only value of `Discrete(1)`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import gymnasium as gym
import numpy as np

from metarl_envs.family import Arrays, TaskFamily, TaskSet, check_at_least, two_numbers
from metarl_envs.streams import Rows, Streams


@dataclass(frozen=True)
class Bandit(TaskFamily):
    """Shared by all bandits: tasks hold the expected reward of each arm, `means [N, num_arms]`."""

    num_arms: int = 5
    """Number of arms."""
    num_pulls: int = 10
    """Pulls in a trial; each pull is an episode of one step."""

    def __post_init__(self):
        check_at_least("num_arms", self.num_arms, 2)
        check_at_least("num_pulls", self.num_pulls, 1)

    @property
    def observation_space(self) -> gym.Space:
        """A constant."""
        return gym.spaces.Discrete(1)

    @property
    def action_space(self) -> gym.Space:
        """The arm to pull."""
        return gym.spaces.Discrete(self.num_arms)

    @property
    def episodes_per_trial(self) -> int:
        """One episode per pull."""
        return self.num_pulls

    @property
    def max_episode_steps(self) -> int:
        """A pull ends its episode."""
        return 1

    def make_state(self, num_slots: int) -> Arrays:
        """Bandits keep no state between pulls, only the index of each slot."""
        return {"slots": np.arange(num_slots)}

    def reset(self, tasks: Arrays, state: Arrays, rows: Rows, streams: Streams) -> None:
        """Nothing to start."""

    def observe(self, tasks: Arrays, state: Arrays) -> np.ndarray:
        """Zeros `[B]`."""
        return np.zeros(len(state["slots"]), np.int64)

    def ceiling(self, tasks: TaskSet) -> np.ndarray:
        """The best arm's mean `[N]`."""
        return tasks.params["means"].max(-1)


@dataclass(frozen=True)
class BernoulliBandit(Bandit):
    """Rewards are 1 with the arm's probability, else 0; probabilities are Beta(prior) draws (Duan 2016: uniform)."""

    env_id: ClassVar[str] = "metarl/BernoulliBandit-v0"
    structure: ClassVar[str | None] = "bernoulli_bandit"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")

    prior: tuple[float, float] = (1.0, 1.0)
    """Parameters a, b of the Beta distribution that arms are drawn from."""
    ood_prior: tuple[float, float] = (2.0, 5.0)
    """The Beta parameters of the `ood` split: by default, bandits that pay less."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("prior", "ood_prior"):
            pair = two_numbers(name, getattr(self, name))
            object.__setattr__(self, name, pair)
            if not min(pair) > 0:
                raise ValueError(f"{name} must hold two numbers above 0, got {list(pair)}")

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Arms `means [N, num_arms]`."""
        a, b = self.ood_prior if split == "ood" else self.prior
        return {"means": rng.beta(a, b, (num_tasks, self.num_arms))}

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Pull; every pull ends its episode."""
        rewards = (streams.uniform() < tasks["means"][state["slots"], actions]).astype(np.float64)
        return rewards, np.ones(len(rewards), bool)


@dataclass(frozen=True)
class TwoArmedBandit(BernoulliBandit):
    """Two-armed Bernoulli bandits of Wang et al. 2016, "Learning to reinforcement learn", section 3.1.

    `independent`: both arms uniform. `uniform`: p and 1 - p with p uniform. `easy`, `medium`, `hard`: the pairs
    {.1, .9}, {.25, .75}, {.4, .6} in either order. Those three hold two tasks each, so nothing can be held out and
    their `train` and `test` are the same two tasks; `ood` is the dependent-uniform family.
    """

    env_id: ClassVar[str] = "metarl/TwoArmedBandit-v0"

    num_arms: int = 2
    """Always 2."""
    num_pulls: int = 100
    """Pulls in a trial."""
    variant: Literal["independent", "uniform", "easy", "medium", "hard"] = "uniform"
    """Which of the five families."""

    _PAIRS: ClassVar[dict[str, float]] = {"easy": 0.1, "medium": 0.25, "hard": 0.4}

    def __post_init__(self):
        super().__post_init__()
        if self.num_arms != 2:
            raise ValueError(f"num_arms must be 2, got {self.num_arms}")
        if self.variant not in ("independent", "uniform", *self._PAIRS):
            raise ValueError(f"variant must be independent, uniform, easy, medium or hard, got {self.variant!r}")

    @property
    def structure(self) -> str:
        """Independent arms are a Bernoulli bandit like any other; in the other variants each arm tells of both."""
        return "bernoulli_bandit" if self.variant == "independent" else "dependent_bandit"

    @property
    def pair(self) -> tuple[float, float] | None:
        """The two means of `easy`, `medium` and `hard`; None for the continuous variants."""
        low = self._PAIRS.get(self.variant)
        return None if low is None else (low, 1 - low)

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Arms `means [N, 2]`."""
        if self.variant == "independent":
            return super().draw(num_tasks, split, rng)
        if self.variant == "uniform":
            a, b = self.ood_prior if split == "ood" else self.prior
            first = rng.beta(a, b, num_tasks)
        elif split == "ood":
            first = rng.uniform(size=num_tasks)
        else:
            low = self._PAIRS[self.variant]
            first = np.where(rng.integers(2, size=num_tasks) == 0, low, 1 - low)
        return {"means": np.stack([first, 1 - first], -1)}

    def held_out(self, params: Arrays) -> np.ndarray | None:
        """Two tasks leave nothing to hold out."""
        return None if self.variant in self._PAIRS else super().held_out(params)


@dataclass(frozen=True)
class GaussianBandit(Bandit):
    """Rewards are normal with the arm's mean; means are normal draws."""

    env_id: ClassVar[str] = "metarl/GaussianBandit-v0"
    structure: ClassVar[str | None] = "gaussian_bandit"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "ood")

    prior_mean: float = 0.0
    """Mean of the distribution that arm means are drawn from."""
    prior_std: float = 1.0
    """Its standard deviation; the `ood` split doubles it."""
    noise_std: float = 1.0
    """Standard deviation of one reward around its arm's mean."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least("prior_std", self.prior_std, 0)
        check_at_least("noise_std", self.noise_std, 0)

    def draw(self, num_tasks: int, split: str, rng: np.random.Generator) -> Arrays:
        """Arms `means [N, num_arms]`."""
        std = 2 * self.prior_std if split == "ood" else self.prior_std
        return {"means": rng.normal(self.prior_mean, std, (num_tasks, self.num_arms))}

    def step(self, tasks: Arrays, state: Arrays, actions: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
        """Pull; every pull ends its episode."""
        rewards = tasks["means"][state["slots"], actions] + self.noise_std * streams.normal()
        return rewards, np.ones(len(rewards), bool)

"""What a Bayesian player believes about the arms of a bandit, for B tasks side by side.

Beliefs share one interface: `update(actions [B], rewards [B])`, the posterior `mean [B, K]` of each arm's mean reward,
and `sample(rng) [B, K]`, a joint draw of the arms' means from the posterior. Beliefs about independent arms also have a
`width [B, K]` that shrinks like one over the square root of the number of pulls.

Priors are those of the family's training tasks, whatever tasks are played: a player of the `ood` split is as wrong
about its tasks as a trained agent is.
"""

from typing import Protocol

import numpy as np

from metarl_envs import TaskFamily


class ArmBeliefs(Protocol):
    """The interface that the module describes."""

    @property
    def mean(self) -> np.ndarray:
        """Posterior means `[B, K]`."""

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """One posterior draw of the arms' means `[B, K]`."""

    def update(self, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Learn from one pull in every task."""


class BetaBeliefs:
    """Independent Bernoulli arms under a Beta(a, b) prior: after s successes and f failures, Beta(a + s, b + f)."""

    def __init__(self, num_tasks: int, num_arms: int, prior: tuple[float, float]):
        self.a, self.b = prior
        self.successes = np.zeros((num_tasks, num_arms), np.int64)
        self.failures = np.zeros((num_tasks, num_arms), np.int64)

    @property
    def mean(self) -> np.ndarray:
        """`(a + s) / (a + b + s + f)`, `[B, K]`."""
        return (self.a + self.successes) / (self.a + self.b + self.successes + self.failures)

    @property
    def width(self) -> np.ndarray:
        """`1 / sqrt(a + b + s + f)`, `[B, K]`: the prior counts as pulls, as in Duan et al. 2016."""
        return 1 / np.sqrt(self.a + self.b + self.successes + self.failures)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draws from the arms' Beta posteriors, `[B, K]`."""
        return rng.beta(self.a + self.successes, self.b + self.failures)

    def update(self, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Count a success (reward 1) or a failure (reward 0)."""
        rows = np.arange(len(actions))
        won = rewards > 0.5
        self.successes[rows, actions] += won
        self.failures[rows, actions] += ~won


class NormalBeliefs:
    """Independent arms with known noise sigma under a normal prior N(mu, tau²).

    After n pulls with sum of rewards r, the posterior mean is `(1 - w) mu + w r / n` and the posterior variance
    `(1 - w) tau²`, with `w = n tau² / (n tau² + sigma²)`.
    """

    def __init__(self, num_tasks: int, num_arms: int, prior_mean: float, prior_std: float, noise_std: float):
        self.prior_mean, self.prior_variance, self.noise_variance = prior_mean, prior_std**2, noise_std**2
        self.pulls = np.zeros((num_tasks, num_arms), np.int64)
        self.sums = np.zeros((num_tasks, num_arms))

    @property
    def _weight(self) -> np.ndarray:
        signal = self.pulls * self.prior_variance
        total = signal + self.noise_variance
        return np.divide(signal, total, out=np.zeros(total.shape), where=total > 0)

    @property
    def mean(self) -> np.ndarray:
        """Posterior means `[B, K]`."""
        weight = self._weight
        return (1 - weight) * self.prior_mean + weight * self.sums / np.maximum(self.pulls, 1)

    @property
    def width(self) -> np.ndarray:
        """Posterior standard deviations `[B, K]`, `sigma / sqrt(n + sigma² / tau²)`."""
        return np.sqrt((1 - self._weight) * self.prior_variance)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Draws from the arms' normal posteriors, `[B, K]`."""
        return self.mean + self.width * rng.standard_normal(self.pulls.shape)

    def update(self, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Add one reward to the statistics of the arm that gave it."""
        rows = np.arange(len(actions))
        self.pulls[rows, actions] += 1
        self.sums[rows, actions] += rewards


class MirroredBeliefs:
    """Two Bernoulli arms with means p and 1 - p (Wang et al. 2016): success of one says what failure of the other says.

    The state is how often the first arm won or the second lost, `for_first [B]`, and how often it was the other way
    round, `against_first [B]`. The prior of p is Beta(a, b) or, with a `pair` (q, 1 - q), one half on
    each; then the posterior odds of p = 1 - q are `((1 - q) / q) ** (for_first - against_first)`.
    """

    def __init__(self, num_tasks: int, prior: tuple[float, float], pair: tuple[float, float] | None):
        self.prior, self.pair = prior, pair
        self.for_first = np.zeros(num_tasks, np.int64)
        self.against_first = np.zeros(num_tasks, np.int64)

    @property
    def _chance_of_second_value(self) -> np.ndarray:
        """Posterior probability `[B]` that p is the second number of the pair."""
        low, high = self.pair
        return 0.5 + 0.5 * np.tanh(0.5 * np.log(high / low) * (self.for_first - self.against_first))

    @property
    def mean(self) -> np.ndarray:
        """Posterior means `[B, 2]`."""
        if self.pair is None:
            a, b = self.prior
            first = (a + self.for_first) / (a + b + self.for_first + self.against_first)
        else:
            low, high = self.pair
            first = low + (high - low) * self._chance_of_second_value
        return np.stack([first, 1 - first], -1)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A draw of p from its posterior, as `[B, 2]` with 1 - p."""
        if self.pair is None:
            first = rng.beta(self.prior[0] + self.for_first, self.prior[1] + self.against_first)
        else:
            first = np.where(rng.random(len(self.for_first)) < self._chance_of_second_value, self.pair[1], self.pair[0])
        return np.stack([first, 1 - first], -1)

    def update(self, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Count the pull as speaking for or against the first arm."""
        speaks_for_first = (rewards > 0.5) == (actions == 0)
        self.for_first += speaks_for_first
        self.against_first += ~speaks_for_first


def independent_beliefs(family: TaskFamily, num_tasks: int) -> BetaBeliefs | NormalBeliefs:
    """Beliefs that take the arms to be independent, also where they are not."""
    if family.structure == "gaussian_bandit":
        return NormalBeliefs(num_tasks, family.num_arms, family.prior_mean, family.prior_std, family.noise_std)
    if family.structure in ("bernoulli_bandit", "dependent_bandit"):
        return BetaBeliefs(num_tasks, family.num_arms, family.prior)
    raise ValueError(f"family must be a bandit, got {family.env_id} ({family.structure})")


def exact_beliefs(family: TaskFamily, num_tasks: int) -> ArmBeliefs:
    """Beliefs under the prior of the family's training tasks."""
    if family.structure == "dependent_bandit":
        return MirroredBeliefs(num_tasks, family.prior, family.pair)
    return independent_beliefs(family, num_tasks)


def check_bernoulli(family: TaskFamily) -> None:
    """Raise unless `family` is a bandit with Bernoulli rewards."""
    if family.structure not in ("bernoulli_bandit", "dependent_bandit"):
        raise ValueError(f"family must be a bandit with Bernoulli rewards, got {family.env_id} ({family.structure})")

"""Exact Bayes-optimal play of Bernoulli bandits by dynamic programming over beliefs.

With arms that are independent draws from one Beta prior, what is known of a bandit is how many successes and failures
each arm has shown, and which arm shows what does not matter: the state is the MULTISET of the arms' (s, f). That makes
10 arms and 10 pulls some ten thousand states instead of hundreds of millions.

Arms with equal (s, f) have one number, their code, and a state has a 64-bit key, the sum modulo 2**64 of a fixed random
number per code (Zobrist hashing), which does not depend on the order of arms and changes by one subtraction and one
addition per pull. Two states with the same key would be counted as one, so the number of keys is compared with the
number of states, which is known exactly: a table is right or not made at all.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from metarl.evaluation.arm_beliefs import MirroredBeliefs, check_bernoulli
from metarl.evaluation.bandit_players import BanditPlayer
from metarl_envs import TaskFamily

MAX_STATES = 5_000_000
"""Largest number of belief states that is worked through; two arms and 100 pulls have 2.3 million."""


class BeliefPolicy(NamedTuple):
    """What to pull in every state that can occur. Codes are `n (n + 1) / 2 + s` with `n = s + f`."""

    value: float  # expected sum of rewards of a whole trial
    numbers: np.ndarray  # [codes] uint64, what each code adds to the key
    keys: tuple[np.ndarray, ...]  # for every pull, the states' keys in ascending order [M]
    pulls: tuple[np.ndarray, ...]  # for every pull, the code of an arm that is best to pull [M]


def count_states(num_arms: int, num_pulls: int, limit: float = np.inf) -> float:
    """How many belief states precede the last pull; counting stops beyond `limit`.

    Multisets of at most `num_arms` touched arms with fewer than `num_pulls` pulls in all, where an arm that was pulled
    n times is in one of n + 1 states: `ways[t, m]` counts those of m arms and t pulls.
    """
    if num_pulls * (num_pulls + 1) / 2 > limit:  # states of one arm
        return num_pulls * (num_pulls + 1) / 2
    ways = np.zeros((num_pulls, min(num_arms, num_pulls) + 1))
    ways[0, 0] = 1
    for pulled in range(1, num_pulls):
        for _ in range(pulled + 1):  # each state that an arm with so many pulls can be in, any number of times
            for total in range(pulled, num_pulls, pulled):
                stop = min(total + pulled, num_pulls)
                ways[total:stop, 1:] += ways[total - pulled : stop - pulled, :-1]
        if ways.sum() > limit:
            break
    return float(ways.sum())


@lru_cache(maxsize=4)
def solve_beliefs(num_arms: int, num_pulls: int, prior: tuple[float, float] = (1.0, 1.0)) -> BeliefPolicy:
    """The Bayes-optimal policy for `num_pulls` pulls of `num_arms` arms whose means are draws from Beta(prior).

    Forwards, the states after each pull; backwards, the Bellman equation with m = (a + s) / (a + b + s + f):

        V_t(state) = max over arms of  m (1 + V_{t+1}(state with a success)) + (1 - m) V_{t+1}(state with a failure)

    Raises:
        ValueError: where the number of states is beyond `MAX_STATES`.
    """
    _check_feasible(num_arms, num_pulls)
    num_codes = num_pulls * (num_pulls + 1) // 2
    tested = np.repeat(np.arange(num_pulls), np.arange(1, num_pulls + 1))  # pulls of an arm, by code
    successes = np.arange(num_codes) - tested * (tested + 1) // 2
    means = (prior[0] + successes) / (prior[0] + prior[1] + tested)
    failed = np.arange(num_codes) + tested + 1  # the code after a failure; after a success it is one more
    numbers = np.random.default_rng(0).integers(2**64, size=num_codes + num_pulls + 1, dtype=np.uint64)
    numbers[0] = 0

    states = [np.zeros((1, min(num_arms, num_pulls)), np.int32)]  # arms beyond the number of pulls are never touched
    keys = [np.zeros(1, np.uint64)]
    for _ in range(num_pulls - 1):
        codes, key = states[-1], keys[-1][:, None]
        after = np.stack([key - numbers[codes] + numbers[failed[codes] + won] for won in (0, 1)])
        unique, first = np.unique(after, return_index=True)
        won, parent, arm = np.unravel_index(first, after.shape)
        successors = codes[parent]
        rows = np.arange(len(first))
        successors[rows, arm] = failed[successors[rows, arm]] + won
        states.append(successors)
        keys.append(unique)
    if sum(map(len, keys)) != count_states(num_arms, num_pulls):
        raise ArithmeticError(f"two belief states of {num_arms} arms and {num_pulls} pulls share a key")

    best_codes = []
    values = np.zeros(0)
    for pull in reversed(range(num_pulls)):
        codes, key = states.pop(), keys[pull][:, None]
        action_values = means[codes]
        if pull < num_pulls - 1:
            lost, won = (np.searchsorted(keys[pull + 1], key - numbers[codes] + numbers[failed[codes] + w]) for w in (0, 1))
            action_values = means[codes] * (1 + values[won]) + (1 - means[codes]) * values[lost]
        best = action_values.argmax(-1)[:, None]
        best_codes.append(np.take_along_axis(codes, best, 1)[:, 0])
        values = np.take_along_axis(action_values, best, 1)[:, 0]
    return BeliefPolicy(float(values[0]), numbers[:num_codes], tuple(keys), tuple(reversed(best_codes)))


def bayes_optimal_value(family: TaskFamily) -> float:
    """Expected sum of rewards of one trial under the Bayes-optimal policy, for tasks from the training distribution.

    Independent Bernoulli arms: `solve_beliefs`. Dependent two-armed bandits: either arm tells the same, so there is
    nothing to explore and the greedy policy is optimal; its value is the sum over pulls of the expected posterior mean
    of the better arm.

    Raises:
        ValueError: for other structures, and where the number of belief states is beyond `MAX_STATES`.
    """
    check_bernoulli(family)
    if family.structure == "bernoulli_bandit":
        return solve_beliefs(family.num_arms, family.num_pulls, family.prior).value
    value, chances = 0.0, np.ones(1)  # of how often the evidence spoke for the first arm
    for pull in range(family.num_pulls):
        beliefs = MirroredBeliefs(pull + 1, family.prior, family.pair)
        beliefs.for_first += np.arange(pull + 1)
        beliefs.against_first += pull - np.arange(pull + 1)
        means = beliefs.mean
        value += float(chances @ means.max(-1))
        chances = np.append(chances * means[:, 1], 0) + np.append(0, chances * means[:, 0])
    return value


class BayesOptimal(BanditPlayer):
    """Plays the optimum of `bayes_optimal_value`, planned for the family's `num_pulls`; greedy after that.

    Raises:
        ValueError: where the number of belief states is beyond `MAX_STATES`.
    """

    name = "Bayes-optimal"

    def __init__(self, family: TaskFamily):
        super().__init__(family)
        check_bernoulli(family)
        if family.structure == "bernoulli_bandit":
            _check_feasible(family.num_arms, family.num_pulls)

    def scores(self) -> np.ndarray:
        """1 for the arms to pull, else 0; posterior means where the greedy policy is optimal."""
        family = self.family
        if family.structure == "dependent_bandit" or self.pulls >= family.num_pulls:
            return self.beliefs.mean
        policy = solve_beliefs(family.num_arms, family.num_pulls, family.prior)
        tested = self.beliefs.successes + self.beliefs.failures
        codes = tested * (tested + 1) // 2 + self.beliefs.successes
        row = np.searchsorted(policy.keys[self.pulls], policy.numbers[codes].sum(-1))
        return (codes == policy.pulls[self.pulls][row, None]).astype(np.float64)


def _check_feasible(num_arms: int, num_pulls: int) -> None:
    if count_states(num_arms, num_pulls, MAX_STATES) > MAX_STATES:
        raise ValueError(
            f"num_arms and num_pulls must leave at most {MAX_STATES:,} belief states for exact dynamic programming, "
            f"got {num_arms} arms and {num_pulls} pulls"
        )

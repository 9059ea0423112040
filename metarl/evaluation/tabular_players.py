"""Classical players for unknown finite-horizon MDPs: PSRL, optimistic PSRL, UCRL2, BEB, epsilon-greedy, and the oracle.

At the start of every episode they plan by backward induction in a model made from what they have seen, and follow that
plan to the episode's end. Transitions have a Dirichlet prior per state and action, mean rewards a normal prior with
known noise: the distribution of the family's training tasks, whatever tasks are played.

Published scores (Duan et al. 2016, "RL²") depend on details that the papers leave open. The prior mean of rewards is
one: `prior_shift=-1` lowers it by one prior standard deviation, to the N(0, 1) that the public code of Osband & Van Roy
believes in by default while the tasks have N(1, 1). That explores less, and posterior sampling gains from it.

Shapes below: B tasks, S states, A actions, H steps per episode.
"""

import math

import numpy as np

from metarl.evaluation.arm_beliefs import NormalBeliefs
from metarl.trials import Observations, Transition
from metarl_envs import TaskFamily, TaskSet

_CHUNK = 256
"""Tasks planned together, so that their transitions stay in the processor's cache."""


def backward_induction(rewards: np.ndarray, transitions: np.ndarray, horizon: int) -> np.ndarray:
    """Optimal action values `[H, B, S, A]` of MDPs with rewards `[B, S, A]` and transitions `[B, S, A, S]`.

    Q_h(s, a) = r(s, a) + sum over s' of p(s' | s, a) max over a' of Q_{h+1}(s', a'), and Q_H = 0.
    """
    action_values = np.empty((horizon, *rewards.shape))
    flat = transitions.reshape(len(rewards), -1, transitions.shape[-1])  # [B, S * A, S]
    values = np.zeros((len(rewards), transitions.shape[-1], 1))
    for step in reversed(range(horizon)):
        action_values[step] = rewards + (flat @ values).reshape(rewards.shape)
        values = action_values[step].max(-1)[:, :, None]
    return action_values


def optimistic_expectation(transitions: np.ndarray, radius: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The largest expectation of `values [B, S]` over distributions near `transitions [B, S, A, S]`, as `[B, S, A]`.

    Near means an L1 distance of at most `radius [B, S, A]`. Half of that is moved to the best successor, taken from the
    worst ones first (Jaksch, Ortner & Auer 2010, "Near-optimal regret bounds for reinforcement learning", figure 2).
    """
    order = values.argsort(-1)
    ranked = np.take_along_axis(values, order, -1)
    chances = np.moveaxis(transitions, -1, 1)[np.arange(len(order))[:, None], order]  # [B, rank, S, A]
    expectation = np.broadcast_to(ranked[:, -1, None, None], radius.shape).astype(transitions.dtype)
    reached = -np.minimum(radius / 2, 1 - chances[:, -1])
    for rank in range(len(order[0]) - 1):  # the best value, less each gap times the chance to end up below it
        reached += chances[:, rank]
        expectation -= np.maximum(reached, 0) * (ranked[:, rank + 1] - ranked[:, rank])[:, None, None]
    return expectation


class TabularPlayer:
    """Plans at the start of every episode. Subclasses say how: `action_values` for a slice of the tasks.

    Args:
        family: the MDPs to play.
        prior_shift: added to the prior mean of rewards, in prior standard deviations.
    """

    name: str

    def __init__(self, family: TaskFamily, prior_shift: float = 0.0):
        self.family = family
        self.prior_shift = prior_shift

    def action_values(self, rows: slice) -> np.ndarray:
        """Values `[H, b, S, A]` of the actions in the tasks `rows`, of which the highest are taken."""
        raise NotImplementedError

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Go back to the prior."""
        family = self.family
        num_states, num_actions = family.num_states, family.num_actions
        mean, std = family.mean_prior
        self.rng = rng
        self.steps = 0
        self.counts = np.full((len(tasks), num_states, num_actions, num_states), family.concentration, np.float32)
        self._rewards = NormalBeliefs(
            len(tasks), num_states * num_actions, mean + self.prior_shift * std, std, family.reward_std
        )
        self.plan = np.zeros((family.num_steps, len(tasks), num_states), np.int64)

    def act(self, observations: Observations) -> np.ndarray:
        """Follow the plan `[B]`, which is made anew in every first step."""
        step = self.steps % self.family.num_steps
        rows = np.arange(len(observations))
        if step == 0:
            for start in range(0, len(rows), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                self.plan[:, chunk] = self.action_values(chunk).argmax(-1)
        return self.plan[step, rows, observations]

    def observe(self, transition: Transition) -> None:
        """Count the transition and its reward."""
        rows = np.arange(len(transition.rewards))
        states, actions = transition.observations, transition.actions
        self.counts[rows, states, actions, transition.next_observations] += 1
        self._rewards.update(states * self.family.num_actions + actions, transition.rewards)
        self.steps += 1

    # -- what is believed of the tasks in `rows` -----------------------------------------------------------------

    def visits(self, rows: slice) -> np.ndarray:
        """How often each action was taken in each state, `[b, S, A]`."""
        return self._rewards.pulls.reshape(self.counts.shape[:3])[rows]

    def expected_model(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean rewards `[b, S, A]` and transitions `[b, S, A, S]`."""
        counts = self.counts[rows]
        rewards = self._rewards.mean.reshape(self.counts.shape[:3])[rows]
        return rewards, counts / counts.sum(-1, keepdims=True)

    def sampled_model(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Rewards `[b, S, A]` and transitions `[b, S, A, S]` drawn from the posterior."""
        shape = self.counts.shape[:3]
        mean, width = (x.reshape(shape)[rows] for x in (self._rewards.mean, self._rewards.width))
        # a Dirichlet draw is one of normalised gammas; most counts are the prior's, and gammas of one shape are cheap
        concentration = self.family.concentration
        transitions = self.rng.standard_gamma(concentration, self.counts[rows].shape, dtype=np.float32)
        seen = self.counts[rows] > concentration
        transitions[seen] += self.rng.standard_gamma(self.counts[rows][seen] - concentration, dtype=np.float32)
        transitions /= np.maximum(transitions.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
        return mean + width * self.rng.standard_normal(mean.shape), transitions


class PSRL(TabularPlayer):
    """Posterior sampling: in every episode, plays the optimal policy of one MDP drawn from the posterior.

    Strens 2000, "A Bayesian framework for reinforcement learning"; Osband, Russo & Van Roy 2013, "(More) efficient
    reinforcement learning via posterior sampling". `prior_shift` is -1 by default, which gives the published scores; the
    true prior, 0, scores 3 % less in 10 episodes, 1 % less in 25 and the same from 50 on.
    """

    name = "PSRL"

    def __init__(self, family: TaskFamily, prior_shift: float = -1.0):
        super().__init__(family, prior_shift)

    def action_values(self, rows: slice) -> np.ndarray:
        """Optimal in a sampled model."""
        return backward_induction(*self.sampled_model(rows), self.family.num_steps)


class OPSRL(TabularPlayer):
    """Optimistic PSRL: for every action, the highest of its optimal values in several sampled MDPs.

    As in the public code of Osband & Van Roy 2017, "Why is posterior sampling better than optimism for reinforcement
    learning?"; compare Asmuth et al. 2009, "A Bayesian sampling approach to exploration" (BOSS).

    Args:
        family: the MDPs to play.
        num_samples: how many MDPs are drawn.
        prior_shift: as for `PSRL`.
    """

    name = "OPSRL"

    def __init__(self, family: TaskFamily, num_samples: int = 10, prior_shift: float = -1.0):
        super().__init__(family, prior_shift)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        self.num_samples = num_samples

    def action_values(self, rows: slice) -> np.ndarray:
        """The upper envelope of optimal values in sampled models."""
        best = backward_induction(*self.sampled_model(rows), self.family.num_steps)
        for _ in range(self.num_samples - 1):
            np.maximum(best, backward_induction(*self.sampled_model(rows), self.family.num_steps), out=best)
        return best


class UCRL2(TabularPlayer):
    """Optimism over confidence sets: the optimal policy of the most favourable MDP that is near the expected one.

    Jaksch, Ortner & Auer 2010, for a finite horizon: extended value iteration where, after n visits and t steps, mean
    rewards may be off by `c sqrt(4 L / max(1, n))` prior standard deviations and transitions by
    `c sqrt(4 S L / max(1, n))` in L1 distance, with `L = ln(2 S A (t + 1) / delta)`. The centre of the sets is the
    posterior mean. `c` scales the confidence sets, which are far too wide for short trials at c = 1.

    Args:
        family: the MDPs to play.
        scale: c. Tuning on training tasks gives 0.05; 0.2 gives the published scores.
        delta: the probability with which the sets may miss.
        prior_shift: as for every tabular player.
    """

    name = "UCRL2"

    def __init__(self, family: TaskFamily, scale: float = 0.05, delta: float = 0.05, prior_shift: float = 0.0):
        super().__init__(family, prior_shift)
        if scale < 0:
            raise ValueError(f"scale must be at least 0, got {scale}")
        if not 0 < delta < 1:
            raise ValueError(f"delta must be between 0 and 1, got {delta}")
        self.scale, self.delta = scale, delta

    def action_values(self, rows: slice) -> np.ndarray:
        """Optimal in the most favourable model."""
        rewards, transitions = self.expected_model(rows)
        num_states, num_actions, horizon = self.family.num_states, self.family.num_actions, self.family.num_steps
        log_term = math.log(2 * num_states * num_actions * (self.steps + 1) / self.delta)
        width = self.scale * np.sqrt(4 * log_term / np.maximum(self.visits(rows), 1))
        optimistic = rewards + width * self.family.mean_prior[1]
        radius = (width * math.sqrt(num_states)).astype(np.float32)
        action_values = np.empty((horizon, *rewards.shape))
        values = np.zeros((len(rewards), num_states), np.float32)
        transitions = np.moveaxis(np.ascontiguousarray(np.moveaxis(transitions, -1, 1)), 1, -1)  # successors lie together
        for step in reversed(range(horizon)):
            action_values[step] = optimistic + optimistic_expectation(transitions, radius, values)
            values = action_values[step].max(-1).astype(np.float32)
        return action_values


class BEB(TabularPlayer):
    """Bayesian exploration bonus: optimal in the expected MDP with `beta / (1 + n(s, a))` added to every reward.

    Kolter & Ng 2009, "Near-Bayesian exploration in polynomial time". n counts the Dirichlet prior too; the bonus is in
    prior standard deviations of the mean rewards.

    Args:
        family: the MDPs to play.
        bonus: beta. Tuning on training tasks gives 10; the published scores are those of 2 up to 25 episodes, of 5 beyond.
        prior_shift: as for every tabular player.
    """

    name = "BEB"

    def __init__(self, family: TaskFamily, bonus: float = 10.0, prior_shift: float = 0.0):
        super().__init__(family, prior_shift)
        if bonus < 0:
            raise ValueError(f"bonus must be at least 0, got {bonus}")
        self.bonus = bonus

    def action_values(self, rows: slice) -> np.ndarray:
        """Optimal in the expected model with the bonus."""
        rewards, transitions = self.expected_model(rows)
        bonus = self.bonus * self.family.mean_prior[1] / (1 + self.counts[rows].sum(-1))
        return backward_induction(rewards + bonus, transitions, self.family.num_steps)


class EpsilonGreedyPlanner(TabularPlayer):
    """Optimal in the expected MDP, except for a random action with probability epsilon in every step.

    Args:
        family: the MDPs to play.
        epsilon: tuning on training tasks gives 0; 0.02 scores the same from 50 episodes on.
        prior_shift: as for every tabular player.
    """

    name = "epsilon-greedy"

    def __init__(self, family: TaskFamily, epsilon: float = 0.0, prior_shift: float = 0.0):
        super().__init__(family, prior_shift)
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be between 0 and 1, got {epsilon}")
        self.epsilon = epsilon

    def action_values(self, rows: slice) -> np.ndarray:
        """Optimal in the expected model."""
        return backward_induction(*self.expected_model(rows), self.family.num_steps)

    def act(self, observations: Observations) -> np.ndarray:
        """Follow the plan or explore, `[B]`."""
        planned = super().act(observations)
        explore = self.rng.random(len(planned)) < self.epsilon
        return np.where(explore, self.rng.integers(self.family.num_actions, size=len(planned)), planned)


class KnownMDP(TabularPlayer):
    """The oracle: reads the task and plays its optimal policy."""

    name = "known MDP"

    def start_trials(self, tasks: TaskSet, rng: np.random.Generator) -> None:
        """Read the tasks' parameters."""
        super().start_trials(tasks, rng)
        self._params = tasks.params

    def action_values(self, rows: slice) -> np.ndarray:
        """Optimal in the true model."""
        return backward_induction(self._params["means"][rows], self._params["transitions"][rows], self.family.num_steps)

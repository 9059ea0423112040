"""Gradients through adaptation, on MDPs small enough to weigh every trajectory by its exact probability.

Nothing is sampled here. The reference is the expected return after adaptation as a function of the starting
point, by its own recursion over the distribution of states, and its finite differences.
"""

import itertools

import gymnasium as gym
import pytest
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call

from metarl.algorithms.meta_gradient import Settings, TaskBatch, adapted_params, inner_loss, make_batch, meta_loss
from metarl.batched import for_tasks
from metarl.policies import GradientPolicy
from metarl.trials import Trials

STATES, ACTIONS, RATE = 3, 2, 0.75  # a rate that float32 holds exactly
TASKS = 2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Chain:
    """A random MDP of horizon `T`, and everything about a policy in it, exactly."""

    def __init__(self, horizon, seed):
        generator = torch.Generator().manual_seed(seed)
        self.horizon = horizon
        self.start = torch.rand(STATES, generator=generator, dtype=torch.float64)
        self.start /= self.start.sum()
        self.moves = torch.rand(STATES, ACTIONS, STATES, generator=generator, dtype=torch.float64) ** 3
        self.moves /= self.moves.sum(-1, keepdim=True)
        self.rewards = torch.randn(STATES, ACTIONS, generator=generator, dtype=torch.float64)

    def expected_return(self, pi):
        """From action probabilities `[S, A]`."""
        occupancy, total = self.start, 0.0
        for _ in range(self.horizon):
            total = total + (occupancy[:, None] * pi * self.rewards).sum()
            occupancy = torch.einsum("s,sa,san->n", occupancy, pi, self.moves)
        return total

    def low_variance_curvature(self, pi, old):
        """What the likelihood-ratio surrogate is in expectation: states and values of the OLD policy (ProMP, section 4)."""
        values = [torch.zeros(STATES, dtype=torch.float64)]
        for _ in range(self.horizon):
            q = self.rewards + torch.einsum("san,n->sa", self.moves, values[0])
            values.insert(0, (old * q).sum(-1))
        occupancy, total = self.start, 0.0
        for t in range(self.horizon):
            q = self.rewards + torch.einsum("san,n->sa", self.moves, values[t + 1])
            total = total + (occupancy[:, None] * pi * q).sum()
            occupancy = torch.einsum("s,sa,san->n", occupancy, old, self.moves)
        return total

    def trajectories(self):
        """All of them: states and actions `[T, K]`, and the part of their probability that is the MDP's `[K]`."""
        steps = itertools.product(itertools.product(range(STATES), range(ACTIONS)), repeat=self.horizon)
        paths = torch.tensor(list(steps)).permute(1, 2, 0)
        states, actions = paths[:, 0], paths[:, 1]
        chance = self.start[states[0]]
        for t in range(self.horizon - 1):
            chance = chance * self.moves[states[t], actions[t], states[t + 1]]
        return states, actions, chance


def make_policy(hidden=(), **options):
    space, actions = gym.spaces.Discrete(STATES), gym.spaces.Discrete(ACTIONS)
    policy = GradientPolicy(space, actions, hidden=hidden, inner_rate=RATE, **options).double()
    with torch.no_grad():
        for value in policy.initial_params().values():
            value.copy_(torch.randn(value.shape, dtype=torch.float64) * 0.6)
    return policy


def probabilities(policy, params):
    """Action probabilities `[S, A]` with the parameters of one task, by the module itself."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.policy_trunk, self.policy_head = policy.policy_trunk, policy.policy_head

        def forward(self, x):
            return self.policy_head(self.policy_trunk(x)).exp()

    return functional_call(Net(), params, (torch.eye(STATES, dtype=torch.float64),))


def exact_batch(policy, chains, params):
    """All trajectories of each chain, weighted by their probability under `params [N, ...]`, with returns to go."""
    parts = []
    for task, chain in enumerate(chains):
        states, actions, chance = chain.trajectories()
        pi = probabilities(policy, {name: value[task].detach() for name, value in params.items()})
        log_probs = pi.log()[states, actions]
        weights = (chance * log_probs.sum(0).exp()).expand(chain.horizon, -1)
        returns = chain.rewards[states, actions].flip(0).cumsum(0).flip(0)
        parts.append((torch.eye(STATES, dtype=torch.float64)[states], actions, log_probs, returns, weights))
    inputs, actions, log_probs, returns, weights = (torch.stack(part).flatten(1, 2) for part in zip(*parts, strict=True))
    slots = len(chance)
    zeros = torch.zeros_like(returns)
    return TaskBatch(inputs, actions, log_probs, returns, zeros, weights, zeros.long(), slots)


def batches_of(policy, chains, settings, steps):
    """One batch per inner step and one after, each of the policy that the steps before led to."""
    batches = []
    for _ in range(steps + 1):
        params = adapted_params(policy, batches, settings)[-1] if batches else None
        if params is None:
            params = for_tasks({n: p.detach() for n, p in policy.initial_params().items()}, len(chains))
        batches.append(exact_batch(policy, chains, params))
    return batches


def meta_gradient(policy, chains, settings, steps):
    batches = batches_of(policy, chains, settings, steps)
    losses, _ = meta_loss(policy, batches, None, settings)
    gradient = torch.autograd.grad(-losses.sum(), policy.initial_params().values())
    return torch.cat([part.flatten() for part in gradient])


def flat(policy):
    return torch.cat([value.detach().flatten() for value in policy.initial_params().values()])


def unflat(policy, vector):
    params, start = {}, 0
    for name, value in policy.initial_params().items():
        params[name] = vector[start : start + value.numel()].view_as(value)
        start += value.numel()
    return params


def return_of(policy, chain, vector):
    return chain.expected_return(probabilities(policy, unflat(policy, vector)))


def gradient_of(policy, chain, vector):
    vector = vector.detach().requires_grad_()
    return torch.autograd.grad(return_of(policy, chain, vector), vector)[0]


def after_adaptation(policy, chains, vector, steps):
    """Expected return after `steps` exact gradient steps, summed over tasks."""
    total = 0.0
    for chain in chains:
        adapted = vector
        for _ in range(steps):
            adapted = adapted + RATE * gradient_of(policy, chain, adapted)
        total += float(return_of(policy, chain, adapted))
    return total


def finite_differences(function, vector, epsilon=1e-5):
    rows = torch.eye(len(vector), dtype=torch.float64) * epsilon
    return torch.tensor(
        [(function(vector + row) - function(vector - row)) / (2 * epsilon) for row in rows], dtype=torch.float64
    )


def chains(horizon):
    return [Chain(horizon, seed) for seed in range(TASKS)]


@pytest.mark.parametrize("hidden", [(), (3,)], ids=["tabular", "tanh"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_dice_is_the_exact_meta_gradient_at_any_horizon(horizon, steps, hidden):
    policy, problems = make_policy(hidden), chains(horizon)
    exact = finite_differences(lambda v: after_adaptation(policy, problems, v, steps), flat(policy))
    ours = meta_gradient(policy, problems, Settings(inner_objective="dice", baseline="none"), steps)
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_likelihood_ratio_is_exact_at_horizon_one(steps):
    policy, problems = make_policy((3,)), chains(1)
    exact = finite_differences(lambda v: after_adaptation(policy, problems, v, steps), flat(policy))
    ours = meta_gradient(policy, problems, Settings(baseline="none"), steps)
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-8)


def through_curvature(policy, problems, steps, curvature):
    """`(I + rate H_1) ... (I + rate H_k) grad J` with curvature matrices `H` at each stage's parameters."""
    total = 0.0
    for chain in problems:
        stage, factors = flat(policy), []
        for _ in range(steps):
            factors.append(torch.eye(len(stage), dtype=torch.float64) + RATE * curvature(chain, stage))
            stage = stage + RATE * gradient_of(policy, chain, stage)
        gradient = gradient_of(policy, chain, stage)
        for factor in reversed(factors):
            gradient = factor.T @ gradient
        total = total + gradient
    return total


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("horizon", [2, 3])
def test_the_likelihood_ratio_drops_the_terms_across_time(horizon, steps):
    policy, problems = make_policy((3,)), chains(horizon)

    def curvature(chain, stage):
        old = probabilities(policy, unflat(policy, stage)).detach()
        return hessian(lambda v: chain.low_variance_curvature(probabilities(policy, unflat(policy, v)), old), stage)

    ours = meta_gradient(policy, problems, Settings(baseline="none"), steps)
    torch.testing.assert_close(ours, through_curvature(policy, problems, steps, curvature), rtol=1e-8, atol=1e-10)
    exact = finite_differences(lambda v: after_adaptation(policy, problems, v, steps), flat(policy))
    assert (ours - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("horizon", [1, 3])
def test_plain_log_probabilities_give_a_wrong_meta_gradient(horizon, steps):
    policy, problems = make_policy((3,)), chains(horizon)

    def curvature(chain, stage):  # sum over trajectories of P(trajectory) d2 log pi(a_t|s_t) R_t, P held fixed
        states, actions, chance = chain.trajectories()
        returns = chain.rewards[states, actions].flip(0).cumsum(0).flip(0)
        old = probabilities(policy, unflat(policy, stage)).detach()[states, actions]

        def surrogate(v):
            log_probs = probabilities(policy, unflat(policy, v)).log()[states, actions]
            return (chance * old.prod(0) * log_probs * returns).sum()

        return hessian(surrogate, stage)

    ours = meta_gradient(policy, problems, Settings(inner_objective="log_prob", baseline="none"), steps)
    torch.testing.assert_close(ours, through_curvature(policy, problems, steps, curvature), rtol=1e-8, atol=1e-10)
    exact = finite_differences(lambda v: after_adaptation(policy, problems, v, steps), flat(policy))
    assert (ours - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("objective", ["likelihood_ratio", "dice", "log_prob"])
def test_the_first_order_gradient_is_that_after_adaptation(objective):
    policy, problems = make_policy((3,)), chains(3)
    nothing = lambda chain, stage: torch.zeros(len(stage), len(stage), dtype=torch.float64)  # noqa: E731
    settings = Settings(inner_objective=objective, baseline="none", second_order=False)
    ours = meta_gradient(policy, problems, settings, 2)
    torch.testing.assert_close(ours, through_curvature(policy, problems, 2, nothing), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("objective", ["likelihood_ratio", "dice", "log_prob"])
def test_the_inner_step_follows_the_exact_policy_gradient(objective):
    policy, problems = make_policy((3,)), chains(3)
    settings = Settings(inner_objective=objective, baseline="none")
    batch = exact_batch(policy, problems, for_tasks(policy.initial_params(), TASKS))
    stages = adapted_params(policy, [batch], settings)
    for task, chain in enumerate(problems):
        ours = torch.cat([value[task].flatten() for value in stages[1].values()])
        # not divided by the number of tasks
        torch.testing.assert_close(ours, flat(policy) + RATE * gradient_of(policy, chain, flat(policy)))


def test_with_every_step_the_loss_is_the_mean_over_the_steps():
    policy, problems = make_policy((3,)), chains(2)
    settings = Settings(inner_objective="dice", baseline="none")
    one, two = (
        finite_differences(lambda v, k=steps: after_adaptation(policy, problems, v, k), flat(policy)) for steps in (1, 2)
    )
    ours = meta_gradient(policy, problems, settings._replace(every_step=True), 2)
    torch.testing.assert_close(ours, (one + two) / 2, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("functional", [False, True])
def test_learned_rates_get_the_exact_gradient(functional):
    policy, problems = make_policy(update_rule="learned_sgd"), chains(2)
    settings = Settings(inner_objective="dice", baseline="none")
    losses, _ = meta_loss(policy, batches_of(policy, problems, settings, 1), None, settings, functional=functional)
    ours = torch.autograd.grad(-losses.sum(), policy.rule.rate)[0]
    exact = 0.0
    for chain in problems:
        gradient = gradient_of(policy, chain, flat(policy))
        exact += gradient @ gradient_of(policy, chain, flat(policy) + RATE * gradient)
    torch.testing.assert_close(ours, exact)


def test_kl_penalty_is_the_exact_divergence_from_the_policies_that_acted():
    policy, problems = make_policy((3,)), chains(2)
    settings = Settings(baseline="none", kl_coef=1.0)
    batches = batches_of(policy, problems, Settings(baseline="none"), 1)
    initial = policy.initial_params()
    old = [policy.action_params(for_tasks(initial, TASKS), batches[0].inputs).detach()]
    before = probabilities(policy, {n: p.detach() for n, p in initial.items()})
    with torch.no_grad():
        for value in initial.values():
            value += 0.3
        initial["policy_head.linear.bias"] += torch.tensor([0.5, -0.2])
    with_penalty, metrics = meta_loss(policy, batches, old, settings)
    without, _ = meta_loss(policy, batches, None, settings._replace(kl_coef=0.0))
    now = probabilities(policy, policy.initial_params())
    divergence = (before * (before.log() - now.log())).sum(-1)
    for task, chain in enumerate(problems):
        expected = chain.start @ divergence + torch.einsum("s,sa,san->n", chain.start, before, chain.moves) @ divergence
        torch.testing.assert_close((with_penalty - without)[task], expected)
        torch.testing.assert_close(metrics["inner_kl"][task], expected.detach())


# -- batches -----------------------------------------------------------------------------------------------------


def record(rewards, terminated, truncated=None, values=None, bootstrap=None):
    """Trials of `[T, B]` arrays; observations are numbers, one-hot."""
    rewards = torch.tensor(rewards)
    terminated = torch.tensor(terminated, dtype=torch.bool)
    truncated = torch.zeros_like(terminated) if truncated is None else torch.tensor(truncated, dtype=torch.bool)
    done = terminated | truncated
    start = torch.ones_like(done)
    start[1:] = done[:-1]
    end = done.clone()
    end[-1] = True
    zeros = torch.zeros_like(rewards)
    return Trials(
        observations=(torch.arange(rewards.numel()) % STATES).view_as(done),
        actions=torch.zeros_like(done, dtype=torch.int64),
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        episode_start=start,
        trial_start=start,
        trial_end=end,
        bootstrap=zeros if bootstrap is None else torch.tensor(bootstrap),
        log_probs=zeros,
        values=zeros if values is None else torch.tensor(values),
    )


def plain_policy(**options):
    return GradientPolicy(gym.spaces.Discrete(STATES), gym.spaces.Discrete(ACTIONS), hidden=(), **options)


def test_advantages_of_a_task_have_mean_zero_and_deviation_one():
    rewards = torch.randn(5, 6).mul(7).add(3).tolist()
    trials = record(rewards, [[False] * 6] * 4 + [[True] * 6])
    settings = Settings(baseline="none", gamma=0.9)
    batch = make_batch(plain_policy(), trials, 2, torch.ones(5, 6, dtype=torch.bool), settings)
    assert batch.advantages.shape == (2, 15)
    torch.testing.assert_close(batch.advantages.mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.advantages.std(1, correction=0), torch.ones(2))


def test_returns_stop_at_episode_ends_and_rows_are_grouped_by_task():
    # two tasks of two slots; the first slot plays episodes of 2 and 1 steps
    rewards = [[1.0, 10.0, 5.0, 7.0], [2.0, 20.0, 5.0, 7.0], [4.0, 30.0, 5.0, 7.0]]
    terminated = [[False] * 4, [True, False, False, False], [True] * 4]
    settings = Settings(baseline="none", gamma=0.5, normalise_advantages=False)
    batch = make_batch(plain_policy(), record(rewards, terminated), 2, torch.ones(3, 4, dtype=torch.bool), settings)
    timed = batch.timed(batch.advantages)
    torch.testing.assert_close(timed[0], torch.tensor([[2.0, 2.0, 4.0], [27.5, 35.0, 30.0]]))
    torch.testing.assert_close(timed[1], torch.tensor([[8.75, 7.5, 5.0], [12.25, 10.5, 7.0]]))
    torch.testing.assert_close(batch.timed(batch.episode)[0], torch.tensor([[1, 1, 2], [1, 1, 1]]))
    assert batch.slots == 2
    torch.testing.assert_close(batch.weights.sum(1), torch.ones(2))


def test_steps_that_are_not_valid_change_nothing():
    rewards, ends = torch.randn(6, 2), torch.zeros(6, 2, dtype=torch.bool)
    ends[3] = ends[5] = True
    valid = torch.arange(6)[:, None].expand(6, 2) <= 3
    settings = Settings()
    policy = plain_policy()
    params = for_tasks(policy.initial_params(), 1)
    whole = make_batch(policy, record(rewards.tolist(), ends.tolist()), 1, valid, settings)
    other = rewards.clone()
    other[4:] = 1e3
    changed = make_batch(policy, record(other.tolist(), ends.tolist()), 1, valid, settings)
    assert torch.equal(inner_loss(policy, params, whole, settings), inner_loss(policy, params, changed, settings))
    short = make_batch(policy, record(rewards[:4].tolist(), ends[:4].tolist()), 1, valid[:4], settings)
    torch.testing.assert_close(
        inner_loss(policy, params, whole, settings), inner_loss(policy, params, short, settings), atol=1e-6, rtol=0
    )


def test_a_value_network_bootstraps_cut_episodes_and_not_ended_ones():
    rewards, values = [[1.0, 1.0], [1.0, 1.0]], [[0.5, 0.5], [2.0, 2.0]]
    trials = record(
        rewards, [[False, False], [True, False]], [[False, False], [False, True]], values, [[0.0, 0.0], [0.0, 8.0]]
    )
    settings = Settings(baseline="network", gamma=0.5, gae_lambda=1.0, normalise_advantages=False)
    policy = plain_policy(with_value=True)
    batch = make_batch(policy, trials, 1, torch.ones(2, 2, dtype=torch.bool), settings)
    torch.testing.assert_close(batch.timed(batch.targets)[0], torch.tensor([[1.5, 1.0], [3.5, 5.0]]))
    torch.testing.assert_close(batch.timed(batch.advantages)[0], torch.tensor([[1.0, -1.0], [3.0, 3.0]]))

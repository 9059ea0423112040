"""Agents trained by PPO side by side, against PPO written step by step with `torch.optim`, and against themselves alone."""

import dataclasses
import math

import numpy as np
import pytest
import small_models  # noqa: F401 registers Drift
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from metarl.algorithms import training_problem
from metarl.algorithms.estimators import PES, STREAMS
from metarl.algorithms.training_problem import PPOProblem, clip_norms
from metarl.problems import restart, unroll
from metarl.seeding import spawn
from metarl.trials import Trials
from metarl.updates import RULES, SGD
from metarl.updates.hand_made import Adam
from metarl_envs.family import make_family

FAMILIES = {
    "bandit": ("metarl/BernoulliBandit-v0", dict(num_arms=3), dict(slots=6, num_steps=3)),
    "grid": ("metarl/GridNavi-v0", dict(num_steps=6), dict(slots=3, num_steps=12)),
    "poles": ("metarl/CartPoleContext-v0", dict(num_steps=25), dict(slots=3, num_steps=40)),  # most fall before 25
    "drift": ("metarl/Context-v0", dict(env="test/Drift-v0", ranges={"drift": (-1, 1)}), dict(slots=4, num_steps=8)),
}
SMALL = dict(hidden=(6,), horizon=3, epochs=2, minibatches=3)


def make(name, **options):
    env_id, env_kwargs, sizes = FAMILIES[name]
    return PPOProblem(make_family(env_id, **env_kwargs), **{**SMALL, **sizes, **options})


def begin(problem, num=4, rate=1e-2, copies=1, seed=0):
    # with a smaller eps, Adam makes steps out of the rounding of gradients that are zero
    rule = RULES["adam"](problem.template(), rate, eps=1e-5)
    rng = np.random.default_rng(seed)
    return problem.begin(rule, problem.sample(num, "train", rng), rng, copies), rule, rng


@pytest.fixture
def recorded(monkeypatch):
    """The trials and minibatch orders of everything played in a test."""
    trials, orders = [], []
    collect, randperm = training_problem.collect_trials, torch.randperm
    monkeypatch.setattr(training_problem, "collect_trials", lambda *a, **k: trials.append(collect(*a, **k)) or trials[-1])
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: orders.append(randperm(*a, **k)) or orders[-1])
    return trials, orders


# -- one iteration, written step by step -----------------------------------------------------------------------------


class Twin(nn.Module):
    """An actor and a critic in plain PyTorch, in double precision, with the parameters of one agent."""

    def __init__(self, problem, params):
        super().__init__()
        actions = problem.family.action_space
        self.discrete = hasattr(actions, "n")
        outputs = int(actions.n) if self.discrete else actions.shape[0]
        inputs = params["policy_trunk.0.weight"].shape[-1]
        self.actor = nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs))
        self.critic = nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 1))
        if not self.discrete:
            self.log_std = nn.Parameter(torch.zeros(outputs))
        with torch.no_grad():
            for ours, theirs in self.pairs(params):
                ours.copy_(theirs)
        self.double()

    def pairs(self, params):
        names = ["policy_trunk.0", "policy_head.linear", "value_trunk.0", "value_head"]
        layers = [self.actor[0], self.actor[2], self.critic[0], self.critic[2]]
        for name, layer in zip(names, layers, strict=True):
            yield layer.weight, params[f"{name}.weight"][0]
            yield layer.bias, params[f"{name}.bias"][0]
        if not self.discrete:
            yield self.log_std, params["policy_head.log_std"][0]

    def distribution(self, x):
        out = self.actor(x)
        if self.discrete:
            return torch.distributions.Categorical(logits=out)
        return torch.distributions.Independent(torch.distributions.Normal(out, self.log_std.exp()), 1)


def inputs_of(problem, trials):
    """What networks read, `[T, K, F]`, without `GradientPolicy`."""
    observations = trials.observations
    if isinstance(observations, dict):  # Drift's "x" and one-hot "side", in the order of the space's names
        space = problem.family.observation_space
        parts = [o.double() if o.ndim == 3 else nn.functional.one_hot(o, 2).double() for o in map(observations.get, space)]
        return torch.cat(parts, -1)
    return torch.ones(*observations.shape, 1).double() if observations.ndim == 2 else observations.double()


def advantages_by_hand(problem, trials, total, batches):
    """Advantages and value targets of one agent, `[T K]` each, slot by slot and step by step."""
    T, K = trials.rewards.shape
    rewards, values, bootstrap = (x.double().numpy() for x in (trials.rewards, trials.values, trials.bootstrap))
    done = (trials.terminated | trials.truncated).numpy()
    gamma, squares = problem.gamma, []
    for k in range(K):
        to_go = 0.0
        for t in reversed(range(T)):
            to_go = rewards[t, k] + (0.0 if done[t, k] else gamma * to_go)
            squares.append(to_go**2)
    total, batches = total + np.mean(squares), batches + 1
    rewards = rewards / math.sqrt(total / batches)
    advantages = np.zeros((T, K))
    for k in range(K):
        carried = 0.0
        for t in reversed(range(T)):
            stops = done[t, k] or t == T - 1
            following = bootstrap[t, k] if stops else values[t + 1, k]
            carried = (
                rewards[t, k] + gamma * following - values[t, k] + (0 if stops else gamma * problem.gae_lambda * carried)
            )
            advantages[t, k] = carried
    targets = advantages + values
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    return torch.as_tensor(advantages.ravel()), torch.as_tensor(targets.ravel()), total, batches


def iterate_by_hand(problem, twin, optimizer, trials, orders, total, batches):
    """One iteration of Stable-Baselines3's PPO on what was collected."""
    x = inputs_of(problem, trials).flatten(0, 1)
    actions = trials.actions.flatten(0, 1)
    actions = actions if twin.discrete else actions.double()
    advantages, targets, total, batches = advantages_by_hand(problem, trials, total, batches)
    old = twin.distribution(x).log_prob(actions).detach()
    torch.testing.assert_close(trials.log_probs.flatten().double(), old, atol=1e-5, rtol=0)
    torch.testing.assert_close(trials.values.flatten().double(), twin.critic(x)[:, 0].detach(), atol=1e-5, rtol=0)
    for order in orders:
        for rows in np.array_split(order.numpy(), problem.minibatches):
            distribution = twin.distribution(x[rows])
            ratio = torch.exp(distribution.log_prob(actions[rows]) - old[rows])
            clipped = torch.clamp(ratio, 1 - problem.clip_range, 1 + problem.clip_range)
            policy_loss = -torch.min(advantages[rows] * ratio, advantages[rows] * clipped).mean()
            value_loss = nn.functional.mse_loss(twin.critic(x[rows])[:, 0], targets[rows])
            vf_coef = problem.value_coef / 2
            loss = policy_loss + vf_coef * value_loss - problem.entropy_coef * distribution.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), problem.max_grad_norm)
            optimizer.step()
    return total, batches


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_one_agent_trains_as_by_hand(name, algorithm, recorded):
    options = dict(entropy_coef=0.02, max_grad_norm=0.3, clip_range=0.05)
    if algorithm == "a2c":
        options |= dict(epochs=1, minibatches=1)
    problem = make(name, **options)
    assert problem.name.startswith(f"{algorithm} of metarl/")
    run, rule, rng = begin(problem, num=1, rate=3e-3)
    twin = Twin(problem, run.params)
    optimizer = torch.optim.Adam(twin.parameters(), lr=3e-3, eps=1e-5)
    trials, orders = recorded
    totals = 0.0, 0
    for iteration in range(3):
        start = tree_map(torch.clone, run.params)
        run, _ = problem.advance(run, rule, rng)
        assert len(orders) == problem.epochs * (iteration + 1)
        totals = iterate_by_hand(problem, twin, optimizer, trials[-1], orders[-problem.epochs :], *totals)
        for ours, theirs in twin.pairs(run.params):
            torch.testing.assert_close(ours.float(), theirs, atol=1e-6, rtol=0)
        assert max((run.params[n] - start[n]).abs().max() for n in start) > 2e-3  # they have moved much further
    assert run.age.tolist() == [3]


def test_an_a2c_step_follows_the_policy_gradient(recorded):
    problem = make("poles", epochs=1, minibatches=1, max_grad_norm=1e9)
    run, _, rng = begin(problem, num=2)
    twins = [Twin(problem, {n: v[i : i + 1] for n, v in run.params.items()}) for i in range(2)]
    after, _ = problem.advance(run, SGD(problem.template(), 0.5), rng)
    (trials,), _ = recorded
    for i, twin in enumerate(twins):
        own = slots_of(trials, slice(3 * i, 3 * i + 3))
        x, actions = inputs_of(problem, own).flatten(0, 1), own.actions.flatten()
        advantages, targets, *_ = advantages_by_hand(problem, own, 0.0, 0)
        loss = -(advantages * twin.distribution(x).log_prob(actions)).mean()
        (loss + (twin.critic(x)[:, 0] - targets).square().mean() / 2).backward()
        for ours, theirs in twin.pairs({n: v[i : i + 1] for n, v in after.params.items()}):
            torch.testing.assert_close((ours - 0.5 * ours.grad).float(), theirs, atol=1e-6, rtol=0)


def slots_of(trials, columns):
    cut = lambda x: None if x is None else tree_map(lambda leaf: leaf[:, columns], x)  # noqa: E731
    return Trials(**{f.name: cut(getattr(trials, f.name)) for f in dataclasses.fields(Trials)})


# -- side by side ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_each_agent_trains_as_if_it_were_alone(name, recorded, monkeypatch):
    problem = make(name)
    start, rule, _ = begin(problem, num=3)
    first, before_first = problem.advance(start, rule, np.random.default_rng(5))
    both, before = problem.advance(first, rule, np.random.default_rng(6))
    played = recorded[0][:]
    for i in range(3):
        own = tree_map(lambda leaf, i=i: leaf[i : i + 1], start)
        for step, seed, measured in ((0, 5, before_first), (1, 6, before)):

            def replay(*args, i=i, step=step, **kwargs):
                kwargs["rng"].integers(2**31)  # as collecting does
                return slots_of(played[step], slice(i * problem.slots, (i + 1) * problem.slots))

            monkeypatch.setattr(training_problem, "collect_trials", replay)
            own, alone = problem.advance(own, rule, np.random.default_rng(seed))
            torch.testing.assert_close(alone[0], measured[i], atol=1e-6, rtol=1e-6)
        expected = tree_map(lambda leaf, i=i: leaf[i : i + 1], both)
        torch.testing.assert_close(own, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_started_has_a_row_for_every_agent(name):
    problem = make(name)
    run, rule, rng = begin(problem, num=4)
    for state in (run, problem.advance(run, rule, rng)[0]):
        assert {len(leaf) for leaf in tree_leaves(state)} == {4}
    run, before = problem.advance(run, rule, rng)
    assert before.shape == (4,)
    assert problem.measure(run, rng).shape == (4,)
    # rows can be put back to the start
    again = restart(run, torch.tensor([True, False, False, True]), begin(problem, num=4, seed=1)[0])
    assert again.age.tolist() == [0, 1, 1, 0]
    assert again.state.returns[:, 1].tolist() == [0, 1, 1, 0]
    problem.advance(again, rule, rng)


def test_agents_are_drawn_one_by_one_and_reproducibly():
    problem = make("grid")
    instances = problem.sample(5, "test", np.random.default_rng(0))
    assert all((x + 2 * y) % 5 == 4 for x, y in instances["goal"].tolist())  # the held-out goals
    params = problem.start(instances, np.random.default_rng(1))
    for name, value in params.items():
        if "head" not in name or name.endswith("weight"):
            assert all(not torch.equal(value[0], value[i]) for i in range(1, 5)), name
    torch.testing.assert_close(params, problem.start(instances, np.random.default_rng(1)), atol=0, rtol=0)
    global_state = torch.get_rng_state()
    make("drift").template()
    assert torch.equal(torch.get_rng_state(), global_state)  # others' random numbers are left alone
    runs = [unroll(problem, RULES["adam"](problem.template(), 1e-2), instances, 3, np.random.default_rng(2)) for _ in "ab"]
    assert torch.equal(*runs)
    assert runs[0].shape == (4, 5)
    assert runs[0][1:].std() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_live_through_the_same_noise(name, recorded):
    problem = make(name)
    run, rule, rng = begin(problem, num=3, copies=2)
    for _ in range(3):  # the same rule: the same life
        run, before = problem.advance(run, rule, rng, copies=2)
        torch.testing.assert_close(before[:3], before[3:], atol=1e-6, rtol=1e-6)
    for leaf in tree_leaves(run):
        torch.testing.assert_close(leaf[:3], leaf[3:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*problem.measure(run, rng, copies=2).chunk(2), atol=1e-6, rtol=1e-6)
    # another rate: the same noise, so that up to the first update nothing differs, and all of it later
    run, rule, rng = begin(problem, num=3, copies=2)
    rule.rate = torch.tensor([[1e-3]] * 3 + [[0.3]] * 3)
    recorded[0].clear()
    for _ in range(4):
        run, _ = problem.advance(run, rule, rng, copies=2)
    first, *_, last = recorded[0]
    assert not torch.equal(first.actions[:, 0], first.actions[:, 1])  # slots of one agent have noise of their own
    for field in ("actions", "rewards", "values"):
        torch.testing.assert_close(*getattr(first, field).chunk(2, 1), atol=1e-6, rtol=0)
    for field in ("actions", "values"):
        assert (torch.sub(*getattr(last, field).chunk(2, 1)).abs() > 1e-2).any()


def test_noise_without_copies_is_each_agents_own(recorded):
    problem = make("poles")
    run, _, rng = begin(problem, num=1, copies=2)
    problem.measure(run, rng, copies=1)
    left, right = recorded[0][0].observations.chunk(2, 1)
    assert not (left[0] == right[0]).any()


# -- the parts -------------------------------------------------------------------------------------------------------


def test_measures_are_returns_of_the_environment():
    problem = make("bandit", slots=500)
    run, _, rng = begin(problem, num=4)
    instances = {"means": torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]], dtype=torch.float64)}
    measured = problem.measure(run._replace(instances=instances), rng)
    assert measured[0] == -1
    assert measured[[1, 3]].tolist() == [0, 0]
    assert abs(measured[2] + 0.5) < 4 * 0.5 / math.sqrt(1500)
    pole = make("poles", slots=200)  # a pole falls under random pushes after some 22 steps, of which 25 are seen
    run, _, rng = begin(pole, num=2)
    assert (pole.measure(run, rng) > -25).all()
    assert (pole.measure(run, rng) < -12).all()


def test_gradient_norms_are_bounded_one_by_one():
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(3, *shape, generator=generator) for name, shape in {"w": (4, 2), "b": (2,), "c": ()}.items()}
    grads = {name: grad * torch.tensor([0.01, 1.0, 100.0]).view(3, *[1] * (grad.ndim - 1)) for name, grad in grads.items()}
    clipped = clip_norms(grads, 0.5)
    for i in range(3):
        theirs = [nn.Parameter(torch.zeros_like(grad[i])) for grad in grads.values()]
        for parameter, grad in zip(theirs, grads.values(), strict=True):
            parameter.grad = grad[i].clone()
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        for parameter, ours in zip(theirs, clipped.values(), strict=True):
            torch.testing.assert_close(ours[i], parameter.grad)


def test_rewards_of_any_size_train_alike():
    """Arms that pay a thousandth: the same agents after three iterations, and measures a thousand times smaller."""
    results = []
    for factor in (1e-3, 1.0):
        family = make_family("metarl/GaussianBandit-v0", prior_std=factor, noise_std=factor)
        problem = PPOProblem(family, slots=12, **SMALL)
        run, rule, rng = begin(problem, num=3)
        run.instances["means"].copy_(factor * torch.tensor([[1.0] * 5, [-2.0] * 5, [0.5, -1.0, 0.0, 2.0, 1.0]]))
        for _ in range(3):
            run, before = problem.advance(run, rule, rng)
        results.append((run.params, before / factor))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_where_all_returns_are_alike_no_action_is_preferred():
    problem = make("bandit", slots=11)
    run, _, rng = begin(problem, num=2)
    run.instances["means"].copy_(torch.tensor([[1.0] * 3, [0.0] * 3]))
    after, before = problem.advance(run, SGD(problem.template(), 1.0), rng)
    assert before.tolist() == [-1, 0]
    for name, value in after.params.items():
        if name.startswith("policy"):
            torch.testing.assert_close(value, run.params[name], atol=1e-3, rtol=0)
    assert (after.params["value_head.bias"][0] > 0.1).all()


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e38])
def test_what_diverges_is_told_and_disturbs_nobody(name, wrong):
    problem = make(name)
    healthy, rule, _ = begin(problem, num=3)
    broken = tree_map(torch.clone, healthy)
    for value in broken.params.values():
        value[1] = wrong
    for step in range(2):
        healthy, expected = problem.advance(healthy, rule, np.random.default_rng(step))
        broken, before = problem.advance(broken, rule, np.random.default_rng(step))
        assert torch.equal(before[[0, 2]], expected[[0, 2]])
        assert before[1].isnan() == (wrong != 1e38 or step > 0)
    rows = torch.tensor([0, 2])
    ours, theirs = (tree_map(lambda leaf: leaf[rows], run) for run in (broken, healthy))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(horizon=0), "horizon must be at least 1, got 0"),
        (dict(slots=0), "slots must be at least 1, got 0"),
        (dict(num_steps=0), "num_steps must be at least 1, got 0"),
        (dict(minibatches=10), "minibatches must be at most 9, half of slots x num_steps, got 10"),
        (dict(gamma=1.1), r"gamma must be in \[0, 1\], got 1.1"),
        (dict(clip_range=0.0), "clip_range must be above 0, got 0.0"),
        (dict(max_grad_norm=math.inf), "max_grad_norm must be above 0, got inf"),
        (dict(value_coef=-1), "value_coef must be at least 0, got -1"),
        (dict(hidden=(0,)), "hidden must be a list of sizes of at least 1"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make("bandit", **options)


def test_splits_are_the_familys():
    with pytest.raises(ValueError, match="split must be one of train, test, ood for ppo of metarl/Bernoulli"):
        make("bandit").sample(3, "validation", np.random.default_rng(0))


def test_what_is_said_of_a_problem():
    problem = make("poles", num_steps=None)
    assert problem.steps_per_batch == 25
    assert problem.rule_steps == 3 * 2 * 3
    params = begin(problem)[0].params
    assert {name: value.shape for name, value in problem.template().items()} == {n: v.shape[1:] for n, v in params.items()}


def test_it_has_no_loss_to_differentiate():
    problem = make("grid")
    run, *_ = begin(problem)
    with pytest.raises(NotImplementedError, match=r"^ppo of metarl/GridNavi-v0 has no loss with a derivative: .* by PES$"):
        problem.gradients(run.params, run.instances, ())


@pytest.mark.parametrize("hidden", [(6,), (5, 4)])
def test_dormancy_is_told_to_the_rule(hidden, monkeypatch):
    problem = make("grid", hidden=hidden, epochs=1, minibatches=2, dormancy=True)
    rule = RULES["mlp"](problem.template(), 1e-2)
    rng = np.random.default_rng(0)
    run = problem.begin(rule, problem.sample(3, "train", rng), rng)
    told, steps, step = [], [], PPOProblem._step
    update = type(rule).update
    monkeypatch.setattr(type(rule), "update", lambda *a, dormancy: told.append(dormancy) or update(*a, dormancy=dormancy))
    monkeypatch.setattr(PPOProblem, "_step", lambda *args: steps.append(args[2:]) or step(*args))
    problem.advance(run, rule, rng)
    assert len(told) == len(steps) == 2
    for found, (params, _, batch) in zip(told, steps, strict=True):
        assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in params.items()}
        for agent in range(3):
            for trunk in ("policy_trunk", "value_trunk"):
                x = batch.inputs[agent]
                for layer in range(len(hidden)):
                    weight, bias = (params[f"{trunk}.{2 * layer}.{kind}"][agent] for kind in ("weight", "bias"))
                    x = (x @ weight.T + bias).tanh()
                    activity = x.abs().mean(0)
                    expected = (1 - activity / activity.mean()).clamp_min(0)
                    assert 0 < expected.max() <= 1
                    torch.testing.assert_close(found[f"{trunk}.{2 * layer}.bias"][agent], expected)
                    by_weight = expected[:, None].expand_as(weight)
                    torch.testing.assert_close(found[f"{trunk}.{2 * layer}.weight"][agent], by_weight)
        assert not any(value.any() for name, value in found.items() if "head" in name)


def test_rules_that_do_not_read_dormancy_are_not_told():
    ends = []
    for dormancy in (False, True):
        problem = make("grid", dormancy=dormancy)
        run, rule, rng = begin(problem)
        ends.append(problem.advance(run, rule, rng)[0].params)
    torch.testing.assert_close(*ends, rtol=0, atol=0)


# -- learning --------------------------------------------------------------------------------------------------------


def test_agents_find_the_best_arm():
    problem = PPOProblem(make_family("metarl/BernoulliBandit-v0"), hidden=(8,), slots=40, horizon=12)
    run, rule, rng = begin(problem, num=16, rate=1e-2)
    returns = -unroll(problem, rule, run.instances, problem.horizon, rng)
    means = run.instances["means"].float()
    chosen = (returns[-3:].mean(0) - means.mean(1)) / (means.amax(1) - means.mean(1))  # 0 by chance, 1 at best
    assert returns[0].mean() - means.mean() < 0.05
    assert chosen.mean() > 0.7


class Scaled(Adam):
    """Adam, but for a learned factor of its moves."""

    def __init__(self, params, rate):
        super().__init__(params, rate, eps=1e-5)
        self.factor = nn.Parameter(torch.zeros(1))

    def move(self, grads, state, params, losses):
        moves, state = super().move(grads, state, params, losses)
        return moves * self.factor.exp(), state


@pytest.mark.parametrize(("rate", "wanted"), [(1e-3, -1), (3.0, 1)])  # minus what the factor should change by
def test_evolution_strategies_find_a_better_rate(rate, wanted):
    def trained():
        problem = PPOProblem(make_family("metarl/BernoulliBandit-v0"), hidden=(4,), slots=40, horizon=4)
        estimator = PES(steps=2, objective="loss", sigma=0.5)
        estimator.start(problem, Scaled(problem.template(), rate), 128, spawn(0, STREAMS))
        return estimator

    estimator = trained()
    found = [estimator.step()[0]["factor"].item() for _ in range(6)]
    assert np.sign(np.mean(found)) == wanted
    again = trained()
    assert [again.step()[0]["factor"].item() for _ in range(3)] == found[:3]
    goes_on = trained()
    goes_on.set_state(again.state())
    assert [goes_on.step()[0]["factor"].item() for _ in range(3)] == found[3:]


@pytest.mark.slow
def test_agents_learn_to_hold_a_pole():
    problem = PPOProblem(make_family("metarl/Context-v0", env="CartPole-v1", num_steps=100), hidden=(32, 32))
    run, rule, rng = begin(problem, num=12, rate=3e-3)
    returns = -unroll(problem, rule, run.instances, 20, rng)
    assert returns[0].mean() < 30
    assert returns[-1].mean() > 75

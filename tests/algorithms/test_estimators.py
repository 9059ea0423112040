"""Estimators of meta-gradients against finite differences, loops over single inner trainings, and exact expectations."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from metarl.algorithms.estimators import FLOOR, PES, STREAMS, TBPTT
from metarl.checkpoint import load_checkpoint, save_checkpoint
from metarl.problems import Problem, Quadratics
from metarl.seeding import spawn
from metarl.updates import RULES, Coordinatewise

LEARNED = ("learned", "lstm", "lstm_meta_learner", "optim4rl")
PARAMS = {"x": torch.zeros(4)}
QUADRATICS = Quadratics(dimensions=4)


class LearnedMomentum(Coordinatewise):
    """`b = sigmoid(w0) b + g`, `p - rate exp(w1) tanh(b)`."""

    def __init__(self, params, rate=0.1):
        super().__init__(params, rate)
        self.w = nn.Parameter(torch.tensor([0.3, -0.2]))

    def start(self, params):
        return torch.zeros_like(params)

    def move(self, grads, state, params, losses):
        decay, scale = self.w.unbind(-1)
        state = decay.sigmoid()[..., None] * state + grads
        return -(scale.exp()[..., None] * state.tanh()), state


class LearnedRate(Coordinatewise):
    """`p - rate exp(w) g`."""

    def __init__(self, params, rate=1.0, w=0.0):
        super().__init__(params, rate)
        self.w = nn.Parameter(torch.tensor([w]))

    def move(self, grads, state, params, losses):
        return -self.w.exp() * grads, state


class Linear(Problem):
    """`c x` with a slope that is drawn anew at every step: gradients do not depend on the inner parameters."""

    name, horizon = "linear", 6

    def sample(self, num, split, rng):
        return {"c": torch.from_numpy(rng.random((num, 4)))}

    def start(self, instances, rng):
        return {"x": 5 + torch.from_numpy(rng.random(instances["c"].shape))}

    def template(self):
        return PARAMS

    def draw(self, instances, rng):
        return instances["c"] * torch.from_numpy(rng.random(instances["c"].shape))

    def losses(self, params, instances, batch):
        return (params["x"] * batch).sum(1)


class Fitness(Problem):
    """The measure is `c w` for the rule's own number `w`; not finite where `c w` is above the instance's bound."""

    name, horizon = "fitness", 4

    def __init__(self, slopes, bounds=None):
        self.slopes = slopes
        self.bounds = [np.inf] * len(slopes) if bounds is None else bounds

    def sample(self, num, split, rng):
        return {"c": torch.tensor(self.slopes), "bound": torch.tensor(self.bounds)}

    def start(self, instances, rng):
        return {"x": torch.zeros(len(instances["c"]), 4)}

    def template(self):
        return PARAMS

    def advance(self, run, rule, rng, copies=1):
        measures = run.instances["c"] * rule.w.squeeze(-1)
        bad = torch.where(run.age % 2 == 0, torch.nan, torch.inf)
        return run._replace(age=run.age + 1), torch.where(measures > run.instances["bound"], bad, measures)


def streams(seed=0):
    return spawn(seed, STREAMS)


def started(estimator, problem, rule, num=6, seed=0):
    estimator.start(problem, rule, num, streams(seed))
    return estimator


def in_double(estimator):
    """The same inner trainings in double precision, so that differences can be taken."""
    estimator.rule.double()
    estimator.run = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, estimator.run)
    return estimator


def randomise(rule, scale=0.1):
    torch.manual_seed(0)
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(scale * torch.randn(value.shape))
    return rule


# -- truncated back-propagation ----------------------------------------------------------------------------------


def transformed(losses, first, objective):
    if objective == "log":
        return (losses / first + FLOOR).log()
    return losses / first if objective == "relative" else losses


def window_by_window(problem, rule, weights, run, batches, steps, objective, first_order):
    """The objectives of each row in each window, by a loop; a window starts at constants, gradients may be some."""
    totals = [[] for _ in range(len(batches) // (steps + 1))]
    for row in range(len(run.age)):
        params = {name: value[row : row + 1] for name, value in run.params.items()}
        state = tree_map(lambda leaf, row=row: leaf[row : row + 1], run.state)
        instances = {name: value[row : row + 1] for name, value in run.instances.items()}
        for window in range(len(totals)):
            params, state = tree_map(torch.detach, (params, state))
            total = 0
            for step in range(steps + 1):
                batch = tree_map(lambda leaf, row=row: leaf[row : row + 1], batches[window * (steps + 1) + step])
                if first_order or step == 0:
                    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
                    loss = problem.losses(leaves, instances, batch)
                    found = tree_map(torch.detach, torch.autograd.grad(loss.sum(), leaves.values()))
                    loss = loss.detach()
                else:
                    loss = problem.losses(params, instances, batch)
                    found = torch.autograd.grad(loss.sum(), params.values(), create_graph=True)
                grads = dict(zip(params, found, strict=True))
                if window == step == 0:
                    first = loss.detach()
                if step:
                    total = total + transformed(problem.losses(params, instances, batch), first, objective).sum() / steps
                if step < steps:
                    params, state = functional_call(rule, weights, (grads, state, params, loss))
            totals[window].append(total)
    return totals


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("objective", ["loss", "relative", "log"])
@pytest.mark.parametrize("problem", [Linear(), QUADRATICS], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["momentum", *LEARNED])
def test_tbptt_against_a_loop(name, problem, objective, first_order, bounded, monkeypatch):
    rule = LearnedMomentum(PARAMS) if name == "momentum" else RULES[name](PARAMS, 0.02)
    estimator = in_double(started(TBPTT(3, objective, (9, 9), first_order), problem, randomise(rule)))
    estimator.ends[:] = 9
    run, batches = estimator.run, []
    drawn = Problem.shared

    def record(*args):
        batches.append(drawn(*args))
        return batches[-1]

    monkeypatch.setattr(Problem, "shared", record)
    averaged, average = [], TBPTT._average
    monkeypatch.setattr(TBPTT, "_average", lambda self, *args: averaged.append(args) or average(self, *args))
    ours = [estimator.step() for _ in range(2)]
    weights = dict(rule.named_parameters())
    expected = window_by_window(problem, rule, weights, run, batches, 3, objective, first_order)
    for (gradients, _), of_rows, totals in zip(ours, averaged, expected, strict=True):
        rows = [torch.autograd.grad(t, list(weights.values()), retain_graph=True, materialize_grads=True) for t in totals]
        norms = torch.stack([torch.cat([gradient.flatten() for gradient in row]).norm() for row in rows])
        factors = torch.ones_like(norms)
        if bounded:
            estimator.max_row_norm = float(norms.median())
            factors = (estimator.max_row_norm / norms).clamp_max(1.0)
            gradients = average(estimator, *of_rows)
            assert 0 < (factors < 1).sum() < len(factors)
        means = [sum(f * g for f, g in zip(factors, parts, strict=True)) / len(rows) for parts in zip(*rows, strict=True)]
        assert list(gradients) == list(weights)
        torch.testing.assert_close(list(gradients.values()), means, rtol=1e-8, atol=1e-12)
        assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-6


@pytest.mark.parametrize("objective", ["loss", "relative", "log"])
@pytest.mark.parametrize(
    ("name", "problem", "first_order"),
    [
        ("momentum", Linear(), True),
        ("momentum", Linear(), False),
        *((name, QUADRATICS, False) for name in ("momentum", *LEARNED) if name != "optim4rl"),  # it stops derivatives
    ],
)
def test_tbptt_against_finite_differences(name, problem, first_order, objective):
    """Within a window nothing is dropped where losses are linear, or second derivatives count."""

    def one_window(shift=None):
        torch.manual_seed(0)
        rule = LearnedMomentum(PARAMS) if name == "momentum" else RULES[name](PARAMS, 0.02)
        estimator = in_double(started(TBPTT(5, objective, (5, 5), first_order), problem, randomise(rule)))
        for weight, moved in zip(rule.parameters(), shift or [], strict=shift is not None):
            weight.data += moved
        batches = [problem.shared(estimator.run, estimator.rngs["batches"]) for _ in range(6)]
        estimator.rngs = streams()
        _, _, losses = estimator._window(batches, dict(rule.named_parameters()), rule)
        gradients, _ = estimator.step()
        return transformed(losses[1:], losses[0], objective).mean(), list(gradients.values())

    _, gradients = one_window()
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        shift = [1e-6 * torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradients]
        ours = sum((gradient * moved).sum() for gradient, moved in zip(gradients, shift, strict=True))
        difference = (one_window(shift)[0] - one_window([-moved for moved in shift])[0]) / 2
        torch.testing.assert_close(ours, difference, rtol=1e-5, atol=0)


def test_tbptt_leaves_out_what_is_not_finite():
    problem = Quadratics(dimensions=4)

    def step(ruin):
        estimator = in_double(started(TBPTT(3), problem, LearnedMomentum(PARAMS)))
        estimator.ends[:] = 50
        if ruin:
            estimator.run.params["x"][1, 2] = 1e200  # its square is not finite
            estimator.run.state[4] = torch.nan
        else:
            estimator.run = tree_map(lambda leaf: leaf[[0, 2, 3, 5]], estimator.run)
            estimator.firsts, estimator.num = estimator.firsts[:4], 4
            estimator.ends = estimator.ends[:4]
        return estimator, *estimator.step()

    _, expected, metrics = step(ruin=False)
    estimator, gradients, ruined = step(ruin=True)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=0)
    assert ruined["loss"] == pytest.approx(metrics["loss"])
    assert (metrics["diverged"], ruined["diverged"], ruined["restarted"]) == (0, *[pytest.approx(1 / 3)] * 2)
    assert estimator.run.age.tolist() == [3, 0, 3, 3, 0, 3]
    assert all(leaf.isfinite().all() for leaf in tree_leaves(estimator.run))


@pytest.mark.parametrize("max_row_norm", [None, 1.0])
def test_gradients_that_are_not_finite_are_left_out(max_row_norm):
    """Large ones are bounded, or counted as they are, even where their squares are too large."""
    estimator = started(TBPTT(3, max_row_norm=max_row_norm), QUADRATICS, LearnedMomentum(PARAMS), num=5)
    rows = {"w": torch.tensor([[3e30, 4e30], [0.3, 0.4], [torch.inf, 0.0], [0.0, torch.nan], [7.0, 7.0]])}
    mean = estimator._average(rows, torch.tensor([True, True, True, True, False]))["w"]
    expected = [1.5e30, 2e30] if max_row_norm is None else [0.45, 0.6]
    torch.testing.assert_close(mean, torch.tensor(expected))


def test_a_single_number_may_be_learned():
    class Single(LearnedRate):
        def __init__(self, params):
            Coordinatewise.__init__(self, params, 0.1)
            self.w = nn.Parameter(torch.tensor(0.2))

        def move(self, grads, state, params, losses):
            return -self.w[..., None] * grads, state

    for kind in (TBPTT, PES):
        gradients, _ = started(kind(2), QUADRATICS, Single(PARAMS)).step()
        assert gradients["w"].shape == ()
        assert gradients["w"] != 0


class FirstWeight(LearnedMomentum):
    """It takes the first row of weights for the first weight."""

    def move(self, grads, state, params, losses):
        return -self.w[0] * grads - self.w[1] * grads.sign(), state


@pytest.mark.parametrize("dimensions", [2, 4])
@pytest.mark.parametrize("kind", [TBPTT, PES])
def test_rules_that_know_one_set_of_weights_are_refused(kind, dimensions):
    problem = Quadratics(dimensions=dimensions)
    with pytest.raises(ValueError, match=r"^rule must take weights with a leading axis, .* but FirstWeight does not: see"):
        started(kind(2), problem, FirstWeight(problem.template()))


def test_nothing_finite_gives_zeros():
    estimator = started(TBPTT(2), Quadratics(dimensions=4), LearnedMomentum(PARAMS))
    estimator.run.params["x"][:] = torch.nan
    gradients, metrics = estimator.step()
    assert gradients["w"].tolist() == [0, 0]
    assert metrics["diverged"] == metrics["restarted"] == 1
    estimator = started(PES(2), Quadratics(dimensions=4), LearnedMomentum(PARAMS))
    estimator.run.params["x"][:] = torch.nan
    gradients, metrics = estimator.step()
    assert gradients["w"].tolist() == [0, 0]
    assert metrics["diverged"] == metrics["restarted"] == 1


# -- persistent evolution strategies -----------------------------------------------------------------------------


class Parabola(Problem):
    """`a x^2 / 2`, always the same: what a window does can be written down."""

    name, horizon, curvature, begins = "parabola", 6, 0.4, 1.5

    def sample(self, num, split, rng):
        return {"a": torch.full((num,), self.curvature, dtype=torch.float64)}

    def start(self, instances, rng):
        return {"x": torch.full((len(instances["a"]), 1), self.begins, dtype=torch.float64)}

    def template(self):
        return {"x": torch.zeros(1)}

    def losses(self, params, instances, batch):
        return instances["a"] * params["x"][:, 0].square() / 2

    @classmethod
    def mean_loss(cls, weights, steps):
        """Over all steps, where each window of `steps` has its own weight."""
        x, losses = np.full(np.broadcast_shapes(*(w.shape for w in weights)), cls.begins), []
        for w in weights:
            for _ in range(steps):
                losses.append(cls.curvature * x**2 / 2)
                x = x - np.exp(w) * cls.curvature * x
        return sum(losses) / len(losses)


def smoothed_slope(problem, w, sigma, windows, steps):
    """The derivative by `w` of the mean loss under a perturbation of `w` for each window, by Gauss-Hermite quadrature."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(20)
    masses = masses / masses.sum()

    def smoothed(w):
        grids = np.meshgrid(*[w + sigma * nodes] * windows, indexing="ij")
        mass = np.prod(np.meshgrid(*[masses] * windows, indexing="ij"), axis=0)
        return (mass * problem.mean_loss(grids, steps)).sum()

    return (smoothed(w + 1e-4) - smoothed(w - 1e-4)) / 2e-4


def estimates(repeats, num, persistent, w=0.3, sigma=0.3):
    """Estimates over whole inner trainings of three windows."""
    found = []
    for seed in range(repeats):
        rule = LearnedRate(Parabola().template(), w=w).double()
        estimator = started(PES(2, "loss", lengths=(6, 6), sigma=sigma, persistent=persistent), Parabola(), rule, num, seed)
        estimator.ends[:] = 6
        found.append(sum(estimator.step()[0]["w"].item() for _ in range(3)) / 3)
        assert estimator.run.age.eq(0).all()
    return np.mean(found), np.std(found, ddof=1) / np.sqrt(repeats)


def test_pes_is_unbiased_and_truncated_evolution_is_not():
    slope = smoothed_slope(Parabola, 0.3, 0.3, windows=3, steps=2)
    mean, error = estimates(repeats=40, num=4000, persistent=True)
    assert error < 0.01 * abs(slope)
    assert abs(mean - slope) < 3 * error
    mean, error = estimates(repeats=40, num=4000, persistent=False)
    assert error < 0.01 * abs(slope)
    assert abs(mean - slope) > 0.3 * abs(slope)  # more than 30 standard errors


def test_pes_with_small_perturbations_is_the_gradient():
    """Without noise from the perturbations of earlier windows: in the first window, of a problem that is smooth."""
    rule = LearnedRate(Parabola().template(), w=0.3).double()
    estimator = started(PES(4, lengths=(4, 4), sigma=1e-4), Parabola(), rule, num=20_000)
    gradients, _ = estimator.step()
    slope = smoothed_slope(Parabola, 0.3, 1e-4, windows=1, steps=4)
    shares = (estimator.sigma**-2) * np.mean(np.square(drawn_first(estimator)))
    assert gradients["w"].item() == pytest.approx(slope * shares, rel=1e-5)


def drawn_first(estimator):
    """The perturbations of the first window."""
    return estimator.sigma * streams()["perturbations"].standard_normal((estimator.num // 2, 1), np.float32)


def test_one_window_by_hand():
    slopes = [1.0, -2.0, 0.5]
    rule = LearnedRate(PARAMS, w=2.0)
    estimator = started(PES(2, lengths=(4, 4), sigma=0.1), Fitness(slopes), rule)
    estimator.ends[:] = 4
    e = drawn_first(estimator)[:, 0]
    gradients, metrics = estimator.step()
    differences = np.array(slopes) * 2 * e
    assert gradients["w"].item() == pytest.approx((e * differences).mean() / (2 * 0.1**2), rel=1e-5)
    np.testing.assert_allclose(estimator.sums["w"][:, 0], e, rtol=1e-6)
    measures = np.concatenate([np.array(slopes) * (2 + e), np.array(slopes) * (2 - e)])
    assert metrics == {"loss": pytest.approx(measures.mean(), rel=1e-5), "diverged": 0, "restarted": 0}


@pytest.mark.parametrize("objective", ["deviation", "rank"])
def test_objectives_of_returns(objective):
    slopes = [100.0, -2.0, 0.5]
    estimator = started(PES(2, objective, sigma=0.1), Fitness(slopes), LearnedRate(PARAMS, w=0.5))
    e = drawn_first(estimator)[:, 0]
    differences = 2 * e * slopes
    expected = np.sign(differences) if objective == "rank" else differences / np.sqrt((differences**2).mean())
    gradients, _ = estimator.step()
    assert gradients["w"].item() == pytest.approx((e * expected).mean() / (2 * 0.1**2), rel=1e-4)


@pytest.mark.parametrize("objective", ["relative", "log"])
def test_objectives_relative_to_the_first_loss(objective):
    problem = Quadratics(dimensions=4)
    rule = LearnedRate(PARAMS, rate=0.02)
    estimator = started(PES(3, objective, lengths=(6, 6), sigma=0.1), problem, rule)
    estimator.ends[:] = 6
    W, y, x = (v[:3].numpy() for v in (*estimator.run.instances.values(), estimator.run.params["x"]))
    noise = streams()["perturbations"]
    e = [0.1 * noise.standard_normal((3, 1), np.float32)[:, 0] for _ in range(2)]
    ends = {+1: x, -1: x}
    for window in range(2):
        means = {}
        for sign in (1, -1):
            losses, x = [], ends[sign]
            for _ in range(3):
                r = np.einsum("nij,nj->ni", W, x) - y
                losses.append((r**2).sum(1))
                x = x - 0.02 * np.exp(sign * e[window])[:, None] * 2 * np.einsum("nij,ni->nj", W, r)
            ends[sign] = x
            if window == 0:
                first = losses[0]
            relative = np.stack(losses) / first
            means[sign] = (np.log(relative + FLOOR) if objective == "log" else relative).mean(0)
        expected = (sum(e[: window + 1]) * (means[1] - means[-1])).mean() / (2 * 0.1**2)
        assert estimator.step()[0]["w"].item() == pytest.approx(expected, rel=2e-3)


def test_what_is_not_finite_counts_as_the_worst():
    slopes, bounds = [1.0, 1.0, 3.0, 2.0], [np.inf, 0.5, np.inf, -10.0]
    estimator = started(PES(2, sigma=0.1), Fitness(slopes, bounds), LearnedRate(PARAMS, w=0.5), num=8)
    estimator.ends[:] = 50
    e = drawn_first(estimator)[:, 0]
    gradients, metrics = estimator.step()
    plus, minus = np.array(slopes) * (0.5 + e), np.array(slopes) * (0.5 - e)
    bad_plus, bad_minus = plus > bounds, minus > bounds
    assert bad_plus[1] != bad_minus[1]  # of the second pair one, of the last both
    assert bad_plus[3]
    assert bad_minus[3]
    worst = max(plus[~bad_plus].max(), minus[~bad_minus].max())
    differences = np.where(bad_plus, worst, plus) - np.where(bad_minus, worst, minus)
    assert gradients["w"].item() == pytest.approx((e * differences).mean() / (2 * 0.1**2), rel=1e-5)
    assert metrics["diverged"] == 3 / 8
    assert metrics["restarted"] == 4 / 8  # a pair as a whole
    assert estimator.run.age.tolist() == [2, 0, 2, 0] * 2
    assert (estimator.sums["w"][:, 0] != 0).tolist() == [True, False, True, False]


def test_what_is_not_finite_loses_against_its_twin():
    estimator = started(PES(2, "rank", sigma=0.1), Fitness([1.0], [0.5]), LearnedRate(PARAMS, w=0.5), num=2)
    e = drawn_first(estimator).item()
    assert estimator.step()[0]["w"].item() == pytest.approx(abs(e) / (2 * 0.1**2), rel=1e-5)


def test_pairs_share_all_but_their_weights():
    seen = {"batches": [], "weights": []}

    class Watched(Linear):
        def losses(self, params, instances, batch):
            seen["batches"].append(batch)
            return super().losses(params, instances, batch)

    class WatchedRule(LearnedMomentum):
        def move(self, *args):
            seen["weights"].append(self.w)
            return super().move(*args)

    rule = WatchedRule(PARAMS)
    estimator = started(PES(3, sigma=0.1), Watched(), rule, num=8)
    seen["weights"].clear()
    for leaf in (estimator.run.params["x"], estimator.run.instances["c"], estimator.ends):
        assert torch.equal(*leaf.chunk(2))
        assert len(set(tree_leaves(leaf[:4].tolist()))) > 1
    for _ in range(5):  # over restarts
        estimator.step()
        assert torch.equal(*estimator.run.instances["c"].chunk(2))
        assert torch.equal(*estimator.run.age.chunk(2))
        assert torch.equal(*estimator.ends.chunk(2))
    assert len(seen["batches"]) == len(seen["weights"]) == 15
    for batch, weights in zip(*seen.values(), strict=True):
        assert torch.equal(*batch.chunk(2))
        plus, minus = weights.chunk(2)
        torch.testing.assert_close((plus + minus) / 2, rule.w.detach().expand(4, 2))
        assert (plus != minus).all()
    for window in range(5):  # one perturbation for a window, another for the next
        first, second, third = seen["weights"][3 * window : 3 * window + 3]
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert window == 0 or not torch.equal(first, seen["weights"][3 * window - 1])


@pytest.mark.parametrize("name", LEARNED)
def test_every_row_has_weights_of_its_own(name):
    """All rows at once are as each alone with its own perturbed weights."""
    problem, sigma = Quadratics(dimensions=4), 0.05
    rule = randomise(RULES[name](PARAMS, 0.02))
    estimator = started(PES(3, lengths=(9, 9), sigma=sigma), problem, rule, num=4)
    estimator.ends[:] = 9
    run = estimator.run
    estimator.step()
    noise = streams()["perturbations"]
    e = {n: sigma * noise.standard_normal((2, *w.shape), np.float32) for n, w in rule.named_parameters()}
    for row in range(4):
        sign = 1 if row < 2 else -1
        weights = {n: w.detach() + sign * torch.from_numpy(e[n][row % 2]) for n, w in rule.named_parameters()}
        params, state, instances = tree_map(lambda leaf, row=row: leaf[row : row + 1], run[:3])
        for _ in range(3):
            grads, losses = problem.gradients(params, instances)
            params, state = functional_call(rule, weights, (grads, state, params, losses))
        torch.testing.assert_close(estimator.run.params["x"][row].detach(), params["x"][0].detach(), rtol=1e-4, atol=1e-5)


# -- both ----------------------------------------------------------------------------------------------------------


def test_ends_are_staggered_and_rows_start_afresh():
    estimator = started(TBPTT(5, lengths=(20, 20)), Quadratics(), LearnedMomentum({"x": torch.zeros(10)}), num=400)
    assert estimator.ends.min() >= 1
    assert estimator.ends.max() <= 20
    shares = []
    for _ in range(8):
        before = estimator.run
        _, metrics = estimator.step()
        new = estimator.run.age == 0
        assert metrics["restarted"] == pytest.approx(new.double().mean().item())
        assert (estimator.run.age[~new] == before.age[~new] + 5).all()
        same = (estimator.run.instances["W"] == before.instances["W"]).all((1, 2))
        assert torch.equal(same, ~new)
        assert not estimator.run.state[new].any()
        assert (estimator.ends[new] == 20).all()
        shares.append(metrics["restarted"])
    assert shares == pytest.approx([0.25] * 8, abs=0.07)  # a quarter at every window
    assert shares[:4] == shares[4:]
    assert set(estimator.run.age.tolist()) == {0, 5, 10, 15}


def test_lengths_are_drawn_for_each_row():
    estimator = started(TBPTT(10, lengths=(8, 128)), Quadratics(), LearnedMomentum({"x": torch.zeros(10)}), num=4000)
    lengths = estimator._draw_lengths().double()
    assert lengths.min() == 8
    assert lengths.max() == 128
    assert lengths.log2().mean().item() == pytest.approx(5, abs=0.1)  # as many below 32 as above
    assert (lengths < 32).double().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", [TBPTT, PES])
@pytest.mark.parametrize("name", ["learned", "lstm"])
def test_exact_resume(kind, name, tmp_path):
    problem, rule = Quadratics(dimensions=4, horizon=12), randomise(RULES[name](PARAMS, 0.02))
    weights = {n: value.clone() for n, value in rule.state_dict().items()}

    def begin():
        rule.load_state_dict(weights)
        return started(kind(3, lengths=(4, 12)), problem, rule)

    def train(estimator, steps):
        told = []
        for _ in range(steps):
            gradients, metrics = estimator.step()
            told.append((gradients, metrics))
            with torch.no_grad():
                for n, value in rule.named_parameters():
                    value -= 1e-3 * gradients[n].clamp(-1, 1)
        return told

    whole = train(begin(), 8)
    halfway = begin()
    train(halfway, 4)
    save_checkpoint(tmp_path / "state", {"estimator": halfway.state(), "rule": dict(rule.state_dict())})
    train(halfway, 1)  # what follows must not matter
    stored = load_checkpoint(tmp_path / "state")
    resumed = started(kind(3, lengths=(4, 12)), problem, rule, seed=99)
    resumed.set_state(stored["estimator"])
    rule.load_state_dict(stored["rule"])
    for (ours, told), (expected, expected_told) in zip(train(resumed, 4), whole[4:], strict=True):
        assert told == expected_told
        assert all(torch.equal(ours[n], expected[n]) for n in expected)
        assert any(value.any() for value in expected.values())


@pytest.mark.parametrize("kind", [TBPTT, PES])
def test_a_rate_is_learned(kind):
    problem = Quadratics("uniform", dimensions=4, horizon=20)
    rule = LearnedRate(PARAMS, rate=0.001)
    estimator = started(kind(10), problem, rule, num=64)
    optimizer, losses = torch.optim.Adam(rule.parameters(), 0.1), []
    for _ in range(60):
        gradients, metrics = estimator.step()
        rule.w.grad = gradients["w"]
        optimizer.step()
        losses.append(metrics["loss"])
    assert 2 < rule.w.item() < 6  # rates from .007 to .4
    assert np.median(losses[-10:]) < 0.7 * np.median(losses[:5])  # some diverge on their way to the best rate


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TBPTT(0), "steps must be at least 1, got 0"),
        (lambda: TBPTT(5, max_row_norm=0.0), "max_row_norm must be above 0 and finite, got 0.0"),
        (lambda: TBPTT(5, "rank"), "objective must be one of loss, relative, log, got 'rank'"),
        (lambda: PES(5, "best"), "objective must be one of loss, relative, log, deviation, rank, got 'best'"),
        (lambda: PES(5, sigma=0.0), "sigma must be above 0, got 0.0"),
        (lambda: PES(5, lengths=(9, 5)), r"lengths must be two integers of at least 1 in rising order, got \(9, 5\)"),
        (lambda: started(PES(), Linear(), LearnedRate(PARAMS), num=5), "num must be a positive multiple of 2, got 5"),
        (lambda: started(TBPTT(), Linear(), LearnedRate(PARAMS), num=0), "num must be a positive multiple of 1, got 0"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()

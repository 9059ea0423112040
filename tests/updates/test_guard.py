"""The guard, on sizes, gradients and losses whose course is known."""

import copy
import math

import numpy as np
import pytest
import torch

from metarl.updates import Adam, Coordinatewise, Momentum
from metarl.updates.guard import EXPLODED, GRADIENTS, MEMORY, MOVES, Guarded, Level, adam


class Told(Coordinatewise):
    """Minus the gradient, but for tasks and steps where it was told a factor."""

    factors = {}

    def start(self, params):
        return params.new_zeros(len(params))

    def move(self, grads, state, params, losses):
        factor = torch.tensor([self.factors.get((n, int(step)), 1.0) for n, step in enumerate(state)])
        return -grads * factor.to(grads)[:, None], state + 1


def told(factors, params, rate=0.1):
    rule = Told(params, rate)
    rule.factors = factors
    return rule


def twin_of_adam(start, grads, rate):
    """Where `torch.optim.Adam` goes from `start`, by these gradients."""
    param = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([param], lr=rate)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach() - start


# -- one size ----------------------------------------------------------------------------------------------------


def test_what_is_far_above_what_is_usual():
    level = Level()
    assert not level.exceeded(2.0)
    assert not level.exceeded(1.9 * EXPLODED)  # and so what is usual rises by 1.9 EXPLODED ** 0.01, or nearly so
    assert level.exceeded(2.3 * EXPLODED)
    assert Level(0.0, 3.0).exceeded(1.01 * math.exp(3) * EXPLODED)
    assert not Level(0.0, 3.0).exceeded(0.99 * math.exp(3) * EXPLODED)
    assert not Level(3.0, 0.0).exceeded(0.99 * math.exp(3) * EXPLODED)


@pytest.mark.parametrize("size", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_always_too_much(size):
    assert Level().exceeded(size)
    assert Level(50.0, 50.0).exceeded(size)


def test_zeros_and_negative_losses():
    level = Level()
    assert not any(level.exceeded(0.0) for _ in range(1000))
    assert level.first is None
    assert not level.exceeded(1e-3)
    assert not level.exceeded(-1e30)  # a loss that falls


def test_a_running_mean_of_logarithms():
    level, usual = Level(), None
    for size in np.random.default_rng(0).lognormal(size=300):
        usual = math.log(size) if usual is None else (1 - 1 / MEMORY) * usual + math.log(size) / MEMORY
        level.exceeded(size)
    assert level.usual == pytest.approx(usual)


@pytest.mark.parametrize(("growth", "caught"), [(1.02, False), (1.1, True), (2.0, True), (30.0, True)])
def test_exponential_growth_is_caught_and_slow_growth_is_not(growth, caught):
    # it is 1 / (1 - decay) = MEMORY steps ahead of its running mean in the end
    assert (math.log(growth) * MEMORY > math.log(EXPLODED)) == caught
    level = Level()
    assert any(level.exceeded(growth**step) for step in range(int(200 / math.log(growth)))) == caught


def test_back_to_where_it_began_after_a_long_quiet_is_no_divergence():
    level = Level()
    assert not level.exceeded(1.0)
    assert not any(level.exceeded(1e-9) for _ in range(3000))
    assert not level.exceeded(100.0)


# -- Adam --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7])
def test_adams_step(count):
    torch.manual_seed(0)
    grads = torch.randn(count, 5, dtype=torch.float64)
    mean, square = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for grad in grads:
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
    start = torch.zeros(5, dtype=torch.float64)
    last = twin_of_adam(start, grads, 1.0) - (twin_of_adam(start, grads[:-1], 1.0) if count > 1 else 0)
    torch.testing.assert_close(adam(mean, square, count), last)
    torch.testing.assert_close(adam(mean[None], square[None], torch.tensor([[float(count)]]))[0], last)
    assert not adam(0 * mean, 0 * square, 0).any()


# -- rules -------------------------------------------------------------------------------------------------------


def play(guarded, params, grads, losses=None):
    """Parameters after each step, and the last state."""
    state, course = guarded.init(params), [params]
    for step, grad in enumerate(grads):
        loss = None if losses is None else losses[step]
        params, state = guarded.update({"w": grad}, state, params, loss)
        course.append(params)
    return torch.stack([params["w"] for params in course]), state


@pytest.mark.parametrize("kind", [Momentum, Adam])
def test_where_nothing_diverges_the_rule_is_what_it_was(kind):
    torch.manual_seed(0)
    params, grads = {"w": torch.randn(3, 4, 2), "other": torch.zeros(3)}, torch.randn(50, 3, 4, 2)
    rule = kind({"w": torch.zeros(4, 2)}, 0.1)
    ours, state = play(Guarded(rule), params, grads, grads.square().sum((2, 3)))
    theirs, inner = params, rule.init(params)
    for grad in grads:
        theirs, inner = rule.update({"w": grad}, inner, theirs, None)
    assert torch.equal(ours[-1], theirs["w"])
    assert not state["fallen"].any()


@pytest.mark.parametrize("factor", [1e6, math.inf, math.nan])
def test_moves_that_diverge_are_not_taken(factor):
    torch.manual_seed(0)
    params, grads = {"w": torch.randn(2, 5).double()}, torch.randn(12, 2, 5).double()
    rule = told({(1, 6): factor}, {"w": torch.zeros(5).double()})
    course, state = play(Guarded(rule), params, grads)
    assert state["fallen"].tolist() == [False, True]
    torch.testing.assert_close(course[:, 0], params["w"][0] - 0.1 * torch.cat([torch.zeros(1, 5), grads[:, 0]]).cumsum(0))
    torch.testing.assert_close(course[6, 1], params["w"][1] - 0.1 * grads[:6, 1].sum(0))
    for step in range(6, 12):  # Adam, as if it had been there from the start
        expected = [twin_of_adam(torch.zeros(5).double(), grads[:n, 1], 0.1) for n in (step, step + 1)]
        torch.testing.assert_close(course[step + 1, 1] - course[step, 1], expected[1] - expected[0])


@pytest.mark.parametrize("which", ["gradient", "loss"])
@pytest.mark.parametrize("value", [1e6, math.inf, math.nan])
def test_the_step_that_led_to_a_divergence_is_taken_back(which, value):
    torch.manual_seed(0)
    params, grads = {"w": torch.randn(2, 5).double()}, torch.randn(12, 2, 5).double()
    losses = torch.ones(12, 2).double()
    if which == "gradient":
        grads[6, 1, 2] = value
    else:
        losses[6, 1] = value
    course, state = play(Guarded(told({}, {"w": torch.zeros(5).double()})), params, grads, losses)
    assert state["fallen"].tolist() == [False, True]
    torch.testing.assert_close(course[:7], params["w"] - 0.1 * torch.cat([torch.zeros(1, 2, 5), grads[:6]]).cumsum(0))
    # from where the sixth step began, by Adam's sixth step; the seventh gradient is never used
    used = torch.cat([grads[:6, 1], grads[7:, 1]])
    start = torch.zeros(5).double()
    expected = twin_of_adam(start, used[:6], 0.1) - twin_of_adam(start, used[:5], 0.1)
    torch.testing.assert_close(course[7, 1] - course[5, 1], expected)
    expected = twin_of_adam(start, used[:11], 0.1) - twin_of_adam(start, used[:6], 0.1)
    torch.testing.assert_close(course[12, 1] - course[7, 1], expected)


def test_gradients_that_are_not_finite_leave_parameters_alone_once_adam_has_taken_over():
    params, grads = {"w": torch.zeros(1, 3)}, torch.ones(5, 1, 3)
    grads[1:3] = math.nan
    course, state = play(Guarded(Momentum({"w": torch.zeros(3)}, 0.1)), params, grads)
    assert torch.equal(course[2], course[3])
    assert course.isfinite().all()
    assert state["count"].tolist() == [3]


def test_a_first_gradient_that_is_not_finite():
    params = {"w": torch.zeros(1, 3)}
    course, state = play(Guarded(Momentum({"w": torch.zeros(3)}, 0.1)), params, torch.full((1, 1, 3), math.nan))
    assert not course.any()
    assert state["fallen"].tolist() == [True]


def test_a_rate_that_is_too_high():
    """On `w^2 / 2`: by 1 - rate = -3 per step momentum goes off to infinity; guarded, Adam comes back to 0."""
    plain = {"w": torch.ones(1, 1).double()}
    rule = Momentum({"w": torch.zeros(1).double()}, 4.0, momentum=0.0)
    guarded, free = Guarded(rule), rule.init(plain)
    params, state, largest = plain, guarded.init(plain), 0.0
    for _ in range(3000):
        params, state = guarded.update({"w": params["w"]}, state, params, params["w"][:, 0].square() / 2)
        largest = max(largest, params["w"].abs().item())
        if not plain["w"].isinf().any():
            plain, free = rule.update({"w": plain["w"]}, free, plain, None)
    assert plain["w"].abs() > 1e300
    assert state["fallen"].all()
    assert largest < 1e4
    assert params["w"].abs() < 10


def test_the_state_is_of_rows():
    rule = Guarded(Adam({"w": torch.zeros(2, 2)}, 0.1))
    state = rule.init({"w": torch.zeros(4, 2, 2)})
    leaves = [*state.pop("rule"), *state.values()]
    assert {len(leaf) for leaf in leaves} == {4}
    assert copy.deepcopy(rule).method == "MAML, Adam"


def test_both_faces_agree_on_what_is_too_much():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(scale=3.0, size=(200, 3)))
    sizes[rng.random(sizes.shape) < 0.05] = 0
    sizes[:, 2] *= rng.choice([-1, 1], 200)
    levels = [Level() for _ in range(3)]
    state = {name: torch.full((1, 3), math.nan, dtype=torch.float64) for name in ("first", "usual")}
    seen = set()
    for row in torch.from_numpy(sizes):
        expected = [level.exceeded(float(size)) for level, size in zip(levels, row, strict=True)]
        exceeded, state = Guarded._judge(row[None], state)
        assert exceeded[0].tolist() == expected
        seen |= set(expected)
    torch.testing.assert_close(state["usual"][0].tolist(), [level.usual for level in levels])
    assert seen == {False, True}
    assert (GRADIENTS, MOVES) == (0, 1)

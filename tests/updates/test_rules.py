"""Update rules and inner steps, against steps worked by hand."""

import copy
import pickle

import numpy as np
import pytest
import torch

from metarl.updates import RULES, SGD, Adam, Diverged, LearnedSGD, MetaSGD, UpdateRule, check_adapted, inner_step
from metarl.updates.base import columns

WAYS = [False, True]


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def two_tasks():
    """Parameters of two tasks: a vector `w` and a number `b`."""
    return {"w": double([1.0, 2.0], [3.0, -1.0]), "b": double(0.5, -0.5)}


def loss(params):
    """`w1^2 w2 + b w1` of each task."""
    w, b = params["w"], params["b"]
    return w[:, 0].square() * w[:, 1] + b * w[:, 0]


def gradients(params):
    """The same, by hand."""
    w, b = params["w"], params["b"]
    return {"w": torch.stack([2 * w[:, 0] * w[:, 1] + b, w[:, 0].square()], -1), "b": w[:, 0]}


def shapes(params):
    return {name: value[0] for name, value in params.items()}


def rates_of(meta_sgd):
    """By the names of the parameters that they are for."""
    return {name.replace("/", "."): rate for name, rate in meta_sgd.rates.items()}


# -- rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [SGD, LearnedSGD, MetaSGD])
def test_one_step_by_hand(rule):
    params = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0, 6.0]), "c": torch.tensor([7.0, 8.0])}
    grads = {"a": torch.tensor([[2.0, 0.0], [-4.0, 8.0]]), "b": torch.tensor([1.0, -2.0])}
    made = rule(shapes(params), 0.5)
    after, state = made.update(grads, made.init(params), params, torch.zeros(2))
    assert {name: value.tolist() for name, value in after.items()} == {
        "a": [[0, 2], [5, 0]],
        "b": [4.5, 7],
        "c": [7, 8],  # without a gradient
    }
    assert state == made.init(params)
    assert params["b"].tolist() == [5, 6]  # not changed in place


def test_rules_by_name():
    assert {"sgd": SGD, "learned_sgd": LearnedSGD, "meta_sgd": MetaSGD}.items() <= RULES.items()
    assert all(issubclass(rule, UpdateRule) for rule in RULES.values())


def test_what_rules_learn():
    params = {"a.weight": torch.zeros(2, 3), "b": torch.zeros(())}
    assert list(SGD(params, 0.1).parameters()) == []
    assert SGD(params, 0.1).state_dict() == {}
    assert [p.item() for p in LearnedSGD(params, 0.25).parameters()] == [0.25]
    rule = MetaSGD(params, 0.25)
    assert {name: rate.shape for name, rate in rates_of(rule).items()} == {"a.weight": (2, 3), "b": ()}
    assert all((rate == 0.25).all() for rate in rule.parameters())
    assert len(list(rule.parameters())) == 2


def test_what_is_learned_can_be_saved():
    params = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(1)}
    for rule in (LearnedSGD, MetaSGD):
        first, second = rule(params, 0.1), rule(params, 0.7)
        second.load_state_dict(first.state_dict())
        for ours, theirs in zip(second.parameters(), first.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_meta_sgd_has_a_rate_for_every_number():
    params = {"net.a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "net.b": torch.tensor([5.0, 6.0])}
    rule = MetaSGD(shapes(params), 0.1)
    rates = rates_of(rule)
    with torch.no_grad():
        rates["net.a"].copy_(torch.tensor([0.5, -1.0]))  # rates may become negative
        rates["net.b"].fill_(2.0)
    grads = {"net.a": torch.tensor([[2.0, 1.0], [4.0, 3.0]]), "net.b": torch.tensor([1.0, -1.0])}
    after, _ = rule.update(grads, (), params, torch.zeros(2))
    assert after["net.a"].tolist() == [[0, 3], [1, 7]]
    assert after["net.b"].tolist() == [3, 8]
    sum(value.sum() for value in after.values()).backward()  # minus the gradients, summed over tasks
    assert rates["net.a"].grad.tolist() == [-6, -4]
    assert rates["net.b"].grad.tolist() == 0


def test_the_base_class_has_no_step():
    rule = UpdateRule()
    assert rule.init({}) == ()
    with pytest.raises(NotImplementedError):
        rule.update({}, (), {}, torch.zeros(1))


def test_numbers_side_by_side():
    shapes = {"w": torch.zeros(2), "b": torch.zeros(())}
    rule, params = Adam(shapes, 0.5), {**two_tasks(), "other": double(7.0, 8.0)}
    flat = rule.flatten(params)
    assert flat.tolist() == [[1, 2, 0.5], [3, -1, -0.5]]
    assert {name: value.tolist() for name, value in rule.unflatten(flat).items()} == {
        "w": params["w"].tolist(),
        "b": params["b"].tolist(),
    }
    grads = {"w": double([2.0, -3.0], [0.0, 1e-3]), "b": double(-4.0, 5.0)}
    after, _ = rule(grads, rule.init(params), params, torch.zeros(2))  # to call it is to update
    assert after["other"] is params["other"]
    torch.testing.assert_close(after["w"], double([0.5, 2.5], [3.0, -1.5]), rtol=1e-4, atol=0)
    torch.testing.assert_close(after["b"], double(1.0, -1.0))


def test_weights_of_both_forms():
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])  # two tasks, two features, two numbers
    weight, bias = torch.tensor([[1.0, 10.0]]), torch.tensor([0.5])
    assert columns(x, weight, bias).tolist() == [[[31.5, 42.5]], [[75.5, 86.5]]]
    weight, bias = torch.tensor([[[1.0, 10.0]], [[0.0, 1.0]]]), torch.tensor([[0.5], [-1.0]])
    assert columns(x, weight, bias).tolist() == [[[31.5, 42.5]], [[6, 7]]]
    assert columns(x, weight).tolist() == [[[31, 42]], [[7, 8]]]


# -- the inner step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("functional", WAYS)
def test_each_task_follows_the_gradient_of_its_own_loss(functional):
    # not divided by the number of tasks: a third and fourth one change nothing about the first two
    for copies in (1, 2):
        params = {name: torch.cat([value] * copies) for name, value in two_tasks().items()}
        rule = SGD(shapes(params), 0.25)
        after, state, losses = inner_step(rule, params, (), loss, adapted=("w", "b"), functional=functional)
        assert state == ()
        torch.testing.assert_close(losses[:2], double(2.5, -10.5), atol=0, rtol=0)
        torch.testing.assert_close(after["w"][:2], double([1 - 0.25 * 4.5, 1.75], [3 + 0.25 * 6.5, -3.25]), atol=0, rtol=0)
        torch.testing.assert_close(after["b"][:2], double(0.25, -1.25), atol=0, rtol=0)


@pytest.mark.parametrize("functional", WAYS)
@pytest.mark.parametrize("second_order", [False, True])
def test_only_what_adapts_changes(second_order, functional):
    params = {name: value.requires_grad_() for name, value in two_tasks().items()}
    options = dict(second_order=second_order, functional=functional)
    after, _, _ = inner_step(SGD({"b": torch.zeros(())}, 0.25), params, (), loss, adapted=("b",), **options)
    assert after["w"] is params["w"]
    torch.testing.assert_close(after["b"], params["b"] - 0.25 * params["w"][:, 0])
    # the first-order step takes d loss / d b = w1 as a constant
    (gradient,) = torch.autograd.grad(after["b"].sum(), params["w"], allow_unused=True)
    expected = double([-0.25, 0.0], [-0.25, 0.0]) if second_order else torch.zeros(2, 2).double()
    torch.testing.assert_close(torch.zeros_like(expected) if gradient is None else gradient, expected)


@pytest.mark.parametrize("functional", WAYS)
def test_derivatives_through_a_step_by_hand(functional):
    def after_step(second_order):
        params = {name: value.requires_grad_() for name, value in two_tasks().items()}
        options = dict(adapted=("w", "b"), second_order=second_order, functional=functional)
        after, _, _ = inner_step(SGD(shapes(params), 0.25), params, (), loss, **options)
        return torch.autograd.grad(loss(after).sum(), [params["w"], params["b"]])

    params = two_tasks()
    adapted = {name: params[name] - 0.25 * gradient for name, gradient in gradients(params).items()}
    slope = gradients(adapted)
    for ours, expected in zip(after_step(False), slope.values(), strict=True):
        torch.testing.assert_close(ours, expected)
    w1, w2 = params["w"].T
    zeros, ones = torch.zeros(2).double(), torch.ones(2).double()
    rows = [[2 * w2, 2 * w1, ones], [2 * w1, zeros, zeros], [ones, zeros, zeros]]
    hessian = torch.stack([torch.stack(row, -1) for row in rows], -2)
    flat = torch.cat([slope["w"], slope["b"][:, None]], 1)
    expected = flat - 0.25 * (hessian @ flat[..., None])[..., 0]
    by_w, by_b = after_step(True)
    torch.testing.assert_close(torch.cat([by_w, by_b[:, None]], 1), expected)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_both_ways_of_taking_gradients_agree(name, steps, second_order):
    """In values, and in derivatives with respect to the start and to what the rule learns."""
    results = []
    for functional in WAYS:
        start = {"w": double([0.3, -0.4]).squeeze(0).requires_grad_(), "b": double(0.2).squeeze(0).requires_grad_()}
        torch.manual_seed(0)
        rule = RULES[name]({"w": start["w"].detach()}, 0.25).double()
        for value in rule.parameters():  # away from zeros, which let no derivative through
            value.data += 0.1 * torch.randn_like(value)
        params = {name: value.expand(2, *value.shape) for name, value in start.items()}
        targets = double([1.0, 2.0], [-3.0, 0.5])

        def fit(params, targets=targets):
            return (params["w"].tanh() - targets).square().sum(1) * params["b"].exp()

        state, losses = rule.init(params), []
        for _ in range(steps):
            options = dict(adapted=("w",), second_order=second_order, functional=functional)
            params, state, before = inner_step(rule, params, state, fit, **options)
            losses.append(before)
        learned = [*start.values(), *rule.parameters()]
        results.append((*losses, params["w"], torch.autograd.grad(fit(params).sum(), learned)))
        by_start, by_rule = results[-1][-1][:2], results[-1][-1][2:]
        assert all(gradient.abs().max() > 1e-3 for gradient in by_start)
        assert all(gradient.any() for gradient in by_rule) or steps == 1  # some weights are for what was before
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("functional", WAYS)
@pytest.mark.parametrize("second_order", [False, True])
def test_learned_rates_receive_gradients(second_order, functional):
    params = two_tasks()
    first = gradients(params)
    options = dict(adapted=("w", "b"), second_order=second_order, functional=functional)
    rule = LearnedSGD(shapes(params), 0.25)
    after, _, _ = inner_step(rule, params, (), loss, **options)
    slope = gradients({name: value.detach() for name, value in after.items()})
    products = {name: -slope[name] * first[name] for name in params}
    loss(after).sum().backward()
    torch.testing.assert_close(rule.rate.grad.double(), sum(part.sum() for part in products.values()))
    rule = MetaSGD(shapes(params), 0.25)
    after, _, _ = inner_step(rule, params, (), loss, **options)
    loss(after).sum().backward()
    for name, rate in rates_of(rule).items():
        torch.testing.assert_close(rate.grad, products[name].sum(0))


@pytest.mark.parametrize("functional", WAYS)
def test_it_works_where_gradients_are_off(functional):
    params = two_tasks()
    with torch.no_grad():
        after, _, _ = inner_step(SGD(shapes(params), 0.25), params, (), loss, adapted=("w", "b"), functional=functional)
    for name, gradient in gradients(params).items():
        torch.testing.assert_close(after[name], params[name] - 0.25 * gradient)
        assert not params[name].requires_grad


def test_a_rules_own_state_is_handed_on():
    class Momentum(UpdateRule):
        def init(self, params):
            return {name: torch.zeros_like(value) for name, value in params.items()}

        def update(self, grads, state, params, losses):
            state = {name: 0.5 * state[name] + gradient for name, gradient in grads.items()}
            return {name: value - 0.25 * state[name] for name, value in params.items()}, state

    params, rule = two_tasks(), Momentum()
    state, moments = rule.init(params), rule.init(params)
    for _ in range(3):
        moments = {name: 0.5 * moments[name] + gradient for name, gradient in gradients(params).items()}
        expected = {name: value - 0.25 * moments[name] for name, value in params.items()}
        params, state, _ = inner_step(rule, params, state, loss, adapted=("w", "b"))
        params = {name: value.detach() for name, value in params.items()}
        torch.testing.assert_close(params, expected)


# -- what diverges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(wrong):
    params = {"a": torch.zeros(4, 2, 3), "b": torch.zeros(4)}
    check_adapted(params, torch.zeros(4), 1)
    for place in ("a", "b", "losses"):
        broken, losses = {name: value.clone() for name, value in params.items()}, torch.zeros(4)
        (losses if place == "losses" else broken[place])[2:].view(2, -1)[:, -1] = wrong
        with pytest.raises(Diverged, match=r"^the inner loop diverged at gradient step 3: .* not finite$") as caught:
            check_adapted(broken, losses, 3)
        assert caught.value.task == 2
        assert isinstance(caught.value, ValueError)
    params["b"][3], params["a"][1, 0, 0] = wrong, wrong
    with pytest.raises(Diverged) as caught:
        check_adapted(params, torch.zeros(4), 1)
    assert caught.value.task == 1  # the first
    with pytest.raises(Diverged, match="at gradient step 7:"):
        check_adapted(params, torch.zeros(4), np.array([5, 7, 6, 8]))  # tasks may be at different steps
    for sent in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):  # such as from other processes
        assert (sent.task, str(sent)) == (1, str(caught.value))

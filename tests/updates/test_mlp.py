"""The MLP rule: where it starts, against a twin that goes number by number, derivatives, and its form in place."""

import math

import pytest
import torch
from rule_checks import (
    STEPS,
    TASKS,
    check_meta_gradient,
    check_moves_follow_the_rate,
    check_restarted_rows,
    check_weights_per_task,
    gradients,
    make,
    parameters,
    unroll,
)
from torch.func import functional_call

from metarl.updates import LearnedMLP
from metarl.updates.dormancy import dormancy, spread
from metarl.updates.mlp import depths_of
from metarl.updates.mlp_in_place import AHEAD

OPTIONS = {
    "default": {},
    "two layers": dict(hidden=(5, 4)),
    "horizon": dict(horizon=4, hidden=(3,)),
    "nesterov": dict(base="nesterov"),
    "momentum, one average": dict(base="momentum", decays=()),
    "sgd": dict(base="sgd", momentum=0.3, decays=(0.99, 0.999), square_decay=0.9, eps=1e-3),
}
optim = torch.optim
STARTS = {
    "adam": (dict(eps=1e-5), optim.Adam, dict(eps=1e-5)),
    "adam, decays": (dict(momentum=0.5, square_decay=0.9), optim.Adam, dict(betas=(0.5, 0.9))),
    "nesterov": (dict(base="nesterov", momentum=0.8), optim.SGD, dict(momentum=0.8, nesterov=True)),
    "momentum": (dict(base="momentum"), optim.SGD, dict(momentum=0.9)),
    "sgd": (dict(base="sgd"), optim.SGD, {}),
}


# -- where it starts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STARTS)
def test_it_starts_exactly_as_a_hand_made_rule(name):
    options, twin, twin_options = STARTS[name]
    rule = make(LearnedMLP, 0.0625, noise=0.0, **options)
    params, theirs = parameters(1), {n: value[0].clone().requires_grad_() for n, value in parameters(1).items()}
    optimizer, state = twin(list(theirs.values()), lr=0.0625, **twin_options), rule.init(params)
    for step in range(20):
        grads, _ = gradients(params, step)
        for n, value in theirs.items():
            value.grad = grads[n][0].clone()
        optimizer.step()
        params, state = rule.update(grads, state, params, None)
        for n, value in theirs.items():
            torch.testing.assert_close(params[n][0], value.detach(), rtol=1e-10, atol=1e-12)


# -- what it computes --------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def twin(rule, history, number, depth, dormant=0.0):
    """The last move of one number whose gradients were `history`, from the docstring, in Python's own numbers."""
    shares = [sigmoid(value) for value in rule.shares.tolist()]
    t = len(history)

    def average(values, share):
        weights = [(1.0 - share) ** (t - i) for i in range(1, t + 1)]
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

    means = [average(history, share) for share in shares[:-1]]
    root = math.sqrt(average([g * g for g in history], shares[-1]))
    d = root + rule.eps
    times = [1.0] + [math.tanh(t / T - 1.0) for T in (3, 10, 30, 100, 300, 1000, 3000, 10000)]
    times.append(min(t / rule.horizon, 1.0) if rule.horizon else 0.0)
    timed = [sum(w * x for w, x in zip(row, times, strict=True)) for row in rule.from_time.tolist()]
    count = len(rule.weights[0])
    raw = [history[-1], *means]
    x = [depth, *(value / d for value in raw), math.log10(d), max(-8.0, min(8.0, number)), dormant]
    layers = [
        (w.tolist(), b)
        for w, b in zip(
            rule.weights, [timed[:count], *(b.tolist() for b in rule.biases), timed[count : count + 2]], strict=True
        )
    ]
    for place, (weight, bias) in enumerate(layers):
        x = [sum(w * value for w, value in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        if place + 1 < len(layers):
            x = [max(0.0, value) for value in x]
    summed = sum((1.0 - shares[0]) ** (t - 1 - i) * g for i, g in enumerate(history))
    base = {
        "adam": means[0] / d,
        "sgd": history[-1],
        "momentum": summed,
        "nesterov": history[-1] + (1.0 - shares[0]) * summed,
    }[rule.base]
    base += sum(b * value for b, value in zip(timed[count + 2 :], raw, strict=True))
    return -base * math.exp(x[0]) + root / d * x[1]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("known", [False, True])
def test_against_a_twin_number_by_number(name, known):
    rule, params = make(LearnedMLP, **OPTIONS[name]), parameters()
    params["net.bias"][0] *= 20.0  # beyond the bound
    state, histories = rule.init(params), []
    signals = {"dormancy": {n: value.sigmoid() for n, value in parameters(seed=5).items()}} if known else {}
    for step in range(4):
        grads, _ = gradients(params, step)
        histories.append(rule.flatten(grads))
        before = rule.flatten(params)
        params, state = rule.update(grads, state, params, None, **signals)
        moves = (rule.flatten(params) - before) / rule.rate
        for task in range(TASKS):
            for place, depth in enumerate([0.0] * 8 + [1.0]):
                dormant = rule.flatten(signals["dormancy"])[task, place].item() if known else 0.0
                history = [row[task, place].item() for row in histories]
                expected = twin(rule, history, before[task, place].item(), depth, dormant)
                torch.testing.assert_close(moves[task, place].item(), expected, rtol=1e-9, atol=1e-10)


def test_a_number_that_never_had_a_gradient_stays():
    rule, params = make(LearnedMLP), parameters()
    state = rule.init(params)
    for step in range(3):
        grads, _ = gradients(params, step)
        grads["net.weight"][:, 1] = 0.0
        after, state = rule.update(grads, state, params, None)
        torch.testing.assert_close(after["net.weight"][:, 1], params["net.weight"][:, 1], rtol=0, atol=1e-6)
        assert (after["net.weight"][:, 0] - params["net.weight"][:, 0]).abs().min() > 1e-3


def test_how_deep_layers_lie():
    names = ["a.0.weight", "a.0.bias", "log_std", "a.2.weight", "a.2.bias", "head.weight"]
    assert depths_of(dict.fromkeys(names)) == [0, 0, 1 / 3, 2 / 3, 2 / 3, 1]
    assert depths_of({"only": None}) == [0]


def test_dormancy_by_hand():
    activations = torch.tensor([[[1.0, -3.0, 0.0], [1.0, 7.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    found = dormancy(activations)  # means 1, 5, 0 in a layer of mean 2
    assert found.tolist() == [[0.5, 0, 1], [1, 1, 1]]
    numbers = spread(found, (3, 2))
    assert numbers.shape == (2, 3, 2)
    assert numbers[0].tolist() == [[0.5, 0.5], [0, 0], [1, 1]]
    assert torch.equal(spread(found, (3,)), found)


# -- what it is for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_meta_gradients(name):
    check_meta_gradient(make(LearnedMLP, **OPTIONS[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_per_task(name):
    check_weights_per_task(make(LearnedMLP, **OPTIONS[name]))


@pytest.mark.parametrize("name", ["default", "horizon"])
def test_rows_have_states_of_their_own(name):
    check_restarted_rows(make(LearnedMLP, **OPTIONS[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_moves_follow_the_rate(name):
    check_moves_follow_the_rate(LearnedMLP, **OPTIONS[name])


def test_gradients_that_are_zero_have_derivatives():
    rule, params = make(LearnedMLP), {name: value.requires_grad_() for name, value in parameters().items()}
    state, after = rule.init(params), params
    for step in range(3):
        grads = {name: 0.0 * value if name == "scale" else value for name, value in gradients(after, step)[0].items()}
        after, state = rule.update(grads, state, after, None)
    summed = sum(value.sum() for value in after.values())
    for found in torch.autograd.grad(summed, [*params.values(), *rule.parameters()], materialize_grads=True):
        assert found.isfinite().all()


# -- in place ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_moves_in_place_are_the_same(name):
    rule, params, theirs = make(LearnedMLP, **OPTIONS[name]), parameters(1), parameters(1)
    params, theirs = rule.flatten(params), rule.flatten(theirs)
    state, own = rule.start(params), rule.start(theirs)
    move = rule.in_place()
    with torch.no_grad():
        for step in range(2 * AHEAD + 5):
            grads = rule.flatten(gradients(rule.unflatten(params), step)[0])
            moves, state = rule.move(grads, state, params, None)
            in_place, own = move(grads.clone(), own, theirs, None)
            torch.testing.assert_close(in_place, moves, rtol=1e-10, atol=1e-12)
            params, theirs = params + 0.01 * moves, theirs + 0.01 * in_place
    for ours, one in zip(state, own, strict=True):
        torch.testing.assert_close(one, ours, rtol=1e-10, atol=1e-12)


def test_in_place_from_a_state_in_the_middle():
    rule, params = make(LearnedMLP), parameters(1)
    params, state = unroll(rule, params)
    flat, grads = rule.flatten(params), rule.flatten(gradients(params, STEPS)[0])
    expected, _ = rule.move(grads, state, flat, None)
    move = rule.in_place()
    other = rule.start(flat)
    move(grads, other, flat)  # of another training
    found, after = move(grads, tuple(leaf.detach().clone() for leaf in state), flat)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    assert after[2].item() == STEPS + 1


def test_other_rules_move_as_they_do():
    from metarl.updates import Adam

    rule = make(Adam)
    assert rule.in_place() == rule.move


# -- its arguments -----------------------------------------------------------------------------------------------


def test_signals_only_where_they_are_read():
    from metarl.updates import Adam

    rule, params = make(Adam), parameters()
    with pytest.raises(TypeError, match="dormancy"):
        rule.update(gradients(params, 0)[0], rule.init(params), params, None, dormancy=params)


def test_a_call_is_an_update():
    rule, params = make(LearnedMLP), parameters()
    grads, _ = gradients(params, 0)
    zeros = {name: torch.zeros_like(value) for name, value in rule.named_parameters()}
    zeros["shares"] = rule.shares.detach()
    after, _ = functional_call(rule, zeros, (grads, rule.init(params), params, None))
    # nothing but Adam's first move: one unit of the rate
    for name, value in after.items():
        torch.testing.assert_close(value, params[name] - 0.125 * grads[name].sign(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(base="rmsprop"), "base must be one of adam, nesterov, momentum, sgd, got 'rmsprop'"),
        (dict(hidden=()), r"hidden must be sizes of layers, got \(\)"),
        (dict(hidden=(8, 0)), "hidden must be an integer of at least 1, got 0"),
        (dict(hidden=(8, 2.5)), "hidden must be an integer of at least 1, got 2.5"),
        (dict(momentum=0.0), "momentum must be above 0 and below 1, got 0.0"),
        (dict(decays=[0.5, 1.0]), "decays must be at least 0 and below 1, got 1.0"),
        (dict(square_decay="slow"), "square_decay must be at least 0 and below 1, got 'slow'"),
        (dict(horizon=0), "horizon must be above 0, got 0"),
        (dict(eps=-1e-8), "eps must be above 0, got -1e-08"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(LearnedMLP, **options)

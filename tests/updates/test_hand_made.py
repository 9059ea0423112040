"""Hand-made rules against their twins in `torch.optim`, and by hand."""

import pytest
import torch
from rule_checks import TASKS, check_moves_follow_the_rate, check_restarted_rows, gradients, make, parameters, unroll
from torch.utils._pytree import tree_leaves

from metarl.updates import HAND_MADE, RULES, SGD, Adadelta, Adagrad, Adam, Momentum, Nesterov, RMSprop, hand_made
from metarl.updates.base import Coordinatewise

optim = torch.optim
TWINS = {
    "momentum": (Momentum, {}, optim.SGD, dict(momentum=0.9)),
    "heavy momentum": (Momentum, dict(momentum=0.99), optim.SGD, dict(momentum=0.99)),
    "nesterov": (Nesterov, dict(momentum=0.8), optim.SGD, dict(momentum=0.8, nesterov=True)),
    "adagrad": (Adagrad, {}, optim.Adagrad, {}),
    "adagrad, eps": (Adagrad, dict(eps=0.1), optim.Adagrad, dict(eps=0.1)),
    "adadelta": (Adadelta, {}, optim.Adadelta, {}),
    "adadelta, rho": (Adadelta, dict(rho=0.5, eps=1e-3), optim.Adadelta, dict(rho=0.5, eps=1e-3)),
    "rmsprop": (RMSprop, {}, optim.RMSprop, {}),
    "rmsprop, as A2C's": (RMSprop, dict(alpha=0.95, eps=1e-5), optim.RMSprop, dict(alpha=0.95, eps=1e-5)),
    "adam": (Adam, {}, optim.Adam, {}),
    "adam, as PPO's": (Adam, dict(eps=1e-5), optim.Adam, dict(eps=1e-5)),
    "adam, decays": (Adam, dict(beta1=0.5, beta2=0.9), optim.Adam, dict(betas=(0.5, 0.9))),
    "adam, no mean": (Adam, dict(beta1=0.0), optim.Adam, dict(betas=(0.0, 0.999))),
}
KINDS = (Momentum, Nesterov, Adagrad, Adadelta, RMSprop, Adam)


@pytest.mark.parametrize("name", TWINS)
def test_equal_to_torch(name):
    kind, options, twin, twin_options = TWINS[name]
    rule, params = make(kind, 0.0625, **options), parameters()
    theirs = [{n: value[task].clone() for n, value in params.items()} for task in range(TASKS)]
    optimizers = [twin([value.requires_grad_() for value in own.values()], lr=0.0625, **twin_options) for own in theirs]
    state = rule.init(params)
    for step in range(20):
        grads, losses = gradients(params, step)
        grads["net.weight"][1, 0] = 0.0  # no gradient, ever
        for task, (own, optimizer) in enumerate(zip(theirs, optimizers, strict=True)):
            for n, value in own.items():
                value.grad = grads[n][task].clone()
            optimizer.step()
        params, state = rule.update(grads, state, params, losses)
        for task, own in enumerate(theirs):
            for n, value in own.items():
                torch.testing.assert_close(params[n][task], value.detach(), rtol=1e-10, atol=1e-12)
    assert torch.equal(params["net.weight"][1, 0], parameters()["net.weight"][1, 0])


@pytest.mark.parametrize("step", [1, 2, 10, 1000])
def test_adam_is_exact_in_single_precision_too(step):
    """`1 - 0.999^t` taken as it stands would be wrong by one part in a hundred thousand at first."""
    weight = hand_made.newest(0.999, torch.tensor([float(step)]))
    torch.testing.assert_close(weight.item(), 0.001 / (1 - 0.999**step), rtol=3e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_states_of_their_own(kind):
    check_restarted_rows(make(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_moves_follow_the_rate(kind):
    check_moves_follow_the_rate(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_zero_has_a_derivative(kind):
    """Roots of zero have none; MAML differentiates through inputs that never come up."""
    rule, params = make(kind), {name: value.requires_grad_() for name, value in parameters().items()}
    state, after = rule.init(params), params
    for step in range(2):
        grads = {name: 0.0 * value if name == "scale" else value for name, value in gradients(after, step)[0].items()}
        after, state = rule.update(grads, state, after, None)
    for found in torch.autograd.grad(sum(value.sum() for value in after.values()), list(params.values())):
        assert found.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_the_start(kind):
    """Against central differences."""
    rule, params = make(kind), parameters()
    params["net.bias"].requires_grad_()
    (found,) = torch.autograd.grad(unroll(rule, params)[0]["net.bias"].sum(), params["net.bias"])
    with torch.no_grad():
        ends = []
        for sign in (1, -2, 1):
            params["net.bias"][0, 1] += sign * 1e-6
            ends.append(unroll(rule, params)[0]["net.bias"].sum())
    torch.testing.assert_close(found[0, 1], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_hand_made_ones_have_nothing_to_learn():
    assert {name for name, kind in RULES.items() if not [*make(kind).parameters()]} == {*HAND_MADE}
    assert RULES["sgd"] is SGD
    for name in HAND_MADE[1:]:
        assert issubclass(RULES[name], Coordinatewise)
        assert RULES[name]({"a": torch.zeros(2)}, 0.1).state_dict() == {}


def test_states_are_tensors_by_row():
    params = parameters()
    for name in HAND_MADE[1:]:
        assert {len(leaf) for leaf in tree_leaves(make(RULES[name]).init(params))} == {TASKS}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Momentum, dict(momentum=1.0), "momentum must be at least 0 and below 1, got 1.0"),
        (Nesterov, dict(momentum=-0.1), "momentum must be at least 0 and below 1, got -0.1"),
        (Adam, dict(beta1=True), "beta1 must be at least 0 and below 1, got True"),
        (Adam, dict(beta2="high"), "beta2 must be at least 0 and below 1, got 'high'"),
        (Adam, dict(eps=0.0), "eps must be above 0, got 0.0"),
        (Adagrad, dict(eps=float("inf")), "eps must be above 0, got inf"),
        (Adadelta, dict(rho=2), "rho must be at least 0 and below 1, got 2"),
        (RMSprop, dict(alpha=float("nan")), "alpha must be at least 0 and below 1, got nan"),
    ],
)
def test_options_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(kind, **options)

"""Optim4RL: against PyTorch's cells, where it starts, and the derivative that stands for that of a sign."""

import math

import pytest
import torch
from rule_checks import (
    STEPS,
    TASKS,
    check_moves_follow_the_rate,
    check_restarted_rows,
    check_weights_per_task,
    gradients,
    make,
    outcome,
    parameters,
    unroll,
)
from test_lstm_optimizer import torch_cell

from metarl.updates import Adam, Optim4RL

OPTIONS = {"default": {}, "paper": dict(base=None), "small": dict(base=None, hidden=3, width=4)}


def mlp(layers, x):
    """`x [M, I]` through the linear layers, with ReLUs between them."""
    linear = [layer for layer in layers if hasattr(layer, "weight")]
    for place, layer in enumerate(linear):
        x = x @ layer.weight.mT + layer.bias
        x = x.clamp_min(0.0) if place + 1 < len(linear) else x
    return x


@pytest.mark.parametrize("name", OPTIONS)
def test_against_torchs_cells(name):
    rule, params = make(Optim4RL, noise=1.0, rate=0.001, **OPTIONS[name]), parameters()
    cells, own = [torch_cell(rule.rnn1), torch_cell(rule.rnn2)], [None, None]
    adam, state = make(Adam), rule.init(params)
    adam_state, turned = adam.init(params), []
    with torch.no_grad():
        for step in range(4):
            grads, losses = gradients(params, step)
            grads["scale"] = 0.0 * grads["scale"]
            before, flat = rule.flatten(params), rule.flatten(grads).flatten()
            params, state = rule.update(grads, state, params, losses)
            log = torch.tensor([math.log(abs(g) + 1e-18) for g in flat.tolist()], dtype=torch.float64)
            inputs = torch.stack([flat.sign(), log], 1), 2.0 * log[:, None]
            own = [cell(x, h) for cell, x, h in zip(cells, inputs, own, strict=True)]
            (a, b), c = mlp(rule.mlp1, own[0]).unbind(1), mlp(rule.mlp2, own[1])[:, 0]
            direction = -flat.sign()
            if rule.base is not None:
                adam_move, adam_state = adam.move(rule.flatten(grads), adam_state, before, None)
                direction = adam_move.flatten()
            s = torch.tensor([1.0 if value >= -1.0 else -1.0 for value in a.tolist()], dtype=torch.float64)
            turned += s.tolist()
            move = (direction * s * b.exp() / c.exp().sqrt()).view(TASKS, -1)
            torch.testing.assert_close(rule.flatten(params), before + 0.001 * move, rtol=1e-10, atol=1e-12)
    assert name != "default" or {*turned} == {-1.0, 1.0}


def test_it_starts_as_adam():
    rule, adam, params = make(Optim4RL, noise=0.0), make(Adam), parameters()
    theirs, state, adam_state = params, rule.init(params), adam.init(params)
    for step in range(10):
        params, state = rule.update(gradients(params, step)[0], state, params, None)
        theirs, adam_state = adam.update(gradients(theirs, step)[0], adam_state, theirs, None)
    for name, value in params.items():
        torch.testing.assert_close(value.detach(), theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_meta_gradients(name):
    """Against central differences, for what the sign does not depend on and gradients that do not depend on the rule."""
    rule, start = make(Optim4RL, **OPTIONS[name]), parameters()
    turn = rule.mlp1[-1]
    with torch.no_grad():
        turn.weight[0], turn.bias[0] = 0.0, 0.5

    def value():
        params, state = start, rule.init(start)
        for step in range(STEPS):
            params, state = rule.update(gradients(start, step)[0], state, params, None)
        return outcome(params)

    learned = dict(rule.named_parameters())
    generator = torch.Generator().manual_seed(1)
    for (key, variable), gradient in zip(learned.items(), torch.autograd.grad(value(), list(learned.values())), strict=True):
        direction = torch.randn(variable.shape, generator=generator, dtype=torch.float64)
        if variable is turn.weight or variable is turn.bias:
            direction[0] = 0.0
        with torch.no_grad():
            ends = []
            for sign in (1, -2, 1):
                variable += sign * 1e-6 * direction
                ends.append(value().item())
        expected = (ends[0] - ends[1]) / 2e-6
        assert abs(expected) > 1e-7, key
        torch.testing.assert_close((gradient * direction).sum().item(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bias", [0.5, -1.5])
def test_the_derivative_of_the_sign_is_that_of_tanh(bias):
    rule, params = make(Optim4RL, base=None), parameters()
    turn = rule.mlp1[-1]
    with torch.no_grad():
        turn.weight[0], turn.bias[0] = 0.0, bias
    after, _ = rule.update(gradients(params, 0)[0], rule.init(params), params, None)
    moved = rule.flatten(after) - rule.flatten(params)
    (found,) = torch.autograd.grad(moved.sum(), turn.bias)
    sign = 1.0 if bias > -1 else -1.0
    expected = (sign * moved).sum() * (1.0 - math.tanh(bias + 1.0) ** 2)  # moves are proportional to the sign
    torch.testing.assert_close(found[0], expected.detach())


def test_no_derivative_passes_through_what_it_reads():
    rule, params = make(Optim4RL, base=None), {n: value.requires_grad_() for n, value in parameters().items()}
    after, _ = rule.update(gradients(params, 0)[0], rule.init(params), params, None)
    for found in torch.autograd.grad(sum(value.sum() for value in after.values()), list(params.values())):
        assert (found == 1).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_rows_and_rate(name):
    check_weights_per_task(make(Optim4RL, **OPTIONS[name]))
    check_restarted_rows(make(Optim4RL, **OPTIONS[name]))
    check_moves_follow_the_rate(Optim4RL, **OPTIONS[name])


def test_they_go_on_from_a_state_in_the_middle():
    rule, params = make(Optim4RL), parameters()
    whole, _ = unroll(rule, params, 6)
    middle, state = unroll(rule, params, 2)
    rest, _ = unroll(rule, middle, 4, state=state, first=2)
    for name, value in whole.items():
        torch.testing.assert_close(rest[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(base="nesterov"), "base must be adam or None, got 'nesterov'"),
        (dict(hidden=0), "hidden must be an integer of at least 1, got 0"),
        (dict(width=-3), "width must be an integer of at least 1, got -3"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(Optim4RL, **options)

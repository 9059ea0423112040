"""The LSTM meta-learner: against PyTorch's LSTM and its gates written out, and where it starts."""

import math

import pytest
import torch
from rule_checks import (
    TASKS,
    check_meta_gradient,
    check_moves_follow_the_rate,
    check_restarted_rows,
    check_weights_per_task,
    gradients,
    make,
    parameters,
)
from test_lstm_optimizer import features, torch_cell

from metarl.updates import LSTMMetaLearner

SMALL = dict(hidden=3, p=4.0, input_bias=-1.0, forget_bias=2.0)


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


@pytest.mark.parametrize("options", [{}, SMALL], ids=["default", "small"])
@pytest.mark.parametrize("known", [True, False])
def test_against_gates_written_out(options, known):
    rule, params = make(LSTMMetaLearner, **options), parameters()
    p, input_bias = options.get("p", 10.0), options.get("input_bias", -2.0)
    cell, state, own = torch_cell(rule.reader), rule.init(params), None
    w_input, w_forget = rule.gates.weight.tolist()
    b_input, b_forget = rule.gates.bias.tolist()
    i, f = [0.0] * 27, [0.0] * 27
    for step in range(4):
        grads, losses = gradients(params, step)
        before, flat = rule.flatten(params).flatten().tolist(), rule.flatten(grads).flatten().tolist()
        params, state = rule.update(grads, state, params, losses if known else None)
        told = [features(loss, p) if known else [-1.0, 0.0] for loss in losses.tolist()]
        x = [[*features(g, p), *told[place // 9]] for place, g in enumerate(flat)]
        own = cell(torch.tensor(x, dtype=torch.float64), own)
        h = own[0].tolist()
        after = []
        for n, (number, g) in enumerate(zip(before, flat, strict=True)):
            read = [*h[n], number]
            i[n], f[n] = (
                sigmoid(sum(w * x for w, x in zip(weights, [*read, gate], strict=True)) + bias)
                for weights, gate, bias in ((w_input, i[n], b_input), (w_forget, f[n], b_forget))
            )
            paper = f[n] * number - i[n] * g  # what the paper's rule makes of it
            after.append(number + 0.125 / sigmoid(input_bias) * (paper - number))
        expected = torch.tensor(after, dtype=torch.float64).view(TASKS, 9)
        torch.testing.assert_close(rule.flatten(params).detach(), expected, rtol=1e-10, atol=1e-12)


def test_at_the_rate_of_its_gate_it_is_the_papers_rule():
    """The paper's cell, `f p - i g`, without a factor."""
    rule, params = make(LSTMMetaLearner, sigmoid(-2.0)), parameters()
    grads, losses = gradients(params, 0)
    after, (_, gates) = rule.update(grads, rule.init(params), params, losses)
    i, f = gates.unbind(1)
    torch.testing.assert_close(rule.flatten(after), f * rule.flatten(params) - i * rule.flatten(grads))


def test_it_starts_near_gradient_descent():
    rule, params = make(LSTMMetaLearner, noise=0.0), parameters()
    state = rule.init(params)
    for step in range(3):
        grads, losses = gradients(params, step)
        after, state = rule.update(grads, state, params, losses)
        decay = (1.0 - sigmoid(8.0)) / sigmoid(-2.0)
        assert decay < 0.003
        for name, value in after.items():
            torch.testing.assert_close(
                value, params[name] - 0.125 * (grads[name] + decay * params[name]), rtol=1e-9, atol=1e-12
            )
        params = after


@pytest.mark.parametrize("options", [{}, SMALL], ids=["default", "small"])
def test_meta_gradients_weights_rows_and_rate(options):
    check_meta_gradient(make(LSTMMetaLearner, **options))
    check_weights_per_task(make(LSTMMetaLearner, **options))
    check_restarted_rows(make(LSTMMetaLearner, **options))
    check_moves_follow_the_rate(LSTMMetaLearner, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(p=-1.0), "p must be above 0, got -1.0"),
        (dict(hidden=0), "hidden must be an integer of at least 1, got 0"),
        (dict(input_bias=float("nan")), "input_bias must be finite, got nan"),
        (dict(forget_bias="large"), "forget_bias must be finite, got 'large'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(LSTMMetaLearner, **options)

"""The LSTM optimizer: against PyTorch's cells, number by number; and recurrent cells and preprocessing on their own."""

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
from torch import nn

from metarl.updates import Adam, LSTMOptimizer
from metarl.updates.recurrent import GRU, LSTM, log_and_sign

OPTIONS = {
    "default": {},
    "paper": dict(base=None),
    "small": dict(base=None, hidden=3, layers=1, p=2.0, scale=1.0),
    "three layers": dict(hidden=4, layers=3),
}


def torch_cell(ours):
    """PyTorch's cell with the weights of one of ours."""
    if isinstance(ours, LSTM):
        weight, bias = ours.gates.weight.detach(), ours.gates.bias.detach()
        cell = nn.LSTMCell(weight.shape[1] - ours.hidden_size, ours.hidden_size).double()
        w_input, w_state = weight.split([cell.input_size, cell.hidden_size], 1)
        biases = bias, torch.zeros_like(bias)
    else:
        w_input, w_state = ours.from_input.weight.detach(), ours.from_state.weight.detach()
        cell = nn.GRUCell(w_input.shape[1], ours.hidden_size).double()
        biases = ours.from_input.bias.detach(), ours.from_state.bias.detach()
    cell.weight_ih.data, cell.weight_hh.data, cell.bias_ih.data, cell.bias_hh.data = w_input, w_state, *biases
    return cell


def features(gradient, p):
    """Appendix A of the paper, as it stands."""
    if abs(gradient) >= math.exp(-p):
        return [math.log(abs(gradient)) / p, math.copysign(1.0, gradient)]
    return [-1.0, math.exp(p) * gradient]


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_cells_equal_torchs(kind):
    torch.manual_seed(0)
    cell, x = kind(4, 3, torch.zeros(()).double()), torch.randn(2, 4, 5, dtype=torch.float64)
    state = cell.start(x[:, 0])
    twin, own = torch_cell(cell), None
    for _ in range(3):
        state = cell(x, state)
        own = twin(x.mT.flatten(0, 1), own)
        x = x.roll(1, 2)
    ours, theirs = (state, own) if kind is LSTM else ((state,), (own,))
    for part, one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(part.mT.flatten(0, 1), one)


def test_logarithm_and_sign_by_hand():
    x = torch.tensor([[math.e**2, -(math.e**-3), math.e**-10, 0.0, -1e-8]], dtype=torch.float64)
    expected = torch.tensor(
        [[0.2, -0.3, -1.0, -1.0, -1.0], [1.0, -1.0, 1.0, 0.0, -1e-8 * math.exp(10)]], dtype=torch.float64
    )
    torch.testing.assert_close(log_and_sign(x, 10.0)[0], expected)
    numbers = [1e-9, -4e-5, 5e-5, 0.3, -70.0, 1e6]
    found = log_and_sign(torch.tensor([numbers], dtype=torch.float64), 10.0)[0].T
    torch.testing.assert_close(found, torch.tensor([features(g, 10.0) for g in numbers], dtype=torch.float64))
    zero = torch.zeros(1, 1, requires_grad=True)
    log_and_sign(zero, 10.0).sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("name", OPTIONS)
def test_against_torchs_cells(name):
    rule, params = make(LSTMOptimizer, **OPTIONS[name]), parameters()
    p, scale = OPTIONS[name].get("p", 10.0), OPTIONS[name].get("scale", 0.1)
    cells, weight = [torch_cell(layer) for layer in rule.layers], rule.out.weight.detach()
    adam, state = make(Adam), rule.init(params)
    adam_state, own = adam.init(params), [None] * len(cells)
    with torch.no_grad():
        for step in range(4):
            grads, losses = gradients(params, step)
            grads["net.bias"] = 1e-6 * grads["net.bias"]  # below e^-10 = 4.5e-5
            before = rule.flatten(params)
            params, state = rule.update(grads, state, params, losses)
            x = torch.tensor([features(g, p) for g in rule.flatten(grads).flatten().tolist()], dtype=torch.float64)
            for place, cell in enumerate(cells):
                own[place] = cell(x, own[place])
                x = own[place][0]
            move = scale * (x @ weight.mT + rule.out.bias).view(TASKS, -1)
            if rule.base is not None:
                adam_move, adam_state = adam.move(rule.flatten(grads), adam_state, before, None)
                move = move + adam_move
            torch.testing.assert_close(rule.flatten(params), before + 0.125 * move, rtol=1e-10, atol=1e-12)


def test_it_starts_as_adam():
    rule, adam, params = make(LSTMOptimizer, noise=0.0), make(Adam), parameters()
    theirs, state, adam_state = params, rule.init(params), adam.init(params)
    for step in range(10):
        params, state = rule.update(gradients(params, step)[0], state, params, None)
        theirs, adam_state = adam.update(gradients(theirs, step)[0], adam_state, theirs, None)
    for name, value in params.items():
        torch.testing.assert_close(value.detach(), theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIONS)
def test_meta_gradients(name):
    check_meta_gradient(make(LSTMOptimizer, **OPTIONS[name]))


@pytest.mark.parametrize("name", ["default", "paper"])
def test_weights_rows_and_rate(name):
    check_weights_per_task(make(LSTMOptimizer, **OPTIONS[name]))
    check_restarted_rows(make(LSTMOptimizer, **OPTIONS[name]))
    check_moves_follow_the_rate(LSTMOptimizer, **OPTIONS[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(base="sgd"), "base must be adam or None, got 'sgd'"),
        (dict(p=0.0), "p must be above 0, got 0.0"),
        (dict(scale=-1.0), "scale must be above 0, got -1.0"),
        (dict(hidden=0), "hidden must be an integer of at least 1, got 0"),
        (dict(layers=0), "layers must be an integer of at least 1, got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(LSTMOptimizer, **options)

"""The guard of `LearnedOptimizer`: what is not taken, what is taken back, and what is said."""

import logging
import math
import re

import pytest
import torch
from small_trainings import made, network, numbers, on_disk, train
from torch import nn

from metarl.updates.torch_optimizer import LearnedOptimizer


def spoilt(optimizer, params, steps, at, value):
    """Steps of gradients 1, of which that of step `at` is `value` in one place of the first parameter."""
    for step in steps:
        for n, param in enumerate(params):
            param.grad = torch.ones_like(param)
            if step == at and n == 0:
                param.grad.flatten()[0] = value
        optimizer.step()


@pytest.mark.parametrize(
    ("value", "what"), [(math.nan, "not finite"), (math.inf, "not finite"), (1e9, r"exploded \(1e\+09\)")]
)
def test_a_group_that_diverges_goes_on_with_adam_and_says_so_once(value, what, caplog):
    params = [nn.Parameter(torch.zeros(3).double()) for _ in range(4)]
    groups = [{"params": params[:2], "lr": 0.5}, {"params": params[2:]}]
    optimizer = LearnedOptimizer(groups, lr=0.1, rule="momentum", options={"momentum": 0.0})
    with caplog.at_level(logging.WARNING, "metarl"):
        spoilt(optimizer, params, range(10), 4, value)
    (record,) = caplog.records
    message = f"^parameter group 0 goes on with Adam at rate 0.5: norm of the gradients {what} at step 5$"
    assert (record.name, record.levelname) == ("metarl", "WARNING")
    assert re.match(message, record.getMessage())
    # three steps of the rule; the fourth is taken back, and Adam takes it; the fifth gradient is left out
    for param in params[:2]:
        assert param.tolist() == pytest.approx([-0.5 * 3 - 0.5 * 6] * 3)
    for param in params[2:]:
        assert param.tolist() == pytest.approx([-0.1 * 10] * 3)


def test_a_loss_that_diverges(caplog):
    param = nn.Parameter(torch.ones(2).double())
    optimizer = LearnedOptimizer([param], lr=0.1, rule="momentum", options={"momentum": 0.0})
    losses = iter([1.0, 1.0, 5e3, 1.0])

    def closure():
        param.grad = torch.ones_like(param)
        return next(losses)

    for _ in range(4):
        optimizer.step(closure)
    assert [record.getMessage() for record in caplog.records] == [
        "parameter group 0 goes on with Adam at rate 0.1: loss exploded (5e+03) at step 3"
    ]
    assert param.tolist() == pytest.approx([1 - 0.1 - 0.1 - 0.1] * 2)


def test_without_a_guard_steps_are_taken_whatever_they_are():
    param = nn.Parameter(torch.zeros(2))
    optimizer = LearnedOptimizer([param], lr=0.1, rule="momentum", guard=False)
    param.grad = torch.tensor([math.nan, 1.0])
    optimizer.step()
    assert param[0].isnan()
    assert param[1] == -0.1


def test_parameters_that_somebody_else_has_changed_are_not_taken_back(caplog):
    params = [nn.Parameter(torch.zeros(2).double())]
    optimizer = LearnedOptimizer(params, lr=0.1, rule="momentum", options={"momentum": 0.0})
    spoilt(optimizer, params, range(3), None, 0)
    params[0].data.fill_(5.0)
    spoilt(optimizer, params, range(1), 0, math.nan)
    assert params[0].tolist() == pytest.approx([5.0 - 0.1] * 2)
    assert len(caplog.records) == 1


def test_the_whole_group_falls_back(caplog):
    """Also parameters that step at other times, and those that come later."""
    params = [nn.Parameter(torch.zeros(2).double()) for _ in range(3)]
    optimizer = LearnedOptimizer(params, lr=0.1, rule="momentum")
    for present in ([0, 1], [0], [1]):
        for n, param in enumerate(params):
            param.grad = torch.ones_like(param) if n in present else None
        optimizer.step()
    assert [param.tolist() for param in params] == [pytest.approx([-0.29] * 2), pytest.approx([-0.29] * 2), [0, 0]]
    params[0].grad, params[1].grad = torch.full_like(params[0], math.nan), None
    optimizer.step()
    assert params[0].tolist() == pytest.approx([-0.2] * 2)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert params[1].tolist() == pytest.approx([-0.39] * 2)
    assert params[2].tolist() == pytest.approx([-0.1] * 2)
    assert len(caplog.records) == 1


def test_with_adam_gradients_that_are_not_finite_are_left_out_and_it_says_so_once(caplog):
    params = [nn.Parameter(torch.zeros(2).double())]
    optimizer = LearnedOptimizer(params, lr=0.1, rule="momentum")
    for _ in range(3):
        spoilt(optimizer, params, range(1), 0, math.nan)
    assert not params[0].any()
    assert [record.getMessage() for record in caplog.records] == [
        "parameter group 0 goes on with Adam at rate 0.1: norm of the gradients not finite at step 1",
        "parameter group 0: gradients are not finite, such steps are left out",
    ]


def test_a_fall_is_remembered(caplog):
    nets = [network() for _ in range(3)]
    straight, first = made(nets[0], "learned"), made(nets[1], "learned")
    for net, optimizer in zip(nets[:2], (straight, first), strict=True):
        train(net, optimizer, range(3))
        spoilt(optimizer, list(net.parameters()), range(1), 0, math.nan)
    train(nets[0], straight, range(3, 8))
    nets[2].load_state_dict(nets[1].state_dict())
    continued = made(nets[2], "learned")
    continued.load_state_dict(on_disk(first.state_dict()))
    train(nets[2], continued, range(3, 8))
    assert torch.equal(numbers(nets[2]), numbers(nets[0]))
    assert len(caplog.records) == 2

"""Rules under `torch.compile`: the same moves, and the same derivatives through several steps."""

import shutil

import pytest
import torch
from rule_checks import make, outcome, parameters

from metarl.updates import LearnedMLP, LSTMMetaLearner, LSTMOptimizer, Optim4RL

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own, while it loads its compiler
]


def losses_of(params):
    targets = enumerate(params.values())
    return sum(((1.5 + i) * (value - 0.3 * i).square()).reshape(len(value), -1).sum(1) for i, value in targets)


def value(rule, params):
    state = rule.init(params)
    for _ in range(2):
        losses = losses_of(params)
        grads = torch.func.grad(lambda p: losses_of(p).sum())(params)
        params, state = rule.update(grads, state, params, losses)
    return outcome(params)


@pytest.mark.parametrize(
    "kind",
    [
        LSTMMetaLearner,
        LearnedMLP,
        pytest.param(LSTMOptimizer, marks=pytest.mark.slow),
        pytest.param(Optim4RL, marks=pytest.mark.slow),
    ],
)
def test_derivatives_are_the_same(kind):
    rule, params = make(kind), {name: value.requires_grad_() for name, value in parameters().items()}
    variables = {**params, **dict(rule.named_parameters())}
    torch._dynamo.reset()
    plain, compiled = (
        torch.autograd.grad(function(rule, params), list(variables.values()), materialize_grads=True)
        for function in (value, torch.compile(value))
    )
    for name, ours, theirs in zip(variables, compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=name)

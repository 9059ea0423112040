"""`LearnedOptimizer` beside `torch.optim`, step by step."""

import copy
import math
import shutil

import pytest
import torch
from small_trainings import LEARNED, Drift, loss_of, made, network, numbers, on_disk, train
from torch import nn

import metarl
from metarl.updates import RULES
from metarl.updates.torch_optimizer import LearnedOptimizer

TWINS = {
    "momentum": (lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9)),
    "nesterov": (lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9, nesterov=True)),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


@pytest.fixture(autouse=True)
def _a_rule_of_our_own(monkeypatch):
    monkeypatch.setitem(RULES, "drift", Drift)


# -- steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("name", TWINS)
def test_hand_made_rules_are_those_of_torch(name, guard):
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    train(ours, made(ours, name, guard=guard), range(60))
    train(theirs, TWINS[name](theirs.parameters(), 0.01), range(60))
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*LEARNED, "drift"])
def test_the_functional_face_takes_the_same_steps(name):
    net, rate = network(), 0.02
    optimizer = made(net, name, lr=rate)
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]  # a layer each
    params = {key: param.detach().clone()[None] for key, param in zip(names, net.parameters(), strict=True)}
    rule = RULES[name]({key: value[0] for key, value in params.items()}, rate)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    optimizer.load_state_dict({**optimizer.state_dict(), "rule": rule_of(rule, name)})
    state = rule.init(params)
    for step in range(20):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        grads = {key: param.grad[None].clone() for key, param in zip(names, net.parameters(), strict=True)}
        optimizer.step()
        with torch.no_grad():
            params, state = rule.update(grads, state, params, None)
    torch.testing.assert_close(numbers(net), torch.cat([value.flatten() for value in params.values()]))


def rule_of(rule, name):
    weights = {key: value.detach().clone() for key, value in rule.state_dict().items()}
    return {"name": name, "options": {}, "rate": 0.01, "weights": weights}


def test_untrained_learned_rules_start_as_adam():
    ours, theirs = network(), network()
    train(ours, made(ours, "learned"), range(30))
    train(theirs, torch.optim.Adam(theirs.parameters(), 0.01), range(30))
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "learned", "drift"])
def test_steps_are_proportional_to_the_rate(name):
    moved = []
    for rate in (1.0, 0.25, 0.0):
        net = network(dtype=torch.float64)
        before, optimizer = numbers(net), made(net, name, lr=0.5)
        optimizer.param_groups[0]["lr"] = rate  # as Stable-Baselines3 does
        train(net, optimizer, [0])
        moved.append(numbers(net) - before)
    assert moved[0].abs().min() > 1e-6
    torch.testing.assert_close(moved[0], 4 * moved[1])
    assert not moved[2].any()


def test_groups_have_rates_and_states_of_their_own():
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    groups = [[{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.1}] for net in (ours, theirs)]
    train(ours, LearnedOptimizer(groups[0], lr=0.001, rule="adam"), range(40))
    train(theirs, torch.optim.Adam(groups[1], lr=0.001), range(40))
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=1e-9, atol=1e-12)


def test_a_group_that_is_added_later():
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    for net, kind in (
        (ours, lambda p: LearnedOptimizer(p, lr=0.01, rule="adam")),
        (theirs, lambda p: torch.optim.Adam(p, 0.01)),
    ):
        optimizer = kind(net[0].parameters())
        train(net, optimizer, range(10))
        optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.1})
        train(net, optimizer, range(10, 30))
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("guard", [False, True])
def test_parameters_without_a_gradient_are_left_alone_and_so_is_their_state(guard):
    """As in `torch.optim`, where each parameter counts its own steps."""
    torch.manual_seed(0)
    shapes, present = [(3, 2), (4,), (), (2, 2)], torch.rand(60, 4) < torch.tensor([0.9, 0.5, 0.5, 0.3])
    present[:20, 3] = False  # the last one comes later
    params = [[nn.Parameter(torch.ones(shape).double()) for shape in shapes] for _ in range(2)]
    both = LearnedOptimizer(params[0], lr=0.1, rule="adam", guard=guard), torch.optim.Adam(params[1], lr=0.1)
    for row in present.tolist():
        grads = [torch.randn(shape).double() for shape in shapes]
        for optimizer, changing in zip(both, params, strict=True):
            for param, grad, there in zip(changing, grads, row, strict=True):
                param.grad = grad.clone() if there else None
            optimizer.step()
    for ours, theirs in zip(*params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert sorted(block.indices for block in both[0]._blocks[0]) == [[0], [1], [2], [3]]


def test_what_a_rule_knows_of_the_whole_group_stays_when_some_have_no_gradient():
    params = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    optimizer = LearnedOptimizer(params, lr=1.0, rule="drift")
    for param, there in zip(params, (False, True, True), strict=True):
        param.grad = torch.zeros(2) if there else None
    optimizer.step()
    assert [param.detach().tolist() for param in params] == [[0, 0], pytest.approx([-0.01] * 2), pytest.approx([-0.02] * 2)]
    params[1].grad = None
    optimizer.step()
    assert params[1].detach().tolist() == pytest.approx([-0.01] * 2)
    expected = -0.02 + (0.5 * 0.02 - 0.02) / 1.1  # pulled back to its start, by what it remembers; its second step
    assert params[2].detach().tolist() == pytest.approx([expected] * 2)


def test_layers_are_told_apart_without_names():
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2))
    log_std = nn.Parameter(torch.zeros(2))
    without = LearnedOptimizer([log_std, *net.parameters()], lr=0.1, rule="learned")
    named = LearnedOptimizer([("log_std", log_std), *net.named_parameters()], lr=0.1, rule="learned")
    for param in (log_std, *net.parameters()):
        param.grad = torch.zeros_like(param)
    depths = []
    for optimizer in (without, named):
        optimizer.step()
        depths.append(optimizer._blocks[0][0].rule.places)
    assert torch.equal(*depths)
    assert depths[0][0, 1].unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_no_gradients_at_all():
    net = network()
    before, optimizer = numbers(net), made(net, "adam")
    optimizer.step()
    assert optimizer.step(lambda: 3.5) == 3.5
    assert torch.equal(numbers(net), before)


def test_precisions_side_by_side():
    params = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    optimizer = LearnedOptimizer(params, lr=0.1, rule="adam")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert [param.dtype for param in params] == [torch.float32, torch.float64]
    assert params[1].tolist() == pytest.approx([0.9] * 3, abs=1e-8)
    assert params[0].tolist() == pytest.approx([0.9] * 3, abs=1e-6)


def test_strides_of_any_order():
    param = nn.Parameter(torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1))
    plain = nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
    grad = torch.randn(4, 3, 2).transpose(1, 2)
    for changing in (param, plain):
        changing.grad = grad.clone() if changing is plain else grad
        LearnedOptimizer([changing], lr=0.1, rule="momentum").step()
    assert torch.equal(param, plain)
    torch.testing.assert_close(plain, torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1) - 0.1 * grad)


def test_the_rule_is_told_the_loss():
    param = nn.Parameter(torch.zeros(2))
    optimizer = LearnedOptimizer([param], lr=1.0, rule="drift")

    def closure():
        optimizer.zero_grad()
        loss = 3.0 + 0.0 * param.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert param.tolist() == pytest.approx([-0.03] * 2)
    assert torch.is_grad_enabled()


def test_the_horizon_reaches_the_rule():
    optimizer = made(network(), "drift", horizon=70)
    assert optimizer.state_dict()["rule"]["options"] == {"horizon": 70}
    with pytest.raises(ValueError, match=r"^rule 'adam' does not fit: got an unexpected keyword argument 'horizon'$"):
        made(network(), "adam", horizon=70)


def test_zero_grad_and_hooks():
    net = network()
    optimizer, seen = made(net, "adam"), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(net, optimizer, [0])
    optimizer.zero_grad()
    assert seen == ["before", "after"]
    assert all(param.grad is None for param in net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.005


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of weights and rule must be given, got weights=None, rule=None"),
        ({"rule": "adam", "weights": "x"}, "one of weights and rule must be given, got weights='x', rule='adam'"),
        ({"rule": "adam"}, "lr must be given for rule 'adam', got None"),
        ({"rule": "adma", "lr": 0.1}, r"rule 'adma' is unknown \(did you mean adam\?\): known are .*"),
        ({"rule": "meta_sgd", "lr": 0.1}, "rule 'meta_sgd' is unknown.*"),
        ({"rule": "adam", "lr": -0.1}, "lr must be a finite number of at least 0, got -0.1"),
        ({"rule": "adam", "lr": math.nan}, "lr must be a finite number of at least 0, got nan"),
        ({"rule": "adam", "lr": True}, "lr must be a finite number of at least 0, got True"),
        ({"rule": "adam", "lr": torch.tensor(0.1)}, r"lr must be a finite number of at least 0, got tensor\(0.1000\)"),
        ({"rule": "adam", "lr": 0.1, "guard": 1}, "guard must be true or false, got 1"),
        ({"rule": "adam", "lr": 0.1, "options": {"beta3": 1}}, "rule 'adam' does not fit: .*'beta3'"),
        ({"rule": "adam", "lr": 0.1, "options": {"beta1": 2}}, "rule 'adam' does not fit: beta1 must be .*"),
        ({"weights": "gone.safetensors"}, "weights: there is no file gone.safetensors"),
        ({"weights": "gone"}, "weights 'gone' is unknown.*"),
        ({"weights": "gone", "options": {}}, "options go with rule, weights have their own, got {}"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        LearnedOptimizer(network().parameters(), **arguments)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16, torch.bfloat16])
def test_types_of_parameters_that_are_refused(dtype):
    param = nn.Parameter(torch.zeros(2, dtype=dtype))
    with pytest.raises(ValueError, match=f"^params must be of torch.float32 or torch.float64, got {dtype}$"):
        LearnedOptimizer([param], lr=0.1, rule="adam")
    net = network()
    optimizer = made(net, "adam")
    with pytest.raises(ValueError, match=r"^params must be of "):
        optimizer.add_param_group({"params": [param]})
    train(net, optimizer, range(2))
    assert len(optimizer.param_groups) == len(optimizer.state_dict()["blocks"]) == 1


@pytest.mark.parametrize("num", [1, 2])
def test_sparse_gradients_are_refused(num):
    table = nn.Embedding(4, 2, sparse=True)
    other = nn.Parameter(torch.zeros(3))
    (table(torch.tensor([1])).sum() + other.sum()).backward()
    optimizer = LearnedOptimizer([table.weight, other][:num], lr=0.1, rule="adam")
    with pytest.raises(ValueError, match=r"^gradients must be dense, got torch.sparse_coo$"):
        optimizer.step()


def test_it_is_in_the_package():
    assert metarl.LearnedOptimizer is LearnedOptimizer
    assert "LearnedOptimizer" in metarl.__all__


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it loads its compiler
@pytest.mark.parametrize("name", ["learned", "optim4rl"])
def test_compiled(name):
    ours, theirs = network(), network()
    optimizer = made(ours, name, compile=True)
    train(ours, optimizer, range(5))
    train(theirs, made(theirs, name), range(5))
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=1e-4, atol=1e-5)
    other, copied = copy.deepcopy((ours, optimizer))
    train(other, copied, range(5, 7))
    train(ours, optimizer, range(5, 7))
    assert torch.equal(numbers(ours), numbers(other))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [*TWINS, *LEARNED])
def test_on_a_gpu(name):
    ours, theirs = network().cuda(), network()
    optimizer = made(ours, name)
    train(ours, optimizer, range(10))
    train(theirs, made(theirs, name), range(10))
    torch.testing.assert_close(numbers(ours).cpu(), numbers(theirs), rtol=1e-3, atol=1e-4)
    continued = made(ours, name)
    continued.load_state_dict(on_disk(optimizer.state_dict()))
    train(ours, continued, range(10, 12))
    assert numbers(ours).isfinite().all()

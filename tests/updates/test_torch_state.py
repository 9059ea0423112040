"""The state of a `LearnedOptimizer`: saved, loaded, copied, refused."""

import copy
import pickle

import pytest
import torch
from small_trainings import LEARNED, Drift, loss_of, made, network, numbers, on_disk, same, train
from torch import nn

from metarl.updates import HAND_MADE, RULES
from metarl.updates.torch_optimizer import LearnedOptimizer
from metarl.updates.weights import save_rule


@pytest.fixture(autouse=True)
def _a_rule_of_our_own(monkeypatch):
    monkeypatch.setitem(RULES, "drift", Drift)


@pytest.mark.parametrize("name", [*(name for name in HAND_MADE if name != "sgd"), *LEARNED, "drift"])
def test_training_goes_on_equal_to_the_bit(name):
    straight, first, second = network(), network(), network(seed=9)
    train(straight, made(straight, name), range(14))
    optimizer = made(first, name)
    train(first, optimizer, range(7))
    second.load_state_dict(on_disk(first.state_dict()))
    continued = made(second, name, lr=0.5)
    continued.load_state_dict(on_disk(optimizer.state_dict()))
    assert same(continued.state_dict(), optimizer.state_dict())
    train(second, continued, range(7, 14))
    assert torch.equal(numbers(second), numbers(straight))


def test_groups_and_missing_gradients_go_on_too():
    def play(steps, optimizer, params):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for n, param in enumerate(params):
                grad = torch.randn(param.shape, generator=generator)
                param.grad = None if (step + n) % 3 == 0 else grad
            optimizer.step()

    def start():
        params = [nn.Parameter(torch.ones(n + 1, 2)) for n in range(5)]
        return LearnedOptimizer([{"params": params[:3]}, {"params": params[3:], "lr": 0.3}], lr=0.1, rule="drift"), params

    straight, expected = start()
    play(range(20), straight, expected)
    optimizer, first = start()
    play(range(8), optimizer, first)
    continued, second = start()
    continued.load_state_dict(on_disk(optimizer.state_dict()))
    for ours, theirs in zip(second, first, strict=True):
        ours.data.copy_(theirs.data)
    play(range(8, 20), continued, second)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(second, expected, strict=True))
    assert same(continued.state_dict(), straight.state_dict())


def test_a_state_is_a_copy_both_ways():
    net = network()
    optimizer = made(net, "adam")
    train(net, optimizer, range(3))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    train(net, optimizer, range(3, 6))
    assert same(state["blocks"], kept["blocks"])
    other = made(network(), "adam")
    other.load_state_dict(state)
    train(network(), other, range(1))
    assert same(state["blocks"], kept["blocks"])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("name", ["adam", "learned", "drift"])
def test_copies_go_on_by_themselves(name, how):
    net = network()
    optimizer = made(net, name)
    train(net, optimizer, range(5))
    other, copied = how((net, optimizer))
    assert next(other.parameters()) is copied.param_groups[0]["params"][0]
    train(other, copied, range(5, 10))
    assert not torch.equal(numbers(other), numbers(net))
    train(net, optimizer, range(5, 10))
    assert torch.equal(numbers(other), numbers(net))


def test_the_weights_travel_with_the_state(tmp_path):
    net, other = network(), network()
    rule = Drift({"w": torch.zeros(2)}, 0.5)
    path = save_rule(tmp_path / "a.safetensors", rule, "drift", {"strength": 0.125})
    optimizer = LearnedOptimizer(net.parameters(), weights=str(path))
    assert optimizer.param_groups[0]["lr"] == 0.5
    train(net, optimizer, range(3))
    rule.scale.data.fill_(7.0)
    save_rule(path, rule, "drift")  # trained anew
    other.load_state_dict(net.state_dict())
    for stand_in in (LearnedOptimizer(other.parameters(), weights=path), made(other, "adam")):
        stand_in.load_state_dict(optimizer.state_dict())
        assert stand_in._blocks[0][0].rule.scale.tolist() == [1.5, 0.25]
        assert stand_in._blocks[0][0].rule.strength == 0.125
    path.unlink()
    train(net, optimizer, range(3, 6))
    train(other, stand_in, range(3, 6))
    assert torch.equal(numbers(net), numbers(other))


def test_the_random_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    net = network()
    loss_of(net, 0).backward()
    torch.manual_seed(5)
    made(net, "lstm").step()
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("blocks"),
            "state_dict is not that of a LearnedOptimizer: it has state, param_groups, rule",
        ),
        (
            lambda state: state["rule"].update(name="drft"),
            r"state_dict does not fit: rule 'drft' is unknown \(did you mean drift\?.*",
        ),
        (lambda state: state["rule"].pop("rate"), "state_dict does not fit: .*rate.*"),
        (lambda state: state["blocks"].append([]), "state_dict does not fit: .*"),
        (lambda state: state["blocks"][0][0].pop("levels"), "state_dict does not fit: 'levels'"),
        (
            lambda state: state["blocks"][0][0].update(indices=[0, 1]),
            r"state_dict does not fit: a tensor of shape \(1, 2, 32\) where \(1, 2, 20\) is needed",
        ),
        (lambda state: state["blocks"][0][0]["tensors"]["rule"].pop("first"), "state_dict does not fit: entries .*"),
    ],
)
def test_states_that_do_not_fit(change, message):
    net = network()
    optimizer = made(net, "drift")
    train(net, optimizer, range(2))
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        optimizer.load_state_dict(state)


def test_the_state_of_adam_is_refused():
    net = network()
    adam = torch.optim.Adam(net.parameters())
    train(net, adam, range(2))
    with pytest.raises(RuntimeError, match=r"^state_dict is not that of a LearnedOptimizer: it has state, param_groups$"):
        made(net, "adam").load_state_dict(adam.state_dict())

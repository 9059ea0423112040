"""Digit classifiers against torch.nn, one network at a time."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from metarl.batched import of_task
from metarl.problems import DigitClassifiers, unroll
from metarl.problems.classifiers import load_halves
from metarl.updates import RULES


def begin(num=3, split="train", seed=0, **options):
    problem, rng = DigitClassifiers(**options), np.random.default_rng(seed)
    instances = problem.sample(num, split, rng)
    return problem, instances, problem.start(instances, rng), rng


def twin(hidden, activation):
    layers, width = [], 64
    for size in hidden:
        layers += [nn.Linear(width, size), activation()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 10))


@pytest.mark.parametrize(
    ("hidden", "activation", "twins"), [((20,), "sigmoid", nn.Sigmoid), ((20, 7), "relu", nn.ReLU), ((), "tanh", nn.Tanh)]
)
def test_losses_and_gradients_of_each_network(hidden, activation, twins):
    problem, instances, params, rng = begin(hidden_sizes=hidden, activation=activation)
    images, digits = batch = problem.draw(instances, rng)
    assert (images.shape, digits.shape) == ((3, 128, 64), (3, 128))
    gradients, losses = problem.gradients(params, instances, batch)
    network = twin(hidden, twins)
    assert {n: v.shape for n, v in network.named_parameters()} == {n: v.shape for n, v in problem.template().items()}
    for n in range(3):
        own = {name: value.requires_grad_() for name, value in of_task(params, n).items()}
        loss = nn.CrossEntropyLoss()(functional_call(network, own, (images[n],)), digits[n])
        torch.testing.assert_close(losses[n], loss.detach())
        for name, gradient in zip(own, torch.autograd.grad(loss, own.values()), strict=True):
            torch.testing.assert_close(gradients[name][n], gradient, atol=1e-7, rtol=1e-4)


def test_parameters_start_as_those_of_linear_layers():
    torch.manual_seed(0)
    _, _, params, _ = begin(num=200, hidden_sizes=(20, 30))
    networks = [dict(twin((20, 30), nn.Sigmoid).named_parameters()) for _ in range(200)]
    for name, ours in params.items():
        theirs = torch.stack([network[name] for network in networks])
        assert ours.shape == theirs.shape
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.03)
        assert abs(ours.mean().item()) < 0.01
        assert len({tuple(row) for row in ours.flatten(1).tolist()}) == 200


def test_halves_are_disjoint_and_whole():
    from sklearn.datasets import load_digits

    images, digits = load_halves()
    assert (images.shape, digits.shape) == ((2, 898, 64), (2, 898))
    assert (images.min(), images.max()) == (0, 1)
    original = {tuple(image): digit for image, digit in zip(*load_digits(return_X_y=True), strict=True)}
    both = [tuple(image) for image in (16 * images).flatten(0, 1).tolist()]
    assert len(set(both)) == len(both) == 1796
    assert [original[image] for image in both] == digits.flatten().tolist()
    assert [len(set(half.tolist())) for half in digits] == [10, 10]


@pytest.mark.parametrize(("split", "half"), [("train", 0), ("test", 1)])
def test_splits_draw_from_their_own_half(split, half):
    problem, instances, _, rng = begin(num=20, split=split)
    images, digits = problem.draw(instances, rng)
    pool = {tuple(image): digit for image, digit in zip(*(part[half].tolist() for part in load_halves()), strict=True)}
    assert [pool[tuple(image)] for image in images.flatten(0, 1).tolist()] == digits.flatten().tolist()
    assert len({tuple(image) for image in images.flatten(0, 1).tolist()}) > 750  # 898 (1 - e^-2.85) = 846 are expected
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images, problem.draw(instances, rng)[0])


def test_networks_learn_digits_that_they_have_not_seen():
    problem, instances, _, rng = begin(num=4)
    losses = unroll(problem, RULES["adam"](problem.template(), 0.07), instances, 100, rng)
    assert losses[0].mean().item() == pytest.approx(np.log(10), abs=0.1)
    assert losses[-1].max() < 0.15
    run = problem.begin(RULES["adam"](problem.template(), 0.07), instances, rng)
    assert problem.accuracy(run.params, run.instances).mean() < 0.3
    for _ in range(100):
        run, _ = problem.advance(run, RULES["adam"](problem.template(), 0.07), rng)
    assert problem.accuracy(run.params, run.instances).min() > 0.9


def test_without_scikit_learn(monkeypatch):
    problem, instances, _, rng = begin()
    load_halves.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^the digits need scikit-learn: pip install 'metarl-toolkit\[fewshot\]'$"
    ):
        problem.draw(instances, rng)


def test_names():
    assert DigitClassifiers().name == "digits-sigmoid-20"
    assert DigitClassifiers((20, 20), "relu").name == "digits-relu-20-20"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "elu"}, "activation must be one of sigmoid, relu, tanh, got 'elu'"),
        ({"hidden_sizes": (20, 0)}, r"hidden_sizes must be at least 1, got \(20, 0\)"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DigitClassifiers(**options)

"""The hypernetwork: what it writes, example by example; its loss; and learning."""

import pytest
import torch
from metric_checks import (
    NUMBERS,
    PICTURES,
    VECTORS,
    check_learns,
    check_tasks_queries_and_orders,
    episodes,
    moved,
    train,
    vectors_in_noise,
)

from metarl.fewshot.datasets.curves import Sinusoids
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.hypernetwork import HyperNetwork

TEXTS = TaskSpec(shape=(4,), outputs=3, vocabulary=9)
SPECS = {"pictures": PICTURES, "vectors": VECTORS, "regression": NUMBERS}


def make(spec, **options):
    torch.manual_seed(0)
    network = {"width": 4} if spec is PICTURES else {"hidden": (6,)}
    return moved(HyperNetwork(spec, **{"codes": 5, "layers": (7, 3), **network, **options}))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_against_the_equations(spec):
    learner, data = make(spec), episodes(spec)
    outputs = learner(*data[:3])
    support, stats = learner.network(data.support_x)
    inputs = learner.network(data.query_x, stats=stats)[0] if spec is PICTURES else data.query_x
    for n in range(3):
        y = data.support_y[n]
        read = [
            learner.reader(one if spec.classification else torch.cat([one, target]))
            for one, target in zip(support[n], y, strict=True)
        ]
        task, layers, at = sum(read) / len(read), [], 0
        written = learner.hidden_writer(task)
        for i, o in [(inputs.shape[-1], 7), (7, 3)]:
            start = learner.hidden.layers[1 + 2 * len(layers)]
            weight = start.weight + written[at : at + i * o].view(o, i)
            layers.append((weight, start.bias + written[at + i * o : at + i * o + o]))
            at += i * o + o
        assert at == len(written)
        if spec.classification:
            of = [[r for r, label in zip(read, y, strict=True) if label == c] for c in range(3)]
            rows = torch.stack([learner.last_writer(torch.cat([task, sum(own) / len(own)])) for own in of])
        else:
            rows = learner.last_writer(task).view(2, 4)
        for q, x in enumerate(inputs[n]):
            for weight, bias in layers:
                x = (weight @ x + bias).relu()
            torch.testing.assert_close(outputs[n, q], rows[:, :3] @ x + rows[:, 3])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_loss(spec):
    learner, data = make(spec, alpha=0.5, beta=0.25), episodes(spec)
    losses, (written, _) = learner.losses(data), learner.condition(*data[:2])
    for n in range(3):
        weights = torch.cat([value[n].flatten() for value in written.values()])
        rows = 3 if spec.classification else 2
        inputs = {"pictures": 4, "vectors": 4, "regression": 1}[next(k for k, v in SPECS.items() if v is spec)]
        assert len(weights) == (inputs + 1) * 7 + (7 + 1) * 3 + (3 + 1) * rows
        error = learner.task_losses(learner(*data[:3]), data.query_y)[n]
        torch.testing.assert_close(losses[n], 0.5 * error + 0.25 * sum(abs(w) for w in weights) / len(weights))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tasks_queries_and_orders(spec):
    check_tasks_queries_and_orders(make(spec))


def test_texts_are_read_as_features():
    learner = HyperNetwork(TEXTS, codes=5, layers=(7,), hidden=(6,))
    x = torch.randint(9, (2, 3, 4))
    assert learner(x, torch.tensor([[0, 1, 2]]).expand(2, -1), x).shape == (2, 3, 3)
    assert learner.hidden.layers[1].in_features == 6


def test_it_learns_to_classify():
    check_learns(HyperNetwork, vectors_in_noise(), 0.75, iterations=250)


def test_it_learns_curves():
    torch.manual_seed(0)
    source = Sinusoids()
    learner, test = HyperNetwork(source.spec), source.episodes("test", range(100))
    train(learner, source, 400)
    with torch.no_grad():
        assert learner.task_losses(learner(*test[:3]), test.query_y).mean() < 1.5  # the mean function: 3.4


def test_sparsity_makes_weights_small():
    source, sizes = Sinusoids(), []
    for beta in (0.0, 10.0):
        torch.manual_seed(0)
        learner = HyperNetwork(source.spec, beta=beta)
        train(learner, source, 100)
        written, _ = learner.condition(*source.episodes("test", range(10))[:2])
        sizes.append(torch.cat([value.flatten() for value in written.values()]).abs().mean().item())
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(codes=0), "codes must be an integer of at least 1, got 0"),
        (dict(layers=(4, 0)), r"layers must be sizes of at least 1, got \(4, 0\)"),
        (dict(layers=()), r"layers must be sizes of at least 1, got \(\)"),
        (dict(alpha=-1.0), "alpha must be at least 0, got -1.0"),
        (dict(beta=float("inf")), "beta must be at least 0, got inf"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        HyperNetwork(VECTORS, **options)

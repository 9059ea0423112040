"""Baselines: by hand, against PyTorch's own optimizers one task after another, and what they can and cannot learn."""

import dataclasses

import pytest
import torch
from metric_checks import (
    NUMBERS,
    PICTURES,
    VECTORS,
    accuracy,
    check_label_order,
    check_other_ways,
    check_queries,
    check_support_order,
    check_tasks_are_apart,
    episodes,
    moved,
    train,
    vectors_in_noise,
)
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from metarl.fewshot.baselines import FineTuning, FromScratch, MultiTaskAveraging, NearestNeighbour
from metarl.fewshot.datasets.curves import Sinusoids
from metarl.fewshot.episodes import TaskSpec

SPECS = {
    "pictures": dataclasses.replace(PICTURES, train_classes=7),
    "vectors": dataclasses.replace(VECTORS, train_classes=7),
    "regression": NUMBERS,
}


def make(kind, spec, **options):
    torch.manual_seed(0)
    return moved(kind(spec, **({"width": 4} if len(spec.shape) == 3 else {"hidden": (6,)}), **options))


def numbered(spec):
    """Random episodes, with the numbers of their classes among the training classes."""
    data = episodes(spec)
    if not spec.classification:
        return data
    return data._replace(classes=torch.stack([torch.randperm(7)[:3] for _ in range(3)]))


def together(data):
    return torch.cat([data.support_x, data.query_x], 1), torch.cat([data.support_y, data.query_y], 1)


# -- fine-tuning, and training from scratch ----------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pre_training_is_on_all_training_classes(spec):
    learner, data = make(FineTuning, spec), numbered(spec)
    losses, (x, y), *body = learner.losses(data), together(data), *learner.network.layers
    for n in range(3):
        hidden = x[n]
        for layer in body if not spec.classification else [*body[:-1], learner.classifier]:
            if hasattr(layer, "statistics"):
                hidden = nn.functional.batch_norm(hidden, None, None, layer.weight, layer.bias, training=True)
            else:
                hidden = layer(hidden)
        if spec.classification:
            assert hidden.shape == (12, 7)
            y_global = torch.tensor([data.classes[n, label] for label in y[n]])
            torch.testing.assert_close(losses[n], cross_entropy(hidden, y_global))
        else:
            torch.testing.assert_close(losses[n], mse_loss(hidden, y[n]))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize(
    ("kind", "options", "optimizer"),
    [
        (FineTuning, dict(steps=4), lambda params: torch.optim.SGD(params, 0.01)),
        (FineTuning, dict(steps=4, update_rule="adam", rate=0.02), lambda params: torch.optim.Adam(params, 0.02)),
        (FromScratch, dict(steps=4), lambda params: torch.optim.Adam(params, 0.01)),
    ],
)
@pytest.mark.parametrize("spec", [SPECS["vectors"], NUMBERS], ids=["vectors", "regression"])
def test_steps_are_those_of_an_optimizer_on_one_task(spec, kind, options, optimizer, head_only):
    learner, data = make(kind, spec, head_only=head_only, **options).eval(), numbered(spec)
    outputs = learner(*data[:3])
    for n in range(3):
        torch.manual_seed(0)
        twin = nn.Sequential(*make(kind, spec).network.layers)
        taught = optimizer((twin[-1] if head_only else twin).parameters())
        for _ in range(4):
            taught.zero_grad()
            (cross_entropy if spec.classification else mse_loss)(twin(data.support_x[n]), data.support_y[n]).backward()
            taught.step()
        torch.testing.assert_close(outputs[n], twin(data.query_x[n]))


def test_the_new_last_layer_starts_at_zero_and_is_not_pre_trained():
    learner, data = FineTuning(SPECS["vectors"]), numbered(SPECS["vectors"])
    learner.losses(data).sum().backward()
    grads = {name: value.grad for name, value in learner.named_parameters()}
    last = f"network.layers.{len(learner.network.layers) - 1}."
    assert {name for name, grad in grads.items() if grad is None} == {last + "weight", last + "bias"}
    assert not learner.network.layers[-1].weight.any()
    assert not learner.condition(*data[:2], steps=0).params[last.removeprefix("network.") + "weight"].any()
    curves = FineTuning(NUMBERS)
    curves.losses(episodes(NUMBERS)).sum().backward()
    assert all(value.grad is not None for value in curves.parameters())


def test_classes_to_pre_train_on_must_be_known():
    message = "^train_classes must be at least 2 to pre-train on them, got 0$"
    with pytest.raises(ValueError, match=message):
        FineTuning(VECTORS)


@pytest.mark.parametrize("head_only", [False, True])
def test_fine_tuning_classifies_better_than_from_scratch(head_only):
    torch.manual_seed(0)
    source = vectors_in_noise(shots=5)
    test = source.episodes("test", range(40))
    learner = FineTuning(source.spec, head_only=head_only, update_rule="adam")
    train(learner, source, 200)
    assert accuracy(learner.eval(), test) > accuracy(FromScratch(source.spec).eval(), test) + 0.1


# -- multi-task averaging ----------------------------------------------------------------------------------------


def test_averaging_stays_at_chance_where_labels_are_places():
    torch.manual_seed(0)
    source = vectors_in_noise()
    learner = MultiTaskAveraging(source.spec)
    train(learner, source, 100)
    assert 0.16 < accuracy(learner, source.episodes("test", range(100))) < 0.24


def test_averaging_learns_the_mean_function():
    """Of sinusoids with amplitude uniform in [.1, 5] and phase in [0, pi] it is `-2.55 cos(x) 2 / pi`."""
    torch.manual_seed(0)
    source = Sinusoids()
    learner = MultiTaskAveraging(source.spec)
    train(learner, source, 300, batch=50)
    x = torch.linspace(-4.5, 4.5, 50).view(1, -1, 1)
    with torch.no_grad():
        mean = learner(*source.episodes("test", [0])[:2], x)
    assert (mean + 2.55 * 2.0 / torch.pi * torch.cos(x)).square().mean() < 0.1


# -- nearest neighbour -------------------------------------------------------------------------------------------


def test_nearest_neighbour_by_hand():
    learner = NearestNeighbour(TaskSpec(shape=(2,), outputs=2))
    support, labels = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 6.0]]]), torch.tensor([[0, 1, 0]])
    logits = learner(support, labels, torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 8.0]]]))
    torch.testing.assert_close(logits, -torch.tensor([[[0.0, 5.0], [3.0, 4.0], [13.0**0.5, 4.0]]]))
    learner = NearestNeighbour(TaskSpec(shape=(1,), outputs=2, classification=False))
    x, y = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[5.0, 6.0], [7.0, 8.0]]])
    assert learner(x, y, torch.tensor([[[0.9], [-3.0], [0.4]]])).tolist() == [[[7, 8], [5, 6], [5, 6]]]


def test_nearest_neighbour_of_texts_is_that_of_the_largest_cosine():
    learner = NearestNeighbour(TaskSpec(shape=(4,), outputs=2, vocabulary=5))
    support, labels = torch.tensor([[[1, 1, 2, 0], [3, 4, 0, 0]]]), torch.tensor([[0, 1]])
    query = torch.tensor([[[2, 1, 0, 0], [4, 4, 4, 1], [0, 0, 0, 0]]])
    distances = -learner(support, labels, query)
    cosines = torch.tensor([[3.0 / 10**0.5, 0.0], [2.0 / 50**0.5, 3.0 / 20**0.5]])
    torch.testing.assert_close(distances[0, :2].square(), 2.0 - 2.0 * cosines)
    assert distances[0, 2].tolist() == pytest.approx([1.0, 1.0])  # an empty one is as far from both


def test_nearest_neighbour_of_near_examples():
    """Distances much smaller than the examples are still told apart."""
    learner = NearestNeighbour(TaskSpec(shape=(2,), outputs=2))
    support, labels = 100.0 + torch.tensor([[[0.0, 0.001], [0.0, 0.002]]]), torch.tensor([[0, 1]])
    assert learner(support, labels, support).argmax(-1).tolist() == [[0, 1]]


# -- what holds for all of them ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", [FineTuning, FromScratch, MultiTaskAveraging])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tasks_queries_and_orders(spec, kind):
    learner = make(kind, spec, **({} if kind is MultiTaskAveraging else dict(steps=3)))
    losses = learner.losses
    learner.losses = lambda data: losses(data._replace(classes=torch.tensor([[3, 0, 6]]).expand(len(data[0]), -1)))
    check_tasks_are_apart(learner)
    check_queries(learner, normalises=len(spec.shape) == 3)
    check_support_order(learner)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tasks_queries_and_orders_of_nearest_neighbour(spec):
    learner = NearestNeighbour(spec)
    check_tasks_are_apart(learner)
    check_queries(learner, normalises=False)
    check_support_order(learner)
    if spec.classification:
        check_label_order(learner)
        check_other_ways(learner)


def test_what_is_trained_over_tasks():
    trained = {kind: kind.trained for kind in (FineTuning, FromScratch, MultiTaskAveraging, NearestNeighbour)}
    assert [*trained.values()] == [True, False, True, False]

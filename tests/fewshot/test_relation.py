"""Relation networks: against the paper's equations, pair by pair on concatenated feature maps, and learning."""

import pytest
import torch
from metric_checks import (
    NUMBERS,
    PICTURES,
    VECTORS,
    check_learns,
    check_queries,
    check_tasks_queries_and_orders,
    episodes,
    moved,
    pictures,
    vectors_in_noise,
)
from torch.nn.functional import batch_norm, conv2d, linear, max_pool2d

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.networks import BatchNorm
from metarl.fewshot.relation import RelationNetwork

OMNIGLOT = TaskSpec(shape=(1, 28, 28), outputs=3, shots=2)
WIDE = TaskSpec(shape=(2, 70, 40), outputs=3, shots=2)
SPECS = {"pictures": PICTURES, "vectors": VECTORS}


def make(spec, **options):
    torch.manual_seed(0)
    return moved(RelationNetwork(spec, **({"width": 4} if len(spec.shape) == 3 else {"hidden": (6,)}), **options))


def compare(learner, pairs):
    """The paper's module on concatenations `[P, 2 channels, h, w]` or `[P, 2 features]`, normalised by themselves."""
    first = torch.cat([learner.of_query.layers[0].weight, learner.of_class.layers[0].weight], 1)
    bias = learner.of_query.layers[0].bias
    layers = list(learner.relation.layers)
    if pairs.ndim == 2:
        x = linear(pairs, first, bias).relu()
    else:
        norms = [layer for layer in layers if isinstance(layer, BatchNorm)]
        middle = next(layer for layer in layers if isinstance(layer, torch.nn.Conv2d))
        x = pairs
        for norm, weight, shift in zip(norms, (first, middle.weight), (bias, middle.bias), strict=True):
            x = conv2d(x, weight, shift, padding=1)
            x = batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu()
            x = max_pool2d(x, 2) if min(x.shape[2:]) > 1 else x
        x = x.flatten(1)
    *_, eight, _, one = layers
    return linear(linear(x, eight.weight, eight.bias).relu(), one.weight, one.bias)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", [PICTURES, OMNIGLOT, WIDE, VECTORS])
def test_against_the_equations(spec):
    learner, data = make(spec), episodes(spec, queries=1)
    sizes = {PICTURES: (4, 3, 3), OMNIGLOT: (4, 7, 7), WIDE: (4, 17, 10), VECTORS: (6,)}
    support, _ = learner.network(data.support_x)
    query, _ = learner.network(data.query_x)
    assert query.shape[2:] == sizes[spec]
    logits = learner(*data[:3], transductive=True)
    losses = learner.losses(data, transductive=True)
    for n in range(3):
        sums = [sum(x for x, y in zip(support[n], data.support_y[n], strict=True) if y == c) for c in range(3)]
        expected = compare(learner, torch.stack([torch.cat([x, of_class]) for x in query[n] for of_class in sums]))
        torch.testing.assert_close(logits[n].flatten(), expected[:, 0])
        targets = torch.tensor([float(y == c) for y in data.query_y[n] for c in range(3)])
        torch.testing.assert_close(losses[n], ((expected[:, 0].sigmoid() - targets) ** 2).mean())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("kind", "size"), [("strided", 2), ("conv", 1)])
def test_small_maps(kind, size):
    """All four blocks halve 28 x 28."""
    learner, data = make(OMNIGLOT, kind=kind, halvings=4), episodes(OMNIGLOT)
    assert learner.condition(data.support_x, data.support_y)[0].shape == (3, 3, 4, size, size)
    check_queries(learner)


@pytest.mark.usefixtures("double")
def test_pairs_are_normalised_by_the_support_sets():
    """So asking about the support set gives the same in both modes."""
    learner, data = make(OMNIGLOT), episodes(OMNIGLOT)
    one, other = (learner(data.support_x, data.support_y, data.support_x, transductive) for transductive in (False, True))
    torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tasks_queries_and_orders(spec):
    check_tasks_queries_and_orders(make(spec))


@pytest.mark.usefixtures("double")
def test_without_normalisation():
    learner = make(PICTURES, normalise="none")
    assert not learner.relation.normalises
    check_queries(learner, normalises=False)


def test_it_learns():
    check_learns(lambda spec: RelationNetwork(spec, width=16), pictures(), 0.55)
    check_learns(RelationNetwork, vectors_in_noise(), 0.6, iterations=200)


def test_regression_is_refused():
    with pytest.raises(ValueError, match=r"^RelationNetwork is for classification only, but the tasks are regression$"):
        RelationNetwork(NUMBERS)


def test_a_class_with_other_numbers_of_examples_is_like_those_of_training():
    """Each example twice, or four times, is the same class."""
    learner, data = make(PICTURES, normalise="none"), episodes(PICTURES)
    twice = learner(data.support_x.repeat(1, 2, 1, 1, 1), data.support_y.repeat(1, 2), data.query_x)
    torch.testing.assert_close(twice, learner(*data[:3]))
    first = data.support_y == 0  # of one class only
    x, y = (torch.cat([part, part[first].unflatten(0, (len(part), -1))], 1) for part in (data.support_x, data.support_y))
    torch.testing.assert_close(learner(x, y, data.query_x), learner(*data[:3]))

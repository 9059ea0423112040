"""Prototypical networks: against the paper's equations by hand and example by example, and learning."""

import pytest
import torch
from metric_checks import (
    NUMBERS,
    PICTURES,
    VECTORS,
    as_it_is,
    check_learns,
    check_tasks_queries_and_orders,
    episodes,
    moved,
    vectors_in_noise,
)

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.prototypes import PrototypicalNetwork, squared_distances

SPECS = {"pictures": PICTURES, "vectors": VECTORS}


def make(spec, **options):
    torch.manual_seed(0)
    return moved(PrototypicalNetwork(spec, **({"width": 4} if spec is PICTURES else {"hidden": (6,)}), **options))


def test_by_hand():
    learner = as_it_is(PrototypicalNetwork(TaskSpec(shape=(2,), outputs=2)))
    support, labels = torch.tensor([[[0.0, 0.0], [0.0, 4.0], [2.0, 0.0]]]), torch.tensor([[0, 1, 0]])
    prototypes, _ = learner.condition(support, labels)
    assert prototypes.tolist() == [[[1, 0], [0, 4]]]
    logits = learner(support, labels, torch.tensor([[[1.0, 1.0], [0.0, 4.0]]]))
    assert logits.tolist() == [[[-1, -10], [-17, 0]]]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_against_the_equations(spec):
    learner, data = make(spec), episodes(spec)
    logits = learner(*data[:3])
    support, stats = learner.network(data.support_x)
    query, _ = learner.network(data.query_x, stats=stats)
    for n in range(3):
        for q in range(query.shape[1]):
            for c in range(3):
                members = [support[n, i] for i in range(support.shape[1]) if data.support_y[n, i] == c]
                difference = query[n, q] - sum(members) / len(members)
                torch.testing.assert_close(logits[n, q, c], -(difference * difference).sum())


@pytest.mark.usefixtures("double")
def test_squared_distances():
    x, y = torch.randn(3, 5, 4), torch.randn(3, 2, 4)
    torch.testing.assert_close(squared_distances(x, y), torch.cdist(x, y).square())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tasks_queries_and_orders(spec):
    check_tasks_queries_and_orders(make(spec))


def test_it_learns():
    check_learns(PrototypicalNetwork, vectors_in_noise(), 0.9)


def test_regression_is_refused():
    with pytest.raises(ValueError, match=r"^PrototypicalNetwork is for classification only, but the tasks are regression$"):
        PrototypicalNetwork(NUMBERS)


def test_distances_far_from_zero_are_exact():
    x = 1000.0 + torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(0))
    found = squared_distances(x[:, :40], x[:, 40:])
    expected = (x[:, :40, None].double() - x[:, None, 40:]).square().sum(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)

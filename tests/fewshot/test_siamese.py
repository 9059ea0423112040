"""Siamese networks: against the paper's equations by hand and pair by pair, and learning."""

import math

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

from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.siamese import SiameseNetwork

KINDS = [(PICTURES, "l1"), (VECTORS, "l1"), (VECTORS, "l2"), (VECTORS, "cosine")]


def make(spec, distance):
    torch.manual_seed(0)
    return moved(SiameseNetwork(spec, distance=distance, **({"width": 4} if spec is PICTURES else {"hidden": (6,)})))


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


@pytest.mark.usefixtures("double")
def test_by_hand():
    learner = as_it_is(SiameseNetwork(TaskSpec(shape=(2,), outputs=2), hidden=(2,)))
    with torch.no_grad():
        learner.weighting.weight.copy_(torch.tensor([[-1.0, -2.0]]))
        learner.weighting.bias.fill_(0.5)
    support, labels = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [0.0, 1.0]]]), torch.tensor([[0, 1, 0]])
    query = torch.tensor([[[1.0, 1.0]]])
    kept = learner.condition(support, labels)
    assert learner.log_odds(kept, query).tolist() == [[[-2.5, -3.5, -0.5]]]
    assert learner.answer(kept, query).tolist() == [[[-1.5, -3.5]]]
    loss = learner.losses(Episodes(support, labels, query, torch.tensor([[0]]), torch.tensor([[0, 1]])))
    same = -(math.log(sigmoid(-2.5)) + math.log(sigmoid(-0.5))) / 2
    assert loss.item() == pytest.approx((same - math.log(1.0 - sigmoid(-3.5))) / 2)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("spec", "distance"), KINDS)
def test_pair_by_pair(spec, distance):
    learner, data = make(spec, distance), episodes(spec)
    alpha, bias = learner.weighting.weight[0], learner.weighting.bias[0]
    support, stats = learner.network(data.support_x)
    query, _ = learner.network(data.query_x, stats=stats)
    logits, losses = learner(*data[:3]), learner.losses(data)
    for n in range(3):
        same, other = [], []
        for q, x in enumerate(query[n]):
            log_odds = []
            for s in support[n]:
                if distance == "l1":
                    log_odds.append((alpha * (x - s).abs()).sum() + bias)
                elif distance == "l2":
                    log_odds.append(alpha[0] * (x - s).square().sum().sqrt() + bias)
                else:
                    log_odds.append(alpha[0] * (1.0 - x @ s / (x.norm() * s.norm())) + bias)
            for c in range(3):
                members = [score for score, label in zip(log_odds, data.support_y[n], strict=True) if label == c]
                torch.testing.assert_close(logits[n, q, c], sum(members) / len(members))
            for score, label in zip(log_odds, data.support_y[n], strict=True):
                if label == data.query_y[n, q]:
                    same.append(-score.sigmoid().log())
                else:
                    other.append(-(1.0 - score.sigmoid()).log())
        torch.testing.assert_close(losses[n], (sum(same) / len(same) + sum(other) / len(other)) / 2)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("spec", "distance"), KINDS)
def test_tasks_queries_and_orders(spec, distance):
    check_tasks_queries_and_orders(make(spec, distance))


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_an_example_is_likeliest_its_own_pair_from_the_start(distance):
    learner, data = SiameseNetwork(VECTORS, distance=distance), episodes(VECTORS, shots=1)
    assert torch.equal(learner(data.support_x, data.support_y, data.support_x).argmax(-1), data.support_y)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_equal_examples_have_a_gradient(distance):
    learner, data = SiameseNetwork(VECTORS, distance=distance), episodes(VECTORS)
    learner.losses(data._replace(query_x=data.support_x, query_y=data.support_y)).sum().backward()
    assert all(value.grad.isfinite().all() for value in learner.parameters())


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_it_learns(distance):
    check_learns(lambda spec: SiameseNetwork(spec, distance=distance), vectors_in_noise(), 0.8)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"^distance 'cos' is unknown \(did you mean cosine\?\): known are l1, l2, cosine$"):
        SiameseNetwork(VECTORS, distance="cos")
    with pytest.raises(ValueError, match=r"^SiameseNetwork is for classification only, but the tasks are regression$"):
        SiameseNetwork(NUMBERS)


def test_one_query_or_many_are_answered_alike():
    learner = as_it_is(SiameseNetwork(TaskSpec(shape=(6,), outputs=2), distance="l2"))
    x = 100.0 * torch.randn(1, 70, 6, generator=torch.Generator().manual_seed(0))
    support, labels = x[:, :30], torch.arange(30)[None] % 2
    together = learner(support, labels, x)
    torch.testing.assert_close(together[:, 3:4], learner(support, labels, x[:, 3:4]), rtol=1e-6, atol=1e-6)

"""Matching networks: against the paper's equations example by example and gate by gate, and learning."""

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
    train,
    vectors_in_noise,
)

from metarl.fewshot.datasets.curves import Sinusoids
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.matching import MatchingNetwork

SPECS = {"pictures": PICTURES, "vectors": VECTORS, "regression": NUMBERS}


def make(spec, **options):
    torch.manual_seed(0)
    return moved(MatchingNetwork(spec, **({"width": 4} if spec is PICTURES else {"hidden": (6,)}), **options))


def test_by_hand():
    """Cosines 1, 0 and -1, at temperature 1."""
    learner = as_it_is(MatchingNetwork(TaskSpec(shape=(2,), outputs=2), temperature=1.0))
    support, labels = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]]), torch.tensor([[0, 1, 0]])
    total = math.e + 1.0 + 1.0 / math.e
    probabilities = learner(support, labels, torch.tensor([[[5.0, 0.0]]])).exp()
    torch.testing.assert_close(probabilities, torch.tensor([[[(math.e + 1.0 / math.e) / total, 1.0 / total]]]))
    learner = as_it_is(MatchingNetwork(TaskSpec(shape=(2,), outputs=1, classification=False), temperature=1.0))
    prediction = learner(support, torch.tensor([[[10.0], [20.0], [-10.0]]]), torch.tensor([[[5.0, 0.0]]]))
    torch.testing.assert_close(prediction, torch.tensor([[[(10.0 * math.e + 20.0 - 10.0 / math.e) / total]]]))


def lstm(x, h, c, w_x, w_h, bias):
    """Gates in PyTorch's order: input, forget, candidate, output."""
    i, f, g, o = (w_x @ x + w_h @ h + bias).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def read_support(rows, module, suffix):
    w_x, w_h, b_x, b_h = (getattr(module, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = c = torch.zeros_like(rows[0])
    outputs = []
    for x in rows:
        h, c = lstm(x, h, c, w_x, w_h, b_x + b_h)
        outputs.append(h)
    return outputs


def attend(x, rows, cell, steps):
    """Equations 3 to 6, with the LSTM's weights on `[h, r]` as one matrix."""
    size = len(x)
    w_x, w_r = cell.weight_ih.split(size, 1)
    w_hr = torch.cat([cell.weight_hh, w_r], 1)
    h, c = x, torch.zeros_like(x)
    for _ in range(steps):
        weights = [(h @ row).exp() for row in rows]
        r = sum(w / sum(weights) * row for w, row in zip(weights, rows, strict=True))
        new, c = lstm(x, torch.cat([h, r]), c, w_x, w_hr, cell.bias_ih + cell.bias_hh)
        h = new + x
    return h


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_against_the_equations(spec, steps):
    learner = make(spec, temperature=0.4, **({"fce": True, "steps": steps} if steps else {}))
    data = episodes(spec)
    outputs = learner(*data[:3])
    support, stats = learner.network(data.support_x)
    query, _ = learner.network(data.query_x, stats=stats)
    temperature = 1.0 / learner.log_scale.exp()
    for n in range(3):
        rows = list(support[n])
        if steps:
            forth, back = read_support(rows, learner.g, ""), read_support(rows[::-1], learner.g, "_reverse")[::-1]
            rows = [sum(parts) for parts in zip(forth, back, rows, strict=True)]
        for q, x in enumerate(query[n]):
            f = attend(x, rows, learner.f, steps) if steps else x
            norms = [(f.norm() * row.norm()).clamp_min(1e-12) for row in rows]  # features may all be 0
            weights = [(f @ row / norm / temperature).exp() for row, norm in zip(rows, norms, strict=True)]
            attention = torch.stack(weights) / sum(weights)
            if spec.classification:
                expected = torch.stack([attention[data.support_y[n] == c].sum() for c in range(3)]).log()
            else:
                expected = sum(a * y for a, y in zip(attention, data.support_y[n], strict=True))
            torch.testing.assert_close(outputs[n, q], expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("fce", [False, True])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_tasks_queries_and_orders(spec, fce):
    check_tasks_queries_and_orders(make(spec, fce=fce), order_matters=fce)


def test_logits_are_log_probabilities_however_sure():
    learner, data = MatchingNetwork(VECTORS, temperature=1e-4), episodes(VECTORS)
    logits = learner(*data[:3])
    assert logits.isfinite().all()
    assert logits.min() < -200
    torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(3, 6), rtol=0, atol=1e-3)
    learner.losses(data).sum().backward()
    assert all(value.grad.isfinite().all() for value in learner.parameters())


def test_the_temperature_may_stay_as_it_is():
    for learned in (True, False):
        learner = MatchingNetwork(VECTORS, temperature=0.5, learn_temperature=learned)
        assert learner.log_scale.exp().item() == pytest.approx(2.0)
        learner.losses(episodes(VECTORS)).sum().backward()
        assert (learner.log_scale.grad is not None) == learned
        assert "log_scale" in learner.state_dict()


@pytest.mark.parametrize("fce", [False, True])
def test_it_learns(fce):
    check_learns(lambda spec: MatchingNetwork(spec, fce=fce), vectors_in_noise(), 0.85)


def test_it_learns_regression():
    """Sinusoids have a variance of about 4."""
    torch.manual_seed(0)
    source = Sinusoids(shots=20)
    learner, test = MatchingNetwork(source.spec), source.episodes("test", range(50))
    train(learner, source, 150)
    with torch.no_grad():
        assert learner.losses(test).mean() < 0.4 * test.query_y.var()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(fce=True, steps=0), "steps must be an integer of at least 1, got 0"),
        (dict(temperature=0.0), "temperature must be above 0, got 0.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        MatchingNetwork(VECTORS, **options)


def test_with_full_context_support_sets_are_shuffled_in_training():
    learner, data = make(VECTORS, fce=True), episodes(VECTORS)
    torch.manual_seed(3)
    losses = learner.losses(data)
    torch.manual_seed(3)
    shuffled = data.shuffled()
    assert not torch.equal(shuffled.support_y, data.support_y)
    for n in range(3):  # the same examples with their labels
        rows = [sorted(zip(e.support_y[n].tolist(), e.support_x[n].tolist(), strict=True)) for e in (data, shuffled)]
        assert rows[0] == rows[1]
    torch.testing.assert_close(losses, learner.task_losses(learner(*shuffled[:3]), data.query_y))
    assert not make(VECTORS).draws

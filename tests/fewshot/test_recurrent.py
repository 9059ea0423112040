"""Memory learners: against loops over examples, and what must not reach what."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets.curves import Sinusoids
from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.mann import MANN
from metarl.fewshot.recurrent import MemoryLearner, accuracy_by_instance
from metarl.fewshot.snail import SNAIL

POINTS = TaskSpec(shape=(4,), outputs=3)
CURVES = TaskSpec(shape=(2,), outputs=2, classification=False)
PICTURES = TaskSpec(shape=(1, 8, 8), outputs=3)
TASKS, SHOTS, QUERIES = 3, 6, 4
SMALL = dict(size=5, core_kwargs=dict(num_slots=6, slot_size=3, num_reads=2))
KINDS = {
    "mann": lambda spec: MANN(spec, **SMALL),
    "snail": lambda spec: SNAIL(spec, 5, dict(context=8, filters=3, key_size=4, value_size=4)),
    "lstm": lambda spec: MemoryLearner(spec, size=5),
    "lstm at once": lambda spec: MemoryLearner(spec, size=5, late_labels=False),
    "ntm": lambda spec: MemoryLearner(spec, "ntm", 5, dict(num_slots=6, slot_size=3)),
}


def make(kind, spec=POINTS):
    torch.manual_seed(0)
    learner = KINDS[kind](spec).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def episodes(spec=POINTS, tasks=TASKS, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def answers(count):
        if spec.classification:
            return torch.randint(spec.outputs, (tasks, count), generator=generator)
        return normal(tasks, count, spec.outputs)

    x = normal(tasks, SHOTS, *spec.shape), normal(tasks, QUERIES, *spec.shape)
    return Episodes(x[0], answers(SHOTS), x[1], answers(QUERIES), torch.zeros(tasks, 0))


def label(learner, y):
    """What the core reads of one label, or of none: a class's is as long as the features."""
    if y is None:
        return torch.zeros(learner.spec.outputs + 1, dtype=torch.float64)
    if not learner.spec.classification:
        return torch.cat([y, torch.ones(1, dtype=torch.float64)])
    row = torch.cat([torch.eye(learner.spec.outputs)[y], torch.ones(1)])
    return (row * learner.norm.weight.numel() ** 0.5).double()


def step(learner, x, told, state):
    y, state = learner.core.step(torch.cat([x, told])[None], state)
    return learner.head(y)[0], state


@pytest.mark.parametrize("spec", [POINTS, CURVES, PICTURES], ids=["points", "curves", "pictures"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_a_loop_over_examples(kind, spec):
    learner, data = make(kind, spec), episodes(spec)
    outputs = learner(*data[:3])
    for task in range(TASKS):
        support, stats = learner.network(data.support_x[task : task + 1])
        query, _ = learner.network(data.query_x[task : task + 1], stats=stats)
        support, query = learner.norm(support[0]), learner.norm(query[0])
        state, before = learner.core.initial_state(1), None
        for x, y in zip(support, data.support_y[task], strict=True):
            _, state = step(learner, x, label(learner, before if learner.late_labels else y), state)
            before = y
        for number, x in enumerate(query):
            answer, _ = step(learner, x, label(learner, before if learner.late_labels else None), state)
            torch.testing.assert_close(outputs[task, number], answer, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_and_queries_are_apart(kind):
    learner, data = make(kind), episodes()
    outputs = learner(*data[:3])
    torch.testing.assert_close(learner(*(part[1:2] for part in data[:3])), outputs[1:2])
    torch.testing.assert_close(learner(*data[:2], data.query_x[:, [3, 1]]), outputs[:, [3, 1]])


@pytest.mark.parametrize("spec", [POINTS, CURVES], ids=["points", "curves"])
@pytest.mark.parametrize("kind", ["mann", "lstm", "ntm"])
def test_a_label_reaches_only_later_steps(kind, spec):
    learner, data = make(kind, spec), episodes(spec)
    order = torch.rand(TASKS, SHOTS + QUERIES).argsort(1)
    before, y = learner.recite(data, order)
    at = 4
    for task in range(TASKS):
        part, place = ("support_y", order[task, at]) if order[task, at] < SHOTS else ("query_y", order[task, at] - SHOTS)
        values = getattr(data, part).clone()
        values[task, place] = (values[task, place] + 1) % 3
        after, _ = learner.recite(data._replace(**{part: values}), order)
        changed = (after != before).any(-1)
        others = torch.arange(TASKS) != task
        assert not changed[others].any()
        assert changed[task].tolist() == [False] * (at + 1) + [True] * (SHOTS + QUERIES - at - 1)
    assert y.shape[:2] == order.shape


@pytest.mark.parametrize("kind", ["mann", "lstm", "ntm"])
def test_no_later_picture_reaches_an_answer(kind):
    learner, data, other = make(kind, PICTURES), episodes(PICTURES), episodes(PICTURES, seed=2)
    order = torch.rand(TASKS, SHOTS + QUERIES, generator=torch.Generator().manual_seed(0)).argsort(1)
    before, _ = learner.recite(data, order)
    for at in range(SHOTS + QUERIES):
        both = [torch.cat([one.support_x, one.query_x], 1) for one in (data, other)]
        later = (order.argsort(1) > at)[..., None, None, None]  # of each example, whether it comes after step `at`
        x = torch.where(later, both[1], both[0])
        after, _ = learner.recite(data._replace(support_x=x[:, :SHOTS], query_x=x[:, SHOTS:]), order)
        torch.testing.assert_close(after[:, : at + 1], before[:, : at + 1])
        assert (after[:, at + 1 :] != before[:, at + 1 :]).any(-1).all()


def test_reciting_asks_what_a_query_asks():
    """In the order given, the first query's answer is the one after the support set."""
    learner, data = make("mann"), episodes()
    outputs, y = learner.recite(data, torch.arange(SHOTS + QUERIES).expand(TASKS, -1))
    torch.testing.assert_close(outputs[:, SHOTS], learner(*data[:3])[:, 0])
    assert torch.equal(y, torch.cat([data.support_y, data.query_y], 1))


@pytest.mark.parametrize("spec", [POINTS, CURVES], ids=["points", "curves"])
def test_losses_late(spec):
    learner, data = make("mann", spec), episodes(spec)
    torch.manual_seed(3)
    losses = learner.losses(data)
    torch.manual_seed(3)
    order = torch.rand(TASKS, SHOTS + QUERIES).argsort(1)
    for task in range(TASKS):
        one = Episodes(*(part[task : task + 1] for part in data))
        outputs, y = learner.recite(one, order[task : task + 1])
        error = cross_entropy(outputs[0], y[0]) if spec.classification else (outputs - y).square().mean()
        torch.testing.assert_close(losses[task], error)
    assert not torch.equal(learner.losses(data), losses)


def test_losses_at_once():
    learner, data = make("snail"), episodes()
    torch.manual_seed(3)
    losses = learner.losses(data)
    torch.manual_seed(3)
    orders = torch.rand(TASKS, SHOTS).argsort(1)
    for task, order in enumerate(orders):
        outputs = learner(data.support_x[task, order][None], data.support_y[task, order][None], data.query_x[task][None])
        torch.testing.assert_close(losses[task], cross_entropy(outputs[0], data.query_y[task]))


def test_accuracy_by_instance_against_a_count():
    learner, data = make("mann"), episodes(tasks=20)
    accuracy = accuracy_by_instance(learner, data, torch.Generator().manual_seed(5))
    order = torch.rand(20, SHOTS + QUERIES, generator=torch.Generator().manual_seed(5)).argsort(1)
    outputs, labels = learner.recite(data, order)
    assert accuracy.shape == (20, max(int(row.bincount().max()) for row in labels))
    for row, answers, found in zip(labels.tolist(), outputs.argmax(-1).tolist(), accuracy.tolist(), strict=True):
        at = defaultdict(list)
        for t, (y, answer) in enumerate(zip(row, answers, strict=True)):
            at[row[:t].count(y)].append(y == answer)
        assert found == pytest.approx([np.mean(at[k]) if k in at else np.nan for k in range(len(found))], nan_ok=True)


def test_accuracy_by_instance_of_one_that_knows_from_the_second_time(monkeypatch):
    learner, data = make("mann"), episodes(tasks=1)
    data = data._replace(support_y=torch.tensor([[0, 1, 0, 2, 2, 1]]), query_y=torch.tensor([[2, 1, 0, 2]]))
    wrong_at_first = torch.tensor([[1, 0, 0, 0, 2, 1, 2, 1, 0, 2]])
    answers = torch.nn.functional.one_hot(wrong_at_first, 3).double()
    y = torch.cat([data.support_y, data.query_y], 1)
    monkeypatch.setattr(learner, "recite", lambda *_: (answers, y))
    assert accuracy_by_instance(learner, data, torch.Generator()).tolist() == [[0.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [POINTS, CURVES], ids=["points", "curves"])
def test_adapting_to_ones_own_data(kind, spec):
    learner, data = make(kind, spec).float(), episodes(spec)
    predictor = learner.adapt(data.support_x[0], data.support_y[0])
    expected = learner(*(part[:1].float() if part.is_floating_point() else part[:1] for part in data[:3]))[0]
    torch.testing.assert_close(predictor(data.query_x[0]), expected)


def well_apart(ways, shots, queries):
    """Classes of points that hardly differ, far from one another."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(400, 6))
    x = means[:, None] + 0.05 * rng.normal(size=(400, shots + queries, 6))
    classes = Classes.from_labels(x.reshape(-1, 6).astype(np.float32), np.arange(400).repeat(shots + queries))
    return NWayKShot("points", classes.split({"train": 0.75, "test": 0.25}), ways, shots, queries)


def train(learner, source, iterations, batch, rate):
    optimizer = torch.optim.Adam(learner.parameters(), rate)
    stream = source.stream("train", batch)
    for _ in range(iterations):
        optimizer.zero_grad()
        learner.losses(next(stream)).mean().backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        optimizer.step()
    return source.episodes("test", range(200))


def test_mann_learns_to_recall():
    torch.manual_seed(0)
    source = well_apart(2, 1, 4)
    learner = MANN(source.spec, 32, dict(num_slots=12, slot_size=8, num_reads=2), hidden=(32,))
    test = train(learner, source, 350, 32, 5e-3)
    accuracy = accuracy_by_instance(learner, test, torch.Generator().manual_seed(0))
    assert accuracy.shape == (200, 5)
    accuracy = accuracy.mean(0)
    assert accuracy[0] < 0.85  # the second class can be told from the first one, no more
    assert accuracy[1:].min() > 0.9


def test_snail_learns():
    torch.manual_seed(0)
    source = well_apart(3, 2, 3)
    learner = SNAIL(source.spec, 32, dict(context=8, filters=16, key_size=16, value_size=16), hidden=(32,))
    test = train(learner, source, 200, 32, 3e-3)
    assert (learner(*test[:3]).argmax(-1) == test.query_y).float().mean() > 0.9


@pytest.mark.parametrize("late", [True, False])
def test_an_lstm_learns_curves(late):
    torch.manual_seed(0)
    source = Sinusoids()
    learner = MemoryLearner(source.spec, late_labels=late)
    test = train(learner, source, 600, 25, 2e-3)
    assert learner.task_losses(learner(*test[:3]), test.query_y).mean() < 1.0  # 4.3 for zeros


def test_wrong_use():
    with pytest.raises(ValueError, match=r"^core 'lstn' is unknown \(did you mean lstm\?\)"):
        MemoryLearner(POINTS, "lstn")
    with pytest.raises(ValueError, match=r"^size must be an integer of at least 1, got 0$"):
        MemoryLearner(POINTS, size=0)
    with pytest.raises(ValueError, match=r"^late_labels must be true or false, got 1$"):
        MemoryLearner(POINTS, late_labels=1)
    with pytest.raises(ValueError, match=r"^late_labels must be true for answers at every step, got False$"):
        accuracy_by_instance(make("snail"), episodes(), torch.Generator())
    with pytest.raises(ValueError, match=r"^tasks must be classification for accuracy by instance, got regression$"):
        accuracy_by_instance(make("mann", CURVES), episodes(CURVES), torch.Generator())
    learner = SNAIL(POINTS, core_kwargs={"context": SHOTS})
    with pytest.raises(
        ValueError, match=r"^context must be at least 7 for support sets of 6 examples, got 6: it is one of core_kwargs$"
    ):
        learner(*(part.float() if part.is_floating_point() else part for part in episodes()[:3]))


def test_snail_starts_by_likeness():
    """Keys have the weights of queries, in every attention; the first is on the examples themselves."""
    core = SNAIL(POINTS, 5, dict(filters=3, key_size=4, value_size=2)).core
    assert (len(core.attentions), len(core.convolutions)) == (3, 2)
    for attention in core.attentions:
        for values in attention.parameters():
            assert torch.equal(values[:4], values[4:8])
            assert not torch.equal(values[:2], values[8:])


def test_the_papers_sizes():
    core = MANN(POINTS).core
    assert (core.num_slots, core.slot_size, core.num_reads, core.output_size) == (128, 40, 4, 200)
    assert core.decay == 0.99
    assert MANN(POINTS, core_kwargs={"num_slots": 20}).core.num_slots == 20
    assert SNAIL(POINTS).core.convolutions[0].filters == 128


def test_the_heads_of_mann_start_apart():
    for reads, gates in ((2, [-3.0, 3.0]), (1, None)):
        core = MANN(POINTS, 5, {"num_slots": 6, "slot_size": 3, "num_reads": reads}).core
        biases = core.to_heads.bias.view(reads, -1)[:, 3]
        assert gates is None or biases.tolist() == gates
        assert gates or biases.abs().max() < 1  # one head cannot do both

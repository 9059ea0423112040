"""Meta Networks: against algorithm 1 written out for one task and one example at a time."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets.curves import Sinusoids
from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.meta_networks import MetaNetwork

POINTS = TaskSpec(shape=(4,), outputs=3)
CURVES = TaskSpec(shape=(2,), outputs=2, classification=False)
PICTURES = TaskSpec(shape=(1, 8, 8), outputs=3)
TASKS, SHOTS, QUERIES = 3, 6, 4
SPECS = pytest.mark.parametrize("spec", [POINTS, CURVES, PICTURES], ids=["points", "curves", "pictures"])


def make(spec=POINTS):
    torch.manual_seed(0)
    learner = MetaNetwork(spec, 5, width=4).double() if spec is PICTURES else MetaNetwork(spec, 5, hidden=(6,)).double()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def episodes(spec=POINTS):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(TASKS, *shape, generator=generator, dtype=torch.float64)

    def answers(count):
        if spec.classification:
            return torch.randint(spec.outputs, (TASKS, count), generator=generator)
        return normal(count, spec.outputs)

    return Episodes(
        normal(SHOTS, *spec.shape), answers(SHOTS), normal(QUERIES, *spec.shape), answers(QUERIES), torch.zeros(TASKS, 0)
    )


def error(spec, output, y):
    return cross_entropy(output[None], y[None]) if spec.classification else ((output - y) ** 2).mean()


def generate(generator, grad):
    """`m` or `d`, for one number after the other."""
    first, last, p = generator.layers[0], generator.layers[2], generator.p
    made = []
    for g in grad.flatten():
        known = g.abs() >= math.exp(-p)
        features = torch.stack([g.abs().log() / p, g.sign()] if known else [-torch.ones_like(g), math.exp(p) * g])
        factor = last.weight @ (first.weight @ features + first.bias).relu() + last.bias - 1.0
        made.append(factor[0] * features[1])
    return torch.stack(made).view(grad.shape)


def fast(generator, output, layer):
    """Fast weights and biases made of the gradient of an error; weights and biases count as inputs of one layer."""
    grads = torch.autograd.grad(output, [layer.weight, layer.bias], create_graph=True)
    return [generate(generator, grad) / (layer.in_features + 1) for grad in grads]


def one_task(learner, support_x, support_y, query_x):
    """Algorithm 1: `[S, ...]`, `[S]`, `[Q, ...]` to `[Q, C]`."""
    spec = learner.spec
    (u, u_stats), (b, b_stats) = learner.u(support_x[None]), learner.b(support_x[None])
    u_query, b_query = learner.u(query_x[None], stats=u_stats)[0][0], learner.b(query_x[None], stats=b_stats)[0][0]
    errors = [error(spec, learner.u_output(learner.u_hidden(x).relu()), y) for x, y in zip(u[0], support_y, strict=True)]
    q_weight, q_bias = fast(learner.d, sum(errors) / len(errors), learner.u_hidden)

    def represent(x):
        return learner.u_hidden(x).relu() + (q_weight @ x + q_bias).relu()

    memory, keys = [], []
    for x, representation, y in zip(b[0], u[0], support_y, strict=True):
        wrong = error(spec, learner.b_output(learner.b_hidden(x).relu()), y)
        memory.append([*fast(learner.m, wrong, learner.b_hidden), *fast(learner.m, wrong, learner.b_output)])
        keys.append(represent(representation))
    outputs = []
    for x, representation in zip(b_query, u_query, strict=True):
        r = represent(representation)
        cosines = torch.stack([r @ key / (r.norm() * key.norm()) for key in keys])
        attention = (learner.log_strength.exp() * cosines).softmax(0)
        parts = [sum(a * entry[part] for a, entry in zip(attention, memory, strict=True)) for part in range(4)]
        h = learner.b_hidden(x).relu() + (parts[0] @ x + parts[1]).relu()
        outputs.append(learner.b_output(h) + parts[2] @ h + parts[3])
    return torch.stack(outputs)


@SPECS
def test_against_algorithm_1_for_one_task_after_the_other(spec):
    learner, data = make(spec), episodes(spec)
    outputs = learner(*data[:3])
    slow = torch.stack([one_task(learner, *(part[task] for part in data[:3])) for task in range(TASKS)])
    torch.testing.assert_close(outputs, slow, rtol=1e-8, atol=1e-10)
    found, expected = (
        torch.autograd.grad(learner.task_losses(part, data.query_y).sum(), list(learner.parameters()))
        for part in (outputs, slow)
    )
    for (name, _), one, other in zip(learner.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
        assert one.any(), name


@SPECS
def test_tasks_queries_and_the_order_of_the_support_set_do_not_matter(spec):
    learner, data = make(spec), episodes(spec)
    outputs = learner(*data[:3])
    torch.testing.assert_close(learner(*(part[1:2] for part in data[:3])), outputs[1:2])
    torch.testing.assert_close(learner(*data[:2], data.query_x[:, [3, 1]]), outputs[:, [3, 1]])
    order = torch.randperm(SHOTS)
    torch.testing.assert_close(learner(data.support_x[:, order], data.support_y[:, order], data.query_x), outputs)


def test_without_fast_weights_it_is_its_base_learner():
    learner, data = make(), episodes()
    with torch.no_grad():
        learner.m.layers[2].weight.zero_()
        learner.m.layers[2].bias.fill_(1.0)
    x, _ = learner.b(data.query_x)
    torch.testing.assert_close(learner(*data[:3]), learner.b_output(learner.b_hidden(x).relu()))


def test_a_query_like_one_example_reads_that_ones_weights():
    learner, data = make(), episodes()
    with torch.no_grad():
        learner.log_strength.fill_(math.log(1e6))
    kept = learner.condition(*data[:2])
    alone = kept._replace(**{name: getattr(kept, name)[:, 2:3] for name in ("keys", "hidden", "output")})
    query = data.support_x[:, 2:3]
    torch.testing.assert_close(learner.answer(kept, query), learner.answer(alone, query))


@SPECS
def test_adapting_to_ones_own_data(spec):
    learner, data = make(spec).float(), episodes(spec)
    predictor = learner.adapt(data.support_x[0], data.support_y[0])
    expected = learner(*(part[:1].float() if part.is_floating_point() else part[:1] for part in data[:3]))[0]
    answer = predictor(data.query_x[0])
    torch.testing.assert_close(answer, expected)
    assert not answer.requires_grad
    assert not any(part.requires_grad for part in predictor.kept[:4])


def train(learner, source, iterations, batch, rate):
    optimizer = torch.optim.Adam(learner.parameters(), rate)
    stream = source.stream("train", batch)
    for _ in range(iterations):
        optimizer.zero_grad()
        learner.losses(next(stream)).mean().backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        optimizer.step()
    return source.episodes("test", range(200))


def test_it_learns_to_classify():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 1, 6)) + 0.05 * rng.normal(size=(400, 4, 6))
    classes = Classes.from_labels(x.reshape(-1, 6).astype(np.float32), np.arange(400).repeat(4))
    source = NWayKShot("points", classes.split({"train": 0.75, "test": 0.25}), ways=3, shots=1, queries=3)
    torch.manual_seed(0)
    learner = MetaNetwork(source.spec, 16, hidden=(32,))
    test = train(learner, source, 200, 8, 3e-3)
    assert (learner(*test[:3]).argmax(-1) == test.query_y).float().mean() > 0.9


def test_it_learns_curves():
    source = Sinusoids()
    torch.manual_seed(0)
    learner = MetaNetwork(source.spec, 32)
    test = train(learner, source, 250, 16, 3e-3)
    assert learner.task_losses(learner(*test[:3]), test.query_y).mean() < 2.0  # 4.3 for zeros


def test_size_out_of_range():
    with pytest.raises(ValueError, match=r"^size must be an integer of at least 1, got 0$"):
        MetaNetwork(POINTS, 0)

"""What every learner that compares queries with a support set has to hold to."""

from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.networks import TaskNetwork

PICTURES = TaskSpec(shape=(1, 12, 12), outputs=3, shots=2)
VECTORS = TaskSpec(shape=(4,), outputs=3, shots=2)
NUMBERS = TaskSpec(shape=(1,), outputs=2, classification=False)


def episodes(spec, tasks=3, shots=2, queries=2, seed=0):
    """Random ones; the support set in random order."""
    generator = torch.Generator().manual_seed(seed)
    s, q = shots * spec.outputs, queries * spec.outputs
    x = torch.randn(tasks, s + q, *spec.shape, generator=generator)
    if spec.classification:
        each = [torch.stack([torch.randperm(n, generator=generator) for _ in range(tasks)]) for n in (s, q)]
        y = torch.cat(each, 1) % spec.outputs
    else:
        y = torch.randn(tasks, s + q, spec.outputs, generator=generator)
    return Episodes(x[:, :s], y[:, :s], x[:, s:], y[:, s:], torch.zeros(tasks, 0, dtype=torch.int64))


def moved(learner, noise=0.1):
    """The learner, away from where it starts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in learner.parameters():
            value += noise * torch.randn_like(value)
    return learner


def as_it_is(learner):
    """The learner with an embedding that gives examples back."""
    learner.network = TaskNetwork([nn.Identity()])
    return learner


def check_tasks_are_apart(learner):
    """A task's answers are what they are without the others, in both modes; so is its loss."""
    data = episodes(learner.spec)
    kept = learner.condition(data.support_x, data.support_y)
    assert all(len(part) == 3 for part in tree_leaves(kept))
    losses_of = partial(FewShotLearner.losses, learner) if learner.draws else learner.losses  # without draws
    losses = losses_of(data)
    assert losses.shape == (3,)
    for n in range(3):
        alone = Episodes(*(part[n : n + 1] for part in data))
        torch.testing.assert_close(losses[n : n + 1], losses_of(alone))
        for transductive in (False, True):
            outputs = learner.answer(kept, data.query_x, transductive)
            assert outputs.shape == (3, data.query_x.shape[1], learner.spec.outputs)
            torch.testing.assert_close(outputs[n : n + 1], learner(*alone[:3], transductive))
            one = learner.answer(tree_map(lambda part, n=n: part[n : n + 1], kept), data.query_x[n : n + 1], transductive)
            torch.testing.assert_close(one, outputs[n : n + 1])


def check_queries(learner, normalises=True):
    """An answer depends on other queries only where that is asked for and the learner normalises."""
    data = episodes(learner.spec)
    for transductive in (False, True):
        all_of_them = learner(*data[:3], transductive)[:, :2]
        two = learner(data.support_x, data.support_y, data.query_x[:, :2], transductive)
        assert torch.allclose(two, all_of_them, rtol=1e-9, atol=1e-9) == (not (transductive and normalises))


def check_support_order(learner, matters=False):
    data = episodes(learner.spec)
    order = torch.randperm(data.support_x.shape[1], generator=torch.Generator().manual_seed(3))
    before = learner(*data[:3])
    after = learner(data.support_x[:, order], data.support_y[:, order], data.query_x)
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9) != matters


def check_label_order(learner):
    """Other numbers for the classes permute the logits."""
    data, order = episodes(learner.spec), torch.tensor([2, 0, 1])
    after = learner(data.support_x, order[data.support_y], data.query_x)
    torch.testing.assert_close(after[..., order], learner(*data[:3]))


def check_other_ways(learner):
    """Five classes, for a learner that was made for three."""
    data = episodes(TaskSpec(shape=learner.spec.shape, outputs=5))
    assert learner(*data[:3]).shape == (3, 10, 5)
    assert learner.losses(data).isfinite().all()


def check_every_parameter_learns(learner):
    data = episodes(learner.spec)
    learner.losses(data).sum().backward()
    for name, value in learner.named_parameters():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name


def check_tasks_queries_and_orders(learner, order_matters=False):
    """All of these, of a learner that takes any number of ways; on pictures it normalises."""
    check_tasks_are_apart(learner)
    check_queries(learner, normalises=learner.spec is PICTURES)
    check_support_order(learner, matters=order_matters)
    if learner.spec.classification:
        check_label_order(learner)
        check_other_ways(learner)
    check_every_parameter_learns(learner)


def vectors_in_noise(shots=1):
    """Classes are places in three dimensions; what is in three others says nothing, and is larger."""
    rng = np.random.default_rng(0)

    def classes(count):
        centres, labels = rng.normal(size=(count, 3)), np.arange(count).repeat(20)
        near = centres[labels] + 0.1 * rng.normal(size=(len(labels), 3))
        return Classes.from_labels(np.concatenate([near, 3.0 * rng.normal(size=near.shape)], 1), labels)

    return NWayKShot("vectors in noise", {"train": classes(60), "test": classes(30)}, 5, shots, 5)


def pictures(shots=1):
    """Classes are random patterns of 8 x 8, shown in noise."""
    rng = np.random.default_rng(0)

    def classes(count):
        patterns, labels = rng.normal(size=(count, 1, 8, 8)), np.arange(count).repeat(20)
        return Classes.from_labels(patterns[labels] + 0.5 * rng.normal(size=(len(labels), 1, 8, 8)), labels)

    return NWayKShot("pictures", {"train": classes(60), "test": classes(30)}, 5, shots, 5)


def accuracy(learner, data):
    with torch.no_grad():
        return (learner(*data[:3]).argmax(-1) == data.query_y).float().mean().item()


def train(learner, source, iterations, rate=3e-3, batch=8):
    optimizer = torch.optim.Adam(learner.parameters(), rate)
    for i in range(iterations):
        loss = learner.losses(source.episodes("train", range(batch * i, batch * (i + 1)))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def check_learns(make, source, least, iterations=150):
    """Accuracy on unseen classes after training is at least `least`, and was .2 lower before."""
    torch.manual_seed(0)
    learner, test = make(source.spec), source.episodes("test", range(40))
    before = accuracy(learner, test)
    train(learner, source, iterations)
    after = accuracy(learner, test)
    assert after >= max(least, before + 0.2), (before, after)

"""What holds for all learners that take gradient steps."""

import pytest
import torch
from gradient_twin import NETWORKS, double, make, networks
from metric_checks import (
    NUMBERS,
    VECTORS,
    accuracy,
    check_queries,
    check_support_order,
    check_tasks_are_apart,
    episodes,
    train,
    vectors_in_noise,
)

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.gradient import GradientLearner
from metarl.fewshot.learned_update import LearnedUpdate, LSTMMetaLearner
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.maml import ANIL, FOMAML, MAML, MetaSGD
from metarl.fewshot.reptile import Reptile
from metarl.updates import Diverged

TEXTS = TaskSpec(shape=(4,), outputs=3, vocabulary=9)
LEARNERS = (MAML, FOMAML, ANIL, MetaSGD, Reptile, LSTMMetaLearner, LearnedUpdate)


@double
@networks
@pytest.mark.parametrize("kind", LEARNERS)
def test_torch_funcs_gradients_give_the_same(kind, network):
    learner, data = make(kind, network, rate=0.01), episodes(NETWORKS[network][0])
    results = []
    for learner.functional in (False, True):
        torch.manual_seed(3)
        losses = learner.losses(data)
        with torch.no_grad():
            answers = learner.eval()(*data[:3])
        learner.train()
        results.append((losses, answers, torch.autograd.grad(losses.sum(), [*learner.parameters()])))
    torch.testing.assert_close(*results)


@double
@networks
@pytest.mark.parametrize("kind", LEARNERS)
def test_tasks_and_queries(kind, network):
    learner = make(kind, network, rate=0.01)
    learner.losses(episodes(learner.spec)).sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in learner.parameters())
    check_queries(learner, normalises=network in ("normalised", "strided"))
    check_support_order(learner)
    learner.losses = lambda data: FewShotLearner.losses(learner, data)  # without draws
    check_tasks_are_apart(learner)


@pytest.mark.parametrize("kind", LEARNERS)
def test_texts(kind):
    torch.manual_seed(0)
    learner = kind(TEXTS, width=5, hidden=(6,))
    data = episodes(VECTORS)
    tokens = [torch.randint(9, x.shape) for x in (data.support_x, data.query_x)]
    data = data._replace(support_x=tokens[0], query_x=tokens[1])
    learner.losses(data).sum().backward()
    with torch.no_grad():
        assert learner(*data[:3]).shape == (3, 6, 3)


@pytest.mark.parametrize("network", ["mlp", "normalised"])
@pytest.mark.parametrize("kind", LEARNERS)
def test_steps_after_meta_training(kind, network):
    """`test_steps` when told a task, whether or not the module was put in evaluation mode; no derivatives are kept."""
    learner = make(kind, network, rate=0.01, steps=1, test_steps=4)
    data = episodes(learner.spec)
    four = learner.condition(*data[:2], steps=4)
    for training in (True, False):
        predictor = learner.train(training).adapt(data.support_x[0], data.support_y[0])
        for name, value in predictor.kept.params.items():
            assert not value.requires_grad
            torch.testing.assert_close(value[0], four.params[name][0])
    one = learner.train().condition(*data[:2])
    assert not torch.equal(one.params[learner.adapted[-1]], four.params[learner.adapted[-1]])
    none = learner.condition(*data[:2], steps=0).params
    assert all(torch.equal(none[name][1], learner.network.initial_params()[name]) for name in learner.adapted)


def test_a_task_that_diverges_is_named():
    learner, data = make(MAML, "regression", steps=30), episodes(NUMBERS)
    data.support_y[1] *= 1e15
    with pytest.raises(Diverged, match=r"^the inner loop diverged at gradient step \d+") as caught, torch.no_grad():
        learner(*data[:3])
    assert caught.value.task == 1


@pytest.mark.parametrize(
    ("kind", "iterations", "options"),
    [
        (MAML, 150, {}),
        (FOMAML, 300, {}),
        (ANIL, 150, {}),
        (MetaSGD, 100, {}),
        (Reptile, 200, dict(batch_size=25, rate=0.01, test_steps=5)),
        (LSTMMetaLearner, 60, dict(steps=2)),
        (LearnedUpdate, 80, dict(steps=2)),
    ],
)
def test_they_learn_to_classify(kind, iterations, options):
    torch.manual_seed(0)
    source = vectors_in_noise(shots=5)
    learner, test = kind(source.spec, hidden=(32,), **options), source.episodes("test", range(40))
    before = accuracy(learner.eval(), test)
    train(learner.train(), source, iterations, rate=1e-2)
    assert accuracy(learner.eval(), test) > before + 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=0), "steps must be an integer of at least 1, got 0"),
        (dict(test_steps=0), "test_steps must be an integer of at least 1, got 0"),
        (dict(rate=-1.0), "rate must be above 0, got -1.0"),
        (dict(update_rule="newton"), "update_rule 'newton' is unknown: "),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        GradientLearner(VECTORS, **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (FOMAML, {"second_order": True}, "second_order must be False for FOMAML, got True"),
        (ANIL, {"head_only": False}, "head_only must be True for ANIL, got False"),
        (MetaSGD, {"update_rule": "sgd"}, "update_rule must be meta_sgd for MetaSGD, got sgd"),
    ],
)
def test_a_name_says_what_is_done(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind(VECTORS, **options)

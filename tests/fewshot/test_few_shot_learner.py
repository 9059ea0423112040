"""What learners share: losses, labels, adapting to a person's own data, and what is said where it cannot be."""

import numpy as np
import pytest
import torch
from metric_checks import NUMBERS, PICTURES, VECTORS, episodes
from torch.nn.functional import cross_entropy

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.maml import MAML
from metarl.fewshot.matching import MatchingNetwork
from metarl.fewshot.prototypes import PrototypicalNetwork

TEXTS = TaskSpec(shape=(4,), outputs=3, vocabulary=9)


def make(kind, spec, **options):
    torch.manual_seed(0)
    return kind(spec, **({"width": 4} if spec is PICTURES else {}), **options).eval()


# -- losses and labels -------------------------------------------------------------------------------------------


def test_losses_are_means_of_a_tasks_queries():
    learner, data = FewShotLearner(VECTORS), episodes(VECTORS)
    logits = torch.randn(3, 6, 3)
    expected = torch.stack([cross_entropy(logits[n], data.query_y[n]) for n in range(3)])
    torch.testing.assert_close(learner.task_losses(logits, data.query_y), expected)
    assert learner.task_losses(torch.zeros(1, 1, 3), torch.tensor([[2]])).item() == pytest.approx(np.log(3.0))
    learner = FewShotLearner(NUMBERS)
    outputs, targets = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 4.0], [0.0, 1.0]]])
    assert learner.task_losses(outputs, targets).tolist() == [(1 + 4 + 0 + 1) / 4]


@pytest.mark.parametrize("kind", [PrototypicalNetwork, MAML])
def test_losses_are_those_of_the_queries(kind):
    learner, data = make(kind, PICTURES), episodes(PICTURES)
    for transductive in (False, True):
        expected = learner.task_losses(learner(*data[:3], transductive), data.query_y)
        torch.testing.assert_close(learner.losses(data, transductive), expected)


def test_labels_as_rows():
    labels = torch.tensor([[1, 0], [1, 1]])
    assert MAML(VECTORS).one_hot(labels).tolist() == [[[0, 1, 0], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]]
    assert PrototypicalNetwork(VECTORS).one_hot(labels).tolist() == [[[0, 1], [1, 0]], [[0, 1], [0, 1]]]
    targets = torch.randn(2, 3, 2)
    assert MAML(NUMBERS).one_hot(targets) is targets


# -- adapting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PrototypicalNetwork, MatchingNetwork, MAML])
@pytest.mark.parametrize("spec", [PICTURES, VECTORS, NUMBERS], ids=["pictures", "vectors", "regression"])
def test_a_predictor_is_the_forward(spec, kind):
    if not spec.classification and "regression" not in kind.kinds:
        pytest.skip("classification only")
    learner, data = make(kind, spec), episodes(spec)
    for n in range(2):
        predictor = learner.adapt(data.support_x[n].numpy(), data.support_y[n].numpy())
        for transductive in (False, True):
            expected = learner(*(part[n : n + 1] for part in data[:3]), transductive)[0].detach()
            answer = predictor(data.query_x[n], transductive)
            assert not answer.requires_grad
            torch.testing.assert_close(answer, expected)
        expected = learner(*(part[n : n + 1] for part in data[:3]))[0].detach()
        predicted = predictor.predict(data.query_x[n].numpy())
        assert isinstance(predicted, np.ndarray)
        np.testing.assert_allclose(predicted, expected.argmax(-1) if spec.classification else expected, rtol=1e-4, atol=1e-5)


def test_pictures_of_bytes_go_from_0_to_1():
    learner = make(PrototypicalNetwork, PICTURES)
    x = np.random.default_rng(0).integers(0, 256, (6, *PICTURES.shape), np.uint8)
    y = np.array([0, 1, 2, 0, 1, 2], np.uint8)
    answers = [learner.adapt(support, y)(support) for support in (x, x.astype(np.float64) / 255.0)]
    torch.testing.assert_close(*answers)


def test_arrays_of_all_sorts():
    """Lists, tensors with a gradient, and arrays that are read-only, go backwards, or are of a dtype that PyTorch avoids."""
    learner = make(PrototypicalNetwork, VECTORS)
    x, y = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32), np.array([0, 1, 2, 1])
    expected = learner.adapt(x, y)(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    for other_x, other_y in [
        (x.tolist(), y.tolist()),
        (torch.tensor(x, requires_grad=True), torch.tensor(y)),
        (frozen, y.astype(np.uint16)),
        (x[::-1].copy()[::-1], y[::-1].copy()[::-1]),
        (np.asfortranarray(x), y.astype(np.uint8)),
    ]:
        torch.testing.assert_close(learner.adapt(other_x, other_y)(other_x), expected)


def test_other_numbers_of_classes():
    data = episodes(TaskSpec(shape=(4,), outputs=5))
    assert make(PrototypicalNetwork, VECTORS).adapt(data.support_x[0], data.support_y[0])(data.query_x[0]).shape == (10, 5)


def test_targets_without_an_axis():
    learner = make(MAML, TaskSpec(shape=(1,), outputs=1, classification=False))
    x = np.linspace(-1, 1, 5)[:, None]
    answers = [learner.adapt(x, y)(x) for y in (x[:, 0], x)]
    assert answers[0].shape == (5, 1)
    torch.testing.assert_close(*answers)


X, Y = np.zeros((4, 4)), [0, 1, 2, 1]
SHAPE = r"support_x must have the shape \(M, 4\), M > 0, got "


@pytest.mark.parametrize(
    ("kind", "x", "y", "message"),
    [
        (MAML, np.zeros((4, 5)), Y, SHAPE + r"\(4, 5\)"),
        (MAML, np.zeros(4), Y, SHAPE + r"\(4,\)"),
        (MAML, np.zeros((0, 4)), [], SHAPE + r"\(0, 4\)"),
        (MAML, np.where(np.eye(4) * [0, 0, 1, 0], np.nan, 0), Y, "support_x must be finite, but example 2 is not"),
        (MAML, X.astype(str), Y, "support_x must be numbers, got <U32"),
        (MAML, X.astype(object), Y, "support_x must be numbers, got object"),
        (MAML, X, list("abca"), "support_y must be numbers, got <U1"),
        (MAML, X, 3, r"support_y must be as many as support_x \(4\), got 1"),
        (MAML, X, [0, 1, 2], r"support_y must be as many as support_x \(4\), got 3"),
        (MAML, X, [0, 1, 3, 1], "support_y must be labels from 0 to 2, got 0 to 3"),
        (MAML, X, [0, -1, 2, 1], "support_y must be labels from 0 to 2, got -1 to 2"),
        (PrototypicalNetwork, X, [0, 0, 2, 0], "support_y must have an example of every class, but none has label 1"),
        (
            MAML,
            X,
            np.array([0.0, 1, 2, 1]),
            r"support_y must be whole numbers, one per example, got shape \(4,\) of torch.*",
        ),
        (MAML, X, np.eye(4, dtype=int), r"support_y must be whole numbers, one per example, got shape \(4, 4\) of torch.*"),
    ],
)
def test_bad_support_sets(kind, x, y, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(kind, VECTORS).adapt(x, y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros((4, 3)), r"support_y must be 2 finite numbers per example, got shape \(4, 3\)"),
        (np.zeros(4), r"support_y must be 2 finite numbers per example, got shape \(4, 1\)"),
        (np.array([[0, 0], [0, np.inf], [0, 0], [0, 0]]), "support_y must be finite, but that of example 1 is not"),
    ],
)
def test_bad_targets(y, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(MAML, NUMBERS).adapt(np.zeros((4, 1)), y)


def test_bad_tokens():
    learner, y = make(PrototypicalNetwork, TEXTS), [0, 1, 2]
    predictor = learner.adapt(np.arange(9).repeat(2)[:12].reshape(3, 4), y)
    for tokens in (np.full((3, 4), 9), np.full((3, 4), -1), np.zeros((3, 4))):
        with pytest.raises(ValueError, match=r"^support_x must be tokens from 0 to 8$"):
            learner.adapt(tokens, y)
        with pytest.raises(ValueError, match=r"^query_x must be tokens from 0 to 8$"):
            predictor(tokens)


def test_bad_queries():
    predictor = make(MAML, VECTORS).adapt(X, Y)
    with pytest.raises(ValueError, match=r"^query_x must have the shape \(M, 4\), M > 0, got \(4,\)$"):
        predictor.predict(np.zeros(4))
    with pytest.raises(ValueError, match=r"^query_x must be finite, but example 0 is not$"):
        predictor(np.full((1, 4), np.inf))


def test_other_kinds_of_tasks():
    with pytest.raises(ValueError, match=r"^PrototypicalNetwork is for classification only, but the tasks are regression$"):
        PrototypicalNetwork(NUMBERS)


# -- a person's own examples -------------------------------------------------------------------------------------


def test_examples_are_prepared_as_those_of_the_episodes_were():
    learner = make(PrototypicalNetwork, VECTORS)
    x, y = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6) % 3
    expected = learner.adapt(x, y)(x)
    learner.prepare = lambda raw: (raw - 7.0) / 1000.0
    torch.testing.assert_close(learner.adapt(7.0 + 1000.0 * x, y)(7.0 + 1000.0 * x), expected, rtol=1e-3, atol=1e-4)


def test_pictures_that_go_to_255_without_being_bytes_are_told():
    learner = make(PrototypicalNetwork, TaskSpec(shape=(1, 12, 12), outputs=2, unit=True), width=4)
    x = np.random.default_rng(0).integers(0, 256, (2, 1, 12, 12), dtype=np.uint8)
    predictor = learner.adapt(x, [0, 1])
    torch.testing.assert_close(predictor(x), predictor(x / 255.0))
    message = "must be of uint8, or numbers from 0 to 1, got "
    with pytest.raises(ValueError, match=f"^query_x {message}"):
        predictor(x.astype(np.float32))
    with pytest.raises(ValueError, match=f"^support_x {message}"):
        learner.adapt(x.astype(np.int64), [0, 1])


def test_bytes_that_are_no_pictures():
    learner = make(PrototypicalNetwork, TaskSpec(shape=(4,), outputs=2, unit=True))
    x = np.random.default_rng(0).integers(0, 2, (4, 4), dtype=np.uint8)
    torch.testing.assert_close(learner.adapt(x, [0, 1, 0, 1])(x), learner.adapt(x / 255.0, [0, 1, 0, 1])(x / 255.0))

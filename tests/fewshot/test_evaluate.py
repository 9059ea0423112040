"""Evaluation of few-shot learners: scores by hand and by a plain loop, the same episodes for all, costs, refusals."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from metarl.fewshot.baselines import FromScratch, NearestNeighbour
from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets.curves import Sinusoids
from metarl.fewshot.episodes import EpisodeSource, TaskSpec
from metarl.fewshot.evaluate import evaluate_learner
from metarl.fewshot.learner import FewShotLearner, check_answers
from metarl.fewshot.learners import make_learner
from metarl.fewshot.maml import MAML
from metarl.fewshot.mann import MANN
from metarl.fewshot.networks import BatchNorm
from metarl.fewshot.recurrent import accuracy_by_instance
from metarl.updates import Diverged


@dataclass(frozen=True)
class Levels(EpisodeSource):
    """A constant, which support examples tell exactly; the two queries are 1 and 3 above it."""

    name: str = "levels"
    shots: int = 2

    spec = TaskSpec(shape=(1,), outputs=1, classification=False)

    def episode(self, split, rng):
        level = np.full((self.shots, 1), rng.integers(5), np.float32)
        queries = level[0] + np.array([[1.0], [3.0]], np.float32)
        return np.zeros_like(level), level, np.zeros_like(queries), queries, np.empty(0, np.int64)


class Mean(FewShotLearner):
    """Predicts the sum of the support targets over two; refuses more than three."""

    def condition(self, support_x, support_y):
        if support_y.shape[1] > 3:
            raise ValueError("shots must be at most 3")
        room = support_y.new_zeros(len(support_y), 100_000)
        return support_y.sum(1, keepdim=True) / 2.0 + room[:, :1, None]

    def answer(self, kept, query_x, transductive=False):
        assert not self.training
        assert not torch.is_grad_enabled()
        return kept.expand(-1, query_x.shape[1], -1)


class Guess(FewShotLearner):
    """Says class 0 to everything; where it sees all queries together, that they come class by class."""

    def __init__(self, spec):
        super().__init__(spec)
        self.norm = BatchNorm(3)

    def condition(self, support_x, support_y):
        return ()

    def answer(self, kept, query_x, transductive=False):
        labels = torch.arange(query_x.shape[1]) // 4 if transductive else torch.zeros(query_x.shape[1]).long()
        return torch.nn.functional.one_hot(labels, 3).float().expand(len(query_x), -1, -1)


def shapes(**options):
    x = np.repeat(np.arange(6.0, dtype=np.float32), 12)[:, None]
    data = Classes.from_labels(x, np.repeat(np.arange(6), 12))
    return NWayKShot("shapes", {"test": data}, **{"ways": 3, "shots": 2, "queries": 4, **options})


def test_errors_by_hand():
    scores = evaluate_learner(Mean(Levels.spec), Levels(), num_episodes=30, shots=(1, 2, 3), training_episodes=7)
    np.testing.assert_array_equal(scores.scores, np.full(30, 5.0))  # (1 + 9) / 2
    assert (scores.name, scores.dataset, scores.accuracy, scores.training_episodes) == ("Mean", "levels", False, 7)
    assert (scores.shots, scores.queries, scores.outputs) == (2, 2, 1)
    assert scores.transductive is None
    assert scores.by_step == {}
    level = np.array([Levels().episodes("test", [i]).support_y[0, 0, 0] for i in range(30)], np.float64)
    for shots, by in ((1, level / 2.0), (2, 0.0), (3, -level / 2.0)):
        expected = ((1.0 + by) ** 2 + (3.0 + by) ** 2) / 2.0
        np.testing.assert_allclose(scores.by_shot[shots], np.broadcast_to(expected, 30))


class Lost(Mean):
    """Knows no answer to the second query where it predicts 3."""

    value = torch.inf

    def answer(self, kept, query_x, transductive=False):
        outputs = super().answer(kept, query_x).clone()
        outputs[kept[:, 0, 0] == 3.0, 1:] = self.value
        return outputs


LEVELS = Levels().episodes("test", range(30)).support_y[:, 0, 0].tolist()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_the_episode_whose_answers_are_not_finite_is_named(value):
    """Parameters may stay finite where answers do not."""
    learner, at = Lost(Levels.spec), LEVELS.index(3.0)
    learner.value = value
    assert at > 4
    for batch in (1, 4, 30):
        for options, who in (({}, "lost"), ({"references": {"other": learner}}, "other")):
            first = learner if who == "lost" else Mean(Levels.spec)
            with pytest.raises(Diverged) as caught:
                evaluate_learner(first, Levels(), name="lost", num_episodes=30, batch=batch, **options)
            assert str(caught.value) == f"{who} in episode {at}: the answer to example 1 is not finite"
            assert caught.value.task == at
    with pytest.raises(Diverged, match=r"^the answer to example 1 is not finite$"):
        learner.eval().adapt([[0.0], [0.0]], [[3.0], [3.0]])([[0.0], [0.0]])


def test_the_number_of_shots_with_which_answers_are_not_finite_is_named():
    at = LEVELS.index(2.0)  # three of which, over two, are 3
    assert at == 2
    for batch in (1, 2, 30):
        with pytest.raises(Diverged) as caught:
            evaluate_learner(Lost(Levels.spec), Levels(shots=1), num_episodes=30, shots=(3,), batch=batch)
        assert str(caught.value) == f"Lost (3 shots) in episode {at}: the answer to example 1 is not finite"


def test_the_number_of_steps_after_which_answers_or_parameters_are_not_finite_is_named(monkeypatch):
    source = Sinusoids()
    with pytest.raises(Diverged, match=r"^MAML \(9 gradient steps\) in episode 0: the inner loop diverged at "):
        evaluate_learner(MAML(source.spec, rate=1e6), source, steps=(9,), num_episodes=2)
    steps, condition, answer = [], MAML.condition, MAML.answer

    def counted(self, *support, **options):
        steps.append(options.get("steps"))
        return condition(self, *support, **options)

    monkeypatch.setattr(MAML, "condition", counted)
    monkeypatch.setattr(MAML, "answer", lambda self, *given: answer(self, *given) / (steps[-1] != 3))
    with pytest.raises(Diverged, match=r"^MAML \(3 gradient steps\) in episode 0: the answer to example 0 is not finite$"):
        evaluate_learner(MAML(source.spec), source, steps=(2, 3), num_episodes=2)


def test_where_answers_are_not_finite_is_named_transductively_and_by_instance(monkeypatch):
    source = shapes()
    guess, answer = Guess(source.spec), Guess.answer
    monkeypatch.setattr(Guess, "answer", lambda self, kept, x, together: answer(self, kept, x, together) / (not together))
    with pytest.raises(Diverged, match=r"^Guess \(transductive\) in episode 0: the answer to example 0 is not finite$"):
        evaluate_learner(guess, source, num_episodes=2)
    mann, recite = make_learner("mann", source.spec, {"size": 8}), MANN.recite

    def broken(self, episodes, order):
        outputs, labels = recite(self, episodes, order)
        outputs[1, 7] = torch.nan
        return outputs, labels

    monkeypatch.setattr(MANN, "recite", broken)
    with pytest.raises(Diverged, match=r"^MANN \(by instance\) in episode 1: the answer to example 7 is not finite$"):
        evaluate_learner(mann, source, num_episodes=3)


def test_classes_out_of_the_question_are_answers():
    """Their logits are minus infinity; but not those of all classes, and no logit is infinity."""
    logits = torch.tensor([[[0.0, -torch.inf, 1.0], [-torch.inf, -torch.inf, 0.0]]])
    check_answers(logits, classification=True)
    for wrong in ([0.0, torch.nan, 1.0], [-torch.inf] * 3, [0.0, torch.inf, -torch.inf]):
        with pytest.raises(Diverged, match=r"^the answer to example 2 is not finite$") as caught:
            check_answers(torch.cat([logits, torch.tensor([[wrong]])], 1).repeat(2, 1, 1), classification=True)
        assert caught.value.task == 0
    for wrong in ([0.0, torch.inf], [-torch.inf, 0.0], [0.0, torch.nan]):
        with pytest.raises(Diverged, match=r"^the answer to example 0 is not finite$") as caught:
            check_answers(torch.tensor([[[0.0, 0.0]], [wrong]]), classification=False)
        assert caught.value.task == 1


def test_accuracies_by_hand():
    source = shapes()
    nearest = NearestNeighbour(source.spec)
    scores = evaluate_learner(Guess(source.spec), source, name="guess", num_episodes=25, references={"nearest": nearest})
    np.testing.assert_allclose(scores.scores, 1 / 3)
    np.testing.assert_array_equal(scores.transductive, np.ones(25))
    assert (scores.shots, scores.queries, scores.outputs, scores.accuracy) == (2, 4, 3, True)
    (other,) = scores.references
    assert (other.name, other.transductive, other.episodes_hash) == ("nearest", None, scores.episodes_hash)
    np.testing.assert_array_equal(other.scores, np.ones(25))


def test_episodes_of_training_classes_are_not_distorted():
    def distorted(x, rng):
        raise AssertionError

    plain = shapes()
    x = plain.data["test"]
    source = NWayKShot("shapes", {"train": x}, ways=3, shots=2, queries=4, augment=distorted)
    scores = evaluate_learner(NearestNeighbour(source.spec), source, split="train", num_episodes=5)
    assert scores.mean.value == 1.0
    with pytest.raises(AssertionError):
        source.episodes("train", [0])


def test_by_instance_where_labels_come_late():
    source = shapes()
    torch.manual_seed(0)
    references = {"snail": make_learner("snail", source.spec)}  # labels come with the examples
    learner = make_learner("mann", source.spec, {"size": 8})
    scores = evaluate_learner(learner, source, num_episodes=25, seed=4, references=references, batch=7)
    assert (list(scores.by_instance), scores.references[0].by_instance) == ([1, 2, 3, 4, 5, 6], {})  # 2 shots, 4 queries
    with torch.no_grad():
        expected = accuracy_by_instance(learner, source.episodes("test", range(25), 4), torch.Generator().manual_seed(4))
    np.testing.assert_allclose(np.stack([*scores.by_instance.values()], 1), expected)


def test_instances_that_some_episodes_lack_are_left_out():
    class Uneven(EpisodeSource):
        name, spec = "uneven", TaskSpec(shape=(1,), outputs=2, classification=True)

        def episode(self, split, rng):
            x = np.zeros((2, 1), np.float32)
            return x, np.arange(2), x, rng.integers(2, size=2), np.empty(0, np.int64)

    source = Uneven()
    scores = evaluate_learner(make_learner("mann", source.spec, {"size": 8}), source, num_episodes=20)
    assert list(scores.by_instance) == [1, 2]  # a third one is only there where both queries are of one class


def test_gradient_learners_equal_a_loop_over_episodes():
    source = Sinusoids()
    learner = MAML(source.spec, rate=0.01, steps=2)
    scores = evaluate_learner(learner, source, num_episodes=9, seed=4, steps=(3, 0, 2), batch=4)
    assert list(scores.by_step) == [0, 2, 3]
    for k, found in scores.by_step.items():
        for i in range(9):
            one = source.episodes("test", [i], 4)
            with torch.no_grad():
                outputs = learner.answer(learner.condition(one.support_x, one.support_y, steps=k), one.query_x)
            assert found[i] == pytest.approx((outputs - one.query_y).square().mean().item(), rel=1e-4)
    np.testing.assert_array_equal(scores.scores, scores.by_step[2])


def test_batches_make_no_difference():
    source = Sinusoids()
    learner = MAML(source.spec)
    one, other = (evaluate_learner(learner, source, num_episodes=10, batch=batch) for batch in (3, 10))
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
    assert one.episodes_hash == other.episodes_hash
    assert one.episodes_hash != evaluate_learner(learner, source, num_episodes=10, seed=1).episodes_hash
    assert one.episodes_hash != evaluate_learner(learner, source, num_episodes=9).episodes_hash


def test_costs():
    source = Sinusoids()
    learners = {"scratch": FromScratch(source.spec, steps=7), "nearest": NearestNeighbour(source.spec)}
    scores = evaluate_learner(MAML(source.spec, test_steps=3), source, references=learners, num_episodes=2, batch=2)
    costs = [one.cost for one in (scores, *scores.references)]
    assert [cost.gradient_evaluations for cost in costs] == [3, 7, 0]
    assert [cost.parameters for cost in costs] == [1761, 1761, 0]  # 1-40-40-1
    assert costs[0].seconds > 0
    assert costs[0].batch == 2
    cost = evaluate_learner(Mean(Levels.spec), Levels(), num_episodes=2).cost
    assert 400_000 < cost.memory < 400_100  # 100,000 numbers for one episode, and a few


def test_learners_are_left_as_they_were():
    learner = Mean(Levels.spec)
    evaluate_learner(learner, Levels(), num_episodes=2)
    assert learner.training
    evaluate_learner(learner.eval(), Levels(), num_episodes=2)
    assert not learner.training


def test_refusals_come_before_the_work():
    learner, source = Mean(Levels.spec), Levels()
    for options, message in (
        ({"num_episodes": 0}, "num_episodes must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"shots": (1, 0)}, "shots must be at least 1, got 0"),
        ({"shots": (1, 4), "num_episodes": 10**9}, "shots must be at most 3"),
        ({"steps": (-1,)}, "steps must be at least 0, got -1"),
        ({"steps": (1,)}, "steps must be empty for learners that take no gradient steps"),
        ({"split": "tset"}, "split 'tset' is unknown"),
        ({"references": {"Mean": learner}}, "references must have other names than the learner, got Mean"),
        (
            {"references": {"other": MAML(Sinusoids().spec), "bad": Guess(shapes().spec)}},
            "of Guess's tasks, True, got False",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_learner(learner, source, **options)
    with pytest.raises(ValueError, match="outputs of the episodes must be that of Guess's tasks, 3, got 2"):
        evaluate_learner(Guess(shapes().spec), shapes(ways=2))
    with pytest.raises(ValueError, match=r"at least shots \+ queries = 9 \+ 4 = 13 examples, got 12"):
        evaluate_learner(Guess(shapes().spec), shapes(), shots=(2, 9))
    assert evaluate_learner(NearestNeighbour(shapes().spec), shapes(ways=2), num_episodes=3).mean.value == 1.0

import dataclasses

import numpy as np
import pytest

from metarl.evaluation import AdaptationCurve, RandomPlayer, evaluate, plot_recall
from metarl.evaluation.barcode_players import PerfectRecall
from metarl.trials import Transition
from metarl_envs import make_family


def make(**kwargs):
    family = make_family("metarl/BarcodeBandit-v0", num_contexts=2, num_arms=3, num_bits=2, **kwargs)
    player = PerfectRecall(family)
    player.start_trials(family.sample(1, "test", 0), np.random.default_rng(0))
    return family, player


def pull(player, code, arm, reward):
    codes, no = np.array([code], np.int8), np.zeros(1, bool)
    player.observe(Transition(codes, np.array([arm]), np.array([reward]), no, no, codes))


def test_beliefs_are_bayes_rule_by_enumeration():
    family, player = make(high=0.8, low=0.3)
    pulls = [([0, 1], 0, 1.0), ([1, 1], 2, 1.0), ([0, 1], 1, 0.0), ([0, 1], 0, 0.0), ([0, 1], 2, 1.0), ([1, 1], 2, 0.0)]
    for code, arm, reward in pulls:
        pull(player, code, arm, reward)
    for place, code in enumerate(([0, 1], [1, 1])):
        posterior = np.ones(3)
        for best in range(3):
            for seen, arm, reward in pulls:
                if seen == code:
                    pays = family.high if arm == best else family.low
                    posterior[best] *= pays if reward else 1 - pays
        found = np.exp(player.beliefs[0, place])
        np.testing.assert_allclose(found / found.sum(), posterior / posterior.sum())


def test_it_goes_on_where_it_left_off_when_a_barcode_returns():
    _, player = make(high=1.0, low=0.0)
    codes = np.array([[1, 0]], np.int8)
    player.act(codes)
    pull(player, [1, 0], 1, 1.0)
    pull(player, [0, 0], 1, 0.0)
    assert {int(player.act(codes)[0]) for _ in range(10)} == {1}
    assert {int(player.act(np.array([[0, 0]], np.int8))[0]) for _ in range(30)} == {0, 2}


@pytest.fixture(scope="module")
def curve():
    family = make_family("metarl/BarcodeBandit-v0", num_contexts=3, num_occurrences=4)
    return evaluate(PerfectRecall(family), family, num_tasks=300, references=True)


def test_returns_by_occurrence(curve):
    assert curve.occurrences.shape == (300, 12)
    for k, value in enumerate(curve.by_occurrence.value):
        assert value == pytest.approx(curve.returns[curve.occurrences == k].mean())  # three episodes of each in every task
    assert len(curve.by_occurrence.value) == 4
    first, second = curve.by_occurrence.value[:2]
    assert first < 7 < 8.7 < second
    random = next(c for c in curve.references if c.name == "random")
    assert random.by_occurrence.value == pytest.approx([2.6] * 4, abs=0.15)
    header, rows = curve.occurrence_rows()
    assert header[1:] == ["1", "2", "3", "4"]
    assert [row[0] for row in rows] == ["perfect recall", "perfect recall", "random", "knows the task"]
    regrets, ours = curve.occurrence_rows(regret=True)
    assert regrets == ["regret per episode, by occurrence", *header[1:]]
    assert [row[0] for row in ours] == ["perfect recall", "perfect recall", "random"]
    assert curve.further_tables() == [(header, rows), (regrets, ours)]


def test_regret_by_occurrence_is_what_is_missing_to_the_ceiling(curve):
    np.testing.assert_allclose(curve.regret_by_occurrence.value, 9 - curve.by_occurrence.value)  # ten pulls that pay .9
    np.testing.assert_allclose(curve.regret_by_occurrence.low, 9 - curve.by_occurrence.high)
    assert dataclasses.replace(curve, ceiling=None).regret_by_occurrence is None
    assert dataclasses.replace(curve, ceiling=None).occurrence_rows(regret=True) is None
    assert dataclasses.replace(curve, occurrences=None).regret_by_occurrence is None


def test_occurrences_that_few_tasks_have_are_left_out_and_references_may_play_fewer_tasks():
    family = make_family("metarl/BarcodeBandit-v0", num_contexts=4, num_occurrences=5)
    curve = evaluate(PerfectRecall(family), family, num_tasks=400, episodes=8, reference_tasks=1, seed=1)
    assert len(curve.by_occurrence.value) == 3  # half of the tasks meet one of four bandits a third time within 8 episodes
    third = curve.occurrences == 2
    having = third.any(1)
    expected = (curve.returns * third).sum(1)[having] / third.sum(1)[having]
    assert curve.by_occurrence.value[2] == pytest.approx(expected.mean())
    header, rows = curve.occurrence_rows()
    assert all(len(row) == len(header) for row in rows)


def test_occurrences_are_saved_and_drawn(curve, tmp_path):
    again = AdaptationCurve.load(curve.save_npz(tmp_path / "curve.npz"))
    np.testing.assert_array_equal(again.occurrences, curve.occurrences)
    np.testing.assert_array_equal(again.references[0].by_occurrence.value, curve.references[0].by_occurrence.value)
    figure = plot_recall(again, tmp_path / "recall.png", names=["agent"])
    assert (tmp_path / "recall.png").stat().st_size > 5000
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["agent"].get_ydata(), curve.by_occurrence.value)


def test_where_nothing_comes_back_there_is_nothing_to_recall():
    family = make_family("metarl/BernoulliBandit-v0")
    curve = evaluate(RandomPlayer(family), family, num_tasks=10, references=False)
    assert curve.by_occurrence is None
    assert curve.further_tables() == []
    with pytest.raises(ValueError, match="recall cannot be shown: nothing comes back in metarl/BernoulliBandit-v0"):
        plot_recall(curve)

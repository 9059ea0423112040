import csv
import dataclasses

import numpy as np
import pytest

from metarl.evaluation import AdaptationCurve, compare


def make_curve(name, gain, task_hash="hash", num_tasks=200, episodes=3, references=()):
    rng = np.random.default_rng(0)  # the same tasks are as easy or hard for everybody
    difficulty = rng.normal(size=(num_tasks, 1))
    noise = 0.1 * np.random.default_rng([len(name), episodes]).normal(size=(num_tasks, episodes))
    returns = difficulty + gain * np.arange(episodes) + noise
    return AdaptationCurve(name, "metarl/GaussianBandit-v0", {}, "test", task_hash, returns, references=tuple(references))


@pytest.fixture
def comparison():
    reference = make_curve("random", 0.0, num_tasks=50)
    return compare([make_curve("RL²", 1.0, references=[reference]), make_curve("SNAIL", 1.2)])


def test_differences_are_paired(comparison):
    first, second = comparison.curves
    own, other = comparison.differences
    assert own == (0, 0, 0)
    assert other.value == pytest.approx((second.returns - first.returns).sum(1).mean())
    assert other.low < 0.6 < other.high
    assert other.high - other.low < 0.2 * (first.total.high - first.total.low)


def test_table_has_a_row_per_player(comparison):
    header, rows = comparison.table_rows()
    assert header == ["player", "return per trial", "above RL²", "first episode", "last episode"]
    assert [row[0] for row in rows] == ["RL²", "SNAIL", "random"]
    assert rows[0][2] == ""
    assert rows[1][2].startswith("+0.")
    played = comparison.curves[0].returns[:50]  # the reference played only the first 50 tasks
    difference = (comparison.curves[0].references[0].returns - played).sum(1).mean()
    assert rows[2][2].startswith(f"{difference:+.3f} [")
    assert len(comparison.table().splitlines()) == 5


def test_csv_holds_differences_per_episode(comparison, tmp_path):
    with comparison.save_csv(tmp_path / "run" / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["player"], line["episode"]) for line in lines] == [(n, e) for n in ("RL²", "SNAIL") for e in "123"]
    expected = (comparison.curves[1].returns - comparison.curves[0].returns).mean(0)
    np.testing.assert_allclose([float(line["difference"]) for line in lines], [0, 0, 0, *expected], rtol=1e-8)
    assert float(lines[5]["difference_low"]) < expected[2] < float(lines[5]["difference_high"])


def test_pictures_and_pages_are_written(comparison, tmp_path):
    figure = comparison.plot(tmp_path / "comparison.png")
    assert {"RL²", "SNAIL", "random"} <= {text.get_text() for text in figure.axes[0].texts}
    assert (tmp_path / "comparison.png").stat().st_size > 5000
    page = comparison.save_html(tmp_path / "comparison.html", title="Two cores").read_text(encoding="utf-8")
    for text in ("<h1>Two cores</h1>", "above RL²", "SNAIL", "data:image/svg+xml;base64,", "not trained, evaluation seed 0"):
        assert text in page


def test_repeated_names_are_numbered():
    curve = make_curve("RL²", 1.0)
    assert compare([curve, curve, curve]).names == ("RL²", "RL² (2)", "RL² (3)")
    assert compare([curve, curve], names=["a", "b"]).names == ("a", "b")


def test_other_tasks_are_refused():
    played = r"'RL²' played 200 test tasks of metarl/GaussianBandit-v0 \(hash first\) and 'SNAIL' 200 .* \(hash second\)"
    with pytest.raises(ValueError, match=f"same tasks, but {played}"):
        compare([make_curve("RL²", 1.0, "first"), make_curve("SNAIL", 1.0, "second")])


def test_other_trial_lengths_are_refused():
    with pytest.raises(ValueError, match="same length, but 'RL²' played 3 episodes and 'SNAIL' 4"):
        compare([make_curve("RL²", 1.0), make_curve("SNAIL", 1.0, episodes=4)])


def test_wrong_arguments_are_named():
    curve = make_curve("RL²", 1.0)
    with pytest.raises(ValueError, match="curves must hold at least 2 curves, got 1"):
        compare([curve])
    for names in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match="names must hold 2 different names, got"):
            compare([curve, dataclasses.replace(curve, name="b")], names)

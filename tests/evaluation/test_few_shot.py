"""Scores of few-shot learners: numbers by hand, what is written and read again, and what is refused."""

import csv
import dataclasses

import numpy as np
import pytest

from metarl.evaluation.few_shot import FewShotCost, FewShotScores, compare_few_shot
from metarl.evaluation.statistics import estimate, paired_difference

COST = FewShotCost(0.0125, batch=20, threads=1, memory=2_500_000, gradient_evaluations=5, parameters=1761)


def made(name="a", scores=(1.0, 0.5, 0.75, 0.75), **fields):
    fields = {"outputs": 4, "shots": 1, "queries": 5, "accuracy": True, **fields}
    return FewShotScores(name, "shapes", "test", 3, fields.pop("hash", "abc"), scores=np.array(scores), **fields)


def full():
    return made(
        transductive=np.array([1.0, 1.0, 1.0, 0.5]),
        by_step={0: np.array([0.25, 0.25, 0.0, 0.5]), 5: np.array([1.0, 0.5, 0.75, 0.75])},
        by_shot={1: np.array([1.0, 0.5, 0.75, 0.75]), 10: np.array([1.0, 1.0, 1.0, 0.75])},
        cost=COST,
        training_episodes=1000,
        references=(made("worse", (0.5, 0.5, 0.25, 0.25)), made("better", (1.0, 1.0, 0.75, 0.75))),
    )


def test_table_by_hand():
    header, rows = full().table_rows()
    assert header == [
        "learner",
        "accuracy (%), inductive",
        "transductive",
        "difference to a",
        "ms per episode",
        "memory (MB)",
        "gradients",
        "parameters",
    ]
    assert [row[0] for row in rows] == ["a", "better", "worse"]
    assert [float(row[1].split()[0]) for row in rows] == [75.0, 88.0, 38.0]  # 87.5 and 37.5, to even numbers
    assert [row[2].split(" ")[0] for row in rows] == ["88", "", ""]
    assert [row[3].split(" ")[0] for row in rows] == ["", "+12", "-38"]
    assert [row[4:] for row in rows] == [["12.5", "2.5", "5", "1,761"], [""] * 4, [""] * 4]


def test_costs_and_certain_scores_are_shown_readably():
    cost = dataclasses.replace(COST, seconds=1.8131, memory=1_234_567_890, gradient_evaluations=1000)
    _, (row,) = made(scores=[1.0] * 4, cost=cost).table_rows()
    assert row[1] == "100.00 [100.00, 100.00]"
    assert row[2:] == ["1,810", "1,230", "1,000", "1,761"]
    assert made(scores=[1.0]).table_rows()[1][0][1] == "100.00"  # of one episode, nothing is known


def test_part():
    part = full().part(["worse"], steps=(5, 7), shots=(10,))
    assert [one.name for one in part.references] == ["worse"]
    assert list(part.settings) == [("inductive", ""), ("transductive", ""), ("gradient steps", 5), ("shots", 10)]
    np.testing.assert_array_equal(part.by_step[5], full().by_step[5])
    whole = full().part(["better", "worse"], (0, 5), (1, 10))
    assert whole.table_rows() == full().table_rows()
    assert whole.further_tables() == full().further_tables()


def test_estimates_are_over_episodes():
    scores = full()
    assert scores.mean == estimate(scores.scores)
    assert scores.means["transductive", ""].value == 0.875
    assert scores.means["gradient steps", 0].value == 0.25
    assert scores.means["shots", 10].value == 0.9375
    assert scores.differences["worse"] == paired_difference(scores.scores, scores.references[0].scores)
    assert scores.differences["worse"].value == -0.375


def test_further_tables_by_hand():
    compared = compare_few_shot([full(), made("b", by_step={1: np.full(4, 0.5), 5: np.full(4, 0.75)})])
    (steps, by_step), (shots, by_shot) = compared.further_tables()
    assert steps == ["accuracy (%) by gradient steps", "0", "1", "5"]
    assert [[cell.split(" ")[0] for cell in row] for row in by_step] == [["a", "25", "", "75"], ["b", "", "50", "75"]]
    assert shots == ["accuracy (%) by shots", "1", "10"]
    assert [[cell.split(" ")[0] for cell in row] for row in by_shot] == [["a", "75", "94"]]
    assert made().further_tables() == []


def test_of_errors_the_smallest_is_best():
    errors = {"accuracy": False, "outputs": 1}
    scores = made(
        **errors, references=(made("worse", [2.0] * 4, **errors), made("better", [0.5, 0.25, 0.5, 0.25], **errors))
    )
    header, rows = scores.table_rows()
    assert header == ["learner", "MSE", "difference to a"]
    assert [row[0] for row in rows] == ["a", "better", "worse"]
    assert scores.differences["better"].value == -0.375
    assert scores.subject == "shapes, test: 1-shot, 5 queries (n = 4 episodes)"
    assert full().subject == "shapes, test: 4-way 1-shot, 5 queries per class (n = 4 episodes)"


def test_compared_learners_come_in_the_order_given_then_references():
    compared = compare_few_shot([made(), made(scores=[0.5] * 4), full()])
    assert list(compared.everyone) == ["a", "a (2)", "a (3)", "better", "worse"]
    assert compared.num_learners == 3
    assert compared.differences["a (2)"].value == -0.25
    assert compared.differences["a (2)"].low < -0.25 < compared.differences["a (2)"].high
    assert list(compare_few_shot([made(), full()], ["x", "y"]).everyone) == ["x", "y", "better", "worse"]


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="must be of at least 2 learners, got 1"):
        compare_few_shot([made()])
    with pytest.raises(ValueError, match="names must hold 2 different names"):
        compare_few_shot([made(), made()], ["x", "x"])
    with pytest.raises(
        ValueError, match=r"^scores must be of the same episodes, but 'a' has shapes.*abc and 'b' shapes.*xyz"
    ):
        compare_few_shot([made(), made("b", hash="xyz")])
    with pytest.raises(ValueError, match="must be of the same episodes"):
        made(references=(made("b", hash="xyz"),))


def test_what_does_not_fit_together():
    with pytest.raises(ValueError, match=r"scores must have shape \[episodes\], at least 1, got \(0,\)"):
        made(scores=[])
    with pytest.raises(ValueError, match=r"transductive scores of a must have shape \(4,\), got \(3,\)"):
        made(transductive=np.ones(3))
    with pytest.raises(ValueError, match="gradient steps 5 scores of a must be finite, got nan in episode 2"):
        made(by_step={5: np.array([1.0, 1.0, np.nan, 1.0])})


def test_what_is_written_is_read_again(tmp_path):
    scores = full()
    read = FewShotScores.load(scores.save_npz(tmp_path / "deep" / "scores"))
    for one, other in zip((scores, *scores.references), (read, *read.references), strict=True):
        for field in dataclasses.fields(one):
            if field.name not in ("references", "scores", "transductive", "by_step", "by_shot", "by_instance"):
                assert getattr(one, field.name) == getattr(other, field.name)
        assert one.settings.keys() == other.settings.keys()
        for setting, values in one.settings.items():
            np.testing.assert_array_equal(values, other.settings[setting])
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"other\.npz is not a file of scores"):
        FewShotScores.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        FewShotScores.load(tmp_path / "none.npz")


def test_csv_by_hand(tmp_path):
    with open(full().save_csv(tmp_path / "deep" / "scores.csv")) as file:
        rows = list(csv.DictReader(file))
    assert [(row["learner"], row["setting"], row["at"]) for row in rows] == [
        ("a", "inductive", ""),
        ("a", "transductive", ""),
        ("a", "gradient steps", "0"),
        ("a", "gradient steps", "5"),
        ("a", "shots", "1"),
        ("a", "shots", "10"),
        ("better", "inductive", ""),
        ("worse", "inductive", ""),
    ]
    assert [float(row["accuracy"]) for row in rows] == [0.75, 0.875, 0.25, 0.75, 0.75, 0.9375, 0.875, 0.375]
    assert [float(row["difference"]) for row in rows] == [0.0] * 6 + [0.125, -0.375]
    assert float(rows[7]["difference_low"]) < -0.375 < float(rows[7]["difference_high"])
    assert (rows[0]["seconds"], rows[0]["memory"], rows[0]["gradient_evaluations"]) == ("0.0125", "2500000", "5")
    assert rows[1]["seconds"] == rows[7]["seconds"] == ""
    assert {row["n"] for row in rows} == {"4"}


def test_scores_by_instance_are_shown_and_kept(tmp_path):
    by_instance = {k: np.full(4, k / 12) for k in range(1, 13)}
    scores = made(by_instance=by_instance)
    ((header, ((name, *cells),)),) = scores.further_tables()
    assert header == ["accuracy (%) by instance", *map(str, range(1, 11))]
    assert (name, [round(float(cell.split(" ")[0])) for cell in cells]) == ("a", [8, 17, 25, 33, 42, 50, 58, 67, 75, 83])
    _, axes = scores.plot().axes
    assert axes.get_xlabel() == "instance"
    np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata(), 100 * np.arange(1, 13) / 12)
    read = FewShotScores.load(scores.save_npz(tmp_path / "scores"))
    assert {k: list(a) for k, a in read.by_instance.items()} == {k: list(a) for k, a in by_instance.items()}
    assert read.part().by_instance.keys() == by_instance.keys()
    with open(scores.save_csv(tmp_path / "scores.csv")) as file:
        assert [row["at"] for row in csv.DictReader(file) if row["setting"] == "instance"] == [str(k) for k in by_instance]


@pytest.mark.parametrize("dark", [False, True])
def test_picture(dark, tmp_path):
    figure = full().plot(tmp_path / "deep" / "picture.png", dark=dark)
    rows, steps, shots = figure.axes
    assert [label.get_text() for label in rows.get_yticklabels()] == ["a", "better", "worse"]
    assert rows.get_xlabel() == "accuracy (%), 95 % interval\nfilled: inductive, hollow: transductive"
    assert (steps.get_xlabel(), shots.get_xlabel()) == ("gradient steps", "shots")
    assert steps.get_ylabel() == shots.get_ylabel() == "accuracy (%)"
    np.testing.assert_array_equal(steps.containers[0].lines[0].get_xydata(), [[0.0, 25.0], [5.0, 75.0]])
    assert [25.0, 25.0] in [list(line.get_xdata()) for line in rows.lines]  # chance
    assert [int(text.get_text().split(" ")[0]) for text in rows.texts[:4]] == [75, 88, 38, 88]  # the last: transductive
    assert (list(steps.get_xticks()), list(shots.get_xticks())) == ([0, 5], [1, 10])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a"]  # who has curves
    assert (tmp_path / "deep" / "picture.png").stat().st_size > 10_000


def test_ticks_are_where_it_was_measured_but_do_not_touch():
    by_shot = {k: np.ones(4) for k in (1, 5, 10, 11, 20)}
    _, shots = made(by_shot=by_shot).plot().axes
    assert list(shots.get_xticks()) == [1, 5, 10, 20]


def test_errors_that_are_far_apart_are_drawn_on_a_logarithmic_axis():
    near, far = (
        made(scores=[1.0, 2.0], accuracy=False, references=(made("b", [most, most], accuracy=False),)).plot().axes[0]
        for most in (4.0, 400.0)
    )
    assert (near.get_xscale(), near.get_xlim()[0]) == ("linear", 0.0)
    assert far.get_xscale() == "log"


def test_page(tmp_path):
    page = full().save_html(tmp_path / "page.html", config={"rule": "<sgd>"}).read_text()
    for text in ("on shapes, test: 4-way", "rule: &lt;sgd&gt;", "trained for 1,000 episodes", "20 side by side", "worse"):
        assert text in page
    page = compare_few_shot([made(), made("b")]).save_html(tmp_path / "page.html").read_text()
    assert "<h1>a, b</h1>" in page
    assert page.count('class="agent"') == 2

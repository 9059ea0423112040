"""Curves of update rules: their numbers against the losses themselves, what is written, and what is refused."""

import csv

import numpy as np
import pytest

from metarl.evaluation.optimization import OptimizationCurve, evaluate_optimizer, tune_baselines
from metarl.problems import Quadratics, unroll
from metarl.updates import RULES

PROBLEM = Quadratics(dimensions=3, horizon=8)
TUNING = {"num": 32, "rates": (0.003, 0.01, 0.03, 0.1)}


@pytest.fixture(scope="module")
def curve():
    rule = RULES["sgd"](PROBLEM.template(), 0.01)
    return evaluate_optimizer(
        rule, PROBLEM, name="slow", num_problems=40, baselines=("momentum", "adam"), seed=3, tuning=TUNING
    )


def test_losses_are_those_of_the_rule_on_the_split(curve):
    instances = PROBLEM.sample(40, "test", np.random.default_rng([3, 0]))
    rule = RULES["sgd"](PROBLEM.template(), 0.01)
    losses = unroll(PROBLEM, rule, instances, 8, np.random.default_rng([3, 1])).numpy()
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-6)
    assert curve.mean.value == pytest.approx(losses[1:].mean(), rel=1e-5)
    assert curve.end.value == pytest.approx(losses[-1].mean(), rel=1e-5)
    assert curve.mean.low < curve.mean.value < curve.mean.high
    assert curve.steps == 8


def test_references_start_where_the_rule_does_and_are_tuned_twice(curve):
    tuned = tune_baselines(PROBLEM, ("momentum", "adam"), steps=8, seed=3, **TUNING)
    instances = PROBLEM.sample(40, "test", np.random.default_rng([3, 0]))
    assert [other.name for other in curve.references] == ["momentum", "adam"]
    for other in curve.references:
        np.testing.assert_array_equal(other.losses[0], curve.losses[0])
        for measure, found in (("mean", other.losses), ("final", other.final)):
            best = tuned[measure][other.name]
            rule = RULES[other.name](PROBLEM.template(), best.rate, **best.options)
            losses = unroll(PROBLEM, rule, instances, 8, np.random.default_rng([3, 1])).numpy()
            np.testing.assert_allclose(found, losses if measure == "mean" else losses[-1], rtol=1e-6)
            assert f"rate {best.rate:g}" in other.setting


def tiny(name="a", scale=1.0, **kwargs):
    losses = scale * np.array([[4.0, 4.0], [2.0, 4.0], [1.0, 1.0]])
    return OptimizationCurve(name, "hills", "test", 0, "abc", losses, **kwargs)


def test_table_by_hand():
    whole = tiny(references=(tiny("b", 2.0, setting="rate 1"), tiny("c", 0.5, final=np.array([0.25, 0.75]))))
    header, rows = whole.table_rows()
    assert header == ["rule", "mean loss, steps 1 to 2", "loss after 2", "diverged", "settings"]
    assert [row[0] for row in rows] == ["a", "c", "b"]  # the rule, then the best
    assert [float(row[1].split()[0]) for row in rows] == [2.0, 1.0, 4.0]
    assert [float(row[2].split()[0]) for row in rows] == [1.0, 0.5, 2.0]
    assert rows[2][4] == "rate 1"


def test_returns_are_minus_losses_and_the_highest_is_best():
    whole = tiny(returns=True, references=(tiny("b", 2.0, returns=True), tiny("c", 0.5, returns=True)))
    header, rows = whole.table_rows()
    assert header[1:3] == ["mean return, steps 1 to 2", "return after 2"]
    assert [row[0] for row in rows] == ["a", "c", "b"]
    assert float(rows[0][2]) == -1.0


def test_what_diverges_is_counted_and_has_no_mean(tmp_path):
    broken = tiny("b")
    broken.losses[2, 0] = np.nan
    whole = tiny(references=(broken,))
    _, rows = whole.table_rows()
    assert [row[0] for row in rows] == ["a", "b"]
    assert rows[1][1] == "nan"
    assert rows[1][3] == "50%"
    whole.plot(tmp_path / "picture.png")


def test_files(curve, tmp_path):
    with open(curve.save_csv(tmp_path / "deep" / "curve.csv")) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 9
    assert rows[8] == {k: v for k, v in rows[8].items() if k in ("rule", "step", "loss", "low", "high")}
    assert (rows[8]["rule"], rows[8]["step"]) == ("slow", "8")
    assert float(rows[8]["loss"]) == pytest.approx(curve.losses[8].mean())
    page = curve.save_html(tmp_path / "page.html", config={"rule": "sgd"}).read_text()
    assert "slow" in page
    assert "rule: sgd" in page
    figure = curve.plot(tmp_path / "picture.png")
    assert figure.axes[0].get_xlabel() == "steps of the rule"
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert curve.summary()["rules"][0]["end"][0] == pytest.approx(curve.end.value)

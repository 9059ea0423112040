import csv
import dataclasses

import numpy as np
import pytest

from metarl.evaluation import AdaptationCurve, evaluate
from metarl.evaluation.adaptation import MAX_TASKS
from metarl_envs import make_family

FAMILY = make_family("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=4)


class Uniform:
    name = "random"

    def start_trials(self, tasks, rng):
        self.rng, self.size = rng, len(tasks)

    def act(self, observations):
        return self.rng.integers(3, size=self.size)

    def observe(self, transition):
        pass


class Oracle(Uniform):
    name = "oracle"

    def start_trials(self, tasks, rng):
        self.best = tasks.params["means"].argmax(1)

    def act(self, observations):
        return self.best


class Model:
    family = FAMILY
    num_timesteps = 123

    def player(self):
        return Oracle()


def evaluated(**options):
    return evaluate(Model(), **{"num_tasks": 400, "references": [Uniform()], **options})


def test_scores_and_facts():
    curve = evaluated()
    assert (curve.name, curve.env_id, curve.split, curve.training_steps) == ("oracle", FAMILY.env_id, "test", 123)
    assert curve.family_kwargs == FAMILY.kwargs
    assert curve.returns.shape == (400, 4)
    assert (curve.num_tasks, curve.num_episodes) == (400, 4)
    np.testing.assert_allclose(curve.mean.value, curve.returns.mean(0))
    np.testing.assert_allclose(curve.total.value, curve.returns.sum(1).mean())
    assert curve.pre_adaptation == tuple(part[0] for part in curve.mean)
    assert curve.post_adaptation == tuple(part[-1] for part in curve.mean)
    assert curve.gain.value == pytest.approx((curve.returns[:, -1] - curve.returns[:, 0]).mean())
    assert curve.total.low < curve.total.value < curve.total.high
    assert curve.total_iqm.low <= curve.total_iqm.value <= curve.total_iqm.high


def test_a_player_that_knows_the_task_reaches_the_ceiling():
    curve = evaluated(num_tasks=5000)
    assert curve.mean.value == pytest.approx(curve.ceiling.mean(), abs=0.025)
    assert curve.regret.low < 0 < curve.regret.high
    assert curve.regret.value == pytest.approx(4 * curve.ceiling.mean() - curve.total.value)
    assert curve.references[0].mean.value == pytest.approx(0.5, abs=0.025)


def test_references_play_the_same_tasks():
    curve = evaluated()
    (reference,) = curve.references
    assert reference.task_hash == curve.task_hash == FAMILY.sample(400, "test", np.random.default_rng(0)).hash
    assert reference.training_steps is None
    capped = evaluated(reference_tasks=50)
    np.testing.assert_array_equal(capped.references[0].ceiling, curve.ceiling[:50])
    assert capped.references[0].num_tasks == 50
    assert capped.references[0].task_hash != capped.task_hash


def test_equal_arguments_give_equal_returns():
    first, second, other = evaluated(), evaluated(), evaluated(seed=1)
    np.testing.assert_array_equal(first.returns, second.returns)
    assert first.task_hash != other.task_hash


def test_tasks_may_be_given():
    tasks = FAMILY.sample(7, "ood", 3)
    curve = evaluate(Oracle(), FAMILY, tasks=tasks, references=False)
    assert (curve.task_hash, curve.split, curve.num_tasks, curve.references) == (tasks.hash, "ood", 7, ())
    assert curve.training_steps is None


def test_long_trials_get_fewer_tasks():
    assert evaluated(num_tasks=None, references=False).num_tasks == MAX_TASKS
    long = dataclasses.replace(FAMILY, num_pulls=40_000)
    assert evaluate(Oracle(), long, episodes=1, references=False).num_tasks == MAX_TASKS
    assert evaluate(Oracle(), dataclasses.replace(FAMILY, num_pulls=1000), references=False).num_tasks == 2000


def test_progress_is_shown_on_request(capsys):
    evaluated(progress_bar=True)
    assert "oracle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": None}, "family must be given with a player"),
        ({"split": "validation"}, "split must be one of train, test, ood"),
        ({"num_tasks": 0}, "num_tasks must be at least 1, got 0"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"reference_tasks": 0}, "reference_tasks must be at least 1, got 0"),
        (
            {"tasks": make_family("metarl/BernoulliBandit-v0", num_arms=9).sample(3)},
            "tasks must be of the family .*: 3.*: 9",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Oracle(), **{"family": FAMILY, "references": False, **arguments})


def test_models_refuse_other_spaces():
    with pytest.raises(ValueError, match=r"family must have the model's action_space, Discrete\(3\), got Discrete\(5\)"):
        evaluate(Model(), make_family("metarl/BernoulliBandit-v0", num_arms=5))


def test_table_has_a_row_per_player():
    curve = evaluated()
    header, *rows = curve.table().splitlines()
    assert header.split("  ")[0] == "player"
    assert [row.split("  ")[0] for row in rows[1:]] == ["oracle", "random", "knows the task"]
    assert rows[2].endswith(" 0.0%")
    assert rows[3].endswith(" 100.0%")
    assert f"{curve.total.value:.2f} [{curve.total.low:.2f}, {curve.total.high:.2f}]" in rows[1]


def test_table_scales_by_the_bayes_optimal_player():
    curve = evaluated()
    bayes = dataclasses.replace(curve, name="Bayes-optimal", returns=curve.returns + 1)
    header, rows = dataclasses.replace(curve, references=(*curve.references, bayes)).table_rows()
    assert header[-2:] == ["last episode", "random to Bayes"]
    assert [row[0] for row in rows] == ["oracle", "Bayes-optimal", "random", "knows the task"]
    assert [rows[1][-1], rows[2][-1]] == ["100.0%", "0.0%"]


def test_table_of_one_task_shows_no_interval():
    curve = AdaptationCurve("agent", "env", {}, "test", "hash", np.array([[1.0, 2.0]]))
    assert curve.table().splitlines()[-1].split() == ["agent", "3.00", "3.00", "1.00", "2.00"]
    assert curve.regret is None


def test_csv_has_a_line_per_player_and_episode(tmp_path):
    curve = evaluated()
    with curve.save_csv(tmp_path / "run" / "adaptation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["player", "episode", "mean", "mean_low", "mean_high", "iqm", "iqm_low", "iqm_high", "n"]
    assert [(line["player"], line["episode"]) for line in lines] == [
        (p, str(e)) for p in ("oracle", "random") for e in range(1, 5)
    ]
    assert float(lines[1]["mean_low"]) == pytest.approx(curve.mean.low[1])
    assert float(lines[6]["iqm"]) == pytest.approx(curve.references[0].iqm.value[2])
    assert {line["n"] for line in lines} == {"400"}


def test_saved_curves_come_back(tmp_path):
    curve = evaluated(reference_tasks=30)
    loaded = AdaptationCurve.load(curve.save_npz(tmp_path / "run" / "adaptation"))
    pairs = [(curve, loaded), (curve.references[0], loaded.references[0])]
    for before, after in pairs:
        for field in dataclasses.fields(AdaptationCurve):
            if field.name != "references":
                np.testing.assert_equal(getattr(after, field.name), getattr(before, field.name))
    assert loaded.table() == curve.table()


def test_curves_without_ceiling_come_back(tmp_path):
    curve = AdaptationCurve("agent", "env", {"reward": [1, None]}, "test", "hash", np.eye(3))
    loaded = AdaptationCurve.load(curve.save_npz(tmp_path / "curve.npz"))
    assert loaded.ceiling is None
    assert loaded.family_kwargs == {"reward": [1, None]}


def test_loading_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        AdaptationCurve.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not a zip file")
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], object))
    (tmp_path / "short.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    for name in ("text", "other", "pickled", "short"):
        with pytest.raises(ValueError, match=f"{name}.npz is not an adaptation curve"):
            AdaptationCurve.load(tmp_path / f"{name}.npz")


def test_curves_check_their_shapes():
    with pytest.raises(ValueError, match=r"returns must have shape \[tasks, episodes\], both at least 1, got \(3,\)"):
        AdaptationCurve("agent", "env", {}, "test", "hash", np.ones(3))
    with pytest.raises(ValueError, match=r"ceiling must have shape \(2,\), one value per task, got \(3,\)"):
        AdaptationCurve("agent", "env", {}, "test", "hash", np.ones((2, 3)), ceiling=np.ones(3))

"""`metarl fewshot`: from a command to figures, to a comparison, and to answers about a person's own examples."""

import csv
import re
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback

from metarl import cli
from metarl.config import TrainingConfig, read_config
from metarl.evaluation.few_shot import FewShotScores
from metarl.fewshot.config import FewShotConfig
from metarl.fewshot.estimators import FewShotClassifier
from metarl.fewshot_runs import load_few_shot_run
from metarl.training import Interrupted, resume, train

QUIET = "--no-progress-bar"
CURVES = {
    "learner": "maml",
    "learner_kwargs": {"hidden": [8]},
    "dataset": "sinusoids",
    "shots": 4,
    "queries": 4,
    "total_timesteps": 24,
    "checkpoint_every": 8,
    "evaluation": {"episodes": 6, "references": []},
}
FILES = {"config.yaml", "progress.json", "checkpoints", "tensorboard"}


@pytest.fixture
def metarl(capfd):
    def run(*args):
        code = cli.main([str(arg) for arg in args])
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A person's own data: pictures by class, a table, and texts, of six classes with eight examples each."""
    path, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    rows, texts = [["a", "b", "label"]], [["text", "label"]]
    for c in range(6):
        (path / "pictures" / f"c{c}").mkdir(parents=True)
        pattern = rng.integers(0, 256, (8, 8, 1))
        for i in range(8):
            picture = np.clip(pattern + rng.integers(-9, 9, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(path / "pictures" / f"c{c}" / f"{i}.png")
            rows.append([*(10 * np.cos([c, 2 * c]) + 0.1 * rng.normal(size=2)).round(3), f"c{c}"])
            texts.append([" ".join(f"c{c}x{i}" for i in rng.integers(0, 9, 5)), f"c{c}"])
    for name, content in (("table.csv", rows), ("texts.csv", texts)):
        with open(path / name, "w", newline="") as file:
            csv.writer(file).writerows(content)
    return path


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """A run on sinusoids."""
    folder = tmp_path_factory.mktemp("runs") / "curves"
    train(FewShotConfig(**CURVES), folder, progress_bar=False)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, own):
    """A run on folders of pictures, of a learner that takes any number of classes."""
    folder = tmp_path_factory.mktemp("runs") / "pictures"
    options = {"dataset_kwargs": {"size": 8, "grayscale": True, "shares": [1, 0, 1]}, "learner_kwargs": {"width": 8}}
    sizes = {"ways": 2, "queries": 3, "total_timesteps": 120, "hyperparameters": {"learning_rate": 0.01}}
    evaluation = {"evaluation": {"episodes": 6, "references": []}}
    config = FewShotConfig(learner="protonet", dataset=str(own / "pictures"), **options, **sizes, **evaluation)
    train(config, folder, progress_bar=False)
    return folder


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


# -- help --------------------------------------------------------------------------------------------------------------


def test_help_names_commands_learners_and_data_sets(metarl):
    for args in (["fewshot"], ["fewshot", "--help"]):
        code, output, _ = metarl(*args)
        assert code == 0
        for command in ("train", "evaluate", "compare", "predict"):
            assert re.search(rf"^  {command} +[A-Z].*\.$", output, re.MULTILINE)
    for args in (["fewshot", "train"], ["fewshot", "train", "--help"]):
        code, output, _ = metarl(*args)
        assert code == 0
        for name in ("maml", "protonet", "sinusoids", "glyphs", "csv"):
            assert re.search(rf"^  {name} +\S.*\.$", output, re.MULTILINE), name
        assert "nearest_neighbour" not in output


@pytest.mark.parametrize("args", [["train", "maml"], ["evaluate"], ["compare"], ["predict"]])
def test_every_option_has_a_sentence(metarl, args):
    code, output, _ = metarl("fewshot", *args, "--help")
    assert code == 0
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", output)
    before_defaults = re.findall(r"(\S+) \((?:default|required)", text)
    assert len(before_defaults) >= 3
    assert all(word.endswith(".") for word in before_defaults), before_defaults


# -- train and resume --------------------------------------------------------------------------------------------------


def test_trains_interrupted_and_resumed_to_the_bit(tmp_path):
    class Kill(BaseCallback):
        def _on_step(self):
            if self.n_calls == 3:
                signal.raise_signal(signal.SIGTERM)
            return True

    config = FewShotConfig(**CURVES | {"learner": "reptile", "workers": 1})
    whole = train(config, tmp_path / "whole", progress_bar=False)
    with pytest.raises(Interrupted, match=r"stopped and saved at step 16 of 24: go on with `metarl resume .*cut`$"):
        train(config, tmp_path / "cut", callback=Kill(), progress_bar=False)
    again = resume(tmp_path / "cut", progress_bar=False)
    assert again.num_timesteps == whole.num_timesteps == 24
    ours, theirs = again.learner.state_dict(), whole.learner.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_config(tmp_path / "cut" / "config.yaml") == config
    assert {path.name for path in (tmp_path / "cut").iterdir()} >= FILES
    assert not load_few_shot_run(tmp_path / "cut").training


def test_from_the_command_line_on_a_data_set_by_name(metarl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["fewshot", "train", "protonet", "--dataset", "digits", "--learner-kwargs", "{width: 4}"]
    code, output, _ = metarl(*command, "--total-timesteps", "8", "--batch", "2", "--evaluation.episodes", "5", QUIET)
    assert code == 0
    assert output.startswith("Training protonet on digits (5-way 1-shot) for 8 episodes, in runs/protonet-digits-1\n")
    assert output.endswith("Done. See how well it learns: metarl fewshot evaluate runs/protonet-digits-1\n")
    values = yaml.safe_load((tmp_path / "runs/protonet-digits-1/config.yaml").read_text())
    assert (values["algorithm"], values["learner"], values["evaluation"]["episodes"]) == ("fewshot", "protonet", 5)
    code, output, _ = metarl("resume", "runs/protonet-digits-1", QUIET)
    assert code == 0
    assert output.startswith("Done, at step 8.")
    code, _, errors = metarl(*command, "--out", "runs/protonet-digits-1", QUIET)
    assert code == 2
    assert "already holds a run" in errors


def test_a_saved_config_is_a_preset(metarl, curves, tmp_path):
    command = ["fewshot", "train", "maml", "--preset", curves / "config.yaml", "--seed", "5", "--total-timesteps", "4"]
    code, *_ = metarl(*command, "--out", tmp_path / "second", QUIET)
    assert code == 0
    first, second = (read_config(folder / "config.yaml").plain() for folder in (curves, tmp_path / "second"))
    assert {name for name in first if first[name] != second[name]} == {"seed", "total_timesteps"}
    code, _, errors = metarl("fewshot", "train", "protonet", "--preset", curves / "config.yaml", QUIET)
    assert (code, errors.count("\n")) == (2, 1)
    assert f"learner must be maml with --preset {curves}/config.yaml, got protonet" in errors


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("glyphs", "Parameters of the data set; those of glyphs: - fonts: .* By default bundled. - examples: "),
        ("texts", "Parameters of the data set; those of texts: - path: of the file. It must be given. - text: "),
        ("sinusoids", "Parameters of the data set; those of sinusoids: none. "),
        ("OWN/pictures", "Parameters of the data set; those of .*pictures: - size: "),
    ],
)
def test_help_has_the_options_of_the_data_set(metarl, own, dataset, expected):
    code, output, _ = metarl("fewshot", "train", "maml", "--data", dataset.replace("OWN", str(own)), "--help")
    assert code == 0
    assert re.search(expected, re.sub(r"[│\s]+", " ", output))
    assert "data-hash" not in output


def test_a_run_whose_data_changed_is_refused(metarl, tmp_path):
    table = tmp_path / "own.csv"
    rows = [f"{i % 9},{i % 7},{'abcd'[i % 4]}" for i in range(24)]
    table.write_text("\n".join(["x,y,label", *rows]))
    options = ["--ways", "2", "--queries", "2", "--dataset-kwargs", "{shares: [1, 0, 1]}", "--total-timesteps", "4"]
    command = ["fewshot", "train", "protonet", "--data", table, *options]
    assert metarl(*command, "--out", tmp_path / "run", QUIET)[0] == 0
    predict = ["fewshot", "predict", tmp_path / "run", "--support", table, "--query", table]
    assert metarl(*predict)[0] == 0
    table.write_text("\n".join(["x,y,label", *rows, "3,3,d"]))
    message = f"{table} has changed since the run was made, and the run cannot be used without its data: restore them, or"
    for refused in (predict, ["fewshot", "evaluate", tmp_path / "run"], ["resume", tmp_path / "run"]):
        code, _, errors = metarl(*refused)
        assert (code, errors.count("\n")) == (2, 1)
        assert errors.startswith(f"metarl: error: {tmp_path}/run/config.yaml: {message}")
    again = ["fewshot", "train", "protonet", "--preset", tmp_path / "run/config.yaml", "--out", tmp_path / "again", QUIET]
    assert metarl(*again)[0] == 0


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_evaluate_writes_every_file_and_curves(metarl, curves):
    command = [
        "fewshot",
        "evaluate",
        curves,
        "--references",
        "nearest_neighbour",
        "from_scratch",
        "--episodes",
        "5",
        "--step-curve",
        "0",
        "2",
        "--no-progress-bar",
    ]
    code, output, errors = metarl(*command, "--shot-curve", "1", "6")
    assert (code, errors) == (0, "")
    assert output.startswith("\nsinusoids, test: 4-shot, 4 queries (n = 5 episodes)\n\n")
    for name in ("maml", "nearest_neighbour", "from_scratch"):
        assert output.count(f"\n{name}") >= 2
    for suffix in ("csv", "png", "html", "npz"):
        assert (curves / f"fewshot_5-episodes.{suffix}").stat().st_size > 500
    scores = FewShotScores.load(curves / "fewshot_5-episodes.npz")
    assert (scores.num_episodes, scores.shots, scores.training_episodes) == (5, 4, 24)
    assert (set(scores.by_step), set(scores.by_shot)) == ({0, 2}, {1, 6})
    page = (curves / "fewshot_5-episodes.html").read_text()
    configuration = yaml.safe_load(re.search(r"<h2>Configuration</h2>\s*<pre>(.*?)</pre>", page, re.DOTALL)[1])
    assert configuration["learner_kwargs"] == {"hidden": [8]}
    assert configuration["evaluation"]["episodes"] == 5  # as it was evaluated


def test_names_of_files_hold_how_episodes_differ_from_those_of_the_config(metarl, curves):
    for options, name in (
        ([], "fewshot"),
        (["--shots", "4", "--queries", "4", "--seed", "0", "--split", "test", "--episodes", "6"], "fewshot"),
        (["--references", "nearest_neighbour", "--shot-curve", "2"], "fewshot"),
        (["--split", "ood", "--shots", "7"], "fewshot_ood_7-shot"),
        (["--queries", "3", "--episodes", "2", "--seed", "5"], "fewshot_3-query_2-episodes_seed-5"),
    ):
        code, output, _ = metarl("fewshot", "evaluate", curves, *options)
        assert code == 0
        assert output.endswith(f"Numbers: {curves}/{name}.csv\n")
    scores = FewShotScores.load(curves / "fewshot_3-query_2-episodes_seed-5.npz")
    assert (scores.queries, scores.num_episodes, scores.seed) == (3, 2, 5)
    assert FewShotScores.load(curves / "fewshot_ood_7-shot.npz").num_episodes == 6  # as the run's config says


def test_other_ways_where_the_learner_takes_them(metarl, pictures):
    code, *_ = metarl("fewshot", "evaluate", pictures, "--ways", "3", "--shots", "2")
    assert code == 0
    page = (pictures / "fewshot_3-way_2-shot.html").read_text()
    assert "on pictures (size: 8, grayscale: True, shares: [1, 0, 1]), test: 3-way 2-shot" in page
    assert FewShotScores.load(pictures / "fewshot_3-way_2-shot.npz").outputs == 3


def test_other_ways_where_it_does_not(metarl, own, tmp_path):
    options = {"ways": 2, "queries": 3, "dataset_kwargs": {"shares": [1, 0, 1]}, "total_timesteps": 4}
    train(FewShotConfig(learner="anil", dataset=str(own / "table.csv"), **options), tmp_path / "run", progress_bar=False)
    code, _, errors = metarl("fewshot", "evaluate", tmp_path / "run", "--ways", "3")
    assert (code, errors) == (2, "metarl: error: ways must be 2, as in training, for anil, got 3\n")
    code, *_ = metarl("fewshot", "evaluate", tmp_path / "run", "--ways", "2", "--episodes", "3")
    assert code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ways", "3"], "ways must be left out in regression, got 3"),
        (["--split", "testing"], "split 'testing' is unknown (did you mean test?): known are train, validation, test, ood"),
        (["--episodes", "0"], "episodes must be at least 1, got 0"),
        (["--step-curve", "-1"], "step_curve must be at least 0, got -1"),
        (["--shots", "0"], "shots must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--episode", "3"], "unknown options: --episode, 3; did you mean"),
    ],
)
def test_bad_numbers_for_an_evaluation(metarl, curves, options, message):
    code, _, errors = metarl("fewshot", "evaluate", curves, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_gradient_steps_of_learners_that_take_none(metarl, pictures, command, tmp_path):
    shutil.copytree(pictures, tmp_path / "other")
    runs = [pictures, tmp_path / "other"][: 2 if command == "compare" else 1]
    code, _, errors = metarl("fewshot", command, *runs, "--step-curve", "0", "5")
    message = "--step-curve must be left out where no learner takes gradient steps, got 0 5"
    assert (code, errors) == (2, f"metarl: error: {message}\n")


# -- compare -----------------------------------------------------------------------------------------------------------


def test_compare_evaluates_what_is_not_up_to_date(metarl, tmp_path):
    for name, learner in (("first", "maml"), ("second", "averaging")):
        train(FewShotConfig(**CURVES | {"learner": learner}), tmp_path / name, progress_bar=False)
    runs = [tmp_path / "first", tmp_path / "second"]

    def files():
        return {path: path.stat().st_mtime_ns for run in runs for path in run.glob("fewshot*")}

    def compared(*options):
        """What was printed, and whose evaluations are new."""
        before = files()
        code, output, errors = metarl("fewshot", "compare", *runs, *options, "--out", tmp_path / "both", "--no-progress-bar")
        assert (code, errors) == (0, "")
        new = {path for path, time in files().items() if before.get(path) != time}
        assert {path.suffix for path in new} <= {".npz"}
        return output, sorted(f"{path.parent.name}/{path.stem}" for path in new)

    output, new = compared()
    assert output.startswith("\nsinusoids, test: 4-shot, 4 queries (n = 6 episodes)\n\n")  # as the first config says
    for name in runs:
        assert f"\n{name.name} " in output
    assert new == ["first/fewshot_compared", "second/fewshot_compared"]
    for suffix in ("csv", "png", "html"):
        assert (tmp_path / "both" / f"comparison.{suffix}").stat().st_size > 300
    assert compared() == (output, [])
    assert compared("--queries", "3")[1] == ["first/fewshot_3-query_compared", "second/fewshot_3-query_compared"]
    assert compared() == (output, [])
    # references are those of the first run, and no others than were asked for
    for references in (["nearest_neighbour"], ["from_scratch"]):
        shown, new = compared("--references", *references)
        assert new == ["first/fewshot_compared"]
        assert re.findall("nearest_neighbour|from_scratch", shown) == references
    assert re.findall("nearest_neighbour|from_scratch", compared("--references")[0]) == []
    # what `evaluate` found is made use of, and stays
    for run in runs:
        assert metarl("fewshot", "evaluate", run, "--seed", "3", "--shot-curve", "1", "2")[0] == 0
    shown, new = compared("--seed", "3", "--shot-curve", "2")
    assert new == []
    assert re.search("^MSE by shots +2$", shown, re.MULTILINE)
    assert "by shots" not in compared("--seed", "3")[0]
    # steps are of the first run alone
    shown, new = compared("--seed", "3", "--step-curve", "0", "1")
    assert new == ["first/fewshot_seed-3_compared"]
    assert re.search(r"^MSE by gradient steps +0 +1$", shown, re.MULTILINE)
    # a run that has trained on
    progress = runs[1] / "progress.json"
    progress.write_text(progress.read_text().replace('"num_timesteps": 24', '"num_timesteps": 20'))
    assert compared("--seed", "3")[1] == ["second/fewshot_seed-3_compared"]


def test_what_cannot_be_compared(metarl, curves, pictures, tmp_path):
    code, _, errors = metarl("fewshot", "compare", curves)
    assert (code, errors) == (2, "metarl: error: runs must be at least 2 run folders, got 1\n")
    code, _, errors = metarl("fewshot", "compare", curves, f"{curves}/../curves")
    assert (code, errors) == (2, f"metarl: error: runs must be different ones, but {curves}/../curves is given twice\n")
    options = ["--episodes", "3", "--out", tmp_path / "both", "--no-progress-bar"]
    code, _, errors = metarl("fewshot", "compare", curves, pictures, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert f"runs must be on the same episodes, but those of {curves} and {pictures} are not: " in errors
    assert not (tmp_path / "both").exists()


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predict_for_pictures_of_more_and_of_fewer_classes(metarl, pictures, own, tmp_path):
    code, output, errors = metarl(
        "fewshot", "predict", pictures, "--support", own / "pictures", "--query", own / "pictures/c4"
    )
    assert (code, errors) == (0, "")
    answers = rows_of(output)
    assert output.startswith("query,label\n0.png,c4\n1.png,c4\n")
    assert [row["query"] for row in answers] == [f"{i}.png" for i in range(8)]
    assert [row["label"] for row in answers] == ["c4"] * 8
    code, output, _ = metarl(
        *["fewshot", "predict", pictures, "--support", own / "pictures", "--query", own / "pictures/c2"],
        *["--out", tmp_path / "answers.csv"],
    )
    assert (code, output) == (0, "")
    assert {row["label"] for row in rows_of((tmp_path / "answers.csv").read_text())} == {"c2"}


def test_predict_for_tables(metarl, own, tmp_path):
    command = ["fewshot", "train", "maml", "--data", own / "table.csv", "--ways", "3", "--queries", "4"]
    command += ["--dataset-kwargs", "{shares: [1, 0, 0]}", "--learner-kwargs", "{steps: 5, hidden: [16]}"]
    code, output, _ = metarl(
        *command, "--total-timesteps", "200", "--learning-rate", "0.01", "--out", tmp_path / "run", QUIET
    )
    assert code == 0
    lines = (own / "table.csv").read_text().splitlines()
    (tmp_path / "support.csv").write_text("\n".join([lines[0], *lines[1:4], *lines[17:20]]))  # of two classes
    swapped = [",".join([line.split(",")[1], line.split(",")[0]]) for line in [lines[0], *lines[4:9], *lines[20:25]]]
    (tmp_path / "query.csv").write_text("\n".join(swapped))  # other columns first, and no labels
    code, output, errors = metarl(
        "fewshot", "predict", tmp_path / "run", "--support", tmp_path / "support.csv", "--query", tmp_path / "query.csv"
    )
    assert (code, errors) == (0, "")
    assert [row["query"] for row in rows_of(output)] == [str(i) for i in range(1, 11)]
    assert [row["label"] for row in rows_of(output)] == ["c0"] * 5 + ["c2"] * 5
    learner = load_few_shot_run(tmp_path / "run")  # takes rows in the table's units, too
    rows = [line.split(",") for line in lines[1:]]
    x, y = np.array([row[:-1] for row in rows], float), np.array([row[-1] for row in rows])
    support, query = [*range(3), *range(16, 19)], [*range(3, 8), *range(19, 24)]
    assert FewShotClassifier(learner).fit(x[support], y[support]).predict(x[query]).tolist() == ["c0"] * 5 + ["c2"] * 5
    code, _, errors = metarl(
        "fewshot", "predict", tmp_path / "run", "--support", own / "table.csv", "--query", tmp_path / "query.csv"
    )
    message = f"metarl: error: {own}/table.csv must hold at most 3 classes, as in training, got 6\n"
    assert (code, errors) == (2, message)


@pytest.mark.parametrize("learner", ["maml", "mann", "relation"])
def test_answers_are_classes_that_there_are_examples_of(metarl, own, learner, tmp_path):
    """A learner that was made for more classes, and hardly trained, prefers places that stand for nothing."""
    options = {"ways": 5, "queries": 2, "dataset_kwargs": {"shares": [1, 0, 0]}, "total_timesteps": 4}
    config = FewShotConfig(learner=learner, dataset=str(own / "table.csv"), **options)
    train(config, tmp_path / "run", progress_bar=False)
    (tmp_path / "support.csv").write_text("b,a,label\n1,2,x\n3,4,y\n")
    code, output, _ = metarl(
        "fewshot", "predict", tmp_path / "run", "--support", tmp_path / "support.csv", "--query", own / "table.csv"
    )
    assert code == 0
    assert len(rows_of(output)) == 48
    assert {row["label"] for row in rows_of(output)} <= {"x", "y"}


def test_predict_for_texts(metarl, own, tmp_path):
    options = "{path: %s, min_examples: 4, max_tokens: 6, shares: [4, 0, 2]}" % (own / "texts.csv")
    command = ["fewshot", "train", "protonet", "--dataset", "texts", "--dataset-kwargs", options]
    code, *_ = metarl(*command, "--ways", "2", "--queries", "3", "--total-timesteps", "8", "--out", tmp_path / "run", QUIET)
    assert code == 0
    command = ["fewshot", "predict", tmp_path / "run", "--support", own / "texts.csv", "--query", own / "texts.csv"]
    code, output, errors = metarl(*command)
    assert (code, errors) == (0, "")
    rows = rows_of((own / "texts.csv").read_text())
    learned = FewShotClassifier(load_few_shot_run(tmp_path / "run")).fit(*zip(*[row.values() for row in rows], strict=True))
    assert learned.predict([row["text"] for row in rows]).tolist() == [row["label"] for row in rows_of(output)]
    with pytest.raises(ValueError, match=r"^X: texts must be strings, got \w+$"):
        learned.predict([[1, 2, 3]])
    code, _, errors = metarl(*command, "--out", tmp_path / "missing" / "x.csv")
    message = f"--out must be a file in a folder that there is, got {tmp_path}/missing/x.csv"
    assert (code, errors) == (2, f"metarl: error: {message}\n")
    right = [row["label"] for row in rows_of((own / "texts.csv").read_text())]
    assert np.mean([row["label"] == label for row, label in zip(rows_of(output), right, strict=True)]) > 0.5


def test_predict_for_curves(metarl, curves, tmp_path):
    (tmp_path / "support.csv").write_text("x,y\n0,0\n1,0.8\n2,0.9\n")
    (tmp_path / "query.csv").write_text("x\n1\n-2.5\n")
    command = ["fewshot", "predict", curves, "--support", tmp_path / "support.csv", "--query", tmp_path / "query.csv"]
    code, output, errors = metarl(*command, "--label", "y")
    assert (code, errors) == (0, "")
    assert [row["query"] for row in rows_of(output)] == ["1", "2"]
    adapted = load_few_shot_run(curves).adapt(np.float32([[0], [1], [2]]), np.array([0, 0.8, 0.9]))
    expected = adapted.predict(np.float32([[1], [-2.5]]))[:, 0]
    np.testing.assert_allclose([float(row["y"]) for row in rows_of(output)], expected, rtol=1e-5)
    (tmp_path / "support.csv").write_text("x,y\n0,zero\n")
    code, _, errors = metarl(*command, "--label", "y")
    assert (code, errors) == (2, "metarl: error: --support: y of example 1 must be a finite number, got 'zero'\n")
    (tmp_path / "support.csv").write_text("x,y\n0,0\n")
    code, _, errors = metarl(*command[:-1], tmp_path / "no.csv", "--label", "y")
    message = f"--query must be a folder or a file, got {tmp_path}/no.csv, which does not exist"
    assert (code, errors) == (2, f"metarl: error: {message}\n")
    (tmp_path / "query.csv").write_text("x\none\n")
    code, _, errors = metarl(*command, "--label", "y")
    message = f"--query: {tmp_path}/query.csv: row 2, column x must be a finite number, got 'one'"
    assert (code, errors) == (2, f"metarl: error: {message}\n")


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command 'trian' is unknown (did you mean train?)"),
        (["train", "protonett"], "learner 'protonett' is unknown (did you mean protonet?)"),
        (["train", "from_scratch"], "learner must be one that is trained over tasks, but from_scratch is not"),
        (["train", "relation", "--data", "sinusoids"], "learner must be one for regression, as sinusoids is (maml, "),
        (["train", "protonet", "--data", "nowhere/at/all"], "dataset 'nowhere/at/all' is no file or folder"),
        (
            ["train", "protonet", "--data", "OWN/pictures"],
            "the train split of pictures must have at least ways = 5 classes, got 4",
        ),
        (
            ["train", "protonet", "--data", "OWN/pictures", "--dataset-kwargs", "{shares: [1, 0, 0]}"],
            "class 'c0' (train split of pictures) must have at least shots + queries = 1 + 15 = 16 examples, got 8",
        ),
        (["train", "maml", "--learner-kwargs", "{step: 3}"], "maml: learner_kwargs.step is unknown (did you mean steps?)"),
        (["train", "maml", "--learner-kwargs", "step: 3: 4"], "not YAML"),
        (
            ["train", "maml", "--dataset", "digits", "--dataset-kwargs", "{turns: 3}"],
            "digits: dataset_kwargs.turns is unknown",
        ),
        (
            ["train", "snail", "--dataset", "digits", "--ways", "4", "--shots", "8"],
            "context must be at least 33 for support sets of 32 examples, got 32: it is one of core_kwargs",
        ),
        (["train", "maml", "--batch", "0"], "batch must be at least 1, got 0"),
        (["train", "maml", "--bath", "3"], "unknown options: --bath, 3; did you mean --batch?"),
        (["train", "maml", "--way", "3"], "unknown options: --way, 3; did you mean --ways?"),
        (["train", "maml", "--evaluation.way", "3"], "did you mean --evaluation.ways?"),
        (["train", "maml", "--preset", "gridnavi"], "gridnavi.yaml: algorithm is rl2: use a command of `metarl`, not of"),
        (["train", "maml", "--preset", "no.yaml"], "--preset no.yaml: there is no such file"),
        (["evaluate", "OWN"], "is not a run folder: it has no config.yaml"),
        (["compare", "OWN", "OWN"], "is not a run folder: it has no config.yaml"),
        (["predict", "OWN", "--support", "x", "--query", "y"], "is not a run folder: it has no config.yaml"),
    ],
)
def test_bad_input_is_told_in_one_line(metarl, own, arguments, message, tmp_path):
    arguments = [part.replace("OWN", str(own)) for part in arguments]
    out = ["--out", tmp_path / "run", QUIET] if arguments[0] == "train" else []
    code, _, errors = metarl("fewshot", *arguments, *out)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert message in errors
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_one_line(metarl, tmp_path):
    options = ["--learner-kwargs", "{rate: 1000000000.0, steps: 9}", "--total-timesteps", "40", "--out", tmp_path / "run"]
    code, _, errors = metarl("fewshot", "train", "maml", "--dataset", "sinusoids", *options, QUIET)
    assert (code, errors.count("\n")) == (2, 1)
    assert "the loss is not finite in episode 0: try a smaller learning_rate" in errors


def test_a_device_must_be_here_to_train_on_but_what_was_trained_there_is_used(metarl, curves, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = "metarl: error: device must be one that is here, got 'cuda': PyTorch finds none\n"
    for command in (["fewshot", "train", "maml"], ["train", "rl2", "--env", "metarl/BernoulliBandit-v0"]):
        code, _, errors = metarl(*command, "--device", "cuda", "--out", tmp_path / "run", QUIET)
        assert (code, errors) == (2, message)
        assert not (tmp_path / "run").exists()
    shutil.copytree(curves, tmp_path / "elsewhere")
    config = tmp_path / "elsewhere" / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    assert load_few_shot_run(tmp_path / "elsewhere").like.device.type == "cpu"


# -- runs of another kind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["evaluate", "RUN"], ["compare", "RUN", "RUN"], ["adapt", "RUN"]])
def test_other_commands_name_those_for_few_shot_runs(metarl, curves, arguments):
    code, _, errors = metarl(*(part.replace("RUN", str(curves)) for part in arguments))
    message = "algorithm is fewshot: use a command of `metarl fewshot`, not of `metarl`"
    assert (code, errors) == (2, f"metarl: error: {curves}/config.yaml: {message}\n")


@pytest.mark.parametrize("arguments", [["evaluate"], ["predict", "--support", "x", "--query", "y"]])
def test_few_shot_commands_name_those_for_agents(metarl, arguments, tmp_path):
    config = TrainingConfig(env="metarl/BernoulliBandit-v0", policy_kwargs={"core_size": 4}, total_timesteps=1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"algorithm": "rl2", "env": config.env}))
    code, _, errors = metarl("fewshot", *arguments, tmp_path)
    message = "algorithm is rl2: use a command of `metarl`, not of `metarl fewshot`"
    assert (code, errors) == (2, f"metarl: error: {tmp_path}/config.yaml: {message}\n")


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ("null", "evaluation must be a mapping of names to values, got None"),
        ("[1]", "evaluation must be a mapping of names to values, got [1]"),
        ("{episodes: 0}", "episodes must be at least 1, got 0"),
        ("{shotz: 1}", "evaluation.shotz is unknown (did you mean shots?)"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_a_config_that_was_spoilt_by_hand(metarl, curves, tmp_path, command, evaluation, message):
    shutil.copytree(curves, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**values, "evaluation": yaml.safe_load(evaluation)}))
    runs = [tmp_path / "run"] if command == "evaluate" else [tmp_path / "run", curves]
    code, _, errors = metarl("fewshot", command, *runs)
    assert code == 2
    assert errors.startswith(f"metarl: error: {file}: {message}")
    assert errors.count("\n") == 1

"""`metarl fewshot`: from a command to figures, to a comparison, and to answers about a person's own examples."""

import csv
import re
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
from metarl.training import Interrupted, load_few_shot_run, resume, train

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
    for name in ("maml", "nearest_neighbour", "from_scratch"):
        assert f"\n{name}" in output
    for suffix in ("csv", "png", "html", "npz"):
        assert (curves / f"fewshot.{suffix}").stat().st_size > 500
    scores = FewShotScores.load(curves / "fewshot.npz")
    assert (scores.num_episodes, scores.shots, scores.training_episodes) == (5, 4, 24)
    assert (set(scores.by_step), set(scores.by_shot)) == ({0, 2}, {1, 6})
    code, output, _ = metarl("fewshot", "evaluate", curves, "--split", "ood", "--shots", "7")
    assert code == 0
    assert (curves / "fewshot_ood_7-shot.csv").exists()
    assert FewShotScores.load(curves / "fewshot_ood_7-shot.npz").num_episodes == 6  # as the run's config says


def test_other_ways_where_the_learner_takes_them(metarl, pictures):
    code, *_ = metarl("fewshot", "evaluate", pictures, "--ways", "3", "--shots", "2")
    assert code == 0
    assert (pictures / "fewshot_3-way_2-shot.html").exists()
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


# -- compare -----------------------------------------------------------------------------------------------------------


def test_compare_evaluates_what_is_not_up_to_date(metarl, tmp_path):
    for name, learner in (("first", "maml"), ("second", "averaging")):
        train(FewShotConfig(**CURVES | {"learner": learner}), tmp_path / name, progress_bar=False)
    runs = [tmp_path / "first", tmp_path / "second"]
    npz = runs[0] / "fewshot.npz"

    def compared(*options):
        before = npz.stat().st_mtime_ns if npz.exists() else 0
        code, output, errors = metarl("fewshot", "compare", *runs, *options, "--out", tmp_path / "both", "--no-progress-bar")
        assert (code, errors) == (0, "")
        assert "\nfirst" in output
        assert "\nsecond" in output
        return npz.stat().st_mtime_ns > before

    assert compared()
    for suffix in ("csv", "png", "html"):
        assert (tmp_path / "both" / f"comparison.{suffix}").stat().st_size > 300
    assert FewShotScores.load(npz).num_episodes == 6  # as the first run's config says
    assert not compared()
    assert compared("--queries", "3")
    assert FewShotScores.load(npz).queries == 3
    assert compared()  # with as many queries as in training, again
    assert compared("--shot-curve", "1", "2")
    assert not compared("--shot-curve", "2")
    assert compared("--seed", "3")
    assert compared("--step-curve", "1", "--references", "nearest_neighbour", "from_scratch", "--episodes", "3")


def test_what_cannot_be_compared(metarl, curves, pictures, tmp_path):
    code, _, errors = metarl("fewshot", "compare", curves)
    assert (code, errors) == (2, "metarl: error: runs must be at least 2 run folders, got 1\n")
    options = ["--episodes", "3", "--out", tmp_path / "both", "--no-progress-bar"]
    code, _, errors = metarl("fewshot", "compare", curves, pictures, *options)
    assert (code, errors.count("\n")) == (2, 1)
    assert "scores must be of the same episodes, but 'curves' has sinusoids, test" in errors
    assert not (tmp_path / "both").exists()


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predict_for_pictures_of_more_and_of_fewer_classes(metarl, pictures, own, tmp_path):
    code, output, errors = metarl(
        "fewshot", "predict", pictures, "--support", own / "pictures", "--query", own / "pictures/c4"
    )
    assert (code, errors) == (0, "")
    answers = rows_of(output)
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
    options = "{path: %s, min_examples: 4, max_tokens: 6, shares: {train: 4, test: 2}}" % (own / "texts.csv")
    command = ["fewshot", "train", "protonet", "--dataset", "texts", "--dataset-kwargs", options]
    code, *_ = metarl(*command, "--ways", "2", "--queries", "3", "--total-timesteps", "8", "--out", tmp_path / "run", QUIET)
    assert code == 0
    code, output, errors = metarl(
        "fewshot", "predict", tmp_path / "run", "--support", own / "texts.csv", "--query", own / "texts.csv"
    )
    assert (code, errors) == (0, "")
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
    assert (code, errors) == (2, "metarl: error: y must be a finite number, got 'zero'\n")
    code, _, errors = metarl(*command[:-1], tmp_path / "no.csv", "--label", "y")
    assert (code, errors.count("\n")) == (2, 1)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command 'trian' is unknown (did you mean train?)"),
        (["train", "protonett"], "learner 'protonett' is unknown (did you mean protonet?)"),
        (["train", "from_scratch"], "learner must be one that is trained over tasks, but from_scratch is not"),
        (["train", "relation", "--data", "sinusoids"], "RelationNetwork is for classification only, but the tasks are"),
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
        (["train", "maml", "--batch", "0"], "batch must be at least 1, got 0"),
        (["train", "maml", "--bath", "3"], "unknown options: --bath, 3; did you mean --batch?"),
        (["train", "maml", "--preset", "gridnavi"], "gridnavi.yaml: algorithm is rl2: use `metarl ...`"),
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


# -- runs of another kind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["evaluate", "RUN"], ["compare", "RUN", "RUN"], ["adapt", "RUN"]])
def test_other_commands_name_those_for_few_shot_runs(metarl, curves, arguments):
    code, _, errors = metarl(*(part.replace("RUN", str(curves)) for part in arguments))
    assert (code, errors) == (2, f"metarl: error: {curves}/config.yaml: algorithm is fewshot: use `metarl fewshot ...`\n")


@pytest.mark.parametrize("arguments", [["evaluate"], ["predict", "--support", "x", "--query", "y"]])
def test_few_shot_commands_name_those_for_agents(metarl, arguments, tmp_path):
    config = TrainingConfig(env="metarl/BernoulliBandit-v0", policy_kwargs={"core_size": 4}, total_timesteps=1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"algorithm": "rl2", "env": config.env}))
    code, _, errors = metarl("fewshot", *arguments, tmp_path)
    assert (code, errors) == (2, f"metarl: error: {tmp_path}/config.yaml: algorithm is rl2: use `metarl ...`\n")

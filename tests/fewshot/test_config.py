"""Configs of few-shot trainings: complete, strict, and checked before anything is trained."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import metarl.config  # noqa: F401 - the other kinds of config
from metarl.fewshot.config import FewShotConfig, FewShotEvaluation
from metarl.fewshot.learners import LEARNERS, make_learner
from metarl.fewshot.options import checked
from metarl.fewshot.training import FewShotTrainingConfig
from metarl.plain import field_sentences

CURVES = {"learner": "maml", "dataset": "sinusoids", "shots": 5, "queries": 5}


@pytest.fixture
def pictures(tmp_path):
    """Folders of six classes with five pictures each."""
    rng = np.random.default_rng(0)
    for name in "abcdef":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(5):
            picture = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
            picture.save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def of_pictures(path, **changes):
    options = {"ways": 2, "queries": 2, "dataset_kwargs": {"size": 8, "shares": [2, 0, 1]}, "learner_kwargs": {"width": 2}}
    return FewShotConfig(**{"learner": "protonet", "dataset": str(path), **options, **changes})


def test_a_saved_config_reads_back_equal(tmp_path, pictures):
    for config in (FewShotConfig(**CURVES), of_pictures(pictures, evaluation={"shot_curve": [1, 2], "episodes": 7})):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config.plain()))
        assert FewShotConfig.from_yaml(path) == config
        assert config.plain().keys() == {field.name for field in dataclasses.fields(FewShotConfig)}
        assert FewShotConfig(**config.resolved().plain()) == config.resolved()
    assert config.evaluation.shot_curve == (1, 2)
    assert config.setting == "2-way 1-shot"
    assert FewShotConfig(**CURVES).setting == "5-shot"
    assert FewShotConfig(**CURVES).resolved().data_hash is None


def test_a_run_is_refused_when_its_data_changed(pictures):
    resolved = of_pictures(pictures).resolved()
    assert resolved.data_hash == of_pictures(pictures, ways=3, seed=1).resolved().data_hash
    of_pictures(pictures, data_hash=resolved.data_hash)
    (pictures / "c" / "4.png").unlink()
    needs = "and the run cannot be used without its data: restore them, or train again"
    message = f"{pictures} has changed since the run was made, {needs}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        of_pictures(pictures, data_hash=resolved.data_hash)
    (pictures / "c" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{pictures} has changed since the run was made \(.*0.png .*\), {needs}$"):
        of_pictures(pictures, data_hash=resolved.data_hash)
    pictures.rename(pictures.with_name("moved"))
    with pytest.raises(ValueError, match=f"^{pictures} is missing, {needs}$"):
        of_pictures(pictures, data_hash=resolved.data_hash)
    with pytest.raises(ValueError, match=r"^digits has changed since the run was made, "):
        FewShotConfig(dataset="digits", data_hash="0")


def test_paths_are_absolute(pictures, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    assert of_pictures("pictures").dataset == str(pictures)
    config = of_pictures("folder", dataset_kwargs={"path": "pictures", "shares": [2, 0, 1]})
    assert config.dataset_kwargs["path"] == config.path == str(pictures)
    monkeypatch.setenv("HOME", str(pictures.parent))
    assert of_pictures("folder", dataset_kwargs={"path": "~/pictures", "shares": [2, 0, 1]}).path == str(pictures)


def test_what_by_default_cannot_be_evaluated_is_told_at_the_start(pictures):
    config = of_pictures(pictures, ways=3)
    message = "this can be trained, but not evaluated by default: the test split of pictures must have at least"
    with pytest.warns(UserWarning, match=f"^{message} ways = 3 classes, got 2: "):
        config.make_model()
    of_pictures(pictures, ways=3, dataset_kwargs={"size": 8, "shares": [1, 0, 0]}).make_model()  # no test is meant


def test_it_makes_what_it_says(pictures):
    config = of_pictures(pictures, seed=3, workers=1, hyperparameters={"batch": 2})
    model = config.make_model()
    assert (model.seed, model.workers, model.config.batch) == (3, 1, 2)
    assert model.learner.spec.shape == (3, 8, 8)
    torch.manual_seed(0)
    again = config.make_learner().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.learner.state_dict().items())
    other = of_pictures(pictures, seed=4).make_learner().state_dict()
    assert not all(torch.equal(value, other[name]) for name, value in again.items())
    state = torch.get_rng_state()
    config.make_learner()
    assert torch.equal(torch.get_rng_state(), state)


def test_other_sizes_for_an_evaluation(pictures):
    config = of_pictures(pictures)
    assert config.source_with(shots=2, queries=None).shots == 2
    assert config.source_with(shots=2, queries=None).queries == 2
    assert config.source_with(ways=2).ways == 2
    three = of_pictures(pictures, dataset_kwargs={"size": 8, "shares": [1, 0, 1]}).source_with(ways=3)
    assert three.spec.outputs == 3
    assert FewShotConfig(**CURVES).source_with(shots=7).shots == 7
    with pytest.raises(ValueError, match=r"^ways must be left out in regression, got 3$"):
        FewShotConfig(**CURVES).source_with(ways=3)
    with pytest.raises(ValueError, match=r"^ways must be 2, as in training, for maml, got 3$"):
        of_pictures(pictures, learner="maml").source_with(ways=3)


def test_an_unreadable_picture_is_told_before_training(pictures):
    (pictures / "c" / "4.png").write_bytes(b"no picture")
    config = of_pictures(pictures)  # where it is not needed, nothing is told
    message = f"{pictures}/c/4.png must be a readable picture, got UnidentifiedImageError: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        config.make_model()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": "protonett"}, "learner 'protonett' is unknown (did you mean protonet?): known are maml, "),
        ({"learner": "from_scratch"}, "learner must be one that is trained over tasks, but from_scratch is not"),
        ({"learner": "siamese"}, "learner must be one for regression, as sinusoids is (maml, fomaml, anil, "),
        ({"dataset": "glyph"}, "dataset 'glyph' is no file or folder, and as a name is unknown (did you mean glyphs?): "),
        ({"dataset": "no/such"}, "dataset 'no/such' is no file or folder, and as a name is unknown: known are sinusoids"),
        ({"dataset": "folder"}, "folder: dataset_kwargs.path must be given"),
        ({"dataset": "texts"}, "texts: dataset_kwargs.path must be given"),
        ({"dataset": "glyphs", "dataset_kwargs": {"font": "noto"}}, "glyphs: dataset_kwargs.font is unknown (did you mean"),
        ({"dataset_kwargs": {"shots": 3}}, "sinusoids: dataset_kwargs.shots is unknown"),
        (
            {"learner_kwargs": {"widht": 3}},
            "maml: learner_kwargs.widht is unknown (did you mean width?): known are rate, steps, ",
        ),
        ({"learner_kwargs": {"rate": "fast"}}, "maml: learner_kwargs.rate must be a number or null, got 'fast'"),
        ({"learner_kwargs": {"rate": -1}}, "rate must be above 0, got -1"),
        (
            {"learner_kwargs": {"kind": "deep"}},
            "maml: learner_kwargs.kind must be one of auto, conv, strided, mlp, got 'deep'",
        ),
        (
            {"learner_kwargs": {"update_rule": "adam", "rule_kwargs": {"bta": 1}}},
            "adam: rule_kwargs.bta is unknown (did you mean beta2?): known are beta1, beta2, eps",
        ),
        ({"dataset_kwargs": {"amplitude": 1}}, "sinusoids: dataset_kwargs.amplitude is unknown: there are no options"),
        ({"evaluation": {"split": "tset"}}, "evaluation.split 'tset' is unknown (did you mean test?): known are train, "),
        (
            {"learner": "averaging", "evaluation": {"step_curve": [4]}},
            "evaluation.step_curve must be empty for averaging, which takes no gradient steps, got (4,)",
        ),
        ({"shots": 0}, "shots must be an integer of at least 1, got 0"),
        ({"ways": 5.5}, "ways must be an integer, got 5.5"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"total_timesteps": 0}, "total_timesteps must be at least 1, got 0"),
        ({"hyperparameters": {"batch": 0}}, "batch must be at least 1, got 0"),
        ({"hyperparameters": {"bath": 1}}, "hyperparameters.bath is unknown (did you mean batch?)"),
        ({"evaluation": {"ways": 1}}, "ways must be at least 2, got 1"),
        ({"evaluation": {"ways": 3}}, "evaluation.ways: ways must be left out in regression, got 3"),
        ({"evaluation": {"episodes": 0}}, "episodes must be at least 1, got 0"),
        ({"evaluation": {"shot_curve": [1, 0]}}, "shot_curve must be at least 1, got 0"),
        ({"evaluation": {"step_curve": [-1]}}, "step_curve must be at least 0, got -1"),
    ],
)
def test_wrong_in_one_line(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        FewShotConfig(**{**CURVES, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 5}, "the train split of pictures must have at least ways = 5 classes, got 4: ask for fewer ways, or"),
        (
            {"evaluation": {"ways": 4}},
            "evaluation.ways: the test split of pictures must have at least ways = 4 classes, got 2: ask for fewer ways",
        ),
        (
            {"evaluation": {"split": "train", "shot_curve": [2, 40]}},
            "evaluation.shot_curve: class 'c' (train split of pictures) must have at least shots + queries = 40 + 2 = 42",
        ),
        (
            {"shots": 3, "queries": 4},
            "class 'c' (train split of pictures) must have at least shots + queries = 3 + 4 = 7 examples, got 5",
        ),
        ({"dataset_kwargs": {"size": "big"}}, "pictures: dataset_kwargs.size must be an integer or a list of 2 values"),
        ({"dataset_kwargs": {"size": 0}}, "size must be at least 1, got 0"),
        (
            {"dataset_kwargs": {"shares": 3}},
            "pictures: dataset_kwargs.shares must be a list, of which each is a number, got 3",
        ),
        (
            {"dataset_kwargs": {"shares": [1, 1]}},
            "shares must be three numbers of at least 0, the first above 0, got (1.0, 1.0)",
        ),
        (
            {"evaluation": {"shots": 9}},
            "evaluation.shots: class 'a' (test split of pictures) must have at least shots + queries = 9 + 2 = 11",
        ),
    ],
)
def test_too_little_data_is_told_in_one_line(pictures, changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        of_pictures(pictures, **changes)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_told(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("algorithm: rl2\n")
    with pytest.raises(ValueError, match=rf"^{path}: algorithm is rl2: use a command of `metarl`, not of `metarl fewshot`$"):
        FewShotConfig.from_yaml(path)
    path.write_text("learner: mamml\n")
    with pytest.raises(ValueError, match=rf"^{path}: learner 'mamml' is unknown \(did you mean maml\?\)"):
        FewShotConfig.from_yaml(path)


@pytest.mark.parametrize("cls", [FewShotConfig, FewShotEvaluation, FewShotTrainingConfig])
def test_every_setting_has_a_sentence(cls):
    for name, sentence in field_sentences(cls).items():
        assert sentence.endswith("."), name


@pytest.mark.parametrize("name", LEARNERS)
def test_an_unknown_option_of_any_learner_is_told(name):
    spec = FewShotConfig(**CURVES, dataset_kwargs={}).source.spec
    with pytest.raises(ValueError, match=rf"^{name}: learner_kwargs.foo is unknown") as caught:
        make_learner(name, spec, {"foo": 1})
    assert "\n" not in str(caught.value)
    assert not {"self", "spec", "network", "options"} & {*str(caught.value).partition("known are ")[2].split(", ")}


def test_options_are_read_by_annotations():
    def one(path: str, size: int | tuple[int, int] = 3, *, whatever=None, **rest: int):
        """One."""

    def other(shares: list[float], given: int):
        """Another."""

    values = {"path": "x", "size": [2.0, 3], "whatever": {1}, "shares": (1,)}
    assert checked("", values, [one, other], ["given"]) == {"path": "x", "size": (2, 3), "whatever": {1}, "shares": [1.0]}
    with pytest.raises(ValueError, match=r"^it\.path must be given$"):
        checked("it.", {}, [one])
    with pytest.raises(ValueError, match=r"^it\.given is unknown: known are path, size, whatever, shares$"):
        checked("it.", {**values, "given": 1}, [one, other], ["given"])
    with pytest.raises(ValueError, match=r"^it\.path must be text, got 3$"):
        checked("it.", {"path": 3}, [one])

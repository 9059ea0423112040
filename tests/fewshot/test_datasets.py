"""Data sets by name or by path."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets import DATASETS, describe, describe_options, fingerprint, make_source


@pytest.fixture
def table(tmp_path):
    """Nine classes of six rows, with columns b, a and label."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["b", "a", "label"])
        writer.writerows([*rng.normal(i, 1.0, 2).round(3), f"k{i}"] for i in range(9) for _ in range(6))
    return tmp_path / "table.csv"


@pytest.fixture
def texts(tmp_path):
    rng = np.random.default_rng(0)
    with open(tmp_path / "texts.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for topic in range(6):
            for _ in range(8):
                writer.writerow([" ".join(f"w{topic}x{i}" for i in rng.integers(0, 50, 6)), f"topic {topic}"])
    return tmp_path / "texts.csv"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def test_every_name_has_a_sentence():
    assert [name for name, _ in describe()] == list(DATASETS)
    assert all(sentence.endswith(".") and "\n" not in sentence for _, sentence in describe())


@pytest.mark.parametrize("name", DATASETS)
def test_every_option_has_a_sentence(name):
    described = dict(describe_options(name))
    assert all(sentence[-1] == "." and len(sentence) > 10 and "\n" not in sentence for sentence in described.values())
    needs_path = name in ("omniglot", "mini-imagenet", "folder", "texts", "csv")
    assert described.get("path", "").endswith("It must be given.") == needs_path
    assert not {"shots", "queries", "labels", "texts"} & described.keys()


def test_options_of_a_path(folder):
    assert [name for name, _ in describe_options(str(folder))] == ["size", "grayscale", "shares", "seed", "augment"]
    assert dict(describe_options("glyphs"))["examples"] == "pictures of each letter; they go round its fonts. By default 20."


def test_a_fingerprint_is_of_what_was_read(table, texts, folder):
    def of(name, file, **options):
        return fingerprint(make_source(name, ways=2, shots=1, queries=1, options=options), str(file))

    picture = folder / "a" / "0.png"
    (folder / "e").mkdir()
    (folder / "e" / "0.png").write_bytes(picture.read_bytes())
    for changed, content, options in (
        (table, b"1,2,k0\n", [str(table), table]),
        (texts, b"new,topic 0\n", ["texts", texts]),
        (picture, b"more", [str(folder), folder]),
    ):
        kwargs = {"path": str(texts), "min_examples": 2} if changed == texts else {}
        first, original = of(*options, **kwargs), changed.read_bytes()
        assert of(*options, **kwargs) == first
        assert of(*options, **kwargs, seed=1) != first  # other classes are for testing
        changed.write_bytes(original + content)
        assert of(*options, **kwargs) != first
        changed.write_bytes(original)
        assert of(*options, **kwargs) == first
    first = of(str(folder), folder)
    (folder / "b" / "0.png").rename(folder / "b" / "9.png")
    assert of(str(folder), folder) != first
    for name, size in (("0.bmp", 4), ("1.bmp", 4), ("2.bmp", 300)):  # the last is longer than what is read of it
        Image.new("L", (size, size)).save(folder / "a" / name)
    first = of(str(folder), folder)
    Image.new("L", (4, 4), 1).save(folder / "a" / "1.bmp")  # of the same size in bytes
    assert of(str(folder), folder) != first


def test_a_fingerprint_is_of_arrays_and_of_who_owns_what():
    x = np.arange(12.0).reshape(6, 2)

    def of(x, members):
        return fingerprint(NWayKShot("n", {"train": Classes(x, members, ("a", "b"))}, ways=2, shots=1, queries=1))

    members = (np.array([0, 1, 2]), np.array([3, 4, 5]))
    assert of(x, members) == of(x.copy(), members)
    assert of(x[::-1], members) != of(x, members)
    assert of(x, (np.array([0, 1, 3]), np.array([2, 4, 5]))) != of(x, members)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images_background", "PATH holds images_background: if it is omniglot, say --dataset omniglot --dataset-kwargs"),
        ("train.csv", "PATH holds train.csv: if it is mini-imagenet, say --dataset mini-imagenet --dataset-kwargs"),
    ],
)
def test_the_layout_of_another_data_set_is_told(folder, name, message):
    (folder / name).mkdir()
    message = f"{message} '{{path: PATH}}'".replace("PATH", str(folder))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_source(str(folder))


def test_one_picture_is_no_data_set(folder):
    with pytest.raises(
        ValueError, match=r"a/0.png is one picture: a data set is a folder with a folder of pictures for each"
    ):
        make_source(str(folder / "a" / "0.png"))


@pytest.mark.parametrize("name", ["sinusoids", "gaussian-process", "oscillators"])
def test_curves(name):
    source = make_source(name, ways=7, shots=3, queries=4)
    episodes = source.episodes("train", [0, 1])
    assert (episodes.support_x.shape, episodes.query_y.shape) == ((2, 3, 1), (2, 4, 1))
    assert not source.spec.classification


def test_glyphs(tmp_path):
    source = make_source("glyphs", ways=4, shots=2, queries=3, options={"examples": 5, "cache": str(tmp_path)})
    assert source.name == "glyphs"
    assert source.episodes("test", [0]).support_x.shape == (1, 8, 1, 28, 28)


def test_digits():
    source = make_source("digits", ways=3, options={"rotations": True})
    assert source.spec.train_classes == 10


def test_a_path_is_a_data_set_and_called_by_its_last_part(table, folder, monkeypatch):
    source = make_source(str(table), ways=2, shots=1, queries=2, options={"shares": [1, 1, 1]})
    assert (source.name, source.spec.shape, source.spec.outputs) == ("table.csv", (2,), 2)
    source = make_source(str(folder), ways=2, shots=1, queries=2, options={"size": [5, 4], "shares": [1, 0, 1]})
    assert (source.name, source.spec.shape) == ("pets", (3, 5, 4))
    same = make_source("folder", ways=2, shots=1, queries=2, options={"path": str(folder), "shares": [1, 0, 1]})
    assert same.name == "folder"
    monkeypatch.chdir(folder)
    assert make_source(".", ways=2, queries=2, options={"shares": [1, 0, 0]}).name == "pets"


def test_texts(texts):
    options = {"path": str(texts), "min_examples": 5, "max_tokens": 4, "shares": [2, 0, 1]}
    source = make_source("texts", ways=2, shots=1, queries=2, options=options)
    assert source.splits == ("train", "test")
    assert source.spec.shape == (4,)
    assert source.encode(["w0x1 and more"]).shape == (1, 4)
    assert source.encode(["anything"]).max() < source.spec.vocabulary


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "dataset 'digit' is no file or folder, and as a name is unknown (did you mean digits?): known are "),
        ("folder", {}, "folder: dataset_kwargs.path must be given"),
        ("csv", {}, "csv: dataset_kwargs.path must be given"),
        (
            "omniglot",
            {"path": "PATH", "rotation": True},
            "omniglot: dataset_kwargs.rotation is unknown (did you mean rotations?)",
        ),
        ("omniglot", {"path": "PATH"}, "path must be a folder, got PATH/images_background"),
        ("mini-imagenet", {"path": "PATH"}, "path must be a folder with train.csv, got PATH"),
        ("digits", {"rotations": "yes"}, "digits: dataset_kwargs.rotations must be true or false, got 'yes'"),
        ("glyphs", {"fonts": "all"}, "glyphs: dataset_kwargs.fonts must be one of bundled, noto, got 'all'"),
        ("PATH", {"grayscale": 3}, "empty: dataset_kwargs.grayscale must be true or false, got 3"),
        ("PATH", {}, "path must hold a folder for each class, got PATH without any"),
        ("texts", {"path": "PATH/no.csv"}, "path must be a CSV file, got PATH/no.csv, which does not exist"),
        ("fortunes", {"path": "PATH/no"}, "there are no fortunes in PATH/no: get them by `apt-get install fortunes`"),
        ("fortunes", {"texts": ["a"]}, "fortunes: dataset_kwargs.texts is unknown"),
    ],
)
def test_wrong_in_one_line(name, options, message, tmp_path):
    path = tmp_path / "empty"
    path.mkdir()
    name, message = (part.replace("PATH", str(path)) for part in (name, message))
    options = {key: value.replace("PATH", str(path)) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises((ValueError, OSError), match=f"^{re.escape(message)}") as caught:
        make_source(name, options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "label must be a column of PATH (it has a, b), got 'label'"),
        ("a,label\nnan,x\n", "PATH: row 2 (label 'x'), column a must be a finite number, got 'nan'"),
        ("a,label\n1,x\n2,\n", "PATH: row 3, column label must name a class, got ''"),
        ("a,label\n1,x\n", "classes must be enough for a train split with shares (0.1, 0.5, 0.4), got 1"),
        (
            "a,label\nhello there,x\n",
            "PATH: row 2 (label 'x'), column a must be a finite number, got 'hello there' (texts are read by "
            "--dataset texts --dataset-kwargs '{path: PATH}')",
        ),
    ],
)
def test_a_wrong_table_in_one_line(content, message, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace('PATH', str(path)))}") as caught:
        make_source(str(path), options={"shares": [0.1, 0.5, 0.4]})
    assert "\n" not in str(caught.value)


def test_without_scikit_learn_there_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"^the digits need sklearn: pip install 'metarl-toolkit\[fewshot\]'$"):
        make_source("digits")

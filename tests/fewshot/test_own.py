"""A person's own examples, brought to the form that a learner knows."""

import re

import numpy as np
import pytest
from PIL import Image

from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets import make_source
from metarl.fewshot.datasets.own import read_queries, read_support


@pytest.fixture
def write(tmp_path):
    def write(text, name="own.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def folder(tmp_path):
    """Two classes: two bright pictures of 12 x 6, one dark."""
    for name, values in {"bright": (200, 220), "dark": (20,)}.items():
        (tmp_path / "own" / name).mkdir(parents=True)
        for i, value in enumerate(values):
            Image.fromarray(np.full((12, 6, 3), value, np.uint8)).save(tmp_path / "own" / name / f"{i}.png")
    return tmp_path / "own"


def of_pictures(channels=1):
    x = np.zeros((8, channels, 4, 3), np.uint8)
    return NWayKShot("zeros", {"train": Classes.from_labels(x, np.arange(8) % 2)}, ways=2, shots=1, queries=1)


def of_rows(write):
    rows = "\n".join(f"{i},{10 * i + j},k{i}" for i in range(4) for j in range(4))
    path = write(f"b,a,label\n{rows}\n", "trained.csv")
    return make_source(str(path), ways=2, shots=1, queries=1, options={"shares": [1, 0, 0]})


def test_pictures(folder):
    x, labels = read_support(folder, of_pictures())
    assert labels == ["bright", "bright", "dark"]
    assert (x.shape, x.dtype) == ((3, 1, 4, 3), np.uint8)
    assert x[:, 0, 0, 0].tolist() == [200, 220, 20]
    assert read_support(folder, of_pictures(), invert=True)[0][:, 0, 0, 0].tolist() == [55, 35, 235]
    assert read_support(folder, of_pictures(channels=3))[0].shape == (3, 3, 4, 3)
    x, names = read_queries(folder / "bright", of_pictures())
    assert names == ["0.png", "1.png"]
    assert x[:, 0, 0, 0].tolist() == [200, 220]


def test_rows_come_in_the_units_and_the_order_of_the_training_columns(write):
    source = of_rows(write)
    trained = source.data["train"].x
    x, labels = read_support(write("label,a,b\nnew,0,0\nnew,33,3\n"), source)
    assert labels == ["new", "new"]
    np.testing.assert_allclose(source.encode(x), trained[[0, 15]])
    x, names = read_queries(write("note,a,b\nsomething,33,3\n"), source)
    assert names == ["1"]
    np.testing.assert_allclose(source.encode(x), trained[[15]])
    assert read_queries(write("a,b,label\n33,3,left out\n"), source)[0].tolist() == x.tolist()


def test_numbers_of_a_function(write):
    source = make_source("sinusoids")
    x, y = read_support(write("x,y\n1,2\n-0.5,3\n"), source, label="y")
    assert (x.tolist(), y) == ([[1.0], [-0.5]], ["2", "3"])
    assert read_queries(write("x\n4\n"), source, label="y")[0].tolist() == [[4.0]]


def test_texts(write):
    rows = "".join(f"word{i} word{j},topic{i}\n" for i in range(4) for j in range(4))
    path = write(f"text,label\n{rows}", "trained.csv")
    options = {"path": str(path), "min_examples": 2, "max_tokens": 3, "shares": [1, 0, 0]}
    source = make_source("texts", ways=2, shots=1, queries=1, options=options)
    x, labels = read_support(write('say,kind\n"word1, word2",new\n'), source, label="kind", text="say")
    assert labels == ["new"]
    assert x == ["word1, word2"]
    x, names = read_queries(write("say\nword3\nword1\n"), source, text="say")
    assert (x, names) == (["word3", "word1"], ["1", "2"])
    with pytest.raises(ValueError, match=r"must have a column 'text', got say$"):
        read_queries(write("say\nword3\n"), source)
    with pytest.raises(ValueError, match=r"^path must be a CSV file for examples of shape \(3,\), got a folder, "):
        read_queries(folder_of_one(path.parent), source)


def folder_of_one(path):
    (path / "one").mkdir()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(path / "one" / "0.png")
    return path / "one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,label\n1,x\n", "PATH must have columns b, a, got a, label"),
        ("a,b\n1,2\n", "label must be a column of PATH (it has a, b), got 'label'"),
        ("a,b,label\n1,inf,x\n", "PATH: row 2 (label 'x'), column b must be a finite number, got 'inf'"),
        ("a,b,label\n", "PATH must have at least 1 row below its header, got none"),
    ],
)
def test_wrong_tables(content, message, write):
    source, path = of_rows(write), write(content)
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace('PATH', str(path)))}$"):
        read_support(path, source)


def test_wrong_pictures(folder, write):
    source = of_pictures()
    for read in (read_support, read_queries):
        message = r"^path must be a folder of pictures for examples of shape \(1, 4, 3\), got .*0.png$"
        with pytest.raises(ValueError, match=message):
            read(folder / "dark" / "0.png", source)
    with pytest.raises(ValueError, match=r"^path must hold at least 1 picture, got none in "):
        read_queries(folder, source)
    with pytest.raises(ValueError, match=r"^path must hold a folder for each class, got .* without any$"):
        read_support(folder / "dark", source)
    for read in (read_support, read_queries):
        with pytest.raises(ValueError, match=r"^path must be a folder or a file, got no/such, which does not exist$"):
            read("no/such", source)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^class 'empty' must have at least 1 picture, got none in "):
        read_support(folder, source)
    (folder / "empty" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty/0.png must be a readable picture, got UnidentifiedImageError"):
        read_support(folder, source)
    with pytest.raises(ValueError, match=r"^path must be a CSV file for examples of shape \(2,\), got a folder, "):
        read_support(folder.parent / "own", of_rows(write))

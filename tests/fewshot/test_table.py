"""CSV files: standardised by the training classes, and what is wrong with a file, in one line."""

import re

import numpy as np
import pytest

from metarl.fewshot.datasets.table import load_csv


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def many(rows=4):
    lines = ["kind,a,b,c"]
    lines += [f"k{i},{i + 0.1 * j},{10 * i - j},7" for j in range(rows) for i in range(5)]
    return "\n".join(lines) + "\n\n"


def test_training_split_has_mean_0_and_deviation_1(write):
    data, _ = load_csv(write(many()), label="kind")
    assert {split: len(classes) for split, classes in data.items()} == {"train": 3, "validation": 1, "test": 1}
    names = [name for classes in data.values() for name in classes.names]
    assert sorted(names) == ["k0", "k1", "k2", "k3", "k4"]
    train = data["train"]
    x = train.x[np.concatenate(train.members)]
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(x.std(0), [1.0, 1.0, 0.0], atol=1e-6)
    kept = [int(name[1]) for name in train.names]
    a = np.array([[i + 0.1 * j for i in kept] for j in range(4)])
    test = data["test"]
    i = int(test.names[0][1])
    expected = [(i + 0.1 * j - a.mean()) / a.std() for j in range(4)]
    np.testing.assert_allclose(test.x[test.members[0], 0], expected, rtol=1e-5)


def test_seed_and_shares(write):
    path = write(many())
    splits = {tuple(load_csv(path, "kind", seed=seed)[0]["test"].names) for seed in range(8)}
    assert len(splits) > 1
    assert list(load_csv(path, "kind", shares=(4, 0, 1))[0]) == ["train", "test"]
    with pytest.raises(
        ValueError, match=r"^shares must be three numbers of at least 0, the first above 0, got \(0, 1, 1\)$"
    ):
        load_csv(path, "kind", shares=(0, 1, 1))
    data, _ = load_csv(path, "kind", shares=(0.98, 0.01, 0.01))  # splits that nothing is asked of may be empty
    assert {split: len(classes) for split, classes in data.items()} == {"train": 5, "validation": 0, "test": 0}
    with pytest.raises(ValueError, match=r"^classes must be enough for a train split with shares .*, got 5$"):
        load_csv(path, "kind", shares=(0.01, 0.49, 0.5))


def test_quotes_spaces_and_byte_order_mark(write):
    data, _ = load_csv(write('label,"a, b"\r\nx, 1\r\n x ,"2"\r\ny,3\r\n', encoding="utf-8-sig"), shares=(1, 0, 1))
    assert sorted(len(classes.members[0]) for classes in data.values()) == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,a,b\nx,1,2\nx,1,red\n", "PATH: row 3 (label 'x'), column b must be a finite number, got 'red'HINT"),
        ("label,a,b\nx,1,nan\n", "PATH: row 2 (label 'x'), column b must be a finite number, got 'nan'HINT"),
        ("label,a,b\nx,,1\n", "PATH: row 2 (label 'x'), column a must be a finite number, got ''HINT"),
        ("label,a,b\nx,inf,1\n", "PATH: row 2 (label 'x'), column a must be a finite number, got 'inf'HINT"),
        ("label,a,b\n\n ,1,1\n", "PATH: row 3, column label must name a class, got ' '"),
        ("label,a,b\nx,1\n", "PATH: row 2 must have 3 cells, got 2"),
        ("class,a,b\nx,1,1\n", "label must be a column of PATH (it has class, a, b), got 'label'"),
        ("", "label must be a column of PATH (it has none), got 'label'"),
        ("label,a,a\nx,1,1\n", "PATH must have columns of different names, and one besides label, got label, a, a"),
        ("label\nx\n", "PATH must have columns of different names, and one besides label, got label"),
        ("label,a\n", "PATH must have at least 1 row below its header, got none"),
    ],
)
def test_wrong_in_one_line(write, text, message):
    path = write(text)
    message = message.replace("HINT", " (texts are read by --dataset texts --dataset-kwargs '{path: PATH}')")
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace('PATH', str(path)))}$"):
        load_csv(path)


def test_other_encodings(write):
    path = write("label,é\nx,1\n", encoding="latin-1")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} must be a CSV file in UTF-8, got one with: .*$"):
        load_csv(path)

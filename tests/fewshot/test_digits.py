"""scikit-learn's digits: five to train on, five to test on, and quarter turns."""

import sys

import numpy as np
import pytest

from metarl.fewshot.classes import NWayKShot
from metarl.fewshot.datasets.digits import load_digits

datasets = pytest.importorskip("sklearn.datasets")


def test_five_digits_each():
    digits = datasets.load_digits()
    data = load_digits()
    assert {split: classes.names for split, classes in data.items()} == {"train": tuple("23467"), "test": tuple("01589")}
    for classes in data.values():
        for name, members in zip(classes.names, classes.members, strict=True):
            np.testing.assert_array_equal(members, np.flatnonzero(digits.target == int(name)))
    x = data["train"].x
    assert x.shape == (1797, 1, 8, 8)
    assert x.dtype == np.uint8
    np.testing.assert_allclose(x[:, 0] / 255, digits.images / 16, atol=0.5 / 255)
    assert set(load_digits(seed=1)["train"].names) != set("23467")


def test_quarter_turns_of_training_digits():
    data = load_digits(rotations=True)
    train = data["train"]
    assert train.names == (*"23467", "2/90", "3/90", "4/90", "6/90", "7/90")
    assert data["test"].names == tuple("01589")
    upright, turned = train.x[train.members[2][5], 0], train.x[train.members[7][5], 0]
    assert turned.tolist() == [[upright[i, 7 - j] for i in range(8)] for j in range(8)]


def test_episodes():
    source = NWayKShot("digits", load_digits(rotations=True))
    assert source.spec.shape == (1, 8, 8)
    assert source.spec.train_classes == 10
    assert source.splits == ("train", "test")
    assert source.episodes("test", range(2)).support_x.max() <= 1.0


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"^the digits need sklearn: pip install 'metarl-toolkit\[fewshot\]'$"):
        load_digits()

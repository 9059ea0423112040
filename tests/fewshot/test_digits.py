"""scikit-learn's digits: five to train on, five to test on, and quarter turns."""

import re
import sys
from types import SimpleNamespace

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


def test_digits_as_letters_stand():
    """Blank around, and within, averaged back over what each pixel became, what they were."""
    small, large = load_digits(rotations=True), load_digits(rotations=True, size=28, margin=4)
    for split in ("train", "test"):
        assert large[split].names == small[split].names
        x = large[split].x
        assert x.shape == (len(small[split].x), 1, 28, 28)
        assert x.dtype == np.uint8
        inside = x[:, 0, 4:24, 4:24].astype(float)
        assert inside.sum() == x.sum(dtype=float)
        twos = inside.reshape(-1, 4, 5, 4, 5).mean((2, 4))  # five pixels for two
        before = small[split].x[:, 0].astype(float).reshape(-1, 4, 2, 4, 2).mean((2, 4))
        assert np.corrcoef(twos.ravel(), before.ravel())[0, 1] > 0.99
        assert abs(inside.mean() - before.mean()) < 3.0
    padded = load_digits(size=10, margin=1)["train"].x
    np.testing.assert_array_equal(padded[:, :, 1:9, 1:9], load_digits()["train"].x)


def test_pictures_are_brought_to_a_size_smoothly(monkeypatch):
    ramp = np.tile(np.arange(0.0, 16.0, 2.0), (20, 8, 1))
    monkeypatch.setattr(datasets, "load_digits", lambda: SimpleNamespace(images=ramp, target=np.arange(20) % 10))
    row = load_digits(size=28, margin=4)["train"].x[0, 0, 14, 4:24].astype(float)
    np.testing.assert_allclose(np.diff(row[4:-4]), 255 / 8 * 8 / 20, atol=1.0)  # a straight line, but for its ends


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1}, "margin must be an integer of at least 0, got -1"),
        ({"size": 8, "margin": 4}, "size must be above twice the margin, 2 x 4, got 8"),
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"size": 28.0}, "size must be an integer of at least 1, got 28.0"),
    ],
)
def test_frames_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_digits(**options)


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

"""Glyphs: which letters there are, that they differ, that one split knows nothing of another, and the cache."""

import hashlib
import os
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metarl.fewshot.classes import NWayKShot
from metarl.fewshot.datasets import glyphs
from metarl.fewshot.datasets.glyphs import load_glyphs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(cache):
    return load_glyphs(examples=3, cache=cache)


def test_letters_and_scripts(data):
    sizes = {split: Counter(classes.groups) for split, classes in data.items()}
    assert list(data) == ["train", "validation", "test"]
    assert set(sizes["validation"]) == {"Lao", "Nko"}
    assert set(sizes["test"]) == {"Georgian", "Hebrew", "Tifinagh"}
    assert {"Latin", "Greek", "Cyrillic"} < set(sizes["train"])
    assert len(data["train"]) >= 500
    assert len(data["validation"]) >= 40
    assert len(data["test"]) >= 120
    assert all(10 <= count <= 150 for counts in sizes.values() for count in counts.values())
    names = [name for classes in data.values() for name in classes.names]
    assert len(names) == len(set(names))
    for classes in data.values():
        for name, script in zip(classes.names, classes.groups, strict=True):
            assert unicodedata.category(unicodedata.lookup(name)).startswith("L")
            assert script.split()[0].upper() in name or script == "Latin"  # where there are names such as TURNED CAPITAL F


def test_look_alikes_are_one_class():
    letters = glyphs._distinct(glyphs._clean_drawings(glyphs._font_files("bundled")))
    assert {*"ABCEHKMNOSTXZ", "\N{CYRILLIC CAPITAL LETTER ZHE}"} <= set(letters)
    twins = "cosvwxz\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}\N{CYRILLIC SMALL LETTER ZHE}"
    assert not set(twins) & set(letters)


def test_pictures(data):
    x = data["train"].x
    members = np.concatenate([m for classes in data.values() for m in classes.members])
    assert sorted(members) == list(range(len(x)))
    assert x.shape[1:] == (1, 28, 28)
    assert x.dtype == np.uint8
    assert (x.max((1, 2, 3)) == 255).all()
    dark = (x > 127).mean((1, 2, 3))
    assert dark.min() > 0.002
    assert 0.08 < dark.mean() < 0.25  # Omniglot has about 0.1
    assert np.median(x[:, 0, [0, -1]].max((1, 2))) == 0  # the ink is inside
    assert len(np.unique(x.reshape(len(x), -1), axis=0)) == len(x)


def test_pictures_of_a_letter_resemble_each_other(data):
    """The nearest of five blurred pictures is that of the same letter far more often than one time in five."""
    classes = data["test"]
    x = torch.from_numpy(classes.x[np.stack(classes.members)[:, :2]].astype(np.float32))[:, :, 0]  # [letters, 2, 28, 28]
    x = F.normalize(F.avg_pool2d(x, 5, stride=1).flatten(2), dim=-1)
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(400):
        five = rng.choice(len(x), 5, replace=False)
        right += int((x[five, 0] @ x[five[0], 1]).argmax() == 0)
    assert 0.5 < right / 400 < 0.98


def test_seeds_and_cache(data, cache, monkeypatch):
    monkeypatch.setattr(glyphs, "_draw", None)  # what is there is read
    again = load_glyphs(examples=3, cache=cache)
    assert all(again[split].names == data[split].names for split in data)
    np.testing.assert_array_equal(again["test"].x, data["test"].x)


@pytest.fixture
def one_font(monkeypatch):
    paths = [path for path in glyphs._font_files("bundled") if path.name == "DejaVuSansMono-Bold.ttf"]
    monkeypatch.setattr(glyphs, "_font_files", lambda fonts: paths)


@pytest.mark.usefixtures("one_font")
def test_the_same_seed_draws_the_same(tmp_path):
    first, other = (load_glyphs(examples=2, seed=seed, cache=tmp_path / "first") for seed in (0, 1))
    file = next((tmp_path / "first").glob("*.ckpt"))
    assert len(list(file.parent.iterdir())) == 2
    again = load_glyphs(examples=2, cache=tmp_path / "second")
    np.testing.assert_array_equal(first["test"].x, again["test"].x)
    assert (first["test"].x != other["test"].x).any()
    for path in file.parent.iterdir():
        path.write_bytes(path.read_bytes()[:-1000])  # damaged: drawn anew
    np.testing.assert_array_equal(load_glyphs(examples=2, cache=tmp_path / "first")["test"].x, first["test"].x)


@pytest.mark.usefixtures("one_font")
def test_cache_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_glyphs(examples=1)
    assert len(list((tmp_path / "metarl").glob("glyphs_bundled_*.ckpt"))) == 1
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="^glyphs are drawn anew every time, because .* cannot be written"):
        load_glyphs(examples=1, cache=tmp_path / "file")


def test_undistorted_drawings_hold_the_letter_in_their_middle():
    drawings = glyphs._clean_drawings(glyphs._font_files("bundled")[:1])
    for letter in "Ilm":
        ink = np.argwhere(drawings[letter][0] > 20)
        low, high = ink.min(0), ink.max(0)
        assert max(high - low + 1) in (39, 40)
        np.testing.assert_allclose(low + high, 55, atol=2)


def test_thickness_and_place_vary():
    bar = np.zeros((1, 56, 56), np.uint8)
    bar[:, 10:46, 26:30] = 255
    x = glyphs._distort(bar.repeat(300, 0), np.random.default_rng(0)) / 255
    width = x[:, 10:18].sum(2).mean(1)
    assert np.quantile(width, 0.05) < 1.5
    assert np.quantile(width, 0.95) > 2.7
    centre = (x * np.arange(28)).sum((1, 2)) / x.sum((1, 2))
    assert 0.5 < centre.std() < 2.0
    np.testing.assert_allclose(centre.mean(), 13.5, atol=0.3)


def test_episodes(data):
    source = NWayKShot("glyphs", data, ways=20, shots=1, queries=2)
    assert source.episodes("validation", [0]).query_x.shape == (1, 40, 1, 28, 28)


def test_bad_arguments(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"^fonts 'notto' is unknown .did you mean noto.*$"):
        load_glyphs("notto")
    with pytest.raises(ValueError, match=r"^examples must be an integer of at least 1, got 0$"):
        load_glyphs(examples=0)
    monkeypatch.setattr(glyphs, "_NOTO", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^no font files Noto.* in {tmp_path}: apt-get install fonts-noto-core$"):
        load_glyphs("noto")


def test_splits_of_many_scripts():
    """Seven, one and two of ten scripts; those that share shapes are for training."""
    sizes = {f"script{i}": 10 + i for i in range(100)} | {"Latin": 150, "Greek": 40}
    splits = glyphs._split([s for s, n in sizes.items() for _ in range(n)], "noto", np.random.default_rng(0))
    assert Counter(splits.values()) == {"train": 72, "validation": 10, "test": 20}
    assert splits["Latin"] == splits["Greek"] == "train"
    large = [splits[f"script{i}"] for i in range(90, 100)]
    assert Counter(large) == {"train": 7, "validation": 1, "test": 2}


@pytest.mark.skipif(not glyphs._NOTO.is_dir(), reason="needs Debian's fonts-noto-core")
def test_noto(monkeypatch, tmp_path):
    """Some of its fonts: all take most of a minute."""
    kept = {"NotoSans-Regular", "NotoSansTangut-Regular", "NotoSerifTangut-Regular"}
    kept |= {f"NotoSans{script}-Regular" for script in ("Yi", "Runic", "Mongolian", "Shavian", "Osage", "Vai", "Carian")}
    paths = [path for path in glyphs._font_files("noto") if path.stem in kept]
    monkeypatch.setattr(glyphs, "_font_files", lambda fonts: paths)
    data = load_glyphs("noto", examples=2, cache=tmp_path)
    sizes = [Counter(classes.groups) for classes in data.values()]
    assert {"Latin", "Greek", "Cyrillic"} <= set(sizes[0])
    assert sum(len(counts) for counts in sizes) == len(set.union(*map(set, sizes))) == 10
    assert max(max(counts.values(), default=0) for counts in sizes) == 150
    assert all(script != "Tangut" for counts in sizes for script in counts)


def test_other_processors_draw_the_same():
    x = np.random.default_rng(0).integers(0, 256, (200, 56, 56), dtype=np.uint8)
    script = """if True:
        import hashlib, numpy as np
        from metarl.fewshot.datasets.glyphs import _distort
        x = np.random.default_rng(0).integers(0, 256, (200, 56, 56), dtype=np.uint8)
        print(hashlib.sha256(_distort(x, np.random.default_rng(1))).hexdigest())"""
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}  # no AVX
    done = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(glyphs._distort(x, np.random.default_rng(1))).hexdigest()

"""Folders of pictures: their layouts, lazy reading, quarter turns, and what is wrong with a folder, in one line."""

import re

import numpy as np
import pytest
from PIL import Image

from metarl.fewshot.classes import NWayKShot
from metarl.fewshot.datasets.folders import Images, load_folder, load_mini_imagenet, load_omniglot


def picture(path, color, size=(20, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def make_classes(path, names, count=3):
    for i, name in enumerate(names):
        for j in range(count):
            picture(path / name / f"{j}.png", (10 * i + j, 100, 200))


def raises(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_any_folder(tmp_path):
    names = [f"c{i}" for i in range(10)]
    make_classes(tmp_path, names)
    (tmp_path / "c0" / "notes.txt").write_text("not a picture")
    data = load_folder(tmp_path, size=(6, 8))
    assert {split: len(classes) for split, classes in data.items()} == {"train": 6, "validation": 2, "test": 2}
    assert sorted(name for classes in data.values() for name in classes.names) == names
    for classes in data.values():
        for name, members in zip(classes.names, classes.members, strict=True):
            x = classes.x[members]
            assert x.shape == (3, 3, 6, 8)
            assert x.dtype == np.uint8
            expected = np.array([[10 * int(name[1]) + j, 100, 200] for j in range(3)])
            np.testing.assert_array_equal(x, np.broadcast_to(expected[..., None, None], x.shape))
    assert any(load_folder(tmp_path, seed=seed)["test"].names != data["test"].names for seed in range(1, 9))
    source = NWayKShot("mine", data, ways=2, shots=1, queries=2)
    assert source.spec.shape == (3, 6, 8)
    assert source.episodes("test", [0, 1]).query_x.shape == (2, 4, 3, 6, 8)
    assert load_folder(tmp_path, grayscale=True)["train"].x.shape == (30, 1, 28, 28)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_given_splits(tmp_path, validation):
    for split, names in {"train": ["a", "b"], validation: ["c"], "test": ["d", "e"]}.items():
        make_classes(tmp_path / split, names)
    data = load_folder(tmp_path)
    assert {split: classes.names for split, classes in data.items()} == {
        "train": ("a", "b"),
        "validation": ("c",),
        "test": ("d", "e"),
    }
    make_classes(tmp_path / "test", ["a"])
    with raises("class 'a' must be in one split, got it in train and test"):
        load_folder(tmp_path)


def test_pictures_are_read_once_and_only_when_asked_for(tmp_path):
    make_classes(tmp_path, ["a"])
    images = Images(sorted((tmp_path / "a").iterdir()), 4)
    first = images[np.array([2, 0])]
    assert first[:, 0, 0, 0].tolist() == [2, 0]
    (tmp_path / "a" / "2.png").unlink()
    np.testing.assert_array_equal(images[np.array([2, 0])], first)
    (tmp_path / "a" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / 'a' / '1.png'))} must be a readable picture, got .*$"):
        images[np.array([1])]


def read(path, **options):
    return Images([path], 2, **options)[np.array([0])][0]


def test_what_is_transparent_becomes_white(tmp_path):
    """Left half: black ink; right half: nothing, in black as most programs write it."""
    half = np.array([[[0, 255], [0, 0]]] * 2, np.uint8)
    Image.fromarray(half, "LA").save(tmp_path / "grey.png")
    Image.fromarray(np.concatenate([half[:, :, [0, 0, 0]], half[:, :, 1:]], 2), "RGBA").save(tmp_path / "colour.png")
    palette = Image.fromarray(np.array([[0, 1]] * 2, np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    for name in ("grey", "colour", "palette"):
        assert read(tmp_path / f"{name}.png").tolist() == [[[0, 255]] * 2] * 3
        assert read(tmp_path / f"{name}.png", grayscale=True, invert=True).tolist() == [[[255, 0]] * 2]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits(tmp_path, name):
    values = np.array([[0, 257], [32896, 65535]], np.uint16)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 2 2 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    assert read(tmp_path / name, grayscale=True).tolist() == [[[0, 1], [128, 255]]]
    assert read(tmp_path / name).tolist() == [[[0, 1], [128, 255]]] * 3


def test_pictures_are_turned_as_cameras_say(tmp_path):
    image = Image.fromarray(np.array([[10, 20], [30, 40]], np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the first row is on the right
    image.save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png", grayscale=True).tolist() == [[[30, 10], [40, 20]]]


def test_unreadable_first_pictures_are_found_before_training(tmp_path):
    make_classes(tmp_path, ["a", "b", "c"])
    path = tmp_path / "b" / "0.png"
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} must be a readable picture, got .*$"):
        load_folder(tmp_path)


def test_folders_without_classes(tmp_path):
    with raises(f"path must be a folder, got {tmp_path / 'none'}, which does not exist"):
        load_folder(tmp_path / "none")
    with raises(f"path must hold a folder for each class, got {tmp_path} without any"):
        load_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with raises(f"class 'a' must have at least 1 picture, got none in {tmp_path / 'a'}"):
        load_folder(tmp_path)
    make_classes(tmp_path, ["a"])
    with raises("size must be at least 1, got 0"):
        load_folder(tmp_path, size=0)


@pytest.fixture
def omniglot(tmp_path):
    """12 alphabets of 2 characters and 3 of 3; each a black corner on white, of its own size."""
    for name, alphabets, characters in (("images_background", 12, 2), ("images_evaluation", 3, 3)):
        for a in range(alphabets):
            for c in range(characters):
                for drawer in range(2):
                    path = tmp_path / name / f"{name[7]}{a}" / f"character{c + 1:02}" / f"{drawer}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image = Image.new("1", (105, 105), 1)
                    image.paste(0, (0, 0, 30 + 10 * c, 60))
                    image.save(path)
    return tmp_path


def test_omniglot_by_alphabet(omniglot):
    data = load_omniglot(omniglot)
    assert {split: len(classes) for split, classes in data.items()} == {"train": 20, "validation": 4, "test": 9}
    groups = [set(classes.groups) for classes in data.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 15
    assert groups[2] == {"e0", "e1", "e2"}
    assert data["test"].names[:2] == ("e0/character01", "e0/character02")
    x = data["test"].x[data["test"].members[1]]
    assert x.shape == (2, 1, 28, 28)
    corner = np.zeros((28, 28), int)
    corner[:16, : round(40 / 105 * 28)] = 255  # ink is 255
    assert (abs(x[0, 0].astype(int) - corner) > 100).mean() < 0.03


def test_omniglot_by_character(omniglot):
    data = load_omniglot(omniglot, split="characters")
    assert {split: len(classes) for split, classes in data.items()} == {"train": 22, "validation": 2, "test": 9}
    assert len({name for classes in data.values() for name in classes.names}) == 33
    with pytest.raises(ValueError, match=r"^split 'drawers' is unknown: known are alphabets, characters$"):
        load_omniglot(omniglot, split="drawers")


@pytest.mark.parametrize("split", ["alphabets", "characters"])
def test_omniglot_turned(omniglot, split):
    upright, turned = (load_omniglot(omniglot, split, rotations) for rotations in (False, True))
    for part, classes in turned.items():
        of = upright[part]
        assert len(classes) == 4 * len(of)
        assert classes.groups == of.groups * 4
        for turn in range(4):
            i = turn * len(of) + 1
            assert classes.names[i] == of.names[1] + (f"/{90 * turn}" if turn else "")
            expected = of.x[of.members[1]]
            for _ in range(turn):
                expected = expected.swapaxes(2, 3)[:, :, ::-1]
            np.testing.assert_array_equal(classes.x[classes.members[i]], expected)
    mixed = turned["test"]  # in one go, whatever the turns
    chosen = np.array([mixed.members[i][0] for i in (3, 30, 12, 21)])
    np.testing.assert_array_equal(mixed.x[chosen], np.concatenate([mixed.x[chosen[i : i + 1]] for i in range(4)]))


def test_omniglot_needs_both_sets(omniglot):
    missing = omniglot / "images_background" / "images_background"
    with raises(f"path must be a folder, got {missing}, which does not exist"):
        load_omniglot(omniglot / "images_background")


@pytest.fixture
def mini_imagenet(tmp_path):
    for i, (split, labels) in enumerate({"train": "xab", "val": "c", "test": "de"}.items()):
        lines = ["filename,label"]
        for label in labels:
            for j in range(2):
                name = f"{label}{j}.jpg"
                picture(tmp_path / "images" / name, (50 * i, 0, 10 * j), size=(84, 84))
                lines.append(f"{name},{label}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_mini_imagenet(mini_imagenet):
    data = load_mini_imagenet(mini_imagenet)
    assert {split: classes.names for split, classes in data.items()} == {
        "train": ("a", "b", "x"),
        "validation": ("c",),
        "test": ("d", "e"),
    }
    x = data["test"].x[data["test"].members[1]]
    assert x.shape == (2, 3, 84, 84)
    np.testing.assert_allclose(x.mean((2, 3)), [[100, 0, 0], [100, 0, 10]], atol=2)


def test_mini_imagenet_in_one_line(mini_imagenet):
    (mini_imagenet / "images" / "d0.jpg").unlink()
    with pytest.raises(ValueError, match=r"^class 'd' must have its 2 pictures of test.csv, got 1: .*d0\.jpg is missing$"):
        load_mini_imagenet(mini_imagenet)
    (mini_imagenet / "images" / "d0.jpg").write_bytes((mini_imagenet / "images" / "e0.jpg").read_bytes())
    (mini_imagenet / "val.csv").write_text("file,label\n")
    with raises(f"{mini_imagenet / 'val.csv'} must have columns filename and label, got file, label"):
        load_mini_imagenet(mini_imagenet)
    (mini_imagenet / "val.csv").write_text("filename,label\nc0.jpg,a\n")
    with raises("class 'a' must be in one split, got it in train and validation"):
        load_mini_imagenet(mini_imagenet)
    (mini_imagenet / "train.csv").unlink()
    with raises(f"path must be a folder with train.csv, got {mini_imagenet}"):
        load_mini_imagenet(mini_imagenet)

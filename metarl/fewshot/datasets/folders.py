"""Pictures in folders: any by class, and the layouts of Omniglot and mini-ImageNet."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from metarl.fewshot.classes import Classes
from metarl.plain import check_known

if TYPE_CHECKING:
    import PIL.Image

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
_KEPT_BYTES = 2**30


class Images:
    """Pictures in files, as an array `[M, channels, height, width]` of uint8 that is read where it is indexed.

    They are turned as their EXIF orientation says, what is transparent becomes white, and 16 bits a pixel become 8. Sets of
    at most 1 GiB stay in memory once they were read.

    Args:
        paths: of the pictures.
        size: height and width that they are brought to.
        grayscale: one channel instead of three.
        invert: black becomes 255.
        quarter_turns: times that the files repeat, each time turned by 90 degrees more, counterclockwise.

    Raises:
        ValueError: in one line that names the file, where a picture that is asked for cannot be read.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        paths: Sequence[Path],
        size: int | tuple[int, int],
        grayscale: bool = False,
        invert: bool = False,
        quarter_turns: int = 1,
    ):
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.paths = list(paths)
        self.grayscale = grayscale
        self.invert = invert
        self.shape = (len(self.paths) * quarter_turns, 1 if grayscale else 3, height, width)
        files = (len(self.paths), *self.shape[1:])
        self._kept = np.empty(files, np.uint8) if np.prod(files, dtype=float) <= _KEPT_BYTES else None
        self._known = np.zeros(len(self.paths), bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        turns, files = np.divmod(np.asarray(indices), len(self.paths))
        pictures = np.stack([self._picture(i) for i in files])
        for turn in range(1, turns.max() + 1):
            pictures[turns == turn] = np.rot90(pictures[turns == turn], turn, (2, 3))
        return pictures

    def _picture(self, i: int) -> np.ndarray:
        if self._known[i]:
            return self._kept[i]
        picture = self._read(self.paths[i])
        if self._kept is not None:
            self._kept[i] = picture
            self._known[i] = True
        return picture

    def _read(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(path) as image:
                image = upright_on_white(image).convert("L" if self.grayscale else "RGB")
                picture = np.asarray(image.resize(self.shape[:1:-1], Image.Resampling.BILINEAR))
        except Exception as error:  # Pillow's decoders raise what they like
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path} must be a readable picture, got {type(error).__name__}: {reason}") from error
        picture = picture.reshape(*self.shape[2:], -1).transpose(2, 0, 1)
        return 255 - picture if self.invert else picture


def upright_on_white(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """The picture as people see it: Pillow's `convert` neither turns nor scales, and keeps the colour that is not seen."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, also where Pillow holds them in 32
        image = Image.fromarray((np.asarray(image) / 257.0).round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def load_folder(
    path: str | Path,
    size: int | tuple[int, int] = 28,
    grayscale: bool = False,
    shares: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> dict[str, Classes]:
    """Your own folder with a folder of pictures for each class, such as `PATH/cat/1.jpg`: `--data PATH`.

    Where `path` holds folders `train`, `val` (or `validation`) and `test` of such class folders, these are the splits;
    otherwise classes are split at random.

    Args:
        path: the folder.
        size: height and width in pixels that the pictures are brought to.
        grayscale: one channel instead of three.
        shares: of the classes for training, validation and test; a split of share 0 is left out.
        seed: of the split.

    Raises:
        ValueError: in one line, at a folder without classes, a class without pictures or in two splits, and where the
            first picture of a class cannot be read; other pictures raise it when they are read.
    """
    inside = folders(path)
    if {folder.name for folder in inside} <= _SPLITS.keys():
        found = {_SPLITS[folder.name]: class_folders(folders(folder)) for folder in inside}
        if len(found) < len(inside):
            raise ValueError(f"{path} must have one folder for each split, got {', '.join(f.name for f in inside)}")
        parts = {split: found[split] for split in dict.fromkeys(_SPLITS.values()) if split in found}
        _check_disjoint(parts)
        return {split: _classes(files, size, grayscale) for split, files in parts.items()}
    return split_classes(_classes(class_folders(inside), size, grayscale), shares, seed)


def load_omniglot(
    path: str | Path,
    split: Literal["alphabets", "characters"] = "alphabets",
    rotations: bool = False,
    seed: int = 0,
) -> dict[str, Classes]:
    """Omniglot (Lake et al. 2015), 1,623 characters of 50 alphabets: fetch it by hand, and give its folder as `path`.

    To get it: unpack `python/images_background.zip` and `python/images_evaluation.zip` of
    https://github.com/brendenlake/omniglot into one folder. Characters are classes, alphabets groups, pictures `[1, 28, 28]`
    of uint8, ink 255 on 0.

    Args:
        path: the folder into which images_background.zip and images_evaluation.zip of
            https://github.com/brendenlake/omniglot were unpacked.
        split: "alphabets": the authors' background set, a sixth of its alphabets for validation, and their evaluation
            set as the test; "characters": 1,100, 100 and 423 of all characters (Vinyals et al. 2016, section 4.1.1, the
            validation characters out of their 1,200 as in Finn et al. 2017).
        rotations: in every split, characters turned by 90, 180 and 270 degrees are further classes (Santoro et al. 2016).
        seed: of the split.

    Raises:
        ValueError: as `load_folder`.
    """
    check_known(f"split {split!r}", split, ("alphabets", "characters"))
    sets = []
    for name in ("images_background", "images_evaluation"):
        alphabets = folders(Path(path, name))
        sets.append({f"{a.name}/{c}": files for a in alphabets for c, files in class_folders(folders(a)).items()})
    background, evaluation = sets
    _check_disjoint({"background": background, "evaluation": evaluation})
    classes = _classes(background | evaluation, 28, grayscale=True, invert=True, quarter_turns=4 if rotations else 1)
    classes = replace(classes, groups=tuple(name.partition("/")[0] for name in classes.names))
    if split == "alphabets":
        parts = classes.select(range(len(background))).split({"train": 5, "validation": 1}, seed, by_group=True)
        parts["test"] = classes.select(range(len(background), len(classes)))
    else:
        parts = classes.split({"train": 1100, "validation": 100, "test": 423}, seed)
    return {name: _turned(part) for name, part in parts.items()} if rotations else parts


def load_mini_imagenet(path: str | Path, size: int | tuple[int, int] = 84) -> dict[str, Classes]:
    """mini-ImageNet in the splits of Ravi and Larochelle (2017): fetch it by hand, and give its folder as `path`.

    To get it: `train.csv`, `val.csv` and `test.csv` are in `data/miniImagenet` of
    https://github.com/twitter-research/meta-learning-lstm; the pictures they name, from ImageNet, belong in `images/`.
    There are 64, 16 and 20 classes of 600 pictures `[3, 84, 84]`.

    Args:
        path: the folder with train.csv, val.csv and test.csv of https://github.com/twitter-research/meta-learning-lstm,
            which have columns `filename` and `label`, and with the pictures, from ImageNet, in images/.
        size: height and width in pixels that the pictures are brought to.

    Raises:
        ValueError: as `load_folder`, and at a table that is missing or lacks a column.
    """
    parts = {}
    for name in ("train", "val", "test"):
        table = Path(path, f"{name}.csv")
        if not table.is_file():
            raise ValueError(f"path must be a folder with {table.name}, got {path}")
        with open(table, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"filename", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{table} must have columns filename and label, got {', '.join(rows.fieldnames or ())}")
            files = parts[_SPLITS[name]] = {}
            for row in rows:
                files.setdefault(row["label"], []).append(Path(path, "images", row["filename"]))
        for label, named in files.items():
            if missing := [file for file in named if not file.is_file()]:
                raise ValueError(
                    f"class {label!r} must have its {len(named)} pictures of {table.name}, got "
                    f"{len(named) - len(missing)}: {missing[0]} is missing"
                )
    _check_disjoint(parts)
    return {split: _classes(dict(sorted(files.items())), size, grayscale=False) for split, files in parts.items()}


def split_classes(classes: Classes, shares: Sequence[float], seed: int) -> dict[str, Classes]:
    """Training, validation and test classes at random, of about these shares; a split of share 0 is left out.

    Raises:
        ValueError: at shares that are no such three numbers, and where none of the classes would be for training.
    """
    if len(shares) != 3 or not all(0 <= share < float("inf") for share in shares) or not shares[0]:
        raise ValueError(f"shares must be three numbers of at least 0, the first above 0, got {shares}")
    named = zip(("train", "validation", "test"), shares, strict=True)
    parts = classes.split({name: share for name, share in named if share}, seed)
    if not len(parts["train"]):
        raise ValueError(f"classes must be enough for a train split with shares {tuple(shares)}, got {len(classes)}")
    return parts


def folders(path: str | Path) -> list[Path]:
    """The folders in `path`, by name."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"path must be a folder, got {path}{'' if path.exists() else ', which does not exist'}")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))
    if not folders:
        raise ValueError(f"path must hold a folder for each class, got {path} without any")
    return folders


def pictures(folder: str | Path) -> list[Path]:
    """The files of pictures in `folder`, by name."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in SUFFIXES)


def class_folders(found: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each class."""
    files = {folder.name: pictures(folder) for folder in found}
    for folder in found:
        if not files[folder.name]:
            raise ValueError(f"class {folder.name!r} must have at least 1 picture, got none in {folder}")
    return files


def _check_disjoint(parts: Mapping[str, Mapping[str, list[Path]]]) -> None:
    seen = {}
    for split, files in parts.items():
        for name in files:
            if name in seen:
                raise ValueError(f"class {name!r} must be in one split, got it in {seen[name]} and {split}")
            seen[name] = split


def _classes(files: Mapping[str, list[Path]], size: int | tuple[int, int], grayscale: bool, **options) -> Classes:
    """Classes of pictures, the first of each of which was read."""
    ends = np.cumsum([0, *map(len, files.values())])
    images = Images([path for paths in files.values() for path in paths], size, grayscale, **options)
    for first in ends[:-1]:
        images[np.array([first])]
    return Classes(images, tuple(np.arange(low, high) for low, high in pairwise(ends)), tuple(files))


def _turned(classes: Classes) -> Classes:
    """The classes, and for each turn further ones."""
    files, turns = len(classes.x.paths), range(4)
    return Classes(
        classes.x,
        tuple(members + turn * files for turn in turns for members in classes.members),
        tuple(f"{name}/{90 * turn}" if turn else name for turn in turns for name in classes.names),
        classes.groups * len(turns),
    )

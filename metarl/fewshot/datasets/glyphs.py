"""Glyphs: letters of many scripts, drawn from font files. Printed letters, not handwriting.

They take the place of Omniglot (Lake et al. 2015, "Human-level concept learning through probabilistic program induction"),
which must be downloaded: alphabets are scripts, characters are letters, and what twenty people drew are a letter's
pictures in several fonts, each bent, turned and stretched on its own. Figures on them are not figures on Omniglot.

A letter's script is Unicode's. Left out are accented letters and others that Unicode takes apart, all but one of the
letters that look alike, and Tangut, whose letters have too many strokes for 28 pixels.
"""

import hashlib
import importlib.metadata
import json
import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from metarl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from metarl.fewshot.classes import Classes
from metarl.plain import check_count, check_known

_VERSION = 2  # of what this file draws: caches of another are not read
_NOTO = Path("/usr/share/fonts/truetype/noto")
_SIDE, _INK = 56, 40  # pixels of a clean drawing and of its ink's longer side; pictures have half of them
_ALIKE = 0.9
_MOST, _LEAST = 150, 10  # letters of a script
_LEFT_OUT = {"Tangut", "Common", "Inherited"}
_SHARE_SHAPES = {"Latin", "Greek", "Cyrillic", "Coptic", "Cherokee", "Lisu", "Old Italic", "Gothic"}
_BUNDLED = {"Lao": "validation", "Nko": "validation", "Georgian": "test", "Hebrew": "test", "Tifinagh": "test"}
_SPLITS = ("train", "validation", "test")


def load_glyphs(
    fonts: Literal["bundled", "noto"] = "bundled", examples: int = 20, seed: int = 0, cache: str | Path | None = None
) -> dict[str, Classes]:
    """Printed letters, distorted at random, split by script, from fonts that come with Matplotlib or with Debian.

    Letters are classes, scripts groups, pictures `[1, 28, 28]` of uint8, ink 255 on 0. What was drawn once is read from
    `cache` next time.

    Args:
        fonts: "bundled": DejaVu and STIX, which Matplotlib brings along; "noto": Debian's many more
            (`apt-get install fonts-noto-core`).
        examples: pictures of each letter; they go round its fonts.
        seed: of the distortions; with "noto" also of which scripts are in which split.
        cache: folder; by default `metarl` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        ValueError: at other fonts, or examples below 1.
        FileNotFoundError: where the fonts are not installed.
    """
    check_known(f"fonts {fonts!r}", fonts, ("bundled", "noto"))
    check_count("examples", examples)
    check_count("seed", seed, least=0)
    paths = _font_files(fonts)
    versions = [_VERSION, unicodedata.unidata_version, *map(importlib.metadata.version, ("pillow", "fonttools"))]
    key = json.dumps([versions, examples, seed, [(path.name, path.stat().st_size) for path in paths]])
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarl"
    file = Path(folder) / f"glyphs_{fonts}_{hashlib.sha256(key.encode()).hexdigest()[:16]}.ckpt"
    try:
        state = load_checkpoint(file)
    except (OSError, CheckpointError):  # none yet, or a damaged one
        state = _draw(paths, fonts, examples, seed)
        try:
            save_checkpoint(file, state)
        except OSError as error:
            warnings.warn(f"glyphs are drawn anew every time, because {file} cannot be written: {error}", stacklevel=2)
    members = np.arange(len(state["x"])).reshape(-1, examples)
    classes = Classes(state["x"], tuple(members), tuple(state["names"]), tuple(state["scripts"]))
    splits = state["splits"]
    return {split: classes.select([i for i, s in enumerate(classes.groups) if splits[s] == split]) for split in _SPLITS}


def _font_files(fonts: str) -> list[Path]:
    """The plainest first: upright before slanted and bold, without serifs before with."""
    if fonts == "bundled":
        import matplotlib

        folder, patterns, get = Path(matplotlib.get_data_path(), "fonts", "ttf"), ("DejaVu*.ttf", "STIXGeneral*.ttf"), ""
    else:
        folder, patterns, get = _NOTO, ("Noto*.ttf",), ": apt-get install fonts-noto-core"
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    if not found:
        raise FileNotFoundError(f"no font files {patterns[0]} in {folder}{get}")

    def plainness(path: Path) -> tuple:
        family, _, style = path.stem.partition("-")
        return style not in ("", "Regular"), "Sans" not in family, path.name

    return sorted(found, key=plainness)


def _draw(paths: list[Path], fonts: str, examples: int, seed: int) -> dict:
    """What the cache holds."""
    rng = np.random.default_rng(seed)
    drawings = _clean_drawings(paths)
    letters = _distinct(drawings)
    scripts = np.array([_script(letter) for letter in letters])
    chosen = []
    for script, count in sorted(Counter(scripts.tolist()).items()):
        if count >= _LEAST:
            chosen += sorted(rng.permutation(np.flatnonzero(scripts == script))[:_MOST].tolist())
    splits = _split(scripts[chosen].tolist(), fonts, rng)
    pictures = []
    for at in range(0, len(chosen), 64):
        some = []
        for drawn in (drawings[letters[i]] for i in chosen[at : at + 64]):
            some += [drawn[i] for i in np.resize(rng.permutation(len(drawn)), examples)]
        pictures.append(_distort(np.stack(some), rng))
    names = [unicodedata.name(letters[i]) for i in chosen]
    return {"x": np.concatenate(pictures)[:, None], "names": names, "scripts": scripts[chosen].tolist(), "splits": splits}


def _script(letter: str) -> str:
    from fontTools import unicodedata as scripts  # Matplotlib needs fontTools, so it is there

    return scripts.script_name(scripts.script(letter))


def _clean_drawings(paths: list[Path]) -> dict[str, list[np.ndarray]]:
    """Each letter in every font that has it: `[56, 56]` of uint8, its ink in the middle and always of the same size."""
    from matplotlib.ft2font import FT2Font
    from PIL import Image, ImageFont

    drawings = {}
    for path in paths:
        font = ImageFont.truetype(path, 64, layout_engine=ImageFont.Layout.BASIC)  # the other engine is not everywhere
        for letter in map(chr, sorted(FT2Font(path).get_charmap())):
            if unicodedata.category(letter) not in ("Lu", "Ll", "Lo") or unicodedata.decomposition(letter):
                continue
            if _script(letter) in _LEFT_OUT:
                continue
            mask = font.getmask(letter)
            box = mask.getbbox()
            if box is None:
                continue
            ink = Image.frombytes("L", mask.size, bytes(mask)).crop(box)
            size = tuple(max(1, round(side * _INK / max(ink.size))) for side in ink.size)
            drawing = Image.new("L", (_SIDE, _SIDE))
            drawing.paste(ink.resize(size, Image.Resampling.BICUBIC), ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
            drawings.setdefault(letter, []).append(np.asarray(drawing))
    return dict(sorted(drawings.items()))


def _distinct(drawings: dict[str, list[np.ndarray]]) -> list[str]:
    """Letters, without those that look like one before: cosine of their plainest pictures, blurred and centred, above 0.9.

    So a letter that several scripts share is one class, and so are capital and small letters that differ in size alone. In
    float64, as `_distort` is: in float32, processors differ in a few roundings, and with them pictures by a grey level.
    """
    x = torch.from_numpy(np.stack([drawn[0] for drawn in drawings.values()]))
    x = F.avg_pool2d(F.avg_pool2d(x[:, None].double(), 2), 3, stride=1, padding=1).flatten(1)
    x = F.normalize(x - x.mean(1, keepdim=True), dim=1)
    kept: set[int] = set()
    alike = (row.nonzero()[:, 0].tolist() for part in x.split(1024) for row in part @ x.T > _ALIKE)
    for i, others in enumerate(alike):
        if kept.isdisjoint(others):
            kept.add(i)
    return [letter for i, letter in enumerate(drawings) if i in kept]


def _split(scripts: list[str], fonts: str, rng: np.random.Generator) -> dict[str, str]:
    """Each script's split. Of "noto", tens of scripts of about the same size are dealt out as seven, one and two."""
    sizes = Counter(scripts)
    if fonts == "bundled":
        return {script: _BUNDLED.get(script, "train") for script in sizes}
    splits = dict.fromkeys(_SHARE_SHAPES & set(sizes), "train")
    rest = sorted(set(sizes) - _SHARE_SHAPES, key=lambda script: (-sizes[script], script))
    for at in range(0, len(rest), 10):
        ten = rng.permutation(["train"] * 7 + ["validation"] + ["test"] * 2)
        splits |= zip(rest[at : at + 10], ten.tolist(), strict=False)
    return splits


def _distort(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Drawings `[M, 56, 56]` as by as many hands: `[M, 28, 28]`, of uint8 both.

    Each is turned (by up to 0.2 radians), slanted, stretched, shifted, bent by a smooth random field, and drawn with a
    thicker or thinner pen.
    """
    count = len(x)

    def uniform(bound: float, *shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, (count, *shape))

    angle = uniform(0.2)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(count, 2, 2)
    form = np.exp(0.1 + uniform(0.1, 1, 1) + uniform(0.15, 1, 2)) * np.eye(2)  # above 1 is smaller: it maps output to input
    form[:, 0, 1] = uniform(0.25)
    affine = np.concatenate([turn @ form, uniform(0.1, 2, 1)], -1)
    bend = rng.normal(0.0, 0.05, (count, 2, 5, 5))
    pen = torch.from_numpy(uniform(1.0, 1, 1, 1))
    grid = F.affine_grid(torch.from_numpy(affine), [count, 1, _SIDE, _SIDE], align_corners=False)
    grid = grid + F.interpolate(torch.from_numpy(bend), [_SIDE, _SIDE], mode="bicubic", align_corners=True).movedim(1, -1)
    y = F.grid_sample(torch.from_numpy(x[:, None]).double(), grid, align_corners=False)
    thick, thin = F.max_pool2d(y, 3, 1, 1), -F.max_pool2d(-y, 3, 1, 1)
    y = torch.where(pen > 0, y.lerp(thick, 0.8 * pen), y.lerp(thin, -0.6 * pen))
    y = F.avg_pool2d(y, 2)[:, 0]
    y = y / y.amax((1, 2), keepdim=True)  # hair lines become as black as the rest
    return (255 * y).round().to(torch.uint8).numpy()

"""Data sets for few-shot learning by name. Nothing is fetched: each says how to get it.

`make_source("glyphs", ways=5, shots=1)`; a path, to a folder of pictures by class or a CSV file, is a data set too.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from inspect import getdoc, signature
from pathlib import Path
from typing import Any

import numpy as np

from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets.curves import DampedOscillators, GaussianProcessCurves, Sinusoids
from metarl.fewshot.datasets.digits import load_digits
from metarl.fewshot.datasets.distortions import augmentation
from metarl.fewshot.datasets.folders import SUFFIXES, Images, load_folder, load_mini_imagenet, load_omniglot
from metarl.fewshot.datasets.glyphs import load_glyphs
from metarl.fewshot.datasets.table import load_csv, named
from metarl.fewshot.datasets.text import drop_tokens, load_fortunes, load_texts, split_texts
from metarl.fewshot.episodes import EpisodeSource
from metarl.fewshot.options import checked
from metarl.plain import check_known, field_sentences, first_sentence

CURVES: dict[str, type[EpisodeSource]] = {
    "sinusoids": Sinusoids,
    "gaussian-process": GaussianProcessCurves,
    "oscillators": DampedOscillators,
}
"""Regression: families of functions."""

CLASSES: dict[str, Callable[..., dict[str, Classes]]] = {
    "glyphs": load_glyphs,
    "digits": load_digits,
    "omniglot": load_omniglot,
    "mini-imagenet": load_mini_imagenet,
    "folder": load_folder,
}
"""Classification: loaders of classes by split."""

TEXTS: dict[str, Callable[..., tuple[list[str], list[str]]]] = {"fortunes": load_fortunes, "texts": load_texts}
"""Classification of texts: loaders of texts and labels; further arguments are those of `split_texts`."""

DATASETS = {**CURVES, **CLASSES, **TEXTS, "csv": load_csv}
"""All of them."""


def make_source(
    dataset: str, *, ways: int = 5, shots: int = 1, queries: int = 15, options: Mapping[str, Any] | None = None
) -> EpisodeSource:
    """Where episodes of a data set come from.

    Args:
        dataset: name in `DATASETS`, or path of a folder of pictures by class or of a CSV file.
        ways: classes in an episode; of no account in regression.
        shots: examples of each class in a support set; in regression, points.
        queries: examples of each class that are asked about; in regression, points.
        options: further arguments of the data set.

    Raises:
        ValueError: in one line, at an unknown name or option, and wherever the data set does not suffice.
    """
    options, name = dict(options or {}), dataset
    if (kind := _kind(dataset)) != dataset:
        _check_layout(Path(dataset))
        name, options["path"], dataset = Path(dataset).resolve().name, dataset, kind
    options = checked(f"{name}: dataset_kwargs.", options, _makers(dataset), _GIVEN)
    try:
        if dataset in CURVES:
            return CURVES[dataset](shots=shots, queries=queries, **options)
        if dataset in TEXTS:
            taken = signature(TEXTS[dataset]).parameters
            texts = TEXTS[dataset](**{option: value for option, value in options.items() if option in taken})
            further = {option: value for option, value in options.items() if option not in taken}
            data, vocabulary = split_texts(*texts, **further)
            sizes = {"vocabulary": len(vocabulary), "encode": vocabulary.encode}
            return NWayKShot(name, data, ways, shots, queries, augment=drop_tokens, **sizes)
        if dataset == "csv":
            data, standardise = load_csv(**options)
            return NWayKShot(name, data, ways, shots, queries, encode=standardise)
        augment = augmentation(options.pop("augment", False))
        return NWayKShot(name, CLASSES[dataset](**options), ways, shots, queries, augment=augment)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error


_GIVEN = ("shots", "queries", "texts", "labels")
"""Arguments of what makes data sets that are no options."""


def _kind(dataset: str) -> str:
    """The name of a data set, also where `dataset` is a path."""
    if not isinstance(dataset, str | Path) or not str(dataset):
        raise ValueError(f"dataset must be a name or a path, got {dataset!r}")
    if dataset not in DATASETS and not Path(dataset).exists():
        check_known(f"dataset {dataset!r} is no file or folder, and as a name", dataset, DATASETS)
    return dataset if dataset in DATASETS else "folder" if Path(dataset).is_dir() else "csv"


def _makers(name: str) -> list[Callable]:
    """What takes the options of a data set."""
    return [DATASETS[name], *[split_texts] * (name in TEXTS), *[augmentation] * (name in CLASSES)]


def _check_layout(path: Path) -> None:
    """A `ValueError`, in one line, at a path of what is another data set, or a part of one."""
    for name, has in (("omniglot", "images_background"), ("mini-imagenet", "train.csv")):
        if (path / has).exists():
            raise ValueError(f"{path} holds {has}: if it is {name}, say {named(name, path)}")
    if path.suffix.lower() in SUFFIXES and path.is_file():
        raise ValueError(f"{path} is one picture: a data set is a folder with a folder of pictures for each class")


def fingerprint(source: NWayKShot, path: str | None = None) -> str:
    """SHA-256 of what was read: splits, classes, which examples are theirs; then the examples, and the file `path`.

    Of pictures in files, names, sizes, and the first and last 32 KiB.
    """
    digest = hashlib.sha256()
    for split, classes in source.data.items():
        digest.update(json.dumps([split, classes.names, [part.tolist() for part in classes.members]]).encode())
    for x in {id(classes.x): classes.x for classes in source.data.values()}.values():
        if isinstance(x, Images):
            for file in x.paths:
                digest.update(_ends(file))
        else:
            digest.update(np.ascontiguousarray(x[:]))
    if path is not None and Path(path).is_file():
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def _ends(file: Path) -> bytes:
    """A file's name, size, and its first and last bytes."""
    with open(file, "rb") as opened:
        start = opened.read(_END)
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - _END, len(start)))
        return json.dumps([file.name, size]).encode() + start + opened.read()


_END = 2**15


def describe() -> list[tuple[str, str]]:
    """Names and first sentences."""
    return [(name, first_sentence(made)) for name, made in DATASETS.items()]


def _argument_sentences(function: Callable) -> dict[str, str]:
    """What the section "Args:" of a docstring says of each argument, on one line."""
    section = re.search(r"^Args:\n((?:    .*\n?)*)", getdoc(function), re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section[1], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def describe_options(dataset: str) -> list[tuple[str, str]]:
    """Names of the options of a data set, which may be a path, and what they mean."""
    described = []
    for make in _makers(_kind(dataset)):
        sentences = field_sentences(make) if isinstance(make, type) else _argument_sentences(make)
        for parameter in signature(make).parameters.values():
            if parameter.name not in _GIVEN and (parameter.name, dataset in DATASETS) != ("path", False):
                default = parameter.default
                end = " It must be given." if default is parameter.empty else f" By default {default}." if default else ""
                described.append((parameter.name, sentences[parameter.name] + end))
    return described

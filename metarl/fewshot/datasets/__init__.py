"""Data sets for few-shot learning by name. Nothing is fetched: each says how to get it.

`make_source("glyphs", ways=5, shots=1)`; a path, to a folder of pictures by class or a CSV file, is a data set too.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from metarl.fewshot.classes import Classes, NWayKShot
from metarl.fewshot.datasets.curves import DampedOscillators, GaussianProcessCurves, Sinusoids
from metarl.fewshot.datasets.digits import load_digits
from metarl.fewshot.datasets.folders import load_folder, load_mini_imagenet, load_omniglot
from metarl.fewshot.datasets.glyphs import load_glyphs
from metarl.fewshot.datasets.table import load_csv
from metarl.fewshot.datasets.text import load_fortunes, load_texts, split_texts
from metarl.fewshot.episodes import EpisodeSource
from metarl.fewshot.options import checked
from metarl.plain import check_known, first_sentence

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
    if dataset not in DATASETS:
        if not Path(dataset).exists():
            check_known(f"dataset {dataset!r} is no file or folder, and as a name", dataset, DATASETS)
        name, options["path"] = Path(dataset).resolve().name, dataset
        dataset = "folder" if Path(dataset).is_dir() else "csv"
    makers = [DATASETS[dataset], *[split_texts] * (dataset in TEXTS)]
    given = ("texts", "labels") if dataset in TEXTS else ("shots", "queries")
    options = checked(f"{name}: dataset_kwargs.", options, makers, given)
    try:
        if dataset in CURVES:
            return CURVES[dataset](shots=shots, queries=queries, **options)
        if dataset in TEXTS:
            taken = signature(TEXTS[dataset]).parameters
            texts = TEXTS[dataset](**{option: value for option, value in options.items() if option in taken})
            further = {option: value for option, value in options.items() if option not in taken}
            data, vocabulary = split_texts(*texts, **further)
            sizes = {"vocabulary": len(vocabulary), "encode": vocabulary.encode}
            return NWayKShot(name, data, ways, shots, queries, **sizes)
        if dataset == "csv":
            data, standardise = load_csv(**options)
            return NWayKShot(name, data, ways, shots, queries, encode=standardise)
        return NWayKShot(name, CLASSES[dataset](**options), ways, shots, queries)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error


def describe() -> list[tuple[str, str]]:
    """Names and first sentences."""
    return [(name, first_sentence(made)) for name, made in DATASETS.items()]

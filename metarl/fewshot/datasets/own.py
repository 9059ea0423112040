"""A person's own examples, as `FewShotLearner.prepare` takes them: pictures in folders, rows and texts in CSV files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metarl.fewshot.datasets.folders import Images, class_folders, folders, pictures
from metarl.fewshot.datasets.table import read_table
from metarl.fewshot.datasets.text import load_texts, read_texts
from metarl.fewshot.episodes import EpisodeSource


def read_support(
    path: str | Path, source: EpisodeSource, label: str = "label", text: str = "text", invert: bool = False
) -> tuple[np.ndarray | list[str], list[str]]:
    """Examples `[S, ...]`, or texts, and a label for each, to adapt a learner to that was trained on `source`.

    Args:
        path: a folder with a folder of pictures for each class; otherwise a CSV file with a column of labels, which in
            regression are targets.
        source: whose examples these are to be like.
        label: the column of labels.
        text: the column of texts, where the learner reads texts.
        invert: of pictures, for dark ink on light paper where the learner knows light on dark.

    Raises:
        ValueError: in one line, at what does not fit or cannot be read.
    """
    _check_exists(path)
    if Path(path).is_dir():
        files = class_folders(folders(path))
        labels = [name for name, paths in files.items() for _ in paths]
        return _pictures([file for paths in files.values() for file in paths], source, invert), labels
    if source.spec.vocabulary:
        return load_texts(path, text, label)
    return _rows(path, source, label)


def read_queries(
    path: str | Path, source: EpisodeSource, label: str = "label", text: str = "text", invert: bool = False
) -> tuple[np.ndarray | list[str], list[str]]:
    """Examples `[Q, ...]`, or texts, without labels, and what to call each: files of a folder, or rows from 1.

    Arguments and errors as in `read_support`; a column `label` is passed over.
    """
    _check_exists(path)
    if Path(path).is_dir():
        files = pictures(path)
        if not files:
            raise ValueError(f"path must hold at least 1 picture, got none in {path}")
        return _pictures(files, source, invert), [file.name for file in files]
    if source.spec.vocabulary:
        texts = read_texts(path, text)
        return texts, [str(number) for number in range(1, len(texts) + 1)]
    x, _ = _rows(path, source, label, labelled=False)
    return x, [str(number) for number in range(1, len(x) + 1)]


def _check_exists(path: str | Path) -> None:
    if not Path(path).exists():
        raise ValueError(f"path must be a folder or a file, got {path}, which does not exist")


def _pictures(files: Sequence[Path], source: EpisodeSource, invert: bool) -> np.ndarray:
    shape = source.spec.shape
    if not source.spec.pictures:
        raise ValueError(f"path must be a CSV file for examples of shape {shape}, got a folder, {files[0].parent}")
    images = Images(files, shape[1:], grayscale=shape[0] == 1, invert=invert)
    return images[np.arange(len(files))]


def _rows(path: str | Path, source: EpisodeSource, label: str, labelled: bool = True) -> tuple[np.ndarray, list[str]]:
    shape = source.spec.shape
    if len(shape) != 1:
        raise ValueError(f"path must be a folder of pictures for examples of shape {shape}, got {path}")
    columns = getattr(getattr(source, "encode", None), "columns", None)
    x, labels, _ = read_table(path, label, labelled, columns)
    return x, labels

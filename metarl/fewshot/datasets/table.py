"""Tables: CSV files with a column of labels."""

import csv
import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarl.fewshot.classes import Classes
from metarl.fewshot.datasets.folders import split_classes


@dataclass(frozen=True)
class Standardise:
    """Columns brought to mean 0 and standard deviation 1, over the examples that it was made from."""

    columns: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`x [M, columns]` of float64, in those units, as float32."""
        try:
            x = np.asarray(x, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"rows must be of numbers: {error}") from error
        if x.ndim != 2:
            raise ValueError(f"rows must be [M, {len(self.mean)}], got shape {x.shape}")
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"rows must have {len(self.mean)} features, got {x.shape[1]}")
        return ((x - self.mean) / self.deviation).astype(np.float32)


def load_csv(
    path: str | Path, label: str = "label", shares: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> tuple[dict[str, Classes], Standardise]:
    """Your own CSV file with a header, one column of labels and else numbers: `--data PATH`.

    Examples are rows `[columns]` of float32. Every column has mean 0 and standard deviation 1 over the examples of the
    TRAINING classes; a column that is constant there is only shifted. What does that is returned too, for further examples.

    Args:
        path: the file, in UTF-8.
        label: the column that names each row's class.
        shares: of the classes for training, validation and test; a split of share 0 is left out.
        seed: of the split.

    Raises:
        ValueError: in one line that names the row (the header is row 1) and the column, at a cell that is no finite
            number or an empty label; and at a file that is no such table.
    """
    x, labels, columns = read_table(path, label, hint=f" (texts are read by {named('texts', path)})")
    splits = split_classes(Classes.from_labels(x, labels), shares, seed)
    train = x[np.concatenate(splits["train"].members)]
    standardise = Standardise(columns, train.mean(0), np.where(np.ptp(train, 0) > 0, train.std(0), 1.0))
    x = standardise(x)
    return {name: Classes(x, part.members, part.names) for name, part in splits.items()}, standardise


def read_table(
    path: str | Path, label: str, labelled: bool = True, columns: Sequence[str] | None = None, hint: str = ""
) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """Features `[M, columns]` of float64, labels, and the names of the columns, from a CSV file; errors as in `load_csv`.

    Args:
        path: the file.
        label: the column of labels.
        labelled: otherwise there are no labels, and a column `label` is passed over.
        columns: those to read, in this order; by default all.
        hint: what is said of a cell that is no number.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.reader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} must be a CSV file in UTF-8, got one with: {error}") from error
    header = rows[0] if rows else []
    if labelled and label not in header:
        raise ValueError(f"label must be a column of {path} (it has {', '.join(header) or 'none'}), got {label!r}")
    if len(set(header)) < len(header) or len(header) <= (label in header):
        raise ValueError(f"{path} must have columns of different names, and one besides {label}, got {', '.join(header)}")
    columns = tuple(columns or (name for name in header if name != label))
    if not {*columns} <= {*header}:
        raise ValueError(f"{path} must have columns {', '.join(columns)}, got {', '.join(header)}")
    x, labels = [], []
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue  # an empty line
        if len(row) != len(header):
            raise ValueError(f"{path}: row {line} must have {len(header)} cells, got {len(row)}")
        cells = dict(zip(header, row, strict=True))
        name = cells.get(label, "")
        whose = f" ({label} {name.strip()!r})" if labelled else ""
        if labelled and not name.strip():
            raise ValueError(f"{path}: row {line}, column {label} must name a class, got {name!r}")
        labels += [name.strip()] * labelled
        x.append([number(cells[column], f"{path}: row {line}{whose}, column {column}", hint) for column in columns])
    if not x:
        raise ValueError(f"{path} must have at least 1 row below its header, got none")
    return np.array(x), labels, columns


def named(dataset: str, path: str | Path) -> str:
    """The options that say that `path` is a data set of this name."""
    return f"--dataset {dataset} --dataset-kwargs '{{path: {path}}}'"


def number(cell: str, where: str, hint: str = "") -> float:
    """What `cell` says; a `ValueError` that names `where`, and gives the `hint`, unless it is a finite number."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, got {reprlib.repr(cell)}{hint}")
    return value

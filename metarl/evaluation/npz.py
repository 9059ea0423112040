"""Arrays and a header of plain values in one `.npz` file without pickles."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np


def save_npz(path: str | Path, header: Any, arrays: Mapping[str, np.ndarray], default: Callable[[Any], Any]) -> Path:
    """Write `header`, as JSON whose further types `default` turns into plain ones, and `arrays`; return the path."""
    path = Path(path).with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, header=np.array(json.dumps(header, default=default)), **arrays)
    return path


@contextmanager
def reading_npz(path: str | Path, what: str) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """The header and the arrays; what goes wrong with them inside is a `ValueError` that says `path` is not `what`."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        yield json.loads(str(arrays.pop("header"))), arrays
    except FileNotFoundError:
        raise
    except (KeyError, IndexError, OSError, TypeError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not {what}: {error}") from error

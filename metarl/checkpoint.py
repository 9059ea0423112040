"""Checkpoints: nested Python values and tensors in one file, written all or nothing and read without running code.

A checkpoint is an ordinary zip archive (`unzip -l` lists it) of

- `state.json`: the structure, with everything that JSON can hold,
- `tensors.pt`: a list of tensors for `torch.load(weights_only=True)`,
- `arrays/0.npy`, ...: NumPy arrays, without pickles,

and its last bytes, the archive's comment, are the SHA-256 of all bytes before them. So one hash covers the archive's own
headers too, and no single altered byte goes unnoticed. The hash guards against damage, not against forgery; a forged
file still runs no code. Equal states give equal files.
"""

import hashlib
import io
import json
import math
import os
import re
import uuid
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

_FORMAT = 1
_SEAL = b"sha256:"
_DIGEST_LENGTH = 64


class CheckpointError(ValueError):
    """A checkpoint cannot be read: truncated, altered or of another kind. The message names the file and the reason."""


def save_checkpoint(path: str | Path, state: dict) -> Path:
    """Write `state` to `path` and return the path. Whatever goes wrong, `path` holds the old file or the whole new one.

    `state` may nest dictionaries (any primitive or tuple as keys), lists and tuples of None, bool, int of any size,
    float, str, NumPy arrays and scalars, and tensors; all come back exactly. Exceptions: tensors come back detached, on
    the CPU and no longer sharing memory, an `OrderedDict` as a dict.

    Raises:
        TypeError: when `state` holds anything else, naming where. Nothing is written then.
        OSError: when the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _pack(state))
    return path


def load_checkpoint(path: str | Path) -> dict:
    """Read what `save_checkpoint` wrote. No code from the file is run, whoever made it.

    Raises:
        CheckpointError: when the file is truncated, altered or not a checkpoint.
        OSError: when it cannot be opened or read.
    """
    data = Path(path).read_bytes()
    body, seal = data[:-_DIGEST_LENGTH], data[-_DIGEST_LENGTH:]
    if not body.endswith(_SEAL):
        raise CheckpointError(f"{path} is truncated, altered or not a checkpoint: it does not end in its SHA-256")
    if hashlib.sha256(body).hexdigest().encode() != seal:
        raise CheckpointError(f"{path} is truncated or altered: its contents do not match its SHA-256")
    try:
        return _unpack(data)
    except Exception as error:  # the hash is right, so these bytes were made elsewhere, and anything may be wrong with them
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} does not hold a readable checkpoint: {type(error).__name__}: {reason}") from error


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace the file `path` by `data` in one step that survives a crash. No temporary file is left by an exception."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the new name durable
    finally:
        os.close(folder)


class CheckpointStore:
    """The last `keep` checkpoints of one run, in a folder that one process writes to.

    Raises:
        ValueError: when `keep` is below 1. With 1, nothing is left to fall back on when the newest is damaged.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints in the folder, ordered by step."""
        found = [path for path in self.folder.glob("step_*.ckpt") if re.fullmatch(r"step_\d+", path.stem)]
        return sorted(found, key=_step)

    def save(self, step: int, state: dict) -> Path:
        """Write the checkpoint of `step`, which is the latest from now on, and remove those that are not kept.

        Checkpoints of later steps, left over by a run that was taken back to an earlier one, are removed too.
        Raises as `save_checkpoint`; all older checkpoints are still there then.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        path = save_checkpoint(self.folder / f"step_{step:012d}.ckpt", state)
        kept = [old for old in self.paths() if _step(old) <= step][-self.keep :]
        abandoned = self.folder.glob(".step_*.ckpt.*.tmp")  # by processes that were killed while they wrote
        for old in {*self.paths(), *abandoned} - {*kept}:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> tuple[Path, dict] | None:
        """The newest readable checkpoint and its path, or None where none was ever saved.

        Warns (`UserWarning`) about each newer one that had to be skipped, with the reason.

        Raises:
            CheckpointError: when there are checkpoints but none is readable, with every reason.
        """
        problems: list[str] = []
        for path in reversed(self.paths()):
            try:
                state = load_checkpoint(path)
            except (CheckpointError, OSError) as error:
                problems.append(str(error))
                continue
            if problems:
                warnings.warn(f"falling back to {path.name}: {'; '.join(problems)}", stacklevel=2)
            return path, state
        if problems:
            raise CheckpointError(f"no checkpoint in {self.folder} is readable: {'; '.join(problems)}")
        return None


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _pack(state: dict) -> memoryview:
    tensors: list[torch.Tensor] = []
    arrays: list[np.ndarray] = []
    document = {"format": _FORMAT, "state": _encode(state, "state", tensors, arrays)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:

        def member(name: str) -> IO[bytes]:  # ZipInfo's fixed date: equal states give equal files
            return archive.open(zipfile.ZipInfo(name), "w", force_zip64=True)

        with member("state.json") as file:
            file.write(json.dumps(document, allow_nan=False).encode())
        with member("tensors.pt") as file:
            torch.save(tensors, file)
        for i, array in enumerate(arrays):
            with member(f"arrays/{i}.npy") as file:
                np.save(file, array, allow_pickle=False)
        archive.comment = _SEAL + b"0" * _DIGEST_LENGTH
    data = buffer.getbuffer()
    data[-_DIGEST_LENGTH:] = hashlib.sha256(data[:-_DIGEST_LENGTH]).hexdigest().encode()
    return data


def _unpack(data: bytes) -> dict:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        document = json.loads(archive.read("state.json"))
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']}, and this version of metarl reads format {_FORMAT}")
        tensors = torch.load(io.BytesIO(archive.read("tensors.pt")), map_location="cpu", weights_only=True)
        count = sum(name.startswith("arrays/") for name in archive.namelist())
        files = [io.BytesIO(archive.read(f"arrays/{i}.npy")) for i in range(count)]
    return _decode(document["state"], tensors, [np.load(file, allow_pickle=False) for file in files])


def _encode(value: Any, where: str, tensors: list[torch.Tensor], arrays: list[np.ndarray]) -> Any:
    """`value` as JSON; what JSON lacks becomes an object with one key that starts with `$`."""

    def inner(part: Any, index: Any) -> Any:
        return _encode(part, f"{where}[{index!r}]", tensors, arrays)

    kind = type(value)  # exact types: what a subclass adds would be lost without a word
    if kind in (type(None), bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind in (dict, OrderedDict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: inner(part, key) for key, part in value.items()}
        return {"$dict": [[inner(key, key), inner(part, key)] for key, part in value.items()]}
    if kind is list:
        return [inner(part, index) for index, part in enumerate(value)]
    if kind is tuple:
        return {"$tuple": [inner(part, index) for index, part in enumerate(value)]}
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        tensors.append(value.detach().to("cpu", copy=True))  # a copy, because a view would be saved with all its storage
        return {"$tensor": len(tensors) - 1}
    if (kind is np.ndarray or isinstance(value, np.generic)) and not value.dtype.hasobject:
        arrays.append(np.asarray(value))
        return {"$array" if kind is np.ndarray else "$scalar": len(arrays) - 1}
    raise TypeError(f"a checkpoint cannot hold {where}, which is of type {kind.__module__}.{kind.__qualname__}")


def _decode(value: Any, tensors: list[torch.Tensor], arrays: list[np.ndarray]) -> Any:
    def inner(part: Any) -> Any:
        return _decode(part, tensors, arrays)

    if isinstance(value, list):
        return [inner(part) for part in value]
    if not isinstance(value, dict):
        return value
    tag, content = next(iter(value.items()), ("", None))
    if not tag.startswith("$"):
        return {key: inner(part) for key, part in value.items()}
    match tag:
        case "$float":
            return float(content)
        case "$dict":
            return {inner(key): inner(part) for key, part in content}
        case "$tuple":
            return tuple(inner(part) for part in content)
        case "$tensor":
            return tensors[content]
        case "$array":
            return arrays[content]
        case "$scalar":
            return arrays[content][()]
    raise ValueError(f"unknown entry {tag!r}")

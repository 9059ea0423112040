"""Run folders: where one training keeps its config, checkpoints, logs and results, and how it keeps others out."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from metarl.checkpoint import write_atomically
from metarl.yaml_text import read_yaml, to_yaml


class RunFolderError(ValueError):
    """A folder cannot be used as asked. The message is one line that names it, the reason and what to do."""


class RunFolder:
    """One training's folder. Make it with `create` or `open`; close it (or leave its `with` block) to let others in.

    Attributes: `path`, `config` (as read back from `config.yaml`), and the paths `config_file`, `checkpoints` (a folder),
    `tensorboard` (a folder), `progress_file`, `adaptation_csv`, `adaptation_png` and `report`. Only `config_file` is made
    here.
    """

    def __init__(self, path: str | Path, lock: int | None = None):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.progress_file = self.path / "progress.json"
        self.adaptation_csv = self.path / "adaptation.csv"
        self.adaptation_png = self.path / "adaptation.png"
        self.report = self.path / "report.html"
        self._lock = lock
        self.config = read_yaml(self.config_file)

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> "RunFolder":
        """Start a new run in `path`, made where missing, and hold it against other processes until closed.

        Raises:
            RunFolderError: when a live process uses the folder (named with its pid), or a run was made there before.
            TypeError: when `config` holds values other than mappings, sequences and primitives.
            OSError: when the folder cannot be written to.
        """
        path = Path(path)
        try:
            text = to_yaml(config)
        except TypeError as error:
            raise TypeError(f"config {error}") from None
        path.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
        try:
            if (path / "config.yaml").exists() or (path / "checkpoints").exists():
                raise RunFolderError(
                    f"{path} already holds a run: continue it with `metarl resume {path}`, or choose another folder"
                )
            write_atomically(path / "config.yaml", text.encode())
            return cls(path, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open(cls, path: str | Path, *, exclusive: bool = False) -> "RunFolder":
        """The run in `path`: to read from it, also while it trains, or `exclusive`, to continue it.

        Raises:
            RunFolderError: when `path` holds no run, or when `exclusive` and a live process uses it (named with its pid).
            ValueError: when its `config.yaml` is not readable.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path} is not a run folder: it has no config.yaml")
        lock = _acquire(path) if exclusive else None
        try:
            return cls(path, lock)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    def progress(self) -> dict[str, Any]:
        """What the training wrote at its last checkpoint; empty before that."""
        try:
            return json.loads(self.progress_file.read_text())
        except (OSError, ValueError):
            return {}

    def close(self) -> None:
        """Let other processes use the folder. Closing twice does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _acquire(path: Path) -> int:
    """The descriptor of the folder's lock file, locked. The lock goes with the process and its forks, however they end."""
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode() or "unknown"
        os.close(lock)
        raise RunFolderError(f"{path} is in use by process {holder}: wait for it to end, or choose another folder") from None
    except BaseException:
        os.close(lock)
        raise
    return lock

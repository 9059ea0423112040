"""Run folders: where one training keeps its config, checkpoints, logs and results, and how it keeps others out."""

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from metarl.checkpoint import write_atomically


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
            text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        except yaml.representer.RepresenterError as error:
            raise TypeError(f"config holds {error.args[-1]!r}, which config.yaml cannot hold") from None
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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, read without running code. Numbers may be written `1e-4`; keys may not be repeated.

    Raises:
        ValueError: in one line that names the file and the line, when it is not YAML, asks for Python objects
            (`!!python/...`), repeats a key, or holds something other than a mapping.
        OSError: when it cannot be opened or read.
    """
    data = Path(path).read_bytes()
    try:
        content = yaml.load(data.decode(), Loader=_Loader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text") from None
    except yaml.reader.ReaderError as error:
        line = data.decode().count("\n", 0, error.position) + 1
        raise ValueError(f"{path}, line {line}: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{path}, line {error.problem_mark.line + 1}: {error.problem}") from None
    except RecursionError:
        raise ValueError(f"{path}, line 1: nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}, line 1: must hold a mapping of names to values, got {type(content).__name__}")
    return content


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


class _Loader(yaml.SafeLoader):
    """The safe loader, with an error that names the line for repeated keys and for values that do not fit their tag."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is repeated", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):
            problem = f"{node.value!r} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


class _Dumper(yaml.SafeDumper):
    """The safe dumper, quoting the strings that `_Loader` would read as numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a value used twice is written twice: readable


# PyYAML follows YAML 1.1, where `1e-4` is a string: a trap in learning rates. Read it as YAML 1.2 does.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"])

"""Command-line options from dataclasses: tyro reads them, and what is wrong is told in one line."""

import contextlib
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

import gymnasium as gym
import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from metarl.plain import check_known
from metarl.yaml_text import parse_yaml

T = TypeVar("T")

PRESETS = Path(__file__).parent / "presets"
"""Where the configs that come with the package lie."""

_DECORATION = re.compile(r"\x1b\[[0-9;]*m|[│╭╮╰╯]")
_RULE = re.compile(r"[─-]*")
_registry = ConstructorRegistry()


def parse_options(cls: type[T], args: Sequence[str], *, prog: str, default: T | None = None, description: str = "") -> T:
    """An instance of the dataclass `cls` from command-line arguments; `--help` prints and exits.

    Args:
        cls: a dataclass; docstrings under its fields are their help.
        args: the arguments.
        prog: what the program is called in the help.
        default: an instance whose values hold where `args` say nothing.
        description: the help's first lines; the class docstring by default.

    Raises:
        ValueError: in one line, when the arguments do not fit.
    """
    return _run(cls, args, prog, default, description=description or None)


def parse_known_options(cls: type[T], args: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """As `parse_options`, but leaves what it does not know, `--help` included, and returns it too."""
    return _run(cls, args, prog, None, add_help=False, return_unknown_args=True)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The file of a preset, which comes with the package or is a path itself. A `ValueError` where there is none."""
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix in (".yaml", ".yml"):
        raise ValueError(f"--preset {name}: there is no such file")
    check_known(f"preset {name!r}", name, preset_names())
    return PRESETS / f"{name}.yaml"


def numbered(path: Path) -> Path:
    """The first of path-1, path-2, ... that does not exist."""
    number = 1
    while (numbered := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return numbered


def literals(args: Sequence[str], prefix: str) -> dict[str, Any]:
    """Values of options `--PREFIX.NAME VALUE`, by name, as YAML says what they are."""
    pairs = itertools.pairwise(arg for part in args for arg in part.split("=", 1))
    start = f"--{prefix}."
    return {n.removeprefix(start).replace("-", "_"): _literal(value) for n, value in pairs if n.startswith(start)}


def _literal(text: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML, {' '.join(str(getattr(error, 'problem', error)).split())}: {text!r}") from None


def _run(cls: type, args: Sequence[str], prog: str, default: Any, **options: Any) -> Any:
    errors = io.StringIO()
    if default is not None:
        options["default"] = default
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, args=list(args), prog=prog, registry=_registry, **options)
    except (TypeError, gym.error.Error) as error:  # of a dataclass that was given these values
        raise ValueError(f"{error} (see {prog} --help)") from error
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ValueError(f"{_one_line(errors.getvalue())} (see {prog} --help)") from None


def _one_line(box: str) -> str:
    """What tyro says in a box: the problem, and an option that may have been meant."""
    title, *lines = [_DECORATION.sub("", line).strip() for line in box.splitlines()]
    parts = [
        list(part) for is_rule, part in itertools.groupby(lines, lambda line: bool(_RULE.fullmatch(line))) if not is_rule
    ]
    problem = " ".join(parts[0]).removesuffix(" (required)") if parts else title
    if problem.startswith("Unrecognized"):
        meant = [line.split()[0].rstrip(",") for part in parts[1:] for line in part if line.startswith("--")]
        unknown = problem.partition(": ")[2]
        meant.sort(key=lambda option: ("." in option) != ("." in unknown.split(",")[0]))  # of equally near ones, the like
        return f"unknown options: {unknown}" + (f"; did you mean {meant[0]}?" if meant else "")
    problem = re.sub(r"^Error parsing (--\S+: |\S+: )", lambda m: m[1] if m[1].startswith("--") else "", problem)
    return problem[:1].lower() + problem[1:]


@_registry.primitive_rule
def _integers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Whole numbers may be written 3e6 or 3_000_000."""
    if info.type is not int:
        return None

    def parse(args: list[str]) -> int:
        try:
            return int(args[0])
        except ValueError:
            pass
        try:
            value = float(args[0])
        except ValueError:
            value = float("nan")
        if not value.is_integer():
            raise ValueError(f"expected a whole number, got {args[0]!r}")
        return int(value)

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@_registry.primitive_rule
def _mappings(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Mappings are written as YAML (of which JSON is a part): "{length: [0.3, 1.0]}"."""
    if not (isinstance(kind := get_origin(info.type) or info.type, type) and issubclass(kind, Mapping)):
        return None

    def parse(args: list[str]) -> dict[str, Any]:
        value = _literal(args[0])
        if not isinstance(value, dict):
            raise ValueError(f"expected a mapping such as '{{name: value}}', got {args[0]!r}")
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{NAME: VALUE, ...}",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [yaml.safe_dump(dict(value), default_flow_style=True, width=1000).strip()],
    )

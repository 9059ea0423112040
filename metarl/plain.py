"""Dataclasses from plain values (of YAML, JSON or a command line), checked strictly, and what their fields mean."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def from_plain(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `cls` from the plain `values` of its fields.

    Args:
        cls: a dataclass; its fields may be dataclasses too.
        values: the fields by name; those left out keep their defaults.
        where: what error messages put before a field's name, such as `"evaluation."`.

    Raises:
        ValueError: in one line, at an unknown name, a missing one, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in values:
        check_known(f"{where}{name}", name, fields)
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}{name} must be given")
    hints = get_type_hints(cls)
    return cls(**{name: convert(value, hints[name], f"{where}{name}") for name, value in values.items()})


def configured(config_class: type[T], config: T | None, hyperparameters: Mapping[str, Any]) -> T:
    """`config`, or that of the defaults, with `hyperparameters` by name on top.

    Raises:
        TypeError: at a config of another class, and at unknown names.
        ValueError: at values that are not of the field's type, or out of range.
    """
    known = [f.name for f in dataclasses.fields(config_class)]
    if unknown := sorted(set(hyperparameters) - set(known)):
        raise TypeError(f"unknown hyperparameter {unknown[0]!r}: {config_class.__name__} has {', '.join(known)}")
    if config is not None and not isinstance(config, config_class):
        raise TypeError(f"config must be {config_class.__name__}, got {type(config).__name__}")
    hints = get_type_hints(config_class)
    checked = {name: convert(value, hints[name], name) for name, value in hyperparameters.items()}
    return dataclasses.replace(config or config_class(), **checked)


def shallow(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass instance by name."""
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


def check_known(title: str, name: Any, known: Iterable[str]) -> None:
    """Raise a `ValueError`, with a near name if there is one, unless `name` is among `known`."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{title} is unknown{hint}: known are {', '.join(known)}")


def check_compiler(option: str) -> None:
    """Raise a `ValueError` unless there is the C++ compiler that `option` needs."""
    if not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "c++")))):
        raise ValueError(f"{option} needs a C++ compiler: none of g++, clang++ and c++ is installed, and CXX names none")


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`; lists become tuples where `hint` says so, whole floats such as 3e6 integers.

    Raises:
        ValueError: naming `name`, what it must be, and the value.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        for option in args:
            try:
                return convert(value, option, name)
            except ValueError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin in (tuple, list, Sequence):
        if isinstance(value, list | tuple):
            items = args if origin is tuple and args[-1] is not ... else args[:1] * len(value)
            if len(items) == len(value):
                parts = (
                    convert(part, item, f"{name}[{i}]") for i, (part, item) in enumerate(zip(value, items, strict=True))
                )
                return list(parts) if origin is list else tuple(parts)
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {convert(k, args[0], name): convert(part, args[1], f"{name}.{k}") for k, part in value.items()}
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_plain(hint, value, f"{name}.")
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, Integral | float) and not isinstance(value, bool) and value == value // 1:
            return int(value)
    elif not isinstance(hint, type) or isinstance(value, hint):
        return value
    raise ValueError(f"{name} must be {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (tuple, list, Sequence):
        if origin is tuple and args[-1] is not ...:
            return f"a list of {len(args)} values: {', '.join(map(_describe, args))}"
        return f"a list, of which each is {_describe(args[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping of names to values"
    return _NAMES.get(hint, str(hint))


def first_sentence(thing: Any) -> str:
    """The first sentence of the docstring, on one line."""
    paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<!\bal\.)(?<=\.) (?=[A-Z`])", paragraph)[0]


def field_sentences(cls: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and its bases, each on one line."""
    sentences: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
            for statement, following in itertools.pairwise(body):
                match statement, following:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        sentences[name] = " ".join(text.split())
    return {field.name: sentences.get(field.name, "") for field in dataclasses.fields(cls)}


def check_count(name: str, value: int, most: int | None = None, least: int = 1) -> int:
    """`value` if it is an integer from `least` to `most`, else a `ValueError`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bound = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {bound}, got {value!r}")
    return int(value)

"""Options of functions and classes by name, as configs hold them: checked before anything is made of them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from metarl.plain import check_known, convert


def fixed(options: Mapping[str, Any], learner: type, **own: Any) -> dict[str, Any]:
    """`options` with those that make a `learner` what its name says.

    Raises:
        ValueError: in one line, at other values of these.
    """
    for name, value in own.items():
        if options.get(name, value) != value:
            raise ValueError(f"{name} must be {value} for {learner.__name__}, got {options[name]}")
    return {**options, **own}


def checked(where: str, options: Mapping[str, Any], makers: Iterable[Callable], given: Iterable[str] = ()) -> dict[str, Any]:
    """`options` as the parameters of the `makers` are annotated.

    Args:
        where: what error messages put before an option's name, such as `"glyphs: dataset_kwargs."`.
        options: by name.
        makers: what takes them, each some.
        given: parameters that are no options.

    Raises:
        ValueError: in one line, at an unknown name, a missing one, or a value of the wrong type.
    """
    known = {p.name: p for make in makers for p in inspect.signature(make).parameters.values() if p.kind != p.VAR_KEYWORD}
    known = {name: parameter for name, parameter in known.items() if name not in given}
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"{where}{name} must be given")
    values = {}
    for name, value in options.items():
        if not known:
            raise ValueError(f"{where}{name} is unknown: there are no options")
        check_known(f"{where}{name}", name, known)
        kind = known[name].annotation
        values[name] = value if kind is inspect.Parameter.empty else convert(value, kind, f"{where}{name}")
    return values

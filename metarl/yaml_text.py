"""YAML as people write it: read safely and strictly, numbers like `1e-4` as numbers, and written so that it reads back."""

import re
from pathlib import Path
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """What a piece of YAML says, read as `read_yaml` reads files. `yaml.YAMLError` where it is none."""
    return yaml.load(text, Loader=_Loader)


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


def to_yaml(data: Any) -> str:
    """Mappings, sequences and primitives as YAML that `read_yaml` reads back. `TypeError` at anything else."""
    try:
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        raise TypeError(f"holds {error.args[-1]!r}, which YAML cannot hold") from None


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

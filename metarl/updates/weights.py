"""Update rules in files: safetensors with the rule's learned numbers, and how to make the rule as metadata.

Rules that were trained lie in the package, in `FOLDER`, as NAME.safetensors; the card NAME.md beside each says what it was
trained on, for how long, where it wins and where it loses. Metadata of a file, all text:

- `format`: "metarl update rule 1"
- `rule`: the rule's name in `RULES`
- `options`: its keyword arguments, as JSON
- `rate`: the step size that it was trained at
- `sha256`: of all this and of the numbers. It guards against damage, not against forgery; a forged file runs no code.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metarl.checkpoint import write_atomically
from metarl.plain import check_known
from metarl.updates import RULES, UpdateRule

FOLDER = Path(__file__).parent / "weights"
"""Where the rules that come with the package lie."""
SUFFIX = ".safetensors"
FORMAT = "metarl update rule 1"


@dataclasses.dataclass(frozen=True)
class SavedRule:
    """An update rule apart from the parameters that it is to change.

    Attributes:
        name: in `RULES`.
        options: keyword arguments of the rule: what JSON can hold.
        rate: the step size that it was trained at.
        weights: what of it is learned, by name.
    """

    name: str
    options: dict[str, Any]
    rate: float
    weights: dict[str, Tensor]

    def make(self, params: Mapping[str, Tensor], rate: float | None = None) -> UpdateRule:
        """The rule for `params`, without a task axis; on their device, in their precision. Leaves random generators alone.

        Raises:
            ValueError: in one line, when there is no such rule, or its options or weights do not fit.
        """
        check_known(f"rule {self.name!r}", self.name, RULES)
        like = next(iter(params.values()))
        try:
            with torch.random.fork_rng(devices=[]):  # weights that are drawn only to be replaced
                rule = RULES[self.name](params, self.rate if rate is None else rate, **self.options)
            if self.weights:
                rule.load_state_dict(self.weights)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).replace(f"{RULES[self.name].__name__}.__init__() ", "").split())
            raise ValueError(f"rule {self.name!r} does not fit: {reason}") from None
        return rule.to(device=like.device, dtype=like.dtype)


def save_rule(
    path: str | Path, rule: UpdateRule, name: str, options: Mapping[str, Any] | None = None, rate: float | None = None
) -> Path:
    """Write `rule` to `path`, whole or not at all, and return the path.

    Args:
        path: ends in `.safetensors`; folders are made where missing.
        rule: as made by `RULES[name](params, rate, **options)`, and then trained.
        name: in `RULES`.
        options: what JSON can hold without change.
        rate: the step size that it was trained at; None: that of `rule`.

    Raises:
        ValueError: when the path ends otherwise, the name is not that of the rule, JSON cannot hold the options, or a
            number is not finite.
        OSError: when the file cannot be written.
    """
    path, options = Path(path), dict(options or {})
    if path.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}, got {str(path)!r}")
    if RULES.get(name) is not type(rule):
        raise ValueError(f"name must be that of {type(rule).__name__} in RULES, got {name!r}")
    try:
        text = json.dumps(options, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"options must be what JSON can hold: {error}") from None
    if json.loads(text) != options:
        raise ValueError(f"options must be what JSON can hold without change, got {options!r}")
    rate = float(rule.rate) if rate is None else float(rate)
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be above 0 and finite, got {rate}")
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in rule.state_dict().items()}
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"what the rule has learned must be finite, {key} is not")
    metadata = {"format": FORMAT, "rule": name, "options": text, "rate": repr(rate)}
    metadata["sha256"] = _digest(metadata, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    return path


def read_rule(name_or_path: str | Path) -> SavedRule:
    """A rule from a file (whose name ends in `.safetensors`), or one that comes with the package, by its name.

    Raises:
        ValueError: in one line, when there is no such file or name, or it is truncated, altered or of another kind.
    """
    path = _locate(name_or_path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is not a mapping)
    except FileNotFoundError:
        raise ValueError(f"weights: there is no file {path}") from None
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is truncated, altered or not a safetensors file: {reason}") from None
    if not metadata.get("format", "").startswith("metarl update rule"):
        raise ValueError(f"{path} holds no update rule: metarl's metadata are missing")
    if metadata.get("sha256") != _digest(metadata, tensors):
        raise ValueError(f"{path} is altered: its contents do not match its SHA-256")
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path} is of format {metadata['format']!r}, this version of metarl reads {FORMAT!r}")
    return SavedRule(metadata["rule"], json.loads(metadata["options"]), float(metadata["rate"]), tensors)


def load_rule(name_or_path: str | Path, params: Mapping[str, Tensor], rate: float | None = None) -> UpdateRule:
    """The rule that `save_rule` wrote, for `params` without a task axis.

    Args:
        name_or_path: as for `read_rule`.
        params: the parameters that it is to change: their shapes, order, device and precision.
        rate: the step size; None: that which it was trained at.

    Raises:
        ValueError: in one line, as `read_rule`, and when there is no such rule, or its options or numbers do not fit.
    """
    saved = read_rule(name_or_path)
    try:
        return saved.make(params, rate)
    except ValueError as error:
        raise ValueError(f"{_locate(name_or_path)}: {error}") from None


def shipped() -> list[str]:
    """Names of the rules that come with the package."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def card(name: str) -> str:
    """What is known of a rule that comes with the package, as Markdown.

    Raises:
        ValueError: when there is no such rule, or it has no card.
    """
    path = _locate(name).with_suffix(".md")
    try:
        return path.read_text()
    except FileNotFoundError:
        raise ValueError(f"weights: there is no card {path}") from None


def _locate(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == SUFFIX:
        return path
    try:
        check_known(f"weights {str(name_or_path)!r}", str(name_or_path), shipped())
    except ValueError as error:
        raise ValueError(f"{error}; a file's name ends in {SUFFIX}") from None
    return FOLDER / f"{name_or_path}{SUFFIX}"


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Over everything but the digest itself, in an order of its own."""
    about = [[key, str(value.dtype), list(value.shape)] for key, value in sorted(tensors.items())]
    told = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps([told, about], sort_keys=True).encode())
    for _, value in sorted(tensors.items()):
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""What every training is told, whatever it trains: the base of all configs that a run folder holds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

import torch
from stable_baselines3.common.utils import get_device

from metarl.plain import convert, from_plain
from metarl.yaml_text import read_yaml
from metarl_envs.family import check_at_least

T = TypeVar("T", bound="RunConfig")

CONFIGS: dict[str, type["RunConfig"]] = {}
"""Kinds of config by the name of the algorithm; a subclass of `RunConfig` puts itself in here."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training is told, whatever it trains."""

    algorithm: str
    """Name of the algorithm."""
    total_timesteps: int = 1_000_000
    """Steps to train for, in whole iterations."""
    seed: int = 0
    """Seed of everything random: equal configs give equal results."""
    threads: int = 1
    """CPU threads of PyTorch. Other numbers may change results in the last digits."""
    checkpoint_every: int = 200_000
    """Steps between checkpoints; each iteration saves one at most."""
    keep: int = 3
    """Number of checkpoints kept, the latest ones."""

    algorithms: ClassVar[tuple[str, ...]]
    """What `algorithm` may be."""
    commands: ClassVar[str] = "metarl"
    """What the commands for such runs begin with."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        CONFIGS.update((name, cls) for name in vars(cls).get("algorithms", ()))

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for name in (field.name for field in dataclasses.fields(self)):
            object.__setattr__(self, name, convert(getattr(self, name), hints[name], name))
        for name in ("total_timesteps", "threads", "checkpoint_every", "keep"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a config from a YAML file, running no code.

        Raises:
            ValueError: in one line that names the file, at what is not YAML, an unknown key, or a wrong value.
        """
        return from_values(cls, read_yaml(path), path)

    def plain(self) -> dict[str, Any]:
        """The config as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    def resolved(self) -> Self:
        """The same with the values that None stands for."""
        raise NotImplementedError

    def make_model(self) -> Any:
        """What is to be trained."""
        raise NotImplementedError

    def restore(self, state: dict[str, Any]) -> Any:
        """What was trained, as of `state`."""
        raise NotImplementedError


def from_values(cls: type[T], values: Mapping[str, Any], path: str | Path) -> T:
    """A config from the `values` in the file `path`; what is wrong with them is a `ValueError` that names the file."""
    check_kind(cls, values, path)
    try:
        return from_plain(cls, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_kind(cls: type[RunConfig], values: Mapping[str, Any], path: str | Path) -> None:
    """A `ValueError`, in one line, unless the `values` in the file `path` are of this kind of config."""
    algorithm = values.get("algorithm")
    kind = CONFIGS.get(algorithm, cls) if isinstance(algorithm, str) else cls
    if kind.commands != cls.commands:
        raise ValueError(f"{path}: algorithm is {algorithm}: use a command of `{kind.commands}`, not of `{cls.commands}`")
    if kind is not cls:
        raise ValueError(f"{path}: algorithm must be {', '.join(cls.algorithms)} here, got {algorithm}")


def check_device(name: str) -> None:
    """A `ValueError`, in one line, unless PyTorch knows a device of this name."""
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or another of PyTorch's, got {name!r}") from error


def check_available(device: str) -> None:
    """A `ValueError`, in one line, unless the device is here to be trained on: what is trained may be used on others."""
    if get_device(device).type != torch.device(device).type:
        raise ValueError(f"device must be one that is here, got {device!r}: PyTorch finds none")

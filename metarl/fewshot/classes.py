"""N-way K-shot episodes from examples that belong to classes (Vinyals et al. 2016, section 4.1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, combinations
from typing import Protocol, Self

import numpy as np

from metarl.fewshot.episodes import Episodes, EpisodeSource, TaskSpec
from metarl.plain import check_count, check_known


class Examples(Protocol):
    """An array `[M, ...]`, or what behaves like one where it is indexed, such as pictures that are read when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int: ...
    def __getitem__(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Classes:
    """Examples of several classes.

    Raises:
        ValueError: in one line, where the parts do not fit together, and at features that are not finite.
    """

    x: Examples
    """`[M, ...]`: pictures `[channels, height, width]` of uint8 (which become 0 to 1), numbers, or tokens of int64."""
    members: tuple[np.ndarray, ...]
    """For each class, which examples are its own."""
    names: tuple[str, ...]
    """Of the classes."""
    groups: tuple[str, ...] = ()
    """What each class belongs to, such as its script; nothing by default."""

    def __post_init__(self):
        if not len(self.names) == len(self.members):
            raise ValueError(f"names must be as many as members ({len(self.members)}), got {len(self.names)}")
        if self.groups and len(self.groups) != len(self.names):
            raise ValueError(f"groups must be as many as names ({len(self.names)}), got {len(self.groups)}")
        for name, indices in zip(self.names, self.members, strict=True):
            if len(np.unique(indices)) < len(indices):
                raise ValueError(f"members of class {name!r} must be different examples, got one of them twice")
            if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < len(self.x):
                raise ValueError(f"members of class {name!r} must be from 0 to {len(self.x) - 1}, got {np.max(indices)}")
        if isinstance(self.x, np.ndarray) and self.x.dtype.kind == "f":
            for name, indices in zip(self.names, self.members, strict=True):
                good = np.isfinite(self.x[indices]).all(tuple(range(1, self.x.ndim)))
                if not good.all():
                    raise ValueError(
                        f"features must be finite, but {(~good).sum()} of the {len(good)} examples of class {name!r} are not"
                    )

    @classmethod
    def from_labels(cls, x: Examples, labels: Sequence, groups: Sequence[str] | None = None) -> "Classes":
        """Examples with a label each; classes come in the order of their labels. `groups`: of each example."""
        labels = np.asarray(labels)
        if labels.ndim != 1:
            raise ValueError(f"labels must be one for each example, got an array of shape {labels.shape}")
        if len(labels) != len(x):
            raise ValueError(f"labels must be as many as examples ({len(x)}), got {len(labels)}")
        if (labels != labels).any():
            raise ValueError(f"labels must not be nan, but {(labels != labels).sum()} are")
        try:
            values, inverse = np.unique(labels, return_inverse=True)
        except TypeError:
            kinds = sorted({type(label).__name__ for label in labels})
            raise ValueError(f"labels must be of one kind, such as text or numbers, got {', '.join(kinds)}") from None
        members = tuple(np.flatnonzero(inverse == i) for i in range(len(values)))
        of_classes = () if groups is None else tuple(str(groups[indices[0]]) for indices in members)
        return cls(x, members, tuple(map(str, values)), of_classes)

    def __len__(self) -> int:
        return len(self.names)

    def select(self, chosen: Sequence[int]) -> "Classes":
        """Some of the classes, by number."""
        groups = tuple(self.groups[i] for i in chosen) if self.groups else ()
        return Classes(self.x, tuple(self.members[i] for i in chosen), tuple(self.names[i] for i in chosen), groups)

    def split(self, shares: Mapping[str, float], seed: int = 0, by_group: bool = False) -> dict[str, "Classes"]:
        """Disjoint parts by name, of about these shares of the classes, or of the groups, which then stay whole.

        Raises:
            ValueError: at shares below 0 or that are all 0, and where there are no groups to go by.
        """
        if not min(shares.values(), default=0.0) >= 0.0 or not 0.0 < sum(shares.values()) < float("inf"):
            raise ValueError(f"shares must be at least 0, and one of them above 0, got {dict(shares)}")
        if by_group and not self.groups:
            raise ValueError("groups must be given for a split by group, got none")
        check_count("seed", seed, least=0)
        units = sorted(set(self.groups)) if by_group else list(range(len(self)))
        order = np.random.default_rng(seed).permutation(len(units))
        bounds = np.rint(np.cumsum([0.0, *shares.values()]) / sum(shares.values()) * len(units)).astype(int)
        parts = {}
        for name, low, high in zip(shares, bounds[:-1], bounds[1:], strict=True):
            chosen = {units[i] for i in order[low:high]}
            parts[name] = self.select([i for i in range(len(self)) if (self.groups[i] if by_group else i) in chosen])
        return parts


Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""From examples `[M, ...]`, as numbers, to others of the same shape."""


@dataclass(frozen=True)
class NWayKShot(EpisodeSource):
    """Episodes of `ways` classes, with `shots` examples of each to learn from and `queries` others to be asked about.

    Support and query examples come class by class, in the order of the labels; which class has which label is random.

    A split need only suffice when episodes of it are asked for; `check` tells before.

    Raises:
        ValueError: in one line, at fewer than two ways, or no shots or queries.
    """

    name: str
    data: Mapping[str, Classes] = field(repr=False)
    """By split; their classes must be disjoint, which is checked where they are of one array."""
    ways: int = 5
    shots: int = 1
    queries: int = 15
    """For each class."""
    augment: Augmentation | None = None
    """Of all examples of training episodes."""
    vocabulary: int = 0
    """See `TaskSpec`."""
    encode: Callable | None = None
    """From what a person has, such as texts or rows of a table, to examples; None where it is the same."""

    def __post_init__(self):
        for name in ("ways", "shots", "queries"):
            check_count(name, getattr(self, name), least=2 if name == "ways" else 1)
        for split, classes in self.data.items():
            if len(classes.x.shape) < 2 or classes.x.dtype.kind not in "buif":
                got = f"{classes.x.dtype} of shape {tuple(classes.x.shape)}"
                raise ValueError(f"{split} of {self.name} must have examples [M, ...] of numbers, got {got}")
            _check_apart(classes, f"{split} of {self.name}")
        for (one, first), (other, second) in combinations(self.data.items(), 2):
            if first.x is second.x and (shared := {*chain(*first.members)} & {*chain(*second.members)}):
                raise ValueError(f"{one} and {other} of {self.name} must be disjoint, but share {len(shared)} examples")

    def check(self, split: str) -> None:
        """A `ValueError`, in one line, where `split` has fewer classes than ways, or a class fewer examples than needed."""
        check_known(f"split {split!r}", split, self.splits)
        classes, need = self.data[split], self.shots + self.queries
        if len(classes) < self.ways:
            raise ValueError(
                f"the {split} split of {self.name} must have at least ways = {self.ways} classes, got {len(classes)}: "
                "ask for fewer ways, or, where the data set takes shares, for others, such as "
                "dataset_kwargs {shares: [0.6, 0, 0.4]}"
            )
        for name, members in zip(classes.names, classes.members, strict=True):
            if len(members) < need:
                raise ValueError(
                    f"class {name!r} ({split} split of {self.name}) must have at least shots + queries = "
                    f"{self.shots} + {self.queries} = {need} examples, got {len(members)}: ask for fewer shots or queries"
                )

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that there are data for."""
        return tuple(self.data)

    @cached_property
    def spec(self) -> TaskSpec:
        """As in the base class."""
        first = next(iter(self.data.values()))
        return TaskSpec(
            shape=tuple(first.x.shape[1:]),
            outputs=self.ways,
            train_classes=len(self.data["train"]) if "train" in self.data else 0,
            vocabulary=self.vocabulary,
            shots=self.shots,
            unit=first.x.dtype == np.uint8 and not self.vocabulary,
        )

    def episodes(self, split: str, indices: Sequence[int], seed: int = 0) -> Episodes:
        """As in the base class; errors also as in `check`."""
        self.check(split)
        return super().episodes(split, indices, seed)

    def unaugmented(self) -> Self:
        """As in the base class."""
        return replace(self, augment=None)

    def episode(self, split: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """As in the base class."""
        data = self.data[split]
        classes = rng.choice(len(data), self.ways, replace=False)
        each = [rng.choice(data.members[c], self.shots + self.queries, replace=False) for c in classes]
        chosen = np.stack(each)  # [ways, shots + queries]
        x = as_numbers(data.x[chosen.ravel()], tokens=self.vocabulary > 0)
        if self.augment is not None and split == "train":
            x = self.augment(x, rng)
        x = x.reshape(*chosen.shape, *x.shape[1:])
        labels = np.arange(self.ways)
        support, query = (part.reshape(-1, *x.shape[2:]) for part in (x[:, : self.shots], x[:, self.shots :]))
        return support, labels.repeat(self.shots), query, labels.repeat(self.queries), classes.astype(np.int64)


def _check_apart(classes: Classes, what: str) -> None:
    """A `ValueError`, in one line, where an example belongs to two classes."""
    examples = np.concatenate([np.zeros(0, np.int64), *(np.asarray(members, np.int64) for members in classes.members)])
    order = np.argsort(examples, kind="stable")
    repeats = order[1:][np.diff(examples[order]) == 0]
    if len(repeats):
        again = repeats.min()
        first = np.flatnonzero(examples == examples[again])[0]
        owners = np.repeat(np.arange(len(classes)), [*map(len, classes.members)])
        one, other = (classes.names[owners[i]] for i in (first, again))
        raise ValueError(f"classes of {what} must be disjoint, but {one!r} and {other!r} share example {examples[again]}")


def as_numbers(x: np.ndarray, tokens: bool = False) -> np.ndarray:
    """Pictures of uint8 as numbers from 0 to 1, `tokens` as int64, the rest in single precision."""
    if x.dtype == np.uint8 and not tokens:
        return x.astype(np.float32) / np.float32(255.0)
    return x.astype(np.int64 if tokens else np.float32)

"""Episodes of few-shot learning: a support set to adapt to, and queries to be asked about.

An episode is a function of the seed, the split and its index, and of nothing else: one worker or many, all at once or one
by one, today or after a resume give the same.
"""

import dataclasses
import hashlib
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metarl.plain import check_count, check_known


class Episodes(NamedTuple):
    """`N` episodes with support sets of `S` examples and `Q` queries.

    Labels go from 0 to `C - 1`, the places of the classes in the episode; in regression they are targets.
    """

    support_x: Tensor  # [N, S, ...]
    support_y: Tensor  # [N, S] of int64, or [N, S, D]
    query_x: Tensor  # [N, Q, ...]
    query_y: Tensor  # [N, Q] of int64, or [N, Q, D]
    classes: Tensor  # [N, C] of int64: number of each label's class within its split; [N, 0] in regression

    def to(self, like: Tensor) -> "Episodes":
        """The same with numbers of the type of `like`, and on its device; labels and tokens stay whole numbers."""
        return Episodes(*(part.to(like if part.is_floating_point() else like.device) for part in self))

    def check(self, spec: "TaskSpec", what: str) -> None:
        """A `ValueError` in one line, beginning with `what`, unless these can be episodes of such tasks."""
        for part, x, y in (("support", self.support_x, self.support_y), ("query", self.query_x, self.query_y)):
            if x.shape[2:] != spec.shape:
                raise ValueError(f"{what} must have examples of shape {spec.shape}, got {part} {tuple(x.shape[2:])}")
            if not x.isfinite().all():
                raise ValueError(f"{what} must have finite features, got {part} ones that are not")
            if not spec.classification:
                if y.shape[2:] != (spec.outputs,) or not y.isfinite().all():
                    raise ValueError(
                        f"{what} must have finite targets [N, M, {spec.outputs}], got {part} ones {tuple(y.shape)}"
                        + " that are not finite" * (y.shape[2:] == (spec.outputs,))
                    )
            elif y.ndim != 2 or not 0 <= y.min() <= y.max() < spec.outputs:
                got = f"from {y.min()} to {y.max()}" if y.ndim == 2 else f"of shape {tuple(y.shape)}"
                raise ValueError(f"{what} must have labels [N, M] from 0 to {spec.outputs - 1}, got {part} ones {got}")
            elif spec.vocabulary and not 0 <= x.min() <= x.max() < spec.vocabulary:
                raise ValueError(f"{what} must have tokens from 0 to {spec.vocabulary - 1}, got {x.min()} to {x.max()}")

    def shuffled(self) -> "Episodes":
        """The same with support sets in an order drawn by PyTorch's global generator."""
        order = permutations(*self.support_x.shape[:2])
        return self._replace(support_x=in_order(self.support_x, order), support_y=in_order(self.support_y, order))


def permutations(rows: int, length: int, generator: torch.Generator | None = None) -> Tensor:
    """A permutation in each row, `[rows, length]`; the same whatever the device of what is permuted."""
    return torch.rand(rows, length, generator=generator).argsort(1)


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """`x [N, T, ...]` with each row in its `order [N, M]`."""
    return x[torch.arange(len(x), device=x.device)[:, None], order.to(x.device)]


@dataclass(frozen=True)
class TaskSpec:
    """What all episodes of a source have in common: what a learner must know to be made."""

    shape: tuple[int, ...]
    """Of one example, such as (1, 28, 28) for pictures `[channels, height, width]`, (1,) for a number."""
    outputs: int
    """Classes `C` in an episode, or numbers `D` to predict."""
    classification: bool = True
    """Otherwise regression."""
    train_classes: int = 0
    """Classes in the training split; 0 in regression."""
    vocabulary: int = 0
    """Examples are rows of token numbers below this one, where 0 fills up short ones; 0: they are ordinary numbers."""
    shots: int = 1
    """Examples of each class in a support set, or points in regression."""
    unit: bool = False
    """Examples are numbers from 0 to 1, as those of pictures of bytes are."""

    @property
    def pictures(self) -> bool:
        """Whether examples are pictures `[channels, height, width]`."""
        return len(self.shape) == 3 and not self.vocabulary


class EpisodeSource:
    """Where episodes come from: few-shot data sets, and families of functions.

    A subclass says `spec` and `episode`.

    Attributes:
        name: what messages and tables call it.
        splits: known to `episodes`.
        ahead: batches that `stream` draws together, where it is the beginning that takes time; what is drawn is the same.
    """

    name: str
    splits: ClassVar[Sequence[str]] = ("train", "validation", "test")
    ahead: ClassVar[int] = 1

    @property
    def spec(self) -> TaskSpec:
        """What all episodes have in common."""
        raise NotImplementedError

    def episode(self, split: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """One episode: arrays as in `Episodes`, without the axis `N`; numbers in float32, labels in int64."""
        raise NotImplementedError

    def episodes(self, split: str, indices: Sequence[int], seed: int = 0) -> Episodes:
        """The episodes of `split` with these indices.

        Raises:
            ValueError: at a split that there is not.
        """
        check_known(f"split {split!r}", split, self.splits)
        drawn = [self.episode(split, rng) for rng in episode_rngs(seed, split, indices)]
        return Episodes(*(torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True)))

    def unaugmented(self) -> Self:
        """The same without what makes training examples of others: for evaluation."""
        return self

    def resized(self, **sizes: int) -> Self:
        """The same with other `ways`, `shots` or `queries`. A `ValueError`, in one line, where that cannot be."""
        try:
            return dataclasses.replace(self, **sizes)
        except TypeError:
            raise ValueError(f"{' and '.join(sizes)} of {type(self).__name__} cannot be changed") from None

    def stream(
        self, split: str, size: int, seed: int = 0, start: int = 0, workers: int = 0, stop: int | None = None
    ) -> Iterator[Episodes]:
        """Batches of `size` episodes with indices `start`, `start + 1`, ...; without `stop`, for ever.

        With `workers`, so many processes draw them ahead; what they draw is the same.
        """
        if not workers:
            at = start
            while stop is None or at < stop:
                end = min(at + size * self.ahead, math.inf if stop is None else stop)
                drawn = self.episodes(split, range(at, end), seed)
                yield from map(Episodes, *(part.split(size) for part in drawn))
                at = end
            return
        batches = _Batches(self, split, size, seed, start, stop)
        # a generator of its own: the loader draws from PyTorch's otherwise, and workers would change what others draw
        options = {"generator": torch.Generator(), "worker_init_fn": _leave_interrupts}
        for batch in DataLoader(batches, batch_size=None, num_workers=workers, **options):
            if isinstance(batch, ValueError):
                raise batch
            yield batch


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C goes to all processes; what to do about it is the first one's affair, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class _Batches(Dataset):
    source: EpisodeSource
    split: str
    size: int
    seed: int
    start: int
    stop: int | None

    def __len__(self) -> int:
        return 2**31 if self.stop is None else max(-(-(self.stop - self.start) // self.size), 0)

    def __getitem__(self, number: int) -> Episodes | ValueError:
        """A batch, or what is wrong with it: raised here, it would reach people as a loader's whole traceback."""
        at = self.start + number * self.size
        end = at + self.size if self.stop is None else min(at + self.size, self.stop)
        try:
            return self.source.episodes(self.split, range(at, end), self.seed)
        except ValueError as error:
            return error


def episode_rngs(seed: int, split: str, indices: Sequence[int]) -> Iterator[np.random.Generator]:
    """The generators of episodes, one after another; each is good until the next one is asked for.

    An episode has a stretch of its own in the stream of a counter-based generator (Philox), whose key is that of the seed
    and the split: to go there costs a tenth of making a generator.
    """
    bits = np.random.Philox(key=_key(seed, split))
    generator, state = np.random.Generator(bits), bits.state
    if not len(indices):
        raise ValueError("indices must be of at least one episode, got none")
    for index in indices:
        state["state"]["counter"][2] = check_count("index", index, least=0)  # 2^128 blocks of four numbers apart
        bits.state = state
        yield generator


def episode_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one episode."""
    return next(episode_rngs(seed, split, [index]))


@lru_cache
def _key(seed: int, split: str) -> np.ndarray:
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    key = np.frombuffer(hashlib.sha256(split.encode()).digest()[:8], "<u4").tolist()
    return np.random.SeedSequence(seed, spawn_key=key).generate_state(2, np.uint64)


def episodes_hash(*batches: Episodes) -> str:
    """SHA-256: equal exactly when the same episodes come in the same order, however they are batched."""
    digest = hashlib.sha256()
    for batch in batches:
        add_to_hash(digest, batch)
    return digest.hexdigest()


def add_to_hash(digest: "hashlib._Hash", batch: Episodes) -> None:
    """Let `digest`, of SHA-256, go on to these episodes."""
    for episode in zip(*(part.numpy(force=True) for part in batch), strict=True):
        for values in episode:
            digest.update(f"{values.dtype.str}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())

"""Texts by topic, as rows of token numbers: few-shot text classification.

    data, vocabulary = split_texts(*load_fortunes())
    source = NWayKShot("fortunes", data, ways=5, shots=1, vocabulary=len(vocabulary))

Tokens are words in lower case, and runs of one punctuation mark. Splits have other classes each, and the vocabulary is
built from the training classes only: their most frequent tokens, of those that occur more than once. All other tokens share
a fixed number of places, by a hash of their letters: so the words of test topics still tell texts apart, and such places
occur in training too.

Training episodes hold half of each text's tokens, at random (Iyyer, Manjunatha, Boyd-Graber & Daume 2015, "Deep unordered
composition rivals syntactic methods for text classification", section 2.3): otherwise learners know the training topics by
heart, and do no better on others than nearest neighbours.
"""

import csv
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from metarl.fewshot.classes import Classes
from metarl.fewshot.datasets.folders import split_classes

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|([^\w\s]|_)\1*")


@dataclass(frozen=True)
class Vocabulary:
    """The numbers of tokens: 0 fills up short texts, then come the words that are known, then the places of all others.

    Its length is one more than the largest number, as `TaskSpec.vocabulary` is.
    """

    words: tuple[str, ...]
    """Those known; the first has number 1."""
    buckets: int
    """Places that all other words share."""
    max_tokens: int
    """Kept of a text, from its start."""

    def __len__(self) -> int:
        return 1 + len(self.words) + self.buckets

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, 1)}

    def encode(self, texts: Iterable[str]) -> np.ndarray:
        """Texts as numbers of tokens, `[M, max_tokens]` of int64."""
        if isinstance(texts, str):
            raise ValueError("texts must be several strings, got one")
        texts, first = list(texts), 1 + len(self.words)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"texts must be strings, got {type(wrong[0]).__name__}")
        rows = [tokenize(text)[: self.max_tokens] for text in texts]
        x = np.zeros((len(rows), self.max_tokens), np.int64)
        for row, tokens in zip(x, rows, strict=True):
            # Python's own hash differs from process to process
            row[: len(tokens)] = [self._numbers.get(t) or first + zlib.crc32(t.encode()) % self.buckets for t in tokens]
        return x


def tokenize(text: str) -> list[str]:
    """Words in lower case, with the apostrophes inside them, and runs of one punctuation mark."""
    return [match[0] for match in _TOKEN.finditer(text.lower())]


def load_fortunes(path: str | Path = "/usr/share/games/fortunes") -> tuple[list[str], list[str]]:
    """Sayings, jokes and quotations by topic, from Debian's package `fortunes`: `apt-get install fortunes`.

    Returns texts and their topics, the names of the files. Files with a suffix are passed over, and folders, such as that of
    the offensive ones. Version 1:1.99.1-7.3 has 15,217 texts in 43 topics. With the defaults of `split_texts`
    14,901 texts in 40 topics remain (ascii-art, pratchett and translate-me are too small): 10,083 in 24 of training, 1,736
    in 8 of validation and 3,082 in 8 of testing.

    Args:
        path: a folder of files in UTF-8 with texts between lines of a single %.

    Raises:
        FileNotFoundError: in one line, where there is no such folder.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"there are no fortunes in {path}: get them by `apt-get install fortunes`")
    texts, labels = [], []
    for file in sorted(Path(path).iterdir()):
        if file.is_file() and not file.suffix:
            printed = re.sub(".\b", "", file.read_text("utf-8"))  # bold and underlined letters are struck twice
            parts = [part for part in re.split(r"^%$", printed, flags=re.MULTILINE) if part.strip()]
            texts += parts
            labels += [file.name] * len(parts)
    return texts, labels


def drop_tokens(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texts `x [M, T]` without half of their tokens, at random: 0 in their places. One that would be empty stays whole."""
    kept = np.where(rng.random(x.shape) < 0.5, x, 0)
    return np.where(kept.any(1, keepdims=True), kept, x)


def load_texts(path: str | Path, text: str = "text", label: str = "label") -> tuple[list[str], list[str]]:
    """Your own texts and their labels, from a CSV file in UTF-8 with a header: give it as `path`.

    Args:
        path: of the file.
        text: the column with the texts.
        label: the column with the labels.

    Raises:
        ValueError: in one line, at what is no CSV file in UTF-8, a missing column, and a row without text or label.
    """
    return _columns(path, text, label)


def read_texts(path: str | Path, text: str = "text") -> list[str]:
    """Texts alone; arguments and errors as in `load_texts`."""
    return _columns(path, text)[0]


def _columns(path: str | Path, *columns: str) -> tuple[list[str], ...]:
    if not Path(path).is_file():
        raise ValueError(f"path must be a CSV file, got {path}" + ", which does not exist" * (not Path(path).exists()))
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            for column in columns:
                if column not in (rows.fieldnames or ()):
                    raise ValueError(f"{path} must have a column {column!r}, got {', '.join(rows.fieldnames or ())}")
            found = []
            for row in rows:
                found.append([(row[column] or "").strip() for column in columns])
                if not all(found[-1]):
                    raise ValueError(
                        f"{path} must have a {' and a '.join(columns)} in every row, line {rows.line_num} has not"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}") from error
    return tuple(map(list, zip(*found, strict=True))) if found else tuple([] for _ in columns)


def split_texts(
    texts: Sequence[str],
    labels: Sequence[str],
    max_tokens: int = 64,
    vocabulary: int = 5000,
    buckets: int = 1000,
    min_examples: int = 20,
    shares: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> tuple[dict[str, Classes], Vocabulary]:
    """Classes by split, with examples `x [M, max_tokens]` of int64, and the vocabulary.

    Texts that agree in all the tokens that are kept count as one; those that then have several labels are left out, and so
    are empty ones.

    Args:
        texts: any.
        labels: of the texts.
        max_tokens: kept of a text, from its start.
        vocabulary: words known, at most.
        buckets: places that all other words share.
        min_examples: classes with fewer texts are left out.
        shares: of the classes for training, validation and test; a split of share 0 is left out.
        seed: of the split.

    Raises:
        ValueError: in one line, at options out of range, other numbers of texts and labels, or no class for training.
    """
    options = dict(max_tokens=max_tokens, vocabulary=vocabulary, buckets=buckets, min_examples=min_examples)
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if len(labels) != len(texts):
        raise ValueError(f"labels must be as many as texts ({len(texts)}), got {len(labels)}")
    found: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        if tokens := tokenize(text)[:max_tokens]:
            found.setdefault(" ".join(tokens), set()).add(label)
    labelled = [(text, label) for text, (label, *others) in found.items() if not others]
    sizes = Counter(label for _, label in labelled)
    labelled = [(text, label) for text, label in labelled if sizes[label] >= min_examples]
    classes = Classes.from_labels(np.arange(len(labelled)), [label for _, label in labelled])
    if not len(classes):
        raise ValueError(f"there must be a class of at least min_examples = {min_examples} texts, got none")
    parts = split_classes(classes, shares, seed)
    counts = Counter(t for members in parts["train"].members for i in members for t in labelled[i][0].split())
    ranked = sorted((-count, token) for token, count in counts.items() if count > 1)
    known = Vocabulary(tuple(token for _, token in ranked[:vocabulary]), buckets, max_tokens)
    x = known.encode(text for text, _ in labelled)
    return {name: replace(part, x=x) for name, part in parts.items()}, known

"""Texts as token numbers: what is kept of them, and what each number means."""

from pathlib import Path

import numpy as np
import pytest

from metarl.fewshot.classes import NWayKShot
from metarl.fewshot.datasets import make_source
from metarl.fewshot.datasets.text import Vocabulary, drop_tokens, load_fortunes, load_texts, split_texts, tokenize


def folder(path, topics):
    path.mkdir()
    for name, texts in topics.items():
        (path / name).write_text("".join(f"{text}\n%\n" for text in texts), "utf-8")
    return path


def small():
    """Nine topics of four texts; every text has its topic's word."""
    pairs = [(f"word{topic} says number{i} often", f"topic{topic}") for topic in range(9) for i in range(4)]
    return [list(part) for part in zip(*pairs, strict=True)]


def test_tokens():
    text = "Don't PANIC -- it's only_3.5 «Äpfel»!!?\n\t'quoted'"
    expected = "don't panic -- it's only _ 3 . 5 « äpfel » !! ? ' quoted '"
    assert tokenize(text) == expected.split()
    assert tokenize(" \n") == []


def test_numbers_of_tokens():
    vocabulary = Vocabulary(("the", "cat"), buckets=10, max_tokens=4)
    assert len(vocabulary) == 13
    x = vocabulary.encode(["The cat", "cat cat cat cat cat", "", "123456789: 123456789"])
    assert x.dtype == np.int64
    np.testing.assert_array_equal(x[:3], [[1, 2, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]])
    bucket = 3 + 0xCBF43926 % 10  # CRC-32's published check value is that of "123456789"
    assert x[3].tolist() == [bucket, x[3, 1], bucket, 0]
    assert 3 <= x[3, 1] < 13


def test_the_vocabulary_is_of_training_topics_most_frequent_first():
    texts, labels = small()
    data, vocabulary = split_texts(texts, labels, min_examples=4, vocabulary=100, shares=(5, 0, 4))
    of_topics = [name.replace("topic", "word") for name in data["train"].names]
    assert vocabulary.words[:2] == ("often", "says")  # 20 times each, so by the alphabet
    numbers = [f"number{i}" for i in range(4)]
    assert vocabulary.words[2:] == (*numbers, *sorted(of_topics))  # 5 times each, and 4 times
    few = split_texts(texts, labels, min_examples=4, vocabulary=3, shares=(5, 0, 4))[1]
    assert few.words == vocabulary.words[:3]


def test_a_word_that_occurs_once_in_training_is_not_known():
    texts, labels = ["a a lone", "b b b", "c c"], [0, 0, 1]
    assert split_texts(texts, labels, min_examples=1, shares=(1, 0, 0))[1].words == ("b", "a", "c")


def test_splits_by_topic():
    texts, labels = small()
    data, vocabulary = split_texts(texts, labels, min_examples=4, max_tokens=6)
    assert {split: len(classes) for split, classes in data.items()} == {"train": 5, "validation": 2, "test": 2}
    assert sorted(name for classes in data.values() for name in classes.names) == sorted(set(labels))
    for classes in data.values():
        for name, members in zip(classes.names, classes.members, strict=True):
            expected = vocabulary.encode([text for text, label in zip(texts, labels, strict=True) if label == name])
            np.testing.assert_array_equal(classes.x[members], expected)
    names = {seed: split_texts(texts, labels, min_examples=4, seed=seed)[0]["test"].names for seed in (0, 0, 1, 2)}
    assert names[0] == data["test"].names
    assert len(set(names.values())) > 1


def test_doubles_are_left_out():
    texts = [
        "One, two",
        "one ,TWO",
        "one two",
        "shared",
        "Shared",
        "",
        "  ",
        "first four tokens, one",
        "first four tokens, two",
    ]
    labels = ["a", "a", "a", "a", "b", "a", "b", "b", "b"]
    data, vocabulary = split_texts(texts, labels, min_examples=1, max_tokens=4, shares=(1, 0, 0))
    kept = {name: data["train"].x[members] for name, members in zip(data["train"].names, data["train"].members, strict=True)}
    np.testing.assert_array_equal(kept["a"], vocabulary.encode(["one, two", "one two"]))
    np.testing.assert_array_equal(kept["b"], vocabulary.encode(["first four tokens,"]))


def test_small_topics_are_left_out():
    texts, labels = small()
    texts += ["a rare one", "another rare one"]
    labels += ["rare", "rare"]
    data, _ = split_texts(texts, labels, min_examples=3)
    assert "rare" not in {name for classes in data.values() for name in classes.names}
    assert "rare" in split_texts(texts, labels, min_examples=2, shares=(1, 0, 0))[0]["train"].names


def test_fortunes_in_a_folder(tmp_path):
    path = folder(tmp_path / "fortunes", {"b": ["One\n100% sure", "Two"], "a": ["_\bT_\bh_\br_\be_\be"]})
    for name in ("a.dat", "a.u8"):
        (path / name).write_bytes(b"\xff\x00")
    folder(path / "off", {"c": ["Rude"]})
    texts, labels = load_fortunes(path)
    found = [(text.strip(), label) for text, label in zip(texts, labels, strict=True)]
    assert found == [("Three", "a"), ("One\n100% sure", "b"), ("Two", "b")]


def test_no_fortunes(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^there are no fortunes in .*nowhere: get them by `apt-get install fortunes`$"
    ):
        load_fortunes(tmp_path / "nowhere")


@pytest.mark.skipif(not Path("/usr/share/games/fortunes/songs-poems").exists(), reason="needs Debian's fortunes")
def test_the_real_fortunes():
    data, vocabulary = split_texts(*load_fortunes())
    names = [name for classes in data.values() for name in classes.names]
    assert len(set(names)) == len(names) >= 35
    rows = np.concatenate([classes.x[np.concatenate(classes.members)] for classes in data.values()])
    assert len(rows) > 14_000
    # equal rows are left only where a hash cannot tell words apart
    assert len(np.unique(rows, axis=0)) > 0.999 * len(rows)
    assert len(vocabulary) == 6001
    assert 0 <= rows.min() < rows.max() < 6001
    source = NWayKShot("fortunes", data, ways=5, shots=5, queries=15, vocabulary=len(vocabulary))
    assert source.spec.vocabulary == 6001
    assert source.episodes("test", range(2)).query_x.shape == (2, 75, 64)


def test_csv(tmp_path):
    file = tmp_path / "mails.csv"
    file.write_text('\ufeffbody,id,kind\n"Hello, ""you""\nthere",1,ham\nBuy,2,spam\n', "utf-8")
    assert load_texts(file, "body", "kind") == (['Hello, "you"\nthere', "Buy"], ["ham", "spam"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,kind\na,b\n", "must have a column 'label', got text, kind"),
        (b"", "must have a column 'text', got "),
        (b"text,label\na,b\nc\n", "must have a text and a label in every row, line 3 has not"),
        (b"text,label\n,b\n", "must have a text and a label in every row, line 2 has not"),
        (b"text,label\n\xff,b\n", "must be a CSV file in UTF-8: .*invalid start byte"),
        (b"text,label\n" + b"a" * 200_000 + b",b\n", "must be a CSV file in UTF-8: field larger than field limit .*"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    file = tmp_path / "data.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{file} {message}$"):
        load_texts(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_tokens=0), "max_tokens must be at least 1, got 0"),
        (dict(vocabulary=0), "vocabulary must be at least 1, got 0"),
        (dict(buckets=0), "buckets must be at least 1, got 0"),
        (dict(min_examples=0), "min_examples must be at least 1, got 0"),
        (
            dict(shares=(0, 0, 1), min_examples=4),
            r"shares must be three numbers of at least 0, the first above 0, got \(0, 0, 1\)",
        ),
        (dict(), "there must be a class of at least min_examples = 20 texts, got none"),
        (dict(labels=["a"]), r"labels must be as many as texts \(36\), got 1"),
    ],
)
def test_bad_options(options, message):
    texts, labels = small()
    with pytest.raises(ValueError, match=f"^{message}$"):
        split_texts(texts, **{"labels": labels, **options})


def test_half_of_the_tokens_are_dropped_in_training():
    x = np.arange(1, 40_001).reshape(100, 400)
    kept = drop_tokens(x, np.random.default_rng(0))
    assert ((kept == x) | (kept == 0)).all()
    assert abs((kept > 0).mean() - 0.5) < 0.01  # four standard deviations
    short = np.repeat([[7, 0, 0]], 100, 0)
    assert (drop_tokens(short, np.random.default_rng(0)) == short).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_splits_stay_whole(split, tmp_path):
    path = tmp_path / "texts.csv"
    rows = [f"{' '.join(f'{label}{word}' for word in range(20))} {i},{label}" for label in "abcdefghij" for i in range(20)]
    path.write_text("\n".join(["text,label", *rows]))
    source = make_source("texts", ways=2, shots=1, queries=2, options={"path": str(path)})
    lengths = (source.episodes(split, range(20)).query_x > 0).sum(-1)
    assert (lengths < 21).any() == (split == "train")
    assert lengths.max() <= 21

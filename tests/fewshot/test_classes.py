"""N-way K-shot episodes: what every draw must be, how often things are drawn, and data that do not do."""

from collections import Counter

import numpy as np
import pytest
import torch

from metarl.fewshot.classes import Classes, NWayKShot, as_numbers
from metarl.fewshot.datasets import make_source
from metarl.fewshot.episodes import Episodes, TaskSpec, episodes_hash


def numbered(classes=6, each=7):
    """Example `e` of class `c` is `[c, e]`; in the array the classes are mixed."""
    order = np.random.default_rng(0).permutation(classes * each)
    x = np.stack(np.divmod(order, each), 1).astype(np.float32)
    return Classes.from_labels(x, [f"class {int(c)}" for c in x[:, 0]])


SOURCE = NWayKShot("numbered", {"train": numbered(), "test": numbered(4)}, ways=3, shots=2, queries=4)


def test_classes_from_labels():
    classes = Classes.from_labels(np.zeros((5, 2)), ["b", "a", "b", "c", "a"], ["x", "y", "x", "y", "y"])
    assert classes.names == ("a", "b", "c")
    assert [members.tolist() for members in classes.members] == [[1, 4], [0, 2], [3]]
    assert classes.groups == ("y", "x", "y")
    chosen = classes.select([2, 0])
    assert (len(chosen), chosen.names, chosen.groups) == (2, ("c", "a"), ("y", "y"))
    assert [members.tolist() for members in chosen.members] == [[3], [1, 4]]
    assert Classes.from_labels(np.zeros((3, 1)), [10, 9, 10]).names == ("9", "10")


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_episode(split):
    episodes = SOURCE.episodes(split, range(200))
    assert [tuple(part.shape[1:]) for part in episodes] == [(6, 2), (6,), (12, 2), (12,), (3,)]
    assert [part.dtype for part in episodes] == [torch.float32, torch.int64] * 2 + [torch.int64]
    for support_x, support_y, query_x, query_y, classes in zip(*(part.tolist() for part in episodes), strict=True):
        assert len(set(classes)) == 3
        # the class of every example is the one that its label stands for
        assert [c for c, _ in support_x] == [classes[label] for label in support_y]
        assert [c for c, _ in query_x] == [classes[label] for label in query_y]
        assert support_y == [0, 0, 1, 1, 2, 2]
        assert query_y == [0] * 4 + [1] * 4 + [2] * 4
        # no example comes twice, neither in one set nor in both
        assert len({tuple(example) for example in support_x + query_x}) == 18


def test_all_is_drawn_equally_often():
    """Chi-square with as many degrees of freedom as said; one in a thousand is larger."""
    episodes = SOURCE.episodes("train", range(3000))
    for place in range(3):
        check_even(Counter(episodes.classes[:, place].tolist()), 6, 20.5)  # 5 degrees
    for x, index in ((episodes.support_x, 0), (episodes.support_x, 1), (episodes.query_x, 3)):
        check_even(Counter(x[:, index, 1].tolist()), 7, 22.5)  # 6 degrees


def check_even(counts, cells, most):
    expected = counts.total() / cells
    assert len(counts) == cells
    assert sum((count - expected) ** 2 for count in counts.values()) / expected < most


def test_as_many_examples_as_needed_are_enough():
    source = NWayKShot("small", {"train": numbered(2, 5)}, ways=2, shots=1, queries=4)
    assert source.splits == ("train",)
    assert source.episodes("train", [0]).query_x.shape == (1, 8, 2)
    with pytest.raises(ValueError, match=r"^split 'test' is unknown: known are train$"):
        source.episodes("test", [0])


def test_spec():
    assert SOURCE.spec == TaskSpec(shape=(2,), outputs=3, classification=True, train_classes=6, shots=2)
    tokens = Classes.from_labels(np.zeros((40, 9), np.int64), [0, 1] * 20)
    source = NWayKShot("tokens", {"test": tokens}, ways=2, vocabulary=30)
    assert source.spec == TaskSpec(shape=(9,), outputs=2, train_classes=0, vocabulary=30)
    assert source.episodes("test", [0]).support_x.dtype == torch.int64


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([0, 51, 255], np.uint8), np.array([0.0, 0.2, 1.0], np.float32)),
        (np.array([0.5, -2.0]), np.array([0.5, -2.0], np.float32)),
        (np.array([3, 70_000], np.int32), np.array([3, 70_000], np.float32)),
        (np.array([True, False]), np.array([1.0, 0.0], np.float32)),
    ],
)
def test_as_numbers(given, expected):
    found = as_numbers(given)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert as_numbers(np.array([3, 200], np.uint8), tokens=True).tolist() == [3, 200]


def test_splits_must_be_disjoint_and_of_numbers():
    x = np.zeros((6, 2), np.float32)
    some, others = (Classes.from_labels(x, labels) for labels in ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]))
    with pytest.raises(ValueError, match=r"^train and test of n must be disjoint, but share 6 examples$"):
        NWayKShot("n", {"train": some, "test": others}, 2, 1, 1)
    words = Classes.from_labels(np.array(["a", "b", "c"], object), [0, 0, 1])
    with pytest.raises(
        ValueError, match=r"^train of n must have examples \[M, ...\] of numbers, got object of shape \(3,\)$"
    ):
        NWayKShot("n", {"train": words}, 2, 1, 1)
    with pytest.raises(ValueError, match=r"^members of class 'a' must be from 0 to 5, got 9$"):
        Classes(x, (np.array([0, 9]),), ("a",))
    with pytest.raises(ValueError, match=r"^labels must be one for each example, got an array of shape \(6, 1\)$"):
        Classes.from_labels(x, np.zeros((6, 1)))
    with pytest.raises(ValueError, match=r"^labels must not be nan, but 2 are$"):
        Classes.from_labels(x, [0, 1, np.nan, 1, 2, np.nan])


def test_whole_numbers_are_features():
    x = np.arange(36).reshape(18, 2)
    source = NWayKShot("n", {"train": Classes.from_labels(x, np.arange(18) // 6)}, 3, 1, 2)
    assert source.episodes("train", [0]).support_x.dtype == torch.float32


def test_what_is_wrong_is_told_in_one_line_by_workers_too():
    x = np.zeros((6, 2), np.float32)
    source = NWayKShot("n", {"train": Classes.from_labels(x, np.arange(6) // 2)}, 3, 1, 2)
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^class '0' \(train split of n\) must have at least .* got 2: ask for fewer"):
            next(source.stream("train", 2, workers=workers))


def test_episodes_are_checked():
    x = np.arange(36.0).reshape(18, 2)
    source = NWayKShot("n", {"train": Classes.from_labels(x, np.arange(18) // 6)}, 3, 1, 2)
    good = source.episodes("train", [0, 1])
    good.check(source.spec, "n")
    for part, wrong, message in (
        ("query_y", good.query_y + 1, r"labels \[N, M\] from 0 to 2, got query ones from 1 to 3$"),
        ("support_y", good.support_y[..., None], r"labels .*, got support ones of shape \(2, 3, 1\)$"),
        ("query_x", good.query_x[..., :1], r"examples of shape \(2,\), got query \(1,\)$"),
        ("support_x", good.support_x / 0, "finite features, got support ones that are not$"),
    ):
        with pytest.raises(ValueError, match=r"^n must have " + message):
            good._replace(**{part: wrong}).check(source.spec, "n")
    targets = torch.zeros(1, 3, 2)
    points = Episodes(targets, targets, targets, targets[..., :1], torch.zeros(1, 0))
    with pytest.raises(ValueError, match=r"^n must have finite targets \[N, M, 2\], got query ones \(1, 3, 1\)$"):
        points.check(TaskSpec((2,), 2, classification=False), "n")
    with pytest.raises(ValueError, match=r"got query ones \(1, 3, 2\) that are not finite$"):
        points._replace(query_y=targets / 0).check(TaskSpec((2,), 2, classification=False), "n")
    tokens = good._replace(support_x=torch.full((2, 3, 2), 9), query_x=torch.zeros(2, 6, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^n must have tokens from 0 to 8, got 9 to 9$"):
        tokens.check(TaskSpec((2,), 3, vocabulary=9), "n")


def test_workers_draw_the_same():
    one, two = (episodes_hash(*SOURCE.stream("train", 3, workers=workers, stop=8)) for workers in (0, 2))
    assert one == two == episodes_hash(SOURCE.episodes("train", range(8)))


def test_augmentation_is_of_training_only_and_with_the_episodes_generator():
    def shifted(x, rng):
        assert x.shape == (18, 2)
        return x + 100.0 * rng.integers(1, 1000)

    source = NWayKShot("numbered", SOURCE.data, ways=3, shots=2, queries=4, augment=shifted)
    plain, changed = SOURCE.episodes("train", range(5)), source.episodes("train", range(5))
    shift = changed.support_x - plain.support_x
    assert shift.unique().numel() == 5
    assert torch.equal(shift[:, :1].expand_as(plain.query_x), changed.query_x - plain.query_x)
    assert episodes_hash(source.episodes("train", range(5))) == episodes_hash(changed)
    assert episodes_hash(source.episodes("test", range(5))) == episodes_hash(SOURCE.episodes("test", range(5)))


def test_examples_that_are_read_when_asked_for():
    class Lazy:
        shape, dtype, asked = (12, 1, 2, 2), np.dtype(np.uint8), []

        def __len__(self):
            return 12

        def __getitem__(self, indices):
            self.asked += indices.tolist()
            return np.full((len(indices), 1, 2, 2), 51, np.uint8)

    classes = Classes.from_labels(Lazy(), [0, 1, 2] * 4)
    assert Lazy.asked == []
    episodes = NWayKShot("lazy", {"train": classes}, ways=2, shots=1, queries=2).episodes("train", [0])
    assert len(Lazy.asked) == 6
    assert episodes.query_x.shape == (1, 4, 1, 2, 2)
    assert episodes.query_x.unique().tolist() == [pytest.approx(0.2)]


def test_split():
    classes = numbered(10, 2)
    parts = classes.split({"train": 0.5, "validation": 0.2, "test": 0.3}, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 5, "validation": 2, "test": 3}
    assert sorted(name for part in parts.values() for name in part.names) == sorted(classes.names)
    for part in parts.values():
        for name, members in zip(part.names, part.members, strict=True):
            np.testing.assert_array_equal(classes.x[members][:, 0], int(name.split()[1]))
    assert classes.split({"train": 5, "validation": 2, "test": 3}, seed=1)["test"].names == parts["test"].names
    assert len({classes.split({"train": 1, "test": 1}, seed)["test"].names for seed in range(5)}) > 1


def test_split_by_group():
    labels = np.arange(40)
    classes = Classes.from_labels(labels[:, None], labels, [f"group {label % 10}" for label in labels])
    parts = classes.split({"train": 0.7, "test": 0.3}, by_group=True)
    groups = [set(part.groups) for part in parts.values()]
    assert [len(each) for each in groups] == [7, 3]
    assert not set.intersection(*groups)
    assert [len(part) for part in parts.values()] == [28, 12]


def few(size):
    return Classes.from_labels(np.zeros((10 + size, 1)), ["many"] * 10 + ["few"] * size)


def test_only_the_split_that_is_drawn_from_has_to_suffice():
    source = NWayKShot("n", {"train": numbered(), "validation": few(5).select([]), "test": few(5)}, ways=3, queries=3)
    assert source.episodes("train", [0]).classes.shape == (1, 3)
    assert source.resized(ways=2).episodes("test", [0]).classes.shape == (1, 2)
    for split, found in (("validation", 0), ("test", 2)):
        with pytest.raises(ValueError, match=rf"^the {split} split of n must have at least ways = 3 classes, got {found}: "):
            next(source.stream(split, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classes(np.zeros((2, 1)), (np.arange(2),), ("a", "b")), r"names must be as many as members \(1\), got 2"),
        (
            lambda: Classes(np.zeros((2, 1)), (np.arange(2),), ("a",), ("g", "h")),
            r"groups must be as many as names \(1\), got 2",
        ),
        (lambda: Classes.from_labels(np.zeros((3, 1)), [0, 1]), r"labels must be as many as examples \(3\), got 2"),
        (
            lambda: Classes.from_labels(np.array([[0.0], [np.nan], [np.inf]]), ["a", "b", "b"]),
            "features must be finite, but 2 of the 2 examples of class 'b' are not",
        ),
        (lambda: NWayKShot("n", {"train": few(5)}, ways=1), "ways must be an integer of at least 2, got 1"),
        (lambda: NWayKShot("n", {"train": few(5)}, ways=2, shots=0), "shots must be an integer of at least 1, got 0"),
        (lambda: NWayKShot("n", {"train": few(5)}, ways=2.0), "ways must be an integer of at least 2, got 2.0"),
        (
            lambda: NWayKShot("n", {"train": numbered()}, queries=6).episodes("train", []),
            "indices must be of at least one episode, got none",
        ),
        (
            lambda: NWayKShot("n", {"train": numbered()}, queries=6).episodes("train", [0, -1]),
            "index must be an integer of at least 0, got -1",
        ),
        (
            lambda: Classes.from_labels(np.zeros((3, 1)), np.array(["a", 1, None], object)),
            "labels must be of one kind, such as text or numbers, got NoneType, int, str",
        ),
        (lambda: make_source(""), "dataset must be a name or a path, got ''"),
        (lambda: NWayKShot("n", {"train": few(5)}, ways=2, queries=0), "queries must be an integer of at least 1, got 0"),
        (
            lambda: NWayKShot("n", {"train": numbered(), "test": few(5)}, ways=3, queries=3).check("test"),
            "the test split of n must have at least ways = 3 classes, got 2: ask for fewer ways, or, where the data "
            r"set takes shares, for others, such as dataset_kwargs \{shares: \[0.6, 0, 0.4\]\}",
        ),
        (
            lambda: Classes(np.zeros((4, 1)), (np.array([0, 1, 1]), np.array([2])), ("a", "b")),
            "members of class 'a' must be different examples, got one of them twice",
        ),
        (
            lambda: NWayKShot(
                "n", {"train": Classes(np.zeros((4, 1)), (np.arange(3), np.arange(2, 4)), ("a", "b"))}, ways=2
            ),
            "classes of train of n must be disjoint, but 'a' and 'b' share example 2",
        ),
        (
            lambda: NWayKShot("n", {"train": Classes(np.zeros((3, 1)), (np.array([0, 1]),) * 3, ("a", "b", "c"))}, ways=2),
            "classes of train of n must be disjoint, but 'a' and 'b' share example 0",
        ),
        (
            lambda: NWayKShot("n", {"train": Classes(np.zeros((6, 1)), ([5, 1], [], np.array([5], "u8"), [1]), "abcd")}, 2),
            "classes of train of n must be disjoint, but 'a' and 'c' share example 5",
        ),
        (
            lambda: NWayKShot("n", {"train": few(5)}, ways=2, shots=2, queries=4).episodes("train", [0]),
            r"class 'few' \(train split of n\) must have at least shots \+ queries = 2 \+ 4 = 6 examples, got 5: "
            "ask for fewer shots or queries",
        ),
        (
            lambda: NWayKShot(
                "n", {"train": Classes(np.zeros((20, 1)), (np.arange(20), np.arange(0)), ("a", "none"))}, ways=2
            ).check("train"),
            r"class 'none' \(train split of n\) must have at least shots \+ queries = 1 \+ 15 = 16 examples, got 0: .*",
        ),
    ],
)
def test_bad_data(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()

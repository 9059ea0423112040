"""Episodes depend on the seed, the split and their index only; their hash depends on all that is in them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from metarl.fewshot.episodes import Episodes, EpisodeSource, TaskSpec, episode_rng, episodes_hash


@dataclass(frozen=True)
class Lines(EpisodeSource):
    """Lines through the origin, two points to learn from and three to be asked about."""

    name: str = "lines"

    @property
    def spec(self):
        return TaskSpec(shape=(1,), outputs=1, classification=False)

    def episode(self, split, rng):
        slope, x = rng.random(dtype=np.float32), rng.random((5, 1), dtype=np.float32)
        return x[:2], slope * x[:2], x[2:], slope * x[2:], np.empty(0, np.int64)


def same(left, right):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(left, right, strict=True))


def joined(batches):
    return Episodes(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def test_shapes():
    episodes = Lines().episodes("train", range(4))
    assert [tuple(part.shape) for part in episodes] == [(4, 2, 1), (4, 2, 1), (4, 3, 1), (4, 3, 1), (4, 0)]
    torch.testing.assert_close(
        episodes.query_y / episodes.query_x, (episodes.support_y / episodes.support_x)[:, :1].expand(4, 3, 1)
    )


def test_an_episode_depends_on_seed_split_and_index_only():
    source = Lines()
    many = source.episodes("train", [7, 2, 9], seed=5)
    for place, index in enumerate([7, 2, 9]):
        assert same((part[place : place + 1] for part in many), source.episodes("train", [index], seed=5))
    others = [source.episodes(*which) for which in (("train", [7], 6), ("test", [7], 5), ("train", [8], 5))]
    assert len({float(episodes.query_x[0, 0, 0]) for episodes in (many, *others)}) == 4


def test_generators_differ():
    first = {
        episode_rng(seed, split, index).integers(2**63)
        for seed in (0, 1, 2**32)
        for split in ("train", "validation", "test", "ood")
        for index in (*range(50), 2**32, 2**32 + 1)
    }
    assert len(first) == 3 * 4 * 52


def test_an_episode_has_its_own_stretch_of_a_counted_stream():
    digest = hashlib.sha256(b"train").digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
    words = np.random.SeedSequence(11, spawn_key=key).generate_state(2, np.uint64)
    expected = np.random.Generator(np.random.Philox(key=words, counter=3 << 128)).integers(2**63)
    assert episode_rng(11, "train", 3).integers(2**63) == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("size", "sizes"), [(3, [3, 3, 2]), (8, [8]), (20, [8])])
def test_streams(workers, size, sizes):
    batches = list(Lines().stream("test", size, seed=1, start=2, workers=workers, stop=10))
    assert [len(batch.query_x) for batch in batches] == sizes
    assert same(joined(batches), Lines().episodes("test", range(2, 10), seed=1))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_without_an_end(workers):
    stream = Lines().stream("train", 2, start=4, workers=workers)
    batches = [next(stream) for _ in range(6)]
    stream.close()
    assert same(joined(batches), Lines().episodes("train", range(4, 16)))
    assert all(isinstance(batch, Episodes) for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [5, 1])
def test_a_stream_that_ends_where_it_starts(workers, stop):
    assert list(Lines().stream("train", 2, start=5, workers=workers, stop=stop)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_leaves_pytorchs_generator_alone(workers):
    before = torch.get_rng_state()
    list(Lines().stream("train", 2, workers=workers, stop=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hash():
    source = Lines()
    whole = episodes_hash(source.episodes("train", range(6)))
    assert episodes_hash(*source.stream("train", 4, stop=6)) == whole
    assert len(whole) == 64
    others = [source.episodes("train", indices) for indices in ([1, 0, 2, 3, 4, 5], range(5), range(7))]
    others += [source.episodes("test", range(6)), source.episodes("train", range(6), seed=1)]
    assert len({whole, *map(episodes_hash, others)}) == 6


@pytest.mark.parametrize("part", range(5))
def test_the_hash_sees_every_part(part):
    episodes = [torch.zeros(1, 2) for _ in range(5)]
    digests = {episodes_hash(Episodes(*episodes))}
    for changed in (torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 2, 1)):
        digests.add(episodes_hash(Episodes(*episodes[:part], changed, *episodes[part + 1 :])))
    assert len(digests) == 4


def test_an_unknown_split():
    message = r"^split 'tset' is unknown \(did you mean test\?\): known are train, validation, test$"
    with pytest.raises(ValueError, match=message):
        Lines().episodes("tset", [0])

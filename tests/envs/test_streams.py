import numpy as np
import pytest
from scipy import stats

from metarl_envs.streams import Streams, mix


def seeded(num_slots, first_seed=0):
    streams = Streams(num_slots)
    streams.seed(np.arange(first_seed, first_seed + num_slots))
    return streams


def test_mix_gives_the_published_sequence_of_splitmix64():
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + golden * np.arange(1, 4, dtype=np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_are_uniform():
    draws = seeded(200).uniform(500)
    assert draws.shape == (200, 500)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.01


def test_normal_numbers_are_standard_normal():
    draws = seeded(200).normal(500)
    assert draws.shape == (200, 500)
    assert stats.kstest(draws.ravel(), "norm").pvalue > 0.01


def test_streams_of_neighbouring_seeds_are_independent_of_each_other_and_of_their_past():
    draws = seeded(400).normal(2500)
    limit = 4 / np.sqrt(draws[1:].size)
    assert abs(np.mean(draws[1:] * draws[:-1])) < limit
    assert abs(np.mean(draws[:, 1:] * draws[:, :-1])) < limit
    assert abs(np.mean(draws[1:, :-1] * draws[:-1, 1:])) < limit
    per_stream = np.sqrt(2500) * draws.mean(-1)
    assert stats.kstest(per_stream, "norm").pvalue > 0.01


def test_categorical_numbers_follow_their_probabilities():
    probabilities = np.array([0.1, 0.0, 0.6, 0.3, 0.0])
    streams = seeded(1000)
    draws = np.concatenate([streams.categorical(np.tile(probabilities, (1000, 1))) for _ in range(50)])
    counts = np.bincount(draws, minlength=5)
    assert counts[1] == counts[4] == 0
    assert stats.chisquare(counts[[0, 2, 3]], 50_000 * probabilities[[0, 2, 3]]).pvalue > 0.01


def test_categorical_draws_the_only_possible_index():
    streams = seeded(50)
    assert (streams.categorical(np.tile([0.0, 1.0, 0.0], (50, 1))) == 1).all()


def test_a_slot_of_a_batch_draws_what_it_draws_alone():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 6)
    batch, mask = seeded(6, first_seed=10), np.array([0, 1, 0, 1, 1, 0], bool)
    drawn = [batch.uniform(), batch.normal(3), batch.categorical(probabilities), batch.uniform(2, 2)]
    masked = batch.normal(rows=mask)
    after = batch.uniform()
    for slot in range(6):
        alone = seeded(1, first_seed=10 + slot)
        own = [alone.uniform(), alone.normal(3), alone.categorical(probabilities[[slot]]), alone.uniform(2, 2)]
        for ours, theirs in zip(own, drawn, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[slot])
        if mask[slot]:
            assert alone.normal()[0] == masked[mask[:slot].sum()]
        assert alone.uniform()[0] == after[slot]


def test_a_slot_draws_what_plain_python_says(plain_stream):
    streams, plain = seeded(3, first_seed=2**40), plain_stream(2**40 + 2)
    probabilities = [0.2, 0.5, 0.3]
    for _ in range(20):
        assert streams.uniform()[2] == plain.uniform()
        assert streams.normal()[2] == pytest.approx(plain.normal(), rel=1e-12)
        assert streams.categorical(np.tile(probabilities, (3, 1)))[2] == plain.categorical(probabilities)


@pytest.mark.parametrize("rows", [np.array([False, True, True, False]), np.array([2, 1]), slice(1, 3), np.zeros(4, bool)])
def test_drawing_for_some_rows_leaves_the_others_untouched(rows):
    streams, untouched = seeded(4), seeded(4)
    chosen = np.arange(4)[rows]
    assert streams.uniform(5, rows=rows).shape == (len(chosen), 5)
    others = np.setdiff1d(np.arange(4), chosen)
    np.testing.assert_array_equal(streams.uniform(rows=others), untouched.uniform(rows=others))
    assert not np.isin(streams.uniform(rows=chosen), untouched.uniform(rows=chosen)).any()


def test_seeding_restarts_the_streams_in_rows():
    streams = seeded(3)
    first, second = streams.uniform(), streams.uniform()
    streams.seed(np.array([1]), rows=np.array([1]))
    third = streams.uniform()
    assert third[1] == first[1]
    assert not np.isin(third[[0, 2]], np.concatenate([first, second])).any()

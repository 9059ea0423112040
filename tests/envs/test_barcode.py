import numpy as np
import pytest

from metarl_envs import make_family


def test_every_bandit_comes_as_often_and_by_its_own_barcode():
    family = make_family("metarl/BarcodeBandit-v0", num_contexts=4, num_occurrences=3, num_bits=3)
    tasks = family.sample(200, "train", 0)
    codes, order = tasks.params["codes"], tasks.params["order"]
    assert codes.shape == (200, 4, 3)
    assert all(len({tuple(code) for code in task}) == 4 for task in codes.tolist())
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.repeat(np.arange(4), 3), (200, 1)))
    assert len(np.unique(order, axis=0)) > 190


def test_occurrences_by_hand():
    family = make_family("metarl/BarcodeBandit-v0", num_contexts=2, num_occurrences=3)
    tasks = family.sample(1, "train", 0)
    tasks.params["order"][0] = [1, 0, 1, 1, 0, 0]
    assert family.occurrences(tasks, 6).tolist() == [[0, 0, 1, 2, 1, 2]]
    assert family.occurrences(tasks, 8).tolist() == [[0, 0, 1, 2, 1, 2, 3, 3]]  # the order begins anew


def test_the_barcode_in_view_is_that_of_the_episode_and_its_arm_pays():
    family = make_family("metarl/BarcodeBandit-v0", num_contexts=3, num_occurrences=2, num_pulls=4, high=1.0, low=0.0)
    tasks = family.sample(5, "test", 1)
    envs = family.make_vec(5, autoreset_mode="Disabled")
    codes, best, order = (tasks.params[name] for name in ("codes", "best", "order"))
    slots = np.arange(5)
    for _ in range(2):  # new tasks, even if they are the same, begin with the first episode
        observations, _ = envs.reset(seed=0, options={"tasks": tasks})
        for episode in range(6):
            context = order[:, episode]
            for pull in range(4):
                np.testing.assert_array_equal(observations, codes[slots, context])
                arms = best[slots, context] if pull % 2 else (best[slots, context] + 1) % 5
                observations, rewards, terminated, _, _ = envs.step(arms)
                assert (rewards == pull % 2).all()
                assert terminated.all() == (pull == 3)
            if episode < 5:
                observations, _ = envs.reset(options={"reset_mask": terminated})


def test_arms_pay_as_often_as_they_should():
    family = make_family("metarl/BarcodeBandit-v0", num_pulls=50)
    envs = family.make_vec(400, autoreset_mode="Disabled")
    tasks = family.sample(400, "train", 0)
    for shift, expected in ((0, 0.9), (1, 0.1)):
        envs.reset(seed=1, options={"tasks": tasks})
        context = tasks.params["order"][:, 0]
        arms = (tasks.params["best"][np.arange(400), context] + shift) % 5
        paid = np.mean([envs.step(arms)[1].mean() for _ in range(40)])
        assert paid == pytest.approx(expected, abs=4 * np.sqrt(0.09 / 16_000))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_contexts": 9, "num_bits": 3}, "num_bits must be at most 30, and enough for 9 contexts, got 3"),
        ({"low": 0.9}, "low and high must be probabilities, low below high, got 0.9 and 0.9"),
        ({"num_arms": 1}, "num_arms must be at least 2, got 1"),
    ],
)
def test_wrong_parameters_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_family("metarl/BarcodeBandit-v0", **kwargs)


@pytest.mark.parametrize(("num_contexts", "num_bits"), [(16, 4), (32, 5), (150, 10)])
def test_barcodes_are_different_also_where_there_are_hardly_more_of_them_than_bandits(num_contexts, num_bits):
    family = make_family("metarl/BarcodeBandit-v0", num_contexts=num_contexts, num_bits=num_bits, num_occurrences=1)
    codes = family.sample(20, "train", 0).params["codes"]
    numbers = codes @ (1 << np.arange(num_bits))
    assert all(len({*row}) == num_contexts for row in numbers.tolist())
    assert len({tuple(row) for row in numbers.tolist()}) == 20

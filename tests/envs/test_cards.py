"""The card games, against their rules worked out by hand."""

import numpy as np
import pytest

from metarl_envs import make_family

GAMES = ["RepeatPrevious", "RepeatFirst", "Autoencode", "CountRecall"]


def play(game, answer, tasks=None, **kwargs):
    """Observations and rewards of one episode in which step `t` is answered by `answer(cards so far, t)`."""
    family = make_family(f"metarl/{game}-v0", **kwargs)
    envs = family.make_vec(1, autoreset_mode="Disabled")
    observation, _ = envs.reset(seed=0, options={"tasks": tasks or family.sample(1, "test", 0)})
    seen, rewards, ended = [observation[0]], [], False
    while not ended:
        observation, reward, terminated, truncated, _ = envs.step(np.array([answer(seen, len(rewards))]))
        assert not truncated[0]
        seen.append(observation[0])
        rewards.append(reward[0])
        ended = terminated[0]
    return np.array(seen), np.array(rewards), envs.tasks.params


def reverse(seen, t):
    """Autoencode: the cards from the last to the first."""
    return seen[102 - t][1] if t > 50 else 0


def count(seen, t):
    """CountRecall: cards of the colour asked for so far."""
    return sum(card == seen[-1][1] for card, _ in seen)


PERFECT = {
    "RepeatPrevious": lambda seen, t: seen[-4] if t >= 3 else 0,
    "RepeatFirst": lambda seen, t: seen[0],
    "Autoencode": reverse,
    "CountRecall": count,
}
STEPS = {"RepeatPrevious": 51, "RepeatFirst": 51, "Autoencode": 103, "CountRecall": 51}
COUNTING = {"RepeatPrevious": 48, "RepeatFirst": 51, "Autoencode": 52, "CountRecall": 51}


@pytest.mark.parametrize("game", GAMES)
def test_who_remembers_gets_one(game):
    _, rewards, _ = play(game, PERFECT[game])
    assert len(rewards) == STEPS[game]
    assert rewards.sum() == pytest.approx(1)
    assert (rewards > 0).sum() == COUNTING[game]
    assert set(np.round(rewards * COUNTING[game], 9)) <= {0.0, 1.0}


@pytest.mark.parametrize("game", GAMES)
def test_wrong_answers_cost_what_right_ones_earn(game):
    _, rewards, _ = play(game, lambda seen, t: (PERFECT[game](seen, t) + 1) % 4)
    assert rewards.sum() == pytest.approx(-1)


def test_what_is_seen():
    seen, _, tasks = play("RepeatPrevious", lambda seen, t: 0)
    np.testing.assert_array_equal(seen, tasks["cards"][0])
    assert sorted(np.bincount(seen)) == [13, 13, 13, 13]
    seen, _, tasks = play("Autoencode", lambda seen, t: 0)
    np.testing.assert_array_equal(seen[:52, 1], tasks["cards"][0])
    np.testing.assert_array_equal(seen[:, 0], [1] * 51 + [0] * 53)
    np.testing.assert_array_equal(seen[52:, 1], 0)
    seen, _, tasks = play("CountRecall", lambda seen, t: 0)
    np.testing.assert_array_equal(seen, np.stack([tasks["cards"][0], tasks["queries"][0]], -1))
    assert sorted(np.bincount(seen[:, 0])) == [26, 26]


def test_more_decks_and_other_distances():
    _, rewards, _ = play("RepeatPrevious", lambda seen, t: seen[-32] if t >= 31 else 0, num_decks=2, k=32)
    assert len(rewards) == 103
    assert rewards.sum() == pytest.approx(1)
    _, rewards, _ = play("RepeatPrevious", lambda seen, t: seen[-1], k=1)
    assert rewards.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"k": 0}, "k must be from 1 to 51"), ({"num_decks": 0}, "num_decks must be")]
)
def test_wrong_parameters_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_family("metarl/RepeatPrevious-v0", **kwargs)

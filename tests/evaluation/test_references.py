import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from metarl.evaluation import RandomPlayer, play_trials, reference_players
from metarl.evaluation.bandit_players import UCB1
from metarl.evaluation.references import oracle, tune
from metarl_envs import families, make_family

SMALL = {  # structures at sizes that every player plays in a moment
    "metarl/BernoulliBandit-v0": {"num_arms": 3, "num_pulls": 6},
    "metarl/GaussianBandit-v0": {"num_arms": 3, "num_pulls": 6},
    "metarl/TwoArmedIndependent-v0": {"num_pulls": 6},
    "metarl/TwoArmedUniform-v0": {"num_pulls": 6},
    "metarl/TwoArmedHard-v0": {"num_pulls": 6},
    "metarl/TabularMDP-v0": {"num_states": 4, "num_actions": 3, "num_steps": 5, "num_episodes": 3},
    "metarl/GridNavi-v0": {},
    "metarl/Navigation2D-v0": {"num_steps": 20},
    "metarl/Navigation2DSparse-v0": {},
}


class Misled:
    """Plays with `player`, to whom it shows other tasks than those that are played."""

    def __init__(self, player, tasks):
        self.player, self.tasks = player, tasks

    def start_trials(self, tasks, rng):
        self.player.start_trials(self.tasks, rng)

    def act(self, observations):
        return self.player.act(observations)

    def observe(self, transition):
        self.player.observe(transition)


@pytest.mark.parametrize("env_id", SMALL)
def test_players_do_not_look_at_the_task(env_id):
    family = make_family(env_id, **SMALL[env_id])
    tasks, others = family.sample(50, "test", 0), family.sample(50, "test", 1)
    for player in reference_players(family):
        expected = play_trials(player, family, tasks, seed=3)
        misled = play_trials(Misled(player, others), family, tasks, seed=3)
        np.testing.assert_array_equal(misled, expected, err_msg=player.name)
    if (knowing := oracle(family)) is not None:
        misled = play_trials(Misled(knowing, others), family, tasks, seed=3)
        assert misled.mean() < play_trials(knowing, family, tasks, seed=3).mean()


@pytest.mark.parametrize("env_id", SMALL)
def test_players_repeat_themselves_and_forget(env_id):
    family = make_family(env_id, **SMALL[env_id])
    tasks = family.sample(20, "test", 0)
    for player in reference_players(family):
        first = play_trials(player, family, tasks, seed=3)
        play_trials(player, family, tasks[:7], seed=4)
        np.testing.assert_array_equal(play_trials(player, family, tasks, seed=3), first, err_msg=player.name)


def test_every_family_has_a_random_player_first():
    for env_id in families():
        if gym.spec(env_id).kwargs["family"].startswith("metarl_envs.mujoco"):
            continue
        names = [player.name for player in reference_players(make_family(env_id))]
        assert names[0] == "random"
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "last"),
    [
        ("metarl/BernoulliBandit-v0", {"num_arms": 5, "num_pulls": 10}, "Bayes-optimal"),
        ("metarl/BernoulliBandit-v0", {"num_arms": 5, "num_pulls": 100}, "finite-horizon Gittins"),
        ("metarl/BernoulliBandit-v0", {"num_arms": 5, "num_pulls": 500}, "Gittins index"),
        ("metarl/TwoArmedIndependent-v0", {}, "Bayes-optimal"),
        ("metarl/TwoArmedEasy-v0", {"num_pulls": 5000}, "Bayes-optimal"),
    ],
)
def test_the_optimum_is_included_where_it_is_quick(env_id, kwargs, last):
    assert reference_players(make_family(env_id, **kwargs))[-1].name == last


def test_an_unknown_structure_has_the_random_player_alone():
    family = make_family("metarl/CartPoleContext-v0")
    assert [player.name for player in reference_players(family)] == ["random"]
    assert oracle(family) is None


class Shape:
    """What `RandomPlayer` reads of a family."""

    def __init__(self, action_space):
        self.action_space = action_space


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(4, start=3),
        gym.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)),
        gym.spaces.Box(0, 3, (2,), np.int64),
        gym.spaces.Box(-np.inf, np.inf, (2,)),
        gym.spaces.MultiDiscrete([2, 3]),
    ],
    ids=str,
)
def test_random_player_samples_the_space(space):
    player = RandomPlayer(Shape(space))
    tasks = make_family("metarl/BernoulliBandit-v0").sample(3000, "test", 0)

    def play():
        player.start_trials(tasks, np.random.default_rng(5))
        return np.stack([player.act(np.zeros(3000)) for _ in range(2)])

    actions = play()
    assert all(space.contains(action) for action in actions[0])
    np.testing.assert_array_equal(play(), actions)
    assert (actions[0] != actions[1]).any()
    if space.dtype.kind == "f" and space.is_bounded():
        np.testing.assert_allclose(actions.mean((0, 1)), (space.low + space.high) / 2, atol=0.2)
    if isinstance(space, gym.spaces.Discrete):
        assert np.bincount(actions.ravel() - 3, minlength=4).min() > 1300


def test_players_plan_for_longer_trials_when_told_so():
    family = make_family("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=4)
    longer = dataclasses.replace(family, num_pulls=8)
    assert longer.sample(3, "test", 0).family_kwargs["num_pulls"] == 8
    tasks = family.sample(20, "test", 0)
    for player in reference_players(family):
        assert play_trials(player, family, tasks, episodes=8).shape == (20, 8)


def test_tune_plays_training_tasks():
    family = make_family("metarl/BernoulliBandit-v0", num_arms=5, num_pulls=20)
    scores = tune(lambda scale: UCB1(family, scale), family, (0.1, 2.0), num_tasks=500)
    assert list(scores) == [0.1, 2.0]
    assert scores[0.1] > scores[2.0] + 1
    tasks = family.sample(500, "train", np.random.default_rng(0))
    assert scores[0.1] == play_trials(UCB1(family, 0.1), family, tasks, seed=0).sum(1).mean()

import numpy as np
import pytest

from metarl_envs import make_family

RIGHT, LEFT, UP, DOWN, STAY = range(5)


def walk(family, task, actions):
    """Observations and rewards, and after how many steps the episode ended."""
    envs = family.make_vec(1, autoreset_mode="Disabled")
    observation, _ = envs.reset(seed=0, options={"tasks": {key: np.array([value]) for key, value in task.items()}})
    seen, rewards = [observation[0].tolist()], []
    for step, action in enumerate(actions, 1):
        observation, reward, terminated, _, _ = envs.step(np.array([action]))
        seen.append(observation[0].tolist())
        rewards.append(reward[0])
        if terminated[0]:
            return seen, rewards, step
    return seen, rewards, None


@pytest.mark.parametrize(("side", "turn"), [(1, UP), (-1, DOWN)])
def test_the_sign_tells_the_side_in_the_passive_maze(side, turn):
    family = make_family("metarl/TMaze-v0", length=3)
    seen, rewards, end = walk(family, {"side": side}, [RIGHT, RIGHT, RIGHT, turn])
    assert seen[:4] == [[side, 0], [0, 0], [0, 0], [0, 1]]
    assert rewards == [0, 0, 0, 1]
    assert end == 4
    assert walk(family, {"side": -side}, [RIGHT, RIGHT, RIGHT, turn])[1] == [0, 0, 0, 0]


def test_hesitating_costs_and_time_runs_out():
    family = make_family("metarl/TMaze-v0", length=3)
    seen, rewards, end = walk(family, {"side": 1}, [UP, RIGHT, RIGHT, RIGHT])
    assert rewards == [-0.25, -0.25, -0.25, 0]  # always a step late, until the junction is reached
    assert end == 4
    assert seen[-1] == [0, 1]


def test_the_sign_must_be_fetched_in_the_active_maze():
    family = make_family("metarl/TMazeActive-v0", length=3)
    seen, rewards, end = walk(family, {"side": -1}, [LEFT, RIGHT, RIGHT, RIGHT, DOWN])
    assert seen[:5] == [[0, 0], [-1, 0], [0, 0], [0, 0], [0, 1]]
    assert rewards == [0, 0, 0, 0, 1]
    assert end == family.max_episode_steps == 5
    assert walk(family, {"side": -1}, [RIGHT, RIGHT, DOWN])[1] == [0, 0, 1]  # luck


def test_every_step_is_needed_in_the_active_maze():
    family = make_family("metarl/TMazeActive-v0", length=6)
    assert family.label == "metarl/TMazeActive-v0"
    assert make_family("metarl/TMaze-v0").label == "metarl/TMaze-v0"
    _, rewards, end = walk(family, {"side": 1}, [LEFT, LEFT, *[RIGHT] * 6])
    late = -1 / 7  # from the second step on, until the junction is reached; nothing for the last step
    np.testing.assert_allclose(rewards, [0, *[late] * 6, 0])
    assert end == 8
    _, rewards, end = walk(family, {"side": 1}, [LEFT] * 8)
    np.testing.assert_allclose(rewards, [0, *[late] * 6, 0])


def test_key_then_door():
    family = make_family("metarl/DarkKeyToDoor-v0", num_cells=3, num_steps=9)
    task = {"key": [2, 1], "door": [1, 2]}
    actions = [UP, STAY, DOWN, RIGHT, LEFT, UP]  # the door without the key, then the key, then the door
    seen, rewards, end = walk(family, task, actions)
    assert rewards == [0, 0, 0, 1, 0, 1]
    assert end == 6
    assert seen == [[0.5, 0.5], [0.5, 1], [0.5, 1], [0.5, 0.5], [1, 0.5], [0.5, 0.5], [0.5, 1]]
    assert walk(family, task, [RIGHT, STAY, LEFT, RIGHT])[1] == [1, 0, 0, 0]  # a key is found once


def test_keys_and_doors_lie_anywhere_but_in_the_middle():
    family = make_family("metarl/DarkKeyToDoor-v0", num_cells=3)
    params = family.draw(4000, "train", np.random.default_rng(0))
    key, door = (params[name] @ [3, 1] for name in ("key", "door"))
    assert (key != door).all()
    for cells in (key, door):
        counts = np.bincount(cells, minlength=9)
        assert counts[4] == 0
        assert (np.delete(counts, 4) > 400).all()
    pairs = np.unique(np.stack([key, door], -1), axis=0)
    assert len(pairs) == 8 * 7


def test_ceiling_of_the_dark_room():
    family = make_family("metarl/DarkKeyToDoor-v0", num_steps=10)
    tasks = {"key": np.array([[4, 5], [0, 0], [8, 8]]), "door": np.array([[4, 8], [0, 2], [0, 0]])}
    template = family.sample(1, "test", 0)
    assert family.ceiling(type(template)(family.env_id, family.kwargs, "test", tasks)).tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("metarl/TMaze-v0", {"length": 1}, "length must be at least 2, got 1"),
        ("metarl/DarkKeyToDoor-v0", {"num_cells": 4}, "num_cells must be odd, got 4"),
    ],
)
def test_wrong_parameters_are_named(env_id, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_family(env_id, **kwargs)

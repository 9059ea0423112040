import itertools

import numpy as np
import pytest

from metarl_envs import make_family

MOVES = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]


def make(**kwargs):
    return make_family("metarl/GridNavi-v0", **kwargs)


def move(cell, action, size):
    x, y = cell[0] + MOVES[action][0], cell[1] + MOVES[action][1]
    return (x, y) if 0 <= x < size and 0 <= y < size else cell


@pytest.mark.parametrize("kwargs", [{}, {"num_cells": 4, "num_steps": 7}])
def test_trajectories_equal_plain_python(kwargs):
    family = make(**kwargs)
    size = family.num_cells
    tasks = family.sample(8, "all", 0)
    envs = family.make_vec(8, split="all")
    observations, _ = envs.reset(seed=0, options={"tasks": tasks})
    assert observations.dtype == np.float32
    cells, found = [(0, 0)] * 8, 0
    actions = np.random.default_rng(0).choice(5, size=(300, 8), p=[0.1, 0.3, 0.3, 0.15, 0.15])
    for step, action in enumerate(actions):
        observations, rewards, terminated, truncated, infos = envs.step(action)
        last = (step + 1) % family.num_steps == 0
        cells = [move(cell, choice, size) for cell, choice in zip(cells, action, strict=True)]
        on_goal = [list(cell) == goal for cell, goal in zip(cells, tasks.params["goal"].tolist(), strict=True)]
        assert rewards.tolist() == [1.0 if here else -0.1 for here in on_goal]
        assert terminated.tolist() == [last] * 8
        assert not truncated.any()
        seen = infos["final_obs"] if last else observations
        np.testing.assert_allclose(seen, np.array(cells) / (size - 1), atol=1e-7)
        if last:
            assert not observations.any()
            cells = [(0, 0)] * 8
        found += sum(on_goal)
    assert found


def test_actions_are_stay_up_right_down_left():
    envs = make().make_vec(1)
    envs.reset(seed=0)
    seen = [(envs.step(np.array([action]))[0][0] * 4).tolist() for action in (1, 2, 2, 0, 3, 4, 3, 4, 4)]
    assert seen == [[0, 1], [1, 1], [2, 1], [2, 1], [2, 0], [1, 0], [1, 0], [0, 0], [0, 0]]


def shortest_way(goal, size):
    """Steps from the start to `goal` by breadth-first search over the moves."""
    reached, cells = 0, {(0, 0)}
    while goal not in cells:
        cells |= {move(cell, action, size) for cell in cells for action in range(5)}
        reached += 1
    return reached


@pytest.mark.parametrize(("num_cells", "num_steps"), [(5, 15), (6, 7), (3, 1)])
def test_ceilings_equal_a_breadth_first_search(num_cells, num_steps):
    family = make(num_cells=num_cells, num_steps=num_steps)
    tasks = family.sample(50, "all", 0)
    expected = []
    for goal in map(tuple, tasks.params["goal"].tolist()):
        way = shortest_way(goal, num_cells)
        expected.append(sum(1.0 if step >= way else -0.1 for step in range(1, num_steps + 1)))
    np.testing.assert_allclose(family.ceiling(tasks), expected, rtol=1e-12)


def test_the_published_grid_has_21_goals_and_a_ceiling_of_11_07():
    family = make()
    expected = [cell for cell in itertools.product(range(5), repeat=2) if cell not in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert sorted(map(tuple, family.goals.tolist())) == expected
    tasks = family.sample(21, "all")
    tasks.params["goal"][:] = family.goals
    assert family.ceiling(tasks).mean() == pytest.approx(11.0714, abs=1e-4)
    assert (family.episodes_per_trial, family.max_episode_steps) == (4, 15)


def goals_of(family, split):
    return set(map(tuple, family.sample(600, split, 0).params["goal"].tolist()))


def test_splits_share_the_goals_out():
    family = make()
    everything = set(map(tuple, family.goals.tolist()))
    train, test = goals_of(family, "train"), goals_of(family, "test")
    assert test == {(4, 0), (2, 1), (0, 2), (3, 3), (1, 4)}
    assert train == everything - test
    assert goals_of(family, "all") == everything


@pytest.mark.parametrize("num_cells", [3, 4, 6, 9])
def test_other_sizes_can_be_split_too(num_cells):
    family = make(num_cells=num_cells)
    train, test = goals_of(family, "train"), goals_of(family, "test")
    assert test
    assert not train & test
    assert train | test == set(map(tuple, family.goals.tolist()))


def test_goals_are_drawn_evenly():
    family = make()
    goals = family.sample(21_000, "all", 0).params["goal"] @ [5, 1]
    counts = np.unique(goals, return_counts=True)[1]
    assert len(counts) == 21
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)

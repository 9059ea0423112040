import dataclasses

import numpy as np
import pytest

from metarl.evaluation import play_trials
from metarl.evaluation.navigation_players import GridSearch, KnownGoalGrid, KnownGoalPoint, Trilateration
from metarl_envs import make_family


def every_goal(family):
    return dataclasses.replace(family.sample(1, "all", 0), params={"goal": family.goals})


@pytest.mark.parametrize("size", [3, 5, 8])
def test_grid_oracle_reaches_the_ceiling(size):
    family = make_family("metarl/GridNavi-v0", num_cells=size)
    tasks = every_goal(family)
    returns = play_trials(KnownGoalGrid(family), family, tasks)
    np.testing.assert_allclose(returns, np.broadcast_to(family.ceiling(tasks)[:, None], returns.shape))


def test_known_goal_is_worth_11_07():
    family = make_family("metarl/GridNavi-v0")
    assert play_trials(KnownGoalGrid(family), family, every_goal(family)).mean() == pytest.approx(11.07, abs=0.005)


def test_search_of_the_default_grid_is_bayes_optimal():
    """An upper bound for every player, which the search reaches.

    Entering the goal first in step t of an episode returns w(t) = 16.1 - 1.1 t, later episodes at most the ceiling c,
    and an episode without the goal -1.5. The k-th new cell is entered in step k + 1 at the earliest, so the returns of
    the first episode add up to w(2) + ... + w(15) - 7 * 1.5 at most over the 21 goals, and later ones are c at most.
    """
    family = make_family("metarl/GridNavi-v0")
    tasks = every_goal(family)
    returns = play_trials(GridSearch(family), family, tasks)
    first = sum(16.1 - 1.1 * step for step in range(2, 16)) - 7 * 1.5
    assert returns[:, 0].sum() == pytest.approx(first)
    assert returns[:, 0].mean() == pytest.approx(4.0)
    np.testing.assert_allclose(returns[:, 1:], np.repeat(family.ceiling(tasks)[:, None], 3, 1))


@pytest.mark.parametrize("size", [3, 4, 6, 9])
def test_search_ends_in_grids_of_other_sizes(size):
    family = make_family("metarl/GridNavi-v0", num_cells=size, num_episodes=12)
    returns = play_trials(GridSearch(family), family, every_goal(family))
    reachable = family.ceiling(every_goal(family)) > -1.5
    np.testing.assert_allclose(returns[reachable, -1], family.ceiling(every_goal(family))[reachable])


@pytest.mark.parametrize(
    "env_id", ["metarl/Navigation2D-v0", "metarl/Navigation2DSemicircle-v0", "metarl/Navigation2DSparse-v0"]
)
def test_point_oracle_reaches_the_ceiling(env_id):
    family = make_family(env_id)
    tasks = family.sample(500, "test", 0)
    returns = play_trials(KnownGoalPoint(family), family, tasks)
    np.testing.assert_allclose(returns, np.broadcast_to(family.ceiling(tasks)[:, None], returns.shape), atol=1e-4)


@pytest.mark.parametrize("env_id", ["metarl/Navigation2D-v0", "metarl/Navigation2DSemicircle-v0"])
@pytest.mark.parametrize("split", ["test", "ood"])
def test_three_distances_tell_the_goal(env_id, split):
    family = make_family(env_id)
    tasks = family.sample(500, split, 0)
    returns = play_trials(Trilateration(family), family, tasks)
    ceiling = family.ceiling(tasks)
    assert (returns[:, 0] <= ceiling + 1e-6).all()
    assert (returns[:, 0] >= ceiling - 3 * np.linalg.norm(tasks.params["goal"], axis=1) - 1).all()
    np.testing.assert_allclose(returns[:, 1:], np.stack([ceiling, ceiling], -1), atol=1e-3)


def test_trilateration_needs_dense_rewards():
    with pytest.raises(ValueError, match=r"goal_radius must be None, rewards that tell the distance, got 0\.2"):
        Trilateration(make_family("metarl/Navigation2DSparse-v0"))

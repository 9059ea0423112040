"""What the batched environment promises whatever it plays."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from metarl_envs import make_family


@pytest.fixture
def envs():
    return make_family("metarl/GridNavi-v0", num_steps=4).make_vec(3, autoreset_mode="Disabled")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"episodes_per_task": 0}, "episodes_per_task must be at least 1, got 0"),
        ({"autoreset_mode": "NextStep"}, "autoreset_mode must be SAME_STEP or DISABLED"),
        ({"render_mode": "human"}, "render_mode must be None for metarl/GridNavi-v0, got 'human'"),
    ],
)
def test_wrong_options_of_the_environment_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_family("metarl/GridNavi-v0").make_vec(**kwargs)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1], r"shape \(3,\), got \(2,\)"),
        ([0, 1, 5], r"in \[0, 5\), got 5"),
        ([-1, 1, 0], r"in \[0, 5\), got -1"),
        ([0.0, 1.0, 2.0], "integers, got float64"),
    ],
)
def test_wrong_discrete_actions_are_refused(envs, actions, message):
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(np.array(actions))


def test_actions_that_are_not_finite_are_refused():
    envs = make_family("metarl/Navigation2D-v0").make_vec(2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"finite, got .* in slot 1"):
        envs.step(np.array([[0.0, 0.0], [0.0, np.nan]]))


def test_reset_comes_first(envs):
    for use in (lambda: envs.step(np.zeros(3, int)), lambda: envs.tasks, lambda: envs.get_attr("task")):
        with pytest.raises(gym.error.ResetNeeded):
            use()
    with pytest.raises(gym.error.ResetNeeded, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})


@pytest.mark.parametrize("mask", [[True, False], [1, 0, 1], True, []])
def test_wrong_masks_are_refused(envs, mask):
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="reset_mask must be boolean of shape"):
        envs.reset(options={"reset_mask": np.array(mask)})


def test_wrong_seeds_are_refused(envs):
    with pytest.raises(ValueError, match=r"one integer or one per slot \(3\), got 2"):
        envs.reset(seed=[1, 2])
    with pytest.raises(gym.error.Error):
        envs.reset(seed=-1)


def test_wrong_tasks_are_refused(envs):
    with pytest.raises(ValueError, match=r"one task per slot \(3\), got 2"):
        envs.set_tasks(envs.family.sample(2))
    with pytest.raises(ValueError, match=r"parameters \['goal'\], got \['aim'\]"):
        envs.set_tasks({"aim": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"'goal' must have shape \(2,\) per task, got \(3,\)"):
        envs.set_tasks({"goal": np.zeros((3, 3))})
    with pytest.raises(ValueError, match=r"same parameters, got \[\['goal'\], \['goal'\], \['aim'\]\]"):
        envs.set_attr("task", [{"goal": [1, 2]}, {"goal": [1, 2]}, {"aim": [1, 2]}])
    with pytest.raises(ValueError, match=r"same parameters, got \[\]"):
        envs.set_attr("task", [])
    with pytest.raises(AttributeError, match="'goal'"):
        envs.set_attr("goal", [1, 2, 3])


def test_tasks_are_not_given_to_slots_that_play_on(envs):
    envs.reset(seed=0)
    options = {"tasks": envs.family.sample(3), "reset_mask": np.array([True, False, False])}
    with pytest.raises(ValueError, match="options must not hold both tasks and reset_mask"):
        envs.reset(options=options)


def test_tasks_can_be_given_in_every_way(envs):
    goals = np.array([[2, 0], [0, 2], [4, 4]])
    envs.set_attr("task", [{"goal": goal} for goal in goals])
    envs.reset(seed=0)
    np.testing.assert_array_equal(envs.tasks.params["goal"], goals)
    np.testing.assert_array_equal(envs.get_attr("task")[2]["goal"], [4, 4])
    envs.set_tasks({"goal": goals[:1]}, rows=np.array([1]))
    np.testing.assert_array_equal(envs.tasks.params["goal"], goals[[0, 0, 2]])
    envs.reset(options={"tasks": {"goal": goals[::-1]}})
    np.testing.assert_array_equal(envs.tasks.params["goal"], goals[::-1])
    for _ in range(5 * envs.episodes_per_task):
        envs.reset()
    np.testing.assert_array_equal(envs.tasks.params["goal"], goals[::-1])
    envs.set_attr("task", {"goal": goals[0]})
    np.testing.assert_array_equal(envs.tasks.params["goal"], goals[[0, 0, 0]])
    envs.set_tasks({"goal": goals[::-1]})
    np.testing.assert_array_equal(envs.tasks.params["goal"], goals[::-1])


def test_task_types_are_the_familys_not_those_of_the_first_tasks():
    envs = make_family("metarl/Navigation2D-v0").make_vec(1)
    envs.set_attr("task", [{"goal": [0, 1]}])
    envs.set_attr("task", [{"goal": [0.25, 0.5]}])
    np.testing.assert_array_equal(envs.tasks.params["goal"], [[0.25, 0.5]])


def test_tasks_asked_for_are_a_snapshot(envs):
    envs.reset(seed=0)
    before = envs.tasks
    saved = before.params["goal"].copy()
    envs.set_tasks({"goal": np.array([[4, 4]] * 3)})
    np.testing.assert_array_equal(before.params["goal"], saved)


def test_a_seeded_partial_reset_reseeds_only_what_it_resets():
    family = make_family("metarl/TabularMDP-v0")
    tasks = family.sample(3, "train", 0)
    trajectories = []
    for seed in (None, 5):
        envs = family.make_vec(3, autoreset_mode="Disabled")
        envs.reset(seed=1, options={"tasks": tasks})
        envs.reset(seed=seed, options={"reset_mask": np.array([False, True, False])})
        trajectories.append([envs.step(np.zeros(3, int))[1] for _ in range(5)])
    same_rewards = (np.array(trajectories[0]) == np.array(trajectories[1])).all(0)
    assert same_rewards.tolist() == [True, False, True]


def test_own_tasks_do_not_depend_on_when_the_neighbours_end():
    family = make_family("metarl/Navigation2D-v0")
    runs = []
    for neighbour_resets in (0, 2):
        envs = family.make_vec(2, episodes_per_task=1, autoreset_mode="Disabled")
        envs.reset(seed=0)
        for _ in range(neighbour_resets):
            envs.reset(options={"reset_mask": np.array([False, True])})
        goals = []
        for _ in range(3):
            envs.reset(options={"reset_mask": np.array([True, False])})
            goals.append(envs.tasks.params["goal"][0])
        runs.append(goals)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert len(np.unique(runs[0], axis=0)) == 3


def test_own_tasks_of_all_slots_and_trials_differ():
    envs = make_family("metarl/Navigation2D-v0").make_vec(4, episodes_per_task=1, autoreset_mode="Disabled")
    envs.reset(seed=0)
    goals = [envs.tasks.params["goal"]]
    for mask in itertools.islice(itertools.cycle([[1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]]), 9):
        mask = np.array(mask, bool)
        envs.reset(options={"reset_mask": mask})
        goals.append(envs.tasks.params["goal"][mask])
    goals = np.concatenate(goals)
    assert len(np.unique(goals, axis=0)) == len(goals)

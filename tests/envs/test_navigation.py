import math

import numpy as np
import pytest

from metarl_envs import make_family

DENSE, SEMICIRCLE, SPARSE = "metarl/Navigation2D-v0", "metarl/Navigation2DSemicircle-v0", "metarl/Navigation2DSparse-v0"
every_version = pytest.mark.parametrize("env_id", [DENSE, SEMICIRCLE, SPARSE])


def tasks_at(family, goals):
    tasks = family.sample(len(goals))
    tasks.params["goal"][:] = goals
    return tasks


def play_plainly(env_id, goal, actions):
    """One episode in plain Python: positions, rewards and whether it ended at the goal."""
    x = y = 0.0
    steps = []
    for action in actions:
        x += min(max(action[0], -0.1), 0.1)
        y += min(max(action[1], -0.1), 0.1)
        distance = math.sqrt((goal[0] - x) ** 2 + (goal[1] - y) ** 2)
        if env_id == SPARSE:
            reward = 1 - distance if distance <= 0.2 else 0.0
        else:
            reward = -distance
        reached = env_id == DENSE and abs(goal[0] - x) < 0.01 and abs(goal[1] - y) < 0.01
        steps.append(((x, y), reward, reached))
        if reached:
            break
    return steps


@every_version
def test_trajectories_equal_plain_python(env_id):
    family = make_family(env_id)
    tasks = family.sample(20, "test", 0)
    envs = family.make_vec(20, autoreset_mode="Disabled")
    observations, _ = envs.reset(seed=0, options={"tasks": tasks})
    assert observations.dtype == np.float32
    assert not observations.any()
    rng = np.random.default_rng(0)  # drift towards the goal, so that some arrive, in steps that are sometimes too large
    noise = rng.normal(0, 0.05, (family.num_steps, 20, 2))
    positions, played = np.zeros((20, 2)), []
    for jitter in noise:
        actions = np.clip(tasks.params["goal"] - positions, -0.3, 0.3) + jitter
        positions += np.clip(actions, -0.1, 0.1)
        played.append((actions, *envs.step(actions)[:4]))
    ended = 0
    for slot in range(20):
        steps = play_plainly(env_id, tasks.params["goal"][slot].tolist(), [row[0][slot].tolist() for row in played])
        for (position, reward, reached), (_, observations, rewards, terminated, _) in zip(steps, played, strict=False):
            assert observations[slot] == pytest.approx(position, abs=1e-6)
            assert rewards[slot] == pytest.approx(reward, abs=1e-12)
            assert terminated[slot] == reached
        ended += reached
        assert played[-1][4][slot] == (not played[-1][3][slot])
    assert (ended > 0) == (env_id == DENSE)


@pytest.mark.parametrize(
    ("env_id", "goal", "best"),
    [
        (DENSE, (0.25, 0.1), -0.15 - 0.05),
        (DENSE, (-0.2, -0.2), -math.sqrt(0.02)),
        (DENSE, (0.005, 0.105), -0.005),
        (DENSE, (0.0, 0.0), 0.0),
        (SEMICIRCLE, (0.0, 0.25), -0.15 - 0.05),
        (SPARSE, (0.0, 0.95), 0.85 + 0.95 + 11 * 1.0),
        (SPARSE, (0.0, 2.15), 0.85),
        (SPARSE, (0.0, 3.0), 0.0),
    ],
)
def test_ceilings_of_known_goals(env_id, goal, best):
    family = make_family(env_id)
    assert family.ceiling(tasks_at(family, [goal])) == pytest.approx([best], abs=1e-12)


def test_the_ceiling_counts_no_step_after_the_end():
    family = make_family(DENSE, max_step=0.001)
    assert family.ceiling(tasks_at(family, [(0.0115, 0.0)])) == pytest.approx([-0.0105 - 0.0095])


@every_version
def test_walking_straight_earns_the_ceiling_and_nothing_else_earns_more(env_id):
    family = make_family(env_id)
    tasks = family.sample(60, "test", 0)
    goals, ceilings = tasks.params["goal"], family.ceiling(tasks)
    rng = np.random.default_rng(0)
    for noise in (0.0, 0.01, 0.05, 1.0):
        envs = family.make_vec(60, autoreset_mode="Disabled")
        observations, _ = envs.reset(seed=0, options={"tasks": tasks})
        positions, returns, playing = np.zeros((60, 2)), np.zeros(60), np.ones(60, bool)
        for _ in range(family.num_steps):
            actions = np.clip(goals - positions, -0.1, 0.1) + noise * rng.normal(size=(60, 2))
            positions += np.clip(actions, -0.1, 0.1)
            observations, rewards, terminated, *_ = envs.step(actions)
            returns += rewards * playing
            playing &= ~terminated
        np.testing.assert_allclose(observations, positions, atol=1e-6)
        if noise == 0:
            np.testing.assert_allclose(returns, ceilings, atol=1e-9)
        else:
            assert (returns < ceilings - 1e-9).all()


def test_standing_still_and_the_optimum_of_the_published_version():
    family = make_family(DENSE)
    tasks = family.sample(20_000, "train", 0)
    assert -100 * np.hypot(*tasks.params["goal"].T).mean() == pytest.approx(-38.26, abs=0.3)
    assert family.ceiling(tasks).mean() == pytest.approx(-0.506, abs=0.01)


def test_actions_are_clipped_in_each_coordinate():
    envs = make_family(DENSE).make_vec(2)
    envs.reset(seed=0, options={"tasks": {"goal": np.array([[0.5, 0.5], [0.5, 0.5]])}})
    observations, rewards, *_ = envs.step(np.array([[7.0, -0.05], [-0.2, 0.1]]))
    np.testing.assert_allclose(observations, [[0.1, -0.05], [-0.1, 0.1]], atol=1e-7)
    np.testing.assert_allclose(rewards, [-math.hypot(0.4, 0.55), -math.hypot(0.6, 0.4)])


def test_the_goal_terminates_and_the_step_limit_truncates():
    envs = make_family(DENSE).make_vec(2)
    envs.reset(seed=0, options={"tasks": {"goal": np.array([[0.1, 0.0], [0.1, 0.0]])}})
    actions = np.array([[0.095, 0.0], [0.0, 0.0]])
    observations, _, terminated, truncated, infos = envs.step(actions)
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    np.testing.assert_allclose(infos["final_obs"][0], [0.095, 0])
    assert not observations.any()
    for _ in range(99):
        *_, terminated, truncated, _ = envs.step(np.zeros((2, 2)))
    assert truncated.tolist() == [False, True]
    assert not terminated.any()


def test_sparse_rewards_are_paid_within_the_radius_only():
    envs = make_family(SPARSE).make_vec(1)
    envs.reset(seed=0, options={"tasks": {"goal": np.array([[0.25, 0.0]])}})
    rewards = [envs.step(np.array([[0.1, 0.0]]))[1][0] for _ in range(5)]
    assert rewards == pytest.approx([0.85, 0.95, 0.95, 0.85, 0.0])


@pytest.mark.parametrize("split", ["train", "test", "ood"])
def test_square_goals_lie_inside_or_in_the_frame(split):
    goals = make_family(DENSE).sample(4000, split, 0).params["goal"]
    edge = np.abs(goals).max(-1)
    assert np.abs(goals.mean(0)).max() < 0.03
    if split == "ood":
        assert edge.min() >= 0.5
        assert edge.max() <= 0.75
        area = (edge**2 - 0.5**2) / (0.75**2 - 0.5**2)
    else:
        assert edge.max() <= 0.5
        area = edge**2 / 0.5**2
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)


@pytest.mark.parametrize("split", ["train", "test", "ood"])
def test_semicircle_goals_lie_on_the_arc_or_in_the_ring(split):
    goals = make_family(SPARSE).sample(4000, split, 0).params["goal"]
    radius, angle = np.hypot(*goals.T), np.arctan2(goals[:, 1], goals[:, 0])
    assert angle.min() >= 0
    np.testing.assert_allclose(np.quantile(angle, [0.25, 0.5, 0.75]) / np.pi, [0.25, 0.5, 0.75], atol=0.03)
    if split == "ood":
        assert radius.min() >= 1
        assert radius.max() <= 1.5
        assert radius.std() > 0.1
    else:
        np.testing.assert_allclose(radius, 1)


def test_versions_have_the_published_lengths():
    lengths = {env_id: make_family(env_id).max_episode_steps for env_id in (DENSE, SEMICIRCLE, SPARSE)}
    assert lengths == {DENSE: 100, SEMICIRCLE: 100, SPARSE: 20}

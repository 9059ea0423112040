"""Locomotion: equality with Gymnasium's v5 environments, dynamics that stay, and quiet."""

import copy
import logging
import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from metarl_envs import make_family

mujoco = pytest.importorskip("mujoco")

from metarl_envs.mujoco.simulation import Rollouts, Slots, load_model  # noqa: E402

STEPS = 200
NO_CONTACT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}

TWINS = {
    "metarl/HalfCheetahDirection-v0": ("HalfCheetah-v5", {"direction": [1.0]}, {"ctrl_cost_weight": 0.05}),
    "metarl/AntDirection-v0": ("Ant-v5", {"angle": [0.0]}, NO_CONTACT),
    "metarl/HumanoidDirection-v0": ("Humanoid-v5", {"angle": [0.0]}, NO_CONTACT),
    "metarl/Walker2dDynamics-v0": ("Walker2d-v5", None, {}),
    "metarl/HopperDynamics-v0": ("Hopper-v5", None, {}),
}
"""Families whose reward, in one task, is that of a Gymnasium environment."""

ALL = [*TWINS, "metarl/HalfCheetahVelocity-v0", "metarl/AntGoal-v0"]


def edit(model, family, task):
    """What `set_dynamics` does, written out once more."""
    for body in range(1, model.nbody):
        model.body_mass[body] *= task["mass"][body - 1]
        model.body_inertia[body] *= task["mass"][body - 1]
    for joint in range(3, model.nv):
        model.dof_damping[joint] *= task["damping"][joint - 3]
    for geom in range(model.ngeom):
        model.geom_friction[geom] *= task["friction"][geom]
    mujoco.mj_setConst(model, mujoco.MjData(model))


def follow(env, qpos, qvel):
    """Put Gymnasium's environment where a slot starts."""
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(qpos, qvel)


# -- equality with Gymnasium ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", TWINS)
def test_steps_equal_those_of_gymnasium(env_id):
    name, task, kwargs = TWINS[env_id]
    family = make_family(env_id, num_steps=STEPS)
    tasks = family.sample(1, "train", 0) if task is None else {key: np.array(v) for key, v in task.items()}
    env = gym.make(name, **kwargs).unwrapped
    if task is None:
        edit(env.model, family, {key: values[0] for key, values in tasks.params.items()})
    envs = family.make_vec(1, autoreset_mode="Disabled")
    observations, _ = envs.reset(seed=1, options={"tasks": tasks})
    simulation = envs._state["simulation"]
    follow(env, simulation.qpos[0], simulation.qvel[0])
    np.testing.assert_allclose(observations[0], env._get_obs(), rtol=0, atol=1e-10)
    rng = np.random.default_rng(0)
    high = family.action_space.high
    ends = 0
    for step in range(STEPS):
        if not isinstance(simulation, Slots):  # the same state: what is beyond 1e-10 would grow from step to step
            env.data.qpos[:], env.data.qvel[:] = simulation.qpos[0], simulation.qvel[0]
        action = (1.2 * high * rng.uniform(-1, 1, len(high))).astype(np.float32 if step % 2 else np.float64)
        expected, reward, terminated, *_ = env.step(action)
        observations, rewards, ended, truncated, _ = envs.step(action[None])
        np.testing.assert_allclose(observations[0], expected, rtol=0, atol=1e-10)
        assert rewards[0] == pytest.approx(reward, rel=0, abs=1e-10)
        assert bool(ended[0]) == bool(terminated)
        if ended[0] or truncated[0] or step % 70 == 69:
            ends += 1
            envs.reset(options={"reset_mask": np.ones(1, bool)})
            follow(env, simulation.qpos[0], simulation.qvel[0])
    assert ends >= 2
    env.close()
    envs.close()


def test_velocity_is_paid_by_its_distance():
    env = gym.make("HalfCheetah-v5").unwrapped
    envs = make_family("metarl/HalfCheetahVelocity-v0").make_vec(1)
    envs.reset(seed=0, options={"tasks": {"velocity": np.array([1.5])}})
    follow(env, envs._state["simulation"].qpos[0], envs._state["simulation"].qvel[0])
    action = np.linspace(-1, 1, 6)
    info = env.step(action)[4]
    assert envs.step(action[None])[1][0] == pytest.approx(
        -abs(info["x_velocity"] - 1.5) - 0.05 * (action**2).sum(), abs=1e-10
    )


def test_a_goal_is_paid_by_its_distance_along_the_axes():
    env = gym.make("Ant-v5", **NO_CONTACT, exclude_current_positions_from_observation=False).unwrapped
    envs = make_family("metarl/AntGoal-v0").make_vec(1)
    envs.reset(seed=0, options={"tasks": {"goal": np.array([[1.0, -2.0]])}})
    follow(env, envs._state["simulation"].qpos[0], envs._state["simulation"].qvel[0])
    expected, *_ = env.step(np.ones(8))
    x, y = env.data.body("torso").xpos[:2]
    observations, rewards, *_ = envs.step(np.ones((1, 8)))
    assert rewards[0] == pytest.approx(-abs(x - 1) - abs(y + 2) - 0.8, abs=1e-10)
    np.testing.assert_allclose(observations[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("angle", "component"), [(0.0, 0), (np.pi / 2, 1)])
def test_a_direction_is_paid_by_the_velocity_that_way(angle, component):
    envs = make_family("metarl/AntDirection-v0", ctrl_cost_weight=0.0, healthy_reward=0.0).make_vec(1)
    envs.reset(seed=0, options={"tasks": {"angle": np.array([angle])}})
    before = envs._state["location"].copy()
    rewards = envs.step(np.ones((1, 8)))[1]
    velocity = (envs._state["location"] - before) / 0.05
    assert rewards[0] == pytest.approx(velocity[0, component], abs=1e-12)


# -- batches ---------------------------------------------------------------------------------------------------------------


def play(envs, actions):
    out = []
    for action in actions:
        observations, rewards, terminated, truncated, _ = envs.step(action)
        out.append((observations, rewards, terminated, truncated))
    return [np.stack(parts) for parts in zip(*out, strict=True)]


@pytest.mark.parametrize("env_id", ["metarl/AntGoal-v0", "metarl/Walker2dDynamics-v0"])
def test_threads_change_nothing(env_id):
    results = []
    for threads in (1, 3):
        envs = make_family(env_id, num_steps=5, threads=threads).make_vec(7)
        envs.reset(seed=0)
        rng = np.random.default_rng(0)
        results.append(play(envs, rng.uniform(-1, 1, (12, *envs.action_space.shape))))
        envs.close()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda envs: pickle.loads(pickle.dumps(envs))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("env_id", ALL)
def test_copies_go_on_as_the_original(env_id, copied):
    envs = make_family(env_id, num_steps=6, threads=2).make_vec(3)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-0.4, 0.4, (12, *envs.action_space.shape))
    play(envs, actions[:3])
    other = copied(envs)
    for one, again in zip(play(envs, actions[3:]), play(other, actions[3:]), strict=True):
        np.testing.assert_array_equal(one, again)


# -- dynamics --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["metarl/Walker2dDynamics-v0", "metarl/HopperDynamics-v0"])
def test_strange_bodies_move_as_gymnasium_moves_them(env_id):
    # with some masses the solver's result depends on where it starts: one step in hundreds would be off
    family = make_family(env_id, num_steps=STEPS)
    tasks = family.sample(8, "ood", 0)
    envs = family.make_vec(8, autoreset_mode="Disabled")
    envs.reset(seed=0, options={"tasks": tasks})
    twins = [gym.make(TWINS[env_id][0]).unwrapped for _ in range(8)]
    simulation = envs._state["simulation"]
    for slot, env in enumerate(twins):
        edit(env.model, family, {key: values[slot] for key, values in tasks.params.items()})
        follow(env, simulation.qpos[slot], simulation.qvel[slot])
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        actions = rng.uniform(-1, 1, envs.action_space.shape)
        observations, rewards, ended, *_ = envs.step(actions)
        expected = [env.step(action)[:3] for env, action in zip(twins, actions, strict=True)]
        np.testing.assert_allclose(observations, [o for o, _, _ in expected], rtol=0, atol=1e-10)
        np.testing.assert_allclose(rewards, [r for _, r, _ in expected], rtol=0, atol=1e-10)
        np.testing.assert_array_equal(ended, [t for _, _, t in expected])
        if ended.any():
            envs.reset(options={"reset_mask": ended})
            for slot in np.flatnonzero(ended):
                follow(twins[slot], simulation.qpos[slot], simulation.qvel[slot])


@pytest.mark.parametrize("env_id", ["metarl/Walker2dDynamics-v0", "metarl/HopperDynamics-v0"])
def test_every_slot_has_the_dynamics_of_its_task(env_id):
    family = make_family(env_id)
    envs = family.make_vec(4)
    tasks = family.sample(4, "train", 0)
    envs.reset(seed=0, options={"tasks": tasks})
    for slot, model in enumerate(envs._state["simulation"].models):
        expected = load_model(family.file)
        edit(expected, family, {key: values[slot] for key, values in tasks.params.items()})
        for name in ("body_mass", "body_inertia", "dof_damping", "geom_friction", "body_subtreemass", "dof_invweight0"):
            np.testing.assert_array_equal(getattr(model, name), getattr(expected, name), err_msg=name)
    untouched = load_model(family.file)
    np.testing.assert_array_equal(family.model.body_mass, untouched.body_mass)


def test_a_new_task_replaces_the_dynamics_and_the_old_one_brings_them_back():
    family = make_family("metarl/HopperDynamics-v0")
    tasks = family.sample(2, "train", 0)
    envs = family.make_vec(1)
    seen = []
    for row in (0, 1, 0):
        envs.reset(seed=3, options={"tasks": tasks[row]})
        seen.append(play(envs, np.full((5, 1, 3), 0.5))[0])
    np.testing.assert_array_equal(seen[0], seen[2])
    assert not np.allclose(seen[0], seen[1])


def test_factors_reach_as_far_as_they_say():
    family = make_family("metarl/Walker2dDynamics-v0", log_scale=2.0, ood_log_scale=5.0)
    for split, most in (("train", 2), ("test", 2), ("ood", 5)):
        params = family.sample(200, split, 0).params
        exponents = np.concatenate(
            [np.log(params[name]) / np.log(base) for name, base in (("mass", 1.5), ("damping", 1.3), ("friction", 1.5))], -1
        )
        reach = np.abs(exponents).max(-1)
        assert 0.95 * most < reach.max() <= most + 1e-9
        assert (reach > 2).all() == (split == "ood")


# -- tasks -----------------------------------------------------------------------------------------------------------------


def test_ranges_of_tasks():
    velocities = make_family("metarl/HalfCheetahVelocity-v0", velocities=[1, 2], ood_velocity=5.0)
    inside, outside = velocities.sample(500, "test", 0), velocities.sample(500, "ood", 0)
    assert 1 <= inside.params["velocity"].min() < 1.05
    assert 1.95 < inside.params["velocity"].max() < 2 <= outside.params["velocity"].min()
    assert 4.9 < outside.params["velocity"].max() <= 5
    goals = make_family("metarl/AntGoal-v0", goal_radius=2.0)
    for split, low, high in (("train", 0, 2), ("ood", 2, 3)):
        radii = np.linalg.norm(goals.sample(2000, split, 0).params["goal"], axis=-1)
        assert radii.min() >= low
        assert radii.max() <= high + 1e-9
        assert (radii**2).mean() == pytest.approx((low**2 + high**2) / 2, rel=0.05)  # uniform in area
    for env_id, kwargs in (("HalfCheetahDirection", {}), ("AntDirection", {"directions": "two"})):
        family = make_family(f"metarl/{env_id}-v0", **kwargs)
        assert len(np.unique(next(iter(family.sample(50, "train", 0).params.values())))) == 2
        assert len(np.unique(next(iter(family.sample(50, "test", 0).params.values())))) == 2


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("HalfCheetahVelocity", {"velocities": (2, 1)}, "velocities must be two numbers, the lower first"),
        ("HalfCheetahVelocity", {"ood_velocity": 1.0}, "ood_velocity must be above 3"),
        ("AntDirection", {"directions": "three"}, "directions must be two or all"),
        ("AntGoal", {"goal_radius": 0.0}, "goal_radius must be above 0"),
        ("HopperDynamics", {"ood_log_scale": 1.0}, "ood_log_scale must be above 3"),
        ("HopperDynamics", {"healthy_z_range": (2, 1)}, "healthy_z_range must be two numbers, the lower first"),
        ("HumanoidDirection", {"num_steps": 0}, "num_steps must be at least 1"),
        ("HumanoidDirection", {"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ("HumanoidDirection", {"healthy_z_range": 5}, "healthy_z_range must be two numbers, got 5"),
        ("AntGoal", {"ood_scale": float("inf")}, "ood_scale must be above 1, got inf"),
    ],
)
def test_wrong_parameters_are_named(env_id, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_family(f"metarl/{env_id}-v0", **kwargs)


# -- quiet -----------------------------------------------------------------------------------------------------------------


def test_nothing_is_printed_and_no_file_is_left(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    for file in ("half_cheetah.xml", "ant.xml", "humanoid.xml"):
        load_model(file)
    with caplog.at_level(logging.WARNING, "metarl_envs"):
        simulation = Rollouts(load_model("half_cheetah.xml"), 1, 5, 1)
        simulation.place(slice(None), np.zeros((1, 9)), np.full((1, 9), 1e12))
        simulation.step(np.zeros((1, 6)))
    assert "simulation is unstable" in caplog.text
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


# -- pictures --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawing():
    """Skips where nothing draws without a screen."""
    from metarl_envs.mujoco.rendering import backend

    try:
        return backend()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("env_id", ["metarl/HopperDynamics-v0", "metarl/AntGoal-v0"])
def test_every_slot_is_drawn_as_it_is(drawing, env_id):
    envs = gym.make_vec(env_id, num_envs=2, render_mode="rgb_array")
    envs.reset(seed=0)
    before = envs.render()
    assert [picture.shape for picture in before] == [(240, 320, 3)] * 2
    for _ in range(20):
        envs.step(envs.action_space.sample())
    after = envs.render()
    assert all(picture.std() > 10 for picture in after)
    assert not np.array_equal(before[0], after[0])
    assert not np.array_equal(*after)


def test_a_goal_is_a_red_ball(drawing):
    envs = gym.make_vec("metarl/AntGoal-v0", num_envs=2, render_mode="rgb_array")
    envs.reset(seed=0, options={"tasks": {"goal": np.array([[1.0, 0.0], [50.0, 0.0]])}})
    near, far = (((p[..., 0] > 120) & (p[..., 1] < 60) & (p[..., 2] < 60)).sum() for p in envs.render())
    assert near > 20 > far == 0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("nothing", "no way to draw without a screen: MuJoCo tried nothing"),
        ("off", "drawing is switched off by MUJOCO_GL=off"),
    ],
)
def test_what_cannot_draw_is_named(monkeypatch, chosen, message):
    from metarl_envs.mujoco import rendering

    monkeypatch.setenv("MUJOCO_GL", chosen)
    with pytest.raises(gym.error.DependencyNotInstalled, match=message):
        rendering.backend.__wrapped__()


# -- processes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["metarl/HalfCheetahVelocity-v0", "metarl/AntGoal-v0"])
def test_environments_work_in_a_forked_process(env_id):
    code = (
        "import os, signal, numpy as np; from metarl_envs import make_family\n"
        f"envs = make_family({env_id!r}, threads=2).make_vec(4); envs.reset(seed=0)\n"
        "actions = np.zeros(envs.action_space.shape); envs.step(actions)\n"
        "child = os.fork()\n"
        "if child == 0: signal.alarm(30); envs.step(actions); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_a_closed_environment_says_so():
    envs = make_family("metarl/HopperDynamics-v0").make_vec(2)
    envs.reset(seed=0)
    envs.close()
    with pytest.raises(gym.error.ClosedEnvironmentError, match="not closed"):
        envs.step(np.zeros((2, 3)))

"""Context families: physical parameters reach real environments, and the closed forms equal them."""

import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from metarl_envs import ContextFamily, TaskSet, make_family
from metarl_envs.context import derived_attributes, numeric_attributes, set_parameters

CARTPOLE = {
    "gravity": (6.0, 14.0),
    "masscart": (0.5, 2.0),
    "masspole": (0.05, 0.3),
    "length": (0.3, 1.0),
    "force_mag": (5.0, 15.0),
    "tau": (0.01, 0.03),
    "theta_threshold_radians": (0.1, 0.3),
    "x_threshold": (1.0, 3.0),
}
PENDULUM = {
    "g": (6.0, 14.0),
    "m": (0.5, 1.5),
    "l": (0.7, 1.3),
    "dt": (0.02, 0.08),
    "max_torque": (1.0, 3.0),
    "max_speed": (4.0, 9.0),
}


class Spring(gym.Env):
    """A mass on a spring, with a derived attribute, a random kick, an own time limit and observations in a dictionary."""

    observation_space = gym.spaces.Dict(
        {"body": gym.spaces.Dict({"position": gym.spaces.Box(-np.inf, np.inf, (1,))}), "phase": gym.spaces.Discrete(2)}
    )
    action_space = gym.spaces.Discrete(3, start=-1)
    mass = 1.0

    def __init__(self, stiffness: float = 2.0, patience: int = 7):
        self.stiffness, self.patience = stiffness, patience
        self.frequency_squared = stiffness / self.mass
        self.closed = False

    def _observation(self):
        return {"body": {"position": np.array([self.x], np.float32)}, "phase": int(self.v > 0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v, self.t = self.np_random.uniform(-1, 1), 0.0, 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        self.v += 0.1 * (action - self.frequency_squared * self.x) + 0.01 * self.np_random.normal()
        self.x += 0.1 * self.v
        return self._observation(), -abs(self.x), abs(self.x) > 1, self.t == self.patience, {}

    def close(self):
        self.closed = True


@derived_attributes.register
def _(env: Spring):
    return {"frequency_squared": env.stiffness / env.mass}


class Opaque(Spring):
    """Its parameter is no attribute of the environment."""

    def __init__(self):
        super().__init__()
        self.model = {"drag": 0.0}


@set_parameters.register
def _(env: Opaque, parameters):
    env.model.update(parameters)


gym.register("test/Spring-v0", Spring, max_episode_steps=100)
gym.register("test/Opaque-v0", Opaque, max_episode_steps=100)
gym.register("test/Endless-v0", Spring)


def play(envs, tasks, num_steps, seed=5):
    """Everything that `num_steps` random steps return, flattened to arrays."""
    envs.action_space.seed(0)
    records = [envs.reset(seed=seed, options={"tasks": tasks})[0]]
    for _ in range(num_steps):
        *step, infos = envs.step(envs.action_space.sample())
        records += [*step, infos["final_obs"]] if infos else step
    return records


def assert_all_close(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# -- closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env", "ranges"), [("CartPole-v1", CARTPOLE), ("Pendulum-v1", PENDULUM), ("CartPole-v1", {})])
def test_closed_form_equals_the_environments(env, ranges):
    family = ContextFamily(env, ranges=ranges)
    tasks = family.sample(8, "train", 0)
    fast, slow = family.make_vec(8), ContextFamily(env, ranges=ranges, batched=False).make_vec(8)
    assert "physics" in fast._state
    assert "envs" in slow._state
    assert_all_close(play(fast, tasks, 500), play(slow, tasks, 500), 1e-5)


def test_closed_form_equals_a_bare_cartpole_and_terminates_with_it():
    task = {"length": 0.8, "gravity": 12.0, "masspole": 0.3}
    bare = gym.make("CartPole-v1").unwrapped
    bare.reset(seed=0)
    bare.length, bare.gravity, bare.masspole = 0.8, 12.0, 0.3
    bare.total_mass, bare.polemass_length = 1.3, 0.24
    envs = ContextFamily(ranges={name: (0.1, 20.0) for name in task}).make_vec(1, autoreset_mode="Disabled")
    envs.reset(seed=0)
    envs.set_attr("task", [task])
    rng = np.random.default_rng(1)
    terminations = 0
    done = True
    for _ in range(500):
        if done:
            observation, _ = envs.reset()
            bare.state, bare.steps_beyond_terminated = envs._state["physics"][0].copy(), None
        action = rng.integers(2)
        observation, reward, terminated, truncated, _ = envs.step(np.array([action]))
        expected, expected_reward, done, _, _ = bare.step(action)
        np.testing.assert_allclose(observation[0], expected, rtol=1e-6)
        assert (reward[0], terminated[0], truncated[0]) == (expected_reward, done, False)
        terminations += done
    assert terminations > 10


def test_closed_form_is_left_when_it_would_not_be_understood():
    assert ContextFamily(env_kwargs={"sutton_barto_reward": True})._dynamics
    assert not ContextFamily("test/Spring-v0")._dynamics
    assert not ContextFamily(ranges={"screen_width": (1, 2)})._dynamics
    assert not ContextFamily("Acrobot-v1", ranges={"LINK_LENGTH_1": (0.5, 1.5)})._dynamics


@pytest.mark.parametrize("batched", [True, False])
def test_sutton_barto_reward(batched):
    envs = ContextFamily(env_kwargs={"sutton_barto_reward": True}, batched=batched).make_vec(4)
    envs.reset(seed=0)
    for _ in range(40):
        _, rewards, terminated, _, _ = envs.step(np.ones(4, int))
        np.testing.assert_array_equal(rewards, -terminated.astype(float))


# -- parameters reach environments -------------------------------------------------------------------------------


def test_derived_attributes_follow():
    envs = ContextFamily(ranges=CARTPOLE, batched=False).make_vec(3)
    envs.reset(seed=0)
    for env, task in zip(envs._state["envs"], envs.get_attr("task"), strict=True):
        bare = env.unwrapped
        assert bare.length == task["length"]
        assert bare.total_mass == task["masspole"] + task["masscart"]
        assert bare.polemass_length == task["masspole"] * task["length"]


def test_own_derived_attributes_and_constructor_arguments():
    envs = ContextFamily("test/Spring-v0", ranges={"mass": (1, 2)}, env_kwargs={"stiffness": 6.0}).make_vec(2)
    envs.reset(seed=0)
    for env, task in zip(envs._state["envs"], envs.get_attr("task"), strict=True):
        assert env.unwrapped.frequency_squared == 6.0 / task["mass"]
    assert Spring.mass == 1.0
    assert numeric_attributes(Spring()) == ["mass", "patience", "stiffness"]


def test_parameters_that_are_no_attributes():
    envs = ContextFamily("test/Opaque-v0", ranges={"drag": (1, 2)}).make_vec(2)
    envs.reset(seed=0)
    drags = [env.unwrapped.model["drag"] for env in envs._state["envs"]]
    np.testing.assert_array_equal(drags, envs.tasks.params["drag"])


def test_parameters_change_at_the_next_reset_only():
    for batched in (True, False):
        envs = ContextFamily(ranges={"gravity": (1, 20)}, batched=batched).make_vec(2, autoreset_mode="Disabled")
        envs.reset(seed=0, options={"tasks": {"gravity": np.array([2.0, 2.0])}})
        envs.set_tasks({"gravity": np.array([9.0, 9.0])})
        envs.reset(options={"reset_mask": np.array([True, False])})
        used = envs._state["gravity"] if batched else [env.unwrapped.gravity for env in envs._state["envs"]]
        np.testing.assert_array_equal(used, [9.0, 2.0])


def test_single_equals_slot():
    for env_id in ("metarl/CartPoleContext-v0", "metarl/PendulumContext-v0"):
        single = gym.make(env_id, num_steps=30).unwrapped
        envs = make_family(env_id, num_steps=30).make_vec(3)
        tasks = envs.family.sample(3, "test", 1)
        observations, _ = envs.reset(seed=11, options={"tasks": tasks})
        observation, _ = single.reset(seed=13, options={"task": tasks[2]})
        np.testing.assert_array_equal(observation, observations[2])
        envs.action_space.seed(0)
        for _ in range(100):
            actions = envs.action_space.sample()
            observations, rewards, terminated, truncated, _ = envs.step(actions)
            observation, *rest, _ = single.step(actions[2])
            assert rest == [rewards[2], terminated[2], truncated[2]]
            if terminated[2] or truncated[2]:
                observation, _ = single.reset()
            np.testing.assert_array_equal(observation, observations[2])


def test_any_environment_with_its_own_truncation_and_nested_observations():
    family = ContextFamily("test/Spring-v0", ranges={"stiffness": (0.1, 1)})
    envs = family.make_vec(2)
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    for step in range(1, 15):
        *_, terminated, truncated, infos = envs.step(np.array([-1, 1]))
        assert bool(infos) == (terminated | truncated).any()
        np.testing.assert_array_equal(truncated & ~terminated, truncated)
        assert truncated.any() or terminated.any() or step % 7
    wrapped = [env.unwrapped for env in envs._state["envs"]]
    envs.close()
    assert all(env.closed for env in wrapped)
    single = gym.make("metarl/Context-v0", env="test/Spring-v0", ranges={"mass": (1, 2)})
    observation, _ = single.reset(seed=0)
    assert observation in single.observation_space
    with pytest.raises(ValueError, match=r"actions must be in \[-1, 2\), got 2"):
        single.unwrapped.step(2)


def test_time_limit_truncates():
    envs = ContextFamily("Pendulum-v1", ranges={"g": (9, 10)}).make_vec(1, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    ends = [envs.step(np.zeros((1, 1), np.float32))[2:4] for _ in range(200)]
    assert [t[0] for _, t in ends] == [False] * 199 + [True]
    assert not any(t[0] for t, _ in ends)


# -- tasks -------------------------------------------------------------------------------------------------------


def test_splits():
    family = ContextFamily(ranges={"length": (0.3, 1.0), "gravity": (6.0, 14.0)}, ood_ranges={"gravity": (6.0, 20.0)})
    train, test, ood = (family.sample(500, split, 0).params for split in ("train", "test", "ood"))
    for params in (train, test):
        assert (params["length"] >= 0.3).all()
        assert (params["length"] < 1.0).all()
    pairs = [set(zip(params["length"], params["gravity"], strict=True)) for params in (train, test)]
    assert len(pairs[0] | pairs[1]) == 1000
    assert ((ood["length"] < 0.3) | (ood["length"] >= 1.0)).all()
    assert ood["length"].min() < 0.2 < 1.2 < ood["length"].max()
    assert (ood["length"] >= 0.15).all()
    assert ood["gravity"].min() >= 14.0
    assert 18.0 < ood["gravity"].max() < 20.0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (2.0, 4.0, (1.0, 5.0)),
        (1.0, 4.0, (0.5, 5.5)),
        (0.0, 1.0, (0.0, 1.5)),
        (-1.0, 1.0, (-2.0, 2.0)),
        (-4.0, -1.0, (-5.5, -0.5)),
    ],
)
def test_default_extrapolation(low, high, expected):
    assert ContextFamily(ranges={"gravity": (low, high)})._outer == {"gravity": expected}


def test_serialising(tmp_path):
    family = ContextFamily("Acrobot-v1", ranges={"LINK_MASS_1": [1, 2]}, num_steps=50, num_episodes=3)
    assert make_family(family.env_id, **family.kwargs) == family
    tasks = TaskSet.load(family.sample(4, "ood", 0).save(tmp_path / "tasks"))
    assert make_family(tasks.env_id, **tasks.family_kwargs) == family
    slow = ContextFamily(ranges=CARTPOLE, batched=False)
    assert slow.sample(4, "train", 0).hash == ContextFamily(ranges=CARTPOLE).sample(4, "train", 0).hash


def test_a_plain_environment_is_a_family_of_one_task():
    family = make_family("CartPole-v1")
    assert family == ContextFamily("CartPole-v1")
    assert (family.splits, family.max_episode_steps) == (("train", "test"), 500)
    assert len(family.sample(3, "test", 0)) == 3
    np.testing.assert_array_equal(family.ceiling(family.sample(2)), [500, 500])
    assert make_family("Acrobot-v1").ceiling(make_family("Acrobot-v1").sample(2)) is None
    assert make_family("gymnasium:MountainCar-v0", num_steps=7).max_episode_steps == 7


def test_registered_families_pass_gymnasiums_checker():
    for env_id in ("metarl/Context-v0", "metarl/CartPoleContext-v0", "metarl/PendulumContext-v0"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the spaces of Gymnasium's own environments
            check_env(gym.make(env_id).unwrapped, skip_render_check=True)
    envs = gym.make_vec("metarl/Context-v0", 3, env="Acrobot-v1", ranges={"LINK_LENGTH_1": (0.5, 1.5)}, num_steps=9)
    assert envs.reset(seed=0)[0].shape == (3, 6)
    envs.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"ranges": {"lenght": (1, 2)}},
            r"'lenght', no numeric attribute of CartPoleEnv: it has force_mag, gravity, length",
        ),
        ({"ranges": {"total_mass": (1, 2)}}, r"'total_mass', which CartPoleEnv derives from others: vary some of force_mag"),
        ({"ranges": {"length": (2, 1)}}, r"ranges\['length'\] must be two finite numbers, the lower first, got \(2, 1\)"),
        ({"ranges": {"length": 3}}, r"ranges\['length'\] must be two finite numbers, the lower first, got 3"),
        ({"ood_ranges": {"length": (1, 2)}}, r"ood_ranges must name parameters in ranges"),
        ({"ranges": {"length": (1, 2)}, "ood_ranges": {"length": (1.5, 3)}}, r"must enclose its range \(1.0, 2.0\), got"),
        ({"env": "metarl/BernoulliBandit-v0"}, "env must be a plain environment, got the task family metarl/Bernoulli"),
        ({"env": "test/Endless-v0"}, "num_steps must be given for test/Endless-v0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_episodes": 0}, "num_episodes must be at least 1, got 0"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ContextFamily(**kwargs)


def test_unknown_environment():
    with pytest.raises(gym.error.Error, match="NoSuchThing"):
        make_family("NoSuchThing-v0")


class Odd(gym.Env):
    """Gives what it is told to, in spaces that it is told of."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, space, seen, reward=0.0):
        self.observation_space, self.seen, self.reward = space, seen, reward

    def reset(self, *, seed=None, options=None):
        return self.seen, {}

    def step(self, action):
        return self.seen, self.reward, False, False, {}


@pytest.mark.parametrize(
    ("space", "seen", "reward", "message"),
    [
        (
            gym.spaces.Box(-1, 1, (2,)),
            np.zeros(3),
            0.0,
            "observations of its own Box(-1.0, 1.0, (2,), float32), got",
        ),
        (gym.spaces.Discrete(3), 3, 0.0, "env must give observations of its own Discrete(3), got 3 in Odd-v0"),
        (
            gym.spaces.Dict(a=gym.spaces.Discrete(2)),
            {"a": 2},
            0.0,
            "give a in observations of its own Discrete(2), got 2",
        ),
        (
            gym.spaces.Dict(a=gym.spaces.Discrete(2)),
            {"b": 1},
            0.0,
            "give a in observations of its own Discrete(2), got None",
        ),
        (gym.spaces.Discrete(3), 2, np.array([1.0]), "env must give rewards that are numbers, got array([1.]) in Odd-v0"),
        (
            gym.spaces.Box(-1, 1, (0,)),
            np.zeros(0),
            0.0,
            "lists of choices and of numbers, got Box(",
        ),
        (
            gym.spaces.MultiDiscrete([[2, 3]]),
            np.zeros((1, 2)),
            0.0,
            "of numbers, got MultiDiscrete([[2 3]])",
        ),
    ],
)
def test_environments_that_do_not_keep_to_their_spaces(space, seen, reward, message):
    gym.register("Odd-v0", Odd, max_episode_steps=5, kwargs={"space": space, "seen": seen, "reward": reward})
    try:
        with pytest.raises(ValueError, match=re.escape(message)):
            ContextFamily("Odd-v0")
    finally:
        del gym.registry["Odd-v0"]


def test_environments_of_the_old_interface():
    class Old(Odd):
        def reset(self, **kwargs):
            return self.seen if self.reward is None else super().reset()

        def step(self, action):
            return super().step(action)[:4]

    for reward, message in ((None, "(observation, info) from reset, got 1"), (0.0, "five values from step, got (1, 0.0,")):
        gym.register(
            "Old-v0", Old, max_episode_steps=5, kwargs={"space": gym.spaces.Discrete(2), "seen": 1, "reward": reward}
        )
        try:
            with pytest.raises(ValueError, match=re.escape(f"env must give {message}")):
                ContextFamily("Old-v0")
        finally:
            del gym.registry["Old-v0"]


def test_an_environment_whose_class_is_not_there():
    gym.register("Nothing-v0", f"{__name__}:Nothing", max_episode_steps=5)
    try:
        with pytest.raises(ValueError, match=r"^env Nothing-v0 cannot be made: module .* has no attribute 'Nothing'"):
            ContextFamily("Nothing-v0")
    finally:
        del gym.registry["Nothing-v0"]

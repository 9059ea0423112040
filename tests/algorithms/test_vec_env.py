"""The seam to Stable-Baselines3: equality with its own vectorisation, and trials as episodes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from metarl.algorithms.vec_env import GymnasiumVecEnv, TrialVecEnv
from metarl_envs import ContextFamily, TaskEnv, make_family


class Corridor(gym.Env):
    """Two steps per episode; the reward is `gain` times the action. The second coordinate counts episodes."""

    observation_space = gym.spaces.Box(0, 100, (2,))
    action_space = gym.spaces.Discrete(3)
    gain, episode = 1.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        self.episode += 1
        return np.array([0, self.episode], np.float32), {"started": self.episode}

    def step(self, action):
        self.position += 1
        observation = np.array([self.position, self.episode], np.float32)
        return observation, self.gain * action, self.position == 2, False, {"at": self.position, "deep": {"x": [1, 2]}}


class Walk(gym.Env):
    """A noisy walk with observations in a dictionary; terminates at a distance of 1, else is truncated."""

    observation_space = gym.spaces.Dict({"position": gym.spaces.Box(-np.inf, np.inf, (2,)), "side": gym.spaces.Discrete(2)})
    action_space = gym.spaces.Box(-1, 1, (2,))
    stride = 0.3

    def _observation(self):
        return {"position": self.x.astype(np.float32), "side": int(self.x[0] > 0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(0, 0.1, 2)
        return self._observation(), {}

    def step(self, action):
        self.x = self.x + self.stride * action + self.np_random.normal(0, 0.1, 2)
        distance = float(np.linalg.norm(self.x))
        return self._observation(), -distance, distance > 1, False, {}


class NestedWalk(Walk):
    """The same, one level deeper."""

    observation_space = gym.spaces.Dict({"body": Walk.observation_space, "time": gym.spaces.Box(0, 1, (1,))})

    def _observation(self):
        return {"body": super()._observation(), "time": np.zeros(1, np.float32)}


gym.register("test/Corridor-v0", Corridor, max_episode_steps=10)
gym.register("test/Walk-v0", Walk, max_episode_steps=8)
gym.register("test/NestedWalk-v0", NestedWalk, max_episode_steps=8)

FAMILIES = {
    "bandit": make_family("metarl/BernoulliBandit-v0"),
    "cartpole": make_family("metarl/CartPoleContext-v0", num_steps=25),
    "walk": ContextFamily("test/Walk-v0", ranges={"stride": (0.2, 0.5)}),
}
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def side_by_side(family, mode, num_envs=3):
    """Stable-Baselines3's own vectorisation of the single environments, and ours, with the same tasks."""
    tasks = family.sample(num_envs, "train", 0)
    singles = [TaskEnv(family=family) for _ in range(num_envs)]
    for single, i in zip(singles, range(num_envs), strict=True):
        single.task = tasks[i]
    envs = family.make_vec(num_envs, autoreset_mode=mode)
    envs.set_tasks(tasks)
    return DummyVecEnv([lambda single=single: single for single in singles]), GymnasiumVecEnv(envs)


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def assert_same_steps(expected, actual, num_steps):
    expected.seed(4)
    actual.seed(4)
    assert_same(expected.reset(), actual.reset())
    assert actual.reset_infos == expected.reset_infos
    expected.action_space.seed(0)
    for _ in range(num_steps):
        actions = np.stack([expected.action_space.sample() for _ in range(expected.num_envs)])
        *left, left_infos = expected.step(actions)
        *right, right_infos = actual.step(actions)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
        for a, b in zip(left_infos, right_infos, strict=True):
            assert_same(a, b)
        assert actual.reset_infos == expected.reset_infos


# -- equality with DummyVecEnv -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_equal_dummy_vec_env(name, mode):
    assert_same_steps(*side_by_side(FAMILIES[name], mode), 60)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", ["test/Corridor-v0", "test/Walk-v0", "MountainCarContinuous-v0"])
def test_gymnasiums_own_vector_environments(env_id, mode):
    def make():
        return gym.make(env_id, max_episode_steps=20)

    ours = GymnasiumVecEnv(SyncVectorEnv([make] * 3, autoreset_mode=mode))
    assert_same_steps(DummyVecEnv([make] * 3), ours, 50)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_ppo_learns_the_same(name, mode):
    policy = "MultiInputPolicy" if name == "walk" else "MlpPolicy"
    parameters = []
    for envs in side_by_side(FAMILIES[name], mode):
        model = PPO(policy, envs, n_steps=32, batch_size=48, n_epochs=2, seed=3, device="cpu").learn(300)
        parameters.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert torch.equal(*parameters)


def test_next_step_is_refused():
    with pytest.raises(ValueError, match="must have autoreset mode SAME_STEP or DISABLED, got NEXT_STEP"):
        GymnasiumVecEnv(gym.make_vec("CartPole-v1", 2))


def test_options():
    envs = GymnasiumVecEnv(FAMILIES["bandit"].make_vec(2))
    envs.set_options({"tasks": {"means": np.tile([[0.0, 1.0, 0.0, 0.0, 0.0]], (2, 1))}})
    envs.reset()
    np.testing.assert_array_equal(envs.step(np.array([0, 1]))[1], [0, 1])
    with pytest.raises(ValueError, match="options must be one dictionary for the whole batch, got list"):
        envs.set_options([{}, {}])


def test_attributes():
    envs = GymnasiumVecEnv(FAMILIES["bandit"].make_vec(3))
    envs.reset()
    before = envs.get_attr("task")
    envs.set_attr("task", {"means": np.full(5, 0.5)}, indices=1)
    after = envs.get_attr("task")
    np.testing.assert_array_equal(after[1]["means"], np.full(5, 0.5))
    np.testing.assert_array_equal(after[2]["means"], before[2]["means"])
    envs.set_attr("task", {"means": np.zeros(5)})
    assert not any(task["means"].any() for task in envs.get_attr("task", indices=[0, 2]))
    assert envs.get_attr("num_envs") == [3, 3, 3]
    assert envs.env_is_wrapped(Monitor) == [False] * 3
    assert envs.get_images() == [None] * 3
    with pytest.raises(AttributeError, match="TaskVectorEnv steps all slots as one, there is no 'reset' per slot"):
        envs.env_method("reset")
    assert not envs.has_attr("no_such_thing")

    sync = GymnasiumVecEnv(SyncVectorEnv([lambda: Monitor(Corridor())] * 2, autoreset_mode="SameStep"))
    assert sync.env_is_wrapped(Monitor, indices=[1]) == [True]
    sync.set_attr("gain", 5.0, indices=[1])
    assert sync.get_attr("gain") == [1.0, 5.0]
    assert sync.env_method("has_wrapper_attr", "gain", indices=0) == [True]


# -- trials ------------------------------------------------------------------------------------------------------


def corridor_trials(**kwargs):
    return TrialVecEnv(ContextFamily("test/Corridor-v0", ranges={"gain": (1, 2)}, num_episodes=2), **kwargs)


def test_one_trial_by_hand():
    envs = corridor_trials()
    envs.set_attr("task", {"gain": 10.0})
    # observation, previous action (one-hot), reward and done; what the next step's action 1, 2, 0, 2, 1 leads to
    expected = [
        ([0, 1], [0, 0, 0], [0], [0]),
        ([1, 1], [0, 1, 0], [10], [0]),
        ([0, 2], [0, 0, 1], [20], [1]),  # a new episode of the same trial: it sees how the first one ended
        ([1, 2], [1, 0, 0], [0], [0]),
        ([0, 3], [0, 0, 0], [0], [0]),  # a new trial: nothing remains
        ([1, 3], [0, 1, 0], [10], [0]),
    ]
    observations, dones, rewards = [envs.reset()], [], []
    for action in (1, 2, 0, 2, 1):
        observation, reward, done, infos = envs.step(np.array([action]))
        observations.append(observation)
        rewards.append(reward[0])
        dones.append(done[0])
        assert ("terminal_observation" in infos[0]) == done[0]
        if done[0]:
            terminal = infos[0]["terminal_observation"]
    keys = ("observation", "previous_action", "previous_reward", "previous_done")
    for observation, values in zip(observations, expected, strict=True):
        for key, value in zip(keys, values, strict=True):
            np.testing.assert_array_equal(observation[key], [value])
            assert observation[key].dtype == np.float32
    assert rewards == [10, 20, 0, 20, 10]
    assert dones == [False, False, False, True, False]
    for key, value in zip(keys, ([2, 2], [0, 0, 1], [20], [1]), strict=True):
        np.testing.assert_array_equal(terminal[key], value)
    assert terminal in envs.observation_space


def test_tasks_change_at_trial_ends_only():
    envs = corridor_trials(num_envs=4)
    envs.seed(1)
    envs.reset()
    gains = []
    for _ in range(12):
        gains.append([float(task["gain"]) for task in envs.get_attr("task")])
        envs.step(np.zeros(4, int))
    gains = np.array(gains).reshape(3, 4, 4)
    assert (gains == gains[:, :1]).all()
    assert len(np.unique(gains)) == 12
    assert not set(np.unique(gains)) & {float(t["gain"]) for t in corridor_trials_tasks("test")}


def corridor_trials_tasks(split):
    envs = corridor_trials(num_envs=50, split=split)
    envs.reset()
    return envs.get_attr("task")


def test_reset_in_the_middle_starts_a_new_trial():
    envs = corridor_trials(num_envs=2)
    envs.reset()
    first = envs.get_attr("task")
    for _ in range(3):
        envs.step(np.ones(2, int))
    observation = envs.reset()
    assert not any(observation[key].any() for key in ("previous_action", "previous_reward", "previous_done"))
    assert all(a["gain"] != b["gain"] for a, b in zip(first, envs.get_attr("task"), strict=True))
    assert [envs.step(np.ones(2, int))[2].all() for _ in range(4)] == [False, False, False, True]


def test_seeds_decide():
    def play():
        envs = TrialVecEnv("metarl/BernoulliBandit-v0", 5)
        envs.seed(7)
        envs.reset()
        return np.stack([envs.step(np.arange(5))[1] for _ in range(50)])

    np.testing.assert_array_equal(play(), play())


def test_a_truncated_last_episode_is_bootstrapped():
    envs = TrialVecEnv(ContextFamily("Pendulum-v1", num_steps=3, num_episodes=2), 2)
    envs.reset()
    actions = np.array([[0.5], [-2.0]], np.float32)
    for step in range(1, 13):
        observations, _, dones, infos = envs.step(actions)
        assert dones.all() == (step % 6 == 0)
        assert all(info["TimeLimit.truncated"] == (step % 6 == 0) for info in infos)
        np.testing.assert_array_equal(observations["previous_action"], actions * (step % 6 != 0))
        np.testing.assert_array_equal(observations["previous_done"], np.full((2, 1), step % 6 == 3))


def test_nested_observations_are_flattened():
    envs = TrialVecEnv(ContextFamily("test/NestedWalk-v0"), 2)
    context = {"previous_action", "previous_reward", "previous_done"}
    leaves = {"observation/body/position", "observation/body/side", "observation/time"}
    assert envs.observation_space.keys() == leaves | context
    observations = envs.reset()
    assert observations["observation/body/position"].shape == (2, 2)
    PPO("MultiInputPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(32)


def test_actions_that_cannot_be_observed_are_refused():
    with pytest.raises(ValueError, match="episodes_per_trial must be at least 1, got 0"):
        TrialVecEnv("metarl/BernoulliBandit-v0", episodes_per_trial=0)


def test_recurrent_ppo_and_evaluation(tmp_path):
    envs = VecMonitor(TrialVecEnv("metarl/BernoulliBandit-v0", 4))
    eval_envs = VecMonitor(TrialVecEnv("metarl/BernoulliBandit-v0", 4, split="test"))
    callback = EvalCallback(eval_envs, n_eval_episodes=8, eval_freq=20, log_path=str(tmp_path), verbose=0)
    kwargs = dict(shared_lstm=True, enable_critic_lstm=False, lstm_hidden_size=8, net_arch=[])
    model = RecurrentPPO("MultiInputLstmPolicy", envs, n_steps=20, batch_size=40, policy_kwargs=kwargs, device="cpu", seed=0)
    model.learn(160, callback=callback)
    assert {episode["l"] for episode in model.ep_info_buffer} == {10}
    returns, lengths = evaluate_policy(model, eval_envs, n_eval_episodes=6, return_episode_rewards=True)
    assert lengths == [10] * 6
    assert all(0 <= total <= 10 for total in returns)
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].tolist() == [[10] * 8] * 2

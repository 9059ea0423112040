"""Small environments and models that the tests of algorithms share."""

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
)

from metarl.algorithms.maml import MAMLPPO
from metarl.algorithms.rl2 import RL2PPO


class Drift(gym.Env):
    """Push a drifting point towards 0. Ends at a distance of 2."""

    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-np.inf, np.inf, (1,)), "side": gym.spaces.Discrete(2)})
    action_space = gym.spaces.Box(-2, 2, (1,))
    drift, broken_at = 0.5, None

    def _observation(self):
        return {"x": np.float32([self.x]), "side": int(self.x > 0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.normal()), 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        self.x += self.drift + 0.5 * float(action[0])
        reward = np.nan if self.steps == self.broken_at else -abs(self.x)
        return self._observation(), reward, abs(self.x) > 2, False, {}


gym.register("test/Drift-v0", Drift, max_episode_steps=4)

ENVS = {
    "bandit": ("metarl/BernoulliBandit-v0", dict(num_arms=3, num_pulls=6)),
    "cartpole": ("metarl/CartPoleContext-v0", dict(num_steps=12, num_episodes=2)),
    "drift": ("metarl/Context-v0", dict(env="test/Drift-v0", ranges={"drift": (-1, 1)}, num_episodes=3)),
}
CONSTANT = dict(learning_rate=1e-3, final_learning_rate=1e-3, entropy_coef=0.01, final_entropy_coef=0.01)
POLICIES = ["LstmPolicy", "GruPolicy", "MlpPolicy"]


def make(policy="LstmPolicy", env="bandit", seed=0, **kwargs):
    name, env_kwargs = ENVS[env]
    options = dict(num_envs=8, minibatches=2, epochs=2, policy_kwargs=dict(core_size=8), seed=seed) | kwargs
    return RL2PPO(policy, name, env_kwargs=env_kwargs, **options)


def steps_per_iteration(model):
    return model.n_envs * (model.config.num_steps or model.episodes_per_trial * model.family.max_episode_steps)


def assert_same(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_model(a, b):
    """To the bit: weights, optimizer, generators, counters. `total_timesteps` is what `learn` was asked for."""
    ours, theirs = a.state(), b.state()
    ours.pop("total_timesteps")
    theirs.pop("total_timesteps")
    assert_same(ours, theirs)


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.policy.parameters())


class At(BaseCallback):
    """Does something at the n-th step; stops where it returns False."""

    def __init__(self, n, action=lambda model: False):
        super().__init__()
        self.n, self.action = n, action

    def _on_step(self):
        return self.n_calls != self.n or self.action(self.model) is not False


NAVIGATION = ("metarl/Navigation2D-v0", dict(num_steps=5))
POLES = ("metarl/CartPoleContext-v0", dict(num_steps=40))  # most fall before


def make_maml(env="bandit", seed=0, **kwargs):
    name, env_kwargs = (ENVS | {"navigation": NAVIGATION, "poles": POLES})[env]
    options = dict(num_tasks=4, episodes_per_update=3, epochs=2, policy_kwargs=dict(hidden=(6,)), seed=seed) | kwargs
    return MAMLPPO("MlpPolicy", name, env_kwargs=env_kwargs, **options)


class OwnBandit(gym.Env):
    """Two arms; a plain environment that knows nothing of families."""

    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, good=1):
        self.good = good

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, float(self.np_random.random() < (0.9 if action == self.good else 0.1)), True, False, {}

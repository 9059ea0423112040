"""Adapted policies in Stable-Baselines3's hands: they act, value and train on there as they are."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_models import ENVS, make, make_maml
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from metarl.algorithms.export import to_stable_baselines
from metarl.batched import for_tasks
from metarl.cli import main
from metarl.config import TrainingConfig
from metarl.policies import AdaptedPolicy, GradientPolicy
from metarl.training import load_run, train
from metarl.trials import to_tensor
from metarl_envs import TaskEnv


class Eye(BaseFeaturesExtractor):
    """A small network for images."""

    def __init__(self, space, size=4):
        super().__init__(space, size)
        self.net = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 5 * 5, size))

    def forward(self, x):
        return self.net(x)


class Tracking(BaseFeaturesExtractor):
    """Features relative to statistics that it keeps of what it has seen."""

    def __init__(self, space):
        super().__init__(space, 4)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return self.net(x)


class Tied(BaseFeaturesExtractor):
    """One layer in two places."""

    def __init__(self, space):
        super().__init__(space, 3)
        layer = nn.Linear(3, 3)
        self.net = nn.Sequential(layer, nn.Tanh(), layer)

    def forward(self, x):
        return self.net(x)


Box, Discrete = gym.spaces.Box, gym.spaces.Discrete
ARMS = Box(np.float32([-1, 0, 2]), np.float32([1, 4, 10]))
NUMBERS = Box(-np.inf, np.inf, (3,))
IMAGE = Box(0, 255, (1, 12, 12), np.uint8)
CASES = {
    "asymmetric actions": (NUMBERS, ARMS, {}),
    "double precision": (Box(-1, 1, (3,), np.float64), Box(-2, 6, (2,), np.float64), {}),
    "an action that is fixed": (NUMBERS, Box(np.float32([3, -1]), np.float32([3, 1])), {}),
    "choices": (NUMBERS, Discrete(3), {}),
    "several choices": (NUMBERS, gym.spaces.MultiDiscrete([3, 2, 4]), {}),
    "switches": (NUMBERS, gym.spaces.MultiBinary(3), {}),
    "no hidden layers": (NUMBERS, ARMS, dict(hidden=())),
    "three hidden layers": (NUMBERS, ARMS, dict(hidden=(4, 3, 5))),
    "one-hot": (Discrete(4), Discrete(2), {}),
    "several one-hot": (gym.spaces.MultiDiscrete([2, 3]), ARMS, {}),
    "bits": (gym.spaces.MultiBinary(3), Discrete(2), {}),
    "a table of numbers": (Box(-1, 1, (2, 3)), ARMS, {}),
    "dictionary": (gym.spaces.Dict(z=Box(-1, 1, (2,)), a=Discrete(3), bits=gym.spaces.MultiBinary(2)), ARMS, {}),
    "image": (IMAGE, ARMS, dict(features_extractor_class=Eye, features_extractor_kwargs=dict(size=5))),
    "image and choices": (IMAGE, Discrete(4), dict(features_extractor_class=Eye)),
    "dictionary with an image": (gym.spaces.Dict(eye=Box(0, 255, (1, 36, 36), np.uint8), x=NUMBERS), Discrete(2), {}),
    "statistics": (NUMBERS, ARMS, dict(features_extractor_class=Tracking)),
    "a layer in two places": (NUMBERS, ARMS, dict(features_extractor_class=Tied)),
}


def make_policy(name, with_value=True):
    """A policy, and the parameters that it has adapted to in one task."""
    observation_space, action_space, options = CASES[name]
    torch.manual_seed(0)
    options = dict(hidden=(6, 5)) | options
    policy = GradientPolicy(observation_space, action_space, with_value=with_value, **options)
    policy.set_training_mode(False)
    if with_value:
        policy.value_mean.fill_(-20.0)
        policy.value_std.fill_(5.0)
    for module in policy.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return policy, {n: (p + 0.7 * torch.randn(p.shape)).detach() for n, p in policy.initial_params().items()}


def observe(space, count=50):
    space.seed(0)
    seen = [space.sample() for _ in range(count)]
    if isinstance(space, gym.spaces.Dict):
        return {key: np.stack([one[key] for one in seen]) for key in space}
    return np.stack(seen)


def ours(policy, params, observations):
    """Parameters of the action distribution, and values."""
    with torch.no_grad():
        return AdaptedPolicy(policy, for_tasks(params, 1)).act(to_tensor(observations, policy.device), None)[:2]


def reloaded(model, path):
    model.save(path)
    model = PPO.load(path, device="cpu")
    model.policy.set_training_mode(False)  # as `predict` does
    return model


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    policy, params = make_policy(request.param)
    observations = observe(policy.observation_space)
    model = reloaded(to_stable_baselines(policy, params), tmp_path / "ppo.zip")
    return policy, model, observations, *ours(policy, params, observations)


def test_likeliest_actions_are_the_same(case):
    policy, model, observations, outputs, _ = case
    head = policy.policy_head
    actions, _ = model.predict(observations, deterministic=True)
    expected = head.to_env(head.mode(outputs))
    assert len(np.unique(expected, axis=0)) > 1
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
    if isinstance(policy.action_space, Discrete):
        np.testing.assert_array_equal(actions, expected)


def test_distributions_are_the_same(case):
    policy, model, observations, outputs, _ = case
    tensors, _ = model.policy.obs_to_tensor(observations)
    with torch.no_grad():
        found = model.policy.get_distribution(tensors)
    if isinstance(policy.action_space, Discrete):
        torch.testing.assert_close(found.distribution.logits, outputs, rtol=1e-4, atol=1e-5)
        return
    if not isinstance(policy.action_space, Box):
        played = policy.policy_head.sample(outputs, torch.Generator().manual_seed(0))
        expected = policy.policy_head.log_prob(outputs, played)
        torch.testing.assert_close(found.log_prob(played.float()), expected, rtol=1e-4, atol=1e-5)
        return
    centre, half_range = (torch.as_tensor(x, dtype=torch.float32) for x in policy.policy_head.scale)
    mean, log_std = outputs.chunk(2, -1)
    torch.testing.assert_close(found.distribution.mean, centre + half_range * mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.distribution.stddev, half_range * log_std.exp(), rtol=1e-4, atol=1e-5)
    played = mean + 0.5
    density = policy.policy_head.log_prob(outputs, played) - half_range.log().sum()  # per unit of the box
    torch.testing.assert_close(found.log_prob(centre + half_range * played), density, rtol=1e-4, atol=1e-4)


def test_values_are_returns(case):
    _, model, observations, _, values = case
    tensors, _ = model.policy.obs_to_tensor(observations)
    with torch.no_grad():
        found = model.policy.predict_values(tensors)
    assert values.std() > 0.01
    torch.testing.assert_close(found[:, 0], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["asymmetric actions", "choices"])
def test_sampled_actions_are_distributed_as_ours(name):
    policy, params = make_policy(name)
    observations = np.repeat(observe(policy.observation_space, 1), 20_000, 0)
    model, head = to_stable_baselines(policy, params), policy.policy_head
    torch.manual_seed(1)
    theirs, _ = model.predict(observations)
    own = head.to_env(head.sample(ours(policy, params, observations)[0], None))
    if isinstance(policy.action_space, Discrete):
        assert np.bincount(own, minlength=3).min() > 1000
        np.testing.assert_allclose(np.bincount(theirs), np.bincount(own), atol=600)  # 6 standard deviations
        return
    low, high = policy.action_space.low, policy.action_space.high
    for actions in (theirs, own):
        assert ((actions >= low) & (actions <= high)).all()
        assert (actions == low).any()  # clipped on either side
        assert (actions == high).any()
    levels = np.linspace(0.05, 0.95, 19)
    gaps = np.quantile(theirs, levels, 0) - np.quantile(own, levels, 0)
    assert (np.abs(gaps) < 0.03 * (high - low)).all()


@pytest.mark.parametrize("name", ["asymmetric actions", "image"])
def test_without_a_value_network_there_is_a_fresh_one(name, tmp_path):
    policy, params = make_policy(name, with_value=False)
    model = reloaded(to_stable_baselines(policy, params), tmp_path / "ppo.zip")
    observations = observe(policy.observation_space)
    head = policy.policy_head
    actions, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(actions, head.to_env(head.mode(ours(policy, params, observations)[0])), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert model.policy.predict_values(model.policy.obs_to_tensor(observations)[0]).isfinite().all()


# -- training on -------------------------------------------------------------------------------------------------


class Anything(gym.Env):
    """An environment with any spaces, which pays for nothing."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return self.observation_space.sample(), 0.0, self.left == 0, False, {}


def test_it_goes_on_training_there(case, tmp_path):
    policy, model, *_ = case
    model.save(tmp_path / "again")
    env = Anything(policy.observation_space, policy.action_space)
    model = PPO.load(tmp_path / "again", env, device="cpu", n_steps=20, batch_size=10, n_epochs=2)
    before = torch.nn.utils.parameters_to_vector(model.policy.parameters())
    model.learn(40)
    after = torch.nn.utils.parameters_to_vector(model.policy.parameters())
    assert model.num_timesteps == 40
    assert after.isfinite().all()
    assert not torch.equal(after, before)


def test_options_are_ppos():
    policy, params = make_policy("choices")
    model = to_stable_baselines(policy, params, n_steps=20, batch_size=10, learning_rate=0.5, seed=3, gamma=0.5)
    assert (model.n_steps, model.batch_size, model.gamma, model.seed) == (20, 10, 0.5, 3)
    model.set_env(Anything(policy.observation_space, policy.action_space))
    assert model.learn(20).num_timesteps == 20


@pytest.mark.parametrize("env", ["navigation", "poles"])
def test_what_a_learner_has_become(env, tmp_path):
    model = make_maml(env, inner_rate=0.5, baseline="network").learn(1)
    task = TaskEnv(family=model.family)
    learner = model.adapt(task, gradient_steps=2, seed=0)
    path = learner.export(tmp_path / "deep" / "walker")
    assert path == tmp_path / "deep" / "walker.zip"
    assert learner.export(str(tmp_path / "other.zip")) == tmp_path / "other.zip"
    observations = observe(model.observation_space)
    loaded = PPO.load(path, task, device="cpu")
    direct = learner.stable_baselines()
    likeliest = loaded.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(likeliest, direct.predict(observations, deterministic=True)[0])
    by_learner = []
    for row in observations:
        by_learner.append(learner.predict(row, deterministic=True)[0])
        learner.observe(0.0, False)
    np.testing.assert_allclose(likeliest, by_learner, rtol=1e-5, atol=1e-6)
    start = model.predict(observations, deterministic=True)[0]
    if env == "navigation":
        assert not np.allclose(likeliest, start)
    returns, _ = evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=3)
    assert np.isfinite(returns)
    learner.adapt(task, 1)  # what was exported stays as it was
    np.testing.assert_array_equal(direct.predict(observations, deterministic=True)[0], likeliest)


# -- what cannot be exported -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation_space", "action_space", "reason"),
    [
        (NUMBERS, Discrete(3, start=1), r"Stable-Baselines3 counts from 0, and a space is Discrete\(3, start=1\)"),
        (Discrete(3, start=1), Discrete(3), r"Stable-Baselines3 counts from 0, and a space is Discrete\(3, start=1\)"),
        (
            gym.spaces.Dict(x=NUMBERS, kind=Discrete(2, start=-1)),
            Discrete(3),
            r"Stable-Baselines3 counts from 0, and a space is Discrete\(2, start=-1\)",
        ),
        (
            gym.spaces.MultiDiscrete([2, 2], start=[0, 1]),
            Discrete(3),
            r"Stable-Baselines3 counts from 0, and a space is MultiDiscrete\(\[2 2\], start=\[0 1\]\)",
        ),
        (
            NUMBERS,
            Box(-np.inf, np.inf, (2,)),
            r"Stable-Baselines3 needs finite bounds, got Box\(-inf, inf, \(2,\), float32\)",
        ),
        (NUMBERS, Box(np.float32([0, 0]), np.float32([1, np.inf])), r"Stable-Baselines3 needs finite bounds, got Box\(0.0"),
        (NUMBERS, Box(0, 5, (2,), np.int64), r"actions are floats, and these Box\(0, 5, \(2,\), int64\)"),
    ],
)
def test_spaces_that_stable_baselines_cannot_take(observation_space, action_space, reason):
    policy = GradientPolicy(observation_space, action_space, hidden=(3,))
    params = {name: value.detach() for name, value in policy.initial_params().items()}
    with pytest.raises(ValueError, match=f"^the policy cannot be exported: .*{reason}"):
        to_stable_baselines(policy, params)


def test_agents_with_a_memory_cannot_be_exported(tmp_path):
    learner = make().adapt(gym.make(ENVS["bandit"][0], **ENVS["bandit"][1]))
    with pytest.raises(ValueError, match="only agents that adapt by gradient steps can be exported: what this one has"):
        learner.export(tmp_path / "policy")
    assert not any(tmp_path.iterdir())


# -- the command line --------------------------------------------------------------------------------------------

TINY = {
    "maml": dict(policy_kwargs={"hidden": [6]}, hyperparameters={"num_tasks": 4, "episodes_per_update": 3, "epochs": 2}),
    "rl2": dict(policy_kwargs={"core_size": 8}, hyperparameters={"num_envs": 8, "minibatches": 2}),
}


def tiny_run(algorithm, folder, env="metarl/Navigation2D-v0", **env_kwargs):
    env_kwargs = env_kwargs or {"num_steps": 5}
    train(
        TrainingConfig(algorithm=algorithm, env=env, env_kwargs=env_kwargs, total_timesteps=100, **TINY[algorithm]),
        folder,
        progress_bar=False,
    )


def test_export_on_the_command_line(tmp_path, capsys):
    tiny_run("maml", tmp_path / "run")
    args = ["adapt", str(tmp_path / "run"), "--seed", "3", "--export", str(tmp_path / "out" / "policy")]
    assert main(args) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    path = tmp_path / "out" / "policy.zip"
    assert f"Exported, for Stable-Baselines3's PPO.load: {path}" in output
    assert output.count("return") == 6  # as many episodes as in training
    model = load_run(tmp_path / "run")
    env = TaskEnv(family=model.family, split="test")
    env.task = model.family.sample(1, "test", 3)
    expected = model.adapt(env, episodes=6, seed=3).stable_baselines()
    observations = observe(model.observation_space)
    np.testing.assert_array_equal(
        PPO.load(path, device="cpu").predict(observations, deterministic=True)[0],
        expected.predict(observations, deterministic=True)[0],
    )


def test_what_cannot_be_exported_on_the_command_line_is_told_in_one_line(tmp_path, capsys):
    tiny_run("rl2", tmp_path / "run")
    assert main(["adapt", str(tmp_path / "run"), "--export", str(tmp_path / "policy")]) == 2
    _, errors = capsys.readouterr()
    assert errors.startswith("metarl: error: only agents that adapt by gradient steps can be exported")
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("policy*"))

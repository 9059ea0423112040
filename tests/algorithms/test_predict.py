"""Acting through Stable-Baselines3's `predict` is acting as the agent plays."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_models import ENVS, make
from stable_baselines3.common.evaluation import evaluate_policy

from metarl.algorithms.rl2 import RL2PPO
from metarl.evaluation.play import play_trials
from metarl.trials import Transition


@pytest.fixture(scope="module", params=["LstmPolicy", "GruPolicy", "MlpPolicy"])
def policy_name(request):
    return request.param


def own(observations, space):
    """The family's part of what `get_env` observes."""
    if isinstance(space, gym.spaces.Dict):
        return {key: observations[f"observation/{key}"] for key in space}
    return observations["observation"]


def shaken(policy, env):
    """A model whose actions depend on everything that it reads and remembers."""
    model = make(policy, env)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            scale = 3 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0  # no biases
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("env", ENVS)
def test_predict_equals_playing(env, policy_name):
    model = shaken(policy_name, env)
    space = model.observation_space
    envs = model.get_env()
    envs.seed(1)
    observations = envs.reset()
    player = model.player(deterministic=True)
    player.start(8, seed=0)
    state, starts = None, np.ones(8, bool)
    other_state, reward, done = None, None, None
    seen = []
    for _ in range(3 * model.family.horizon):
        actions, state = model.predict(observations, state, starts, deterministic=True)
        expected = player.act(own(observations, space))
        np.testing.assert_array_equal(actions, expected)
        for part, twin in zip(state[:-1], player._core, strict=True):
            np.testing.assert_array_equal(part, twin)
        assert actions.dtype == expected.dtype
        assert all(action in model.action_space for action in actions)
        by_hand, other_state = model.predict(
            own(observations, space), other_state, starts, deterministic=True, reward=reward, done=done
        )
        np.testing.assert_array_equal(by_hand, actions)
        observations, rewards, starts, infos = envs.step(actions)
        # at ends of trials get_env shows zeros and a player is told of the new trial: forget there
        reward = rewards
        done = np.array([i["terminal_observation"]["previous_done"][0] if "terminal_observation" in i else 0 for i in infos])
        done = np.where(starts, done, observations["previous_done"][:, 0]).astype(bool)
        player.observe(Transition(None, None, rewards, done, np.zeros(8, bool), None))
        player.memory = model.policy.forget(player.memory, starts)
        seen.append(actions)
    assert np.unique(np.stack(seen)).size > 1


def test_predict_for_a_single_observation(policy_name):
    for env in ENVS:
        model = shaken(policy_name, env)
        single = gym.make(ENVS[env][0], **ENVS[env][1]).unwrapped
        player = model.player(deterministic=True)
        player.start(1, seed=0)
        observation, _ = single.reset(seed=3)
        state, reward, done = None, None, None
        for _ in range(model.family.episodes_per_trial):
            over = False
            while not over:
                action, state = model.predict(observation, state, deterministic=True, reward=reward, done=done)
                assert isinstance(state, tuple)
                assert all(isinstance(part, np.ndarray) and len(part) == 1 for part in state)
                assert action in model.action_space
                batch = {k: np.asarray(v)[None] for k, v in observation.items()} if isinstance(observation, dict) else None
                np.testing.assert_array_equal(
                    action, player.act(np.asarray(observation)[None] if batch is None else batch)[0]
                )
                observation, reward, terminated, truncated, _ = single.step(action)
                over = done = terminated or truncated
                player.observe(
                    Transition(None, None, np.array([reward]), np.array([terminated]), np.array([truncated]), None)
                )
            observation, _ = single.reset()


def test_a_start_clears_its_row_alone():
    model = shaken("LstmPolicy", "cartpole")
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(3, 4)).astype(np.float32)
    _, state = model.predict(observations)
    told = dict(reward=np.ones(3), done=np.array([0, 1, 1]))
    _, went_on = model.predict(observations, state, **told)
    _, fresh = model.predict(observations)
    _, mixed = model.predict(observations, state, np.array([False, True, False]), **told)
    _, told_nothing = model.predict(observations, state, np.ones(3, bool), reward=np.full(3, np.nan))
    for part in range(2):
        np.testing.assert_array_equal(mixed[part][[0, 2]], went_on[part][[0, 2]])
        np.testing.assert_array_equal(mixed[part][1], fresh[part][1])
        np.testing.assert_array_equal(told_nothing[part], fresh[part])
        assert (went_on[part] != fresh[part]).any(-1).all()


def test_predict_reads_reward_and_done():
    model = shaken("GruPolicy", "cartpole")
    observations = np.zeros((4, 4), np.float32)
    _, state = model.predict(observations, deterministic=True)
    state = (*(np.repeat(part[:1], 4, 0) for part in state),)
    (memory, _) = model.predict(observations, state, reward=[0, 1, 0, 1], done=[0, 0, 1, 1], deterministic=True)[1]
    assert len(np.unique(memory, axis=0)) == 4


def test_drawn_actions_follow_the_global_seed():
    model = make(env="bandit", num_envs=64)
    observations = np.zeros(3000, np.int64)
    training = model.generator.get_state()
    model.set_random_seed(7)
    first, _ = model.predict(observations)
    second, _ = model.predict(observations)
    model.set_random_seed(7)
    np.testing.assert_array_equal(model.predict(observations)[0], first)
    assert (first != second).any()
    assert torch.equal(model.generator.get_state(), training)
    assert np.abs(np.bincount(first, minlength=3) - 1000).max() < 120  # nearly uniform at the start; deviation 26


def test_predict_says_what_is_missing():
    model = make(env="cartpole")
    observations = np.zeros((2, 4), np.float32)
    _, state = model.predict(observations)
    for given in ({}, dict(reward=[0, 0]), dict(done=[0, 0])):
        with pytest.raises(
            ValueError, match=r"reward and done must be given where a trial goes on.* or use model.get_env\(\)"
        ):
            model.predict(observations, state, np.array([True, False]), **given)
    model.predict(observations, state, np.array([True, True]))
    told = dict(reward=np.zeros(2), done=np.zeros(2))
    with pytest.raises(ValueError, match=r"reward must have shape \(2,\), got \(3,\)"):
        model.predict(observations, state, **told | dict(reward=np.zeros(3)))
    with pytest.raises(ValueError, match="reward must be finite, got inf"):
        model.predict(observations, state, **told | dict(reward=np.array([0, np.inf])))
    with pytest.raises(ValueError, match=r"episode_start must have shape \(2,\), got \(1,\)"):
        model.predict(observations, state, [True], **told)
    with pytest.raises(
        ValueError, match=r"state must be what predict returned for 3 rows, of shapes \[\(3, 8\), \(3, 8\), \(3,\)\]"
    ):
        model.predict(np.zeros((3, 4), np.float32), state, **told)
    for wrong in (np.zeros(3), np.zeros((2, 5)), np.zeros((0, 4)), {"observation": np.zeros(4)}, 0.0):
        with pytest.raises(ValueError, match="observation must fit Box"):
            model.predict(wrong)


def test_an_environment_of_single_episodes_is_refused():
    model = make(env="cartpole")
    with pytest.raises(ValueError, match=r"use model.get_env\(\), model.adapt\(env\) or evaluate"):
        evaluate_policy(model, gym.make(ENVS["cartpole"][0], **ENVS["cartpole"][1]), n_eval_episodes=3, warn=False)


@pytest.fixture(scope="module")
def trained():
    """Knows what to do with two arms of which one pays .9 and the other .1."""
    kwargs = dict(variant="easy", num_pulls=20)
    options = dict(num_envs=64, minibatches=8, learning_rate=2e-3, gamma=0.9, gae_lambda=0.9, seed=0)
    model = RL2PPO("GruPolicy", "metarl/TwoArmedBandit-v0", env_kwargs=kwargs, **options)
    return model.learn(64 * 20 * 30)


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluate_policy_agrees_with_playing(trained, deterministic):
    tasks = trained.family.sample(4000, "train", 0)
    expected = play_trials(trained.player(deterministic), trained.family, tasks).sum(1)
    trained.set_random_seed(0)
    trained.get_env().seed(0)
    returns, lengths = evaluate_policy(
        trained, trained.get_env(), n_eval_episodes=2000, deterministic=deterministic, return_episode_rewards=True
    )
    assert lengths == [20] * 2000
    error = np.hypot(np.std(returns) / 2000**0.5, expected.std() / 4000**0.5)
    assert abs(np.mean(returns) - expected.mean()) < 4 * error
    assert expected.mean() > 13  # 10 is chance: what was learned is used

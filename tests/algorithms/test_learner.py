"""Adapting to one new task, of the family or of one's own."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from small_models import OwnBandit
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from metarl.algorithms.learner import Learner, as_batch
from metarl.algorithms.players import MemoryPlayer
from metarl.algorithms.rl2 import RL2PPO
from metarl.trials import Transition, to_tensor
from metarl_envs import ContextFamily, TaskEnv, make_family


class Corridor(gym.Env):
    """Walk right for a reward; observations in a dictionary, continuous actions, episodes of four steps."""

    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-10, 10, (2,)), "end": gym.spaces.Discrete(2, start=1)})
    action_space = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))
    gain = 1.0

    def _observation(self):
        return {"x": np.float32([self.x, 1]), "end": 1 + int(self.x > 1)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0.0
        return self._observation(), {}

    def step(self, action):
        self.x = float(np.clip(self.x + self.gain * action[0], -10, 10))
        return self._observation(), self.x, False, False, {}


gym.register("test/GainCorridor-v0", Corridor, max_episode_steps=4)
CORRIDORS = dict(env="test/GainCorridor-v0", ranges={"gain": (-1, 1)}, num_episodes=3)


@pytest.fixture(scope="module")
def bandits():
    """Trained until it finds the arm that pays .9 beside one that pays .1."""
    return RL2PPO(
        "GruPolicy",
        "metarl/TwoArmedBandit-v0",
        env_kwargs=dict(variant="easy", num_pulls=20),
        **dict(num_envs=64, minibatches=8, learning_rate=2e-3, gamma=0.9, gae_lambda=0.9, seed=0),
    ).learn(64 * 20 * 40)


@pytest.fixture(scope="module")
def walkers():
    """Untrained, with weights that make everything matter."""
    model = RL2PPO(
        "LstmPolicy", "metarl/Context-v0", env_kwargs=CORRIDORS, num_envs=4, policy_kwargs=dict(core_size=8), seed=0
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


# -- adapting ----------------------------------------------------------------------------------------------------


def test_it_adapts_to_an_environment_of_ones_own(bandits):
    returns = np.array(
        [[bandits.adapt(OwnBandit(good), episodes=20, seed=seed).returns for seed in range(20)] for good in (0, 1)]
    )
    assert returns.shape == (2, 20, 20)
    assert returns[..., 0].mean() < 0.7  # before adapting it cannot know
    assert (returns[..., 10:].mean((1, 2)) > 0.7).all()


def test_it_goes_on_adapting_as_it_acts(bandits):
    env = OwnBandit(good=1)
    learners = [bandits.adapt(env, episodes=0, seed=seed) for seed in range(20)]
    assert all(learner.returns == [] for learner in learners)
    late = []
    for learner in learners:
        observation, _ = env.reset()
        for _ in range(20):
            action, state = learner.predict(observation)
            assert state is None
            assert action in env.action_space
            observation, reward, terminated, truncated, _ = env.step(action)
            learner.observe(reward, terminated, truncated)
            observation, _ = env.reset()
        late += learner.returns[10:]
    assert np.mean(late) > 0.7


def test_an_environment_of_the_family_keeps_its_task(bandits):
    # By default such an environment draws a new task after every trial; a learner would be fooled.
    env = gym.make("metarl/TwoArmedBandit-v0", variant="uniform", num_pulls=3, split="test")
    learner = bandits.adapt(env, episodes=4, seed=1)
    task = env.unwrapped.task["means"]
    assert bandits.family.held_out is not None
    for _ in range(10):
        learner.run_episode(env)
        np.testing.assert_array_equal(env.unwrapped.task["means"], task)
    assert len(learner.returns) == 14
    assert make_family("metarl/TwoArmedBandit-v0").held_out({"means": task[None]}).all()  # of the split `test`


def test_a_task_that_was_given_stays(bandits):
    env = TaskEnv(family=bandits.family)
    env.task = {"means": np.array([0.0, 1.0])}
    learner = bandits.adapt(env, episodes=25, seed=0)
    np.testing.assert_array_equal(env.task["means"], [0, 1])
    assert learner.returns[-10:] == [1.0] * 10


def test_seeds_decide(walkers):
    def play(seed):
        env = TaskEnv(family=walkers.family)
        return walkers.adapt(env, episodes=3, seed=seed).returns

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_deterministic_actions(walkers):
    env = TimeLimit(Corridor(), 4)
    first, second = (walkers.adapt(env, episodes=2, seed=seed, deterministic=True).returns for seed in (0, 1))
    assert first == second
    assert walkers.adapt(env, episodes=2, seed=0).returns != walkers.adapt(env, episodes=2, seed=1).returns


def test_one_call_may_be_deterministic_and_the_next_not(walkers):
    learner = walkers.adapt(TimeLimit(Corridor(), 4), seed=0)
    observation = {"x": np.float32([0.5, 1]), "end": 1}
    actions = []
    for deterministic in (True, None, True, False):
        twin = Learner(MemoryPlayer(walkers.policy), seed=len(actions))
        learner._player.memory = twin._player.memory
        actions.append(learner.predict(observation, deterministic=deterministic)[0])
        learner.observe(0.0, False)
    np.testing.assert_array_equal(actions[0], actions[2])
    assert (actions[1] != actions[0]).any()
    assert (actions[3] != actions[0]).any()


def test_learning_goes_on_unharmed(bandits):
    state = bandits.generator.get_state()
    weights = torch.nn.utils.parameters_to_vector(bandits.policy.parameters())
    bandits.adapt(OwnBandit(), episodes=5)
    assert torch.equal(bandits.generator.get_state(), state)
    assert torch.equal(torch.nn.utils.parameters_to_vector(bandits.policy.parameters()), weights)


# -- what it remembers -------------------------------------------------------------------------------------------


def test_memory_equals_stepping_the_policy_by_hand(walkers):
    env = TimeLimit(Corridor(), 4)
    learner = walkers.adapt(env, seed=3)
    policy, head = walkers.policy, walkers.policy.policy_head
    core = policy.core.initial_state(1)
    context = (torch.zeros(1, 2), torch.zeros(1), torch.zeros(1), torch.zeros(1))
    returns = []
    for _ in range(3):
        observation, _ = env.reset()
        total, over = 0.0, False
        while not over:
            for memory, ours in zip(learner._player.memory.core, core, strict=True):
                assert torch.equal(memory, ours)
            batch = to_tensor({key: np.asarray(value)[None] for key, value in observation.items()}, policy.device)
            with torch.no_grad():
                inputs = policy.inputs(batch, *context)
                params, _, core = policy.step(inputs, core)
            action, _ = learner.predict(observation, deterministic=True)
            np.testing.assert_array_equal(action, head.to_env(head.mode(params))[0])
            observation, reward, terminated, truncated, _ = env.step(action)
            learner.observe(reward, terminated, truncated)
            over = terminated or truncated
            # the next step reads what was just done and what came of it, also across episodes; nothing is cleared
            context = (head.mode(params), torch.tensor([reward]).float(), torch.tensor([float(over)]), torch.ones(1))
            total += reward
        returns.append(total)
    assert learner.returns == returns


def test_a_learner_equals_a_player_of_one_trial(walkers):
    family = walkers.family
    tasks = family.sample(1, "test", 0)
    env = TaskEnv(family=family)
    env.task = tasks
    learner = walkers.adapt(env, episodes=3, seed=5, deterministic=True)

    player = MemoryPlayer(walkers.policy, deterministic=True)
    player.start(1, seed=0)
    twin = TaskEnv(family=family)
    twin.task = tasks
    returns = []
    for episode in range(3):
        observation, _ = twin.reset(seed=5 if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            action = player.act({key: np.asarray(value)[None] for key, value in observation.items()})[0]
            observation, reward, terminated, truncated, _ = twin.step(action)
            player.observe(Transition(None, None, np.array([reward]), *np.array([[terminated], [truncated]]), None))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    assert learner.returns == returns


# -- watching ----------------------------------------------------------------------------------------------------


def test_watching_an_environment_equals_observing(walkers):
    plain, env = TimeLimit(Corridor(), 4), TimeLimit(Corridor(), 4)
    expected = walkers.adapt(plain, episodes=3, seed=0).returns
    learner = walkers.adapt(env, seed=0)
    watched = learner.watch(env)
    for _ in range(3):
        observation, _ = watched.reset()
        over = False
        while not over:
            action, _ = learner.predict(observation)
            observation, _, terminated, truncated, _ = watched.step(action)
            over = terminated or truncated
    assert learner.returns == expected


def test_evaluate_policy_adapts_on_the_way(bandits):
    late = []
    for seed in range(20):
        env = OwnBandit(good=1)
        learner = bandits.adapt(env, seed=seed)
        returns, lengths = evaluate_policy(
            learner, Monitor(learner.watch(env)), n_eval_episodes=20, deterministic=False, return_episode_rewards=True
        )
        assert lengths == [1] * 20
        assert returns == learner.returns
        late += returns[10:]
    assert np.mean(late) > 0.7


# -- misuse ------------------------------------------------------------------------------------------------------


def test_actions_and_outcomes_take_turns(bandits):
    learner = bandits.adapt(OwnBandit())
    with pytest.raises(RuntimeError, match="observe was called without a predict before it"):
        learner.observe(1.0, True)
    learner.predict(0)
    with pytest.raises(RuntimeError, match=r"predict was called twice without observe\(reward, terminated, truncated\) in"):
        learner.predict(0)
    with pytest.raises(ValueError, match="reward must be finite, got nan in step 0 of episode 1"):
        learner.observe(float("nan"), True)
    learner.observe(1.0, True)  # the learner is as before the refused call
    assert learner.returns == [1.0]
    learner.predict(0)
    with pytest.raises(RuntimeError, match="predict was called twice"):
        learner.run_episode(OwnBandit())


@pytest.mark.parametrize("wrong", [np.zeros(2), {"x": np.zeros(2)}, {"x": np.zeros(3), "end": 1}, 0, None])
def test_observations_that_do_not_fit_are_refused(walkers, wrong):
    learner = walkers.adapt(TimeLimit(Corridor(), 4))
    with pytest.raises(ValueError, match=r"observation must fit Dict\('end': Discrete\(2, start=1\), 'x': Box.*, got "):
        learner.predict(wrong)
    learner.predict({"x": [0.0, 1.0], "end": 1})  # a refused one leaves no trace


def test_a_batch_of_one_is_taken_and_of_two_refused(bandits):
    learner = bandits.adapt(OwnBandit())
    action, _ = learner.predict(np.zeros(1, np.int64))
    assert action.shape == (1,)
    learner.observe(0.0, True)
    for wrong in (np.zeros(2, np.int64), np.zeros((1, 1), np.int64), np.zeros(0, np.int64)):
        with pytest.raises(ValueError, match=rf"observation must fit Discrete\(1\), got shape \({str(wrong.shape)[1:-1]}\)"):
            learner.predict(wrong)


def test_batches_are_told_from_single_observations():
    space = gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": gym.spaces.Box(0, 1, (2,))})
    batch, single = as_batch({"a": 2, "b": [0.5, 1]}, space)
    assert single
    assert (batch["a"].shape, batch["b"].shape) == ((1,), (1, 2))
    batch, single = as_batch({"a": np.zeros(4, int), "b": np.zeros((4, 2))}, space)
    assert not single
    assert (batch["a"].shape, batch["b"].shape) == ((4,), (4, 2))
    for wrong in ({"a": np.zeros(4, int), "b": np.zeros((3, 2))}, {"a": 2, "b": np.zeros((4, 2))}, {}, np.zeros(2)):
        with pytest.raises(ValueError, match="observation must fit Dict"):
            as_batch(wrong, space)


def test_environments_that_do_not_fit_are_refused(bandits):
    with pytest.raises(ValueError, match=r"env must have the observation_space Discrete\(1\), got Box\("):
        bandits.adapt(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"env must have the action_space Discrete\(2\), got Discrete\(5\)"):
        bandits.adapt(gym.make("metarl/BernoulliBandit-v0"))
    with pytest.raises(ValueError, match="episodes must be at least 0, got -1"):
        bandits.adapt(OwnBandit(), episodes=-1)
    for wrong in ("metarl/TwoArmedBandit-v0", DummyVecEnv([OwnBandit])):
        with pytest.raises(ValueError, match=r"env must be a single Gymnasium environment, .*, got (str|DummyVecEnv)"):
            bandits.adapt(wrong)


def test_a_family_of_one_task(tmp_path):
    # An environment's id alone is enough: its family has that one task.
    model = RL2PPO("LstmPolicy", "CartPole-v1", num_envs=4, num_steps=5 * 500, policy_kwargs=dict(core_size=4))
    assert model.family == ContextFamily("CartPole-v1")
    learner = model.adapt(gym.make("CartPole-v1"), episodes=2, seed=0)
    assert len(learner.returns) == 2
    assert min(learner.returns) >= 5

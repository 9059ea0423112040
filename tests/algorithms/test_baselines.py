"""Stable-Baselines3's PPO as a player: one policy for all tasks, told the task, fine-tuned in it, and from scratch."""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from metarl.algorithms.baselines import OraclePlayer, OracleVecEnv, StablePlayer, TaskParameters, train_ppo
from metarl.algorithms.fine_tuning import FineTuningPlayer
from metarl.algorithms.vec_env import GymnasiumVecEnv
from metarl.evaluation import evaluate, play_trials
from metarl.evaluation.compare import compare
from metarl.updates import Diverged
from metarl_envs import TaskFamily, make_family

SPACES = {
    "vector": gym.spaces.Box(-1, 9, (2,), np.float32),
    "state": gym.spaces.Discrete(10),
    "dict": gym.spaces.Dict({"step": gym.spaces.Discrete(10), "pair": gym.spaces.Box(-1, 9, (2,), np.float32)}),
}


@dataclass(frozen=True)
class Levers(TaskFamily):
    """Which of three levers pays is the task. The observation counts steps; nothing is random but the task."""

    env_id = "test/Levers-v0"

    kind: str = "vector"
    num_steps: int = 1
    num_episodes: int = 4
    ends: bool = False
    """Lever 0 ends the episode, and every step pays."""

    @property
    def observation_space(self):
        return SPACES[self.kind]

    @property
    def action_space(self):
        return gym.spaces.Discrete(3)

    @property
    def episodes_per_trial(self):
        return self.num_episodes

    @property
    def max_episode_steps(self):
        return self.num_steps

    @property
    def time_limit_terminates(self):
        return self.ends

    def draw(self, num_tasks, split, rng):
        return {
            "pays": rng.integers(3, size=num_tasks),
            "and": rng.normal(5, 2, (num_tasks, 2, 2)),
            "same": np.full(num_tasks, 0.1),
        }

    def held_out(self, params):
        return None

    def make_state(self, num_slots):
        return {"step": np.zeros(num_slots, np.int64)}

    def reset(self, tasks, state, rows, streams):
        state["step"][rows] = 0

    def step(self, tasks, state, actions, streams):
        state["step"] += 1
        return np.where(self.ends, 1.0, actions == tasks["pays"]), self.ends & (actions == 0)

    def observe(self, tasks, state):
        step = state["step"].copy()
        pair = np.stack([step, np.ones_like(step)], -1).astype(np.float32)
        return {"vector": pair, "state": step, "dict": {"step": step, "pair": pair}}[self.kind]


SMALL = dict(policy_kwargs={"net_arch": [8]}, num_envs=4, n_steps=16, batch_size=64)
FAST = dict(learning_rate=0.02, n_epochs=5)


def trained(family, steps=64, **options):
    return train_ppo(family, steps, **{**SMALL, **options})


def best_first(model):
    """The model, with sampled actions that are always the likeliest."""
    with torch.no_grad():
        model.policy.action_net.weight *= 1e6
    return model


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPACES)
def test_all_are_scored_on_the_same_tasks(kind):
    family = Levers(kind, num_steps=3)
    model = trained(family)
    players = [
        StablePlayer(model, "multi-task"),
        OraclePlayer(trained(family, oracle=True), family),
        FineTuningPlayer(model, 2),
        FineTuningPlayer(None, 2, policy_kwargs=SMALL["policy_kwargs"]),
    ]
    curves = [evaluate(player, family, num_tasks=4, episodes=5, references=False) for player in players]
    assert [curve.returns.shape for curve in curves] == [(4, 5)] * 4
    assert all(((curve.returns >= 0) & (curve.returns <= 3)).all() for curve in curves)
    assert "oracle PPO" in compare(curves).table()
    for player, curve in zip(players, curves, strict=True):
        again, other = (play_trials(player, family, family.sample(4, "test", 0), episodes=5, seed=seed) for seed in (0, 1))
        np.testing.assert_array_equal(again, curve.returns, err_msg=player.name)
        assert (other != curve.returns).any(), player.name


def test_training_depends_on_the_seed_alone():
    weights = [torch.nn.utils.parameters_to_vector(trained(Levers(), seed=seed).policy.parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_training_takes_the_steps_it_is_given():
    assert trained(Levers(), 65).num_timesteps == 128
    model = train_ppo(make_family("metarl/GridNavi-v0"), 1, num_envs=16, n_epochs=1)
    assert (model.num_timesteps, model.device.type) == (2048, "cpu")


def test_families_may_be_ids():
    model = trained("metarl/CartPoleContext-v0", oracle=True)
    returns = play_trials(
        OraclePlayer(model, "metarl/CartPoleContext-v0"),
        family := make_family("metarl/CartPoleContext-v0"),
        family.sample(2),
        episodes=1,
    )
    assert returns.min() > 5


# -- the oracle ------------------------------------------------------------------------------------------------------


def test_parameters_are_standardised_over_training_tasks():
    family = Levers()
    parameters = TaskParameters(family)
    values = parameters(family.sample(5000, "train", 1).params)
    assert (values.shape, values.dtype) == ((5000, 6), np.float32)
    np.testing.assert_allclose(values.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(values[:, :5].std(0), 1, atol=0.1)
    assert (values[:, 5] == 0).all()  # "same" comes last in the order of names


@pytest.mark.parametrize("kind", SPACES)
def test_oracles_see_the_task_of_each_slot(kind):
    family = Levers(kind, num_steps=2)
    parameters = TaskParameters(family)
    envs = OracleVecEnv(GymnasiumVecEnv(family.make_vec(3, episodes_per_task=1)), parameters)

    def seen(observations):
        assert np.shape(observations["task"] if isinstance(observations, dict) else observations)[-1] >= 6
        return observations["task"] if isinstance(observations, dict) else observations[..., 2:]

    envs.seed(0)
    observations = envs.reset()
    for step in range(6):
        tasks = parameters(envs.venv.envs.tasks.params)
        np.testing.assert_array_equal(seen(observations), tasks)
        assert envs.observation_space.contains(
            {key: values[0] for key, values in observations.items()} if isinstance(observations, dict) else observations[0]
        )
        observations, _, dones, infos = envs.step(np.zeros(3, int))
        assert dones.all() == (step % 2 == 1)
        for slot in np.flatnonzero(dones):
            last = infos[slot]["terminal_observation"]
            np.testing.assert_array_equal(seen(last), tasks[slot])  # of the task that ended, not of the next
            assert infos[slot]["TimeLimit.truncated"]
            assert (seen(observations)[slot] != tasks[slot]).any()


def test_oracles_do_what_the_task_asks_for():
    family = Levers()
    tasks = family.sample(200, "test", 1)
    settings = dict(num_envs=32, n_steps=8, learning_rate=0.005, n_epochs=5, policy_kwargs={"net_arch": [32]})
    told, untold = (train_ppo(family, 4_000, oracle=oracle, **settings) for oracle in (True, False))
    assert play_trials(OraclePlayer(told, family, deterministic=True), family, tasks).mean() > 0.95
    assert play_trials(StablePlayer(untold, deterministic=True), family, tasks).mean() < 0.5


# -- training within the trial ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("episodes_per_update", [4, 9])
def test_without_an_update_fine_tuning_is_the_model(episodes_per_update, monkeypatch):
    family = Levers(num_steps=3)
    model = best_first(trained(family))
    tasks = family.sample(6, "test", 0)
    expected = play_trials(StablePlayer(model), family, tasks)
    assert 0 < expected.mean() < 3
    monkeypatch.delattr(PPO, "train")  # its parent's raises
    np.testing.assert_array_equal(play_trials(FineTuningPlayer(model, episodes_per_update), family, tasks), expected)


@pytest.mark.parametrize("kind", SPACES)
def test_episodes_of_full_length_are_ppo_to_the_bit(kind):
    class Returns(BaseCallback):
        def _on_step(self):
            totals.append(self.locals["rewards"].copy())
            return True

    family, totals = Levers(kind, num_steps=3), []
    tasks = family.sample(1, "test", 0)
    settings = dict(learning_rate=0.03, batch_size=4, n_epochs=3, gamma=0.8, policy_kwargs=SMALL["policy_kwargs"])
    envs = GymnasiumVecEnv(family.make_vec(2))
    envs.envs.set_tasks(tasks[[0, 0]])
    seed = int(np.random.default_rng([5, 0]).integers(2**31))
    ppo = PPO(
        "MultiInputPolicy" if kind == "dict" else "MlpPolicy", envs, n_steps=3, seed=seed, **settings | {"batch_size": 6}
    )
    ppo.batch_size = 4
    ppo.learn(30, callback=Returns())
    expected = np.reshape(totals, (5, 3, 2)).sum(1).ravel()
    assert len(set(expected)) > 1
    np.testing.assert_array_equal(
        FineTuningPlayer(None, 2, **settings).play(family, tasks, episodes=10, seed=5)[0], expected
    )


def test_updates_are_made_from_whole_episodes(monkeypatch):
    batches = []

    def train(ppo):
        buffer = ppo.rollout_buffer
        batches.append([sample.returns.numpy() for sample in buffer.get(5)])

    monkeypatch.setattr(PPO, "train", train)
    family = Levers(num_steps=6, ends=True)
    player = FineTuningPlayer(None, 3, gamma=1.0, gae_lambda=1.0)
    (lengths,) = player.play(family, family.sample(1), episodes=8, seed=0).astype(int)
    assert len(set(lengths)) > 2
    assert len(batches) == 2  # none after the last two episodes
    for update, batch in enumerate(batches):
        expected = np.concatenate([np.arange(1, length + 1) for length in lengths[3 * update : 3 * update + 3]])
        np.testing.assert_allclose(np.sort(np.concatenate(batch)), np.sort(expected), atol=1e-5)
        assert [len(part) for part in batch[:-1]] == [5] * (len(expected) // 5 - (len(expected) % 5 == 0))


@pytest.mark.parametrize("from_scratch", [True, False])
def test_it_learns_the_task(from_scratch):
    family = Levers()
    model = None if from_scratch else trained(family)
    player = FineTuningPlayer(model, 10, **FAST, **({"policy_kwargs": SMALL["policy_kwargs"]} if from_scratch else {}))
    weights = None if from_scratch else model.policy.state_dict()
    curve = evaluate(player, family, num_tasks=10, episodes=120, references=False)
    assert curve.returns[:, :10].mean() < 0.55
    assert curve.returns[:, -10:].mean() > 0.9
    if model is not None:
        assert all(torch.equal(weights[name], value) for name, value in model.policy.state_dict().items())


def test_tasks_know_nothing_of_each_other():
    family = Levers(num_steps=3)
    tasks = family.sample(9, "test", 0)
    for player in (FineTuningPlayer(trained(family), 2, **FAST), FineTuningPlayer(None, 2, **FAST)):
        first, second = (player.play(family, tasks[rows], episodes=8, seed=3) for rows in ([0, 1, 2], [7, 8, 2]))
        np.testing.assert_array_equal(first[2], second[2])
        assert (first[:2] != second[:2]).any()


def test_fine_tuning_goes_on_as_the_model_was_trained():
    family = Levers()
    model = trained(family, learning_rate=lambda remaining: 0.1 * remaining, gamma=0.5, clip_range=0.3)
    seen = []

    class Spy(FineTuningPlayer):
        def _make_ppo(self, *arguments):
            seen.append(super()._make_ppo(*arguments))
            return seen[-1]

    Spy(model, 2, gamma=0.7).play(family, family.sample(1), episodes=8, seed=0)
    (ppo,) = seen
    assert (ppo.gamma, ppo.gae_lambda, ppo.clip_range(1), ppo.batch_size) == (0.7, 0.95, 0.3, 64)
    assert ppo.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 4)  # the last of three updates in four parts


def test_progress_is_told_after_each_task():
    family, told = Levers(), []
    play_trials(FineTuningPlayer(None, 2), family, family.sample(3), episodes=1, on_batch=told.append)
    assert told == [1, 1, 1]


def test_rewards_must_be_finite():
    class Broken(Levers):
        def step(self, tasks, state, actions, streams):
            rewards, terminated = super().step(tasks, state, actions, streams)
            return np.where(np.isclose(tasks["pays"], 2) & (state["step"] == 2), np.nan, rewards), terminated

    family = Broken(num_steps=3)
    tasks = family.sample(20, "test", 0)
    index = int(np.argmax(tasks.params["pays"] == 2))
    with pytest.raises(
        ValueError, match=rf"reward must be finite, got nan from test/Levers-v0, task {index} .*'pays': 2.*step 1"
    ):
        play_trials(FineTuningPlayer(None, 2), family, tasks)


def test_divergence_names_the_task():
    family = make_family("metarl/PendulumContext-v0", num_steps=10)
    player = FineTuningPlayer(None, 1, learning_rate=1e9, max_grad_norm=1e9)
    with pytest.raises(Diverged, match="task 0: PPO diverged"):
        play_trials(player, family, family.sample(2), episodes=4)


# -- errors ----------------------------------------------------------------------------------------------------------


class Named(Levers):
    def draw(self, num_tasks, split, rng):
        return {"colour": np.full(num_tasks, "red")}


class Taken(Levers):
    @property
    def observation_space(self):
        return gym.spaces.Dict({"task": gym.spaces.Discrete(2)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: trained(Levers(), 0), ValueError, "total_timesteps must be at least 1, got 0"),
        (lambda: train_ppo(Levers(), 10, num_envs=0), ValueError, "num_envs must be at least 1, got 0"),
        (lambda: trained(Levers(), split="dev"), ValueError, "split must be one of train, test, got 'dev'"),
        (
            lambda: trained(Named(), oracle=True),
            ValueError,
            "family must have finite numbers as task parameters, got colour='red' in test/Levers-v0",
        ),
        (lambda: trained(Taken(), oracle=True), ValueError, "family must have no observation 'task'"),
        (
            lambda: TaskParameters(Levers())({"pays": np.zeros(3)}),
            ValueError,
            r"tasks must have parameters of the shapes \{'and': \(2, 2\), .*, got \{'pays': \(\)\}",
        ),
        (lambda: FineTuningPlayer(None, 0), ValueError, "episodes_per_update must be at least 1, got 0"),
        (lambda: FineTuningPlayer(None, 5, learning_speed=1), TypeError, "PPO has no parameter 'learning_speed'"),
        (lambda: FineTuningPlayer(None, 5, n_steps=9), ValueError, "n_steps must be left out, because .*, got 9"),
        (
            lambda: FineTuningPlayer(trained(Levers()), 5, policy="MlpPolicy"),
            ValueError,
            "policy must be left out with a model, .*, got 'MlpPolicy'",
        ),
        (
            lambda: play_trials(FineTuningPlayer(None, 1), Levers(), Levers().sample(2)),
            ValueError,
            "episodes_per_update must be at least 2 where an episode is one step, got 1",
        ),
        (
            lambda: play_trials(FineTuningPlayer(trained(Levers()), 2), Levers("state"), Levers("state").sample(2)),
            ValueError,
            r"family must have the model's observation_space, Box.*, got Discrete\(10\)",
        ),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()

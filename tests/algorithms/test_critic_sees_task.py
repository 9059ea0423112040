"""A value function that is told the task: it reads the right one, at the right step, and nobody else needs it."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from small_models import CONSTANT, ENVS, assert_same_model, make, steps_per_iteration

from metarl import evaluate
from metarl.algorithms.rl2 import RL2PPO
from metarl.algorithms.task_parameters import TaskParameters
from metarl.collection import collect_trials
from metarl_envs import ContextFamily


class Salary(gym.Env):
    """Pays what it pays, whatever is done."""

    observation_space, action_space = gym.spaces.Discrete(1), gym.spaces.Discrete(2)
    pay = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.day = 0
        return 0, {}

    def step(self, action):
        self.day += 1
        return 0, self.pay, self.day == 2, False, {}


gym.register("test/Salary-v0", Salary)


def salary():
    return ContextFamily("test/Salary-v0", ranges={"pay": (-1.0, 1.0)}, num_steps=5, num_episodes=1)


@pytest.mark.parametrize("env", ENVS)
def test_records_the_task_of_every_step(env):
    """Also where a row goes on in another task, and where it is cut."""
    model = make(env=env, critic_sees_task=True)
    family, read = model.family, model._task_parameters
    envs = family.make_vec(4, autoreset_mode=AutoresetMode.DISABLED)
    seen = []
    step = envs.step

    def spy(actions):
        seen.append(read(envs.tasks.params))
        return step(actions)

    envs.step = spy
    trials = collect_trials(
        envs,
        model.policy,
        num_steps=40,
        episodes_per_trial=model.episodes_per_trial,
        split="train",
        rng=np.random.default_rng(0),
        generator=torch.Generator().manual_seed(0),
        read_task=read,
    )
    assert torch.equal(trials.task, torch.as_tensor(np.array(seen)))
    changes = (trials.task[1:] != trials.task[:-1]).any(-1)
    assert torch.equal(changes, trials.trial_start[1:])  # continuous parameters: no task comes twice
    assert changes.any()
    policy = model.policy
    inputs = policy.inputs(trials.observations, *trials.previous())
    with torch.no_grad():
        _, values = policy.scan(inputs, policy.core.initial_state(4), trials.trial_start, trials.task)
        _, others = policy.scan(inputs, policy.core.initial_state(4), trials.trial_start, trials.task + 1)
    torch.testing.assert_close(policy.denormalise(values), trials.values)
    assert not torch.isclose(values, others).any()


def test_knows_what_a_task_is_worth_before_anything_happened():
    errors = {}
    for sees in (False, True):
        model = RL2PPO(
            "LstmPolicy", salary(), num_envs=32, critic_sees_task=sees, gamma=1.0, seed=0, policy_kwargs={"core_size": 16}
        ).learn(60 * 160)
        tasks = model.family.sample(200, "test", 0)
        read = torch.as_tensor(TaskParameters(model.family)(tasks.params))
        policy = model.policy
        with torch.no_grad():
            first = torch.zeros(200, dtype=torch.int64)
            _, values, _ = policy.act(first, policy.initial_memory(200), read if sees else None)
        errors[sees] = (values - 2 * torch.as_tensor(tasks.params["pay"])).square().mean().sqrt().item()
    assert errors[True] < 0.15
    assert errors[False] == pytest.approx(2 / 3**0.5, abs=0.15)  # the deviation of two days' pay: nothing is known of it


def test_goes_on_to_the_bit(tmp_path):
    options = dict(env="cartpole", critic_sees_task=True, **CONSTANT)
    n = steps_per_iteration(make(**options))
    whole = make(**options).learn(2 * n)
    make(**options).learn(n).save(tmp_path / "half")
    loaded = RL2PPO.load(tmp_path / "half").learn(n, reset_num_timesteps=False)
    assert_same_model(loaded, whole)


def test_acts_without_being_told():
    model = make(critic_sees_task=True)
    with_value, without = (
        model.policy.act(torch.zeros(3, dtype=torch.int64), model.policy.initial_memory(3), task)
        for task in (torch.ones(3, 3), None)
    )
    assert torch.equal(with_value[0], without[0])
    assert without[1].tolist() == [0, 0, 0]
    assert evaluate(model, num_tasks=20, references=False).num_tasks == 20
    action, _ = model.predict(np.zeros(1, np.int64), episode_start=np.ones(1, bool))
    assert action.shape == (1,)
    model.adapt(gym.make("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=6), episodes=2)


def test_another_family_must_have_as_many_parameters():
    model = make(critic_sees_task=True)
    model.set_env("metarl/BernoulliBandit-v0", env_kwargs={"num_arms": 3, "num_pulls": 9})
    wider = ContextFamily("CartPole-v1", ranges={"length": (0.3, 1.0), "gravity": (6.0, 14.0), "force_mag": (8.0, 12.0)})
    model = make(env="cartpole", critic_sees_task=True)
    with pytest.raises(ValueError, match="env must have 2 numbers as task parameters, which critic_sees_task reads, got 3"):
        model.set_env(wider)

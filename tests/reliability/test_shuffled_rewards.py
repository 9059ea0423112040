"""What an RL² agent knows of its task, it knows from the rewards it sees: given those of others, it stays at chance."""

import numpy as np
import pytest
import torch

from metarl.algorithms.rl2 import RL2PPO
from metarl.evaluation.play import play_trials
from metarl.policies import TrialPolicy

PULLS, ROWS = 20, 64


class Misinformed(TrialPolicy):
    """Sees at every step a previous reward drawn from the whole batch instead of its own, in training as in acting."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shuffle = np.random.default_rng(0)

    def initial_memory(self, batch_size):
        self.seen = [torch.zeros(batch_size)]
        return super().initial_memory(batch_size)

    def remember(self, core, actions, rewards, done):
        memory = super().remember(core, actions, self.shuffle.permutation(rewards), done)
        self.seen.append(memory.previous_reward)
        return memory

    def inputs(self, observations, previous_action, previous_reward, previous_done, started):
        if started.ndim == 2:  # the whole record, of which it must be told the same as when it acted
            previous_reward = torch.stack(self.seen[: len(started)])
        return super().inputs(observations, previous_action, previous_reward, previous_done, started)


class Informed(TrialPolicy):
    """The same with its own rewards."""


@pytest.fixture(scope="module")
def players():
    def train(policy):
        model = RL2PPO(
            policy,
            "metarl/TwoArmedBandit-v0",
            env_kwargs=dict(variant="easy", num_pulls=PULLS),
            policy_kwargs=dict(core="gru"),
            **dict(num_envs=ROWS, minibatches=8, gamma=0.9, gae_lambda=0.9, seed=0),
        )
        return model.learn(ROWS * PULLS * 30)

    return {policy: train(policy) for policy in (Informed, Misinformed)}


def returns(model, num_tasks=2000):
    """Of whole trials, on tasks whose good arm is the first as often as the second."""
    means = np.tile([[0.9, 0.1], [0.1, 0.9]], (num_tasks // 2, 1))
    tasks = model.family.sample(num_tasks, "test", 0)
    tasks.params["means"][:] = means
    return play_trials(model.player(), model.family, tasks, seed=1).sum(1)


def test_shuffled_previous_rewards_leave_no_more_than_chance(players):
    chance = PULLS / 2
    scores = {policy: returns(model) for policy, model in players.items()}
    errors = {policy: values.std() / len(values) ** 0.5 for policy, values in scores.items()}
    assert scores[Informed].mean() > chance + 3.5  # of at most 8
    assert abs(scores[Misinformed].mean() - chance) < 4 * errors[Misinformed]


def test_it_is_the_rewards_that_the_trained_agent_lives_by(players):
    # The informed agent, shown the rewards of others only when it is evaluated, falls back to chance as well.
    model = players[Informed]
    shuffle = np.random.default_rng(0)

    class Deceived(type(model.player())):
        def observe(self, transition):
            super().observe(transition._replace(rewards=shuffle.permutation(transition.rewards)))

    model.player = lambda: Deceived(model.policy)
    scores = returns(model)
    assert abs(scores.mean() - PULLS / 2) < 4 * scores.std() / len(scores) ** 0.5

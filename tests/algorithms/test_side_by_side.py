"""Agents side by side: how they start, what noise they share, and what their return is."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl.algorithms.side_by_side import Agents, TwinEnvs, fresh_params, mean_returns
from metarl.distributions import GaussianHead
from metarl.policies import GradientPolicy
from metarl.trials import Trials
from metarl_envs.family import make_family

SPACES = {
    "a constant": (gym.spaces.Discrete(1), gym.spaces.Discrete(3)),
    "few actions": (gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)),
    "many actions": (gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(15)),
    "continuous": (
        gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (2,)), "y": gym.spaces.Discrete(3)}),
        gym.spaces.Box(-2, 2, (2,)),
    ),
}


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_fresh_agents_are_as_new_policies(spaces):
    policy = GradientPolicy(*spaces, hidden=(12, 9), with_value=True, log_std_init=-0.7)
    params = fresh_params(policy, 400, torch.Generator().manual_seed(0))
    assert params.keys() == policy.initial_params().keys()
    torch.manual_seed(0)
    made = [GradientPolicy(*spaces, hidden=(12, 9), with_value=True, log_std_init=-0.7).initial_params() for _ in range(400)]
    for key, ours in params.items():
        theirs = torch.stack([one[key].detach() for one in made])
        assert ours.shape == theirs.shape, key
        assert ours.dtype == theirs.dtype
        ours, theirs = (x.flatten(1).double() for x in (ours, theirs))
        largest = theirs.abs().max()
        if "trunk" in key:  # both are uniform
            torch.testing.assert_close(ours.abs().max(), largest, atol=0, rtol=0.02)
        if "trunk" in key or (key.startswith(("policy_head", "value_head")) and key.endswith("weight")):
            # every single number: four standard errors
            ratio = ours.square().mean(0).sqrt() / theirs.square().mean(0).sqrt()
            assert (ratio - 1).abs().max() < 4 / math.sqrt(400), key
            assert ours.mean(0).abs().max() < 4 * largest / math.sqrt(400), key
        else:
            assert torch.equal(ours, theirs), key
    weight = params["policy_head.linear.weight"]  # orthogonal rows, or columns where there are more rows
    small = weight if weight.shape[1] <= weight.shape[2] else weight.mT
    torch.testing.assert_close(small @ small.mT, 1e-4 * torch.eye(small.shape[1]).expand(400, -1, -1), atol=1e-9, rtol=1e-5)


def made_up(rewards, starts):
    rewards, starts = torch.tensor(rewards).T, torch.tensor(starts, dtype=torch.bool).T  # given slot by slot
    empty = torch.zeros_like(rewards)
    flags = dict.fromkeys(("terminated", "truncated", "trial_start", "trial_end"), empty.bool())
    rest = dict.fromkeys(("observations", "actions", "bootstrap", "log_probs", "values"), empty)
    return Trials(rewards=rewards, episode_start=starts, **flags, **rest)


def test_mean_returns_by_hand():
    rewards = [[1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0]]
    starts = [[1, 0, 1, 1, 0], [1, 1, 0, 0, 1]]
    for longest, of_each in {
        1: (15 / 3, 150 / 3),  # all of them
        2: (15 / 3, 100 / 2),  # the last one of slot 1 began too late
        3: (6 / 2, 100 / 2),
        4: (3 / 1, 100 / 2),
        5: (3 / 1, 10 / 1),  # only those that began at once
        9: (3 / 1, 10 / 1),  # or none would be whole
    }.items():
        ours = mean_returns(made_up(rewards, starts), 2, longest)
        torch.testing.assert_close(ours, torch.tensor(of_each), atol=0, rtol=1e-6)
    torch.testing.assert_close(mean_returns(made_up(rewards, starts), 1, 1), torch.tensor([165 / 6]))


def test_environments_of_copies_are_seeded_alike():
    envs = TwinEnvs(6, 2, make_family("metarl/CartPoleContext-v0"))
    start, _ = envs.reset(seed=3)
    single = make_family("metarl/CartPoleContext-v0").make_vec(3)
    expected, _ = single.reset(seed=3)
    assert np.array_equal(start[:3], start[3:])
    assert np.array_equal(start[:3], expected)


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_actions_of_copies_are_drawn_with_the_same_numbers(spaces):
    policy = GradientPolicy(*spaces, hidden=(5,), with_value=True)
    params = fresh_params(policy, 6, torch.Generator().manual_seed(0))
    head = Agents(policy, params, 3).policy_head
    outputs = torch.randn(6 * 4, 2 * 2 if isinstance(policy.policy_head, GaussianHead) else spaces[1].n).log_softmax(-1)
    outputs = outputs[:8].repeat(3, 1)
    outputs[-1] = outputs[0]  # another policy in the last slot of the last block
    actions = head.sample(outputs, torch.Generator().manual_seed(1))
    assert torch.equal(actions[:8], actions[8:16])
    assert torch.equal(actions[:7], actions[16:23])
    assert torch.equal(actions[:8], policy.policy_head.sample(outputs[:8], torch.Generator().manual_seed(1)))
    assert Agents(policy, params, 1).policy_head is policy.policy_head

"""A policy recomputes over whole trials exactly what it did while it acted, whatever it sees and does."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from test_trials import Clock

from metarl.algorithms.rl2 import RL2Config, loss_terms, update
from metarl.collection import collect_trials
from metarl.memory import CORES
from metarl.policies import TrialPolicy

T, B, EPISODES = 32, 9, 2  # several trials per row, of different lengths, the last one cut


def clock(observing="box", actions="discrete"):
    return Clock(
        lengths=(1, 4, 2, 99),
        endings=("terminated", "truncated"),
        episodes=EPISODES,
        limit=5,
        observing=observing,
        actions=actions,
    )


def make_policy(family, seed=0, **kwargs):
    """A policy whose every weight is away from where it started."""
    torch.manual_seed(seed)
    policy = TrialPolicy(family.observation_space, family.action_space, **{"core_size": 8, **kwargs})
    policy.track_returns(200 + 90 * torch.randn(100), 0.7)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return policy


def collect(family, policy, seed=0):
    return collect_trials(
        family.make_vec(B, autoreset_mode=AutoresetMode.DISABLED),
        policy,
        num_steps=T,
        episodes_per_trial=EPISODES,
        split="train",
        rng=np.random.default_rng(seed),
        generator=torch.Generator().manual_seed(seed),
    )


# -- acting and recomputing --------------------------------------------------------------------------------------


class Halving(BaseFeaturesExtractor):
    """An encoder of one's own, with something to learn."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=2)
        self.layer = torch.nn.Linear(gym.spaces.flatdim(observation_space), 2)

    def forward(self, observations):
        return self.layer(observations.flatten(1)).tanh()


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("actions", ["discrete", "box"])
@pytest.mark.parametrize("observing", ["box", "discrete", "discrete from 5", "dict"])
def test_scan_equals_acting(core, observing, actions):
    family = clock(observing, actions)
    policy = make_policy(family, core=core)
    trials = collect(family, policy)
    assert 2 * B < trials.trial_start.sum() < 6 * B
    assert_equal_to_acting(policy, trials)


@pytest.mark.parametrize("skip", [False, True])
def test_scan_equals_acting_with_layers_around_the_core(skip):
    family = clock()
    policy = make_policy(family, encoder=(7, 5), heads=(6, 4), skip=skip)
    assert_equal_to_acting(policy, collect(family, policy))


def test_part_of_the_input_reaches_the_core_as_it_is():
    family = clock()
    policy = make_policy(family, encoder=(7,), bypass=(0, 2))
    assert policy.core.input_size == 9
    inputs = torch.randn(3, policy.encoder[0].in_features)
    torch.testing.assert_close(policy.encode(inputs), torch.cat([inputs[:, :2], policy.encoder(inputs)], 1))
    assert_equal_to_acting(policy, collect(family, policy))
    with pytest.raises(ValueError, match=r"bypass must be \(start, stop\) with 0 <= start < stop <= \d+, got \(2, 2\)"):
        make_policy(family, encoder=(7,), bypass=(2, 2))
    with pytest.raises(ValueError, match=r"bypass must be .*, got 5"):
        make_policy(family, bypass=5)
    with pytest.raises(ValueError, match="bypass must be left out where there is no encoder"):
        make_policy(family, encoder=(), bypass=(0, 2))


def test_a_memory_that_outlives_the_trial_is_there_in_the_next_one():
    family = clock()
    policy = make_policy(family, core="episodic", core_kwargs={"outlives_reset": True, "num_slots": 4})
    trials = collect(family, policy)
    assert_equal_to_acting(policy, trials)
    inputs = policy.inputs(trials.observations, *trials.previous())
    fresh = policy.core.initial_state(B)
    kept = policy.scan(inputs, fresh, trials.trial_start)[0]
    policy.core.outlives_reset = False
    cleared = policy.scan(inputs, fresh, trials.trial_start)[0]
    first = trials.first
    torch.testing.assert_close(kept[first], cleared[first])
    assert (kept - cleared).abs().amax(-1)[~first].max() > 1e-3


def test_scan_in_half_precision_is_near_acting():
    family = clock()
    policy = make_policy(family, core_kwargs={"bfloat16": True})
    trials = collect(family, policy)
    inputs = policy.inputs(trials.observations, *trials.previous())
    params, _ = policy.scan(inputs, policy.core.initial_state(B), trials.trial_start)
    log_probs = policy.policy_head.log_prob(params, trials.actions)
    assert 0 < (log_probs - trials.log_probs).abs().max() < 0.05


def test_scan_equals_acting_with_a_features_extractor_of_ones_own():
    family = clock()
    policy = make_policy(family, features_extractor_class=Halving)
    assert not policy.inputs_are_fixed
    assert make_policy(family).inputs_are_fixed
    assert_equal_to_acting(policy, collect(family, policy))


def assert_equal_to_acting(policy, trials):
    for rows in (torch.arange(B), torch.tensor([5, 0, 7])):  # all, and a minibatch
        observations = trials.observations
        taken = {k: v[:, rows] for k, v in observations.items()} if isinstance(observations, dict) else observations[:, rows]
        inputs = policy.inputs(taken, *(part[:, rows] for part in trials.previous()))
        advantages = torch.randn(T, len(rows), generator=torch.Generator().manual_seed(0))
        values = trials.values[:, rows]
        terms = loss_terms(policy, trials, rows, inputs, advantages, policy.normalise(values), clip_range=1e-4)
        assert terms["approx_kl"] < 1e-10
        assert terms["value_loss"] < 1e-10
        torch.testing.assert_close(terms["policy_loss"], -advantages.mean(), atol=1e-5, rtol=0)  # the ratio is 1

        params, scanned = policy.scan(inputs, policy.core.initial_state(len(rows)), trials.trial_start[:, rows])
        log_probs = policy.policy_head.log_prob(params, trials.actions[:, rows])
        torch.testing.assert_close(log_probs, trials.log_probs[:, rows], atol=1e-5, rtol=0)
        denormalised = scanned * policy.value_std + policy.value_mean
        torch.testing.assert_close(denormalised, values, atol=1e-5 * float(policy.value_std), rtol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
def test_the_policy_is_no_constant(skip):
    # Else the tests above would show little: what is recomputed depends on everything that is read.
    family = clock(actions="box")
    policy = make_policy(family, skip=skip)
    trials = collect(family, policy)
    inputs = policy.inputs(trials.observations, *trials.previous())
    start = policy.core.initial_state(B)
    expected = policy.scan(inputs, start, trials.trial_start)
    for channel in (0, -4, -2, -1):  # observation, previous action, reward and done
        changed = inputs.clone()
        changed[..., channel] = 0
        assert (policy.scan(changed, start, trials.trial_start)[0] - expected[0]).abs().max() > 0.01
    for reset in (trials.episode_start, torch.zeros_like(trials.trial_start)):  # cleared too often, or never
        other = policy.scan(inputs, start, reset)
        assert (other[0] - expected[0]).abs().max() > 0.01
        assert (other[1] - expected[1]).abs().max() > 0.01


def test_dimensions_of_actions_are_summed_in_the_ratio():
    family = clock(actions="box")
    policy = make_policy(family)
    trials = collect(family, policy)
    inputs = policy.inputs(trials.observations, *trials.previous())
    params, _ = policy.scan(inputs, policy.core.initial_state(B), trials.trial_start)
    twin = torch.distributions.Normal(policy.policy_head.mode(params), policy.policy_head.log_std.exp())
    torch.testing.assert_close(trials.log_probs, twin.log_prob(trials.actions).sum(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("extractor", [None, Halving])
def test_an_update_raises_the_value_of_what_paid(extractor):
    # One epoch at a tiny rate moves along the negative gradient of PPO's loss, whole rows in any order.
    family = clock()
    policy = make_policy(family, features_extractor_class=extractor)
    trials = collect(family, policy)
    policy.optimizer = torch.optim.SGD(policy.parameters(), lr=1e-4)
    config = RL2Config(num_envs=B, epochs=1, minibatches=1, entropy_coef=0.0, max_grad_norm=1e9)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    metrics = update(policy, trials, config, 0.0, np.random.default_rng(0))
    assert metrics["approx_kl"] < 1e-10
    assert metrics["policy_loss"] == pytest.approx(0, abs=1e-6)  # minus the mean of normalised advantages
    again = update(policy, trials, config, 0.0, np.random.default_rng(0))
    assert again["approx_kl"] > 0
    assert again["policy_loss"] < metrics["policy_loss"]
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_minibatches_of_rows_add_up():
    family = clock()
    gradients = []
    for minibatches in (1, 3):
        policy = make_policy(family)
        trials = collect(family, policy)
        policy.optimizer = torch.optim.SGD(policy.parameters(), lr=1e-7)  # so small that nothing moves in between
        start = {name: value.clone() for name, value in policy.named_parameters()}
        config = RL2Config(num_envs=B, epochs=1, minibatches=minibatches, max_grad_norm=1e9, return_rate=0.0)
        double = policy.double()
        trials = type(trials)(
            **{k: v.double() if v is not None and v.is_floating_point() else v for k, v in vars(trials).items()}
        )
        update(double, trials, config, 0.0, np.random.default_rng(0))
        moved = [(value - start[name].double()) / 1e-7 for name, value in double.named_parameters()]
        gradients.append(torch.cat([m.flatten() for m in moved]) / minibatches)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


# -- inputs ------------------------------------------------------------------------------------------------------


def test_inputs_by_hand():
    policy = TrialPolicy(gym.spaces.Discrete(3), gym.spaces.Discrete(2), core_size=4)
    one, two = torch.tensor([1, 0]), torch.tensor([1, 1])
    reward, done = torch.tensor([7.0, 7.0]), torch.tensor([1.0, 1.0])
    inputs = policy.inputs(one, two, reward, done, torch.tensor([1.0, 0.0]))
    assert inputs.tolist() == [[0, 1, 0, 0, 1, 7, 1], [1, 0, 0, 0, 0, 0, 0]]  # the second row starts a trial


def test_dictionaries_are_read_by_key():
    space = gym.spaces.Dict(b=gym.spaces.Box(0, 9, (2,)), a=gym.spaces.Discrete(2, start=1), c=gym.spaces.MultiBinary(2))
    policy = TrialPolicy(space, gym.spaces.Discrete(2), core_size=4)
    observations = {
        "c": torch.tensor([[1, 0]]),
        "a": torch.tensor([2]),
        "unheard of": torch.tensor([[5]]),
        "b": torch.tensor([[3.0, 4.0]], dtype=torch.float64),
    }
    inputs = policy.inputs(observations, *policy.initial_memory(1)[1:])
    assert inputs.dtype == torch.float32
    assert sorted(inputs[0, :6].tolist()) == sorted([0, 1, 3, 4, 1, 0])
    shuffled = dict(reversed(observations.items()))
    assert torch.equal(policy.inputs(shuffled, *policy.initial_memory(1)[1:]), inputs)


def test_forgetting_rows():
    policy = make_policy(clock())
    memory = policy.initial_memory(3)
    memory = policy.remember((torch.ones(3, 8), torch.ones(3, 8)), torch.tensor([0, 1, 2]), np.ones(3), np.ones(3, bool))
    assert memory.started.tolist() == [1, 1, 1]
    forgotten = policy.forget(memory, np.array([False, True, False]))
    assert forgotten.started.tolist() == [1, 0, 1]
    for part in forgotten.core:
        assert part.any(-1).tolist() == [True, False, True]
    observation = torch.rand(3, 3)
    fresh = policy.act(observation, policy.initial_memory(3))
    for ours, theirs in zip(policy.act(observation, forgotten)[:2], fresh[:2], strict=True):
        torch.testing.assert_close(ours[1], theirs[1], atol=0, rtol=0)
        assert not torch.isclose(ours[0], theirs[0]).all()


def test_a_policy_starts_near_uniform_and_at_zero():
    family = clock()
    policy = TrialPolicy(family.observation_space, family.action_space)
    trials = collect(family, policy)
    torch.testing.assert_close(trials.log_probs, torch.full((T, B), -np.log(3.0)).float(), atol=0.05, rtol=0)
    assert trials.values.abs().max() < 0.1


def test_bad_arguments():
    box, discrete = gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2)
    with pytest.raises(ValueError, match=r"core must be one of identity, lstm, gru, .*, got 'lstn'"):
        TrialPolicy(box, discrete, core="lstn")
    for space in (gym.spaces.Dict(a=gym.spaces.Dict(b=box)), gym.spaces.Tuple([box])):
        with pytest.raises(
            ValueError, match="observation space must be one of Box, Discrete, MultiBinary, MultiDiscrete, or"
        ):
            TrialPolicy(space, discrete)
    with pytest.raises(TypeError, match="this policy acts with a memory: use the model's predict"):
        TrialPolicy(box, discrete).predict(np.zeros(2, np.float32))


# -- the scale of values -----------------------------------------------------------------------------------------


def test_tracking_returns_keeps_predictions():
    family = clock()
    policy = make_policy(family)
    trials = collect(family, policy)
    inputs = policy.inputs(trials.observations, *trials.previous())

    def predictions():
        values = policy.scan(inputs, policy.core.initial_state(B), trials.trial_start)[1]
        return (values * policy.value_std + policy.value_mean).detach()

    expected = predictions()
    generator = torch.Generator().manual_seed(0)
    for mean, std in ((0, 1), (50, 2), (-1000, 300), (3, 0.1)):
        policy.track_returns(mean + std * torch.randn(T, B, generator=generator), 0.3)
        torch.testing.assert_close(predictions(), expected, atol=1e-5 * float(policy.value_std), rtol=1e-5)
    assert torch.equal(policy.normalise(policy.value_mean), torch.tensor(0.0))


def test_statistics_of_returns_move_as_defined():
    policy = TrialPolicy(gym.spaces.Discrete(1), gym.spaces.Discrete(2), core_size=4)
    assert (policy.value_mean, policy.value_std) == (0, 1)
    policy.track_returns(torch.tensor([[4.0, 8.0], [4.0, 8.0]]), 0.25)
    # E[x] = 3/4 * 0 + 1/4 * 6,  E[x^2] = 3/4 * 1 + 1/4 * 40
    torch.testing.assert_close(policy.value_mean, torch.tensor(1.5))
    torch.testing.assert_close(policy.value_std, torch.tensor((10.75 - 2.25) ** 0.5))
    torch.testing.assert_close(policy.normalise(torch.tensor(1.5 + 2 * 8.5**0.5)), torch.tensor(2.0))
    policy.track_returns(torch.tensor([-2.0, 2.0, 7.0, 9.0]), 1.0)
    torch.testing.assert_close(policy.value_mean, torch.tensor(4.0))
    torch.testing.assert_close(policy.value_std, torch.tensor(18.5**0.5))
    policy.track_returns(torch.tensor([1e6]), 0.0)
    torch.testing.assert_close(policy.value_mean, torch.tensor(4.0))


def test_small_differences_of_large_returns_are_seen():
    policy = TrialPolicy(gym.spaces.Discrete(1), gym.spaces.Discrete(2), core_size=4)
    returns = 5000 + 0.5 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        policy.track_returns(returns, 1.0)
        torch.testing.assert_close(policy.value_std, torch.tensor(0.5), rtol=0.02, atol=0)
    policy.track_returns(torch.full((10,), 5000.0), 1.0)
    assert 0 < policy.value_std < 1e-3
    assert all(parameter.isfinite().all() for parameter in policy.parameters())


# -- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 44, 3), (3, 40, 44), (7, 7, 3), (36, 36, 1)])
def test_pictures_in_dictionaries(shape):
    picture = gym.spaces.Box(0, 255, shape, np.uint8)
    space = gym.spaces.Dict(kind=gym.spaces.Discrete(3), picture=picture, speed=gym.spaces.Box(-1, 1, ()))
    torch.manual_seed(0)
    policy = TrialPolicy(space, gym.spaces.Discrete(2), core_size=4, features_extractor_kwargs={"cnn_output_dim": 5})
    seen = {
        "kind": torch.tensor([[2, 1]]),
        "picture": torch.randint(256, (1, 2, *shape)),
        "speed": torch.tensor([[0.5, -1.0]]),
    }
    nothing = policy.initial_memory(2)[1:]
    inputs = policy.inputs(seen, *(part[None] for part in nothing))[0]
    large = min(sorted(shape)[1:]) >= 36
    size = 5 if large else int(np.prod(shape))
    assert policy.extractor.features_dim == 3 + size + 1
    torch.testing.assert_close(inputs[:, :3], torch.tensor([[0.0, 0, 1], [0, 1, 0]]))
    torch.testing.assert_close(inputs[:, 3 + size], torch.tensor([0.5, -1.0]))
    scaled = seen["picture"][0] / 255
    if not large:
        torch.testing.assert_close(inputs[:, 3 : 3 + size], scaled.flatten(1))
    elif shape[0] == 3:
        torch.testing.assert_close(inputs[:, 3:8], policy.extractor.extractors["picture"](scaled))
    else:
        convolutions = policy.extractor.extractors["picture"][1]
        torch.testing.assert_close(inputs[:, 3:8], convolutions(scaled.permute(0, 3, 1, 2)))


def test_an_observation_of_one_number():
    policy = TrialPolicy(gym.spaces.Box(-1, 1, ()), gym.spaces.Discrete(2), core_size=4)
    inputs = policy.inputs(torch.tensor([0.5, -0.25]), *policy.initial_memory(2)[1:])
    assert inputs[:, 0].tolist() == [0.5, -0.25]

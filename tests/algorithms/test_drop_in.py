"""`LearnedOptimizer` as `optimizer_class` of Stable-Baselines3's algorithms: trains, saves, loads, continues."""

import copy
import io
import zipfile

import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed

from metarl import LearnedOptimizer
from metarl.updates import RULES
from metarl.updates.weights import save_rule

SMALL = dict(net_arch=[8])
ON_POLICY = dict(n_steps=32, gamma=0.9)
OFF_POLICY = dict(learning_starts=30, train_freq=40, gradient_steps=6, batch_size=16, buffer_size=200)
ALGORITHMS = {
    "PPO": (PPO, "MlpPolicy", "CartPole-v1", dict(**ON_POLICY, n_epochs=3, batch_size=16)),
    "A2C": (A2C, "MlpPolicy", "CartPole-v1", ON_POLICY),
    "DQN": (DQN, "MlpPolicy", "CartPole-v1", dict(**OFF_POLICY, target_update_interval=50)),
    "SAC": (SAC, "MlpPolicy", "Pendulum-v1", OFF_POLICY),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", dict(**ON_POLICY, n_epochs=3, batch_size=16)),
}
ONE_UPDATE, SOME_UPDATES = {"DQN": 40, "SAC": 40}, {"DQN": 160, "SAC": 160}


@pytest.fixture
def weights(tmp_path):
    """A file with a rule that is not Adam."""
    torch.manual_seed(1)
    rule = RULES["learned"]({"w": torch.zeros(2)}, 1e-3)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return str(save_rule(tmp_path / "rule.safetensors", rule, "learned"))


def make(name, optimizer_class, optimizer_kwargs, **options):
    kind, policy, env, defaults = ALGORITHMS[name]
    small = SMALL | (dict(lstm_hidden_size=8) if name == "RecurrentPPO" else {})
    policy_kwargs = dict(**small, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs)
    return kind(policy, env, policy_kwargs=policy_kwargs, seed=3, device="cpu", **(defaults | options))


def optimizers(model):
    policy = model.policy
    return [policy.actor.optimizer, policy.critic.optimizer] if isinstance(model, SAC) else [policy.optimizer]


def numbers(model):
    return torch.cat([value.flatten().double() for value in model.policy.state_dict().values()])


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return first == second


def update_again(model, data):
    """One more update, on data and with random numbers that are given."""
    model.set_logger(configure(format_strings=[]))
    set_random_seed(0)
    if isinstance(model, DQN | SAC):
        model.replay_buffer = copy.deepcopy(data)
        model.train(gradient_steps=6, batch_size=16)
    else:
        model.rollout_buffer = copy.deepcopy(data)
        model.train()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_trains_saves_loads_and_continues(name, weights, tmp_path):
    kwargs = dict(weights=weights, guard=True, horizon=1000)
    model = make(name, LearnedOptimizer, kwargs, learning_rate=lambda remaining: 1e-3 * remaining)
    before, total = numbers(model), SOME_UPDATES.get(name, 96)
    model.learn(total)
    assert not torch.equal(numbers(model), before)
    assert numbers(model).isfinite().all()
    for optimizer in optimizers(model):
        assert isinstance(optimizer, LearnedOptimizer)
        assert not any(block.fallen for blocks in optimizer._blocks for block in blocks)
        # overwritten by the schedule before the last update
        assert optimizer.param_groups[0]["lr"] == 1e-3 * model._current_progress_remaining
        assert 0 <= optimizer.param_groups[0]["lr"] < 1e-3

    model.save(tmp_path / "model")
    loaded = ALGORITHMS[name][0].load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert loaded.policy_kwargs["optimizer_class"] is LearnedOptimizer
    assert loaded.policy_kwargs["optimizer_kwargs"] == kwargs
    assert torch.equal(numbers(loaded), numbers(model))
    for ours, theirs in zip(optimizers(loaded), optimizers(model), strict=True):
        assert ours is not theirs
        assert same(ours.state_dict(), theirs.state_dict())

    # N + N equals 2 N: the same update on both
    data = model.replay_buffer if isinstance(model, DQN | SAC) else model.rollout_buffer
    for each in (model, loaded):
        update_again(each, data)
    assert torch.equal(numbers(loaded), numbers(model))
    for ours, theirs in zip(optimizers(loaded), optimizers(model), strict=True):
        assert same(ours.state_dict(), theirs.state_dict())

    steps = [block.steps for optimizer in optimizers(loaded) for blocks in optimizer._blocks for block in blocks]
    loaded.learn(total, reset_num_timesteps=False)
    after = [block.steps for optimizer in optimizers(loaded) for blocks in optimizer._blocks for block in blocks]
    assert all(new > old > 0 for new, old in zip(after, steps, strict=True))
    assert loaded.num_timesteps >= 2 * total


@pytest.mark.parametrize("name", ALGORITHMS)
def test_adam_under_its_name_is_adam(name):
    trained = []
    for optimizer_class, kwargs in ((torch.optim.Adam, dict(eps=1e-8)), (LearnedOptimizer, dict(rule="adam"))):
        model = make(name, optimizer_class, kwargs)
        start = numbers(model)
        trained.append(numbers(model.learn(ONE_UPDATE.get(name, 32))))
    assert (trained[0] - start).abs().max() > 1e-4
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-6)


def test_the_zip_holds_tensors_and_primitives(weights, tmp_path):
    model = make("PPO", LearnedOptimizer, dict(weights=weights))
    model.learn(32)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        state = torch.load(io.BytesIO(archive.read("policy.optimizer.pth")), weights_only=True)
    assert same(state, model.policy.optimizer.state_dict())


def test_a_file_that_is_gone(weights, tmp_path):
    model = make("SAC", LearnedOptimizer, dict(weights=weights))
    model.learn(40)
    model.save(tmp_path / "model")
    (tmp_path / "rule.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^weights: there is no file [^\n]*rule.safetensors$"):
        SAC.load(tmp_path / "model")
    stand_in = dict(policy_kwargs=dict(**SMALL, optimizer_class=LearnedOptimizer, optimizer_kwargs=dict(rule="adam")))
    loaded = SAC.load(tmp_path / "model", custom_objects=stand_in)
    for ours, theirs in zip(optimizers(loaded), optimizers(model), strict=True):
        assert same(ours.state_dict(), theirs.state_dict())
    assert loaded.policy.actor.optimizer.state_dict()["rule"]["name"] == "learned"


def test_a_model_that_was_trained_by_adam(weights, tmp_path):
    make("SAC", torch.optim.Adam, {}).learn(40).save(tmp_path / "model")
    other = dict(policy_kwargs=dict(**SMALL, optimizer_class=LearnedOptimizer, optimizer_kwargs=dict(weights=weights)))
    with pytest.raises(RuntimeError, match=r"^state_dict is not that of a LearnedOptimizer: it has state, param_groups$"):
        SAC.load(tmp_path / "model", custom_objects=other)

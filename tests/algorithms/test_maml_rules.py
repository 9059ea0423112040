"""MAML-PPO with rules that remember: what is learned, adaptation beyond the trained steps, saving, going on to the bit."""

import shutil
import signal

import numpy as np
import pytest
import torch
from small_models import NAVIGATION, At, assert_same_model, make_maml
from torch.utils._pytree import tree_leaves, tree_map

from metarl.algorithms import players
from metarl.algorithms.maml import MAMLPPO
from metarl.algorithms.meta_gradient import adapted_params, meta_loss
from metarl.checkpoint import CheckpointError
from metarl.config import TrainingConfig
from metarl.evaluation.play import play_trials
from metarl.training import Interrupted, load_run, resume, train
from metarl.updates import HAND_MADE, RULES

METHODS = {
    "adam": "MAML, Adam",
    "nesterov": "MAML, Nesterov",
    "learned": "MAML, learned optimizer",
    "lstm": "MAML, LSTM optimizer",
    "lstm_meta_learner": "LSTM meta-learner",
    "optim4rl": "MAML, Optim4RL",
}
LEARNED = [name for name in METHODS if name not in HAND_MADE]
RATES = {"lstm_meta_learner": 0.5, "nesterov": 0.5}  # the others move by about the rate, whatever the gradient


def make(rule, env="navigation", **settings):
    return make_maml(env, update_rule=rule, inner_rate=RATES.get(rule, 0.02), **settings)


def parameters(model):
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize(
    "settings", [dict(inner_steps=3), dict(inner_steps=2, second_order=False, baseline="network", every_step=True)]
)
@pytest.mark.parametrize("env", ["bandit", "navigation"])
def test_what_is_learned(rule, settings, env):
    model = make(rule, env, **settings)
    before = parameters(model)
    model.learn(3)
    after = parameters(model)
    assert all(value.isfinite().all() for value in after.values())
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert model.method == ("" if settings.get("second_order", True) else "first-order ") + METHODS[rule]
    assert any(name.startswith("rule.") for name in before) == (rule in LEARNED)


@pytest.mark.parametrize("rule", LEARNED)
def test_derivatives_reach_all_that_is_learned(rule):
    """By the outer loss, through states too: of the rule away from its start, where nothing is multiplied by zero."""
    model = make(rule, inner_steps=3)
    seen = []

    class Look(At):
        def _on_rollout_end(self):
            seen.append(self.locals["batches"])

    model.learn(1, Look(0))
    with torch.no_grad():
        for value in model.policy.rule.parameters():
            value += 0.1 * torch.randn_like(value)
    losses, _ = meta_loss(model.policy, seen[0], None, model.config.settings)
    losses.sum().backward()
    for name, value in model.policy.named_parameters():
        assert value.grad.isfinite().all(), name
        assert value.grad.any(), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it loads its compiler
@pytest.mark.parametrize("rule", LEARNED)
def test_compiled_updates_are_the_same(rule):
    plain, compiled = (make(rule, compile=way, inner_steps=2).learn(2 * 180) for way in (False, True))
    for name, value in parameters(plain).items():
        # Adam's steps are of 3e-3, and where gradients are nearly 0 rounding tells in them
        torch.testing.assert_close(parameters(compiled)[name], value, rtol=1e-4, atol=1e-4)


# -- adapting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", METHODS)
def test_it_adapts_beyond_the_trained_steps(rule):
    model = make(rule, inner_steps=1).learn(1)
    player = model.player()
    play_trials(player, model.family, model.family.sample(2, "test", 0), episodes=3 * 5 + 1)
    assert player.updates.tolist() == [5, 5]
    assert all(value.isfinite().all() for value in player.params.values())
    assert not any(leaf.requires_grad for leaf in tree_leaves((player.params, player._rule_state)))


@pytest.mark.parametrize("rule", LEARNED)
def test_states_are_those_of_the_inner_loop(rule, monkeypatch):
    """The steps of a player, from a state that it keeps, are those that training takes on the same batches."""
    model = make(rule, inner_steps=1).learn(1)
    batches, take_step = [], players.take_step

    def noting(policy, params, state, batch, settings, step):
        batches.append(batch)
        return take_step(policy, params, state, batch, settings, step)

    monkeypatch.setattr(players, "take_step", noting)
    player = model.player()
    play_trials(player, model.family, model.family.sample(1, "test", 0), episodes=3 * 3 + 1)
    assert len(batches) == 3
    expected = adapted_params(model.policy, batches, model.config.settings)[-1]
    for name, value in player.params.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_every_slot_has_a_state_of_its_own(monkeypatch):
    """Poles fall at different times: slots take their steps when they are due, all at once or a few at a time."""
    found = []
    for at_once in (16_384, 1):
        monkeypatch.setattr("metarl.algorithms.players.STEPS_AT_ONCE", at_once)
        model = make("learned", "poles").learn(1)
        player = model.player()
        tasks = model.family.sample(6, "test", 0)
        play_trials(player, model.family, tasks, episodes=8)
        means, squares, steps = player._rule_state
        assert steps.tolist() == player.updates.tolist() == [2] * 6
        found.append((player.params, means, squares))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_trial_starts_with_a_fresh_state():
    model = make("learned")
    player, tasks = model.player(), model.family.sample(2, "test", 0)
    runs = []
    for _ in range(2):
        play_trials(player, model.family, tasks, episodes=7)
        runs.append(tree_map(torch.clone, (player.params, player._rule_state)))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


# -- saving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", METHODS)
def test_n_and_n_equal_2n(rule, tmp_path):
    settings = dict(inner_steps=2, learning_rate=1e-3, final_learning_rate=1e-3)  # no schedule that depends on the length
    whole = make(rule, **settings).learn(2 * 180)
    half = make(rule, **settings).learn(180)
    half.save(tmp_path / "half")
    loaded = MAMLPPO.load(tmp_path / "half")
    assert_same_model(loaded, half)
    loaded.learn(180, reset_num_timesteps=False)
    assert_same_model(loaded, whole)


@pytest.mark.parametrize("rule", ["learned", "lstm_meta_learner"])
def test_an_interrupted_run_goes_on_to_the_bit(rule, tmp_path):
    name, env_kwargs = NAVIGATION
    settings = {"num_tasks": 4, "episodes_per_update": 3, "epochs": 2, "inner_steps": 2, "update_rule": rule}
    config = TrainingConfig(
        env=name,
        env_kwargs=env_kwargs,
        algorithm="maml",
        policy_kwargs={"hidden": [6]},
        hyperparameters=settings,
        total_timesteps=720,
        checkpoint_every=180,
    )
    train(config, tmp_path / "whole", progress_bar=False)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", callback=At(20, lambda _: signal.raise_signal(signal.SIGINT)), progress_bar=False)
    model = resume(tmp_path / "parts", progress_bar=False)
    newest = [max((tmp_path / part / "checkpoints").glob("step_*.ckpt")) for part in ("whole", "parts")]
    assert newest[0].name == newest[1].name
    assert newest[0].read_bytes() == newest[1].read_bytes()
    assert_same_model(load_run(tmp_path / "parts"), model)


def test_what_a_file_holds(tmp_path):
    model = make("learned").learn(1)
    model.save(tmp_path / "model")
    loaded = MAMLPPO.load(tmp_path / "model", inner_rate=0.25)
    assert loaded.policy.rule.rate == 0.25  # a setting, as for any rule that does not learn it
    for name, value in model.policy.rule.named_parameters():
        assert torch.equal(loaded.policy.rule.get_parameter(name), value)
    with pytest.raises(CheckpointError, match="checkpoint must be of this policy and version of metarl"):
        MAMLPPO.load(tmp_path / "model", update_rule="lstm")


# -- what it is for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["learned", "lstm_meta_learner"])
def test_it_learns_to_adapt_to_goals(rule):
    rate = {"learned": 0.05, "lstm_meta_learner": 0.5}[rule]
    model = MAMLPPO(
        "MlpPolicy",
        "metarl/Navigation2D-v0",
        env_kwargs=dict(num_steps=10),
        policy_kwargs=dict(hidden=(16,)),
        seed=0,
        **dict(num_tasks=20, episodes_per_update=10, learning_rate=1e-2, epochs=3, update_rule=rule, inner_rate=rate),
    )
    model.learn(60 * 2 * 200 * 10, log_interval=None)
    player = model.player()
    returns = play_trials(player, model.family, model.family.sample(100, "test", 0), episodes=20)
    before, after = np.split(np.asarray(returns), 2, axis=1)
    assert after.mean() > before.mean() + 1


def test_all_rules_are_covered():
    assert {*METHODS} | {"sgd", "learned_sgd", "meta_sgd", "momentum", "adagrad", "adadelta", "rmsprop", "mlp"} == {*RULES}

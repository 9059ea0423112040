"""MAML-PPO and what its settings make of it: one seed gives one model, adaptation is what training says it is, errors."""

import dataclasses
import re
import shutil
import signal

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from small_models import NAVIGATION, At, OwnBandit, assert_same, assert_same_model, make_maml, weights
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import metarl
from metarl import evaluate
from metarl.algorithms.maml import MAMLPPO, MAMLConfig
from metarl.algorithms.meta_gradient import adapt, adapted_params, make_batch
from metarl.algorithms.outer_updates import CHUNK, chunks, update
from metarl.batched import for_tasks
from metarl.checkpoint import CheckpointError
from metarl.cli import main
from metarl.collection import collect_trials
from metarl.config import TrainingConfig
from metarl.evaluation.play import play_trials
from metarl.policies import AdaptedPolicy
from metarl.training import Interrupted, load_run, resume, train
from metarl.trials import Transition
from metarl.updates import RULES, Diverged, UpdateRule
from metarl_envs import ContextFamily, TaskEnv, make_family

METHODS = {
    "MAML": {},
    "FOMAML": dict(second_order=False),
    "MAML, learned rate": dict(update_rule="learned_sgd"),
    "Meta-SGD": dict(update_rule="meta_sgd"),
    "first-order Meta-SGD": dict(update_rule="meta_sgd", second_order=False),
    "ANIL": dict(adapted="head"),
    "BOIL": dict(adapted="body"),
    "ProMP": dict(kl_coef=0.1),
    "Reptile": dict(outer_update="reptile"),
}
VARIANTS = {name: (name, settings) for name, settings in METHODS.items()} | {
    "dice": ("MAML", dict(inner_objective="dice")),
    "log-probabilities": ("MAML", dict(inner_objective="log_prob")),
    "value network": ("MAML", dict(baseline="network", gae_lambda=0.9)),
    "no baseline": ("MAML", dict(baseline="none")),
    "entropy bonus": ("MAML", dict(entropy_coef=0.1)),
    "two steps": ("MAML", dict(inner_steps=2)),
    "judged after every step": ("MAML", dict(inner_steps=2, every_step=True)),
    "everything": (
        "ANIL",
        dict(inner_steps=3, update_rule="meta_sgd", adapted="head", kl_coef=0.1, baseline="network", inner_objective="dice"),
    ),
    "first order, two steps, value network": ("FOMAML", dict(second_order=False, inner_steps=2, baseline="network")),
    "Reptile with a value network": ("Reptile", dict(outer_update="reptile", baseline="network", inner_steps=2)),
}
ENVS = ["bandit", "poles", "drift", "navigation"]
SAVED = ["MAML", "Meta-SGD", "value network", "everything", "Reptile", "Reptile with a value network"]
CONSTANT = dict(learning_rate=1e-3, final_learning_rate=1e-3)


def parameters(model):
    """All that is learned, by name."""
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}


# -- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("env", ["bandit", "navigation"])
def test_every_variant_learns_something_finite(env, variant):
    method, settings = VARIANTS[variant]
    model = make_maml(env, **settings)
    before = parameters(model)
    steps = 4 * 3 * model.family.max_episode_steps * (model.config.inner_steps + 1)
    assert model.learn(2 * steps).num_timesteps == 2 * steps
    after = parameters(model)
    assert all(value.isfinite().all() for value in after.values())
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert model.method == method
    assert model.player().name == method


def test_what_reptile_does_not_adapt_stays():
    model = make_maml("navigation", outer_update="reptile", adapted="head")
    before = parameters(model)
    model.learn(1)
    changed = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    assert changed == {"policy_head.log_std", "policy_head.linear.weight", "policy_head.linear.bias"}


@pytest.mark.parametrize(
    ("adapted", "prefixes"), [("all", ("policy_",)), ("head", ("policy_head.",)), ("body", ("policy_trunk.",))]
)
@pytest.mark.parametrize("baseline", ["linear", "network"])
def test_adaptation_changes_what_it_may_and_nothing_else(baseline, adapted, prefixes):
    model = make_maml("navigation", adapted=adapted, baseline=baseline).learn(1)
    before = parameters(model)
    player = model.player()
    play_trials(player, model.family, model.family.sample(1, "test", 0), episodes=4)  # a step after the third
    assert player.updates.tolist() == [1]
    after = {name: value[0] for name, value in player.params.items()}
    assert after.keys() == {name for name in before if not name.startswith("rule.")}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    prefixes = {"all": ("policy_", "value_"), "head": ("policy_head.", "value_"), "body": ("policy_trunk.", "value_")}[
        adapted
    ]
    assert changed == {name for name in after if name.startswith(prefixes)}  # the value network always adapts
    assert_same(parameters(model), before)  # of the starting point nothing changes


class Look(BaseCallback):
    """Keeps what a collection gave, and the policy as it was."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        model = self.model
        self.batches, self.returns = self.locals["batches"], self.locals["returns"]
        self.before = parameters(model)
        self.stages = adapted_params(model.policy, self.batches, model.config.settings)


@pytest.mark.parametrize("settings", [{}, dict(inner_steps=2, baseline="network")], ids=["one step", "two steps"])
def test_reptile_goes_towards_the_adapted_parameters(settings):
    model = make_maml("navigation", outer_update="reptile", inner_rate=0.5, learning_rate=1e-3, **settings)
    # without Pop-Art, which rescales the value layer as well
    model.learn(1, look := Look(), log_interval=None)
    for name, after in parameters(model).items():
        if name.startswith("value_head"):
            continue
        way = look.stages[-1][name].mean(0) - look.before[name]
        clear = way.abs() > 1e-3
        assert clear.any()
        step = after - look.before[name]
        torch.testing.assert_close(step[clear], 1e-3 * way[clear].sign(), rtol=0.02, atol=0)  # Adam's first step


def test_collections_follow_the_inner_steps():
    """Each batch after the first is collected by the policies that the batches before led to."""
    model = make_maml("navigation", inner_steps=2, inner_rate=0.5)
    model.learn(1, look := Look())
    policy = model.policy
    policy.load_state_dict(look.before, strict=False)
    for stage, batch in enumerate(look.batches):
        params = look.stages[stage]
        out = policy.action_params(params, policy.features(params, batch.inputs))
        torch.testing.assert_close(policy.policy_head.log_prob(out, batch.actions), batch.log_probs)
        if stage:
            old = look.stages[stage - 1]
            out = policy.action_params(old, policy.features(old, batch.inputs))
            assert not torch.allclose(policy.policy_head.log_prob(out, batch.actions), batch.log_probs)
    assert np.shape(look.returns) == (3, 4 * 3)


def test_the_penalty_of_promp_holds_the_starting_point():
    def divergence(kl_coef):
        model = make_maml("navigation", kl_coef=kl_coef, epochs=10, learning_rate=3e-2).learn(1, log_interval=None)
        return model.logger.name_to_value["train/inner_kl"]

    assert 0 < divergence(100.0) < 0.5 * divergence(1e-9)


def test_the_entropy_bonus_raises_the_entropy():
    model = make_maml("navigation", entropy_coef=10.0, epochs=10, learning_rate=1e-2).learn(1)
    assert (model.policy.policy_head.log_std > -0.45).all()  # from -0.5


def test_what_is_logged_is_of_first_episodes():
    model = make_maml("poles", inner_steps=2).learn(1, look := Look())  # which pay one point per step
    lengths = [batch.timed(batch.weights > 0).sum(-1).flatten().tolist() for batch in look.batches]
    assert [returns.tolist() for returns in look.returns] == lengths
    assert len({*lengths[0]}) > 3
    assert [episode["r"] for episode in model.ep_info_buffer] == lengths[-1]


def test_the_scale_of_values_follows_the_returns():
    model = make_maml("navigation", baseline="network", return_rate=0.25, inner_steps=2).learn(1)
    mean, std = model.policy.value_mean.clone(), model.policy.value_std.clone()
    assert mean < 0
    model.learn(1, look := Look())
    returns = torch.cat([batch.targets[batch.weights > 0] for batch in look.batches]) * std + mean
    torch.testing.assert_close(model.policy.value_mean, 0.75 * mean + 0.25 * returns.mean())
    second = 0.75 * (std**2 + mean**2) + 0.25 * returns.square().mean()
    torch.testing.assert_close(model.policy.value_std, (second - model.policy.value_mean**2).sqrt())


def test_one_step_is_every_step():
    assert_same(*(parameters(make_maml("navigation", every_step=value).learn(1)) for value in (False, True)))
    after_two = (make_maml("navigation", every_step=value, inner_steps=2).learn(1) for value in (False, True))
    assert not torch.equal(*map(weights, after_two))


def test_chunks_of_tasks_add_up(monkeypatch):
    whole = make_maml("navigation", kl_coef=0.1).learn(1)
    monkeypatch.setattr("metarl.algorithms.outer_updates.chunks", lambda batch, _: chunks(batch, 3 * 3 * 5 + 1))  # 3 + 1
    parts = make_maml("navigation", kl_coef=0.1).learn(1)
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=1e-3, atol=1e-5)


def test_chunks_cover_all_tasks():
    class Batch:
        weights = torch.zeros(6, 10)

    assert [*chunks(Batch, 45)] == [slice(0, 3), slice(3, 6)]  # all alike: 4 would not do
    assert [*chunks(Batch, 1)] == [slice(i, i + 1) for i in range(6)]
    assert [*chunks(Batch, CHUNK)] == [slice(0, 6)]


class Glimpse(gym.Env):
    """Say whether the picture is bright; what counts as bright differs."""

    observation_space = gym.spaces.Box(0, 255, (1, 8, 8), np.uint8)
    action_space = gym.spaces.Discrete(2)
    bright = 128.0

    def _observation(self):
        self.level = int(self.np_random.integers(256))
        return np.full((1, 8, 8), self.level, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        reward = float((self.level > self.bright) == action)
        return self._observation(), reward, False, False, {}


gym.register("test/Glimpse-v0", Glimpse, max_episode_steps=4)


class Eye(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 4)
        self.net = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 3 * 3, 4))

    def forward(self, x):
        return self.net(x)


class Normalising(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 4)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("settings", [{}, dict(second_order=False, inner_objective="dice"), dict(outer_update="reptile")])
def test_images_are_seen_alike_however_tasks_are_run(settings):
    family = ContextFamily("test/Glimpse-v0", ranges={"bright": (50, 200)})
    found = []
    for task_batching in ("auto", "loop", "batched"):
        model = MAMLPPO(
            "MlpPolicy",
            family,
            policy_kwargs=dict(hidden=(6,), features_extractor_class=Eye),
            seed=0,
            task_batching=task_batching,
            **dict(num_tasks=3, episodes_per_update=3, epochs=2, inner_rate=0.5),
            **settings,
        )
        before = parameters(model)
        found.append(parameters(model.learn(2 * 3 * 3 * 8)))
        assert all(not torch.equal(value, before[name]) for name, value in found[-1].items())
        assert evaluate(model, num_tasks=2, references=False).returns.shape == (2, 6)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=1e-5)


def test_batch_statistics_stay_as_they_are():
    # adapting must be the same in training and in playing, so normalisation is by fixed statistics
    kwargs = dict(hidden=(6,), features_extractor_class=Normalising)
    model = make_maml("navigation", policy_kwargs=kwargs)
    statistics = model.policy.extractor.net[1].running_mean
    before = statistics.clone()
    model.learn(1)
    assert model.predict(np.zeros(2, np.float32), deterministic=True)[0].shape == (2,)
    model.adapt(TaskEnv(family=model.family), gradient_steps=1)
    assert torch.equal(statistics, before)


def test_slots_whose_trial_is_over_take_no_more_steps():
    model = make_maml("poles")
    player = model.player()
    play_trials(player, model.family, model.family.sample(16, "test", 0), episodes=6)
    assert player.updates.tolist() == [1] * 16  # after three of six episodes; nothing comes after the last three


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_update_changes_nothing(failure):
    model = make_maml("navigation", epochs=3)
    model.learn(1)
    before, original = parameters(model), model.policy.optimizer.step
    calls = []

    def step(*args, **kwargs):
        calls.append(original(*args, **kwargs))
        if len(calls) == 2:
            raise failure("the second epoch fails")

    model.policy.optimizer.step = step
    with pytest.raises(failure, match="the second epoch fails"):
        model.learn(1)
    assert_same(parameters(model), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(outer_update="reptile", kl_coef=0.1), "must be left out with outer_update reptile"),
        (dict(outer_update="reptile", every_step=True), "must be left out with outer_update reptile"),
        (dict(value_coef=-1.0), "value_coef must be at least 0, got -1.0"),
        (dict(entropy_coef=float("nan")), "entropy_coef must be at least 0, got nan"),
        (dict(inner_rate=float("inf")), "inner_rate must be above 0, got inf"),
    ],
)
def test_settings_that_do_not_go_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_maml("navigation", **settings)


def test_a_rule_of_ones_own_is_plugged_in(monkeypatch):
    class SignDescent(UpdateRule):
        method = "sign descent"

        def __init__(self, params, rate):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(rate))

        def init(self, params):
            return {"steps": torch.zeros(len(next(iter(params.values()))))}

        def update(self, grads, state, params, losses):
            changed = {name: params[name] - self.rate * grad.sign() for name, grad in grads.items()}
            return {**params, **changed}, {"steps": state["steps"] + 1}

    monkeypatch.setitem(RULES, "sign", SignDescent)
    model = make_maml("navigation", update_rule="sign", inner_rate=0.01, inner_steps=2)
    rate = model.policy.rule.rate.item()
    model.learn(1)
    assert model.policy.rule.rate.item() != rate
    assert model.method == "sign descent"
    player = model.player()
    play_trials(player, model.family, model.family.sample(3, "test", 0), episodes=7)
    assert player._rule_state["steps"].tolist() == [2, 2, 2]


def test_records_are_of_one_shape_when_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    shapes = set()
    for compiled in (False, True):
        look = Look()
        make_maml("poles", compile=compiled).learn(300, look)
        shapes = {batch.weights.shape for batch in look.batches}
    assert len(shapes) == 1


class Wide(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (600,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(600, np.float32), {}

    def step(self, action):
        return np.zeros(600, np.float32), 0.0, False, False, {}


gym.register("test/Wide-v0", Wide, max_episode_steps=4)


def test_a_linear_baseline_of_wide_observations_is_refused():
    with pytest.raises(ValueError, match=r"baseline must be network or none .* more than 512 numbers, got linear for 600"):
        MAMLPPO("MlpPolicy", "test/Wide-v0")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it loads its compiler
def test_compiled_updates_are_the_same():
    settings = dict(inner_steps=2, update_rule="meta_sgd", kl_coef=0.1, every_step=True)
    plain, compiled = (make_maml("navigation", compile=way, **settings).learn(2 * 180) for way in (False, True))
    for name, value in parameters(plain).items():
        torch.testing.assert_close(parameters(compiled)[name], value, rtol=1e-5, atol=1e-6)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"compile needs a C\+\+ compiler"):
        make_maml("navigation", compile=True)


def test_a_learner_goes_on_after_it_diverged():
    model = make_maml("navigation", inner_rate=1e30)
    env = TaskEnv(family=model.family)
    learner = model.adapt(env, seed=0)
    with pytest.raises(Diverged):
        learner.adapt(env, 3)
    observation, _ = env.reset()
    learner.predict(observation)


def test_updates_are_counted():
    for settings, expected in (({}, 2), (dict(outer_update="reptile"), 1)):
        model = make_maml("navigation", **settings).learn(1, log_interval=None)
        (first, *_) = model.policy.optimizer.state_dict()["state"].values()
        assert model.logger.name_to_value["train/n_updates"] == first["step"] == expected


def test_callbacks_see_every_step():
    seen = []

    class Steps(BaseCallback):
        def _on_rollout_start(self):
            seen.append("start")

        def _on_step(self):
            assert self.num_timesteps == self.model.num_timesteps
            assert self.locals["rewards"].shape == self.locals["dones"].shape == (12,)
            seen.append(bool(self.locals["dones"].any()))
            return True

        def _on_rollout_end(self):
            seen.append("end")

    make_maml("navigation").learn(2 * 120, Steps())
    assert seen == 2 * ["start", *[False] * 9, True, "end"]  # trials end after the last inner step


# -- one seed, one model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "env"), [*(("MAML", env) for env in ENVS), *((name, "drift") for name in SAVED[1:])])
def test_one_seed_gives_one_model(variant, env):
    models = []
    for seed in (3, 3, 4):
        model = make_maml(env, seed=seed, **VARIANTS[variant][1])
        torch.rand(seed + len(models))  # the shared generators decide nothing
        models.append(model.learn(1).learn(1, reset_num_timesteps=False))
    assert_same_model(*models[:2])
    assert not torch.equal(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize(("variant", "env"), [*(("MAML", env) for env in ENVS), *((name, "drift") for name in SAVED[1:])])
def test_n_and_n_equal_2n(variant, env, tmp_path):
    settings = CONSTANT | VARIANTS[variant][1]

    def two_iterations(model):
        return model.learn(1, reset_num_timesteps=False).learn(1, reset_num_timesteps=False)

    whole = two_iterations(two_iterations(make_maml(env, **settings)))
    model = two_iterations(make_maml(env, **settings))
    model.save(tmp_path / "half")
    torch.manual_seed(99)
    loaded = MAMLPPO.load(tmp_path / "half")
    assert loaded.config == model.config
    assert_same_model(loaded, model)
    assert_same_model(two_iterations(loaded), whole)
    assert_same_model(two_iterations(model), whole)


@pytest.mark.parametrize("stop_at", [1, 14, 26, 47])
def test_an_interrupted_training_goes_on_along_its_schedules(stop_at, tmp_path):
    total = 5 * 12 * 10
    whole = make_maml("navigation").learn(total)
    model = make_maml("navigation").learn(total, At(stop_at))
    assert model.num_timesteps == (stop_at - 1) // 10 * 10 * 12  # the collection that was stopped left no trace
    model.save(tmp_path / "model")
    rest = total - model.num_timesteps
    assert_same_model(MAMLPPO.load(tmp_path / "model").learn(rest, reset_num_timesteps=False), whole)


def test_stopping_in_the_middle_of_a_collection_leaves_no_trace():
    model = make_maml("navigation", baseline="network").learn(1)
    before = model.state()

    def fail(model):
        raise KeyboardInterrupt

    for stop_at in (1, 5, 6, 10):  # before and after the inner step
        model.learn(1, At(stop_at), reset_num_timesteps=False)
        assert_same(model.state() | {"total_timesteps": before["total_timesteps"]}, before)
        with pytest.raises(KeyboardInterrupt):
            model.learn(1, At(stop_at, fail), reset_num_timesteps=False)
        assert_same(model.state() | {"total_timesteps": before["total_timesteps"]}, before)


def test_what_is_saved_in_the_middle_of_a_collection_goes_on_exactly(tmp_path):
    model = make_maml("navigation", update_rule="meta_sgd")
    total = 3 * 120
    model.learn(total, CheckpointCallback(save_freq=7, save_path=tmp_path))
    checkpoints = sorted(tmp_path.glob("rl_model_*_steps.zip"))
    assert len(checkpoints) == 4
    for path in checkpoints:
        loaded = MAMLPPO.load(path)
        assert loaded.num_timesteps % 120 == 0
        loaded.learn(total - loaded.num_timesteps, reset_num_timesteps=False)
        assert_same_model(loaded, model)


def test_evaluating_on_the_way_changes_nothing():
    plain = make_maml().learn(72)
    model = make_maml()
    callback = EvalCallback(model.get_env(), n_eval_episodes=4, eval_freq=2, deterministic=False, verbose=0)
    model.learn(72, callback)
    assert callback.n_calls == 6
    assert np.isfinite(callback.last_mean_reward)
    evaluate(model, num_tasks=3, references=False)
    model.adapt(TaskEnv(family=model.family), gradient_steps=1)
    assert_same_model(model, plain)


RUN = dict(algorithm="maml", policy_kwargs={"hidden": [6]}, total_timesteps=480, checkpoint_every=120)
TINY = {"num_tasks": 4, "episodes_per_update": 3, "epochs": 2}


def run_config(**hyperparameters):
    name, env_kwargs = NAVIGATION
    return TrainingConfig(env=name, env_kwargs=env_kwargs, hyperparameters=TINY | hyperparameters, **RUN)


def newest(folder):
    return max((folder / "checkpoints").glob("step_*.ckpt"))


@pytest.mark.parametrize("variant", ["MAML", "everything", "Reptile"])
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, variant):
    config = run_config(**VARIANTS[variant][1])
    train(config, tmp_path / "whole", progress_bar=False)
    stop = At(13, lambda model: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"stopped and saved at step [0-9]+ of 480"):
        train(config, tmp_path / "parts", callback=stop, progress_bar=False)
    assert newest(tmp_path / "parts").name < newest(tmp_path / "whole").name
    with pytest.raises(Interrupted):
        resume(tmp_path / "parts", callback=At(11, lambda _: signal.raise_signal(signal.SIGTERM)), progress_bar=False)
    model = resume(tmp_path / "parts", progress_bar=False)
    assert isinstance(model, MAMLPPO)
    assert newest(tmp_path / "parts").name == newest(tmp_path / "whole").name
    assert newest(tmp_path / "parts").read_bytes() == newest(tmp_path / "whole").read_bytes()
    assert_same_model(load_run(tmp_path / "parts"), model)


def test_saved_models(tmp_path):
    assert metarl.MAMLPPO is MAMLPPO
    model = make_maml(update_rule="sgd", inner_rate=0.25)
    model.save(tmp_path / "fixed")
    assert MAMLPPO.load(tmp_path / "fixed").policy.rule.rate == 0.25
    assert MAMLPPO.load(tmp_path / "fixed", inner_rate=0.5).policy.rule.rate == 0.5  # a fixed rate is a setting
    model = make_maml(update_rule="learned_sgd", inner_rate=0.25, learning_rate=0.1).learn(1)
    model.save(tmp_path / "learned")
    assert model.policy.rule.rate != 0.25
    assert MAMLPPO.load(tmp_path / "learned").policy.rule.rate == model.policy.rule.rate
    with pytest.raises(CheckpointError, match="checkpoint must be of MAMLPPO, got 'RL2PPO'"):
        MAMLPPO.from_state(model.state() | {"algorithm": "RL2PPO"})
    with pytest.raises(CheckpointError, match="checkpoint must be of this policy and version of metarl"):
        MAMLPPO.load(tmp_path / "fixed", update_rule="meta_sgd")


# -- the player is the inner loop ----------------------------------------------------------------------------------


class Replay:
    """Episodes of `N` tasks x `K` slots, recorded side by side, for a player to go through one after another."""

    def __init__(self, model, monkeypatch):
        config, self.policy, family = model.config, model.policy, model.family
        self.model, self.monkeypatch = model, monkeypatch
        self.num_tasks, slots = config.num_tasks, config.episodes_per_update
        tasks = family.sample(self.num_tasks, "train", 5)[np.repeat(np.arange(self.num_tasks), slots)]
        envs = family.make_vec(len(tasks), autoreset_mode=AutoresetMode.DISABLED)
        successors, step = [], envs.step

        def noting(actions):
            outcome = step(actions)
            successors.append(outcome[0])
            return outcome

        monkeypatch.setattr(envs, "step", noting)
        initial = for_tasks({n: p.detach() for n, p in self.policy.initial_params().items()}, self.num_tasks)
        trials = collect_trials(
            envs,
            AdaptedPolicy(self.policy, initial),
            num_steps=family.max_episode_steps,
            episodes_per_trial=1,
            split="train",
            rng=np.random.default_rng(0),
            generator=torch.Generator().manual_seed(0),
            tasks=tasks,
        )
        self.batch = make_batch(self.policy, trials, self.num_tasks, trials.first, config.settings)
        state = self.policy.rule.init(initial)
        self.initial, (self.adapted, _, _) = initial, adapt(self.policy, initial, state, self.batch, config.settings)
        lengths = trials.first.sum(0).tolist()
        self.steps = []  # of each task, episode after episode
        for task in range(self.num_tasks):
            rows = range(task * slots, (task + 1) * slots)
            self.steps.append([(t, row) for row in rows for t in range(lengths[row])])
        self.trials, self.successors, self.lengths = trials, successors, lengths

    def at(self, observations, where):
        if isinstance(observations[0] if isinstance(observations, list) else observations, dict):
            return {key: np.stack([np.asarray(observations[t][key][row]) for t, row in where]) for key in observations[0]}
        return np.stack([np.asarray(observations[t][row]) for t, row in where])

    def play(self, tasks, num_steps):
        """The player's parameters after each of `num_steps` steps in `tasks`; their episodes come round again."""
        player = self.model.player()
        player.start(len(tasks), 0)
        trials = self.trials
        observations = trials.observations
        if isinstance(observations, dict):
            observations = [{key: value[t] for key, value in observations.items()} for t in range(len(trials.rewards))]
        for i in range(num_steps):
            where = [self.steps[task][i % len(self.steps[task])] for task in tasks]
            actions = torch.stack([trials.actions[t, row] for t, row in where])
            self.monkeypatch.setattr(self.policy.policy_head, "sample", lambda *_, actions=actions: actions)
            seen = self.at(observations, where)
            played = player.act(seen)
            flags = (np.array([getattr(trials, name)[t, row] for t, row in where]) for name in ("terminated", "truncated"))
            rewards = np.array([trials.rewards[t, row] for t, row in where], np.float64)
            player.observe(Transition(seen, played, rewards, *flags, self.at(self.successors, where)))
            yield {name: value.clone() for name, value in player.params.items()}, player.updates.copy()


REPLAYS = [
    ("navigation", {}),
    ("bandit", {}),
    ("poles", {}),
    ("poles", dict(inner_objective="dice")),
    ("poles", dict(baseline="network", gae_lambda=0.9)),
    ("drift", dict(baseline="network", inner_objective="dice", update_rule="meta_sgd")),
    ("drift", dict(baseline="none", adapted="head")),
]


@pytest.mark.parametrize(("env", "settings"), REPLAYS)
def test_a_player_takes_the_steps_of_training(env, settings, monkeypatch):
    """Episodes one after another lead to the parameters that the same ones side by side lead to, slot by slot."""
    model = make_maml(env, inner_rate=0.5, **settings)
    if model.policy.value_head is not None:
        model.policy.track_returns(torch.tensor([-3.0, 5.0]), 0.5)
    replay = Replay(model, monkeypatch)
    due = [len(steps) for steps in replay.steps]
    if env in ("poles", "drift"):
        assert len({*due}) > 1  # the slots take their steps at different times
    seen = list(replay.play(range(4), max(due)))
    for task, number in enumerate(due):
        for i, (params, updates) in enumerate(seen[:number]):
            assert updates[task] == (i + 1 == number)
            expected = replay.adapted if i + 1 == number else replay.initial
            for name, value in params.items():
                torch.testing.assert_close(value[task], expected[name][task].detach(), rtol=1e-3, atol=1e-5)
    moved = [(replay.adapted[name] - replay.initial[name]).abs().amax() for name in model.policy.adapted]
    assert max(moved) > 1e-2


def test_a_slot_does_not_depend_on_its_neighbours(monkeypatch):
    replay = Replay(make_maml("poles", inner_rate=0.5, baseline="network"), monkeypatch)
    num_steps = 3 * max(len(steps) for steps in replay.steps)  # several updates each
    together = list(replay.play([0, 1, 2, 3], num_steps))
    for slot in range(4):
        alone = list(replay.play([slot], num_steps))
        assert alone[-1][1][0] >= 3
        for (params, updates), (own, own_updates) in zip(together, alone, strict=True):
            assert updates[slot] == own_updates[0]
            for name, value in own.items():
                torch.testing.assert_close(params[name][slot], value[0], rtol=1e-3, atol=1e-5)


def test_the_next_step_knows_nothing_of_the_episodes_before(monkeypatch):
    # The same episodes once more: the step from where the first one led, on these alone.
    replay = Replay(make_maml("poles", inner_rate=0.5), monkeypatch)
    policy, batch, first = replay.policy, replay.batch, {n: value.detach() for n, value in replay.adapted.items()}
    outputs = policy.action_params(first, policy.features(first, batch.inputs))
    batch = dataclasses.replace(batch, log_probs=policy.policy_head.log_prob(outputs, batch.actions))
    second, _, _ = adapt(policy, first, (), batch, replay.model.config.settings)
    due = [2 * len(steps) for steps in replay.steps]
    seen = list(replay.play(range(4), max(due)))
    for task, number in enumerate(due):
        params, updates = seen[number - 1]
        assert updates[task] == 2
        for name, value in params.items():
            torch.testing.assert_close(value[task], second[name][task].detach(), rtol=1e-3, atol=1e-5)


# -- learning ----------------------------------------------------------------------------------------------------

BANDITS = dict(
    env="metarl/TwoArmedBandit-v0",
    env_kwargs=dict(variant="easy"),
    policy_kwargs=dict(hidden=()),
    **dict(num_tasks=20, episodes_per_update=10, inner_rate=0.3, learning_rate=3e-2, epochs=3),
)
GOALS = dict(
    env="metarl/Navigation2D-v0",
    env_kwargs=dict(num_steps=10),
    policy_kwargs=dict(hidden=(16,)),
    **dict(num_tasks=20, episodes_per_update=10, inner_rate=0.5, learning_rate=1e-2, epochs=3),
)


def learned(iterations, **options):
    model = MAMLPPO("MlpPolicy", seed=0, **options)
    stages = model.config.inner_steps + 1
    return model.learn(iterations * stages * model.n_envs * model.family.max_episode_steps)


@pytest.fixture(scope="module")
def bandits():
    """Trained until one gradient step finds the arm that pays .9 beside one that pays .1."""
    return learned(40, update_rule="learned_sgd", **BANDITS)


def before_and_after(model, num_tasks=200, **options):
    returns = evaluate(model, num_tasks=num_tasks, references=False, **options).returns
    each = model.config.episodes_per_update
    return [float(part.mean()) for part in np.split(returns, returns.shape[1] // each, axis=1)]


@pytest.mark.parametrize("update_rule", ["learned_sgd", "meta_sgd"])
def test_it_learns_to_adapt_to_bandits(update_rule):
    untrained, trained = (before_and_after(learned(n, update_rule=update_rule, **BANDITS)) for n in (1, 40))
    assert untrained[0] == pytest.approx(0.5, abs=0.05)
    assert trained[0] == pytest.approx(0.5, abs=0.05)  # either arm is as good, as long as nothing is known
    assert 0.55 < untrained[1] < 0.68
    assert trained[1] > 0.75


@pytest.mark.parametrize("settings", [{}, dict(second_order=False)], ids=["MAML", "FOMAML"])
def test_it_learns_to_adapt_to_goals(settings):
    before, after = before_and_after(learned(60, **GOALS, **settings))
    assert after > before + 1


# -- using what was learned ----------------------------------------------------------------------------------------


def test_it_adapts_to_an_environment_of_ones_own(bandits):
    for good in (0, 1):
        learners = [bandits.adapt(OwnBandit(good), gradient_steps=3, seed=seed) for seed in range(10)]
        assert all(learner.gradient_steps == 3 for learner in learners)
        returns = np.array([learner.returns for learner in learners])
        assert returns.shape == (10, 30)
        assert returns[:, 20:].mean() > 0.75
        late = [learner.run_episode(OwnBandit(good), seed=seed) for seed, learner in enumerate(learners) for _ in range(10)]
        assert len(late) == 100
        assert all(learner.gradient_steps == 4 for learner in learners)  # it goes on adapting


def test_episodes_and_gradient_steps():
    model = make_maml("navigation")
    env = TaskEnv(family=model.family)
    for episodes, steps in ((0, 0), (2, 0), (3, 1), (7, 2)):
        learner = model.adapt(env, episodes=episodes)
        assert (len(learner.returns), learner.gradient_steps) == (episodes, steps)
    learner = model.adapt(env, gradient_steps=0)
    assert (len(learner.returns), learner.gradient_steps) == (0, 0)
    assert learner.adapt(env, 2) is learner
    assert (len(learner.returns), learner.gradient_steps) == (6, 2)
    learner.run_episode(env)
    learner.adapt(env, 1)
    assert (len(learner.returns), learner.gradient_steps) == (9, 3)
    for wrong in (-1, -7):
        with pytest.raises(ValueError, match=f"gradient_steps must be at least 0, got {wrong}"):
            model.adapt(env, gradient_steps=wrong)
    with pytest.raises(ValueError, match="episodes must be left out with gradient_steps, got 3"):
        model.adapt(env, episodes=3, gradient_steps=1)
    with pytest.raises(ValueError, match="episodes must be at least 0, got -1"):
        model.adapt(env, episodes=-1)


def test_a_learner_equals_a_player_of_one_trial():
    model = make_maml("drift", inner_rate=0.5, baseline="network")
    env = TaskEnv(family=model.family)
    env.task = tasks = model.family.sample(1, "test", 0)
    learner = model.adapt(env, gradient_steps=2, seed=5)
    player = model.player()
    player.start(1, int(np.random.default_rng(5).integers(2**31)))
    twin = TaskEnv(family=model.family)
    twin.task = tasks
    twin.reset(seed=5)
    returns = []
    for episode in range(6):
        observation, _ = twin.reset(seed=5 if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            action = player.act({key: np.asarray(value)[None] for key, value in observation.items()})[0]
            observation, reward, terminated, truncated, _ = twin.step(action)
            successor = {key: np.asarray(value)[None] for key, value in observation.items()}
            flags = np.array([[terminated], [truncated]])
            player.observe(Transition(None, None, np.array([reward]), *flags, successor))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    assert learner.returns == returns
    assert_same(learner._player.params, player.params)


class Walk(gym.Env):
    """Hands out one array again and again, unless it is told to copy it."""

    observation_space = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
    action_space = gym.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def __init__(self, copying):
        self.copying = copying
        self.place = np.zeros(2, np.float32)

    def _observation(self):
        return self.place.copy() if self.copying else self.place

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place[:] = 0
        self.left = 5
        return self._observation(), {}

    def step(self, action):
        self.place += action
        self.left -= 1
        return self._observation(), float(self.place[0]), False, self.left == 0, {}


def test_an_environment_may_use_its_arrays_again():
    model = make_maml("navigation", inner_rate=0.5, baseline="network")
    first, second = (model.adapt(Walk(copying), gradient_steps=2, seed=0) for copying in (True, False))
    assert first.returns == second.returns
    assert_same(first._player.params, second._player.params)


def test_an_environment_of_the_family_keeps_its_task():
    model = make_maml("navigation")
    env = gym.make(NAVIGATION[0], **NAVIGATION[1], split="test")
    learner = model.adapt(env, gradient_steps=2, seed=1)
    goal = env.unwrapped.task["goal"]
    learner.adapt(env, 2)
    np.testing.assert_array_equal(env.unwrapped.task["goal"], goal)
    assert model.family.held_out({"goal": goal[None]}).all()


def test_seeds_and_likeliest_actions():
    model = make_maml("navigation", inner_rate=0.5).learn(1)

    def play(seed, **options):
        env = TaskEnv(family=model.family)
        env.task = {"goal": np.array([0.2, 0.3])}
        return model.adapt(env, gradient_steps=2, seed=seed, **options).returns

    assert play(1) == play(1)
    assert play(1) != play(2)
    with pytest.raises(ValueError, match="deterministic must be False for an agent that adapts by gradient steps"):
        play(1, deterministic=True)


def test_actions_and_outcomes_take_turns():
    learner = make_maml("navigation").adapt(TaskEnv(family=make_family(*NAVIGATION[:1], **NAVIGATION[1])))
    with pytest.raises(RuntimeError, match="observe was called without a predict before it"):
        learner.observe(1.0, True)
    with pytest.raises(ValueError, match=r"observation must fit Box\(.*, got shape \(3,\)"):
        learner.predict(np.zeros(3))
    action, state = learner.predict(np.zeros(2, np.float32))
    assert action.shape == (2,)
    assert state is None
    with pytest.raises(RuntimeError, match="predict was called twice without observe"):
        learner.predict(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="reward must be finite, got nan in step 0 of episode 1"):
        learner.observe(float("nan"), True)
    learner.observe(1.0, True)
    assert learner.returns == [1.0]


def test_it_adapts_inside_stable_baselines_helpers(bandits):
    late = []
    for seed in range(5):
        env = OwnBandit(good=1)
        learner = bandits.adapt(env, seed=seed)
        returns, lengths = evaluate_policy(
            learner, Monitor(learner.watch(env)), n_eval_episodes=40, deterministic=False, return_episode_rewards=True
        )
        assert lengths == [1] * 40
        assert returns == learner.returns
        assert learner.gradient_steps == 4
        late += returns[20:]
    assert np.mean(late) > 0.7


@pytest.mark.parametrize("env", ENVS)
def test_predict_is_the_starting_point(env):
    model = make_maml(env, inner_rate=0.5).learn(1)
    space = model.observation_space
    space.seed(0)
    observations = [space.sample() for _ in range(5)]
    nested = isinstance(space, gym.spaces.Dict)
    batch = {key: np.stack([o[key] for o in observations]) for key in space} if nested else np.stack(observations)
    actions, state = model.predict(batch, deterministic=True)
    assert state is None
    player = model.player()
    player.start(5, 0)
    np.testing.assert_array_equal(actions, player.act(batch, deterministic=True))
    for row, observation in enumerate(observations):
        action, _ = model.predict(observation, deterministic=True)
        np.testing.assert_allclose(action, actions[row], rtol=1e-5)
        assert action in model.action_space
        np.testing.assert_allclose(model.policy.predict(observation, deterministic=True)[0], action, rtol=1e-5)
    torch.manual_seed(0)
    first, _ = model.predict(batch)
    torch.manual_seed(0)
    np.testing.assert_array_equal(model.predict(batch)[0], first)
    with pytest.raises(ValueError, match="observation must fit"):
        model.predict({"wrong": np.zeros(2)})


def test_evaluating_the_starting_point_with_stable_baselines():
    model = make_maml("navigation")
    envs = model.get_env()
    assert envs.num_envs == 12
    assert envs.unwrapped.episodes_per_trial == 6
    returns, lengths = evaluate_policy(model, envs, n_eval_episodes=12, return_episode_rewards=True)
    assert len(returns) == 12
    assert all(length <= 6 * 5 for length in lengths)
    assert all(value < 0 for value in returns)


@pytest.mark.parametrize("env", ENVS)
def test_evaluate(env):
    model = make_maml(env, inner_steps=2).learn(1)
    curve = evaluate(model, split="test", num_tasks=8, references=False)
    assert curve.returns.shape == (8, 3 * 3)  # as many episodes as in training
    assert curve.name == "MAML"
    assert curve.split == "test"
    assert curve.training_steps == model.num_timesteps
    np.testing.assert_array_equal(curve.returns, evaluate(model, num_tasks=8, references=False).returns)
    longer = evaluate(model, num_tasks=8, episodes=12, references=False)
    assert longer.returns.shape == (8, 12)
    # slots whose trial is over take no more steps, so that others take theirs in batches of other sizes
    np.testing.assert_allclose(longer.returns[:, :9], curve.returns, rtol=1e-4)


def test_what_is_logged(tmp_path):
    model = make_maml("navigation", inner_steps=2, baseline="network", tensorboard_log=str(tmp_path))
    model.learn(2 * 180, look := Look(), log_interval=1)
    events = EventAccumulator(str(tmp_path / "MAMLPPO_1")).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        *(f"rollout/return_after_{step}_steps" for step in range(3)),
        *("train/policy_loss", "train/entropy", "train/approx_kl", "train/value_loss", "train/learning_rate", "time/fps"),
    }
    assert "rollout/return_after_3_steps" not in tags
    for step in range(3):
        shown = events.Scalars(f"rollout/return_after_{step}_steps")
        assert [event.step for event in shown] == [180, 360]
        assert shown[-1].value == pytest.approx(look.returns[step].mean(), rel=1e-5)
    assert all(np.isfinite(event.value) for tag in tags for event in events.Scalars(tag))
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert rates == pytest.approx([3e-3, 3e-3 / 10**0.5])  # on the way to a tenth
    assert [episode["r"] for episode in model.ep_info_buffer][-12:] == pytest.approx(look.returns[-1].tolist())


# -- errors ------------------------------------------------------------------------------------------------------

AT = r" \(task \d \{'goal': \[[-.\de]+, [-.\de]+\]\} of iteration at step 1[28]0\): lower inner_rate, got 1e\+30$"


@pytest.mark.parametrize("settings", [{}, dict(baseline="network"), dict(inner_objective="dice", second_order=False)])
@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (1, "^the (inner loop diverged at|loss after) gradient step 1.* not finite"),
        (2, r"^the inner loop diverged at gradient step [12]: .*not finite"),
    ],
)
def test_a_diverging_inner_loop_is_told_in_one_line(steps, message, settings):
    model = make_maml("navigation", inner_rate=1e30, inner_steps=steps, **settings)
    before = weights(model)
    with pytest.raises(ValueError, match=message + AT) as error:
        model.learn(1)
    assert isinstance(error.value, Diverged)
    assert torch.equal(weights(model), before)
    assert model.num_timesteps == 0


def test_reptile_and_players_tell_too():
    model = make_maml("navigation", inner_rate=1e30, outer_update="reptile")
    with pytest.raises(Diverged, match="the inner loop diverged at gradient step 2"):
        model.learn(1)
    with pytest.raises(Diverged, match=r"^the inner loop diverged at gradient step [12]: the adapted parameters"):
        model.adapt(TaskEnv(family=model.family), gradient_steps=3, seed=0)
    with pytest.raises(Diverged, match=r"^task \d: the inner loop diverged at gradient step [12]"):
        evaluate(model, num_tasks=8, episodes=9, references=False)


def test_the_step_that_is_named_is_the_slots_own():
    player = make_maml("navigation", episodes_per_update=2).player()
    player.start(2, 0)

    def play(step):
        player.act(np.full((2, 2), 0.1 * step, np.float32))
        terminated = np.array([True, step % 2 == 1])  # at the fourth step, the first slot is due a second time
        rewards = np.array([step, np.inf])
        player.observe(Transition(None, None, rewards, terminated, np.zeros(2, bool), None))

    for step in range(3):
        play(step)
    with pytest.raises(Diverged, match=r"^the inner loop diverged at gradient step 1: ") as caught:
        play(3)
    assert caught.value.task == 1
    assert player.updates.tolist() == [1, 0]
    assert all(value.isfinite().all() for value in player.params.values())


def test_gradients_that_are_not_finite_do_no_harm():
    model = make_maml("navigation")
    model.learn(1, look := Look())
    before = parameters(model)

    def steep(policy, batches, *args, **kwargs):  # finite, with a slope that is not
        flat = torch.sqrt(0 * policy.policy_head.linear.bias.sum())
        losses = torch.zeros(len(batches[0].weights)) + flat
        return losses, {}

    with pytest.raises(ValueError, match=r"the outer gradient is not finite: lower inner_rate, got 0\.1"):
        update(model.policy, look.batches, model.config, steep)
    assert_same(parameters(model), before)


def test_the_task_that_is_named_is_counted_over_all_chunks(monkeypatch):
    model = make_maml("navigation")
    model.learn(1, look := Look())
    monkeypatch.setattr("metarl.algorithms.outer_updates.chunks", lambda batch, _: chunks(batch, 2 * 3 * 5))  # 2 + 2
    seen = []

    def breaking(policy, batches, *args, **kwargs):
        seen.append(len(batches[0].weights))
        losses = torch.zeros(2) + 0 * policy.policy_head.linear.bias.sum()
        return losses + torch.tensor([0.0, np.inf if len(seen) == 2 else 0.0]), {}

    with pytest.raises(Diverged) as error:
        update(model.policy, look.batches, model.config, breaking)
    assert seen == [2, 2]
    assert error.value.task == 3


def test_a_run_that_diverges_keeps_its_last_checkpoint(tmp_path):
    def break_it(model):
        model.policy.rule.rate.fill_(1e30)

    with pytest.raises(ValueError, match="lower inner_rate"):
        train(run_config(), tmp_path, callback=At(25, break_it), progress_bar=False)
    model = load_run(tmp_path)
    assert model.num_timesteps == 240
    assert weights(model).isfinite().all()
    assert resume(tmp_path, progress_bar=False).num_timesteps == 480  # the rate is that of the config again


def test_the_command_line_tells_it_in_one_line(tmp_path, capsys):
    args = ["train", "maml", "--env", NAVIGATION[0], "--env.num-steps", "5", "--num-tasks", "4", "--no-progress-bar"]
    assert main([*args, "--inner-rate", "1e30", "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert re.match("metarl: error: the .* gradient step 1.* not finite .*task ", errors)
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(lr=1e-3), TypeError, "unknown hyperparameter 'lr': MAMLConfig has num_tasks, "),
        (dict(num_tasks=0), ValueError, "num_tasks must be at least 1, got 0"),
        (dict(episodes_per_update=0), ValueError, "episodes_per_update must be at least 1, got 0"),
        (dict(inner_steps=0), ValueError, "inner_steps must be at least 1, got 0"),
        (dict(epochs=0), ValueError, "epochs must be at least 1, got 0"),
        (dict(gamma=1.5), ValueError, r"gamma must be in \[0, 1\], got 1.5"),
        (dict(gae_lambda=float("nan")), ValueError, r"gae_lambda must be in \[0, 1\], got nan"),
        (dict(return_rate=-0.1), ValueError, r"return_rate must be in \[0, 1\], got -0.1"),
        (dict(learning_rate=0), ValueError, "learning_rate must be above 0, got 0"),
        (dict(inner_rate=-1.0), ValueError, r"inner_rate must be above 0, got -1\.0"),
        (dict(inner_rate=float("nan")), ValueError, "inner_rate must be above 0, got nan"),
        (dict(clip_range=0.0), ValueError, r"clip_range must be above 0, got 0\.0"),
        (dict(max_grad_norm=0.0), ValueError, r"max_grad_norm must be above 0, got 0\.0"),
        (dict(final_learning_rate=0.0), ValueError, r"final_learning_rate must be above 0, got 0\.0"),
        (dict(kl_coef=-1.0), ValueError, r"kl_coef must be at least 0, got -1\.0"),
        (dict(update_rule="newton"), ValueError, "update_rule must be one of sgd, momentum, .*, optim4rl, got 'newton'"),
        (dict(adapted="tail"), ValueError, "adapted must be one of all, head, body, got 'tail'"),
        (dict(inner_objective="ppo"), ValueError, "inner_objective must be one of likelihood_ratio, dice, log_prob, got"),
        (dict(outer_update="trpo"), ValueError, "outer_update must be one of ppo, reptile, got 'trpo'"),
        (dict(baseline="quadratic"), ValueError, "baseline must be one of linear, network, none, got 'quadratic'"),
        (dict(task_batching="vmap"), ValueError, "task_batching must be one of auto, batched, loop, got 'vmap'"),
        (dict(second_order=1), ValueError, "second_order must be true or false, got 1"),
        (dict(train_split="val"), ValueError, "train_split must be one of train, test, ood, got 'val'"),
        (
            dict(episodes_per_update=1),
            ValueError,
            "episodes_per_update must be at least 2 where an episode is a single step",
        ),
        (
            dict(outer_update="reptile", update_rule="meta_sgd"),
            ValueError,
            "update_rule must be sgd with outer_update reptile, which trains no rule, got meta_sgd",
        ),
        (dict(policy_kwargs=dict(hidden="64")), ValueError, "hidden must be a list of sizes, got '64'"),
        (
            dict(adapted="body", policy_kwargs=dict(hidden=())),
            ValueError,
            "adapted must leave something to adapt, got 'body' for a policy without layers before its head",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        make_maml(**arguments)


@pytest.mark.parametrize("name", ["update_rule", "adapted", "inner_objective", "outer_update", "baseline", "task_batching"])
def test_a_config_of_ones_own_is_checked_too(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'wrong'"):
        MAMLConfig(**{name: "wrong"})


def test_a_single_episode_of_several_steps_is_enough():
    model = make_maml("navigation", episodes_per_update=1, num_tasks=1).learn(1)
    assert weights(model).isfinite().all()
    model = make_maml("cartpole", episodes_per_update=1)
    with pytest.raises(ValueError, match="episodes_per_update must be at least 2 where an episode is a single step"):
        model.set_env("metarl/CartPoleContext-v0", env_kwargs=dict(num_steps=1))
    assert model.family.max_episode_steps == 12

"""RL²: one seed gives one model, whatever interrupts it; Stable-Baselines3's manners; errors that say what is wrong."""

import io
import pickle
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.algorithms.rl2 import RL2PPO, RL2Config, curriculum_episodes, learning_rate, minibatches
from metarl.algorithms.vec_env import TrialVecEnv
from metarl.checkpoint import CheckpointError
from metarl.evaluation.play import play_trials
from metarl.policies import TrialPolicy
from metarl.trials import Transition
from metarl_envs import ContextFamily, make_family


class Drift(gym.Env):
    """Push a drifting point towards 0. Ends at a distance of 2."""

    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-np.inf, np.inf, (1,)), "side": gym.spaces.Discrete(2)})
    action_space = gym.spaces.Box(-2, 2, (1,))
    drift, broken_at = 0.5, None

    def _observation(self):
        return {"x": np.float32([self.x]), "side": int(self.x > 0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.normal()), 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        self.x += self.drift + 0.5 * float(action[0])
        reward = np.nan if self.steps == self.broken_at else -abs(self.x)
        return self._observation(), reward, abs(self.x) > 2, False, {}


gym.register("test/Drift-v0", Drift, max_episode_steps=4)

ENVS = {
    "bandit": ("metarl/BernoulliBandit-v0", dict(num_arms=3, num_pulls=6)),
    "cartpole": ("metarl/CartPoleContext-v0", dict(num_steps=12, num_episodes=2)),
    "drift": ("metarl/Context-v0", dict(env="test/Drift-v0", ranges={"drift": (-1, 1)}, num_episodes=3)),
}
CONSTANT = dict(learning_rate=1e-3, final_learning_rate=1e-3, entropy_coef=0.01, final_entropy_coef=0.01)
POLICIES = list(RL2PPO.policy_aliases)


def make(policy="LstmPolicy", env="bandit", seed=0, **kwargs):
    name, env_kwargs = ENVS[env]
    options = dict(num_envs=8, minibatches=2, epochs=2, policy_kwargs=dict(core_size=8), seed=seed) | kwargs
    return RL2PPO(policy, name, env_kwargs=env_kwargs, **options)


def steps_per_iteration(model):
    return model.n_envs * (model.config.num_steps or model.episodes_per_trial * model.family.max_episode_steps)


def assert_same(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_model(a, b):
    """To the bit: weights, optimizer, generators, counters. `total_timesteps` is what `learn` was asked for."""
    ours, theirs = a.state(), b.state()
    ours.pop("total_timesteps")
    theirs.pop("total_timesteps")
    assert_same(ours, theirs)


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.policy.parameters())


class At(BaseCallback):
    """Does something at the n-th step; stops where it returns False."""

    def __init__(self, n, action=lambda model: False):
        super().__init__()
        self.n, self.action = n, action

    def _on_step(self):
        return self.n_calls != self.n or self.action(self.model) is not False


# -- one seed, one model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("policy", POLICIES)
def test_one_seed_gives_one_model(policy, env):
    models = []
    for seed in (3, 3, 4):
        model = make(policy, env, seed=seed)
        torch.rand(seed + len(models))  # the shared generators decide nothing
        models.append(model.learn(2 * steps_per_iteration(model)))
    assert_same_model(*models[:2])
    assert not torch.isclose(weights(models[0]), weights(models[2])).any()
    start = make(policy, env, seed=3)
    assert (weights(models[0]) != weights(start)).float().mean() > 0.9  # units that no one uses stay as they are


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("policy", POLICIES)
def test_n_and_n_equal_2n(policy, env, tmp_path):
    model = make(policy, env, **CONSTANT)
    n = 2 * steps_per_iteration(model)
    whole = make(policy, env, **CONSTANT).learn(2 * n)
    model.learn(n).save(tmp_path / "half")
    torch.manual_seed(99)
    loaded = RL2PPO.load(tmp_path / "half")
    assert_same_model(loaded, model)
    assert loaded.learn(n, reset_num_timesteps=False).num_timesteps == 2 * n
    assert_same_model(loaded, whole)
    assert_same_model(model.learn(n, reset_num_timesteps=False), whole)


@pytest.mark.parametrize("stop_at", [1, 37, 54, 90])
def test_an_interrupted_training_goes_on_along_its_schedules(stop_at, tmp_path):
    options = dict(env="cartpole", curriculum_start=1, curriculum_fraction=0.6, target_kl=0.5)
    total = 8 * 24 * 5
    whole = make(**options).learn(total)
    model = make(**options).learn(total, At(stop_at))
    assert model.num_timesteps < 8 * stop_at
    model.save(tmp_path / "model")
    rest = total - model.num_timesteps
    assert_same_model(RL2PPO.load(tmp_path / "model").learn(rest, reset_num_timesteps=False), whole)


def test_stopping_in_the_middle_of_a_collection_leaves_no_trace():
    model = make().learn(48)
    before = model.state()
    for stop_at in (1, 3, 6):
        model.learn(1000, At(stop_at), reset_num_timesteps=False)
        assert_same(model.state() | {"total_timesteps": before["total_timesteps"]}, before)


def test_a_failure_in_the_middle_of_a_collection_leaves_no_trace():
    model = make().learn(48)
    before = model.state()

    def fail(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, At(4, fail), reset_num_timesteps=False)
    assert_same(model.state() | {"total_timesteps": before["total_timesteps"]}, before)


def test_what_is_saved_in_the_middle_of_a_collection_goes_on_exactly(tmp_path):
    model = make(env="cartpole")
    total = 4 * steps_per_iteration(model)
    model.learn(total, CheckpointCallback(save_freq=10, save_path=tmp_path))
    checkpoints = sorted(tmp_path.glob("rl_model_*_steps.zip"))
    assert len(checkpoints) == 4 * 24 // 10
    for path in checkpoints:
        loaded = RL2PPO.load(path)
        assert loaded.num_timesteps % steps_per_iteration(model) == 0
        loaded.learn(total - loaded.num_timesteps, reset_num_timesteps=False)
        assert_same_model(loaded, model)


def test_evaluating_on_the_way_changes_nothing():
    plain = make().learn(240)
    model = make()
    callback = EvalCallback(model.get_env(), n_eval_episodes=4, eval_freq=5, deterministic=False, verbose=0)
    model.learn(240, callback)
    assert callback.n_calls == 30
    assert_same_model(model, plain)


# -- Stable-Baselines3's manners ---------------------------------------------------------------------------------


def test_learning_takes_whole_iterations():
    model = make()
    assert model.learn(1) is model
    assert model.num_timesteps == 48
    assert model.learn(49).num_timesteps == 96
    assert model.learn(1, reset_num_timesteps=False).num_timesteps == 144
    with pytest.raises(ValueError, match="total_timesteps must be at least 1, got 0"):
        model.learn(0)


def test_stop_training_on_max_episodes_counts_trials():
    callback = StopTrainingOnMaxEpisodes(max_episodes=2)
    model = make(num_steps=7).learn(10_000, callback)  # trials of 6 steps: the second ends in the second collection
    assert callback.n_calls == 13
    assert callback.n_episodes == 2 * 8
    assert model.num_timesteps == 7 * 8


def test_callbacks_see_every_step():
    seen = []

    class Look(BaseCallback):
        def _on_rollout_start(self):
            seen.append("start")

        def _on_step(self):
            assert self.num_timesteps == self.model.num_timesteps
            assert self.locals["rewards"].shape == self.locals["dones"].shape == (8,)
            seen.append(bool(self.locals["dones"].all()))
            return True

        def _on_rollout_end(self):
            seen.append("end")

    every = EveryNTimesteps(16, counter := At(-1))
    make().learn(96, CallbackList([Look(), every]))
    assert seen == 2 * ["start", *[False] * 5, True, "end"]
    assert counter.n_calls == 6


def test_eval_callback_keeps_the_best(tmp_path):
    model = make()
    evaluation = EvalCallback(
        model.get_env(),
        n_eval_episodes=16,
        eval_freq=6,
        best_model_save_path=tmp_path,
        log_path=tmp_path,
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=0.0),
        verbose=0,
    )
    model.learn(10_000, evaluation)
    assert evaluation.n_calls == 6  # any trial of 6 pulls beats the threshold
    saved = np.load(tmp_path / "evaluations.npz")
    assert (saved["ep_lengths"] == 6).all()
    assert ((saved["results"] >= 0) & (saved["results"] <= 6)).all()
    best = RL2PPO.load(tmp_path / "best_model")
    assert_same_model(best, model)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_progress_bar(capsys):
    model = make().learn(96, progress_bar=True)
    assert model.num_timesteps == 96
    assert "96/96" in "".join(capsys.readouterr())


def test_tensorboard(tmp_path):
    model = make(tensorboard_log=str(tmp_path)).learn(96, log_interval=1)
    events = EventAccumulator(str(tmp_path / "RL2PPO_1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        *("rollout/trial_return", "rollout/first_episode_return", "rollout/last_episode_return", "time/fps"),
        *("train/policy_loss", "train/value_loss", "train/entropy", "train/approx_kl", "train/explained_variance"),
    }
    assert [event.step for event in events.Scalars("rollout/trial_return")] == [48, 96]
    assert all(np.isfinite(event.value) for tag in tags for event in events.Scalars(tag))
    model.learn(48, reset_num_timesteps=False, tb_log_name="RL2PPO")
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_logged_is_of_whole_trials():
    model = make(env="cartpole")
    model.learn(1)
    totals = [episode["r"] for episode in model.ep_info_buffer]
    assert all(episode["l"] == episode["r"] <= 24 for episode in model.ep_info_buffer)  # one point per step
    assert len(set(totals)) > 1


def test_get_env_and_set_env():
    model = make()
    envs = model.get_env()
    assert isinstance(envs.unwrapped, TrialVecEnv)
    assert model.get_env() is envs
    assert (envs.num_envs, envs.episodes_per_trial) == (8, 6)
    other = make_family("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=4)
    before = weights(model)
    model.set_env(other)
    assert model.family is other
    assert torch.equal(weights(model), before)
    assert model.get_env().episodes_per_trial == 4
    assert model.learn(1).num_timesteps == 32
    model.set_env("metarl/BernoulliBandit-v0", env_kwargs=dict(num_arms=3, num_pulls=5))
    assert model.learn(1).num_timesteps == 40


def test_a_refused_set_env_changes_nothing():
    model = make(num_steps=8)
    family, envs = model.family, model.envs
    with pytest.raises(ValueError, match=r"env must have the action_space Discrete\(3\), got Discrete\(5\)"):
        model.set_env("metarl/BernoulliBandit-v0")
    with pytest.raises(ValueError, match="num_steps must hold a whole trial: 9 episodes x 1 steps = 9, got 8"):
        model.set_env("metarl/BernoulliBandit-v0", env_kwargs=dict(num_arms=3, num_pulls=9))
    assert model.family is family
    assert model.envs is envs


@pytest.mark.parametrize("kind", ["id", "family", "env", "vector env", "trial env's family"])
def test_ways_to_name_an_environment(kind):
    name, kwargs = ENVS["bandit"]
    family = make_family(name, **kwargs)
    env = {
        "id": name,
        "family": family,
        "env": gym.make(name, **kwargs),
        "vector env": gym.make_vec(name, 3, **kwargs),
        "trial env's family": TrialVecEnv(family).family,
    }[kind]
    model = RL2PPO("LstmPolicy", env, env_kwargs=kwargs if kind == "id" else None, num_envs=4)
    assert model.family == family
    assert model.n_envs == 4


def test_parameters_can_be_handed_over():
    model, other = make(seed=0), make(seed=1)
    other.set_parameters(model.get_parameters())
    assert torch.equal(weights(model), weights(other))


def test_one_environment_of_one_step():
    model = make(env="bandit", num_envs=1, minibatches=1, episodes_per_trial=1).learn(3)
    assert weights(model).isfinite().all()


# -- saving and loading ------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    model = make("GruPolicy", "drift", policy_kwargs=dict(core_size=5, heads=[4]), gamma=0.9).learn(1)
    model.save(tmp_path / "deep" / "model")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.zip"]
    for path in (tmp_path / "deep" / "model", str(tmp_path / "deep" / "model.zip")):
        loaded = RL2PPO.load(path)
        assert_same_model(loaded, model)
        assert loaded.config == model.config
        assert loaded.family == model.family
        assert (loaded.policy_name, loaded.policy_kwargs) == ("GruPolicy", dict(core_size=5, heads=[4]))
    (tmp_path / "deep" / "model").mkdir()  # a folder of that name is not the file
    loaded = RL2PPO.load(tmp_path / "deep" / "model", learning_rate=0.5, num_envs=16, verbose=0)
    assert (loaded.config.learning_rate, loaded.config.num_envs, loaded.config.gamma) == (0.5, 16, 0.9)
    reseeded = [RL2PPO.load(path, seed=seed) for seed in (7, 7, 8)]
    drawn = [(tuple(m.rngs["tasks"].random(3)), tuple(torch.rand(3, generator=m.generator).tolist())) for m in reseeded]
    assert drawn[0] == drawn[1]
    assert not {*drawn[0]} & {*drawn[2]}
    assert all(torch.equal(a, b) for a, b in zip(reseeded[2].policy.parameters(), model.policy.parameters(), strict=True))
    with pytest.raises(ValueError, match="exclude and include must be None: a saved model is always complete"):
        model.save(tmp_path / "model", exclude=["policy"])


def test_loading_with_another_environment(tmp_path):
    make().save(tmp_path / "model")
    harder = make_family("metarl/BernoulliBandit-v0", num_arms=3, num_pulls=6, prior=(1, 3))
    assert RL2PPO.load(tmp_path / "model", harder).family is harder
    with pytest.raises(ValueError, match=r"env must have the checkpoint's action_space Discrete\(3\), got Discrete\(2\)"):
        RL2PPO.load(tmp_path / "model", "metarl/BernoulliBandit-v0", env_kwargs=dict(num_arms=2))
    with pytest.raises(ValueError, match="env must have the checkpoint's observation_space Discrete"):
        RL2PPO.load(tmp_path / "model", "CartPole-v1")


def test_a_family_that_was_never_registered(tmp_path):
    family = ContextFamily("test/Drift-v0")
    RL2PPO("LstmPolicy", family, num_envs=4).save(tmp_path / "model")
    assert RL2PPO.load(tmp_path / "model").family == family
    assert RL2PPO.load(tmp_path / "model", gym.make("metarl/Context-v0", env="test/Drift-v0")).family == family


class OwnPolicy(TrialPolicy):
    pass


def test_policies_of_ones_own(tmp_path):
    model = make(OwnPolicy, policy_kwargs=dict(core="gru", core_size=5)).learn(1)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy must be given: the saved one is the class OwnPolicy, which is not stored"):
        RL2PPO.load(tmp_path / "model")
    loaded = RL2PPO.load(tmp_path / "model", policy=OwnPolicy)
    assert type(loaded.policy) is OwnPolicy
    assert_same_model(loaded, model)


def test_classes_among_the_policys_arguments(tmp_path):
    from stable_baselines3.common.torch_layers import FlattenExtractor

    model = make(policy_kwargs=dict(core_size=5, features_extractor_class=FlattenExtractor))
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy_kwargs must be given: the saved ones held classes or functions"):
        RL2PPO.load(tmp_path / "model")
    loaded = RL2PPO.load(tmp_path / "model", policy_kwargs=model.policy_kwargs)
    assert torch.equal(weights(loaded), weights(model))


def test_a_model_of_another_device_goes_on_with_fresh_actions():
    model = make().learn(48)
    state = model.state()
    state["generators"]["actions"] = state["generators"]["actions"][:16]  # as large as that of a GPU
    first, second = (RL2PPO.from_state(state) for _ in range(2))
    assert torch.equal(weights(first), weights(model))
    assert_same_model(first.learn(48, reset_num_timesteps=False), second.learn(48, reset_num_timesteps=False))


def test_a_family_without_an_id_must_be_given():
    state = make().state() | {"env_id": ""}
    with pytest.raises(ValueError, match="env must be given: the saved family has no env_id"):
        RL2PPO.from_state(state)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    make().save(tmp_path / "model")
    data = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match=r"short\.zip is truncated, altered or not a checkpoint"):
        RL2PPO.load(tmp_path / "short")
    (tmp_path / "altered.zip").write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with pytest.raises(CheckpointError, match=r"altered\.zip is truncated or altered"):
        RL2PPO.load(tmp_path / "altered")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(CheckpointError, match=r"ppo\.zip is truncated, altered or not a checkpoint"):
        RL2PPO.load(tmp_path / "ppo")
    with pytest.raises(FileNotFoundError, match="nothing"):
        RL2PPO.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="checkpoint must be of RL2PPO, got 'Other'"):
        RL2PPO.from_state(make().state() | {"algorithm": "Other"})
    with pytest.raises(CheckpointError, match="checkpoint must be of this policy and version of metarl"):
        RL2PPO.from_state(make().state() | {"weights": {}})


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_code_is_not_run(tmp_path):
    mark = tmp_path / "exploded"
    raw = pickle.dumps(Bomb(mark))
    saved = io.BytesIO()
    torch.save({"policy": Bomb(mark)}, saved)
    files = {"raw": raw, "torch": saved.getvalue()}
    for kind, member in (("data", raw), ("policy.pth", saved.getvalue())):  # as Stable-Baselines3 keeps them
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(kind, member)
        files[kind] = archive.getvalue()
    for name, data in files.items():
        (tmp_path / f"{name}.zip").write_bytes(data)
        with pytest.raises(CheckpointError):
            RL2PPO.load(tmp_path / f"{name}.zip")
    assert not mark.exists()
    pickle.loads(raw).close()
    assert mark.exists()  # the bomb is a real one


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(policy="Lstm"), ValueError, "policy must be one of LstmPolicy, GruPolicy, MlpPolicy, got 'Lstm'"),
        (dict(lr=1e-3), TypeError, "unknown hyperparameter 'lr': RL2Config has num_envs, "),
        (dict(num_steps=5), ValueError, "num_steps must hold a whole trial: 6 episodes x 1 steps = 6, got 5"),
        (dict(train_split="val"), ValueError, "train_split must be one of train, test, ood, got 'val'"),
        (dict(curriculum_start=7), ValueError, r"curriculum_start must be at most episodes_per_trial \(6\), got 7"),
        (dict(minibatches=9), ValueError, r"minibatches must be at most num_envs \(8\), got 9"),
        (dict(num_envs=0), ValueError, "num_envs must be at least 1, got 0"),
        (dict(episodes_per_trial=0), ValueError, "episodes_per_trial must be at least 1, got 0"),
        (dict(gamma=1.5), ValueError, r"gamma must be in \[0, 1\], got 1.5"),
        (dict(gae_lambda=float("nan")), ValueError, r"gae_lambda must be in \[0, 1\], got nan"),
        (dict(learning_rate=lambda left: left), ValueError, "learning_rate must be a number, got <function"),
        (dict(num_envs=8.5), ValueError, "num_envs must be an integer, got 8.5"),
        (dict(config={"gamma": 0.9}), TypeError, "config must be RL2Config, got dict"),
        (dict(learning_rate=0), ValueError, "learning_rate must be above 0, got 0"),
        (dict(target_kl=0.0), ValueError, r"target_kl must be above 0, got 0\.0"),
        (dict(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (dict(policy_kwargs=dict(core="rnn")), ValueError, "core must be one of identity, lstm, gru, got 'rnn'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


def test_bad_environments():
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `BernoulliBandit`"):
        RL2PPO("LstmPolicy", "metarl/BernouliBandit-v0")
    with pytest.raises(TypeError, match="BernoulliBandit has no parameter 'arms': it has num_arms, num_pulls"):
        RL2PPO("LstmPolicy", "metarl/BernoulliBandit-v0", env_kwargs=dict(arms=3))
    with pytest.raises(ValueError, match="env must be a Gymnasium id, a TaskFamily or an environment of one, got TimeLimit"):
        RL2PPO("LstmPolicy", gym.make("CartPole-v1"))
    halved = gym.wrappers.TransformReward(gym.make("metarl/GridNavi-v0"), lambda reward: reward / 2)
    with pytest.raises(ValueError, match="env must be without wrappers, which training would leave out, got TransformReward"):
        RL2PPO("LstmPolicy", halved)
    with pytest.raises(ValueError, match="env must be a Gymnasium id, a TaskFamily or an environment of one, got NoneType"):
        RL2PPO("LstmPolicy", None)
    with pytest.raises(ValueError, match="env_kwargs go with an environment's id"):
        RL2PPO("LstmPolicy", make_family("metarl/BernoulliBandit-v0"), env_kwargs=dict(num_arms=3))
    with pytest.raises(ValueError, match="action space must be Discrete or Box, got MultiDiscrete"):
        RL2PPO("LstmPolicy", ContextFamily("test/Buttons-v0"))


class Buttons(Drift):
    action_space = gym.spaces.MultiDiscrete([2, 2])


gym.register("test/Buttons-v0", Buttons, max_episode_steps=4)


def test_a_reward_that_is_not_a_number_stops_training():
    family = ContextFamily("test/Drift-v0", ranges={"drift": (-0.1, 0.1)})
    model = RL2PPO("LstmPolicy", family, num_envs=4, minibatches=2, seed=0).learn(1)
    before = model.state()
    for env in model.envs._state["envs"]:
        env.unwrapped.broken_at = 2
    with pytest.raises(ValueError, match=r"nan from metarl/Context-v0 of test/Drift-v0, task 0 \{'drift': .*\}, step 1"):
        model.learn(1, reset_num_timesteps=False)
    assert_same(model.state() | {"total_timesteps": before["total_timesteps"]}, before)


# -- parts -------------------------------------------------------------------------------------------------------


def test_learning_rate_is_geometric():
    config = RL2Config(learning_rate=1e-2, final_learning_rate=1e-4)
    assert [learning_rate(config, p) for p in (0, 0.5, 1)] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert learning_rate(RL2Config(learning_rate=0.5), 1) == pytest.approx(0.05)  # a tenth, whatever the first is


def test_the_curriculum_grows_to_whole_trials():
    config = RL2Config(curriculum_start=5, curriculum_fraction=0.5)
    assert [curriculum_episodes(config, 80, p) for p in (0, 0.125, 0.25, 0.375, 0.49, 0.5, 1)] == [5, 10, 20, 40, 76, 80, 80]
    assert curriculum_episodes(RL2Config(), 80, 0.0) == 80
    lengths = []

    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            lengths.append(self.locals["trials"].rewards.shape[0])

    make(curriculum_start=2, num_steps=12).learn(8 * 60, Look())
    assert lengths[0] == 2
    assert lengths[-1] == 12
    assert lengths == sorted(lengths)


def test_every_row_is_used_once_per_epoch():
    for num_envs, expected in ((3, 3), (16, 16), (100, 16)):  # as many as there are rows, 16 at most
        config = RL2Config(num_envs=num_envs, epochs=1)
        assert len([*minibatches(num_envs, config, np.random.default_rng(0))]) == expected
    config = RL2Config(num_envs=10, epochs=3, minibatches=4)
    batches = [rows.tolist() for rows in minibatches(10, config, np.random.default_rng(0))]
    assert [len(rows) for rows in batches] == 3 * [3, 3, 2, 2]
    epochs = [[row for rows in batches[i : i + 4] for row in rows] for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_target_kl_stops_the_updates():
    far = make(learning_rate=0.1, epochs=8).learn(1)
    near = make(learning_rate=0.1, epochs=8, target_kl=1e-4).learn(1)
    assert (
        near.policy.optimizer.state_dict()["state"][0]["step"] < far.policy.optimizer.state_dict()["state"][0]["step"] == 16
    )


# -- predict -----------------------------------------------------------------------------------------------------


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
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            scale = 2 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0  # no biases
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

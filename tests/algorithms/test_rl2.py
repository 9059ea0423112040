"""RL²: one seed gives one model, whatever interrupts it; Stable-Baselines3's manners; errors that say what is wrong."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_models import (
    CONSTANT,
    ENVS,
    POLICIES,
    At,
    assert_same,
    assert_same_model,
    make,
    steps_per_iteration,
    weights,
)
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl import evaluate
from metarl.algorithms.rl2 import RL2PPO, RL2Config, curriculum_episodes, minibatches
from metarl.algorithms.vec_env import TrialVecEnv
from metarl.schedules import geometric
from metarl_envs import ContextFamily, make_family

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


@pytest.mark.parametrize("policy", sorted({*RL2PPO.policy_aliases} - {*POLICIES}))
def test_every_memory_trains_and_goes_on_to_the_bit(policy, tmp_path):
    options = dict(num_envs=4, minibatches=1, epochs=1, **CONSTANT)
    n = steps_per_iteration(make(policy, **options))
    whole = make(policy, **options).learn(2 * n)
    make(policy, **options).learn(n).save(tmp_path / "half")
    loaded = RL2PPO.load(tmp_path / "half").learn(n, reset_num_timesteps=False)
    assert_same_model(loaded, whole)
    assert not torch.equal(weights(whole), weights(make(policy, **options)))


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


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(policy="Lstm"), ValueError, "policy must be one of LstmPolicy, GruPolicy, MlpPolicy, .*, got 'Lstm'"),
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
        (dict(policy_kwargs=dict(core="gru")), ValueError, "policy_kwargs must not hold core, got 'gru': the policy's name"),
        (dict(policy_kwargs=dict(task_size=3)), ValueError, "must not hold task_size, got 3: critic_sees_task says it"),
        (dict(policy_kwargs=dict(core_size=True)), ValueError, "core_size must be an integer of at least 1, got True"),
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
    with pytest.raises(ValueError, match=r"env must be without wrappers, .* got TransformReward"):
        RL2PPO("LstmPolicy", halved)
    with pytest.raises(ValueError, match="env must be a Gymnasium id, a TaskFamily or an environment of one, got NoneType"):
        RL2PPO("LstmPolicy", None)
    with pytest.raises(ValueError, match="env_kwargs go with an environment's id"):
        RL2PPO("LstmPolicy", make_family("metarl/BernoulliBandit-v0"), env_kwargs=dict(num_arms=3))
    with pytest.raises(ValueError, match="env must have Box, Discrete, MultiDiscrete or MultiBinary actions, got Text"):
        ContextFamily("test/Buttons-v0", env_kwargs={"buttons": "text"})
    with pytest.raises(ValueError, match=r"env must have observations of Box, Discrete, .* parts, got Sequence\(.*Buttons"):
        ContextFamily("test/Buttons-v0", env_kwargs={"seen": "sequence"})


SPACES = {
    "choices": gym.spaces.MultiDiscrete([2, 2], start=[3, 0]),
    "binary": gym.spaces.MultiBinary(2),
    "text": gym.spaces.Text(2),
    "sequence": gym.spaces.Sequence(gym.spaces.Discrete(2)),
    "nested": gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Dict(lamps=gym.spaces.MultiBinary(2))]),
}


class Buttons(gym.Env):
    """The lamps that are lit are to be pressed."""

    def __init__(self, buttons="binary", seen="nested"):
        self.lamps = gym.spaces.MultiBinary(2)
        self.observation_space, self.action_space = SPACES[seen], SPACES[buttons]

    def reset(self, seed=None, options=None):
        self.lamps.seed(seed)
        return self.observe(), {}

    def observe(self):
        self.lit = self.lamps.sample()
        return (1, {"lamps": self.lit})

    def step(self, action):
        assert action in self.action_space
        right = (action - getattr(self.action_space, "start", 0) == self.lit).mean()
        return self.observe(), float(right), False, False, {}


gym.register("test/Buttons-v0", Buttons, max_episode_steps=10)


@pytest.mark.parametrize("buttons", ["choices", "binary"])
def test_several_choices_a_step_and_observations_in_tuples(buttons):
    family = ContextFamily("test/Buttons-v0", env_kwargs={"buttons": buttons})
    assert family.observation_space.keys() == {"0", "1/lamps"}
    model = RL2PPO("LstmPolicy", family, num_envs=32, seed=0, learning_rate=1e-2).learn(20_000)
    trial = evaluate(model, num_tasks=20, references=False).total.value
    assert trial > 0.95 * family.horizon
    actions, _ = model.predict(family.make_vec(3).reset(seed=0)[0], episode_start=np.ones(3, bool))
    assert all(action in SPACES[buttons] for action in actions)


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
    assert [geometric(1e-2, 1e-4, p) for p in (0, 0.5, 1)] == pytest.approx([1e-2, 1e-3, 1e-4])
    assert geometric(0.5, None, 1) == pytest.approx(0.05)  # a tenth, whatever the first is


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
    for num_envs, expected in ((3, 1), (16, 2), (100, 12), (256, 16), (1000, 16)):
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


@pytest.mark.slow
@pytest.mark.parametrize("policy", RL2PPO.policy_aliases)
def test_100_000_steps_of_a_card_game_stay_finite(policy):
    model = RL2PPO(policy, "metarl/RepeatPrevious-v0", num_envs=32, policy_kwargs={"core_size": 32})
    model.learn(100_000)
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert all(part.isfinite().all() for state in model.policy.optimizer.state.values() for part in state.values())

import dataclasses
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl import RL2Config
from metarl.algorithms.rl2 import RL2PPO
from metarl.config import EvaluationConfig, TrainingConfig
from metarl.evaluation import AdaptationCurve
from metarl.run_folder import RunFolderError
from metarl.training import compare_runs, evaluate_run, load_run, resume, train

BANDIT = {
    "env": "metarl/BernoulliBandit-v0",
    "env_kwargs": {"num_arms": 2, "num_pulls": 3},
    "policy_kwargs": {"core_size": 8},
    "total_timesteps": 96,
    "hyperparameters": {"num_envs": 8, "minibatches": 2},
    "evaluation": {"num_tasks": 30},
}


def config(**changes):
    return TrainingConfig(**{**BANDIT, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bandit"
    train(config(evaluation=EvaluationConfig(num_tasks=30)), folder, progress_bar=False)
    return folder


# -- configs -----------------------------------------------------------------------------------------------------------


def test_a_config_is_resolved():
    made = config()
    assert made.env_kwargs == {"num_arms": 2, "num_pulls": 3, "prior": (1.0, 1.0), "ood_prior": (2.0, 5.0)}
    assert made.hyperparameters == RL2Config(num_envs=8, minibatches=2)
    assert made.family.num_arms == 2


def test_a_saved_config_is_complete_and_reads_back_equal(tmp_path):
    made = config(env="Pendulum-v1", env_kwargs={"ranges": {"g": [8, 12]}, "num_steps": 5})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**made.plain(), "env_kwargs": {"ranges": {"g": [8, 12]}, "num_steps": 5}}))
    assert TrainingConfig.from_yaml(path) == made
    assert made.plain().keys() == {f.name for f in dataclasses.fields(TrainingConfig)}
    assert made.plain()["hyperparameters"].keys() == {f.name for f in dataclasses.fields(RL2Config)}


def test_a_resolved_config_says_what_defaults_came_to():
    made = config(hyperparameters={"num_envs": 8, "learning_rate": 1e-2}, policy_kwargs={"core_size": 8}).resolved()
    assert dataclasses.asdict(made.hyperparameters) == dataclasses.asdict(RL2Config()) | {
        "num_envs": 8,
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-3,
        "minibatches": 1,
    }
    core_kwargs = {"span": 100.0, "bfloat16": False}
    layers = {"encoder": [8], "bypass": None, "skip": True, "heads": []}
    assert made.policy_kwargs == {"core_size": 8, "core_kwargs": core_kwargs, **layers}
    assert made.resolved() == made
    maml = TrainingConfig(algorithm="maml", env=BANDIT["env"]).resolved()
    assert maml.policy_kwargs == {"hidden": [64, 64], "log_std_init": -0.5}
    assert maml.hyperparameters.final_learning_rate == pytest.approx(3e-4)


def test_another_env_leaves_the_files_parameters_behind(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(BANDIT))
    assert TrainingConfig.from_yaml(path, BANDIT["env"]).family.num_arms == 2
    assert TrainingConfig.from_yaml(path, "metarl/GaussianBandit-v0").family.num_arms == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sed": 1}, "sed is unknown (did you mean seed?): known are algorithm, total_timesteps, "),
        ({"seed": "one"}, "seed must be an integer, got 'one'"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"total_timesteps": 0.5}, "total_timesteps must be an integer, got 0.5"),
        ({"algorithm": "rl3"}, "algorithm 'rl3' is unknown (did you mean rl2?): known are rl2"),
        ({"policy": "LstmPolice"}, "policy 'LstmPolice' is unknown (did you mean LstmPolicy?): known are LstmPolicy"),
        ({"policy_kwargs": [1]}, "policy_kwargs must be a mapping of names to values, got [1]"),
        ({"env": "metarl/BernouliBandit-v0"}, "Did you mean: `BernoulliBandit`?"),
        ({"env": "nowhere:Bandit-v0"}, "env must be a Gymnasium id (see `metarl envs`), got 'nowhere:Bandit-v0': No module"),
        ({"env_kwargs": {"num_arm": 2}}, "env_kwargs.num_arm is unknown (did you mean num_arms?): known are num_arms, "),
        ({"env_kwargs": {"num_arms": "two"}}, "env_kwargs.num_arms must be an integer, got 'two'"),
        ({"env_kwargs": {"num_arms": 1}}, "num_arms must be at least 2, got 1"),
        (
            {"env_kwargs": {"prior": [1, 2, 3]}},
            "env_kwargs.prior must be a list of 2 values: a number, a number, got [1, 2, 3]",
        ),
        ({"env_kwargs": {"prior": [1, "a"]}}, "env_kwargs.prior[1] must be a number, got 'a'"),
        ({"env": "CartPole-v1", "env_kwargs": {"env_kwargs": {"mass": 1}}}, "env_kwargs do not fit CartPole-v1: "),
        ({"device": "gpu"}, "device must be cpu, cuda or another of PyTorch's, got 'gpu'"),
        ({"hyperparameters": {"gama": 1}}, "hyperparameters.gama is unknown (did you mean gamma?): known are num_envs, "),
        ({"hyperparameters": {"gamma": 2}}, "gamma must be in [0, 1], got 2"),
        ({"hyperparameters": {"target_kl": "x"}}, "hyperparameters.target_kl must be a number or null, got 'x'"),
        ({"evaluation": {"num_tasks": 0}}, "num_tasks must be at least 1, got 0"),
        ({"evaluation": 3}, "evaluation must be a mapping of names to values, got 3"),
        ({"env": None}, "env must be text, got None"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_in_one_line(tmp_path, changes, message):
    path = tmp_path / "preset.yaml"
    path.write_text(yaml.safe_dump({**BANDIT, **changes}))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}.*$") as caught:
        TrainingConfig.from_yaml(path)
    assert "\n" not in str(caught.value)


def test_env_is_required(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text("seed: 1")
    with pytest.raises(ValueError, match=r"preset\.yaml: env must be given$"):
        TrainingConfig.from_yaml(path)


def test_a_malicious_file_is_not_executed(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text(f'env: !!python/object/apply:os.system ["touch {tmp_path}/executed"]')
    with pytest.raises(ValueError, match=r"preset.yaml, line 1: .*python/object"):
        TrainingConfig.from_yaml(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"core_siz": 8}, r"policy_kwargs do not fit LstmPolicy: .*'core_siz'"),
        ({"encoder": 64}, "encoder must be a list of sizes, got 64"),
        ({"heads": "64"}, "heads must be a list of sizes, got '64'"),
        ({"skip": "false"}, "skip must be true or false, got 'false'"),
        ({"core_kwargs": [1]}, r"core_kwargs must be a mapping, got \[1\]"),
        ({"core_kwargs": {"spam": 1}}, r"policy_kwargs do not fit LstmPolicy: .*'spam'"),
        ({"core_kwargs": {"span": 1}}, "span must be at least 2 steps, and finite, got 1"),
        ({"core_kwargs": {"bfloat16": "true"}}, "bfloat16 must be true or false, got 'true'"),
    ],
)
def test_wrong_policy_arguments_are_told_before_a_folder_is_made(tmp_path, policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        train(config(policy_kwargs=policy_kwargs), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_everything(run):
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "checkpoints", "tensorboard", "progress.json"}
    saved = TrainingConfig.from_yaml(run / "config.yaml")
    assert saved == config(evaluation=EvaluationConfig(num_tasks=30)).resolved()
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step_000000000000.ckpt",
        "step_000000000096.ckpt",
    ]


def test_training_equals_learning_without_a_folder(run):
    model = RL2PPO(
        "LstmPolicy",
        BANDIT["env"],
        env_kwargs=BANDIT["env_kwargs"],
        policy_kwargs={"core_size": 8},
        seed=0,
        num_envs=8,
        minibatches=2,
    )
    model.learn(96)
    loaded = load_run(run)
    assert loaded.num_timesteps == 96
    expected = model.policy.state_dict()
    for name, values in loaded.policy.state_dict().items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=0)


def test_a_config_keeps_the_features_extractors_arguments():
    config = TrainingConfig(
        env="test/Album-v0", policy_kwargs={"core_size": 4, "features_extractor_kwargs": {"cnn_output_dim": 7}}
    )
    assert config.resolved().make_model().policy.extractor.features_dim == 7


class Album(gym.Env):
    """A black picture."""

    observation_space = gym.spaces.Dict(picture=gym.spaces.Box(0, 255, (36, 36, 3), np.uint8))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"picture": np.zeros((36, 36, 3), np.uint8)}, {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


gym.register("test/Album-v0", Album, max_episode_steps=3)


def test_a_second_training_in_the_same_folder_is_refused(run):
    with pytest.raises(RunFolderError, match="already holds a run"):
        train(config(), run, progress_bar=False)


def test_resuming_a_finished_run_changes_nothing(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert resume(run, progress_bar=False).num_timesteps == 96
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_tensorboard_has_every_iteration_once(run):
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("rollout/trial_return")] == [24, 48, 72, 96]


def test_evaluating_leaves_its_results_in_the_folder(run):
    curve = evaluate_run(run, progress_bar=False)
    assert (curve.num_tasks, curve.split, curve.training_steps) == (30, "test", 96)
    assert curve.references
    ood = evaluate_run(run, progress_bar=False, split="ood", num_tasks=10, references=False, deterministic=True)
    assert (ood.num_tasks, ood.split) == (10, "ood")
    names = {path.name for path in run.glob("adaptation*")}
    assert names == {f"adaptation{which}.{kind}" for which in ("", "_ood_deterministic") for kind in ("csv", "npz", "png")}
    assert "Scores on test tasks" not in (run / "report.html").read_text()  # those were with sampled actions
    evaluate_run(run, progress_bar=False, split="ood", num_tasks=10, references=False)
    page = (run / "report.html").read_text()
    assert "Scores on test tasks" in page
    assert "Scores on ood tasks" in page
    assert (AdaptationCurve.load(run / "adaptation.npz").returns == curve.returns).all()


def test_comparing_evaluates_what_is_missing_on_the_same_tasks(run, tmp_path):
    train(config(seed=1), tmp_path / "other", progress_bar=False)
    evaluate_run(run, progress_bar=False, num_tasks=20, seed=5, references=False)
    comparison = compare_runs([tmp_path / "other", run], progress_bar=False)
    assert comparison.names == ("other", "bandit")
    assert comparison.curves[0].task_hash == comparison.curves[1].task_hash
    assert comparison.curves[0].num_tasks == 20
    sampled = (run / "adaptation.npz").read_bytes()
    likeliest = compare_runs([tmp_path / "other", run], deterministic=True, progress_bar=False)
    assert [curve.num_tasks for curve in likeliest.curves] == [30, 30]  # the other kind of curve is no model for it
    assert [curve.name for curve in likeliest.curves] == ["RL² (LSTM), likeliest actions"] * 2
    assert (run / "adaptation.npz").read_bytes() == sampled


def test_comparing_follows_the_first_runs_own_evaluation(tmp_path):
    for seed, settings in enumerate(({"num_tasks": 20, "deterministic": True}, {"num_tasks": 30})):
        train(config(seed=seed, evaluation=settings), tmp_path / str(seed), progress_bar=False)
    comparison = compare_runs([tmp_path / "0", tmp_path / "1"], progress_bar=False)
    assert [curve.num_tasks for curve in comparison.curves] == [20, 20]
    assert all(curve.name.endswith("likeliest actions") for curve in comparison.curves)
    assert "likeliest actions" in comparison.save_html(tmp_path / "page.html").read_text()


def test_comparing_evaluates_anew_what_has_trained_on(run, tmp_path):
    for total in (32, 64):
        train_on = train if total == 32 else lambda _, folder, **options: resume(folder, **options)
        train_on(config(total_timesteps=32), tmp_path / "other", progress_bar=False)
        file = tmp_path / "other" / "config.yaml"
        file.write_text(file.read_text().replace("total_timesteps: 32", "total_timesteps: 64"))
        if total == 32:
            evaluate_run(tmp_path / "other", progress_bar=False, num_tasks=20, references=False)
    evaluate_run(run, progress_bar=False, num_tasks=20, references=False)
    comparison = compare_runs([run, tmp_path / "other"], progress_bar=False)
    assert [curve.training_steps for curve in comparison.curves] == [96, 72]


def test_a_damaged_curve_of_another_split_is_told_before_evaluating(run, tmp_path):
    for name in ("config.yaml", "checkpoints"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "adaptation_ood.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"adaptation_ood\.npz is not an adaptation curve"):
        evaluate_run(tmp_path, progress_bar=False)
    assert not (tmp_path / "adaptation.npz").exists()


def test_hyperparameters_in_the_folders_config_hold_when_training_goes_on(run, tmp_path):
    train(config(total_timesteps=24), tmp_path / "run", progress_bar=False)
    file = tmp_path / "run" / "config.yaml"
    text = file.read_text().replace("total_timesteps: 24", "total_timesteps: 48")
    file.write_text(text.replace("  gamma: 0.99\n", "  gamma: 0.5\n"))
    assert resume(tmp_path / "run", progress_bar=False).config.gamma == 0.5


def test_a_folder_without_a_checkpoint_is_told(run, tmp_path):
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(RunFolderError, match="holds no checkpoint yet"):
        load_run(tmp_path)
    assert resume(tmp_path, progress_bar=False).num_timesteps == 96


def test_a_run_is_refused_where_its_spaces_are_not_the_checkpoints(run, tmp_path):
    for name in ("config.yaml", "checkpoints"):
        (tmp_path / name).symlink_to(run / name)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace("num_arms: 2", "num_arms: 4"))
    with pytest.raises(ValueError, match=r"must have the checkpoint's action_space Discrete\(2\), got Discrete\(4\)"):
        load_run(tmp_path)

import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

from metarl.algorithms.rl2 import RL2Config
from metarl.cli import main
from metarl.config import EvaluationConfig, TrainingConfig, read_config
from metarl.options import PRESETS
from metarl.plain import field_sentences
from metarl.training import train

TINY = ["--env.num-pulls", "3", "--policy-kwargs", "{core_size: 8}", "--num-envs", "8", "--minibatches", "2"]
QUIET = ["--no-progress-bar"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bandit"
    config = TrainingConfig(
        env="metarl/BernoulliBandit-v0",
        env_kwargs={"num_pulls": 3},
        policy_kwargs={"core_size": 8},
        total_timesteps=24,
        hyperparameters={"num_envs": 8, "minibatches": 2},
        evaluation={"num_tasks": 20, "references": False},
    )
    train(config, folder, progress_bar=False)
    return folder


@pytest.fixture
def metarl(capsys):
    """Run a command: exit code, standard output, standard error."""

    def call(*args):
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return call


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_names_every_command(metarl, args):
    code, output, _ = metarl(*args)
    assert code == 0
    for command in ("envs", "train", "evaluate", "adapt", "compare", "resume"):
        assert re.search(rf"^  {command} +[A-Z].*\.$", output, re.MULTILINE)


def test_help_of_the_module_comes_without_loading_torch():
    code = "import sys, metarl.cli; metarl.cli.main(['--help']); sys.exit(bool({'torch', 'matplotlib'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    result = subprocess.run([sys.executable, "-m", "metarl", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: metarl COMMAND")


@pytest.mark.parametrize(
    "args",
    [
        ["envs"],
        ["train", "rl2"],
        ["train", "rl2", "--env", "metarl/TabularMDP-v0"],
        ["train", "rl2", "--env", "CartPole-v1"],
        ["train", "rl2", "--preset", "bandit-5x10"],
        ["train", "maml"],
        ["evaluate"],
        ["adapt"],
        ["adapt", "--env", "metarl/GridNavi-v0"],
        ["compare"],
        ["resume"],
    ],
)
def test_every_option_has_a_sentence(metarl, args):
    code, output, _ = metarl(*args, "--help")
    assert code == 0
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", output)
    before_defaults = re.findall(r"(\S+) \((?:default|required)", text)
    assert len(before_defaults) >= 1
    assert all(word.endswith(".") for word in before_defaults)


def test_help_of_training_lists_the_parameters_of_the_env_that_is_named(metarl):
    general = metarl("train", "rl2", "--help")[1]
    assert "--env.num-states" not in general
    for name in field_sentences(RL2Config):
        assert f"--{name.replace('_', '-')}" in general
    named = metarl("train", "rl2", "--env", "metarl/TabularMDP-v0", "--help")[1]
    assert "--env.num-states" in named
    assert "Number of states S." in named


@pytest.mark.parametrize("cls", [TrainingConfig, EvaluationConfig, RL2Config])
def test_every_setting_has_a_sentence(cls):
    for name, sentence in field_sentences(cls).items():
        assert sentence.endswith("."), name


# -- envs --------------------------------------------------------------------------------------------------------------


def test_envs_lists_every_family(metarl):
    code, output, _ = metarl("envs")
    assert code == 0
    assert "Tasks hold" not in output  # what a family is about comes first
    assert re.search(r"^metarl/BernoulliBandit-v0 +10 episodes x 1 step +train, test, ood +known +\d$", output, re.MULTILINE)


@pytest.mark.parametrize("env", ["metarl/BernoulliBandit-v0", "metarl/CartPoleContext-v0", "CartPole-v1"])
def test_envs_shows_the_parameters_of_one(metarl, env):
    code, output, _ = metarl("envs", env)
    assert code == 0
    assert output.startswith(f"{env}: ")
    assert re.search(r"--env\.num-(pulls|episodes) +\d+ +\S.*\.", output)


# -- train and resume --------------------------------------------------------------------------------------------------


def test_the_command_line_goes_before_the_preset_before_the_defaults(metarl, tmp_path):
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        "env: metarl/BernoulliBandit-v0\nenv_kwargs: {num_arms: 3, num_pulls: 4}\ntotal_timesteps: 48\nseed: 7\n"
        "hyperparameters: {num_envs: 4, gamma: 0.5, minibatches: 1}\npolicy_kwargs: {core_size: 8}\n"
    )
    args = ["--preset", preset, "--env.num-pulls", "2", "--gamma", "0.7", "--seed", "3", "--evaluation.num-tasks", "2e1"]
    code, output, errors = metarl("train", "rl2", *args, "--out", tmp_path / "run", *QUIET)
    assert (code, errors) == (0, "")
    assert f"metarl evaluate {tmp_path / 'run'}" in output
    config = TrainingConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert (config.env_kwargs["num_arms"], config.env_kwargs["num_pulls"]) == (3, 2)
    assert (config.hyperparameters.gamma, config.hyperparameters.num_envs, config.hyperparameters.epochs) == (0.7, 4, 4)
    assert (config.seed, config.evaluation.num_tasks, config.total_timesteps) == (3, 20, 48)


def test_a_saved_config_is_a_preset(metarl, run, tmp_path):
    code, _, _ = metarl("train", "rl2", "--config", run / "config.yaml", "--out", tmp_path / "again", *QUIET)
    assert code == 0
    for name in ("config.yaml", "checkpoints/step_000000000024.ckpt"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_structured_parameters_are_written_as_yaml(metarl, tmp_path):
    args = ["--env", "Pendulum-v1", "--env.ranges", "{g: [8, 12]}", "--env.num-steps", "5", "--total-timesteps", "1e1"]
    code, _, _ = metarl("train", "rl2", *args, *TINY[2:], "--out", tmp_path / "run", *QUIET)
    assert code == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["env_kwargs"]["ranges"] == {"g": [8.0, 12.0]}


def test_runs_without_a_name_are_numbered(metarl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert metarl("train", "rl2", "--env", "metarl/BernoulliBandit-v0", *TINY, "--total-timesteps", "1", *QUIET)[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [f"rl2-BernoulliBandit-v0-{i}" for i in (1, 2)]


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_a_progress_bar_is_shown(metarl, tmp_path):
    args = ["--env", "metarl/BernoulliBandit-v0", *TINY, "--total-timesteps", "24", "--out", tmp_path / "run"]
    code, output, errors = metarl("train", "rl2", *args)
    assert code == 0
    assert "24/24" in output + errors


def test_resuming_a_finished_run_says_so(metarl, run):
    code, output, _ = metarl("resume", run, *QUIET)
    assert code == 0
    assert output.startswith("Done, at step 24.")


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_of_the_package_are_valid(preset):
    config = read_config(PRESETS / f"{preset}.yaml")
    config.resolved().make_model()


# -- evaluate, adapt, compare ------------------------------------------------------------------------------------------


def test_evaluate_prints_the_table_and_names_the_files(metarl, run):
    code, output, errors = metarl("evaluate", run, *QUIET)
    assert (code, errors) == (0, "")
    assert "20 test tasks" in output
    assert "RL² (LSTM)" in output
    for name in ("adaptation.png", "adaptation.csv", "report.html"):
        assert str(run / name) in output
        assert (run / name).exists()
    output = metarl("evaluate", "--split", "ood", "--num-tasks", "10", "--episodes", "2", run, *QUIET)[1]
    assert "10 ood tasks" in output
    assert len((run / "adaptation_ood.csv").read_text().splitlines()) == 3


def test_evaluate_draws_the_memory_and_what_it_recalls(metarl, tmp_path):
    sizes = ["--env.num-contexts", "2", "--env.num-occurrences", "3", "--env.num-pulls", "2", "--num-envs", "4"]
    env = ["--env", "metarl/BarcodeBandit-v0", *sizes, "--total-timesteps", "48", "--out", tmp_path]
    assert metarl("train", "rl2", *env, "--policy", "EpisodicPolicy", "--policy-kwargs", "{core_size: 8}", *QUIET)[0] == 0
    code, output, errors = metarl("evaluate", tmp_path, "--num-tasks", "30", "--show-memory", *QUIET)
    assert (code, errors) == (0, "")
    assert re.search(r"Memory: .*adaptation_memory.png; (effective length \d+ steps?;|nothing is decided by it)", output)
    assert str(tmp_path / "adaptation_recall.png") in output
    assert re.search(r"return per episode, by occurrence +1 +2 +3\n", output)
    assert re.search(r"regret per episode, by occurrence +1 +2 +3\n", output)
    assert (tmp_path / "adaptation_memory.png").exists()
    assert (tmp_path / "adaptation_recall.png").exists()
    assert "by how often its situation came before" in (tmp_path / "report.html").read_text()


def test_adapt_shows_every_episode_on_a_task_of_the_family(metarl, run):
    code, output, _ = metarl("adapt", run, "--seed", "3", "--episodes", "4")
    assert code == 0
    returns = [float(x) for x in re.findall(r"^episode \d/4   return +([\d.]+)$", output, re.MULTILINE)]
    assert len(returns) == 4
    assert f"mean {np.mean(returns):.3f}" in output
    assert "seed 3, task: means = [" in output
    assert metarl("adapt", run, "--seed", "3", "--episodes", "4")[1] == output
    assert metarl("adapt", run, "--env.num-pulls", "5")[1].count("return") == 5


def test_adapt_takes_any_environment_with_the_same_spaces(metarl, run, tmp_path):
    assert "metarl/GaussianBandit-v0" in metarl("adapt", run, "--env", "metarl/GaussianBandit-v0", "--episodes", "2")[1]
    train(
        TrainingConfig(env="CartPole-v1", total_timesteps=1, hyperparameters={"num_envs": 4}), tmp_path, progress_bar=False
    )
    code, output, _ = metarl(
        "adapt", tmp_path, "--env", "CartPole-v1", "--env.ranges", "{gravity: [5, 6]}", "--episodes", "2"
    )
    assert code == 0
    assert "CartPole-v1" in output
    assert "gravity = 5." in output


def test_an_environment_without_a_step_limit_takes_one_from_the_command_line(metarl, tmp_path, monkeypatch):
    code = "import gymnasium as gym\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
    (tmp_path / "endless.py").write_text(f"{code}gym.register('Endless-v0', CartPoleEnv)\n")
    monkeypatch.syspath_prepend(tmp_path)
    args = ["--env", "endless:Endless-v0", "--env.num-steps", "20"]
    run = tmp_path / "run"
    assert metarl("train", "rl2", *args, *TINY[2:], "--total-timesteps", "1", "--out", run, *QUIET)[0] == 0
    assert "endless:Endless-v0, seed 1, task: the family's only one" in metarl("adapt", run, *args, "--seed", "1")[1]
    code, _, errors = metarl("train", "rl2", *args[:2])
    assert code == 2
    assert "num_steps must be given for endless:Endless-v0" in errors


OWN_BANDIT = """
import gymnasium as gym


class OwnBandit(gym.Env):
    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, float(action == 2), True, False, {}


gym.register("OwnBandit-v0", OwnBandit, max_episode_steps=1)
"""


def test_an_environment_in_a_module_of_the_working_directory(run, tmp_path):
    (tmp_path / "own_bandit.py").write_text(OWN_BANDIT)
    args = ["adapt", run, "--env", "own_bandit:OwnBandit-v0", "--episodes", "3"]
    # -P: as for the installed command, the working directory is not among the places that modules are looked for
    done = subprocess.run(
        [sys.executable, "-P", "-m", "metarl", *args], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("own_bandit:OwnBandit-v0, seed ")
    assert "episode 3/3   return" in done.stdout


def test_compare_writes_table_picture_and_report(metarl, run, tmp_path):
    metarl("train", "rl2", "--config", run / "config.yaml", "--seed", "1", "--out", tmp_path / "other", *QUIET)
    code, output, _ = metarl("compare", run, tmp_path / "other", "--split", "train", "--out", tmp_path / "both", *QUIET)
    assert code == 0
    assert "above bandit" in output
    assert {path.name for path in (tmp_path / "both").iterdir()} == {f"comparison.{kind}" for kind in ("csv", "html", "png")}


def test_a_run_of_maml_from_training_to_export(metarl, run, tmp_path):
    bandit = ["--env", "metarl/BernoulliBandit-v0", "--env.num-arms", "2", "--env.num-pulls", "3"]
    sizes = ["--num-tasks", "4", "--episodes-per-update", "3", "--total-timesteps", "48"]
    folder = tmp_path / "maml"
    assert metarl("train", "maml", *bandit, *sizes, "--out", folder, *QUIET)[0] == 0
    code, output, _ = metarl("evaluate", folder, "--num-tasks", "20", *QUIET)
    assert code == 0
    assert re.search(r"gradient steps +return per episode", output)
    assert "gradient steps" in (folder / "report.html").read_text()
    code, output, _ = metarl("adapt", folder, "--gradient-steps", "2", "--export", tmp_path / "policy")
    assert code == 0
    assert output.count("return") == 6
    assert PPO.load(tmp_path / "policy.zip").action_space.n == 2
    assert metarl("adapt", folder, "--gradient-steps", "0", "--export", tmp_path / "start")[0] == 0
    assert "gradient_steps must be at least 0, got -1" in metarl("adapt", folder, "--gradient-steps", "-1")[2]
    assert "gradient_steps must be left out" in metarl("adapt", run, "--gradient-steps", "1")[2]
    assert "only agents that adapt by gradient steps can be exported" in metarl("adapt", run, "--export", "x")[2]
    assert "deterministic must be False" in metarl("evaluate", folder, "--deterministic", *QUIET)[2]
    message = "show_memory must be off: MAML does not adapt by a memory"
    assert message in metarl("evaluate", folder, "--show-memory", *QUIET)[2]


@pytest.mark.parametrize("evaluated", [False, True])
def test_compare_puts_agents_of_both_kinds_on_the_longest_trial(metarl, tmp_path, evaluated):
    bandit = ["--env", "metarl/BernoulliBandit-v0", "--env.num-arms", "2", "--env.num-pulls", "3"]
    folders = [tmp_path / "rl2", tmp_path / "maml"]
    metarl("train", "rl2", *bandit, "--num-envs", "4", "--total-timesteps", "12", "--out", folders[0], *QUIET)
    sizes = ["--num-tasks", "4", "--episodes-per-update", "4", "--total-timesteps", "32"]
    metarl("train", "maml", *bandit, *sizes, "--out", folders[1], *QUIET)
    if evaluated:
        for folder in folders:
            metarl("evaluate", folder, "--num-tasks", "20", *QUIET)
    code, _, errors = metarl("compare", *folders, "--out", tmp_path / "both", *QUIET)
    assert (code, errors) == (0, "")
    lines = (tmp_path / "both" / "comparison.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 8  # eight episodes each: those of one gradient step, and those after it


# -- bad input ---------------------------------------------------------------------------------------------------------

BANDIT = ["train", "rl2", "--env", "metarl/BernoulliBandit-v0"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "command 'trian' is unknown (did you mean train?): known are envs, train, "),
        (["train", "rl3"], "algorithm 'rl3' is unknown (did you mean rl2?): known are rl2"),
        (["train", "rl2"], "--env must be given"),
        (["train", "rl2", "--env"], "missing value for argument '--env'"),
        (["train", "rl2", "--env", "metarl/BernouliBandit-v0"], "Did you mean: `BernoulliBandit`?"),
        (["envs", "metarl/BernouliBandit-v0"], "Did you mean: `BernoulliBandit`?"),
        (["train", "rl2", "--preset", "bandit-5"], "preset 'bandit-5' is unknown (did you mean bandit-5x10?)"),
        (["train", "rl2", "--preset", "no/such.yaml"], "--preset no/such.yaml: there is no such file"),
        ([*BANDIT, "--env.num-arm", "3"], "unknown options: --env.num-arm, 3; did you mean --env.num-arms?"),
        ([*BANDIT, "--lerning-rate", "3"], "unknown options: --lerning-rate, 3; did you mean --learning-rate?"),
        ([*BANDIT, "--env.num-arms", "2.5"], "--env.num-arms: expected a whole number, got '2.5'"),
        ([*BANDIT, "--env.num-arms", "1"], "num_arms must be at least 2, got 1"),
        ([*BANDIT, "--env.prior", "1"], "missing value for argument '--env.prior'"),
        ([*BANDIT, "--learning-rate", "-1"], "learning_rate must be above 0, got -1.0"),
        ([*BANDIT, "--total-timesteps", "0"], "total_timesteps must be at least 1, got 0"),
        ([*BANDIT, "--policy", "LstmPolice"], "policy 'LstmPolice' is unknown (did you mean LstmPolicy?)"),
        ([*BANDIT, "--policy-kwargs", "{core_size: 8"], "--policy-kwargs: not YAML, "),
        ([*BANDIT, "--policy-kwargs", "8"], "--policy-kwargs: expected a mapping"),
        ([*BANDIT, "--policy-kwargs", "{core_siz: 8}"], "policy_kwargs do not fit LstmPolicy"),
        (
            ["train", "rl2", "--env", "CartPole-v1", "--env.ranges", "{mass: [1, 2]}"],
            "ranges names 'mass', no numeric attribute",
        ),
        (["train", "rl2", "--env", "CartPole-v1", "--env.env-kwargs", "{mass: 1}"], "unexpected keyword argument 'mass'"),
        (["train", "rl2", "--env", "metarl/Context-v0", "--env.env", "CartPol-v1"], "Did you mean: `CartPole`?"),
        ([*BANDIT, "--device", "gpu"], "device must be cpu, cuda or another of PyTorch's, got 'gpu'"),
        (["evaluate"], "missing from metarl evaluate: RUN"),
        (["evaluate", "/"], "/ is not a run folder: it has no config.yaml"),
        (
            ["evaluate", "RUN", "--split", "odd"],
            "split must be one of train, test, ood for metarl/BernoulliBandit-v0, got 'odd'",
        ),
        (["evaluate", "RUN", "--num-tasks", "0"], "num_tasks must be at least 1, got 0"),
        (["adapt", "RUN", "--env", "CartPole-v1"], "env must have the observation_space Discrete(1), got Box("),
        (["adapt", "RUN", "--episodes", "0"], "episodes must be at least 1, got 0"),
        (["adapt", "RUN", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["compare", "RUN"], "runs must be at least 2 run folders, got 1"),
        (["resume", "/"], "/ is not a run folder"),
        ([*BANDIT, "--out", "RUN"], "already holds a run: continue it with `metarl resume "),
    ],
)
def test_bad_input_gets_one_clear_line(metarl, run, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, _, errors = metarl(*[run if arg == "RUN" else arg for arg in args])
    assert code == 2
    assert errors.startswith("metarl: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not any(tmp_path.iterdir())


NAN_REWARDS = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class NanRewards(CartPoleEnv):
    def step(self, action):
        return super().step(action)[0], float("nan"), False, False, {}


gym.register("NanRewards-v0", NanRewards, max_episode_steps=5)
"""


def test_a_nan_reward_is_told_with_environment_task_and_step(metarl, tmp_path, monkeypatch):
    (tmp_path / "nan_rewards.py").write_text(NAN_REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    args = ["--env", "nan_rewards:NanRewards-v0", "--env.ranges", "{gravity: [5, 6]}", "--num-envs", "4"]
    code, _, errors = metarl("train", "rl2", *args, "--out", tmp_path / "run", *QUIET)
    assert code == 2
    assert "reward must be finite, got nan from metarl/Context-v0 of nan_rewards:NanRewards-v0, task 0" in errors
    assert re.search(r"task 0 \{'gravity': 5\.\d+\}, step 0\n$", errors)


def test_an_altered_checkpoint_is_warned_of_in_one_line(metarl, run, tmp_path, recwarn):
    (tmp_path / "checkpoints").mkdir()
    for path in (*run.glob("checkpoints/*.ckpt"), run / "config.yaml"):
        (tmp_path / path.relative_to(run)).write_bytes(path.read_bytes())
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    code, _, errors = metarl("adapt", tmp_path)
    assert code == 0
    assert re.fullmatch(r"metarl: warning: falling back to step_0+\.ckpt: .* is truncated.*\n", errors)


def test_a_debug_run_shows_where_an_error_came_from(metarl, monkeypatch):
    monkeypatch.setenv("METARL_DEBUG", "1")
    with pytest.raises(ValueError, match="is not a run folder"):
        metarl("evaluate", "/")

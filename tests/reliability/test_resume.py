"""Nothing is lost: interrupted, killed and damaged runs go on exactly as if nothing had happened."""

import signal
import subprocess
import sys
import time

import pytest
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl import cli
from metarl.checkpoint import CheckpointError
from metarl.config import TrainingConfig
from metarl.training import Interrupted, resume, train

ENVS = {
    "bandit": {"env": "metarl/BernoulliBandit-v0", "env_kwargs": {"num_arms": 3, "num_pulls": 4}},
    "pendulum": {"env": "Pendulum-v1", "env_kwargs": {"ranges": {"g": [8, 12]}, "num_steps": 5, "num_episodes": 2}},
    "walker": {"env": "metarl/Walker2dDynamics-v0", "env_kwargs": {"num_steps": 5, "num_episodes": 2}},
    "ant": {"env": "metarl/AntGoal-v0", "env_kwargs": {"num_steps": 5, "num_episodes": 2}},
}


SETTINGS = {
    "policy_kwargs": {"core_size": 8},
    "total_timesteps": 240,
    "checkpoint_every": 80,
    "hyperparameters": {"num_envs": 8, "minibatches": 2, "curriculum_start": 1},
}
PATIENCE = 240  # seconds; a busy machine may be slow
ENDLESS = {"total_timesteps": 50_000_000, "checkpoint_every": 1}


def config(env="bandit", **changes):
    return TrainingConfig(**{**SETTINGS, **ENVS[env], **changes})


class At(BaseCallback):
    """At a step: a signal to this process, or the end of training."""

    def __init__(self, step, number=None):
        super().__init__()
        self.step, self.number, self.done = step, number, False

    def _on_step(self):
        if self.done or self.model.num_timesteps < self.step:
            return True
        self.done = True
        if self.number is not None:
            signal.raise_signal(self.number)
        return self.number is not None


def newest(folder):
    return max((folder / "checkpoints").glob("step_*.ckpt"), default=None)


def step_of(folder):
    found = newest(folder)
    return int(found.stem.removeprefix("step_")) if found else -1


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("policy", ["LstmPolicy", "GruPolicy", "MlpPolicy"])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, env, policy, capfd):
    train(config(env, policy=policy), tmp_path / "whole", progress_bar=False)
    with pytest.raises(Interrupted, match=r"stopped and saved at step [\d,]+ of 240: go on with `metarl resume .*parts`"):
        train(config(env, policy=policy), tmp_path / "parts", callback=At(130, signal.SIGINT), progress_bar=False)
    assert newest(tmp_path / "parts") != newest(tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        resume(tmp_path / "parts", callback=At(170, signal.SIGTERM), progress_bar=False)
    assert caught.value.code == 143
    model = resume(tmp_path / "parts", progress_bar=False)
    assert model.num_timesteps >= 240
    assert newest(tmp_path / "parts").name == newest(tmp_path / "whole").name
    assert newest(tmp_path / "parts").read_bytes() == newest(tmp_path / "whole").read_bytes()
    assert steps_in_tensorboard(tmp_path / "parts") == steps_in_tensorboard(tmp_path / "whole")


def steps_in_tensorboard(folder, purge=False):
    # Sorted, and whatever the order: files begun in one second by one process are read by name, the tenth before the ninth.
    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=purge).Reload()
    return sorted(event.step for event in events.Scalars("train/loss"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    train(config(), tmp_path, progress_bar=False)
    whole = newest(tmp_path).read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    newest(tmp_path).write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"falling back to step_\d+.ckpt: .* is truncated or altered"):
        resume(tmp_path, progress_bar=False)
    assert newest(tmp_path).read_bytes() == whole
    assert len(steps := steps_in_tensorboard(tmp_path, purge=True)) == len({*steps})


def test_no_readable_checkpoint_is_told_in_one_line(tmp_path, capsys):
    train(config(), tmp_path, progress_bar=False)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is readable"):
        resume(tmp_path, progress_bar=False)
    assert cli.main(["resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path):
    """The command line in a process of its own, training until it is stopped."""
    preset = tmp_path / "long.yaml"
    preset.write_text(yaml.safe_dump({**SETTINGS, **ENVS["bandit"], **ENDLESS}))
    args = ["train", "rl2", "--preset", preset, "--out", tmp_path / "run", "--no-progress-bar"]
    process = subprocess.Popen([sys.executable, "-m", "metarl", *args], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while step_of(tmp_path / "run") < 40 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits(process, tmp_path, number, code):
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "metarl: stopped and saved at step" in errors
    assert_goes_on_exactly(tmp_path)


def test_a_killed_process_loses_at_most_the_work_since_the_last_checkpoint(process, tmp_path, capsys):
    assert cli.main(["resume", str(tmp_path / "run")]) == 2
    assert f"is in use by process {process.pid}" in capsys.readouterr().err
    last = newest(tmp_path / "run").name
    process.kill()
    process.wait(PATIENCE)
    assert newest(tmp_path / "run").name >= last
    assert_goes_on_exactly(tmp_path)


def assert_goes_on_exactly(tmp_path):
    """The stopped run's newest state, and what comes of it, are those of a run that was not stopped."""
    step = step_of(tmp_path / "run")
    train(config(**ENDLESS), tmp_path / "whole", callback=At(step + 1), progress_bar=False)
    assert newest(tmp_path / "run").read_bytes() == newest(tmp_path / "whole").read_bytes()
    for folder in ("run", "whole"):
        resume(tmp_path / folder, callback=At(step + 50), progress_bar=False)
    assert newest(tmp_path / "run").read_bytes() == newest(tmp_path / "whole").read_bytes()

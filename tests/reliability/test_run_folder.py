import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from metarl.run_folder import RunFolder, RunFolderError

CONFIG = {
    "algorithm": "rl2",
    "lr": 3e-4,
    "tiny": 1e-05,
    "layers": [64, 64],
    "env": {"id": "metarl/BernoulliBandit-v0", "num_arms": 5},
    "texts": ["1e-5", "2E3", "5", "yes", "null", "", "# no comment", "a: b", "\u2603"],
    "none": None,
    "big": 2**70,
    "inf": float("inf"),
}


def test_the_config_is_readable_and_comes_back(tmp_path):
    with RunFolder.create(tmp_path / "runs" / "a", CONFIG) as run:
        text = run.config_file.read_text()
    assert text.startswith("algorithm: rl2\nlr: 0.0003\n")
    assert run.config == CONFIG
    assert RunFolder.open(run.path).config == CONFIG
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.yaml"]


def test_tuples_become_lists_and_shared_values_are_written_out(tmp_path):
    shared = (1, 2)
    with RunFolder.create(tmp_path / "a", {"x": shared, "y": shared}) as run:
        assert run.config == {"x": [1, 2], "y": [1, 2]}
        assert "&" not in run.config_file.read_text()


@pytest.mark.parametrize("value", [Path("x"), np.float64(1.0), {1, 2}.__iter__()])
def test_a_config_that_yaml_cannot_hold_makes_no_folder(tmp_path, value):
    with pytest.raises(TypeError, match=r"config holds .*, which YAML cannot hold"):
        RunFolder.create(tmp_path / "a", {"value": value})
    assert not (tmp_path / "a").exists()


def test_paths(tmp_path):
    with RunFolder.create(tmp_path, {}) as run:
        names = {"checkpoints", "tensorboard", "adaptation_csv", "adaptation_png", "report", "config_file"}
        found = {name: getattr(run, name).relative_to(tmp_path).as_posix() for name in names}
    assert found == {
        "checkpoints": "checkpoints",
        "tensorboard": "tensorboard",
        "adaptation_csv": "adaptation.csv",
        "adaptation_png": "adaptation.png",
        "report": "report.html",
        "config_file": "config.yaml",
    }


def test_a_folder_with_a_run_is_refused_with_a_hint(tmp_path):
    RunFolder.create(tmp_path / "a", {"old": 1}).close()
    with pytest.raises(
        RunFolderError, match=r"a already holds a run: continue it with `metarl resume .*a`, or choose another"
    ):
        RunFolder.create(tmp_path / "a", {"new": 2})
    with RunFolder.open(tmp_path / "a", exclusive=True) as run:  # the refusal let go of the lock
        assert run.config == {"old": 1}


def test_a_folder_with_checkpoints_only_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(tmp_path, {})


def test_a_creation_that_failed_can_be_repeated(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            RunFolder.create(tmp_path / "a", {"x": 1})
    RunFolder.create(tmp_path / "a", {"x": 1}).close()


def test_open_needs_a_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no config\.yaml"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunFolderError, match=r"none is not a run folder"):
        RunFolder.open(tmp_path / "none", exclusive=True)
    assert [*tmp_path.iterdir()] == []


def test_a_damaged_config_lets_go_of_the_lock(tmp_path):
    RunFolder.create(tmp_path, {"x": 1}).close()
    (tmp_path / "config.yaml").write_text("x: [1")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"config\.yaml, line 1: "):
            RunFolder.open(tmp_path, exclusive=True)


def hold(path, connection):
    with RunFolder.create(path, {"x": 1}):
        connection.send(os.getpid())
        connection.recv()


def test_a_live_process_keeps_others_out_and_a_killed_one_does_not(tmp_path):
    path = tmp_path / "a"
    context = multiprocessing.get_context("forkserver")
    connection, remote = context.Pipe()
    process = context.Process(target=hold, args=(path, remote))
    process.start()
    pid = connection.recv()
    for attempt in (lambda: RunFolder.create(path, {}), lambda: RunFolder.open(path, exclusive=True)):
        with pytest.raises(RunFolderError, match=rf"a is in use by process {pid}: wait for it to end, or choose") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert RunFolder.open(path).config == {"x": 1}  # reading is allowed
    os.kill(pid, signal.SIGKILL)
    process.join(60)
    with pytest.raises(RunFolderError, match="metarl resume"):
        RunFolder.create(path, {})
    with (
        RunFolder.open(path, exclusive=True),
        pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"),
    ):
        RunFolder.open(path, exclusive=True)
    run = RunFolder.open(path, exclusive=True)
    run.close()
    run.close()
    connection.close()
    remote.close()

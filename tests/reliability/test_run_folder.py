import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from metarl.run_folder import RunFolder, RunFolderError, read_yaml

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
    with pytest.raises(TypeError, match=r"config holds .*, which config\.yaml cannot hold"):
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


# -- YAML ------------------------------------------------------------------------------------------------------------


def test_yaml_numbers_may_be_written_as_people_do(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-4\nb: 2.5E6\nc: -1e3\nd: '1e-4'\ne: 7\nf: 1.0e-4\ng: e5\n")
    expected = {"a": 1e-4, "b": 2.5e6, "c": -1e3, "d": "1e-4", "e": 7, "f": 1e-4, "g": "e5"}
    loaded = read_yaml(path)
    assert loaded == expected
    assert [type(value) for value in loaded.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"x: 1\ny: [1\nz: 2", 3, "expected ',' or ']'"),
        (b"x: 1\n\ty: 2", 2, "cannot start any token"),
        (b"x: 1\nx: 2", 2, "key 'x' is repeated"),
        (b"x:\n  y: 1\n  z: 2\n  y: 3", 4, "key 'y' is repeated"),
        (b"x: 1\ny: 2020-99-99", 2, "'2020-99-99' is not a valid timestamp"),
        (b"x: !!int ''", 1, "'' is not a valid int"),
        (b"x: !!bool maybe", 1, "'maybe' is not a valid bool"),
        (b"x: 1\ny: \xff", 2, "not UTF-8 text"),
        (b"x: 1\ny: \0", 2, "special characters are not allowed"),
        (b"", 1, "must hold a mapping of names to values, got NoneType"),
        (b"- 1", 1, "must hold a mapping of names to values, got list"),
        (b"x: 1\n---\ny: 2", 2, "but found another document"),
        (b"[" * 1500, 1, "nested too deeply"),
        (b"[1]: 2", 1, "must hold a mapping|unhashable"),
        (b"{{1: 2}: 3}", 1, "found unhashable key"),
    ],
)
def test_yaml_errors_are_one_line_with_file_and_line(tmp_path, content, line, problem):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.yaml, line {line}: .*({problem})") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [{0}]", "!!python/object/new:os.mkdir [{0}]", "!!python/name:os.mkdir ''", "!mine 1"],
)
def test_yaml_runs_no_code(tmp_path, tag):
    path = tmp_path / "a.yaml"
    path.write_text(f"x: 1\ny: {tag.format(tmp_path / 'ran')}\n")
    with pytest.raises(ValueError, match=r"a\.yaml, line 2: could not determine a constructor for the tag"):
        read_yaml(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml")

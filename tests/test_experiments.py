"""Every script in `experiments/` starts, and says what it is for; how tables mark learners."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = [path for path in sorted(FOLDER.rglob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help(script):
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert len(done.stdout.splitlines()) > 3


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("tables_few_shot")


def rows(**learners):
    return [
        {"learner": name, "seed": seed, "right": " ".join(map(str, right))}
        for name, seeds in learners.items()
        for seed, right in enumerate(seeds)
    ]


def test_a_learner_is_better_by_pairs_and_with_every_seed(tables):
    rng = np.random.default_rng(0)
    base = rng.integers(20, 50, 400)  # episodes differ by more than learners
    found = rows(
        base=[base],
        one_more=[base + rng.integers(0, 3, 400)],
        same=[base],
        less=[base - rng.integers(0, 3, 400)],
        noise=[base + rng.integers(-9, 10, 400)],
        seeds=[base + rng.integers(0, 3, 400), base + rng.integers(2, 5, 400)],
        one_bad_seed=[base + rng.integers(2, 5, 400), base - rng.integers(0, 2, 400)],
    )
    better = [name for name in dict.fromkeys(row["learner"] for row in found) if tables.is_better("p", found, name, "base")]
    assert better == ["one_more", "seeds"]
    assert tables.is_better("p", found, "base", "less")


def test_rows_without_episodes_are_named(tables):
    found = [*rows(base=[[3, 4, 5]]), {"learner": "old", "seed": 0}]
    for name in ("old", "none"):
        message = f"^rows of p must hold the right answers of {name} by episode: measure it again$"
        with pytest.raises(ValueError, match=message):
            tables.is_better("p", found, name, "base")
        with pytest.raises(ValueError, match=message):
            tables.is_better("p", found, "base", name)

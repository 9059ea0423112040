"""Tables of few-shot learning, for `tables.py`."""

from collections import Counter
from collections.abc import Callable

import numpy as np
from result_files import read_result

from metarl.evaluation.statistics import paired_difference

PICTURES = (
    "glyphs-5w1s",
    "glyphs-5w5s",
    "glyphs-20w1s",
    "digits-5w1s",
    "digits-from-glyphs-5w1s",
    "fortunes-5w1s",
)
"""Problems of `experiments/few_shot.py` with classes."""

BASELINES = ("fine_tuning", "nearest_neighbour")
"""What other learners should be better than."""
MARKED = ("digits-5w1s", "digits-from-glyphs-5w1s", "fortunes-5w1s")
"""Problems in which those that are not are marked."""


def _rows(problem: str) -> list[dict]:
    """What was measured; a `ValueError` unless all was on the same episodes, naming those that differ from most."""
    rows = read_result(f"fewshot-{problem}.json") or []
    counts = Counter(row["hash"] for row in rows)
    if len(counts) > 1:
        (most, _), *_ = counts.most_common()
        others = ", ".join(f"{row['learner']} (seed {row['seed']})" for row in rows if row["hash"] != most)
        raise ValueError(f"rows of {problem} must be of the same episodes, but others than most are those of {others}")
    return rows


def few_shot() -> str:
    """Accuracy of few-shot learners on unseen classes."""
    found = {problem: _rows(problem) for problem in PICTURES}
    names = sorted({row["learner"] for rows in found.values() for row in rows if row["seed"] == 0})
    lines = [f"| learner | {' | '.join(PICTURES)} |", "|---|" + "---|" * len(PICTURES)]
    for name in names:
        cells = []
        for problem, rows in found.items():
            seeds = _seeds(rows, name)
            first = next((row for row in seeds if row["seed"] == 0), None)
            cells.append(_accuracy(problem, first, _mark(problem, rows, name), _minutes(seeds)) if first else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seeds(rows: list[dict], learner: str) -> list[dict]:
    """The rows of one learner, in the order of their seeds."""
    return [row for row in rows if row["learner"] == learner]


def _mark(problem: str, rows: list[dict], learner: str) -> str:
    """What tells that a learner is not better than both baselines."""
    compared = problem in MARKED and learner not in BASELINES
    return " †" if compared and not all(is_better(problem, rows, learner, other) for other in BASELINES) else ""


def is_better(problem: str, rows: list[dict], learner: str, other: str) -> bool:
    """Whether a learner is, with every seed, and by the interval of the mean difference on the same episodes.

    Accuracies are means over seeds; the interval says what other episodes would do, every seed's own mean something of what
    other seeds would.
    """
    one, mean = _right(problem, rows, learner), _right(problem, rows, other).mean(0)
    return bool(paired_difference(mean, one.mean(0), resamples=20_000).low > 0.0 and one.mean(1).min() > mean.mean())


def _right(problem: str, rows: list[dict], learner: str) -> np.ndarray:
    """How many answers were right, by seed and episode; a `ValueError` where that is not known."""
    seeds = _seeds(rows, learner)
    if not seeds or not all("right" in row for row in seeds):
        raise ValueError(f"rows of {problem} must hold the right answers of {learner} by episode: measure it again")
    return np.array([row["right"].split() for row in seeds], float)


def _minutes(seeds: list[dict]) -> float:
    """What a training took: with the fastest seed, as others may have shared the machine with something else."""
    return min(row["seconds"] for row in seeds) / 60


def _accuracy(problem: str, row: dict, mark: str, minutes: float) -> str:
    """In percent; in brackets the interval, then, where queries may be normalised together, so; what it was trained for."""
    mean, low, high = (100.0 * x for x in row["scores"]["inductive"])
    together = row["scores"].get("transductive")
    trained = f"<br>{row['training_episodes']:,}, {minutes:.0f} min" if row["training_episodes"] else ""
    score = f"{mean:.1f}{mark} [{low:.1f}, {high:.1f}]" + (f"; {100.0 * together[0]:.1f}" if together else "")
    return score + trained * (row.get("trained_on", problem) == problem)


def few_shot_seeds() -> str:
    """Accuracy by seed, of learners that have been trained more than once on a problem."""
    found = {problem: _rows(problem) for problem in PICTURES}
    trained = {(row["learner"], problem) for problem, rows in found.items() for row in rows if row["seed"]}
    lines = [f"| learner | {' | '.join(PICTURES)} |", "|---|" + "---|" * len(PICTURES)]
    for name in sorted({name for name, _ in trained}):
        cells = []
        for problem, rows in found.items():
            scores = [row["scores"]["inductive"][0] for row in _seeds(rows, name)]
            cells.append("; ".join(f"{100.0 * score:.1f}" for score in scores) if (name, problem) in trained else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def few_shot_instances() -> str:
    """Accuracy of memories by how often a class has come."""
    rows = [row for row in _rows("glyphs-5w1s") if "by_instance" in row]
    times = range(1, 11)
    lines = [f"| learner | seed | {' | '.join(map(str, times))} |", "|---|---|" + "---|" * len(times)]
    for row in rows:
        lines.append(f"| {row['learner']} | {row['seed']} | {' | '.join(f'{share:.1%}' for share in row['by_instance'])} |")
    return "\n".join(lines)


MEASURES = ("gradient steps 1", "gradient steps 5", "gradient steps 10", "inductive")


def sinusoids() -> str:
    """Squared errors of few-shot learners on sinusoids, by gradient steps; a cell holds one number per seed."""
    lines = ["| learner | shots | 1 step | 5 steps | 10 steps | as it is | episodes | min |", "|---|" + "---|" * 7]
    for shots, name in ((5, "sinusoids"), (10, "sinusoids-10")):
        rows = _rows(name)
        for learner in dict.fromkeys(row["learner"] for row in rows):
            seeds = _seeds(rows, learner)
            cells = ["; ".join(_error(row["scores"].get(key)) for row in seeds).strip("; ") for key in MEASURES]
            cost = f"{seeds[0]['training_episodes']:,} | {_minutes(seeds):.1f}"
            lines.append(f"| {learner} | {shots} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines)


def _error(score: list[float] | None) -> str:
    """With its interval."""
    return "" if score is None else f"{score[0]:.3g} [{score[1]:.3g}, {score[2]:.3g}]"


FEW_SHOT: dict[str, Callable[[], str]] = {
    "few_shot": few_shot,
    "few_shot_seeds": few_shot_seeds,
    "few_shot_instances": few_shot_instances,
    "sinusoids": sinusoids,
}
"""By name."""

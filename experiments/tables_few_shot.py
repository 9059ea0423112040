"""Tables of few-shot learning, for `tables.py`."""

from collections.abc import Callable

from result_files import read_result

PICTURES = ("glyphs-5w1s", "glyphs-5w5s", "glyphs-20w1s", "digits-5w1s", "fortunes-5w1s")
"""Problems of `experiments/few_shot.py` with classes."""


def few_shot() -> str:
    """Accuracy of few-shot learners on unseen classes."""
    found = {problem: read_result(f"fewshot-{problem}.json") or [] for problem in PICTURES}
    names = sorted({row["learner"] for rows in found.values() for row in rows if row["seed"] == 0})
    lines = [f"| learner | {' | '.join(PICTURES)} |", "|---|" + "---|" * len(PICTURES)]
    first = {p: {row["learner"]: row for row in rows if row["seed"] == 0} for p, rows in found.items()}
    least = {p: max(rows[b]["scores"]["inductive"][0] for b in BASELINES if b in rows) for p, rows in first.items() if rows}
    for name in names:
        cells = [_accuracy(problem, rows.get(name), least.get(problem)) for problem, rows in first.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


BASELINES = ("fine_tuning", "nearest_neighbour")
"""What others should be better than."""


def _accuracy(problem: str, row: dict | None, least: float | None) -> str:
    """In percent; in brackets the interval, then, where queries may be normalised together, so; what it was trained for.

    With a dagger where a learner is not above `least`.
    """
    if row is None:
        return ""
    mean, low, high = (100.0 * x for x in row["scores"]["inductive"])
    together = row["scores"].get("transductive")
    trained = f"<br>{row['training_episodes']:,}, {row['seconds'] / 60:.0f} min" if row["training_episodes"] else ""
    mark = " †" if row["learner"] not in BASELINES and row["scores"]["inductive"][0] <= least else ""
    score = f"{mean:.1f}{mark} [{low:.1f}, {high:.1f}]" + (f"; {100.0 * together[0]:.1f}" if together else "")
    return score + trained * (row.get("trained_on", problem) == problem)


def few_shot_seeds() -> str:
    """Accuracy by seed, of learners that have been trained more than once on a problem."""
    found = {problem: read_result(f"fewshot-{problem}.json") or [] for problem in PICTURES}
    trained = {(row["learner"], problem) for problem, rows in found.items() for row in rows if row["seed"]}
    lines = [f"| learner | {' | '.join(PICTURES)} |", "|---|" + "---|" * len(PICTURES)]
    for name in sorted({name for name, _ in trained}):
        cells = []
        for problem, rows in found.items():
            scores = [row["scores"]["inductive"][0] for row in rows if row["learner"] == name]
            cells.append("; ".join(f"{100.0 * score:.1f}" for score in scores) if (name, problem) in trained else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def few_shot_instances() -> str:
    """Accuracy of memories by how often a class has come."""
    rows = [row for row in read_result("fewshot-glyphs-5w1s.json") or [] if "by_instance" in row]
    times = range(1, 11)
    lines = [f"| learner | seed | {' | '.join(map(str, times))} |", "|---|---|" + "---|" * len(times)]
    for row in rows:
        lines.append(f"| {row['learner']} | {row['seed']} | {' | '.join(f'{share:.1%}' for share in row['by_instance'])} |")
    return "\n".join(lines)


MEASURES = ("gradient steps 1", "gradient steps 5", "gradient steps 10", "inductive")


def sinusoids() -> str:
    """Squared errors of few-shot learners on sinusoids, by gradient steps."""
    lines = ["| learner | shots | seed | 1 step | 5 steps | 10 steps | as it is | episodes | min |", "|---|" + "---|" * 8]
    for shots, name in ((5, "sinusoids"), (10, "sinusoids-10")):
        for row in read_result(f"fewshot-{name}.json") or []:
            scores = [row["scores"].get(key) for key in MEASURES]
            cells = " | ".join("" if one is None else f"{one[0]:.3g} [{one[1]:.3g}, {one[2]:.3g}]" for one in scores)
            cost = f"{row['training_episodes']:,} | {row['seconds'] / 60:.1f}"
            lines.append(f"| {row['learner']} | {shots} | {row['seed']} | {cells} | {cost} |")
    return "\n".join(lines)


FEW_SHOT: dict[str, Callable[[], str]] = {
    "few_shot": few_shot,
    "few_shot_seeds": few_shot_seeds,
    "few_shot_instances": few_shot_instances,
    "sinusoids": sinusoids,
}
"""By name."""

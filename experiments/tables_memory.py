"""Tables of memory cores."""

import json
from collections.abc import Callable, Sequence

from result_files import RESULTS, read_result

CORES = ["identity", "lstm", "gru", "min_gru", "ntm", "mann", "dnc", "episodic", "snail", "gtrxl", "key_value"]
"""In the order of the tables."""
CARDS = ("repeat-previous", "repeat-first", "count-recall", "autoencode")
OTHERS = ("t-maze", "minigrid-memory", "bandit-5x10", "tabular-10")


def memory_cards() -> str:
    """Return per trial of every core in the card games."""
    return _cores(CARDS, "{:.3f} [{:.3f}, {:.3f}]")


def memory_others() -> str:
    """Return per trial in the other problems."""
    return _cores(OTHERS, "{:.3f} [{:.3f}, {:.3f}]")


def _cores(problems: Sequence[str], form: str) -> str:
    """A row per core and a column per problem, one value per seed; parameters from least to most, minutes of the first."""
    found = {name: (read_result(f"memory-{name}.json") or {"rows": []})["rows"] for name in problems}
    cores = list(dict.fromkeys(row["core"] for rows in found.values() for row in rows))
    steps = {name: f", {rows[0]['steps'] / 1e6:.0f} M steps" if rows else "" for name, rows in found.items()}
    head = "".join(f" {name}{steps[name]} | min |" for name in problems)
    lines = [f"| core | parameters |{head}", "|---|---|" + "---|---|" * len(problems)]
    for core in sorted(cores, key=CORES.index):
        rows = {name: [row for row in rows if row["core"] == core] for name, rows in found.items()}
        counts = sorted({row["parameters"] for own in rows.values() for row in own})
        parameters = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        cells = []
        for own in rows.values():
            cells.append("; ".join(form.format(*row["splits"]["test"]["total"]) for row in own))
            cells.append(f"{own[0]['training_seconds'] / 60:.1f}" if own else "")
        lines.append(f"| {core} | {parameters} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_length() -> str:
    """Effective memory length of every core in every problem."""
    names = [*CARDS, "barcode", *OTHERS]
    found = {name: (read_result(f"memory-{name}.json") or {"rows": []})["rows"] for name in names}
    names = [name for name in names if found[name]]
    lines = [f"| core | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for core in CORES[1:]:
        cells = []
        for name in names:
            far = [row["reach"] for row in found[name] if row["core"] == core]
            cells.append("; ".join(f"{one['length']} ({one['nats']:.2g})" for one in far))
        lines.append(f"| {core} | {' | '.join(cells)} |")
    return "\n".join(lines)


def barcode() -> str:
    """Regret by occurrence in barcode bandits."""
    rows = (read_result("memory-barcode.json") or {"rows": []})["rows"]
    times = len(rows[0]["by_occurrence"]) if rows else 0
    lines = [f"| core | seed | {' | '.join(str(k + 1) for k in range(times))} | last / first | steps | min |"]
    lines.append("|---|---|" + "---|" * (times + 3))
    for row in rows:
        regrets = [[row["splits"]["test"]["ceiling"] - x for x in scores] for scores in row["by_occurrence"]]
        cells = " | ".join(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, high, low in regrets)
        ratio = f"{regrets[-1][0] / regrets[0][0]:.2f} | {row['steps'] / 1e6:.1f} M | {row['training_seconds'] / 60:.1f}"
        lines.append(f"| {row['core']} | {row['seed']} | {cells} | {ratio} |")
    return "\n".join(lines)


def copying() -> str:
    """The copy task by core."""
    lines = [
        f"| {FACTS} | sequences | below 0.1 wrong bits after | wrong bits at length 20 | at 40 | min |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in _supervised("copy"):
        solved = "not" if row["solved_after"] is None else f"{row['solved_after']:,}"
        wrong = " | ".join(f"{row['measured'][length]:.3f}" for length in ("20", "40"))
        lines.append(f"| {_facts(row)} | {row['sequences']:,} | {solved} | {wrong} | {row['seconds'] / 60:.0f} |")
    return "\n".join(lines)


def recalling() -> str:
    """Accuracy by core and by how often a class has come."""
    times = ("1", "2", "3", "5", "10")
    lines = [f"| {FACTS} | sequences | {' | '.join(times)} | min |", "|---|---|---|---|---|---|---|" + "---|" * 6]
    for row in _supervised("recall"):
        right = " | ".join(f"{row['measured'][time]:.1%}" for time in times)
        lines.append(f"| {_facts(row)} | {row['sequences']:,} | {right} | {row['seconds'] / 60:.0f} |")
    return "\n".join(lines)


def _supervised(task: str) -> list[dict]:
    rows = [json.loads(path.read_text()) for path in RESULTS.glob(f"{task}-*-seed*.json")]
    return sorted(rows, key=lambda row: (CORES.index(row["core"]), row["seed"]))


FACTS = "core | options | batch | rate | seed | parameters"


def _facts(row: dict) -> str:
    options = ", ".join(f"{name}: {json.dumps(value)}" for name, value in row["core_kwargs"].items())
    return f"{row['core']} | {options} | {row['batch']} | {row['rate']:g} | {row['seed']} | {row['parameters']:,}"


MEMORY: dict[str, Callable[[], str]] = {
    "memory_cards": memory_cards,
    "memory_others": memory_others,
    "memory_length": memory_length,
    "barcode": barcode,
    "copying": copying,
    "recalling": recalling,
}

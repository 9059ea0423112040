"""Where results are kept, as JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read_result(name: str) -> Any:
    """What is in the file `name`; None where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def by_machine(name: str, table: Callable[[dict[str, Any]], str]) -> str:
    """A `table` for every machine that the file `name` of speeds has measurements of."""
    measured = (read_result(name) or {}).items()
    return "\n\n".join(f"{machine}, code of {result['commit']}:\n\n{table(result)}" for machine, result in measured)

"""Where results are kept, as JSON."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read_result(name: str) -> Any:
    """What is in the file `name`; None where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None

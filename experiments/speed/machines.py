"""Result files of speeds: they hold one measurement for each kind of processor, as ratios depend on it."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from metarl.checkpoint import write_atomically

RESULTS = Path(__file__).parents[1] / "results"
EXTENSIONS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
"""What products of matrices are made with, the fastest first, by the flag of the processor."""


def machine() -> str:
    """The processor, such as "AMD EPYC 26.2, AVX-512": name, family and model, and what it multiplies matrices with."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    name = facts.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= facts.keys():  # names on virtual machines may be short of them
        name += f" {facts['cpu family']}.{facts['model']}"
    flags = facts.get("flags", "").split()
    return ", ".join([name, *[shown for flag, shown in EXTENSIONS.items() if flag in flags][:1]])


def keep(name: str, result: dict[str, Any]) -> None:
    """Put what was measured on this machine into the result file `name`, in place of what was before."""
    path = RESULTS / name
    results = json.loads(path.read_text()) if path.exists() else {}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, cwd=RESULTS
    )
    results[machine()] = {**result, "commit": commit.stdout.strip()}
    write_atomically(path, (json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n").encode())

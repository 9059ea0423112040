"""What memory cores cost beside the LSTM: acting a step, and learning from whole trials.

    python experiments/speed/memory_cores.py

Cores of 64 outputs that read 64 features, as their defaults make them, on one thread. Acting is `step` for 256 trials;
learning is `scan` with its gradient, over 100 steps of 32 trials. Cores take turns, so that a machine that slows down slows
all of them down; medians over the turns. Those with a step that may be compiled are there twice; only learning uses it.

Result: `experiments/results/speed_memory_cores.json`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from machines import keep

from metarl.memory import CORES, MemoryCore

RESULT = "speed_memory_cores.json"
SIZE, ACTING, TRIALS, STEPS = 64, 256, 32, 100


def learning(core: MemoryCore) -> Callable[[], None]:
    """One pass over the trials and its gradient."""
    x = torch.randn(STEPS, TRIALS, SIZE, requires_grad=True)
    reset = torch.zeros(STEPS, TRIALS, dtype=torch.bool)
    reset[0] = True

    def run() -> None:
        y, _ = core.scan(x, core.initial_state(TRIALS), reset)
        y.sum().backward()

    return run


def acting(core: MemoryCore) -> Callable[[], None]:
    """`STEPS` steps."""
    x = torch.randn(ACTING, SIZE)

    @torch.no_grad()
    def run() -> None:
        state = core.initial_state(ACTING)
        for _ in range(STEPS):
            _, state = core.step(x, state)

    return run


def measure(work: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Median seconds of each."""
    times = {name: [] for name in work}
    for turn in range(turns + 2):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if turn >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cores = {}
    for name, make in CORES.items():
        cores[name] = make(SIZE, SIZE)
        if hasattr(make, "compiled"):
            cores[f"{name}, compiled"] = make(SIZE, SIZE, compiled=True)
    learn = measure({name: learning(core) for name, core in cores.items()}, options.turns)
    act = measure({name: acting(core) for name, core in cores.items()}, options.turns)
    rows = [
        {
            "core": name,
            "parameters": sum(p.numel() for p in core.parameters()),
            "learning_us": 1e6 * learn[name] / (STEPS * TRIALS),
            "learning_ratio": learn[name] / learn["lstm"],
            "acting_us": 1e6 * act[name] / (STEPS * ACTING),
            "acting_ratio": act[name] / act["lstm"],
        }
        for name, core in cores.items()
    ]
    print(f"{'core':22}{'parameters':>12}{'learning, us':>14}{'x LSTM':>8}{'acting, us':>12}{'x LSTM':>8}")
    for row in rows:
        name, parameters, *figures = row.values()
        print(f"{name:22}{parameters:12,}{figures[0]:14.2f}{figures[1]:8.1f}{figures[2]:12.2f}{figures[3]:8.1f}")
    keep(RESULT, {"command": "python experiments/speed/memory_cores.py", "rows": rows})


if __name__ == "__main__":
    main()

"""What the papers on memories checked them with, for any core: copying, and recalling what goes with what.

    python experiments/supervised_memory.py copy --core ntm
    python experiments/supervised_memory.py recall --core mann --core-kwargs '{"strengths": true, "apart": true}'

`copy` (Graves, Wayne & Danihelka 2014, "Neural Turing Machines", section 4.1): a sequence of random vectors of 8 bits is
shown, then a mark, and then the core, shown nothing more, has to repeat it. It learns on lengths 1 to 20. Measured on
sequences it has not seen, at length 20 and, for what it makes of longer ones than it learned from, 40: bits that are wrong
per sequence (of 160 and 320; guessing gets half of them). Cores with slots get 64 of them, so that length 40 fits.

`recall` (Santoro et al. 2016, "Meta-learning with memory-augmented neural networks", with points in place of characters):
five new classes, each a random point of 8 numbers, come ten times each in random order, blurred. The core has to name the
class, and is told its number, which is drawn anew for every sequence, one step later. Measured: accuracy by how often the
class has come. At the first time only guessing among the numbers that are left is possible, 46 %.

Result: `experiments/results/TASK-CORE-seedS.json`; with `--out FILE` elsewhere.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from metarl.memory import CORES

RESULTS = Path("experiments/results")
HELD_OUT = 500
"""Sequences that are measured on, per length."""
HELD_OUT_SEED, TRIAL_SEED = 2**31, 2**30
"""Of the sequences that are measured on, and of those that say when a task is solved: no `--seed` is as large."""
WRONG_BITS = 0.1
"""Per sequence of length 20: the mark that copying is to get below."""


class Copy:
    """Sequences of vectors of 8 bits, to be repeated."""

    width, longest, lengths = 8, 20, (20, 40)
    inputs, outputs = width + 1, width
    steps, batch, rate = 20_000, 16, 1e-3

    def loss(self, reader: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
        """On a batch of one random length, per bit."""
        length = int(torch.randint(1, self.longest + 1, (), generator=generator))
        return binary_cross_entropy_with_logits(*self._play(reader, length, batch, generator))

    def measure(self, reader: nn.Module) -> dict[str, float]:
        """Wrong bits per held-out sequence, by length."""
        wrong = {}
        for length in self.lengths:
            logits, bits = self._play(reader, length, HELD_OUT, torch.Generator().manual_seed(HELD_OUT_SEED + length))
            wrong[str(length)] = ((logits > 0) != (bits > 0.5)).sum().item() / HELD_OUT
        return wrong

    def solved(self, reader: nn.Module, generator: torch.Generator) -> bool:
        """Whether sequences of length 20, not the held-out ones, are repeated."""
        logits, bits = self._play(reader, self.longest, 100, generator)
        return ((logits > 0) != (bits > 0.5)).sum().item() / 100 < WRONG_BITS

    def _play(self, reader: nn.Module, length: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (length, batch, self.width), generator=generator).float()
        x = bits.new_zeros(2 * length + 1, batch, self.inputs)
        x[:length, :, : self.width] = bits
        x[length, :, self.width] = 1.0
        return reader(x)[length + 1 :], bits


class Recall:
    """Points of a few classes, whose numbers are told one step late."""

    width, classes, times, blur = 8, 5, 10, 0.2
    inputs, outputs = width + classes, classes
    steps, batch, rate = 8_000, 64, 2e-3

    def loss(self, reader: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
        """Per step."""
        logits, labels, _ = self._play(reader, batch, generator)
        return cross_entropy(logits.flatten(0, 1), labels.flatten())

    def measure(self, reader: nn.Module) -> dict[str, float]:
        """Accuracy by how often the class has come."""
        logits, labels, before = self._play(reader, HELD_OUT, torch.Generator().manual_seed(HELD_OUT_SEED))
        right = (logits.argmax(-1) == labels).float()
        return {str(time + 1): right[before == time].mean().item() for time in range(self.times)}

    def solved(self, reader: nn.Module, generator: torch.Generator) -> bool:
        """Whether 19 of 20 points of a class that came once before are named."""
        logits, labels, before = self._play(reader, 100, generator)
        return (logits.argmax(-1) == labels)[before == 1].float().mean().item() > 0.95

    def _play(self, reader: nn.Module, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, labels and how often the class came before, `[T, B, ...]`."""
        length = self.classes * self.times
        order = torch.rand(length, batch, generator=generator).argsort(0) % self.classes
        points = torch.randn(batch, self.classes, self.width, generator=generator)
        numbers = torch.rand(batch, self.classes, generator=generator).argsort(1)
        rows = torch.arange(batch)
        labels = numbers[rows, order]
        seen = points[rows, order] + self.blur * torch.randn(length, batch, self.width, generator=generator)
        told = torch.zeros(length, batch, self.classes)
        told[1:] = one_hot(labels[:-1], self.classes)
        came = one_hot(order, self.classes)
        before = (came.cumsum(0) - came).gather(-1, order[..., None])[..., 0]
        return reader(torch.cat([seen, told], -1)), labels, before


ROOM = {"num_slots": 64, "context": 128}
"""Places in memory, for cores that have such."""
TASKS = {"copy": Copy, "recall": Recall}


class Reader(nn.Module):
    """A core and a linear layer: `x [T, B, inputs]` to `[T, B, outputs]`."""

    def __init__(self, core: str, inputs: int, size: int, outputs: int, **kwargs: Any):
        super().__init__()
        room = {name: places for name, places in ROOM.items() if name in CORES[core].defaults()}
        self.core = CORES[core](inputs, size, **{**room, **kwargs})
        self.out = nn.Linear(size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From a fresh state."""
        return self.out(self.core.scan(x, self.core.initial_state(x.shape[1]))[0])


def train(task: Copy | Recall, reader: Reader, args: argparse.Namespace) -> tuple[list, int | None]:
    """`args.steps` batches. Returns the loss by sequences, and after how many sequences the task was first solved."""
    optimizer = torch.optim.Adam(reader.parameters(), args.rate)
    generator = torch.Generator().manual_seed(args.seed)
    trials = torch.Generator().manual_seed(TRIAL_SEED + args.seed)
    history, solved, total = [], None, 0.0
    start = time.monotonic()
    for step in range(1, args.steps + 1):
        loss = task.loss(reader, args.batch, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), args.clip)
        optimizer.step()
        total += loss.item()
        if step % args.every == 0:
            with torch.no_grad():
                if solved is None and task.solved(reader, trials):
                    solved = step * args.batch
            history.append([step * args.batch, round(total / args.every, 5)])
            print(
                f"{step * args.batch:>9,} sequences  loss {total / args.every:.5f}  {time.monotonic() - start:6.0f} s",
                flush=True,
            )
            total = 0.0
    return history, solved


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--core", choices=CORES, default="ntm", help="any of metarl.memory.CORES")
    parser.add_argument("--size", type=int, default=100, help="the core's output size (default: 100, the papers')")
    parser.add_argument("--core-kwargs", type=json.loads, default={}, help="further ones, such as '{\"num_reads\": 2}'")
    parser.add_argument("--steps", type=int, help="batches to learn from (default: 20,000 to copy, 8,000 to recall)")
    parser.add_argument("--batch", type=int, help="sequences in each (default: 16 to copy, 64 to recall)")
    parser.add_argument("--rate", type=float, help="Adam's learning rate (default: 0.001 to copy, 0.002 to recall)")
    parser.add_argument("--clip", type=float, default=10.0, help="largest norm of the gradient")
    parser.add_argument("--every", type=int, default=200, help="batches between two lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write instead of experiments/results/TASK-CORE-seedS.json")
    args = parser.parse_args(argv)
    if not 0 <= args.seed < TRIAL_SEED:
        parser.error(f"--seed must be from 0 to {TRIAL_SEED - 1}, got {args.seed}")
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    task = TASKS[args.task]()
    for name in ("steps", "batch", "rate"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(task, name))
    for name in ("steps", "batch", "every", "rate", "clip"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name} must be above 0, got {getattr(args, name)}")
    try:
        reader = Reader(args.core, task.inputs, args.size, task.outputs, **args.core_kwargs)
    except (TypeError, ValueError) as error:
        parser.error(f"--core-kwargs: {error}")
    start = time.monotonic()
    history, solved = train(task, reader, args)
    seconds = time.monotonic() - start
    with torch.no_grad():
        measured = task.measure(reader)
    print(f"held out: {measured}; first solved after {solved} sequences")
    result = {
        **{name: value for name, value in vars(args).items() if name not in ("out", "every")},
        "measured": measured,
        "sequences": args.steps * args.batch,
        "solved_after": solved,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in reader.parameters()),
        "history": history,
    }
    path = args.out or RESULTS / f"{args.task}-{args.core}-seed{args.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n")
    print(path)


if __name__ == "__main__":
    main()

"""The copy task of Graves, Wayne & Danihelka 2014 ("Neural Turing Machines"), for any memory core.

    python experiments/copy_task.py --core ntm
    python experiments/copy_task.py --core lstm --steps 50000 --seed 1

A sequence of random vectors of 8 bits is shown, then a mark, and then the core, shown nothing more, has to repeat it. It
learns on lengths 1 to 20. Measured on sequences it has not seen, at length 20 and, for what it makes of longer ones than
it learned from, 40: bits that are wrong per sequence (of 160 and 320; guessing gets half of them), and the log loss per
sequence in bits, which is the paper's measure. Cores with slots get 64 of them, so that length 40 fits.

Result: `experiments/results/copy-CORE.json`; with `--out FILE` elsewhere.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from metarl.memory import CORES

RESULTS = Path("experiments/results")
WIDTH = 8
"""Bits of a vector."""
LONGEST = 20
"""Of the sequences it learns from."""
MEASURED = (20, 40)
"""Lengths it is measured at."""
HELD_OUT = 500
"""Sequences it is measured on, per length."""


class Copier(nn.Module):
    """A core and a linear layer from its output to the logits of the bits."""

    def __init__(self, core: str, size: int):
        super().__init__()
        slots = {"num_slots": 64} if "num_slots" in CORES[core].defaults() else {}
        self.core = CORES[core](WIDTH + 1, size, **slots)
        self.bits = nn.Linear(size, WIDTH)

    def forward(self, sequence: Tensor) -> Tensor:
        """Logits `[L, B, WIDTH]` of a copy of `sequence [L, B, WIDTH]`, played in 2 L + 1 steps."""
        length, batch, _ = sequence.shape
        x = sequence.new_zeros(2 * length + 1, batch, WIDTH + 1)
        x[:length, :, :WIDTH] = sequence
        x[length, :, WIDTH] = 1.0
        y, _ = self.core.scan(x, self.core.initial_state(batch))
        return self.bits(y[length + 1 :])


def draw(length: int, batch: int, generator: torch.Generator) -> Tensor:
    """Random bits `[length, batch, WIDTH]`."""
    return torch.randint(2, (length, batch, WIDTH), generator=generator).float()


@torch.no_grad()
def measure(copier: Copier, length: int) -> dict[str, float]:
    """Wrong bits and log loss in bits, per held-out sequence."""
    sequence = draw(length, HELD_OUT, torch.Generator().manual_seed(2**32 + length))  # no --seed is as large
    logits = copier(sequence)
    loss = binary_cross_entropy_with_logits(logits, sequence, reduction="sum") / math.log(2)
    wrong = (logits > 0) != (sequence > 0.5)
    return {"wrong_bits": wrong.sum().item() / HELD_OUT, "log_loss_bits": loss.item() / HELD_OUT}


def train(copier: Copier, args: argparse.Namespace) -> None:
    """`args.steps` batches, each of one length."""
    optimizer = {
        "adam": lambda: torch.optim.Adam(copier.parameters(), args.rate),
        "rmsprop": lambda: torch.optim.RMSprop(copier.parameters(), args.rate, alpha=0.95, momentum=0.9),
    }[args.optimizer]()
    generator = torch.Generator().manual_seed(args.seed)
    start, wrong, bits = time.monotonic(), 0.0, 0
    for step in range(1, args.steps + 1):
        length = int(torch.randint(1, LONGEST + 1, (), generator=generator))
        sequence = draw(length, args.batch, generator)
        logits = copier(sequence)
        loss = binary_cross_entropy_with_logits(logits, sequence)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(copier.parameters(), args.clip)
        optimizer.step()
        wrong += ((logits > 0) != (sequence > 0.5)).sum().item()
        bits += sequence.numel()
        if step % args.every == 0 or step == args.steps:
            seconds = time.monotonic() - start
            print(f"{step * args.batch:>9,} sequences  {wrong / bits:7.2%} bits wrong  {seconds:6.0f} s", flush=True)
            wrong, bits = 0.0, 0


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", choices=CORES, default="ntm", help="any of metarl.memory.CORES")
    parser.add_argument("--size", type=int, default=100, help="the core's output size (default: 100, the paper's)")
    parser.add_argument("--steps", type=int, default=20_000, help="batches to learn from")
    parser.add_argument("--batch", type=int, default=16, help="sequences in each")
    parser.add_argument("--optimizer", choices=("adam", "rmsprop"), default="adam")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--clip", type=float, default=10.0, help="largest norm of the gradient")
    parser.add_argument("--every", type=int, default=200, help="batches between two lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write instead of experiments/results/copy-CORE.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    copier = Copier(args.core, args.size)
    start = time.monotonic()
    train(copier, args)
    seconds = time.monotonic() - start
    lengths = {str(length): measure(copier, length) for length in MEASURED}
    for length, row in lengths.items():
        print(f"length {length}: {row['wrong_bits']:.3f} wrong bits, log loss {row['log_loss_bits']:.3f} bits per sequence")
    settings = {name: value for name, value in vars(args).items() if name not in ("core", "out", "every")}
    result = {
        "core": args.core,
        "lengths": lengths,
        "sequences": args.steps * args.batch,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in copier.parameters()),
        **settings,
    }
    path = args.out or RESULTS / f"copy-{args.core}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()

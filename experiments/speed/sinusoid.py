"""Meta-iterations per second of MAML on sinusoids here and in a loop over tasks, in one run.

    python experiments/speed/sinusoid.py

Both do the same: MAML's regression (Finn et al. 2017, section 5.1), second order, one inner step on 5 points, 5 queries, 25
tasks in a meta-iteration, a network of 40-40 units, and Adam, on one thread; drawing the episodes included.

- Here: `FewShotTraining`, as a user meets it: all tasks in one forward. As it is, and with `compile=True`, timed after
  compilation.
- The loop: one task after another, with `torch.func.functional_call` and `torch.autograd.grad(create_graph=True)`, which is
  what learn2learn, higher and torchmeta come down to, without their own costs.

Before anything is timed, both compute the meta-gradient of the same episodes, which must agree. Exit code 1 when batching
is less than 5 times as fast as the loop, or compiled less than 25 times. Seconds are of processor time.
"""

import argparse
import sys

import torch
from machines import keep
from stopwatch import CLOCK, Stopwatch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from metarl.fewshot import Episodes, FewShotTraining, make_learner, make_source

TASKS, SHOTS, RATE = 25, 5, 0.01
TARGETS = {"batched": 5.0, "compiled": 25.0}
RESULT = "speed_sinusoid.json"


def our_training(compiled: bool) -> FewShotTraining:
    """MAML here."""
    source = make_source("sinusoids", shots=SHOTS, queries=SHOTS)
    learner = make_learner("maml", source.spec, {"rate": RATE})
    return FewShotTraining(learner, source, batch=TASKS, compile=compiled)


def looped_loss(network: nn.Module, episodes: Episodes) -> Tensor:
    """The mean loss after adaptation, one task after another."""
    losses = []
    params = dict(network.named_parameters())
    for support_x, support_y, query_x, query_y, _ in zip(*episodes, strict=True):
        loss = mse_loss(functional_call(network, params, (support_x,)), support_y)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        adapted = {name: p - RATE * g for (name, p), g in zip(params.items(), grads, strict=True)}
        losses.append(mse_loss(functional_call(network, adapted, (query_x,)), query_y))
    return torch.stack(losses).mean()


def plain_network(training: FewShotTraining) -> nn.Sequential:
    """An ordinary network with the learner's parameters."""
    network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    with torch.no_grad():
        for ours, theirs in zip(network.parameters(), training.learner.network.parameters(), strict=True):
            ours.copy_(theirs)
    return network


def largest_difference(training: FewShotTraining) -> float:
    """Between the two meta-gradients of the same episodes, relative to the larger one."""
    episodes = training.source.episodes("train", range(TASKS))
    network = plain_network(training)
    looped_loss(network, episodes).backward()
    training.optimizer.zero_grad()
    training.learner.train()
    training.learner.losses(episodes).mean().backward()
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in module.parameters()]) for module in (training.learner.network, network)
    )
    return float((ours - theirs).abs().max() / theirs.abs().max())


def measure_ours(compiled: bool, seconds: float) -> float:
    """Meta-iterations per second."""
    stopwatch = Stopwatch(seconds, warm_up=20)
    our_training(compiled).learn(10**12, callback=stopwatch, log_interval=0)
    return stopwatch.updates / stopwatch.total


def measure_loop(seconds: float) -> float:
    """Meta-iterations per second."""
    training = our_training(compiled=False)
    network = plain_network(training)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    done, began = -3, CLOCK()
    while done < 2 or CLOCK() - began < seconds:
        if done == 0:
            began = CLOCK()
        episodes = training.source.episodes("train", range((done + 3) * TASKS, (done + 4) * TASKS))
        optimizer.zero_grad()
        looped_loss(network, episodes).backward()
        optimizer.step()
        done += 1
    return done / (CLOCK() - began)


def main() -> int:
    """Measure, print, write the result file; 1 when a ratio is below its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    difference = largest_difference(our_training(compiled=False))
    if difference > 1e-4:
        raise RuntimeError(f"the meta-gradients must agree, but differ by {difference:.2g}")
    speeds = {"loop": measure_loop(options.seconds)}
    speeds |= {name: measure_ours(name == "compiled", options.seconds) for name in TARGETS}
    ratios = {name: speeds[name] / speeds["loop"] for name in TARGETS}
    print(f"meta-gradients agree to {difference:.1g}")
    for name, speed in speeds.items():
        print(f"{name:<10} {speed:8.1f} meta-iterations per second" + (f", {ratios[name]:.1f}x" if name in ratios else ""))
    result = {"tasks": TASKS, "shots": SHOTS, "torch": torch.__version__, "per_second": speeds, "ratios": ratios}
    keep(RESULT, result)
    missed = [f"{name} {ratios[name]:.1f} of {least:g}" for name, least in TARGETS.items() if ratios[name] < least]
    print(f"below target: {', '.join(missed)}" if missed else "targets reached")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())

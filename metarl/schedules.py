"""How a rate moves in the course of training."""

import math

import torch


def geometric(start: float, end: float | None, progress: float) -> float:
    """From `start` to `end`, a tenth of it by default, as `progress` goes from 0 to 1; a constant factor per step."""
    end = final_rate(start) if end is None else end
    return math.exp((1 - progress) * math.log(start) + progress * math.log(end))


def final_rate(start: float) -> float:
    """Where a rate ends that nobody gave an end."""
    return start / 10


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate

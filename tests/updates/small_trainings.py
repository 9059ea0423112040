"""A rule, a network and its training, which the tests of `LearnedOptimizer` share."""

import io

import torch
from torch import nn

from metarl.updates.base import Coordinatewise
from metarl.updates.torch_optimizer import LearnedOptimizer

LEARNED = ("learned", "lstm", "lstm_meta_learner", "optim4rl")


class Drift(Coordinatewise):
    """Reads all that a rule can read, and has a state of every kind: of numbers, of what they share, and of neither."""

    def __init__(self, params, rate, strength=0.5, horizon=None):
        super().__init__(params, rate)
        self.strength, self.horizon = strength, horizon
        self.scale = nn.Parameter(torch.tensor([1.5, 0.25]))
        places = torch.cat([torch.full((value.numel(),), float(n)) for n, value in enumerate(params.values())])
        self.register_buffer("places", places, persistent=False)

    def start(self, params):
        zeros = torch.zeros_like(params)
        return {"pair": (torch.stack([zeros, zeros], 1), params.new_zeros(len(params))), "first": [params.clone()]}

    def move(self, grads, state, params, losses):
        pair, step = state["pair"]
        pair = torch.stack([0.5 * pair[:, 0] + grads, pair[:, 1] + grads * grads], 1)
        loss = 0.0 if losses is None else losses[:, None]
        to_start = self.strength * (state["first"][0] - params)
        moves = to_start - self.scale[0] * pair[:, 0] / (pair[:, 1].sqrt() + self.scale[1]) - 0.01 * (self.places + loss)
        return moves / (1.0 + 0.1 * step[:, None]), {"pair": (pair, step + 1), "first": state["first"]}


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def loss_of(net, step):
    generator = torch.Generator().manual_seed(step)
    param = next(net.parameters())
    x = torch.randn(8, 3, generator=generator).to(param)
    return (net(x) - x.sin()[:, :2]).square().mean()


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def numbers(net):
    return torch.cat([param.detach().flatten() for param in net.parameters()])


def made(net, rule, lr=0.01, **options):
    return LearnedOptimizer(net.parameters(), lr=lr, rule=rule, **options)


def same(first, second):
    """Whether two states are equal to the bit, and of the same types throughout."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return type(first) is type(second) and first == second


def on_disk(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)

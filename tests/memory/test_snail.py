"""SNAIL against the paper's equations in slow loops, and what follows from a sliding window."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metarl.memory.base import scan_by_steps
from metarl.memory.snail import SNAILCore

INPUT, SIZE = 3, 4


def make(**kwargs):
    torch.manual_seed(0)
    core = SNAILCore(INPUT, SIZE, **kwargs).double()
    with torch.no_grad():
        for p in core.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return core


def data(steps, rows, reset_probability=0.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, rows, INPUT, generator=generator, dtype=torch.float64)
    return x, torch.rand(steps, rows, generator=generator) < reset_probability


def convolution(p, block, i):
    """Weights for the present and the past input, and biases, of a block's convolution `i` over all features so far."""
    outer = np.split(p[f"convolutions.{block}.outer.weight"], len(p[f"convolutions.{block}.bias"]))[i]
    inner = p.get(f"convolutions.{block}.inner.{i - 1}.weight", np.zeros((len(outer), 0)))
    present, past = np.split(np.concatenate([outer, inner], 1), 2)
    return present, past, p[f"convolutions.{block}.bias"][i]


def trial_by_hand(core, x):
    """The paper's blocks over one whole trial `[T, INPUT]`, which is padded with zeros on the left."""
    p = {name: w.detach().numpy() for name, w in core.named_parameters()}
    first = len(core.attentions) - len(core.convolutions)  # 1 where an attention comes before the convolutions
    for number in range(len(core.attentions)):
        block, i = number - first, 0
        while block >= 0 and 2**i < core.context:
            dilation = 2**i
            present, past, bias = convolution(p, block, i)
            new = []
            for t in range(len(x)):
                earlier = x[t - dilation] if t >= dilation else np.zeros(x.shape[1])
                f, g = np.split(present @ x[t] + past @ earlier + bias, 2)
                new.append(np.tanh(f) / (1 + np.exp(-g)))
            x = np.concatenate([x, new], 1)
            i += 1
        projected = x @ p[f"attentions.{number}.weight"].T + p[f"attentions.{number}.bias"]
        q, k, v = np.split(projected, [core.key_size, 2 * core.key_size], 1)
        reads = []
        for t in range(len(x)):
            seen = range(max(0, t - core.context + 1), t + 1)
            scores = np.array([q[t] @ k[s] / np.sqrt(core.key_size) for s in seen])
            weights = np.exp(scores) / np.exp(scores).sum()
            reads.append(sum(w * v[s] for w, s in zip(weights, seen, strict=True)))
        x = np.concatenate([x, reads], 1)
    return x @ p["output.weight"].T + p["output.bias"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"context": 2},
        {"context": 5},
        {"context": 8, "num_blocks": 1, "filters": 3, "key_size": 5, "value_size": 2},
        {"context": 5, "attention_first": True, "value_size": 3},
    ],
)
def test_equations(kwargs):
    core = make(**kwargs)
    x, reset = data(21, 3, 0.1)
    y, _ = core.scan(x, core.initial_state(3), reset)
    stepped, _ = scan_by_steps(core, x, core.initial_state(3), reset)
    for row in range(3):
        starts = [0, *(t for t in range(1, 21) if reset[t, row]), 21]
        trials = [x[a:b, row].numpy() for a, b in pairwise(starts)]
        expected = np.concatenate([trial_by_hand(core, trial) for trial in trials])
        np.testing.assert_allclose(y[:, row].detach(), expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(stepped[:, row].detach(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("steps", [3, 6, 20, 140])  # 140: more than one span of queries
@pytest.mark.parametrize("attention_first", [False, True])
def test_scan_equals_step_across_windows_and_resets(steps, attention_first):
    core = make(context=6, attention_first=attention_first)
    x, reset = data(steps, 4, 0.2)
    start = tuple(s.detach() for s in core.scan(data(9, 4, seed=2)[0], core.initial_state(4))[1])
    results = []
    for scan in (core.scan, lambda *a: scan_by_steps(core, *a)):
        inputs = [s.clone().requires_grad_() for s in (x, *start[1:])]
        y, state = scan(inputs[0], (start[0], *inputs[1:]), reset)
        loss = (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()).sum()
        loss = loss + sum(part.square().sum() for part in state[1:])
        results.append((y, *state, *torch.autograd.grad(loss, [*inputs, *core.parameters()])))
    for scanned, stepped in zip(*results, strict=True):
        torch.testing.assert_close(scanned, stepped, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("context", [2, 5, 8])
def test_one_block_reaches_back_over_convolutions_and_context(context):
    core = make(context=context, num_blocks=1)
    assert core.convolutions[0].dilations == {2: [1], 5: [1, 2, 4], 8: [1, 2, 4]}[context]
    x, _ = data(24, 1)
    x.requires_grad_()
    y, _ = core.scan(x, core.initial_state(1))
    influence = torch.autograd.grad(y[20].sum(), x)[0].abs().sum((1, 2))
    reach = {2: 1, 5: 7, 8: 7}[context] + context - 1  # the oldest step in the context has seen so much before it
    assert (influence > 0).tolist() == [20 - reach <= t <= 20 for t in range(24)]


def test_position_matters():
    core = make()
    x, _ = data(8, 1)
    y, swapped = (core.scan(v, core.initial_state(1))[0][7] for v in (x, x[[0, 4, 2, 3, 1, 5, 6, 7]]))
    assert (y - swapped).abs().max() > 1e-3


def test_cost_of_a_step_does_not_grow():
    core = make(context=6)
    x, _ = data(1, 2)
    state, costs, shapes = core.initial_state(2), set(), set()
    for before in (0, 0, 4, 9):
        for _ in range(before):
            _, state = core.step(x[0], state)
        with FlopCounterMode(display=False) as counter:
            _, state = core.step(x[0], state)
        costs.add(counter.get_total_flops())
        shapes.add(tuple(s.shape for s in state))
    assert min(costs) > 0
    assert len(costs) == len(shapes) == 1
    assert state[0].tolist() == [[5.0], [5.0]]


def test_sizes_go_with_the_size_asked_for():
    core = SNAILCore(INPUT, 64)
    assert (core.convolutions[0].filters, core.key_size, core.value_size) == (8, 16, 16)
    core = SNAILCore(INPUT, 8, filters=2, key_size=3, value_size=5)
    assert (core.convolutions[0].filters, core.key_size, core.value_size) == (2, 3, 5)
    assert core.attentions[0].in_features == INPUT + 7 * 2


@pytest.mark.parametrize("attention_first", [False, True])
def test_watch(attention_first):
    core = make(context=6, attention_first=attention_first)
    x, _ = data(4, 2)
    _, state = core.scan(x[:3], core.initial_state(2))
    weights = core.watch(x[3], state)
    assert set(weights) == {f"attention {i}" for i in range(1, 4 if attention_first else 3)}
    for w in weights.values():
        torch.testing.assert_close(w.sum(-1), torch.ones(2, dtype=w.dtype))
        assert (w > 0).tolist() == [[False, False, True, True, True, True]] * 2


def test_long_use():
    torch.manual_seed(0)
    core = SNAILCore(INPUT, SIZE)
    y, state = core.scan(10 * torch.randn(2000, 2, INPUT), core.initial_state(2))
    y.sum().backward()
    assert all(torch.isfinite(part).all() for part in (y, *state, *(p.grad for p in core.parameters())))
    assert all(part.dtype == torch.float32 for part in state)


@pytest.mark.parametrize(
    ("name", "bound", "value"),
    [("context", 2, 1), ("filters", 0, -1), ("key_size", 0, 1.5), ("value_size", 0, True), ("num_blocks", 1, 0)],
)
def test_bad_arguments(name, bound, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least {bound}, got {value!r}"):
        SNAILCore(INPUT, SIZE, **{name: value})


def test_bad_flag():
    with pytest.raises(ValueError, match="attention_first must be true or false, got 1"):
        SNAILCore(INPUT, SIZE, attention_first=1)

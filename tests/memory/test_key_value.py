"""The memory network against its equations in slow loops, and what follows from a sliding window."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metarl.memory.base import scan_by_steps
from metarl.memory.key_value import KeyValueCore

INPUT, SIZE = 3, 4


def make(**kwargs):
    torch.manual_seed(0)
    core = KeyValueCore(INPUT, SIZE, **kwargs).double()
    with torch.no_grad():
        for p in core.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return core


def data(steps, rows, reset_probability=0.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, rows, INPUT, generator=generator, dtype=torch.float64)
    return x, torch.rand(steps, rows, generator=generator) < reset_probability


def by_hand(core, x, reset):
    """The paper's equations for one row, from an empty memory, step by step and slot by slot."""
    weight = {name: p.detach().numpy() for name, p in core.named_parameters()}
    embed_b, embed_a, embed_c = np.split(weight["embeddings.weight"], 3)
    outputs, trial = [], []
    for x_t, start in zip(x, reset, strict=True):
        trial = [x_t] if start else [*trial, x_t]
        memory = trial[-core.num_slots :]
        u = embed_b @ x_t
        for _ in range(core.hops):
            scores = []
            for i, past in enumerate(memory):
                t_a = weight["age_keys"][core.num_slots - len(memory) + i]
                scores.append(u @ (embed_a @ past + t_a) / np.sqrt(SIZE))
            p = np.exp(scores) / np.sum(np.exp(scores))
            o = np.zeros(SIZE)
            for i, past in enumerate(memory):
                t_c = weight["age_values"][core.num_slots - len(memory) + i]
                o += p[i] * (embed_c @ past + t_c)
            u = weight["between_hops.weight"] @ u + o
        outputs.append(np.tanh(weight["output.weight"] @ u + weight["output.bias"]))
    return np.array(outputs)


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("num_slots", [2, 5, 64])
def test_equations(num_slots, hops):
    core = make(num_slots=num_slots, hops=hops)
    x, reset = data(17, 3, 0.15)
    y, _ = core.scan(x, core.initial_state(3), reset)
    stepped, _ = scan_by_steps(core, x, core.initial_state(3), reset)
    for row in range(3):
        expected = by_hand(core, x[:, row].numpy(), reset[:, row].numpy())
        np.testing.assert_allclose(y[:, row].detach(), expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(stepped[:, row].detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 6, 20, 140])  # 140: more than one span of queries
def test_scan_equals_step_across_windows_and_resets(steps):
    core = make(num_slots=6)
    x, reset = data(steps, 4, 0.2)
    start = core.scan(data(9, 4, 0.2, seed=2)[0], core.initial_state(4))[1]
    start = tuple(s.detach() for s in start)
    results = []
    for scan in (core.scan, lambda *a: scan_by_steps(core, *a)):
        inputs = [x.clone().requires_grad_(), start[1].clone().requires_grad_()]
        y, state = scan(inputs[0], (start[0], inputs[1]), reset)
        loss = (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()).sum() + state[1].square().sum()
        results.append((y, *state, *torch.autograd.grad(loss, [*inputs, *core.parameters()])))
    for scanned, stepped in zip(*results, strict=True):
        torch.testing.assert_close(scanned, stepped, atol=1e-11, rtol=1e-11)


def test_memory_ends_after_num_slots_steps():
    core = make(num_slots=5)
    x, _ = data(12, 1)
    x.requires_grad_()
    y, _ = core.scan(x, core.initial_state(1))
    influence = torch.autograd.grad(y[10].sum(), x)[0].abs().sum((1, 2))
    assert (influence > 0).tolist() == [6 <= t <= 10 for t in range(12)]


def test_position_matters():
    core = make()
    x, _ = data(8, 1)
    y, _ = core.scan(x, core.initial_state(1))
    order = [0, 4, 2, 3, 1, 5, 6, 7]
    swapped, _ = core.scan(x[order], core.initial_state(1))
    assert (y[7] - swapped[7]).abs().max() > 1e-3
    with torch.no_grad():
        core.age_keys.zero_()
        core.age_values.zero_()
    torch.testing.assert_close(core.scan(x, core.initial_state(1))[0][7], core.scan(x[order], core.initial_state(1))[0][7])


def test_cost_of_a_step_does_not_grow():
    core = make(num_slots=6)
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


def test_watch():
    core = make(num_slots=6, hops=2)
    x, _ = data(4, 2)
    _, state = core.scan(x[:3], core.initial_state(2))
    weights = core.watch(x[3], state)
    assert set(weights) == {"hop 1", "hop 2"}
    for w in weights.values():
        torch.testing.assert_close(w.sum(-1), torch.ones(2, dtype=w.dtype))
        assert (w > 0).tolist() == [[False, False, True, True, True, True]] * 2


def test_long_use():
    torch.manual_seed(0)
    core = KeyValueCore(INPUT, SIZE)
    y, state = core.scan(10 * torch.randn(2000, 2, INPUT), core.initial_state(2))
    y.sum().backward()
    assert all(torch.isfinite(part).all() for part in (y, *state, *(p.grad for p in core.parameters())))
    assert all(part.dtype == torch.float32 for part in state)


@pytest.mark.parametrize(("name", "bound", "value"), [("num_slots", 2, 1), ("num_slots", 2, 8.0), ("hops", 1, 0)])
def test_bad_arguments(name, bound, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least {bound}, got {value!r}"):
        KeyValueCore(INPUT, SIZE, **{name: value})

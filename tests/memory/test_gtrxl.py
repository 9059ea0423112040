"""Gated Transformer-XL against its equations in slow loops, and what follows from a sliding window."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metarl.memory.base import scan_by_steps
from metarl.memory.gtrxl import GTrXLCore

INPUT, SIZE = 3, 4


def make(**kwargs):
    torch.manual_seed(0)
    core = GTrXLCore(INPUT, SIZE, **kwargs).double()
    with torch.no_grad():
        for p in core.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return core


def data(steps, rows, reset_probability=0.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, rows, INPUT, generator=generator, dtype=torch.float64)
    return x, torch.rand(steps, rows, generator=generator) < reset_probability


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(x, p, name):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def gate(x, y, p, name):
    w_r, w_z, w_g = np.split(p[f"{name}.w.weight"], 3)
    u_r, u_z = np.split(p[f"{name}.u.weight"], 2)
    b_r, b_z = np.split(p[f"{name}.u.bias"], 2)
    r = sigmoid(w_r @ y + u_r @ x + b_r)
    z = sigmoid(w_z @ y + u_z @ x + b_z)
    return (1 - z) * x + z * np.tanh(w_g @ y + p[f"{name}.u_candidate.weight"] @ (r * x))


def sinusoid(age):
    frequencies = [10000 ** (-2 * i / SIZE) for i in range(SIZE // 2)]
    return np.array([np.sin(age * f) for f in frequencies] + [np.cos(age * f) for f in frequencies])


def layer_by_hand(past, x, p, num_heads):
    """One layer for the last step of a trial, given the inputs that its window had before."""
    size = SIZE // num_heads
    read = []
    for h in range(num_heads):
        w_q, w_k, w_v = np.split(p["project.weight"].reshape(num_heads, 3 * size, SIZE)[h], 3)
        w_r = p["project_age.weight"].reshape(num_heads, size, SIZE)[h]
        u, v = p["content_bias"][h, 0], p["age_bias"][h, 0]
        window = [norm(e, p, "norm") for e in [*past, x]]
        q = w_q @ window[-1] / np.sqrt(size)
        scores = [(q + u) @ w_k @ e + (q + v) @ w_r @ sinusoid(len(past) - i) for i, e in enumerate(window)]
        weights = np.exp(scores) / np.sum(np.exp(scores))
        read.append(sum(w * (w_v @ e) for w, e in zip(weights, window, strict=True)))
    attended = p["merge.weight"] @ np.concatenate(read) + p["merge.bias"]
    x = gate(x, np.maximum(attended, 0), p, "gate")
    hidden = np.maximum(p["mlp.1.weight"] @ norm(x, p, "mlp.0") + p["mlp.1.bias"], 0)
    return gate(x, np.maximum(p["mlp.3.weight"] @ hidden + p["mlp.3.bias"], 0), p, "mlp_gate")


def by_hand(core, x, reset):
    """One row from an empty memory: for each layer, a list of the inputs it has had in this trial."""
    weights = {name: p.detach().numpy() for name, p in core.named_parameters()}
    outputs = []
    for x_t, start in zip(x, reset, strict=True):
        if start or not outputs:
            trial = [[] for _ in core.layers]
        e = weights["embedding.weight"] @ x_t + weights["embedding.bias"]
        for i, past in enumerate(trial):
            prefix = f"layers.{i}."
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            after = layer_by_hand(past[-core.context :], e, own, core.num_heads)
            past.append(e)
            e = after
        outputs.append(e)
    return np.array(outputs)


@pytest.mark.parametrize(
    "kwargs", [{"context": 4}, {"context": 1}, {"num_heads": 1, "num_layers": 3, "context": 6}, {"mlp_size": 2}]
)
def test_equations(kwargs):
    core = make(**kwargs)
    x, reset = data(14, 2, 0.15)
    y, _ = core.scan(x, core.initial_state(2), reset)
    stepped, _ = scan_by_steps(core, x, core.initial_state(2), reset)
    for row in range(2):
        expected = by_hand(core, x[:, row].numpy(), reset[:, row].numpy())
        # The core's table of sinusoids was rounded to float32 once.
        np.testing.assert_allclose(y[:, row].detach(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stepped[:, row].detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [3, 6, 20, 140])  # 140: more than one span of queries
def test_scan_equals_step_across_windows_and_resets(steps):
    core = make(context=5)
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


@pytest.mark.parametrize("num_layers", [1, 2])
def test_each_layer_reaches_back_by_its_context(num_layers):
    core = make(num_layers=num_layers, context=3)
    x, _ = data(12, 1)
    x.requires_grad_()
    y, _ = core.scan(x, core.initial_state(1))
    influence = torch.autograd.grad(y[10].sum(), x)[0].abs().sum((1, 2))
    assert (influence > 0).tolist() == [10 - 3 * num_layers <= t <= 10 for t in range(12)]


def test_the_gates_start_near_the_identity():
    torch.manual_seed(0)
    core = GTrXLCore(INPUT, SIZE, gate_bias=20.0)
    x = torch.randn(6, 2, INPUT)
    y, _ = core.scan(x, core.initial_state(2))
    torch.testing.assert_close(y, core.embedding(x), atol=1e-5, rtol=0)


def test_position_matters():
    core = make(num_layers=1)
    x, _ = data(8, 1)
    order = [0, 4, 2, 3, 1, 5, 6, 7]
    y, swapped = (core.scan(v, core.initial_state(1))[0][7] for v in (x, x[order]))
    assert (y - swapped).abs().max() > 1e-3
    with torch.no_grad():
        core.layers[0].project_age.weight.zero_()
    y, swapped = (core.scan(v, core.initial_state(1))[0][7] for v in (x, x[order]))
    torch.testing.assert_close(y, swapped)


def test_cost_of_a_step_does_not_grow():
    core = make(context=5)
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


def test_a_step_adds_one_key_and_value_and_leaves_the_others():
    core = make(context=5)
    x, _ = data(7, 2)
    _, before = core.scan(x[:6], core.initial_state(2))
    _, after = core.step(x[6], before)
    for old, new in zip(before[1:], after[1:], strict=True):
        assert torch.equal(old[:, :, 1:], new[:, :, :-1])


def test_watch():
    core = make(context=5)
    x, _ = data(4, 2)
    _, state = core.scan(x[:3], core.initial_state(2))
    weights = core.watch(x[3], state)
    assert set(weights) == {f"layer {i} head {j}" for i in (1, 2) for j in (1, 2)}
    for w in weights.values():
        torch.testing.assert_close(w.sum(-1), torch.ones(2, dtype=w.dtype))
        assert (w > 0).tolist() == [[False, False, True, True, True, True]] * 2


def test_long_use():
    torch.manual_seed(0)
    core = GTrXLCore(INPUT, SIZE)
    y, state = core.scan(10 * torch.randn(2000, 2, INPUT), core.initial_state(2))
    y.sum().backward()
    assert all(torch.isfinite(part).all() for part in (y, *state, *(p.grad for p in core.parameters())))
    assert all(part.dtype == torch.float32 for part in state)


@pytest.mark.parametrize("name", ["num_layers", "num_heads", "context", "mlp_size"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        GTrXLCore(INPUT, SIZE, **{name: 0})


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="num_heads must divide output_size, which is 4, got 3"):
        GTrXLCore(INPUT, SIZE, num_heads=3)
    for value in (-1.0, float("nan"), float("inf"), "2"):
        with pytest.raises(ValueError, match=f"gate_bias must be at least 0 and finite, got {value!r}"):
            GTrXLCore(INPUT, SIZE, gate_bias=value)

"""MANNCore against a loop over single numbers written from the paper's equations, and against cases worked out by hand."""

import math

import numpy as np
import pytest
import torch

from metarl.memory.mann import MANNCore


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def slow_step(p, x, state, heads, decay, strengths):
    """One row, one step; `p` has the parameters, `state` is `(h, c, r, wr, wu, M)` without the batch axis."""
    h, c, r, last_read, usage, memory = state
    slots, size = memory.shape
    pre = p["controller.weight_ih"] @ np.concatenate([x, r.ravel()]) + p["controller.bias_ih"]
    pre = pre + p["controller.weight_hh"] @ h + p["controller.bias_hh"]
    i, f, g, o = np.split(pre, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    sent = (p["to_heads.weight"] @ h + p["to_heads.bias"]).reshape(heads, -1)
    ranked = sorted(range(slots), key=lambda n: usage[n])
    memory = memory.copy()
    memory[ranked[0]] = 0
    written = np.zeros((heads, slots))
    for head in range(heads):
        gate = sigmoid(sent[head, size])
        for n in range(slots):
            written[head, n] = gate * last_read[head, n] + (1 - gate) * (n == ranked[head])
            memory[n] += written[head, n] * np.tanh(sent[head, :size])
    read = np.zeros((heads, slots))
    for head in range(heads):
        key = np.tanh(sent[head, :size])
        strength = 1 + math.log1p(math.exp(sent[head, size + 1])) if strengths else 1
        for n in range(slots):
            norms = math.sqrt(key @ key + 1e-6) * math.sqrt(memory[n] @ memory[n] + 1e-6)
            read[head, n] = math.exp(strength * (key @ memory[n]) / norms)
        read[head] /= read[head].sum()
    r = np.stack([sum(read[head, n] * memory[n] for n in range(slots)) for head in range(heads)])
    usage = decay * usage + read.sum(0) + written.sum(0)
    y = p["to_output.weight"] @ np.concatenate([h, r.ravel()]) + p["to_output.bias"]
    return y, (h, c, r, read, usage, memory)


@pytest.mark.parametrize(("heads", "decay", "strengths"), [(1, 0.95, False), (3, 0.5, False), (2, 0.9, True)])
def test_against_a_loop_over_the_equations(heads, decay, strengths):
    torch.manual_seed(0)
    core = MANNCore(4, 5, num_slots=7, slot_size=3, num_reads=heads, decay=decay, strengths=strengths).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(0, 2)
    p = {name: value.detach().numpy() for name, value in core.named_parameters()}
    x = torch.randn(25, 2, 4, dtype=torch.float64)
    y, state = core.scan(x, core.initial_state(2))
    for row in range(2):
        slow = tuple(part[row].numpy() for part in core.initial_state(2))
        for t in range(25):
            slow_y, slow = slow_step(p, x[t, row].numpy(), slow, heads, decay, strengths)
            np.testing.assert_allclose(y[t, row].detach().numpy(), slow_y, atol=1e-8)
        for part, slow_part in zip(state, slow, strict=True):
            np.testing.assert_allclose(part[row].detach().numpy(), slow_part, atol=1e-8)


def tell_heads(core, *heads):
    """Make the controller send the heads these numbers, whatever its input."""
    with torch.no_grad():
        core.to_heads.weight.zero_()
        core.to_heads.bias.copy_(torch.tensor([number for head in heads for number in head]))


def test_the_least_used_slot_is_cleared_and_written():
    core = MANNCore(2, 3, num_slots=3, slot_size=2, num_reads=1)
    tell_heads(core, [20, 0, -20])  # key (1, 0), write to the least used slot
    h, c, reads, weights, _, _ = core.initial_state(1)
    memory = torch.tensor([[[0.0, 2.0], [5.0, 5.0], [-3.0, 0.0]]])
    usage = torch.tensor([[1.0, 0.5, 2.0]])
    _, state = core.step(torch.zeros(1, 2), (h, c, reads, weights, usage, memory))
    # Slot 1 is cleared and gets the key. Cosines 0, 1, -1: weights (1, e, 1/e) / 4.08616.
    read = torch.tensor([0.244728, 0.665241, 0.090031])
    torch.testing.assert_close(state[5], torch.tensor([[[0.0, 2.0], [1.0, 0.0], [-3.0, 0.0]]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(state[3][0, 0], read, atol=1e-5, rtol=0)
    torch.testing.assert_close(state[2][0, 0], torch.tensor([0.395149, 0.489456]), atol=1e-5, rtol=0)
    # 0.95 times what it was, plus what was read, plus what was written.
    torch.testing.assert_close(state[4][0], torch.tensor([1.194728, 2.140241, 1.990031]), atol=1e-5, rtol=0)


def test_the_slot_read_last_is_written_where_the_gate_is_open():
    core = MANNCore(2, 3, num_slots=3, slot_size=2, num_reads=1)
    tell_heads(core, [20, 0, 1.098612])  # gate sigmoid(log 3) = 0.75
    h, c, reads, _, _, _ = core.initial_state(1)
    usage, weights = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[[0.8, 0.0, 0.2]]])
    state = (h, c, reads, weights, usage, torch.ones(1, 3, 2))
    _, after = core.step(torch.zeros(1, 2), state)
    torch.testing.assert_close(after[5], torch.tensor([[[1.6, 1.0], [0.25, 0.0], [1.15, 1.0]]]), atol=1e-5, rtol=0)
    assert core.watch(torch.zeros(1, 2), state)["write"][0].tolist() == pytest.approx([0.6, 0.25, 0.15], abs=1e-5)


def test_slots_are_filled_in_order_each_head_its_own():
    core = MANNCore(2, 3, num_slots=6, slot_size=2, num_reads=2)
    tell_heads(core, [20, 0, -20], [0, 20, -20])
    state = core.initial_state(1)
    for t in range(3):
        seen = core.watch(torch.zeros(1, 2), state)
        assert seen["write 1"].argmax() == 2 * t
        assert seen["write 2"].argmax() == 2 * t + 1
        _, state = core.step(torch.zeros(1, 2), state)
    torch.testing.assert_close(state[5][0], torch.eye(2).repeat(3, 1), atol=1e-5, rtol=0)


def test_strengths_let_a_head_read_one_slot():
    # Key (1, 0); the memory has it once and its opposite everywhere else: with bare cosines e / (e + 31 / e) = 0.19248.
    memory = torch.tensor([[1.0, 0.0]] + [[-1.0, 0.0]] * 31)[None]
    read = []
    for strengths in (False, True):
        core = MANNCore(2, 3, slot_size=2, num_reads=1, strengths=strengths)
        tell_heads(core, [20, 0, 20] + [4.0] * strengths)
        h, c, reads, weights, usage, _ = core.initial_state(1)
        usage[0, 5] = -1.0  # its slot is cleared; the gate writes nothing, as nothing was read last
        read.append(core.step(torch.zeros(1, 2), (h, c, reads, weights, usage, memory))[1][3][0, 0, 0].item())
    assert read[0] == pytest.approx(math.e / (math.e + 30 / math.e + 1), abs=1e-4)
    assert read[1] > 0.98


def test_initial_state():
    state = MANNCore(3, 5, num_slots=8, slot_size=4, num_reads=2).double().initial_state(6)
    assert [tuple(part.shape) for part in state] == [(6, 5), (6, 5), (6, 2, 4), (6, 2, 8), (6, 8), (6, 8, 4)]
    assert {part.dtype for part in state} == {torch.float64}
    assert (state[5] == 1e-6).all()
    assert (state[4].diff(dim=1) > 0).all()


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("strengths", [False, True])
def test_long_runs_stay_finite(scale, strengths):
    torch.manual_seed(0)
    core = MANNCore(5, 8, num_slots=16, slot_size=4, strengths=strengths)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(scale)
        state = core.initial_state(3)
        for _ in range(2000 if scale > 1 else 500):
            y, state = core.step(10 * torch.randn(3, 5), state)
            assert all(part.isfinite().all() for part in (y, *state))
        torch.testing.assert_close(state[3].sum(-1), torch.ones(3, 4))
        assert state[4].sum(-1).max() <= 8 / 0.05 * 1.001  # a step uses 2 n = 8 at most, of which 0.95 stays


def test_weights_sum_to_one_from_the_second_step():
    torch.manual_seed(0)
    core = MANNCore(5, 8)
    x = torch.randn(2, 3, 5)
    state = core.step(x[0], core.initial_state(3))[1]
    seen = core.watch(x[1], state)
    assert list(seen) == [f"{name} {head}" for name in ("read", "write") for head in (1, 2, 3, 4)]
    for weights in seen.values():
        assert weights.shape == (3, 32)
        assert not weights.requires_grad
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert torch.equal(seen["read 2"], core.step(x[1], state)[1][3][:, 1])


def test_heads_that_start_apart():
    """Every second one writes where it has read, the others where slots are least used; with strengths, reads are sharp."""
    torch.manual_seed(0)
    core, x = MANNCore(5, 8, strengths=True, apart=True), torch.randn(8, 3, 5)
    state = core.scan(x[:-1], core.initial_state(3))[1]
    read, seen = state[3], core.watch(x[-1], state)
    for head in (1, 3):
        torch.testing.assert_close(seen[f"write {head + 1}"], read[:, head], atol=0.15, rtol=0)
    for head in (0, 2):
        least = core._least_used(state[4])[:, head]
        torch.testing.assert_close(seen[f"write {head + 1}"], least, atol=0.15, rtol=0)
    torch.manual_seed(0)
    alike = MANNCore(5, 8, strengths=True)
    blurred = alike.scan(x[:-1], alike.initial_state(3))[1][3]
    assert read.max(-1).values.mean() > 2 * blurred.max(-1).values.mean()
    assert MANNCore(5, 8, apart=True).to_heads.bias.view(4, -1)[:, -1].tolist() == [-3, 3, -3, 3]  # no strengths to set


def test_gradients_stay_finite():
    torch.manual_seed(0)
    core = MANNCore(5, 8, strengths=True)
    with torch.no_grad():
        core.to_heads.weight.mul_(30)
    x = 10 * torch.randn(200, 3, 5, requires_grad=True)
    y, _ = core.scan(x, core.initial_state(3))
    gradients = torch.autograd.grad(y.square().sum(), [x, *core.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.any() for g in gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"slot_size": 1.0}, "slot_size must be an integer of at least 1, got 1.0"),
        ({"num_reads": -1}, "num_reads must be an integer of at least 1, got -1"),
        ({"num_slots": 3}, "num_reads must be at most num_slots = 3, got 4"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        ({"decay": float("nan")}, "decay must be at least 0 and below 1, got nan"),
        ({"strengths": 1}, "strengths must be true or false, got 1"),
        ({"apart": None}, "apart must be true or false, got None"),
        ({"apart": True, "num_reads": 1}, "num_reads must be at least 2 where heads start apart, got 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        MANNCore(3, 4, **options)

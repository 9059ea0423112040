"""NTMCore against a loop over single numbers written from the paper's equations, and against cases worked out by hand."""

import math

import numpy as np
import pytest
import torch

from metarl.memory.ntm import NTMCore


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def slow_step(p, x, state, reads, writes, shift_range):
    """One row, one step; `p` has the parameters, `state` is `(h, c, r, w, M)` without the batch axis."""
    h, c, r, w, memory = state
    slots, size = memory.shape
    pre = p["controller.weight_ih"] @ np.concatenate([x, r.ravel()]) + p["controller.bias_ih"]
    pre = pre + p["controller.weight_hh"] @ h + p["controller.bias_hh"]
    i, f, g, o = np.split(pre, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    sent = np.clip(p["to_heads.weight"] @ h + p["to_heads.bias"], -20, 20).tolist()
    new = np.zeros_like(w)
    for head in range(reads + writes):
        key = np.tanh([sent.pop(0) for _ in range(size)])
        strength = math.log1p(math.exp(sent.pop(0)))
        gate = sigmoid(sent.pop(0))
        shifts = np.exp([sent.pop(0) for _ in range(2 * shift_range + 1)])
        sharpness = 1 + math.log1p(math.exp(sent.pop(0)))
        content = np.zeros(slots)
        for n in range(slots):
            norms = math.sqrt(key @ key + 1e-6) * math.sqrt(memory[n] @ memory[n] + 1e-6)
            content[n] = math.exp(strength * (key @ memory[n]) / norms)
        gated = gate * content / content.sum() + (1 - gate) * w[head]
        shifted = np.zeros(slots)
        for n in range(slots):
            for s in range(-shift_range, shift_range + 1):
                shifted[n] += gated[(n - s) % slots] * shifts[s + shift_range] / shifts.sum()
        new[head] = shifted**sharpness / (shifted**sharpness).sum()
    erased, added = np.ones_like(memory), np.zeros_like(memory)
    for head in range(writes):
        erase = sigmoid(np.array([sent.pop(0) for _ in range(size)]))
        add = np.tanh([sent.pop(0) for _ in range(size)])
        for n in range(slots):
            erased[n] *= 1 - new[reads + head, n] * erase
            added[n] += new[reads + head, n] * add
    assert not sent
    memory = memory * erased + added
    r = np.stack([sum(new[head, n] * memory[n] for n in range(slots)) for head in range(reads)])
    y = p["to_output.weight"] @ np.concatenate([h, r.ravel()]) + p["to_output.bias"]
    return y, (h, c, r, new, memory)


@pytest.mark.parametrize(("reads", "writes", "shift_range"), [(1, 1, 1), (2, 3, 2), (3, 1, 0)])
def test_against_a_loop_over_the_equations(reads, writes, shift_range):
    torch.manual_seed(0)
    core = NTMCore(4, 5, num_slots=7, slot_size=3, num_reads=reads, num_writes=writes, shift_range=shift_range).double()
    with torch.no_grad():
        for parameter in core.parameters():  # far from the linear parts of the nonlinearities; some of it is clipped
            parameter.normal_(0, 2)
    p = {name: value.detach().numpy() for name, value in core.named_parameters()}
    x = torch.randn(12, 2, 4, dtype=torch.float64)
    y, state = core.scan(x, core.initial_state(2))
    for row in range(2):
        slow = tuple(part[row].numpy() for part in core.initial_state(2))
        for t in range(12):
            slow_y, slow = slow_step(p, x[t, row].numpy(), slow, reads, writes, shift_range)
            np.testing.assert_allclose(y[t, row].detach().numpy(), slow_y, atol=1e-8)
        for part, slow_part in zip(state, slow, strict=True):
            np.testing.assert_allclose(part[row].detach().numpy(), slow_part, atol=1e-8)


def tell_heads(core, head=(), writing=()):
    """Make the controller send the same numbers to all heads, whatever its input."""
    with torch.no_grad():
        core.to_heads.weight.zero_()
        core.to_heads.bias.copy_(torch.tensor([*head] * (core.num_reads + core.num_writes) + [*writing]))


def test_heads_move_along_the_slots_and_write_there():
    core = NTMCore(2, 3, num_slots=3, slot_size=2)
    # Key 0, strength 0, gate shut, shift by +1, sharpness 1; erase everything, add tanh(0.5493) = 0.5 and -0.5.
    tell_heads(core, [0, 0, 0, -20, -20, -20, 20, -20], [20, 20, 0.549306, -0.549306])
    state = core.initial_state(1)
    assert state[3].tolist() == [[[1, 0, 0], [1, 0, 0]]]
    for slot in (1, 2, 0):  # slot 0 follows slot 2
        _, state = core.step(torch.randn(1, 2), state)
        focus = torch.zeros(3)
        focus[slot] = 1.0
        torch.testing.assert_close(state[3], focus.expand(1, 2, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(state[2], torch.tensor([[[0.5, -0.5]]]), atol=1e-5, rtol=0)  # it reads what it wrote
        torch.testing.assert_close(state[4][0, slot], torch.tensor([0.5, -0.5]), atol=1e-5, rtol=0)
    assert state[4].detach().abs().sum() == pytest.approx(3.0, abs=1e-4)


def test_content_is_found_and_sharpened():
    core = NTMCore(2, 3, num_slots=2, slot_size=2, shift_range=0)
    h, c, reads, weights, _ = core.initial_state(1)
    memory = torch.tensor([[[0.0, 7.0], [2.0, 0.0]]])
    # Key (1, 0): cosines 0 and 1. Strength softplus(1.8546) = 2, gate open, no shift, sharpness 1 + softplus(0.5413) = 2.
    tell_heads(core, [20, 0, 1.854587, 20, 0, 0.541325], [-20, -20, 0, 0])
    _, state = core.step(torch.zeros(1, 2), (h, c, reads, weights, memory))
    # (1, e^2) / (1 + e^2) = (0.1192, 0.8808); squared and normalised, (1, e^4) / (1 + e^4).
    torch.testing.assert_close(state[3][0, 0], torch.tensor([0.017986, 0.982014]), atol=1e-5, rtol=0)
    torch.testing.assert_close(state[2][0, 0], torch.tensor([1.964028, 0.125902]), atol=1e-4, rtol=0)
    torch.testing.assert_close(state[4], memory, atol=1e-5, rtol=0)  # nothing was erased or added


def test_an_empty_memory_is_addressed_evenly():
    core = NTMCore(2, 3, num_slots=4, slot_size=2)
    tell_heads(core, [3, -1, 5, 20, 0, 0, 0, 0], [0, 0, 0, 0])
    _, state = core.step(torch.zeros(1, 2), core.initial_state(1))
    torch.testing.assert_close(state[3], torch.full((1, 2, 4), 0.25), atol=1e-5, rtol=0)


def test_initial_state():
    h, c, reads, weights, memory = NTMCore(3, 5, num_slots=8, slot_size=4, num_reads=2).double().initial_state(6)
    assert (h.shape, c.shape, reads.shape) == ((6, 5), (6, 5), (6, 2, 4))
    assert (weights.shape, memory.shape) == ((6, 3, 8), (6, 8, 4))
    assert {part.dtype for part in (h, c, reads, weights, memory)} == {torch.float64}
    assert (memory == 1e-6).all()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_long_runs_stay_finite(scale):
    torch.manual_seed(0)
    core = NTMCore(5, 8, num_slots=16, slot_size=4, num_reads=2)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(scale)
        state = core.initial_state(3)
        for _ in range(2000):
            y, state = core.step(10 * torch.randn(3, 5), state)
            assert all(part.isfinite().all() for part in (y, *state))
            assert (state[3] >= 0).all()
            torch.testing.assert_close(state[3].sum(-1), torch.ones(3, 3))


def test_gradients_stay_finite():
    torch.manual_seed(0)
    core = NTMCore(5, 8)
    with torch.no_grad():
        core.to_heads.weight.mul_(30)
    x = 10 * torch.randn(200, 3, 5, requires_grad=True)
    y, _ = core.scan(x, core.initial_state(3))
    gradients = torch.autograd.grad(y.square().sum(), [x, *core.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.any() for g in gradients)


def test_watch_names_the_weightings():
    torch.manual_seed(0)
    x = torch.randn(2, 3)
    core = NTMCore(3, 4, num_slots=8)
    state = core.step(x, core.initial_state(2))[1]
    seen = core.watch(x, state)
    _, (_, _, _, weights, _) = core.step(x, state)
    assert list(seen) == ["read", "write"]
    assert torch.equal(seen["read"], weights[:, 0])
    assert torch.equal(seen["write"], weights[:, 1])
    assert not seen["read"].requires_grad
    core = NTMCore(3, 4, num_slots=8, num_reads=2, num_writes=2)
    seen = core.watch(x, core.initial_state(2))
    assert {name: tuple(value.shape) for name, value in seen.items()} == dict.fromkeys(
        ["read 1", "read 2", "write 1", "write 2"], (2, 8)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"slot_size": 2.5}, "slot_size must be an integer of at least 1, got 2.5"),
        ({"num_reads": True}, "num_reads must be an integer of at least 1, got True"),
        ({"num_writes": "2"}, "num_writes must be an integer of at least 1, got '2'"),
        ({"shift_range": -1}, "shift_range must be an integer of at least 0, got -1"),
        ({"num_slots": 4, "shift_range": 2}, r"shift_range must be at most \(num_slots - 1\) / 2 = 1, got 2"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        NTMCore(3, 4, **options)

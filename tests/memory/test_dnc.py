"""The DNC against a slow loop over the paper's equations, and against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from metarl.memory.dnc import DNCCore, allocation_weights, content_weights, update_links

T, B, INPUT, SIZE = 9, 3, 4, 6


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def paper_content(memory, key, strength):
    cosines = [key @ row / (np.sqrt(key @ key + 1e-6) * np.sqrt(row @ row + 1e-6)) for row in memory]
    return softmax(strength * np.array(cosines))


def paper_allocation(usage):
    weights, product = np.zeros(len(usage)), 1.0
    for slot in sorted(range(len(usage)), key=lambda i: usage[i]):
        used = 1e-6 + (1 - 1e-6) * usage[slot]
        weights[slot] = (1 - used) * product
        product *= used
    return weights


def take(numbers, count):
    return np.array([numbers.pop(0) for _ in range(count)])


def paper_run(core, xs):
    """One row, `xs [T, INPUT]`, slot by slot: the equations of the paper's Methods, in their order."""
    params = {name: p.detach().numpy() for name, p in core.named_parameters()}
    n, w, r = core.num_slots, core.slot_size, core.num_reads
    h, c = np.zeros(SIZE), np.zeros(SIZE)
    memory, usage, link, precedence = np.zeros((n, w)), np.zeros(n), np.zeros((n, n)), np.zeros(n)
    write, reads, words = np.zeros(n), np.zeros((r, n)), np.zeros((r, w))
    ys, watched = [], []
    for x in xs:
        chi = np.concatenate([x, words.ravel()])
        z = params["controller.lstm.weight_ih_l0"] @ chi + params["controller.lstm.bias_ih_l0"]
        z += params["controller.lstm.weight_hh_l0"] @ h + params["controller.lstm.bias_hh_l0"]
        i, f, g, o = z.reshape(4, SIZE)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)

        xi = list(params["interface.weight"] @ h + params["interface.bias"])
        read_keys = take(xi, r * w).reshape(r, w)
        read_strengths = 1 + np.log1p(np.exp(take(xi, r)))
        write_key, write_strength = take(xi, w), 1 + np.log1p(np.exp(take(xi, 1)[0]))
        erase, vector = sigmoid(take(xi, w)), take(xi, w)
        free, allocate, gate = sigmoid(take(xi, r)), sigmoid(take(xi, 1)[0]), sigmoid(take(xi, 1)[0])
        modes = take(xi, 3 * r).reshape(r, 3)
        assert not xi

        for j in range(n):
            retention = 1.0
            for k in range(r):
                retention *= 1 - free[k] * reads[k, j]
            usage[j] = (usage[j] + write[j] - usage[j] * write[j]) * retention
        content = paper_content(memory, write_key, write_strength)
        write = gate * (allocate * paper_allocation(usage) + (1 - allocate) * content)
        for j in range(n):
            for b in range(w):
                memory[j, b] = memory[j, b] * (1 - write[j] * erase[b]) + write[j] * vector[b]
        for a in range(n):
            for b in range(n):
                link[a, b] = 0 if a == b else (1 - write[a] - write[b]) * link[a, b] + write[a] * precedence[b]
        precedence = (1 - write.sum()) * precedence + write
        for k in range(r):
            backward, forward = link.T @ reads[k], link @ reads[k]
            mode = softmax(modes[k])
            content = paper_content(memory, read_keys[k], read_strengths[k])
            reads[k] = mode[0] * backward + mode[1] * content + mode[2] * forward
            words[k] = sum(reads[k, j] * memory[j] for j in range(n))
        ys.append(params["output.weight"] @ np.concatenate([h, words.ravel()]) + params["output.bias"])
        watched.append((write.copy(), reads.copy()))
    return np.array(ys), (h, c, memory, usage, link, precedence, write, reads, words.ravel()), watched


def make(scale=0.5, **kwargs):
    torch.manual_seed(0)
    core = DNCCore(INPUT, SIZE, **kwargs).double()
    with torch.no_grad():
        for p in core.parameters():
            p.add_(scale * torch.randn_like(p))
    return core


@pytest.mark.parametrize("num_reads", [1, 3])
def test_against_the_equations_of_the_paper(num_reads):
    core = make(scale=1.5, num_slots=5, slot_size=3, num_reads=num_reads)
    x = 2 * torch.randn(T, B, INPUT, dtype=torch.float64)
    with torch.no_grad():
        y, state = core.scan(x, core.initial_state(B))
        watched, running = [], core.initial_state(B)
        for t in range(T):
            watched.append(core.watch(x[t], running))
            running = core.step(x[t], running)[1]
    names = ["read"] if num_reads == 1 else ["read 1", "read 2", "read 3"]
    for b in range(B):
        expected, expected_state, expected_watched = paper_run(core, x[:, b].numpy())
        np.testing.assert_allclose(y[:, b], expected, atol=1e-12, rtol=1e-9)
        for part, expected_part in zip(state, expected_state, strict=True):
            np.testing.assert_allclose(part[b], expected_part, atol=1e-12, rtol=1e-9)
        for seen, (write, reads) in zip(watched, expected_watched, strict=True):
            assert list(seen) == ["write", *names]
            np.testing.assert_allclose(seen["write"][b], write, atol=1e-12, rtol=1e-9)
            np.testing.assert_allclose(torch.stack([seen[name][b] for name in names]), reads, atol=1e-12, rtol=1e-9)


def test_allocation_by_hand():
    # Least used is slot 1: 1 - 0.2. Then slot 0: (1 - 0.5) * 0.2. Slot 2 is full. Then ties: the first one takes all.
    weights = allocation_weights(torch.tensor([[0.5, 0.2, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64))
    np.testing.assert_allclose(weights, [[0.1, 0.8, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], atol=3e-6)


def test_gradient_of_allocation_passes_through_the_sorted_values():
    usage = torch.tensor([[0.5, 0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(allocation_weights, usage)
    (gradient,) = torch.autograd.grad(allocation_weights(usage)[0, 0], usage)  # of (1 - u0) u1
    np.testing.assert_allclose(gradient, [[-0.2, 0.5, 0.0]], atol=3e-6)
    # Products of many nearly empty slots underflow, and must do so without harm.
    usage = torch.zeros(1, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(allocation_weights(usage).square().sum(), usage)
    assert gradient.isfinite().all()


def test_links_retrace_the_order_of_writing():
    link, precedence = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    for slot in (2, 0, 3):
        write = torch.eye(4)[slot][None]
        link = update_links(link, precedence, write)
        precedence = write  # what (1 - sum(w)) p + w is for a full write
    expected = torch.zeros(4, 4)
    expected[0, 2] = expected[3, 0] = 1.0
    assert torch.equal(link[0], expected)
    assert torch.equal(link[0] @ torch.eye(4)[2], torch.eye(4)[0])  # forward from slot 2: slot 0
    assert torch.equal(link[0].T @ torch.eye(4)[3], torch.eye(4)[0])  # backward from slot 3: slot 0


def test_content_by_hand():
    slots = torch.tensor([[[3.0, 0.0], [0.0, 5.0], [0.0, 0.0]]], dtype=torch.float64)
    weights = content_weights(slots, torch.tensor([[[2.0, 0.0]]]).double(), torch.tensor([[np.log(4.0)]]))
    np.testing.assert_allclose(weights[0, 0], [4 / 6, 1 / 6, 1 / 6], atol=1e-6)  # cosines 1, 0 and, of nothing, 0


def test_weights_stay_weights():
    core = make(scale=2.0, num_slots=6, slot_size=4, num_reads=2)
    state = core.initial_state(B)
    with torch.no_grad():
        for x in 3 * torch.randn(100, B, INPUT, dtype=torch.float64):
            _, state = core.step(x, state)
            _, _, _, usage, link, precedence, write, read, _ = state
            for weights in (usage, link, precedence, write, read):
                assert (weights >= -1e-9).all()
            assert (usage <= 1 + 1e-9).all()
            for weights in (precedence, write, read, link, link.mT):
                assert (weights.sum(-1) <= 1 + 1e-9).all()
            assert not link.diagonal(dim1=1, dim2=2).any()


def test_gradient_reaches_every_parameter():
    core = make(scale=0.0)
    y, _ = core.scan(torch.randn(T, B, INPUT, dtype=torch.float64), core.initial_state(B))
    y.square().sum().backward()
    for name, p in core.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["num_slots", "slot_size", "num_reads"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4"])
def test_wrong_arguments(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be an integer of at least 1, got {value!r}$"):
        DNCCore(INPUT, SIZE, **{name: value})


def test_wrong_span():
    with pytest.raises(ValueError, match=r"^span must be at least 2 steps, and finite, got 1$"):
        DNCCore(INPUT, SIZE, span=1)

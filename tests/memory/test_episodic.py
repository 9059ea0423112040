"""The episodic LSTM against a slow loop with a list for a dictionary, and against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from metarl.memory import clear
from metarl.memory.episodic import EpisodicLSTMCore

T, B, INPUT, SIZE = 30, 4, 7, 5


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def paper_run(core, xs, resets):
    """One row, `xs [T, INPUT]`: outputs, the entries read with their weights, and the dictionary at the end."""
    params = {name: p.detach().numpy() for name, p in core.named_parameters()}
    h, c = np.zeros(SIZE), np.zeros(SIZE)
    entries, event = [], None  # dicts of place, key, value, time
    ys, reads, writes = [], [], []

    def alike(a, b):
        return 1 - ((a - b) ** 2).sum() / 2

    def file_away(time):
        same = [e for e in entries if alike(e["key"], event) >= core.same]
        if same:
            entry = max(same, key=lambda e: alike(e["key"], event))
        elif len(entries) < core.num_slots:
            entry = {"place": len(entries)}
            entries.append(entry)
        else:
            entry = min(entries, key=lambda e: e["time"])
        entry.update(key=event, value=np.tanh(c), time=time)
        return entry["place"]

    for t, x in enumerate(xs):
        if resets[t]:
            if core.outlives_reset:
                if event is not None:
                    file_away(t - 0.5)
            else:
                entries = []
            h, c, event = np.zeros(SIZE), np.zeros(SIZE), None
        key = x[core.context] if core.context else params["to_key.weight"] @ x
        key = key / np.sqrt(key @ key + 1e-6)
        written = None
        if event is not None and alike(key, event) < core.same:
            written, event = file_away(t), None
        event = key if event is None else event

        nearest = sorted(entries, key=lambda e: -alike(e["key"], key))[: core.neighbours]
        if core.sharpness is None:
            kernel = [1 / (((e["key"] - key) ** 2).sum() + 1e-3) for e in nearest]
        else:
            kernel = [np.exp(np.log1p(np.exp(params["sharpness"])) * alike(e["key"], key)) for e in nearest]
        weights, reinstated = np.zeros(core.num_slots), np.zeros(SIZE)
        for k, e in zip(kernel, nearest, strict=True):
            weights[e["place"]] = k / sum(kernel)
            reinstated += k / sum(kernel) * e["value"]

        z = params["from_input.weight"] @ x + params["from_input.bias"] + params["from_output.weight"] @ h
        i, f, r, o, g = z.reshape(5, SIZE)
        c = sigmoid(i) * np.tanh(g) + sigmoid(f) * c + sigmoid(r) * reinstated
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
        reads.append(weights)
        writes.append([float(place == written) for place in range(core.num_slots)])
    return np.array(ys), np.array(reads), np.array(writes), (h, c, entries)


def make(noise=0.5, **kwargs):
    torch.manual_seed(0)
    core = EpisodicLSTMCore(INPUT, SIZE, **kwargs).double()
    with torch.no_grad():
        for p in core.parameters():
            p.add_(noise * torch.randn_like(p))
    return core


def data():
    """Inputs whose first three features are one of six barcodes, which stay for a few steps and return; and resets."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(6, 3))
    x = rng.normal(size=(T, B, INPUT))
    code = np.zeros(B, int)
    for t in range(T):
        code = np.where(rng.random(B) < 0.6, rng.integers(6, size=B), code)
        x[t, :, :3] = codes[code]
    reset = rng.random((T, B)) < 0.1
    reset[:, 0] = False
    return torch.as_tensor(x), torch.as_tensor(reset)


@pytest.mark.parametrize("outlives_reset", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_slots": 4, "context_slice": (0, 3)},
        {"num_slots": 4, "context_slice": [0, 3], "kernel": "cosine", "neighbours": 2},
        {"num_slots": 8, "key_size": 3, "neighbours": 3},
        {"num_slots": 3, "key_size": 2, "kernel": "cosine", "same": 0.5},
    ],
)
def test_against_a_list_of_entries(kwargs, outlives_reset):
    core = make(**kwargs, outlives_reset=outlives_reset)
    x, reset = data()
    with torch.no_grad():
        y, state = core.scan(x, core.initial_state(B), reset)
        running, reads, writes = core.initial_state(B), [], []
        for t in range(T):
            running = core.restart(running, reset[t])
            seen = core.watch(x[t], running)
            reads.append(seen["read"])
            writes.append(seen["write"])
            running = core.step(x[t], running)[1]
    for part, stepped in zip(state, running, strict=True):
        torch.testing.assert_close(part, stepped, atol=1e-12, rtol=1e-9)
    overwritten = 0
    for b in range(B):
        expected, expected_reads, expected_writes, (h, c, entries) = paper_run(core, x[:, b].numpy(), reset[:, b])
        np.testing.assert_allclose(y[:, b], expected, atol=1e-12, rtol=1e-9)
        np.testing.assert_allclose(torch.stack(reads)[:, b], expected_reads, atol=1e-12, rtol=1e-9)
        np.testing.assert_array_equal(torch.stack(writes)[:, b], expected_writes)
        np.testing.assert_allclose(state[0][b], h, atol=1e-12, rtol=1e-9)
        np.testing.assert_allclose(state[1][b], c, atol=1e-12, rtol=1e-9)
        assert int((state[6][b] > 0).sum()) == len(entries)
        for entry in entries:
            np.testing.assert_allclose(state[4][b, entry["place"]], entry["key"], atol=1e-12, rtol=1e-9)
            np.testing.assert_allclose(state[5][b, entry["place"]], entry["value"], atol=1e-12, rtol=1e-9)
        overwritten += len(entries) < expected_writes.sum()
    assert overwritten  # else too little happened


def by_hand(**kwargs):
    """One unit; gates i, f, o are a half, r is one. Features are a barcode (two) and what goes into the cell."""
    core = EpisodicLSTMCore(3, 1, num_slots=2, context_slice=(0, 2), **kwargs).double()
    with torch.no_grad():
        for p in core.parameters():
            p.zero_()
        core.from_input.weight[4, 2] = 1.0
        core.from_input.bias[2] = 1e4
    return core


A, A_ONE, OTHER = [1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]


@torch.no_grad()
def test_by_hand():
    core = by_hand()
    x = torch.tensor([[A_ONE], [OTHER], [A]], dtype=torch.float64)
    _, state = core.scan(x[:2], core.initial_state(1))
    first = np.tanh(1.0) / 2  # written under A by the step that sees OTHER, which reads it too: there is nothing else
    second = first / 2 + np.tanh(first)
    np.testing.assert_allclose(state[1], [[second]], rtol=1e-9)
    np.testing.assert_allclose(state[5][0], [[np.tanh(first)], [0.0]], rtol=1e-9)
    np.testing.assert_array_equal(state[6], [[1.0, 0.0]])
    _, state = core.step(x[2], state)
    # A returns: kernel 1000 for A's entry, 1 / 2.001 for the other one, written just now.
    weight = 1000 / (1000 + 1 / 2.001)
    third = second / 2 + weight * np.tanh(first) + (1 - weight) * np.tanh(second)
    np.testing.assert_allclose(state[1], [[third]], rtol=1e-6)
    np.testing.assert_array_equal(state[6], [[1.0, 2.0]])


@torch.no_grad()
@pytest.mark.parametrize("outlives_reset", [False, True])
def test_what_a_reset_leaves(outlives_reset):
    core = by_hand(outlives_reset=outlives_reset)
    x = torch.tensor([[A_ONE], [A]], dtype=torch.float64)
    _, state = core.scan(x, core.initial_state(1), torch.tensor([[True], [True]]))
    # With nothing else in mind, the cell is what the dictionary gives back.
    expected = np.tanh(np.tanh(1.0) / 2) if outlives_reset else 0.0
    np.testing.assert_allclose(state[1], [[expected]], rtol=1e-9)
    again = core.restart(core.restart(state, torch.tensor([True])), torch.tensor([True]))  # the second finds no event
    assert again[6].max() == (2.0 if outlives_reset else 0.0)
    assert not any(part.any() for part in again[:4])


@torch.no_grad()
def test_restart_clears_where_nothing_outlives():
    core = make()
    _, state = core.scan(data()[0], core.initial_state(B))
    rows = torch.tensor([True, False, True, False])
    for part, expected in zip(core.restart(state, rows), clear(state, core.initial_state(B), rows), strict=True):
        assert torch.equal(part, expected)


@torch.no_grad()
def test_a_context_that_stays_writes_nothing():
    core = make(context_slice=(0, 3))
    x, _ = data()
    x[:, :, :3] = torch.tensor([0.3, -0.2, 1.0])
    _, state = core.scan(x, core.initial_state(B))
    assert not state[6].any()
    assert not core.watch(x[0], state)["write"].any()
    assert not core.watch(x[0], state)["read"].any()


@torch.no_grad()
def test_a_barcode_with_one_bit_more_is_another():
    core = EpisodicLSTMCore(10, 4, num_slots=8, context_slice=[0, 10])
    one, more = torch.tensor([[1.0] * 5 + [0.0] * 5]), torch.tensor([[1.0] * 6 + [0.0] * 4])
    state, entries = core.initial_state(1), []
    for barcode in (one, one, more, more, one, one):
        _, state = core.step(barcode, state)
        entries.append(int((state[-1] > 0).sum()))
    assert entries == [0, 0, 1, 1, 2, 2]


def test_gradient_of_a_return_reaches_the_first_visit():
    core = by_hand()
    x = torch.tensor([[A_ONE], [OTHER], [OTHER], [A]], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        core.from_input.bias[1] = -1e4  # nothing is remembered but through the dictionary
        core.from_input.weight[4, 0] = 0.1
    y, _ = core.scan(x, core.initial_state(1))
    (gradient,) = torch.autograd.grad(y[-1].sum(), x)
    assert gradient[0, 0, 2] > 0.05
    assert torch.autograd.gradcheck(lambda v: core.scan(v, core.initial_state(1))[0][-1], x)


@pytest.mark.parametrize("kernel", ["inverse", "cosine"])
def test_gradient_reaches_every_parameter(kernel):
    core = make(noise=0.0, kernel=kernel)
    y, _ = core.scan(data()[0], core.initial_state(B))
    y.square().sum().backward()
    for name, p in core.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["inverse", "cosine"])
def test_no_nan_in_long_use(kernel):
    core = make(kernel=kernel, num_slots=8).float()
    state = core.initial_state(B)
    for t, x in enumerate(10 * torch.randn(2000, B, INPUT)):
        if t % 500 == 499:
            total = core.watch(x, state)["read"].sum(-1)
            torch.testing.assert_close(total, torch.ones(B))
        y, state = core.step(x, state)
    assert all(part.isfinite().all() for part in (y, *state))
    assert all(part.dtype == torch.float32 for part in (y, *state))


@torch.no_grad()
def test_what_is_read_and_written_again_does_not_explode():
    core = by_hand()
    core.from_input.bias[:] = torch.tensor([1e4, 1e4, 1e4, 1e4, 1.0])  # all gates open
    x = torch.tensor([[A], [OTHER]], dtype=torch.float64).repeat(500, 1, 1)
    _, state = core.scan(x, core.initial_state(1))
    assert state[1].abs().max() <= 2 * 1000  # at most one from the input and one from the dictionary per step


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"num_slots": 2.0}, "num_slots must be an integer of at least 1, got 2.0"),
        ({"key_size": True}, "key_size must be an integer of at least 1, got True"),
        ({"neighbours": 33}, "neighbours must be an integer from 1 to 32, got 33"),
        ({"kernel": "dot"}, "kernel must be one of inverse, cosine, got 'dot'"),
        ({"same": 0}, "same must be above 0 and at most 1, got 0"),
        ({"same": float("nan")}, "same must be above 0 and at most 1, got nan"),
        ({"outlives_reset": 1}, "outlives_reset must be true or false, got 1"),
        ({"span": 1}, "span must be at least 2 steps, and finite, got 1"),
        *(
            ({"context_slice": ends}, f"context_slice must be (start, stop) with 0 <= start < stop <= 7, got {ends!r}")
            for ends in [(0, 8), (3, 3), (-1, 2), (0.0, 2), (1,), 5, "ab"]
        ),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        EpisodicLSTMCore(INPUT, SIZE, **kwargs)
    assert str(error.value) == message


@torch.no_grad()
def test_the_order_of_writing_is_counted_exactly_in_bfloat16():
    core = EpisodicLSTMCore(4, 3, num_slots=4, context_slice=(0, 4)).bfloat16()
    state = core.initial_state(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        _, state = core.step(torch.randn(1, 4, generator=generator).bfloat16(), state)
    assert state[-1].dtype == torch.float32
    assert sorted(state[-1][0].tolist()) == [396.0, 397.0, 398.0, 399.0]

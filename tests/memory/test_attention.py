"""Sliding-window attention against masks drawn by hand and a slow loop."""

import numpy as np
import pytest
import torch

from metarl.memory import attention
from metarl.memory.attention import attend, extend, keep, plan, settle, steps_before

X, _ = True, False  # sees, does not see


def test_earlier_steps_of_a_trial_by_hand():
    count = torch.tensor([[2.0], [0.0], [5.0]])
    reset = torch.zeros(4, 3, dtype=torch.bool)
    reset[2, 0] = reset[0, 2] = reset[1, 2] = True
    assert steps_before(count, 4, reset).tolist() == [[2, 3, 0, 1], [0, 1, 2, 3], [0, 0, 1, 2]]
    assert steps_before(count, 2, None).tolist() == [[2, 3], [0, 1], [5, 6]]


def test_mask_by_hand():
    # Two cached keys, four steps, a window of three; the cache of the first row is half filled, the second row is reset
    # before its third step.
    before = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 0.0, 1.0]])
    (span,) = plan(before, 2, 3)
    assert (span.queries, span.keys) == (slice(0, 4), slice(0, 6))
    expected = [
        [[_, X, X, _, _, _], [_, X, X, X, _, _], [_, _, X, X, X, _], [_, _, _, X, X, X]],
        [[X, X, X, _, _, _], [_, X, X, X, _, _], [_, _, _, _, X, _], [_, _, _, _, X, X]],
    ]
    assert (span.bias == 0).squeeze(1).tolist() == expected
    assert torch.isneginf(span.bias[span.bias != 0]).all()


def test_spans_leave_out_keys_that_nobody_sees(monkeypatch):
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 3)
    spans = plan(steps_before(torch.zeros(1, 1), 8, None), 0, 3)
    assert [(s.queries, s.keys) for s in spans] == [
        (slice(0, 3), slice(0, 3)),
        (slice(3, 6), slice(1, 6)),
        (slice(6, 8), slice(4, 8)),
    ]


def loop(q, k, v, before, cached, window, q_age, k_age, v_age):
    """The same by loops over rows, heads, queries and ages."""
    read = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, h, t in np.ndindex(*q.shape[:3]):
        ages = range(int(min(before[b, t], window - 1)) + 1)
        scores = [q[b, h, t] @ k[b, h, cached + t - a] + q_age[b, h, t] @ k_age[h, window - 1 - a] for a in ages]
        weights = np.exp(scores) / np.exp(scores).sum()
        for a, weight in zip(ages, weights, strict=True):
            read[b, h, t] += weight * (v[b, h, cached + t - a] + v_age[h, window - 1 - a])
    return read


@pytest.mark.parametrize("at_once", [3, 128])
@pytest.mark.parametrize(("cached", "window", "steps"), [(0, 4, 7), (3, 4, 7), (2, 4, 1), (5, 6, 2), (0, 20, 7), (3, 4, 3)])
def test_attention_is_that_of_a_slow_loop(monkeypatch, at_once, cached, window, steps):
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", at_once)
    rows, heads, size, values = 3, 2, 4, 5
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reset = torch.rand(steps, rows, generator=generator) < 0.2
    before = steps_before(torch.tensor([[0.0], [cached / 2], [cached]], dtype=torch.float64).floor(), steps, reset)
    tensors = [
        draw(rows, heads, steps, size),
        draw(rows, heads, cached + steps, size),
        draw(rows, heads, cached + steps, values),
        draw(rows, heads, steps, size),
        draw(heads, window, size),
        draw(heads, window, values),
    ]
    spans = plan(before, cached, window)
    q, k, v, *ages = tensors
    read, weights = attend(q, k, v, spans, *ages)
    arrays = [x.numpy() for x in tensors]
    np.testing.assert_allclose(read, loop(*arrays[:3], before.numpy(), cached, window, *arrays[3:]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    for x in tensors:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k, v, *ages: attend(q, k, v, spans, *ages)[0], tensors, fast_mode=True)


def test_caches_by_hand():
    cache = torch.tensor([[[0.0], [1.0], [2.0]]])
    new = torch.tensor([[[3.0], [4.0]]])
    assert extend(cache, new).flatten().tolist() == [0, 1, 2, 3, 4]
    assert extend(cache, new, 2).flatten().tolist() == [1, 2, 3, 4]
    assert extend(cache, new, 0).flatten().tolist() == [3, 4]
    assert keep(extend(cache, new), 3, None).flatten().tolist() == [2, 3, 4]
    assert keep(extend(cache, new), 3, torch.tensor([[2.0]])).flatten().tolist() == [0, 3, 4]
    assert keep(new, 3, None).flatten().tolist() == [0, 3, 4]
    heads = keep(torch.ones(2, 4, 5, 1), 3, torch.tensor([[1.0], [3.0]]))
    assert heads[..., 0].sum((1, 2)).tolist() == [4, 12]


def test_resets_before_the_first_step_are_done_at_once():
    state, fresh = (torch.ones(2, 3),), (torch.zeros(2, 3),)
    assert settle(state, fresh, None) == (state, None)
    reset = torch.tensor([[True, False], [False, False]])
    settled, left = settle(state, fresh, reset)
    assert settled[0][:, 0].tolist() == [0, 1]
    assert left is None
    assert settle(state, fresh, reset.flip(0))[1] is not None

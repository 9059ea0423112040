import pytest
import torch

from metarl.memory import MinGRUCore
from metarl.memory.min_gru import LinearRecurrence


def test_a_step_by_hand():
    core = MinGRUCore(1, 1)
    with torch.no_grad():
        core.gates.weight.copy_(torch.tensor([[0.0], [1.0]]))  # the update gate does not see x
        core.gates.bias.copy_(torch.tensor([-1.0986123, 0.0]))  # sigmoid(-log 3) = 1/4
    y, (h,) = core.step(torch.tensor([[0.5493061]]), (torch.tensor([[0.8]]),))  # tanh(log(3) / 2) = 1/2
    assert y.item() == h.item() == pytest.approx(0.75 * 0.8 + 0.25 * 0.5, abs=1e-6)


def test_the_recurrence_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    start = torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    h, rows = start, []
    for t in range(6):
        h = a[t] * h + b[t]
        rows.append(h)
    torch.testing.assert_close(LinearRecurrence.apply(a, b, start), torch.stack(rows))
    assert torch.autograd.gradcheck(LinearRecurrence.apply, (a, b, start))


def test_units_remember_for_as_long_as_their_span_says():
    torch.manual_seed(0)
    core = MinGRUCore(4, 2000, span=50.0)
    keep, _ = core._terms(torch.zeros(1, 4))
    steps = 1 / (1 - keep)  # 1 - z = u / (1 + u), so that 1 / z = 1 + u
    assert steps.min() >= 2
    assert steps.max() <= 50
    assert steps.mean().item() == pytest.approx(26, abs=1)


def test_states_stay_within_one():
    core = MinGRUCore(3, 8)
    y, _ = core.scan(100 * torch.randn(2000, 2, 3), core.initial_state(2))
    assert y.abs().max() <= 1 + 1e-5  # rounding

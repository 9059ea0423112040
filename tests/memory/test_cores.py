"""Every core is held to one protocol: `scan` equals `step`, resets are fresh starts, rows do not touch each other."""

import pytest
import torch

from metarl.memory import CORES, clear
from metarl.plain import check_count

T, B, INPUT, SIZE = 13, 70, 5, 8  # B spans several chunks of rows

cores = pytest.mark.parametrize("name", CORES)


def make(name, **kwargs):
    torch.manual_seed(0)
    core = CORES[name](INPUT, SIZE, **kwargs)
    with torch.no_grad():
        for p in core.parameters():  # biases away from zero: the reset token must cancel them
            p.add_(0.3 * torch.randn_like(p))
    return core


def data(resets):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, INPUT, generator=generator)
    if resets == "none":
        return x, torch.zeros(T, B, dtype=torch.bool)
    if resets == "start":
        reset = torch.zeros(T, B, dtype=torch.bool)
        reset[0] = True
        return x, reset
    reset = torch.rand(T, B, generator=generator) < 0.25
    reset[:, 3] = True  # every step
    reset[:, 4] = False  # never
    reset[:, 32:64] = False  # a whole chunk without
    return x, reset


@torch.no_grad()
def random_state(core, seed=2, scale=1.0):
    """A state that the core can be in: after a few steps."""
    dtype = next((p.dtype for p in core.parameters()), torch.float32)
    x = scale * torch.randn(4, B, INPUT, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return core.scan(x, core.initial_state(B))[1]


def step_by_step(core, x, state, reset):
    ys = []
    for t in range(len(x)):
        state = clear(state, core.initial_state(B), reset[t])
        y, state = core.step(x[t], state)
        ys.append(y)
    return torch.stack(ys), state


@cores
@pytest.mark.parametrize("resets", ["none", "start", "middle"])
def test_scan_equals_step(name, resets):
    core = make(name)
    x, reset = data(resets)
    y, state = core.scan(x, random_state(core), reset)
    y_twin, state_twin = step_by_step(core, x, random_state(core), reset)
    torch.testing.assert_close(y, y_twin, atol=1e-6, rtol=1e-5)
    for s, s_twin in zip(state, state_twin, strict=True):
        torch.testing.assert_close(s, s_twin, atol=1e-6, rtol=1e-5)


@cores
def test_gradients_equal_those_of_stepping(name):
    core = make(name).double()
    x, reset = data("middle")
    x = x.double().requires_grad_()
    weight = torch.randn(T, B, SIZE, dtype=torch.float64)
    gradients = []
    for run in (core.scan, lambda *a: step_by_step(core, *a)):
        loss = (run(x, random_state(core), reset)[0] * weight).sum()
        gradients.append(torch.autograd.grad(loss, [x, *core.parameters()]))
    for fused, stepped in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, stepped, atol=1e-9, rtol=1e-9)


@cores
def test_gradients_against_finite_differences(name):
    core = make(name).double()
    x, reset = data("middle")
    x, reset = x[:5, :3].double().requires_grad_(), reset[:5, :3]
    assert torch.autograd.gradcheck(lambda v: core.scan(v, core.initial_state(3), reset)[0], (x,))


@cores
def test_a_reset_is_a_fresh_start(name):
    core = make(name)
    x, _ = data("none")
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[6] = True
    y, _ = core.scan(x, random_state(core), reset)
    fresh, _ = core.scan(x[6:], core.initial_state(B))
    torch.testing.assert_close(y[6:], fresh, atol=1e-6, rtol=1e-5)


@cores
def test_rows_do_not_touch_each_other(name):
    core = make(name)
    x, reset = data("middle")
    y, _ = core.scan(x, random_state(core), reset)
    x[:, 1:] = 100.0
    changed, _ = core.scan(x, random_state(core), reset)
    torch.testing.assert_close(y[:, 0], changed[:, 0], atol=0, rtol=0)


@pytest.mark.parametrize(("name", "kwargs"), [*((name, {}) for name in CORES), ("lstm", {"bfloat16": True})])
def test_a_reset_token_leaves_no_trace_of_the_past(name, kwargs):
    core = make(name, **kwargs)
    x, _ = data("none")
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[6] = True
    y, _ = core.scan(x, random_state(core), reset)
    x[:6] *= -50.0
    other, _ = core.scan(x, random_state(core, seed=3, scale=9.0), reset)
    assert torch.equal(y[6:], other[6:])


def test_half_precision_is_the_same_up_to_rounding():
    # A number in bfloat16 is rounded by up to 0.4 %; a state kept in it would add up to several per cent here.
    results = []
    for bfloat16 in (False, True):
        core = make("lstm", bfloat16=bfloat16)
        x, reset = data("middle")
        x.requires_grad_()
        y, state = core.scan(x, core.initial_state(B), reset)
        assert all(part.dtype == torch.float32 for part in (y, *state))
        weight = torch.randn(T, B, SIZE, generator=torch.Generator().manual_seed(3))
        results.append((y, *state, *torch.autograd.grad((y * weight).sum(), [x, *core.parameters()])))
    for full, half in zip(*results, strict=True):
        assert torch.linalg.vector_norm(half - full) < 0.02 * torch.linalg.vector_norm(full)


@cores
def test_state_can_be_saved_and_cut(name, tmp_path):
    core = make(name)
    x, reset = data("middle")
    y, end = core.scan(x, core.initial_state(B), reset)
    _, middle = core.scan(x[:7], core.initial_state(B), reset[:7])
    torch.save(middle, tmp_path / "state.pt")
    middle = torch.load(tmp_path / "state.pt", weights_only=True)
    rest, rest_end = core.scan(x[7:], middle, reset[7:])
    torch.testing.assert_close(rest, y[7:], atol=1e-6, rtol=1e-5)
    for s, s_twin in zip(end, rest_end, strict=True):
        torch.testing.assert_close(s, s_twin, atol=1e-6, rtol=1e-5)


@cores
def test_states_can_be_moved_and_batched(name):
    core = make(name)
    x, reset = data("middle")
    y, end = core.scan(x, core.initial_state(B), reset)
    young, old = core.scan(x[:3, 30:], core.initial_state(40))[1], core.scan(x[:7, :30], core.initial_state(30))[1]
    both = tuple(torch.cat(parts) for parts in zip(old, young, strict=True))  # of different ages
    apart = [core.step(x[7, :30], old)[0], core.step(x[7, 30:], young)[0]]
    torch.testing.assert_close(core.step(x[7], both)[0], torch.cat(apart), atol=1e-6, rtol=1e-5)
    rows = torch.tensor([9, 3, 60])
    torch.testing.assert_close(core.step(x[0, rows], tuple(part[rows] for part in end))[0], core.step(x[0], end)[0][rows])
    double = core.double().scan(x.double(), tuple(part.double() for part in core.initial_state(B)), reset)[0]
    torch.testing.assert_close(double.float(), y, atol=1e-4, rtol=1e-4)
    assert all(part.device.type == "meta" for part in core.to("meta").initial_state(2))


@pytest.mark.parametrize("name", ["snail", "gtrxl", "key_value"])
@torch.no_grad()
def test_steps_are_counted_exactly_in_bfloat16(name):
    core = make(name).bfloat16()
    state = core.initial_state(2)
    for x in torch.randn(300, 2, INPUT, generator=torch.Generator().manual_seed(0)).bfloat16():
        y, state = core.step(x, state)
    assert y.dtype == torch.bfloat16
    window = core.places
    assert state[0].dtype == torch.float32
    assert (state[0] == min(300, window)).all()


@cores
def test_no_nan_in_a_hundred_thousand_steps(name):
    core = make(name)
    state = core.initial_state(B)
    rows = torch.zeros(100, B, dtype=torch.bool)
    for x in 5 * torch.randn(100_000 // (100 * B) + 1, 100, B, INPUT, generator=torch.Generator().manual_seed(4)):
        y, state = core.scan(x, tuple(part.detach() for part in state), rows)  # one long trial, learned from in stretches
        assert all(part.isfinite().all() for part in (y, *state))
        core.zero_grad()
        y.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in core.parameters())


@pytest.mark.parametrize(
    "name", ["mann", pytest.param("ntm", marks=pytest.mark.slow), pytest.param("dnc", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it loads its compiler
def test_compiled_steps_give_the_same(name):
    results = []
    for compiled in (False, True):
        core = make(name, compiled=compiled)
        x, reset = data("middle")
        x.requires_grad_()
        y, _ = core.scan(x, core.initial_state(B), reset)  # slots that are used alike may trade places in the state
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *core.parameters()])))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def test_without_a_compiler_compiled_steps_still_act(monkeypatch):
    core = make("mann", compiled=True)
    x, reset = data("middle")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with torch.no_grad():
        y, _ = core.scan(x, core.initial_state(B), reset)
    torch.testing.assert_close(y, make("mann").scan(x, core.initial_state(B), reset)[0])
    with pytest.raises(
        ValueError, match=r"compiled needs a C\+\+ compiler: none of g\+\+, clang\+\+ and c\+\+ is installed"
    ):
        core.scan(x, core.initial_state(B), reset)


@pytest.mark.parametrize("value", [1, 0, -3, 9, 2.0, True, "4", None])
def test_counts_are_checked(value):
    with pytest.raises(ValueError, match=f"places must be an integer from 2 to 8, got {value!r}"):
        check_count("places", value, least=2, most=8)

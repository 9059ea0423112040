"""What every coordinatewise rule has to hold to, for the tests of each of them; all in double precision."""

import pytest
import torch
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from metarl.batched import of_task

TASKS, STEPS = 3, 5


def parameters(num_tasks=TASKS, seed=0):
    """`[N, ...]`: two tensors of one layer, and a number; 9 numbers in all."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"net.weight": (2, 3), "net.bias": (2,), "scale": ()}
    return {n: torch.randn(num_tasks, *s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def make(kind, rate=0.125, noise=0.1, seed=0, **options):
    """A rule for `parameters()`; what it learns is moved away from where it starts, by normal noise of this deviation."""
    torch.manual_seed(seed)
    rule = kind(of_task(parameters(), 0), rate, **options)
    with torch.no_grad():
        for value in rule.parameters():
            value += noise * torch.randn_like(value)
    return rule


def gradients(params, step):
    """Of `sum_i a_i (p_i - c_i)^2 / 2` with other `a > 0` and `c` for every task, and of a term that changes by step."""
    found, losses = {}, 0.0
    for name, value in params.items():
        count = torch.arange(value.numel(), dtype=torch.float64).view(value.shape)
        a, c, tilt = 1.5 + count.sin(), count.cos(), 0.3 * (count + step).sin()
        found[name] = a * (value - c) + tilt
        losses = losses + (0.5 * a * (value - c) ** 2 + tilt * value).reshape(len(value), -1).sum(1)
    return found, losses


def unroll(rule, params, steps=STEPS, state=None, first=0, known_losses=True, weights=None):
    """Parameters and state after so many steps, with derivatives through gradients and losses too."""
    state = rule.init(params) if state is None else state
    for step in range(first, first + steps):
        grads, losses = gradients(params, step)
        args = (grads, state, params, losses if known_losses else None)
        params, state = rule(*args) if weights is None else functional_call(rule, weights, args)
    return params, state


def outcome(params):
    return sum((value.sin() * (1.0 + number)).sum() for number, value in enumerate(params.values()))


def check_meta_gradient(rule, steps=STEPS, through_start=True):
    """Derivatives by all that is learned, and by the start, against central differences in random directions."""
    start = parameters()
    learned = dict(rule.named_parameters())
    variables = {**{f"start of {name}": value.requires_grad_() for name, value in start.items() if through_start}, **learned}
    assert variables

    def value():
        return outcome(unroll(rule, start, steps)[0])

    found = torch.autograd.grad(value(), list(variables.values()))
    generator = torch.Generator().manual_seed(1)
    for (name, variable), gradient in zip(variables.items(), found, strict=True):
        direction = torch.randn(variable.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1, -2, 1):
                variable += sign * 1e-6 * direction
                ends.append(value().item())
        expected = (ends[0] - ends[1]) / 2e-6
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-7), name
        assert abs(expected) > 1e-7, f"{name} makes no difference"


def check_weights_per_task(rule):
    """Weights `[N, ...]`, a set for every task, give each task what its set gives to all."""
    start = parameters()
    torch.manual_seed(2)
    weights = {n: p.detach() + 0.1 * torch.randn(TASKS, *p.shape, dtype=torch.float64) for n, p in rule.named_parameters()}
    assert weights
    together, state = unroll(rule, start, weights=weights)
    for task in range(TASKS):
        alone, own_state = unroll(rule, start, weights=of_task(weights, task))
        for name, value in alone.items():
            torch.testing.assert_close(together[name][task], value[task], rtol=1e-10, atol=1e-12)
            assert (together[name][task - 1] != value[task - 1]).all()
        for ours, theirs in zip(tree_leaves(state), tree_leaves(own_state), strict=True):
            torch.testing.assert_close(ours[task], theirs[task], rtol=1e-10, atol=1e-12)


def check_restarted_rows(rule):
    """A row of the state that is replaced by a fresh one goes on as a fresh start does, and the others as if nothing was."""
    params = parameters()
    with torch.no_grad():
        middle, state = unroll(rule, params)
        fresh = rule.init(params)
        assert [len(leaf) for leaf in tree_leaves(fresh)] == [TASKS] * len(tree_leaves(fresh))
        chosen = torch.tensor([False, True, False])

        def choose(yes, no):
            return torch.where(chosen.view(-1, *[1] * (yes.ndim - 1)), yes, no)

        mixed, _ = unroll(rule, tree_map(choose, params, middle), state=tree_map(choose, fresh, state), first=STEPS)
        anew, _ = unroll(rule, params, first=STEPS)
        onward, _ = unroll(rule, middle, state=state, first=STEPS)
    for name, value in mixed.items():
        torch.testing.assert_close(value, choose(anew[name], onward[name]), rtol=1e-12, atol=1e-14)
        assert (anew[name][1] != onward[name][1]).all()


def check_moves_follow_the_rate(kind, **options):
    """The first move is proportional to the rate."""
    params = parameters()
    with torch.no_grad():
        small, large = (unroll(make(kind, rate, **options), params, 1)[0] for rate in (0.125, 0.5))
    for name, value in params.items():
        torch.testing.assert_close(large[name] - value, 4.0 * (small[name] - value), rtol=1e-10, atol=1e-14)
        assert (small[name] != value).all()

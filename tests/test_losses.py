"""Losses against literal numbers."""

import math

import pytest
import torch

from metarl import losses


def ratio_of(*ratios):
    """New and old log-probabilities whose ratios these are."""
    old = torch.linspace(-3, -0.5, len(ratios), dtype=torch.float64)
    return (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(), old


def test_ppo_clip_by_hand():
    # With eps = .2, r A against clip(r) A. The bound binds only where the change would go on being rewarded.
    cases = [  # ratio, advantage, loss, derivative by the log-probability (-r A where it is not cut off)
        (1.5, 2.0, -2.4, 0.0),  # too far up and good: clipped at 1.2
        (0.5, 2.0, -1.0, -1.0),  # too far down and good: it may come back
        (1.5, -2.0, 3.0, 3.0),  # too far up and bad: it may come back
        (0.5, -2.0, 1.6, 0.0),  # too far down and bad: clipped at .8
        (1.1, 2.0, -2.2, -2.2),  # within bounds
        (0.9, -2.0, 1.8, 1.8),
        (1.0, 3.0, -3.0, -3.0),  # at the start of the first epoch: the policy gradient
        (1.0, 0.0, 0.0, 0.0),
    ]
    ratios, advantages, expected, slopes = zip(*cases, strict=True)
    log_probs, old = ratio_of(*ratios)
    loss = losses.ppo_clip(log_probs, old, torch.tensor(advantages, dtype=torch.float64), 0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor(expected, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64))
    assert gradient[0] == gradient[3] == 0


def test_ppo_clip_never_exceeds_the_plain_surrogate():
    generator = torch.Generator().manual_seed(0)
    log_probs, old, advantages = torch.randn(3, 1000, generator=generator)
    loss = losses.ppo_clip(log_probs, old, advantages, 0.2)
    plain = -(log_probs - old).exp() * advantages
    assert (loss >= plain).all()
    wide = losses.ppo_clip(log_probs, old, advantages, 1e6)
    torch.testing.assert_close(wide, plain)


def test_squared_error_by_hand():
    values = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    loss = losses.squared_error(values, torch.tensor([4.0, -2.0, 0.0]))
    torch.testing.assert_close(loss.detach(), torch.tensor([4.5, 0.0, 0.125]))
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([-3.0, 0.0, 0.5]))


def test_approximate_kl_by_hand():
    log_probs, old = ratio_of(1.0, math.e, 1 / math.e, 2.0)
    kl = losses.approximate_kl(log_probs, old)
    # (r - 1) - log r
    torch.testing.assert_close(kl, torch.tensor([0.0, math.e - 2, 1 / math.e, 1 - math.log(2)], dtype=torch.float64))


def test_approximate_kl_is_the_divergence_in_the_mean():
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    new = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    estimate = (old * losses.approximate_kl(new.log(), old.log())).sum()  # the mean over samples of old, exactly
    torch.testing.assert_close(estimate, (old * (old / new).log()).sum())


def test_approximate_kl_keeps_small_differences():
    small = 1e-4
    kl = losses.approximate_kl(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0 - small, -1.0 + small]))
    torch.testing.assert_close(kl, torch.full((2,), small**2 / 2), rtol=0.01, atol=0)
    generator = torch.Generator().manual_seed(0)
    assert (losses.approximate_kl(*torch.randn(2, 10_000, generator=generator)) >= 0).all()


def test_policy_gradient_by_hand():
    log_probs = torch.tensor([-0.5, -2.0, -1.0], dtype=torch.float64, requires_grad=True)
    loss = losses.policy_gradient(log_probs, torch.tensor([3.0, -1.0, 0.0], dtype=torch.float64))
    assert loss.tolist() == [1.5, -2, 0]
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert gradient.tolist() == [-3, 1, 0]


def test_likelihood_ratio_by_hand():
    log_probs, old = ratio_of(1.0, 2.0, 0.5, 4.0)
    advantages = torch.tensor([3.0, -1.0, 2.0, 0.0], dtype=torch.float64)
    loss = losses.likelihood_ratio(log_probs, old, advantages)
    expected = torch.tensor([-3.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(loss.detach(), expected)
    (first,) = torch.autograd.grad(loss.sum(), log_probs, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), log_probs)  # an exponential is its own derivative
    torch.testing.assert_close(first.detach(), expected)
    torch.testing.assert_close(second, expected)


# Second derivatives by two of an episode's log-probabilities: what the LATER of the two actions was worth.
EPISODES = [  # numbers of the episodes, and the Hessian's negative for advantages 1, 2, ...
    ([1], [[1]]),
    ([1, 1, 1], [[1, 2, 3], [2, 2, 3], [3, 3, 3]]),
    ([0, 1, 2], [[1, 0, 0], [0, 2, 0], [0, 0, 3]]),
    ([1, 1, 2, 2, 2, 5], None),
]


@pytest.mark.parametrize(("episode", "expected"), EPISODES)
def test_dice_by_hand(episode, expected):
    steps = range(len(episode))
    if expected is None:
        expected = [[(max(s, t) + 1) * (episode[s] == episode[t]) for t in steps] for s in steps]
    episode, advantages = torch.tensor(episode), torch.arange(1.0, len(episode) + 1, dtype=torch.float64)
    start = torch.linspace(-3, -0.1, len(episode), dtype=torch.float64)
    assert losses.dice(start, advantages, episode).tolist() == [0.0] * len(episode)
    first = torch.autograd.functional.jacobian(lambda x: losses.dice(x, advantages, episode), start)
    torch.testing.assert_close(first, -torch.diag(advantages))  # the policy gradient, step by step
    total = lambda x: losses.dice(x, advantages, episode).sum()  # noqa: E731
    second = torch.autograd.functional.hessian(total, start)
    torch.testing.assert_close(second, -torch.tensor(expected, dtype=torch.float64))


def test_third_derivatives_of_dice():
    advantages = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    log_probs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    episode = torch.tensor([1, 1, 2])

    def derivative(value, *by):
        for index in by:
            value = torch.autograd.grad(value, log_probs, create_graph=True)[0][index]
        return value.item()

    def total():
        return losses.dice(log_probs, advantages, episode).sum()

    assert derivative(total(), 0, 0, 0) == pytest.approx(-2)
    assert derivative(total(), 0, 1, 0) == pytest.approx(-3)
    assert derivative(total(), 1, 1, 1) == pytest.approx(-3)
    assert derivative(total(), 2, 2, 2) == pytest.approx(-5)
    assert derivative(total(), 0, 1, 2) == derivative(total(), 0, 0, 2) == 0


def test_rows_of_dice_are_apart():
    # Second derivatives of many rows at once, whose episodes end at different steps, equal those of each alone.
    generator = torch.Generator().manual_seed(0)
    log_probs, advantages = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    episode = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 2, 2, 3], [1, 2, 2, 2, 2]]).expand(2, 3, 5)

    def second(log_probs, advantages, episode):
        return torch.autograd.functional.hessian(lambda x: losses.dice(x, advantages, episode).sum(), log_probs)

    together = second(log_probs, advantages, episode)
    for i in range(2):
        for j in range(3):
            row = second(log_probs[i, j], advantages[i, j], episode[i, j])
            torch.testing.assert_close(together[i, j, :, i, j], row)
    others = together.clone()
    for i in range(2):
        for j in range(3):
            others[i, j, :, i, j] = 0
    assert not others.any()


def test_surrogates_share_their_first_derivative_where_the_policies_agree():
    generator = torch.Generator().manual_seed(0)
    log_probs, advantages = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    episode = torch.tensor([1, 1, 1, 2, 2, 3]).expand(4, 6)
    for surrogate in (
        lambda x: losses.policy_gradient(x, advantages),
        lambda x: losses.likelihood_ratio(x, log_probs, advantages),
        lambda x: losses.dice(x, advantages, episode),
        lambda x: losses.ppo_clip(x, log_probs, advantages, 0.2),
    ):
        (gradient,) = torch.autograd.functional.vjp(surrogate, log_probs, torch.ones_like(log_probs))[1:]
        torch.testing.assert_close(gradient, -advantages)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a, b: losses.ppo_clip(a, a, b, 0.2),
            r"'log_probs': \(4,\), 'old_log_probs': \(4,\), 'advantages': \(4, 1\)",
        ),
        (
            lambda a, b: losses.ppo_clip(a, b, a, 0.2),
            r"'log_probs': \(4,\), 'old_log_probs': \(4, 1\), 'advantages': \(4,\)",
        ),
        (lambda a, b: losses.squared_error(a, b), r"'values': \(4,\), 'targets': \(4, 1\)"),
        (lambda a, b: losses.approximate_kl(b, a), r"'log_probs': \(4, 1\), 'old_log_probs': \(4,\)"),
        (lambda a, b: losses.policy_gradient(a, b), r"'log_probs': \(4,\), 'advantages': \(4, 1\)"),
        (lambda a, b: losses.likelihood_ratio(a, b, a), r"'log_probs': \(4,\), 'old_log_probs': \(4, 1\), 'advan"),
        (lambda a, b: losses.likelihood_ratio(a, a, b), r"'log_probs': \(4,\), 'old_log_probs': \(4,\), 'advan"),
        (lambda a, b: losses.dice(a, b, a), r"'log_probs': \(4,\), 'advantages': \(4, 1\), 'episode': \(4,\)"),
        (lambda a, b: losses.dice(a, a, b), r"'log_probs': \(4,\), 'advantages': \(4,\), 'episode': \(4, 1\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call, message):
    with pytest.raises(ValueError, match=r"arguments must share one shape, got \{" + message):
        call(torch.zeros(4), torch.zeros(4, 1))

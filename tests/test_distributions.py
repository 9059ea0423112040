"""Action distributions against `torch.distributions`, and what environments and policies receive."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

from metarl.distributions import CategoricalHead, GaussianHead, MultiCategoricalHead, make_head

INPUT = 4


def box(low, high, dtype=np.float32):
    return gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


def gaussian(space, log_std=None):
    head = GaussianHead(INPUT, space)
    if log_std is not None:
        with torch.no_grad():
            head.log_std.copy_(torch.as_tensor(log_std))
    return head


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -- Discrete ----------------------------------------------------------------------------------------------------


def test_categorical_equals_torchs():
    head = CategoricalHead(INPUT, gym.spaces.Discrete(5))
    y = 3 * torch.randn(7, 6, INPUT, generator=seeded())
    params = head(y)
    twin = Categorical(logits=head.linear(y))
    actions = torch.randint(5, (7, 6), generator=seeded())
    torch.testing.assert_close(params.exp(), twin.probs)
    torch.testing.assert_close(head.log_prob(params, actions), twin.log_prob(actions))
    torch.testing.assert_close(head.entropy(params), twin.entropy())
    assert torch.equal(head.mode(params), twin.probs.argmax(-1))
    assert head.log_prob(params, actions).shape == head.entropy(params).shape == (7, 6)


def test_categorical_entropy_by_hand():
    head = CategoricalHead(INPUT, gym.spaces.Discrete(4))
    params = torch.tensor([[0.25] * 4, [0.5, 0.5, 1e-30, 1e-30]]).log()
    torch.testing.assert_close(head.entropy(params), torch.tensor([4.0, 2.0]).log())


def test_categorical_samples_by_their_probabilities():
    head = CategoricalHead(INPUT, gym.spaces.Discrete(4))
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    num_samples = 40_000
    samples = head.sample(probabilities.log().expand(num_samples, 4), seeded(1))
    counts = torch.bincount(samples, minlength=4)
    chi_square = ((counts - num_samples * probabilities).square() / (num_samples * probabilities)).sum()
    assert chi_square < 16.27  # the 99.9 % quantile with 3 degrees of freedom
    assert chi_square > 0.05  # too good to be random: below the .3 % quantile


def test_categorical_never_samples_the_impossible():
    head = CategoricalHead(INPUT, gym.spaces.Discrete(3))
    params = torch.log_softmax(torch.tensor([0.0, -torch.inf, -200.0]), -1).expand(10_000, 3)
    assert not head.sample(params, seeded()).any()


def test_rows_are_sampled_independently():
    head = CategoricalHead(INPUT, gym.spaces.Discrete(2))
    generator, params = seeded(), torch.full((1000, 2), 0.5).log()
    samples = torch.stack([head.sample(params, generator) for _ in range(20)]).float()
    correlations = torch.corrcoef(samples) - torch.eye(20)
    assert correlations.abs().max() < 0.15  # of 190 pairs of draws; a standard error is .032


@pytest.mark.parametrize("start", [0, 3, -2])
def test_categorical_counts_from_the_spaces_start(start):
    space = gym.spaces.Discrete(3, start=start)
    head = make_head(INPUT, space)
    inside = torch.tensor([0, 1, 2])
    outside = head.to_env(inside)
    np.testing.assert_array_equal(outside, [start, start + 1, start + 2])
    assert all(action in space for action in outside)
    torch.testing.assert_close(head.features(inside), torch.eye(3))
    assert head.features(inside).dtype == torch.float32


# -- Box ---------------------------------------------------------------------------------------------------------


# -- MultiDiscrete and MultiBinary -------------------------------------------------------------------------------


def test_independent_choices_equal_the_product_of_categoricals():
    head, other = (MultiCategoricalHead(INPUT, gym.spaces.MultiDiscrete([3, 2, 4])) for _ in range(2))
    y = 3 * torch.randn(7, 6, INPUT, generator=seeded())
    params, others = head(y), other(y)
    twins, other_twins = ([Categorical(logits=part) for part in h.linear(y).split([3, 2, 4], -1)] for h in (head, other))
    actions = torch.stack([torch.randint(n, (7, 6), generator=seeded()) for n in (3, 2, 4)], -1)
    expected = sum(twin.log_prob(part) for twin, part in zip(twins, actions.unbind(-1), strict=True))
    torch.testing.assert_close(head.log_prob(params, actions), expected)
    torch.testing.assert_close(head.entropy(params), sum(twin.entropy() for twin in twins))
    divergences = map(torch.distributions.kl_divergence, twins, other_twins)
    torch.testing.assert_close(head.kl(params, others), sum(divergences))
    assert torch.equal(head.mode(params), torch.stack([twin.probs.argmax(-1) for twin in twins], -1))


def test_independent_choices_are_drawn_by_their_probabilities():
    head = MultiCategoricalHead(INPUT, gym.spaces.MultiDiscrete([2, 3], start=[5, -1]))
    probabilities = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.5])
    actions = head.sample(probabilities.log().expand(40_000, 5), seeded(1))
    assert actions.shape == (40_000, 2)
    assert actions.dtype == head.dtype
    torch.testing.assert_close(head.features(actions).mean(0), probabilities, atol=0.01, rtol=0)
    joint = torch.bincount(actions @ torch.tensor([3, 1]), minlength=6).view(2, 3) / 40_000
    torch.testing.assert_close(joint, probabilities[:2, None] * probabilities[2:], atol=0.01, rtol=0)
    assert all(action in gym.spaces.MultiDiscrete([2, 3], start=[5, -1]) for action in head.to_env(actions[:50]))
    binary = MultiCategoricalHead(INPUT, gym.spaces.MultiBinary(3))
    assert all(action in gym.spaces.MultiBinary(3) for action in binary.to_env(binary.sample(torch.zeros(9, 6), seeded())))


def test_gaussian_equals_torchs():
    head = gaussian(box([-1] * 3, [1] * 3), [-0.5, 0.3, 1.2])
    y = torch.randn(7, 6, INPUT, generator=seeded())
    params = head(y)
    twin = Independent(Normal(head.linear(y), head.log_std.exp()), 1)  # log-probabilities SUM over dimensions
    actions = torch.randn(7, 6, 3, generator=seeded())
    torch.testing.assert_close(head.log_prob(params, actions), twin.log_prob(actions))
    torch.testing.assert_close(head.entropy(params), twin.entropy())
    assert torch.equal(head.mode(params), twin.mean)
    assert head.log_prob(params, actions).shape == head.entropy(params).shape == (7, 6)


def test_gaussian_gradients_equal_torchs():
    head = gaussian(box([-1] * 2, [1] * 2), [-0.5, 0.3])
    y, actions = torch.randn(5, INPUT, generator=seeded()), torch.randn(5, 2, generator=seeded(1))
    params = head(y)
    mean, log_std = params.chunk(2, -1)
    twin = Independent(Normal(mean, log_std.exp()), 1)
    pairs = [(head.log_prob(params, actions), twin.log_prob(actions)), (head.entropy(params), twin.entropy())]
    for ours, theirs in pairs:
        expected = torch.autograd.grad(theirs.sum(), [params, head.log_std], retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(ours.sum(), [params, head.log_std], retain_graph=True), expected)


@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), box([-1, 0], [1, 5])], ids=["Discrete", "Box"])
def test_kl_equals_torchs(space):
    one, other = make_head(INPUT, space), make_head(INPUT, space)
    y = torch.randn(5, 4, INPUT, generator=seeded())
    with torch.no_grad():
        if hasattr(other, "log_std"):
            other.log_std += torch.tensor([0.4, -0.7])
    twins = [
        Categorical(logits=head.linear(y))
        if isinstance(space, gym.spaces.Discrete)
        else Independent(Normal(head.linear(y), head.log_std.exp()), 1)
        for head in (one, other)
    ]
    torch.testing.assert_close(one.kl(one(y), other(y)), torch.distributions.kl_divergence(*twins))
    assert one.kl(one(y), one(y)).abs().max() < 1e-6


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3]), box([-1, 0], [1, 5])],
    ids=["Discrete", "MultiDiscrete", "Box"],
)
def test_heads_with_parameters_per_task_equal_one_head_per_task(space):
    heads = [make_head(INPUT, space) for _ in range(4)]
    params = {
        name: torch.stack([dict(head.named_parameters())[name] for head in heads]) for name, _ in heads[0].named_parameters()
    }
    if "log_std" in params:
        params["log_std"] = params["log_std"] + torch.arange(4.0)[:, None]
        for head, log_std in zip(heads, params["log_std"], strict=True):
            head.log_std.data = log_std
    y = torch.randn(4, 5, INPUT, generator=seeded())
    expected = torch.stack([head(one) for head, one in zip(heads, y, strict=True)])
    torch.testing.assert_close(heads[0].forward_batched(params, y), expected)


def test_gaussian_samples_have_their_mean_and_deviation():
    head = gaussian(box([-1] * 3, [1] * 3), [-1.0, 0.0, 0.7])
    mean = torch.tensor([0.3, -2.0, 5.0])
    samples = head.sample(torch.cat([mean, head.log_std]).detach().expand(40_000, 6), seeded())
    error = head.log_std.exp() / 200  # of the mean of 40,000
    assert ((samples.mean(0) - mean).abs() < 4 * error).all()
    torch.testing.assert_close(samples.std(0), head.log_std.exp().detach(), rtol=0.02, atol=0)
    correlations = torch.corrcoef(samples.T) - torch.eye(3)
    assert correlations.abs().max() < 0.02  # four standard errors


def test_a_bounded_box_is_scaled_and_clipped():
    space = box([-2, 0, 10], [2, 1, 30])
    head = make_head(INPUT, space)
    inside = torch.tensor([[0, 0, 0], [-1, 1, 0.5], [-7, 3, 1]], dtype=torch.float32)
    outside = head.to_env(inside)
    np.testing.assert_array_equal(outside, np.float32([[0, 0.5, 20], [-2, 1, 25], [-2, 1, 30]]))
    assert outside.dtype == space.dtype
    assert all(action in space for action in outside)
    torch.testing.assert_close(head.features(inside), inside.clamp(-1, 1))  # what was played, not what was meant


def test_unbounded_dimensions_stay_as_they_are():
    space = box([-np.inf, 0, -1, -np.inf], [np.inf, np.inf, 3, 2])
    head = make_head(INPUT, space)
    inside = torch.tensor([[5, 4, 0.5, 1.5], [-5, -4, -9, 3]], dtype=torch.float32)
    outside = head.to_env(inside)
    np.testing.assert_array_equal(outside, np.float32([[5, 4, 2, 1.5], [-5, 0, -1, 2]]))
    assert all(action in space for action in outside)
    torch.testing.assert_close(head.features(inside), torch.tensor([[5, 4, 0.5, 1.5], [-5, 0, -1, 2]]))


def test_actions_are_never_outside_of_the_box():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(200, 1)) * 10.0 ** rng.integers(-6, 6, (200, 1))
    for dtype in (np.float32, np.float64):
        space = box(low.ravel(), (low + rng.exponential(size=(200, 1)) + 1e-3).ravel(), dtype)
        head = make_head(INPUT, space)
        for value in (-10.0, -1.0, 0.0, 1.0, 10.0):
            action = head.to_env(torch.full((200,), value))
            assert action in space


def test_degenerate_and_enormous_dimensions_stay_finite():
    space = box([2, -3e38], [2, 3e38])
    head = make_head(INPUT, space)
    outside = head.to_env(torch.tensor([[0.5, 0.25]]))
    np.testing.assert_array_equal(outside, np.float32([[2, 7.5e37]]))
    torch.testing.assert_close(head.features(torch.tensor([[9.0, 0.25]])), torch.tensor([[0.0, 0.25]]))


def test_likelihoods_are_of_unclipped_actions():
    head = gaussian(box([-1], [1]), [0.0])
    log_probs = head.log_prob(torch.zeros(2, 2), torch.tensor([[3.0], [5.0]]))
    assert (log_probs[0] - log_probs[1]).item() == pytest.approx((25 - 9) / 2)


# -- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [gym.spaces.Discrete(6, start=2), gym.spaces.MultiBinary(4), box([-2, 0], [2, 5])])
def test_one_seed_gives_the_same_samples(space):
    head = make_head(INPUT, space)
    params = head(torch.randn(50, INPUT, generator=seeded()))
    first, second, other = (head.sample(params, seeded(seed)) for seed in (4, 4, 5))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    head.sample(params, seeded())
    assert torch.equal(torch.get_rng_state(), state)  # the shared generator is left alone


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match=r"action space must be Discrete, MultiDiscrete, MultiBinary or Box, got Text\("):
        make_head(INPUT, gym.spaces.Text(3))
    for space in (gym.spaces.MultiDiscrete([[2], [3]]), gym.spaces.MultiBinary([2, 3])):
        with pytest.raises(
            ValueError, match=rf"actions of {type(space).__name__} must have one axis, got shape \(2, [13]\)"
        ):
            make_head(INPUT, space)
    with pytest.raises(ValueError, match=r"a Box of actions must have one axis, got shape \(2, 2\)"):
        make_head(INPUT, gym.spaces.Box(-1, 1, (2, 2)))

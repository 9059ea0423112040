from functools import cache

import pytest

from metarl.evaluation.bandit_players import FiniteHorizonGittins, GittinsIndex
from metarl.evaluation.gittins import discounted_indices, finite_horizon_indices
from metarl_envs import make_family


@pytest.mark.parametrize(
    ("successes", "failures", "index"),
    [(0, 0, 0.7029), (1, 0, 0.8001), (2, 0, 0.8452), (0, 1, 0.5001), (1, 1, 0.6346), (0, 2, 0.3796)],
)
def test_published_indices(successes, failures, index):
    """Gittins 1979, discount 0.9; his table counts the uniform prior as one success and one failure."""
    assert discounted_indices(10, 0.9)[successes, failures] == pytest.approx(index, abs=2e-4)


def index_by_bisection(successes, failures, left, discount, prior):
    """The charge per pull at which at least one of `left` pulls, stopping at will, is worth nothing."""
    a, b = prior

    def pull(charge):
        @cache
        def worth(s, f, left):
            mean = (a + s) / (a + b + s + f)
            if left == 1:
                return mean - charge
            won, lost = max(0.0, worth(s + 1, f, left - 1)), max(0.0, worth(s, f + 1, left - 1))
            return mean - charge + discount * (mean * won + (1 - mean) * lost)

        return worth(successes, failures, left)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if pull(middle) > 0 else (low, middle)
    return low


@pytest.mark.parametrize("prior", [(1.0, 1.0), (2.0, 5.0)])
@pytest.mark.parametrize(("successes", "failures"), [(0, 0), (3, 1), (0, 4)])
def test_discounted_index_by_bisection(successes, failures, prior):
    expected = index_by_bisection(successes, failures, 120, 0.8, prior)
    assert discounted_indices(10, 0.8, prior)[successes, failures] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("prior", [(1.0, 1.0), (2.0, 5.0)])
@pytest.mark.parametrize(("successes", "failures", "left"), [(0, 0, 20), (3, 1, 9), (0, 4, 16), (7, 7, 1)])
def test_finite_horizon_index_by_bisection(successes, failures, left, prior):
    expected = index_by_bisection(successes, failures, left, 1.0, prior)
    assert finite_horizon_indices(20, prior)[left, successes, failures] == pytest.approx(expected, abs=1e-4)


def test_arguments_are_checked():
    family = make_family("metarl/BernoulliBandit-v0", num_pulls=500)
    with pytest.raises(ValueError, match=r"discount must be between 0 and 1, got 1\.0"):
        GittinsIndex(family, discount=1.0)
    with pytest.raises(ValueError, match="num_pulls must be at most 200, got 500"):
        FiniteHorizonGittins(family)
    with pytest.raises(ValueError, match="family must be a bandit with Bernoulli rewards"):
        GittinsIndex(make_family("metarl/GaussianBandit-v0"))

"""Families of functions: against their formulas point by point, and against what defines them."""

import math

import numpy as np
import pytest
import torch

from metarl.fewshot.datasets.curves import DampedOscillators, GaussianProcessCurves, Sinusoids
from metarl.fewshot.episodes import TaskSpec, episode_rng, episodes_hash

FAMILIES = [Sinusoids(), GaussianProcessCurves(), DampedOscillators()]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@every_family
@pytest.mark.parametrize("split", ["train", "validation", "test", "ood"])
def test_many_at_once_are_what_they_are_one_by_one(family, split):
    together = family.episodes(split, range(10), seed=3)
    for index in range(10):
        alone = family.episodes(split, [index], seed=3)
        single = family.episode(split, episode_rng(3, split, index))
        for many, one, array in zip(together, alone, single, strict=True):
            assert torch.equal(many[index], one[0])
            np.testing.assert_array_equal(one[0].numpy(), array)
            assert one[0].numpy().dtype == array.dtype


@every_family
def test_shapes(family):
    assert family.spec == TaskSpec(shape=(1,), outputs=1, classification=False, shots=family.shots)
    episodes = type(family)(shots=3, queries=4).episodes("train", range(2))
    assert [tuple(part.shape) for part in episodes] == [(2, 3, 1), (2, 3, 1), (2, 4, 1), (2, 4, 1), (2, 0)]
    assert [part.dtype for part in episodes] == [torch.float32] * 4 + [torch.int64]
    assert all(part.is_contiguous() for part in episodes)


@every_family
def test_splits_and_seeds_draw_other_curves(family):
    splits = [family.episodes(split, range(3), seed) for split in family.splits for seed in (0, 1)]
    assert len({episodes_hash(episodes) for episodes in splits}) == 8
    assert len(np.unique(torch.cat([episodes.query_y.flatten() for episodes in splits]))) == 8 * 3 * family.queries


def points(family, split, num):
    """`x` and `y` of all points `[num, S + Q]`."""
    episodes = family.episodes(split, range(num))
    x, y = (torch.cat(parts, 1)[..., 0].double().numpy() for parts in (episodes[:4:2], episodes[1:4:2]))
    return x, y


def uniforms(family, split, index):
    """Parameters and points as they are drawn, from 0 to 1, and the generator after them."""
    rng = episode_rng(0, split, index)
    drawn = rng.random(len(family.ranges) + family.shots + family.queries).tolist()
    return drawn[: len(family.ranges)], drawn[len(family.ranges) :], rng


@pytest.mark.parametrize(("split", "low", "high"), [("train", 0.1, 5.0), ("ood", 5.0, 10.0)])
def test_sinusoids_point_by_point(split, low, high):
    family = Sinusoids()
    for index, (x, y) in enumerate(zip(*points(family, split, 20), strict=True)):
        (u, v), places, _ = uniforms(family, split, index)
        for place, x_i, y_i in zip(places, x, y, strict=True):
            assert x_i == pytest.approx(10.0 * place - 5.0, abs=1e-6)
            assert y_i == pytest.approx((low + (high - low) * u) * math.sin(10.0 * place - 5.0 - math.pi * v), abs=1e-5)


def test_sinusoids_by_least_squares():
    """`y = a sin(x - p) = (a cos p) sin x - (a sin p) cos x`: these have the paper's ranges."""
    found = []
    for x, y in zip(*points(Sinusoids(shots=10), "test", 2000), strict=True):
        (cosine, sine), *_ = np.linalg.lstsq(np.stack([np.sin(x), -np.cos(x)], 1), y)
        np.testing.assert_allclose(cosine * np.sin(x) - sine * np.cos(x), y, atol=1e-5)
        found.append((math.hypot(cosine, sine), math.atan2(sine, cosine)))
    for values, low, high in zip(np.array(found).T, (0.1, 0.0), (5.0, math.pi), strict=True):
        check_uniform(values, low, high)
    check_uniform(points(Sinusoids(), "test", 200)[0], -5.0, 5.0)


def check_uniform(values, low, high):
    """Kolmogorov's distance, where one in a thousand samples of so many is farther away."""
    values = (np.sort(values, axis=None) - low) / (high - low)
    assert -1e-6 < values[0] < values[-1] < 1.0 + 1e-6
    assert np.abs(values - (np.arange(len(values)) + 0.5) / len(values)).max() < 1.95 / len(values) ** 0.5


def rbf(x, amplitude, length_scale, noise):
    """The kernel's matrix, element by element."""
    return np.array(
        [
            [amplitude**2 * math.exp(-((a - b) ** 2) / (2 * length_scale**2)) + noise**2 * (i == j) for j, b in enumerate(x)]
            for i, a in enumerate(x)
        ]
    )


@pytest.mark.parametrize(("split", "low", "high"), [("train", 0.1, 1.0), ("ood", 1.0, 2.0)])
def test_gaussian_processes_have_their_covariance(split, low, high):
    """Whitened by the curve's own covariance, `y` is standard normal: its sums of squares are chi-square."""
    family, squares = GaussianProcessCurves(shots=3, queries=3, noise=0.1), []
    for index, (x, y) in enumerate(zip(*points(family, split, 2000), strict=True)):
        (u, v), places, _ = uniforms(family, split, index)
        np.testing.assert_allclose(x, 4.0 * np.array(places) - 2.0, atol=1e-6)
        squares.append(y @ np.linalg.solve(rbf(x, low + (high - low) * u, 0.1 + 0.5 * v, 0.1), y))
    assert np.mean(squares) == pytest.approx(6.0, abs=4.0 * (12.0 / 2000) ** 0.5)
    assert np.var(squares) == pytest.approx(12.0, rel=0.2)


def test_gaussian_processes_by_their_factor():
    family = GaussianProcessCurves(shots=2, queries=2)
    for index, y in enumerate(points(family, "train", 10)[1]):
        (u, v), places, rng = uniforms(family, "train", index)
        covariance = rbf([4.0 * place - 2.0 for place in places], 0.1 + 0.9 * u, 0.1 + 0.5 * v, 0.02)
        np.testing.assert_allclose(y, np.linalg.cholesky(covariance) @ rng.standard_normal(4), atol=1e-5)


def test_many_near_points_have_a_factor():
    episodes = GaussianProcessCurves(shots=100, queries=100, noise=1e-4).episodes("ood", range(5))
    assert all(part.isfinite().all() for part in episodes)


@pytest.mark.parametrize(("split", "low", "high"), [("train", 0.5, 2.0), ("ood", 2.0, 4.0)])
def test_damped_oscillators_point_by_point(split, low, high):
    family = DampedOscillators()
    for index, (x, y) in enumerate(zip(*points(family, split, 20), strict=True)):
        (a, w, p, d), places, _ = uniforms(family, split, index)
        for place, x_i, y_i in zip(places, x, y, strict=True):
            t = 5.0 * place
            assert x_i == pytest.approx(t, abs=1e-6)
            wave = math.sin((1.0 + 3.0 * w) * t + math.pi * p)
            assert y_i == pytest.approx((low + (high - low) * a) * math.exp(-(0.1 + 0.9 * d) * t) * wave, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sinusoids(shots=0), "shots must be an integer of at least 1, got 0"),
        (lambda: DampedOscillators(queries=-1), "queries must be an integer of at least 1, got -1"),
        (lambda: GaussianProcessCurves(shots=0), "shots must be an integer of at least 1, got 0"),
        (lambda: GaussianProcessCurves(noise=0.0), "noise must be finite and at least 0.0001, got 0.0"),
        (lambda: GaussianProcessCurves(noise=math.nan), "noise must be finite and at least 0.0001, got nan"),
        (
            lambda: Sinusoids().episodes("tests", [0]),
            r"split 'tests' is unknown \(did you mean test\?\): known are train, validation, test, ood",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()

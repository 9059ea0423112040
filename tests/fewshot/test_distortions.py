import numpy as np
import pytest
import torch
from scipy import ndimage

from metarl.fewshot import make_source
from metarl.fewshot.datasets.distortions import distort


class Fixed:
    """In place of a generator: each number is at its upper bound where it is `chosen`, else 0."""

    def __init__(self, *chosen):
        self.chosen, self.asked = chosen, 0

    def uniform(self, low, high, count):
        return np.full(count, high)

    def integers(self, low, high, count):
        self.asked += 1
        return np.full(count, int(self.asked - 1 in self.chosen))


@pytest.fixture
def pictures():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).uniform(size=(4, 2, 21, 15)), (0, 0, 2, 2))
    return smooth.astype(np.float32)


def test_by_hand(pictures):
    np.testing.assert_allclose(distort(pictures, Fixed()), pictures, atol=1e-6)
    moved = np.zeros_like(pictures)
    moved[..., :-2] = pictures[..., 2:]  # the shift along the width comes last but one
    np.testing.assert_allclose(distort(pictures, Fixed(5)), moved, atol=1e-5)
    turned = ndimage.rotate(pictures, 10.0, (-2, -1), reshape=False, order=1)
    np.testing.assert_allclose(distort(pictures, Fixed(0))[..., 4:-4, 4:-4], turned[..., 4:-4, 4:-4], atol=0.01)
    larger, middle = distort(pictures, Fixed(3, 4)), np.array([10.0, 7.0])
    old = ndimage.affine_transform(pictures[0, 0], np.eye(2) / 1.2, middle - middle / 1.2, order=1)
    np.testing.assert_allclose(larger[0, 0], old, atol=1e-5)
    slanted = distort(pictures, Fixed(1))
    old = ndimage.affine_transform(pictures[0, 0], np.array([[1, 0], [0.3, 1]]), [0, -3.0], order=1)
    np.testing.assert_allclose(slanted[0, 0, 4:-4, 4:-4], old[4:-4, 4:-4], atol=1e-5)


def test_what_is_drawn(pictures):
    first, again, other = (distort(pictures, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05
    assert first.dtype == np.float32
    alike = distort(np.repeat(pictures[:1], 64, 0), np.random.default_rng(3))
    assert len(np.unique(alike.reshape(64, -1), axis=0)) > 60  # each has its own map; one in 128 stays as it was


def test_of_training_pictures_only():
    plain, bent = (make_source("digits", ways=2, queries=1, options={"augment": augment}) for augment in (False, True))
    for split, same in (("train", False), ("test", True)):
        one, other = (source.episodes(split, [0], 5) for source in (plain, bent))
        assert torch.equal(one.support_x, other.support_x) == same
        assert torch.equal(one.classes, other.classes)

"""Random affine distortions of pictures (Koch, Zemel & Salakhutdinov 2015, section 3.2)."""

import numpy as np
import torch
import torch.nn.functional as F

from metarl.fewshot.classes import Augmentation

_TURN, _SHEAR, _STRETCH, _SHIFT = np.deg2rad(10.0), 0.3, 0.2, 2.0  # the last in pixels


def augmentation(augment: bool = False) -> Augmentation | None:
    """What is done to the pictures of training episodes.

    Args:
        augment: distort pictures in training, each time anew: turn, slant, stretch and shift them (Koch et al. 2015).
    """
    return distort if augment else None


def distort(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures `[M, C, H, W]`, each under an affine map of its own.

    Turned by up to 10 degrees, slanted by up to 0.3 and scaled by 0.8 to 1.2 along either axis, shifted by up to 2 pixels;
    each of these with probability 1/2. What comes in from outside is 0.
    """
    count, height, width = len(x), x.shape[-2], x.shape[-1]
    turn, *slant = _some(rng, [_TURN, _SHEAR, _SHEAR], count)
    stretch, shift = np.array(_some(rng, [_STRETCH] * 2, count)), np.array(_some(rng, [_SHIFT] * 2, count))
    maps = np.zeros((count, 2, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = np.cos(turn)
    maps[:, 0, 1], maps[:, 1, 0] = -np.sin(turn), np.sin(turn)
    slants = np.tile(np.eye(2), (count, 1, 1))
    slants[:, 0, 1], slants[:, 1, 0] = slant
    maps[:, :, :2] = maps[:, :, :2] @ slants / (1 + stretch.T[:, None])  # from places in the new picture to the old one's
    maps[:, 0, 1] *= height / width  # either side counts from -1 to 1, whatever its length
    maps[:, 1, 0] *= width / height
    maps[:, :, 2] = 2 * shift.T / [width, height]
    grid = F.affine_grid(torch.from_numpy(maps), list(x.shape), align_corners=False)
    # in float64, where processors differ in too little to be seen
    return F.grid_sample(torch.from_numpy(x).double(), grid, align_corners=False).numpy().astype(x.dtype)


def _some(rng: np.random.Generator, bounds: list[float], count: int) -> list[np.ndarray]:
    """Numbers `[count]` within each of the `bounds`, half of them 0."""
    return [rng.uniform(-bound, bound, count) * rng.integers(0, 2, count) for bound in bounds]

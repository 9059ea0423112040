"""The handwritten digits that scikit-learn brings along (Alpaydin and Kaynak 1998, UCI's optical recognition)."""

import numpy as np

from metarl.fewshot.classes import Classes
from metarl.plain import check_count


def load_digits(rotations: bool = False, seed: int = 0, size: int = 8, margin: int = 0) -> dict[str, Classes]:
    """Handwritten digits, five for training and the five others for testing: `pip install 'metarl-toolkit[fewshot]'`.

    There is no validation. 1,797 pictures `[1, size, size]` of uint8, ink 255 on 0, 174 to 183 of each digit.

    Args:
        rotations: the training digits turned by 90 degrees counterclockwise are five further classes. Half turns are left
            out: they make a 9 of a 6, which may be in the test, and leave 0, 1, 2, 5 and 8 nearly as they were.
        seed: of the split; 0 trains on 2, 3, 4, 6 and 7.
        size: height and width in pixels that the pictures, of 8 x 8, are brought to.
        margin: of these, blank ones on each side. With a size of 28 and a margin of 4 digits stand as letters do in
            `glyphs`, so that what learned those can be asked about them.

    Raises:
        ValueError: at a size that leaves nothing within the margin.
        ModuleNotFoundError: without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the digits need {error.name}: pip install 'metarl-toolkit[fewshot]'") from error

    check_count("seed", seed, least=0)
    check_count("margin", margin, least=0)
    if check_count("size", size) <= 2 * margin:
        raise ValueError(f"size must be above twice the margin, 2 x {margin}, got {size}")
    digits = datasets.load_digits()
    x = _framed(np.rint(digits.images * (255 / 16)).astype(np.uint8), size, margin)[:, None]
    order = np.random.default_rng(seed).permutation(10)
    digit = Classes.from_labels(x, digits.target)
    train, test = (digit.select(sorted(part)) for part in (order[:5].tolist(), order[5:].tolist()))
    if rotations:
        turned = tuple(members + len(x) for members in train.members)
        names = tuple(f"{name}/90" for name in train.names)
        train = Classes(np.concatenate([x, np.rot90(x, 1, (2, 3))]), train.members + turned, train.names + names)
    return {"train": train, "test": test}


def _framed(pictures: np.ndarray, size: int, margin: int) -> np.ndarray:
    """`[M, H, W]` as `[M, size, size]`, of which `margin` on each side is blank."""
    inner = size - 2 * margin
    if pictures.shape[1:] != (inner, inner):
        from PIL import Image

        resized = [Image.fromarray(picture).resize((inner, inner), Image.Resampling.BICUBIC) for picture in pictures]
        pictures = np.stack([np.asarray(picture) for picture in resized])
    return np.pad(pictures, ((0, 0), (margin, margin), (margin, margin)))

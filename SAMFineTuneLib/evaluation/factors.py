"""What makes an object hard: its size, its contrast, the complexity of its outline (COSMOS 1050K, arXiv 2304.14660)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.metrics.mask_metrics import dice

FACTORS = ("area", "contrast", "complexity")
"""Columns of the rows."""
REFERENCE = "reference"
"""Stands for the method in rows about objects alone."""
GOOD_ENOUGH = 0.97
"""Dice with the object from which a Fourier series counts as a description of its outline."""
MOST_HARMONICS = 100
_RING = 0.2  # width of the surroundings in radii of a disc of the object's area


def factor_rows(subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """The factors of every object, which are the same for all methods: its area in mm²; the difference of mean grey
    values to the surroundings, 0 to 1 of the window; the order of the elliptic Fourier series that describes it."""
    for thing in subject.objects(settings.slices):
        yield Row(
            REFERENCE, "", subject.digest, thing.label, "factors", "", thing.name,
            area=float(np.count_nonzero(thing.mask) * thing.spacing[0] * thing.spacing[1]),
            contrast=contrast(thing.picture, thing.mask, thing.ignored), complexity=float(complexity(thing.mask)),
        )  # fmt: skip


def contrast(picture: np.ndarray, mask: np.ndarray, ignored: np.ndarray | None = None) -> float:
    """An object's contrast: the difference of its mean grey value and that of its surroundings, as a fraction of 255.

    Args:
        picture: uint8 (rows, columns).
        mask: the object, bool of one shape with it, not empty.
        ignored: pixels that do not count as surroundings.
    """
    from scipy.ndimage import distance_transform_edt

    width = max(2.0, _RING * np.sqrt(np.count_nonzero(mask) / np.pi))
    ring = ~mask & (distance_transform_edt(~mask) <= width)
    if ignored is not None:
        ring &= ~ignored
    if not ring.any():
        return 0.0
    return abs(float(picture[mask].mean()) - float(picture[ring].mean())) / 255


def complexity(mask: np.ndarray) -> int:
    """The smallest order of an elliptic Fourier series whose shape has Dice 0.97 with the object's.

    Holes do not count. `MOST_HARMONICS` where no order suffices, as for objects of few pixels.
    """
    from scipy.ndimage import binary_fill_holes
    from skimage.draw import polygon2mask

    filled = binary_fill_holes(mask)
    outline = _outline(filled)
    harmonics, centre = elliptic_fourier(outline, MOST_HARMONICS)
    low, high = 1, MOST_HARMONICS  # more harmonics hardly ever describe the outline worse, so halve the interval
    while low < high:
        middle = (low + high) // 2
        shape = polygon2mask(filled.shape, series(harmonics[:middle], centre, 2 * len(outline)))
        if dice(shape, filled) >= GOOD_ENOUGH:
            high = middle
        else:
            low = middle + 1
    return low


def elliptic_fourier(outline: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (order, 4) a, b, c, d and centre (2,) of a closed polygon (n, 2) without repeated points.

    x is the sum of a cos + b sin, y of c cos + d sin, over the length of the outline (Kuhl and Giardina 1982).
    """
    steps = np.diff(np.vstack([outline, outline[:1]]), axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    ends = np.cumsum(lengths)
    whole = ends[-1]
    starts = ends - lengths
    n = np.arange(1, order + 1)[:, None]
    turn = 2 * np.pi * n / whole
    cosine = np.cos(turn * ends) - np.cos(turn * starts)
    sine = np.sin(turn * ends) - np.sin(turn * starts)
    slopes = steps / lengths[:, None]
    scale = whole / (2 * np.pi**2 * n**2)
    coefficients = [scale * (part @ slopes[:, axis : axis + 1]) for axis in (0, 1) for part in (cosine, sine)]
    centre = ((outline + np.roll(outline, -1, axis=0)) / 2 * lengths[:, None]).sum(axis=0) / whole
    return np.concatenate(coefficients, axis=1), centre


def series(coefficients: np.ndarray, centre: np.ndarray, points: int) -> np.ndarray:
    """The polygon (points, 2) that coefficients and centre from `elliptic_fourier` describe."""
    n = np.arange(1, len(coefficients) + 1)
    angle = 2 * np.pi * np.arange(points)[:, None] / points * n
    a, b, c, d = coefficients.T
    return centre + np.stack([np.cos(angle) @ a + np.sin(angle) @ b, np.cos(angle) @ c + np.sin(angle) @ d], axis=1)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The longest outline of a mask as row, column, between its pixels and those outside."""
    from skimage.measure import find_contours

    contours = find_contours(np.pad(mask, 1).astype(float), 0.5)
    longest = max(contours, key=len)
    return longest[:-1] - 1

"""Methods without learning that answer the same prompts as models: what a model must beat.

| name | method |
|---|---|
| `otsu` | Otsu's threshold in the box (Otsu 1979); the side that the prompt is on |
| `growing` | seeded region growing: regions from inside and outside grow until they meet, on the steepest edges (Adams and Bischof 1994; as a watershed on the gradient) |
| `walker` | random walker (Grady 2006) |
| `levelset` | a smooth front that grows over similar grey values, from the box's middle or the points (SimpleITK's threshold level set) |

All use a window around the prompts, and `seeds` makes their seeds from the prompts. Their parameters are the libraries'
defaults or were chosen on an artificial picture; none was fitted to a case.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.inference.input_crop import View, box_around_prompts
from SAMFineTuneLib.inference.mask_shapes import pieces
from SAMFineTuneLib.inference.unchanged_structure import SMALLEST_SPREAD
from SAMFineTuneLib.prompts import PlanePrompts

CORE = 0.3
"""Size, in parts of a box's sides, of the ellipse in its middle that counts as inside."""
DISC = 1.0
"""Pixels around a point that count as inside or outside with it."""
_SPREADS, _START = 2.5, 3.0  # standard deviations, and pixels around the seeds, of the level set
_LONGEST = 128  # pixels of the longer side at most; larger views are subsampled
_NOT_KNOWN, _INSIDE, _OUTSIDE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class BaselineAnswer:
    """Masks (n, rows, columns) in the form of a `Prediction`; the first one is what a user gets."""

    masks: np.ndarray
    score: float | None = None

    @property
    def mask(self) -> np.ndarray:
        """The mask to compare with, as `Prediction` has it."""
        return self.masks[0]


def answer(name: str, picture: np.ndarray, prompts: PlanePrompts) -> BaselineAnswer:
    """Answer of the baseline `name` to prompts on a picture uint8 (rows, columns)."""
    view = _view(picture.shape, prompts)
    step = -(-max(view.rows, view.columns) // _LONGEST)
    cropped = view.crop(picture)[::step, ::step].astype(np.float32)
    given = seeds(view, step, cropped.shape, prompts)
    if not (given == _INSIDE).any() or not (given == _OUTSIDE).any():
        return BaselineAnswer(np.zeros((1, *picture.shape), bool))
    found = METHODS[name](cropped, given) | (given == _INSIDE)
    found = _connected(found & (given != _OUTSIDE), given == _INSIDE)
    enlarged = found.repeat(step, axis=0).repeat(step, axis=1)[: view.rows, : view.columns]
    return BaselineAnswer(view.paste(enlarged, picture.shape, False)[None])


def seeds(view: View, step: int, shape: tuple[int, ...], prompts: PlanePrompts) -> np.ndarray:
    """Seeds from prompts.

    Inside: the middle of the box, and around positive points. Outside: beyond the box, the view's edge, and around
    negative points. Points overrule the box, and later points overrule earlier ones.

    Args:
        view: the part of the picture that the baseline sees.
        step: pixels of the picture for each pixel of the view.
        shape: of the view, (rows, columns).
        prompts: in pixels of the picture.

    Returns:
        uint8 (rows, columns): 1 inside, 2 outside, 0 not known.
    """
    rows, columns = (np.indices(shape) * step).astype(np.float32)
    rows, columns = rows + view.top, columns + view.left
    known = np.full(shape, _NOT_KNOWN, np.uint8)
    known[[0, -1]] = known[:, [0, -1]] = _OUTSIDE
    if prompts.box is not None:
        x0, y0, x1, y1 = prompts.box
        inside = (columns >= x0 - 0.5) & (columns <= x1 + 0.5) & (rows >= y0 - 0.5) & (rows <= y1 + 0.5)
        known[inside], known[~inside] = _NOT_KNOWN, _OUTSIDE
        half = CORE / 2 * np.maximum([x1 - x0 + 1, y1 - y0 + 1], 2 * step / CORE)
        across = ((columns - (x0 + x1) / 2) / half[0]) ** 2 + ((rows - (y0 + y1) / 2) / half[1]) ** 2
        known[across <= 1] = _INSIDE
    for (x, y), label in zip(prompts.points, prompts.labels, strict=True):
        near = (columns - x) ** 2 + (rows - y) ** 2 <= max(DISC, step) ** 2
        known[near] = _INSIDE if label else _OUTSIDE
    return known


def _otsu(picture: np.ndarray, given: np.ndarray) -> np.ndarray:
    from skimage.filters import threshold_otsu

    values = picture[given != _OUTSIDE]
    if values.min() == values.max():
        return given != _OUTSIDE
    level = threshold_otsu(values)
    bright = picture > level
    return bright if bright[given == _INSIDE].mean() >= 0.5 else ~bright


def _growing(picture: np.ndarray, given: np.ndarray) -> np.ndarray:
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    return watershed(sobel(picture), given.astype(np.int32)) == _INSIDE


def _walker(picture: np.ndarray, given: np.ndarray) -> np.ndarray:
    import warnings

    from skimage.segmentation import random_walker

    with warnings.catch_warnings():  # about seeds that are cut off and solvers that are not installed
        warnings.simplefilter("ignore")
        return random_walker(picture / 255, given.astype(np.int32), beta=130, mode="cg_j") == _INSIDE


def _levelset(picture: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Grow over grey values within `_SPREADS` standard deviations of the mean at the start."""
    import SimpleITK as sitk

    start = _start_of_levelset(given)
    mean, spread = float(picture[start].mean()), max(float(picture[start].std()), SMALLEST_SPREAD)
    level = sitk.ThresholdSegmentationLevelSet(
        sitk.Cast(
            sitk.SignedMaurerDistanceMap(sitk.GetImageFromArray(start.astype(np.uint8)), False, False, False),
            sitk.sitkFloat32,
        ),
        sitk.GetImageFromArray(picture),
        lowerThreshold=mean - _SPREADS * spread,
        upperThreshold=mean + _SPREADS * spread,
        maximumRMSError=0.02,
        numberOfIterations=500,
    )
    return sitk.GetArrayFromImage(level) <= 0


def _start_of_levelset(given: np.ndarray) -> np.ndarray:
    """The known inside, widened a little, but never nearer to the known outside than to the inside."""
    from scipy.ndimage import distance_transform_edt

    to_inside, to_outside = (distance_transform_edt(given != side) for side in (_INSIDE, _OUTSIDE))
    return to_inside <= np.minimum(to_outside, _START)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "otsu": _otsu,
    "growing": _growing,
    "walker": _walker,
    "levelset": _levelset,
}


def _view(shape: tuple[int, ...], prompts: PlanePrompts) -> View:
    """The box and corrections with a margin of a quarter of the longer side; the whole picture without a box."""
    if prompts.box is None:
        return View.whole(shape)
    x0, y0, x1, y1 = box_around_prompts(prompts)
    margin = max(2.0, (max(x1 - x0, y1 - y0) + 1) / 4)
    left, top = (max(0, int(np.floor(low - margin))) for low in (x0, y0))
    right, bottom = (min(side - 1, int(np.ceil(high + margin))) for high, side in ((x1, shape[1]), (y1, shape[0])))
    return View(top, left, bottom - top + 1, right - left + 1)


def _connected(found: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The pieces that contain pixels known to be inside, with their holes filled."""
    from scipy.ndimage import binary_fill_holes

    held = [piece for piece in pieces(found) if (piece & inside).any()]
    return binary_fill_holes(np.any(held, axis=0)) if held else found

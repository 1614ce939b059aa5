"""Recognises a structure that continues unchanged on the next slice, as a vessel or the spinal cord does.

The volume memory lets long tubes taper and end although nothing changes there. A mask on the next slice counts as the
same structure when its area, its grey values and its contrast to its rim are those of the prompted slice; beyond the
structure's end a mask lacks that contrast. Structures that hardly differ from their rim are never recognised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import overlap, rim

SMALLEST_SPREAD = 12.0
"""Smallest standard deviation assumed for a structure's grey values (of 255): less is noise, or saturation."""
_RIM = (1.0, 4.0)  # pixels from the outline
_STANDS_OUT = 2.0  # standard deviations of its grey values between a structure and its rim, at least
_LEAST_CONTRAST = 0.5  # share of the prompted slice's contrast that must be left
_GREY_SHIFT = 0.25  # share of the contrast by which mean grey values may differ, where a standard deviation is less
_LEAST_OVERLAP = 0.7  # IoU with the slice before
_AREA = 0.75  # least ratio of the areas here and on the prompted slice, the smaller to the larger


@dataclass(frozen=True)
class Appearance:
    """Area in pixels, mean and standard deviation of grey values, and difference of the mean to that of the rim."""

    area: int
    grey: float
    spread: float
    contrast: float

    @property
    def grey_tolerance(self) -> float:
        """How far from it the mean grey value of the same structure may be on another slice."""
        return max(self.spread, _GREY_SHIFT * abs(self.contrast))

    @property
    def stands_out(self) -> bool:
        """Whether it differs enough from its rim to be recognised."""
        return abs(self.contrast) >= _STANDS_OUT * self.spread


def appearance(picture: np.ndarray, mask: np.ndarray) -> Appearance:
    """The appearance of what a non-empty mask (H, W) covers on a picture (H, W), 0 to 255."""
    inside, around = picture[mask], picture[rim(mask, *_RIM)]
    grey = float(inside.mean())
    contrast = grey - float(around.mean()) if len(around) else 0.0
    return Appearance(len(inside), grey, max(float(inside.std()), SMALLEST_SPREAD), contrast)


def is_unchanged(prompted: Appearance, picture: np.ndarray, mask: np.ndarray, before: np.ndarray) -> bool:
    """Whether a mask on a slice shows the same structure as the prompted slice, in the place that the slice before has.

    Args:
        prompted: the appearance on the prompted slice.
        picture: the slice (H, W), 0 to 255.
        mask, before: the masks of this slice and of the one before (H, W).
    """
    if not mask.any() or overlap(mask, before) < _LEAST_OVERLAP:
        return False
    here = appearance(picture, mask)
    return (
        prompted.stands_out
        and _AREA <= here.area / prompted.area <= 1 / _AREA
        and abs(here.grey - prompted.grey) <= prompted.grey_tolerance
        and here.contrast / prompted.contrast >= _LEAST_CONTRAST
    )

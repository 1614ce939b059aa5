"""Recognises a structure that continues unchanged on the next slice, as a vessel or the spinal cord does.

The volume memory makes long tubes taper and end although nothing in the image changes. A mask on the next slice counts
as the same structure when its area, its grey values and its contrast to its rim are close to those on the prompted
slice; beyond the structure's end a mask lacks that contrast. Structures that hardly differ from their rim are never
recognised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import overlap, rim

SMALLEST_SPREAD = 12.0
"""Smallest standard deviation assumed for a structure's grey values (of 255): less is noise, or saturation."""
_RIM = (1.0, 4.0)  # inner and outer radius, in pixels from the outline
_STANDS_OUT = 2.0  # least contrast between a structure and its rim, in standard deviations of its grey values
_LEAST_CONTRAST = 0.5  # fraction of the prompted slice's contrast
_GREY_SHIFT = 0.25  # fraction of the contrast by which mean grey values may differ, if that is more than their spread
_LEAST_OVERLAP = 0.7  # IoU with the mask on the slice before
_AREA = 0.75  # least ratio of the smaller to the larger area, here and on the prompted slice


@dataclass(frozen=True)
class Appearance:
    """Area in pixels, mean and standard deviation of grey values, and difference of the mean from that of the rim."""

    area: int
    grey: float
    spread: float
    contrast: float

    @property
    def grey_tolerance(self) -> float:
        """How much the structure's mean grey value may differ on another slice."""
        return max(self.spread, _GREY_SHIFT * abs(self.contrast))

    @property
    def stands_out(self) -> bool:
        """Whether it differs enough from its rim to be recognised."""
        return abs(self.contrast) >= _STANDS_OUT * self.spread


def appearance(picture: np.ndarray, mask: np.ndarray) -> Appearance:
    """The appearance of a structure with a non-empty mask (H, W) on a picture (H, W), 0 to 255."""
    inside, around = picture[mask], picture[rim(mask, *_RIM)]
    grey = float(inside.mean())
    contrast = grey - float(around.mean()) if len(around) else 0.0
    return Appearance(len(inside), grey, max(float(inside.std()), SMALLEST_SPREAD), contrast)


def is_unchanged(prompted: Appearance, picture: np.ndarray, mask: np.ndarray, before: np.ndarray) -> bool:
    """Whether a mask shows the same structure as on the prompted slice, in the same place as on the slice before.

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

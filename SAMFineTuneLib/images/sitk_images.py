"""Between SimpleITK images (LPS) and this library's arrays and RAS matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.images.volume import affine_from_lps, lps_from_affine


def to_sitk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Image from an array [k, j, i] and its RAS affine."""
    image = sitk.GetImageFromArray(array)
    origin, directions, spacing = lps_from_affine(affine)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(directions.ravel().tolist())
    return image


def affine_of(image: sitk.Image) -> np.ndarray:
    """RAS affine (4×4) of a 3-D image."""
    return affine_from_lps(image.GetOrigin(), image.GetDirection(), image.GetSpacing())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ITK's own warnings off the terminal: what matters to the user is said in our sentences."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)

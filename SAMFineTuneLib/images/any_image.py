"""Whatever a Python program has as an image, as a volume."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume


def as_volume(image: Any, affine: np.ndarray | None = None, series: str | None = None) -> Volume:
    """Read or wrap an image.

    Args:
        image: a path, a SimpleITK image, a nibabel image, an array [k, j, i] with its `affine`, or a volume.
        affine: 4 × 4, voxel (i, j, k) to RAS in mm; for an array, and only there.
        series: which DICOM series of a folder; for a path only.

    Returns:
        The volume; arrays are not copied.

    Raises:
        UserError: for what is none of these, an array without affine, more or fewer than three dimensions.
    """
    is_array = isinstance(image, np.ndarray)
    if is_array and affine is None:
        raise UserError("An array needs affine=, the 4 × 4 matrix from voxels (i, j, k) to RAS in mm.")
    if affine is not None and not is_array:
        raise UserError("affine= belongs to an array; other images say themselves where they lie.")
    if series is not None and not isinstance(image, str | os.PathLike):
        raise UserError("series= chooses among the DICOM series of a folder; leave it out for other images.")
    if is_array:
        return Volume(image, affine)
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | os.PathLike):
        from SAMFineTuneLib.images.read_image import read_volume

        return read_volume(image, series)
    if hasattr(image, "GetDirection") and hasattr(image, "GetSpacing"):  # SimpleITK
        import SimpleITK as sitk

        from SAMFineTuneLib.images.sitk_images import affine_of

        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise UserError("The SimpleITK image must have three dimensions and one value a voxel; extract one volume.")
        return Volume(sitk.GetArrayFromImage(image), affine_of(image))
    if hasattr(image, "dataobj") and hasattr(image, "affine"):  # nibabel
        if len(image.shape) != 3:
            raise UserError(f"The nibabel image has the shape {image.shape}; take one volume of it, with three axes.")
        return Volume(np.asanyarray(image.dataobj).T, image.affine)
    raise UserError(
        f"{type(image).__name__} is not an image: give a path, a SimpleITK or nibabel image, or an array with affine=."
    )

"""Makes a volume from any kind of image that Python programs use."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume, is_sheared

_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
"""nibabel's names of units of length, other than mm."""


def as_volume(image: Any, affine: np.ndarray | None = None, series: str | None = None) -> Volume:
    """Read or wrap an image.

    Args:
        image: a path, a SimpleITK image, a nibabel image, an array [k, j, i] with its `affine`, or a volume. An array
            or SimpleITK image of two dimensions is one slice.
        affine: 4 × 4, voxel (i, j, k) to RAS in mm; for an array, and only there.
        series: which DICOM series of a folder; for a path only.

    Returns:
        The volume; its voxels stay as they are now, whatever becomes of an array that was given.

    Raises:
        UserError: for anything else, an array without affine, colours, several volumes in one image, and axes
            that are not perpendicular.
    """
    if series is not None and not isinstance(image, str | os.PathLike):
        raise UserError("series= chooses among the DICOM series of a folder; leave it out for other images.")
    own = _read(image, series)
    if own is not None:
        if affine is not None:
            raise UserError("affine= belongs to an array; other images hold their own geometry.")
        return own
    if not hasattr(image, "__array__"):
        kind = type(image).__name__
        raise UserError(f"{kind} is not an image: give a path, a SimpleITK or nibabel image, or an array with affine=.")
    if affine is None:
        raise UserError("An array needs affine=, the 4 × 4 matrix from voxels (i, j, k) to RAS in mm.")
    array = _unchanging(np.asanyarray(image))  # keeps the mask of a masked one
    return _volume(array[None] if array.ndim == 2 else array, affine)


def _read(image: Any, series: str | None) -> Volume | None:
    """The volume of an image that has a geometry of its own; None for any other."""
    if isinstance(image, Volume):
        return image
    if isinstance(image, str | os.PathLike):
        from SAMFineTuneLib.images.read_image import read_volume

        return read_volume(image, series)
    if hasattr(image, "GetDirection") and hasattr(image, "GetSpacing"):  # SimpleITK
        import SimpleITK as sitk

        from SAMFineTuneLib.images.sitk_images import affine_of

        if image.GetPixelIDTypeAsString().startswith("label of"):  # any other access would crash the process
            raise UserError("A SimpleITK LabelMap holds no voxels; convert it with SimpleITK.Cast, to sitkUInt16.")
        if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
            raise UserError("The SimpleITK image must be one volume with one value a voxel; extract that first.")
        image = sitk.JoinSeries(image) if image.GetDimension() == 2 else image
        return _volume(sitk.GetArrayFromImage(image), affine_of(image))
    if hasattr(image, "dataobj") and hasattr(image, "affine"):  # nibabel
        shape = tuple(image.shape)
        if len(shape) < 3 or any(length > 1 for length in shape[3:]):
            raise UserError(f"The nibabel image has the shape {shape}; take one volume of it, with three axes.")
        if image.affine is None:
            raise UserError("The nibabel image has no affine; give its array with affine=.")
        unit = getattr(image.header, "get_xyzt_units", lambda: ("mm", ""))()[0]
        in_mm = np.diag([_MILLIMETRES.get(unit, 1.0)] * 3 + [1.0]) @ image.affine
        array = image.dataobj
        array = _unchanging(array) if isinstance(array, np.ndarray) else np.asanyarray(array)
        return _volume(array.reshape(shape[:3]).T, in_mm)
    return None


def _volume(array: np.ndarray, affine: np.ndarray) -> Volume:
    volume = Volume(array, affine)
    if is_sheared(volume.affine):
        raise UserError("The image's axes are not perpendicular (it is sheared); resample it to a straight grid first.")
    return volume


def _unchanging(array: np.ndarray) -> np.ndarray:
    """The array, or a copy if its memory can be written to: masks and grey values must be those of one image."""
    shared = array
    while isinstance(shared, np.ndarray):
        if shared.flags.writeable:
            return array.copy()
        shared = shared.base
    return array

"""Brings labels onto the grid of their image: exactly if both grids share their voxels, else by the nearest voxel.
Labels are refused if it is unclear how the two belong together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.cases.label_map import LabelMap
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.sitk_images import to_sitk
from SAMFineTuneLib.images.slice_plane import box_corners
from SAMFineTuneLib.images.volume import Volume, grid_distance

MATCHES = ("", "index", "position")
"""How labels find their voxels: "index" voxel by voxel, whatever positions the files give; "position" at the files'
positions; "" if both agree, else UserError.
"""
_SAME_PLACE = 0.05  # voxels by which two grids may differ and still be one
_NEAR = 1 - _SAME_PLACE  # voxels by which two grids of one size may differ without doubt about what is meant
_LEAST_INSIDE = 0.5  # part of the labelled voxels that must lie in the image
_OPTIONS = (
    "add --match-labels index if they belong to the image voxel by voxel, --match-labels position if they lie where "
    "their file says, or save them in the image's own geometry"
)


class Fitted(NamedTuple):
    """Labels [k, j, i] in an image's grid, and notes on how they were brought there."""

    array: np.ndarray
    notes: tuple[str, ...] = ()


def fit_labels(labels: LabelMap, volume: Volume, match: str = "") -> Fitted:
    """The label map in the volume's grid.

    Args:
        labels: The label map.
        volume: Its image.
        match: One of MATCHES.

    Raises:
        UserError: When the two do not belong together, or have one size but lie apart and `match` does not decide.
    """
    source = volume.source
    picture = source is not None and source.format in ("PNG", "JPEG")
    same_size = labels.array.shape == volume.shape
    if picture or not labels.placed:
        if not same_size:
            raise UserError(
                f"the label picture is {_size(labels.array.shape)}, but its image {_size(volume.shape)}; pictures hold "
                "no position, so both must have one size."
            )
        return Fitted(labels.array)
    own = Volume(labels.array, labels.affine)
    in_voxels = np.linalg.inv(volume.affine) @ labels.affine
    apart = grid_distance(labels.affine, volume.affine, volume.shape) if same_size else np.inf
    voxels = grid_distance(in_voxels, np.eye(4), volume.shape) if same_size else np.inf
    if voxels <= _SAME_PLACE:
        return Fitted(labels.array)
    if match == "index":
        if not same_size:
            raise UserError(
                f"the labels are {_size(labels.array.shape)} voxels and the image {_size(volume.shape)}, so "
                "--match-labels index is impossible; leave it out."
            )
        return Fitted(labels.array, (
            f"The labels were taken voxel by voxel, although their file places them {apart:.1f} mm from the image.",
        ))  # fmt: skip
    steps = _steps(in_voxels, own)
    turned = steps is not None and _same_box(own, volume)  # the same voxels, stored along other axes
    if not match and not turned:
        _require_clear(own, volume, apart, voxels)
    moved = _moved(own, volume, steps)
    if same_size and voxels > _NEAR and not turned:
        note = f"The labels were taken from where their file places them, {apart:.1f} mm from the image's voxels."
        return Fitted(moved.array, (note, *moved.notes))
    return moved


def _require_clear(labels: Volume, volume: Volume, apart: float, voxels: float) -> None:
    """Raise UserError if one of the files may have lost its geometry."""
    if np.isfinite(apart) and voxels > _NEAR:
        lost = next((what for what, one in (("labels", labels), ("image", volume)) if _is_identity(one.affine)), "")
        why = f", and the file of the {lost} holds no geometry of its own" if lost else ""
        raise UserError(f"the labels have the image's size, but lie {apart:.1f} mm away from it{why}: {_OPTIONS}.")
    if not np.isfinite(apart) and _is_identity(labels.affine) != _is_identity(volume.affine):
        lost, other = ("labels", "image") if _is_identity(labels.affine) else ("image", "labels")
        raise UserError(
            f"the file of the {lost} holds no geometry of its own (1 mm voxels from 0, 0, 0 on), that of the {other} "
            f"does, and the labels are {_size(labels.shape)} voxels, the image {_size(volume.shape)}: save both "
            "in one geometry, or add --match-labels position if they do lie where their files say."
        )


def _moved(labels: Volume, volume: Volume, steps: np.ndarray | None) -> Fitted:
    """Each voxel of the volume gets the label of the nearest voxel of the labels."""
    total = int(np.count_nonzero(labels.array))
    centres = volume.ras_to_ijk(labels.ijk_to_ras(np.argwhere(labels.array)[:, ::-1]))
    inside = int(((centres >= -0.5) & (centres <= np.array(volume.shape[::-1]) - 0.5)).all(axis=1).sum())
    if inside < _LEAST_INSIDE * total:
        raise UserError(
            f"the labels do not lie on the image ({100 * inside / total:.0f} % of the labelled voxels are inside it); "
            "save them in the image's own geometry."
        )
    grid = to_sitk(np.zeros(volume.shape, np.uint8), volume.affine)
    moved = sitk.GetArrayFromImage(sitk.Resample(
        to_sitk(labels.array, labels.affine), grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt16
    ))  # fmt: skip
    notes = []
    if steps is None:
        before, after = (
            np.count_nonzero(array) * abs(np.linalg.det(affine[:3, :3])) / 1000
            for array, affine in ((labels.array, labels.affine), (moved, volume.affine))
        )
        notes.append(
            f"The labels ({_grid(labels)}) were resampled onto the image's grid ({_grid(volume)}): {before:.2f} mL "
            f"became {after:.2f} mL."
        )
    elif not np.array_equal(steps, np.eye(3)):
        notes.append("The labels are stored along other axes than the image, and were turned without loss.")
    elif labels.shape != volume.shape:  # a cut-out, or another image's
        notes.append(
            f"The labels have {_size(labels.shape)} voxels, the image {_size(volume.shape)}: check that they belong "
            "together; voxels without labels count as background."
        )
    if inside < total:
        notes.append(f"Left out, as outside the image: {total - inside} of {total} labelled voxels.")
    return Fitted(moved, tuple(notes))


def _steps(in_voxels: np.ndarray, labels: Volume) -> np.ndarray | None:
    """The volume's axes (columns of -1, 0 and 1) that correspond to the labels' axes where both grids share their voxel
    centres; None where they do not. `in_voxels` (4, 4) takes the labels' voxels to the volume's."""
    steps = np.rint(in_voxels[:3, :3])
    if not np.array_equal(np.abs(steps) @ np.ones(3), np.ones(3)) or abs(round(np.linalg.det(steps))) != 1:
        return None
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = steps, np.rint(in_voxels[:3, 3])
    return steps if grid_distance(in_voxels, whole, labels.shape) <= _SAME_PLACE else None


def _same_box(labels: Volume, volume: Volume) -> bool:
    """Whether both grids cover the same box, or one lies within the other."""
    corners = volume.ras_to_ijk(labels.ijk_to_ras(box_corners([0, 0, 0], np.array(labels.shape[::-1]) - 1)))
    low, high, last = corners.min(axis=0), corners.max(axis=0), np.array(volume.shape[::-1]) - 1
    within = (low >= -_SAME_PLACE).all() and (high <= last + _SAME_PLACE).all()
    around = (low <= _SAME_PLACE).all() and (high >= last - _SAME_PLACE).all()
    return bool(within or around)


def _is_identity(affine: np.ndarray) -> bool:
    """Whether this is the affine of programs without geometry: 1 mm voxels from 0, 0, 0 on, in RAS or LPS."""
    return any(np.allclose(affine, np.diag([*signs, 1, 1.0]), atol=1e-4) for signs in ((1, 1), (-1, -1)))


def _grid(volume: Volume) -> str:
    return f"{_size(volume.shape)} voxels of {' × '.join(f'{mm:.4g}' for mm in volume.spacing)} mm"


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in shape[::-1])

"""Parallel slices of a volume on one pixel grid, so that masks can be compared from slice to slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SlicePlane, Volume, aligned_plane, number_of_slices
from SAMFineTuneLib.images.slice_plane import box_corners


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices 0 to `count` - 1; all have the same shape, directions and pixel size."""

    count: int
    plane: Callable[[int], SlicePlane]
    place: Callable[[SlicePlane, np.ndarray], tuple[int, np.ndarray]]
    """Finds the index of a plane, and moves its mask to the stack's grid; UserError when it is not one of the
    slices."""

    @property
    def distance(self) -> float:
        """Distance from slice to slice in mm."""
        if self.count < 2:
            return float(self.plane(0).thickness)
        return abs(float((self.plane(1).origin - self.plane(0).origin) @ self.plane(0).normal))

    @property
    def up_is_increasing(self) -> bool:
        """Whether the index grows towards superior, anterior or right, whichever axis the slices follow."""
        if self.count < 2:
            return True
        towards = self.plane(1).origin - self.plane(0).origin
        return bool(towards[np.argmax(np.abs(self.plane(0).normal))] > 0)


def stack_through(volume: Volume, plane: SlicePlane) -> Stack:
    """The stack that a plane belongs to: the volume's own slices, or oblique ones, one slice thickness apart."""
    return _aligned(volume, plane.orientation) if plane.index is not None else _oblique(volume, plane)


def _aligned(volume: Volume, orientation: str) -> Stack:
    def place(plane: SlicePlane, mask: np.ndarray) -> tuple[int, np.ndarray]:
        if plane.orientation != orientation or plane.index is None:
            raise UserError(
                f"Slices of different orientations ({orientation} and {plane.orientation}) cannot be "
                "propagated together; choose one orientation."
            )
        return plane.index, mask

    return Stack(
        number_of_slices(volume, orientation), lambda index: aligned_plane(volume, orientation, index), place
    )


def _oblique(volume: Volume, plane: SlicePlane) -> Stack:
    """The stack of oblique slices. Its grid is `plane`'s, extended over the volume, because parallel planes cut the
    volume in different places."""
    corners = volume.ijk_to_ras(box_corners([0, 0, 0], np.array(volume.shape[::-1]) - 1))
    steps = plane.distance(corners) / plane.thickness
    below, above = (max(0, int(np.floor(reach + 0.5))) for reach in (-steps.min(), steps.max()))
    pixels = plane.ras_to_pixel(corners)
    rows, columns = plane.shape
    low = np.minimum(np.floor(pixels.min(axis=0)), 0).astype(int)
    high = np.maximum(np.ceil(pixels.max(axis=0)), (columns - 1, rows - 1)).astype(int)
    shape = (int(high[1] - low[1]) + 1, int(high[0] - low[0]) + 1)
    grid = replace(plane, origin=plane.pixel_to_ras(low), shape=shape)

    def plane_at(index: int) -> SlicePlane:
        return replace(grid, origin=grid.origin + (index - below) * plane.thickness * plane.normal)

    def place(other: SlicePlane, mask: np.ndarray) -> tuple[int, np.ndarray]:
        parallel = np.allclose([other.right, other.down], [grid.right, grid.down], atol=1e-4)
        offset = float(grid.distance(other.origin)) / plane.thickness
        if not parallel or not np.isclose(other.pixel_size, grid.pixel_size) or abs(offset - round(offset)) > 0.25:
            raise UserError(
                "Oblique slices can be propagated together only when they are parallel and whole slice "
                "thicknesses apart; propagate from one of them."
            )
        left, top = np.rint(grid.ras_to_pixel(other.origin)).astype(int)
        full = np.zeros(shape, dtype=bool)
        ys, xs = np.nonzero(mask)
        inside = (ys + top >= 0) & (ys + top < shape[0]) & (xs + left >= 0) & (xs + left < shape[1])
        full[ys[inside] + top, xs[inside] + left] = True
        return below + round(offset), full

    return Stack(below + above + 1, plane_at, place)

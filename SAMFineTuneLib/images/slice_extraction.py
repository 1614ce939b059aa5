"""Extracts slice planes from a volume, and writes masks of a plane back into its voxels.

NumPy alone, because a client without SimpleITK imports this, and SimpleITK would need a copy of the volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.trilinear import fill_plane

if TYPE_CHECKING:
    from SAMFineTuneLib.images.volume import Volume

_EXACT = 0.005  # voxels: positions this close to voxel centres count as the centres
_TIE = 1e-6  # voxels, pixels: so that floating point noise does not decide on which side of an edge a point lies

Block = tuple[slice, slice, slice]


def extract(volume: Volume, plane: SlicePlane) -> np.ndarray:
    """Resample the volume on a plane.

    Linear interpolation between voxel centres; the outer half of a border voxel has that voxel's value. Where pixels
    coincide with voxels, the values are the voxels' own.

    Returns:
        float32 [rows, columns]; pixels outside the volume have its lowest value.
    """
    aligned = _aligned(volume, plane)
    if aligned is None:
        values = np.full(plane.shape, volume.lowest, np.float32)
        corner, column, row = _pixel_steps(volume, plane)
        fill_plane(values, volume.array, corner + np.arange(plane.shape[0])[:, None] * row, column)
        return values
    values = aligned.slice_of(volume.array)
    values = _interpolate(_interpolate(values, aligned.rows, 0), aligned.columns, 1)
    return np.ascontiguousarray(values, dtype=np.float32)


def extract_labels(labelmap: np.ndarray, volume: Volume, plane: SlicePlane) -> np.ndarray:
    """Values of a label map [k, j, i] on a plane: each pixel gets that of the voxel it lies in, 0 outside the
    volume."""
    _require_shape(labelmap, volume)
    voxels, within = voxels_of_pixels(volume, plane)
    return np.where(within, labelmap[voxels], labelmap.dtype.type(0))


def picture(volume: Volume, plane: SlicePlane, window: IntensityWindow) -> np.ndarray:
    """The volume on a plane as a model sees it, uint8 [rows, columns]."""
    return window.apply(extract(volume, plane))


def write(
    mask: np.ndarray,
    plane: SlicePlane,
    labelmap: np.ndarray,
    volume: Volume,
    value: int,
    protect: bool = True,
    points: np.ndarray | None = None,
) -> Block | None:
    """Make a mask the shape of label `value` where its plane cuts a label map, which is changed in place.

    A voxel that the plane cuts (for an aligned plane, a voxel of the slice) gets `value` when the mask is true where
    the plane passes closest (in voxels) to its centre: then voxels thicker than pixels make the mask neither larger nor
    smaller on average. Other voxels of the cut that had `value` become 0.

    Args:
        mask: bool [rows, columns] of the plane.
        plane: the plane of the mask.
        labelmap: [k, j, i] of the volume's shape.
        volume: the volume whose grid the label map has.
        value: the label, 1 or more.
        protect: whether voxels of other labels stay as they are.
        points: (N, 2) x and y in pixels of points that the user placed. The voxel in which a point lies belongs to the
            mask when the mask is true at the point.

    Returns:
        The slices (k, j, i) of the smallest block around all changed voxels; None when none changed.

    Raises:
        UserError: when the label map has another shape, or its type cannot hold `value`.
    """
    mask = _mask_of(plane, mask)
    _require_shape(labelmap, volume)
    largest = np.iinfo(labelmap.dtype).max
    if not 1 <= value <= largest:
        raise UserError(f"The label value {value} does not fit: choose one from 1 to {largest}.")
    pointed = _pointed_voxels(mask, plane, volume, points)
    aligned = _aligned(volume, plane)
    if aligned is not None and (inside := _slice_mask(mask, aligned, volume, pointed)) is not None:
        before = aligned.slice_of(labelmap)
        after = _relabelled(before, inside, value, protect)
        changed = aligned.voxels_of(before != after)
        before[:] = after
    else:
        voxels, nearest, on_picture = _cut_voxels(volume, plane)
        # The last entry of a voxel counts where it is among the pointed ones as well.
        voxels = np.concatenate([voxels[:, on_picture], pointed[::-1]], axis=1)
        inside = np.concatenate([mask[nearest][on_picture], np.ones(pointed.shape[1], bool)])
        before = labelmap[tuple(voxels)]
        labelmap[tuple(voxels)] = _relabelled(before, inside, value, protect)
        changed = voxels[:, labelmap[tuple(voxels)] != before]
    return tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in changed) if changed.size else None


def covered_voxels(mask: np.ndarray, plane: SlicePlane, volume: Volume, points: np.ndarray | None = None) -> np.ndarray:
    """Find the voxels that `write` gives the label when nothing is protected.

    Args:
        mask: bool (rows, columns) of the plane.
        plane: where the mask lies.
        volume: only its grid counts, not its values. It may differ from the grid for which the plane was made: of a
            finer grid, all voxels are covered whose centres lie within half the plane's thickness.
        points: x and y (N, 2) in pixels of points that the user placed; see `write`.

    Returns:
        Indices (3, N) as k, j, i, each voxel once.
    """
    mask = _mask_of(plane, mask)
    if not mask.any():
        return np.empty((3, 0), np.intp)
    pointed = _pointed_voxels(mask, plane, volume, points)
    aligned = _aligned(volume, plane)
    if aligned is not None and plane.thickness / 2 < abs(plane.normal @ volume.affine[:3, aligned.slices]):
        if (inside := _slice_mask(mask, aligned, volume, pointed)) is not None:
            return aligned.voxels_of(inside)
    voxels, nearest, on_picture = _cut_voxels(volume, plane, _surroundings(mask, plane, volume))
    wanted = voxels[:, on_picture & mask[nearest]]
    return np.unique(np.concatenate([wanted, pointed[::-1]], axis=1), axis=1) if pointed.size else wanted


def _mask_of(plane: SlicePlane, mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != plane.shape:
        raise ValueError(f"The mask's shape {mask.shape} is not the plane's {plane.shape}.")
    return mask


def _require_shape(labelmap: np.ndarray, volume: Volume) -> None:
    if labelmap.shape != volume.shape:
        raise UserError(
            f"The label map has {labelmap.shape} slices, rows and columns, but the volume has {volume.shape}: "
            "resample it to the volume first."
        )


# ---- the plane's pixels in voxel coordinates


def _pixel_steps(volume: Volume, plane: SlicePlane) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxel coordinates (i, j, k) of pixel (0, 0), and the steps to the next column and the next row."""
    corner, column, row = volume.ras_to_ijk(plane.pixel_to_ras([[0, 0], [1, 0], [0, 1]]))
    return corner, column - corner, row - corner


class _Aligned(NamedTuple):
    """A plane whose rows and columns run along voxel axes, within one slice."""

    across: int  # voxel axis of the columns: 0 = i, 1 = j, 2 = k
    down: int
    slices: int
    index: int
    columns: np.ndarray  # position of every pixel column along `across`, in voxels
    rows: np.ndarray

    def slice_of(self, array: np.ndarray) -> np.ndarray:
        """View [down, across] of array [k, j, i], in the order of the voxels."""
        return array.transpose(2 - self.slices, 2 - self.down, 2 - self.across)[self.index]

    def voxels_of(self, mask: np.ndarray) -> np.ndarray:
        """Indices (3, N) as k, j, i of the voxels of a mask [down, across]."""
        voxels = np.empty((3, np.count_nonzero(mask)), np.intp)
        voxels[2 - self.slices] = self.index
        voxels[2 - self.down], voxels[2 - self.across] = np.nonzero(mask)
        return voxels


def _pixel_of_each_voxel(positions: np.ndarray, length: int) -> np.ndarray | None:
    """Index of the pixel in which each of `length` voxel centres lies; None when one lies outside all pixels.

    `positions` are the pixels' own, evenly spaced, in voxels.
    """
    step = positions[1] - positions[0] if len(positions) > 1 else 1.0
    pixels = (np.arange(length) - positions[0]) / step
    if pixels.min() < -0.5 - _EXACT or pixels.max() > len(positions) - 0.5 + _EXACT:
        return None
    return _nearest(pixels, len(positions))


def _aligned(volume: Volume, plane: SlicePlane) -> _Aligned | None:
    """The plane along voxel axes; None when it is oblique, leaves the volume, or the volume's axes are sheared."""
    corner, column, row = _pixel_steps(volume, plane)
    rows, columns = plane.shape
    across, down = int(np.abs(column).argmax()), int(np.abs(row).argmax())
    if across == down:
        return None
    slices = 3 - across - down
    index = round(float(corner[slices]))
    strays = [
        column[down] * (columns - 1),
        row[across] * (rows - 1),
        column[slices] * (columns - 1),
        row[slices] * (rows - 1),
        corner[slices] - index,
    ]
    last = np.array(volume.shape[::-1]) - 1
    along_columns = corner[across] + column[across] * np.arange(columns)
    along_rows = corner[down] + row[down] * np.arange(rows)
    fits = 0 <= index <= last[slices] and all(
        positions.min() >= -0.5 - _EXACT and positions.max() <= last[axis] + 0.5 + _EXACT
        for axis, positions in ((across, along_columns), (down, along_rows))
    )
    if not fits or np.abs(strays).max() > _EXACT:
        return None
    return _Aligned(across, down, slices, index, along_columns, along_rows)


def _interpolate(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Interpolate `values` linearly at fractional `positions` along an axis; constant beyond the outermost centres."""
    last, nearest = values.shape[axis] - 1, np.rint(positions)
    if np.abs(positions - nearest).max() <= _EXACT:
        return values.take(nearest.astype(int), axis)
    positions = np.clip(positions, 0, last)
    low = np.floor(positions).astype(int)
    share = (positions - low).astype(np.float32)
    below = values.take(low, axis).astype(np.float32)
    above = values.take(np.minimum(low + 1, last), axis).astype(np.float32)
    above -= below
    above *= share[:, None] if axis == 0 else share
    above += below
    return above


def _pixel_coordinates(volume: Volume, plane: SlicePlane) -> list[np.ndarray]:
    """[i, j, k] positions in voxels of the plane's pixels, each float64 [rows, columns]."""
    corner, column, row = _pixel_steps(volume, plane)
    rows, columns = np.arange(plane.shape[0])[:, None], np.arange(plane.shape[1])
    return [corner[axis] + row[axis] * rows + column[axis] * columns for axis in range(3)]


def voxels_of_pixels(volume: Volume, plane: SlicePlane) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Voxel indices (k, j, i) of every pixel's centre, and whether it lies in the volume."""
    voxels, within = [], np.ones(plane.shape, dtype=bool)
    for position, length in zip(_pixel_coordinates(volume, plane), volume.shape[::-1], strict=True):
        within &= (position >= -0.5 - _EXACT) & (position <= length - 0.5 + _EXACT)
        voxels.append(_nearest(position, length))
    return tuple(voxels[::-1]), within


def _nearest(position: np.ndarray, length: int) -> np.ndarray:
    """Index of the voxel, or pixel, in which a position lies."""
    return np.clip(np.floor(position + 0.5 + _TIE).astype(np.intp), 0, length - 1)


# ---- writing


def _slice_mask(mask: np.ndarray, aligned: _Aligned, volume: Volume, pointed: np.ndarray) -> np.ndarray | None:
    """The mask [down, across] at the centres of a slice's voxels, with the `pointed` voxels (3, N), as i, j, k; None
    when the picture does not cover the slice."""
    rows = _pixel_of_each_voxel(aligned.rows, volume.shape[2 - aligned.down])
    columns = _pixel_of_each_voxel(aligned.columns, volume.shape[2 - aligned.across])
    if rows is None or columns is None:
        return None
    inside = mask[np.ix_(rows, columns)]
    inside[pointed[aligned.down], pointed[aligned.across]] = True
    return inside


def _relabelled(labels: np.ndarray, inside: np.ndarray, value: int, protect: bool) -> np.ndarray:
    """Labels that are `value` where `inside` is true and nowhere else, except that other labels stay where they are to
    be protected."""
    others = (labels != 0) & (labels != value)
    own = inside & ~others if protect else inside
    return np.where(own, labels.dtype.type(value), np.where(others, labels, labels.dtype.type(0)))


def _pointed_voxels(mask: np.ndarray, plane: SlicePlane, volume: Volume, points: np.ndarray | None) -> np.ndarray:
    """Voxel indices (3, N) as i, j, k of the points (N, 2) that lie in the mask and in the volume."""
    if points is None or not len(points):
        return np.empty((3, 0), np.intp)
    points = np.asarray(points, float).reshape(-1, 2)
    columns, rows = (_nearest(points[:, axis], mask.shape[1 - axis]) for axis in (0, 1))
    ijk = volume.ras_to_ijk(plane.pixel_to_ras(points[mask[rows, columns]]))
    lengths = volume.shape[::-1]
    within = ((ijk >= -0.5 - _EXACT) & (ijk <= np.array(lengths) - 0.5 + _EXACT)).all(axis=1)
    return np.stack([_nearest(ijk[within, axis], lengths[axis]) for axis in range(3)])


def _surroundings(mask: np.ndarray, plane: SlicePlane, volume: Volume) -> np.ndarray:
    """Lowest and highest i, j, k (2, 3) of the voxels that a mask, which is not empty, may cover."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = (columns[0] - 2, columns[-1] + 2), (rows[0] - 2, rows[-1] + 2)
    corners = volume.ras_to_ijk(plane.pixel_to_ras([(a, b) for a in x for b in y]))
    gradient = plane.normal @ volume.affine[:3, :3]
    aside = _reach(gradient, plane) * np.abs(gradient) / (gradient @ gradient) + 1
    last = np.array(volume.shape[::-1]) - 1
    limits = np.stack([np.floor(corners.min(axis=0) - aside), np.ceil(corners.max(axis=0) + aside)])
    return np.clip(limits, [[0, 0, 0], [-1, -1, -1]], [last + 1, last]).astype(int)


def _reach(gradient: np.ndarray, plane: SlicePlane) -> float:
    """The largest distance in mm, along the normal, between a plane and the centre of a voxel that it covers.

    A plane covers the voxels that it cuts and those within its thickness; on the volume for which the plane was made,
    the former reach at least as far.
    """
    return max(np.abs(gradient).sum(), plane.thickness) / 2


def _cut_voxels(
    volume: Volume, plane: SlicePlane, limits: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Find the voxels that a plane cuts.

    Args:
        volume: its grid counts, not its values.
        plane: the plane.
        limits: lowest and highest i, j, k (2, 3) to search; default: the whole volume.

    Returns:
        Indices (3, N) as k, j, i; for each voxel the pixel (row, column) at the point of the plane that is closest to
        the voxel's centre, in voxel steps; and whether that pixel lies on the picture.
    """
    if limits is None:
        limits = np.array([[0, 0, 0], np.array(volume.shape[::-1]) - 1])
    low, high = limits
    gradient = plane.normal @ volume.affine[:3, :3]  # mm along the normal per voxel step
    gradient[np.abs(gradient) < 1e-6 * np.abs(gradient).max()] = 0
    offset = float(plane.distance(volume.affine[:3, 3]))
    reach = _reach(gradient, plane)
    # Of two slices of the grid that a plane lies halfway between, the one further along the normal is cut. An oblique
    # plane does not cut voxels that it only touches at a corner.
    furthest = reach * (1 + _TIE if np.count_nonzero(gradient) == 1 else 1 - _TIE)
    steep = int(np.abs(gradient).argmax())  # the plane crosses every column of voxels along this axis once
    others = [axis for axis in range(3) if axis != steep]
    counts = np.maximum(high - low + 1, 0)
    grid = np.indices(counts[others]).reshape(2, -1) + low[others][:, None]
    crossing = -(offset + gradient[others] @ grid) / gradient[steep]
    found = []
    steps = int(reach / abs(gradient[steep]) + 0.5)  # 1 where the plane's thickness is one voxel
    for step in range(-steps, steps + 1):
        at = np.rint(crossing) + step
        distance = gradient[steep] * (at - crossing)
        cut = (distance >= -reach * (1 - _TIE)) & (distance <= furthest) & (at >= low[steep]) & (at <= high[steep])
        voxels = np.empty((3, int(cut.sum())), dtype=np.intp)
        voxels[others] = grid[:, cut]
        voxels[steep] = at[cut]
        found.append((voxels, distance[cut]))
    voxels = np.concatenate([part for part, _ in found], axis=1)
    distance = np.concatenate([part for _, part in found])
    # Pixel coordinates are linear in i, j, k: those of the voxels, less the share of their distance from the plane.
    aside = distance / (gradient @ gradient)
    start = plane.ras_to_pixel(volume.affine[:3, 3])
    per_voxel = plane.ras_to_pixel(plane.origin + volume.affine[:3, :3].T).T  # of x and y, along i, j, k
    x, y = (
        first + a * voxels[0] + b * voxels[1] + c * voxels[2] - aside * ((a, b, c) @ gradient)
        for first, (a, b, c) in zip(start, per_voxel, strict=True)
    )
    on_picture = (np.minimum(x, y) > -1.5) & (x < plane.shape[1] + 0.5) & (y < plane.shape[0] + 0.5)
    return voxels[::-1], (_nearest(y, plane.shape[0]), _nearest(x, plane.shape[1])), on_picture

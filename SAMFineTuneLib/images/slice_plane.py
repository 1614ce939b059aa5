"""Slice planes: square-pixel grids in RAS, along a volume's own axes or oblique through it.

An aligned plane runs through the voxel centres of one slice. "Axial" is the pair of volume axes closest to
the patient's axial plane, so the planes of a tilted scan are tilted with it. A picture covers the volume to
the outer edge of its border voxels, hence half a voxel beyond their centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.images.volume import Volume

# name -> RAS axes across the slices, to the right and down; the last two point to lower numbers: the radiologist's view
_VIEWS = {
    "axial": (2, 0, 1),  # right is the patient's left, down is posterior
    "coronal": (1, 0, 2),  # right is the patient's left, down is inferior
    "sagittal": (0, 1, 2),  # right is posterior, down is inferior
}
ORIENTATIONS = tuple(_VIEWS)
_EDGE = 1e-4  # voxels, or pixels: smaller differences are floating point noise
EDGE_OF_SLICES = 2e-6  # voxels: a point this close to the edge between two slices counts as on it
_SLACK = 0.01  # pixels by which a grid may be too short: the errors of float32 matrices add up to less over a slice
_LARGEST_PICTURE = 4096  # pixels: thick-sliced volumes are not enlarged beyond it


@dataclass(frozen=True, eq=False, repr=False)
class SlicePlane:
    """A grid of square pixels in RAS. Pixel (row 0, column 0) is centred on `origin`; units are mm.

    Coordinates are snapped to a millionth of a mm, so that a plane survives JSON unchanged.
    """

    origin: np.ndarray  # RAS of the centre of pixel row 0, column 0
    right: np.ndarray  # unit vector in which the column index grows
    down: np.ndarray  # unit vector in which the row index grows, perpendicular to `right`
    pixel_size: float
    shape: tuple[int, int]  # rows, columns
    orientation: str = "oblique"  # "axial", "coronal", "sagittal" or "oblique"
    index: int | None = None  # slice index along the volume's axis when aligned
    thickness: float | None = None  # slice thickness along the normal; None is one pixel

    def __post_init__(self) -> None:
        for name, decimals in (("origin", 6), ("right", 9), ("down", 9)):
            value = np.round(np.array(getattr(self, name), dtype=np.float64), decimals) + 0.0  # no -0
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "pixel_size", round(float(self.pixel_size), 9))
        thickness = self.pixel_size if self.thickness is None else round(float(self.thickness), 9)
        object.__setattr__(self, "thickness", thickness)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        object.__setattr__(self, "index", None if self.index is None else int(self.index))

    @property
    def normal(self) -> np.ndarray:
        """Unit vector right × down: superior for axial, anterior or posterior, and so on."""
        return np.cross(self.right, self.down)

    @property
    def key(self) -> str:
        """The same text for the same plane of one volume, whatever the floating point noise."""
        if self.index is not None:
            return f"{self.orientation}:{self.index}"
        # The cells' edges have an odd offset: round numbers never lie on one, so noise cannot change their cell.
        numbers = np.concatenate([self.origin * 1e3, np.concatenate([self.right, self.down]) * 1e5])
        cells = np.floor(numbers + 0.3819660113).astype(int)
        return f"{self.orientation}:{','.join(map(str, cells))}:{self.shape[0]}x{self.shape[1]}"

    def __str__(self) -> str:
        """ "axial slice 9 (S -40.0 mm)": its index from 0, and its position along the patient's axis; of a tilted slice
        the range of positions."""
        if self.index is None:
            return "the oblique plane"
        axis = _VIEWS[self.orientation][0]
        rows, columns = self.shape
        corners = self.pixel_to_ras([(0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)])[:, axis]
        ends = dict.fromkeys(f"{end + 0.0:.1f}" for end in np.round([corners.min(), corners.max()], 1))
        return f"{self.orientation} slice {self.index} ({'RAS'[axis]} {' to '.join(ends)} mm)"

    def __repr__(self) -> str:
        return f"<SlicePlane: {self}>"

    def to_dict(self) -> dict:
        """Plain values for JSON; `from_dict` gives an identical plane."""
        vectors = {name: getattr(self, name).tolist() for name in ("origin", "right", "down")}
        return {**self.__dict__, **vectors, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: dict) -> SlicePlane:
        """The plane of `to_dict`. UserError when `values` describe none."""
        try:
            plane = cls(**values)
            vectors = np.stack([plane.origin, plane.right, plane.down])
            axes = vectors[1:] @ vectors[1:].T
            aligned = plane.orientation in _VIEWS and plane.index is not None and plane.index >= 0
            usable = (
                vectors.shape == (3, 3)
                and np.isfinite(vectors).all()
                and np.allclose(axes, np.eye(2), atol=1e-6)
                and 0 < plane.pixel_size < np.inf
                and 0 < plane.thickness < np.inf
                and min(plane.shape) > 0
                and (aligned or (plane.orientation, plane.index) == ("oblique", None))
            )
        except (TypeError, ValueError, IndexError, OverflowError):
            usable = False
        if not usable:
            raise UserError("A stored slice plane is damaged: remove it and place its prompts again.")
        return plane

    def ras_to_pixel(self, points) -> np.ndarray:
        """RAS mm (..., 3) → (..., 2) as (column, row), pixel centres at integers; points off the plane are projected
        along its normal."""
        return (np.asarray(points, dtype=np.float64) - self.origin) @ (
            np.stack([self.right, self.down], axis=1) / self.pixel_size
        )

    def pixel_to_ras(self, pixels) -> np.ndarray:
        """(column, row) (..., 2) → RAS mm (..., 3)."""
        pixels = np.asarray(pixels, dtype=np.float64)
        return self.origin + pixels @ (np.stack([self.right, self.down]) * self.pixel_size)

    def distance(self, points) -> np.ndarray:
        """Signed distance in mm of RAS points (..., 3), positive on the side of `normal`."""
        return (np.asarray(points, dtype=np.float64) - self.origin) @ self.normal

    def contains(self, points) -> np.ndarray:
        """Whether RAS points (..., 3) lie within half a slice thickness of the plane."""
        return np.abs(self.distance(points)) <= self.thickness / 2 + _EDGE * self.pixel_size


def number_of_slices(volume: Volume, orientation: str) -> int:
    """The number of aligned planes of that orientation."""
    return volume.shape[2 - view_axes(volume, orientation)[2]]


def slice_range(volume: Volume, orientation: str, first: int | None = None, last: int | None = None) -> range:
    """Indices of a volume's slices of an orientation.

    Args:
        volume: whose slices.
        orientation: "axial", "coronal" or "sagittal".
        first: the first index, by default 0.
        last: the last index, which belongs to the range, by default that of the last slice.

    Raises:
        UserError: when there are no such slices.
    """
    count = number_of_slices(volume, orientation)
    first, last = 0 if first is None else first, count - 1 if last is None else last
    if not 0 <= first <= last < count:
        raise UserError(
            f"The slice range {first} to {last} does not fit: there are {orientation} slices 0 to {count - 1}."
        )
    return range(first, last + 1)


def aligned_plane(volume: Volume, orientation: str, index: int) -> SlicePlane:
    """The plane of the volume's own slice `index` (from 0, along the volume's axis) of an orientation.

    Its square pixels are as small as the smaller voxel side in the slice.

    Raises:
        UserError: when the volume has no such slice.
    """
    known = volume.geometry_cache.get((orientation, index))
    if known is not None:
        return known
    across, down_axis, slices_axis = view_axes(volume, orientation)
    count = volume.shape[2 - slices_axis]
    if not 0 <= index < count:
        raise UserError(f"There is no {orientation} slice {index}: the volume has {count}, from 0 to {count - 1}.")
    columns, rows = (
        -vector if vector[axis] > 0 else vector
        for vector, axis in zip(volume.affine[:3, [across, down_axis]].T, _VIEWS[orientation][1:], strict=True)
    )
    right, down = _unit_vectors(columns, rows)  # `down` differs from `rows` only when the volume's axes are sheared
    corners = _corners(volume)
    corners[:, slices_axis] = index
    plane = volume.geometry_cache[(orientation, index)] = _covering_plane(
        volume,
        volume.ijk_to_ras(corners),
        right,
        down,
        min(volume.spacing[across], volume.spacing[down_axis]),
        orientation=orientation,
        index=int(index),
        thickness=abs(volume.affine[:3, slices_axis] @ np.cross(right, down)),
    )
    return plane


def plane_through(volume: Volume, orientation: str, ras_point) -> SlicePlane:
    """The slice of an orientation whose plane lies nearest to a point.

    Args:
        volume: whose slice.
        orientation: "axial", "coronal" or "sagittal".
        ras_point: world RAS in mm.

    Raises:
        UserError: when the point is outside the volume.
    """
    require_inside(volume, ras_point, "The point")
    axis = view_axes(volume, orientation)[2]
    return aligned_plane(volume, orientation, nearest_slice(volume, axis, volume.ras_to_ijk(ras_point)[axis]))


def nearest_slice(volume: Volume, axis: int, coordinate: float) -> int:
    """Slice index along a volume axis for a voxel coordinate; the outer half of a border voxel belongs to it.

    On the edge between two slices, up to floating point noise, it is the upper one, which Slicer draws, too.
    """
    return int(np.clip(np.floor(coordinate + 0.5 + EDGE_OF_SLICES), 0, volume.shape[2 - axis] - 1))


def oblique_plane(volume: Volume, origin, right, down) -> SlicePlane:
    """The plane through a RAS point that covers the volume's cross-section.

    Its pixels are as small as the volume's smallest voxel side.

    Args:
        volume: the volume to cut.
        origin: RAS (3,) in mm of any point of the plane.
        right: RAS direction (3,) in which columns grow.
        down: RAS direction (3,) in which rows grow; it is made perpendicular to `right`.

    Raises:
        UserError: when the plane misses the volume, or the directions do not span a plane.
    """
    origin, right, down = (np.asarray(vector, dtype=np.float64) for vector in (origin, right, down))
    lengths = [np.linalg.norm(right), np.linalg.norm(down)]
    if not (np.isfinite(origin).all() and np.isfinite(lengths).all() and min(lengths) > 0):
        raise UserError("A plane needs three finite numbers each for its origin, right and down direction.")
    if np.linalg.norm(np.cross(right, down)) < 1e-3 * lengths[0] * lengths[1]:
        raise UserError("The plane's right and down directions are parallel: give two that span a plane.")
    right, down = _unit_vectors(right, down)
    normal = np.cross(right, down)
    cut = cross_section(volume.ijk_to_ras(_corners(volume)), origin, normal)
    if len(cut) < 3:
        raise UserError(
            f"The plane through {format_ras(origin)} misses the volume, which covers {format_bounds(volume)}."
        )
    per_voxel = np.linalg.solve(volume.affine[:3, :3], normal)  # voxels passed per mm along the normal
    thickness = 1 / float(np.linalg.norm(per_voxel))
    return _covering_plane(volume, cut, right, down, volume.spacing.min(), thickness=thickness)


def _unit_vectors(right: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both of length 1, and `down` perpendicular to `right`."""
    right = right / np.linalg.norm(right)
    down = down - right * (right @ down)
    return right, down / np.linalg.norm(down)


def cross_section(corners: np.ndarray, origin, normal) -> np.ndarray:
    """Cut a box with a plane.

    Args:
        corners: the box's (8, 3) in binary order (last axis fastest), as from `box_corners`.
        origin: a point (3,) of the plane.
        normal: (3,), of length 1.

    Returns:
        Corner points (N, 3) of the polygon, in any order; fewer than three when the plane misses the box.
    """
    distances = (corners - np.asarray(origin)) @ np.asarray(normal)
    touching = np.abs(distances) <= 1e-9 * (1 + np.abs(corners).max())
    side = np.where(touching, 0, np.sign(distances))
    edges = np.array([(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit])
    start, end = edges[side[edges].prod(axis=1) < 0].T
    share = distances[start] / (distances[start] - distances[end])
    return np.concatenate([corners[touching], corners[start] + share[:, None] * (corners[end] - corners[start])])


def box_corners(low, high) -> np.ndarray:
    """The eight corners (8, 3) between two opposite ones, in binary order."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    bits = (np.arange(8)[:, None] >> np.array([2, 1, 0])) & 1
    return np.where(bits, high, low)


def inside(volume: Volume, ras_points) -> np.ndarray:
    """Whether RAS points (..., 3) lie in the volume, which ends at the outer edge of its border voxels."""
    ijk = volume.ras_to_ijk(ras_points)
    last = np.array(volume.shape[::-1]) - 0.5
    return ((ijk >= -0.5 - _EDGE) & (ijk <= last + _EDGE)).all(axis=-1)


def require_inside(volume: Volume, ras_point, what: str) -> None:
    """Raise UserError when a RAS point is outside the volume; `what` begins its sentence."""
    point = np.asarray(ras_point, dtype=np.float64)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise UserError(f"{what} needs three finite numbers: right, anterior, superior in mm.")
    if not inside(volume, point):
        raise UserError(f"{what} at {format_ras(point)} {how_outside(volume, point)}.")


def how_outside(volume: Volume, ras_point) -> str:
    """The end of a sentence about a RAS point outside the volume: where it lies, and what may be wrong."""
    point = np.asarray(ras_point, dtype=np.float64)
    low, high = _bounds(volume)
    if ((point >= low) & (point <= high)).all():
        last = np.array(volume.shape[::-1]) - 0.5
        nearest = volume.ijk_to_ras(np.clip(volume.ras_to_ijk(point), -0.5, last))
        return (
            f"lies {np.linalg.norm(nearest - point):.1f} mm beside the slices, which are tilted and nearest to it at "
            f"{format_ras(nearest)}"
        )
    text = f"lies outside the volume, which covers {format_bounds(volume)}"
    if inside(volume, point * (-1, -1, 1)):
        text += "; with the signs of R and A changed it lies inside, so check whether these are LPS coordinates"
    return text


def require_voxels(volume: Volume, ijk, what: str) -> None:
    """Raise UserError when no part of the box around voxel coordinates (N, 3) lies in the volume; `what` begins its
    sentence.
    """
    ijk = np.asarray(ijk, dtype=np.float64).reshape(-1, 3)
    last = np.array(volume.shape[::-1]) - 0.5
    if (ijk.max(axis=0) < -0.5 - _EDGE).any() or (ijk.min(axis=0) > last + _EDGE).any():
        ranges = ", ".join(f"{axis} 0 to {n - 1}" for axis, n in zip("ijk", volume.shape[::-1], strict=True))
        raise UserError(f"{what} lies outside the volume, whose voxels are {ranges}.")


def format_ras(point) -> str:
    """ "R 12.5, A -3.0, S 100.0 mm"."""
    return ", ".join(f"{axis} {value:.1f}" for axis, value in zip("RAS", point, strict=True)) + " mm"


def format_bounds(volume: Volume) -> str:
    """The volume's extent along R, A and S, for sentences."""
    limits = zip("RAS", *_bounds(volume), strict=True)
    return ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in limits) + " mm"


def _bounds(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest R, A and S of the volume."""
    corners = volume.ijk_to_ras(_corners(volume))
    return corners.min(axis=0), corners.max(axis=0)


def view_axes(volume: Volume, orientation: str) -> tuple[int, int, int]:
    """Volume axes (0 = i, 1 = j, 2 = k) of an orientation: along the columns, the rows and the slices."""
    if orientation not in _VIEWS:
        raise UserError(f'"{orientation}" is not an orientation: choose one of {", ".join(ORIENTATIONS)}.')
    axes = volume.geometry_cache.get("axes")
    if axes is None:
        closeness = np.abs(volume.affine[:3, :3] / volume.spacing)
        # The best assignment of all three volume axes to R, A, S at once, so that none is used twice near 45°.
        axes = max(permutations(range(3)), key=lambda order: round(sum(closeness[range(3), order]), 9))
        volume.geometry_cache["axes"] = axes
    slices, right, down = _VIEWS[orientation]
    return axes[right], axes[down], axes[slices]


def _corners(volume: Volume) -> np.ndarray:
    """Outer corners of the border voxels, (8, 3) voxel coordinates."""
    return box_corners([-0.5] * 3, np.array(volume.shape[::-1]) - 0.5)


def _covering_plane(volume: Volume, points, right, down, pixel_size, **kind) -> SlicePlane:
    """The smallest grid that covers coplanar RAS `points`, centred on their bounding rectangle."""
    across, along = points @ right, points @ down
    low = np.array([across.min(), along.min()])
    extent = np.array([across.max(), along.max()]) - low
    pixel_size = max(pixel_size, extent.max() / (max(_LARGEST_PICTURE, *volume.shape) + _SLACK))
    size = np.maximum(1, np.ceil(extent / pixel_size - _SLACK)).astype(int)
    first = low + extent / 2 - (size - 1) / 2 * pixel_size
    normal = np.cross(right, down)
    origin = first[0] * right + first[1] * down + (points[0] @ normal) * normal
    return SlicePlane(origin, right, down, pixel_size, (size[1], size[0]), **kind)

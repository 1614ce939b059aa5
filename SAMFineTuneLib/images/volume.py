"""A volume: voxels, and the matrix that places them in the patient.

World is RAS in millimetres (x grows to the patient's right, y to anterior, z to superior) everywhere in the
library. DICOM's and SimpleITK's LPS differs in the sign of x and y: the two functions at the end convert.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.wording import counted

_LPS_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class VolumeSource:
    """Where a volume came from. It stays in memory: nothing of it is written into caches or logs."""

    files: tuple[Path, ...]
    format: str  # "DICOM", "NIfTI", "NRRD", "MetaImage", "PNG", "JPEG"
    series_uid: str = ""
    description: str = ""
    # DICOM only, one entry a slice k: (index into `files`, 1-based frame number), None for an interpolated slice.
    slices: tuple[tuple[int, int] | None, ...] = ()
    resampled: bool = False  # DICOM only: the images had uneven distances and were interpolated onto even ones


@dataclass(frozen=True)
class SeriesInfo:
    """One line of a folder's list of DICOM series. It holds nothing that identifies a patient.

    `--series` accepts `uid`: the SeriesInstanceUID, with `#2`, `#3`… appended to the further volumes of one series. A
    series has several when it holds echoes, b-values or phases, which `description` distinguishes, or slices of several
    orientations or sizes (localizers).
    """

    number: int  # 1-based position in the list, also accepted by `--series`
    uid: str
    description: str
    modality: str
    size: tuple[int, int, int]  # voxels along i, j, k
    spacing: tuple[float, float, float]  # mm along i, j, k; 0 where the files do not say
    files: int

    def __str__(self) -> str:
        size = "×".join(str(n) for n in self.size)
        spacing = "×".join(f"{mm:.4g}" for mm in self.spacing)
        files = counted(self.files, "file")
        modality, description = self.modality or "unknown modality", self.description or "no description"
        uid = self.uid or "no UID"
        return f"{self.number}: {modality}, “{description}”, {size} voxels of {spacing} mm, {files}, {uid}"


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """Voxels `array` [k, j, i] (slice, row, column) and `affine` (4×4 float64): voxel (i, j, k, 1) → RAS mm.

    The array is read-only. Note the order: the array is indexed [k, j, i], the affine takes (i, j, k).

    Raises:
        UserError: when the array is not a non-empty 3-D grid of real numbers, or the affine is not usable.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = ""  # "CT", "MR", …; "" when unknown
    window: IntensityWindow | None = None  # the window stored in the file
    source: VolumeSource | None = None
    warnings: tuple[str, ...] = ()  # sentences for the user, for example about uneven slices

    def __post_init__(self) -> None:
        array = self.array
        if np.ma.is_masked(array):  # masked voxels have no value
            array = array.astype(np.result_type(array.dtype, np.float32)).filled(np.nan)
        array = np.asarray(array)
        if array.ndim != 3 or array.size == 0:
            raise UserError(f"A volume needs three non-empty dimensions, but this image is {array.shape}.")
        if array.dtype.kind not in "iufb":
            raise UserError(f"A volume needs real numbers as voxels, but this image holds {array.dtype}.")
        try:
            affine = np.array(self.affine, dtype=np.float64)
        except (TypeError, ValueError):
            affine = np.array(np.nan)
        usable = affine.shape == (4, 4) and np.isfinite(affine).all()
        if not usable or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise UserError("The image's geometry is not a finite 4×4 matrix; export the image again.")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
            raise UserError("The image's axes do not span three dimensions; export the image again.")
        array = array.view()
        array.flags.writeable = False
        affine.flags.writeable = False
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    def __str__(self) -> str:
        """ "CT of 512 × 512 × 20 voxels, 0.977 × 0.977 × 2 mm"."""
        size = " × ".join(str(n) for n in reversed(self.shape))
        spacing = " × ".join(f"{mm:.3g}" for mm in self.spacing)
        return f"{self.modality or 'volume'} of {size} voxels, {spacing} mm"

    def __repr__(self) -> str:
        """Short, and without the names of files."""
        return f"<Volume: {self}>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns (k, j, i)."""
        return self.array.shape

    @cached_property
    def spacing(self) -> np.ndarray:
        """Voxel size (3,) in mm along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def interpolated(self) -> frozenset[int]:
        """Indices k of slices that an otherwise even series lacks, and that were interpolated from their neighbours."""
        slices = self.source.slices if self.source is not None and not self.source.resampled else ()
        return frozenset(k for k, place in enumerate(slices) if place is None)

    @cached_property
    def lowest(self) -> float:
        """The lowest finite value; 0 when there is none."""
        lowest = float(self.array.min())
        if not np.isfinite(lowest):
            finite = self.array[np.isfinite(self.array)]
            lowest = float(finite.min()) if finite.size else 0.0
        return lowest

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of voxels and geometry; nothing in it identifies a patient."""
        return self._digest(self.affine)

    @cached_property
    def voxels_digest(self) -> str:
        """Hex SHA-256 of the voxels alone, wherever they lie."""
        return self._digest()

    def _digest(self, affine: np.ndarray | None = None) -> str:
        digest = begin_digest(self.array.dtype, self.array.shape, affine)
        for piece in self.array:  # slice by slice: no second copy of a large volume
            digest.update(np.ascontiguousarray(piece).data)
        return digest.hexdigest()

    @cached_property
    def geometry_cache(self) -> dict:
        """Cache of `slice_plane` for this volume's geometry, which every click needs."""
        return {}

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self.affine)

    def ijk_to_ras(self, points) -> np.ndarray:
        """Voxel coordinates (..., 3) as (i, j, k), centres at integers → RAS mm (..., 3)."""
        return np.asarray(points, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def ras_to_ijk(self, points) -> np.ndarray:
        """RAS mm (..., 3) → voxel coordinates (..., 3) as (i, j, k), not rounded."""
        return np.asarray(points, dtype=np.float64) @ self._inverse[:3, :3].T + self._inverse[:3, 3]


def affine_from_lps(origin, directions, spacing) -> np.ndarray:
    """RAS affine (4×4) from LPS origin (3,), directions (3, 3) with axes i, j, k as columns, spacing (3,)."""
    affine = np.eye(4)
    affine[:3, :3] = _LPS_RAS @ (np.asarray(directions, dtype=np.float64).reshape(3, 3) * np.asarray(spacing))
    affine[:3, 3] = _LPS_RAS @ np.asarray(origin, dtype=np.float64)
    return affine


def lps_from_affine(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of `affine_from_lps`: (origin (3,), directions (3, 3), spacing (3,)) in LPS."""
    axes = _LPS_RAS @ affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    return _LPS_RAS @ affine[:3, 3], axes / spacing, spacing


def is_sheared(affine: np.ndarray) -> bool:
    """Whether the axes of a grid, matrix (4, 4), are not perpendicular to a thousandth."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3)


def grid_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Largest distance between the same voxel of two grids.

    Args:
        first: matrix (4, 4) from (i, j, k, 1) to mm, or to another unit.
        second: the other grid's.
        shape: slices, rows, columns of both grids.

    Returns:
        The distance in the matrices' unit; infinite when a matrix is not (4, 4) or not finite.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != (4, 4) or second.shape != (4, 4) or not np.isfinite([first, second]).all():
        return np.inf
    corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in shape[::-1]))])
    return float(np.linalg.norm(corners @ (first - second)[:3].T, axis=1).max())


def same_grid(first: np.ndarray, second: np.ndarray, shape: tuple[int, int, int], tolerance: float) -> bool:
    """Whether no voxel of two grids lies further apart than `tolerance`; the arguments are those of `grid_distance`."""
    return grid_distance(first, second, shape) <= tolerance


def describe_place(position: np.ndarray, normal: np.ndarray) -> str:
    """Describe a position (3,) in LPS by the RAS coordinate along `normal` (3,): "S -12.5 mm"."""
    axis = int(np.abs(normal).argmax())
    return f"{'RAS'[axis]} {(_LPS_RAS @ position)[axis] + 0.0:.1f} mm"


def begin_digest(kind: np.dtype, shape: tuple[int, ...], affine: np.ndarray | None = None):
    """A SHA-256 of a volume, to be continued with its voxels in C order; of the voxels alone without `affine`."""
    geometry = b"" if affine is None else np.asarray(affine, dtype="<f8").tobytes()
    return hashlib.sha256(f"{kind.str} {tuple(shape)}".encode() + geometry)

"""Reads NIfTI, NRRD and MetaImage files through SimpleITK, which places them as Slicer does.

ITK says nothing about truncated NIfTI files, voxels that are not numbers and matrices that contradict each other; this
module checks for them.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.sitk_images import affine_of, quiet
from SAMFineTuneLib.images.volume import Volume, VolumeSource, grid_distance

_FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
_READERS = {"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
VOLUME_FILES = tuple(_FORMATS)
_UNITS = {1: (1000.0, "metres"), 3: (0.001, "micrometres")}  # of NIfTI's xyzt_units, in mm
_PIECE = 1 << 22  # bytes, a whole number of voxels
_SMALLEST = 0.01  # mm: voxels of scanners and of microscopes are larger along one axis at least
_PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"


def read_volume_file(path: Path) -> Volume:
    """Read a 3-D grey image, or a 2-D one as one slice.

    Raises:
        UserError: for a 4-D, coloured, sheared or damaged image.
    """
    kind = _format(path)
    start, no_numbers = _scan_nifti(path) if kind == "NIfTI" else (b"", np.empty(0, int))
    try:
        with quiet(), _permissive_nifti(), _plainly_named(path) as named:
            image = _read(named, path.name)
    except RuntimeError as error:
        raise _unreadable(path) from error
    array, colour = sitk.GetArrayFromImage(image), image.GetNumberOfComponentsPerPixel() > 1
    if colour:
        if array.shape[-1] not in (3, 4) or (array[..., :3] != array[..., :1]).any():
            raise UserError(f"“{path.name}” holds colours or vectors; only grey images can be segmented.")
        array = array[..., 0]
    if array.dtype.kind not in "iuf":
        raise UserError(f"“{path.name}” holds {array.dtype} numbers; only real numbers can be segmented.")
    if array.dtype.kind == "f":
        array.reshape(-1)[no_numbers[no_numbers < array.size]] = np.nan  # ITK reads them as 0
    affine = affine_of(image)
    warnings = _check_geometry(path, affine, array.shape, start)
    return Volume(_compact(array), affine, source=VolumeSource((path,), kind), warnings=warnings)


def _format(path: Path) -> str:
    return next(name for ending, name in _FORMATS.items() if path.name.lower().endswith(ending))


def _read(path: Path, name: str) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[_format(path)])  # ITK recognises some endings in lower case only
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if any(length > 1 for length in size[3:]):
        count = int(np.prod(size[3:]))
        raise UserError(
            f"“{name}” is 4-D: it holds {count} volumes (time points or channels); save the one to be "
            "segmented as a file of its own."
        )
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
    image = reader.Execute()
    return image if image.GetDimension() == 3 else sitk.JoinSeries(image)


@contextmanager
def _plainly_named(path: Path) -> Iterator[Path]:
    """The file under a name that ITK accepts: it refuses NIfTI endings in mixed case (`.Nii.gz`)."""
    ending = "".join(path.suffixes[-2:])
    if _format(path) != "NIfTI" or ending in (ending.lower(), ending.upper()):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder, f"image{'.nii.gz' if ending.lower().endswith('.gz') else '.nii'}")
        try:
            named.symlink_to(path.resolve())
        except OSError:  # Windows lets few users make links
            shutil.copyfile(path, named)
        yield named


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"“{path.name}” cannot be read: it is damaged, cut off or not what its ending says; copy or export "
        "it again."
    )


def _compact(array: np.ndarray) -> np.ndarray:
    """Halve the memory of 64-bit numbers: whole ones become int32 where they fit, all others float32."""
    if array.dtype.itemsize < 8:
        return array
    if array.dtype.kind in "iu" and array.min() >= -(2**31) and array.max() < 2**31:
        return array.astype(np.int32)
    return array.astype(np.float32)


@contextmanager
def _permissive_nifti() -> Iterator[None]:
    """Let ITK read NIfTI files whose sform is not quite orthonormal; `_check_geometry` limits how far."""
    before = os.environ.get(_PERMISSIVE)
    os.environ[_PERMISSIVE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PERMISSIVE]
        else:
            os.environ[_PERMISSIVE] = before


def _check_geometry(path: Path, affine: np.ndarray, shape: tuple[int, ...], start: bytes) -> tuple[str, ...]:
    """UserError for axes that are not perpendicular, which no label map can hold; warnings about a NIfTI file's
    geometry,
    whose first bytes are `start`."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise _sheared(path)
    return _check_nifti(path, affine, shape, NiftiGeometry.of(start)) if start else ()


def _sheared(path: Path) -> UserError:
    return UserError(
        f"The axes of “{path.name}” are not perpendicular (it is sheared), which no label map can follow; "
        "resample it to a straight grid first."
    )


def _check_nifti(
    path: Path, affine: np.ndarray, shape: tuple[int, ...], header: NiftiGeometry
) -> tuple[str, ...]:
    """Warn where a NIfTI file contradicts `affine`, which ITK, and so Slicer, derives from it: the file may hold two
    matrices, pixel sizes and a unit."""
    notes = []
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    said = " × ".join(f"{mm:.4g}" for mm in spacing)
    if header.unit != 1 and spacing.max() < _SMALLEST:
        notes.append(
            f"“{path.name}” gives its lengths in {header.unit_name}, which makes voxels of {said} mm; if that is "
            "wrong, correct its unit (xyzt_units)."
        )
    if not header.sform and not header.qform:
        notes.append(f"“{path.name}” does not say where it lies in the patient; its axes are taken as they come.")

    def off(matrix: np.ndarray) -> float:
        return grid_distance(matrix, affine, shape)

    if not header.sform or off(header.srow) <= 0.5 * spacing.min():
        if header.qform and header.sform and (mm := off(header.quaternion)) > 0.5 * spacing.min():
            notes.append(_two_positions(path, "sform", "qform", mm, affine, header.quaternion))
        return tuple(notes)
    if header.qform and off(header.quaternion) <= 0.5 * spacing.min():
        notes.append(_two_positions(path, "qform", "sform", off(header.srow), affine, header.srow))
        return tuple(notes)
    lengths = np.linalg.norm(header.srow[:3, :3], axis=0)
    if not np.allclose(lengths, spacing, rtol=1e-2):
        other = " × ".join(f"{mm:.4g}" for mm in lengths)
        notes.append(
            f"“{path.name}” contradicts itself: its voxels are {said} mm by its pixel sizes (pixdim), but {other} mm "
            "by its matrix (sform); the pixel sizes are used, as Slicer does, so check lengths and volumes."
        )
        return tuple(notes)
    raise _sheared(path)


def _two_positions(path: Path, used: str, other: str, mm: float, affine: np.ndarray, matrix: np.ndarray) -> str:
    turn = np.linalg.solve(affine[:3, :3], matrix[:3, :3])
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    return (
        f"“{path.name}” says in two ways where it lies ({used} and {other}), which differ by up to {mm:.3g} mm and "
        f"{angle:.3g}°; {used} is used, as Slicer does."
    )


@dataclass(frozen=True, eq=False)
class NiftiGeometry:
    """The geometry in a NIfTI-1 header; matrices (4×4) take (i, j, k) to RAS mm."""

    sform: bool
    qform: bool
    srow: np.ndarray
    quaternion: np.ndarray
    unit: float  # mm
    unit_name: str

    @classmethod
    def of(cls, start: bytes) -> NiftiGeometry:
        """From the first 348 bytes of a file, in either byte order."""
        order = _byte_order(start)
        pixdim = struct.unpack_from(f"{order}8f", start, 76)
        qform, sform = (code > 0 for code in struct.unpack_from(f"{order}2h", start, 252))
        b, c, d, *offset = struct.unpack_from(f"{order}6f", start, 256)
        unit, name = _UNITS.get(start[123] & 7, (1.0, "millimetres"))
        srow, quaternion = np.eye(4), np.eye(4)
        srow[:3] = np.reshape(struct.unpack_from(f"{order}12f", start, 280), (3, 4))
        a = math.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
        quaternion[:3, :3] = [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
        quaternion[:3, :3] *= [pixdim[1], pixdim[2], math.copysign(pixdim[3], -1 if pixdim[0] < 0 else 1)]
        quaternion[:3, 3] = offset
        srow[:3] *= unit
        quaternion[:3] *= unit
        sform, qform = sform and bool(np.isfinite(srow).all()), qform and bool(np.isfinite(quaternion).all())
        return cls(sform, qform, srow, quaternion, unit, name)


def _scan_nifti(path: Path) -> tuple[bytes, np.ndarray]:
    """The first 348 bytes of a NIfTI file, and the indices of its voxels, in their order, that are not finite.

    ITK fills up a truncated file with zeros, so its length is compared with the one that the header states.
    """
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            start = file.read(348)
            expected = _stated_bytes(start)
            length, kind, found = len(start), _float_type(start), []
            if kind is not None:
                (offset,) = struct.unpack_from(_byte_order(start) + "f", start, 108)
                length += len(file.read(max(0, int(offset) - length)))
            first = 0  # voxel of the piece that is read next
            while piece := file.read(_PIECE):
                length += len(piece)
                if kind is not None:
                    values = np.frombuffer(piece, kind, len(piece) // kind.itemsize)
                    found.append(first + np.flatnonzero(~np.isfinite(values)))
                    first += len(values)
    except PermissionError:
        raise
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _unreadable(path) from error
    if expected is None:
        raise UserError(
            f"“{path.name}” is not a NIfTI-1 file, and NIfTI-2 is not supported; save it as NIfTI-1."
        )
    if length < expected:
        raise UserError(f"“{path.name}” is cut off ({length} of {expected} bytes); copy or export it again.")
    return start, np.concatenate(found) if found else np.empty(0, int)


def _float_type(start: bytes) -> np.dtype | None:
    """The type of a NIfTI-1 file's voxels when they are 32- or 64-bit floating point numbers that follow the header."""
    if not (order := _byte_order(start)) or start[344:347] == b"ni1":
        return None
    (code,) = struct.unpack_from(order + "h", start, 70)
    return {16: np.dtype(f"{order}f4"), 64: np.dtype(f"{order}f8")}.get(code)


def _byte_order(start: bytes) -> str:
    """"<" or ">" for `struct`; "" when the header is not NIfTI-1's."""
    return next((order for order in "<>" if struct.unpack_from(order + "i", start, 0) == (348,)), "")


def _stated_bytes(start: bytes) -> int | None:
    """Length of a complete, unpacked NIfTI-1 file by its header; None for other files."""
    if not (order := _byte_order(start)):
        return None
    rank, *lengths = struct.unpack_from(order + "8h", start, 40)
    (bits,) = struct.unpack_from(order + "h", start, 72)
    (offset,) = struct.unpack_from(order + "f", start, 108)
    if start[344:347] == b"ni1":  # voxels in an .img file beside the header
        return 348
    return int(offset) + math.prod(lengths[: max(0, rank)]) * bits // 8

"""NIfTI, NRRD and MetaImage files, read by SimpleITK as Slicer reads them."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.sitk_images import affine_of, quiet
from SAMFineTuneLib.images.volume import Volume, VolumeSource

_FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
VOLUME_FILES = tuple(_FORMATS)
_PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"


def read_volume_file(path: Path) -> Volume:
    """Read one 3-D (or 2-D, as one slice) grey image. UserError for 4-D, colour, sheared or damaged ones."""
    kind = next(name for ending, name in _FORMATS.items() if path.name.lower().endswith(ending))
    if kind == "NIfTI":
        _check_complete(path)
    try:
        with quiet(), _permissive_nifti():
            image = _read(path)
    except RuntimeError as error:
        raise _unreadable(path) from error
    array, colour = sitk.GetArrayFromImage(image), image.GetNumberOfComponentsPerPixel() > 1
    if colour:
        if array.shape[-1] not in (3, 4) or (array[..., :3] != array[..., :1]).any():
            raise UserError(f"“{path.name}” holds colours or vectors; only grey images can be segmented.")
        array = array[..., 0]
    if array.dtype.kind not in "iuf":
        raise UserError(f"“{path.name}” holds {array.dtype} numbers; only real numbers can be segmented.")
    affine = affine_of(image)
    warnings = _check_geometry(path, image, affine)
    return Volume(_compact(array), affine, source=VolumeSource((path,), kind), warnings=warnings)


def _read(path: Path) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if any(length > 1 for length in size[3:]):
        count = int(np.prod(size[3:]))
        raise UserError(
            f"“{path.name}” is 4-D: it holds {count} volumes (time points or channels); save the one to be "
            "segmented as a file of its own."
        )
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
    image = reader.Execute()
    return image if image.GetDimension() == 3 else sitk.JoinSeries(image)


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"“{path.name}” cannot be read: it is damaged, cut off or not what its ending says; copy or export "
        "it again."
    )


def _compact(array: np.ndarray) -> np.ndarray:
    """64-bit numbers in half the memory: whole ones as int32 where they fit, all others as float32."""
    if array.dtype.itemsize < 8:
        return array
    if array.dtype.kind in "iu" and array.min() >= -(2**31) and array.max() < 2**31:
        return array.astype(np.int32)
    return array.astype(np.float32)


@contextmanager
def _permissive_nifti() -> Iterator[None]:
    """Let ITK read NIfTI files whose sform is not quite orthonormal; `_check_geometry` judges how far off."""
    before = os.environ.get(_PERMISSIVE)
    os.environ[_PERMISSIVE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PERMISSIVE]
        else:
            os.environ[_PERMISSIVE] = before


def _check_geometry(path: Path, image: sitk.Image, affine: np.ndarray) -> tuple[str, ...]:
    """Refuse axes that are not perpendicular, which no label map can hold; say it when nothing is known."""
    sheared = UserError(
        f"The axes of “{path.name}” are not perpendicular (it is sheared), which no label map can follow; "
        "resample it to a straight grid first."
    )
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise sheared
    if not image.HasMetaDataKey("sform_code"):
        return ()
    codes = [
        image.GetMetaData(key) if image.HasMetaDataKey(key) else "0" for key in ("sform_code", "qform_code")
    ]
    if codes == ["0", "0"]:
        return (f"“{path.name}” does not say where it lies in the patient; its axes are taken as they come.",)
    if codes[0] == "0":
        return ()
    stored = np.array([image.GetMetaData(f"srow_{axis}").split() for axis in "xyz"], dtype=np.float64)
    corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in image.GetSize()))])
    off = np.linalg.norm(corners @ (stored - affine[:3]).T, axis=1).max()
    if off > 0.5 * np.linalg.norm(affine[:3, :3], axis=0).min():
        raise sheared
    return ()


def _check_complete(path: Path) -> None:
    """ITK reads a NIfTI file that was cut off as zeros; compare its length with what its header promises."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            start = file.read(348)
            expected = _promised_bytes(start)
            length = len(start)
            while piece := file.read(1 << 22):
                length += len(piece)
    except PermissionError:
        raise
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _unreadable(path) from error
    if expected is None:
        raise UserError(
            f"“{path.name}” is no NIfTI-1 file, and NIfTI-2 is not supported; save it as NIfTI-1."
        )
    if length < expected:
        raise UserError(f"“{path.name}” is cut off ({length} of {expected} bytes); copy or export it again.")


def _promised_bytes(start: bytes) -> int | None:
    """Length of a whole, unpacked NIfTI-1 file by its header, in either byte order; None for other files."""
    for order in "<>":
        if struct.unpack_from(order + "i", start, 0) == (348,):
            rank, *lengths = struct.unpack_from(order + "8h", start, 40)
            (bits,) = struct.unpack_from(order + "h", start, 72)
            (offset,) = struct.unpack_from(order + "f", start, 108)
            separate = start[344:347] == b"ni1"  # voxels in an .img file beside the header
            return 348 if separate else int(offset) + math.prod(lengths[: max(0, rank)]) * bits // 8
    return None

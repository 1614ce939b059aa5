"""Reads NIfTI, NRRD and MetaImage files through SimpleITK, which places them as Slicer does.

ITK says nothing about truncated NIfTI files, damaged compressed voxels, voxels that are not numbers and matrices that
contradict each other; this module checks for them.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.sitk_images import affine_of, quiet, require_utf8
from SAMFineTuneLib.images.text_headers import check_text_header, longer, unfinished_text, voxel_files
from SAMFineTuneLib.images.volume import Volume, VolumeSource, grid_distance, is_sheared

_FORMATS = {".nii": "NIfTI", ".nii.gz": "NIfTI", ".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage",
            ".mhd": "MetaImage"}  # fmt: skip
_READERS = {"NIfTI": "NiftiImageIO", "NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
VOLUME_FILES = tuple(_FORMATS)
_SMALLEST = 0.01  # mm: at least one side of a scanner's or microscope's voxel is larger
_LARGEST = 200.0  # mm: no scanner has larger ones
_PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"
_HEADER = np.dtype({
    "names": ["size", "dim", "datatype", "bits", "pixdim", "offset", "slope", "intercept", "units", "qform_code",
              "sform_code", "quaternion", "shift", "srow", "magic"],
    "formats": ["i4", "8i2", "i2", "i2", "8f4", "f4", "f4", "f4", "u1", "i2", "i2", "3f4", "3f4", "(3,4)f4", "S4"],
    "offsets": [0, 40, 70, 72, 76, 108, 112, 116, 123, 252, 254, 256, 268, 280, 344],
    "itemsize": 348,
})  # fmt: skip
"""The fields of a NIfTI-1 header that are used."""
_LONGEST_QUATERNION = 1.01  # its part that NIfTI stores: a unit quaternion without its first number
_VOXELS_FROM = 352  # byte from which on a NIfTI-1 file may hold voxels
_FLOATS = {16: "f4", 64: "f8"}  # NIfTI's numbers of types
_SIZES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}  # bytes of types of grey voxels
_NOT_GREY = (32, 128, 1792, 2304)  # types of complex numbers and colours, which ITK reads
_GZIP = b"\x1f\x8b"  # how a gzip stream begins
_UNITS = {1: (1000.0, "metres"), 3: (0.001, "micrometres")}  # of lengths, in mm


def read_volume_file(path: Path) -> Volume:
    """Read a 3-D grey image, or a 2-D one as one slice.

    Raises:
        UserError: for a 4-D, coloured, sheared or damaged image.
    """
    require_utf8(path)
    kind = _format(path)
    header, no_numbers, warnings = _scan_nifti(path) if kind == "NIfTI" else (None, np.empty(0, int), ())
    if header is not None:
        _require_matrix(path, header)
    try:
        warnings += () if kind == "NIfTI" else check_text_header(path)
        with quiet(native=True), _permissive_nifti(), _plainly_named(path) as named, _with_last_number(named) as whole:
            image = _read(whole, path.name)
    except UserError:
        raise
    except (RuntimeError, ValueError, zlib.error) as error:
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
    if is_sheared(affine):
        raise sheared(path)
    if header is not None:
        warnings += _check_nifti(path, affine, array.shape, header)
    return Volume(array, affine, source=VolumeSource((path,), kind), warnings=warnings)


def files_of(path: Path) -> list[Path]:
    """A file, and those in which it says that it has its voxels."""
    return [path] if _format(path) == "NIfTI" else [path, *voxel_files(path)]


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


@contextmanager
def _with_last_number(path: Path) -> Iterator[Path]:
    """The file, or a copy of a MetaImage that is text, with the line break at its end that ITK needs."""
    unfinished = unfinished_text(path) if _format(path) == "MetaImage" else None
    if unfinished is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in {path, unfinished}:
            Path(folder, file.name).write_bytes(file.read_bytes() + b"\n")
        yield Path(folder, path.name)


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"“{path.name}” cannot be read: it is damaged, cut off or not what its ending says; copy or export it again."
    )


@contextmanager
def _permissive_nifti() -> Iterator[None]:
    """Let ITK read NIfTI files whose sform is not quite orthonormal; `read_volume_file` limits how far."""
    before = os.environ.get(_PERMISSIVE)
    os.environ[_PERMISSIVE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PERMISSIVE]
        else:
            os.environ[_PERMISSIVE] = before


def sheared(path: Path) -> UserError:
    """The error for an image whose axes are not perpendicular."""
    return UserError(
        f"The axes of “{path.name}” are not perpendicular (it is sheared), which no label map can follow; "
        "resample it to a straight grid first."
    )


def _require_matrix(path: Path, header: np.void) -> None:
    """Raise UserError when the matrix that ITK would use is unusable: it reads NaN as 0, or calls it a rotation."""
    sform, problem = header["srow"], ""
    if header["sform_code"] > 0:
        lengths = np.linalg.norm(sform[:, :3], axis=0)
        if not np.isfinite(sform).all():
            problem = "sform) holds values that are not numbers"
        elif header["qform_code"] <= 0 and abs(np.linalg.det(sform[:, :3])) <= 1e-6 * lengths.prod():
            problem = "sform) gives no three directions"
    elif header["qform_code"] > 0 and not np.isfinite([*header["quaternion"], *header["shift"]]).all():
        problem = "qform) holds values that are not numbers"
    elif header["qform_code"] > 0 and np.linalg.norm(header["quaternion"]) > _LONGEST_QUATERNION:
        problem = "qform) is not a rotation"
    if problem:
        raise UserError(
            f"The matrix of “{path.name}” ({problem}, so that it is not known where the image lies; export it again."
        )


def _check_nifti(path: Path, affine: np.ndarray, shape: tuple[int, ...], header: np.void) -> tuple[str, ...]:
    """Sentences about where a NIfTI file contradicts `affine`, which ITK, and so Slicer, derives from it: the file may
    hold two matrices, pixel sizes and a unit. UserError when no label map can follow its matrix."""
    notes = []
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    said = " × ".join(f"{mm:.4g}" for mm in spacing)
    unit, unit_name = _UNITS.get(header["units"] & 7, (1.0, ""))
    if unit_name and not _SMALLEST < spacing.max() < _LARGEST:
        notes.append(
            f"“{path.name}” gives its lengths in {unit_name}, which makes voxels of {said} mm; if that is wrong, "
            "correct its unit (xyzt_units)."
        )
    sizes = header["pixdim"][1 : 1 + min(3, max(0, int(header["dim"][0])))]
    if not (sizes > 0).all() or not np.isfinite(sizes).all():
        given = " × ".join(f"{size:.4g}" for size in sizes)
        notes.append(
            f"“{path.name}” gives pixel sizes (pixdim) of {given}, which is impossible; {said} mm are used, as in "
            "Slicer, so check lengths, and left and right."
        )
    if header["slope"] == 0 and header["intercept"] != 0 and np.isfinite(header["intercept"]):
        notes.append(
            f"“{path.name}” gives an offset of values (scl_inter, {header['intercept']:g}) without a scale "
            "(scl_slope), which Slicer adds, and so does this program, but others do not."
        )
    matrices = _matrices(header, unit)
    if not matrices:
        notes.append(f"“{path.name}” does not say where it lies in the patient; its axes are used as they are.")
    off = {name: grid_distance(matrix, affine, shape) for name, matrix in matrices.items()}
    used = [name for name, mm in off.items() if mm <= 0.5 * spacing.min()]
    if "sform" in matrices and not used:
        lengths = np.linalg.norm(matrices["sform"][:3, :3], axis=0)
        if header["dim"][0] < 3:
            notes.append(
                f"“{path.name}” has only two axes, so that its place along the third is not read, as in Slicer: by its "
                f"matrix (sform) it lies up to {off['sform']:.3g} mm away; save it with a third axis of one slice."
            )
            return tuple(notes)
        if is_sheared(matrices["sform"]) or np.allclose(lengths, spacing, rtol=1e-2):
            raise sheared(path)
        other = " × ".join(f"{mm:.4g}" for mm in lengths)
        notes.append(
            f"“{path.name}” contradicts itself: its voxels are {said} mm by its pixel sizes (pixdim), but {other} mm "
            "by its matrix (sform); the pixel sizes are used, as Slicer does, so check lengths and volumes."
        )
    elif len(matrices) == 2 and len(used) == 1:
        (other,) = matrices.keys() - used
        turn = np.linalg.solve(affine[:3, :3], matrices[other][:3, :3])
        angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        notes.append(
            f"“{path.name}” says in two ways where it lies ({used[0]} and {other}), which differ by up to "
            f"{off[other]:.3g} mm and {angle:.3g}°; {used[0]} is used, as Slicer does."
        )
    return tuple(notes)


def _matrices(header: np.void, unit: float) -> dict[str, np.ndarray]:
    """The matrices (4, 4) from (i, j, k) to RAS mm that a NIfTI-1 header holds, by their names; `unit` in mm."""
    sform, qform = np.eye(4), np.eye(4)
    sform[:3] = header["srow"]
    b, c, d = header["quaternion"].tolist()
    a = math.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    qform[:3, :3] = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    handedness, *spacing = header["pixdim"][:4].tolist()
    qform[:3, :3] *= [*spacing[:2], math.copysign(spacing[2], -1 if handedness < 0 else 1)]
    qform[:3, 3] = header["shift"]
    found = {}
    for name, matrix in (("sform", sform), ("qform", qform)):
        matrix[:3] *= unit
        if header[f"{name}_code"] > 0 and np.isfinite(matrix).all() and (name == "qform" or np.linalg.det(matrix)):
            found[name] = matrix
    return found


def _require_ending(path: Path, gzipped: bool) -> None:
    """Raise UserError for a NIfTI file that is compressed although its ending says otherwise, or the other way round.
    """
    if not gzipped:
        raise UserError(f"“{path.name}” is compressed with gzip, unlike its ending; rename it to “{path.name}.gz”.")
    with open(path, "rb") as file:
        size = file.read(4)
    if _HEADER.itemsize in (int.from_bytes(size, "little"), int.from_bytes(size, "big")):
        raise UserError(f"“{path.name}” is not compressed, unlike its ending; rename it to “{path.name[:-3]}”.")
    raise _unreadable(path)


def _scan_nifti(path: Path) -> tuple[np.void, np.ndarray, tuple[str, ...]]:
    """The header of a NIfTI file, the indices of its voxels, in their order, that are not finite, and sentences about
    gaps in its header.

    ITK fills a truncated file with zeros, so its length is compared with the one that the header states.
    """
    no_numbers = np.empty(0, int)
    try:
        gzipped = path.name.lower().endswith(".gz")
        with open(path, "rb") as file:
            if (file.read(len(_GZIP)) == _GZIP) != gzipped:
                _require_ending(path, gzipped)
        with gzip.open(path) if gzipped else open(path, "rb") as file:
            data = file.read()
        orders = {order: np.frombuffer(data, _HEADER.newbyteorder(order), 1)[0] for order in "<>"}
        order = next((order for order, header in orders.items() if header["size"] == _HEADER.itemsize), None)
        if order is None:
            if data[4:7] == b"n+2" or data[4:7] == b"ni2":
                raise UserError(f"“{path.name}” is a NIfTI-2 file, which is not supported; save it as NIfTI-1.")
            raise _unreadable(path)
        header = orders[order]
        if header["magic"][:3] not in (b"n+1", b"ni1"):
            raise UserError(
                f"“{path.name}” lacks the mark of NIfTI (magic), as Analyze files do, which do not say where they lie; "
                "save it as NIfTI-1."
            )
        kind = int(header["datatype"])
        if kind not in (*_SIZES, *_NOT_GREY):
            raise UserError(
                f"“{path.name}” holds voxels of a type that is not supported (datatype {kind}); save them as whole "
                "numbers or as 32-bit or 64-bit floats."
            )
        rank, *lengths = header["dim"].tolist()
        start = max(_HEADER.itemsize, int(header["offset"]))  # as ITK reads it, also the next two lines
        size = _SIZES.get(kind, int(header["bits"]) // 8)
        lengths = [max(1, length) for length in lengths[: max(0, rank)]]
        slice_, voxels = math.prod(lengths[:2]) * size, math.prod(lengths) * size
    except (PermissionError, UserError):
        raise
    except (OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise _unreadable(path) from error
    if len(data) < start + voxels and header["magic"].startswith(b"ni1"):
        raise UserError(
            f"“{path.name}” is the header of an image whose voxels are in a file of their own (.img), which is not "
            "supported; save it as one file (.nii)."
        )
    if len(data) < start + voxels:
        raise UserError(f"“{path.name}” is cut off ({len(data)} of {start + voxels} bytes); copy or export it again.")
    if start < _VOXELS_FROM <= len(data) - voxels:
        raise UserError(
            f"“{path.name}” does not say where its voxels begin (vox_offset), and they would be read shifted; save it "
            "again with another program."
        )
    notes = ()
    if len(data) >= start + voxels + slice_ > start:
        notes = (longer(path, lengths),)
    if float_ := _FLOATS.get(kind):
        dtype = np.dtype(order + float_)
        values = np.frombuffer(data, dtype, (len(data) - start) // dtype.itemsize, start)
        no_numbers = np.flatnonzero(~np.isfinite(values))
    return header, no_numbers, notes

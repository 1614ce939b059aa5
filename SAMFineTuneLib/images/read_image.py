"""Reads an image of any format: DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_dicom import read_dicom_file, read_dicom_folder
from SAMFineTuneLib.images.read_picture import PICTURES, read_picture
from SAMFineTuneLib.images.read_volume_file import VOLUME_FILES, files_of, read_volume_file
from SAMFineTuneLib.images.volume import Volume

ENDINGS = (*VOLUME_FILES, *PICTURES)


def read_volume(path: str | Path, series: str | None = None, no_number: float | None = None) -> Volume:
    """Read a volume.

    Args:
        path: a DICOM folder or file, or a file ending in `.nii`, `.nii.gz`, `.nrrd`, `.nhdr`, `.mha`, `.mhd`, `.png`,
            `.jpg` or `.jpeg`. It may end with a # and a `series`, as lists of cases have it: `scans/case1#2`.
        series: which of several DICOM series of a folder, or volumes of a series or file: its number in `list_series`,
            its UID, or the beginning or end of the UID.
        no_number: the value of voxels that are not finite; default: the lowest finite one.

    Raises:
        UserError: one sentence about what cannot be read, and what to do.
    """
    path, chosen = split_choice(Path(path).expanduser())
    series = series or chosen
    try:
        if path.is_dir():
            return _with_usable_voxels(read_dicom_folder(path, series), no_number)
        if not path.exists():
            raise UserError(f"“{path}” does not exist; check the path.")
        if not path.is_file():
            raise UserError(f"“{path}” is a pipe or a device; save the image as a file, and give that.")
        if path.stat().st_size == 0:
            raise UserError(f"“{path}” is empty; copy or export it again.")
        with unchanged(path):
            return _with_usable_voxels(_read_file(path, series), no_number)
    except FileNotFoundError as error:
        raise UserError(f"“{error.filename or path}” was removed while it was read; put it back.") from error
    except PermissionError as error:
        raise UserError(f"“{error.filename or path}” may not be read; check its permissions.") from error
    except MemoryError as error:
        raise UserError(f"“{path}” does not fit into memory; crop or resample it first.") from error


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Read a file inside the block; UserError if it changed meanwhile: ITK reads what is missing as zeros."""
    before = _state(path)
    yield
    if _state(path) != before:
        raise UserError(f"“{path}” changed while it was read; read it again when it is complete.")


def _state(path: Path) -> list[tuple[int, int]]:
    """What changes when another program writes a file, or one that it names."""
    files = files_of(path) if path.name.lower().endswith(VOLUME_FILES) else [path]
    return [(file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists()]


def split_choice(path: Path) -> tuple[Path, str | None]:
    """Split a path from the choice of a series that follows a #; None without one."""
    name, mark, chosen = path.name.partition("#")
    if mark and name and not os.path.exists(path) and os.path.exists(path.with_name(name)):
        return path.with_name(name), chosen or None
    return path, None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_file(path: Path, series: str | None) -> Volume:
    name = path.name.lower()
    if name.endswith(VOLUME_FILES):
        return read_volume_file(path)
    if name.endswith(PICTURES):
        return read_picture(path)
    if is_dicom(path) or name.endswith((".dcm", ".ima", ".dicom")):
        return read_dicom_file(path, series)
    endings = ", ".join(ENDINGS[:-1]) + f" or {ENDINGS[-1]}"
    raise UserError(f"“{path.name}” is not an image that can be read; give a DICOM folder or file, or {endings}.")


def _with_usable_voxels(volume: Volume, value: float | None) -> Volume:
    """Halve the memory of 64-bit numbers: whole ones become int32 where they fit, all others float32. Set voxels that
    are then not finite to a value, None for the lowest finite one, with a warning."""
    array = volume.array
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        fits = array.min() >= -(2**31) and array.max() < 2**31
        return replace(volume, array=array.astype(np.int32 if fits else np.float32))
    if array.dtype.kind != "f":
        return volume
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32, copy=False)
    finite = np.isfinite(narrow)
    if finite.all():
        return replace(volume, array=narrow)
    if not finite.any():
        raise UserError("The image holds no real number that 32 bits can hold in any voxel; export it again.")
    filling = np.float32(narrow[finite].min() if value is None else value)
    said = "the lowest value" if value is None else f"{value:g}"
    large = array[np.isfinite(array) & ~finite]
    notes = [
        f"{count} voxel{'s hold' if count > 1 else ' holds'} {what}; {said} is used there."
        for count, what in (
            (int((~finite).sum()) - large.size, "no real number"),
            (large.size, f"a number too large to compute with ({large[0]:.3g})" if large.size else ""),
        )
        if count
    ]
    return replace(volume, array=np.where(finite, narrow, filling), warnings=(*volume.warnings, *notes))

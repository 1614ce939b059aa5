"""Converts between SimpleITK images (LPS) and this library's arrays and RAS matrices."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume, affine_from_lps, lps_from_affine


def to_sitk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Image from an array [k, j, i] and its RAS affine."""
    image = sitk.GetImageFromArray(array)
    origin, directions, spacing = lps_from_affine(affine)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(directions.ravel().tolist())
    return image


def write_image(path: str | Path, volume: Volume) -> None:
    """Write the voxels and the place of a volume, compressed; the path's ending chooses the format.

    Raises:
        RuntimeError: when it cannot be written; `files.atomic_write` makes a sentence of that.
    """
    sitk.WriteImage(to_sitk(volume.array, volume.affine), str(path), useCompression=True)


def affine_of(image: sitk.Image) -> np.ndarray:
    """RAS affine (4×4) of a 3-D image."""
    return affine_from_lps(image.GetOrigin(), image.GetDirection(), image.GetSpacing())


def require_utf8(path: Path) -> None:
    """Raise UserError for a path with bytes that are not UTF-8, as from old archives: ITK would end the process.

    Where Python decodes names in another way than UTF-8, ITK would take another file.
    """
    if sys.getfilesystemencoding() != "utf-8" and not str(path).isascii():
        raise UserError(
            f"The name of “{path}” has letters that this environment's encoding does not show; set PYTHONUTF8=1, "
            "or rename it."
        )
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"The name of “{path}” is not encoded as UTF-8, which files of this format need; rename it."
        ) from error


@contextmanager
def quiet(native: bool = False) -> Iterator[None]:
    """Keep ITK's own warnings off the terminal: this library tells the user what matters.

    `native` also silences its C libraries, which print when a disk is full.
    """
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with _without_stderr() if native else nullcontext():
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _without_stderr() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # a program with windows may have no such streams
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)

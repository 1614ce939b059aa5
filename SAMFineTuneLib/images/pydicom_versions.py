"""Functions that pydicom 2, which Slicer 5.10 has, names differently from pydicom 3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom import encaps
from pydicom.dataset import Dataset


def _is_2() -> bool:
    return pydicom.__version__.startswith("2.")


def stored_values(dataset: Dataset) -> np.ndarray:
    """Uncompressed stored values, as `pixel_array` shapes them; bits above those in use do not count."""
    if not _is_2():
        from pydicom.pixels import pixel_array

        return np.asarray(pixel_array(dataset))
    values = np.asarray(dataset.pixel_array)
    unused = 8 * values.itemsize - int(dataset.BitsStored)
    return values << unused >> unused if values.dtype.kind in "iu" and unused > 0 else values


def encoded_frames(pixels: bytes, count: int, extended_offsets: tuple[bytes, bytes] | None) -> list[bytes]:
    """The compressed frames in encapsulated pixel data.

    Args:
        pixels: value of PixelData.
        count: how many frames there are.
        extended_offsets: the file's tables of offsets and lengths; pydicom 2 finds the frames without them.
    """
    if _is_2():
        return list(encaps.generate_pixel_data_frame(pixels, count))
    return list(encaps.generate_frames(pixels, number_of_frames=count, extended_offsets=extended_offsets))


def apply_modality_lut(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored values through the dataset's lookup table."""
    if _is_2():
        from pydicom.pixel_data_handlers.util import apply_modality_lut
    else:
        from pydicom.pixels import apply_modality_lut
    return apply_modality_lut(stored, dataset)


def save(dataset: Dataset, path: Path) -> None:
    """Write a dataset as a complete DICOM file, in the transfer syntax that its meta header names."""
    if _is_2():
        syntax = dataset.file_meta.TransferSyntaxUID
        dataset.is_little_endian, dataset.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
        dataset.save_as(path, write_like_original=False)
    else:
        dataset.save_as(path, enforce_file_format=True)

"""What one DICOM file says about its frames; only the attributes named here are read, no patient's name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.window import IntensityWindow

# Where an enhanced multi-frame file keeps an attribute (DICOM PS3.3 C.7.6.16, functional group macros).
_MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
}
_TAGS = [
    *_MACROS,
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "ImagerPixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_NOT_TO_SEGMENT = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",  # label map segmentation
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
}
# What pydicom raises on files that are cut off or scrambled.
_BROKEN = (
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    NotImplementedError,
    OverflowError,
)


class DamagedFile(Exception):
    """A file that is DICOM, but cut off or broken in its header."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a DICOM file. Lengths in mm, directions in LPS; None where the file says nothing."""

    file: Path
    number: int  # 1-based, as DICOM counts frames
    rows: int
    columns: int
    position: np.ndarray | None  # (3,) centre of the first pixel
    orientation: np.ndarray | None  # (6,) direction of a row (growing column), then of a column (growing row)
    pixel_spacing: np.ndarray | None  # (2,) between rows, between columns
    thickness: float | None
    slice_gap: float | None  # SpacingBetweenSlices
    slope: float
    intercept: float
    window: IntensityWindow | None
    instance: float | None


@dataclass(frozen=True, eq=False)
class Header:
    """One DICOM image file."""

    file: Path
    series_uid: str
    instance_uid: str
    series_number: float
    description: str
    modality: str
    frames: tuple[Frame, ...]


def read_header(path: Path) -> Header | str | None:
    """Header of a DICOM image; None for any other file; a word for DICOM images that are not to be segmented.

    Raises DamagedFile when a DICOM file is cut off in its header.
    """
    with open(path, "rb") as file:
        start = file.read(132)
    marked = start[128:] == b"DICM"
    # Old files without the preamble begin with an element of group 0002 or 0008, little endian.
    if not marked and (len(start) < 132 or start[:2] not in (b"\2\0", b"\x08\0") or start[3] != 0):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's remarks on values that this reader does not use
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            return _header(path, dataset)
    except _BROKEN as error:
        if not marked:
            return None
        raise DamagedFile(str(path)) from error


def _header(path: Path, dataset: Dataset) -> Header | str | None:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    sop_class = dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""
    if sop_class in _NOT_TO_SEGMENT:
        return _NOT_TO_SEGMENT[sop_class]
    if not (dataset.get("Rows") and dataset.get("Columns")):
        if not sop_class or getattr(sop_class, "name", "").endswith("Image Storage"):
            raise DamagedFile(str(path))
        return None
    number = _number(dataset.get("SeriesNumber"))
    return Header(
        file=path,
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        instance_uid=str(dataset.get("SOPInstanceUID") or ""),
        series_number=np.inf if number is None else number,
        description=str(dataset.get("SeriesDescription") or "").strip(),
        modality=str(dataset.get("Modality") or "").strip(),
        frames=_frames(path, dataset),
    )


def _frames(path: Path, dataset: Dataset) -> tuple[Frame, ...]:
    count = int(dataset.get("NumberOfFrames") or 1)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if per_frame and len(per_frame) != count:
        raise DamagedFile(str(path))

    def value(keyword: str, own: Dataset | None):
        for groups in (own, shared):
            macro = groups.get(_MACROS[keyword]) if groups is not None else None
            if macro and macro[0].get(keyword) is not None:
                return macro[0].get(keyword)
        # In a multi-frame file without functional groups one position cannot hold for all frames.
        if keyword == "ImagePositionPatient" and count > 1:
            return None
        return dataset.get(keyword)

    def frame(index: int) -> Frame:
        own = per_frame[index] if per_frame else None
        slope, intercept = _number(value("RescaleSlope", own)), _number(value("RescaleIntercept", own))
        return Frame(
            file=path,
            number=index + 1,
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
            position=_numbers(value("ImagePositionPatient", own), 3),
            orientation=_numbers(value("ImageOrientationPatient", own), 6),
            pixel_spacing=_positive(
                _numbers(value("PixelSpacing", own), 2), _numbers(dataset.get("ImagerPixelSpacing"), 2)
            ),
            thickness=_number(value("SliceThickness", own)),
            slice_gap=_number(value("SpacingBetweenSlices", own)),
            slope=slope or 1.0,
            intercept=intercept or 0.0,
            window=_window(
                value("WindowCenter", own), value("WindowWidth", own), value("VOILUTFunction", own)
            ),
            instance=_number(dataset.get("InstanceNumber")),
        )

    return tuple(frame(index) for index in range(count))


def _number(value) -> float | None:
    """First finite number of an attribute's value, or None."""
    numbers = _numbers(value, 1)
    return None if numbers is None else float(numbers[0])


def _numbers(value, count: int) -> np.ndarray | None:
    """The first `count` numbers of an attribute's value; None when missing, too few or not finite."""
    if value is None or value == "":
        return None
    values = (
        [value] if isinstance(value, (str, int, float)) or not hasattr(value, "__iter__") else list(value)
    )
    if len(values) < count:
        return None
    numbers = np.array([float(one) for one in values[:count]])
    return numbers if np.isfinite(numbers).all() else None


def _positive(*candidates: np.ndarray | None) -> np.ndarray | None:
    return next((numbers for numbers in candidates if numbers is not None and (numbers > 0).all()), None)


def _window(center, width, function) -> IntensityWindow | None:
    """The first of the stored windows."""
    center, width = _number(center), _number(width)
    if center is None or width is None or width <= 0:
        return None
    try:
        return IntensityWindow.from_level(center, width, "DICOM", dicom=(function or "LINEAR") == "LINEAR")
    except UserError:  # a useless window is no reason to refuse the image
        return None

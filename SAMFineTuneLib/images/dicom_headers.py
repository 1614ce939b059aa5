"""Reads the header of one DICOM file: geometry, rescaling, window and what distinguishes its frames.

It keeps nothing that names a patient. Headers come from many writers, and any value may be wrong: a value that cannot
be understood counts as missing, and an image is refused only when it lacks what it needs.
"""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.dicom_traits import Trait, traits
from SAMFineTuneLib.images.dicom_values import (
    Attributes,
    first_item,
    in_groups,
    number,
    numbers,
    read_value,
    text,
    uid,
    whole_number,
)
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import describe_place

_NOT_TO_SEGMENT = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",  # label map segmentation
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
}
_SHARED = {
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "frame of reference": "FrameOfReferenceUID",
    "series number": "SeriesNumber",
}
_TIMES = (0x00181063, 0x00181065)  # FrameTime, FrameTimeVector: a file's frames show one place at several times
_ENDINGS = (".dcm", ".dicom", ".ima")
_OTHER_PIXEL_SIZES = {
    "SequenceOfUltrasoundRegions": "for regions of the picture",
    "NominalScannedPixelSpacing": "on the film that was scanned",
    "PixelAspectRatio": "as the ratio of its sides alone",
}
_AFTER_PLACE = 0x00200038  # the first tag after those with an image's position
_SHORTEST = 132  # bytes: preamble and the letters DICM


@dataclass(eq=False)
class UnreadableFile(Exception):
    """A file that is, or may be, a DICOM image, but cannot be read.

    `problem` continues a sentence that begins with the file's name. `forbidden` is true when the user lacks the
    permission. `series_uid`, `position` (3,) and `normal` (3,) in LPS mm are set as far as they could be read.
    """

    path: Path
    problem: str
    forbidden: bool = False
    series_uid: str = ""
    position: np.ndarray | None = None
    normal: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))

    def __str__(self) -> str:
        return f"“{self.path.name}” {self.problem}"

    @property
    def place(self) -> str:
        """Where the image lies, as " (S 27.5 mm)"; "" when that could not be read."""
        return "" if self.position is None else f" ({describe_place(self.position, self.normal)})"


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
    has_rescale: bool  # whether the file gives one of the two
    has_table: bool  # whether it has a table of values (ModalityLUTSequence)
    window: IntensityWindow | None
    instance: float | None
    instance_uid: str = ""
    backwards: bool = False  # the positions of the file's frames decrease along the normal
    traits: Mapping[str, Trait] = field(default_factory=dict)  # distinguish the volumes of a series


@dataclass(frozen=True, eq=False)
class Header:
    """One DICOM image file."""

    file: Path
    series_uid: str
    series_number: float
    description: str
    modality: str
    frames: tuple[Frame, ...]
    notes: tuple[str, ...] = ()  # sentences about assumptions
    belongs: Mapping[str, str] = field(default_factory=dict)
    """Digests of what all files of one series share, such as its patient; "" where the file says nothing."""


def read_header(path: Path) -> Header | str | None:
    """Read the header of a DICOM image.

    Returns:
        The header; None for a file that is not a DICOM image; a word ("segmentation") for a DICOM object that is not
        an image to segment.

    Raises:
        UnreadableFile: when the file is damaged or cannot be read, or is a pipe or a dangling link.
    """
    start = _beginning(path)
    marked = start[128:] == b"DICM"
    if not marked:
        if len(start) < _SHORTEST and path.suffix.lower() in _ENDINGS:
            raise UnreadableFile(path, "is empty or cut off")
        # Old files without the preamble begin with an element of group 0002 or 0008, little endian.
        if len(start) < _SHORTEST or start[:2] not in (b"\2\0", b"\x08\0") or start[3] != 0:
            return None
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings about values that this reader does not use
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            # pydicom returns the part of a file that is cut off within a value; then no pixels follow.
            return _header(path, dataset, at_pixels=bool(file.read(1)))
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes pydicom raise errors of many kinds
        if not marked:
            return None
        raise error if isinstance(error, UnreadableFile) else _damaged(path) from error


def may_be_cut_off(path: Path) -> bool:
    """Whether a file is too short to be recognised, but begins as a DICOM file does."""
    start = _beginning(path)
    as_begun = not start[:128].strip(b"\0") and b"DICM".startswith(start[128:])
    return len(start) < _SHORTEST and (as_begun or start[:2] in (b"\2\0", b"\x08\0"))


def _beginning(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableFile(path, "is not a file but a pipe, a socket or a device")
        with open(path, "rb") as file:
            return file.read(_SHORTEST)
    except FileNotFoundError as error:
        problem = "is a link to a file that is gone" if path.is_symlink() else "is gone"
        raise UnreadableFile(path, problem) from error
    except PermissionError as error:
        raise UnreadableFile(path, "may not be read (you lack the permission)", forbidden=True) from error
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read ({error.strerror or error})") from error


def _damaged(path: Path) -> UnreadableFile:
    """The error for a damaged file, with the part of its header before the damage."""
    error = UnreadableFile(path, "is damaged or cut off")
    with suppress(Exception), open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = io.BytesIO(file.read(1 << 20))
        dataset = read_partial(start, lambda tag, _vr, _length: tag >= _AFTER_PLACE, force=True)
        error.series_uid = uid(read_value(dataset, "SeriesInstanceUID"))
        error.position = numbers(read_value(dataset, "ImagePositionPatient"), 3)
        if (orientation := numbers(read_value(dataset, "ImageOrientationPatient"), 6)) is not None:
            error.normal = np.cross(orientation[:3], orientation[3:])
    return error


def _header(path: Path, dataset: Dataset, at_pixels: bool) -> Header | str | None:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    sop_class = uid(read_value(meta, "MediaStorageSOPClassUID") or read_value(dataset, "SOPClassUID"))
    if sop_class in _NOT_TO_SEGMENT:
        return _NOT_TO_SEGMENT[sop_class]
    deflated = uid(read_value(meta, "TransferSyntaxUID")) == DeflatedExplicitVRLittleEndian
    rows, columns = (whole_number(read_value(dataset, name)) for name in ("Rows", "Columns"))
    if not (rows and columns):
        series_uid = uid(read_value(dataset, "SeriesInstanceUID"))
        kind = UID(sop_class).name  # the UID itself when it is private or cut off
        if not sop_class or kind.endswith("Image Storage") or (kind == sop_class and not series_uid):
            raise _damaged(path)
        return None
    if not at_pixels and not deflated:
        raise _damaged(path)
    series_number = number(read_value(dataset, "SeriesNumber"))
    frames, notes = _frames(path, dataset, rows, columns)
    return Header(
        file=path,
        series_uid=uid(read_value(dataset, "SeriesInstanceUID")),
        series_number=np.inf if series_number is None else series_number,
        description=text(read_value(dataset, "SeriesDescription")),
        modality=text(read_value(dataset, "Modality")).split("\\")[0].strip(),
        frames=frames,
        notes=(*notes, *_unclear_rescale(dataset), *_mosaic(dataset), *_pixel_size_elsewhere(dataset)),
        belongs={name: _digest(read_value(dataset, keyword)) for name, keyword in _SHARED.items()},
    )


def _digest(value) -> str:
    """A digest of a value's text; "" when it is missing."""
    said = "" if value is None else str(value).strip().casefold()
    return hashlib.sha256(said.encode("utf-8", "replace")).hexdigest()[:16] if said else ""


def _mosaic(dataset: Dataset) -> list[str]:
    """A sentence about Siemens' way to store a volume: its slices side by side in one picture."""
    if "MOSAIC" not in str(read_value(dataset, "ImageType")).upper():
        return []
    return [
        "The images are mosaics: slices side by side in one picture, which is read as one slice, so that positions are "
        "wrong; convert them with dcm2niix first."
    ]


def _pixel_size_elsewhere(dataset: Dataset) -> list[str]:
    """Sentences about images whose pixel size is not that in the patient, or is given where it is not read."""
    own, detector = (_positive(numbers(read_value(dataset, f"{of}PixelSpacing"), 2)) for of in ("", "Imager"))
    if own is not None or "SharedFunctionalGroupsSequence" in dataset:
        return []
    if detector is not None:
        return [
            "The images give the size of a pixel on the detector (ImagerPixelSpacing) and not in the patient, where "
            "lengths are smaller."
        ]
    ratio = numbers(read_value(dataset, "PixelAspectRatio"), 2)
    square = ratio is None or ratio[0] == ratio[1]
    return [
        f"The images give the size of a pixel {how} ({keyword}), which is not used, so that lengths are wrong."
        for keyword, how in _OTHER_PIXEL_SIZES.items()
        if keyword in dataset and not (keyword == "PixelAspectRatio" and square)
    ]


def _unclear_rescale(dataset: Dataset) -> list[str]:
    """Sentences about a rescale that cannot be understood: grey values would be wrong without a warning."""
    lists = (read_value(dataset, f"{of}FunctionalGroupsSequence") for of in ("Shared", "PerFrame"))
    groups = [one for found in lists if isinstance(found, pydicom.Sequence) for one in found]
    own = [first_item(read_value(one, "PixelValueTransformationSequence")) for one in groups]
    unclear = [
        keyword
        for keyword in ("RescaleSlope", "RescaleIntercept")
        for place in (dataset, *own)
        if place is not None and keyword in place and place.get_item(keyword).value not in (None, "", b"")
        and number(read_value(place, keyword)) in (None, *(0.0,) * (keyword == "RescaleSlope"))
    ]
    return [
        f"The images' {word} cannot be understood and is not applied; check grey values."
        for word in dict.fromkeys(unclear)
    ]


def _frames(path: Path, dataset: Dataset, rows: int, columns: int) -> tuple[tuple[Frame, ...], list[str]]:
    """A file's frames, and sentences about assumptions."""
    shared = first_item(read_value(dataset, "SharedFunctionalGroupsSequence"))
    per_frame = read_value(dataset, "PerFrameFunctionalGroupsSequence")
    per_frame = per_frame if isinstance(per_frame, pydicom.Sequence) else []
    count = whole_number(read_value(dataset, "NumberOfFrames")) or len(per_frame) or 1
    if (per_frame and len(per_frame) != count) or count > path.stat().st_size:
        raise _damaged(path)
    placed = any("PlanePositionSequence" in groups for groups in (shared, *per_frame) if groups is not None)
    if placed:
        dataset.pop("ImagePositionPatient", None)
    # Nuclear medicine keeps positions in the detector's information.
    common = in_groups(shared), dataset, first_item(read_value(dataset, "DetectorInformationSequence")) or Dataset()
    frames = tuple(
        _frame(path, rows, columns, Attributes((in_groups(own), *common), index, own is not None))
        for index, own in enumerate(per_frame or [None] * count)
    )
    return (frames, []) if count == 1 or placed else _one_behind_the_other(frames, dataset)


def _frame(path: Path, rows: int, columns: int, found: Attributes) -> Frame:
    return Frame(
        file=path,
        number=found.index + 1,
        rows=rows,
        columns=columns,
        position=numbers(found["ImagePositionPatient"], 3),
        orientation=_orientation(found["ImageOrientationPatient"]),
        pixel_spacing=_positive(numbers(found["PixelSpacing"], 2), numbers(found["ImagerPixelSpacing"], 2)),
        thickness=number(found["SliceThickness"]),
        slice_gap=number(found["SpacingBetweenSlices"]),
        slope=number(found["RescaleSlope"]) or 1.0,
        intercept=number(found["RescaleIntercept"]) or 0.0,
        has_rescale=any(number(found[name]) is not None for name in ("RescaleSlope", "RescaleIntercept")),
        has_table=first_item(found["ModalityLUTSequence"]) is not None,
        window=_window(found["WindowCenter"], found["WindowWidth"], found["VOILUTFunction"]),
        instance=number(found["InstanceNumber"]),
        instance_uid=uid(found["SOPInstanceUID"]),
        traits=traits(found),
    )


def _one_behind_the_other(frames: tuple[Frame, ...], dataset: Dataset) -> tuple[tuple[Frame, ...], list[str]]:
    """Place the frames of a file that gives only the first one's position, as SPECT and cone-beam CT do."""
    first = frames[0]
    in_time = read_value(dataset, "FrameIncrementPointer") in _TIMES
    if first.position is None or first.orientation is None or in_time:
        return tuple(replace(frame, position=None) for frame in frames), []
    gap, notes = first.slice_gap, []
    if not gap:
        gap = first.thickness if (first.thickness or 0) > 0 else 1.0
        what = "their thickness" if gap == first.thickness else "a distance"
        notes.append(f"The file does not say how far apart its slices are; {what} of {gap:.4g} mm is used.")
    slices = numbers(read_value(dataset, "SliceVector"), len(frames))  # several volumes in one file: 1, 2, 3, 1, 2, 3
    steps = np.arange(len(frames)) if slices is None else slices - slices.min()
    step = gap * np.cross(first.orientation[:3], first.orientation[3:])
    placed = tuple(
        replace(frame, position=first.position + n * step, backwards=gap < 0)
        for n, frame in zip(steps, frames, strict=True)
    )
    return placed, notes


def _orientation(value) -> np.ndarray | None:
    """Row and column direction (6,); None when they do not span a plane, as zeros or twice the same vector."""
    found = numbers(value, 6)
    return None if found is None or np.allclose(np.cross(found[:3], found[3:]), 0, atol=1e-6) else found


def _positive(*candidates: np.ndarray | None) -> np.ndarray | None:
    return next((found for found in candidates if found is not None and (found > 0).all()), None)


def _window(center, width, function) -> IntensityWindow | None:
    """The first of the stored windows."""
    center, width = number(center), number(width)
    if center is None or width is None or width <= 0:
        return None
    try:
        return IntensityWindow.from_level(center, width, "DICOM", dicom=(text(function) or "LINEAR") == "LINEAR")
    except UserError:  # an image with an unusable window can still be segmented
        return None

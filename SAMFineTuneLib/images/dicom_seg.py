"""Writes DICOM SEG with highdicom, referencing the instances that the volume was read from."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, generate_uid
from pydicom.valuerep import DA, TM, PersonName

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.images import dicom_values
from SAMFineTuneLib.images.dicom_values import decimals, first_item, in_groups, number, read_value, uid, whole_number
from SAMFineTuneLib.images.segment_info import SegmentInfo, require_described
from SAMFineTuneLib.images.volume import Volume, describe_place, lps_from_affine

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# DICOM requires these in every file, if only without a value; anonymisers remove them nevertheless.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_GROUPS = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# Slicer's own code for a segment of unknown kind: a free name does not justify a more specific one.
_TISSUE = Code("85756007", "SCT", "Tissue")


def check_dicom_seg(volume: Volume) -> None:
    """Check, before long work, that a DICOM SEG of this volume can be written: makes one of a single voxel in memory.

    Raises:
        UserError: when highdicom is missing, the volume is not from DICOM or was resampled, or its files are gone or
            lack what a DICOM SEG refers to.
    """
    highdicom, present = _require(volume)
    labels = np.zeros((len(present), *volume.shape[1:]), np.uint8)
    labels[0, 0, 0] = 1
    _segmentation(highdicom, volume, present, labels, [_description(highdicom, 1, SegmentInfo("check", 1, (1, 1, 1)))])


def write_dicom_seg(
    path: Path,
    labels: np.ndarray,
    volume: Volume,
    segments: Sequence[SegmentInfo],
    provenance: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write a binary DICOM SEG; its segment numbers count from 1 in the order of label values.

    The same segments of the same images have the same UIDs, so that a server that gets them twice keeps one.

    Args:
        path: the file, which appears complete or not at all.
        labels: label map [k, j, i], unsigned.
        volume: the volume that was segmented, as read from DICOM.
        segments: names and colours of the label values.
        provenance: what made the segments, such as a model and its digest; kept as the algorithm's parameters.

    Returns:
        A sentence for each segment left out because it is empty, and for voxels on slices that the series lacks.

    Raises:
        UserError: as in `check_dicom_seg`.
    """
    highdicom, present = _require(volume)
    require_described(labels, segments)
    notes = []
    missing = [k for k in range(len(labels)) if k not in set(present) and labels[k].any()]
    if missing:
        origin, directions, spacing = lps_from_affine(volume.affine)
        places = (origin + k * spacing[2] * directions[:, 2] for k in (missing[0], missing[-1]))
        ends = dict.fromkeys(describe_place(place, directions[:, 2]) for place in places)
        notes.append(
            f"{np.count_nonzero(labels[missing])} voxels on slices missing from the series ({' to '.join(ends)}) are "
            "not in the DICOM SEG."
        )
    held = set(np.unique(labels[present]).tolist())
    segments = sorted(segments, key=lambda segment: segment.value)
    empty = [segment.name for segment in segments if segment.value not in held]
    notes += [f"Segment “{name}” is empty and was left out of the DICOM SEG." for name in empty]
    segments = [segment for segment in segments if segment.value in held]
    if not segments:
        raise UserError("All segments are empty, and a DICOM SEG cannot be; segment something first.")

    notes += [
        f"Segment “{one.name}” is called “{_dicom_name(one)}” in the DICOM SEG, where names have 64 characters at most "
        "and no backslash."
        for one in segments
        if _dicom_name(one) != one.name.strip()
    ]
    numbers = np.zeros(max(held) + 1, np.uint8 if len(segments) < 256 else np.uint16)
    for n, segment in enumerate(segments, start=1):
        numbers[segment.value] = n
    descriptions = [_description(highdicom, n, one, provenance) for n, one in enumerate(segments, start=1)]
    seg = _segmentation(highdicom, volume, present, numbers[labels[present]], descriptions)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg.save_as(temporary)
    return tuple(notes)


def _require(volume: Volume):
    """(highdicom, indices k of the slices for which there are images)."""
    try:
        import highdicom
    except ImportError as error:
        raise UserError('DICOM SEG needs one more package: pip install "samfinetune[dicom-seg]".') from error
    source = volume.source
    if source is None or source.format != "DICOM":
        raise UserError("DICOM SEG refers to a DICOM series, and this volume is not from one; write .seg.nrrd.")
    if source.resampled:
        raise UserError(
            "DICOM SEG refers to the images of a series, and this one was interpolated onto even distances; write "
            ".seg.nrrd."
        )
    return highdicom, [k for k, place in enumerate(source.slices) if place is not None]


def _segmentation(highdicom, volume: Volume, present: list[int], numbers: np.ndarray, descriptions: Sequence):
    """The DICOM SEG of segment `numbers` (from 1) on the slices `present`."""
    datasets = _source_headers(volume)
    content = [*(str(one.SOPInstanceUID) for one in datasets), *map(str, descriptions), str(numbers.shape)]
    content.append(hashlib.sha256(np.ascontiguousarray(numbers)).hexdigest())
    sop_class = datasets[0].SOPClassUID
    if len(datasets) == 1 and (whole_number(read_value(datasets[0], "NumberOfFrames")) or 1) > 1:
        sources = [_as_multi_frame(datasets[0], volume, present)]
    else:
        sources = _as_single_frames(datasets, volume, present)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the source's patient attributes, with their values
            seg = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=numbers,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=descriptions,
                series_instance_uid=generate_uid(entropy_srcs=["series", *content]),
                series_number=300,
                sop_instance_uid=generate_uid(entropy_srcs=content),
                instance_number=1,
                manufacturer="SAMFineTune",
                manufacturer_model_name="SAMFineTune",
                software_versions=__version__,
                device_serial_number="1",
                content_label="SEGMENTATION",
                series_description="Segmentation (SAMFineTune)",
                specific_character_set="ISO_IR 192",  # UTF-8: segment names in any script
            )
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            "The source images lack or contradict what a DICOM SEG needs; write .seg.nrrd instead "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})."
        ) from error
    _refer_to_source(seg, sop_class, [volume.source.slices[k][1] for k in present])
    return seg


def _source_headers(volume: Volume) -> list[Dataset]:
    source = volume.source
    try:
        datasets = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in source.files]
    except OSError as error:
        raise UserError("The DICOM files that the volume was read from are gone; put them back.") from error
    for dataset in datasets:
        if source.series_uid not in ("", uid(read_value(dataset, "SeriesInstanceUID"))):  # perhaps of another patient
            raise UserError(
                "The DICOM files that the volume was read from were replaced by those of another series; put them "
                "back, or write .seg.nrrd."
            )
        if missing := [keyword for keyword in _NEEDED if not uid(read_value(dataset, keyword))]:
            raise UserError(
                f"The source series lacks {', '.join(missing)}, to which a DICOM SEG refers; write .seg.nrrd instead."
            )
        for keyword in _MAY_BE_EMPTY:
            if not _is_sound(keyword, read_value(dataset, keyword)):
                dataset.pop(keyword, None)
                setattr(dataset, keyword, None)
    return datasets


def _is_sound(keyword: str, value) -> bool:
    """Whether a value is valid for its attribute: a name, a date, a time, a word."""
    if keyword == "PatientSex":
        return value in ("M", "F", "O")
    kind = {"DA": DA, "TM": TM, "PN": PersonName}.get(dictionary_VR(keyword), str)
    try:
        return isinstance(value, (str, PersonName)) and bool(str(kind(value)))
    except Exception:  # each kind raises its own exceptions
        return False


def _as_single_frames(datasets: list[Dataset], volume: Volume, present: list[int]) -> list[Dataset]:
    """The headers in the order of the slices, with the geometry as this library understood it.

    highdicom reads the geometry from its sources, where it may be garbled, missing, or in groups that differ from file
    to file. `_refer_to_source` restores the true class.
    """
    places = [volume.source.slices[k] for k in present]
    if any(frame != 1 for _, frame in places):
        raise UserError("A DICOM SEG cannot refer to several multi-frame files; write .seg.nrrd instead.")
    for k, (file, _) in zip(present, places, strict=True):
        dataset = datasets[file]
        measures, orientation, position = _geometry(volume, k, dataset, read_value(dataset, "ImagePositionPatient"))
        for keyword in _GROUPS:
            dataset.pop(keyword, None)
        dataset.SOPClassUID = CTImageStorage
        dataset.update(measures)
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = orientation, position
    return [datasets[file] for file, _ in places]


def _as_multi_frame(dataset: Dataset, volume: Volume, present: list[int]) -> Dataset:
    """The header of an enhanced file with only the volume's frames, in the order of the slices."""
    own = read_value(dataset, "PerFrameFunctionalGroupsSequence")
    frames = []
    for k in present:
        groups = own[volume.source.slices[k][1] - 1] if own else Dataset()
        plane = first_item(read_value(groups, "PlanePositionSequence")) or Dataset()
        measures, orientation, position = _geometry(volume, k, dataset, read_value(plane, "ImagePositionPatient"))
        frames.append(Dataset())
        frames[-1].PlanePositionSequence = [_with(ImagePositionPatient=position)]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [_with(ImageOrientationPatient=orientation)]
    dataset.SOPClassUID, dataset.NumberOfFrames = EnhancedCTImageStorage, len(frames)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    return dataset


def _geometry(volume: Volume, k: int, dataset: Dataset, stored) -> tuple[Dataset, list[str], list[str]]:
    """(pixel measures, orientation, position) of slice k as DICOM writes them; a `stored` position is kept, and the
    thickness that the image's `dataset` states: slices may be thinner or thicker than they are apart."""
    origin, directions, spacing = lps_from_affine(volume.affine)
    position = dicom_values.numbers(stored, 3)
    if position is None:
        position = origin + k * spacing[2] * directions[:, 2]
    measures = _with(
        PixelSpacing=decimals(spacing[1::-1]),
        SliceThickness=decimals([_thickness(dataset, volume.source.slices[k][1]) or spacing[2]])[0],
        SpacingBetweenSlices=decimals(spacing[2:])[0],
    )
    return measures, decimals([*directions[:, 0], *directions[:, 1]]), decimals(position)


def _thickness(dataset: Dataset, frame: int) -> float | None:
    """mm, as an image states it for one of its frames (counted from 1); None where it does not."""
    frames = read_value(dataset, "PerFrameFunctionalGroupsSequence")
    shared = first_item(read_value(dataset, "SharedFunctionalGroupsSequence"))
    groups = (in_groups(frames[frame - 1] if frames else None), in_groups(shared), dataset)
    stated = (number(read_value(one, "SliceThickness")) or 0 for one in groups)
    return next((mm for mm in stated if mm > 0), None)


def _with(**attributes) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def _refer_to_source(seg: Dataset, sop_class: str, frames: list[int]) -> None:
    """Correct the references: the source's own class, and the frames' own numbers."""
    for element in {id(element): element for element in seg.iterall()}.values():  # segments of one frame share some
        if element.keyword == "ReferencedSOPClassUID":
            element.value = sop_class
        elif element.keyword == "ReferencedFrameNumber":
            element.value = frames[int(element.value) - 1]


def _dicom_name(segment: SegmentInfo) -> str:
    return re.sub(r"[\\\x00-\x1f]", " ", segment.name.strip())[:64]


def _description(highdicom, number: int, segment: SegmentInfo, provenance: Mapping[str, str] | None = None):
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_dicom_name(segment),
        segmented_property_category=_TISSUE,
        segmented_property_type=_TISSUE,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="SAMFineTune",
            family=Code("123110", "DCM", "Artificial Intelligence"),
            version=__version__,
            parameters=dict(provenance) if provenance else None,
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * part) for part in segment.color)),
    )

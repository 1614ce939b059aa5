"""DICOM SEG through highdicom, referencing the instances that the volume was read from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.images.segments import SegmentInfo, require_described
from SAMFineTuneLib.images.volume import Volume

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# DICOM wants these in every file, if need be without a value; anonymisers remove them nevertheless.
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
# What Slicer, too, calls a segment of unknown kind: a free name allows no code that claims more.
_TISSUE = Code("85756007", "SCT", "Tissue")


def write_dicom_seg(
    path: Path, labels: np.ndarray, volume: Volume, segments: Sequence[SegmentInfo]
) -> tuple[str, ...]:
    """Write `labels` [k, j, i] (unsigned) as a binary DICOM SEG; segment numbers count from 1 in value order.

    Returns a sentence for every segment left out because it is empty, and for voxels on slices that the
    series lacks. UserError when highdicom is missing, the volume is not from DICOM or its files lack what a
    DICOM SEG refers to.
    """
    try:
        import highdicom
    except ImportError as error:
        raise UserError("DICOM SEG needs one more package: pip install samfinetune[dicom-seg].") from error
    source = volume.source
    if source is None or source.format != "DICOM":
        raise UserError(
            "DICOM SEG refers to a DICOM series, and this volume is not from one; write .seg.nrrd."
        )
    require_described(labels, segments)

    present = [k for k, place in enumerate(source.slices) if place is not None]
    notes = []
    if lost := int(np.count_nonzero(labels) - np.count_nonzero(labels[present])):
        notes.append(f"{lost} voxels on slices missing from the series are not in the DICOM SEG.")
    segments = sorted(segments, key=lambda segment: segment.value)
    held = set(np.unique(labels[present]).tolist())
    for segment in segments:
        if segment.value not in held:
            notes.append(f"Segment “{segment.name}” is empty and was left out of the DICOM SEG.")
    segments = [segment for segment in segments if segment.value in held]
    if not segments:
        raise UserError("All segments are empty, and a DICOM SEG cannot be; segment something first.")

    datasets, frames = _source_images(volume, labels, present)
    numbers = np.zeros(max(held) + 1, np.uint8 if len(segments) < 256 else np.uint16)
    for number, segment in enumerate(segments, start=1):
        numbers[segment.value] = number
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the source's patient attributes, with their values
            seg = highdicom.seg.Segmentation(
                source_images=datasets,
                pixel_array=numbers[frames],
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_description(highdicom, n, s) for n, s in enumerate(segments, start=1)],
                series_instance_uid=generate_uid(),
                series_number=300,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="SAMFineTune",
                manufacturer_model_name="SAMFineTune",
                software_versions=__version__,
                device_serial_number="1",
                content_label="SEGMENTATION",
                series_description="Segmentation (SAMFineTune)",
                specific_character_set="ISO_IR 192",  # UTF-8: segment names in any script
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            "The source images lack or contradict what a DICOM SEG needs; write .seg.nrrd instead "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})."
        ) from error
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg.save_as(temporary)
    return tuple(notes)


def _source_images(
    volume: Volume, labels: np.ndarray, present: list[int]
) -> tuple[list[Dataset], np.ndarray]:
    """(headers of the source files, labels of their frames in the files' order)."""
    source = volume.source
    try:
        datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in source.files]
    except OSError as error:
        raise UserError("The DICOM files that the volume was read from are gone; put them back.") from error
    for dataset in datasets:
        if missing := [keyword for keyword in _NEEDED if not dataset.get(keyword)]:
            raise UserError(
                f"The source series lacks {', '.join(missing)}, to which a DICOM SEG refers; write .seg.nrrd "
                "instead."
            )
        for keyword in _MAY_BE_EMPTY:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
    places = [source.slices[k] for k in present]
    if len(datasets) == 1:  # one file: frames may be stored in any order
        frames = np.zeros((int(datasets[0].get("NumberOfFrames") or 1), *labels.shape[1:]), labels.dtype)
        for k, (_, frame) in zip(present, places, strict=True):
            frames[frame - 1] = labels[k]
        return datasets, frames
    if any(frame != 1 for _, frame in places):
        raise UserError("A DICOM SEG cannot refer to several multi-frame files; write .seg.nrrd instead.")
    return datasets, labels[present]


def _description(highdicom, number: int, segment: SegmentInfo):
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name.strip()[:64],  # the longest that DICOM allows
        segmented_property_category=_TISSUE,
        segmented_property_type=_TISSUE,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="SAMFineTune",
            family=Code("123110", "DCM", "Artificial Intelligence"),
            version=__version__,
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * part) for part in segment.color)),
    )

"""Read DICOM SEG as a label map with highdicom: binary, fractional and label map segmentations.

Frames may be missing where a segment is empty, may have any order and orientation, and segments may overlap.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.label_map import LabelMap, Meaning, overlaid
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_image import is_dicom
from SAMFineTuneLib.models.optional_packages import require

SEGMENTATION, LABELMAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
_NO_LABELS = {
    "1.2.840.10008.5.1.4.1.1.481.3": "an RT Structure Set, which holds outlines",
    "1.2.840.10008.5.1.4.1.1.66.5": "a Surface Segmentation, which holds surfaces",
    "1.2.840.10008.5.1.4.1.1.66": "a Raw Data file",
}
_BACKGROUND = ("125040", "DCM")
_UNEVEN = 0.02  # of a spacing: how far distances between slices may differ from its multiples
_THRESHOLD = 0.5  # of of MaximumFractionalValue: a voxel with more belongs to a segment


def find_dicom_seg(path: Path) -> Path | None:
    """The path itself, or the file in a folder, that is a DICOM SEG; None without one.

    UserError for several, and for DICOM files that hold outlines or surfaces.
    """
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if not file.name.startswith(".") and _is_seg(file)]
        if len(found) > 1:
            raise UserError(f"“{path.name}” holds {len(found)} DICOM SEG files; keep the one whose labels are meant.")
        return found[0] if found else None
    return path if _is_seg(path) else None


def _is_seg(path: Path) -> bool:
    import pydicom

    if not path.is_file() or not is_dicom(path):
        return False
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except Exception:  # a damaged file is reported when it is read
        return False
    kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    if kind in _NO_LABELS:
        raise UserError(
            f"“{path.name}” is {_NO_LABELS[kind]}: load it in Slicer and save a segmentation (.seg.nrrd) of it."
        )
    return kind in (SEGMENTATION, LABELMAP_SEGMENTATION)


def read_dicom_seg(path: Path) -> LabelMap:
    """Read a DICOM SEG on the grid of its frames; its segments' numbers are the labels. UserError when the frames have
    no regular grid, or highdicom is missing."""
    require("Reading a DICOM SEG", "highdicom", extra="dicom-seg")
    from highdicom.seg import Segmentation, SegmentationTypeValues

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about attributes that do not matter for labels
            seg = Segmentation.from_dataset(_dataset(path), copy=False)
            if seg.is_tiled:
                raise UserError(
                    f"“{path.name}” is a segmentation of a tiled slide image, which is not a volume; only "
                    "segmentations of slices can be read."
                )
            names = _names(seg)
            geometry = seg.get_volume_geometry(allow_missing_positions=True)
            if geometry is None:
                raise UserError(
                    f"The frames of “{path.name}” do not lie on one regular grid (parallel, equally far apart); load "
                    "it in Slicer and save a segmentation (.seg.nrrd) of it."
                )
            if seg.segmentation_type == SegmentationTypeValues.LABELMAP:
                array = seg.get_volume(combine_segments=True).array
                array, members, notes = np.where(np.isin(array, list(names)), array, 0).astype(np.uint16), {}, ()
            else:
                notes: list[str] = []
                array, members = overlaid(_masks(seg, names, notes), geometry.spatial_shape, max(names, default=0) + 1)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a damaged header can make the reader raise anything
        raise UserError(f"“{path.name}” is a DICOM SEG that cannot be read; export it again.") from error
    # highdicom's matrix takes (slice, row, column) to LPS, and orders slices against the normal of rows and columns.
    reordered = [[0, 0, -1, len(array) - 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    affine = np.diag([-1, -1, 1, 1]) @ geometry.affine @ reordered
    return LabelMap(array[::-1], affine, Meaning(names, members), notes=tuple(notes))


def _dataset(path: Path):
    """The file, with attributes added that the reader needs and files may lack: number of frames and spacing of slices.
    """
    import pydicom

    dataset = pydicom.dcmread(path)
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if "NumberOfFrames" not in dataset:
        dataset.NumberOfFrames = max(1, len(frames))
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or []), *frames]
    measures = [group.PixelMeasuresSequence[0] for group in groups if "PixelMeasuresSequence" in group]
    if measures and not any(one.get("SpacingBetweenSlices") for one in measures):
        spacing = _spacing(groups, float(measures[0].get("SliceThickness") or 0))
        for one in measures:
            one.SpacingBetweenSlices = f"{spacing:.10g}"
            one.SliceThickness = one.get("SliceThickness") or one.SpacingBetweenSlices
    return dataset


def _spacing(groups: list, thickness: float) -> float:
    """mm between slices, some of which may be missing: the thickness, or the largest distance that divides all others.
    """
    axes = next((group.PlaneOrientationSequence[0].ImageOrientationPatient for group in groups
                 if "PlaneOrientationSequence" in group), None)  # fmt: skip
    places = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups
              if "PlanePositionSequence" in group]  # fmt: skip
    if axes is None or not places:
        return thickness or 1.0
    depths = np.array(places, float) @ np.cross(np.array(axes[:3], float), np.array(axes[3:], float))
    steps = np.diff(np.unique(np.round(depths, 3)))
    if not len(steps):
        return thickness or 1.0
    for spacing in (thickness, *(steps.min() / part for part in range(1, 5))):
        if spacing > 0 and np.abs(steps / spacing - np.rint(steps / spacing)).max() < _UNEVEN:
            return float(spacing)
    return float(steps.min())


def _names(seg) -> dict[int, str]:
    """Names of the segments by number, without the background that a label map segmentation may name."""
    names = {}
    for item in seg.SegmentSequence:
        kind = (item.get("SegmentedPropertyTypeCodeSequence") or [None])[0]
        background = kind is not None and (kind.get("CodeValue"), kind.get("CodingSchemeDesignator")) == _BACKGROUND
        number = int(item.SegmentNumber)
        if number and not background:
            names[number] = str(item.get("SegmentLabel") or "").strip() or f"Segment {number}"
    return names


def _masks(seg, names: dict[int, str], notes: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """The segments one by one; notes say how many voxels of a fractional segment reach half of the largest value."""
    fractional = str(seg.get("SegmentationType", "")).upper() == "FRACTIONAL"
    for number in names:
        voxels = seg.get_volume(segment_numbers=[number], rescale_fractional=fractional).array[..., 0]
        mask = voxels >= _THRESHOLD if fractional else voxels > 0
        if fractional:
            kind = str(seg.get("SegmentationFractionalType") or "fraction").lower()
            count, above = int(mask.sum()), int((voxels > 0).sum())
            notes.append(
                f"“{names[number]}” is stored as {kind}: {count} of {above} voxels above 0 reach half of the largest "
                f"value ({seg.get('MaximumFractionalValue')}), and these count."
            )
        yield number, mask

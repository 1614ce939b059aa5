"""Label maps from files: values, where they lie, and names where the format has them.

Plain label maps (NIfTI, NRRD, MetaImage, PNG), Slicer segmentations (`.seg.nrrd`, one layer or several) and DICOM
SEG. Overlapping segments become one label map; where two claim a voxel, the later one has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read import read_volume
from SAMFineTuneLib.images.sitk_images import affine_of, quiet, to_sitk
from SAMFineTuneLib.images.volume import Volume, affine_from_lps

SEGMENTATION_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
_SAME_PLACE = 0.05  # voxels by which two grids may differ and still be one
_LEAST_INSIDE = 0.5  # part of the labelled voxels that must lie in the image


@dataclass(frozen=True, eq=False)
class LabelMap:
    """`array` [k, j, i] of whole numbers, 0 background, and its RAS `affine`; `names` of values, as far as known.

    `placed` is false for pictures, which say nothing about where they lie.
    """

    array: np.ndarray
    affine: np.ndarray
    names: dict[int, str]
    placed: bool = True


def read_labels(path: Path) -> LabelMap:
    """Read a label map; UserError when the file is none."""
    if is_dicom_seg(path):
        return _read_dicom_seg(_seg_file(path))
    if path.name.lower().endswith((".nrrd", ".nhdr")) and (found := _read_slicer_segmentation(path)) is not None:
        return found
    volume = read_volume(path)
    placed = volume.source is None or volume.source.format not in ("PNG", "JPEG")
    return LabelMap(_whole(volume.array, path), volume.affine, {}, placed)


def fit_labels(labels: LabelMap, volume: Volume, name: str) -> np.ndarray:
    """The label map [k, j, i] in the volume's grid, by the nearest voxel where the grids differ.

    UserError, naming the case, when the two do not lie in the same place.
    """
    source = volume.source
    picture = source is not None and source.format in ("PNG", "JPEG")
    if picture or not labels.placed:
        if labels.array.shape != volume.shape:
            raise UserError(
                f"Case {name}: the label picture is {_size(labels.array.shape)}, but its image {_size(volume.shape)}; "
                "pictures hold no position, so both must have one size."
            )
        return labels.array
    if labels.array.shape == volume.shape and _same_grid(labels, volume):
        return labels.array
    inside = _part_inside(labels, volume)
    if inside < _LEAST_INSIDE:
        raise UserError(
            f"Case {name}: its labels do not lie on its image ({100 * inside:.0f} % of the labelled voxels are inside "
            "it); save the labels in the image's own geometry."
        )
    grid = to_sitk(np.zeros(volume.shape, np.uint8), volume.affine)
    moved = sitk.Resample(
        to_sitk(labels.array, labels.affine), grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt16
    )
    return sitk.GetArrayFromImage(moved)


def is_dicom_seg(path: Path) -> bool:
    """Whether a file, or the only file of a folder, is a DICOM SEG."""
    return _seg_file(path) is not None


def _seg_file(path: Path) -> Path | None:
    import pydicom

    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
        if len(files) != 1:
            return None
        path = files[0]
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return path if header.get("SOPClassUID") == SEGMENTATION_CLASS else None


def _whole(array: np.ndarray, path: Path) -> np.ndarray:
    """Labels as uint16; UserError when they are no whole numbers from 0 on."""
    low, high = array.min(), array.max()
    if low < 0 or high > np.iinfo(np.uint16).max or (array.dtype.kind == "f" and (array != np.rint(array)).any()):
        raise UserError(
            f"“{path.name}” holds values from {low:g} to {high:g} that are no labels; labels are whole numbers from 0 "
            "on, so check that image and labels are not mixed up."
        )
    return array.astype(np.uint16)


def _same_grid(labels: LabelMap, volume: Volume) -> bool:
    """Whether no corner of the two grids, of one shape, differs by more than a small part of a voxel."""
    last = np.array(volume.shape[::-1]) - 1
    corners = np.array([[i, j, k] for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])], float)
    there = corners @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    return bool(np.abs(volume.ras_to_ijk(there) - corners).max() <= _SAME_PLACE)


def _part_inside(labels: LabelMap, volume: Volume) -> float:
    """Part of the labelled voxels whose centres lie in the volume; 1 when there are none."""
    kji = np.argwhere(labels.array)
    if not len(kji):
        return 1.0
    ras = kji[:, ::-1] @ labels.affine[:3, :3].T + labels.affine[:3, 3]
    ijk = volume.ras_to_ijk(ras)
    return float(((ijk >= -0.5) & (ijk <= np.array(volume.shape[::-1]) - 0.5)).all(axis=1).mean())


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in shape[::-1])


# ---- Slicer segmentations


def _read_slicer_segmentation(path: Path) -> LabelMap | None:
    """A `.seg.nrrd`; None for an NRRD file without segments. Values are the file's own in a single layer, else
    they count the segments from 1."""
    with quiet():
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise UserError(f"“{path.name}” cannot be read; export it again.") from error
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    numbers = sorted(int(match[1]) for key in fields if (match := re.fullmatch(r"Segment(\d+)_ID", key)))
    if not numbers:
        return None
    if image.GetDimension() != 3:
        raise UserError(f"“{path.name}” is a segmentation of more than three dimensions; save one time point.")
    array = sitk.GetArrayFromImage(image)
    layers = array if array.ndim == 4 else array[..., None]
    single = layers.shape[-1] == 1
    labels, names = np.zeros(layers.shape[:3], np.uint16), {}
    for position, number in enumerate(numbers, start=1):
        stored = int(fields.get(f"Segment{number}_LabelValue", 1))
        layer = int(fields.get(f"Segment{number}_Layer", 0))
        if layer >= layers.shape[-1]:
            raise UserError(f"“{path.name}” names a layer that it does not hold; save the segmentation again.")
        value = stored if single else position
        labels[layers[..., layer] == stored] = value
        names[value] = fields.get(f"Segment{number}_Name", f"Segment {number}").strip()
    return LabelMap(labels, affine_of(image), names)


# ---- DICOM SEG


def _read_dicom_seg(path: Path) -> LabelMap:
    """A DICOM SEG on a grid of its own frames; values are its segment numbers."""
    import pydicom

    try:
        seg = pydicom.dcmread(path)
        frames = np.asarray(seg.pixel_array)
        frames = frames[None] if frames.ndim == 2 else frames
        shared = seg.SharedFunctionalGroupsSequence[0]
        own = seg.PerFrameFunctionalGroupsSequence
        places = np.array(
            [_group(frame, shared, "PlanePositionSequence").ImagePositionPatient for frame in own], float
        )
        numbers = [
            int(_group(frame, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber) for frame in own
        ]
        measures = _group(own[0], shared, "PixelMeasuresSequence")
        axes = np.array(
            _group(own[0], shared, "PlaneOrientationSequence").ImageOrientationPatient, float
        ).reshape(2, 3)
        rows_mm, columns_mm = (float(value) for value in measures.PixelSpacing)
        names = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in seg.SegmentSequence}
    except UserError:
        raise
    except Exception as error:  # whatever a damaged header makes a reader raise
        raise UserError(f"“{path.name}” is a DICOM SEG that cannot be read; export it again.") from error
    normal = np.cross(axes[0], axes[1])
    depths = places @ normal
    step = _distance_between(depths, measures)
    index = np.rint((depths - depths.min()) / step).astype(int)
    labels = np.zeros((index.max() + 1, *frames.shape[1:]), np.uint16)
    for frame, k, number in zip(frames, index, numbers, strict=True):
        labels[k][frame > 0] = number
    directions = np.stack([axes[0], axes[1], normal], axis=1)
    affine = affine_from_lps(places[int(depths.argmin())], directions, (columns_mm, rows_mm, step))
    return LabelMap(labels, affine, names)


def _group(frame, shared, name: str):
    """A functional group of a frame, or the one that all frames share."""
    return (frame if name in frame else shared)[name].value[0]


def _distance_between(depths: np.ndarray, measures) -> float:
    """mm between slices: what the file says, else the smallest distance between frames."""
    steps = np.diff(np.unique(np.round(depths, 3)))
    stated = float(measures.get("SpacingBetweenSlices") or 0)
    if stated > 0:
        return stated
    return float(steps.min()) if len(steps) else float(measures.get("SliceThickness") or 1.0)

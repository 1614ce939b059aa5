"""Read label maps: NIfTI, NRRD, MetaImage, pictures, Slicer segmentations (`.seg.nrrd`), DICOM SEG.

Notes say what was corrected while reading, with numbers. Files that cannot hold labels are refused.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from PIL import Image

from SAMFineTuneLib.cases.label_dicom_seg import find_dicom_seg, read_dicom_seg
from SAMFineTuneLib.cases.label_map import LabelMap, Meaning, count_values, overlaid
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_image import read_volume, unchanged
from SAMFineTuneLib.images.read_picture import PICTURES, opened_picture
from SAMFineTuneLib.images.read_volume_file import sheared
from SAMFineTuneLib.images.sitk_images import affine_of, quiet, require_utf8
from SAMFineTuneLib.images.text_headers import check_text_header
from SAMFineTuneLib.images.volume import is_sheared
from SAMFineTuneLib.wording import counted, same_name

_MOST_VALUES = 1024  # a file with more different values is an image rather than a label map
_ROUNDING = 0.01  # how far floating point and stored scales may be from a whole number
_BLACK, _WHITE = 32, 223  # JPEG's rounding leaves black and white within these
_JPEG = PICTURES[1:]
_SEGMENT_FIELD = re.compile(r"Segment(\d+)_(?:ID|Name|LabelValue|Layer)")


def read_labels(path: Path) -> LabelMap:
    """Read a label map from a file or a DICOM folder; UserError when it does not hold labels."""
    labels = _read(path)
    return replace(labels, notes=(*labels.notes, *_namesakes(labels)))


def _read(path: Path) -> LabelMap:
    if (seg := find_dicom_seg(path)) is not None:
        return read_dicom_seg(seg)
    name = path.name.lower()
    if name.endswith(PICTURES) and not path.is_dir():
        return _read_picture(path)
    if name.endswith((".nrrd", ".nhdr")) and (found := _read_slicer_segmentation(path)) is not None:
        return found
    volume = read_volume(path, no_number=0)  # as background: some programs mark unlabelled voxels so
    array, notes = _whole(volume.array, path)
    return LabelMap(array, volume.affine, notes=(*volume.warnings, *notes))


def _namesakes(labels: LabelMap) -> list[str]:
    """A sentence for each name that several labels have; a label without voxels does not count."""
    alike: dict[str, list[int]] = {}
    names = labels.meaning.names
    for label in labels.meaning.labels_in(count_values(labels.array)) if names else ():
        if label in names:
            alike.setdefault(same_name(names[label]), []).append(label)
    return [
        f"{len(own)} segments are named “{names[own[0]]}” (labels {', '.join(map(str, own))}): a cohort takes them for "
        "one structure; elsewhere each is its own label, chosen by number."
        for own in alike.values()
        if len(own) > 1
    ]


def _whole(array: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as uint16, and a note when they had to be rounded; UserError when they are not whole numbers from 0 on, or
    have too many different values."""
    notes = ()
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        off = np.abs(array - rounded)
        if off.max() > _ROUNDING:
            example, count = float(array.flat[int(off.argmax())]), int((off > _ROUNDING).sum())
            raise UserError(
                f"“{path.name}” holds fractions ({example:.4g} for one, in {counted(count, 'voxel')}), and "
                "labels are whole numbers: save labels rather than probabilities or an interpolated mask, and check "
                "that image and labels are not mixed up."
            )
        if off.any():
            changed = counted(int((off > 0).sum()), "voxel")
            notes = (f"Rounded to whole numbers: {changed} of the labels, by up to {float(off.max()):.2g}.",)
        array = rounded
    low, high = array.min(), array.max()
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise UserError(
            f"“{path.name}” holds values from {low:g} to {high:g} that are not labels; labels are whole numbers from 0 "
            "to 65535, so check that image and labels are not mixed up."
        )
    labels = array.astype(np.uint16)
    count = len(count_values(labels))
    if count > _MOST_VALUES:
        raise UserError(
            f"“{path.name}” holds {count} different values, as an image does; a label map holds up to {_MOST_VALUES}, "
            "so check that image and labels are not mixed up."
        )
    return labels, notes


# ---- pictures


def _read_picture(path: Path) -> LabelMap:
    """Read a mask in a picture: grey values, or the indices of a palette."""
    with opened_picture(path) as picture:
        values, notes = _picture_values(picture, path)
    array, more = _whole(values, path)
    return LabelMap(array[None], np.diag([-1.0, -1.0, 1.0, 1.0]), placed=False, notes=(*notes, *more))


def _picture_values(picture: Image.Image, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if picture.mode == "1":
        return np.asarray(picture.convert("L")), ()
    if picture.mode in ("L", "P", "I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
    else:
        values = _grey_of_colours(picture, path)
    if not path.name.lower().endswith(_JPEG):
        return values, ()
    between = (values > _BLACK) & (values < _WHITE)
    if between.mean() > 0.02:
        raise UserError(f"“{path.name}” is a JPEG, which changes values: save labels as PNG.")
    changed = int(((values > 0) & (values < 255)).sum())
    white = np.where(values >= 128, 255, 0)
    note = f"JPEG had changed {changed} pixels of the labels, which were set to the nearer of black and white."
    return white, ((note,) if changed else ())


def _grey_of_colours(picture: Image.Image, path: Path) -> np.ndarray:
    channels = np.asarray(picture.convert("RGBA" if "A" in picture.getbands() else "RGB"))
    colours, alpha = channels[..., :3], channels[..., 3:]
    if (colours != colours[..., :1]).any():
        raise UserError(
            f"“{path.name}” is a picture in colours, which do not give labels a number: save the labels as grey "
            "values, or with a palette."
        )
    if (colours == colours[0, 0]).all() and alpha.size and (alpha != alpha[0, 0]).any():
        raise UserError(f"“{path.name}” holds its mask as transparency: save it as grey values.")
    return colours[..., 0]


# ---- Slicer segmentations


def _read_slicer_segmentation(path: Path) -> LabelMap | None:
    """Read a `.seg.nrrd` as Slicer does; None for an NRRD file of one layer that describes no segment.

    Slicer 5 writes layers, and for each segment its layer and its value there. Slicer up to 4.10 wrote a layer of
    zeros and ones for each segment, in order, and neither of the two. Labels are numbered by their values when there
    is one layer, else by the order of the segments.
    """
    require_utf8(path)
    with quiet(native=True):
        try:
            with unchanged(path):
                told = check_text_header(path)
                image = sitk.ReadImage(str(path))
        except (OSError, RuntimeError, ValueError, zlib.error) as error:
            raise UserError(f"“{path.name}” cannot be read; export it again.") from error
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    numbers = sorted({int(match[1]) for key in fields if (match := _SEGMENT_FIELD.fullmatch(key))})
    layered = image.GetNumberOfComponentsPerPixel() > 1
    if not numbers and not (layered and path.name.lower().endswith(".seg.nrrd")):
        return None
    if image.GetDimension() != 3:
        raise UserError(f"“{path.name}” is a segmentation of more than three dimensions; save one time point.")
    affine = affine_of(image)
    if is_sheared(affine):
        raise sheared(path)
    array = sitk.GetArrayFromImage(image)
    layers, notes = _whole(array if layered else array[..., None], path)
    notes = (*told, *notes)
    segments = [_segment(fields, n, layers.shape[-1], path) for n in numbers] or _undescribed(layers)
    for n, (name, *place) in enumerate(segments):
        if same := [other.name for other in segments[:n] if other[1:] == tuple(place)]:  # one has lost its voxels
            raise UserError(
                f"“{path.name}” gives the segments “{same[0]}” and “{name}” the same value in the same layer; save it "
                "again in Slicer."
            )
    labelled = {segment.value if not layered else n: segment for n, segment in enumerate(segments, start=1)}
    masks = ((label, layers[..., one.layer] == one.value) for label, one in labelled.items())
    joined, members = overlaid(masks, layers.shape[:3], max(labelled) + 1)
    described = sum(int(np.count_nonzero(layers[..., one.layer] == one.value)) for one in segments)
    nameless = int(np.count_nonzero(layers)) - described
    if nameless:
        left_out = counted(nameless, "voxel")
        notes = (*notes, f"Left out, as the file names no segment for them: {left_out} of the labels.")
    names = {label: one.name for label, one in labelled.items()}
    return LabelMap(joined, affine, Meaning(names, members), notes=notes)


class _Segment(NamedTuple):
    name: str
    layer: int
    value: int


def _segment(fields: Mapping[str, str], n: int, layers: int, path: Path) -> _Segment:
    name = fields.get(f"Segment{n}_Name", "").strip() or fields.get(f"Segment{n}_ID", "").strip() or f"Segment {n + 1}"
    stored = fields.get(f"Segment{n}_LabelValue")
    try:
        # A file of one layer may leave the layer out where it gives the values.
        layer = int(fields.get(f"Segment{n}_Layer", 0 if layers == 1 and stored is not None else n))
        value = 1 if stored is None else int(stored)
    except ValueError as error:
        raise UserError(f"“{path.name}” gives segment “{name}” no usable value or layer; save it again.") from error
    if not 0 <= layer < layers:
        raise UserError(
            f"“{path.name}” names segment “{name}”, but holds no layer for it; save the segmentation again in Slicer."
        )
    if value < 1:
        raise UserError(
            f"“{path.name}” gives segment “{name}” the value {value}, which is not a label; save it again in Slicer."
        )
    return _Segment(name, layer, value)


def _undescribed(layers: np.ndarray) -> list[_Segment]:
    """The segments that Slicer makes from the values of layers that the file does not describe."""
    values = ((layer, np.unique(layers[..., layer]).tolist()) for layer in range(layers.shape[-1]))
    found = [(layer, value) for layer, own in values for value in own if value]
    return [_Segment(f"Segment {n}", layer, value) for n, (layer, value) in enumerate(found or [(0, 1)], start=1)]

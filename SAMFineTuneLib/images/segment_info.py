"""Names and colours of a label map's values, and the checks before it is written in any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume

_LARGEST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class SegmentInfo:
    """One structure of a label map: name, voxel value (1 or more), colour (red, green, blue in 0 to 1)."""

    name: str
    value: int
    color: tuple[float, float, float]


def check_name(name: str) -> None:
    """Raise UserError unless files of all formats can hold a segment's name."""
    if not isinstance(name, str) or not name.strip():
        raise UserError("A segment needs a name.")
    if "\x00" in name or name.encode("utf-8", "replace").decode() != name:
        raise UserError(f"The segment {ascii(name)} has a character that no file can hold; give it another name.")


def check_segments(segments: Sequence[SegmentInfo]) -> None:
    """Raise UserError unless values are distinct whole numbers from 1, names writable, colours within 0 to 1."""
    seen: dict[int, str] = {}
    for segment in segments:
        check_name(segment.name)
        if int(segment.value) != segment.value or not 1 <= segment.value <= _LARGEST:
            raise UserError(f"Segment “{segment.name}” has value {segment.value}; use 1 to {_LARGEST}.")
        if segment.value in seen:
            raise UserError(
                f"Segments “{seen[segment.value]}” and “{segment.name}” both have value {segment.value}; "
                "give each its own."
            )
        if len(segment.color) != 3 or not all(0 <= part <= 1 for part in segment.color):
            raise UserError(f"The colour of segment “{segment.name}” is not three numbers from 0 to 1.")
        seen[segment.value] = segment.name


def compact_labels(labelmap: np.ndarray, volume: Volume) -> np.ndarray:
    """The label map [k, j, i] as uint8, or uint16 when a value needs it. UserError when it does not fit the volume."""
    labels = np.asarray(labelmap)
    if labels.shape != volume.shape:
        raise UserError(f"The label map is {labels.shape} voxels, but its volume is {volume.shape}.")
    if labels.dtype.kind not in "iub":
        raise UserError(f"A label map holds whole numbers, not {labels.dtype}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > _LARGEST:
        raise UserError(f"Label values go from {low} to {high}; only 0 to {_LARGEST} can be written.")
    return labels.astype(np.uint8 if high <= 255 else np.uint16)


def require_described(labels: np.ndarray, segments: Sequence[SegmentInfo]) -> None:
    """Raise UserError when a value of the label map has no segment."""
    nameless = sorted({int(value) for value in np.unique(labels)} - {0} - {segment.value for segment in segments})
    if nameless:
        values = ", ".join(map(str, nameless))
        raise UserError(f"No segment names the label value {values}; give each value a name and a colour.")

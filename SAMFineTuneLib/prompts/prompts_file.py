"""Our own prompts file: JSON with every kind of prompt, by segment.

    {
      "version": 1,
      "space": "ras",                       or "ijk", voxel coordinates of the volume
      "orientation": "axial",
      "plane": {"origin": [..], "right": [..], "down": [..]},        optional: an oblique plane instead
      "segments": [{
        "name": "liver", "value": 1, "color": [0.9, 0.3, 0.2],       value and color may be left out
        "points": [{"position": [r, a, s], "positive": true}],
        "boxes": [{"corners": [[r, a, s], [r, a, s]]}],
        "boxes_3d": [{"corners": [..]}, or {"center": [..], "size": [..], "axes": [[..], [..], [..]]}],
        "scribbles": [{"points": [[r, a, s], ..], "positive": true}],
        "masks": [{"plane": {..}, "pixels": "base64"}]
      }]
    }

In "ijk", sizes are in voxels and 3-D boxes lie along the volume's axes. Written files are always in "ras".
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.images.slice_plane import SlicePlane, require_voxels
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts.checked_json import flag, load_json, mapping, numbers, required, sequence, text
from SAMFineTuneLib.prompts.fcsv import ENDING as FCSV_ENDING
from SAMFineTuneLib.prompts.fcsv import read_fcsv
from SAMFineTuneLib.prompts.markups_file import read_markups
from SAMFineTuneLib.prompts.prompts import (
    Box3DPrompt,
    BoxPrompt,
    MaskPrompt,
    ObliqueView,
    PointPrompt,
    Prompt,
    PromptSet,
    ScribblePrompt,
    SegmentPrompts,
)

VERSION = 1


def read_prompts(path: str | Path, volume: Volume | None = None) -> PromptSet:
    """A prompts file, ours or Slicer's markups (`.mrk.json`, `.fcsv`; see markups.py for what their names mean).

    `volume` is needed for voxel coordinates ("space": "ijk"). Raises UserError naming the key that is wrong.
    """
    path = Path(path)
    if path.name.lower().endswith(FCSV_ENDING):
        return read_fcsv(path)
    values = load_json(path)
    return read_markups(path) if "markups" in values else prompts_from_dict(values, volume, path.name)


def write_prompts(path: str | Path, prompts: PromptSet) -> None:
    """Write our prompts file, whole or not at all; `read_prompts` gives the same prompts back."""
    content = json.dumps(prompts_to_dict(prompts), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_write(path) as temporary:
        temporary.write_text(content + "\n", encoding="utf-8")


def merge_prompts(sets: Sequence[PromptSet]) -> PromptSet:
    """Several files as one: segments of the same name become one, label values that clash are renumbered.

    The first file's orientation counts, and the first oblique plane.
    """
    merged: dict[str, SegmentPrompts] = {}
    for segment in (segment for one in sets for segment in one.segments):
        known = merged.get(segment.name)
        if known is None:
            taken = {other.value for other in merged.values()}
            value = segment.value if segment.value not in taken else _free_value(taken)
            merged[segment.name] = SegmentPrompts(segment.name, value, segment.color, segment.prompts)
        else:
            both = known.prompts + segment.prompts
            merged[segment.name] = SegmentPrompts(known.name, known.value, known.color, both)
    view = next((one.view for one in sets if one.view is not None), None)
    return PromptSet(tuple(merged.values()), sets[0].orientation, view)


def prompts_to_dict(prompts: PromptSet) -> dict:
    """The file's content, in RAS."""
    values: dict[str, Any] = {"version": VERSION, "space": "ras", "orientation": prompts.orientation}
    if prompts.view is not None:
        view = prompts.view
        values["plane"] = {"origin": list(view.origin), "right": list(view.right), "down": list(view.down)}
    values["segments"] = [_segment_to_dict(segment) for segment in prompts.segments]
    return values


def prompts_from_dict(values: dict, volume: Volume | None = None, where: str = "The prompts") -> PromptSet:
    """The inverse of `prompts_to_dict`; also takes voxel coordinates. Raises UserError naming the key."""
    mapping(values, where, ("version", "space", "orientation", "plane", "segments"))
    version = required(values, "version", where)
    if version != VERSION or isinstance(version, bool):
        raise UserError(f"{where} has version {version}; this program reads version {VERSION}: update it.")
    space = _Space(text(values.get("space", "ras"), "space"), volume)
    view = None
    if values.get("plane") is not None:
        plane = mapping(values["plane"], "plane", ("origin", "right", "down"))
        view = ObliqueView(
            space.point(required(plane, "origin", "plane"), "plane.origin"),
            space.direction(required(plane, "right", "plane"), "plane.right"),
            space.direction(required(plane, "down", "plane"), "plane.down"),
        )
    segments: list[SegmentPrompts] = []
    entries = sequence(required(values, "segments", where), "segments")
    values_given = [entry.get("value") for entry in entries if isinstance(entry, dict)]
    stated = {value for value in values_given if _is_int(value)}
    for number, entry in enumerate(entries):
        segments.append(_segment_from_dict(entry, f"segments[{number}]", space, stated))
        stated.add(segments[-1].value)
    return PromptSet(tuple(segments), text(values.get("orientation", "axial"), "orientation"), view)


class _Space:
    """Coordinates as the file gives them, turned into RAS."""

    def __init__(self, name: str, volume: Volume | None):
        if name not in ("ras", "ijk"):
            raise UserError(f'space must be "ras" or "ijk", not "{name}".')
        if name == "ijk" and volume is None:
            raise UserError('The prompts are in voxel coordinates (space "ijk"): give their volume too.')
        self.volume = volume if name == "ijk" else None
        self.axes = np.eye(3) if self.volume is None else self.volume.affine[:3, :3].T  # one row an axis

    def point(self, value: Any, where: str) -> tuple:
        point = numbers(value, where, 3)
        return tuple(point if self.volume is None else map(float, self.volume.ijk_to_ras(point)))

    def require_inside(self, positions: Sequence[Sequence[float]], where: str) -> None:
        """In a file in voxels, refuse in voxels what lies outside the volume altogether."""
        if self.volume is not None:
            require_voxels(self.volume, positions, where)

    def direction(self, value: Any, where: str) -> tuple:
        return tuple(map(float, np.array(numbers(value, where, 3)) @ self.axes))

    def points(self, value: Any, where: str, count: int | None = None) -> tuple:
        entries = sequence(value, where)
        if count is not None and len(entries) != count:
            raise UserError(f"{where} must be a list of {count} positions.")
        if entries:
            self.require_inside([numbers(entry, where, 3) for entry in entries], where)
        return tuple(self.point(entry, f"{where}[{number}]") for number, entry in enumerate(entries))

    def box(self, value: Any, where: str) -> Box3DPrompt:
        box = mapping(value, where, ("corners", "center", "size", "axes"))
        if "corners" in box:
            if len(box) > 1:
                raise UserError(f'{where} must have either "corners" or "center" and "size", not both.')
            corners = sequence(box["corners"], f"{where}.corners")
            if len(corners) != 2:
                raise UserError(f"{where}.corners must be a list of 2 positions.")
            a, b = (np.array(numbers(corner, f"{where}.corners", 3)) for corner in corners)
            center, size, axes = (a + b) / 2, np.abs(b - a), np.eye(3)
        else:
            center = np.array(numbers(required(box, "center", where), f"{where}.center", 3))
            size = np.array(numbers(required(box, "size", where), f"{where}.size", 3))
            given = sequence(box.get("axes", np.eye(3).tolist()), f"{where}.axes")
            axes = np.array([numbers(axis, f"{where}.axes", 3) for axis in given])
            if axes.shape != (3, 3):
                raise UserError(f"{where}.axes must be a list of 3 directions.")
        reach = np.abs(axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-12)).T @ (size / 2)
        self.require_inside([center - reach, center + reach], where)
        in_mm = axes @ self.axes
        lengths = np.linalg.norm(in_mm, axis=1) / np.maximum(np.linalg.norm(axes, axis=1), 1e-12)
        center = self.point(center.tolist(), where)
        return Box3DPrompt(center, tuple(size * lengths), tuple(map(tuple, in_mm)))


def _segment_from_dict(entry: Any, where: str, space: _Space, taken: set[int]) -> SegmentPrompts:
    entry = mapping(entry, where, ("name", "value", "color", *_KINDS))
    name = text(required(entry, "name", where), f"{where}.name")
    value = entry.get("value", _free_value(taken))
    if not _is_int(value):
        raise UserError(f"{where}.value must be a whole number.")
    color = entry.get("color")
    if color is not None:
        color = tuple(numbers(color, f"{where}.color", 3))
    prompts: list[Prompt] = []
    for key, read in _KINDS.items():
        for number, prompt in enumerate(sequence(entry.get(key, []), f"{where}.{key}")):
            prompts.append(read(prompt, f"{where}.{key}[{number}]", space))
    return SegmentPrompts(name, value, color, tuple(prompts))


def _read_point(value: Any, where: str, space: _Space) -> PointPrompt:
    value = mapping(value, where, ("position", "positive"))
    position, where_position = required(value, "position", where), f"{where}.position"
    ras = space.point(position, where_position)
    space.require_inside([position], where_position)
    return PointPrompt(ras, flag(value.get("positive", True), f"{where}.positive"))


def _read_box(value: Any, where: str, space: _Space) -> BoxPrompt:
    value = mapping(value, where, ("corners",))
    return BoxPrompt(*space.points(required(value, "corners", where), f"{where}.corners", 2))


def _read_box_3d(value: Any, where: str, space: _Space) -> Box3DPrompt:
    return space.box(value, where)


def _read_scribble(value: Any, where: str, space: _Space) -> ScribblePrompt:
    value = mapping(value, where, ("points", "positive"))
    points = space.points(required(value, "points", where), f"{where}.points")
    return ScribblePrompt(points, flag(value.get("positive", True), f"{where}.positive"))


def _read_mask(value: Any, where: str, space: _Space) -> MaskPrompt:
    value = mapping(value, where, ("plane", "pixels"))
    plane = SlicePlane.from_dict(mapping(required(value, "plane", where), f"{where}.plane"))
    count = plane.shape[0] * plane.shape[1]
    try:
        packed = base64.b64decode(text(required(value, "pixels", where), f"{where}.pixels"), validate=True)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, (count + 7) // 8 + 1)
    except (binascii.Error, ValueError, zlib.error, OverflowError):
        data = b""
    if len(data) != (count + 7) // 8:
        raise UserError(f"{where}.pixels is damaged: remove this mask and draw it again.")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count)
    return MaskPrompt(bits.reshape(plane.shape).astype(bool), plane)


_KINDS = {
    "points": _read_point,
    "boxes": _read_box,
    "boxes_3d": _read_box_3d,
    "scribbles": _read_scribble,
    "masks": _read_mask,
}


def _segment_to_dict(segment: SegmentPrompts) -> dict:
    values: dict[str, Any] = {"name": segment.name, "value": segment.value, "color": list(segment.color)}
    for prompt in segment.prompts:
        key, content = _prompt_to_dict(prompt)
        values.setdefault(key, []).append(content)
    return values


def _prompt_to_dict(prompt: Prompt) -> tuple[str, dict]:
    """(key of its list in the file, content)"""
    if isinstance(prompt, PointPrompt):
        return "points", {"position": list(prompt.ras), "positive": prompt.positive}
    if isinstance(prompt, BoxPrompt):
        return "boxes", {"corners": [list(prompt.corner_a), list(prompt.corner_b)]}
    if isinstance(prompt, Box3DPrompt):
        axes = [list(axis) for axis in prompt.axes]
        return "boxes_3d", {"center": list(prompt.center), "size": list(prompt.size), "axes": axes}
    if isinstance(prompt, ScribblePrompt):
        return "scribbles", {"points": [list(point) for point in prompt.ras], "positive": prompt.positive}
    pixels = base64.b64encode(zlib.compress(np.packbits(prompt.mask).tobytes())).decode("ascii")
    return "masks", {"plane": prompt.plane.to_dict(), "pixels": pixels}


def _free_value(taken: set[int]) -> int:
    value = 1
    while value in taken:
        value += 1
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

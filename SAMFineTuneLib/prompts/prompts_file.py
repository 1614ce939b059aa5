"""Reads and writes our own prompts file: JSON with every kind of prompt, by segment.

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
        "lassos": [{"points": [[r, a, s], ..], "positive": true}],   corners of a closed line
        "masks": [{"plane": {..}, "pixels": "base64"}]
      }]
    }

In "ijk", sizes are in voxels and 3-D boxes lie along the volume's axes. Written files are always in "ras".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts.checked_json import Coordinates, load_json, mapping, numbers, required, sequence, text
from SAMFineTuneLib.prompts.fcsv_file import ENDING as FCSV_ENDING
from SAMFineTuneLib.prompts.fcsv_file import read_fcsv
from SAMFineTuneLib.prompts.markups_file import read_markups
from SAMFineTuneLib.prompts.prompt_kind import KINDS, Prompt
from SAMFineTuneLib.prompts.prompt_set import ObliqueView, PromptSet, SegmentPrompts, free_value

VERSION = 1


def read_prompts(path: str | Path, volume: Volume | None = None) -> PromptSet:
    """Read a prompts file, ours or Slicer's markups (`.mrk.json`, `.fcsv`; `markups_file` says what names mean).

    `volume` is needed for voxel coordinates ("space": "ijk"). Raises UserError that names the wrong key.
    """
    path = Path(path)
    if path.name.lower().endswith(FCSV_ENDING):
        return read_fcsv(path)
    values = load_json(path)
    return read_markups(path) if "markups" in values else prompts_from_dict(values, volume, path.name)


def write_prompts(path: str | Path, prompts: PromptSet) -> None:
    """Write our prompts file, which appears complete or not at all; `read_prompts` returns the same prompts."""
    content = json.dumps(prompts_to_dict(prompts), indent=1, allow_nan=False, ensure_ascii=False)
    write_text(path, content + "\n")


def prompts_to_dict(prompts: PromptSet) -> dict:
    """The file's content, in RAS."""
    values: dict[str, Any] = {"version": VERSION, "space": "ras", "orientation": prompts.orientation}
    if prompts.view is not None:
        view = prompts.view
        values["plane"] = {"origin": list(view.origin), "right": list(view.right), "down": list(view.down)}
    values["segments"] = [_segment_to_dict(segment) for segment in prompts.segments]
    return values


def prompts_from_dict(values: dict, volume: Volume | None = None, where: str = "The prompts") -> PromptSet:
    """The inverse of `prompts_to_dict`; also takes voxel coordinates.

    Args:
        values: what a prompts file holds.
        volume: whose voxels are meant; not needed for coordinates in mm.
        where: the file's name in messages.

    Raises:
        UserError: that names the key, when something is wrong.
    """
    mapping(values, where, ("version", "space", "orientation", "plane", "segments"))
    version = required(values, "version", where)
    if version != VERSION or isinstance(version, bool):
        raise UserError(f"{where} has version {version}; this program reads version {VERSION}: update it.")
    coordinates = Coordinates(text(values.get("space", "ras"), "space"), volume)
    view = None
    if values.get("plane") is not None:
        plane = mapping(values["plane"], "plane", ("origin", "right", "down"))
        view = ObliqueView(
            coordinates.point(required(plane, "origin", "plane"), "plane.origin"),
            coordinates.direction(required(plane, "right", "plane"), "plane.right"),
            coordinates.direction(required(plane, "down", "plane"), "plane.down"),
        )
    segments: list[SegmentPrompts] = []
    entries = sequence(required(values, "segments", where), "segments")
    values_given = [entry.get("value") for entry in entries if isinstance(entry, dict)]
    stated = {value for value in values_given if _is_int(value)}
    for number, entry in enumerate(entries):
        segments.append(_segment_from_dict(entry, f"segments[{number}]", coordinates, stated))
        stated.add(segments[-1].value)
    return PromptSet(tuple(segments), text(values.get("orientation", "axial"), "orientation"), view)


def _segment_from_dict(entry: Any, where: str, coordinates: Coordinates, taken: set[int]) -> SegmentPrompts:
    entry = mapping(entry, where, ("name", "value", "color", *KINDS))
    name = text(required(entry, "name", where), f"{where}.name")
    value = entry.get("value", free_value(taken))
    if not _is_int(value):
        raise UserError(f"{where}.value must be a whole number.")
    color = entry.get("color")
    if color is not None:
        color = tuple(numbers(color, f"{where}.color", 3))
    prompts: list[Prompt] = []
    for key, kind in KINDS.items():
        for number, prompt in enumerate(sequence(entry.get(key, []), f"{where}.{key}")):
            prompts.append(kind.from_json(prompt, f"{where}.{key}[{number}]", coordinates))
    return SegmentPrompts(name, value, color, tuple(prompts))


def _segment_to_dict(segment: SegmentPrompts) -> dict:
    values: dict[str, Any] = {"name": segment.name, "value": segment.value, "color": list(segment.color)}
    for prompt in segment.prompts:
        values.setdefault(prompt.list_name, []).append(prompt.to_json())
    return values


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""Reads point lists of older versions of Slicer (`.fcsv`), also of those before the Markups module, as prompts.

File name, descriptions and labels give segment and sign, as in `markups_file`. Points that were never placed, or only
follow the mouse, do not count.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.prompts.checked_json import load_file
from SAMFineTuneLib.prompts.markups_file import is_positive, segment_name
from SAMFineTuneLib.prompts.point_prompt import PointPrompt
from SAMFineTuneLib.prompts.prompt_set import PromptSet, SegmentPrompts

ENDING = ".fcsv"
_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_SIGNS = {"RAS": (1, 1), "0": (1, 1), "LPS": (-1, -1), "1": (-1, -1)}  # of x and y, to become RAS
_DEFINED = "2"  # position status, in a column after the named ones in newer files


def read_fcsv(path: str | Path) -> PromptSet:
    """Read all placed points of a file. Raises UserError that names the wrong line, or when no point is placed."""
    path = Path(path)
    lines = _lines(path)
    settings = dict(re.findall(r"^#\s*(\w+)\s*=\s*(.*?)\s*$", "\n".join(lines), re.MULTILINE))
    system = settings.get("CoordinateSystem", "RAS")
    if system not in _SIGNS:
        raise UserError(f"{path.name} is in the coordinate system {system}: save it in Slicer as .mrk.json.")
    columns = [name.strip().lower() for name in settings.get("columns", _COLUMNS).split(",")]
    if not {"x", "y", "z"} <= set(columns):
        raise UserError(f"{path.name} names no columns x, y and z: save it in Slicer as .mrk.json.")
    name = re.sub(rf"{ENDING}$", "", path.name, flags=re.IGNORECASE)
    points = tuple(
        PointPrompt(ras, is_positive(row.get("desc"), row.get("label"), name))
        for row, ras in _rows(lines, columns, _SIGNS[system], path)
    )
    if not points:
        raise UserError(f"{path.name} holds no placed points: place some in Slicer, save it again.")
    return PromptSet((SegmentPrompts(segment_name(name), prompts=points),))


def _lines(path: Path) -> list[str]:
    content = load_file(path)
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:  # labels may be in the code page of an older Windows; coordinates are plain ASCII
        return content.decode("latin-1").splitlines()


def _rows(
    lines: list[str], columns: list[str], signs: tuple[int, int], path: Path
) -> Iterator[tuple[dict[str, str], tuple[float, float, float]]]:
    """Yield the fields by column and the RAS position of each placed point."""
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = next(csv.reader([line]))
        row = dict(zip(columns, fields, strict=False))
        try:
            x, y, z = (float(row[axis]) for axis in "xyz")
        except (KeyError, ValueError):
            x = y = z = math.nan
        if not all(map(math.isfinite, (x, y, z))):
            raise UserError(f"{path.name}, line {number}, lacks three numbers x, y, z: save it in Slicer as .mrk.json.")
        status = fields[len(columns)].strip() if len(fields) > len(columns) else _DEFINED
        if status == _DEFINED:
            yield row, (x * signs[0], y * signs[1], z)

"""Reads and writes Slicer's markups files (`.mrk.json`): point lists, ROIs, curves and planes as prompts.

The meaning of a markup:

* The segment has the markup's name, which is the file's name unless the file says otherwise. Words at its end that only
  describe the markup do not count (positive, negative, points, box, lasso and the like, also with a number):
  "liver_negative.mrk.json" and "liver_box-1.mrk.json" both belong to "liver".
* A point is negative when its description, or else its label, or else the markup's name contains negative, neg or
  background, or is just "-"; positive, pos, foreground or "+" make it positive. Other prompts go by the name.
* `Prompt.markup_types` of each kind lists the types of markups that become it. Curves count straight from control
  point to control point.
* A plane is the oblique plane on which all prompts are placed.

Only points whose position is defined count, not those that were skipped or follow the mouse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts.checked_json import load_json, mapping, numbers, required, sequence, text
from SAMFineTuneLib.prompts.prompt_kind import Markup, Prompt, kind_of_markup, markers
from SAMFineTuneLib.prompts.prompt_set import ObliqueView, PromptSet, SegmentPrompts, prompt_planes

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_SLICER_PINK = [1.0, 0.5, 0.5]  # the colour of every new markup, which is not the segment's
_NEGATIVE = re.compile(r"(?<![a-z])(negative|neg|background)(?![a-z])", re.IGNORECASE)
_POSITIVE = re.compile(r"(?<![a-z])(positive|pos|foreground)(?![a-z])", re.IGNORECASE)
_OTHER_WORDS = ("pos", "neg", "foreground", "background", "point", "points", "roi", "curve", "line")
_NAMELESS = "segment"


def read_markups(path: str | Path) -> PromptSet:
    """Read all markups of one file. Raises UserError that names the wrong key, or when no point is placed."""
    path = Path(path)
    values = load_json(path)
    list_name = re.sub(r"(\.mrk)?\.json$", "", path.name, flags=re.IGNORECASE)
    found: dict[str, list[Prompt]] = {}
    colors: dict[str, tuple] = {}
    view = None
    for number, entry in enumerate(sequence(required(values, "markups", path.name), "markups")):
        where = f"markups[{number}]"
        markup = mapping(entry, where)
        name = text(markup.get("name", list_name), f"{where}.name")
        to_ras = _axes_to_ras(markup, where)
        kind = text(required(markup, "type", where), f"{where}.type")
        if kind == "Plane":
            if view is not None:
                raise UserError(f"{path.name} holds two planes: keep the one that the prompts are meant on.")
            view = _read_plane(markup, where, to_ras)
        elif (read_as := kind_of_markup(kind)) is not None:
            segment = segment_name(name)
            prompts = _read_prompts(read_as, markup, where, to_ras, name, is_positive(name))
            found.setdefault(segment, []).extend(prompts)
            color = mapping(markup.get("display", {}), f"{where}.display").get("selectedColor")
            if color is not None and color != _SLICER_PINK:
                colors.setdefault(segment, tuple(numbers(color, f"{where}.display.selectedColor", 3)))
        else:
            raise UserError(
                f"{path.name} holds a markup of type {kind}, which is not a prompt: "
                "use point lists, ROIs, curves or a plane."
            )
    placed = [(name, prompts) for name, prompts in found.items() if prompts]
    if not placed and view is None:
        raise UserError(f"{path.name} holds no placed points or boxes: place some in Slicer, save it again.")
    segments = (
        SegmentPrompts(name, value, colors.get(name), tuple(prompts))
        for value, (name, prompts) in enumerate(placed, start=1)
    )
    return PromptSet(tuple(segments), view=view)


def write_markups(folder: str | Path, prompts: PromptSet, volume: Volume) -> list[Path]:
    """Write prompts as markups that Slicer opens, one file for each list, ROI, curve and plane. Each file appears
    complete or not at all. Returns the files. `volume` gives boxes on slices their directions and thickness.

    Raises UserError for what markups cannot hold: masks, and 3-D boxes with skewed axes.
    """
    folder = Path(folder)
    contents: dict[str, dict] = {}
    read_as: set[str] = set()
    plane = next(iter(prompt_planes(volume, prompts)), None) or aligned_plane(volume, prompts.orientation, 0)
    for segment in prompts.segments:
        stem = re.sub(r"[^\w .()-]", "_", segment.name).strip(" .") or _NAMELESS
        if segment_name(stem).casefold() in read_as:  # also "liver" beside "Liver", and "liver_positive" beside "liver"
            stem = f"{segment.value} {stem}"
        read_as.add(segment_name(stem).casefold())
        for name, markup in _segment_markups(segment, plane):
            color = list(segment.color)
            markup["display"] = {"visibility": True, "color": color, "selectedColor": color}
            contents[f"{stem}_{name}"] = markup
    if prompts.view is not None:
        contents["view_plane"] = _plane_markup(prompts.view)
    paths = []
    for name, markup in contents.items():
        paths.append(folder / f"{name}.mrk.json")
        content = json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=1, allow_nan=False)
        write_text(paths[-1], content + "\n")
    return paths


def segment_name(list_name: str) -> str:
    """The segment to which a markup belongs by its name: "liver_negative" and "liver box 2" are both "liver"."""
    words = {word for _, marker in markers().values() for word in marker.words.split()} | set(_OTHER_WORDS)
    name, any_word = list_name.strip(), "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    while (shorter := re.sub(rf"(^|[\s_.-]+)({any_word})[\s_-]*\d*$", "", name, flags=re.IGNORECASE)) != name:
        name = shorter
    return name or _NAMELESS


def is_positive(*texts: Any) -> bool:
    """Whether a prompt is positive, by the first text that says so or denies it; True when none does."""
    for said in texts:
        said = said.strip() if isinstance(said, str) else ""
        if said == "-" or _NEGATIVE.search(said):
            return False
        if said == "+" or _POSITIVE.search(said):
            return True
    return True


# ---- reading


def _axes_to_ras(markup: dict, where: str) -> np.ndarray:
    """(3,) signs that turn the file's coordinates into RAS."""
    units = markup.get("coordinateUnits", "mm")
    if units not in ("mm", ["mm", "mm", "mm"]):
        raise UserError(f"{where}.coordinateUnits is {json.dumps(units)}: save the markups in millimetres.")
    system = markup.get("coordinateSystem", "LPS")
    if system not in ("LPS", "RAS"):
        raise UserError(f'{where}.coordinateSystem is {json.dumps(system)}: it must be "LPS" or "RAS".')
    return np.array([-1.0, -1.0, 1.0]) if system == "LPS" else np.ones(3)


def _control_points(markup: dict, where: str, to_ras: np.ndarray) -> list[tuple[dict, tuple]]:
    """The points whose position is defined: (the file's entry, RAS)."""
    points = []
    for number, entry in enumerate(sequence(markup.get("controlPoints", []), f"{where}.controlPoints")):
        here = f"{where}.controlPoints[{number}]"
        point = mapping(entry, here)
        if point.get("positionStatus", "defined") == "defined":
            position = numbers(required(point, "position", here), f"{here}.position", 3)
            points.append((point, tuple(map(float, position * to_ras))))
    return points


def _read_prompts(
    kind: type[Prompt], markup: dict, where: str, to_ras: np.ndarray, name: str, positive: bool
) -> list[Prompt]:
    """The prompts that a markup holds: of a point list, one for each of its points."""
    markup_type, points = markup["type"], _control_points(markup, where, to_ras)
    if not points and (markup_type != "ROI" or "controlPoints" in markup):
        return []  # made, but never placed
    if any(marker.point_list for marker in kind.markers):
        found = [
            Markup(markup_type, (ras,), is_positive(point.get("description"), point.get("label"), name))
            for point, ras in points
        ]
    elif markup_type == "ROI":
        if markup.get("insideOut", False):
            raise UserError(
                f"{where} is an ROI that is inside out, and a box cannot mean everything outside it: switch Inside out "
                "off in Slicer's Markups module, or place negative points."
            )
        center = numbers(required(markup, "center", where), f"{where}.center", 3) * to_ras
        size = numbers(required(markup, "size", where), f"{where}.size", 3)
        axes = _orientation(markup, where, to_ras)
        found = [Markup(markup_type, (tuple(center),), positive, tuple(size), tuple(map(tuple, axes)))]
    else:
        found = [Markup(markup_type, tuple(ras for _, ras in points), positive)]
    try:
        return [kind.from_markup(one, None) for one in found]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _orientation(markup: dict, where: str, to_ras: np.ndarray) -> np.ndarray:
    """Axes (3, 3), one row an axis; the file has them as the columns of a matrix, row by row."""
    identity = np.diag(to_ras).reshape(-1).tolist()  # without one, the axes are RAS
    matrix = np.array(numbers(markup.get("orientation", identity), f"{where}.orientation", 9)).reshape(3, 3)
    return (to_ras[:, None] * matrix).T


def _read_plane(markup: dict, where: str, to_ras: np.ndarray) -> ObliqueView:
    center = numbers(required(markup, "center", where), f"{where}.center", 3) * to_ras
    required(markup, "orientation", where)
    across, up, _ = _orientation(markup, where, to_ras)
    return ObliqueView(tuple(center), tuple(across), tuple(-up))


# ---- writing


def _segment_markups(segment: SegmentPrompts, plane: SlicePlane) -> Iterable[tuple[str, dict]]:
    """(end of the file's name, markup) for everything of a segment, point lists first."""
    point_lists: dict[str, list[Markup]] = {}
    others: list[tuple[str, dict]] = []
    counts: dict[str, int] = {}
    for prompt in segment.prompts:
        marker = prompt.marker
        if marker is None:
            raise UserError(
                f"Segment {segment.name} has a {prompt.noun.lower()} prompt, which Slicer's markups cannot hold: "
                "write a prompts file of our own (.json) instead."
            )
        markup = prompt.to_markup(plane)
        if marker.point_list:
            point_lists.setdefault(marker.words, []).append(markup)
            continue
        what = marker.words.split()[-1]
        counts[what] = counts.get(what, 0) + 1
        entry = _markup_entry(markup.type, markup.points, what)
        if markup.size is not None:
            entry |= _roi_entry(markup, segment.name)
        others.append((f"{marker.words.replace(' ', '_')}-{counts[what]}", entry))
    for words in sorted(point_lists, reverse=True):  # positive before negative
        points = [markup.points[0] for markup in point_lists[words]]
        yield words, _markup_entry(point_lists[words][0].type, points, words)
    yield from others


def _lps(vector: Iterable[float]) -> list[float]:
    x, y, z = vector
    return [-x + 0.0, -y + 0.0, float(z)]


def _markup_entry(kind: str, points: Iterable[tuple], label: str) -> dict:
    return {
        "type": kind,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": [
            {
                "id": str(number),
                "label": f"{label}-{number}",
                "position": _lps(ras),
                "selected": True,
                "locked": False,
                "visibility": True,
                "positionStatus": "defined",
            }
            for number, ras in enumerate(points, start=1)
        ],
    }


def _roi_entry(roi: Markup, segment: str) -> dict:
    axes = np.array(roi.axes)
    if np.abs(axes @ axes.T - np.eye(3)).max() > 1e-4:
        raise UserError(f"A 3-D box of segment {segment} has skewed axes, which Slicer's ROI cannot hold.")
    return {
        "roiType": "Box",
        "center": _lps(roi.points[0]),
        "orientation": _orientation_lps(axes),
        "size": list(roi.size),
        "insideOut": False,
    }


def _orientation_lps(axes: np.ndarray) -> list[float]:
    return (np.array([_lps(axis) for axis in axes]).T + 0.0).reshape(-1).tolist()


def _plane_markup(view: ObliqueView) -> dict:
    right = np.array(view.right) / np.linalg.norm(view.right)
    up = -np.array(view.down)
    up -= right * (right @ up)
    up /= np.linalg.norm(up)
    normal = np.cross(right, up)
    base_to_node = np.eye(4)
    base_to_node[:3, :] = np.stack([_lps(v) for v in (right, up, normal, view.origin)], axis=1)
    return _markup_entry("Plane", [view.origin], "plane") | {
        "planeType": "pointNormal",
        "sizeMode": "auto",
        "center": _lps(view.origin),
        "normal": _lps(normal),
        "orientation": _orientation_lps(np.stack([right, up, normal])),
        "objectToBase": np.diag([-1.0, -1.0, 1.0, 1.0]).reshape(-1).tolist(),
        "baseToNode": base_to_node.reshape(-1).tolist(),  # Slicer places the plane by this matrix alone
        "size": [100.0, 100.0, 0.0],
    }

"""Reads prompts from one markups node and writes them into it.

Attributes of the node say what it holds: the marker, the segment, and for every control point the prompt's number and
view. Scene files keep them. The functions here hold no state and observe nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane, aligned_plane, oblique_plane, plane_through
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.volume_nodes import array_from_matrix
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.prompt_kind import Marker, Markup, markers
from SAMFineTuneLib.session.intents import View

WHOLE_NODE = ""  # the key of a prompt that is a node rather than one of its points
KIND = "SAMFineTune.kind"
SEGMENT = "SAMFineTune.segment"
_PROMPTS = "SAMFineTune.prompts"
_DEFINED = 2  # vtkMRMLMarkupsNode.PositionDefined
_SAME = 1e-4  # mm: what files and matrices lose


@dataclass(frozen=True)
class MarkedPrompt:
    """A prompt as read from a node. `number` is None for one that a user has just placed."""

    number: int | None
    segment_id: str
    prompt: Prompt
    view: View | None
    node_id: str
    point_id: str  # of the control point; empty when the whole node is one prompt

    def same_as(self, other: MarkedPrompt) -> bool:
        """Whether both are the same prompt, up to rounding in files."""
        return self.segment_id == other.segment_id and same_prompt(self.prompt, self.view, other.prompt, other.view)


def marker_of(node) -> Marker | None:
    """The marker that says what prompts a node holds; None when it holds none."""
    name = node.GetAttribute(KIND) if node is not None and node.IsA("vtkMRMLMarkupsNode") else None
    return markers()[name][1] if name in markers() else None


def segment_of(node) -> str:
    """The ID of the segment whose prompts a node holds."""
    return node.GetAttribute(SEGMENT) or ""


def is_roi(node) -> bool:
    """Whether a node is a box, which has a matrix and a size instead of control points."""
    return node.IsA("vtkMRMLMarkupsROINode")


def world_points(node) -> list[tuple[str, tuple[float, float, float]]]:
    """(ID, RAS in mm) of the control points whose position is defined."""
    return [
        (node.GetNthControlPointID(index), tuple(node.GetNthControlPointPositionWorld(index)))
        for index in range(node.GetNumberOfControlPoints())
        if node.GetNthControlPointPositionStatus(index) == _DEFINED
    ]


def index_of(node, point_id: str) -> int:
    """The index of a control point; -1 when the node does not have it."""
    return node.GetNthControlPointIndexByID(point_id) if point_id else -1


# ---- views


def view_of(plane: SlicePlane) -> View:
    """How the session names a plane: the orientation of the volume's own slices, or the oblique plane."""
    return plane.orientation if plane.index is not None else plane


def parallel_view(view: View | None, ras, volume: Volume) -> View | None:
    """The view of a prompt at `ras`: the view itself, or the parallel oblique plane that runs through `ras`."""
    if isinstance(view, SlicePlane) and not np.all(view.contains(ras)):
        return oblique_plane(volume, ras, view.right, view.down)
    return view


def plane_at(view: View | None, ras, volume: Volume) -> SlicePlane:
    """The plane of a view at `ras`; outside the volume, the view's first slice."""
    if isinstance(view, SlicePlane):
        return view
    try:
        return plane_through(volume, view or ORIENTATIONS[0], ras)
    except UserError:
        return aligned_plane(volume, view or ORIENTATIONS[0], 0)


def same_prompt(a: Prompt, view_a: View | None, b: Prompt, view_b: View | None) -> bool:
    """Whether two prompts are the same up to rounding."""
    if type(a) is not type(b) or a.sign != b.sign or isinstance(view_a, str) != isinstance(view_b, str):
        return False
    if isinstance(view_a, SlicePlane) and isinstance(view_b, SlicePlane):
        if view_a.key != view_b.key and not _same_plane(view_a, view_b):
            return False
    elif view_a != view_b:
        return False
    return a.geometry.shape == b.geometry.shape and np.allclose(a.geometry, b.geometry, rtol=0, atol=_SAME)


def _same_plane(a: SlicePlane, b: SlicePlane) -> bool:
    return a.shape == b.shape and all(
        np.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=_SAME) for name in ("origin", "right", "down")
    )


# ---- reading


def read_node(node, volume: Volume) -> list[MarkedPrompt]:
    """The prompts of a node. Points that follow the mouse and are not placed yet do not count."""
    kind, marker = markers()[node.GetAttribute(KIND)]
    entries = _entries(node)
    if is_roi(node):
        found = {WHOLE_NODE: _roi(node, marker)}
    elif marker.point_list:
        found = {key: Markup(marker.type, (ras,), marker.positive) for key, ras in world_points(node)}
    else:
        points = tuple(ras for _, ras in world_points(node))
        found = {WHOLE_NODE: Markup(marker.type, points, marker.positive) if points else None}
    return [
        marked
        for key, markup in found.items()
        if markup is not None and (marked := _marked(node, key, entries, kind, markup, volume)) is not None
    ]


def _marked(node, key: str, entries: dict, kind: type[Prompt], markup: Markup, volume: Volume) -> MarkedPrompt | None:
    """None while the markup is not complete, as a lasso of two points."""
    entry = entries.get(key, {"number": None, "view": None})
    at = np.mean(markup.points, axis=0)
    try:
        view = parallel_view(entry["view"], at, volume)
    except UserError:  # it was dragged out of the volume, which `PromptSync` reports
        view = entry["view"]
    try:
        prompt = kind.from_markup(markup, plane_at(view, at, volume))
    except UserError:
        return None
    return MarkedPrompt(entry["number"], segment_of(node), prompt, view, node.GetID(), key)


def _is_placed(node) -> bool:
    """Whether a box is complete. One that the user is placing has control points without positions."""
    return not node.GetNumberOfControlPoints() or bool(world_points(node))


def _roi(node, marker: Marker) -> Markup | None:
    """None while it is being placed."""
    if not _is_placed(node):
        return None
    matrix = array_from_matrix(node.GetObjectToWorldMatrix())
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    axes = matrix[:3, :3] / np.maximum(lengths, 1e-12)
    size = lengths * np.array(node.GetSize())
    return Markup(marker.type, (tuple(matrix[:3, 3]),), marker.positive, tuple(size), tuple(map(tuple, axes.T)))


def is_collapsed(node) -> bool:
    """Whether the user has pulled a box until it has no extent in some direction."""
    return is_roi(node) and min(node.GetSize()) <= 0 and _is_placed(node)


# ---- writing


def write_prompt(node, point_id: str, number: int, prompt: Prompt, view: View, volume: Volume) -> None:
    """Write a prompt into a node with its marker; without `point_id`, a point becomes a new control point."""
    markup = prompt.to_markup(plane_at(view, prompt.anchor, volume))
    if markup.size is not None:
        _write_roi(node, markup)
    elif prompt.marker.point_list:
        point_id = _write_point(node, point_id, markup)
    else:
        _write_points(node, markup)
    number_prompt(node, point_id, number, view)


def number_prompt(node, point_id: str, number: int, view: View | None) -> None:
    """Store in the node which prompt it, or one of its control points, is, and in which view it was placed."""
    _set_entries(node, _entries(node) | {point_id: _entry(number, view)})


def numbers_of(node) -> dict[int, str]:
    """prompt number -> ID of its control point, WHOLE_NODE for the node itself."""
    return {
        entry["number"]: key for key, entry in _entries(node).items() if key == WHOLE_NODE or index_of(node, key) >= 0
    }


def remove_point(node, point_id: str) -> None:
    """Remove a control point and its attributes."""
    index = index_of(node, point_id)
    if index >= 0:
        node.RemoveNthControlPoint(index)
    _set_entries(node, {key: entry for key, entry in _entries(node).items() if key != point_id})


def _write_point(node, point_id: str, markup: Markup) -> str:
    """Returns the ID of the control point."""
    import vtk

    index = index_of(node, point_id) if point_id else -1
    position = vtk.vtkVector3d(*markup.points[0])
    if index < 0:
        index = node.AddControlPointWorld(position)
        point_id = node.GetNthControlPointID(index)
        node.SetNthControlPointLabel(index, "+" if markup.positive else "-")
    elif not np.allclose(node.GetNthControlPointPositionWorld(index), markup.points[0], rtol=0, atol=_SAME):
        node.SetNthControlPointPositionWorld(index, position)
    return point_id


def _write_points(node, markup: Markup) -> None:
    import vtk

    now = [ras for _, ras in world_points(node)]
    if np.shape(now) == np.shape(markup.points) and np.allclose(now, markup.points, rtol=0, atol=_SAME):
        return
    points = vtk.vtkPoints()
    points.SetDataTypeToDouble()
    for ras in markup.points:
        points.InsertNextPoint(ras)
    node.SetControlPointPositionsWorld(points)


def _write_roi(node, markup: Markup) -> None:
    """Set matrix and size directly, because ROIs that are placed by clicks are always aligned with RAS."""
    import vtk

    matrix = np.eye(4)
    matrix[:3, :3] = np.array(markup.axes).T
    matrix[:3, 3] = markup.points[0]
    to_node = vtk.vtkMatrix4x4()
    transform = node.GetParentTransformNode()
    if transform is not None:
        world_to_node = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformFromWorld(world_to_node)
        matrix = array_from_matrix(world_to_node) @ matrix
    to_node.DeepCopy(matrix.reshape(-1).tolist())
    was_modifying = node.StartModify()
    node.SetAndObserveObjectToNodeMatrix(to_node)
    node.SetSize(*markup.size)
    node.EndModify(was_modifying)


# ---- attributes


def _entry(number: int | None, view: View | None) -> dict:
    return {"number": number, "view": view}


def _entries(node) -> dict[str, dict]:
    """control point ID -> {"number", "view"}; damaged attributes count as missing."""
    try:
        values = json.loads(node.GetAttribute(_PROMPTS) or "{}")
        return {str(key): _entry(int(one["number"]), _view_from(one["view"])) for key, one in values.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _set_entries(node, entries: dict[str, dict]) -> None:
    values = {
        key: {"number": entry["number"], "view": _view_to(entry["view"])}
        for key, entry in entries.items()
        if key == WHOLE_NODE or index_of(node, key) >= 0
    }
    text = json.dumps(values, sort_keys=True)
    if node.GetAttribute(_PROMPTS) != text:
        node.SetAttribute(_PROMPTS, text)


def _view_to(view: View | None):
    return view.to_dict() if isinstance(view, SlicePlane) else view


def _view_from(value) -> View | None:
    if isinstance(value, dict):
        return SlicePlane.from_dict(value)
    return value if value in ORIENTATIONS else None

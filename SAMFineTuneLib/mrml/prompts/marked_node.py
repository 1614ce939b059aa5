"""One markups node and the prompts it holds: read from it and written into it.

Attributes say what a node holds: its kind, its segment, and for every control point the prompt's number and view. They
survive saving with the scene. Nothing is remembered here and nothing observed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.prompt_geometry import (
    FLAT,
    SAME,
    View,
    flat_box,
    parallel_view,
    plane_at,
    same_prompt,
    slice_box,
)
from SAMFineTuneLib.mrml.volume_nodes import array_from_matrix
from SAMFineTuneLib.prompts import Box3DPrompt, BoxPrompt, PointPrompt, Prompt, ScribblePrompt

# kind -> (node class, what is added to the segment's name; prompts.markups reads these words)
KINDS = {
    "positive": ("vtkMRMLMarkupsFiducialNode", "positive"),
    "negative": ("vtkMRMLMarkupsFiducialNode", "negative"),
    "box": ("vtkMRMLMarkupsROINode", "box"),
    "scribble+": ("vtkMRMLMarkupsCurveNode", "positive scribble"),
    "scribble-": ("vtkMRMLMarkupsCurveNode", "negative scribble"),
}
WHOLE_NODE = ""  # the key of a prompt that is a node rather than one of its points
KIND = "SAMFineTune.kind"
SEGMENT = "SAMFineTune.segment"
_PROMPTS = "SAMFineTune.prompts"
_DEFINED = 2  # vtkMRMLMarkupsNode.PositionDefined


@dataclass(frozen=True)
class MarkedPrompt:
    """A prompt as the nodes say it. `number` is None for what a user placed and nobody numbered yet."""

    number: int | None
    segment_id: str
    prompt: Prompt
    view: View | None
    node_id: str
    point_id: str  # of the control point, empty when the prompt is the whole node

    def same_as(self, other: MarkedPrompt) -> bool:
        """Whether both mean the same place, up to what saving loses."""
        return self.segment_id == other.segment_id and same_prompt(self.prompt, self.view, other.prompt, other.view)


def kind_of(node) -> str | None:
    """What prompts a node holds ("positive", "box", ...); None when it is no node of ours."""
    kind = node.GetAttribute(KIND) if node is not None and node.IsA("vtkMRMLMarkupsNode") else None
    return kind if kind in KINDS else None


def segment_of(node) -> str:
    """The ID of the segment whose prompts a node holds."""
    return node.GetAttribute(SEGMENT) or ""


def kind_for(prompt: Prompt) -> str | None:
    """The kind of node that can stand for a prompt; None for a mask."""
    if isinstance(prompt, PointPrompt):
        return "positive" if prompt.positive else "negative"
    if isinstance(prompt, ScribblePrompt):
        return "scribble+" if prompt.positive else "scribble-"
    return "box" if isinstance(prompt, (BoxPrompt, Box3DPrompt)) else None


def can_show(prompt: Prompt) -> bool:
    """Whether a node can stand for a prompt."""
    return kind_for(prompt) is not None


def world_points(node) -> list[tuple[str, tuple[float, float, float]]]:
    """(ID, RAS in mm) of the control points whose position is defined."""
    return [
        (node.GetNthControlPointID(index), tuple(node.GetNthControlPointPositionWorld(index)))
        for index in range(node.GetNumberOfControlPoints())
        if node.GetNthControlPointPositionStatus(index) == _DEFINED
    ]


def index_of(node, point_id: str) -> int:
    """Of a control point, -1 when it is not there."""
    return node.GetNthControlPointIndexByID(point_id) if point_id else -1


# ---- reading


def read_node(node, volume: Volume) -> list[MarkedPrompt]:
    """What a node holds; points under the mouse that are not placed yet do not count."""
    kind, entries = kind_of(node), _entries(node)
    if kind in ("positive", "negative"):
        return [
            _marked(node, point_id, entries, PointPrompt(ras, kind == "positive"), ras, volume)
            for point_id, ras in world_points(node)
        ]
    if kind == "box":
        box = _roi_box(node)
        entry = entries.get(WHOLE_NODE, {"number": None, "view": None})
        return [] if box is None else [_marked_box(node, entry, box, volume)]
    points = tuple(ras for _, ras in world_points(node))
    if not points:
        return []
    prompt = ScribblePrompt(points, kind == "scribble+")
    return [_marked(node, WHOLE_NODE, entries, prompt, np.mean(points, axis=0), volume)]


def _marked(node, point_id: str, entries: dict, prompt: Prompt, at, volume: Volume) -> MarkedPrompt:
    entry = entries.get(point_id, {"number": None, "view": None})
    view = _moved_view(entry["view"], at, volume)
    return MarkedPrompt(entry["number"], segment_of(node), prompt, view, node.GetID(), point_id)


def _marked_box(node, entry: dict, box: Box3DPrompt, volume: Volume) -> MarkedPrompt:
    """A flat ROI is a box on the slice that its centre lies in."""
    view = _moved_view(entry["view"], box.center, volume)
    prompt: Prompt = box
    plane = plane_at(view, box.center, volume)
    if plane is not None:
        sides = np.array(box.axes) * np.array(box.size)[:, None]  # (3, 3) mm, one row a side

        def extent(direction):
            return np.abs(sides @ direction).sum()

        if extent(plane.normal) <= FLAT * plane.thickness:
            half = (extent(plane.right) * plane.right + extent(plane.down) * plane.down) / 2
            prompt = slice_box(plane, (np.array(box.center) - half, np.array(box.center) + half))
    return MarkedPrompt(entry["number"], segment_of(node), prompt, view, node.GetID(), WHOLE_NODE)


def _moved_view(view: View | None, at, volume: Volume) -> View | None:
    try:
        return parallel_view(view, at, volume)
    except UserError:  # it was dragged out of the volume; whoever takes the prompt says so
        return view


def _is_placed(node) -> bool:
    """Whether nobody is about to place a box with clicks; one that was written has no control point."""
    return not node.GetNumberOfControlPoints() or bool(world_points(node))


def _roi_box(node) -> Box3DPrompt | None:
    """None while it is being placed, or has no area."""
    if not _is_placed(node):
        return None
    matrix = array_from_matrix(node.GetObjectToWorldMatrix())
    sides = matrix[:3, :3] * np.array(node.GetSize())  # columns: the box's sides in mm
    lengths = np.linalg.norm(sides, axis=0)
    axes = matrix[:3, :3] / np.maximum(np.linalg.norm(matrix[:3, :3], axis=0), 1e-12)
    try:
        return Box3DPrompt(tuple(matrix[:3, 3]), tuple(lengths), tuple(map(tuple, axes.T)))
    except UserError:
        return None


def is_collapsed(node) -> bool:
    """Whether a box has been pulled to nothing in some direction, and so says no place any more."""
    return kind_of(node) == "box" and min(node.GetSize()) <= 0 and _is_placed(node)


# ---- writing


def write_prompt(node, point_id: str, number: int, prompt: Prompt, view: View, volume: Volume) -> None:
    """Make or move what stands for a prompt in a node of its kind; without `point_id` a point is a new one."""
    if isinstance(prompt, PointPrompt):
        point_id = _write_point(node, point_id, prompt)
    elif isinstance(prompt, ScribblePrompt):
        _write_curve(node, prompt)
    else:
        _write_roi(node, prompt, view, volume)
    number_prompt(node, point_id, number, view)


def number_prompt(node, point_id: str, number: int, view: View | None) -> None:
    """Note which prompt a node, or its control point, is, and on which view."""
    _set_entries(node, _entries(node) | {point_id: _entry(number, view)})


def numbers_of(node) -> dict[int, str]:
    """prompt number -> ID of its control point, WHOLE_NODE for the node itself."""
    return {
        entry["number"]: key for key, entry in _entries(node).items() if key == WHOLE_NODE or index_of(node, key) >= 0
    }


def remove_point(node, point_id: str) -> None:
    """Take away a control point and what is noted of it."""
    index = index_of(node, point_id)
    if index >= 0:
        node.RemoveNthControlPoint(index)
    _set_entries(node, {key: entry for key, entry in _entries(node).items() if key != point_id})


def _write_point(node, point_id: str, prompt: PointPrompt) -> str:
    """Returns the ID of the control point."""
    import vtk

    index = index_of(node, point_id) if point_id else -1
    position = vtk.vtkVector3d(*prompt.ras)
    if index < 0:
        index = node.AddControlPointWorld(position)
        point_id = node.GetNthControlPointID(index)
        node.SetNthControlPointLabel(index, "+" if prompt.positive else "-")
    elif not np.allclose(node.GetNthControlPointPositionWorld(index), prompt.ras, rtol=0, atol=SAME):
        node.SetNthControlPointPositionWorld(index, position)
    return point_id


def _write_curve(node, prompt: ScribblePrompt) -> None:
    import vtk

    now = [ras for _, ras in world_points(node)]
    if np.shape(now) == np.shape(prompt.ras) and np.allclose(now, prompt.ras, rtol=0, atol=SAME):
        return
    points = vtk.vtkPoints()
    points.SetDataTypeToDouble()
    for ras in prompt.ras:
        points.InsertNextPoint(ras)
    node.SetControlPointPositionsWorld(points)


def _write_roi(node, prompt: BoxPrompt | Box3DPrompt, view: View, volume: Volume) -> None:
    """Its matrix and size directly: placed by clicks, an ROI is aligned with RAS, whatever the slice."""
    import vtk

    box = prompt if isinstance(prompt, Box3DPrompt) else flat_box(prompt, view, volume)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(box.axes).T
    if np.linalg.det(matrix[:3, :3]) < 0:
        matrix[:3, 2] *= -1  # the same box, right-handed
    matrix[:3, 3] = box.center
    to_node = vtk.vtkMatrix4x4()
    transform = node.GetParentTransformNode()
    if transform is not None:
        world_to_node = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformFromWorld(world_to_node)
        matrix = array_from_matrix(world_to_node) @ matrix
    to_node.DeepCopy(matrix.reshape(-1).tolist())
    was_modifying = node.StartModify()
    node.SetAndObserveObjectToNodeMatrix(to_node)
    node.SetSize(*box.size)
    node.EndModify(was_modifying)


# ---- attributes


def _entry(number: int | None, view: View | None) -> dict:
    return {"number": number, "view": view}


def _entries(node) -> dict[str, dict]:
    """control point ID -> {"number", "view"}; what is damaged is as if it were not there."""
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

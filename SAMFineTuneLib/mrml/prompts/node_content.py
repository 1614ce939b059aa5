"""The content of a markups node: its prompts, and the attributes that identify them.

Attributes of a node are the marker, the segment, and for every control point the prompt's number and view. Scene files
keep them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.slice_views import parallel_view, plane_at, same_view
from SAMFineTuneLib.mrml.volume_nodes import world_matrix
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.prompt_kind import Marker, Markup, markers
from SAMFineTuneLib.session.intents import View
from SAMFineTuneLib.typed_json import loaded

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


def same_prompt(a: Prompt, view_a: View | None, b: Prompt, view_b: View | None) -> bool:
    """Whether two prompts are the same up to rounding."""
    if type(a) is not type(b) or a.sign != b.sign or not same_view(view_a, view_b, _SAME):
        return False
    one, other = a.geometry, b.geometry  # not `np.allclose`: every prompt is compared at every click
    return one.shape == other.shape and bool((np.abs(one - other) <= _SAME).all())


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


# ---- reading


def read_node(node, volume: Volume) -> Iterator[MarkedPrompt]:
    """The prompts of a node. Points that follow the mouse and are not placed yet do not count."""
    kind, marker = markers()[node.GetAttribute(KIND)]
    known, points = entries(node), world_points(node)
    if is_roi(node):
        found = {WHOLE_NODE: _read_roi(node, marker)} if _is_placed(node) else {}
    elif marker.point_list:
        found = {key: Markup(marker.type, (ras,), marker.positive) for key, ras in points}
    else:
        found = {WHOLE_NODE: Markup(marker.type, tuple(ras for _, ras in points), marker.positive)} if points else {}
    for key, markup in found.items():
        number, view = known.get(key, (None, None))
        at = np.mean(markup.points, axis=0)
        with suppress(UserError):  # it was dragged out of the volume, which `PromptSync` reports
            view = parallel_view(view, at, volume)
        with suppress(UserError):  # the markup is incomplete, for example a lasso of two points
            prompt = kind.from_markup(markup, plane_at(view, at, volume))
            yield MarkedPrompt(number, segment_of(node), prompt, view, node.GetID(), key)


def _is_placed(node) -> bool:
    """Whether a box is complete. One that the user is placing has control points without positions."""
    return not node.GetNumberOfControlPoints() or bool(world_points(node))


def _read_roi(node, marker: Marker) -> Markup:
    size, axes = [0.0] * 3, [[0.0] * 3 for _ in range(3)]
    node.GetSizeWorld(size)
    for number, axis in enumerate(axes):
        node.GetAxisWorld(number, axis)
    return Markup(marker.type, (tuple(node.GetCenterWorld()),), marker.positive, tuple(size), tuple(map(tuple, axes)))


def is_collapsed(node) -> bool:
    """Whether the user has pulled a box until it has no extent in some direction. Without its control point, which
    Slicer's Markups module removes, it is deleted instead.
    """
    return is_roi(node) and min(node.GetSize()) <= 0 and bool(world_points(node))


def turn_inside_in(node) -> bool:
    """Turn back a box that the user has turned inside out; returns whether it was one."""
    if not is_roi(node) or not node.GetInsideOut():
        return False
    node.InsideOutOff()
    return True


# ---- writing


def write_point(node, point_id: str, markup: Markup) -> str:
    """Set a control point of a node. Returns its ID; without `point_id` it is a new one."""
    import vtk

    position = vtk.vtkVector3d(*markup.points[0])
    if not point_id:
        index = node.AddControlPointWorld(position)
        node.SetNthControlPointLabel(index, "+" if markup.positive else "-")
        return node.GetNthControlPointID(index)
    index = node.GetNthControlPointIndexByID(point_id)
    if not np.allclose(node.GetNthControlPointPositionWorld(index), markup.points[0], rtol=0, atol=_SAME):
        node.SetNthControlPointPositionWorld(index, position)
    return point_id


def write_points(node, markup: Markup) -> None:
    """Set all control points of a node."""
    import vtk

    now = [ras for _, ras in world_points(node)]
    if np.shape(now) == np.shape(markup.points) and np.allclose(now, markup.points, rtol=0, atol=_SAME):
        return
    points = vtk.vtkPoints()
    points.SetDataTypeToDouble()
    for ras in markup.points:
        points.InsertNextPoint(ras)
    node.SetControlPointPositionsWorld(points)


def write_roi(node, markup: Markup) -> None:
    """Set matrix and size of a box directly, because ROIs that are placed by clicks are always aligned with RAS."""
    import slicer

    matrix = np.eye(4)
    matrix[:3, :3] = np.array(markup.axes).T
    matrix[:3, 3] = markup.points[0]
    to_node = slicer.util.vtkMatrixFromArray(np.linalg.inv(world_matrix(node)) @ matrix)
    was_modifying = node.StartModify()
    node.SetAndObserveObjectToNodeMatrix(to_node)
    node.SetSize(*markup.size)
    node.EndModify(was_modifying)


# ---- attributes


def entries(node) -> dict[str, tuple[int, View | None]]:
    """Number and view of prompts by the ID of their control point; damaged attributes count as missing."""
    try:
        values = loaded(node.GetAttribute(_PROMPTS) or "{}")
        return {
            key: (int(one["number"]), _view_from(one["view"]))
            for key, one in values.items()
            if key == WHOLE_NODE or node.GetNthControlPointIndexByID(key) >= 0
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def set_entries(node, known: dict[str, tuple[int, View | None]]) -> None:
    """Store number and view of prompts by the ID of their control point."""
    values = {
        key: {"number": number, "view": view.to_dict() if isinstance(view, SlicePlane) else view}
        for key, (number, view) in known.items()
    }
    text = json.dumps(values, sort_keys=True)
    if node.GetAttribute(_PROMPTS) != text:
        node.SetAttribute(_PROMPTS, text)


def _view_from(value) -> View | None:
    if isinstance(value, dict):
        return SlicePlane.from_dict(value)
    return value if value in ORIENTATIONS else None

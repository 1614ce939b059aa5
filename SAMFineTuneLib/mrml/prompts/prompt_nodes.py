"""Prompts as markups nodes, both ways.

A segment has one point list for its positive and one for its negative points; every other prompt has a node of its own.
Attributes of a node say what it holds: the marker, the segment, and for every control point the prompt's number and
view. References say to which volume and segmentation it belongs. Scene files keep both. `PromptNodes` holds no state
and observes nothing: `read` returns what the nodes hold now.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.prompt_look import make_displays, show
from SAMFineTuneLib.mrml.slice_views import parallel_view, plane_at, same_view
from SAMFineTuneLib.mrml.volume_nodes import world_matrix
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.prompt_kind import Marker, Markup, markers
from SAMFineTuneLib.session.intents import View

VOLUME_ROLE = "SAMFineTune.volume"
SEGMENTATION_ROLE = "SAMFineTune.segmentation"
WHOLE_NODE = ""  # the key of a prompt that is a node rather than one of its points
_KIND = "SAMFineTune.kind"
_SEGMENT = "SAMFineTune.segment"
_PROMPTS = "SAMFineTune.prompts"
_HIDDEN = "SAMFineTune.hidden"
_FOLDER = "SAMFineTune.folder"
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


class PromptNodes:
    """The markups nodes that hold the prompts of one volume and segmentation."""

    def __init__(self, scene, volume_node, segmentation_node):
        self.scene = scene
        self.volume_node = volume_node
        self.segmentation_node = segmentation_node

    # ---- reading

    def nodes(self) -> list:
        """All nodes, in the scene's order."""
        return [node for node in prompt_nodes(self.scene) if belongs(node, self.volume_node, self.segmentation_node)]

    def of_segment(self, segment_id: str) -> list:
        """All nodes of a segment."""
        return [node for node in self.nodes() if segment_of(node) == segment_id]

    def read(self, volume: Volume) -> list[MarkedPrompt]:
        """All prompts. Points that follow the mouse and are not placed yet do not count.

        When a number occurs twice, because a node was copied, only the first prompt keeps it. A prompt that left its
        oblique plane is now on the parallel plane through it.
        """
        found, taken = [], set()
        for node in self.nodes():
            for marked in _read_node(node, volume):
                if marked.number in taken:
                    marked = dataclasses.replace(marked, number=None)
                if marked.number is not None:
                    taken.add(marked.number)
                found.append(marked)
        return found

    def read_one(self, number: int, volume: Volume) -> MarkedPrompt | None:
        """One prompt; None when no node holds it."""
        node, point_id = self.find(number)
        found = _read_node(node, volume) if node is not None else []
        return next((marked for marked in found if marked.point_id == point_id), None)

    def find(self, number: int):
        """(node, control point ID) of a prompt; (None, "") when no node holds it."""
        for node in self.nodes():
            for point_id, (known, _) in _entries(node).items():
                if known == number:
                    return node, point_id
        return None, ""

    # ---- writing

    def write(self, number: int, segment_id: str, prompt: Prompt, view: View, volume: Volume) -> None:
        """Add a prompt to the scene, or move it there. Prompts without a marker, such as masks, are not shown.

        Args:
            number: of the prompt in the session.
            segment_id: of its segment.
            prompt: what it is.
            view: the orientation, or oblique view, on whose slices it lies.
            volume: whose slices.
        """
        marker = prompt.marker
        if marker is None:
            return
        node, point_id = self.find(number)
        if node is not None and (marker_of(node) != marker or segment_of(node) != segment_id):
            self.remove(number)
            node, point_id = None, ""
        if node is None:
            make = self.point_list if marker.point_list else self._make
            node = make(segment_id, marker.name)
        markup = prompt.to_markup(plane_at(view, prompt.anchor, volume))
        if markup.size is not None:
            _write_roi(node, markup)
        elif marker.point_list:
            point_id = _write_point(node, point_id, markup)
        else:
            _write_points(node, markup)
        _set_entries(node, _entries(node) | {point_id: (number, view)})

    def number(self, marked: MarkedPrompt, number: int) -> None:
        """Store a prompt's number and view in its node."""
        node = self.scene.GetNodeByID(marked.node_id)
        if node is not None:
            _set_entries(node, _entries(node) | {marked.point_id: (number, marked.view)})

    def remove(self, number: int) -> None:
        """Remove a prompt. A point list stays when it becomes empty, because the user may be placing points into it."""
        node, point_id = self.find(number)
        if node is not None:
            self.remove_marked(node, point_id)

    def remove_marked(self, node, point_id: str) -> None:
        """Remove a node, or one of its control points."""
        if point_id == WHOLE_NODE:
            self.remove_node(node)
            return
        index = node.GetNthControlPointIndexByID(point_id)
        if index >= 0:
            node.RemoveNthControlPoint(index)
        _set_entries(node, _entries(node))

    def remove_node(self, node) -> None:
        """Remove a node with its display and storage nodes and its item in the subject hierarchy."""
        hierarchy, companions = self.scene.GetSubjectHierarchyNode(), companions_of(node)
        item = hierarchy.GetItemByDataNode(node)
        folder = hierarchy.GetItemParent(item)
        self.scene.RemoveNode(node)
        if item and item in _children(hierarchy, folder):  # the application has removed it by now
            hierarchy.RemoveItem(item, False, False)
        remove_those_left(self.scene, companions)

    def point_list(self, segment_id: str, name: str):
        """The point list of a segment with the marker of that name, which is made if needed."""
        lists = (node for node in self.of_segment(segment_id) if marker_of(node).name == name)
        return next(lists, None) or self._make(segment_id, name)

    def remove_segment(self, segment_id: str) -> None:
        """Remove all nodes of a segment."""
        for node in self.of_segment(segment_id):
            self.remove_node(node)

    def remove_empty(self) -> None:
        """Remove point lists without points, and the folder when it is empty."""
        for node in self.nodes():
            if not is_roi(node) and node.GetNumberOfControlPoints() == 0:
                self.remove_node(node)
        if not self.nodes():
            self._remove_folder()

    def name(self, segment_id: str) -> None:
        """Rename a segment's nodes after it."""
        for node in self.of_segment(segment_id):
            self._name(node)

    def look(self, chosen_id: str | None, slice_nodes: Sequence, volume: Volume) -> None:
        """Set how all nodes are drawn.

        Args:
            chosen_id: of the selected segment, whose prompts stand out.
            slice_nodes: of the views.
            volume: what the views show.
        """
        for node in self.nodes():
            segment = self.segmentation_node.GetSegmentation().GetSegment(segment_of(node))
            if segment is not None:
                marker = marker_of(node)
                make_displays(node, marker)
                chosen = segment_of(node) == chosen_id
                show(node, marker, segment.GetColor(), chosen, slice_nodes, _across(node, volume))

    def set_visible(self, visible: bool) -> None:
        """Hide all nodes while another volume is segmented, or show again those that were hidden that way."""
        for node in self.nodes():
            if not visible and node.GetDisplayVisibility():
                node.SetAttribute(_HIDDEN, "1")
                node.SetDisplayVisibility(False)
            elif visible and node.GetAttribute(_HIDDEN) is not None:  # others are hidden by the user
                node.RemoveAttribute(_HIDDEN)
                node.SetDisplayVisibility(True)

    # ---- inside

    def _make(self, segment_id: str, name: str):
        marker: Marker = markers()[name][1]
        node = new_node(self.scene, f"vtkMRMLMarkups{marker.type}Node")
        node.SetAttribute(_KIND, name)
        node.SetAttribute(_SEGMENT, segment_id)
        node.SetName(marker.words)
        node = self.scene.AddNode(node)
        node.SetNodeReferenceID(VOLUME_ROLE, self.volume_node.GetID())
        node.SetNodeReferenceID(SEGMENTATION_ROLE, self.segmentation_node.GetID())
        make_displays(node, marker)
        self._name(node)
        self._put_into_folder(node)
        return node

    def _name(self, node) -> None:
        segment = self.segmentation_node.GetSegmentation().GetSegment(segment_of(node))
        name = "" if segment is None else f"{segment.GetName()} {marker_of(node).words}"
        if name and node.GetName() != name:
            node.SetName(name)

    # ---- the folder of the subject hierarchy that holds the prompts of a volume

    def _put_into_folder(self, node) -> None:
        """Show a node in the folder, which is made if needed."""
        hierarchy = self.scene.GetSubjectHierarchyNode()
        folder = self._folder()
        if not folder:
            name = f"Prompts on {self.volume_node.GetName()}"
            folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)
            hierarchy.SetItemAttribute(folder, _FOLDER, self.volume_node.GetID())
            hierarchy.SetItemExpanded(folder, False)
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(folder, node)
        hierarchy.SetItemParent(item, folder)

    def _remove_folder(self) -> None:
        """Remove the folder if it is empty."""
        hierarchy, folder = self.scene.GetSubjectHierarchyNode(), self._folder()
        items = _children(hierarchy, folder) if folder else []
        gone = [item for item in items if hierarchy.GetItemDataNode(item) is None]
        for item in gone + ([folder] if folder and len(gone) == len(items) else []):
            hierarchy.RemoveItem(item, False, False)

    def _folder(self) -> int:
        """The item of the folder, 0 when there is none."""
        hierarchy = self.scene.GetSubjectHierarchyNode()
        items = _children(hierarchy, hierarchy.GetSceneItemID())
        own = (item for item in items if hierarchy.GetItemAttribute(item, _FOLDER) == self.volume_node.GetID())
        return next(own, 0)


def marker_of(node) -> Marker | None:
    """The marker that says what prompts a node holds; None when it holds none."""
    name = node.GetAttribute(_KIND) if node is not None and node.IsA("vtkMRMLMarkupsNode") else None
    return markers()[name][1] if name in markers() else None


def segment_of(node) -> str:
    """The ID of the segment whose prompts a node holds."""
    return node.GetAttribute(_SEGMENT) or ""


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


def _across(node, volume: Volume):
    """The direction (3,) across the slice of a node that is a box on a slice, None for others."""
    marked = next(_read_node(node, volume), None) if is_roi(node) else None
    if marked is None or not marked.prompt.on_one_slice:
        return None
    return plane_at(marked.view, marked.prompt.anchor, volume).normal


def new_node(scene, class_name: str):
    """A node that is not in the scene yet, so that its attributes are complete when observers hear of it."""
    node = scene.CreateNodeByClass(class_name)
    if node.GetReferenceCount() > 1:
        node.UnRegister(None)
    return node


def prompt_nodes(scene) -> list:
    """Every node of a scene that holds prompts, of any volume."""
    return [node for node in nodes_of(scene, "vtkMRMLMarkupsNode") if marker_of(node) is not None]


def nodes_of(scene, class_name: str) -> list:
    """All nodes of a class, or one derived from it, in the scene's order."""
    found = scene.GetNodesByClass(class_name)
    found.UnRegister(scene)  # the caller owns it
    return [found.GetItemAsObject(number) for number in range(found.GetNumberOfItems())]


def remove_those_left(scene, companions) -> None:
    """Remove display and storage nodes of a removed node. Slicer removes them itself; a scene without it does not."""
    for companion in companions:
        if companion.GetScene() is not None and scene.IsNodePresent(companion):
            scene.RemoveNode(companion)


def companions_of(node) -> list:
    """The display and storage nodes of a node."""
    found = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    found += [node.GetNthStorageNode(number) for number in range(node.GetNumberOfStorageNodes())]
    return [companion for companion in found if companion is not None and companion.GetScene() is not None]


def belongs(node, volume_node, segmentation_node) -> bool:
    """Whether a node refers to this volume and segmentation."""
    ids = (volume_node.GetID(), segmentation_node.GetID())
    return (node.GetNodeReferenceID(VOLUME_ROLE), node.GetNodeReferenceID(SEGMENTATION_ROLE)) == ids


def is_orphan(node) -> bool:
    """Whether the volume or segmentation that a node refers to is no longer there."""
    return node.GetNodeReference(VOLUME_ROLE) is None or node.GetNodeReference(SEGMENTATION_ROLE) is None


def _children(hierarchy, item: int) -> list[int]:
    import vtk

    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, children, False)
    return [children.GetId(number) for number in range(children.GetNumberOfIds())]


# ---- reading one node


def _read_node(node, volume: Volume) -> Iterator[MarkedPrompt]:
    """The prompts of a node. Points that follow the mouse and are not placed yet do not count."""
    kind, marker = markers()[node.GetAttribute(_KIND)]
    entries, points = _entries(node), world_points(node)
    if is_roi(node):
        found = {WHOLE_NODE: _read_roi(node, marker)} if _is_placed(node) else {}
    elif marker.point_list:
        found = {key: Markup(marker.type, (ras,), marker.positive) for key, ras in points}
    else:
        found = {WHOLE_NODE: Markup(marker.type, tuple(ras for _, ras in points), marker.positive)} if points else {}
    for key, markup in found.items():
        number, view = entries.get(key, (None, None))
        at = np.mean(markup.points, axis=0)
        with suppress(UserError):  # it was dragged out of the volume, which `PromptSync` reports
            view = parallel_view(view, at, volume)
        with suppress(UserError):  # the markup is not complete, as a lasso of two points
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
    """Whether the user has pulled a box until it has no extent in some direction."""
    return is_roi(node) and min(node.GetSize()) <= 0 and _is_placed(node)


def turn_inside_in(node) -> bool:
    """Make a box that the user has turned inside out an ordinary one again; returns whether it was such a box."""
    if not is_roi(node) or not node.GetInsideOut():
        return False
    node.InsideOutOff()
    return True


# ---- writing one node


def _write_point(node, point_id: str, markup: Markup) -> str:
    """Returns the ID of the control point, which is a new one without `point_id`."""
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
    import slicer

    matrix = np.eye(4)
    matrix[:3, :3] = np.array(markup.axes).T
    matrix[:3, 3] = markup.points[0]
    to_node = slicer.util.vtkMatrixFromArray(np.linalg.inv(world_matrix(node)) @ matrix)
    was_modifying = node.StartModify()
    node.SetAndObserveObjectToNodeMatrix(to_node)
    node.SetSize(*markup.size)
    node.EndModify(was_modifying)


# ---- attributes of one node


def _entries(node) -> dict[str, tuple[int, View | None]]:
    """Number and view of prompts by the ID of their control point; damaged attributes count as missing."""
    try:
        values = json.loads(node.GetAttribute(_PROMPTS) or "{}")
        return {
            key: (int(one["number"]), _view_from(one["view"]))
            for key, one in values.items()
            if key == WHOLE_NODE or node.GetNthControlPointIndexByID(key) >= 0
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _set_entries(node, entries: dict[str, tuple[int, View | None]]) -> None:
    values = {
        key: {"number": number, "view": view.to_dict() if isinstance(view, SlicePlane) else view}
        for key, (number, view) in entries.items()
    }
    text = json.dumps(values, sort_keys=True)
    if node.GetAttribute(_PROMPTS) != text:
        node.SetAttribute(_PROMPTS, text)


def _view_from(value) -> View | None:
    if isinstance(value, dict):
        return SlicePlane.from_dict(value)
    return value if value in ORIENTATIONS else None

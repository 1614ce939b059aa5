"""Prompts as markups nodes, both ways.

A segment has a point list each for its positive and its negative points, an ROI for every box and a curve for every
scribble. Attributes say what a node holds: its kind, its segment, and for every control point the prompt's number and
view; references say which volume and which segmentation it belongs to. All of it survives saving with the scene.

Nothing is remembered here and nothing observed: `PromptNodes.read` says what the nodes hold now, whoever changed them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.plane import ORIENTATIONS, SlicePlane, aligned_plane, oblique_plane, plane_through
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.volumes import array_from_matrix
from SAMFineTuneLib.prompts.prompts import Box3DPrompt, BoxPrompt, PointPrompt, Prompt, ScribblePrompt

View = str | SlicePlane

VOLUME_ROLE = "SAMFineTune.volume"
SEGMENTATION_ROLE = "SAMFineTune.segmentation"
_KIND = "SAMFineTune.kind"
_SEGMENT = "SAMFineTune.segment"
_PROMPTS = "SAMFineTune.prompts"
_HIDDEN = "SAMFineTune.hidden"
_FOLDER = "SAMFineTune.folder"

# kind -> (node class, what is added to the segment's name; prompts.markups reads these words)
_KINDS = {
    "positive": ("vtkMRMLMarkupsFiducialNode", "positive"),
    "negative": ("vtkMRMLMarkupsFiducialNode", "negative"),
    "box": ("vtkMRMLMarkupsROINode", "box"),
    "scribble+": ("vtkMRMLMarkupsCurveNode", "positive scribble"),
    "scribble-": ("vtkMRMLMarkupsCurveNode", "negative scribble"),
}
_WHOLE_NODE = ""  # the key of a prompt that is a node rather than one of its points
_DEFINED = 2  # vtkMRMLMarkupsNode.PositionDefined
_SAME = 1e-4  # mm: what files and matrices lose
_FLAT = 1.01  # slice thicknesses: an ROI that thin is a box on one slice
_THIN = 0.5  # slice thicknesses of the ROI of a box on a slice


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


def same_prompt(a: Prompt, view_a: View | None, b: Prompt, view_b: View | None) -> bool:
    """Whether two prompts are the same up to rounding."""
    if type(a) is not type(b) or getattr(a, "positive", None) != getattr(b, "positive", None):
        return False
    if isinstance(view_a, SlicePlane) != isinstance(view_b, SlicePlane):
        return False
    if isinstance(view_a, SlicePlane):
        if view_a.key != view_b.key and not _same_plane(view_a, view_b):
            return False
    elif view_a != view_b:
        return False
    numbers = [_numbers(a), _numbers(b)]
    return numbers[0].shape == numbers[1].shape and np.allclose(*numbers, rtol=0, atol=_SAME)


class PromptNodes:
    """The markups nodes that hold the prompts of one volume and segmentation."""

    def __init__(self, scene, volume_node, segmentation_node):
        self.scene = scene
        self.volume_node = volume_node
        self.segmentation_node = segmentation_node

    # ---- reading

    def nodes(self) -> list:
        """All of them, in the scene's order."""
        return [node for node in prompt_nodes(self.scene) if self.owns(node)]

    def owns(self, node) -> bool:
        """Whether a node holds prompts of this volume and segmentation."""
        return (
            kind_of(node) is not None
            and node.GetNodeReferenceID(VOLUME_ROLE) == self.volume_node.GetID()
            and node.GetNodeReferenceID(SEGMENTATION_ROLE) == self.segmentation_node.GetID()
        )

    def read(self, volume: Volume) -> list[MarkedPrompt]:
        """What the nodes hold; points under the mouse that are not placed yet do not count.

        A number that occurs twice (a node was copied) counts the first time. A prompt that left its oblique plane
        is on the parallel one through its place now.
        """
        found, taken = [], set()
        for node in self.nodes():
            for marked in _read_node(node, volume):
                if marked.number in taken:
                    marked = MarkedPrompt(None, *_fields(marked)[1:])
                if marked.number is not None:
                    taken.add(marked.number)
                found.append(marked)
        return found

    def read_one(self, number: int, volume: Volume) -> MarkedPrompt | None:
        """What the nodes hold of one prompt, None when nothing shows it."""
        node, point_id = self.find(number)
        found = _read_node(node, volume) if node is not None else []
        return next((marked for marked in found if marked.point_id == point_id), None)

    def find(self, number: int):
        """(node, control point ID) of a prompt, (None, "") when it is not there."""
        for node in self.nodes():
            for point_id, entry in _entries(node).items():
                if entry["number"] == number and (point_id == _WHOLE_NODE or _index_of(node, point_id) >= 0):
                    return node, point_id
        return None, ""

    # ---- writing

    def write(self, number: int, segment_id: str, prompt: Prompt, view: View, volume: Volume) -> None:
        """Make or move what stands for a prompt. A mask prompt has nothing to show."""
        kind = _kind_for(prompt)
        if kind is None:
            return
        node, point_id = self.find(number)
        if node is not None and (kind_of(node) != kind or segment_of(node) != segment_id):
            self.remove(number)
            node, point_id = None, ""
        if isinstance(prompt, PointPrompt):
            node = node or self.point_list(segment_id, kind)
            _write_point(node, point_id, number, prompt, view)
            return
        node = node or self._make(segment_id, kind)
        if isinstance(prompt, ScribblePrompt):
            _write_curve(node, prompt)
        else:
            _write_roi(node, prompt, view, volume)
        _set_entries(node, {_WHOLE_NODE: _entry(number, view)})

    def number(self, marked: MarkedPrompt, number: int) -> None:
        """Tell the node which prompt it, or its control point, is, and on which view."""
        node = self.scene.GetNodeByID(marked.node_id)
        if node is not None:
            _set_entries(node, _entries(node) | {marked.point_id: _entry(number, marked.view)})

    def remove(self, number: int) -> None:
        """Take away what stands for a prompt; a point list stays, empty, while it is placed into."""
        node, point_id = self.find(number)
        if node is not None:
            self.remove_marked(node, point_id)

    def remove_marked(self, node, point_id: str) -> None:
        """Take away a node, or one of its control points."""
        if point_id == _WHOLE_NODE:
            self.remove_node(node)
            return
        index = _index_of(node, point_id)
        if index >= 0:
            node.RemoveNthControlPoint(index)
        _set_entries(node, {key: entry for key, entry in _entries(node).items() if key != point_id})

    def remove_node(self, node) -> None:
        """Take away a node, what shows and stores it, and its place in the subject hierarchy."""
        hierarchy = self.scene.GetSubjectHierarchyNode()
        item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
        folder = hierarchy.GetItemParent(item) if item else 0
        companions = companions_of(node)
        self.scene.RemoveNode(node)
        for companion in companions:
            self.scene.RemoveNode(companion)
        if item and item in _children(hierarchy, folder):  # the application has removed it by now
            hierarchy.RemoveItem(item, False, False)

    def point_list(self, segment_id: str, kind: str):
        """The list of a segment's "positive" or "negative" points; made when there is none."""
        for node in self.nodes():
            if kind_of(node) == kind and segment_of(node) == segment_id:
                return node
        return self._make(segment_id, kind)

    def remove_segment(self, segment_id: str) -> None:
        """Take away all nodes of a segment."""
        for node in self.nodes():
            if segment_of(node) == segment_id:
                self.remove_node(node)

    def remove_empty(self, keep=()) -> None:
        """Take away point lists without points, and the folder when it is empty."""
        for node in self.nodes():
            if node not in keep and kind_of(node) != "box" and node.GetNumberOfControlPoints() == 0:
                self.remove_node(node)
        if not self.nodes():
            self._remove_folder()

    def dress(self, segment_id: str) -> None:
        """Give a segment's nodes its name and colour."""
        for node in self.nodes():
            if segment_of(node) == segment_id:
                self._dress(node)

    def set_visible(self, visible: bool) -> None:
        """Hide them all while another volume is worked on, and show again those that were hidden so."""
        for node in self.nodes():
            display = node.GetDisplayNode()
            if display is not None and bool(display.GetVisibility()) != visible:
                if not visible:
                    node.SetAttribute(_HIDDEN, "1")
                elif node.GetAttribute(_HIDDEN) is None:
                    continue  # the user hid it
                display.SetVisibility(visible)
            if visible:
                node.RemoveAttribute(_HIDDEN)

    # ---- inside

    def _make(self, segment_id: str, kind: str):
        node = new_node(self.scene, _KINDS[kind][0])
        node.SetAttribute(_KIND, kind)
        node.SetAttribute(_SEGMENT, segment_id)
        node.SetName(_KINDS[kind][1])
        node = self.scene.AddNode(node)
        node.SetNodeReferenceID(VOLUME_ROLE, self.volume_node.GetID())
        node.SetNodeReferenceID(SEGMENTATION_ROLE, self.segmentation_node.GetID())
        node.CreateDefaultDisplayNodes()
        _style(node, kind)
        self._dress(node)
        self._into_folder(node)
        return node

    def _dress(self, node) -> None:
        segment = self.segmentation_node.GetSegmentation().GetSegment(segment_of(node))
        if segment is None:
            return
        name = f"{segment.GetName()} {_KINDS[kind_of(node)][1]}"
        if node.GetName() != name:
            node.SetName(name)
        display = node.GetDisplayNode()
        color = segment.GetColor()
        if display is not None and not np.allclose(display.GetSelectedColor(), color):
            display.SetSelectedColor(color)
            display.SetColor(color)
            display.SetActiveColor(*(0.5 + part / 2 for part in color))

    def _into_folder(self, node) -> None:
        hierarchy = node.GetScene().GetSubjectHierarchyNode()
        if hierarchy is None:
            return
        folder = self._folder(hierarchy)
        if not folder:
            folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), f"Prompts on {self.volume_node.GetName()}")
            hierarchy.SetItemAttribute(folder, _FOLDER, self.volume_node.GetID())
            hierarchy.SetItemExpanded(folder, False)
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, folder)
        else:
            hierarchy.CreateItem(folder, node)

    def _remove_folder(self) -> None:
        hierarchy = self.scene.GetSubjectHierarchyNode()
        folder = self._folder(hierarchy) if hierarchy is not None else 0
        if not folder:
            return
        children = _children(hierarchy, folder)
        for item in children:
            if hierarchy.GetItemDataNode(item) is None:  # its node was removed by somebody else
                hierarchy.RemoveItem(item, False, False)
        if not _children(hierarchy, folder):
            hierarchy.RemoveItem(folder, False, False)

    def _folder(self, hierarchy) -> int:
        """The subject hierarchy's item of the folder for this volume's prompts, 0 when there is none."""
        for item in _children(hierarchy, hierarchy.GetSceneItemID()):
            if hierarchy.GetItemAttribute(item, _FOLDER) == self.volume_node.GetID():
                return item
        return 0


def new_node(scene, class_name: str):
    """A node that is not in the scene yet, so that it can be described before anybody hears of it."""
    node = scene.CreateNodeByClass(class_name)
    if node.GetReferenceCount() > 1:
        node.UnRegister(None)
    return node


def prompt_nodes(scene) -> Iterator:
    """Every node of a scene that holds prompts, of whatever volume."""
    nodes = scene.GetNodes()
    every = [nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems())]
    return (node for node in every if kind_of(node) is not None)


def companions_of(node) -> list:
    """The display and storage nodes of a node: the scene does not remove them with it."""
    found = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    found += [node.GetNthStorageNode(number) for number in range(node.GetNumberOfStorageNodes())]
    return [companion for companion in found if companion is not None and companion.GetScene() is not None]


def orphans(scene) -> list:
    """Nodes that hold prompts of a volume or segmentation that is no longer there."""
    return [
        node
        for node in prompt_nodes(scene)
        if node.GetNodeReference(VOLUME_ROLE) is None or node.GetNodeReference(SEGMENTATION_ROLE) is None
    ]


def can_show(prompt: Prompt) -> bool:
    """Whether a node can stand for a prompt."""
    return _kind_for(prompt) is not None


def kind_of(node) -> str | None:
    """What prompts a node holds ("positive", "box", ...); None when it is no node of ours."""
    kind = node.GetAttribute(_KIND) if node is not None and node.IsA("vtkMRMLMarkupsNode") else None
    return kind if kind in _KINDS else None


def segment_of(node) -> str:
    """The ID of the segment whose prompts a node holds."""
    return node.GetAttribute(_SEGMENT) or ""


def world_points(node) -> list[tuple[str, tuple[float, float, float]]]:
    """(ID, RAS in mm) of the control points whose position is defined."""
    return [
        (node.GetNthControlPointID(index), tuple(node.GetNthControlPointPositionWorld(index)))
        for index in range(node.GetNumberOfControlPoints())
        if node.GetNthControlPointPositionStatus(index) == _DEFINED
    ]


def slice_box(plane: SlicePlane, corners) -> BoxPrompt:
    """The box on a plane between two RAS corners (2, 3), always by the same two of its four corners."""
    a, b = np.asarray(corners, dtype=np.float64)
    across, along = np.abs((b - a) @ plane.right) / 2, np.abs((b - a) @ plane.down) / 2
    center = (a + b) / 2
    center = center - plane.distance(center) * plane.normal
    half = across * plane.right + along * plane.down
    return BoxPrompt(tuple(center - half), tuple(center + half))


def volume_box(plane: SlicePlane, corners) -> Box3DPrompt:
    """The 3-D box between two RAS corners, along a plane's directions.

    Corners on one slice make it as deep as its shorter side, centred on the slice.
    """
    a, b = np.asarray(corners, dtype=np.float64)
    axes = np.stack([plane.right, plane.down, plane.normal])
    size = np.abs(axes @ (b - a))
    if size[2] <= plane.thickness * _FLAT:
        size[2] = max(size[:2].min(), 2 * plane.thickness)
    return Box3DPrompt(tuple((a + b) / 2), tuple(size), tuple(map(tuple, axes)))


def parallel_view(view: View | None, ras, volume: Volume) -> View | None:
    """The view for a prompt at `ras`: an oblique plane that does not run through it gives way to its parallel."""
    if isinstance(view, SlicePlane) and not np.all(view.contains(ras)):
        return oblique_plane(volume, ras, view.right, view.down)
    return view


# ---- reading


def _read_node(node, volume: Volume) -> list[MarkedPrompt]:
    kind, entries = kind_of(node), _entries(node)
    if kind in ("positive", "negative"):
        return [
            _marked(node, point_id, entries, PointPrompt(ras, kind == "positive"), ras, volume)
            for point_id, ras in world_points(node)
        ]
    if kind == "box":
        box = _roi_box(node)
        entry = entries.get(_WHOLE_NODE, {"number": None, "view": None})
        return [] if box is None else [_marked_box(node, entry, box, volume)]
    points = tuple(ras for _, ras in world_points(node))
    if not points:
        return []
    prompt = ScribblePrompt(points, kind == "scribble+")
    return [_marked(node, _WHOLE_NODE, entries, prompt, np.mean(points, axis=0), volume)]


def _marked(node, point_id: str, entries: dict, prompt: Prompt, at, volume: Volume) -> MarkedPrompt:
    entry = entries.get(point_id, {"number": None, "view": None})
    view = _moved_view(entry["view"], at, volume)
    return MarkedPrompt(entry["number"], segment_of(node), prompt, view, node.GetID(), point_id)


def _marked_box(node, entry: dict, box: Box3DPrompt, volume: Volume) -> MarkedPrompt:
    """A flat ROI is a box on the slice that its centre lies in."""
    view = _moved_view(entry["view"], box.center, volume)
    prompt: Prompt = box
    plane = _plane_at(view, box.center, volume)
    if plane is not None:
        sides = np.array(box.axes) * np.array(box.size)[:, None]  # (3, 3) mm, one row a side

        def extent(direction):
            return np.abs(sides @ direction).sum()

        if extent(plane.normal) <= _FLAT * plane.thickness:
            half = (extent(plane.right) * plane.right + extent(plane.down) * plane.down) / 2
            prompt = slice_box(plane, (np.array(box.center) - half, np.array(box.center) + half))
    return MarkedPrompt(entry["number"], segment_of(node), prompt, view, node.GetID(), _WHOLE_NODE)


def _moved_view(view: View | None, at, volume: Volume) -> View | None:
    try:
        return parallel_view(view, at, volume)
    except UserError:  # it was dragged out of the volume; whoever takes the prompt says so
        return view


def _plane_at(view: View | None, ras, volume: Volume) -> SlicePlane | None:
    if isinstance(view, SlicePlane):
        return view
    try:
        return plane_through(volume, view or ORIENTATIONS[0], ras)
    except UserError:
        return None


def _roi_box(node) -> Box3DPrompt | None:
    """None while it is being placed, or has no area."""
    if node.GetNumberOfControlPoints() and not world_points(node):
        return None
    matrix = array_from_matrix(node.GetObjectToWorldMatrix())
    sides = matrix[:3, :3] * np.array(node.GetSize())  # columns: the box's sides in mm
    lengths = np.linalg.norm(sides, axis=0)
    axes = matrix[:3, :3] / np.maximum(np.linalg.norm(matrix[:3, :3], axis=0), 1e-12)
    try:
        return Box3DPrompt(tuple(matrix[:3, 3]), tuple(lengths), tuple(map(tuple, axes.T)))
    except UserError:
        return None


# ---- writing


def _write_point(node, point_id: str, number: int, prompt: PointPrompt, view: View) -> None:
    import vtk

    index = _index_of(node, point_id) if point_id else -1
    position = vtk.vtkVector3d(*prompt.ras)
    if index < 0:
        index = node.AddControlPointWorld(position)
        point_id = node.GetNthControlPointID(index)
        node.SetNthControlPointLabel(index, "+" if prompt.positive else "-")
    elif not np.allclose(node.GetNthControlPointPositionWorld(index), prompt.ras, rtol=0, atol=_SAME):
        node.SetNthControlPointPositionWorld(index, position)
    _set_entries(node, _entries(node) | {point_id: _entry(number, view)})


def _write_curve(node, prompt: ScribblePrompt) -> None:
    import vtk

    now = [ras for _, ras in world_points(node)]
    if np.shape(now) == np.shape(prompt.ras) and np.allclose(now, prompt.ras, rtol=0, atol=_SAME):
        return
    points = vtk.vtkPoints()
    points.SetDataTypeToDouble()
    for ras in prompt.ras:
        points.InsertNextPoint(ras)
    node.SetControlPointPositionsWorld(points)


def _write_roi(node, prompt: BoxPrompt | Box3DPrompt, view: View, volume: Volume) -> None:
    """Its matrix and size directly: placed by clicks, an ROI is aligned with RAS, whatever the slice."""
    import vtk

    box = prompt if isinstance(prompt, Box3DPrompt) else _flat_box(prompt, view, volume)
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


def _flat_box(prompt: BoxPrompt, view: View, volume: Volume) -> Box3DPrompt:
    """A box on a slice as a 3-D box so thin that it reaches no other slice."""
    corners = np.array([prompt.corner_a, prompt.corner_b])
    center = corners.mean(axis=0)
    plane = view if isinstance(view, SlicePlane) else _plane_at(view, center, volume) or aligned_plane(volume, view, 0)
    axes = np.stack([plane.right, plane.down, plane.normal])
    size = np.abs(axes @ (corners[1] - corners[0]))
    size[2] = max(size[2], _THIN * plane.thickness)
    return Box3DPrompt(tuple(center), tuple(size), tuple(map(tuple, axes)))


def _style(node, kind: str) -> None:
    display = node.GetDisplayNode()
    if display is None:
        return
    display.SetPropertiesLabelVisibility(False)
    display.SetPointLabelsVisibility(False)
    if kind == "positive":
        display.SetGlyphType(display.Sphere3D)
        display.SetGlyphScale(2.0)
    elif kind == "negative":
        display.SetGlyphType(display.ThickCross2D)
        display.SetGlyphScale(3.0)
    elif kind == "box":
        display.SetFillVisibility(False)
        display.SetHandlesInteractive(True)
        display.SetScaleHandleVisibility(True)
        display.SetRotationHandleVisibility(False)
    else:
        node.SetCurveTypeToLinear()
        display.SetGlyphScale(0.8)
        if kind == "scribble-":
            display.SetGlyphType(display.ThickCross2D)
            display.SetGlyphScale(1.6)


# ---- attributes


def _entry(number: int | None, view: View | None) -> dict:
    return {"number": number, "view": view}


def _entries(node) -> dict[str, dict]:
    """control point ID -> {"number", "view"}; what is damaged is as if it were not there."""
    try:
        values = json.loads(node.GetAttribute(_PROMPTS) or "{}")
        return {
            str(key): _entry(int(value["number"]), _view_from(value["view"])) for key, value in values.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _set_entries(node, entries: dict[str, dict]) -> None:
    values = {
        key: {"number": entry["number"], "view": _view_to(entry["view"])}
        for key, entry in entries.items()
        if key == _WHOLE_NODE or _index_of(node, key) >= 0
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


# ---- small things


def _kind_for(prompt: Prompt) -> str | None:
    if isinstance(prompt, PointPrompt):
        return "positive" if prompt.positive else "negative"
    if isinstance(prompt, ScribblePrompt):
        return "scribble+" if prompt.positive else "scribble-"
    return "box" if isinstance(prompt, (BoxPrompt, Box3DPrompt)) else None


def _numbers(prompt: Prompt) -> np.ndarray:
    if isinstance(prompt, BoxPrompt):
        return np.sort(np.array([prompt.corner_a, prompt.corner_b]), axis=0)
    if isinstance(prompt, Box3DPrompt):
        return np.array([prompt.center, prompt.size, *prompt.axes])
    if isinstance(prompt, (PointPrompt, ScribblePrompt)):
        return np.atleast_2d(np.array(prompt.ras))
    return np.asarray(prompt.mask, dtype=np.float64)


def _same_plane(a: SlicePlane, b: SlicePlane) -> bool:
    return a.shape == b.shape and all(
        np.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=_SAME) for name in ("origin", "right", "down")
    )


def _fields(marked: MarkedPrompt) -> tuple:
    return tuple(getattr(marked, name) for name in MarkedPrompt.__dataclass_fields__)


def _children(hierarchy, item: int) -> list[int]:
    import vtk

    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, children, False)
    return [children.GetId(number) for number in range(children.GetNumberOfIds())]


def _index_of(node, point_id: str) -> int:
    return node.GetNthControlPointIndexByID(point_id) if point_id else -1

"""Prompts as markups nodes, both ways.

A segment has one point list for its positive and one for its negative points; every other prompt has a node of its own.
Attributes of a node say what it holds: the marker, the segment, and for every control point the prompt's number and
view. References say to which volume and segmentation it belongs. Scene files keep both. `PromptNodes` holds no state
and observes nothing: `read` returns what the nodes hold now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.node_content import (
    KIND,
    SEGMENT,
    WHOLE_NODE,
    MarkedPrompt,
    entries,
    is_roi,
    marker_of,
    read_node,
    segment_of,
    set_entries,
    write_point,
    write_points,
    write_roi,
)
from SAMFineTuneLib.mrml.prompts.prompt_look import make_displays, show
from SAMFineTuneLib.mrml.scene_nodes import (
    SEGMENTATION_ROLE,
    VOLUME_ROLE,
    belongs,
    companions_of,
    new_node,
    nodes_of,
    remove_those_left,
)
from SAMFineTuneLib.mrml.slice_views import plane_at
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.prompt_kind import Marker, markers
from SAMFineTuneLib.session.intents import View

_HIDDEN = "SAMFineTune.hidden"
_FOLDER = "SAMFineTune.folder"


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
            for marked in read_node(node, volume):
                if marked.number in taken:
                    marked = dataclasses.replace(marked, number=None)
                if marked.number is not None:
                    taken.add(marked.number)
                found.append(marked)
        return found

    def read_one(self, number: int, volume: Volume) -> MarkedPrompt | None:
        """One prompt; None when no node holds it."""
        node, point_id = self.find(number)
        found = read_node(node, volume) if node is not None else []
        return next((marked for marked in found if marked.point_id == point_id), None)

    def find(self, number: int):
        """(node, control point ID) of a prompt; (None, "") when no node holds it."""
        for node in self.nodes():
            for point_id, (known, _) in entries(node).items():
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
            write_roi(node, markup)
        elif marker.point_list:
            point_id = write_point(node, point_id, markup)
        else:
            write_points(node, markup)
        set_entries(node, entries(node) | {point_id: (number, view)})

    def number(self, marked: MarkedPrompt, number: int) -> None:
        """Store a prompt's number and view in its node."""
        node = self.scene.GetNodeByID(marked.node_id)
        if node is not None:
            set_entries(node, entries(node) | {marked.point_id: (number, marked.view)})

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
        set_entries(node, entries(node))

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
        node.SetAttribute(KIND, name)
        node.SetAttribute(SEGMENT, segment_id)
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


def _across(node, volume: Volume):
    """The direction (3,) across the slice of a node that is a box on a slice, None for others."""
    marked = next(read_node(node, volume), None) if is_roi(node) else None
    if marked is None or not marked.prompt.on_one_slice:
        return None
    return plane_at(marked.view, marked.prompt.anchor, volume).normal


def prompt_nodes(scene) -> list:
    """Every node of a scene that holds prompts, of any volume."""
    return [node for node in nodes_of(scene, "vtkMRMLMarkupsNode") if marker_of(node) is not None]


def _children(hierarchy, item: int) -> list[int]:
    import vtk

    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, children, False)
    return [children.GetId(number) for number in range(children.GetNumberOfIds())]

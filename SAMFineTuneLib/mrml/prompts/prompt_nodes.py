"""Prompts as markups nodes, both ways.

A segment has one point list for its positive and one for its negative points; every other prompt has a node of its own.
Attributes say what a node holds (`marked_node`), and references say to which volume and segmentation it belongs. Scene
files keep both. `PromptNodes` holds no state and observes nothing: `read` returns what the nodes hold now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.marked_node import (
    KIND,
    SEGMENT,
    WHOLE_NODE,
    MarkedPrompt,
    is_roi,
    marker_of,
    number_prompt,
    numbers_of,
    plane_at,
    read_node,
    remove_point,
    segment_of,
    write_prompt,
)
from SAMFineTuneLib.mrml.prompts.prompt_look import make_displays, show
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.prompt_kind import Marker, markers
from SAMFineTuneLib.session.intents import View

VOLUME_ROLE = "SAMFineTune.volume"
SEGMENTATION_ROLE = "SAMFineTune.segmentation"
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
        return [node for node in prompt_nodes(self.scene) if self.owns(node)]

    def owns(self, node) -> bool:
        """Whether a node holds prompts of this volume and segmentation."""
        return (
            marker_of(node) is not None
            and node.GetNodeReferenceID(VOLUME_ROLE) == self.volume_node.GetID()
            and node.GetNodeReferenceID(SEGMENTATION_ROLE) == self.segmentation_node.GetID()
        )

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
            point_id = numbers_of(node).get(number)
            if point_id is not None:
                return node, point_id
        return None, ""

    # ---- writing

    def write(self, number: int, segment_id: str, prompt: Prompt, view: View, volume: Volume) -> None:
        """Add a prompt to the scene, or move it there. Prompts without a marker, such as masks, are not shown."""
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
        write_prompt(node, point_id, number, prompt, view, volume)

    def number(self, marked: MarkedPrompt, number: int) -> None:
        """Store a prompt's number and view in its node."""
        node = self.scene.GetNodeByID(marked.node_id)
        if node is not None:
            number_prompt(node, marked.point_id, number, marked.view)

    def remove(self, number: int) -> None:
        """Remove a prompt. A point list stays when it becomes empty, because the user may be placing points into it."""
        node, point_id = self.find(number)
        if node is not None:
            self.remove_marked(node, point_id)

    def remove_marked(self, node, point_id: str) -> None:
        """Remove a node, or one of its control points."""
        if point_id == WHOLE_NODE:
            self.remove_node(node)
        else:
            remove_point(node, point_id)

    def remove_node(self, node) -> None:
        """Remove a node with its display and storage nodes and its item in the subject hierarchy."""
        companions = companions_of(node)
        _remove_with_item(self.scene, node)
        remove_those_left(self.scene, companions)

    def point_list(self, segment_id: str, name: str):
        """The point list of a segment with the marker of that name, which is made if needed."""
        for node in self.nodes():
            if node.GetAttribute(KIND) == name and segment_of(node) == segment_id:
                return node
        return self._make(segment_id, name)

    def remove_segment(self, segment_id: str) -> None:
        """Remove all nodes of a segment."""
        for node in self.nodes():
            if segment_of(node) == segment_id:
                self.remove_node(node)

    def remove_empty(self, keep=()) -> None:
        """Remove point lists without points, and the folder when it is empty."""
        for node in self.nodes():
            if node not in keep and not is_roi(node) and node.GetNumberOfControlPoints() == 0:
                self.remove_node(node)
        if not self.nodes():
            _remove_folder(self.scene, self.volume_node)

    def name(self, segment_id: str) -> None:
        """Rename a segment's nodes after it."""
        for node in self.nodes():
            if segment_of(node) == segment_id:
                self._name(node)

    def look(self, chosen_id: str | None, slice_nodes: Sequence, volume: Volume) -> None:
        """Set how all nodes are drawn in these views while `chosen_id` is the selected segment."""
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
        _put_into_folder(node, self.volume_node)
        return node

    def _name(self, node) -> None:
        segment = self.segmentation_node.GetSegmentation().GetSegment(segment_of(node))
        name = "" if segment is None else f"{segment.GetName()} {marker_of(node).words}"
        if name and node.GetName() != name:
            node.SetName(name)


def _across(node, volume: Volume):
    """The direction (3,) across the slice of a node that is a box on a slice, None for others."""
    marked = next(iter(read_node(node, volume)), None) if is_roi(node) else None
    if marked is None or not marked.prompt.on_one_slice:
        return None
    return plane_at(marked.view, marked.prompt.anchor, volume).normal


def new_node(scene, class_name: str):
    """A node that is not in the scene yet, so that its attributes are complete when observers hear of it."""
    node = scene.CreateNodeByClass(class_name)
    if node.GetReferenceCount() > 1:
        node.UnRegister(None)
    return node


def prompt_nodes(scene) -> Iterator:
    """Every node of a scene that holds prompts, of any volume."""
    nodes = scene.GetNodes()
    every = [nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems())]
    return (node for node in every if marker_of(node) is not None)


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


def orphans(scene) -> list:
    """Nodes that hold prompts of a volume or segmentation that is no longer there."""
    return [
        node
        for node in prompt_nodes(scene)
        if node.GetNodeReference(VOLUME_ROLE) is None or node.GetNodeReference(SEGMENTATION_ROLE) is None
    ]


# ---- the folder of the subject hierarchy that holds the prompts of a volume


def _put_into_folder(node, volume_node) -> None:
    """Show a node in the folder of a volume's prompts, which is made if needed."""
    hierarchy = node.GetScene().GetSubjectHierarchyNode()
    if hierarchy is None:
        return
    folder = _folder(hierarchy, volume_node)
    if not folder:
        folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), f"Prompts on {volume_node.GetName()}")
        hierarchy.SetItemAttribute(folder, _FOLDER, volume_node.GetID())
        hierarchy.SetItemExpanded(folder, False)
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, folder)
    else:
        hierarchy.CreateItem(folder, node)


def _remove_folder(scene, volume_node) -> None:
    """Remove the folder if it is empty."""
    hierarchy = scene.GetSubjectHierarchyNode()
    folder = _folder(hierarchy, volume_node) if hierarchy is not None else 0
    if not folder:
        return
    for item in _children(hierarchy, folder):
        if hierarchy.GetItemDataNode(item) is None:  # its node is gone
            hierarchy.RemoveItem(item, False, False)
    if not _children(hierarchy, folder):
        hierarchy.RemoveItem(folder, False, False)


def _remove_with_item(scene, node) -> None:
    """Remove a node from the scene, and its item from the subject hierarchy."""
    hierarchy = scene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    folder = hierarchy.GetItemParent(item) if item else 0
    scene.RemoveNode(node)
    if item and item in _children(hierarchy, folder):  # the application has removed it by now
        hierarchy.RemoveItem(item, False, False)


def _folder(hierarchy, volume_node) -> int:
    """The item of the folder for this volume's prompts, 0 when there is none."""
    for item in _children(hierarchy, hierarchy.GetSceneItemID()):
        if hierarchy.GetItemAttribute(item, _FOLDER) == volume_node.GetID():
            return item
    return 0


def _children(hierarchy, item: int) -> list[int]:
    import vtk

    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, children, False)
    return [children.GetId(number) for number in range(children.GetNumberOfIds())]

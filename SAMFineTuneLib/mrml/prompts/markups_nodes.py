"""Prompts as markups nodes, both ways.

A segment has a point list each for its positive and its negative points, an ROI for every box and a curve for every
scribble. What a node holds is written on it (`marked_node`); references say which volume and which segmentation it
belongs to. All of it survives saving with the scene.

Nothing is remembered here and nothing observed: `PromptNodes.read` says what the nodes hold now, whoever changed them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.marked_node import (
    KIND,
    KINDS,
    SEGMENT,
    WHOLE_NODE,
    MarkedPrompt,
    can_show,
    is_collapsed,
    kind_for,
    kind_of,
    number_prompt,
    numbers_of,
    read_node,
    remove_point,
    segment_of,
    world_points,
    write_prompt,
)
from SAMFineTuneLib.mrml.prompts.prompt_folder import put_into_folder, remove_folder, remove_with_item
from SAMFineTuneLib.mrml.prompts.prompt_geometry import (
    View,
    parallel_view,
    plane_at,
    same_prompt,
    slice_box,
    volume_box,
)
from SAMFineTuneLib.mrml.prompts.prompt_look import make_displays, show
from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt, Prompt

__all__ = [
    "SEGMENTATION_ROLE",
    "VOLUME_ROLE",
    "MarkedPrompt",
    "PromptNodes",
    "View",
    "can_show",
    "companions_of",
    "is_collapsed",
    "kind_of",
    "new_node",
    "orphans",
    "parallel_view",
    "prompt_nodes",
    "remove_those_left",
    "same_prompt",
    "segment_of",
    "slice_box",
    "volume_box",
    "world_points",
]

VOLUME_ROLE = "SAMFineTune.volume"
SEGMENTATION_ROLE = "SAMFineTune.segmentation"
_HIDDEN = "SAMFineTune.hidden"


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
            for marked in read_node(node, volume):
                if marked.number in taken:
                    marked = dataclasses.replace(marked, number=None)
                if marked.number is not None:
                    taken.add(marked.number)
                found.append(marked)
        return found

    def read_one(self, number: int, volume: Volume) -> MarkedPrompt | None:
        """What the nodes hold of one prompt, None when nothing shows it."""
        node, point_id = self.find(number)
        found = read_node(node, volume) if node is not None else []
        return next((marked for marked in found if marked.point_id == point_id), None)

    def find(self, number: int):
        """(node, control point ID) of a prompt, (None, "") when it is not there."""
        for node in self.nodes():
            point_id = numbers_of(node).get(number)
            if point_id is not None:
                return node, point_id
        return None, ""

    # ---- writing

    def write(self, number: int, segment_id: str, prompt: Prompt, view: View, volume: Volume) -> None:
        """Make or move what stands for a prompt. A mask prompt has nothing to show."""
        kind = kind_for(prompt)
        if kind is None:
            return
        node, point_id = self.find(number)
        if node is not None and (kind_of(node) != kind or segment_of(node) != segment_id):
            self.remove(number)
            node, point_id = None, ""
        if node is None:
            shared = isinstance(prompt, PointPrompt)
            node = self.point_list(segment_id, kind) if shared else self._make(segment_id, kind)
        write_prompt(node, point_id, number, prompt, view, volume)

    def number(self, marked: MarkedPrompt, number: int) -> None:
        """Tell the node which prompt it, or its control point, is, and on which view."""
        node = self.scene.GetNodeByID(marked.node_id)
        if node is not None:
            number_prompt(node, marked.point_id, number, marked.view)

    def remove(self, number: int) -> None:
        """Take away what stands for a prompt; a point list stays, empty, while it is placed into."""
        node, point_id = self.find(number)
        if node is not None:
            self.remove_marked(node, point_id)

    def remove_marked(self, node, point_id: str) -> None:
        """Take away a node, or one of its control points."""
        if point_id == WHOLE_NODE:
            self.remove_node(node)
        else:
            remove_point(node, point_id)

    def remove_node(self, node) -> None:
        """Take away a node, what shows and stores it, and its place in the subject hierarchy."""
        companions = companions_of(node)
        remove_with_item(self.scene, node)
        remove_those_left(self.scene, companions)

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
            remove_folder(self.scene, self.volume_node)

    def name(self, segment_id: str) -> None:
        """Give a segment's nodes its name."""
        for node in self.nodes():
            if segment_of(node) == segment_id:
                self._name(node)

    def look(self, chosen_id: str | None, slice_nodes: Sequence, volume: Volume) -> None:
        """Make all nodes look as they should in these views while a segment is the chosen one."""
        for node in self.nodes():
            segment = self.segmentation_node.GetSegmentation().GetSegment(segment_of(node))
            if segment is not None:
                make_displays(node, kind_of(node))
                chosen = segment_of(node) == chosen_id
                show(node, kind_of(node), segment.GetColor(), chosen, slice_nodes, _across(node, volume))

    def set_visible(self, visible: bool) -> None:
        """Hide them all while another volume is worked on, and show again those that were hidden so."""
        for node in self.nodes():
            if not visible and node.GetDisplayVisibility():
                node.SetAttribute(_HIDDEN, "1")
                node.SetDisplayVisibility(False)
            elif visible and node.GetAttribute(_HIDDEN) is not None:  # others are hidden by the user
                node.RemoveAttribute(_HIDDEN)
                node.SetDisplayVisibility(True)

    # ---- inside

    def _make(self, segment_id: str, kind: str):
        node = new_node(self.scene, KINDS[kind][0])
        node.SetAttribute(KIND, kind)
        node.SetAttribute(SEGMENT, segment_id)
        node.SetName(KINDS[kind][1])
        node = self.scene.AddNode(node)
        node.SetNodeReferenceID(VOLUME_ROLE, self.volume_node.GetID())
        node.SetNodeReferenceID(SEGMENTATION_ROLE, self.segmentation_node.GetID())
        make_displays(node, kind)
        self._name(node)
        put_into_folder(node, self.volume_node)
        return node

    def _name(self, node) -> None:
        segment = self.segmentation_node.GetSegmentation().GetSegment(segment_of(node))
        name = "" if segment is None else f"{segment.GetName()} {KINDS[kind_of(node)][1]}"
        if name and node.GetName() != name:
            node.SetName(name)


def _across(node, volume: Volume):
    """The direction (3,) across the slice of a node that is a box on a slice, None for others."""
    marked = next(iter(read_node(node, volume)), None) if kind_of(node) == "box" else None
    if marked is None or not isinstance(marked.prompt, BoxPrompt):
        return None
    plane = plane_at(marked.view, marked.prompt.corner_a, volume)
    return None if plane is None else plane.normal


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


def remove_those_left(scene, companions) -> None:
    """Take out display and storage nodes of a node that is gone: the application removes them with it, a bare scene
    does not."""
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

"""Slicer's place mode for prompts: real clicks in slice views become control points of a list of ours.

Points go straight into the segment's list, once there is a segment. Until then, and for the two corners of boxes,
clicks go into a list that is not saved.
"""

from __future__ import annotations

from collections.abc import Callable

from SAMFineTuneLib.mrml.prompts.markups_nodes import (
    PromptNodes,
    companions_of,
    new_node,
    remove_those_left,
    world_points,
)

_CLICKS = "SAMFineTune.clicks"
_PREVIEW = 1  # vtkMRMLMarkupsNode.PositionPreview
_POINTS = ("positive", "negative")
_BOXES = ("box", "box3d")
KINDS = (*_POINTS, *_BOXES)


class Placing:
    """Which kind is being placed, if any, and the list that clicks go into."""

    def __init__(self, scene):
        self._scene = scene
        self.kind: str | None = None
        self.node = None

    def start(self, kind: str, nodes: PromptNodes | None, segment_id: str | None) -> None:
        """Enter Slicer's place mode for a kind; clicks go on until `stop`. Without a segment they are `clicks`."""
        if kind not in KINDS:
            raise ValueError(f'"{kind}" is not placed by clicks; choose one of {", ".join(KINDS)}.')
        self._leave_list()
        self.kind = kind
        at_once = kind in _POINTS and segment_id is not None
        self.node = nodes.point_list(segment_id, kind) if at_once else self._click_list(nodes, segment_id)
        selection, interaction = self._selection(), self._interaction()
        if selection is not None and interaction is not None:
            selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
            selection.SetActivePlaceNodeID(self.node.GetID())
            interaction.SetPlaceModePersistence(1)
            interaction.SetCurrentInteractionMode(interaction.Place)

    def stop(self) -> None:
        """Back to Slicer's ordinary mouse mode, if it is still ours to leave."""
        if self.kind is None:
            return
        selection, interaction = self._selection(), self._interaction()
        node = self.node
        if node is not None and selection is not None and selection.GetActivePlaceNodeID() == node.GetID():
            if interaction is not None and interaction.GetCurrentInteractionMode() == interaction.Place:
                interaction.SetCurrentInteractionMode(interaction.ViewTransform)
            selection.SetActivePlaceNodeID(None)
        self._leave_list()
        self.kind = None

    @property
    def list_is_gone(self) -> bool:
        """Whether somebody has deleted the list that clicks go into, as with its segment: `start` makes another."""
        return self.kind is not None and (self.node is None or self.node.GetScene() is None)

    @property
    def ended_elsewhere(self) -> bool:
        """Whether the user left the place mode by a right click, Escape or another module."""
        if self.kind is None or self.list_is_gone:
            return False
        selection, interaction = self._selection(), self._interaction()
        if selection is None or interaction is None:
            return False
        return (
            interaction.GetCurrentInteractionMode() != interaction.Place
            or selection.GetActivePlaceNodeID() != self.node.GetID()
        )

    def clicks(self) -> list[tuple[float, float, float]]:
        """Where a prompt was clicked, as soon as all its points are: then somebody has to make it, and call
        `clear_clicks`."""
        if self.kind is None or not self.is_click_list(self.node):
            return []
        clicked = [ras for _, ras in world_points(self.node)]
        wanted = 1 if self.kind in _POINTS else 2
        return clicked[:wanted] if len(clicked) >= wanted else []

    def clear_clicks(self) -> None:
        """The prompt is made; the next clicks make another."""
        for point_id, _ in world_points(self.node):
            self.node.RemoveNthControlPoint(self.node.GetNthControlPointIndexByID(point_id))

    def is_click_list(self, node) -> bool:
        return node is not None and node.GetAttribute(_CLICKS) is not None

    # ---- inside

    def _leave_list(self) -> None:
        """A preview point under the mouse would stay in the list."""
        node, self.node = self.node, None
        if node is None or node.GetScene() is None:
            return
        index = node.GetNumberOfControlPoints() - 1
        while index >= 0:
            if node.GetNthControlPointPositionStatus(index) == _PREVIEW:
                node.RemoveNthControlPoint(index)
            # Whoever hears of one that is removed may remove others.
            index = min(index, node.GetNumberOfControlPoints()) - 1
        if self.is_click_list(node):
            companions = companions_of(node)
            self._scene.RemoveNode(node)
            remove_those_left(self._scene, companions)

    def _click_list(self, nodes: PromptNodes | None, segment_id: str | None):
        node = new_node(self._scene, "vtkMRMLMarkupsFiducialNode")
        node.SetAttribute(_CLICKS, "1")
        node.SetName("box corner" if self.kind in _BOXES else self.kind)
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node = self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        if display is not None:
            display.SetSaveWithScene(False)
            display.SetPointLabelsVisibility(False)
            display.SetPropertiesLabelVisibility(False)
        if display is not None and segment_id is not None:
            display.SetSelectedColor(nodes.segmentation_node.GetSegmentation().GetSegment(segment_id).GetColor())
        return node

    def _selection(self):
        return self._scene.GetSingletonNode("Singleton", "vtkMRMLSelectionNode")

    def _interaction(self):
        return self._scene.GetSingletonNode("Singleton", "vtkMRMLInteractionNode")


def slice_node_under_cursor(scene) -> Callable[[], object | None]:
    """A function that gives the slice node that the mouse is over, None elsewhere."""

    def find():
        crosshair = scene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
        return None if crosshair is None else crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0])

    return find

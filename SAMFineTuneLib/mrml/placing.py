"""Slicer's place mode for prompts: real clicks in slice views become control points of a list of ours.

Points go straight into the segment's list. For boxes, the two corners are clicked into a list that is not saved.
"""

from __future__ import annotations

from collections.abc import Callable

from SAMFineTuneLib.mrml.markups import PromptNodes, companions_of, new_node, world_points

_CORNERS = "SAMFineTune.corners"
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

    def start(self, kind: str, nodes: PromptNodes, segment_id: str) -> None:
        """Enter Slicer's place mode for a kind; clicks go on until `stop`."""
        if kind not in KINDS:
            raise ValueError(f'"{kind}" is not placed by clicks; choose one of {", ".join(KINDS)}.')
        self._leave_list()
        self.kind = kind
        self.node = nodes.point_list(segment_id, kind) if kind in _POINTS else self._corner_list(nodes, segment_id)
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
    def ended_elsewhere(self) -> bool:
        """Whether the user left the place mode by a right click, Escape or another module."""
        if self.kind is None:
            return False
        selection, interaction = self._selection(), self._interaction()
        if self.node is None or self.node.GetScene() is None:
            return True
        if selection is None or interaction is None:
            return False
        return (
            interaction.GetCurrentInteractionMode() != interaction.Place
            or selection.GetActivePlaceNodeID() != self.node.GetID()
        )

    def corners(self) -> list[tuple[float, float, float]]:
        """The corners clicked so far, when a box is placed."""
        return [ras for _, ras in world_points(self.node)] if self.kind in _BOXES and self.node is not None else []

    def clear_corners(self) -> None:
        """The box is made; the next two clicks make another."""
        for point_id, _ in world_points(self.node):
            self.node.RemoveNthControlPoint(self.node.GetNthControlPointIndexByID(point_id))

    def is_corner_list(self, node) -> bool:
        return node is not None and node.GetAttribute(_CORNERS) is not None

    # ---- inside

    def _leave_list(self) -> None:
        """A preview point under the mouse would stay in the list."""
        node, self.node = self.node, None
        if node is None or node.GetScene() is None:
            return
        for index in reversed(range(node.GetNumberOfControlPoints())):
            if node.GetNthControlPointPositionStatus(index) == _PREVIEW:
                node.RemoveNthControlPoint(index)
        if self.is_corner_list(node):
            for gone in (node, *companions_of(node)):
                self._scene.RemoveNode(gone)

    def _corner_list(self, nodes: PromptNodes, segment_id: str):
        node = new_node(self._scene, "vtkMRMLMarkupsFiducialNode")
        node.SetAttribute(_CORNERS, "1")
        node.SetName("box corner")
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node = self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        segment = nodes.segmentation_node.GetSegmentation().GetSegment(segment_id)
        if display is not None and segment is not None:
            display.SetSaveWithScene(False)
            display.SetPointLabelsVisibility(False)
            display.SetPropertiesLabelVisibility(False)
            display.SetSelectedColor(segment.GetColor())
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

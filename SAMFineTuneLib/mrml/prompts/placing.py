"""Slicer's place mode for prompts: real clicks in slice views become control points of a list of ours.

Points go straight into the segment's list, once there is a segment. Until then, and for the two corners of boxes,
clicks go into a list that is not saved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.marked_node import view_of, world_points
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes, companions_of, new_node, remove_those_left
from SAMFineTuneLib.mrml.slice_views import plane_of_view
from SAMFineTuneLib.prompts.prompt_kind import tools
from SAMFineTuneLib.session.intents import View

_CLICKS = "SAMFineTune.clicks"
_PREVIEW = 1  # vtkMRMLMarkupsNode.PositionPreview
_CLICKS_NEEDED = {"click": 1, "box": 2}  # by the gesture of a tool; other gestures are drawn
_ON_SLICE = 0.1  # mm: how far a point may be off a view that shows it


class Placing:
    """The tool with which the user is placing prompts, if any, and the point list that receives the clicks."""

    def __init__(self, scene):
        self._scene = scene
        self.kind: str | None = None
        self.node = None

    def start(self, kind: str, nodes: PromptNodes | None, segment_id: str | None) -> None:
        """Enter Slicer's place mode for a tool, until `stop`. Without a segment, `clicks` returns what was clicked."""
        if kind not in tools() or tools()[kind].gesture not in _CLICKS_NEEDED:
            raise ValueError(f'"{kind}" is not placed by clicks.')
        self._leave_list()
        self.kind = kind
        at_once = self._wanted == 1 and segment_id is not None
        self.node = nodes.point_list(segment_id, kind) if at_once else self._click_list(nodes, segment_id)
        selection, interaction = self._selection(), self._interaction()
        if selection is not None and interaction is not None:
            selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
            selection.SetActivePlaceNodeID(self.node.GetID())
            interaction.SetPlaceModePersistence(1)
            interaction.SetCurrentInteractionMode(interaction.Place)

    def stop(self) -> None:
        """Return to Slicer's ordinary mouse mode, unless something else has started a place mode meanwhile."""
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
        """Whether the list that receives the clicks was deleted, as with its segment; `start` makes another."""
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
        """The clicked points of a prompt, once all are there. The caller makes the prompt and calls `clear_clicks`."""
        if self.kind is None or not self.is_click_list(self.node):
            return []
        clicked = [ras for _, ras in world_points(self.node)]
        return clicked[: self._wanted] if len(clicked) >= self._wanted else []

    def clear_clicks(self) -> None:
        """Forget the clicks, so that the next ones make another prompt."""
        for point_id, _ in world_points(self.node):
            self.node.RemoveNthControlPoint(self.node.GetNthControlPointIndexByID(point_id))

    def is_click_list(self, node) -> bool:
        return node is not None and node.GetAttribute(_CLICKS) is not None

    # ---- inside

    @property
    def _wanted(self) -> int:
        """How many clicks make a prompt."""
        return _CLICKS_NEEDED[tools()[self.kind].gesture]

    def _leave_list(self) -> None:
        """Remove the preview point under the mouse, which would stay in the list."""
        node, self.node = self.node, None
        if node is None or node.GetScene() is None:
            return
        index = node.GetNumberOfControlPoints() - 1
        while index >= 0:
            if node.GetNthControlPointPositionStatus(index) == _PREVIEW:
                node.RemoveNthControlPoint(index)
            # Observers of a removal may remove further points.
            index = min(index, node.GetNumberOfControlPoints()) - 1
        if self.is_click_list(node):
            companions = companions_of(node)
            self._scene.RemoveNode(node)
            remove_those_left(self._scene, companions)

    def _click_list(self, nodes: PromptNodes | None, segment_id: str | None):
        node = new_node(self._scene, "vtkMRMLMarkupsFiducialNode")
        node.SetAttribute(_CLICKS, "1")
        node.SetName(self.kind if self._wanted == 1 else "box corner")
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
    """A function that returns the slice node under the mouse, or None."""

    def find():
        crosshair = scene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
        return None if crosshair is None else crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0])

    return find


class ViewFinder:
    """The slice views of a scene. `active` returns the slice node under the mouse, or None."""

    def __init__(self, scene, active: Callable[[], object | None]):
        self._scene, self._active = scene, active

    def nodes(self) -> list:
        """All slice nodes."""
        name = "vtkMRMLSliceNode"
        return [self._scene.GetNthNodeByClass(n, name) for n in range(self._scene.GetNumberOfNodesByClass(name))]

    def directions(self) -> list[tuple[str, tuple[float, ...]]]:
        """(ID, direction across it) of all slice nodes: what turning a view changes, and moving it does not."""
        across = (0.0, 0.0, 1.0, 0.0)
        return [(node.GetID(), node.GetSliceToRAS().MultiplyPoint(across)) for node in self.nodes()]

    def node_at(self, ras):
        """The slice node in which a point was clicked: the one under the cursor, or else one that shows it."""
        shown = [node for node in self.nodes() if shows(node, ras)]
        active = self._active()
        if active is not None and (active in shown or not shown):
            return active
        return shown[0] if shown else None

    def view_at(self, ras, volume: Volume) -> View | None:
        """The view in which a point was clicked; None when no view shows it or the view misses the volume."""
        node = self.node_at(ras)
        try:
            return None if node is None else view_of(plane_of_view(node, volume, ras))
        except UserError:
            return None


def shows(slice_node, ras) -> bool:
    """Whether a point lies on the slice of a view."""
    matrix = slice_node.GetSliceToRAS()
    normal, origin = ([matrix.GetElement(row, column) for row in range(3)] for column in (2, 3))
    return bool(abs(np.subtract(ras, origin) @ np.array(normal)) <= _ON_SLICE)

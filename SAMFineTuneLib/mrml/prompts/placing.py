"""Slicer's place mode for prompts: clicks in slice views become control points of a list of this module.

Points go straight into the segment's list, once there is a segment. Until then, and for the two corners of boxes,
clicks go into a list that is not saved.
"""

from __future__ import annotations

from SAMFineTuneLib.mrml.prompts.node_content import world_points
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes
from SAMFineTuneLib.mrml.scene_nodes import companions_of, new_node, remove_those_left
from SAMFineTuneLib.prompts.prompt_kind import tools

_CLICKS = "SAMFineTune.clicks"
_PREVIEW = 1  # vtkMRMLMarkupsNode.PositionPreview
_CLICKS_NEEDED = {"click": 1, "box": 2}  # by the gesture of a tool; other gestures are drawn


class Placing:
    """The tool with which the user is placing prompts, if any, and the point list that receives the clicks."""

    def __init__(self, scene):
        self._scene = scene
        self.kind: str | None = None
        self.node = None

    def start(self, kind: str, nodes: PromptNodes | None, segment_id: str | None) -> None:
        """Enter Slicer's place mode for a tool, until `stop`.

        Args:
            kind: name of a tool that is placed by clicks.
            nodes: the prompts' nodes; None without a segmentation.
            segment_id: the segment that gets what is clicked; without one, `clicks` returns it.
        """
        if kind not in tools() or tools()[kind].gesture not in _CLICKS_NEEDED:
            raise ValueError(f'"{kind}" is not placed by clicks.')
        self._leave_list()
        self.kind = kind
        at_once = self._wanted == 1 and segment_id is not None
        self.node = nodes.point_list(segment_id, kind) if at_once else self._click_list(nodes, segment_id)
        self.node.SetFixedNumberOfControlPoints(False)
        selection, interaction = self._selection(), self._interaction()
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
        selection.SetActivePlaceNodeID(self.node.GetID())
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)

    def stop(self) -> None:
        """Return to Slicer's ordinary mouse mode, unless something else has started a place mode meanwhile."""
        if self.kind is None:
            return
        selection, interaction = self._selection(), self._interaction()
        if self.node is not None and selection.GetActivePlaceNodeID() == self.node.GetID():
            if interaction.GetCurrentInteractionMode() == interaction.Place:
                interaction.SetCurrentInteractionMode(interaction.ViewTransform)
            selection.SetActivePlaceNodeID(None)
        self._leave_list()
        self.kind = None

    @property
    def list_is_gone(self) -> bool:
        """Whether the list that receives the clicks was deleted, for example with its segment; `start` makes another.
        """
        return self.kind is not None and (self.node is None or self.node.GetScene() is None)

    @property
    def list_is_full(self) -> bool:
        """Whether the number of points in the list was locked in the Markups module; `start` unlocks it."""
        return self.kind is not None and self.node is not None and bool(self.node.GetFixedNumberOfControlPoints())

    @property
    def ended_elsewhere(self) -> bool:
        """Whether the user left the place mode by a right click, Escape or another module."""
        if self.kind is None or self.list_is_gone:
            return False
        selection, interaction = self._selection(), self._interaction()
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
        """Whether a node is a list that this tool collects clicks in."""
        return node is not None and node.GetAttribute(_CLICKS) is not None

    # ---- inside

    @property
    def _wanted(self) -> int:
        """The number of clicks that make a prompt."""
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
        display.SetSaveWithScene(False)
        display.SetPointLabelsVisibility(False)
        display.SetPropertiesLabelVisibility(False)
        if segment_id is not None:
            display.SetSelectedColor(nodes.segmentation_node.GetSegmentation().GetSegment(segment_id).GetColor())
        return node

    def _selection(self):
        return self._scene.GetSingletonNode("Singleton", "vtkMRMLSelectionNode")

    def _interaction(self):
        return self._scene.GetSingletonNode("Singleton", "vtkMRMLInteractionNode")

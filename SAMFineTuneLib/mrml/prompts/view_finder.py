"""In which slice view something was placed."""

from __future__ import annotations

from collections.abc import Callable

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.making import shows, view_of
from SAMFineTuneLib.mrml.prompts.prompt_geometry import View
from SAMFineTuneLib.mrml.slice_views import plane_of_view


class ViewFinder:
    """The slice views of a scene. `active` gives the slice node in which the user clicks, None when nobody knows."""

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
        """The view in which a point was clicked; None when there is none, or it misses the volume."""
        node = self.node_at(ras)
        try:
            return None if node is None else view_of(plane_of_view(node, volume, ras))
        except UserError:
            return None

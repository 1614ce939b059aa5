"""What Slicer's slice views show: the volume, the slices, and the views to draw in."""

import slicer

from .rubber_band import DrawingView


def shown_volume():
    """The volume in the background of a slice view, else the first one of the scene, else None."""
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = [slicer.mrmlScene.GetNodeByID(one.GetBackgroundVolumeID() or "") for one in composites]
    candidates = [node for node in shown if node is not None]
    return next(filter(_usable, candidates or slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), None)


def show_volume(node):
    """Show a volume in the slice views unless one of them shows it already."""
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    if composites and node.GetID() not in [composite.GetBackgroundVolumeID() for composite in composites]:
        slicer.util.setSliceViewerLayers(background=node, fit=True)


def shown_slice_nodes():
    """Slice nodes of the present layout; nodes of other layouts stay in the scene.

    All of them when none is marked as shown: some versions of Slicer forget that when the scene closes.
    """
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    return [node for node in nodes if node.IsMappedInLayout()] or nodes


def looked_at_slice_node():
    """The slice node whose view the mouse is or was in last, else the first one shown; None without views."""
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    under_mouse = None if crosshair is None else crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0])
    return under_mouse or next(iter(shown_slice_nodes()), None)


def shown_slice(volume, orientation):
    """Index of the volume's slice that a view of that orientation shows; None when none does."""
    from SAMFineTuneLib.errors import UserError
    from SAMFineTuneLib.mrml.slice_views import plane_of_view

    for node in shown_slice_nodes() if volume is not None else ():
        try:
            plane = plane_of_view(node, volume)
        except UserError:
            continue
        if plane.orientation == orientation:
            return plane.index
    return None


def views_are_oblique(volume):
    """Whether all views shown cut across the slices of a volume."""
    from SAMFineTuneLib.mrml.slice_views import view_kind

    nodes = shown_slice_nodes()
    return bool(nodes) and all(view_kind(node, volume) == "oblique" for node in nodes)


def drawing_views():
    """The slice views of the present layout, for `rubber_band`."""
    manager = slicer.app.layoutManager()
    widgets = [] if manager is None else [manager.sliceWidget(name) for name in manager.sliceViewNames()]
    return [DrawingView(widget) for widget in widgets if widget is not None]


def _usable(node):
    from SAMFineTuneLib.errors import UserError
    from SAMFineTuneLib.mrml.volume_nodes import require_volume

    try:
        require_volume(node)
    except UserError:
        return False
    return not node.IsA("vtkMRMLLabelMapVolumeNode")

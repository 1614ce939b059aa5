"""How prompts look in the slice views.

Points and lines are drawn twice, a rim and on it a core, one of them light and the other dark, so that they are visible
on any picture and any segment. Positive prompts are light with a dark rim, and points are discs; negative ones are dark
with a light rim, and points are diamonds. So they differ in shape and brightness, not in colour alone. Prompts of the
selected segment are larger and green or red; those of other segments have their segment's colour.

Only boxes of the selected segment have handles, and a box on a slice has them only in views along that slice. 3-D views
show no prompts, because those would hide the segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from SAMFineTuneLib.mrml.volume_nodes import array_from_matrix
from SAMFineTuneLib.prompts.prompt_kind import Marker

GRAB = 4.0  # pixels around a handle in which a press takes the handle
_HANDLE_SCALE = 2.4  # of vtkMRMLMarkupsDisplayNode: 9 pixels across on a usual screen
_HANDLE_RADIUS = 0.001  # of the screen's diagonal, for a handle of scale 1: Slicer's own figure
_SMALLER = 0.7  # prompts of other segments
_PARALLEL = 0.999  # cosine
_SAME = 1e-6  # of a display property
_LIGHT, _DARK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
_GREEN, _RED = (0.35, 1.0, 0.25), (0.75, 0.05, 0.05)
_HOVER = (1.0, 0.9, 0.2)


def make_displays(node, marker: Marker) -> None:
    """Give a new node, or one of an older scene, its display nodes."""
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    rim = node.GetDisplayNode()
    if rim is not None and marker.sizes is not None and node.GetNumberOfDisplayNodes() == 1:
        core = node.GetScene().AddNewNodeByClass(rim.GetClassName())
        node.AddAndObserveDisplayNodeID(core.GetID())  # added after the rim, so that Slicer draws it on the rim
    if node.IsA("vtkMRMLMarkupsCurveNode"):
        node.SetCurveTypeToLinear()


def show(node, marker: Marker, color, chosen: bool, slice_nodes: Sequence, normal=None) -> None:
    """Set how a prompt of a segment is drawn.

    Args:
        color: of the segment, (r, g, b) from 0 to 1.
        chosen: whether the segment is the selected one.
        normal: for a box on a slice, the direction (3,) in RAS across that slice; None for other prompts.
    """
    displays = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    if None in displays or not displays:
        return
    for display in displays:
        _change(display, Visibility3D=False, PropertiesLabelVisibility=False, PointLabelsVisibility=False)
    if marker.sizes is None:
        _show_box(node, displays[0], color, chosen, slice_nodes, normal)
    else:
        _show_pair(displays, marker, color, chosen)


def _show_pair(displays, marker, color, chosen) -> None:
    core_color = _GREEN if marker.positive else _RED
    colors = _DARK if marker.positive else _LIGHT, core_color if chosen else _tinted(core_color, color)
    for display, scale, own, hover in zip(
        (displays[0], displays[-1]), marker.sizes, colors, (colors[0], _HOVER), strict=True
    ):
        glyph = display.Diamond2D if marker.diamond else display.Sphere3D
        _change(display, GlyphType=glyph, GlyphScale=scale * (1.0 if chosen else _SMALLER), LineThickness=1.0)
        _change(display, SelectedColor=own, Color=own, ActiveColor=hover)


def _tinted(core_color, color) -> tuple[float, float, float]:
    """A segment's colour, as light or as dark as the core should be."""
    ground = 0.6 if core_color == _GREEN else 0.0
    return tuple(ground + 0.4 * float(part) for part in color)


def _show_box(node, display, color, chosen, slice_nodes, normal) -> None:
    beside = [view for view in slice_nodes if normal is None or abs(_normal(view) @ normal) > _PARALLEL]
    _only_in(display, [] if normal is None else [view.GetID() for view in beside])
    handles = chosen and bool(beside)
    _change(display, HandlesInteractive=handles, ScaleHandleVisibility=handles, TranslationHandleVisibility=handles)
    _change(display, RotationHandleVisibility=False, InteractionHandleScale=_HANDLE_SCALE)
    _change(display, FillVisibility=False, GlyphScale=0.5, SelectedColor=color, Color=color, ActiveColor=_HOVER)
    if bool(node.GetLocked()) == chosen:  # its middle can be dragged even without handles
        node.SetLocked(not chosen)


def handles_of(node, slice_node) -> np.ndarray:
    """(n, 2) pixels in a view from its lower left corner: the handles of a box that are seen there."""
    import vtk

    display = node.GetDisplayNode()
    shown = display is not None and display.GetVisibility() and display.IsDisplayableInView(slice_node.GetID())
    if not (shown and display.GetHandlesInteractive()):
        return np.empty((0, 2))
    to_view = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(slice_node.GetXYToRAS(), to_view)
    to_view = array_from_matrix(to_view) @ array_from_matrix(node.GetObjectToWorldMatrix())
    return _cut(to_view, np.array(node.GetSize()) / 2)


def grabs(node, slice_node, position, screen_size) -> bool:
    """Whether a press takes a handle of a box.

    Args:
        node: of the box.
        slice_node: of the view.
        position: of the press, x and y in pixels of the view.
        screen_size: of the screen, as the view's window says it.
    """
    handles = handles_of(node, slice_node)
    if not len(handles):
        return False
    drawn = _HANDLE_RADIUS * node.GetDisplayNode().GetInteractionHandleScale() * np.hypot(*screen_size[:2])
    return bool(np.hypot(*(handles - position).T).min() <= max(GRAB, drawn))


def _cut(to_view, half) -> np.ndarray:
    """Where the view's plane (z = 0) cuts the edges of a box, the middle between the two cuts of each face, and the
    box's own middle; none where the plane misses the box."""
    cuts = {}  # the two faces that meet at an edge -> where it is cut
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        for signs in np.ndindex(2, 2):
            ends = np.ones((2, 4))
            ends[:, axis] = -half[axis], half[axis]
            for other, sign in zip(others, signs, strict=True):
                ends[:, other] = half[other] * (2 * sign - 1)
            first, last = ends @ to_view.T
            if first[2] * last[2] <= 0 and first[2] != last[2]:
                at = first + (last - first) * first[2] / (first[2] - last[2])
                cuts[frozenset(zip(others, signs, strict=True))] = at[:2]
    if not cuts:
        return np.empty((0, 2))
    faces = {face for pair in cuts for face in pair}
    middles = [np.mean([at for pair, at in cuts.items() if face in pair], axis=0) for face in faces]
    return np.array([*cuts.values(), *middles, to_view[:2, 3]])


def _normal(slice_node) -> np.ndarray:
    matrix = array_from_matrix(slice_node.GetSliceToRAS())[:3, 2]
    return matrix / np.linalg.norm(matrix)


def _only_in(display, view_ids) -> None:
    """Show it in these views only, or in all views when the list is empty."""
    now = [display.GetNthViewNodeID(number) for number in range(display.GetNumberOfViewNodeIDs())]
    if now != view_ids:
        was_modifying = display.StartModify()
        display.RemoveAllViewNodeIDs()
        for view_id in view_ids:
            display.AddViewNodeID(view_id)
        display.EndModify(was_modifying)


def _change(display, **values) -> None:
    """Set only the properties whose value differs, because every change draws the views again."""
    for name, value in values.items():
        now, parts = getattr(display, "Get" + name)(), value if isinstance(value, tuple) else (value,)
        # not `np.allclose`: this is asked some twenty times at every click
        if any(abs(a - b) > _SAME for a, b in zip(now if isinstance(now, tuple) else (now,), parts, strict=True)):
            getattr(display, "Set" + name)(*parts)

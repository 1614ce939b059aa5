"""Which plane of a volume a slice view shows.

That depends on where the view lies (`SliceToRAS`), not on the name of its orientation: "Axial" over a tilted scan cuts
across its slices. It does not depend on zoom, pan, roll, light box or slab thickness.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import (
    EDGE_OF_SLICES,
    ORIENTATIONS,
    SlicePlane,
    aligned_plane,
    number_of_slices,
    oblique_plane,
    plane_through,
    view_axes,
)
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.volume_nodes import array_from_matrix
from SAMFineTuneLib.session.intents import View

# Slices by which a view may be inclined over the whole volume and still count as one of its slices, as long as it
# stays in that slice: scanners store directions with few digits, and Slicer draws such views as if they were straight.
_DRIFT = 0.1
_CLEAR = 1e-3  # slices between a settled view and the edge of its slice
_ON_SLICE = 0.1  # mm: how far a point may be off a view that shows it
_RESTS = 0.08  # seconds without scrolling until the user is taken to look at a slice


def plane_of_view(slice_node, volume: Volume, ras=None) -> SlicePlane:
    """The plane that a vtkMRMLSliceNode shows: one of the volume's own slices when the view lies in it, else the
    oblique plane in which the view cuts the volume, whole. It contains every point of the view that is in the volume.

    `ras` is a point clicked in the view, through which an oblique plane goes exactly. Raises UserError when the
    view misses the volume.
    """
    view = array_from_matrix(slice_node.GetSliceToRAS())
    orientation, first, last = _slices(view, volume)
    if orientation is None or first != last:
        return oblique_plane(volume, view[:3, 3] if ras is None else ras, view[:3, 0], -view[:3, 1])
    if not 0 <= first < number_of_slices(volume, orientation):
        raise UserError("The view shows no slice of the volume: move it to where the volume is.")
    return aligned_plane(volume, orientation, first)


def view_kind(slice_node, volume: Volume) -> str:
    """ "axial", "coronal" or "sagittal" when the view shows one of the volume's own slices, else "oblique"."""
    orientation, first, last = _slices(array_from_matrix(slice_node.GetSliceToRAS()), volume)
    return orientation if orientation is not None and first == last else "oblique"


def settle_view(slice_node, volume: Volume) -> bool:
    """Move a view that runs along the volume's slices, but crosses from one into the next, into the one that is drawn.

    It moves by less than a tenth of a slice, so that the picture does not change, and clicks belong to the slice that
    the user sees. Such views are common: Slicer centres views on volumes, and the middle of an even number of slices is
    the edge between two. Returns whether the view was moved.
    """
    view = array_from_matrix(slice_node.GetSliceToRAS())
    orientation, first, last = _slices(view, volume)
    if orientation is None or first == last:
        return False
    axis = view_axes(volume, orientation)[2]
    drawn = _slice_at(volume.ras_to_ijk(ras_at(slice_node, (0, 0)))[axis])  # drawn is the slice at the corner
    drawn = min(max(drawn, first), last)
    low, high = _range(view, volume, axis)
    shift = drawn + 0.5 - _CLEAR - high if drawn == first else drawn - 0.5 + _CLEAR - low
    matrix = slice_node.GetSliceToRAS()
    moved = view[:3, 3] + shift * _gradient(view, volume)[axis] * _normal(view)
    for row in range(3):
        matrix.SetElement(row, 3, float(moved[row]))
    slice_node.UpdateMatrices()
    return True


def ras_at(slice_node, xy) -> np.ndarray:
    """World RAS (3,) of a position in the view, in pixels from its lower left corner."""
    return np.array(slice_node.GetXYToRAS().MultiplyPoint((float(xy[0]), float(xy[1]), 0.0, 1.0))[:3])


def _normal(view: np.ndarray) -> np.ndarray:
    normal = np.cross(view[:3, 0], view[:3, 1])
    return normal / np.linalg.norm(normal)


def _gradient(view: np.ndarray, volume: Volume) -> np.ndarray:
    """Distance from the view in mm (3,) for a step of one voxel along i, j, k."""
    return _normal(view) @ volume.affine[:3, :3]


def _slices(view: np.ndarray, volume: Volume) -> tuple[str | None, int, int]:
    """The orientation whose slices the view runs along, None when it cuts across them, and the first and last slice
    that it touches in the volume."""
    gradient = np.abs(_gradient(view, volume))
    lengths = np.array(volume.shape[::-1])
    for orientation in ORIENTATIONS:
        across, down, slices = view_axes(volume, orientation)
        drift = gradient[across] * lengths[across] + gradient[down] * lengths[down]
        if drift <= _DRIFT * gradient[slices]:
            low, high = _range(view, volume, slices)
            return orientation, _slice_at(low), _slice_at(high)
    return None, 0, 0


def _range(view: np.ndarray, volume: Volume, axis: int) -> tuple[float, float]:
    """Lowest and highest voxel coordinate along `axis` at which the view passes through the volume."""
    gradient = _gradient(view, volume)
    lengths = np.array(volume.shape[::-1])
    to_view = (volume.ras_to_ijk(view[:3, 3]) - (lengths - 1) / 2) @ gradient / gradient[axis]
    aside = np.abs(gradient / gradient[axis] * lengths / 2)
    drift = aside.sum() - aside[axis]
    middle = (lengths[axis] - 1) / 2 + to_view
    return float(middle - drift), float(middle + drift)


def _slice_at(coordinate: float) -> int:
    return int(np.floor(coordinate + 0.5 + EDGE_OF_SLICES))


# ---- views of prompts


def view_of(plane: SlicePlane) -> View:
    """The session's view of a plane: the orientation of the volume's own slices, or the oblique plane."""
    return plane.orientation if plane.index is not None else plane


def parallel_view(view: View | None, ras, volume: Volume) -> View | None:
    """The view of a prompt at `ras`: the view itself, or the parallel oblique plane that runs through `ras`."""
    if isinstance(view, SlicePlane) and not np.all(view.contains(ras)):
        return oblique_plane(volume, ras, view.right, view.down)
    return view


def plane_at(view: View | None, ras, volume: Volume) -> SlicePlane:
    """The plane of a view at `ras`; outside the volume, the view's first slice."""
    if isinstance(view, SlicePlane):
        return view
    try:
        return plane_through(volume, view or ORIENTATIONS[0], ras)
    except UserError:
        return aligned_plane(volume, view or ORIENTATIONS[0], 0)


def same_view(a: View | None, b: View | None, tolerance: float) -> bool:
    """Whether two views are the same, oblique ones up to a distance in mm."""
    if not (isinstance(a, SlicePlane) and isinstance(b, SlicePlane)):
        return a == b
    vectors = [(plane.origin, plane.right, plane.down) for plane in (a, b)]
    return a.key == b.key or (a.shape == b.shape and np.allclose(*vectors, rtol=0, atol=tolerance))


# ---- all views of a scene


def slice_node_under_cursor(scene) -> Callable[[], object | None]:
    """A function that returns the slice node under the mouse, or None."""

    def find():
        crosshair = scene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
        return None if crosshair is None else crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0])

    return find


class ViewFinder:
    """The slice views of a scene. `active` returns the slice node under the mouse, or None."""

    def __init__(self, scene, active: Callable[[], object | None]):
        self._scene, self.active = scene, active

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
        active = self.active()
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


class RestingView:
    """Notices when the user has stopped scrolling."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._view: object = None
        self._rests_from: float | None = None  # None once that was said

    def has_come_to_rest(self, view: object) -> bool:
        """Whether the view has not moved for a while; True once for each view."""
        if view != self._view:
            self._view, self._rests_from = view, self._clock() + _RESTS
        elif self._rests_from is not None and self._clock() >= self._rests_from:
            self._rests_from = None
            return True
        return False


def shows(slice_node, ras) -> bool:
    """Whether a point lies on the slice of a view."""
    matrix = slice_node.GetSliceToRAS()
    normal, origin = ([matrix.GetElement(row, column) for row in range(3)] for column in (2, 3))
    return bool(abs(np.subtract(ras, origin) @ np.array(normal)) <= _ON_SLICE)

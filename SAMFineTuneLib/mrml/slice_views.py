"""Which plane of a volume a slice view shows.

What counts is where the view lies (`SliceToRAS`), not the name of its orientation: "Axial" over a tilted scan
cuts across its slices. How the view is zoomed, panned or rolled, a light box and a thick slab change no plane.
"""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.plane import (
    ORIENTATIONS,
    SlicePlane,
    aligned_plane,
    nearest_slice,
    oblique_plane,
    view_axes,
)
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.volumes import array_from_matrix

_DRIFT = 0.01  # slices by which a view may leave its slice from one end of the volume to the other
_EDGE = 1e-5  # slices


def plane_of_view(slice_node, volume: Volume, ras=None) -> SlicePlane:
    """The plane that a vtkMRMLSliceNode shows: the nearest of the volume's own slices when the view runs along two
    of its axes, else the oblique plane in which the view cuts the volume, whole.

    With `ras`, a point clicked in the view, the plane is the one with that point. Raises UserError when the view
    misses the volume.
    """
    view = array_from_matrix(slice_node.GetSliceToRAS())
    orientation = _orientation(view, volume)
    if orientation is None:
        return oblique_plane(volume, view[:3, 3] if ras is None else ras, view[:3, 0], -view[:3, 1])
    axis = view_axes(volume, orientation)[2]
    coordinate = _slice_coordinate(view, ras, volume, axis)
    count = volume.shape[2 - axis]
    if not -0.5 - _EDGE <= coordinate <= count - 0.5 + _EDGE:
        raise UserError("The view shows no slice of the volume: move it to where the volume is.")
    return aligned_plane(volume, orientation, nearest_slice(volume, axis, coordinate))


def view_kind(slice_node, volume: Volume) -> str:
    """ "axial", "coronal" or "sagittal" when the view shows one of the volume's own slices, else "oblique"."""
    return _orientation(array_from_matrix(slice_node.GetSliceToRAS()), volume) or "oblique"


def ras_at(slice_node, xy) -> np.ndarray:
    """World RAS (3,) of a position in the view, in pixels from its lower left corner."""
    return np.array(slice_node.GetXYToRAS().MultiplyPoint((float(xy[0]), float(xy[1]), 0.0, 1.0))[:3])


def _gradient(view: np.ndarray, volume: Volume) -> np.ndarray:
    """mm across the view for a step of one voxel along i, j, k."""
    normal = np.cross(view[:3, 0], view[:3, 1])
    return normal / np.linalg.norm(normal) @ volume.affine[:3, :3]


def _orientation(view: np.ndarray, volume: Volume) -> str | None:
    """The orientation whose slices the view runs along, None when it cuts across all of them."""
    gradient = np.abs(_gradient(view, volume))
    lengths = np.array(volume.shape[::-1])
    for orientation in ORIENTATIONS:
        across, down, slices = view_axes(volume, orientation)
        drift = gradient[across] * lengths[across] + gradient[down] * lengths[down]
        if drift <= _DRIFT * gradient[slices]:
            return orientation
    return None


def _slice_coordinate(view: np.ndarray, ras, volume: Volume, axis: int) -> float:
    """Voxel coordinate along `axis` of a point in the view, without one of where the view passes the volume's
    middle. On the edge of two slices, up to float noise, it is the upper one's."""
    if ras is not None:
        coordinate = volume.ras_to_ijk(ras)[axis]
    else:
        gradient = _gradient(view, volume)
        middle = (np.array(volume.shape[::-1]) - 1) / 2
        coordinate = middle[axis] + (volume.ras_to_ijk(view[:3, 3]) - middle) @ gradient / gradient[axis]
    edge = np.round(coordinate - 0.5) + 0.5
    return float(edge if abs(coordinate - edge) < _EDGE else coordinate)

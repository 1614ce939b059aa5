"""Prompts in space: the boxes and planes that go with them, and whether two prompts are the same."""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane, aligned_plane, oblique_plane, plane_through
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import Box3DPrompt, BoxPrompt, PointPrompt, Prompt, ScribblePrompt

View = str | SlicePlane

SAME = 1e-4  # mm: what files and matrices lose
FLAT = 1.01  # slice thicknesses: a box that thin is a box on one slice
_THIN = 0.5  # slice thicknesses of the solid box for a box on a slice


def same_prompt(a: Prompt, view_a: View | None, b: Prompt, view_b: View | None) -> bool:
    """Whether two prompts are the same up to rounding."""
    if type(a) is not type(b) or getattr(a, "positive", None) != getattr(b, "positive", None):
        return False
    if isinstance(view_a, SlicePlane) != isinstance(view_b, SlicePlane):
        return False
    if isinstance(view_a, SlicePlane):
        if view_a.key != view_b.key and not _same_plane(view_a, view_b):
            return False
    elif view_a != view_b:
        return False
    numbers = [_numbers(a), _numbers(b)]
    return numbers[0].shape == numbers[1].shape and np.allclose(*numbers, rtol=0, atol=SAME)


def slice_box(plane: SlicePlane, corners) -> BoxPrompt:
    """The box on a plane between two RAS corners (2, 3), always by the same two of its four corners."""
    a, b = np.asarray(corners, dtype=np.float64)
    across, along = np.abs((b - a) @ plane.right) / 2, np.abs((b - a) @ plane.down) / 2
    center = (a + b) / 2
    center = center - plane.distance(center) * plane.normal
    half = across * plane.right + along * plane.down
    return BoxPrompt(tuple(center - half), tuple(center + half))


def volume_box(plane: SlicePlane, corners) -> Box3DPrompt:
    """The 3-D box between two RAS corners, along a plane's directions.

    Corners on one slice make it as deep as its shorter side, centred on the slice.
    """
    a, b = np.asarray(corners, dtype=np.float64)
    axes = np.stack([plane.right, plane.down, plane.normal])
    size = np.abs(axes @ (b - a))
    if size[2] <= plane.thickness * FLAT:
        size[2] = max(size[:2].min(), 2 * plane.thickness)
    return Box3DPrompt(tuple((a + b) / 2), tuple(size), tuple(map(tuple, axes)))


def parallel_view(view: View | None, ras, volume: Volume) -> View | None:
    """The view for a prompt at `ras`: an oblique plane that does not run through it gives way to its parallel."""
    if isinstance(view, SlicePlane) and not np.all(view.contains(ras)):
        return oblique_plane(volume, ras, view.right, view.down)
    return view


def plane_at(view: View | None, ras, volume: Volume) -> SlicePlane | None:
    if isinstance(view, SlicePlane):
        return view
    try:
        return plane_through(volume, view or ORIENTATIONS[0], ras)
    except UserError:
        return None


def flat_box(prompt: BoxPrompt, view: View, volume: Volume) -> Box3DPrompt:
    """A box on a slice as a 3-D box so thin that it reaches no other slice."""
    corners = np.array([prompt.corner_a, prompt.corner_b])
    center = corners.mean(axis=0)
    plane = view if isinstance(view, SlicePlane) else plane_at(view, center, volume) or aligned_plane(volume, view, 0)
    axes = np.stack([plane.right, plane.down, plane.normal])
    size = np.abs(axes @ (corners[1] - corners[0]))
    size[2] = max(size[2], _THIN * plane.thickness)
    return Box3DPrompt(tuple(center), tuple(size), tuple(map(tuple, axes)))


def _numbers(prompt: Prompt) -> np.ndarray:
    if isinstance(prompt, BoxPrompt):
        return np.sort(np.array([prompt.corner_a, prompt.corner_b]), axis=0)
    if isinstance(prompt, Box3DPrompt):
        return np.array([prompt.center, prompt.size, *prompt.axes])
    if isinstance(prompt, (PointPrompt, ScribblePrompt)):
        return np.atleast_2d(np.array(prompt.ras))
    return np.asarray(prompt.mask, dtype=np.float64)


def _same_plane(a: SlicePlane, b: SlicePlane) -> bool:
    return a.shape == b.shape and all(
        np.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=SAME) for name in ("origin", "right", "down")
    )

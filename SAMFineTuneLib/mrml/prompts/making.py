"""Prompts from what the user clicked or drew in a slice view."""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.markups_nodes import View, slice_box, volume_box
from SAMFineTuneLib.prompts import MaskPrompt, PointPrompt, Prompt, ScribblePrompt, SegmentPrompts, on_planes

_ON_SLICE = 0.1  # mm: how far a point may be off a view that shows it


def prompt_of(kind: str, plane: SlicePlane, points: list) -> Prompt:
    """A prompt of a kind ("positive", "box", "scribble-", ...) from RAS points on a plane. Raises UserError."""
    if kind in ("positive", "negative"):
        return PointPrompt(points[0], kind == "positive")
    if kind in ("scribble+", "scribble-"):
        return ScribblePrompt(tuple(thinned(points, plane.pixel_size / 2)), kind == "scribble+")
    if kind in ("box", "box3d"):
        if len(points) < 2:
            raise UserError("A box needs two opposite corners; drag from one to the other.")
        return slice_box(plane, points[:2]) if kind == "box" else volume_box(plane, points[:2])
    raise ValueError(f'"{kind}" is no kind of prompt.')


def thinned(points: list, tolerance: float) -> list[tuple[float, float, float]]:
    """A stroke without the points that a straight line does without, at `tolerance` mm (Douglas and Peucker 1973)."""
    line = np.asarray(points, dtype=np.float64)
    keep = np.zeros(len(line), bool)
    keep[[0, -1]] = True
    pieces = [(0, len(line) - 1)]
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        far = _distances(line[first + 1 : last], line[first], line[last])
        worst = first + 1 + int(far.argmax())
        if far.max() > tolerance:
            keep[worst] = True
            pieces += [(first, worst), (worst, last)]
    return [tuple(map(float, point)) for point in line[keep]]


def view_of(plane: SlicePlane) -> View:
    """How the session names a plane: the orientation of the volume's own slices, or the oblique plane."""
    return plane.orientation if plane.index is not None else plane


def planes_of(volume: Volume, prompt: Prompt, view: View, name: str = "segment") -> list[str]:
    """Keys of the planes that a prompt lies on. Raises UserError when it cannot be placed."""
    alone = SegmentPrompts(name, 1, None, (prompt,))
    if isinstance(prompt, MaskPrompt):
        view = view_of(prompt.plane)
    orientation, planes = ("axial", (view,)) if isinstance(view, SlicePlane) else (view, ())
    return [plane.key for plane in on_planes(volume, alone, orientation, planes, negative_only=True)]


def middle_of(prompt: Prompt) -> tuple[float, float, float]:
    """Where a prompt is, in RAS mm."""
    if isinstance(prompt, PointPrompt):
        return prompt.ras
    if isinstance(prompt, ScribblePrompt):
        return tuple(np.mean(prompt.ras, axis=0))
    if isinstance(prompt, MaskPrompt):
        return tuple(prompt.plane.pixel_to_ras(np.argwhere(prompt.mask).mean(axis=0)[::-1]))
    return prompt.center if hasattr(prompt, "center") else tuple(np.add(prompt.corner_a, prompt.corner_b) / 2)


def shows(slice_node, ras) -> bool:
    """Whether a point lies on the slice of a view."""
    matrix = slice_node.GetSliceToRAS()
    normal, origin = ([matrix.GetElement(row, column) for row in range(3)] for column in (2, 3))
    return bool(abs(np.subtract(ras, origin) @ np.array(normal)) <= _ON_SLICE)


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of points (N, 3) from the line between two others, mm."""
    direction, offsets = end - start, points - start
    length = direction @ direction
    along = np.clip(offsets @ direction / length, 0, 1) if length > 0 else np.zeros(len(points))
    return np.linalg.norm(offsets - along[:, None] * direction, axis=1)

"""From prompts in RAS to prompts in the pixels of slice planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import (
    SlicePlane,
    aligned_plane,
    box_corners,
    cross_section,
    format_ras,
    how_outside,
    nearest_slice,
    oblique_plane,
    require_inside,
    view_axes,
)
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts.prompts import (
    Box3DPrompt,
    BoxPrompt,
    MaskPrompt,
    PlanePrompts,
    PointPrompt,
    PromptSet,
    ScribblePrompt,
    SegmentPrompts,
)

POINTS_PER_STROKE = 8  # on one slice: more points slow SAM's decoder down and say nothing new
_STROKE_SPACING = 5.0  # pixels: closer points of a stroke say the same
_EMPTY = 1e-3  # pixels: a box that thin has no area
_TOUCH = 1e-3  # mm: how close a 3-D box's face counts as on the slice
_NARROW = 0.5  # pixels: where a 3-D box narrows to less than this, its tip has ended


def on_planes(
    volume: Volume,
    segment: SegmentPrompts,
    orientation: str = "axial",
    planes: Sequence[SlicePlane] = (),
    negative_only: bool = False,
) -> dict[SlicePlane, PlanePrompts]:
    """The segment's prompts by slice plane, planes in order, one entry for each plane that has any.

    They go to the volume's own slices of `orientation`, or, when (oblique) `planes` are given, to these
    alone. A point goes to the slice it lies in. A box whose corners lie in one slice, half a slice apart at
    most, belongs to the slice through its middle, and so does a box that is flat in the patient's axes on a
    tilted volume (`box_remark` says so); any other is a 3-D box along the volume's axes, from the slice of the
    one corner to that of the other. A 3-D box gives every slice it reaches the bounding
    rectangle of what the slice cuts from it; where a slice has a box of its own, that one counts. Boxes are
    clipped to the picture. A stroke becomes up to POINTS_PER_STROKE points a slice.

    Raises UserError, naming segment and prompt: outside the volume, not on the given planes, no area, two
    boxes or masks for one slice, and, unless `negative_only`, a slice with nothing but negative points.
    """
    slices = _Slices(volume, segment.name, orientation, tuple(planes))
    counts: dict[type, int] = {}
    for prompt in segment.prompts:
        counts[type(prompt)] = counts.get(type(prompt), 0) + 1
        what = f"{_NAMES[type(prompt)]} {counts[type(prompt)]} of segment {segment.name}"
        _ADD[type(prompt)](slices, prompt, what)
    placed = slices.finish()
    for plane, prompts in placed.items():
        if not prompts.says_where and not negative_only:
            raise UserError(
                f"Segment {segment.name} has only negative points on {plane}: add a positive point or a box."
            )
    return placed


def prompt_planes(volume: Volume, prompts: PromptSet) -> tuple[SlicePlane, ...]:
    """The planes a prompt set is bound to: its oblique view, or none when it uses the volume's own slices."""
    view = prompts.view
    return () if view is None else (oblique_plane(volume, view.origin, view.right, view.down),)


@dataclass
class _Collected:
    """What one plane has received so far."""

    plane: SlicePlane
    points: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    box: np.ndarray | None = None
    box_3d: np.ndarray | None = None
    mask: np.ndarray | None = None


class _Slices:
    """Collects prompts by plane; planes are made as they are needed."""

    def __init__(self, volume: Volume, segment: str, orientation: str, planes: tuple[SlicePlane, ...]):
        self.volume = volume
        self.segment = segment
        self.orientation = orientation
        self.planes = planes
        self.axis = view_axes(volume, orientation)[2]
        self.aligned: dict[int, SlicePlane] = {}
        self.collected: dict[str, _Collected] = {}

    def on(self, plane: SlicePlane) -> _Collected:
        return self.collected.setdefault(plane.key, _Collected(plane))

    def through(self, ras, what: str) -> _Collected:
        """The plane a point lies in."""
        require_inside(self.volume, ras, what)
        if not self.planes:
            return self.on(self.slice_at(self.volume.ras_to_ijk(ras)[self.axis]))
        nearest = min(self.planes, key=lambda plane: abs(float(plane.distance(ras))))
        if not nearest.contains(ras):
            raise UserError(
                f"{what} at {format_ras(ras)} lies {abs(float(nearest.distance(ras))):.1f} mm off {nearest}: "
                "place it on the plane, or leave the plane out of the prompts."
            )
        return self.on(nearest)

    def slice_at(self, coordinate: float) -> SlicePlane:
        """The volume's own slice at a voxel coordinate across the slices."""
        index = nearest_slice(self.volume, self.axis, coordinate)
        if index not in self.aligned:
            self.aligned[index] = aligned_plane(self.volume, self.orientation, index)
        return self.aligned[index]

    def between(self, low: float, high: float) -> list[SlicePlane]:
        """The volume's own slices from one voxel coordinate across the slices to another."""
        return [self.slice_at(at) for at in range(self.slice_at(low).index, self.slice_at(high).index + 1)]

    def finish(self) -> dict[SlicePlane, PlanePrompts]:
        in_order = sorted(self.collected.values(), key=lambda one: one.plane.index or 0)
        return {
            one.plane: PlanePrompts(
                np.array(one.points, dtype=np.float32).reshape(-1, 2),
                np.array(one.labels, dtype=np.int64),
                one.box if one.box is not None else one.box_3d,
                one.mask,
            )
            for one in in_order
        }


def _add_point(slices: _Slices, prompt: PointPrompt, what: str) -> None:
    one = slices.through(prompt.ras, what)
    one.points.append(one.plane.ras_to_pixel(prompt.ras))
    one.labels.append(int(prompt.positive))


def _add_scribble(slices: _Slices, prompt: ScribblePrompt, what: str) -> None:
    stroke = np.array(prompt.ras)
    runs: list[tuple[_Collected, list[np.ndarray]]] = []  # pieces of the stroke that stay on one plane
    for point in _along(stroke, float(slices.volume.spacing.min()) / 2):
        one = slices.through(point, what)
        if not runs or runs[-1][0] is not one:
            runs.append((one, []))
        runs[-1][1].append(one.plane.ras_to_pixel(point))
    for one, pixels in runs:
        line = np.array(pixels)
        length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
        count = int(np.clip(length // _STROKE_SPACING + 1, 1, POINTS_PER_STROKE))
        chosen = [len(line) // 2] if count == 1 else np.rint(np.linspace(0, len(line) - 1, count)).astype(int)
        one.points.extend(line[chosen])
        one.labels.extend([int(prompt.positive)] * count)


def _along(corners: np.ndarray, step: float) -> np.ndarray:
    """Points (N, 3) evenly along a polyline, no further apart than `step`, both ends included."""
    reached = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    places = np.linspace(0.0, reached[-1], int(np.ceil(reached[-1] / step)) + 1)
    return np.stack([np.interp(places, reached, corners[:, axis]) for axis in range(3)], axis=1)


def _add_box(slices: _Slices, prompt: BoxPrompt, what: str) -> None:
    corners = np.array([prompt.corner_a, prompt.corner_b])
    if slices.planes:
        one = _plane_of_box(slices, corners, what)
        _set_box(slices, one, _rectangle(one.plane, corners, what), what)
        return
    volume, axis = slices.volume, slices.axis
    ends = volume.ras_to_ijk(corners)[:, axis]
    last = volume.shape[2 - axis] - 0.5
    if max(ends) < -0.5 or min(ends) > last:
        _refuse_outside(volume, corners, what)
    if abs(ends[1] - ends[0]) <= 0.5 or _is_flat(volume, corners, slices.orientation):
        one = slices.on(slices.slice_at(ends.mean()))
        _set_box(slices, one, _rectangle(one.plane, corners, what), what)
        return
    reached = False
    for plane in slices.between(min(ends), max(ends)):
        on_slice = volume.ras_to_ijk(corners)
        on_slice[:, axis] = plane.index  # the corners, moved along the volume's own axis onto this slice
        reached |= _set_box_3d(slices, plane, _rectangle(plane, volume.ijk_to_ras(on_slice), what), what)
    if not reached:
        _refuse_outside(volume, corners, what)


def box_remark(volume: Volume, prompt: BoxPrompt, orientation: str) -> str | None:
    """What to tell about a box that is flat in the patient's axes, as an untilted view shows it, on a tilted volume.

    None for a box that lies on a slice, or that spans slices because its corners were given so.
    """
    corners = np.array([prompt.corner_a, prompt.corner_b])
    axis = view_axes(volume, orientation)[2]
    ends = volume.ras_to_ijk(corners)[:, axis]
    if abs(ends[1] - ends[0]) <= 0.5 or not _is_flat(volume, corners, orientation):
        return None
    first, middle, last = (nearest_slice(volume, axis, at) for at in (ends.min(), ends.mean(), ends.max()))
    if first == last:
        return None
    letter = "RAS"[_across(orientation)]
    return (
        f"The box's corners have one {letter}, but the volume's slices are tilted against it, and the box crosses "
        f"{orientation} slices {first} to {last}; {aligned_plane(volume, orientation, middle)} through its centre is "
        f"used. For a box over several slices give the corners different {letter}."
    )


def _is_flat(volume: Volume, corners: np.ndarray, orientation: str) -> bool:
    """Whether two corners lie at one level of the patient's axis across the slices, less than half a slice apart."""
    axis = view_axes(volume, orientation)[2]
    return abs(np.diff(corners[:, _across(orientation)])[0]) <= 0.5 * volume.spacing[axis]


def _across(orientation: str) -> int:
    """The patient's axis (0 R, 1 A, 2 S) across the slices of an orientation."""
    return {"sagittal": 0, "coronal": 1, "axial": 2}[orientation]


def _plane_of_box(slices: _Slices, corners: np.ndarray, what: str) -> _Collected:
    middle = corners.mean(axis=0)
    nearest = min(slices.planes, key=lambda plane: abs(float(plane.distance(middle))))
    if not nearest.contains(corners).all():
        off = float(np.abs(nearest.distance(corners)).max())
        raise UserError(f"{what} has a corner {off:.1f} mm off {nearest}: place both corners on the plane.")
    return slices.on(nearest)


def _add_box_3d(slices: _Slices, prompt: Box3DPrompt, what: str) -> None:
    volume = slices.volume
    half = np.array(prompt.size) / 2
    corners = prompt.center + box_corners(-half, half) @ np.array(prompt.axes)
    ijk = volume.ras_to_ijk(corners)
    if (ijk.max(axis=0) < -0.5).any() or (ijk.min(axis=0) > np.array(volume.shape[::-1]) - 0.5).any():
        _refuse_outside(volume, corners, what)
    if slices.planes:
        candidates = list(slices.planes)
    else:
        candidates = slices.between(ijk[:, slices.axis].min(), ijk[:, slices.axis].max())
    reached = False
    for plane in candidates:
        cut = _cut(plane, corners)
        if len(cut) < 3:
            continue
        reached |= _set_box_3d(slices, plane, _bounds(plane.ras_to_pixel(cut)), what)
    if reached:
        return
    # Thinner than the gap between two slices: it belongs to the slice that its centre lies in.
    one = slices.through(prompt.center, f"The centre of {what}")
    if not _set_box_3d(slices, one.plane, _bounds(one.plane.ras_to_pixel(corners)), what):
        raise UserError(f"{what} has no area on {one.plane}: make it larger.")


def _cut(plane: SlicePlane, corners: np.ndarray) -> np.ndarray:
    """Corners of what the plane cuts from a box; a box that ends on the plane reaches it, noise or not."""
    distances = plane.distance(corners)
    inward = np.clip(0.0, distances.min() + _TOUCH / 2, distances.max() - _TOUCH / 2)
    origin = plane.origin + inward * plane.normal if abs(inward) <= _TOUCH else plane.origin
    return cross_section(corners, origin, plane.normal)


def _add_mask(slices: _Slices, prompt: MaskPrompt, what: str) -> None:
    plane = prompt.plane
    if slices.planes:
        fits = [own for own in slices.planes if own.key == plane.key]
    elif plane.index is not None and plane.orientation == slices.orientation:
        fits = [aligned_plane(slices.volume, plane.orientation, plane.index)]
    else:
        fits = []
    if not fits or fits[0].shape != plane.shape or not np.allclose(fits[0].origin, plane.origin, atol=0.01):
        raise UserError(f"{what} was drawn on {plane}, which is not here: draw it again.")
    one = slices.on(fits[0])
    if one.mask is not None:
        raise UserError(f"Segment {slices.segment} has two mask prompts on {plane}: keep one.")
    one.mask = prompt.mask


def _refuse_outside(volume: Volume, corners: np.ndarray, what: str) -> None:
    raise UserError(
        f"{what} from {format_ras(corners[0])} to {format_ras(corners[-1])} "
        f"{how_outside(volume, np.mean(corners, axis=0))}."
    )


def _rectangle(plane: SlicePlane, corners: np.ndarray, what: str) -> np.ndarray:
    box = _bounds(plane.ras_to_pixel(corners))
    if min(box[2] - box[0], box[3] - box[1]) < _EMPTY:
        raise UserError(
            f"{what} has no area on {plane}: give two opposite corners, or choose the orientation "
            "whose slice it lies on."
        )
    return box


def _bounds(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])


def _clipped(plane: SlicePlane, box: np.ndarray) -> np.ndarray:
    rows, columns = plane.shape
    return np.clip(box, -0.5, [columns - 0.5, rows - 0.5] * 2)


def _set_box(slices: _Slices, one: _Collected, box: np.ndarray, what: str) -> None:
    clipped = _clipped(one.plane, box)
    if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < _EMPTY:
        _refuse_outside(slices.volume, one.plane.pixel_to_ras(box.reshape(2, 2)), what)
    if one.box is not None:
        raise UserError(
            f"Segment {slices.segment} has two boxes on {one.plane}: "
            "keep one, or make the other a segment of its own."
        )
    one.box = clipped


def _set_box_3d(slices: _Slices, plane: SlicePlane, box: np.ndarray, what: str) -> bool:
    """False when next to nothing of the box is on the plane."""
    clipped = _clipped(plane, box)
    if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < _NARROW:
        return False
    one = slices.on(plane)
    if one.box_3d is not None:
        raise UserError(
            f"Segment {slices.segment} has two 3-D boxes on {plane}: "
            "keep one, or make the other a segment of its own."
        )
    one.box_3d = clipped
    return True


_NAMES = {
    PointPrompt: "Point",
    BoxPrompt: "Box",
    Box3DPrompt: "3-D box",
    ScribblePrompt: "Scribble",
    MaskPrompt: "Mask",
}
_ADD = {
    PointPrompt: _add_point,
    BoxPrompt: _add_box,
    Box3DPrompt: _add_box_3d,
    ScribblePrompt: _add_scribble,
    MaskPrompt: _add_mask,
}

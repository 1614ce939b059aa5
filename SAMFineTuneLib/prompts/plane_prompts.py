"""Projects prompts in RAS onto slice planes, where models take them in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import (
    SlicePlane,
    aligned_plane,
    format_ras,
    nearest_slice,
    require_inside,
    view_axes,
)
from SAMFineTuneLib.images.volume import Volume

if TYPE_CHECKING:
    from SAMFineTuneLib.prompts.prompt_kind import Prompt
    from SAMFineTuneLib.prompts.prompt_set import SegmentPrompts


@dataclass(frozen=True, eq=False)
class PlanePrompts:
    """The prompts of one segment on a plane, in pixels: x = column, y = row, centres at integers.

    Args:
        points: (N, 2) float32.
        labels: (N,) int64, 1 inside, 0 outside.
        box: (4,) float32 x0, y0, x1, y1, or None.
        mask: a rough shape, bool (rows, columns), or None.
        region: what the answer must be, int8 (rows, columns), or None: 1 belongs to the structure, -1 does not, 0 is
            for the model to say.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    box: np.ndarray | None = None
    mask: np.ndarray | None = None
    region: np.ndarray | None = None

    def __post_init__(self) -> None:
        points = np.asarray(self.points, dtype=np.float32).reshape(-1, 2)
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        if len(points) != len(labels):
            raise ValueError(f"{len(points)} points but {len(labels)} labels.")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", labels)
        if self.box is not None:
            object.__setattr__(self, "box", np.asarray(self.box, dtype=np.float32).reshape(4))
        if self.mask is not None:
            object.__setattr__(self, "mask", np.asarray(self.mask, dtype=bool))

    @property
    def says_where(self) -> bool:
        """Whether any prompt is positive: without one, there is nothing to segment."""
        said = bool(self.labels.any()) or self.box is not None or self.mask is not None
        return said or (self.region is not None and bool((self.region > 0).any()))

    def within_regions(self, mask: np.ndarray) -> np.ndarray:
        """A mask, bool (rows, columns), made to agree with `region`."""
        return mask if self.region is None else (mask | (self.region > 0)) & (self.region >= 0)


@dataclass
class OnPlane:
    """What one plane has received so far. `box` is the plane's own, `box_3d` what it cuts from a 3-D box."""

    plane: SlicePlane
    points: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    box: np.ndarray | None = None
    box_3d: np.ndarray | None = None
    mask: np.ndarray | None = None
    region: np.ndarray | None = None

    def add_points(self, pixels: Sequence[np.ndarray], positive: bool) -> None:
        """Add points (N, 2), x and y, inside or outside the structure."""
        self.points.extend(pixels)
        self.labels.extend([int(positive)] * len(pixels))

    def add_region(self, pixels: np.ndarray, positive: bool) -> None:
        """Declare pixels, bool (rows, columns), part of the structure or not. The last one counts."""
        if self.region is None:
            self.region = np.zeros(self.plane.shape, np.int8)
        self.region[pixels] = 1 if positive else -1


class PromptsByPlane:
    """Collects prompts of a segment by plane; planes are made as they are needed.

    Args:
        segment: its name, for messages.
        orientation: whose slices of the volume are used, unless `planes` are given.
        planes: (oblique) planes that all prompts have to lie on, or none.
    """

    def __init__(self, volume: Volume, segment: str, orientation: str, planes: tuple[SlicePlane, ...]):
        self.volume = volume
        self.segment = segment
        self.orientation = orientation
        self.planes = planes
        self.axis = view_axes(volume, orientation)[2]
        self._aligned: dict[int, SlicePlane] = {}
        self._collected: dict[str, OnPlane] = {}

    def on(self, plane: SlicePlane) -> OnPlane:
        """What a plane has received so far."""
        return self._collected.setdefault(plane.key, OnPlane(plane))

    def through(self, ras, what: str) -> OnPlane:
        """What the plane has received that a point lies in. Raises UserError when there is no such plane."""
        require_inside(self.volume, ras, what)
        if not self.planes:
            return self.on(self.slice_at(self.volume.ras_to_ijk(ras)[self.axis]))
        nearest = self._nearest(ras)
        if not nearest.contains(ras):
            raise UserError(
                f"{what} at {format_ras(ras)} lies {abs(float(nearest.distance(ras))):.1f} mm off {nearest}: "
                "place it on the plane, or leave the plane out of the prompts."
            )
        return self.on(nearest)

    def plane_of(self, points: np.ndarray, what: str, one: str, every: str) -> SlicePlane | None:
        """The one plane that points (N, 3) lie on; None when they span several slices.

        Points lie on one slice when they are half a slice apart at most, or are flat in the patient's axes on a tilted
        volume. Raises UserError when they are off the given planes; `one` and `every` name the points there.
        """
        if self.planes:
            nearest = self._nearest(points.mean(axis=0))
            if not nearest.contains(points).all():
                off = float(np.abs(nearest.distance(points)).max())
                raise UserError(f"{what} has {one} {off:.1f} mm off {nearest}: place {every} on the plane.")
            return nearest
        across = self.volume.ras_to_ijk(points)[:, self.axis]
        flat = np.ptp(points[:, patient_axis(self.orientation)]) <= 0.5 * self.volume.spacing[self.axis]
        outside = max(across) < -0.5 or min(across) > self.volume.shape[2 - self.axis] - 0.5
        return None if outside or (np.ptp(across) > 0.5 and not flat) else self.slice_at(across.mean())

    def slice_at(self, coordinate: float) -> SlicePlane:
        """The volume's own slice at a voxel coordinate across the slices."""
        index = nearest_slice(self.volume, self.axis, coordinate)
        if index not in self._aligned:
            self._aligned[index] = aligned_plane(self.volume, self.orientation, index)
        return self._aligned[index]

    def between(self, low: float, high: float) -> list[SlicePlane]:
        """The volume's own slices from one voxel coordinate across the slices to another."""
        return [self.slice_at(at) for at in range(self.slice_at(low).index, self.slice_at(high).index + 1)]

    def result(self) -> dict[SlicePlane, PlanePrompts]:
        """What was collected, planes in order."""
        in_order = sorted(self._collected.values(), key=lambda one: one.plane.index or 0)
        return {
            one.plane: PlanePrompts(
                np.array(one.points, dtype=np.float32).reshape(-1, 2),
                np.array(one.labels, dtype=np.int64),
                one.box if one.box is not None else one.box_3d,
                one.mask,
                one.region,
            )
            for one in in_order
        }

    def _nearest(self, ras) -> SlicePlane:
        return min(self.planes, key=lambda plane: abs(float(plane.distance(ras))))


def patient_axis(orientation: str) -> int:
    """The patient's axis (0 R, 1 A, 2 S) across the slices of an orientation."""
    return {"sagittal": 0, "coronal": 1, "axial": 2}[orientation]


def on_planes(
    volume: Volume,
    segment: SegmentPrompts,
    orientation: str = "axial",
    planes: Sequence[SlicePlane] = (),
    negative_only: bool = False,
) -> dict[SlicePlane, PlanePrompts]:
    """The segment's prompts by slice plane, planes in order, one entry for each plane that has any.

    Prompts go to the volume's own slices of `orientation`, or, when (oblique) `planes` are given, to these alone. A
    point goes to the slice it lies in, a lasso to the slice it was drawn on. A box whose corners lie in one slice,
    at most half a slice apart, belongs to the slice through its middle, and so does a box that is flat in the
    patient's axes on a tilted volume (`BoxPrompt.remark` says so); any other is a 3-D box along the volume's axes,
    from the slice of the one corner to that of the other. A 3-D box gives every slice it reaches the bounding
    rectangle of what the slice cuts from it; where a slice has a box of its own, that one counts. Boxes are clipped
    to the picture. A scribble becomes up to `scribble_prompt.POINTS_PER_STROKE` points on each slice.

    Raises:
        UserError: names segment and prompt: outside the volume, not on the given planes, no area, two boxes or masks
            for one slice, and, unless `negative_only`, a slice with nothing but negative prompts.
    """
    found = PromptsByPlane(volume, segment.name, orientation, tuple(planes))
    counts: dict[str, int] = {}
    for prompt in segment.prompts:
        counts[prompt.noun] = counts.get(prompt.noun, 0) + 1
        prompt.project(found, f"{prompt.noun} {counts[prompt.noun]} of segment {segment.name}")
    placed = found.result()
    for plane, prompts in placed.items():
        if not prompts.says_where and not negative_only:
            raise UserError(
                f"Segment {segment.name} has only negative prompts on {plane}: add a positive point or a box."
            )
    return placed


def placed_view(prompt: Prompt, view: str | SlicePlane) -> str | SlicePlane:
    """The orientation, or else the oblique plane, on which a prompt lies that was placed in a view."""
    view = prompt.own_plane or view
    return view.orientation if isinstance(view, SlicePlane) and view.index is not None else view


def planes_of(volume: Volume, prompt: Prompt, view: str | SlicePlane, segment: str) -> dict[SlicePlane, PlanePrompts]:
    """One prompt by slice plane. `segment` is the name of its segment. Raises UserError when it cannot be placed."""
    view = placed_view(prompt, view)
    orientation, planes = ("axial", (view,)) if isinstance(view, SlicePlane) else (view, ())
    found = PromptsByPlane(volume, segment, orientation, planes)
    prompt.project(found, f"{prompt.noun} 1 of segment {segment}")
    return found.result()

"""Projects prompts in RAS onto slice planes, where models take them in pixels."""

from __future__ import annotations

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


@dataclass(frozen=True, eq=False)
class PlanePrompts:
    """The prompts of one segment on a plane, in pixels: x = column, y = row, centres at integers.

    Args:
        points: (N, 2) float32.
        labels: (N,) int64, 1 inside, 0 outside.
        box: (4,) float32 x0, y0, x1, y1, or None.
        mask: a rough shape, bool (rows, columns), or None.
        region: pixels that are decided, int8 (rows, columns), or None: 1 belongs to the structure, -1 does not, the
            model decides about 0.
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


class PlanesOfView:
    """The planes on which a prompt that was placed in a view may lie.

    Args:
        volume: the volume.
        view: the orientation whose slices of the volume they are, or the one oblique plane.
    """

    def __init__(self, volume: Volume, view: str | SlicePlane):
        self.volume = volume
        self.oblique = view if isinstance(view, SlicePlane) else None
        self.orientation = "axial" if isinstance(view, SlicePlane) else view
        self.axis = view_axes(volume, self.orientation)[2]

    def through(self, ras, what: str) -> SlicePlane:
        """The plane that a point lies in. `what` names it. Raises UserError when there is no such plane."""
        require_inside(self.volume, ras, what)
        plane = self.oblique
        if plane is None:
            return self.slice_at(self.volume.ras_to_ijk(ras)[self.axis])
        if not plane.contains(ras):
            raise UserError(
                f"{what} at {format_ras(ras)} lies {abs(float(plane.distance(ras))):.1f} mm off {plane}: "
                "place it on the plane, or leave the plane out of the prompts."
            )
        return plane

    def plane_of(self, points: np.ndarray, what: str, one: str, every: str) -> SlicePlane | None:
        """The one plane that points (N, 3) lie on; None when they span several slices.

        Points lie on one slice when they are half a slice apart at most, or are flat in the patient's axes on a tilted
        volume. Raises UserError when they are off the oblique plane; `one` and `every` name the points there.
        """
        plane = self.oblique
        if plane is not None:
            if not plane.contains(points).all():
                off = float(np.abs(plane.distance(points)).max())
                raise UserError(f"{what} has {one} {off:.1f} mm off {plane}: place {every} on the plane.")
            return plane
        across = self.volume.ras_to_ijk(points)[:, self.axis]
        flat = np.ptp(points[:, patient_axis(self.orientation)]) <= 0.5 * self.volume.spacing[self.axis]
        outside = max(across) < -0.5 or min(across) > self.volume.shape[2 - self.axis] - 0.5
        return None if outside or (np.ptp(across) > 0.5 and not flat) else self.slice_at(across.mean())

    def slice_at(self, coordinate: float) -> SlicePlane:
        """The volume's own slice at a voxel coordinate across the slices."""
        return aligned_plane(self.volume, self.orientation, nearest_slice(self.volume, self.axis, coordinate))

    def between(self, low: float, high: float) -> list[SlicePlane]:
        """The oblique plane, or the volume's own slices from one voxel coordinate across the slices to another."""
        if self.oblique is not None:
            return [self.oblique]
        return [self.slice_at(at) for at in range(self.slice_at(low).index, self.slice_at(high).index + 1)]


def patient_axis(orientation: str) -> int:
    """The patient's axis (0 R, 1 A, 2 S) across the slices of an orientation."""
    return {"sagittal": 0, "coronal": 1, "axial": 2}[orientation]


def placed_view(prompt: Prompt, view: str | SlicePlane) -> str | SlicePlane:
    """The orientation, or else the oblique plane, of a prompt that was placed in a view."""
    view = prompt.own_plane or view
    return view.orientation if isinstance(view, SlicePlane) and view.index is not None else view


def planes_of(
    volume: Volume, prompt: Prompt, view: str | SlicePlane, segment: str = "", number: int = 1
) -> dict[SlicePlane, PlanePrompts]:
    """The parts of a prompt on slice planes, in the order of the planes.

    A prompt goes to the volume's own slices of an orientation, or to an oblique plane alone. A point goes to the slice
    it lies in, a lasso to the slice it was drawn on. A box whose corners lie in one slice, at most half a slice apart,
    belongs to the slice through its middle, and so does a box that is flat in the patient's axes on a tilted volume
    (`BoxPrompt.remark` says so); any other is a 3-D box along the volume's axes, from the slice of the one corner to
    that of the other. A 3-D box gives every slice it reaches the bounding rectangle of what the slice cuts from it.
    Boxes are clipped to the picture. A scribble becomes up to `scribble_prompt.POINTS_PER_STROKE` points on each slice.

    Args:
        volume: the volume.
        prompt: the prompt.
        view: the orientation, or the plane of the view in which it was placed.
        segment: the name of its segment, for messages.
        number: which of the segment's prompts of its kind it is, for messages.

    Raises:
        UserError: it lies outside the volume or off the plane, or has no area.
    """
    planes = PlanesOfView(volume, placed_view(prompt, view))
    found = prompt.project(planes, f"{prompt.noun} {number} of segment {segment}")
    return dict(sorted(found.items(), key=lambda item: item[0].index or 0))

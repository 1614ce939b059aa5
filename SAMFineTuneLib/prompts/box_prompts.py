"""Boxes on a slice, and boxes in three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    view_axes,
)
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts.checked_json import Coordinates, mapping, numbers, required, vectors
from SAMFineTuneLib.prompts.plane_prompts import PlanePrompts, PlanesOfView, patient_axis
from SAMFineTuneLib.prompts.prompt_kind import Marker, Markup, Prompt, Ras, Tool, checked_ras, prompt_kind

_EMPTY = 1e-3  # pixels: a thinner box has no area
_TOUCH = 1e-3  # mm: a 3-D box whose face is closer to a slice reaches it
_NARROW = 0.5  # pixels: a cut through a 3-D box that is narrower does not count
_FLAT = 1.01  # slice thicknesses: an ROI that is not thicker is a box on one slice
_THIN = 0.5  # slice thicknesses of the ROI that stands for a box on a slice


@prompt_kind
@dataclass(frozen=True)
class BoxPrompt(Prompt):
    """Two opposite corners of a box on a slice; on different slices they span one along the volume's axes."""

    corner_a: Ras
    corner_b: Ras

    list_name = "boxes"
    noun = "Box"
    markers = (Marker("box", "ROI", "box"),)
    tools = (Tool("box", "Box", "Box", "O", "box", "Drag a box tightly around the structure."),)

    def __post_init__(self) -> None:
        for name in ("corner_a", "corner_b"):
            object.__setattr__(self, name, checked_ras(getattr(self, name), "A box corner"))

    @property
    def anchor(self) -> Ras:
        return tuple(map(float, np.mean([self.corner_a, self.corner_b], axis=0)))

    @property
    def geometry(self) -> np.ndarray:
        return np.sort(np.array([self.corner_a, self.corner_b]), axis=0)

    def project(self, planes: PlanesOfView, what: str) -> dict[SlicePlane, PlanePrompts]:
        corners = np.array([self.corner_a, self.corner_b])
        plane = planes.plane_of(corners, what, "a corner", "both corners")
        if plane is not None:
            box = _rectangle(plane, corners, what)
            found = _boxes(plane, box, _EMPTY)
            corners = plane.pixel_to_ras(box.reshape(2, 2))
        else:
            volume, axis, found = planes.volume, planes.axis, {}
            on_slice = volume.ras_to_ijk(corners)
            ends = sorted(on_slice[:, axis])
            outside = ends[1] < -0.5 or ends[0] > volume.shape[2 - axis] - 0.5
            for plane in [] if outside else planes.between(*ends):
                on_slice[:, axis] = plane.index  # the corners, moved along the volume's own axis onto this slice
                found |= _boxes(plane, _rectangle(plane, volume.ijk_to_ras(on_slice), what), _NARROW)
        if not found:
            _refuse_outside(planes.volume, corners, what)
        return found

    def remark(self, volume: Volume, orientation: str) -> str | None:
        """A note about a box that is flat in the patient's axes, as from an untilted view, on a tilted volume."""
        corners = np.array([self.corner_a, self.corner_b])
        axis = view_axes(volume, orientation)[2]
        ends = volume.ras_to_ijk(corners)[:, axis]
        planes = PlanesOfView(volume, orientation)
        if abs(ends[1] - ends[0]) <= 0.5 or planes.plane_of(corners, "", "", "") is None:
            return None
        first, middle, last = (nearest_slice(volume, axis, at) for at in (ends.min(), ends.mean(), ends.max()))
        if first == last:
            return None
        letter = "RAS"[patient_axis(orientation)]
        return (
            f"The box's corners have one {letter}, but the volume's slices are tilted against it, and the box crosses "
            f"{orientation} slices {first} to {last}; {aligned_plane(volume, orientation, middle)} through its centre "
            f"is used. For a box over several slices give the corners different {letter}."
        )

    def to_json(self) -> dict[str, Any]:
        return {"corners": [list(self.corner_a), list(self.corner_b)]}

    @classmethod
    def from_json(cls, values: Any, where: str, coordinates: Coordinates) -> BoxPrompt:
        values = mapping(values, where, ("corners",))
        return cls(*coordinates.points(required(values, "corners", where), f"{where}.corners", 2))

    def to_markup(self, plane: SlicePlane) -> Markup:
        """An ROI so thin that it reaches no other slice."""
        axes = np.stack([plane.right, plane.down, plane.normal])
        size = np.abs(axes @ np.subtract(self.corner_b, self.corner_a))
        size[2] = max(size[2], _THIN * plane.thickness)
        return Box3DPrompt(self.anchor, tuple(size), tuple(map(tuple, axes))).to_markup(plane)

    @classmethod
    def drawn(cls, plane: SlicePlane, points: Sequence[Ras], positive: bool) -> BoxPrompt:
        return box_on_slice(plane, _two_corners(points))


@prompt_kind
@dataclass(frozen=True)
class Box3DPrompt(Prompt):
    """A box of `size` mm along `axes` (three directions in RAS, one per box axis) around `center`."""

    center: Ras
    size: Ras
    axes: tuple[Ras, Ras, Ras] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    list_name = "boxes_3d"
    noun = "3-D box"
    markers = BoxPrompt.markers
    markup_types = ("ROI",)
    tools = (
        Tool("box3d", "3-D box", "Box3D", "Shift+O", "box", "Drag a box, then pull its handles in the other views."),
    )
    on_one_slice = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", checked_ras(self.center, "A 3-D box's centre"))
        size = checked_ras(self.size, "A 3-D box's size")
        if min(size) < 0 or sum(length > 0 for length in size) < 2:
            raise UserError("A 3-D box is empty: its size needs three lengths in mm, at most one of them 0.")
        axes = np.array([checked_ras(axis, "A 3-D box's axis") for axis in self.axes], dtype=np.float64)
        lengths = np.linalg.norm(axes, axis=1) if axes.shape == (3, 3) else np.zeros(1)
        if lengths.min() == 0 or abs(np.linalg.det(axes / lengths[:, None])) < 1e-3:
            raise UserError("A 3-D box needs three axes in different directions.")
        unit = axes / lengths[:, None]
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "axes", tuple(tuple(float(x) for x in axis) for axis in unit))

    @property
    def anchor(self) -> Ras:
        return self.center

    def project(self, planes: PlanesOfView, what: str) -> dict[SlicePlane, PlanePrompts]:
        volume = planes.volume
        half = np.array(self.size) / 2
        corners = self.center + box_corners(-half, half) @ np.array(self.axes)
        ijk = volume.ras_to_ijk(corners)
        if (ijk.max(axis=0) < -0.5).any() or (ijk.min(axis=0) > np.array(volume.shape[::-1]) - 0.5).any():
            _refuse_outside(volume, corners, what)
        across = ijk[:, planes.axis]
        found = {}
        for plane in planes.between(across.min(), across.max()):
            cut = _cut(plane, corners)
            if len(cut) >= 3:
                found |= _boxes(plane, _bounds(plane.ras_to_pixel(cut)), _NARROW)
        if not found:  # thinner than the gap between two slices: it belongs to the slice that its centre lies in
            plane = planes.through(self.center, f"The centre of {what}")
            found = _boxes(plane, _bounds(plane.ras_to_pixel(corners)), _NARROW)
        if not found:
            raise UserError(f"{what} has no area on {plane}: make it larger.")
        return found

    def to_json(self) -> dict[str, Any]:
        return {"center": list(self.center), "size": list(self.size), "axes": [list(axis) for axis in self.axes]}

    @classmethod
    def from_json(cls, values: Any, where: str, coordinates: Coordinates) -> Box3DPrompt:
        box = mapping(values, where, ("corners", "center", "size", "axes"))
        if "corners" in box:
            if len(box) > 1:
                raise UserError(f'{where} must have either "corners" or "center" and "size", not both.')
            a, b = vectors(box["corners"], f"{where}.corners", 2, "positions")
            center, size, axes = (a + b) / 2, np.abs(b - a), np.eye(3)
        else:
            center, size = (
                np.array(numbers(required(box, key, where), f"{where}.{key}", 3)) for key in ("center", "size")
            )
            axes = vectors(box.get("axes", np.eye(3).tolist()), f"{where}.axes", 3, "directions")
        own_lengths = np.maximum(np.linalg.norm(axes, axis=1), 1e-12)
        reach = np.abs(axes / own_lengths[:, None]).T @ (size / 2)
        coordinates.require_inside([center - reach, center + reach], where)
        in_mm = axes @ coordinates.axes
        lengths = np.linalg.norm(in_mm, axis=1) / own_lengths
        return cls(coordinates.point(center.tolist(), where), tuple(size * lengths), tuple(map(tuple, in_mm)))

    def to_markup(self, plane: SlicePlane) -> Markup:
        axes = np.array(self.axes)
        if np.linalg.det(axes) < 0:
            axes[2] = -axes[2]  # the same box, right-handed, as Slicer needs it
        return Markup("ROI", (self.center,), True, self.size, tuple(map(tuple, axes.tolist())))

    @classmethod
    def from_markup(cls, markup: Markup, plane: SlicePlane | None) -> Prompt:
        """A 3-D box; a box on a slice where the ROI is not thicker than the slice that it was drawn on."""
        box = cls(markup.points[0], markup.size, markup.axes)
        if plane is None:
            return box
        sides = np.array(box.axes) * np.array(box.size)[:, None]  # (3, 3) mm, one row a side
        right, down, normal = (np.abs(sides @ way).sum() for way in (plane.right, plane.down, plane.normal))
        if normal > _FLAT * plane.thickness:
            return box
        half = (right * plane.right + down * plane.down) / 2
        return box_on_slice(plane, (np.array(box.center) - half, np.array(box.center) + half))

    @classmethod
    def drawn(cls, plane: SlicePlane, points: Sequence[Ras], positive: bool) -> Box3DPrompt:
        return box_along_plane(plane, _two_corners(points))


def box_on_slice(plane: SlicePlane, corners) -> BoxPrompt:
    """The box on a plane between two RAS corners (2, 3), always by the same two of its four corners."""
    a, b = np.asarray(corners, dtype=np.float64)
    across, along = np.abs((b - a) @ plane.right) / 2, np.abs((b - a) @ plane.down) / 2
    center = (a + b) / 2
    center = center - plane.distance(center) * plane.normal
    half = across * plane.right + along * plane.down
    return BoxPrompt(tuple(center - half), tuple(center + half))


def box_along_plane(plane: SlicePlane, corners) -> Box3DPrompt:
    """The 3-D box between two RAS corners (2, 3), along a plane's directions.

    Corners on one slice make it as deep as its shorter side, centred on the slice.
    """
    a, b = np.asarray(corners, dtype=np.float64)
    axes = np.stack([plane.right, plane.down, plane.normal])
    size = np.abs(axes @ (b - a))
    if size[2] <= plane.thickness * _FLAT:
        size[2] = max(size[:2].min(), 2 * plane.thickness)
    return Box3DPrompt(tuple((a + b) / 2), tuple(size), tuple(map(tuple, axes)))


def _two_corners(points: Sequence[Ras]) -> Sequence[Ras]:
    if len(points) < 2:
        raise UserError("A box needs two opposite corners; drag from one to the other.")
    return points[:2]


def _cut(plane: SlicePlane, corners: np.ndarray) -> np.ndarray:
    """Corners of what the plane cuts from a box; a box that ends on the plane up to rounding reaches it."""
    distances = plane.distance(corners)
    inward = np.clip(0.0, distances.min() + _TOUCH / 2, distances.max() - _TOUCH / 2)
    origin = plane.origin + inward * plane.normal if abs(inward) <= _TOUCH else plane.origin
    return cross_section(corners, origin, plane.normal)


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


def _boxes(plane: SlicePlane, box: np.ndarray, least: float) -> dict[SlicePlane, PlanePrompts]:
    """A box (4,) in pixels, clipped to the picture; nothing if less than `least` pixels of a side are left."""
    rows, columns = plane.shape
    box = np.clip(box, -0.5, [columns - 0.5, rows - 0.5] * 2)
    return {plane: PlanePrompts(box=box)} if min(box[2] - box[0], box[3] - box[1]) >= least else {}

"""What a user points at: points, boxes, scribbles and masks, all in RAS millimetres, grouped by segment."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane

Ras = tuple[float, float, float]
LARGEST_VALUE = 65535  # labelmaps are uint8 or uint16


@dataclass(frozen=True)
class PointPrompt:
    """A point inside (positive) or outside (negative) the structure."""

    ras: Ras
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "ras", _ras(self.ras, "A point"))


@dataclass(frozen=True)
class BoxPrompt:
    """Two opposite corners of a box on a slice; on different slices they span one along the volume's axes."""

    corner_a: Ras
    corner_b: Ras

    def __post_init__(self) -> None:
        object.__setattr__(self, "corner_a", _ras(self.corner_a, "A box corner"))
        object.__setattr__(self, "corner_b", _ras(self.corner_b, "A box corner"))


@dataclass(frozen=True)
class Box3DPrompt:
    """A box of `size` mm along `axes` (three directions in RAS, one per box axis) around `center`."""

    center: Ras
    size: Ras
    axes: tuple[Ras, Ras, Ras] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", _ras(self.center, "A 3-D box's centre"))
        size = _ras(self.size, "A 3-D box's size")
        if min(size) < 0 or sum(length > 0 for length in size) < 2:
            raise UserError("A 3-D box is empty: its size needs three lengths in mm, at most one of them 0.")
        axes = np.array([_ras(axis, "A 3-D box's axis") for axis in self.axes], dtype=np.float64)
        lengths = np.linalg.norm(axes, axis=1) if axes.shape == (3, 3) else np.zeros(1)
        if lengths.min() == 0 or abs(np.linalg.det(axes / lengths[:, None])) < 1e-3:
            raise UserError("A 3-D box needs three axes in different directions.")
        unit = axes / lengths[:, None]
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "axes", tuple(tuple(float(x) for x in axis) for axis in unit))


@dataclass(frozen=True)
class ScribblePrompt:
    """A stroke: the corners of a line drawn through (positive) or beside (negative) the structure."""

    ras: tuple[Ras, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        if not len(self.ras):
            raise UserError("A scribble needs at least one point.")
        object.__setattr__(self, "ras", tuple(_ras(point, "A scribble's point") for point in self.ras))


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """A rough shape, bool [rows, columns], on the pixels of `plane`."""

    mask: np.ndarray
    plane: SlicePlane

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=bool)
        if mask.shape != self.plane.shape:
            raise UserError(f"A mask prompt of {mask.shape} pixels does not fit its plane, {self.plane}.")
        if not mask.any():
            raise UserError("A mask prompt is empty: draw at least one pixel.")
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)


Prompt = PointPrompt | BoxPrompt | Box3DPrompt | ScribblePrompt | MaskPrompt


@dataclass(frozen=True)
class SegmentPrompts:
    """All prompts of one structure. `value` is its number in the labelmap, `color` (r, g, b) from 0 to 1."""

    name: str
    value: int = 1
    color: tuple[float, float, float] | None = None  # None picks one by the value
    prompts: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise UserError("A segment needs a name.")
        value = self.value
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= LARGEST_VALUE:
            raise UserError(
                f"The label value of segment {self.name} must be a whole number from 1 to {LARGEST_VALUE}."
            )
        color = segment_color(value) if self.color is None else tuple(float(part) for part in self.color)
        if len(color) != 3 or not all(0 <= part <= 1 for part in color):
            raise UserError(f"The color of segment {self.name} needs three numbers from 0 to 1.")
        object.__setattr__(self, "value", int(value))
        object.__setattr__(self, "color", color)
        object.__setattr__(self, "prompts", tuple(self.prompts))


@dataclass(frozen=True)
class ObliqueView:
    """A plane by a point and two directions in RAS, before it is known which volume it cuts."""

    origin: Ras
    right: Ras
    down: Ras

    def __post_init__(self) -> None:
        for name in ("origin", "right", "down"):
            object.__setattr__(self, name, _ras(getattr(self, name), f"A plane's {name}"))


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one job by segment, and the planes they are meant on: `view`, or else `orientation`."""

    segments: tuple[SegmentPrompts, ...]
    orientation: str = "axial"
    view: ObliqueView | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if self.orientation not in ORIENTATIONS:
            choices = ", ".join(ORIENTATIONS)
            raise UserError(f'"{self.orientation}" is no orientation: choose one of {choices}.')
        for what in ("name", "value"):
            values = [getattr(segment, what) for segment in self.segments]
            for value in values:
                if values.count(value) > 1:
                    raise UserError(f"Two segments have the same {what}, {value}: give each its own.")


@dataclass(frozen=True, eq=False)
class PlanePrompts:
    """The prompts of one segment on a plane, in pixels: x = column, y = row, centres at integers.

    `points` (N, 2) float32 with `labels` (N,) 1 inside, 0 outside; `box` (4,) float32 x0, y0, x1, y1 or None;
    `mask` bool (rows, columns) or None.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    box: np.ndarray | None = None
    mask: np.ndarray | None = None

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
        """Whether anything points at the structure itself, rather than only at what is not part of it."""
        return bool(self.labels.any()) or self.box is not None or self.mask is not None


def segment_color(value: int) -> tuple[float, float, float]:
    """A color for a label value; neighbouring values get hues far apart (golden ratio)."""
    return colorsys.hsv_to_rgb((0.02 + (value - 1) * 0.6180339887) % 1.0, 0.75, 0.95)


def _ras(values, what: str) -> Ras:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise UserError(f"{what} needs three finite numbers: right, anterior, superior in mm.")
    return numbers

"""The common part of scribbles and lassos: lines that were drawn with the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts.checked_json import Coordinates, flag, mapping, required
from SAMFineTuneLib.prompts.prompt_kind import Markup, Prompt, Ras, checked_ras


@dataclass(frozen=True)
class DrawnLine(Prompt):
    """The corners of a line. Not a kind of prompt itself."""

    ras: tuple[Ras, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        if not len(self.ras):
            raise UserError(f"A {self.noun.lower()} needs at least one point.")
        name = f"A {self.noun.lower()}'s point"
        object.__setattr__(self, "ras", tuple(checked_ras(point, name) for point in self.ras))

    @property
    def anchor(self) -> Ras:
        return tuple(map(float, np.mean(self.ras, axis=0)))

    def to_json(self) -> dict[str, Any]:
        return {"points": [list(point) for point in self.ras], "positive": self.positive}

    @classmethod
    def from_json(cls, values: Any, where: str, coordinates: Coordinates) -> DrawnLine:
        values = mapping(values, where, ("points", "positive"))
        points = coordinates.points(required(values, "points", where), f"{where}.points")
        return cls(points, flag(values.get("positive", True), f"{where}.positive"))

    def to_markup(self, plane: SlicePlane) -> Markup:
        return Markup(self.marker.type, self.ras, self.positive)

    @classmethod
    def from_markup(cls, markup: Markup, plane: SlicePlane | None) -> DrawnLine:
        return cls(markup.points, markup.positive)

    @classmethod
    def drawn(cls, plane: SlicePlane, points: Sequence[Ras], positive: bool) -> DrawnLine:
        return cls(simplified(points, plane.pixel_size / 2), positive)


def simplified(points: Sequence[Ras], tolerance: float) -> tuple[Ras, ...]:
    """A line with as few points as a `tolerance` in mm allows (Douglas and Peucker 1973)."""
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
    return tuple(tuple(map(float, point)) for point in line[keep])


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances (N,) in mm of points (N, 3) from the line between two others."""
    direction, offsets = end - start, points - start
    length = direction @ direction
    along = np.clip(offsets @ direction / length, 0, 1) if length > 0 else np.zeros(len(points))
    return np.linalg.norm(offsets - along[:, None] * direction, axis=1)

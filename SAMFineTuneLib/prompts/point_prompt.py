"""Points inside or outside a structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts.checked_json import Coordinates, flag, mapping, required
from SAMFineTuneLib.prompts.plane_prompts import PlanePrompts, PlanesOfView
from SAMFineTuneLib.prompts.prompt_kind import Marker, Markup, Prompt, Ras, Tool, checked_ras, prompt_kind


@prompt_kind
@dataclass(frozen=True)
class PointPrompt(Prompt):
    """A point inside (positive) or outside (negative) the structure."""

    ras: Ras
    positive: bool = True

    list_name = "points"
    noun = "Point"
    markers = (
        Marker("positive", "Fiducial", "positive", True, point_list=True, sizes=(3.6, 2.4)),
        Marker("negative", "Fiducial", "negative", False, point_list=True, sizes=(4.6, 3.0), diamond=True),
    )
    markup_types = ("Fiducial",)
    tools = (
        Tool("positive", "Include", "PointPositive", "P", "click", "Click inside the structure in any slice view."),
        Tool("negative", "Exclude", "PointNegative", "N", "click", "Click on what does not belong to it.", False),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "ras", checked_ras(self.ras, "A point"))

    @property
    def anchor(self) -> Ras:
        return self.ras

    def project(self, planes: PlanesOfView, what: str) -> dict[SlicePlane, PlanePrompts]:
        plane = planes.through(self.ras, what)
        return {plane: PlanePrompts(plane.ras_to_pixel(self.ras), int(self.positive))}

    def to_json(self) -> dict[str, Any]:
        return {"position": list(self.ras), "positive": self.positive}

    @classmethod
    def from_json(cls, values: Any, where: str, coordinates: Coordinates) -> PointPrompt:
        values = mapping(values, where, ("position", "positive"))
        ras = coordinates.position(required(values, "position", where), f"{where}.position")
        return cls(ras, flag(values.get("positive", True), f"{where}.positive"))

    def to_markup(self, plane: SlicePlane) -> Markup:
        return Markup("Fiducial", (self.ras,), self.positive)

    @classmethod
    def from_markup(cls, markup: Markup, plane: SlicePlane | None) -> PointPrompt:
        return cls(markup.points[0], markup.positive)

    @classmethod
    def drawn(cls, plane: SlicePlane, points: Sequence[Ras], positive: bool) -> PointPrompt:
        return cls(points[0], positive)

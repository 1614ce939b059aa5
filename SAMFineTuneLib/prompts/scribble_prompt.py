"""Lines drawn through or beside a structure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts.drawn_line import DrawnLine
from SAMFineTuneLib.prompts.plane_prompts import PlanePrompts, PlanesOfView
from SAMFineTuneLib.prompts.prompt_kind import Marker, Tool, prompt_kind

POINTS_PER_STROKE = 8  # on one slice: more points slow SAM's decoder down and add nothing
_STROKE_SPACING = 5.0  # pixels: closer points of a stroke add nothing


@prompt_kind
@dataclass(frozen=True)
class ScribblePrompt(DrawnLine):
    """A stroke: the corners of a line drawn through (positive) or beside (negative) the structure."""

    list_name = "scribbles"
    noun = "Scribble"
    markers = (
        Marker("scribble+", "Curve", "positive scribble", True, sizes=(1.6, 0.8)),
        Marker("scribble-", "Curve", "negative scribble", False, sizes=(1.6, 0.8)),
    )
    markup_types = ("Curve", "Line")
    tools = (
        Tool("scribble+", "Scribble", "ScribblePositive", "S", "stroke", "Draw a line through the structure."),
        Tool("scribble-", "Scribble −", "ScribbleNegative", "Shift+S", "stroke",
             "Draw a line over what does not belong to it.", False),
    )  # fmt: skip

    def project(self, planes: PlanesOfView, what: str) -> dict[SlicePlane, PlanePrompts]:
        places = _along(np.array(self.ras), float(planes.volume.spacing.min()) / 2)
        chosen: dict[SlicePlane, list[np.ndarray]] = {}
        for plane, run in groupby(places, lambda point: planes.through(point, what)):  # pieces that stay on one plane
            line = plane.ras_to_pixel(list(run))
            length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
            count = int(np.clip(length // _STROKE_SPACING + 1, 1, POINTS_PER_STROKE))
            at = [len(line) // 2] if count == 1 else np.rint(np.linspace(0, len(line) - 1, count)).astype(int)
            chosen.setdefault(plane, []).extend(line[at])
        return {
            plane: PlanePrompts(points, np.full(len(points), int(self.positive))) for plane, points in chosen.items()
        }


def _along(corners: np.ndarray, step: float) -> np.ndarray:
    """Points (N, 3) evenly along a polyline, no further apart than `step`, both ends included."""
    reached = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    places = np.linspace(0.0, reached[-1], int(np.ceil(reached[-1] / step)) + 1)
    return np.stack([np.interp(places, reached, corners[:, axis]) for axis in range(3)], axis=1)

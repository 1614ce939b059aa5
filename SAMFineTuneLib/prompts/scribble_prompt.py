"""Lines drawn through or beside a structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.prompts.drawn_line import DrawnLine
from SAMFineTuneLib.prompts.plane_prompts import OnPlane, PromptsByPlane
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

    def project(self, planes: PromptsByPlane, what: str) -> None:
        runs: list[tuple[OnPlane, list[np.ndarray]]] = []  # pieces of the stroke that stay on one plane
        for point in _along(np.array(self.ras), float(planes.volume.spacing.min()) / 2):
            one = planes.through(point, what)
            if not runs or runs[-1][0] is not one:
                runs.append((one, []))
            runs[-1][1].append(one.plane.ras_to_pixel(point))
        for one, pixels in runs:
            line = np.array(pixels)
            length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
            count = int(np.clip(length // _STROKE_SPACING + 1, 1, POINTS_PER_STROKE))
            chosen = [len(line) // 2] if count == 1 else np.rint(np.linspace(0, len(line) - 1, count)).astype(int)
            one.add_points(line[chosen], self.positive)


def _along(corners: np.ndarray, step: float) -> np.ndarray:
    """Points (N, 3) evenly along a polyline, no further apart than `step`, both ends included."""
    reached = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    places = np.linspace(0.0, reached[-1], int(np.ceil(reached[-1] / step)) + 1)
    return np.stack([np.interp(places, reached, corners[:, axis]) for axis in range(3)], axis=1)

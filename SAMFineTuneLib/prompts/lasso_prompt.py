"""Closed lines: the enclosed area belongs to a structure, or does not.

nnInteractive (Isensee et al. 2025) has the same interaction. Here every answer holds the enclosed pixels, or leaves
them out; `session.answers` says when the model is asked about them, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts.drawn_line import DrawnLine
from SAMFineTuneLib.prompts.plane_prompts import PlanePrompts, PlanesOfView
from SAMFineTuneLib.prompts.prompt_kind import Marker, Tool, prompt_kind


@prompt_kind
@dataclass(frozen=True)
class LassoPrompt(DrawnLine):
    """The corners of a closed line on one slice. Everything inside belongs to the structure, or does not."""

    list_name = "lassos"
    noun = "Lasso"
    markers = (
        Marker("lasso+", "ClosedCurve", "positive lasso", True, sizes=(1.6, 0.8)),
        Marker("lasso-", "ClosedCurve", "negative lasso", False, sizes=(1.6, 0.8)),
    )
    markup_types = ("ClosedCurve",)
    tools = (
        Tool("lasso+", "Lasso", "LassoPositive", "L", "loop", "Draw a line around what belongs to the structure."),
        Tool("lasso-", "Lasso −", "LassoNegative", "Shift+L", "loop",
             "Draw a line around what does not belong to it.", False),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        points = self.ras[:-1] if self.ras[0] == self.ras[-1] else self.ras  # it is closed anyway
        if len(set(points)) < 3:
            raise UserError("A lasso needs at least three points: draw a line around an area.")
        object.__setattr__(self, "ras", points)

    def project(self, planes: PlanesOfView, what: str) -> dict[SlicePlane, PlanePrompts]:
        corners = np.array(self.ras)
        plane = planes.plane_of(corners, what, "a point", "all of it")
        if plane is None:
            planes.through(self.anchor, f"The middle of {what}")  # raises for a lasso outside the volume
            raise UserError(
                f"{what} runs through several {planes.orientation} slices: draw it on one slice, or choose the "
                "orientation whose slice it lies on."
            )
        enclosed = enclosed_pixels(plane.ras_to_pixel(corners), plane.shape)
        if not enclosed.any():
            raise UserError(f"{what} encloses no pixel of {plane}: draw it larger, and inside the picture.")
        return {plane: PlanePrompts(region=enclosed * np.int8(1 if self.positive else -1))}


def enclosed_pixels(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels, bool (rows, columns), whose centres a closed line encloses.

    Where the line crosses itself, everything that it runs around counts (nonzero winding number).

    Args:
        corners: (N, 2), x and y; they may lie outside the picture.
        shape: rows and columns of the picture.
    """
    rows, columns = shape
    turns = np.zeros((rows, columns + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((y0, y1))
        row = np.arange(max(0, int(np.ceil(low))), min(rows, int(np.ceil(high))))
        if len(row):
            x = x0 + (row - y0) * (x1 - x0) / (y1 - y0)
            turns[row, np.clip(np.ceil(x), 0, columns).astype(int)] += 1 if y1 > y0 else -1
    return np.cumsum(turns, axis=1)[:, :columns] != 0

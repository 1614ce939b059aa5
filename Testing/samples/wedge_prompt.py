"""A kind of prompt that the library does not have: what an angle encloses, by Slicer's angle markup."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.prompts.prompt_kind import KINDS, Marker, Markup, Prompt, Tool, prompt_kind


@dataclass(frozen=True)
class WedgePrompt(Prompt):
    """Two points and the corner between them; their middle lies in the structure."""

    ras: tuple

    list_name = "wedges"
    noun = "Wedge"
    markers = (Marker("wedge", "Angle", "wedge", sizes=(1.6, 0.8)),)
    markup_types = ("Angle",)
    tools = (Tool("wedge", "Wedge", "Box", "W", "stroke", "Draw a wedge into the structure."),)

    @property
    def anchor(self):
        return tuple(map(float, np.mean(self.ras, axis=0)))

    def project(self, planes, what):
        plane = planes.through(self.anchor, what)
        return {plane: PlanePrompts(plane.ras_to_pixel(self.anchor), 1)}

    def to_json(self):
        return {"corners": [list(corner) for corner in self.ras]}

    @classmethod
    def from_json(cls, values, where, coordinates):
        return cls(coordinates.points(values["corners"], where, 3))

    def to_markup(self, plane):
        return Markup("Angle", self.ras)

    @classmethod
    def from_markup(cls, markup, plane):
        return cls(markup.points)

    @classmethod
    def drawn(cls, plane, points, positive):
        return cls(tuple(tuple(map(float, points[at])) for at in (0, len(points) // 2, -1)))


@pytest.fixture
def wedges():
    """Registers the kind for one test."""
    yield prompt_kind(WedgePrompt)
    del KINDS[WedgePrompt.list_name]

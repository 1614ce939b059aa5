"""Prompts out of place, as a hurried hand would put them (COSMOS 1050K, arXiv 2304.14660).

COSMOS moves the centre point, or the box, by 0–10, 10–20 and 20–30 pixels. A distance in pixels is nothing for a liver
and more than the whole of a small vessel, so that each is also done in per cent of the object's longer side, and boxes
are also made too large or too small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.prompts import PlanePrompts

MOVED = {"S2": "point", "S3": "point", "S4": "point", "S5": "box"}
"""What is moved in each strategy; of several points the first positive one, the centre."""
_BANDS = ((0, 10), (10, 20), (20, 30))


@dataclass(frozen=True)
class Perturbation:
    """`what` happens to a strategy's prompt, by how much: `low` to `high` in `unit` ("px" or "%")."""

    strategy: str
    what: str
    low: int
    high: int
    unit: str

    def __str__(self) -> str:
        return f"{self.strategy} {self.what} {self.low}–{self.high} {self.unit}"

    @classmethod
    def parse(cls, text: str) -> Perturbation:
        """From what `str` gives."""
        strategy, *what, band, unit = text.split(" ")
        low, high = band.split("–")
        return cls(strategy, " ".join(what), int(low), int(high), unit)


PERTURBATIONS = tuple(
    Perturbation(strategy, f"{moved} {how}", low, high, unit)
    for strategy, moved in MOVED.items()
    for how in (("shift", "scale") if moved == "box" else ("shift",))
    for unit in ("px", "%")
    for low, high in _BANDS
)


def perturbed(
    prompts: PlanePrompts, how: Perturbation, mask: np.ndarray, rng: np.random.Generator
) -> PlanePrompts:
    """The prompts of an object's mask, changed. What would leave the picture stays at its edge."""
    amount, angle, sign = rng.uniform(how.low, how.high), rng.uniform(0, 2 * np.pi), rng.choice((-1, 1))
    if how.unit == "%":
        x0, y0, x1, y1 = bounding_box(mask)
        amount *= (max(x1 - x0, y1 - y0) + 1) / 100
    step = amount * np.array([np.cos(angle), np.sin(angle)])
    last = np.array(mask.shape[::-1]) - 1
    if how.what == "point shift":
        points = prompts.points.copy()
        points[0] = np.clip(points[0] + step, 0, last)
        return replace(prompts, points=points)
    corners = prompts.box.reshape(2, 2).astype(float)
    if how.what == "box shift":
        corners += step
    else:  # all sides outwards, or all inwards but never past the middle
        inwards = np.minimum(amount, (corners[1] - corners[0]) / 2 - 0.5) if sign < 0 else amount
        corners += np.stack([-inwards, inwards]) * sign * np.ones((2, 2))
    return replace(prompts, box=_in_picture(corners, last).ravel())


def _in_picture(corners: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Corners (2, 2) clipped to the picture; a box keeps a width and a height of a pixel."""
    clipped = np.clip(corners, 0, last)
    low = np.minimum(clipped[0], last - 1)
    return np.stack([low, np.maximum(clipped[1], low + 1)])

"""The prompts of COSMOS 1050K (arXiv 2304.14660), made from a reference mask: well placed, and misplaced.

Well-placed prompts are deterministic. Positives: the centre of mass when it lies inside the mask, the others at a
uniform stride over the flattened mask. Negatives: at a uniform stride over the doubled box without the mask. The box is
tight. S1 prompts everything and needs no mask (`evaluation.automatic_protocol`).

COSMOS moves the centre point, or the box, by 0–10, 10–20 and 20–30 pixels. The same distance in pixels means nothing
for a liver and exceeds a small vessel, so each prompt is also moved by per cent of the object's longer side, and boxes
are also made too large or too small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.prompts import PlanePrompts

STRATEGIES = {
    "S2": "1 point inside",
    "S3": "5 points inside",
    "S4": "5 points inside, 5 outside",
    "S5": "tight box",
    "S6": "tight box and 1 point inside",
}
_COUNTS = {"S2": (1, 0, False), "S3": (5, 0, False), "S4": (5, 5, False), "S5": (0, 0, True), "S6": (1, 0, True)}
MOVED = {"S2": ("point shift",), "S3": ("point shift",), "S4": ("point shift",), "S5": ("box shift", "box scale")}
"""The perturbations of each strategy; of several points the first positive one, the centre, is moved."""
_BANDS = ((0, 10), (10, 20), (20, 30))


def prompts_for(strategy: str, mask: np.ndarray, ignored: np.ndarray | None = None) -> PlanePrompts:
    """The prompts of a strategy (a key of STRATEGIES) for a non-empty mask; see `exact_prompts`."""
    return exact_prompts(mask, *_COUNTS[strategy], ignored)


def exact_prompts(
    mask: np.ndarray, inside: int, outside: int, boxed: bool, ignored: np.ndarray | None = None
) -> PlanePrompts:
    """Points and a tight box for a non-empty mask.

    Args:
        mask: The object, bool (rows, columns).
        inside: Points in the mask.
        outside: Points around it.
        boxed: Whether there is a box.
        ignored: Where no point outside may lie, bool (rows, columns).
    """
    within, beyond = _positives(mask, inside), _negatives(mask, outside, ignored)
    return PlanePrompts(
        np.concatenate([within, beyond]),
        np.array([1] * len(within) + [0] * len(beyond), np.int64),
        box=bounding_box(mask) if boxed else None,
    )


def _positives(mask: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` points (n, 2), x and y, inside a mask; fewer where it has fewer pixels."""
    if count == 0:
        return np.zeros((0, 2), np.float32)
    rows, columns = np.nonzero(mask)
    row, column = round(float(rows.mean())), round(float(columns.mean()))
    first = np.float32([[column, row]]) if mask[row, column] else np.zeros((0, 2), np.float32)
    others = _strided(mask, count - len(first))
    return np.concatenate([first, others[~(others[:, None] == first[None]).all(axis=2).any(axis=1)]])


def _negatives(mask: np.ndarray, count: int, ignored: np.ndarray | None = None) -> np.ndarray:
    """Up to `count` points (n, 2), x and y, in a mask's doubled box, outside the mask and outside `ignored`."""
    x0, y0, x1, y1 = bounding_box(mask)
    half_width, half_height = (x1 - x0 + 1) / 2, (y1 - y0 + 1) / 2
    rows, columns = np.indices(mask.shape)
    doubled = (rows >= y0 - half_height) & (rows <= y1 + half_height)
    doubled &= (columns >= x0 - half_width) & (columns <= x1 + half_width)
    return _strided(doubled & ~(mask if ignored is None else mask | ignored), count)


def _strided(mask: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` pixels of a mask, x and y, evenly spread over it row by row."""
    rows, columns = np.nonzero(mask)
    count = min(count, len(rows))
    places = np.floor((np.arange(count) + 0.5) * len(rows) / max(count, 1)).astype(int)
    return np.stack([columns[places], rows[places]], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Perturbation:
    """A strategy's prompt is moved or scaled, see `what`, by `low` to `high` in `unit` ("px" or "%")."""

    strategy: str
    what: str
    low: int
    high: int
    unit: str

    def __str__(self) -> str:
        return f"{self.strategy} {self.what} {self.low}–{self.high} {self.unit}"


MOVES = {
    (strategy, what, unit): [Perturbation(strategy, what, low, high, unit) for low, high in _BANDS]
    for strategy, moved in MOVED.items()
    for what in moved
    for unit in ("px", "%")
}
"""Perturbations from small to large by strategy, what is done, and unit."""
PERTURBATIONS = [how for bands in MOVES.values() for how in bands]


def perturbed(
    prompts: PlanePrompts, how: Perturbation, mask: np.ndarray, rng: np.random.Generator
) -> PlanePrompts:
    """Perturb the prompts of an object; positions outside the picture are moved to its edge.

    Args:
        prompts: in their place.
        how: what moves, and how far.
        mask: of the object.
        rng: chooses direction and distance.
    """
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
    corners = np.clip(corners, 0, last)
    low = np.minimum(corners[0], last - 1)  # a box keeps a width and a height of a pixel
    return replace(prompts, box=np.concatenate([low, np.maximum(corners[1], low + 1)]))

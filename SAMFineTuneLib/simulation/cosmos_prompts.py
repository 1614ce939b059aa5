"""The prompts of COSMOS 1050K (arXiv 2304.14660), made from a reference mask. S1, everything, is in `automatic`.

They are deterministic. Positives: the centre of mass when it lies inside the mask, the others at a uniform stride over
the flattened mask. Negatives: at a uniform stride over the doubled box without the mask. The box is tight.
"""

from __future__ import annotations

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
_POSITIVES = {"S2": 1, "S3": 5, "S4": 5, "S5": 0, "S6": 1}
_NEGATIVES = {"S4": 5}
_BOXED = ("S5", "S6")


def prompts_for(strategy: str, mask: np.ndarray, ignored: np.ndarray | None = None) -> PlanePrompts:
    """The prompts of a strategy for a non-empty mask (rows, columns); none of them outside it where `ignored`."""
    inside = positives(mask, _POSITIVES[strategy])
    outside = negatives(mask, _NEGATIVES.get(strategy, 0), ignored)
    return PlanePrompts(
        np.concatenate([inside, outside]),
        np.array([1] * len(inside) + [0] * len(outside), np.int64),
        box=bounding_box(mask) if strategy in _BOXED else None,
    )


def positives(mask: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` points (n, 2) as x, y inside a mask; fewer where it has fewer pixels."""
    if count == 0:
        return np.zeros((0, 2), np.float32)
    rows, columns = np.nonzero(mask)
    row, column = round(float(rows.mean())), round(float(columns.mean()))
    first = np.float32([[column, row]]) if mask[row, column] else np.zeros((0, 2), np.float32)
    others = _strided(mask, count - len(first))
    return np.concatenate([first, others[~(others[:, None] == first[None]).all(axis=2).any(axis=1)]])


def negatives(mask: np.ndarray, count: int, ignored: np.ndarray | None = None) -> np.ndarray:
    """Up to `count` points (n, 2) as x, y around a mask: in its box, doubled, without the mask itself and what is
    `ignored`."""
    x0, y0, x1, y1 = bounding_box(mask)
    half_width, half_height = (x1 - x0 + 1) / 2, (y1 - y0 + 1) / 2
    rows, columns = np.indices(mask.shape)
    doubled = (rows >= y0 - half_height) & (rows <= y1 + half_height)
    doubled &= (columns >= x0 - half_width) & (columns <= x1 + half_width)
    return _strided(doubled & ~(mask if ignored is None else mask | ignored), count)


def _strided(mask: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` pixels of a mask as x, y, evenly spread over it, row by row."""
    rows, columns = np.nonzero(mask)
    count = min(count, len(rows))
    places = np.floor((np.arange(count) + 0.5) * len(rows) / max(count, 1)).astype(int)
    return np.stack([columns[places], rows[places]], axis=1).astype(np.float32)

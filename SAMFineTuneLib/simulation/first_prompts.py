"""First prompts of training and testing, exact and inexact. Needs no PyTorch.

Points of trainings are drawn as in finetune-SAM (Gu et al., 2024), among the most interior pixels, and now and then
anywhere in the object. Boxes are moved a little as in MedicoSAM (Archit et al., 2025), enlarged as in finetune-SAM, and
now and then moved further, because real prompts are inexact (Huang et al., 2024, measured what 10 pixels cost).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.mask_shapes import interior_points
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.simulation.cosmos_prompts import exact_prompts

POINTS = 5
"""Maximum number of positive points with which a session begins; every object has one more prompt token."""
_INTERIOR = 0.1  # part of the pixels that counts as interior


@dataclass(frozen=True, eq=False)
class First:
    """`coords` (POINTS + 1, 2) x, y in picture pixels, `labels` (POINTS + 1,) as the decoder takes them, -1 for
    padding. `ambiguous`: whether it is a lone point."""

    coords: np.ndarray
    labels: np.ndarray
    ambiguous: bool

    @property
    def box(self) -> np.ndarray | None:
        """x0, y0, x1, y1 of a box, else None."""
        return self.coords[:2].reshape(4) if self.labels[0] == 2 else None


def exact_prompt(mask: np.ndarray, by_box: bool) -> PlanePrompts:
    """The tight box of a mask (rows, columns), or its most interior point: what held-out cases are tested with."""
    if by_box:
        return exact_prompts(mask, 0, 0, True)
    return PlanePrompts(interior_points(mask), np.ones(1, np.int64))


def first_prompt(rng: np.random.Generator, mask: np.ndarray, kind: str = "mixed") -> First:
    """A box, a point, or a few points for an object.

    Args:
        rng: Draws the prompt.
        mask: The object, bool (rows, columns).
        kind: "boxes", "points", or "mixed": a box half of the time.
    """
    by_box, several = rng.random() < 0.5, rng.random() < 0.2
    if kind == "boxes" or (kind == "mixed" and by_box):
        return _first(sloppy_box(rng, mask).reshape(2, 2), (2, 3))
    points = sample_points(rng, mask, int(rng.integers(2, POINTS + 1)) if several else 1)
    return _first(points, [1] * len(points))


def _first(coords: np.ndarray, labels) -> First:
    all_coords, all_labels = np.zeros((POINTS + 1, 2), np.float32), np.full(POINTS + 1, -1, np.float32)
    all_coords[: len(coords)], all_labels[: len(coords)] = coords, labels
    return First(all_coords, all_labels, len(coords) == 1)


def sample_points(rng: np.random.Generator, mask: np.ndarray, count: int = 1) -> np.ndarray:
    """`count` points (n, 2), x and y, in the mask: mostly in its most interior tenth, else anywhere in it."""
    x0, y0, x1, y1 = bounding_box(mask).astype(int)
    inside = np.pad(mask[y0 : y1 + 1, x0 : x1 + 1], 1)
    depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
    anywhere = rng.random() < 0.3
    ranked = np.argsort(-depth, axis=None, kind="stable")[: int(mask.sum())]
    pool = ranked if anywhere else ranked[: max(count, int(np.ceil(_INTERIOR * len(ranked))))]
    chosen = rng.choice(pool, min(count, len(pool)), replace=False)
    rows, columns = np.unravel_index(chosen, depth.shape)
    return np.stack([columns + x0, rows + y0], axis=1).astype(np.float32)


def sloppy_box(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """The mask's box x0, y0, x1, y1: mostly nearly tight, sometimes larger, now and then clearly off."""
    box = bounding_box(mask)
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    kind = rng.random()
    if kind < 0.5:
        moved = rng.uniform(-0.025, 0.025, 4) * sides
    elif kind < 0.8:
        moved = rng.uniform(0, 0.1, 4) * sides * (-1, -1, 1, 1)
    else:
        moved = rng.uniform(-0.12, 0.12, 4) * sides
    rows, columns = mask.shape
    moved = np.clip(box + moved, 0, (columns - 1, rows - 1, columns - 1, rows - 1))
    low, high = np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])
    return np.concatenate([low, np.maximum(high, low + 1)]).astype(np.float32)

"""How well a mask agrees with the reference: Dice, IoU, HD95 and NSD, in two or three dimensions, in millimetres.

Surfaces are the centres of boundary pixels (voxels): those that share an edge (face) with the outside, the outside of
the picture included. Distances between them are SciPy's exact Euclidean distance transform. HD95 is the larger of the
two directed 95th percentiles, NSD the part of both surfaces within the tolerance of the other. Those are the
conventions of MONAI and of Metrics Reloaded (Maier-Hein et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-6  # mm by which a distance may exceed the tolerance: spacings are not exact in binary


@dataclass(frozen=True)
class Agreement:
    """Each is None where it is not defined: all of them when both masks are empty, `hd95` when one is."""

    dice: float | None = None
    iou: float | None = None
    hd95: float | None = None
    """Millimetres."""
    nsd: float | None = None


def agreement(answer: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float) -> Agreement:
    """Compare two bool arrays of one shape; `spacing` in mm along their axes, `tolerance` of the NSD in mm.

    With one mask empty Dice, IoU and NSD are 0; with both empty nothing is said, which is not agreement.
    """
    if answer.shape != reference.shape:
        raise ValueError(f"The answer is {answer.shape}, the reference {reference.shape}.")
    sizes = int(np.count_nonzero(answer)), int(np.count_nonzero(reference))
    if not any(sizes):
        return Agreement()
    if not all(sizes):
        return Agreement(0.0, 0.0, None, 0.0)
    both = int(np.count_nonzero(answer & reference))
    to_reference, to_answer = surface_distances(answer, reference, spacing)
    hd95 = max(float(np.percentile(distances, 95)) for distances in (to_reference, to_answer))
    near = sum(int(np.count_nonzero(one <= tolerance + _ROUNDING)) for one in (to_reference, to_answer))
    nsd = near / (len(to_reference) + len(to_answer))
    return Agreement(2 * both / sum(sizes), both / (sum(sizes) - both), hd95, nsd)


def dice(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """Dice alone; None when both are empty."""
    total = int(np.count_nonzero(answer)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(answer & reference)) / total if total else None


def surface_distances(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n,) in mm from each boundary pixel of one non-empty mask to the other's boundary, both ways."""
    from scipy.ndimage import distance_transform_edt

    around = _box_around(first | second)
    edges = [boundary(mask[around]) for mask in (first, second)]
    fields = [distance_transform_edt(~edge, sampling=tuple(spacing)) for edge in edges]
    return fields[1][edges[0]], fields[0][edges[1]]


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that have a neighbour (across an edge or face) outside it, or outside the picture."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def _box_around(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest block that holds a non-empty mask; distances between surfaces in it need nothing beyond."""
    block = []
    for axis in range(mask.ndim):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        block.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(block)

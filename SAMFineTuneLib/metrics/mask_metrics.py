"""How well a mask agrees with the reference: Dice, IoU, HD95 and NSD, in two or three dimensions, in millimetres.

Surfaces are the centres of boundary pixels (voxels): those that share an edge (face) with the outside, including the
outside of the picture. SciPy's exact Euclidean distance transform gives the distances between them. HD95 is the larger
of the two directed 95th percentiles, NSD the part of both surfaces within the tolerance of the other. MONAI and Metrics
Reloaded (Maier-Hein et al. 2024) use the same conventions. MONAI itself would bring PyTorch into every evaluation, and
the package surface-distance is no longer maintained, so these lines stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """Compare two masks.

    With one mask empty Dice, IoU and NSD are 0; with both empty they are None, which is not agreement.

    Args:
        answer: bool array.
        reference: bool array of one shape with it.
        spacing: mm along the arrays' axes.
        tolerance: of the NSD in mm.
    """
    if answer.shape != reference.shape:
        raise ValueError(f"The answer is {answer.shape}, the reference {reference.shape}.")
    overlap = Overlap.of(answer, reference)
    if overlap.dice is None:
        return Agreement()
    if not overlap.answer or not overlap.reference:
        return Agreement(0.0, 0.0, None, 0.0)
    to_reference, to_answer = surface_distances(answer, reference, spacing)
    hd95 = max(float(np.percentile(distances, 95)) for distances in (to_reference, to_answer))
    near = sum(int(np.count_nonzero(one <= tolerance + _ROUNDING)) for one in (to_reference, to_answer))
    return Agreement(overlap.dice, overlap.iou, hd95, near / (len(to_reference) + len(to_answer)))


@dataclass(frozen=True)
class Overlap:
    """Pixels of a structure in the answer, in the reference, and in both; overlaps of several slices can be added."""

    answer: int = 0
    reference: int = 0
    both: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.answer + other.answer, self.reference + other.reference, self.both + other.both)

    @property
    def dice(self) -> float | None:
        """None when both are empty."""
        total = self.answer + self.reference
        return 2 * self.both / total if total else None

    @property
    def iou(self) -> float | None:
        """None when both are empty."""
        union = self.answer + self.reference - self.both
        return self.both / union if union else None

    @classmethod
    def of(cls, answer: np.ndarray, reference: np.ndarray) -> Overlap:
        """Count two bool arrays of one shape."""
        return cls(*(int(np.count_nonzero(mask)) for mask in (answer, reference, answer & reference)))


def dice(answer: np.ndarray, reference: np.ndarray) -> float | None:
    """Dice alone; None when both are empty."""
    return Overlap.of(answer, reference).dice


def mean_dice(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def surface_distances(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances between the boundaries of two masks.

    Args:
        first: bool array, not empty.
        second: bool array of one shape with it, not empty.
        spacing: mm along the arrays' axes.

    Returns:
        mm (n,) from each boundary pixel of the first mask to the second's boundary, and the other way round.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    (around,) = find_objects((first | second).astype(np.uint8))  # the distances do not depend on pixels beyond
    edges = [boundary(mask[around]) for mask in (first, second)]
    fields = [distance_transform_edt(~edge, sampling=tuple(spacing)) for edge in edges]
    return fields[1][edges[0]], fields[0][edges[1]]


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that have a neighbour (across an edge or face) outside it, or outside the picture."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)

"""How far a proposal can be trusted, slice by slice and label by label: the Dice that is to be expected.

The automatic head gives each pixel a share for every class. If the shares are right, a mask's expected Dice follows
from them; they seldom are, so that a logistic map of a few signals of the slice stands between.

NumPy alone, because the panel's strip reads confidence in Slicer's Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from SAMFineTuneLib.cohort.cohort_folder import Cohort

CONFIDENCE = "confidence.json"
"""File in the folder of a proposal."""
DOUBTFUL = 0.8
"""Expected Dice below which a slice is worth a look."""
COLUMNS = ("area", "mass", "inside", "peak", "shared")
"""Signals of a label on a slice: pixels of its mask, sums of its shares over all pixels and over the mask, its largest
share, and pixels that its mask shares with that of the slice before."""
Signals = Mapping[str, np.ndarray]
"""Label → float32 (slices, COLUMNS)."""
_FOUND = (0.0, 1.0, 0.0, 0.0)
_MISSING = (0.0, 1.0)
_APART = 3  # slices: nearer ones are seen together
_LEAST = 0.01  # shares are kept this far from 0 and 1
_PRESENT = 0.05  # probability of a structure from which on a slice without a mask is told


def signals_of(mask: np.ndarray, shares: np.ndarray, before: np.ndarray | None) -> tuple[float, ...]:
    """The COLUMNS of a label on a slice.

    Args:
        mask: bool (rows, columns).
        shares: of the label, 0 to 1 (rows, columns).
        before: the mask of the slice before; None on the first one.
    """
    shared = 0 if before is None else np.count_nonzero(mask & before)
    return np.count_nonzero(mask), float(shares.sum()), float(shares[mask].sum()), float(shares.max()), shared


@dataclass(frozen=True)
class Confidence:
    """What is to be expected of a proposal."""

    orientation: str
    """Of its slices: `axial`, `coronal` or `sagittal`."""
    slices: Mapping[str, Sequence[float | None]]
    """Label → expected Dice by slice index; None where nothing is expected. Of a slice without a mask it is the
    probability that it shows nothing of the structure."""

    @property
    def doubtful(self) -> int:
        """Slices on which some label is expected below `DOUBTFUL`."""
        low = [{index for index, value in enumerate(own) if value is not None and value < DOUBTFUL}
               for own in self.slices.values()]  # fmt: skip
        return len(set().union(*low))


def read_confidence(cohort: Cohort, key: str) -> Confidence | None:
    """The confidence of a case's proposal; None where there is no proposal, or it cannot be read."""
    try:
        values = json.loads((cohort.proposal(key) / CONFIDENCE).read_text("utf-8"))
        return Confidence(str(values["orientation"]), {str(label): own for label, own in values["slices"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def expected(signals: Signals, orientation: str) -> tuple[Confidence, dict[str, float]]:
    """The confidence that signals give, and the expected Dice of each whole structure."""
    slices, whole = {}, {}
    for label, rows in signals.items():
        rows = np.asarray(rows, np.float64).reshape(-1, len(COLUMNS))
        area, mass, *_ = rows.T
        found = area > 0
        values = np.where(found, _logistic(_of_found(rows) @ _FOUND), 1 - _logistic(_of_missing(rows) @ _MISSING))
        told = found | (values < 1 - _PRESENT)
        slices[label] = [float(value) if here else None for value, here in zip(values, told, strict=True)]
        # The Dice of a structure is the mean of its slices', weighted with the pixels of both masks.
        weights = np.where(told, np.maximum(area, mass), 0)
        whole[label] = float(values @ weights / weights.sum()) if weights.any() else 0.0
    return Confidence(orientation, slices), whole


def _of_found(rows: np.ndarray) -> np.ndarray:
    """What the map weighs on slices with a mask (n, 4): 1, the logits of the Dice that the shares give and of the
    mask's Dice with the more similar neighbour, and how large the mask is beside the largest."""
    area, mass, inside, _, shared = rows.T
    own = 2 * inside / np.maximum(area + mass, 1)
    before = 2 * shared[1:] / np.maximum(area[1:] + area[:-1], 1)
    beside = np.maximum(np.append(0, before), np.append(before, 0))
    size = np.sqrt(area / max(area.max(), 1))
    return np.stack([np.ones(len(rows)), _logit(own), _logit(beside), size - 1], axis=1)


def _of_missing(rows: np.ndarray) -> np.ndarray:
    """What the map weighs on slices without a mask (n, 2): 1, and the logit of the largest share."""
    return np.stack([np.ones(len(rows)), _logit(rows[:, COLUMNS.index("peak")])], axis=1)


def _logit(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, _LEAST, 1 - _LEAST)
    return np.log(share / (1 - share))


def _logistic(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def as_text(confidence: Confidence) -> str:
    """What `read_confidence` reads."""
    rounded = {
        label: [None if value is None else round(float(value), 3) for value in own]
        for label, own in confidence.slices.items()
    }
    return json.dumps({"orientation": confidence.orientation, "slices": rounded})


def doubtful_places(confidence: Confidence) -> list[tuple[str, int, float]]:
    """Where to look: (label, slice, expected Dice) of doubtful slices, worst first, label by label, worst label first.

    Of doubtful slices that lie close together only the worst is a place.
    """
    found = {}
    for label, own in confidence.slices.items():
        places: list[tuple[str, int, float]] = []
        doubtful = [(value, index) for index, value in enumerate(own) if value is not None and value < DOUBTFUL]
        for value, index in sorted(doubtful):
            if all(abs(index - other) >= _APART for _, other, _ in places):
                places.append((label, index, value))
        if places:
            found[label] = places
    return [place for places in sorted(found.values(), key=lambda one: one[0][2]) for place in places]

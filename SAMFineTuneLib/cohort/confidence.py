"""How far a proposal can be trusted, slice by slice and label by label, as the expected Dice.

The automatic head gives each pixel a share for every class. If the shares were right, a mask's expected Dice would
follow from them. They seldom are, so that a logistic map weighs it together with two further signals of the slice. It
is calibrated on the proposals and accepted labels of accepted cases (`calibrate`); the fewer there are, the closer it
stays to a map fitted to other data. `Testing/benchmarks/cohort_confidence.py` measures it.

NumPy alone, because the panel's strip reads confidence in Slicer's Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.typed_json import loaded, made

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
_PRIOR = 4.0  # how strongly few cases are kept near the map of other data; 2 to 8 measured alike
_STEPS, _LONGEST = 30, 2.0  # of Newton's method
_APART = 3  # slices: nearer ones are seen together
_LEAST = 0.01  # shares are kept this far from 0 and 1
_PRESENT = 0.1  # probability of a structure above which a slice without a mask is reported


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
    """The expected Dice of a proposal, by label and slice."""

    orientation: str
    """Of its slices: `axial`, `coronal` or `sagittal`."""
    slices: Mapping[str, tuple[float | None, ...]]
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
        return made(Confidence, loaded((cohort.proposal(key) / CONFIDENCE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Calibration:
    """Weights of the logistic maps: of slices with a mask to expected Dice, and of those without one to the probability
    that the structure is there. By default between those of hippocampi proposed by one orientation and by the mean of
    three, rounded."""

    found: tuple[float, ...] = (0.2, 1.0, 0.2, 1.0)
    missing: tuple[float, ...] = (-1.7, 1.0, 2.6)
    present: Mapping[str, float] = field(default_factory=dict)
    """Label → share of the cases that have it; 1 where that is not known."""


@dataclass(frozen=True)
class Judged:
    """A proposal and what was accepted."""

    signals: Signals
    dice: Mapping[str, np.ndarray]
    """Label → Dice of its slices (n,), 1 where neither has the label."""
    present: frozenset[str]
    """Labels that were accepted."""

    @classmethod
    def of(
        cls, signals: Signals, proposed: np.ndarray, accepted: np.ndarray, axis: int, labels: Mapping[int, str]
    ) -> Judged:
        """Compare two label maps [k, j, i], slice by slice.

        Args:
            signals: the model's signals for the slices of the proposal.
            proposed: the proposal.
            accepted: the accepted label map.
            axis: of the arrays, along which slices are counted.
            labels: names by value.
        """
        size = max([*labels, int(proposed.max()), int(accepted.max())]) + 1
        counted = np.array([
            [np.bincount(values.ravel().astype(np.intp), minlength=size) for values in (one, other, one[one == other])]
            for one, other in zip(np.moveaxis(proposed, axis, 0), np.moveaxis(accepted, axis, 0), strict=True)
        ])  # fmt: skip
        found, right, both = np.moveaxis(counted, 1, 0)
        dice = np.where(found + right > 0, 2 * both / np.maximum(found + right, 1), 1.0)
        present = {name for value, name in labels.items() if right[:, value].any()}
        return cls(signals, {name: dice[:, value] for value, name in labels.items()}, frozenset(present))


def calibrate(cases: Sequence[Judged]) -> Calibration:
    """Fit the maps to cases."""
    usual = Calibration()
    pairs = [
        (np.asarray(rows, np.float64), np.asarray(one.dice[label], np.float64))
        for one in cases for label, rows in one.signals.items() if label in one.dice
    ]  # fmt: skip
    fitted = []
    for features, prior, with_mask in ((_of_found, usual.found, True), (_of_missing, usual.missing, False)):
        parts = [(features(rows), dice, (rows[:, 0] > 0) == with_mask) for rows, dice in pairs]
        weighed = np.concatenate([np.zeros((0, len(prior))), *(own[which] for own, _, which in parts)])
        target = np.concatenate([np.zeros(0), *(dice[which] for _, dice, which in parts)])
        fitted.append(_fit(weighed, target if with_mask else 1 - target, np.array(prior)))
    labels = {label for one in cases for label in one.dice}
    present = {
        label: (1 + sum(label in one.present for one in cases)) / (1 + len(cases)) for label in labels
    }  # fmt: skip
    return Calibration(*(tuple(map(float, own)) for own in fitted), present)


def _fit(features: np.ndarray, target: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Weights (f,) of the logistic map of features (n, f) to shares (n,), pulled towards a prior.

    All but the constant's stay positive, because a stronger signal never means a worse slice; fitted to few cases, the
    map could otherwise turn round for slices unlike theirs.
    """
    free = np.ones(len(prior), bool)
    while True:
        weights = np.zeros(len(prior))
        weights[free] = _newton(features[:, free], target, prior[free])
        against = (weights < 0) & (np.arange(len(prior)) > 0)
        if not against.any():
            return weights
        free &= ~against


def _newton(features: np.ndarray, target: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The weights of `_fit`, of any sign."""
    weights = prior
    for _ in range(_STEPS):
        value = _logistic(features @ weights)
        slope = features.T @ (value - target) + _PRIOR * (weights - prior)
        bend = (features * (value * (1 - value))[:, None]).T @ features + _PRIOR * np.eye(len(prior))
        step = np.linalg.solve(bend, slope)
        weights = weights - step * min(1.0, _LONGEST / np.abs(step).max(initial=_LONGEST))
    return weights


def expected(
    signals: Signals, orientation: str, calibration: Calibration | None = None
) -> tuple[Confidence, dict[str, float]]:
    """The confidence that follows from signals.

    Args:
        signals: the model's signals for each slice, by label.
        orientation: along which its slices lie.
        calibration: of this cohort; None means the one that this package ships.

    Returns:
        The confidence, and the expected Dice of each whole structure; of one that is found nowhere the probability that
        it is not there.
    """
    calibration = calibration or Calibration()
    slices, whole = {}, {}
    for label, rows in signals.items():
        rows = np.asarray(rows, np.float64).reshape(-1, len(COLUMNS))
        area, mass, *_ = rows.T
        found = area > 0
        sure, there = _of_found(rows) @ calibration.found, _of_missing(rows) @ calibration.missing
        values = np.where(found, _logistic(sure), _logistic(-there))
        told = found | (values < 1 - _PRESENT)
        slices[label] = tuple(float(value) if here else None for value, here in zip(values, told, strict=True))
        # The Dice of a structure is the mean of its slices', weighted with the pixels of both masks.
        weights = np.where(told, np.maximum(area, mass), 0)
        absent = 1 - calibration.present.get(label, 1.0)
        whole[label] = float(values @ weights / weights.sum()) if found.any() else absent
    return Confidence(orientation, slices), whole


def _of_found(rows: np.ndarray) -> np.ndarray:
    """Features of slices with a mask (n, 4): 1, the logits of the Dice that the shares give and of the mask's Dice with
    the more similar neighbour, and how large the mask is beside the largest.
    """
    area, mass, inside, _, shared = rows.T
    own = 2 * inside / np.maximum(area + mass, 1)
    before = 2 * shared[1:] / np.maximum(area[1:] + area[:-1], 1)
    beside = np.maximum(np.append(0, before), np.append(before, 0)) if len(rows) > 1 else own
    return np.stack([np.ones(len(rows)), _logit(own), _logit(beside), _size(area) - 1], axis=1)


def _of_missing(rows: np.ndarray) -> np.ndarray:
    """Features of slices without a mask (n, 3): 1, the logit of the largest share, and how large the larger neighbour's
    mask is beside the largest.
    """
    size = _size(rows[:, 0])
    neighbour = np.maximum(np.append(0, size[:-1]), np.append(size[1:], 0))
    return np.stack([np.ones(len(rows)), _logit(rows[:, COLUMNS.index("peak")]), neighbour], axis=1)


def _size(area: np.ndarray) -> np.ndarray:
    """Diameters, of which the largest is 1."""
    return np.sqrt(area / max(area.max(initial=0), 1))


def _logit(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, _LEAST, 1 - _LEAST)
    return np.log(share / (1 - share))


def _logistic(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))


def as_text(confidence: Confidence) -> str:
    """The content of the file that `read_confidence` reads."""
    rounded = {
        label: [None if value is None else round(float(value), 3) for value in own]
        for label, own in confidence.slices.items()
    }
    return json.dumps({"orientation": confidence.orientation, "slices": rounded})


def doubtful_places(confidence: Confidence) -> list[tuple[str, int, float]]:
    """Doubtful slices as (label, slice, expected Dice), worst first, label by label, worst label first.

    Of doubtful slices that lie close together, only the worst is listed.
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

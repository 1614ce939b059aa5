"""Means, intervals and tests with the patient as the unit: objects of one patient are no independent evidence.

Objects are averaged within their label and case, labels within the case, cases within the patient; what is left, one
value a patient, is what means, bootstrap intervals and paired tests are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.evaluation.seeds import draws

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over patients with its 95 % bootstrap interval, which one patient does not have."""

    mean: float
    low: float | None
    high: float | None
    patients: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences between two contestants, its interval, and Wilcoxon's signed-rank test."""

    mean: float
    low: float | None
    high: float | None
    p: float | None
    patients: int


def by_patient(rows: Sequence[Row], values: str | Sequence[float | None]) -> dict[str, float]:
    """One value a patient, of a column or of one value a row; where it is None a row does not count."""
    if isinstance(values, str):
        values = [getattr(row, values) for row in rows]
    groups: dict[tuple, list[float]] = {}
    for row, number in zip(rows, values, strict=True):
        if number is not None:
            groups.setdefault((row.patient, row.case, row.label), []).append(float(number))
    for _ in ("objects", "labels", "cases"):
        means = {group: float(np.mean(values)) for group, values in groups.items()}
        groups = {}
        for group, mean in means.items():
            groups.setdefault(group[:-1], []).append(mean)
    return {group[0]: mean for group, mean in sorted(means.items())}


def estimate(values: Mapping[str, float]) -> Estimate | None:
    """Of one value a patient; None without any."""
    if not values:
        return None
    numbers = [values[patient] for patient in sorted(values)]
    return Estimate(float(np.mean(numbers)), *_interval(numbers), len(numbers))


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """How much more `second` has than `first`, over the patients that both have; None without any."""
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    gaps = [second[patient] - first[patient] for patient in both]
    return Difference(float(np.mean(gaps)), *_interval(gaps), _wilcoxon(gaps), len(gaps))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for there being several (Holm 1979); None stays None and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[place] = highest
    return corrected


def partial_spearman(first: Sequence[float], second: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Rank correlation of two variables (n,) with what others explain of both taken away; nan where one is constant."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(one) for one in (first, second, *others)])
    known = np.vstack([np.ones(ranks.shape[1]), ranks[2:]]).T
    left = []
    for target in ranks[:2]:
        rest = target - known @ np.linalg.lstsq(known, target, rcond=None)[0]
        left.append(rest if np.std(rest) > 1e-9 * max(np.std(target), 1.0) else np.zeros_like(rest))
    size = np.sqrt((left[0] ** 2).sum() * (left[1] ** 2).sum())
    return float((left[0] * left[1]).sum() / size) if size > 0 else float("nan")


def clustered_interval(
    groups: Mapping[str, Sequence[int]], statistic: Callable[[np.ndarray], float], resamples: int = 500
) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of a statistic of places, whole patients drawn anew; `groups` are places by patient."""
    names = sorted(groups)
    if len(names) < 2:
        return None, None
    rng = draws(0, "clustered")
    found = []
    for _ in range(resamples):
        drawn = rng.choice(len(names), len(names))
        value = statistic(np.concatenate([groups[names[place]] for place in drawn]).astype(int))
        if np.isfinite(value):
            found.append(value)
    if not found:
        return None, None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _interval(numbers: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    if len(numbers) < 2:
        return None, None
    means = draws(0, "bootstrap").choice(np.array(numbers), (RESAMPLES, len(numbers))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _wilcoxon(gaps: Sequence[float]) -> float | None:
    """Two-sided; None for fewer than two patients, 1 where nothing differs."""
    if len(gaps) < 2:
        return None
    if not any(gaps):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(gaps).pvalue)

"""Means, intervals and tests with the patient as the unit: objects of one patient are not independent evidence.

Objects are averaged within their label and case, labels within the case, and cases within the patient. Means, bootstrap
intervals and paired tests use the one value that is left for each patient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000

Interval = tuple[float, float] | tuple[None, None]


@dataclass(frozen=True)
class Estimate:
    """A mean over patients with its 95 % bootstrap interval, which a single patient does not have."""

    mean: float
    low: float | None
    high: float | None
    patients: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None for a single patient."""
        return None if self.low is None else (self.low, self.high)


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of paired differences between two methods; `p` is that of Wilcoxon's signed-rank test."""

    p: float | None


def patient_means(values: Iterable[tuple[tuple[str, ...], float | None]]) -> dict[str, float]:
    """Average within each level of a hierarchy, from the innermost to the patient.

    Args:
        values: Pairs of a key, such as (patient, case, label), and a value; None does not count.

    Returns:
        One value for each patient, sorted by patient.
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    for key, value in values:
        if value is not None:
            groups.setdefault(key, []).append(float(value))
    while groups:
        means = {key: float(np.mean(own)) for key, own in groups.items()}
        if len(next(iter(means))) == 1:
            return {patient: mean for (patient,), mean in sorted(means.items())}
        groups = {}
        for key, mean in means.items():
            groups.setdefault(key[:-1], []).append(mean)
    return {}


def estimate(values: Mapping[str, float]) -> Estimate | None:
    """Mean and interval of one value for each patient; None without any."""
    if not values:
        return None
    numbers = [values[patient] for patient in sorted(values)]
    return Estimate(float(np.mean(numbers)), *bootstrap_interval(numbers), len(numbers))


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """The gain of `second` over `first`, for the patients that both have; None without any."""
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    gaps = [second[patient] - first[patient] for patient in both]
    return Difference(float(np.mean(gaps)), *bootstrap_interval(gaps), len(gaps), _wilcoxon(gaps))


def bootstrap_interval(
    patients: Sequence[float], statistic: Callable[[np.ndarray], float] | None = None, resamples: int = RESAMPLES
) -> Interval:
    """95 % percentile interval of a bootstrap over whole patients (SciPy's).

    Args:
        patients: One number for each patient (n,): its value, or its index for `statistic`.
        statistic: Maps drawn patients (n,) to a number; NaN where it is not defined. Default: the mean.
        resamples: How often n patients are drawn.

    Returns:
        Both ends; (None, None) for fewer than two patients, and if no draw has a finite value.
    """
    if len(patients) < 2:
        return None, None
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on draws whose statistic is NaN, which do not count
        drawn = bootstrap(
            (np.asarray(patients),), statistic or np.mean, vectorized=statistic is None, n_resamples=resamples,
            method="percentile", random_state=0,
        ).bootstrap_distribution  # fmt: skip
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None, None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for the number of comparisons (Holm 1979); None stays None and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[place] = highest
    return corrected


def partial_spearman(first: Sequence[float], second: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Rank correlation of two variables, without what others explain of both.

    Args:
        first: one value a case (n,).
        second: one value a case.
        others: the variables to control for, each with one value a case.

    Returns:
        -1 to 1; NaN if no variation is left.
    """
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(one) for one in (first, second, *others)], axis=1)
    known = np.column_stack([np.ones(len(ranks)), ranks[:, 2:]])
    left = ranks[:, :2] - known @ np.linalg.lstsq(known, ranks[:, :2], rcond=None)[0]
    left[:, np.std(left, axis=0) <= 1e-9 * np.std(ranks[:, :2], axis=0).clip(1.0)] = 0.0
    size = np.sqrt((left**2).sum(axis=0).prod())
    return float(left.prod(axis=1).sum() / size) if size > 0 else float("nan")


def _wilcoxon(gaps: Sequence[float]) -> float | None:
    """Two-sided p; None for fewer than two patients, 1 without differences."""
    if len(gaps) < 2:
        return None
    if not any(gaps):
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(gaps).pvalue)

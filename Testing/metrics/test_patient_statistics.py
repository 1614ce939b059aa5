"""Patients are the units; intervals, tests and correlations agree with what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from SAMFineTuneLib.metrics.patient_statistics import (
    bootstrap_interval,
    difference,
    estimate,
    holm,
    partial_spearman,
    patient_means,
)


def test_objects_of_one_patient_are_one_value():
    values = [(("a", "1", "liver"), value) for value in (0.2, 0.4, 0.6)]  # liver .4, spleen .8: case 1 is .6
    values += [(("a", "1", "spleen"), 0.8), (("a", "2", "liver"), 1.0), (("b", "3", "liver"), 0.5)]
    values += [(("b", "3", "liver"), None)]
    assert patient_means(values) == pytest.approx({"a": 0.8, "b": 0.5})
    assert patient_means([]) == {} and patient_means([(("a", "1"), None)]) == {}
    assert estimate({}) is None and difference({"a": 1.0}, {"b": 1.0}) is None


def test_the_interval_is_as_wide_as_theory_says_and_one_patient_has_none():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    found = estimate({f"{number:03}": value for number, value in enumerate(values)})
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    single = estimate({"a": 0.5})
    assert (single.mean, single.low, single.high, single.patients) == (0.5, None, None, 1)


def test_differences_are_paired_by_patient():
    rng = np.random.default_rng(1)
    first = {f"p{number}": rng.uniform() for number in range(12)}
    second = {name: value + 0.1 + rng.normal(0, 0.01) for name, value in first.items()} | {"other": 0.0}
    found = difference(first, second)
    gaps = [second[name] - first[name] for name in first]
    assert found.mean == pytest.approx(np.mean(gaps)) and found.patients == 12
    assert found.low > 0.08 and found.p == pytest.approx(stats.wilcoxon(gaps).pvalue) and found.p < 0.001
    same = difference(first, first)
    assert (same.mean, same.p) == (0.0, 1.0)


def test_holm_is_what_his_paper_says():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_partial_correlation_takes_away_what_others_explain():
    rng = np.random.default_rng(2)
    cause = rng.normal(size=500)
    first, second = cause + 0.5 * rng.normal(size=500), cause + 0.5 * rng.normal(size=500)
    assert stats.spearmanr(first, second)[0] > 0.6
    assert abs(partial_spearman(first, second, [cause])) < 0.1
    ranks = np.corrcoef(np.stack([stats.rankdata(one) for one in (first, second, cause)]))
    precision = np.linalg.inv(ranks)
    by_inverse = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    assert partial_spearman(first, second, [cause]) == pytest.approx(by_inverse)
    assert np.isnan(partial_spearman(first, np.ones(500), [cause]))


def test_whole_patients_are_drawn():
    values = np.array([0.0] * 50 + [1.0] * 50)
    places = [np.arange(50), np.arange(50, 100)]

    def mean(drawn):
        return values[np.concatenate([places[number] for number in drawn])].mean()

    assert bootstrap_interval(range(2), mean) == (0.0, 1.0)
    assert bootstrap_interval([1], mean) == (None, None)
    assert bootstrap_interval(range(2), lambda drawn: float("nan")) == (None, None)
    assert bootstrap_interval(range(2), lambda drawn: np.nan if drawn[0] == drawn[1] else 1.0) == (1.0, 1.0)

"""Patients are the units; intervals, tests and correlations agree with what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import annotator
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.evaluation.result_rows import Row, from_csv, to_csv
from SAMFineTuneLib.evaluation.statistics import (
    by_patient,
    clustered_interval,
    difference,
    estimate,
    holm,
    partial_spearman,
)


def row(patient, case, label, dice, **more):
    return Row("who", patient, case, label, "S2", "", dice=dice, **more)


def test_objects_of_one_patient_are_one_value():
    rows = [row("a", "1", "liver", value) for value in (0.2, 0.4, 0.6)]  # liver .4, spleen .8: case 1 is .6
    rows += [row("a", "1", "spleen", 0.8), row("a", "2", "liver", 1.0), row("b", "3", "liver", 0.5)]
    rows += [row("b", "3", "liver", None)]
    assert by_patient(rows, "dice") == pytest.approx({"a": 0.8, "b": 0.5})
    assert by_patient(rows, [1.0] * 7) == {"a": 1.0, "b": 1.0}
    assert by_patient([], "dice") == {}
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
    groups = {"a": list(range(50)), "b": list(range(50, 100))}
    assert clustered_interval(groups, lambda places: values[places].mean()) == (0.0, 1.0)
    assert clustered_interval({"a": [1]}, np.mean) == (None, None)


def test_rows_survive_their_file():
    first = row("a", "1", 'liver, "left"', 0.123456, object="axial:3/1/0", step=4, distance=-2.5)
    rows = [first, row("b", "2", "x", None)]
    text = to_csv(rows)
    assert from_csv(text) == rows and to_csv(from_csv(text)) == text
    for damaged in ("", text.replace("dice", "dise"), text.replace(",4,", ",four,")):
        with pytest.raises(ValueError):
            from_csv(damaged)


def test_seconds_of_an_annotator():
    seconds = Seconds(box=7, point=3, look=2, outline=30)
    assert annotator.clicks_to([0.5, 0.86, 0.8], 0.85) == 2 and annotator.clicks_to([0.5], 0.85) is None
    assert annotator.seconds_for_object([0.9], "box", seconds, 0.85) == 9
    assert annotator.seconds_for_object([0.5, 0.7, 0.9, 0.9], "point", seconds, 0.85) == 3 * 3 + 3 * 2
    assert annotator.seconds_for_object([0.5, 0.7], "point", seconds, 0.85) == 2 * 3 + 2 * 2 + 30
    slices = [row("a", "1", "x", dice, area=area) for dice, area in ((0.9, 5.0), (0.5, 5.0), (0.0, 0.0))]
    assert annotator.seconds_for_volume(slices, "box", seconds, 0.85) == (7 + 3 * 2 + 30 + 3, 60)


def test_times_are_read_and_refused():
    assert Seconds.parse("outline=60, point=2") == Seconds(point=2, outline=60) and Seconds.parse(None) == Seconds()
    for wrong in ("outline", "lines=3", "box=-1", "box=x", "box=inf"):
        with pytest.raises(UserError, match="is no time; give seconds for box, point, look, outline"):
            Seconds.parse(wrong)

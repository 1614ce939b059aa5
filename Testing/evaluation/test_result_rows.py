"""Rows survive their file, patients are their unit, and an annotator's time follows from them."""

from __future__ import annotations

import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import annotator
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.evaluation.result_rows import Row, by_patient, from_csv, to_csv


def row(patient, case, label, dice, **more):
    return Row("who", patient, case, label, "S2", "", dice=dice, **more)


def test_columns_and_given_values_are_averaged_within_patients():
    rows = [row("a", "1", "liver", 0.2), row("a", "1", "liver", 0.4), row("b", "3", "liver", None)]
    assert by_patient(rows, "dice") == pytest.approx({"a": 0.3})
    assert by_patient(rows, [1.0, 1.0, 0.5]) == {"a": 1.0, "b": 0.5}


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
        with pytest.raises(UserError, match="is not a time; give seconds for box, point, look, outline"):
            Seconds.parse(wrong)

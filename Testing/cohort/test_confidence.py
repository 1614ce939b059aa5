"""Confidence: what signals say, how accepted cases calibrate it, and which places are doubtful."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortState
from SAMFineTuneLib.cohort.confidence import (
    CONFIDENCE,
    DOUBTFUL,
    Calibration,
    Confidence,
    Judged,
    as_text,
    calibrate,
    doubtful_places,
    expected,
    read_confidence,
    signals_of,
)

SHAPE = (12, 24, 24)


def case(seed: int, honest: bool = True) -> tuple[dict, np.ndarray, np.ndarray]:
    """Signals, proposal and reference of a ball whose lower half the proposal is unsure of and often wrong about; with
    honest=False it is wrong everywhere, and sure of it."""
    rng = np.random.default_rng(seed)
    k, j, i = np.indices(SHAPE)
    right = ((k - 5.5) ** 2 + ((j - 12) / 2) ** 2 + ((i - 12) / 2) ** 2) < 25
    proposed, rows, before = np.zeros(SHAPE, np.uint8), [], None
    for index in range(SHAPE[0]):
        shift = int(rng.integers(4, 9)) if index < 6 and rng.random() < 0.7 else 0
        mask = np.roll(right[index], shift if honest else 4, axis=1)
        sure = 0.6 if honest and shift else 0.95
        shares = np.where(mask, sure, 1 - sure)
        rows.append(signals_of(mask, shares, before))
        proposed[index][mask], before = 1, mask
    return {"ball": np.array(rows)}, proposed, right.astype(np.uint8)


def judged(seed: int, **more) -> Judged:
    signals, proposed, right = case(seed, **more)
    return Judged.of(signals, proposed, right, 0, {1: "ball"})


def area_under_curve(values, bad) -> float:
    good, low = values[~bad], values[bad]
    return float(np.mean((good[:, None] > low) + 0.5 * (good[:, None] == low)))


def values_of(signals, calibration=None) -> np.ndarray:
    confidence, _ = expected(signals, "axial", calibration)
    return np.array([1.0 if one is None else one for one in confidence.slices["ball"]])


@pytest.mark.parametrize("calibration", [None, calibrate([judged(seed) for seed in range(4)])])
def test_wrong_slices_are_told_from_right_ones(calibration):
    values = np.concatenate([values_of(case(seed)[0], calibration) for seed in range(10, 30)])
    bad = np.concatenate([judged(seed).dice["ball"] < DOUBTFUL for seed in range(10, 30)])
    assert bad.any() and area_under_curve(values, bad) > 0.9


def test_accepted_cases_bring_the_expected_dice_near_the_true_one():
    usual, few, many = (calibrate([judged(seed, honest=False) for seed in range(n)]) for n in (0, 1, 8))
    assert usual == Calibration()
    signals, dice = case(20, honest=False)[0], judged(20, honest=False).dice["ball"]
    found = signals["ball"][:, 0] > 0
    errors = [abs(np.mean(values_of(signals, one)[found] - dice[found])) for one in (usual, few, many)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=12))
def test_whatever_was_accepted_a_surer_slice_is_never_trusted_less(slices):
    own = {"ball": np.array([[100, 100 * mass, 100 * mass * part, part, 50] for mass, part, *_ in slices])}
    dice = {"ball": np.array([dice for *_, dice in slices])}
    fitted = calibrate([Judged(own, dice, frozenset(["ball"]))])
    surer = [values_of({"ball": np.array([[100.0, 100, inside, 1, 0]])}, fitted)[0] for inside in range(0, 101, 10)]
    assert (np.diff(surer) >= -1e-12).all()


def test_what_is_found_nowhere_is_as_sure_as_other_cases_lack_it():
    nothing = {"ball": np.zeros((5, 5))}
    confidence, whole = expected(nothing, "axial", None)
    assert confidence.slices["ball"] == (None,) * 5 and whole == {"ball": 0.0}
    without = Judged.of(nothing, np.zeros((5, 4, 4), int), np.zeros((5, 4, 4), int), 0, {1: "ball"})
    _, whole = expected(nothing, "axial", calibrate([without] * 3))
    assert whole["ball"] == pytest.approx(0.75)


def test_dice_by_slice_across_any_axis():
    rng = np.random.default_rng(2)
    one, other = rng.integers(0, 3, (2, 4, 5, 6))
    for axis in range(3):
        found = Judged.of({}, one, other, axis, {1: "a", 2: "b", 7: "c"})
        for value, name in ((1, "a"), (2, "b")):
            for index, dice in enumerate(found.dice[name]):
                a, b = (np.take(array, index, axis) == value for array in (one, other))
                assert dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert (found.dice["c"] == 1).all() and found.present == {"a", "b"}


def test_a_picture_of_its_own_has_no_neighbours_to_be_unlike():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    alone = {"ball": np.array([signals_of(mask, np.where(mask, 0.98, 0.02), None)])}
    assert values_of(alone)[0] > DOUBTFUL


slice_values = st.lists(st.none() | st.floats(0, 1), max_size=30)


@given(st.dictionaries(st.sampled_from(["liver", "spleen", "tumour"]), slice_values))
def test_doubtful_places_are_in_order_and_apart(slices):
    places = doubtful_places(Confidence("axial", slices))
    for label, index, value in places:
        assert slices[label][index] == value < DOUBTFUL
    by_label = [label for n, (label, *_) in enumerate(places) if n == 0 or places[n - 1][0] != label]
    assert len(by_label) == len(set(by_label)), "label by label"
    worst = [min(own) for own in ([value for name, _, value in places if name == label] for label in by_label)]
    assert worst == sorted(worst)
    for label in by_label:
        own = [(index, value) for name, index, value in places if name == label]
        assert [value for _, value in own] == sorted(value for _, value in own)
    for label, own in slices.items():
        for index, value in enumerate(own):
            if value is not None and value < DOUBTFUL:
                near = [one for name, other, one in places if name == label and abs(other - index) < 3]
                assert near and min(near) <= value, "every doubtful slice is at or near a place that is no better"


@given(st.dictionaries(st.sampled_from(["liver", "ß/ü \"x\""]), slice_values))
def test_confidence_survives_its_file(tmp_path_factory, slices):
    folder = tmp_path_factory.mktemp("cohort") / "own"
    cohort = Cohort.create(folder, CohortState({1: "liver"}, (), ("", "")))
    assert read_confidence(cohort, "key") is None
    file = cohort.proposal("key") / CONFIDENCE
    file.parent.mkdir(parents=True)
    file.write_text(as_text(Confidence("coronal", slices)), "utf-8")
    read = read_confidence(cohort, "key")
    assert read.orientation == "coronal" and set(read.slices) == set(slices)
    for label, own in slices.items():
        assert [one is None for one in read.slices[label]] == [one is None for one in own]
        assert all(one is None or abs(one - other) <= 5e-4 for one, other in zip(own, read.slices[label], strict=True))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "[" * 100000, *(json.dumps({"orientation": "axial", "slices": slices}) for slices in
             (3, {"liver": True}, {"liver": [0.5, "high"]}, {"liver": [0.5, {}]}))],
    ids=range(8),
)  # fmt: skip
def test_a_damaged_file_counts_as_missing(tmp_path, text):
    cohort = Cohort.create(tmp_path / "own", CohortState({1: "liver"}, (), ("", "")))
    cohort.proposal("key").mkdir(parents=True)
    (cohort.proposal("key") / CONFIDENCE).write_text(text, "utf-8")
    assert read_confidence(cohort, "key") is None

"""Whole volumes from boxes on a few slices and from clicks at the largest error, with an engine that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from region_engine import WINDOW, phantom, region_predictor

from SAMFineTuneLib.cases.cases import Case
from SAMFineTuneLib.cases.labelled_case import Labelled
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.methods import ListedMethod, OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Results, from_csv, to_csv
from SAMFineTuneLib.evaluation.volume_protocol import volumes
from SAMFineTuneLib.evaluation.volume_sessions import BOXES, CLICKED, CLICKS, centre_of_largest, ends, spread
from SAMFineTuneLib.evaluation.volume_tables import volume_box_table, volume_click_table
from SAMFineTuneLib.images import Volume
from SAMFineTuneLib.segmenter import Segmenter

NAMES = ("tube", "ball", "second tube")
LONGEST = 4.0  # mm, the largest side of the phantom's voxels


class Region(OpenMethod):
    """The region engine as a method."""

    def __init__(self) -> None:
        self.entry, self.name, self.predictor = ListedMethod("region", Path("nowhere")), "region", region_predictor()


def measured(volume: Volume, labels: np.ndarray) -> list:
    subject = Subject(Labelled(Case("phantom", Path("a"), Path("b")), volume, labels, NAMES, "c" * 64), "0,255")
    rows = volumes(Region(), subject, EvaluationSettings(rounds=0))
    return [row for row in rows if row.variant in (*BOXES.values(), CLICKED)]


@pytest.fixture(scope="module")
def rows():
    return measured(*phantom())


def test_boxes_on_more_slices_give_more_of_a_volume(rows):
    for name in NAMES:
        found = {row.variant: row for row in rows if row.label == name and row.variant != CLICKED}
        assert list(found) == list(BOXES.values())
        assert found["5 boxes"].dice > 0.9 and found["5 boxes"].dice >= found["3 boxes"].dice - 0.02
        assert found["5 boxes"].short <= 1 and found["5 boxes"].over == 0, "filling ends at the outermost boxes"


def test_slices_too_many_and_missed_are_counted_at_both_ends():
    volume, labels = phantom()
    seen = np.flatnonzero((labels == 2).any(axis=(1, 2)))
    labels[seen[-2] :][labels[seen[-2] :] == 2] = 0  # the reference ends two slices before what is seen
    one = next(row for row in measured(volume, labels) if row.label == "ball" and row.variant == "1 box")
    assert 0.5 <= one.over <= 1.0 and one.short <= 0.5


def test_five_clicks_follow_the_boxes_of_one_slice(rows):
    for name in NAMES:
        course = [row for row in rows if row.label == name and row.variant == CLICKED]
        first = next(row for row in rows if row.label == name and row.variant == "1 box")
        assert [row.step for row in course] == list(range(1, CLICKS + 2))
        assert (course[0].dice, course[0].nsd, course[0].over) == (first.dice, first.nsd, first.over)
        assert course[-1].dice >= course[0].dice - 0.01 > 0.8


@pytest.mark.parametrize("flip", [False, True])
def test_dice_and_nsd_agree_with_what_others_compute(flip):
    """The same boxes through `Segmenter`; Dice by SimpleITK, NSD from all distances one by one."""
    volume, labels = phantom(flip, slices=12)
    row = next(row for row in measured(volume, labels) if row.label == "ball" and row.variant == "3 boxes")
    segmenter = Segmenter(volume, window=WINDOW, predictor=region_predictor(), tell=lambda _: None)
    own = [k for k in range(12) if np.count_nonzero(labels[k] == 2) >= 20]
    for k in (own[0], own[round((len(own) - 1) / 2)], own[-1]):
        j, i = np.nonzero(labels[k] == 2)
        segmenter.box((i.min(), j.min(), k), (i.max(), j.max(), k), space="ijk")
    mask, truth = segmenter.propagate(direction="fill").mask(), labels == 2
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(one.astype(np.uint8)) for one in (truth, mask)))
    assert row.dice == pytest.approx(overlap.GetDiceCoefficient()) and 0.8 < row.dice < 1
    first, second = (surface(one) * (4.0, 1.5, 1.5) for one in (mask, truth))
    apart = np.linalg.norm(first[:, None] - second[None], axis=2)
    near = np.count_nonzero(apart.min(axis=1) <= LONGEST + 1e-6) + np.count_nonzero(apart.min(axis=0) <= LONGEST + 1e-6)
    assert row.nsd == pytest.approx(near / sum(apart.shape))


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels (n, 3) with a neighbour across a face that is outside."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner)


def test_tables_hold_the_boxes_and_the_area_under_the_clicks(rows):
    again = from_csv(to_csv(rows))
    assert [(row.over, row.short) for row in again] == [(row.over, row.short) for row in rows]
    results = Results([row for row in rows if row.label == "ball"], ["region"])
    assert [row[1] for row in volume_box_table(results).rows] == list(BOXES.values())
    course = [row.nsd for row in rows if row.label == "ball" and row.variant == CLICKED]
    nsd = volume_click_table(results).rows[1]
    assert nsd[:2] == ("region", "NSD") and nsd[2:8] == pytest.approx(course)
    assert nsd[8].mean == pytest.approx(sum(course[2:-1]) + (course[1] + course[-1]) / 2)


def test_boxes_are_spread_from_end_to_end():
    own = list(range(10, 31))
    assert [spread(own, count) for count in BOXES] == [[20], [10, 20, 30], [10, 15, 20, 25, 30]]
    assert spread([4, 5], 5) == [4, 5] and spread([7], 3) == [7]


@settings(max_examples=60)
@given(arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)), st.integers(0, 2))
def test_ends_and_centres_of_any_masks(mask, axis):
    voxel = centre_of_largest(mask)
    assert (voxel is None) == (not mask.any())
    if voxel is not None:
        labels = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
        labels = sitk.GetArrayFromImage(labels)
        sizes = np.bincount(labels.ravel())
        assert sizes[labels[voxel]] == max(sizes[1:])
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        depths = {tuple(one): ((outside - one) ** 2).sum(axis=1).min() for one in np.argwhere(labels == labels[voxel])}
        assert depths[voxel] == max(depths.values())
    truth = np.roll(mask, 1, axis) | np.zeros_like(mask)
    truth.flat[0] = True
    (over, short), count = ends(mask, truth, axis), mask.shape[axis]
    assert all(0 <= number <= count for number in (*over, *short))
    if mask.any():
        assert all(not few or not many for few, many in zip(short, over, strict=True))
        assert ends(truth, mask, axis) == (short, over)

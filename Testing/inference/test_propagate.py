from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from region_engine import WINDOW, phantom, region_predictor

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume, VolumeSource
from SAMFineTuneLib.images.slice_extraction import extract_labels, picture
from SAMFineTuneLib.images.slice_plane import aligned_plane, oblique_plane
from SAMFineTuneLib.inference.piece_prompts import PieceAnswer, derive_prompts, touching_pieces
from SAMFineTuneLib.inference.prediction import Prediction
from SAMFineTuneLib.inference.progress import Progress
from SAMFineTuneLib.inference.propagation import propagate
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, PropagationEnd, Seed
from SAMFineTuneLib.inference.settings import PropagationSettings


def truth(volume, labels, plane, value):
    return extract_labels(labels, volume, plane) == value


def seed(volume, labels, index, value=1, orientation="axial"):
    plane = aligned_plane(volume, orientation, index)
    return Seed(plane, truth(volume, labels, plane, value))


def run(volume, seeds, predictor=None, **settings):
    items = list(propagate(predictor or region_predictor(), volume, WINDOW, seeds, PropagationSettings(**settings)))
    slices = {item.plane.index: item for item in items if isinstance(item, PropagatedSlice)}
    return slices, [item.reason for item in items if isinstance(item, PropagationEnd)]


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_it_follows_a_leaning_tube_both_ways():
    volume, labels = phantom()
    slices, ends = run(volume, [seed(volume, labels, 9)])
    assert sorted(slices) == [index for index in range(24) if index != 9]
    assert ends == []
    for item in slices.values():
        assert dice(item.mask, truth(volume, labels, item.plane, 1)) > 0.95
        assert item.sources == (aligned_plane(volume, "axial", 9).key,)
        assert 0 < item.overlap <= 1 and item.score == pytest.approx(0.9, abs=0.1)


def test_it_stops_where_the_ball_ends_and_says_why():
    volume, labels = phantom()
    slices, ends = run(volume, [seed(volume, labels, 11, value=2)], direction="both")
    there = [index for index in range(24) if (labels[index] == 2).any()]
    assert set(slices) <= set(there)
    assert len(slices) >= len(there) - 3
    assert len(ends) == 2 and all("ended before axial slice" in reason and " mm)" in reason for reason in ends)


@pytest.mark.parametrize("flip", [False, True])
def test_up_is_towards_the_head_however_the_slices_are_stored(flip):
    volume, labels = phantom(flip)
    start = seed(volume, labels, 9)
    slices, _ = run(volume, [start], direction="up")
    assert slices and all(item.plane.origin[2] > start.plane.origin[2] for item in slices.values())
    slices, _ = run(volume, [start], direction="down")
    assert slices and all(item.plane.origin[2] < start.plane.origin[2] for item in slices.values())


@pytest.mark.parametrize("orientation", ["coronal", "sagittal"])
def test_it_walks_in_the_plane_of_the_seed(orientation):
    volume, labels = phantom()
    middle = {"coronal": 36, "sagittal": 44}[orientation]
    start = seed(volume, labels, middle, value=2, orientation=orientation)
    slices, _ = run(volume, [start], first=middle - 4, last=middle + 4)
    assert sorted(slices) == [index for index in range(middle - 4, middle + 5) if index != middle]
    for item in slices.values():
        assert item.plane.orientation == orientation
        assert dice(item.mask, truth(volume, labels, item.plane, 2)) > 0.8


def test_oblique_planes_share_a_grid_a_slice_thickness_apart():
    volume, labels = phantom()
    middle = volume.ijk_to_ras((44, 36, 11))
    plane = oblique_plane(volume, middle, (-1, 0, 0), (0, -1, 0.35))
    start = Seed(plane, truth(volume, labels, plane, 2))
    items = [
        item
        for item in propagate(region_predictor(tolerance=60), volume, WINDOW, [start], PropagationSettings())
        if isinstance(item, PropagatedSlice)
    ]
    assert len(items) >= 4
    for item in items:
        expected = truth(volume, labels, item.plane, 2)
        assert dice(item.mask, expected) > (0.85 if expected.sum() > 100 else 0.5)
        steps = float(item.plane.distance(plane.origin)) / plane.thickness
        assert steps == pytest.approx(round(steps), abs=1e-4) and round(steps) != 0


def test_pieces_are_carried_apart():
    volume, labels = phantom()
    plane = aligned_plane(volume, "axial", 8)
    both = Seed(plane, np.isin(extract_labels(labels, volume, plane), (1, 3)))
    slices, _ = run(volume, [both])
    for item in slices.values():
        assert dice(item.mask, np.isin(extract_labels(labels, volume, item.plane), (1, 3))) > 0.95


def test_between_two_slices_masks_come_from_both_ends():
    volume, labels = phantom()
    low, high = seed(volume, labels, 3), seed(volume, labels, 12)
    slices, ends = run(volume, [high, low], direction="fill")
    assert sorted(slices) == list(range(4, 12)) and ends == []
    assert slices[4].sources == (low.plane.key,)
    assert slices[11].sources == (high.plane.key,)
    assert set(slices[8].sources) | set(slices[7].sources) == {low.plane.key, high.plane.key}
    assert all(dice(item.mask, truth(volume, labels, item.plane, 1)) > 0.95 for item in slices.values())


def test_the_last_slice_of_an_odd_gap_hears_both_ends():
    volume, labels = phantom()
    low, high = seed(volume, labels, 3), seed(volume, labels, 5)
    slices, _ = run(volume, [low, high], direction="fill")
    assert set(slices[4].sources) == {low.plane.key, high.plane.key}


def test_a_gap_with_nothing_in_it_stays_empty_and_is_said():
    volume, labels = phantom(slices=24)
    grey = volume.array.copy()
    grey[6:10][labels[6:10] == 1] = 40  # the tube is interrupted
    broken = type(volume)(grey, volume.affine)
    slices, ends = run(broken, [seed(volume, labels, 3), seed(volume, labels, 13)], direction="fill")
    assert sorted(slices) == [4, 5, 10, 11, 12]
    (end,) = ends
    assert "axial slice 6 (S" in end and "to axial slice 9 (S" in end and "stay empty" in end


def without_slices(volume, missing, grey):
    """The volume as read from a series that lacks slices, which show `grey` instead of something interpolated."""
    array = volume.array.copy()
    array[list(missing)] = grey
    slices = tuple(None if k in missing else (k, 1) for k in range(len(array)))
    return Volume(array, volume.affine, source=VolumeSource((), "DICOM", slices=slices))


@pytest.mark.parametrize("missing", [{12}, {7, 8, 14, 15, 16}, {10, 12, 14}])
@pytest.mark.parametrize("direction", ["both", "fill"])
def test_slices_that_were_not_taken_are_bridged_whatever_they_show(missing, direction):
    volume, labels = phantom()
    seeds = [seed(volume, labels, index) for index in ((9,) if direction == "both" else (5, 18))]
    whole, _ = run(volume, seeds, direction=direction)
    slices, ends = run(without_slices(volume, missing, 0), seeds, direction=direction)
    assert sorted(slices) == sorted(whole) and ends == []
    for index, item in slices.items():
        assert dice(item.mask, truth(volume, labels, item.plane, 1)) > (0.8 if index in missing else 0.95)
        assert item.sources


def test_a_structure_that_ends_in_a_gap_is_not_carried_beyond_it():
    volume, labels = phantom()
    grey = volume.array.copy()
    grey[14:][labels[14:] == 1] = 0
    broken = without_slices(type(volume)(grey, volume.affine), {14, 15}, 0)
    slices, ends = run(broken, [seed(volume, labels, 9)], direction="up")
    assert sorted(slices) == [10, 11, 12, 13]
    assert "axial slice 16" in ends[0]


def test_with_both_the_gap_is_filled_and_the_outside_walked():
    volume, labels = phantom()
    slices, _ = run(volume, [seed(volume, labels, 5), seed(volume, labels, 12)], direction="both")
    assert sorted(slices) == [index for index in range(24) if index not in (5, 12)]
    only_up, _ = run(volume, [seed(volume, labels, 5), seed(volume, labels, 12)], direction="up")
    assert sorted(only_up) == [*range(6, 12), *range(13, 24)]


def test_slices_outside_the_range_are_not_returned():
    volume, labels = phantom()
    slices, _ = run(volume, [seed(volume, labels, 9)], first=7, last=12)
    assert sorted(slices) == [7, 8, 10, 11, 12]
    slices, _ = run(volume, [seed(volume, labels, 9)], first=12, last=13)
    assert sorted(slices) == [12, 13]


def test_progress_counts_to_the_end_even_when_a_direction_ends_early():
    volume, labels = phantom()
    seen: list[Progress] = []
    list(propagate(region_predictor(), volume, WINDOW, [seed(volume, labels, 11, value=2)], progress=seen.append))
    assert [item.total for item in seen] == [23] * len(seen)
    assert [item.done for item in seen] == sorted({item.done for item in seen})
    assert seen[-1].done == 23 and seen[-1].seconds_left == 0


def test_it_can_be_cancelled_between_slices():
    volume, labels = phantom()
    found = []
    steps = propagate(
        region_predictor(), volume, WINDOW, [seed(volume, labels, 9)], cancelled=lambda: len(found) == 3
    )
    for item in steps:
        found.append(item)
    assert len(found) == 3


def test_a_score_far_below_the_best_one_ends_it():
    volume, labels = phantom()
    predictor = region_predictor()
    asked = predictor.predict

    def doubtful(shown, *args, **kwargs):
        prediction = asked(shown, *args, **kwargs)
        worse = np.array_equal(shown, picture(volume, aligned_plane(volume, "axial", 13), WINDOW))
        return replace(prediction, scores=prediction.scores * (0.4 if worse else 1))

    predictor.predict = doubtful
    slices, ends = run(volume, [seed(volume, labels, 9)], predictor, direction="up")
    assert sorted(slices) == [10, 11, 12] and "predicted IoU 0.36 after 0.90" in ends[0]
    slices, ends = run(volume, [seed(volume, labels, 9)], predictor, direction="up", min_score=0.3)
    assert sorted(slices) == list(range(10, 24)) and ends == []


def test_a_leak_ends_it():
    volume, labels = phantom()
    predictor = region_predictor()
    asked = predictor.predict

    def leaking(shown, *args, **kwargs):
        prediction = asked(shown, *args, **kwargs)
        if not np.array_equal(shown, picture(volume, aligned_plane(volume, "axial", 15), WINDOW)):
            return prediction
        return replace(prediction, to_masks=lambda logits: np.ones((len(logits), *shown.shape), bool))

    predictor.predict = leaking
    slices, ends = run(volume, [seed(volume, labels, 9)], predictor, direction="up")
    assert max(slices) == 14 and "the area changes" in ends[0]


@pytest.mark.parametrize("around, ended", [(40, False), (110, False), (200, True)])
def test_a_mask_that_is_darker_than_its_surroundings_is_not_the_bright_structure_any_more(around, ended):
    volume, labels = phantom()
    grey = volume.array.copy()
    grey[15:] = np.where(labels[15:] == 0, around, grey[15:])
    slices, ends = run(type(volume)(grey, volume.affine), [seed(volume, labels, 9)], direction="up")
    assert max(slices) == (14 if ended else 23)
    assert [end for end in ends if "darker than what is around it, not brighter" in end] == ends and bool(ends) == ended
    slices, ends = run(type(volume)(grey, volume.affine), [seed(volume, labels, index) for index in (9, 20)])
    assert {*range(10, 20)} <= set(slices), "between two prompted slices it cannot have ended"


def test_derived_prompts():
    mask = np.zeros((40, 50), bool)
    mask[10:20, 0:41] = True
    prompts = derive_prompts(mask, zoom=False)
    assert np.allclose(prompts.box, (0, 9, 42.05, 20)) and np.array_equal(prompts.mask, mask)
    assert len(prompts.points) == 0
    prompts = derive_prompts(mask, zoom=True)
    assert prompts.box is None and np.array_equal(prompts.mask, mask)
    xs, ys = prompts.points.astype(int).T
    assert 1 <= len(prompts.points) <= 3 and mask[ys, xs].all() and (prompts.labels == 1).all()


def test_the_piece_that_overlaps_most_goes_on():
    before = np.zeros((20, 30), bool)
    before[5:10, 5:15] = True
    after = np.zeros_like(before)
    after[5:10, 3:9] = after[5:10, 11:14] = after[15:18, 20:28] = True
    assert [piece.sum() for piece in touching_pieces(after, before)] == [30, 15]
    answer = PieceAnswer(Prediction(np.ones(1), np.zeros((1, 4, 4)), None, lambda _: after[None]), 0)
    assert answer.mask_near(before).sum() == 30
    assert not answer.mask_near(np.zeros_like(before)).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"direction": "sideways"},
        {"first": 5, "last": 4},
        {"min_overlap": 1.5},
        {"max_area_change": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UserError):
        PropagationSettings(**settings)


def test_seeds_that_make_no_sense_are_refused():
    volume, labels = phantom()
    axial, coronal = seed(volume, labels, 9), seed(volume, labels, 14, orientation="coronal")
    with pytest.raises(UserError, match="no mask"):
        run(volume, [])
    with pytest.raises(UserError, match=r"axial slice 9 \(.* mm\) is empty"):
        run(volume, [Seed(axial.plane, np.zeros_like(axial.mask))])
    with pytest.raises(UserError, match="orientations"):
        run(volume, [axial, coronal])
    with pytest.raises(UserError, match="two slices"):
        run(volume, [axial], direction="fill")

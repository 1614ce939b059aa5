from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from region_engine import WINDOW, phantom, region_predictor

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import aligned_plane, picture, write
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference import everything_mode
from SAMFineTuneLib.inference.everything_mode import (
    AutomaticMask,
    SliceMasks,
    automatic_masks,
    box_nms,
    everything,
    grid_points,
    tiles,
)
from SAMFineTuneLib.inference.input_crop import View
from SAMFineTuneLib.inference.mask_shapes import overlap, stability_score
from SAMFineTuneLib.inference.object_linking import link
from SAMFineTuneLib.inference.settings import EverythingSettings

SURE = 0.7  # the share of the best score that the engine's thinner and thicker masks do not reach
COARSE = EverythingSettings(points_per_side=12)


@pytest.fixture(autouse=True, scope="module")
def only_sure_masks():
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(everything_mode, "MIN_SCORE", SURE)
        yield


@pytest.fixture(scope="module")
def amg():
    """Segment Anything's own helpers, loaded without its package (which needs torchvision)."""
    package = importlib.util.find_spec("segment_anything")
    if package is None or importlib.util.find_spec("torch") is None:
        pytest.skip("segment-anything is not installed")
    path = Path(package.submodule_search_locations[0]) / "utils" / "amg.py"
    spec = importlib.util.spec_from_file_location("amg", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def found(mask, score=0.9):
    rows, columns = np.nonzero(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max()))
    return AutomaticMask(PackedMask.of(mask), score, box)


def disc(x, y, radius, shape=(56, 64)):
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


# ---- the definitions, against Segment Anything's


@settings(deadline=None, max_examples=50)
@given(
    logits=hnp.arrays(np.float32, (3, 7, 9), elements=st.floats(-3, 3, width=16)),
    offset=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_stability_is_segment_anythings(amg, logits, offset):
    torch = pytest.importorskip("torch")
    logits[:, 0, 0] = 5.0  # theirs divides by zero without any positive logit
    expected = amg.calculate_stability_score(torch.from_numpy(logits), 0.0, offset).numpy()
    assert np.allclose(stability_score(logits, offset), expected)


def test_stability_of_nothing_is_zero():
    assert stability_score(np.full((1, 4, 4), -9.0), 1.0) == 0.0


@pytest.mark.parametrize("shape", [(56, 64), (512, 512), (321, 1024), (50, 35)])
@pytest.mark.parametrize("layer", [1, 2])
def test_tiles_are_segment_anythings(amg, shape, layer):
    boxes, layers = amg.generate_crop_boxes(shape, layer, 512 / 1500)
    expected = {tuple(box) for box, number in zip(boxes, layers, strict=True) if number == layer}
    views = tiles(shape, layer)
    assert {(v.left, v.top, v.left + v.columns, v.top + v.rows) for v in views} == expected
    covered = np.zeros(shape, bool)
    for view in views:
        view.crop(covered)[:] = True
    assert covered.all()


@pytest.mark.parametrize("per_side", [1, 5, 32])
def test_the_grid_is_segment_anythings_in_pixel_centres(amg, per_side):
    view = View(3, 7, 40, 60)
    expected = amg.build_point_grid(per_side) * (60, 40) + (7, 3) - 0.5
    assert np.allclose(grid_points(view, per_side), expected, atol=1e-4)


boxes_of = hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.integers(0, 12))


@settings(deadline=None)
@given(boxes_of, st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.randoms(use_true_random=False))
def test_nms_keeps_a_box_unless_a_better_kept_one_overlaps_it_too_much(corners, limit, random):
    boxes = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:]) + 1], axis=1
    )
    scores = np.array([random.random() for _ in boxes])

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return shared / (area - shared)

    expected = []
    for index in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        if all(iou(boxes[index], boxes[other]) <= limit + 1e-12 for other in expected):
            expected.append(index)
    assert box_nms(boxes, scores, limit) == expected


# ---- one slice


def test_it_finds_every_structure_of_a_slice_once():
    volume, labels = phantom()
    plane = aligned_plane(volume, "axial", 11)
    shown = picture(volume, plane, WINDOW)
    masks = automatic_masks(region_predictor(), shown, COARSE)
    assert len(masks) == 3
    assert [item.score for item in masks] == sorted((item.score for item in masks), reverse=True)
    for grey in (120, 180):
        own = [item.mask.unpack() for item in masks if shown[item.mask.unpack()].min() == grey]
        assert dice(np.any(own, axis=0), shown == grey) > 0.99
    for item in masks:
        mask = item.mask.unpack()
        rows, columns = np.nonzero(mask)
        assert item.box == (columns.min(), rows.min(), columns.max(), rows.max())
        assert item.score >= SURE * 0.92
        assert len(np.unique(shown[mask])) == 1 and mask.sum() >= everything_mode.MIN_AREA


def test_filters_count(monkeypatch):
    volume, _ = phantom()
    shown = picture(volume, aligned_plane(volume, "axial", 11), WINDOW)

    def count(**changes):
        with monkeypatch.context() as changed:
            for name, value in changes.items():
                changed.setattr(everything_mode, name.upper(), value)
            return len(automatic_masks(region_predictor(), shown, COARSE))

    assert count(min_score=0.5) == 5
    assert count(min_score=1.0) == 3  # the region itself scores best; what is thinner or thicker scores less
    assert count(min_area=100) == 2  # the second tube has 81 pixels
    assert count(max_area=0.05) == 2  # the ball has more
    assert count(stability_offset=1.5, min_stability=0.9) == 0  # all logits are + or - 5


def test_finer_layers_see_small_things_and_count_nothing_twice(monkeypatch):
    monkeypatch.setattr(everything_mode, "MIN_AREA", 10)
    monkeypatch.setattr(everything_mode, "MAX_BOX_OVERLAP", 0.4)
    shown = np.full((120, 128), 40, np.uint8)
    shown[disc(30, 30, 12, shown.shape)] = 180
    shown[disc(92, 80, 4, shown.shape)] = 180
    shown[disc(64, 60, 3, shown.shape)] = 180  # in all four tiles
    settings = EverythingSettings(points_per_side=32, layers=1)
    masks = automatic_masks(region_predictor(), shown, settings)
    assert len(masks) == 3
    for x, y in ((30, 30), (92, 80), (64, 60)):
        assert sum(bool(item.mask.unpack()[y, x]) for item in masks) == 1


def test_a_mask_cut_by_a_tile_is_dropped():
    shown = np.full((64, 64), 40, np.uint8)
    shown[28:36, 2:62] = 180  # longer than any tile of layer 1
    settings = EverythingSettings(points_per_side=16, layers=1)
    masks = automatic_masks(region_predictor(), shown, settings)
    assert [item.mask.unpack().sum() for item in masks] == [8 * 60]


def test_it_can_be_cancelled_between_batches():
    volume, _ = phantom()
    predictor = region_predictor()
    shown = picture(volume, aligned_plane(volume, "axial", 11), WINDOW)
    automatic_masks(predictor, shown, EverythingSettings(), cancelled=lambda: predictor.engine.decoder_calls >= 2)
    assert predictor.engine.decoder_calls == 2


# ---- through the slices


def objects_labelmap(objects, volume):
    """Label map uint16 [k, j, i] of all objects; where they overlap, the smaller one shows."""
    labelmap = np.zeros(volume.shape, dtype=np.uint16)
    for item in sorted(objects, key=lambda item: -item.area):
        for index, mask in item.masks.items():
            plane = aligned_plane(volume, item.orientation, index)
            write(mask.unpack(), plane, labelmap, volume, item.value, protect=False)
    return labelmap


@pytest.mark.parametrize("orientation", ["axial", "coronal"])
def test_slices_are_joined_into_objects(orientation):
    volume, labels = phantom(flip=True)
    seen = []
    settings = EverythingSettings(points_per_side=8)
    slices = list(everything(region_predictor(), volume, WINDOW, orientation, settings, progress=seen.append))
    count = {"axial": 24, "coronal": 56}[orientation]
    assert [item.index for item in slices] == list(range(count))
    assert seen[-1].done == seen[-1].total == count
    objects = link(slices, settings)
    assert [item.value for item in objects] == list(range(1, len(objects) + 1))
    assert [item.area for item in objects] == sorted((item.area for item in objects), reverse=True)
    labelmap = objects_labelmap(objects, volume)
    assert labelmap.dtype == np.uint16
    for value in (1, 2, 3):
        assert max(dice(labelmap == item.value, labels == value) for item in objects) > 0.9


def slices_of(masks_by_index):
    volume, _ = phantom()
    return [
        SliceMasks(index, aligned_plane(volume, "axial", index), tuple(found(mask) for mask in masks))
        for index, masks in masks_by_index.items()
    ]


def test_a_gap_is_bridged_and_filled_but_not_a_longer_one():
    there = {k: [disc(20 + k, 20, 8)] for k in (3, 4, 6, 7)}
    (item,) = link(slices_of(there))
    assert sorted(item.masks) == [3, 4, 5, 6, 7]
    assert overlap(item.masks[5].unpack(), disc(25, 20, 8)) > 0.85
    assert item.area == sum(np.count_nonzero(mask.unpack()) for mask in item.masks.values())
    far = {k: [disc(20, 20, 8)] for k in (3, 4, 7, 8)}
    assert [sorted(item.masks) for item in link(slices_of(far))] == [[3, 4], [7, 8]]


def test_each_mask_continues_the_object_it_overlaps_most():
    masks = {
        0: [disc(20, 20, 8), disc(34, 20, 8)],
        1: [disc(33, 20, 8), disc(21, 20, 8)],
        2: [disc(22, 20, 8), disc(32, 20, 8), disc(50, 45, 5)],
    }
    objects = link(slices_of(masks))
    assert len(objects) == 2  # what is in one slice only is dropped
    for item in objects:
        centres = [np.argwhere(item.masks[k].unpack()).mean(axis=0)[1] for k in range(3)]
        assert np.all(np.abs(np.diff(centres)) < 2)


def test_scores_are_means():
    volume, _ = phantom()
    slices = [
        SliceMasks(k, aligned_plane(volume, "axial", k), (found(disc(20, 20, 8), score),))
        for k, score in ((0, 0.9), (1, 0.7))
    ]
    assert link(slices)[0].score == pytest.approx(0.8)
    assert link([]) == []


def test_the_smaller_object_shows_where_two_overlap():
    volume, _ = phantom()
    objects = link(slices_of({k: [disc(30, 30, 14), disc(30, 30, 4)] for k in (0, 1)}))
    labelmap = objects_labelmap(objects, volume)
    sizes = np.bincount(labelmap.ravel())[1:]
    small = int(disc(30, 30, 4).sum())
    assert sizes[1] == 2 * small and sizes[0] == 2 * (int(disc(30, 30, 14).sum()) - small)


@pytest.mark.parametrize(
    "changes",
    [{"points_per_side": 0}, {"layers": 9}, {"min_slices": 0}],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(UserError):
        EverythingSettings(**changes)


def test_a_range_outside_the_volume_is_refused():
    volume, _ = phantom()
    for first, last in ((0, 24), (-1, 3), (5, 4)):
        with pytest.raises(UserError, match="slices 0 to 23"):
            everything(region_predictor(), volume, WINDOW, first=first, last=last)

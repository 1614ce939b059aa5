"""Masks into segments: what is added, what is protected, what comes back when a mask is taken back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mrml.scenes import protect_others
from mrml.segment_bench import (
    SHAPE,
    box,
    random_mask,
    same,
)

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, oblique_plane
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter

# ---- showing and taking back


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_becomes_the_voxels_it_covers_and_none_takes_it_back(bench, orientation):
    plane = bench.plane(orientation)
    mask = random_mask(plane.shape, 1)
    assert bench.writer.write("first", plane, mask)
    assert np.array_equal(bench.voxels("first"), bench.covered(plane, mask))
    assert not bench.voxels("second").any()
    assert not bench.writer.write("first", plane, mask)  # nothing new
    assert bench.writer.write("first", plane, None)
    assert not bench.voxels("first").any() and bench.writer.masks() == ()
    assert not bench.writer.write("first", plane, None)


def test_an_oblique_mask_becomes_the_voxels_it_covers(bench):
    plane = oblique_plane(bench.volume, bench.volume.ijk_to_ras((5, 6, 3)), (1, 0.3, 0.2), (0.1, -1, 0.5))
    mask = random_mask(plane.shape, 1)
    bench.writer.write("first", plane, mask)
    assert bench.voxels("first").any()
    assert np.array_equal(bench.voxels("first"), bench.covered(plane, mask))


def test_the_voxel_of_a_point_belongs_to_its_mask(bench):
    plane = bench.plane("sagittal")
    mask = np.zeros(plane.shape, bool)
    mask[7, 5] = True  # one pixel that may hold no voxel's centre
    bench.writer.write("first", plane, mask, points=[(5.2, 6.9)])
    i, j, k = np.rint(bench.volume.ras_to_ijk(plane.pixel_to_ras((5.2, 6.9)))).astype(int)
    assert bench.voxels("first")[k, j, i]


def test_a_new_mask_replaces_the_old_one(bench):
    plane = bench.plane()
    first, second = random_mask(plane.shape, 1), random_mask(plane.shape, 2)
    bench.writer.write("first", plane, first)
    bench.writer.write("first", plane, second)
    assert np.array_equal(bench.voxels("first"), bench.covered(plane, second))
    assert len(bench.writer.masks()) == 1


def test_what_the_user_drew_before_stays(bench):
    drawn = box((2, 5), (3, 9), (2, 8))
    bench.draw("first", drawn)
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert bench.voxels("first").sum() > drawn.sum()
    empty = np.zeros(plane.shape, bool)
    bench.writer.write("first", plane, empty)
    assert np.array_equal(bench.voxels("first"), drawn)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("first"), drawn)


def test_neighbours_are_protected_without_an_editor_node(bench):
    drawn = box((2, 5), (3, 9), (2, 8))
    bench.draw("second", drawn)
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert np.array_equal(bench.voxels("second"), drawn)
    own = np.zeros(SHAPE, bool)
    own[3] = True
    assert np.array_equal(bench.voxels("first"), own & ~drawn)
    assert bench.segmentation.GetNumberOfLayers() == 1  # no layer is spent on it


def test_crossing_masks_are_unions(bench):
    axial, sagittal = bench.plane("axial"), bench.plane("sagittal")
    oblique = oblique_plane(bench.volume, bench.volume.ijk_to_ras((5, 6, 3)), (1, 0.3, 0.2), (0.1, -1, 0.5))
    masks = {plane.key: (plane, random_mask(plane.shape, 5)) for plane in (axial, sagittal, oblique)}
    for plane, mask in masks.values():
        bench.writer.write("first", plane, mask)
    for gone in list(masks):
        plane, _ = masks.pop(gone)
        bench.writer.write("first", plane, None)
        union = np.zeros(SHAPE, bool)
        for plane, mask in masks.values():
            union |= bench.covered(plane, mask)
        assert np.array_equal(bench.voxels("first"), union)


def test_a_segment_that_is_gone_is_a_sentence(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.segmentation.RemoveSegment("first")
    with pytest.raises(UserError, match="no longer exist"):
        bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert not bench.writer.write("first", plane, None)
    assert bench.writer.masks() == ()


def test_a_renamed_segment_is_the_same_segment(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.segmentation.GetSegment("first").SetName("liver")
    bench.writer.write("first", plane, None)
    assert not bench.voxels("first").any()


# ---- what the user does in between


def test_a_stroke_in_between_crops_the_labelmap_and_nothing_is_lost(bench):
    plane, other = bench.plane("axial", 3), bench.plane("axial", 5)
    mask = random_mask(plane.shape, 4)
    bench.writer.write("first", plane, mask)
    drawn = box((1, 2), (3, 5), (4, 6))
    bench.draw("second", drawn)
    image = bench.segmentation.GetSegment("first").GetRepresentation("Binary labelmap")
    assert image.GetDimensions()[2] == 3  # Slicer cropped it to slices 1 to 3
    bench.writer.write("first", other, mask)
    both = bench.covered(plane, mask) | bench.covered(other, mask)
    assert np.array_equal(bench.voxels("first"), both)
    assert np.array_equal(bench.voxels("second"), drawn)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("first"), bench.covered(other, mask))


def test_what_the_user_erases_of_a_mask_stays_erased(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.draw("first", box((3, 4), (0, 6), (0, 10)), remove=True)
    bench.writer.write("second", bench.plane("sagittal"), None)
    bench.writer.write("first", bench.plane("sagittal", 4), np.zeros(bench.plane("sagittal").shape, bool))
    assert not bench.voxels("first")[3, :6].any() and bench.voxels("first")[3, 6:].all()
    bench.writer.write("first", plane, None)
    assert not bench.voxels("first").any()


def test_what_the_user_paints_over_a_mask_stays_painted(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    drawn = box((2, 5), (0, 6), (0, 10))
    bench.draw("second", drawn)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("second"), drawn) and not bench.voxels("first").any()


# ---- saving, forgetting, closing


def test_ownership_survives_json_and_a_new_writer(bench):
    before = bench.all()
    plane, other = bench.plane("axial"), bench.plane("sagittal")
    bench.writer.write("first", plane, random_mask(plane.shape, 1))
    bench.writer.write("second", other, random_mask(other.shape, 2))
    saved = json.loads(json.dumps(bench.writer.to_dict()))
    masks = bench.writer.masks()
    bench.writer.close()
    writer = SegmentWriter(bench.node, bench.volume_node, bench.volume)
    assert writer.from_dict(saved) and writer.masks() == masks
    writer.write("first", plane, None)
    writer.write("second", other, None)
    assert same(bench.all(), before)


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("grid"),
        lambda saved: saved["grid"].update(shape=[1, 2, 3]),
        lambda saved: saved["claims"][0].pop("voxels"),
        lambda saved: saved["claims"][0].update(voxels="no base64"),
        lambda saved: saved["claims"][0].update(voxels=""),
        lambda saved: saved.update(claims=None),
    ],
)
def test_damaged_ownership_is_not_taken_over(bench, damage):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    saved = json.loads(json.dumps(bench.writer.to_dict()))
    damage(saved)
    writer = SegmentWriter(bench.node, bench.volume_node, bench.volume)
    assert not writer.from_dict(saved) and writer.masks() == ()
    assert bench.voxels("first")[3].all()


def test_forgotten_masks_are_the_users(bench):
    plane, other = bench.plane("axial", 2), bench.plane("axial", 5)
    for each in (plane, other):
        bench.writer.write("first", each, np.ones(each.shape, bool))
    bench.writer.forget("first", plane.key)
    assert not bench.writer.write("first", plane, None)
    bench.writer.write("first", other, None)
    assert bench.voxels("first")[2].all() and not bench.voxels("first")[5].any()
    bench.writer.write("first", other, np.ones(other.shape, bool))
    bench.writer.forget("first")
    assert bench.writer.masks() == ()


def test_closing_leaves_no_observer(bench):
    def observers() -> int:
        return sum(bench.node.HasObserver(event) for event in range(1, 100000) if event in events)

    import slicer

    kinds = slicer.vtkSegmentation
    events = {kinds.SourceRepresentationModified, kinds.SegmentAdded, kinds.SegmentRemoved}
    assert observers() == 3
    bench.writer.close()
    assert observers() == 0
    bench.writer.close()


# ---- Slicer's own undo


def test_slicers_undo_takes_back_masks_and_keeps_strokes(bench):
    logic, editor = bench.slicer_scene.add_editor(bench.node, bench.volume_node)
    protect_others(editor)
    logic.SetSegmentationHistory(history(bench))
    bench.writer.editor_node = lambda: editor
    saves = []
    bench.writer.save_undo_state = lambda: saves.append(logic.SaveStateForUndo())

    stroke = box((1, 2), (3, 6), (2, 5))
    logic.SaveStateForUndo()  # as every effect does before it changes anything
    bench.draw("first", stroke)
    plane, other = bench.plane("axial", 3), bench.plane("axial", 4)
    for each in (plane, other):
        bench.writer.write("first", each, np.ones(each.shape, bool))
    assert saves == [True]  # once, not at every mask
    second_stroke = box((6, 7), (3, 6), (2, 5))
    logic.SaveStateForUndo()
    bench.draw("first", second_stroke)
    bench.writer.write("first", plane, None)
    assert len(saves) == 2

    with_masks = stroke.copy()
    with_masks[3:5] = True
    logic.Undo()
    assert np.array_equal(bench.voxels("first"), with_masks | second_stroke)
    logic.Undo()
    assert np.array_equal(bench.voxels("first"), with_masks)
    logic.Undo()
    assert np.array_equal(bench.voxels("first"), stroke)
    bench.writer.write("first", other, np.ones(other.shape, bool))  # goes on from there
    again = stroke.copy()
    again[4] = True
    assert np.array_equal(bench.voxels("first"), again)
    bench.writer.write("first", other, None)
    assert np.array_equal(bench.voxels("first"), stroke)


def history(bench):
    import slicer

    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(bench.segmentation)
    return history


def test_without_a_change_no_undo_state_is_saved(bench):
    saves = []
    bench.writer.save_undo_state = lambda: saves.append(1)
    plane = bench.plane()
    bench.writer.write("first", plane, np.zeros(plane.shape, bool))
    assert saves == []
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.writer.write("first", plane, None)
    assert saves == [1]

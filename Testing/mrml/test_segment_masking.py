"""Masks into segments: the Segment Editor's masking and overwriting, against Slicer's own logic."""

from __future__ import annotations

import numpy as np
import pytest
from mrml.scenes import oriented_image_of, protect_others
from mrml.segment_bench import (
    MASKS,
    OVERWRITES,
    Bench,
    array_to_local,
    drawn_bench,
    random_mask,
    same,
)

from SAMFineTuneLib.images.volume import Volume


@pytest.mark.parametrize("separate", ["", "first"])
@pytest.mark.parametrize("intensities", [None, (-300.0, 700.0), (-300.7, 700.9)])
@pytest.mark.parametrize("overwrite", OVERWRITES)
@pytest.mark.parametrize("mask_mode", MASKS)
def test_masking_and_overwriting_are_what_slicers_logic_does(
    lasting_scene, mask_mode, overwrite, intensities, separate
):
    import slicer

    ours, theirs = drawn_bench(lasting_scene, separate), drawn_bench(lasting_scene, separate)
    before = ours.all()
    assert same(before, theirs.all())
    plane = ours.plane("coronal", 4) if intensities else ours.plane("axial", 3)
    mask = random_mask(plane.shape, 8)
    for bench in (ours, theirs):
        logic, editor = lasting_scene.add_editor(bench.node, bench.volume_node)
        editor.SetSelectedSegmentID("first")
        editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mask_mode))
        editor.SetMaskSegmentID("second")
        editor.SetOverwriteMode(getattr(editor, overwrite))
        if intensities:
            editor.SetSourceVolumeIntensityMask(True)
            editor.SetSourceVolumeIntensityMaskRange(*intensities)
        if bench is ours:
            bench.writer.editor_node = lambda editor=editor: editor
            bench.writer.write("first", plane, mask)
        else:
            modifier = oriented_image_of(
                bench.covered(plane, mask).astype(np.uint8), array_to_local(bench.node, bench.volume)
            )
            logic.ModifySegmentByLabelmap(bench.node, "first", modifier, logic.ModificationModeAdd, True, False)
    found, expected = ours.all(), theirs.all()
    for segment in expected:
        assert np.array_equal(found[segment], expected[segment]), segment
    assert ours.segmentation.GetNumberOfLayers() <= theirs.segmentation.GetNumberOfLayers()
    ours.writer.write("first", plane, None)
    assert same(ours.all(), before)
    lasting_scene.scene.Clear(True)


def test_an_intensity_range_of_a_source_volume_on_another_grid(slicer_scene):
    """The editor's source volume is turned against the segmentation: Slicer resamples it, and so is it read here."""
    ours, theirs = Bench(slicer_scene), Bench(slicer_scene)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) * (1.5, 1.5, 3.0)
    affine[:3, 3] = ours.volume.ijk_to_ras((5, 6, 3)) - affine[:3, :3] @ (15, 15, 8)
    k, j, i = np.indices((17, 31, 31))
    source = slicer_scene.add_volume(Volume((20 * i + 10 * j - 15 * k).astype(np.float32), affine))
    plane = ours.plane()
    mask = np.ones(plane.shape, bool)
    for bench in (ours, theirs):
        logic, editor = slicer_scene.add_editor(bench.node, source)
        editor.SetSelectedSegmentID("first")
        editor.SetSourceVolumeIntensityMask(True)
        editor.SetSourceVolumeIntensityMaskRange(300, 420)
        if bench is ours:
            bench.writer.editor_node = lambda editor=editor: editor
            bench.writer.write("first", plane, mask)
        else:
            modifier = oriented_image_of(bench.covered(plane, mask).astype(np.uint8), bench.volume.affine)
            logic.ModifySegmentByLabelmap(bench.node, "first", modifier, logic.ModificationModeAdd, True, False)
    expected = theirs.voxels("first")
    assert 5 < expected.sum() < 110
    assert (ours.voxels("first") != expected).sum() <= 1  # rounding at the range's edge


def test_protect_others_keeps_every_neighbour(slicer_scene):
    bench = drawn_bench(slicer_scene)
    _, editor = slicer_scene.add_editor(bench.node, bench.volume_node)
    bench.writer.editor_node = lambda: editor
    protect_others(editor)
    before = bench.all()
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    after = bench.all()
    assert after.pop("first").sum() > before.pop("first").sum() and same(after, before)

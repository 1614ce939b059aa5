"""A case as nodes and back: labels leave the scene as they came, whatever a tool did to the segments meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml.scenes import SlicerScene, oriented_image_of, tilted_volume  # noqa: E402

from SAMFineTuneLib.mrml.cohort_nodes import (  # noqa: E402
    add_case,
    content_of,
    image_steps,
    label_file_steps,
    place_on_slice,
)
from SAMFineTuneLib.mrml.segment_export import finished  # noqa: E402
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node  # noqa: E402

LABELS = {1: "liver", 3: "spleen"}


@pytest.fixture
def scene():
    made = SlicerScene()
    yield made.scene
    made.close()


@pytest.fixture
def case(scene, tmp_path):
    """(volume, labels, volume node, segmentation node) of a tilted case."""
    volume = tilted_volume()
    labels = np.zeros(volume.shape, np.uint8)
    labels[2:5, 3:8, 2:6], labels[4:6, 8:11, 7:9] = 1, 3
    nodes = add(scene, tmp_path, volume, labels)
    return volume, labels, *nodes


def add(scene, folder, volume, labels):
    np.save(folder / "voxels.npy", volume.array)
    told = {"voxels": str(folder / "voxels.npy"), "labels": "", "start": (0, 0, 0), "affine": volume.affine.tolist(),
            "window": (-100, 300), "modality": "CT"}  # fmt: skip
    if labels is not None:
        places = np.argwhere(labels)
        low, high = places.min(axis=0), places.max(axis=0) + 1
        np.save(folder / "labels.npy", labels[tuple(map(slice, low, high))])
        told |= {"labels": str(folder / "labels.npy"), "start": low[::-1].tolist()}
    return finished(add_case(scene, "case", told, finished(image_steps(told)), LABELS))


def written(folder, nodes):
    notes = finished(label_file_steps(folder / "out.npy", nodes[1], nodes[0], LABELS))
    return np.load(folder / "out.npy"), notes


def test_voxels_and_labels_come_and_go_as_they_are(case, tmp_path):
    volume, labels, *nodes = case
    shown = volume_from_node(nodes[0])
    assert (shown.array == volume.array).all() and np.allclose(shown.affine, volume.affine) and shown.modality == "CT"
    segmentation = nodes[1].GetSegmentation()
    names = [segmentation.GetNthSegment(number).GetName() for number in (0, 1)]
    assert names == ["liver", "spleen"]
    assert not (tmp_path / "voxels.npy").exists() and not (tmp_path / "labels.npy").exists()
    out, notes = written(tmp_path, nodes)
    assert (out == labels).all() and notes == ()


def test_an_untouched_case_has_empty_segments_that_can_be_drawn(scene, tmp_path):
    volume = tilted_volume()
    nodes = add(scene, tmp_path, volume, None)
    assert (written(tmp_path, nodes)[0] == 0).all()
    before = content_of(nodes[1])
    drawn = np.zeros(volume.shape, np.uint8)
    drawn[1:3, 2:4, 5:7] = 1
    segmentation = nodes[1].GetSegmentation()
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(
        oriented_image_of(drawn, volume.affine), nodes[1], segmentation.GetNthSegmentID(1)
    )
    assert content_of(nodes[1]) != before
    assert (written(tmp_path, nodes)[0] == 3 * drawn).all()


def test_segments_of_other_names_and_grids(case, tmp_path):
    volume, labels, *nodes = case
    segmentation = nodes[1].GetSegmentation()
    extra = np.zeros(volume.shape, np.uint8)
    extra[0, 0, 0] = 1
    nodes[1].AddSegmentFromBinaryLabelmapRepresentation(oriented_image_of(extra, volume.affine), "scratch")
    out, notes = written(tmp_path, nodes)
    assert (out == labels).all() and len(notes) == 1 and "scratch" in notes[0] and "liver, spleen" in notes[0]
    again = extra[::-1].copy()
    nodes[1].AddSegmentFromBinaryLabelmapRepresentation(oriented_image_of(again, volume.affine), "Liver")
    out, notes = written(tmp_path, nodes)
    assert any("2 segments are named “liver”" in note for note in notes)
    assert ((out == 1) == ((labels == 1) | ((labels == 0) & (again == 1)))).all()
    segmentation.RemoveSegment(segmentation.GetNthSegmentID(3))
    coarse = volume.affine.copy()
    coarse[:3, :3] *= 2  # another grid, where every voxel holds eight
    coarse[:3, 3] = (volume.affine @ (0.5, 0.5, 0.5, 1))[:3]
    block = np.zeros(tuple((n + 1) // 2 for n in volume.shape), np.uint8)
    block[0, 0, 0] = 1
    segmentation.RemoveSegment(segmentation.GetNthSegmentID(1))
    nodes[1].AddSegmentFromBinaryLabelmapRepresentation(oriented_image_of(block, coarse), "Spleen")
    out, _ = written(tmp_path, nodes)
    assert (out == 3).sum() == 8 and (out[:2, :2, :2] == 3).all() and ((out == 1) == (labels == 1)).all()


def test_the_middle_of_a_segment_on_a_slice(case):
    volume, labels, volume_node, segmentation_node = case
    shown = volume_from_node(volume_node)
    spleen = segmentation_node.GetSegmentation().GetNthSegmentID(1)
    for orientation, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        places = np.argwhere(labels == 3)[:, ::-1]
        index = int(places[0, axis])
        own = places[places[:, axis] == index].mean(axis=0)
        at = place_on_slice(shown, volume_node, segmentation_node, spleen, orientation, index)
        assert np.allclose(volume.ras_to_ijk(at), own, atol=0.01)
    outside = place_on_slice(shown, volume_node, segmentation_node, spleen, "axial", 0)
    assert abs(volume.ras_to_ijk(outside)[2]) < 0.01

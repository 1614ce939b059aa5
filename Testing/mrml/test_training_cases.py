"""Volumes and segmentations of a scene as cases for a training."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from mrml.scenes import oriented_image_of, tilted_volume  # noqa: E402

from SAMFineTuneLib.cases.exported_cases import read_cases, write_cases  # noqa: E402
from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.mrml.training_cases import are_all_ct, export_of, patient_of, scene_cases  # noqa: E402


def segmented(slicer_scene, name="scan", seed=0, parent=None):
    """(volume node, segmentation node, Volume, bool arrays by name): two segments overlap, one on a cropped map."""
    volume = tilted_volume((9, 14, 12), seed=seed)
    node = slicer_scene.add_volume(volume, name, parent)
    segmentation = slicer_scene.add_segmentation(node, (), f"{name} segmentation")
    liver = np.zeros(volume.shape, bool)
    liver[2:6, 3:9, 2:8] = True
    vein = np.zeros(volume.shape, bool)
    vein[4:7, 5:7, 6:10] = True
    whole = oriented_image_of(liver.astype(np.uint8), volume.affine)
    cropped = oriented_image_of(vein[4:7, 5:7, 6:10].astype(np.uint8), volume.affine, (6, 5, 4))
    segmentation.AddSegmentFromBinaryLabelmapRepresentation(whole, "liver")
    segmentation.AddSegmentFromBinaryLabelmapRepresentation(cropped, "vein")
    return node, segmentation, volume, {"liver": liver, "vein": vein}


def written(cases, folder, names=None):
    list(write_cases(export_of(cases, names), folder))
    return read_cases(folder)


def test_voxels_and_labels_arrive_where_they_were(slicer_scene, tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    matrix[:3, 3] = (30, -20, 10)
    for number, parent in enumerate((None, slicer_scene.add_transform(matrix))):
        _, _, volume, masks = segmented(slicer_scene, f"scan {number}", number, parent)
        (case,) = [one for one in scene_cases(slicer_scene.scene) if one.volume_node.GetName() == f"scan {number}"]
        assert case.problem == "" and case.names == ("liver", "vein")
        (read,) = written([case], tmp_path / str(number))
        found, labels, meaning, _ = read.read()
        world = matrix if parent is not None else np.eye(4)
        assert (found.array == volume.array).all()
        assert np.allclose(found.affine, world @ volume.affine, atol=1e-4)
        for label, name in meaning.names.items():
            own = [value for value in np.unique(labels) if label in meaning.labels_of(value)]
            assert (np.isin(labels, own) == masks[name]).all(), "what two segments hold belongs to both"
        (only,) = written([case], tmp_path / f"{number} liver", ["liver"])
        assert (only.read()[1] > 0).sum() == masks["liver"].sum()


def test_nothing_that_is_written_names_anyone(slicer_scene, tmp_path):
    node, *_ = segmented(slicer_scene, "Doe^John")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer_scene.scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe^John")
    hierarchy.SetItemUID(patient, "DICOM", "PAT-4711")
    hierarchy.CreateItem(patient, node)
    written(scene_cases(slicer_scene.scene), tmp_path / "cases")
    for path in (tmp_path / "cases").iterdir():
        held = path.read_bytes()
        assert b"Doe" not in held and b"4711" not in held and "Doe" not in path.name


def test_patients_are_told_apart_by_their_dicom_number_else_by_volume(slicer_scene):
    nodes = [segmented(slicer_scene, name, seed)[0] for seed, name in enumerate("abcd")]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer_scene.scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "someone")
    hierarchy.SetItemUID(patient, "DICOM", "PAT-1")
    study = hierarchy.CreateStudyItem(patient, "study")
    for node in nodes[1:3]:
        hierarchy.CreateItem(study, node)
    assert [patient_of(node) for node in nodes] == ["", "PAT-1", "PAT-1", ""]
    assert [case.patient for case in export_of(scene_cases(slicer_scene.scene))] == ["1", "2", "2", "3"]


def test_a_database_is_asked_where_the_hierarchy_does_not_know(slicer_scene, monkeypatch):
    class Database:
        isOpen = True

        @staticmethod
        def instanceValue(uid, tag):
            return {("1.2.3", "0010,0020"): "PAT-9"}.get((uid, tag), "")

    node, *_ = segmented(slicer_scene)
    node.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    monkeypatch.setattr(slicer, "dicomDatabase", Database(), raising=False)
    assert patient_of(node) == "PAT-9"


def test_what_cannot_be_learned_from_says_why(slicer_scene):
    bent = slicer_scene.add("vtkMRMLBSplineTransformNode")
    node, segmentation, *_ = segmented(slicer_scene, "bent")
    node.SetAndObserveTransformNodeID(bent.GetID())
    (case,) = scene_cases(slicer_scene.scene)
    assert "non-linear" in case.problem
    with pytest.raises(UserError, match="non-linear"):
        export_of([case])
    slicer_scene.add_segmentation(node, (), "empty")
    assert len(scene_cases(slicer_scene.scene)) == 1, "without segments there is nothing to learn"
    assert not are_all_ct([]) and not are_all_ct([SimpleCase(segmented(slicer_scene, "mr")[0])])


class SimpleCase:
    def __init__(self, node):
        self.volume_node = node


def test_a_volume_below_a_shear_is_refused(slicer_scene):
    shear = np.eye(4)
    shear[0, 1] = 0.3
    segmented(slicer_scene, "sheared", 0, slicer_scene.add_transform(shear))
    assert "sheared" in scene_cases(slicer_scene.scene)[0].problem

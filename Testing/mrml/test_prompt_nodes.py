"""Prompts as markups nodes: read and written, also after saving, on oblique slices and below transforms."""

from __future__ import annotations

import numpy as np
import pytest
from mrml.scenes import matrix_of, tilted_volume

from SAMFineTuneLib.images.slice_plane import aligned_plane, oblique_plane, plane_through
from SAMFineTuneLib.prompts import Box3DPrompt, BoxPrompt, LassoPrompt, PointPrompt, ScribblePrompt
from SAMFineTuneLib.prompts.box_prompts import box_along_plane, box_on_slice

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")
from SAMFineTuneLib.mrml.prompts.node_content import same_prompt  # noqa: E402
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes, prompt_nodes  # noqa: E402


@pytest.fixture
def volume():
    return tilted_volume((20, 30, 24))


@pytest.fixture
def nodes(slicer_scene, volume):
    volume_node = slicer_scene.add_volume(volume)
    return PromptNodes(slicer_scene.scene, volume_node, slicer_scene.add_segmentation(volume_node))


def middle(volume, offset=(0, 0, 0)):
    return tuple(volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2 + offset))


def an_oblique_plane(volume):
    plane = aligned_plane(volume, "axial", 10)
    turned = np.cos(0.35) * plane.down + np.sin(0.35) * plane.normal
    return oblique_plane(volume, middle(volume), plane.right, turned)


def some_prompts(volume):
    """(number, segment, prompt, view) of every kind, on the volume's own slices and on an oblique plane."""
    oblique = an_oblique_plane(volume)
    corners = oblique.pixel_to_ras([(12, 11), (22, 19)])
    coronal = plane_through(volume, "coronal", middle(volume))
    return [
        (1, "first", PointPrompt(middle(volume)), "axial"),
        (2, "first", PointPrompt(middle(volume, (2, 1, 0)), False), "sagittal"),
        (3, "second", PointPrompt(tuple(corners[0])), oblique),
        (4, "first", box_on_slice(coronal, coronal.pixel_to_ras([(5, 4), (15, 14)])), "coronal"),
        (5, "second", box_on_slice(oblique, corners), oblique),
        (6, "second", box_along_plane(coronal, coronal.pixel_to_ras([(5, 4), (15, 14)])), "coronal"),
        (7, "first", ScribblePrompt(tuple(map(tuple, oblique.pixel_to_ras([(9, 9), (12, 14), (20, 15)])))), oblique),
        (8, "first", ScribblePrompt((middle(volume), middle(volume, (3, 3, 0))), False), "axial"),
        (9, "second", LassoPrompt(tuple(map(tuple, oblique.pixel_to_ras([(9, 9), (12, 14), (20, 9)])))), oblique),
        (10, "first", LassoPrompt(tuple(map(tuple, coronal.pixel_to_ras([(5, 4), (9, 4), (9, 9)]))), False), "coronal"),
    ]


def fill(nodes, volume):
    for number, segment, prompt, view in some_prompts(volume):
        nodes.write(number, segment, prompt, view, volume)


def assert_holds(nodes, volume, wanted):
    found = {marked.number: marked for marked in nodes.read(volume)}
    assert set(found) == {number for number, *_ in wanted}
    for number, segment, prompt, view in wanted:
        assert found[number].segment_id == segment
        assert same_prompt(found[number].prompt, found[number].view, prompt, view), (number, prompt, found[number])


def test_what_is_written_is_read(nodes, volume):
    fill(nodes, volume)
    assert_holds(nodes, volume, some_prompts(volume))
    assert len(list(prompt_nodes(nodes.scene))) == 10  # three point lists, a node for each of the others


def test_writing_again_changes_nothing(nodes, volume):
    fill(nodes, volume)
    times = {node.GetID(): node.GetMTime() for node in nodes.nodes()}
    for number, segment, prompt, view in some_prompts(volume):
        if isinstance(prompt, (LassoPrompt, PointPrompt, ScribblePrompt)):
            nodes.write(number, segment, prompt, view, volume)
    same = [node for node in nodes.nodes() if not node.IsA("vtkMRMLMarkupsROINode")]
    assert same and all(times[node.GetID()] == node.GetMTime() for node in same)


def test_a_written_prompt_moves(nodes, volume):
    fill(nodes, volume)
    to = middle(volume, (-3, 2, 1))
    nodes.write(1, "first", PointPrompt(to), "axial", volume)
    node, point_id = nodes.find(1)
    index = node.GetNthControlPointIndexByID(point_id)
    assert np.allclose(node.GetNthControlPointPositionWorld(index), to)
    nodes.write(1, "first", PointPrompt(to, False), "axial", volume)  # to the other list
    assert nodes.find(1)[0].GetName() == "first negative"
    assert len(nodes.read(volume)) == 10


def test_an_roi_lies_on_its_slice(nodes, volume):
    """Oriented along the plane, thin, with the corners in the plane."""
    plane = an_oblique_plane(volume)
    box = box_on_slice(plane, plane.pixel_to_ras([(12, 11), (22, 19)]))
    nodes.write(1, "first", box, plane, volume)
    node, _ = nodes.find(1)
    matrix = np.array([[node.GetObjectToWorldMatrix().GetElement(r, c) for c in range(4)] for r in range(4)])
    assert np.allclose(matrix[:3, :3], np.stack([plane.right, plane.down, plane.normal], axis=1))
    assert np.allclose(node.GetSize()[:2], (10 * plane.pixel_size, 8 * plane.pixel_size))
    assert 0 < node.GetSize()[2] < plane.thickness
    assert abs(plane.distance(matrix[:3, 3])) < 1e-6


def test_an_roi_pulled_deep_is_a_3d_box_and_back(nodes, volume):
    plane = aligned_plane(volume, "axial", 10)
    box = box_on_slice(plane, plane.pixel_to_ras([(8, 8), (16, 14)]))
    nodes.write(1, "first", box, "axial", volume)
    node, _ = nodes.find(1)
    node.SetSize(*node.GetSize()[:2], 4 * plane.thickness)
    (deep,) = nodes.read(volume)
    assert isinstance(deep.prompt, Box3DPrompt) and np.isclose(deep.prompt.size[2], 4 * plane.thickness)
    node.SetSize(*node.GetSize()[:2], 0.4 * plane.thickness)
    (flat,) = nodes.read(volume)
    assert isinstance(flat.prompt, BoxPrompt) and same_prompt(flat.prompt, "axial", box, "axial")


def test_points_that_are_not_placed_do_not_count(nodes, volume):
    node = nodes.point_list("first", "positive")
    node.AddControlPoint(vtk.vtkVector3d(*middle(volume)))
    node.UnsetNthControlPointPosition(0)
    preview = node.AddControlPoint(vtk.vtkVector3d(*middle(volume)))
    node.SetNthControlPointPosition(preview, *middle(volume), node.PositionPreview)
    assert nodes.read(volume) == []


def test_what_a_user_places_has_no_number_until_it_is_given_one(nodes, volume):
    node = nodes.point_list("second", "negative")
    node.AddControlPointWorld(vtk.vtkVector3d(*middle(volume)))
    (marked,) = nodes.read(volume)
    assert (marked.number, marked.segment_id, marked.view) == (None, "second", None)
    assert marked.prompt == PointPrompt(middle(volume), False)
    nodes.number(marked, 12)
    assert nodes.read(volume)[0].number == 12


def test_copies_are_prompts_of_their_own(slicer_scene, nodes, volume):
    fill(nodes, volume)
    hierarchy = slicer_scene.scene.GetSubjectHierarchyNode()
    source, _ = nodes.find(4)
    copy = slicer_scene.scene.CopyNode(source)
    copy.SetNodeReferenceID("SAMFineTune.volume", nodes.volume_node.GetID())
    found = nodes.read(volume)
    assert len(found) == 11 and [marked.number for marked in found].count(4) == 1
    assert [marked.number for marked in found].count(None) == 1
    assert hierarchy.GetItemByDataNode(source)


def test_a_point_dragged_off_its_oblique_plane_goes_to_the_parallel_one(nodes, volume):
    plane = an_oblique_plane(volume)
    nodes.write(1, "first", PointPrompt(middle(volume)), plane, volume)
    node, _ = nodes.find(1)
    along = np.array(middle(volume)) + 2 * plane.right
    node.SetNthControlPointPositionWorld(0, vtk.vtkVector3d(*along))
    assert nodes.read(volume)[0].view.key == plane.key
    off = along + 1.5 * plane.thickness * plane.normal
    node.SetNthControlPointPositionWorld(0, vtk.vtkVector3d(*off))
    moved = nodes.read(volume)[0].view
    assert moved.contains(off) and moved.key != plane.key and np.allclose(moved.normal, plane.normal)


def test_markups_below_a_transform_count_where_they_are_seen(slicer_scene, nodes, volume):
    fill(nodes, volume)
    shift = np.eye(4)
    shift[:3, 3] = (1.5, 0, 0)
    transform = slicer_scene.add_transform(shift)
    for number in (1, 4):
        node, _ = nodes.find(number)
        before = {marked.number: marked for marked in nodes.read(volume)}[number].prompt
        node.SetAndObserveTransformNodeID(transform.GetID())
        after = {marked.number: marked for marked in nodes.read(volume)}[number].prompt
        a, b = (p.ras if isinstance(p, PointPrompt) else np.add(p.corner_a, p.corner_b) / 2 for p in (before, after))
        if number == 1:
            assert np.allclose(np.subtract(b, a), (1.5, 0, 0))
        else:  # it stays on a slice: the part of the shift that is along it
            coronal = plane_through(volume, "coronal", a)
            assert np.allclose(coronal.ras_to_pixel(b), coronal.ras_to_pixel(np.add(a, (1.5, 0, 0))), atol=1e-6)
    nodes.write(4, "first", some_prompts(volume)[3][2], "coronal", volume)  # and is written where it should be seen
    assert same_prompt(
        {m.number: m for m in nodes.read(volume)}[4].prompt, "coronal", some_prompts(volume)[3][2], "coronal"
    )


def test_everything_survives_an_mrb(slicer_scene, nodes, volume, tmp_path, load_mrb):
    fill(nodes, volume)
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    scene = load_mrb(path).scene
    loaded = PromptNodes(
        scene,
        scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"),
        scene.GetFirstNodeByClass("vtkMRMLSegmentationNode"),
    )
    assert_holds(loaded, volume, some_prompts(volume))


def test_importing_into_a_scene_with_such_nodes_keeps_them_apart(slicer_scene, nodes, volume, tmp_path, load_mrb):
    """Node IDs change on import, the references follow."""
    fill(nodes, volume)
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    load_mrb(path, into=slicer_scene)
    assert_holds(nodes, volume, some_prompts(volume))
    twin = PromptNodes(
        slicer_scene.scene,
        slicer_scene.scene.GetNthNodeByClass(1, "vtkMRMLScalarVolumeNode"),
        slicer_scene.scene.GetNthNodeByClass(1, "vtkMRMLSegmentationNode"),
    )
    assert_holds(twin, volume, some_prompts(volume))


def test_names_colours_and_the_folder(slicer_scene, nodes, volume):
    fill(nodes, volume)
    segment = nodes.segmentation_node.GetSegmentation().GetSegment("first")
    segment.SetName("liver")
    segment.SetColor(0.1, 0.7, 0.3)
    nodes.name("first")
    assert {node.GetName() for node in nodes.nodes()} == {
        "liver positive", "liver negative", "liver box", "liver positive scribble", "liver negative scribble",
        "liver negative lasso", "second positive lasso",
        "second positive", "second box",
    }  # fmt: skip
    hierarchy = slicer_scene.scene.GetSubjectHierarchyNode()
    parents = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in nodes.nodes()}
    assert len(parents) == 1 and hierarchy.GetItemName(parents.pop()) == "Prompts on volume"
    for number in range(1, 11):
        nodes.remove(number)
    nodes.remove_empty()
    assert not list(prompt_nodes(slicer_scene.scene))
    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), children, True)
    names = [hierarchy.GetItemName(children.GetId(n)) for n in range(children.GetNumberOfIds())]
    assert "Prompts on volume" not in names


def test_a_damaged_attribute_is_a_prompt_without_a_number(nodes, volume):
    nodes.write(1, "first", PointPrompt(middle(volume)), "axial", volume)
    node, _ = nodes.find(1)
    for text in ("{", "[]", '{"1": 3}', '{"1": {"number": "x", "view": null}}', '{"1": {"number": 1, "view": {}}}'):
        node.SetAttribute("SAMFineTune.prompts", text)
        (marked,) = nodes.read(volume)
        assert marked.number is None and marked.prompt == PointPrompt(middle(volume))


def test_an_unplaced_roi_is_nothing(slicer_scene, nodes, volume):
    plane = aligned_plane(volume, "axial", 10)
    nodes.write(1, "first", box_on_slice(plane, plane.pixel_to_ras([(8, 8), (16, 14)])), "axial", volume)
    node, _ = nodes.find(1)
    node.SetSize(0, 0, 0)
    node.SetAndObserveObjectToNodeMatrix(matrix_of(np.eye(4)))
    assert nodes.read(volume) == []

"""The session on a scene: placed, dragged, deleted, undone, saved and loaded, with a worker in this process."""

from __future__ import annotations

import json
import threading
import zlib

import numpy as np
import pytest
from mrml.scene_host import dice, held_voxels, ras, slice_node, tube, turn_to
from mrml.scenes import matrix_of

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.images.slice_extraction import extract_labels  # noqa: E402
from SAMFineTuneLib.images.slice_plane import aligned_plane, oblique_plane  # noqa: E402
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes, prompt_nodes  # noqa: E402
from SAMFineTuneLib.mrml.slice_views import view_kind  # noqa: E402
from SAMFineTuneLib.mrml.storage import read_record, record_nodes  # noqa: E402
from SAMFineTuneLib.session.events import Failed, Finished, Notice, Objects  # noqa: E402


def is_right(host, made, segment, label, planes):
    """Whether a segment holds a label on the planes, and nothing else."""
    volume, labels = made
    voxels = held_voxels(host.session, segment)
    wanted = np.zeros_like(voxels)
    for k in planes:
        wanted[k] = labels[k] == label
    assert np.flatnonzero(voxels.any(axis=(1, 2))).tolist() == list(planes)
    return not planes or dice(voxels, wanted) > 0.93


# ---- prompts


def test_a_placed_point_gives_its_segment_a_mask_and_a_markup(host, made, red):
    host.session.current_segment_id = "first"
    number = host.session.place("positive", red, [ras(made[0], *tube(9))])
    (placed,) = host.session.prompts
    assert (placed.number, placed.segment_id, placed.view) == (number, "first", "axial")
    host.settle()
    assert is_right(host, made, "first", 1, [9]) and is_right(host, made, "second", 2, [])
    (node,) = prompt_nodes(host.session.scene)
    assert node.GetName() == "first positive" and node.GetNumberOfControlPoints() == 1
    assert host.longest < 0.5


def test_a_view_on_the_edge_of_two_slices_is_settled_before_anything_is_placed(host, made, red):
    volume, _ = made
    tilt = np.deg2rad(0.2)  # less than anybody sees
    plane = aligned_plane(volume, "axial", 9)
    origin = volume.ijk_to_ras((16, 16, 9.5))
    across, down = plane.right, plane.down
    leaning = oblique_plane(volume, origin, across * np.cos(tilt) + np.cross(across, down) * np.sin(tilt), down)
    turn_to(red, leaning)
    host.session.current_segment_id = "first"
    before = view_kind(red, host.session.volume)
    host.session.start_placing("positive")
    host.session.stop_placing()
    assert (before, view_kind(red, host.session.volume)) == ("oblique", "axial")


def test_slicers_undo_gets_a_state_before_masks_follow_somebody_elses_stroke(host, made, red):
    volume, _ = made
    saved = []
    host.session.save_undo_state = lambda: saved.append(held_voxels(host.session, "first").sum())
    host.session.current_segment_id = "first"
    for k in (8, 9):
        turn_to(red, aligned_plane(volume, "axial", k))
        host.session.place("positive", red, [ras(volume, *tube(k))])
        host.settle()
    assert len(saved) <= 1, "not at every mask"
    before = len(saved)
    host.session.segmentation_node.GetSegmentation().GetSegment("first").GetRepresentation("Binary labelmap").Modified()
    turn_to(red, aligned_plane(volume, "axial", 10))
    host.session.place("positive", red, [ras(volume, *tube(10))])
    host.settle()
    assert len(saved) == before + 1 and saved[-1] > 0


def test_what_the_user_places_drags_and_deletes_in_slicer_is_followed(host, made, red):
    volume, _ = made
    node = host.session._nodes.point_list("first", "positive")
    index = node.AddControlPointWorld(vtk.vtkVector3d(*ras(volume, *tube(9))))
    host.settle()
    assert is_right(host, made, "first", 1, [9])
    node.InvokeEvent(node.PointStartInteractionEvent)
    for k in (10, 11, 12):
        node.SetNthControlPointPositionWorld(index, vtk.vtkVector3d(*ras(volume, *tube(k))))
        host.pump()
    assert is_right(host, made, "first", 1, [9])  # not while it is dragged
    node.InvokeEvent(node.PointEndInteractionEvent)
    host.settle()
    assert is_right(host, made, "first", 1, [12])
    assert [prompt.number for prompt in host.session.prompts] == [1]  # one move
    host.session.undo()
    host.settle()
    assert is_right(host, made, "first", 1, [9])
    assert np.allclose(node.GetNthControlPointPositionWorld(index), ras(volume, *tube(9)))
    node.RemoveNthControlPoint(index)
    host.settle()
    assert is_right(host, made, "first", 1, []) and host.session.prompts == ()
    host.session.undo()
    host.settle()
    assert is_right(host, made, "first", 1, [9]) and len(list(prompt_nodes(host.session.scene))) == 1


def test_a_whole_node_deleted_takes_its_prompts_along(host, made, red):
    volume, _ = made
    for k in (9, 10):
        turn_to(red, aligned_plane(volume, "axial", k))
        host.session.place("positive", red, [ras(volume, *tube(k))])
    host.settle()
    assert is_right(host, made, "first", 1, [9, 10])
    (node,) = prompt_nodes(host.session.scene)
    host.session.scene.RemoveNode(node)
    host.settle()
    assert is_right(host, made, "first", 1, []) and host.session.prompts == ()
    for expected in ([10], [9, 10]):  # two deletions, two steps back
        host.session.undo()
        host.settle()
        assert len(host.session.prompts) == len(expected)
    assert is_right(host, made, "first", 1, [9, 10])
    for _ in range(2):
        host.session.redo()
    host.settle()
    assert host.session.prompts == () and not list(prompt_nodes(host.session.scene))
    assert host.session.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsDisplayNode") == 0


def test_boxes_and_scribbles(host, made, slicer_scene):
    volume, labels = made
    coronal = slice_node(slicer_scene, volume, "coronal", 36)
    plane = aligned_plane(volume, "coronal", 36)
    mask = extract_labels(labels, volume, plane) == 2
    rows, columns = np.nonzero(mask)
    low, high = (columns.min() - 1, rows.min() - 1), (columns.max() + 1, rows.max() + 1)
    host.session.current_segment_id = "second"
    box = host.session.place("box", coronal, plane.pixel_to_ras([low, high]))
    host.settle()
    assert dice(held_voxels(host.session, "second")[:, 36], labels[:, 36] == 2) > 0.9
    middle = plane.pixel_to_ras((np.array(low) + high) / 2)
    stroke = [middle, middle + 3 * plane.right, middle + 3 * plane.right + 2 * plane.down]
    scribble = host.session.place("scribble-", coronal, stroke)
    host.settle()
    kinds = sorted(node.GetClassName() for node in prompt_nodes(host.session.scene))
    assert kinds == ["vtkMRMLMarkupsCurveNode", "vtkMRMLMarkupsROINode"]
    assert 0 < np.count_nonzero(held_voxels(host.session, "second")) < np.count_nonzero(labels[:, 36] == 2)
    host.session.delete(scribble)
    host.session.delete(box)
    host.settle()
    assert not held_voxels(host.session, "second").any() and not list(prompt_nodes(host.session.scene))


def test_a_3d_box_and_its_handles(host, made, red):
    volume, labels = made
    plane = aligned_plane(volume, "axial", 11)
    turn_to(red, plane)
    rows, columns = np.nonzero(extract_labels(labels, volume, plane) == 2)
    corners = plane.pixel_to_ras([(columns.min() - 1, rows.min() - 1), (columns.max() + 1, rows.max() + 1)])
    corners[1] += 2 * plane.thickness * plane.normal
    corners[0] -= 2 * plane.thickness * plane.normal
    host.session.place("box3d", red, corners)
    host.settle()
    reached = np.flatnonzero(held_voxels(host.session, "first").any(axis=(1, 2)))
    assert len(reached) == 5 and 11 in reached
    (node,) = prompt_nodes(host.session.scene)
    node.InvokeEvent(node.PointStartInteractionEvent)
    node.SetSize(*node.GetSize()[:2], 0.3 * plane.thickness)
    node.InvokeEvent(node.PointEndInteractionEvent)
    host.settle()
    assert np.flatnonzero(held_voxels(host.session, "first").any(axis=(1, 2))).tolist() == [11]


def test_what_cannot_be_is_said_and_taken_back(host, made, red):
    volume, _ = made
    with pytest.raises(UserError, match="outside"):
        host.session.place("positive", red, [ras(volume, 300, 0, 9)])
    host.session.place("positive", red, [ras(volume, *tube(9))])
    host.settle()
    (node,) = prompt_nodes(host.session.scene)
    node.AddControlPointWorld(vtk.vtkVector3d(*ras(volume, 300, 0, 9)))
    host.until_told(Failed)
    assert node.GetNumberOfControlPoints() == 1 and len(host.session.prompts) == 1
    node.SetNthControlPointPositionWorld(0, vtk.vtkVector3d(*ras(volume, 0, 400, 9)))
    host.until_told(Failed)
    assert np.allclose(node.GetNthControlPointPositionWorld(0), ras(volume, *tube(9)))
    host.settle()
    assert is_right(host, made, "first", 1, [9])


def test_clear(host, made, red):
    volume, _ = made
    host.session.place("positive", red, [ras(volume, *tube(9))])
    turn_to(red, aligned_plane(volume, "axial", 10))
    host.session.place("positive", red, [ras(volume, *tube(10))])
    host.session.current_segment_id = "second"
    host.session.place("positive", red, [ras(volume, 44, 36, 10)])
    host.settle()
    host.session.clear(slice_node=red)
    host.settle()
    assert is_right(host, made, "first", 1, [9]) and is_right(host, made, "second", 2, [])
    host.session.undo()
    host.settle()
    host.session.clear("first")
    host.settle()
    assert is_right(host, made, "first", 1, []) and is_right(host, made, "second", 2, [10])
    assert {node.GetAttribute("SAMFineTune.segment") for node in prompt_nodes(host.session.scene)} == {"second"}


# ---- segments


def test_segments_are_made_when_there_are_none(open_session, slicer_scene, made, red):
    from region_engine import WINDOW

    host = open_session(slicer_scene)
    with pytest.raises(UserError, match="no volume"):
        host.session.place("positive", red, [(0, 0, 0)])
    host.session.set_window(WINDOW)
    host.session.set_volume_node(slicer_scene.add_volume(made[0]))
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    (segment,) = host.session.segmentation_node.GetSegmentation().GetSegmentIDs()
    assert is_right(host, made, segment, 1, [9])


def test_segments_renamed_recoloured_and_removed_in_slicers_table(host, made, red):
    volume, _ = made
    host.session.place("positive", red, [ras(volume, *tube(9))])
    host.session.current_segment_id = "second"
    host.session.place("positive", red, [ras(volume, 44, 36, 9)])
    host.settle()
    segmentation = host.session.segmentation_node.GetSegmentation()
    segmentation.GetSegment("second").SetName("first")  # the session wants distinct names
    segmentation.GetSegment("second").SetColor(0.0, 0.5, 1.0)
    host.settle()
    assert [info.name for info in host.session.state.segments] == ["first", "first (2)"]
    assert host.session.state.segments[1].color == pytest.approx((0.0, 0.5, 1.0))
    assert [n.GetName() for n in prompt_nodes(host.session.scene)] == ["first positive", "first positive"]
    host.session.undo()
    host.settle()
    assert is_right(host, made, "second", 2, []) and segmentation.GetSegment("second").GetName() == "first"
    host.session.redo()
    host.settle()
    assert is_right(host, made, "second", 2, [9])
    segmentation.RemoveSegment("second")
    host.settle()
    assert [info.name for info in host.session.state.segments] == ["first"]
    assert [prompt.segment_id for prompt in host.session.prompts] == ["first"]
    assert len(list(prompt_nodes(host.session.scene))) == 1
    host.session.undo()  # goes back by prompts of segments that are there
    host.settle()
    assert host.session.prompts == () and host.session.state.redo_name is not None


def test_propagation_is_one_step(host, made, red):
    volume, _ = made
    host.session.place("positive", red, [ras(volume, *tube(9))])
    with pytest.raises(UserError, match="no prompts"):
        host.session.propagate("second")
    host.session.propagate("first", {"first": 6, "last": 12})
    host.until_told(Finished)
    host.settle()
    assert is_right(host, made, "first", 1, range(6, 13))
    host.session.undo()
    host.settle()
    assert is_right(host, made, "first", 1, [9])


def test_the_stored_document_has_a_propagation_that_ended_without_another_mask(host, made, red, monkeypatch):
    """Its last slice is slow and too different: the document, asked for meanwhile, does not have its results yet."""
    from region_engine import RegionEngine

    reached, gate, decode = threading.Event(), threading.Event(), RegionEngine.decode

    def slow_where_the_ball_ends(engine, embedding, *prompts):
        if np.count_nonzero(embedding["image"] > 150) < 20:
            reached.set()
            gate.wait(60)
        return decode(engine, embedding, *prompts)

    monkeypatch.setattr(RegionEngine, "decode", slow_where_the_ball_ends)
    turn_to(red, aligned_plane(made[0], "axial", 14))
    host.session.place("positive", red, [ras(made[0], 44, 36, 14)])
    host.settle()
    host.session.propagate("first", {"first": 14, "last": 20})
    keeper = host.session._work.keeper
    host.until(lambda: reached.is_set() and keeper._request is not None, 20)
    gate.set()
    host.settle()
    shown = np.flatnonzero(held_voxels(host.session, "first").any(axis=(1, 2)))
    assert len(shown) > 1
    record = read_record(host.session.scene, host.session.volume_node, host.session.segmentation_node)
    assert len(record.document["propagated"]) == len(shown) - 1


def test_found_objects_become_segments_and_go_again(host, made, red):
    job = host.session.everything("axial", first=9, last=11)
    objects = host.until_told(Objects, job=job).objects
    assert len(objects) >= 2
    host.session.adopt(job, [item.number for item in objects[:2]])
    host.settle()
    segmentation = host.session.segmentation_node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 4
    new = [segment_id for segment_id in segmentation.GetSegmentIDs() if segment_id not in ("first", "second")]
    assert all(held_voxels(host.session, segment_id).any() for segment_id in new)
    host.session.undo()
    host.settle()
    assert list(segmentation.GetSegmentIDs()) == ["first", "second"]
    host.session.redo()
    host.settle()
    assert segmentation.GetNumberOfSegments() == 4
    host.session.current_segment_id = "second"
    host.session.place("positive", red, [ras(made[0], *tube(9))])  # a value of its own
    host.settle()
    assert len({prompt.segment for prompt in host.session.prompts}) == 1
    assert len(host.session.state.segments) == 3


# ---- volumes, transforms, windows


def test_each_volume_keeps_its_prompts(host, made, red, slicer_scene):
    volume, _ = made
    first, segmentation = host.session.volume_node, host.session.segmentation_node
    host.session.place("positive", red, [ras(volume, *tube(9))])
    host.session.propagate("first", {"first": 8, "last": 10})
    host.until_told(Finished)
    host.settle()
    second = slicer_scene.add_volume(made[0], "twin")
    host.session.set_volume_node(second)
    assert host.session.prompts == ()
    (node,) = prompt_nodes(host.session.scene)
    assert not node.GetDisplayNode().GetVisibility()
    host.session.current_segment_id = "second"
    host.session.place("positive", red, [ras(volume, 44, 36, 9)])
    host.settle()
    assert is_right(host, made, "first", 1, [8, 9, 10]) and is_right(host, made, "second", 2, [9])
    host.session.set_volume_node(first)
    host.settle()
    assert host.session.segmentation_node is segmentation
    assert [prompt.segment_id for prompt in host.session.prompts] == ["first"]
    assert [n.GetDisplayNode().GetVisibility() for n in prompt_nodes(host.session.scene)] == [1, 0]
    assert is_right(host, made, "first", 1, [8, 9, 10])
    host.session.delete(host.session.prompts[0].number)
    host.session.clear("first")
    host.settle()
    assert is_right(host, made, "first", 1, []) and is_right(host, made, "second", 2, [9])


def test_another_segmentation_has_other_prompts(host, made, red, slicer_scene):
    volume, _ = made
    first = host.session.segmentation_node
    host.session.place("positive", red, [ras(volume, *tube(9))])
    host.settle()
    host.session.set_segmentation_node(slicer_scene.add_segmentation(host.session.volume_node, name="other"))
    assert host.session.prompts == ()
    host.session.place("positive", red, [ras(volume, 44, 36, 9)])
    host.settle()
    assert is_right(host, made, "first", 2, [9])
    host.session.set_segmentation_node(first)
    host.settle()
    assert is_right(host, made, "first", 1, [9]) and len(host.session.prompts) == 1


def test_a_moved_volume_is_segmented_anew_below_prompts_that_stay(host, made, red, slicer_scene, monkeypatch):
    volume, _ = made
    host.session.place("positive", red, [ras(volume, *tube(9))])
    host.settle()
    shift = np.eye(4)
    shift[:3, 3] = volume.affine[:3, 2]  # one slice up
    transform = slicer_scene.add_transform(shift)
    host.session.volume_node.SetAndObserveTransformNodeID(transform.GetID())
    host.session.segmentation_node.SetAndObserveTransformNodeID(transform.GetID())
    host.until_told(Notice)
    host.settle()
    assert "moved" in host.texts(Notice)[-1]
    assert is_right(host, made, "first", 1, [8])
    (node,) = prompt_nodes(host.session.scene)
    assert np.allclose(node.GetNthControlPointPositionWorld(0), ras(volume, *tube(9)))
    # Dragging the transform itself tells of a place alone: the voxels are not read again.
    monkeypatch.setattr(zlib, "crc32", None)
    transform.SetMatrixTransformToParent(matrix_of(np.eye(4)))
    host.until_told(Notice)
    host.settle()
    assert is_right(host, made, "first", 1, [9])


def test_the_displayed_window_is_followed_once_it_rests(host, made, red):
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    host.session.set_window(None)
    host.settle()
    display = host.session.volume_node.GetDisplayNode()
    display.SetAutoWindowLevel(0)
    for low in (10, 20, 30):
        display.SetWindowLevelMinMax(low, 200)
        host.pump()
    host.until(lambda: host.session.state.window is not None and host.session.state.window.low == 30)
    host.session.set_window(host.session.state.window)
    display.SetWindowLevelMinMax(0, 100)
    host.settle()
    assert host.session.state.window.high == 200


# ---- saving and loading


def filled(host, made, red):
    volume, _ = made
    host.session.place("positive", red, [ras(volume, *tube(9))])
    host.session.propagate("first", {"first": 7, "last": 11})
    host.until_told(Finished)
    host.session.current_segment_id = "second"
    plane = aligned_plane(volume, "axial", 9)
    host.session.place("positive", red, [ras(volume, 44, 36, 9)])
    host.session.place("box", red, plane.pixel_to_ras([(2, 2), (9, 8)]))
    host.settle()


def test_a_scene_is_saved_and_goes_on_in_a_fresh_one(host, made, red, slicer_scene, load_mrb, open_session, tmp_path):
    filled(host, made, red)
    before = {name: held_voxels(host.session, name) for name in ("first", "second")}
    host.session.set_model("region", "", "cpu")
    host.settle()
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    loaded = load_mrb(path)
    again = open_session(loaded)
    again.session.attach()
    assert len(again.session.prompts) == 3 and again.session.volume is not None  # at once, without a worker
    for name, voxels in before.items():
        assert np.array_equal(held_voxels(again.session, name), voxels)
    again.settle()
    assert not again.texts(Failed) and not again.texts(Notice)
    assert again.session.client.status.model == "region" and again.session.window == host.session.window
    for name, voxels in before.items():
        assert np.array_equal(held_voxels(again.session, name), voxels)
    assert [(p.number, p.segment_id, p.prompt, p.view) for p in again.session.prompts] == [
        (p.number, p.segment_id, p.prompt, p.view) for p in host.session.prompts
    ]
    again.session.clear("first")  # propagated slices go too: they were not drawn by hand
    again.settle()
    assert not held_voxels(again.session, "first").any()
    assert np.array_equal(held_voxels(again.session, "second"), before["second"])


def test_prompts_edited_between_loading_and_going_on_count(
    host, made, red, slicer_scene, load_mrb, open_session, tmp_path
):
    volume, _ = made
    filled(host, made, red)
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    loaded = load_mrb(path)
    by_name = {node.GetName(): node for node in prompt_nodes(loaded.scene)}
    by_name["first positive"].SetNthControlPointPositionWorld(0, vtk.vtkVector3d(*ras(volume, *tube(3))))
    by_name["first positive"].AddControlPointWorld(vtk.vtkVector3d(*ras(volume, *tube(15))))
    loaded.scene.RemoveNode(by_name["second box"])
    again = open_session(loaded)
    again.session.attach()
    again.settle()
    assert len(again.session.prompts) == 3
    assert is_right(again, made, "first", 1, [3, 7, 8, 10, 11, 15])
    assert is_right(again, made, "second", 2, [9])


def test_a_scene_saved_before_the_worker_ever_answered(
    slicer_scene, made, red, load_mrb, open_session, tmp_path
):
    from region_engine import WINDOW

    host = open_session(slicer_scene)
    host.session.set_window(WINDOW)
    host.session.set_volume_node(slicer_scene.add_volume(made[0]))
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    again = open_session(load_mrb(path))
    again.session.attach()
    again.settle()
    (prompt,) = again.session.prompts
    assert is_right(again, made, prompt.segment_id, 1, [9])


def test_a_mask_that_was_saved_at_once_goes_with_its_prompt_later(
    host, made, red, slicer_scene, load_mrb, open_session, tmp_path
):
    """Slicer does not say when it saves: what belongs to which prompt is stored soon after every mask."""
    session = host.session
    host.settle()
    turn_to(red, aligned_plane(made[0], "axial", 9))
    session.place("positive", red, [ras(made[0], *tube(9))])
    host.until(lambda: held_voxels(session, "first").any())
    for _ in range(2):  # in the next turn the views are drawn, and then it is stored
        host.pump()
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    again = open_session(load_mrb(path))
    again.session.attach()
    again.settle()
    (prompt,) = again.session.prompts
    assert held_voxels(again.session, "first").any()
    again.session.delete(prompt.number)
    again.settle()
    assert not held_voxels(again.session, "first").any()


def test_prompts_whose_segments_were_lost_are_spoken_of(
    host, made, red, slicer_scene, load_mrb, open_session, tmp_path
):
    """As when the file of the segmentation is missing."""
    filled(host, made, red)
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    loaded = load_mrb(path)
    loaded.scene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetSegmentation().RemoveAllSegments()
    again = open_session(loaded)
    again.session.attach()
    again.settle()
    assert again.session.prompts == ()
    assert ["Deleted 3 prompts" in text for text in again.texts(Failed)] == [True]


def test_another_image_below_the_same_prompts(host, made, red, slicer_scene, load_mrb, open_session, tmp_path):
    filled(host, made, red)
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    loaded = load_mrb(path)
    node = loaded.scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    slicer_array = vtk.util.numpy_support.vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    slicer_array[slicer_array > 100] -= 7
    again = open_session(loaded)
    again.session.attach()
    again.settle()
    assert any("another image" in text for text in again.texts(Notice)) and not again.texts(Failed)
    assert len(again.session.prompts) == 3


def test_a_scene_of_an_earlier_version_goes_on(host, made, red, slicer_scene, load_mrb, open_session, tmp_path):
    """It recognises a volume by some of its voxels."""
    filled(host, made, red)
    before = held_voxels(host.session, "first")
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    loaded = load_mrb(path)
    (node,) = record_nodes(loaded.scene)
    values = json.loads(node.GetText())
    del values["volume"]["voxels"]
    node.SetText(json.dumps(values))
    again = open_session(loaded)
    again.session.attach()
    again.settle()
    assert np.array_equal(held_voxels(again.session, "first"), before) and not again.texts(Notice)
    assert '"voxels"' in node.GetText()


def test_saving_by_the_application_waits_for_the_newest_document(host, made, red):
    filled(host, made, red)
    turn_to(red, aligned_plane(made[0], "axial", 15))
    host.session.place("positive", red, [ras(made[0], 44, 36, 15)])
    host.session.scene.InvokeEvent(slicer.vtkMRMLScene.StartSaveEvent)
    (node,) = record_nodes(host.session.scene)
    assert f'"number": {host.session.prompts[-1].number},' in node.GetText()


def test_loading_a_scene_over_this_one(host, made, red, slicer_scene, load_mrb, tmp_path):
    filled(host, made, red)
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    slicer_scene.scene.Clear(False)
    assert host.session.volume_node is None and host.session.prompts == ()
    load_mrb(path, into=slicer_scene)
    host.settle()
    assert len(host.session.prompts) == 3 and is_right(host, made, "first", 1, range(7, 12))


# ---- nodes that go


@pytest.mark.parametrize("order", range(6))
def test_nodes_may_go_in_any_order(host, made, red, order):
    filled(host, made, red)
    scene, session = host.session.scene, host.session
    nodes = [
        session.volume_node,
        session.segmentation_node,
        *prompt_nodes(scene),
        *record_nodes(scene),
        session.parameters.find(),
    ]
    for node in np.random.default_rng(order).permutation(np.array(nodes, dtype=object)):
        scene.RemoveNode(node)
        if order % 2:
            host.pump()
    for _ in range(5):
        host.pump()
    assert not host.texts(Failed)
    assert session.prompts == () and session.volume_node is None and session.segmentation_node is None
    assert not list(prompt_nodes(scene)) and not record_nodes(scene)


def test_no_observer_is_left(slicer_scene, made, open_session, red):
    volume_node = slicer_scene.add_volume(made[0])
    segmentation_node = slicer_scene.add_segmentation(volume_node)
    watched = (slicer_scene.scene, volume_node, segmentation_node, volume_node.GetDisplayNode())
    before = [observers_of(thing) for thing in watched]
    host = open_session(slicer_scene)
    host.session.set_volume_node(volume_node)
    host.session.set_segmentation_node(segmentation_node)
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.session.start_placing("negative")
    host.settle()
    assert [observers_of(thing) for thing in watched] != before
    nodes = list(prompt_nodes(slicer_scene.scene))
    host.session.close()
    assert [observers_of(thing) for thing in watched] == before
    fresh = slicer_scene.add("vtkMRMLMarkupsFiducialNode")
    fresh.CreateDefaultDisplayNodes()
    assert {observers_of(node) for node in nodes} <= {observers_of(fresh)}
    assert host.session.pump() == []


def observers_of(thing) -> int:
    """How many observers VTK itself says a thing has."""
    return str(thing).count("vtkObserver (")


def test_masks_whose_prompts_went_while_the_worker_was_away_are_taken_back(host, made, red):
    """A new session tells nothing of a place that has no prompts any more."""
    volume, _ = made
    host.session.place("positive", red, [ras(volume, *tube(9))])
    turn_to(red, aligned_plane(volume, "axial", 12))
    gone = host.session.place("positive", red, [ras(volume, *tube(12))])
    host.settle()
    client = host.session.client
    client._conversation.lose_session()  # as when the worker was started again
    host.session.delete(gone)
    host.settle()
    assert is_right(host, made, "first", 1, [9])


def test_a_refused_job_does_not_keep_the_scene_waiting(host, made, red):
    volume, _ = made
    host.session.place("negative", red, [ras(volume, *tube(9))])
    host.session.propagate("first")
    host.until_told(Failed)
    host.settle()
    assert not held_voxels(host.session, "first").any()


def test_embedding_jumping_and_surfaces(host, made, red, slicer_scene):
    volume, _ = made
    host.session.embed_around(red)
    turn_to(red, aligned_plane(volume, "axial", 9))
    number = host.session.place("positive", red, [ras(volume, *tube(9))])
    host.settle()
    turn_to(red, aligned_plane(volume, "axial", 3))
    host.session.jump_to(number)
    matrix = red.GetSliceToRAS()
    normal = [matrix.GetElement(row, 2) for row in range(3)]
    offset = np.subtract(ras(volume, *tube(9)), [matrix.GetElement(row, 3) for row in range(3)]) @ normal
    assert abs(offset) < 1e-3
    host.session.segmentation_node.CreateClosedSurfaceRepresentation()
    turn_to(red, aligned_plane(volume, "axial", 10))
    host.session.place("positive", red, [ras(volume, *tube(10))])
    host.settle()
    host.until(lambda: host.session.refresh_due, 5)
    host.session.refresh_surface()
    assert not host.session.refresh_due


def test_a_click_is_read_from_the_nodes_once(host, made, red, monkeypatch):
    """What is written into the nodes in answer to it is not read again, and nothing is outstanding afterwards."""
    reads, read = [], PromptNodes.read
    monkeypatch.setattr(PromptNodes, "read", lambda *arguments: reads.append(1) or read(*arguments))
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    reads.clear()
    node = host.session._nodes.point_list("first", "positive")
    changes = []
    host.session.on_change = lambda: changes.append(1)
    node.AddControlPointWorld(vtk.vtkVector3d(*ras(made[0], *tube(8))))
    assert changes and host.session.outstanding
    host.settle()
    assert len(reads) == 1 and not host.session.outstanding
    hovering = node.AddControlPoint(vtk.vtkVector3d(0, 0, 0))
    node.SetNthControlPointPosition(hovering, 1.0, 0.0, 0.0, node.PositionPreview)
    host.settle()
    reads.clear()
    changes.clear()
    node.SetNthControlPointPosition(hovering, 2.0, 0.0, 0.0, node.PositionPreview)
    assert not changes and not host.session.outstanding
    node.RemoveNthControlPoint(hovering)
    host.settle()
    assert len(reads) == 1
    host.session.undo()
    assert host.session.outstanding
    host.settle()
    assert len(reads) == 1 and not host.session.outstanding


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.pop("segments"),
        lambda stored: stored["segments"][0].pop("name"),
        lambda stored: stored["prompts"][0].pop("view"),
        lambda stored: stored.update(window={"low": 1.0}),
        lambda stored: stored.update(window="wide"),
    ],
)
def test_of_a_damaged_session_in_the_scene_the_prompts_remain(host, made, red, damage):
    session, volume_node = host.session, host.session.volume_node
    session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    session.set_volume_node(None)
    (node,) = record_nodes(session.scene)
    values = json.loads(node.GetText())
    damage(values["document"])
    node.SetText(json.dumps(values))
    session.set_volume_node(volume_node)
    host.settle()
    assert any("is damaged" in text for text in host.texts(Notice)) and not host.texts(Failed)
    assert len(session.prompts) == 1 and is_right(host, made, "first", 1, [9])

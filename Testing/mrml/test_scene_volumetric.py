"""Prompts of a scene that answer for the whole object."""

from __future__ import annotations

import numpy as np
import pytest
from mrml.scene_host import held_voxels, ras, tube

slicer = pytest.importorskip("slicer")

from SAMFineTuneLib.session.events import Failed, Finished, Notice  # noqa: E402


@pytest.fixture
def in_3d(host):
    host.session.volumetric = True
    host.settle()
    return host


def click(host, red, volume, k=9, kind="positive"):
    host.session.place(kind, red, [ras(volume, *tube(k))])


def first(host):
    return held_voxels(host.session, "first")


def test_a_click_fills_the_whole_object_and_undo_takes_all_of_it_back(in_3d, made, red):
    volume, labels = made
    click(in_3d, red, volume)
    in_3d.settle()
    assert np.array_equal(first(in_3d), labels == 1)
    in_3d.session.undo()
    in_3d.settle()
    assert not first(in_3d).any() and not in_3d.session.prompts
    in_3d.session.redo()
    in_3d.settle()
    assert np.array_equal(first(in_3d), labels == 1)
    assert not in_3d.texts(Failed) and not in_3d.texts(Notice)


def test_it_may_be_chosen_before_there_is_a_volume(open_session, slicer_scene, made, red):
    from region_engine import WINDOW

    host = open_session(slicer_scene)
    host.session.volumetric = True
    assert not host.session.client.outstanding, "no worker starts for it"
    host.session.set_window(WINDOW)
    host.session.set_volume_node(slicer_scene.add_volume(made[0], "phantom"))
    click(host, red, made[0])
    host.settle()
    assert np.array_equal(held_voxels(host.session, host.session.current_segment_id), made[1] == 1)


def test_off_a_click_stays_on_its_slice(in_3d, made, red):
    in_3d.session.volumetric = False
    click(in_3d, red, made[0])
    in_3d.settle()
    assert np.flatnonzero(first(in_3d).any(axis=(1, 2))).tolist() == [9]


def test_removing_the_markup_removes_the_object(in_3d, made, red):
    click(in_3d, red, made[0])
    in_3d.settle()
    (node,) = in_3d.session._nodes.nodes()
    in_3d.session.scene.RemoveNode(node)
    in_3d.settle()
    assert not first(in_3d).any()


def test_a_drag_answers_anew(in_3d, made, red):
    volume, labels = made
    click(in_3d, red, volume)
    in_3d.settle()
    (node,) = in_3d.session._nodes.nodes()
    node.SetNthControlPointPositionWorld(0, ras(volume, 12, 44, 9))
    in_3d.settle()
    assert np.array_equal(first(in_3d), labels == 3)


def test_the_choice_and_an_unfinished_answer_are_saved(in_3d, made, red, load_mrb, open_session, tmp_path):
    volume, labels = made
    click(in_3d, red, volume)
    in_3d.until(lambda: in_3d.session.client.jobs)
    path = tmp_path / "scene.mrb"
    in_3d.session.scene.InvokeEvent(in_3d.session.scene.StartSaveEvent)
    assert in_3d.session.scene.WriteToMRB(str(path), None)
    other = open_session(load_mrb(path))
    other.session.attach()
    assert other.session.volumetric
    other.settle()
    assert np.array_equal(first(other), labels == 1)


def test_another_segmentation_in_between(in_3d, made, red, slicer_scene):
    volume, labels = made
    click(in_3d, red, volume)
    in_3d.until(lambda: in_3d.session.client.jobs)
    node = in_3d.session.segmentation_node
    in_3d.session.set_segmentation_node(slicer_scene.add_segmentation(in_3d.session.volume_node))
    in_3d.settle()
    in_3d.session.set_segmentation_node(node)
    in_3d.settle()
    assert np.array_equal(first(in_3d), labels == 1)


def test_the_answer_is_cancelled_and_keeps_what_came(in_3d, made, red):
    click(in_3d, red, made[0])
    in_3d.until(lambda: in_3d.session.client.jobs)
    (job,) = in_3d.session.client.jobs
    in_3d.session.client.cancel(job)
    in_3d.until_told(Finished, job=job)
    in_3d.settle()
    assert first(in_3d)[9].any() and in_3d.session.at_rest

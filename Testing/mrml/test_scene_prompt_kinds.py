"""Lassos, and a kind of prompt that is defined in a test alone, in Slicer's scene."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer")

from mrml.scene_host import held_voxels, ras, tube
from wedge_prompt import WedgePrompt, wedges  # noqa: F401

from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.mrml.prompts.prompt_nodes import prompt_nodes
from SAMFineTuneLib.session.events import Failed

SLICE = 9


def loop(plane, x, y, half=2.4):
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    return [tuple(point) for point in plane.pixel_to_ras(corners)]


def voxels_of(volume, plane, points):
    """The voxels of a slice that a square of points encloses."""
    low, high = (edge(volume.ras_to_ijk(points), axis=0) for edge in (np.min, np.max))
    inside = np.zeros(volume.shape, bool)
    (i, j), (last_i, last_j) = np.ceil(low[:2]).astype(int), np.floor(high[:2]).astype(int)
    inside[plane.index, j : last_j + 1, i : last_i + 1] = True
    return inside


def test_lassos_in_a_scene(host, made, red, slicer_scene, load_mrb, open_session, tmp_path):
    volume, _ = made
    plane = aligned_plane(volume, "axial", SLICE)
    at = plane.ras_to_pixel(ras(volume, *tube(SLICE)))
    host.session.place("positive", red, [ras(volume, *tube(SLICE))])
    host.settle()
    before = held_voxels(host.session, "first")
    far, near = loop(plane, 4, 4), loop(plane, at[0] + 1, at[1], 1.4)
    host.session.place("lasso+", red, far)
    host.session.place("lasso-", red, near)
    host.settle()
    expected = (before | voxels_of(volume, plane, far)) & ~voxels_of(volume, plane, near)
    assert np.array_equal(held_voxels(host.session, "first"), expected) and not np.array_equal(expected, before)
    lassos = [node for node in prompt_nodes(host.session.scene) if node.IsA("vtkMRMLMarkupsClosedCurveNode")]
    assert sorted(node.GetName() for node in lassos) == ["first negative lasso", "first positive lasso"]

    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    again = open_session(load_mrb(path))
    again.session.attach()
    again.settle()
    labels = [placed.prompt.label for placed in again.session.prompts]
    assert labels == ["Include", "Lasso", "Lasso −"] and not again.texts(Failed)
    assert np.array_equal(held_voxels(again.session, "first"), expected)

    for _ in range(2):
        host.session.undo()
    host.settle()
    assert np.array_equal(held_voxels(host.session, "first"), before)
    assert len(list(prompt_nodes(red.GetScene()))) == 1
    host.session.redo()
    host.settle()
    (lasso,) = [node for node in prompt_nodes(red.GetScene()) if node.IsA("vtkMRMLMarkupsClosedCurveNode")]
    for index in range(4):  # dragged to where nothing is
        moved = np.array(lasso.GetNthControlPointPositionWorld(index)) + 4 * plane.pixel_size * plane.right
        lasso.SetNthControlPointPositionWorld(index, *moved)
    host.settle()
    moved = [tuple(np.array(point) + 4 * plane.pixel_size * plane.right) for point in far]
    assert np.array_equal(held_voxels(host.session, "first"), before | voxels_of(volume, plane, moved))


def test_a_kind_that_only_a_test_defines(
    wedges, host, made, red, slicer_scene, load_mrb, open_session, tmp_path  # noqa: F811
):
    volume, _ = made
    middle = np.array(ras(volume, *tube(SLICE)))
    host.session.place("wedge", red, [middle - (1, 0, 0), middle + (0, 1, 0), middle + (1, -1, 0)])
    host.settle()
    found = held_voxels(host.session, "first")
    (node,) = prompt_nodes(host.session.scene)
    assert found.any() and node.GetName() == "first wedge" and node.IsA("vtkMRMLMarkupsAngleNode")
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    again = open_session(load_mrb(path))
    again.session.attach()
    again.settle()
    (placed,) = again.session.prompts
    assert isinstance(placed.prompt, WedgePrompt) and not again.texts(Failed)
    assert np.array_equal(held_voxels(again.session, "first"), found)
    host.session.undo()
    host.settle()
    assert not held_voxels(host.session, "first").any() and not list(prompt_nodes(host.session.scene))

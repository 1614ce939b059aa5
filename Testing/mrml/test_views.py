"""The off-screen slice views themselves: what they show, and that a simulated mouse reaches real markups."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def view(slicer_scene, volume_node):
    view = slicer_scene.add_view("Red", "Axial")
    view.show(volume_node)
    return view


@pytest.fixture
def point_list(slicer_scene):
    """A point list that is being placed into."""
    node = slicer_scene.add("vtkMRMLMarkupsFiducialNode", "points")
    node.CreateDefaultDisplayNodes()
    selection = slicer_scene.application.GetSelectionNode()
    selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsFiducialNode")
    selection.SetActivePlaceNodeID(node.GetID())
    interaction = slicer_scene.application.GetInteractionNode()
    interaction.SetPlaceModePersistence(1)
    interaction.SetCurrentInteractionMode(interaction.Place)
    return node


def world(node, index: int) -> np.ndarray:
    return np.array(node.GetNthControlPointPositionWorld(index))


def test_a_view_shows_the_volume(view, phantom):
    middle = phantom.ijk_to_ras((np.array(phantom.shape[::-1]) - 1) / 2)
    view.go_to(middle)
    pixels = view.pixels()
    x, y = view.xy_of(middle)
    assert pixels[y, x].min() > 60 and pixels[2, 2].max() < 20  # tissue in the middle, air in the corner
    assert np.allclose(view.ras_of((x, y)), middle, atol=1.5)


def test_a_click_in_place_mode_places_a_markup_where_it_was(view, point_list):
    for xy in ((150, 200), (260, 240)):
        view.click(xy)
    assert point_list.GetNumberOfDefinedControlPoints() == 2
    assert np.allclose(world(point_list, 0), view.ras_of((150, 200)), atol=1e-6)
    assert np.allclose(world(point_list, 1), view.ras_of((260, 240)), atol=1e-6)
    assert view.renders_asked_for > 0


def test_a_markup_is_seen_and_dragged(slicer_scene, view, point_list):
    before = view.pixels()
    view.click((150, 200))
    interaction = slicer_scene.application.GetInteractionNode()
    interaction.SetCurrentInteractionMode(interaction.ViewTransform)
    view.leave()
    assert (view.pixels()[192:209, 142:159] != before[192:209, 142:159]).any()
    ends = []
    point_list.AddObserver(point_list.PointEndInteractionEvent, lambda *_: ends.append(1))
    view.drag((150, 200), (190, 230))
    assert np.allclose(world(point_list, 0), view.ras_of((190, 230)), atol=1e-6)
    assert ends == [1]


def test_an_oblique_view_is_where_it_was_turned_to(view, phantom):
    middle = phantom.ijk_to_ras((np.array(phantom.shape[::-1]) - 1) / 2)
    view.turn((1, 0.3, 0.1), (0.2, -1, 0.3), middle)
    assert np.allclose(view.ras_of(view.xy_of(middle)), middle, atol=1.5)
    right = view.ras_of((300, 200)) - view.ras_of((200, 200))
    assert np.allclose(np.cross(right / np.linalg.norm(right), (1, 0.3, 0.1)), 0, atol=1e-6)
    assert view.pixels().max() > 60

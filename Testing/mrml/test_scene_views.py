"""From a mouse click in a rendered slice view to changed voxels, through a worker process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from mrml.scene_host import SceneHost
from mrml.scenes import segment_voxels

slicer = pytest.importorskip("slicer")

from SAMFineTuneLib.images import read_volume  # noqa: E402
from SAMFineTuneLib.images.phantom import body_phantom  # noqa: E402
from SAMFineTuneLib.images.slice_plane import aligned_plane  # noqa: E402
from SAMFineTuneLib.mrml.prompts.prompt_nodes import prompt_nodes  # noqa: E402
from SAMFineTuneLib.mrml.scene_session import SceneSession  # noqa: E402
from SAMFineTuneLib.service.client import SessionClient  # noqa: E402
from SAMFineTuneLib.service.worker import LocalWorker  # noqa: E402
from SAMFineTuneLib.session.events import Failed  # noqa: E402

OBLIQUE = Path(__file__).resolve().parents[3] / "shared" / "data" / "brain-mr-oblique-dicom" / "t1post"
VIEWS = {"axial": "Red", "coronal": "Green", "sagittal": "Yellow"}


@pytest.fixture(scope="module")
def client():
    """A client of a worker process with the bundled model, which serves one test after the other."""
    client = SessionClient(LocalWorker(), segments_are_steps=False)
    yield client
    client.close()


@pytest.fixture
def open_on(client, slicer_scene):
    """A session on a volume, with the crosshair that says which view the mouse is in."""
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    slicer_scene.scene.AddNode(crosshair)
    sessions = []

    def open_session(volume):
        session = SceneSession(slicer_scene.scene, client)
        sessions.append(session)
        node = slicer_scene.add_volume(volume)
        session.set_volume_node(node)
        session.set_segmentation_node(slicer_scene.add_segmentation(node))
        return SceneHost(session)

    yield open_session
    for session in sessions:
        session.close()


def view_along(slicer_scene, plane, node, name):
    view = slicer_scene.add_view(name)
    view.show(node)
    view.turn(plane.right, plane.down, plane.pixel_to_ras((np.array(plane.shape[::-1]) - 1) / 2))
    view.logic.FitSliceToAll()
    return view


def click(host, view, xy):
    """A mouse click in Slicer's place mode, and the time until the segment is right again."""
    host.session.start_placing("positive")
    view.click(xy)
    host.pump()
    host.session.stop_placing()
    view.leave()
    host.settle(120)


def covers(host, segment, ras) -> bool:
    """Whether the segment's voxels hold a point, read from the node."""
    volume = host.session.volume
    i, j, k = np.floor(volume.ras_to_ijk(ras) + 0.5).astype(int)
    return bool(segment_voxels(host.session.segmentation_node, segment, volume)[k, j, i])


def coloured(before, after, xy) -> bool:
    """Whether the pixels around a position have taken on a hue."""
    x, y = xy
    there = (slice(y - 9, y + 10), slice(x - 9, x + 10))
    gained = after[there].astype(int) - before[there]
    return bool((np.ptp(gained, axis=-1) > 20).any())


def clicked_and_covered(host, slicer_scene, plane, name):
    """Click into bright tissue near the middle of a view along a plane; the mask must hold the very place."""
    host.session.clear()
    host.settle()
    view = view_along(slicer_scene, plane, host.session.volume_node, name)
    before = view.pixels()
    xy = np.array(view.xy_of(plane.pixel_to_ras((np.array(plane.shape[::-1]) - 1) / 2))) + (14, 22)
    ras = view.ras_of(xy)
    click(host, view, xy)
    (prompt,) = host.session.prompts
    assert np.allclose(prompt.prompt.ras, ras, atol=1e-6)
    assert not host.texts(Failed)
    for node in prompt_nodes(host.session.scene):
        node.SetDisplayVisibility(False)  # the mask, not the markup
    after = view.pixels()
    masks = [tuple(mask) for mask in host.session._work.writer.masks()]
    assert covers(host, "first", ras), f"not covered; {prompt}, {masks}, told {host.told[-6:]}"
    assert coloured(before, after, xy), f"covered, but not seen; {masks}"
    return prompt


def turned(plane, degrees):
    """Directions (right, down) of a view turned about its right axis."""
    angle = np.deg2rad(degrees)
    return plane.right, np.cos(angle) * plane.down + np.sin(angle) * plane.normal


@pytest.mark.skipif(not OBLIQUE.is_dir(), reason="the oblique DICOM series is not here")
@pytest.mark.parametrize("orientation", [*VIEWS, "turned"])
def test_a_click_covers_its_pixel_on_the_oblique_series(open_on, slicer_scene, orientation):
    from SAMFineTuneLib.images.slice_plane import oblique_plane, view_axes

    host = open_on(read_volume(OBLIQUE))
    volume = host.session.volume
    along = "axial" if orientation == "turned" else orientation
    plane = aligned_plane(volume, along, volume.shape[2 - view_axes(volume, along)[2]] // 2)
    if orientation == "turned":
        middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2)
        plane = oblique_plane(volume, middle, *turned(plane, 20))
    prompt = clicked_and_covered(host, slicer_scene, plane, VIEWS.get(orientation, "Red"))
    assert (prompt.view == orientation) if orientation in VIEWS else prompt.view.orientation == "oblique"


@pytest.mark.parametrize("degrees", [0, 20])
def test_a_click_covers_its_pixel_on_the_phantom(open_on, slicer_scene, degrees):
    from SAMFineTuneLib.images.slice_plane import oblique_plane

    host = open_on(body_phantom(seed=1, shape=(20, 96, 80), spacing=(2.5, 2.2, 5.0))[0])
    plane = aligned_plane(host.session.volume, "axial", 10)
    if degrees:
        plane = oblique_plane(host.session.volume, plane.pixel_to_ras((40, 48)), *turned(plane, degrees))
    assert clicked_and_covered(host, slicer_scene, plane, "Red")


def test_points_are_dragged_and_boxes_clicked_with_the_mouse(open_on, slicer_scene):
    host = open_on(body_phantom(seed=1, shape=(20, 96, 80), spacing=(2.5, 2.2, 5.0))[0])
    plane = aligned_plane(host.session.volume, "axial", 10)
    view = view_along(slicer_scene, plane, host.session.volume_node, "Red")
    middle = np.array(view.xy_of(plane.pixel_to_ras((40, 48))))
    click(host, view, middle)
    view.drag(middle, middle + (25, 10))
    host.settle()
    (prompt,) = host.session.prompts
    assert np.allclose(prompt.prompt.ras, view.ras_of(middle + (25, 10)), atol=1.5)
    assert covers(host, "first", prompt.prompt.ras)
    host.session.clear()
    host.session.start_placing("box")
    corners = [middle - (40, 30), middle + (40, 30)]
    for corner in corners:
        view.click(corner)
        host.pump()
    host.session.stop_placing()
    view.leave()
    host.settle()
    (box,) = host.session.prompts
    placed = plane.ras_to_pixel([box.prompt.corner_a, box.prompt.corner_b])
    wanted = plane.ras_to_pixel([view.ras_of(corner) for corner in corners])
    assert np.allclose(np.sort(placed, axis=0), np.sort(wanted, axis=0), atol=1e-4)
    (node,) = prompt_nodes(slicer_scene.scene)
    assert np.allclose(node.GetSize()[:2], np.ptp(wanted, axis=0) * plane.pixel_size)
    assert node.GetDisplayNode().GetHandlesInteractive()


def test_a_killed_worker_is_restarted_and_answers_the_click(open_on, slicer_scene, client):
    host = open_on(body_phantom(seed=1, shape=(20, 96, 80), spacing=(2.5, 2.2, 5.0))[0])
    plane = aligned_plane(host.session.volume, "axial", 10)
    view = view_along(slicer_scene, plane, host.session.volume_node, "Red")
    middle = np.array(view.xy_of(plane.pixel_to_ras((40, 48))))
    click(host, view, middle)
    first = host.session.prompts[0].number
    os.kill(client._connection._starter.process.pid, 9)
    host.session.delete(first)  # while nobody hears it
    click(host, view, middle + (20, 10))
    (prompt,) = host.session.prompts
    assert covers(host, "first", prompt.prompt.ras)
    assert len(host.session._work.writer.masks()) == 1

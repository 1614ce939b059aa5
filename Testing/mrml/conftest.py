"""Scenes for the MRML suites: `slicer_scene` is a fresh one, the rest are things in it."""

from __future__ import annotations

import logging

import pytest
from mrml.scene_host import SceneHost, in_process_worker, slice_node
from mrml.scenes import SlicerScene, tilted_volume
from mrml.segment_bench import Bench

from SAMFineTuneLib.images.phantom import body_phantom
from SAMFineTuneLib.images.volume import Volume


@pytest.fixture
def slicer_scene():
    """A fresh scene with its logics; views made with `slicer_scene.add_view(...)` are closed with it."""
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene = SlicerScene()
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def lasting_scene():
    """One scene for all examples of a property test."""
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene = SlicerScene()
    yield scene
    scene.close()


@pytest.fixture
def scene(slicer_scene):
    """The vtkMRMLScene itself."""
    return slicer_scene.scene


@pytest.fixture(scope="session")
def phantom() -> Volume:
    """A small CT-like abdomen, tilted by 8° and with slices thicker than pixels."""
    return body_phantom(seed=1, shape=(20, 96, 80), spacing=(2.5, 2.2, 5.0))[0]


@pytest.fixture
def a_tilted_volume() -> Volume:
    """Noise on an anisotropic, left-handed grid turned about all three axes."""
    return tilted_volume()


@pytest.fixture
def volume_node(slicer_scene, phantom):
    """The phantom in the scene."""
    return slicer_scene.add_volume(phantom, "phantom")


@pytest.fixture
def segmentation_node(slicer_scene, volume_node):
    """A segmentation over the phantom with the empty segments "first" and "second"."""
    return slicer_scene.add_segmentation(volume_node)


@pytest.fixture
def load_mrb():
    """Loads an `.mrb` into a fresh scene, or `into` a SlicerScene, and returns the SlicerScene."""
    from mrml.scene_files import read_mrb

    fresh = []

    def load(path, into=None):
        loaded = read_mrb(path, into)
        if into is None:
            fresh.append(loaded)
        return loaded

    yield load
    for loaded in fresh:
        loaded.close()


@pytest.fixture
def made():
    """region_engine's phantom: (volume, labels) with 1 a leaning tube, 2 a ball, 3 a second tube."""
    from region_engine import phantom

    return phantom()


@pytest.fixture
def open_session(caplog):
    """Opens sessions on scenes, and closes them at the end; nothing may have been logged as an error."""
    from SAMFineTuneLib.mrml.scene_session import SceneSession
    from SAMFineTuneLib.service.client import SessionClient

    opened = []

    def open_on(slicer_scene, link=None, **settings):
        """`link` makes another connection of the one to the worker."""
        app, connection = in_process_worker()
        connection = connection if link is None else link(connection)
        session = SceneSession(slicer_scene.scene, SessionClient(connection, segments_are_steps=False), **settings)
        opened.append((session, app))
        return SceneHost(session)

    caplog.set_level(logging.WARNING)
    yield open_on
    for session, app in opened:
        session.close()
        session.client.close()
        app.close()
        assert len(session._observers) == 0
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, errors


@pytest.fixture
def host(open_session, slicer_scene, made):
    """A session on the phantom with the segments "first" and "second", seen as it is."""
    from region_engine import WINDOW

    volume_node = slicer_scene.add_volume(made[0], "phantom")
    host = open_session(slicer_scene)
    host.session.set_window(WINDOW)
    host.session.set_volume_node(volume_node)
    host.session.set_segmentation_node(slicer_scene.add_segmentation(volume_node))
    return host


@pytest.fixture
def red(slicer_scene, made):
    """A slice node along the phantom's own axial slices."""
    return slice_node(slicer_scene, made[0], "axial", 9)


@pytest.fixture
def bench(slicer_scene):
    """A small tilted volume with two segments and a writer."""
    return Bench(slicer_scene)

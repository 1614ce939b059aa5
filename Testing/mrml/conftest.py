"""Scenes for the MRML suites: `slicer_scene` is a fresh one, the rest are things in it."""

from __future__ import annotations

import pytest
from mrml.scenes import SlicerScene, tilted_volume

from SAMFineTuneLib.images.phantom import body_phantom
from SAMFineTuneLib.images.volume import Volume


@pytest.fixture
def slicer_scene():
    """A fresh scene with its logics; views made with `slicer_scene.add_view(...)` are closed with it."""
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

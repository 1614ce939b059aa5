"""Scenes for the MRML suites: `slicer_scene` is a fresh one, the rest are things in it."""

from __future__ import annotations

import numpy as np
import pytest
from mrml.scenes import SlicerScene

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


def tilted_volume(shape=(7, 12, 10), spacing=(0.8, 1.1, 2.5), seed: int = 0) -> Volume:
    a, b, c = 0.3, -0.2, 0.45
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag([-1, 1, 1]) * spacing
    affine[:3, 3] = (12.5, -31.0, 100.25)
    return Volume(np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16), affine)

"""Loading scenes without the application."""

from __future__ import annotations

import tempfile

from mrml.scenes import SlicerScene


def read_mrb(path: str, into: SlicerScene | None = None) -> SlicerScene:
    """The `.mrb` loaded into a scene, a fresh one without `into`; loading needs the two managers on the scene."""
    import slicer

    loaded = into or SlicerScene()
    scene = loaded.scene
    if scene.GetCacheManager() is None:
        loaded.cache = slicer.vtkCacheManager()
        loaded.cache_folder = tempfile.TemporaryDirectory()
        loaded.cache.SetRemoteCacheDirectory(loaded.cache_folder.name)
        loaded.cache.SetMRMLScene(scene)
        scene.SetCacheManager(loaded.cache)
        loaded.data_io = slicer.vtkDataIOManager()
        loaded.data_io.SetCacheManager(loaded.cache)
        scene.SetDataIOManager(loaded.data_io)
    assert scene.ReadFromMRB(str(path), False), f"{path} cannot be read"
    return loaded

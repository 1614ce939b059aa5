"""Entries in Slicer's Sample Data module."""

from __future__ import annotations

import sys
import types

import slicer


class _Logic:
    """Slicer's registerCustomSampleDataSource, with its parameters and its memory."""

    registered: list = []

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None, customDownloader=None,
        thumbnailFileName=None, loadFileType="VolumeFile", loadFiles=None, loadFileProperties={}, checksums=None,  # noqa: B006
    ):  # fmt: skip
        entry = (category, sampleName, uris, customDownloader, checksums)
        if entry not in _Logic.registered:
            _Logic.registered.append(entry)


def test_they_are_registered_once_and_the_phantom_loads_offline(desktop, monkeypatch):
    from SAMFineTunePanels import sample_data

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=_Logic))
    sample_data.register()
    sample_data.register()
    assert [entry[1] for entry in _Logic.registered] == ["BodyPhantom", "MRHead", "CTChest"]
    assert all(entry[4] is None or entry[2].endswith(entry[4].split(":")[1]) for entry in _Logic.registered)
    (node,) = _Logic.registered[0][3](None)
    assert node.GetImageData().GetDimensions() == (256, 256, 40)
    assert desktop.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1


def test_without_sample_data_nothing_happens(desktop, monkeypatch):
    from SAMFineTunePanels import sample_data

    monkeypatch.setitem(sys.modules, "SampleData", None)
    sample_data.register()


def test_it_waits_for_the_application(desktop, monkeypatch):
    import SAMFineTune

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=_Logic))
    _Logic.registered.clear()
    parent = types.SimpleNamespace(path=SAMFineTune.__file__)
    SAMFineTune.SAMFineTune(parent)
    assert parent.title == "SAMFineTune" and parent.categories == ["Segmentation"]
    assert _Logic.registered == []
    slicer.app.startupCompleted.emit()
    assert len(_Logic.registered) == 3

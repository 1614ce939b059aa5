"""Automatic with an adapter: its labels become segments, the same that the command line finds."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from mrml.scenes import segment_voxels
from test_clicks import Work

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from SAMFineTuneLib.cli.main import main  # noqa: E402
from SAMFineTuneLib.images.sitk_images import to_sitk  # noqa: E402
from SAMFineTuneLib.models.adapters.adapter_card import Card  # noqa: E402
from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning import attach, save_adapter, trainable  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning_method import Method  # noqa: E402
from SAMFineTuneLib.models.load_model import load_network  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402


@pytest.fixture
def adapter(tmp_path):
    """An adapter with an automatic head of random weights, which finds something everywhere."""
    base, method = Store().get(), Method(scope="decoder", heads=("automatic",), classes=("background", "liver", "duct"))
    network = attach(load_network(base.file("weights"))[1], base.spec, method, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in trainable(network).items():
            if "class_head" in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    save_adapter(tmp_path / "finder", network.eval(), base, method, Card(labels=("liver", "duct")))
    AdapterStore().add(tmp_path / "finder")
    return "finder"


def test_an_adapters_labels_become_segments(adapter, desktop, tmp_path):
    work = Work(desktop, shape=(5, 64, 64), spacing=(5.4, 5.4, 15.0))
    work.panel.input.align_views()
    ui = work.panel.automatic.ui
    assert ui.labelsFrame.isHidden()
    work.panel.open_tab("automatic")
    work.desktop.wait(lambda: not ui.labelsFrame.isHidden())
    assert ui.labelsSelector.itemText(0) == "finder: liver, duct"
    ui.whereSelector.setCurrentIndex(1)
    work.desktop.wait(lambda: ui.labelsButton.enabled)
    ui.labelsButton.click()

    def segments():
        node = work.session.segmentation_node
        segmentation = node.GetSegmentation() if node is not None else None
        ids = list(segmentation.GetSegmentIDs()) if segmentation is not None else []
        return {segmentation.GetSegment(one).GetName(): one for one in ids}

    sitk.WriteImage(to_sitk(work.volume.array, work.volume.affine), str(tmp_path / "volume.nrrd"))
    asked = [tmp_path / "volume.nrrd", "-o", tmp_path / "found.nrrd", "--adapter", adapter, "--auto"]
    assert main(["segment", *map(str, asked)]) == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "found.nrrd")))
    names = {name: value for value, name in ((1, "liver"), (2, "duct")) if (found == value).any()}
    assert names, "the random head finds nothing: choose another seed"
    work.desktop.wait(lambda: set(names) <= set(segments()))
    work.rest()
    for name, value in names.items():
        node = work.session.segmentation_node
        work.desktop.wait(lambda name=name, value=value, node=node: np.array_equal(
            segment_voxels(node, segments()[name], work.volume), found == value), 20)  # fmt: skip
    assert work.ui.undoButton.toolTip.startswith("Undo: add found objects"), "their names are no steps of their own"
    work.ui.undoButton.click()
    work.desktop.wait(lambda: not set(names) & set(segments()))
    work.desktop.wait(lambda: work.ui.redoButton.enabled)
    work.ui.redoButton.click()
    work.desktop.wait(lambda: set(segments()) == set(names))

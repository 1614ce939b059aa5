"""Export of the segments: formats, files that are in the way, what happens meanwhile."""

from __future__ import annotations

import os
import re
import sys

import pytest
import qt
import SimpleITK as sitk
import slicer
from test_clicks import Work


@pytest.fixture
def work(desktop):
    return Work(desktop, aligned=True)


def press_export(desktop):
    """And wait for the end of it."""
    export = desktop.panel.export
    desktop.wait(lambda: export.ui.exportButton.enabled)
    export.ui.exportButton.click()
    desktop.wait(lambda: desktop.panel.host.task is None)


def start_export(work, folder, index=1):
    """Into a new folder, of which some steps are taken but not all."""
    folder.mkdir()
    export = work.panel.export
    export.ui.folderEdit.currentPath = str(folder)
    export.ui.formatSelector.setCurrentIndex(index)
    work.panel.host.timer.stop()
    export.export()
    work.panel.status.refresh()
    assert work.panel.host.task.needs_scene
    return folder


def test_an_export_can_be_cancelled(work, tmp_path):
    work.box_round()
    panel = work.panel
    folder = start_export(work, tmp_path / "exports")
    assert "Writing" in panel.status.ui.statusLabel.text and not panel.status.ui.cancelButton.isHidden()
    panel.status.ui.cancelButton.click()
    panel.host.timer.start()
    work.desktop.pass_time(0.2)
    assert panel.host.task is None and list(folder.iterdir()) == []


@pytest.mark.parametrize("shown", [True, False])
def test_an_export_is_finished_when_the_scene_is_closed_meanwhile(work, tmp_path, shown):
    work.box_round()
    expected, panel = work.voxels(), work.panel
    folder = start_export(work, tmp_path / "exports")
    panel.host.timer.start()
    if not shown:
        work.desktop.leave()
    slicer.mrmlScene.Clear(False)
    work.desktop.wait(lambda: panel.host.task is None)
    (file,) = folder.iterdir()
    assert ((sitk.GetArrayFromImage(sitk.ReadImage(file)) > 0) == expected).all()
    assert any(file.name in text and str(folder) in text for text in work.desktop.messages())


def test_an_export_is_finished_when_the_panel_is_closed_meanwhile(work, tmp_path):
    work.box_round()
    expected = work.voxels()
    folder = start_export(work, tmp_path / "exports")
    work.desktop.widget.cleanup()
    (file,) = folder.iterdir()
    assert ((sitk.GetArrayFromImage(sitk.ReadImage(file)) > 0) == expected).all()


def test_a_label_map_is_not_promised_to_a_scene_that_is_closed(work, tmp_path):
    work.box_round()
    start_export(work, tmp_path / "exports", 0)
    slicer.mrmlScene.Clear(False)
    work.panel.host.timer.start()
    work.desktop.pass_time(0.3)
    assert work.desktop.messages() == [] and work.panel.host.task is None
    assert work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == 0


def test_export(work, tmp_path):
    work.box_round()
    export = work.panel.export
    export.ui.folderEdit.currentPath = str(tmp_path)
    work.desktop.wait(lambda: export.ui.exportButton.enabled)
    for index in (1, 2, 3):
        export.ui.formatSelector.setCurrentIndex(index)
        press_export(work.desktop)
        image = sitk.ReadImage(export.last)
        assert ((sitk.GetArrayFromImage(image) > 0) == work.voxels()).all()
    export.ui.formatSelector.setCurrentIndex(0)
    press_export(work.desktop)
    assert export.last.IsA("vtkMRMLLabelMapVolumeNode")
    export.ui.formatSelector.setCurrentIndex(1)
    work.ui.openExportButton.click()
    export.ui.folderEdit.currentPath = str(tmp_path / "nowhere")
    press_export(work.desktop)
    assert any("not a folder" in text for text in work.desktop.messages())
    assert export.dialog.isVisible() and "not a folder" in export.ui.problemLabel.text
    export.ui.folderEdit.currentPath = str(tmp_path)
    export.ui.formatSelector.setCurrentIndex(0)
    work.session.segmentation_node.GetSegmentation().AddEmptySegment("", "hollow")
    press_export(work.desktop)
    assert not export.dialog.isVisible() and export.last is not None
    assert "Segment “hollow” is empty." in work.desktop.messages()[-1]


def test_a_finished_export_says_what_and_where_with_a_link(work, tmp_path, monkeypatch):
    work.box_round()
    panel = work.panel
    folder = tmp_path / "exports & <more>"
    folder.mkdir()
    panel.export.ui.folderEdit.currentPath = str(folder)
    panel.export.ui.formatSelector.setCurrentIndex(1)
    press_export(work.desktop)
    said = work.desktop.messages()[-1]
    assert os.path.basename(panel.export.last) in said and str(folder) in said and "segments: 1" in said
    opened = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda address: opened.append(address.toLocalFile()))
    link = re.search('href="([^"]*)"', panel.status.ui.messageText.html)[1]
    panel.status.ui.messageText.anchorClicked.emit(qt.QUrl(link.replace("&amp;", "&")))
    assert [os.path.normpath(path) for path in opened] == [str(folder)]


def test_an_existing_file_is_asked_about_and_never_replaced_unasked(work, tmp_path, monkeypatch):
    from SAMFineTunePanels import export_dialog as section

    work.box_round()
    export, asked, answer = work.panel.export, [], []
    monkeypatch.setattr(section, "confirmed", lambda text, button: asked.append(text) or answer[0])
    folder = tmp_path / "exports"
    folder.mkdir()
    export.ui.folderEdit.currentPath = str(folder)
    export.ui.formatSelector.setCurrentIndex(1)
    press_export(work.desktop)
    (file,) = folder.iterdir()
    assert not asked
    file.write_bytes(b"corrected by hand")
    answer[:] = [False]
    press_export(work.desktop)
    assert file.name in asked[0] and file.read_bytes() == b"corrected by hand" and export.last is None
    assert "Nothing was written" in work.desktop.messages()[-1]
    answer[:] = [True]
    press_export(work.desktop)
    assert (sitk.GetArrayFromImage(sitk.ReadImage(export.last)) > 0).any() and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("answer", [False, True])
def test_an_image_of_the_scene_is_never_replaced_and_nothing_lies_among_its_slices(work, tmp_path, monkeypatch, answer):
    from SAMFineTunePanels import export_dialog

    work.box_round()
    monkeypatch.setattr(export_dialog, "confirmed", lambda text, button: answer)
    other = work.desktop.slicer_scene.add_volume(work.volume, "other")
    storage = work.desktop.slicer_scene.add("vtkMRMLVolumeArchetypeStorageNode")
    other.SetAndObserveStorageNodeID(storage.GetID())
    image = tmp_path / "other.nii.gz"
    storage.SetFileName(str(image))
    assert storage.WriteData(other)
    before = image.read_bytes()
    work.session.segmentation_node.SetName("other")
    export = work.panel.export
    export.ui.folderEdit.currentPath = str(tmp_path)
    export.ui.formatSelector.setCurrentIndex(1)
    press_export(work.desktop)
    assert "never overwritten" in export.ui.problemLabel.text and image.read_bytes() == before
    series = [tmp_path / "series" / f"{number}.dcm" for number in range(3)]
    series[0].parent.mkdir()
    for path in series:
        path.touch()
    monkeypatch.setattr(export_dialog, "dicom_files", lambda node: list(map(str, series)))
    export.ui.folderEdit.currentPath = str(series[0].parent)
    press_export(work.desktop)
    assert "among the slices" in export.ui.problemLabel.text and len(list(series[0].parent.iterdir())) == 3


def test_dicom_seg_of_what_is_not_dicom_is_a_sentence_before_anything_is_installed(work, tmp_path, monkeypatch):
    from SAMFineTunePanels import packages, status_strip

    work.box_round()
    asked = []
    monkeypatch.setattr(packages.DICOM_SEG, "probe", "a_package_that_nobody_has")
    monkeypatch.setattr(status_strip, "confirmed", lambda text, button: asked.append(text))
    export = work.panel.export
    export.ui.folderEdit.currentPath = str(tmp_path)
    export.ui.formatSelector.setCurrentIndex(4)
    press_export(work.desktop)
    assert any("DICOM" in text for text in work.desktop.messages()) and export.last is None
    assert not asked and not work.panel.status.installer.running
    monkeypatch.setattr(sys.modules["SAMFineTunePanels.export_dialog"], "dicom_files", lambda node: [__file__])
    press_export(work.desktop)
    assert "highdicom" in asked[0] and "MB" in asked[0]  # what and how large; the answer was no
    assert not work.panel.status.installer.running and export.last is None
    files = [__file__, "/gone.dcm"]
    monkeypatch.setattr(sys.modules["SAMFineTunePanels.export_dialog"], "dicom_files", lambda node: files)
    press_export(work.desktop)
    assert "1 of the 2 files" in work.desktop.messages()[-1] and len(asked) == 1


def test_dicom_seg_refers_to_the_series_in_slicers_database(desktop, tmp_path, monkeypatch):
    import pydicom

    from SAMFineTuneLib.images import body_phantom, read_volume, write_dicom_series

    pytest.importorskip("highdicom")
    files = write_dicom_series(body_phantom(seed=1, shape=(12, 96, 96), spacing=(3.6, 3.6, 8.0))[0], tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    by_uid = {str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID): str(file) for file in files}

    class Database:
        def fileForInstance(self, uid):
            return by_uid[uid]

    monkeypatch.setattr(slicer, "dicomDatabase", Database(), raising=False)
    node = desktop.slicer_scene.add_volume(volume, "ct")
    node.SetAttribute("DICOM.instanceUIDs", " ".join(by_uid))
    for view in desktop.views.values():
        view.show(node)
    panel = desktop.open()
    panel.input.align_views()
    view = desktop.views["Red"]
    view.click((150, 150))
    desktop.wait(lambda: panel.host.session.state is not None and panel.host.session.state.settled)
    desktop.pass_time(0.3)
    panel.export.ui.folderEdit.currentPath = str(tmp_path)
    panel.export.ui.formatSelector.setCurrentIndex(4)
    press_export(desktop)
    seg = pydicom.dcmread(panel.export.last)
    assert seg.Modality == "SEG" and seg.pixel_array.any()
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == volume.source.series_uid.partition("#")[0]

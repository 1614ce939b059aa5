"""Propagate, Automatic, Model, Server, Export, Input: through the panel and a real worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import qt
import SimpleITK as sitk
import slicer
from mrml.scenes import image_of, matrix_of
from test_clicks import KIDNEY, LIVER, Work


@pytest.fixture
def work(desktop):
    work = Work(desktop)
    work.panel.input.align_views()
    return work


def boxed(work, value=KIDNEY):
    """A box round an organ on its middle slice."""
    work.panel.prompts.choose("box")
    ras = work.middle_of(value)
    view = work.view("Red", ras)
    places = np.argwhere(work.labels == value)
    k = np.round(work.volume.ras_to_ijk(ras)[2])
    places = places[places[:, 0] == k][:, ::-1]
    low, high = places.min(axis=0) - (1, 1, 0), places.max(axis=0) + (1, 1, 0)
    view.drag(view.xy_of(work.volume.ijk_to_ras(low)), view.xy_of(work.volume.ijk_to_ras(high)))
    work.panel.prompts.choose(None)
    work.wait_for_voxels()
    work.rest()


def slices(work):
    return np.flatnonzero(work.voxels().any(axis=(1, 2)))


def test_the_surface_is_shown_only_where_there_is_something_to_show(work):
    button = work.ui.show3DButton
    assert not button.enabled
    work.panel.segments.add()
    work.desktop.wait(lambda: button.enabled)
    work.panel.segments.remove()
    work.desktop.pass_time(0.5)
    assert not button.enabled


# ---- prompts in 3-D


def test_a_box_in_3d_fills_the_organ_by_itself_and_undo_takes_all_of_it_back(work):
    button = work.panel.prompts.wholeButton
    button.click()
    assert button.checked and work.session.volumetric
    seen = []
    work.panel.host.listen("Busy", lambda event: seen.append(len(slices(work))))
    boxed(work)
    truth = work.labels == KIDNEY
    assert 2 * (work.voxels() & truth).sum() / (work.voxels().sum() + truth.sum()) > 0.75
    assert len(set(seen)) > 2, "slices are seen while others are still to come"
    work.panel.prompt_list.undo()
    work.desktop.wait(lambda: not work.voxels().any())
    work.rest()
    button.click()
    boxed(work)
    assert len(slices(work)) == 1 and not work.session.volumetric


def test_the_answer_in_3d_is_cancelled_in_the_strip(work):
    work.panel.prompts.wholeButton.click()
    work.panel.host.listen("Busy", lambda event: event.done > 2 and work.panel.status.ui.cancelButton.click())
    boxed(work)
    assert 1 < len(slices(work)) < len(np.flatnonzero((work.labels == KIDNEY).any(axis=(1, 2))))
    assert work.panel.status.ui.busyBar.isHidden()


def test_the_button_shows_what_the_scene_says(work):
    work.session.volumetric = True
    work.desktop.wait(lambda: work.panel.prompts.wholeButton.checked)
    slicer.mrmlScene.Clear(False)
    work.desktop.wait(lambda: not work.panel.prompts.wholeButton.checked)


# ---- propagate


def test_propagation_shows_progress_and_fills_slices(work):
    boxed(work)
    ui = work.panel.propagate.ui
    assert len(slices(work)) == 1
    work.desktop.wait(lambda: ui.propagateButton.enabled)
    seen = []
    work.panel.host.listen("Turn", lambda: seen.append(work.panel.status.ui.statusLabel.text))
    ui.propagateButton.click()
    work.desktop.wait(lambda: work.panel.host.jobs)
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.rest()
    truth = work.labels == KIDNEY
    assert 2 * (work.voxels() & truth).sum() / (work.voxels().sum() + truth.sum()) > 0.75
    assert any(text for text in seen)
    assert work.panel.status.ui.busyBar.isHidden()


def test_propagation_within_a_range(work):
    boxed(work)
    ui = work.panel.propagate.ui
    middle = int(slices(work)[0])
    ui.rangeBox.checked = True
    ui.firstSpinBox.value, ui.lastSpinBox.value = middle - 2, middle + 1
    work.desktop.wait(lambda: ui.propagateButton.enabled)
    ui.propagateButton.click()
    work.desktop.wait(lambda: len(slices(work)) == 4)
    work.rest()
    assert list(slices(work)) == list(range(middle - 2, middle + 2))
    work.view("Red", work.volume.ijk_to_ras((64, 64, middle - 3)))
    ui.firstHereButton.click()
    assert ui.firstSpinBox.value == middle - 3


def test_a_cancelled_propagation_keeps_what_it_has(work):
    boxed(work)
    work.panel.propagate.propagate()
    work.desktop.wait(lambda: len(slices(work)) > 2)
    strip = work.panel.status.ui
    strip.cancelButton.click()
    assert strip.statusLabel.text == "Cancelling…" and not strip.cancelButton.enabled
    work.panel.status.refresh()  # until the picture that is being read is done
    assert strip.statusLabel.text == "Cancelling…" and not strip.cancelButton.enabled
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.rest()
    assert len(slices(work)) > 2 and strip.statusLabel.text.startswith("Ready")
    work.panel.propagate.propagate()
    work.desktop.wait(lambda: work.panel.host.jobs and not strip.cancelButton.isHidden())
    assert strip.statusLabel.text != "Cancelling…" and strip.cancelButton.enabled
    strip.cancelButton.click()
    work.desktop.wait(lambda: not work.panel.host.jobs)


def test_a_worker_that_is_killed_in_between_is_one_line(work):
    boxed(work)
    told = []  # a notice leaves the panel after a while
    work.panel.host.listen("Notice", lambda event: told.append(event.text))
    work.panel.propagate.propagate()
    work.desktop.wait(lambda: any(busy.fraction for busy in work.panel.host.jobs.values()))
    work.panel.starter.kill()
    strip = work.panel.status.ui.statusLabel
    work.desktop.wait(lambda: strip.toolTip == "The worker is started again. Then: Propagating")
    work.desktop.wait(lambda: strip.toolTip == "Propagating")  # not as far as it was before
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.rest()
    truth = work.labels == KIDNEY
    assert 2 * (work.voxels() & truth).sum() / (work.voxels().sum() + truth.sum()) > 0.75
    assert sum("started again" in text for text in told) == 1


def test_a_table_that_chooses_by_itself_does_not_move_prompts_to_another_segment(work):
    """As Qt's views do when the chosen row goes."""
    from SAMFineTunePanels.qt_helpers import quiet

    for _ in range(3):
        work.panel.segments.add()
    work.desktop.pass_time(0.2)
    table, ids = work.panel.segments.ui.segmentsTable, segmentation_ids(work)
    with quiet(table):
        table.setSelectedSegmentIDs([ids[0]])
    work.session.current_segment_id = ids[1]
    work.desktop.pass_time(0.2)
    assert work.session.current_segment_id == ids[1] and table.selectedSegmentIDs() == (ids[1],)
    table.setSelectedSegmentIDs([ids[2]])
    work.desktop.pass_time(0.2)
    assert work.session.current_segment_id == ids[2]
    work.panel.segments.remove()
    work.session.current_segment_id = ids[1]
    work.desktop.pass_time(0.2)
    assert work.session.current_segment_id == ids[1] and table.selectedSegmentIDs() == (ids[1],)


def test_loading_a_volume_makes_no_segmentation_before_the_first_click(work):
    assert work.panel.prompts.tool == "positive" and work.session.segmentation_node is None
    assert work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    ras = work.middle_of(KIDNEY)
    work.view("Red", ras)
    work.click("Red", ras)
    work.wait_for_voxels()
    assert work.covers(ras) and len(segmentation_ids(work)) == 1
    work.click("Red", ras)  # and goes on, into the segment's own list
    work.desktop.wait(lambda: len(work.session.prompts) == 2)


# ---- automatic


def segmentation_ids(work):
    node = work.session.segmentation_node
    return list(node.GetSegmentation().GetSegmentIDs()) if node is not None else []


def test_finding_objects_shows_that_it_runs_at_once_and_can_be_cancelled(work):
    panel, ui, ended = work.panel, work.panel.automatic.ui, []
    panel.host.listen("Finished", lambda event: ended.append(event) if event.what == "everything" else None)
    work.view("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: ui.findButton.enabled)
    ui.findButton.click()
    assert not ui.findButton.enabled
    work.desktop.wait(lambda: "Finding objects" in panel.status.ui.statusLabel.text, 5)
    assert not panel.status.ui.cancelButton.isHidden() and not panel.status.ui.busyBar.isHidden()
    assert not ui.findButton.enabled
    panel.status.ui.cancelButton.click()
    work.desktop.wait(lambda: ui.findButton.enabled and panel.status.ui.cancelButton.isHidden())
    assert [event.cancelled for event in ended] == [True]
    work.desktop.pass_time(0.2)
    assert work.desktop.messages() == []  # that nothing was found is said only of a search that was not cancelled


def listed_objects(work):
    """Found on the slice shown, with one of them ticked; the list's widgets."""
    ui = work.panel.automatic.ui
    work.view("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: ui.findButton.enabled)
    ui.findButton.click()
    work.desktop.wait(lambda: ui.objectsTable.rowCount > 1 and not work.panel.host.jobs)
    ui.objectsTable.item(0, 0).setCheckState(qt.Qt.Checked)
    return ui


@pytest.mark.parametrize("what", ["another", "none", "removed", "changed"])
def test_found_objects_go_with_the_volume_without_a_warning(work, what):
    ui = listed_objects(work)  # their masks are on their way
    selector = work.panel.input.ui.volumeSelector
    if what == "another":
        selector.setCurrentNode(work.desktop.slicer_scene.add_volume(work.volume, "another"))
    elif what == "none":
        selector.setCurrentNode(None)
    elif what == "removed":
        slicer.mrmlScene.RemoveNode(work.node)
    else:
        voxels = slicer.util.arrayFromVolume(work.node)
        voxels[:] = voxels[::-1].copy()
        slicer.util.arrayFromVolumeModified(work.node)
    work.desktop.wait(lambda: ui.objectsTable.rowCount == 0)
    work.desktop.wait(lambda: not ui.keepButton.enabled)
    work.rest()
    assert not [text for text in work.desktop.messages() if "voxels have changed" not in text]
    assert len(segmentation_ids(work)) == 0


def test_found_objects_are_kept_although_the_worker_is_killed_before(work):
    ui, told = listed_objects(work), []
    work.panel.host.listen("Failed", lambda event: told.append(event.text))
    count = ui.objectsTable.rowCount
    work.panel.starter.kill()
    ui.keepButton.click()
    work.wait_for_voxels()
    work.rest()
    assert ui.objectsTable.rowCount == count - 1 and len(segmentation_ids(work)) == 1 and told == []


def test_many_objects_are_listed_in_pieces_and_can_be_dropped_in_between(work, monkeypatch):
    from SAMFineTunePanels import automatic_tab as section

    from SAMFineTuneLib.session.events import ObjectInfo, Objects

    automatic, host = work.panel.automatic, work.panel.host
    monkeypatch.setattr(section, "_AT_ONCE", 0.001)
    monkeypatch.setattr(host.client, "ask_for_masks", lambda job, numbers: None)
    automatic._job, automatic._awaits = 99, True
    found = Objects(99, tuple(ObjectInfo(number, 45, 0.9, "axial", (3, 3)) for number in range(1, 181)))
    host.timer.stop()
    host._take(found)
    lengths = []
    while automatic.ui.objectsTable.rowCount < 180:
        lengths.append(automatic.ui.objectsTable.rowCount)
        host.turn()
    assert len(lengths) > 3 and lengths == sorted(lengths)
    assert automatic.ui.objectsTable.item(179, 0).text() == "Object 180"
    automatic._awaits = True
    host._take(found)
    host.turn()
    automatic.drop_all()
    host.turn()
    assert automatic.ui.objectsTable.rowCount == 0
    host.timer.start()


def test_objects_are_found_named_kept_and_dropped(work):
    automatic = work.panel.automatic
    ui = automatic.ui
    ui.detailSelector.setItemData(0, 6)
    work.view("Red", work.middle_of(KIDNEY))
    ui.detailSelector.setCurrentIndex(0)
    work.desktop.wait(lambda: ui.findButton.enabled)
    ui.findButton.click()
    work.desktop.wait(lambda: ui.objectsTable.rowCount > 1)
    shown = work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    found = work.session.found
    work.desktop.wait(lambda: found.node is not None and not found.waiting)
    assert not found.node.GetSaveWithScene() and found.node.GetHideFromEditors()
    assert work.desktop.scene.GetSubjectHierarchyNode().GetItemByDataNode(found.node), "Slicer looks for its item"
    segments = work.session.segmentation_node
    own = segments.GetSegmentation().GetSegmentIDs() if segments is not None else ()
    rows = ui.objectsTable.rowCount
    ui.objectsTable.item(0, 0).setText("first thing")
    for row in (0, 1):
        ui.objectsTable.item(row, 0).setCheckState(qt.Qt.Checked)
    second = ui.objectsTable.item(1, 0).text()
    ui.keepButton.click()
    assert ui.objectsTable.rowCount == rows - 2
    work.desktop.wait(lambda: len(segmentation_ids(work)) == len(own) + 2)
    segmentation = work.session.segmentation_node.GetSegmentation()
    names = [segmentation.GetSegment(i).GetName() for i in segmentation.GetSegmentIDs()]
    assert names[-2:] == ["first thing", second]
    kept = list(segmentation.GetSegmentIDs())[-2:]
    work.desktop.wait(lambda: all(work.voxels(i).any() for i in kept))
    ui.objectsTable.selectRow(0)
    work.desktop.wait(lambda: ui.dropButton.enabled, 5)
    ui.dropButton.click()
    assert ui.objectsTable.rowCount == rows - 3
    ui.dropAllButton.click()
    assert ui.objectsTable.rowCount == 0
    assert work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") <= max(1, shown - 1)


# ---- model


def test_the_models_of_the_worker_are_listed(work):
    boxed(work)
    ui = work.panel.model.ui
    work.desktop.wait(lambda: ui.modelSelector.count > 3)
    assert ui.modelSelector.currentText.endswith("(bundled)") and ui.modelSelector.currentIndex == 0
    assert "licence" in ui.modelLabel.text.lower()
    work.desktop.wait(lambda: "Prepared slices take" in ui.cacheLabel.text)


def test_a_graphics_card_that_is_not_there_is_taken_back_and_the_advice_is_for_slicer(work):
    from SAMFineTunePanels.qt_helpers import choose_in, read_setting, write_setting

    boxed(work)
    devices = work.panel.model.ui.deviceSelector
    choose_in(devices, "cuda")
    devices.activated.emit(devices.currentIndex)
    work.desktop.wait(lambda: devices.currentText == "Automatic")
    assert "extension PyTorch" in work.desktop.messages()[-1] and "pip" not in " ".join(work.desktop.messages())
    assert read_setting("Device") == work.session.device == "auto"
    work.panel.starter.kill()  # it starts again with the model that had answered
    work.panel.segments.add()
    boxed(work, LIVER)
    assert len(work.desktop.messages()) < 3 and work.voxels().any()
    write_setting("Device", "cuda")  # as left by a computer that had one
    choose_in(devices, "cuda")
    work.panel._server_changed()
    work.desktop.wait(lambda: devices.currentText == "Automatic")
    work.desktop.wait(lambda: work.panel.host.ready and work.panel.host.status.model == "compact")


def test_a_download_is_asked_for_with_size_and_licence(work, monkeypatch):
    from SAMFineTunePanels import model_settings

    boxed(work)
    ui = work.panel.model.ui
    work.desktop.wait(lambda: ui.modelSelector.count > 3)
    row = next(n for n, one in enumerate(work.panel.model._rows.values()) if one["where"] == "download")
    ui.modelSelector.setCurrentIndex(row)
    ui.modelSelector.activated.emit(row)
    asked = []
    monkeypatch.setattr(model_settings, "confirmed", lambda text, button: asked.append(text))
    work.desktop.wait(lambda: ui.downloadButton.enabled)
    ui.downloadButton.click()
    assert "Licence" in asked[0] and "MB" in asked[0] or "GB" in asked[0]
    assert not work.panel.host.jobs
    assert work.panel.model.model_id == "compact"


def test_a_file_that_is_no_model_is_a_sentence(work, tmp_path):
    boxed(work)
    path = tmp_path / "holiday.pth"
    path.write_bytes(b"not a checkpoint")
    work.panel.model.import_path(str(path))
    work.desktop.wait(lambda: any("holiday" in text and not text.startswith("Importing") for text in
                                  work.desktop.messages()))  # fmt: skip


def test_preparing_the_volume_and_clearing_the_cache(work):
    boxed(work)
    ui = work.panel.model.ui
    work.desktop.wait(lambda: ui.embedButton.enabled)
    ui.embedButton.click()
    work.desktop.wait(lambda: None in work.panel.host.jobs)
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.desktop.wait(lambda: "MB" in ui.cacheLabel.text or "kB" in ui.cacheLabel.text)
    ui.clearCacheButton.click()
    work.desktop.wait(lambda: any("freed" in text for text in work.desktop.messages()))


# ---- a worker that does not start


def test_a_worker_that_cannot_start_is_a_sentence_and_can_be_tried_again(desktop, monkeypatch):
    executable = sys.executable
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    work = Work(desktop)
    ui = work.panel.status.ui
    desktop.wait(lambda: not ui.retryButton.isHidden(), 10)
    desktop.wait(lambda: "/nowhere/python" in ui.messageText.plainText, 5)
    work.click("Red", work.middle_of(KIDNEY))
    desktop.wait(lambda: len(work.session.prompts) == 1)
    work.panel.host.client._connection._executable = executable
    ui.retryButton.click()
    work.wait_for_voxels()  # the click that waited is answered
    desktop.wait(lambda: ui.retryButton.isHidden(), 5)


# ---- server


@pytest.fixture
def server(tmp_path):
    """(address, token) of a server of its own."""
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long-enough-for-this\n")
    handshake = tmp_path / "handshake.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "SAMFineTuneLib.cli", "serve", "--host", "127.0.0.1", "--port", "0",
         "--token-file", str(token), "--handshake", str(handshake)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    import json
    import time

    end = time.monotonic() + 30
    while not handshake.exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    yield f"http://127.0.0.1:{json.loads(handshake.read_text())['port']}", token.read_text().strip()
    process.kill()
    process.wait()


def enter(work, address, token):
    ui = work.panel.server.ui
    ui.remoteButton.checked = True
    ui.addressEdit.text, ui.tokenEdit.text = address, token
    return ui


def answer_of_test(work):
    label = work.panel.server.ui.serverLabel
    work.panel.server.ui.testButton.click()
    work.desktop.wait(lambda: label.text not in ("", "Asking the server…"), 30)
    return label.text


def test_the_connection_is_tested(work, server):
    enter(work, *server)
    assert "answers" in answer_of_test(work)


def test_a_wrong_token_and_no_server_are_sentences(work, server):
    ui = enter(work, server[0], "wrong")
    assert "token" in answer_of_test(work)
    ui.addressEdit.text = "http://127.0.0.1:9"
    assert "127.0.0.1:9" in answer_of_test(work)
    ui.addressEdit.text = "not an address at all"
    assert answer_of_test(work)
    ui.applyButton.click()
    assert not work.panel.server.remote


def test_work_goes_on_on_the_server_and_the_token_is_kept_only_when_asked(work, server):
    from SAMFineTunePanels.qt_helpers import read_setting

    boxed(work)
    kept = work.voxels()
    ui = enter(work, *server)
    ui.applyButton.click()
    assert work.panel.server.remote and work.panel.starter is None
    assert read_setting("ServerToken") == "" and read_setting("ServerAddress") == server[0]
    work.desktop.wait(lambda: work.session.prompts)
    work.rest()
    assert (work.voxels() == kept).all()
    work.panel.prompts.choose("negative")
    work.click("Red", work.middle_of(LIVER))
    work.desktop.wait(lambda: len(work.session.prompts) == 2)
    work.rest()
    ui.keepTokenBox.checked = True
    ui.applyButton.click()
    assert read_setting("ServerToken") == server[1]
    ui.keepTokenBox.checked = False
    assert read_setting("ServerToken") == ""


# ---- export and input


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
    boxed(work)
    panel = work.panel
    folder = start_export(work, tmp_path / "exports")
    assert "Writing" in panel.status.ui.statusLabel.text and not panel.status.ui.cancelButton.isHidden()
    panel.status.ui.cancelButton.click()
    panel.host.timer.start()
    work.desktop.pass_time(0.2)
    assert panel.host.task is None and list(folder.iterdir()) == []


@pytest.mark.parametrize("shown", [True, False])
def test_an_export_is_finished_when_the_scene_is_closed_meanwhile(work, tmp_path, shown):
    boxed(work)
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
    boxed(work)
    expected = work.voxels()
    folder = start_export(work, tmp_path / "exports")
    work.desktop.widget.cleanup()
    (file,) = folder.iterdir()
    assert ((sitk.GetArrayFromImage(sitk.ReadImage(file)) > 0) == expected).all()


def test_a_label_map_is_not_promised_to_a_scene_that_is_closed(work, tmp_path):
    boxed(work)
    start_export(work, tmp_path / "exports", 0)
    slicer.mrmlScene.Clear(False)
    work.panel.host.timer.start()
    work.desktop.pass_time(0.3)
    assert work.desktop.messages() == [] and work.panel.host.task is None
    assert work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == 0


def test_export(work, tmp_path):
    boxed(work)
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
    boxed(work)
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

    boxed(work)
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

    boxed(work)
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

    boxed(work)
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
    import slicer

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


def test_the_contrast(work):
    ui = work.panel.input.ui
    assert "abdomen" in ui.windowLabel.text
    ui.windowSelector.setCurrentIndex(ui.windowSelector.findData("ct-lung"))
    assert "-1350" in ui.windowLabel.text and work.session.window.high == 150
    ui.windowSelector.setCurrentIndex(ui.windowSelector.findData("custom"))
    assert not ui.windowRangeRow.isHidden()
    ui.lowSpinBox.value, ui.highSpinBox.value = 0, 200
    assert (work.session.window.low, work.session.window.high) == (0, 200)
    ui.highSpinBox.value = -5
    assert "empty" in ui.windowLabel.text and (work.session.window.low, work.session.window.high) == (0, 200)
    ui.highSpinBox.value = 50  # nothing is left of what was said while it was wrong
    assert "white from 50" in ui.windowLabel.text and work.desktop.messages() == []
    ui.windowSelector.setCurrentIndex(1)  # as displayed
    assert work.session.window is None


def test_the_preview_is_what_the_model_sees(work):
    ui = work.panel.input.ui
    ui.contrastSection.collapsed = False
    work.desktop.wait(lambda: ui.previewLabel.pixmap is not None and not ui.previewLabel.pixmap.isNull(), 5)
    image = ui.previewLabel.pixmap.toImage()
    grey = [qt.QColor(image.pixel(image.width() // 2, y)).red() for y in range(image.height())]
    assert min(grey) == 0 and max(grey) > 150


def test_the_preview_follows_the_browsed_frame_of_a_sequence(work):
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(work.desktop.scene)
    sequence = work.desktop.slicer_scene.add("vtkMRMLSequenceNode", "cine")
    for number in range(2):
        frame = slicer.vtkMRMLScalarVolumeNode()
        frame.SetAndObserveImageData(image_of(work.volume.array[..., :: 1 - 2 * number]))
        frame.SetIJKToRASMatrix(matrix_of(work.volume.affine))
        sequence.SetDataNodeAtValue(frame, str(number))
    browser = work.desktop.slicer_scene.add("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic.UpdateProxyNodesFromSequences(browser)
    ui = work.panel.input.ui
    ui.volumeSelector.setCurrentNode(browser.GetProxyNode(sequence))
    boxed(work)
    ui.contrastSection.collapsed = False
    work.desktop.wait(lambda: not ui.previewLabel.pixmap.isNull(), 5)
    shown = [ui.previewLabel.pixmap.toImage()]
    browser.SetSelectedItemNumber(1)
    logic.UpdateProxyNodesFromSequences(browser)
    work.desktop.wait(lambda: ui.previewLabel.pixmap.toImage() != shown[0], 10)
    assert work.session.volume.array[12, 64].tolist() == work.volume.array[12, 64].tolist(), "the masks keep theirs"


def test_a_colour_image_is_refused_with_a_sentence(work):
    import vtk

    node = work.desktop.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 1)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    node.SetAndObserveImageData(image)
    work.panel.input.ui.volumeSelector.setCurrentNode(node)
    assert any("values a voxel" in text for text in work.desktop.messages())
    work.desktop.pass_time(0.3)
    assert work.panel.input.volume_node is work.session.volume_node


def test_the_segment_editors_own_undo_gets_a_state_before_our_masks(work, monkeypatch):
    """Slicer's editor is not in the stand-in; what counts is that it is asked, and only on the same segmentation."""
    import types

    import slicer
    from SAMFineTunePanels.segment_list import save_undo_state

    class Editor:
        def __init__(self, node):
            self.node, self.saved = node, 0

        def segmentationNode(self):
            return self.node

        def saveStateForUndo(self):
            self.saved += 1

    ours = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    for node, saved in ((ours, 1), (other, 0)):
        editor = Editor(node)
        monkeypatch.setattr(slicer.modules, "SegmentEditorWidget", types.SimpleNamespace(editor=editor), raising=False)
        save_undo_state(ours)
        assert editor.saved == saved
    monkeypatch.delattr(slicer.modules, "SegmentEditorWidget")
    save_undo_state(ours)  # without the module: nothing to ask

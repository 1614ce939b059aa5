"""Objects that are found without prompts: listed, kept, dropped."""

from __future__ import annotations

import pytest
import qt
import slicer
from mrml.scenes import segment_voxels
from test_clicks import KIDNEY, Work


@pytest.fixture
def work(desktop):
    return Work(desktop, aligned=True)


def test_finding_objects_shows_that_it_runs_at_once_and_can_be_cancelled(work):
    panel, ui, ended = work.panel, work.panel.automatic.ui, []
    panel.host.listen("Finished", lambda event: ended.append(event) if event.what == "everything" else None)
    work.view("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: ui.findButton.enabled)
    ui.findButton.click()
    assert not ui.findButton.enabled
    work.desktop.wait(lambda: "Finding objects" in panel.status.ui.statusLabel.text)
    assert not panel.status.ui.cancelButton.isHidden() and not panel.status.ui.busyBar.isHidden()
    assert not ui.findButton.enabled
    panel.status.ui.cancelButton.click()
    work.desktop.wait(lambda: ui.findButton.enabled and panel.status.ui.cancelButton.isHidden())
    assert [event.cancelled for event in ended] == [True]
    work.desktop.pass_time(0.2)
    assert work.desktop.messages() == []  # that nothing was found is said only of a search that was not cancelled


def listed_objects(work):
    """Found on the slice shown, with one of them ticked; the list's widgets."""
    ui, found = work.panel.automatic.ui, []
    work.panel.host.listen("Objects", lambda event: found.extend(event.objects))
    ui.detailSelector.setItemData(0, 6)  # points a side: enough for several objects
    ui.detailSelector.setCurrentIndex(0)
    work.view("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: ui.findButton.enabled)
    ui.findButton.click()
    work.desktop.wait(lambda: ui.objectsTable.rowCount == len(found) > 1 and not work.panel.host.jobs)
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
    assert len(work.segment_ids()) == 0


def test_found_objects_are_kept_although_the_worker_is_killed_before(work):
    ui, told = listed_objects(work), []
    work.panel.host.listen("Failed", lambda event: told.append(event.text))
    count = ui.objectsTable.rowCount
    work.panel.starter.kill()
    ui.keepButton.click()
    work.wait_for_voxels()
    work.rest()
    assert ui.objectsTable.rowCount == count - 1 and len(work.segment_ids()) == 1 and told == []


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
    names = [ui.objectsTable.item(row, 0).text() for row in range(rows)]
    apart = [  # one that lies in a larger one would get no voxels
        row for row, name in enumerate(names)
        if segment_voxels(found.node, f"object-{name.split()[-1]}", work.volume).any()
    ]  # fmt: skip
    ui.objectsTable.item(apart[0], 0).setText("first thing")
    for row in apart[:2]:
        ui.objectsTable.item(row, 0).setCheckState(qt.Qt.Checked)
    ui.keepButton.click()
    assert ui.objectsTable.rowCount == rows - 2
    work.desktop.wait(lambda: len(work.segment_ids()) == len(own) + 2)
    segmentation = work.session.segmentation_node.GetSegmentation()
    kept_names = [segmentation.GetSegment(i).GetName() for i in segmentation.GetSegmentIDs()]
    assert kept_names[-2:] == ["first thing", names[apart[1]]]
    kept = list(segmentation.GetSegmentIDs())[-2:]
    work.desktop.wait(lambda: all(work.voxels(i).any() for i in kept))
    ui.objectsTable.selectRow(0)
    work.desktop.wait(lambda: ui.dropButton.enabled)
    ui.dropButton.click()
    assert ui.objectsTable.rowCount == rows - 3
    ui.dropAllButton.click()
    assert ui.objectsTable.rowCount == 0
    assert work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") <= max(1, shown - 1)

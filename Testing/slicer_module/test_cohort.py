"""The Cohort tab: a cohort is made, its cases are reviewed, and nothing that was corrected is lost."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import qt
import slicer
from mrml.scenes import segment_voxels
from SAMFineTunePanels.open_case import TWICE

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import Proposal, TrainedAdapter
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS, accept, take
from SAMFineTuneLib.images import read_volume, write_labelmap
from SAMFineTuneLib.images.phantom import body_phantom
from SAMFineTuneLib.process_lock import ProcessLock
from SAMFineTuneLib.service.cohort_work import CohortWork as CohortQueue
from SAMFineTuneLib.service.folder_process import LOCK, EventFile

LIVER, KIDNEY = 1, 4
NAMES = "liver, left kidney"
_VALUES = {LIVER: 1, KIDNEY: 2}  # of the cohort


def write_scans(folder, count=3, shape=(8, 64, 64)):
    """Phantoms as files, and by name the labels that a cohort of NAMES has of them."""
    folder.mkdir()
    found = {}
    for number in range(count):
        volume, labels, _ = body_phantom(seed=number + 1, shape=shape, spacing=(5.4, 5.4, 15.0))
        write_labelmap(folder / f"scan{number}.nii.gz", (volume.array.astype(int) + 1024).astype(np.uint16), volume)
        own = np.zeros(labels.shape, np.uint8)
        for value, kept in _VALUES.items():
            own[labels == value] = kept
        found[f"scan{number}"] = own
    return found


class CohortWork:
    """The Cohort tab over a folder of scans."""

    def __init__(self, desktop, folder):
        self.desktop, self.folder = desktop, folder / "scans"
        self.labels = write_scans(self.folder)
        self.panel = desktop.open()
        self.panel.open_tab("cohort")
        self.tab, self.ui = self.panel.cohort, self.panel.cohort.ui

    def create(self):
        self.ui.folderEdit.currentPath = str(self.folder)
        self.ui.labelsEdit.setText(NAMES)
        self.ui.openButton.click()
        self.desktop.wait(lambda: self.tab.review is not None)
        return self

    @property
    def cohort(self):
        return Cohort(f"{self.folder}-cohort")

    @property
    def opened(self):
        return self.tab.review.open

    @property
    def session(self):
        return self.panel.host.session

    def case(self, name):
        return self.cohort.state.case(name)

    def propose(self, name, confidence=None):
        """A proposal as an adapter would leave it: the labels but for a slice of the liver."""
        case = self.case(name)
        volume = read_volume(self.cohort.image(case))
        labels = self.labels[name].copy()
        labels[3][labels[3] == 1] = 0
        folder = self.cohort.proposal(case.key)
        write_labelmap(folder / PROPOSED_LABELS, labels, volume)
        slices = confidence or {"liver": [None, 0.9, 0.9, 0.3, 0.9, 0.9, 0.7, None], "left kidney": [0.95] * 8}
        (folder / "confidence.json").write_text(json.dumps({"orientation": "axial", "slices": slices}))
        proposal = Proposal(1, {"liver": 0.7, "left kidney": 0.95}, 2)
        self.cohort.change(lambda state: state.with_case(case.key, state="proposed", proposal=proposal))
        return labels

    def open(self, name):
        key = self.case(name).key
        self.desktop.wait(lambda: key in self.tab.list.keys)
        self.ui.casesTable.cellDoubleClicked.emit(self.tab.list.keys.index(key), 0)
        self.desktop.wait(lambda: self.opened is not None and self.opened.key == key)

    def accept(self):
        """Press Accept after the time that a look at the case takes."""
        self.desktop.pass_time(TWICE)
        self.ui.acceptButton.click()

    def wait_for_state(self, name, state):
        self.desktop.wait(lambda: self.case(name).state == state)

    def shown_labels(self):
        """The label map that the segments in the scene make."""
        node, volume = self.opened.segmentation_node, read_volume(self.cohort.image(self.case(self.opened.key)))
        labels = np.zeros(volume.shape, np.uint8)
        for segment_id in node.GetSegmentation().GetSegmentIDs():
            value = NAMES.split(", ").index(node.GetSegmentation().GetSegment(segment_id).GetName()) + 1
            labels[segment_voxels(node, segment_id, volume)] = value
        return labels

    def kept_labels(self, path):
        return read_volume(path).array

    def mend(self):
        """Give the liver its missing slice, as a tool of Slicer would."""
        from SAMFineTuneLib.mrml.segments.labelmaps import image_array

        image = self.opened.segmentation_node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
        name = self.case(self.opened.key).name
        low, high = np.array(image.GetExtent()).reshape(3, 2)[::-1].T
        part = tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))
        image_array(image)[...] = self.labels[name][part]
        image.GetPointData().GetScalars().Modified()
        self.desktop.pass_time(0.6)

    def has_shortcut(self, key):
        window = slicer.util.mainWindow()
        return any(one.key.toString() == key and one.enabled for one in window.findChildren(qt.QShortcut))


@pytest.fixture
def work(desktop, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return CohortWork(desktop, tmp_path)


def test_made_of_a_folder_reviewed_and_accepted(work):
    assert work.ui.labelsFrame.isHidden() and not work.ui.openButton.enabled
    work.create()
    assert work.desktop.messages() == []
    assert work.cohort.state.labels == {1: "liver", 2: "left kidney"} and len(work.cohort.state.cases) == 3
    proposed = work.propose("scan1")
    work.open("scan1")
    assert work.panel.input.volume_node is work.opened.volume_node
    assert work.session.segmentation_node is work.opened.segmentation_node
    assert (work.shown_labels() == proposed).all()
    volume, own = work.session.volume, read_volume(work.cohort.image(work.case("scan1")))
    assert (volume.array == own.array).all() and np.allclose(volume.affine, own.affine)
    work.desktop.wait(lambda: work.tab.review.coming.key is not None)
    coming = work.tab.review.coming.key
    assert work.case(coming).lease is not None, "others leave it alone"
    work.mend()
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    work.accept()
    work.desktop.wait(lambda: work.opened is not None)
    assert work.opened.key == coming, "what was loaded in advance is shown"
    work.wait_for_state("scan1", "accepted")
    assert (work.kept_labels(work.cohort.accepted(work.case("scan1").key)) == work.labels["scan1"]).all()
    review = work.case("scan1").review
    assert 0 < review.seconds < 600 and review.prompts == 0
    assert 0.8 < review.dice["liver"] < 1 and review.dice["left kidney"] == 1
    work.desktop.wait(lambda: slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before)
    assert work.case("scan1").lease is None
    work.desktop.wait(lambda: "1 of 3" in work.ui.cohortLabel.toolTip)


def test_a_folder_may_be_typed_from_where_the_program_is(work, monkeypatch):
    monkeypatch.chdir(work.folder.parent)
    work.ui.folderEdit.currentPath = work.folder.name
    work.ui.labelsEdit.setText(NAMES)
    for _ in range(2):  # made of the scans, then opened as it is
        work.ui.openButton.click()
        work.desktop.wait(lambda: work.tab.review is not None)
        work.open("scan1")
        assert work.desktop.messages() == []
        work.ui.closeButton.click()


def test_prompts_correct_a_proposal(work):
    work.create()
    work.propose("scan0")
    work.open("scan0")
    labels, volume = work.labels["scan0"], work.session.volume
    places = np.argwhere(labels == 1)
    places = places[places[:, 0] == 3]
    middle = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()][::-1]
    work.panel.input.align_views()
    work.tab.review.next_doubtful()  # the missing slice
    assert shown_axial(work) == 3
    view = work.desktop.views["Red"]
    view.go_to(volume.ijk_to_ras(middle))
    work.panel.prompts.choose("positive")
    view.click(view.xy_of(volume.ijk_to_ras(middle)))
    work.desktop.wait(lambda: (work.shown_labels()[3] == 1).any())
    shown = work.shown_labels()
    work.accept()
    work.wait_for_state("scan0", "accepted")
    kept = work.kept_labels(work.cohort.accepted(work.case("scan0").key))
    assert (kept == shown).all() and (kept[5] == labels[5]).all()
    assert work.case("scan0").review.prompts == 1


def test_a_case_that_is_left_keeps_its_correction(work):
    work.create()
    work.propose("scan0")
    work.open("scan0")
    work.mend()
    work.ui.skipButton.click()
    work.wait_for_state("scan0", "corrected")
    key = work.case("scan0").key
    assert (work.kept_labels(work.cohort.corrected(key)) == work.labels["scan0"]).all()
    work.desktop.wait(lambda: work.opened is not None and work.case("scan0").lease is None)
    assert work.opened.key != key
    work.ui.nextButton.click()
    work.desktop.wait(lambda: not work.tab.review.waits)
    assert work.opened is None or work.opened.key != key, "a skipped case does not come again"
    work.open("scan0")
    assert (work.shown_labels() == work.labels["scan0"]).all(), "it opens with the correction"
    work.ui.refuseButton.click()
    work.wait_for_state("scan0", "refused")
    assert work.cohort.corrected(key).exists()


def test_an_accepted_case_does_not_come_again_while_it_is_written(work):
    from SAMFineTunePanels.qt_helpers import choose_in

    work.create()
    choose_in(work.ui.waySelector, "order")
    work.ui.waySelector.activated.emit(0)
    work.propose("scan0")
    work.open("scan0")
    review = work.tab.review
    work.desktop.wait(lambda: review.coming.key is not None)
    work.accept()
    work.desktop.wait(lambda: work.opened is not None and work.opened.key == work.case("scan1").key)
    work.desktop.wait(lambda: review.coming.key is not None)
    assert review.coming.key == work.case("scan2").key
    work.ui.closeButton.click()
    work.desktop.wait(lambda: not any(case.lease for case in work.cohort.state.cases))


@pytest.mark.parametrize("how", ["scene", "slicer", "cohort", "killed"])
def test_nothing_is_lost(work, how):
    work.create()
    work.propose("scan0")
    work.open("scan0")
    work.mend()
    if how == "scene":
        slicer.mrmlScene.Clear(False)
    elif how == "slicer":
        slicer.app.aboutToQuit.emit()
    elif how == "cohort":
        work.ui.closeButton.click()
        assert work.tab.review is None
    else:
        work.desktop.wait(lambda: work.tab.review.work._pid and work.tab.review.coming.key is not None)
        os.kill(work.tab.review.work._pid, signal.SIGSTOP)  # it gets no further
        work.accept()
        work.desktop.wait(lambda: not work.tab.review._writing)
        os.kill(work.tab.review.work._pid, signal.SIGKILL)
    work.wait_for_state("scan0", "accepted" if how == "killed" else "corrected")
    key = work.case("scan0").key
    path = work.cohort.accepted(key) if how == "killed" else work.cohort.corrected(key)
    assert (work.kept_labels(path) == work.labels["scan0"]).all()
    work.desktop.wait(lambda: work.case("scan0").lease is None)


def test_what_is_accepted_while_the_drive_is_away_is_written_later(work):
    work.create()
    work.propose("scan0")
    work.open("scan0")
    work.mend()
    folder = work.cohort.folder
    away = folder.rename(folder.with_name("elsewhere"))
    work.desktop.wait(lambda: any("no longer in" in text for text in work.desktop.messages()))
    work.accept()
    work.desktop.wait(lambda: work.opened is None and not work.tab.review._writing)
    work.desktop.pass_time(2.0)
    assert not folder.exists() and not work.tab.review.work.is_empty
    away.rename(folder)
    work.wait_for_state("scan0", "accepted")
    assert (work.kept_labels(work.cohort.accepted(work.case("scan0").key)) == work.labels["scan0"]).all()


def test_what_the_disk_of_this_computer_does_not_take_is_kept_until_it_does(work, monkeypatch):
    from SAMFineTunePanels import cohort_review

    monkeypatch.setattr(cohort_review, "KEEP_AFTER", 0.2)
    monkeypatch.setattr(cohort_review, "TRY_AGAIN_AFTER", 0.5)
    work.create()
    work.propose("scan0")
    work.open("scan0")
    queue = work.tab.review.work.folder
    work.desktop.wait(lambda: not list(queue.glob("*.json")))
    real = CohortQueue.reserve

    def full(self, *arguments):
        raise OSError(28, "No space left on device", str(self.folder))

    monkeypatch.setattr(CohortQueue, "reserve", full)
    work.mend()  # it cannot be kept while one works
    work.desktop.wait(lambda: any("disk is full" in text for text in work.desktop.messages()))
    work.tab.review.coming.drop()  # nothing is loaded in advance
    work.accept()
    work.desktop.wait(lambda: any("as soon as there is room" in text for text in work.desktop.messages()))
    assert work.case("scan0").state == "proposed"
    monkeypatch.setattr(CohortQueue, "reserve", real)
    work.wait_for_state("scan0", "accepted")
    assert (work.kept_labels(work.cohort.accepted(work.case("scan0").key)) == work.labels["scan0"]).all()
    work.desktop.wait(lambda: work.opened is not None)  # the next one comes, too


def test_a_correction_is_kept_while_one_works(work, monkeypatch):
    from SAMFineTunePanels import cohort_review

    monkeypatch.setattr(cohort_review, "KEEP_AFTER", 0.2)
    work.create()
    work.propose("scan0")
    work.open("scan0")
    key = work.opened.key
    work.mend()
    work.wait_for_state("scan0", "corrected")
    assert work.opened.key == key and work.case("scan0").lease is not None, "it is still open, and taken"
    assert (work.kept_labels(work.cohort.corrected(key)) == work.labels["scan0"]).all()
    work.desktop.reload()  # a new panel; the old one gives the case back
    work.desktop.wait(lambda: work.case("scan0").lease is None)
    work.desktop.wait(lambda: not work.desktop.processes() or work.desktop.panel.host.session is not None)


def test_a_later_window_does_what_an_earlier_one_left(work):
    from SAMFineTuneLib.service.cohort_work import CohortWork as Queue

    work.create()
    left = Queue(work.cohort.folder, "left")
    number, path = left.reserve()
    np.save(path, work.labels["scan2"])
    left.put("accept", number, case=work.case("scan2").key, by="left", seconds=1.0, prompts=2)
    work.ui.closeButton.click()
    work.ui.folderEdit.currentPath = str(work.folder)
    assert work.ui.openButton.text == "Open"
    work.ui.openButton.click()
    work.wait_for_state("scan2", "accepted")
    work.desktop.wait(lambda: left.is_empty)


def test_the_strip_and_the_doubtful_places(work):
    work.create()
    work.propose("scan0")
    work.open("scan0")
    strip = work.tab.review.strip
    assert strip.labels == ["liver", "left kidney"] and not strip.widget.isHidden()
    view = slicer.app.layoutManager().sliceWidget("Red")
    assert qt.QWidget.layout(view).indexOf(strip.widget) == 1, "between the slider and the picture"
    assert work.opened.places[0] == ("liver", 3, 0.3)
    work.panel.input.align_views()
    assert work.has_shortcut("Tab") and work.has_shortcut("Return")
    slices = []
    for _ in range(3):
        work.tab._key("next_doubtful")
        slices.append(shown_axial(work))
    assert slices == [3, 6, 3], "the worst first, and again from the beginning"
    width = strip.widget.width
    at = int(width * (5 + 0.5) / 8)
    from PySide6.QtTest import QTest

    QTest.mouseClick(strip.widget, qt.Qt.LeftButton, qt.Qt.NoModifier, qt.QPoint(at, 3))
    assert shown_axial(work) == strip.slice_at(at)
    picture = strip.picture(80, None)
    order = list(range(8))[::-1] if strip._backwards else list(range(8))
    place = order.index(3) * 10 + 5
    assert picture[3, place, 0] > 200 > picture[3, place, 2], "doubtful is orange"
    assert picture[12, place, 2] > picture[12, place, 0], "sure is blue"
    work.ui.closeButton.click()
    assert strip.widget.isHidden() and not work.has_shortcut("Tab")


def shown_axial(work):
    from SAMFineTunePanels.shown_views import shown_slice

    return shown_slice(work.session.volume, "axial")


def test_keys_are_left_to_whoever_types(work):
    work.create()
    work.open("scan0")
    work.desktop.wait(lambda: work.has_shortcut("Return"))
    work.panel.open_tab("segment")
    work.desktop.wait(lambda: not work.has_shortcut("Return"))
    work.panel.open_tab("cohort")
    work.desktop.wait(lambda: work.has_shortcut("Return"))
    path = qt.QComboBox(work.tab.widget)  # has the focus for its line of text, as in a field for a path
    path.editable = True
    work.desktop.widget.parent.activateWindow()
    for typed in (qt.QLineEdit(work.tab.widget), path):
        typed.show()
        typed.setFocus()
        assert qt.QApplication.focusWidget() is typed
        work.desktop.wait(lambda: not work.has_shortcut("Return"))
        work.ui.waySelector.setFocus()
        work.desktop.wait(lambda: work.has_shortcut("Return"))
    work.desktop.leave()
    work.desktop.wait(lambda: not work.has_shortcut("Tab"))


def test_enter_pressed_twice_or_held_accepts_one_case(work):
    work.create()
    for name in ("scan0", "scan1"):
        work.propose(name)
    work.open("scan0")
    work.desktop.wait(lambda: work.tab.review.coming.key is not None and work.has_shortcut("Return"))
    work.desktop.pass_time(TWICE)
    window = slicer.util.mainWindow()
    window.show()
    window.activateWindow()
    work.desktop.wait(lambda: window.isActiveWindow)
    first = work.opened
    for _ in range(200):  # held: until the next case is there, and a while longer
        qt.QTest.keyClick(window, qt.Qt.Key_Return)
        work.desktop.pass_time(0.02)
    work.desktop.wait(lambda: work.opened not in (None, first))
    for _ in range(20):
        qt.QTest.keyClick(window, qt.Qt.Key_Return)
        work.desktop.pass_time(0.02)
    work.wait_for_state("scan0", "accepted")
    assert len(work.cohort.state.accepted) == 1 and work.opened.key != first.key
    window.hide()


def test_a_case_of_another_window_is_left_alone(work):
    work.create()
    take(work.cohort, "scan0", "somebody")
    work.desktop.wait(lambda: len(work.tab.list.keys) == 3)
    work.ui.casesTable.cellDoubleClicked.emit(work.tab.list.keys.index(work.case("scan0").key), 0)
    work.desktop.wait(lambda: any("Somebody else" in text for text in work.desktop.messages()))
    assert work.opened is None and not work.tab.review.waits
    work.desktop.wait(lambda: work.ui.casesTable.item(0, 1).text() == "Untouched, taken")


def test_states_are_listed_and_filtered(work):
    from SAMFineTunePanels.qt_helpers import choose_in

    work.create()
    work.propose("scan1")
    work.desktop.wait(lambda: len(work.tab.list.keys) == 3)
    table = work.ui.casesTable
    work.desktop.wait(lambda: table.item(1, 1) is not None and table.item(1, 1).text() == "Proposed")
    assert table.item(1, 2).text() == "0.70"
    choose_in(work.ui.filterSelector, "proposed")
    work.ui.filterSelector.activated.emit(2)
    work.desktop.wait(lambda: table.rowCount == 1 and table.item(0, 0).text() == "scan1")
    work.desktop.wait(lambda: not table.item(0, 0).icon().isNull())


def test_what_cannot_be_done_is_said(work):
    work.create()
    assert not work.ui.trainButton.enabled and not work.ui.proposeButton.enabled
    work.tab.background.propose()
    work.desktop.wait(lambda: work.desktop.messages())
    assert "adapter" in work.desktop.messages()[-1] and "train" in work.desktop.messages()[-1].lower()
    work.open("scan0")
    work.accept()
    assert "press Accept again" in work.desktop.messages()[-1] and work.opened is not None


def test_the_learning_curve(work):
    from SAMFineTunePanels.cohort_curve import curve_of

    from SAMFineTuneLib.cohort.cohort_state import Review

    work.create()
    for order, (case, dice) in enumerate(zip(work.cohort.state.cases, (0.5, 0.7, 0.9), strict=True), start=1):
        review = Review(order, 10.0, 3, {"liver": dice, "left kidney": dice})
        work.cohort.change(lambda state, case=case, review=review: state.with_case(
            case.key, state="accepted", review=review))  # fmt: skip
    adapter = TrainedAdapter(1, (), (), "base", {}, {}, None, True, "It is the first one.", "2026-01-01")
    work.cohort.change(lambda state: type(state)(state.labels, state.cases, state.images, state.model, (adapter,)))
    points = curve_of(work.cohort.state)
    assert points[("case", 1)] == [(1, 0.5), (2, 0.7), (3, 0.9)]
    assert points[("dice", 2)][-1] == (3, pytest.approx(0.7))
    work.desktop.wait(lambda: work.tab.menu.curveAction.isEnabled())
    assert "It is the first one." in work.ui.workLabel.toolTip


def accept_all(work):
    for case in work.cohort.state.cases:
        accept(work.cohort, case.key, work.labels[case.name])


def test_scans_are_added_from_the_menu(work, tmp_path, monkeypatch):
    work.create()
    work.desktop.wait(lambda: len(work.tab.list.keys) == 3)
    write_scans(tmp_path / "more", count=4)  # three of them are there already
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path / "more"))
    work.tab.menu.addAction.trigger()
    assert not work.tab.menu.exportAction.isEnabled(), "one of these at a time"
    work.desktop.wait(lambda: len(work.tab.list.keys) == 4)
    work.desktop.wait(lambda: work.desktop.messages())
    said = " ".join(work.desktop.messages())
    assert "Added: 1 scans." in said and "is the same image" in said and "1 more" in said
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path / "empty"))
    work.desktop.wait(lambda: work.tab.menu.addAction.isEnabled())
    work.tab.menu.addAction.trigger()
    work.desktop.wait(lambda: any("holds no images" in text for text in work.desktop.messages()))
    assert len(work.cohort.state.cases) == 4


def test_a_scan_that_is_gone_is_shown_in_the_list(work):
    work.create()
    work.ui.closeButton.click()
    (work.folder / "scan1.nii.gz").unlink()
    work.ui.openButton.click()
    work.desktop.wait(lambda: len(work.tab.list.keys) == 3 and work.ui.casesTable.item(2, 1) is not None)
    work.desktop.wait(lambda: work.ui.casesTable.item(1, 1).text() == "Untouched, image gone")
    assert "locate" in work.ui.casesTable.item(1, 0).toolTip()


def test_accepted_cases_are_exported_and_reported_from_the_menu(work, tmp_path, monkeypatch):
    from SAMFineTunePanels.qt_helpers import choose_in

    opened = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda address: opened.append(address.toLocalFile()))
    work.create()
    export, said = work.tab.menu.export, work.desktop.messages
    work.tab.menu.reportAction.trigger()
    work.desktop.wait(lambda: any("nothing to report" in text for text in said()))
    accept_all(work)
    work.desktop.wait(lambda: work.tab.menu.exportAction.isEnabled())
    work.tab.menu.exportAction.trigger()
    assert export.ui.folderEdit.currentPath == f"{work.folder}-cohort-nnunet" and export.ui.visibleOnlyBox.isHidden()
    for folder, sentence in (("", "Choose a folder"), (str(work.folder), "exists already"),
                             (str(tmp_path / "no" / "where"), "does not exist")):  # fmt: skip
        export.ui.folderEdit.currentPath = folder
        export.ui.exportButton.click()
        assert sentence in export.ui.problemLabel.text and export.dialog.isVisible()
    target = tmp_path / "Dataset001_Body"
    export.ui.folderEdit.currentPath = str(target)
    export.ui.exportButton.click()
    assert not export.dialog.isVisible()
    work.desktop.wait(target.is_dir)
    values = read_volume(target / "labelsTr" / "scan1.nii.gz").array
    assert (values == work.labels["scan1"]).all()
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 3
    work.desktop.wait(lambda: any("Exported: 3 cases" in text for text in said()))
    work.desktop.wait(lambda: work.tab.menu.exportAction.isEnabled())
    work.tab.menu.exportAction.trigger()
    choose_in(export.ui.formatSelector, "dicom-seg")
    export.ui.folderEdit.currentPath = str(tmp_path / "seg")
    export.ui.exportButton.click()
    work.desktop.wait(lambda: any("None of the accepted cases" in text or "highdicom" in text for text in said()))
    assert not (tmp_path / "seg").exists()
    work.desktop.wait(lambda: work.tab.menu.reportAction.isEnabled())
    work.tab.menu.reportAction.trigger()
    work.desktop.wait(lambda: opened)
    assert opened == [str(work.cohort.folder / "report" / "index.html")]
    assert "3 cases are accepted" in (work.cohort.folder / "report" / "index.html").read_text("utf-8")


def test_scans_are_added_and_results_written_while_something_trains(work, tmp_path, monkeypatch):
    """Training takes all night, and in its queue nothing else is done until then."""
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda address: None)
    work.create()
    accept_all(work)
    trains = CohortQueue(work.cohort.folder)
    trains.folder.mkdir(parents=True, exist_ok=True)
    lock = ProcessLock(trains.folder / LOCK)
    assert lock.take()  # as the process that trains does
    trains.put("train", preset="quick", device="cpu")
    work.desktop.wait(lambda: work.ui.trainButton.isHidden() and not work.ui.stopButton.isHidden())
    write_scans(tmp_path / "more", count=4)
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path / "more"))
    for action in (work.tab.menu.addAction, work.tab.menu.reportAction):
        work.desktop.wait(action.isEnabled)
        action.trigger()
        assert not action.isEnabled() and "Stop " in work.ui.stopButton.text
    work.desktop.wait((work.cohort.folder / "report" / "index.html").exists)
    work.desktop.wait(lambda: len(work.tab.list.keys) == 4)
    work.desktop.wait(lambda: work.ui.stopButton.text == "Stop")
    assert not trains.is_empty and work.ui.trainButton.isHidden(), "it still trains"
    trains.drop()
    lock.release()
    work.desktop.wait(lambda: not work.ui.trainButton.isHidden() and work.ui.stopButton.isHidden())


@pytest.mark.parametrize("stopped", [False, True])
def test_work_whose_process_was_killed_is_started_again_unless_it_was_stopped(work, stopped):
    said = []
    for kind in ("Say", "Warning"):
        work.panel.host.listen(kind, lambda message: said.append(message.text))
    work.create()
    proposes = CohortQueue(work.cohort.folder)
    proposes.folder.mkdir(parents=True, exist_ok=True)
    lock = ProcessLock(proposes.folder / LOCK)
    assert lock.take()  # as the process that proposes does
    number = proposes.put("propose", again=True, device="cpu")
    tell = EventFile(proposes.folder)
    tell("begin", number=number, pid=os.getpid())
    tell("progress", number=number, what="propose", done=1, total=3, text="scan1")
    work.desktop.wait(lambda: "case 2 of 3" in work.ui.workLabel.toolTip)
    if stopped:
        work.ui.stopButton.click()
    lock.release()  # what remains of a killed process
    work.desktop.wait(lambda: work.ui.stopButton.isHidden() if stopped else "again" in work.ui.workLabel.toolTip)
    work.desktop.wait(lambda: proposes.is_empty)
    if stopped:
        assert said == ["Stopped; the work done so far is kept."] and not proposes.is_running
    else:
        work.desktop.wait(lambda: any("No adapter is in use" in text for text in said))
        assert sum("is started again" in text for text in said) == 1


@pytest.mark.parametrize("size", [(400, 520), (480, 800)])
def test_all_of_the_tab_is_seen_without_scrolling(work, size):
    """What Slicer leaves a panel of a screen of 1280 × 720, and of 1600 × 1000."""
    work.create()
    work.propose("scan0")
    accept(work.cohort, "scan1", work.labels["scan1"])
    work.open("scan0")
    state = work.cohort.state
    adapter = TrainedAdapter(1, (), (), "base", {}, {}, None, True, "It is the first one, with a long reason. " * 9, "")
    work.cohort.change(lambda _: type(state)(state.labels, state.cases, state.images, state.model, (adapter,)))
    parent = work.desktop.widget.parent
    parent.resize(*size)
    work.desktop.wait(lambda: "long reason" in work.ui.workLabel.toolTip)
    for busy in (False, True):
        if busy:
            work.ui.trainButton.hide()
            work.ui.stopButton.show()
            work.ui.workBar.show()
        work.desktop.pass_time(0.2)
        assert not work.panel.tabs.currentWidget().verticalScrollBar().isVisible()
    assert work.ui.casesTable.viewport().height >= 2 * 36, "two cases at least"
    for selector in (work.ui.waySelector, work.ui.filterSelector):
        texts = [selector.itemText(row) for row in range(selector.count)]
        assert selector.width >= max(map(selector.fontMetrics().horizontalAdvance, texts)) + 24

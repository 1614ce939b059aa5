"""The Cohort tab over a cohort that a department's server holds."""

from __future__ import annotations

import os

import numpy as np
import pytest
import qt
import slicer
from service.department import TOKEN, Department
from test_cohort import NAMES, CohortWork, write_scans

from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.review import accept, take
from SAMFineTuneLib.service.cohort_client import place_of

PATIENCE = 300.0  # s: several processes start one after the other


def use_server(panel, address, token=TOKEN):
    """Enter a server in the tab Settings, and go to Cohort."""
    panel.open_tab("settings")
    ui = panel.server.ui
    ui.remoteButton.click()
    ui.addressEdit.text, ui.tokenEdit.text = address, token
    ui.applyButton.click()
    panel.open_tab("cohort")


class ServedWork(CohortWork):
    """The tab of a user of the server; `cohort` is the server's own."""

    def __init__(self, desktop, tmp_path):
        self.desktop, self.folder = desktop, tmp_path / "scans"
        wait = desktop.wait
        desktop.wait = lambda condition, seconds=PATIENCE: wait(condition, seconds)
        self.labels = write_scans(self.folder)
        made = create_cohort(tmp_path / "liver", find_images(self.folder), NAMES.split(", ")).cohort
        self.department = Department(made, tmp_path / "server")
        self.panel = desktop.open()
        self.tab, self.ui = self.panel.cohort, self.panel.cohort.ui

    @property
    def cohort(self):
        return self.department.cohort

    def use_server(self, token=TOKEN):
        use_server(self.panel, self.department.address, token)
        return self

    def create(self):
        """Open the cohort."""
        self.use_server()
        self.desktop.wait(lambda: not self.ui.servedFrame.isHidden())
        self.desktop.wait(lambda: self.ui.servedButton.enabled)
        self.ui.servedButton.click()
        self.desktop.wait(lambda: self.tab.review is not None)
        return self


@pytest.fixture
def work(desktop, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work = ServedWork(desktop, tmp_path)
    yield work
    work.department.kill()


def test_a_case_of_the_server_is_reviewed_and_accepted(work):
    work.create()
    assert "liver: 0 of 3 accepted" in work.ui.cohortLabel.toolTip and work.desktop.messages() == []
    proposed = work.propose("scan1")
    work.open("scan1")
    assert place_of(work.tab.review.cohort.folder).cohort == "liver"
    assert (work.shown_labels() == proposed).all() and work.tab.review.strip.labels == ["liver", "left kidney"]
    assert work.opened.places[0] == ("liver", 3, 0.3)
    work.desktop.wait(lambda: work.tab.review.coming.key is not None)
    coming = work.tab.review.coming.key
    assert work.case(coming).lease.by == work.tab.review.word, "the case loaded in advance is taken on the server"
    work.mend()
    work.accept()
    work.desktop.wait(lambda: work.opened is not None and work.opened.key == coming)
    work.wait_for_state("scan1", "accepted")
    assert (work.kept_labels(work.cohort.accepted(work.case("scan1").key)) == work.labels["scan1"]).all()
    assert 0.8 < work.case("scan1").review.dice["liver"] < 1
    work.desktop.wait(lambda: "1 of 3" in work.ui.cohortLabel.toolTip)
    work.desktop.wait(lambda: not work.ui.casesTable.item(1, 0).icon().isNull())
    work.ui.skipButton.click()
    work.desktop.wait(lambda: not work.tab.review.waits)
    work.ui.refuseButton.click()
    work.desktop.wait(lambda: len(work.cohort.state.those("refused")) == 1)
    work.ui.closeButton.click()
    work.desktop.wait(lambda: not any(case.lease for case in work.cohort.state.cases))


def test_a_report_and_an_export_come_from_the_server(work, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(qt.QDesktopServices, "openUrl", lambda address: opened.append(address.toLocalFile()))
    work.create()
    for case in work.cohort.state.cases[:2]:
        accept(work.cohort, case.key, work.labels[case.name])
    menu, export = work.tab.menu, work.tab.menu.export
    work.desktop.wait(lambda: "2 of 3" in work.ui.cohortLabel.toolTip)
    menu.reportAction.trigger()
    work.desktop.wait(lambda: opened)
    page = work.tab.review.cohort.folder / "report" / "index.html"
    assert opened == [str(page)] and "2 cases are accepted" in page.read_text("utf-8")
    work.desktop.wait(menu.exportAction.isEnabled)
    menu.exportAction.trigger()
    assert export.ui.folderEdit.currentPath == os.path.expanduser("~/liver-nnunet")
    export.ui.folderEdit.currentPath = str(tmp_path / "Dataset002")
    export.ui.exportButton.click()
    work.desktop.wait((tmp_path / "Dataset002").is_dir)
    assert (work.kept_labels(tmp_path / "Dataset002" / "labelsTr" / "scan1.nii.gz") == work.labels["scan1"]).all()
    work.desktop.wait(lambda: any("Exported: 2 cases" in text for text in work.desktop.messages()))


def test_scans_are_added_through_the_server(work, tmp_path, monkeypatch):
    work.create()
    write_scans(tmp_path / "more", count=5)  # three of them are there already
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path / "more"))
    work.desktop.wait(work.tab.menu.addAction.isEnabled)
    work.tab.menu.addAction.trigger()
    work.desktop.wait(lambda: len(work.tab.list.keys) == 5)
    work.desktop.wait(lambda: any("Added: 2 scans." in text for text in work.desktop.messages()))
    assert any("is the same image" in text and "1 more" in text for text in work.desktop.messages())
    work.open("scan4")
    assert work.cohort.image(work.case("scan4")).is_relative_to(work.cohort.folder / "added")


def test_a_case_of_somebody_else_is_left_alone(work):
    work.create()
    take(work.cohort, "scan0", "somebody")
    table = work.ui.casesTable
    work.desktop.wait(lambda: table.item(0, 1) is not None and table.item(0, 1).text() == "Untouched, taken")
    table.cellDoubleClicked.emit(0, 0)
    work.desktop.wait(lambda: any("Somebody else" in text for text in work.desktop.messages()))
    work.ui.nextButton.click()
    work.desktop.wait(lambda: work.opened is not None)
    assert work.opened.key != work.case("scan0").key


def test_what_is_accepted_while_the_server_is_away_arrives_later(work):
    work.create()
    work.propose("scan0")
    work.open("scan0")
    work.mend()
    work.department.kill()
    work.accept()
    work.desktop.wait(lambda: "wait on this computer" in work.ui.workLabel.text)
    assert work.case("scan0").state == "proposed"
    queue = work.tab.review.work
    slicer.app.aboutToQuit.emit()
    queue.kill()  # the computer is switched off
    work.department.start()
    work.desktop.reload()
    work.panel, work.tab = work.desktop.panel, work.desktop.panel.cohort
    work.ui = work.tab.ui
    work.desktop.widget.enter()
    work.create()
    work.wait_for_state("scan0", "accepted")
    assert (work.kept_labels(work.cohort.accepted(work.case("scan0").key)) == work.labels["scan0"]).all()


def test_what_the_server_does_is_shown(work):
    work.create()
    work.tab.background.propose()
    work.desktop.wait(lambda: any("No adapter is in use yet" in text for text in work.desktop.messages()))
    assert not work.ui.trainButton.enabled
    accept(work.cohort, "scan0", work.labels["scan0"].astype(np.uint8))
    work.desktop.wait(lambda: work.ui.trainButton.enabled)
    work.ui.trainButton.click()
    work.desktop.wait(lambda: any("3 patients or more" in text for text in work.desktop.messages()))
    for name in ("scan1", "scan2"):
        accept(work.cohort, name, work.labels[name].astype(np.uint8))
    work.desktop.wait(lambda: "3 of 3" in work.ui.cohortLabel.toolTip and work.ui.trainButton.enabled)
    work.ui.trainButton.click()
    work.desktop.wait(lambda: not work.ui.stopButton.isHidden() and work.ui.trainButton.isHidden())
    work.ui.stopButton.click()
    work.desktop.wait(lambda: work.ui.stopButton.isHidden() and not work.ui.trainButton.isHidden())
    assert work.cohort.state.adapter is None


def test_a_wrong_token_is_said(work):
    work.use_server("wrong")
    work.desktop.wait(lambda: any("token" in text for text in work.desktop.messages()))
    assert work.ui.servedFrame.isHidden()

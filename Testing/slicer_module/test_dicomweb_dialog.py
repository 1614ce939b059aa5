"""Scans from a PACS and accepted cases back to it, from the Cohort tab, with a real Orthanc."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import qt
from dicom_samples import write_series
from orthanc_server import running_orthanc

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.dicomweb_store import DicomwebStore
from SAMFineTuneLib.cohort.review import accept
from SAMFineTuneLib.images import read_volume
from SAMFineTuneLib.images.phantom import body_phantom

pytest.importorskip("dicomweb_client")
pytest.importorskip("highdicom")
_IMAGES = 24


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an Orthanc with two patients' series, and a client that is signed in."""
    folder = tmp_path_factory.mktemp("orthanc")
    with running_orthanc(folder) as port:
        store = DicomwebStore(f"http://127.0.0.1:{port}/dicom-web", user=("me", "secret"))
        for number, patient in enumerate(("Miller", "Smith")):
            voxels = body_phantom(seed=number, shape=(_IMAGES, 64, 64), spacing=(5.4, 5.4, 5.0))[0].array
            series = folder / patient
            write_series(series, (voxels + 1024).astype(np.uint16), PatientID=patient, PatientName=f"{patient}^Anna",
                         SeriesDescription=f"scan {number}")  # fmt: skip
            store.store(sorted(series.iterdir()))
        yield f"http://127.0.0.1:{port}/dicom-web", store


class Pacs:
    """The dialog, with an address and a user typed in."""

    def __init__(self, desktop, address, scans):
        self.desktop, self.panel = desktop, desktop.open()
        self.panel.open_tab("cohort")
        self.tab = self.panel.cohort
        self.dialog, self.ui = self.tab.dicomweb.dialog, self.tab.dicomweb.ui
        self.tab.ui.pacsButton.click()
        self.ui.addressEdit.text, self.ui.userEdit.text, self.ui.passwordEdit.text = address, "me", "secret"
        self.ui.folderEdit.currentPath = str(scans)

    def press(self, button):
        button.click()
        assert not self.ui.stopButton.isHidden()
        self.wait()

    def wait(self):
        self.desktop.wait(lambda: self.ui.stopButton.isHidden())


def stored(store):
    return len(store._client.search_for_series(search_filters={"Modality": "SEG"}))


def test_a_cohort_from_a_pacs_and_its_labels_back(server, desktop, tmp_path):
    address, store = server
    pacs = Pacs(desktop, address, tmp_path / "scans")
    ui = pacs.ui
    ui.passwordEdit.text = "wrong"
    pacs.press(ui.listButton)
    assert "does not let you in (401); check the user and the password" in ui.statusLabel.text
    assert not ui.goButton.enabled
    ui.passwordEdit.text = "secret"
    pacs.press(ui.listButton)
    assert ui.seriesTable.rowCount == 2 and ui.goButton.text == "Fetch 2 series"
    ui.patientEdit.text = "Miller"
    pacs.press(ui.listButton)
    assert ui.seriesTable.rowCount == 1 and ui.seriesTable.item(0, 0).text() == "scan 0"
    pacs.press(ui.goButton)
    assert pacs.dialog.isHidden() and pacs.tab.ui.folderEdit.currentPath == str(tmp_path / "scans")
    pacs.tab.ui.labelsEdit.setText("liver")
    pacs.tab.ui.openButton.click()
    desktop.wait(lambda: pacs.tab.review is not None)
    cohort = Cohort(tmp_path / "scans-cohort")
    assert len(cohort.state.cases) == 1

    pacs.tab.menu.fetchAction.trigger()
    ui.patientEdit.text = ""
    pacs.press(ui.listButton)
    pacs.press(ui.goButton)
    desktop.wait(lambda: len(cohort.state.cases) == 2)

    for case in cohort.state.cases:
        labels = np.zeros(read_volume(cohort.image(case)).shape, np.uint8)
        labels[4:9, 20:40, 20:40] = 1
        accept(cohort, case.key, labels)
    for _ in range(2):
        pacs.tab.menu.storeAction.trigger()
        assert ui.fetchFrame.isHidden()
        pacs.press(ui.goButton)
        assert ui.statusLabel.text == "Stored: 2 DICOM SEG."
        assert stored(store) == 2, "what is stored twice is there once"
    pacs.dialog.hide()

    settings = qt.QSettings()
    kept = "".join(str(settings.value(key)) for key in settings.allKeys())
    files = [path for place in ("home", "scans-cohort") for path in (tmp_path / place).rglob("*") if path.is_file()]
    kept += "".join(path.read_text("utf-8", "ignore") for path in files)
    assert address in kept, "it need not be typed again"
    assert not any(word in kept for word in ("secret", "wrong", "Miller", "Smith"))


def test_a_killed_fetch_is_one_sentence_and_goes_on(server, desktop, tmp_path):
    pacs = Pacs(desktop, server[0], tmp_path / "scans")
    pacs.press(pacs.ui.listButton)
    pacs.ui.goButton.click()
    desktop.wait(lambda: len([*tmp_path.glob("scans/.*/*.dcm")]) > 3)
    for process in desktop.processes():
        if process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[-1].endswith("-pacs"):
            process.kill()
            psutil.wait_procs([process])
    pacs.wait()
    assert "could not be asked" in pacs.ui.statusLabel.text
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("scans/**/*.dcm")}
    assert 3 < len(before) < 2 * _IMAGES
    pacs.press(pacs.ui.goButton)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("scans/**/*.dcm")}
    assert len(after) == 2 * _IMAGES and not [*tmp_path.glob("scans/.*")]
    assert before.items() <= after.items(), "what had arrived is not fetched again"


def test_stop_and_an_address_that_does_not_answer(server, desktop, tmp_path):
    pacs = Pacs(desktop, server[0], tmp_path / "scans")
    pacs.press(pacs.ui.listButton)
    pacs.ui.goButton.click()
    desktop.wait(lambda: len([*tmp_path.glob("scans/.*/*.dcm")]) > 1)
    pacs.ui.stopButton.click()
    pacs.wait()
    assert pacs.ui.statusLabel.text == "Stopped; Fetch goes on with what is missing." and pacs.ui.goButton.enabled
    pacs.ui.addressEdit.text = "http://pacs.hospital/dicom-web"
    assert "without encryption" in pacs.ui.statusLabel.text
    pacs.ui.addressEdit.text = "http://127.0.0.1:1/dicom-web"
    pacs.press(pacs.ui.listButton)
    assert "cannot be reached" in pacs.ui.statusLabel.text and not pacs.ui.goButton.enabled

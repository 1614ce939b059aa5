"""Scans from a PACS and accepted cases back to it, from the Cohort tab, with a real Orthanc."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import qt
from dicom_samples import write_series
from orthanc_server import running_orthanc, tls_proxy
from SAMFineTunePanels import packages
from service.department import Department
from service.servers import Line
from test_served_cohorts import use_server

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.dicomweb_store import DicomwebStore
from SAMFineTuneLib.cohort.find_images import find_images
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


@pytest.fixture
def slow(server):
    """The server behind a line on which an image takes a while, so that there is time to stop a fetch."""
    line = Line(urlsplit(server[0]).port, delay=0.05)
    yield f"http://127.0.0.1:{line.port}/dicom-web"
    line.close()


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
    assert "refused the login (401); check the user and the password" in ui.statusLabel.text
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


def test_a_killed_fetch_is_one_sentence_and_goes_on(slow, desktop, tmp_path):
    pacs = Pacs(desktop, slow, tmp_path / "scans")
    pacs.press(pacs.ui.listButton)
    pacs.ui.goButton.click()
    desktop.wait(lambda: len([*tmp_path.glob("scans/.*/[!.]*.dcm")]) > 3)
    for process in desktop.processes():
        if process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[-1].endswith("-pacs"):
            process.kill()
            psutil.wait_procs([process])
    pacs.wait()
    assert "could not be reached" in pacs.ui.statusLabel.text
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("scans/**/[!.]*.dcm")}
    assert 3 < len(before) < 2 * _IMAGES
    pacs.press(pacs.ui.goButton)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("scans/**/[!.]*.dcm")}
    assert len(after) == 2 * _IMAGES and not [*tmp_path.glob("scans/**/.*")]
    assert before.items() <= after.items(), "what had arrived is not fetched again"


def test_stop_and_an_address_that_does_not_answer(slow, desktop, tmp_path):
    pacs = Pacs(desktop, slow, tmp_path / "scans")
    pacs.press(pacs.ui.listButton)
    pacs.ui.goButton.click()
    desktop.wait(lambda: len([*tmp_path.glob("scans/.*/*.dcm")]) > 1)
    pacs.ui.stopButton.click()
    pacs.wait()
    assert pacs.ui.statusLabel.text == "Stopped; Fetch continues with the missing series." and pacs.ui.goButton.enabled
    pacs.ui.addressEdit.text = "http://pacs.hospital/dicom-web"
    assert "without encryption" in pacs.ui.statusLabel.text
    pacs.ui.addressEdit.text = "http://127.0.0.1:1/dicom-web"
    pacs.press(pacs.ui.listButton)
    assert "cannot be reached" in pacs.ui.statusLabel.text and not pacs.ui.goButton.enabled


@pytest.fixture(scope="module")
def encrypted(server, tmp_path_factory):
    """The server's address over TLS, where the token `word` signs in, and a folder with certificates."""
    trustme = pytest.importorskip("trustme")
    folder, authority = tmp_path_factory.mktemp("certificates"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    (folder / "none.pem").write_text("none")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with tls_proxy(urlsplit(server[0]).port, tls, "word") as address:
        yield address, folder


def test_over_tls_with_a_token(server, encrypted, desktop, tmp_path):
    address, certificates = encrypted
    pacs = Pacs(desktop, address, tmp_path / "scans")
    ui = pacs.ui
    ui.userEdit.text, ui.passwordEdit.text = "", "word"
    for certificate, words in (("", "cannot be verified"), ("other.pem", "cannot be verified"),
                               ("none.pem", "holds no certificate"), ("gone.pem", "cannot be read")):  # fmt: skip
        ui.certificateEdit.currentPath = certificate and str(certificates / certificate)
        pacs.press(ui.listButton)
        assert words in ui.statusLabel.text and not ui.goButton.enabled
    ui.certificateEdit.currentPath = str(certificates / "ca.pem")
    ui.addressEdit.text = address.replace("127.0.0.1", "localhost")
    pacs.press(ui.listButton)
    assert "is not issued for this name" in ui.statusLabel.text
    ui.addressEdit.text = address
    for user, secret in (("", "another"), ("", ""), ("me", "secret")):  # this server does not know users
        ui.userEdit.text, ui.passwordEdit.text = user, secret
        pacs.press(ui.listButton)
        assert "refused the login (401)" in ui.statusLabel.text
    ui.userEdit.text, ui.passwordEdit.text = "", "word"
    pacs.press(ui.listButton)
    pacs.press(ui.goButton)
    fetched = {read_volume(folder).digest for folder in (tmp_path / "scans").iterdir()}
    sent = {one.description: one for one in server[1].list_series()}
    assert len(sent) == len(fetched) == 2
    settings = qt.QSettings()
    kept = {key: str(settings.value(key)) for key in settings.allKeys()}
    assert str(certificates / "ca.pem") in kept.values()
    written = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert "word" not in kept.values() and b"Bearer" not in written and b"word" not in written


def test_cases_of_a_departments_server_are_stored_on_a_pacs(server, encrypted, desktop, tmp_path, monkeypatch):
    monkeypatch.setattr(packages.PackageSet, "missing", lambda _: True)  # here; the server writes DICOM SEG
    address, certificates = encrypted
    before = stored(server[1])
    server[1].fetch_all(server[1].list_series(), tmp_path / "scans", lambda done, total: None)
    cohort = create_cohort(tmp_path / "liver", find_images(tmp_path / "scans"), ["liver"]).cohort
    labels = np.zeros((_IMAGES, 64, 64), np.uint8)
    labels[5:9, 20:40, 20:40] = 1
    accept(cohort, cohort.state.cases[0].key, labels)
    department = Department(cohort, tmp_path / "server")
    try:
        panel = desktop.open()
        use_server(panel, department.address)
        tab = panel.cohort
        desktop.wait(lambda: not tab.ui.servedFrame.isHidden() and tab.ui.servedButton.enabled)
        tab.ui.servedButton.click()
        desktop.wait(lambda: tab.review is not None)
        tab.menu.storeAction.trigger()
        ui = tab.dicomweb.ui
        ui.addressEdit.text, ui.userEdit.text, ui.passwordEdit.text = address, "", "word"
        ui.certificateEdit.currentPath = str(certificates / "ca.pem")
        ui.goButton.click()
        desktop.wait(lambda: ui.stopButton.isHidden())
        assert ui.statusLabel.text == "Stored: 1 DICOM SEG."
        assert stored(server[1]) == before + 1
    finally:
        department.kill()

"""Series from a DICOMweb server and DICOM SEG back to it: a real Orthanc where there is one; TLS without it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
from case_files import blob, image_of
from dicom_samples import write_series
from orthanc_server import running_orthanc, tls_proxy
from pydicom.uid import generate_uid

from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.dicomweb_store import PASSWORD, USER, DicomwebStore
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.review import accept
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import beside
from SAMFineTuneLib.images import read_volume

pytest.importorskip("dicomweb_client")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """The address and the folder of an Orthanc with two CT series of one patient."""
    folder = tmp_path_factory.mktemp("orthanc")
    with running_orthanc(folder) as port:
        address = f"http://127.0.0.1:{port}/dicom-web"
        stored = (image_of(blob()) + 100).astype(np.uint16)
        for number in range(2):
            series = folder / "sent" / str(number)
            write_series(series, stored + number, PatientID="Miller", PatientName="Miller^Anna", StudyID="1",
                         SeriesDescription=f"scan {number}")  # fmt: skip
            DicomwebStore(address, user=("me", "secret")).store(sorted(series.iterdir()))
        yield address, folder


@pytest.fixture
def store(orthanc):
    return DicomwebStore(orthanc[0], user=("me", "secret"))


def test_series_are_listed_without_naming_the_patient(store):
    found = store.list_series({"Modality": "CT"})
    assert sorted(one.description for one in found) == ["scan 0", "scan 1"]
    assert [one.images for one in found] == [6, 6] and "Miller" not in repr(found)
    assert store.list_series({"Modality": "MR"}) == []
    assert store.list_series({"SeriesInstanceUID": found[1].series}) == [found[1]]


def test_a_fetched_series_is_the_one_that_was_sent(store, orthanc, tmp_path):
    for one in store.list_series({"Modality": "CT"}):
        folder = store.fetch(one, tmp_path / "scans")
        sent = orthanc[1] / "sent" / one.description[-1]
        assert read_volume(folder).digest == read_volume(sent).digest
        before = [file.stat().st_mtime_ns for file in folder.iterdir()]
        assert store.fetch(one, tmp_path / "scans") == folder
        assert [file.stat().st_mtime_ns for file in folder.iterdir()] == before


_KILLED = """
import os, signal, sys
from SAMFineTuneLib.cohort.dicomweb_store import DicomwebStore

address, folder = sys.argv[1:]
store = DicomwebStore(address, user=("me", "secret"))
store.fetch(store.list_series({"Modality": "CT"})[0], folder,
            lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 3 else None)
"""


def test_a_killed_fetch_shows_nothing_half_and_goes_on(store, orthanc, root, tmp_path, monkeypatch):
    path = os.pathsep.join([str(root), *(one for one in sys.path if one)])
    killed = subprocess.run([sys.executable, "-c", _KILLED, orthanc[0], tmp_path / "scans"],
                            env=os.environ | {"PYTHONPATH": path}, timeout=120)  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="holds no images"):
        find_images(tmp_path / "scans")
    (partial,) = (tmp_path / "scans").iterdir()
    assert partial.name.startswith(".") and len(list(partial.iterdir())) == 3
    before = {file: file.stat().st_mtime_ns for file in partial.iterdir()}
    beside(partial / "killed while writing.dcm").write_bytes(b"half")
    folder = store.fetch(store.list_series({"Modality": "CT"})[0], tmp_path / "scans")
    assert len(list(folder.iterdir())) == 6 and not partial.exists()
    assert all((folder / file.name).stat().st_mtime_ns == stamp for file, stamp in before.items())


def test_from_the_server_to_the_server(orthanc, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(USER, "me")
    monkeypatch.setenv(PASSWORD, "secret")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    assert main(["cohort", "fetch", orthanc[0], "-o", "scans", "--modality", "CT", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["series"]) == 2
    assert main(["cohort", "create", "mine", "scans", "--labels", "liver"]) == 0
    cohort = Cohort("mine")
    assert len({case.patient for case in cohort.state.cases}) == 1
    for case in cohort.state.cases:
        accept(cohort, case.key, blob())
    capsys.readouterr()
    assert main(["cohort", "store", orthanc[0], "mine", cohort.state.cases[0].name, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stored"]) == 1
    found = store._client.search_for_series(search_filters={"Modality": "SEG"})
    assert len(found) == 1
    written = "".join(path.read_text("utf-8", "ignore") for path in (tmp_path / "mine").rglob("*") if path.is_file())
    assert "secret" not in written and orthanc[0] not in written and "Miller" not in written


def test_what_goes_wrong_is_one_sentence(orthanc, store, tmp_path):
    address, folder = orthanc
    wrong = {
        "refused the login": lambda: DicomwebStore(address, user=("me", "x")).list_series(),
        "check the address and the UIDs": lambda: DicomwebStore(address[:-4], user=("me", "secret")).list_series(),
        "does not offer https": lambda: DicomwebStore(address.replace("http:", "https:")).list_series(),
        "cannot be reached": lambda: DicomwebStore("http://127.0.0.1:1/dicom-web").list_series(),
        "“nowhere.pem” cannot be read": lambda: DicomwebStore(address, certificate="nowhere.pem"),
        "is not the address": lambda: DicomwebStore("pacs.hospital"),
        "Leave user and password out": lambda: DicomwebStore("https://me:secret@pacs.hospital/dicom-web"),
    }
    for words, act in wrong.items():
        with pytest.raises(UserError, match=words) as error:
            act()
        assert "\n" not in str(error.value) and "secret" not in str(error.value)
    other = pydicom.dcmread(next((folder / "sent" / "0").iterdir()))
    other.SOPInstanceUID = generate_uid()
    del other.StudyInstanceUID
    other.save_as(tmp_path / "x.dcm")
    with pytest.raises(UserError):
        store.store([tmp_path / "x.dcm"])


def test_over_tls_with_a_password(orthanc, tmp_path, monkeypatch, capsys):
    trustme = pytest.importorskip("trustme")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "none.pem").write_text("none")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    monkeypatch.setenv(PASSWORD, "secret")
    with tls_proxy(urlsplit(orthanc[0]).port, tls) as address:
        fetch = ["cohort", "fetch", address, "-o", str(tmp_path / "scans"), "--tls-ca"]
        wrong = {
            "cannot be verified": [*fetch, str(tmp_path / "other.pem"), "--user", "me"],
            "holds no certificate": [*fetch, str(tmp_path / "none.pem"), "--user", "me"],
            "refused the login (401)": [*fetch, str(tmp_path / "ca.pem"), "--user", "you"],
        }
        for words, command in wrong.items():
            assert main(command) == 2
            told = capsys.readouterr().err.strip()
            assert words in told and "\n" not in told and "secret" not in told
        assert not (tmp_path / "scans").exists()
        assert main([*fetch, str(tmp_path / "ca.pem"), "--user", "me"]) == 0
    assert "without encryption" not in capsys.readouterr().err
    fetched = {read_volume(folder).digest for folder in (tmp_path / "scans").iterdir()}
    assert fetched == {read_volume(folder).digest for folder in (orthanc[1] / "sent").iterdir()}


class _Server(BaseHTTPRequestHandler):
    """A server that wants a token and always answers the same: no series."""

    content = b"[]"

    def do_GET(self):
        allowed = self.headers.get("Authorization") == "Bearer word"
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


def test_certificates_are_verified_and_tokens_sent(tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"https://127.0.0.1:{server.server_port}/dicom-web"
        assert DicomwebStore(address, token="word", certificate=tmp_path / "ca.pem").list_series() == []
        with pytest.raises(UserError, match="refused the login"):
            DicomwebStore(address, certificate=tmp_path / "ca.pem").list_series()
        with pytest.raises(UserError, match="cannot be verified"):
            DicomwebStore(address, token="word").list_series()
        with pytest.raises(UserError, match="“localhost:.*” is not issued for this name"):
            named = address.replace("127.0.0.1", "localhost")
            DicomwebStore(named, token="word", certificate=tmp_path / "ca.pem").list_series()
        server.shutdown()


def test_a_server_that_knows_no_pages_is_asked_only_twice():
    series = {"0020000D": {"Value": ["1.2"]}, "0020000E": {"Value": ["1.2.3"]}, "00080060": {"Value": ["CT"]}}
    for content, found in (([series], ["1.2.3"]), (["not", "DICOMweb"], None)):
        handler = type("Handler", (_Server,), {"content": json.dumps(content).encode()})
        with HTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            store = DicomwebStore(f"http://127.0.0.1:{server.server_port}", token="word")
            if found is None:
                with pytest.raises(UserError, match="does not answer as a DICOMweb service"):
                    store.list_series()
            else:
                assert [one.series for one in store.list_series()] == found
            server.shutdown()

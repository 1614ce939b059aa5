"""A real Orthanc on loopback, with a password; skipped where Debian's packages are not installed.

The variable ORTHANC names a folder into which orthanc and orthanc-dicomweb were unpacked (dpkg -x) instead.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLUGIN = "share/orthanc/plugins/libOrthancDicomWeb.so"


@contextmanager
def running_orthanc(folder: Path):
    """The port of an Orthanc that lets `me` in with `secret`, and keeps its images below a folder."""
    root = Path(os.environ.get("ORTHANC", "/")) / "usr"
    if not (root / "sbin" / "Orthanc").exists() or not (root / _PLUGIN).exists():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed (Debian: orthanc, orthanc-dicomweb)")
    with socket.socket() as free, socket.socket() as other:
        free.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, dicom = free.getsockname()[1], other.getsockname()[1]
    (folder / "settings.json").write_text(json.dumps({
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "HttpPort": port,
        "DicomPort": dicom, "AuthenticationEnabled": True, "RegisteredUsers": {"me": "secret"},
        "Plugins": [str(root / _PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }))  # fmt: skip
    libraries = [str(path) for path in (root / "lib", *root.glob("lib/*-linux-gnu"))]
    environment = dict(os.environ)
    if "ORTHANC" in os.environ:
        dictionary = next(root.glob("share/libdcmtk*/dicom.dic"))
        environment |= {"LD_LIBRARY_PATH": ":".join(libraries), "DCMDICTPATH": str(dictionary)}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([root / "sbin" / "Orthanc", folder / "settings.json"], env=environment, stdout=log,
                                   stderr=log)  # fmt: skip
    try:
        for _ in range(200):
            assert process.poll() is None, (folder / "log").read_bytes()[-2000:]
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)

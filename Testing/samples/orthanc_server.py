"""A real Orthanc on loopback, with a password; skipped where Debian's packages are not installed.

The variable ORTHANC names a folder into which orthanc and orthanc-dicomweb were unpacked (dpkg -x) instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64encode
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
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_bytes()[-2000:]
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def tls_proxy(port: int, tls: ssl.SSLContext, token: str = ""):
    """The address of a proxy that encrypts for a server, which Debian's Orthanc cannot do itself: it crashes.

    With a token, that lets in instead of `me` and `secret`.
    """
    password = b"Basic " + b64encode(b"me:secret")
    exchanged = ((password, b"Basic no"), (f"Bearer {token}".encode(), password)) if token else ()

    async def carry(source, target, exchanged=()):
        while data := await source.read(65536):
            for words in exchanged:
                data = data.replace(*words)
            target.write(data)
            await target.drain()
        target.close()

    async def meet(client, to_client):
        server, to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(client, to_server, exchanged), carry(server, to_client),
                             return_exceptions=True)  # fmt: skip

    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(meet, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/dicom-web"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

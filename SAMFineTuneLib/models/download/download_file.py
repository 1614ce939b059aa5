"""Downloads one file over HTTP: resumes after a break, verifies it before it appears, fails with one sentence.

Own code on the standard library: pooch does not resume and loads requests, huggingface_hub knows its own site only, and
neither explains proxies, certificates and full disks. `http` has the connection and the sentences about its failures.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.models.download.file_digests import check_file
from SAMFineTuneLib.models.download.http import BrokenDownload, host, open_safely, refusal, unreachable
from SAMFineTuneLib.process_lock import ProcessLock
from SAMFineTuneLib.typed_json import loaded
from SAMFineTuneLib.wording import readable_size

Progress = Callable[[int, "int | None"], None]  # bytes so far, bytes in all (None when unknown)

_BLOCK = 1 << 18
_SPARE = 64 << 20  # bytes of disk to leave free
_ATTEMPTS = 5  # in a row without a single new byte


def download(
    url: str,
    destination: str | Path,
    *,
    size: int | None = None,
    digests: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> str:
    """Download a file, which appears only when it is complete and verified.

    Until then the bytes are in `destination` + ".partial"; a later call with the same address continues there.

    Args:
        url: an http or https address.
        destination: the file to write.
        size: the published size in bytes.
        digests: published digests, `{"sha256": hex, …}`.
        progress: called with the bytes so far and in all (None when unknown).
        timeout: seconds for each wait on the network.
        pause: seconds before the first retry; doubles with each further one.

    Returns:
        A sentence that says what was checked.

    Raises:
        UserError: for any failure of network, server, proxy, disk or file.
    """
    destination = Path(destination)
    partial = _partial(destination)
    transfer = _Transfer(url, partial, size, digests or {}, progress or (lambda received, total: None), timeout)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(partial):
            _persist(transfer, pause)
            try:
                note = check_file(partial, f"The file from {host(url)}", size, transfer.digests)
            except UserError:
                discard_partial(destination)  # a wrong file must not be continued
                raise
            os.replace(partial, destination)
            _origin(partial).unlink(missing_ok=True)
    except OSError as error:  # errors of the network are UserErrors already
        raise UserError(f"{destination.parent} cannot be written to ({error.strerror or error}).") from error
    return note


def discard_partial(destination: str | Path) -> bool:
    """Delete the files of an unfinished download to `destination`. Returns whether there were any."""
    partial = _partial(Path(destination))
    there = partial.exists()
    for path in (partial, _origin(partial)):
        path.unlink(missing_ok=True)
    return there


@dataclass(frozen=True)
class _Transfer:
    """The parameters of one download."""

    url: str
    partial: Path
    size: int | None
    digests: Mapping[str, str]
    progress: Progress
    timeout: float


def _persist(transfer: _Transfer, pause: float) -> None:
    """Complete the partial file, over as many connections as that takes."""
    opener = open_safely()
    failures = 0
    while True:
        before = _length(transfer.partial)
        try:
            return _connect(transfer, opener)
        except BrokenDownload as error:
            failures = 1 if _length(transfer.partial) > before else failures + 1
            if failures >= _ATTEMPTS:
                raise UserError(
                    f"The download from {host(transfer.url)} broke off {failures} times in a row ({error}); what has "
                    "arrived is kept, so run the same command again later to continue."
                ) from error
            time.sleep(pause * 2 ** (failures - 1))


def _connect(transfer: _Transfer, opener: urllib.request.OpenerDirector) -> None:
    """Continue the partial file over one connection; Broken if it is incomplete at the end."""
    url, partial = transfer.url, transfer.partial
    here, validator = _resumable(partial, url)
    if not (validator or transfer.digests):
        here = 0  # nothing could show whether the rest belongs to the same version
    headers = {"User-Agent": f"samfinetune/{__version__}", "Accept-Encoding": "identity"}
    if here:
        headers |= {"Range": f"bytes={here}-"} | ({"If-Range": validator} if validator else {})
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=transfer.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and here:
            if _content_range(error.headers)[1] == here:
                return
            _origin(partial).unlink()
            raise BrokenDownload("the server refused to continue the file") from error
        raise refusal(url, error) from error
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise unreachable(url, error) from error

    with response:
        start, total = _content_range(response.headers)
        resumed = response.status == 206 and start == here
        if response.status == 206 and not resumed:
            _origin(partial).unlink()
            raise BrokenDownload("the server sent another part of the file than the one asked for")
        received = here if resumed else 0
        length = response.headers.get("Content-Length") or ""
        if total is None and length.isdigit():
            total = received + int(length)
        _refuse_wrong_answer(transfer, response.headers, total)
        _check_room(partial.parent, (total or transfer.size or received) - received)
        if not resumed:
            partial.unlink(missing_ok=True)
        _remember(partial, url, response.headers)
        with open(partial, "ab") as file:
            received = _pour(response, file, received, total, transfer.progress)
    if total is not None and received < total:
        raise BrokenDownload(f"{received:,} of {total:,} bytes arrived")


def _pour(response, file: BinaryIO, received: int, total: int | None, progress: Progress) -> int:
    """Append the body to `file`, and return the file's length. A network failure raises Broken and keeps the bytes."""
    progress(received, total)
    while True:
        try:
            block = response.read(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenDownload(str(error) or type(error).__name__) from error
        if not block:
            break
        file.write(block)
        received += len(block)
        progress(received, total)
    file.flush()
    os.fsync(file.fileno())
    return received


def _partial(destination: Path) -> Path:
    return destination.with_name(destination.name + ".partial")


def _origin(partial: Path) -> Path:
    """The file beside the partial one with the address and version of its bytes."""
    return partial.with_name(partial.name + ".json")


def _remember(partial: Path, url: str, headers) -> None:
    etag = headers.get("ETag") or ""
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""
    write_text(_origin(partial), json.dumps({"url": url, "validator": validator}))


def _resumable(partial: Path, url: str) -> tuple[int, str]:
    """Length of the partial file and its validator; (0, "") when it cannot be continued."""
    try:
        origin = loaded(_origin(partial).read_text(encoding="utf-8"))
        if origin["url"] == url:
            return _length(partial), origin["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _content_range(headers) -> tuple[int | None, int | None]:
    """First byte of the answer and length of the complete file, each None where Content-Range does not say it."""
    found = re.match(r"bytes (?:(\d+)-\d+|\*)(?:/(\d+))?", headers.get("Content-Range") or "")
    return (found[1] and int(found[1]), found[2] and int(found[2])) if found else (None, None)


def _refuse_wrong_answer(transfer: _Transfer, headers, total: int | None) -> None:
    url, size = transfer.url, transfer.size
    if headers.get_content_type() == "text/html":
        raise UserError(f"{host(url)} answered with a web page instead of the file (a proxy's log-in page, or the "
                        "file has moved); open the address in a browser, save the file and import it.")
    if size is not None and total is not None and total != size:
        for path in (transfer.partial, _origin(transfer.partial)):
            path.unlink(missing_ok=True)
        raise UserError(f"The file at {host(url)} has {total:,} bytes where {size:,} are published; "
                        "it is another version, so nothing was downloaded.")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise UserError(
            f"The download needs {readable_size(needed)} but only {readable_size(free)} are free in {folder}; "
            "make room, or set SAMFINETUNE_MODELS to a folder on another disk."
        )


@contextlib.contextmanager
def _only_one(partial: Path):
    """Lock `partial` while this process lives, so that two downloads never write one file."""
    lock = ProcessLock(partial.with_name(partial.name + ".lock"))
    if not lock.take():
        raise UserError(f"Another process is downloading {partial.stem} already; let it finish first.")
    try:
        yield
    finally:
        lock.release(remove=True)

"""A client's view of a cohort on a server.

`mirror` makes a folder of the user's from which lists and strips are drawn: `cohort.json` as the server last sent it,
confidence and pictures of the cases that were opened, and `server.json`, which says where the cohort is, but not the
token. `ServedCohort` talks to the server and waits for its answers; in Slicer, the process behind the panel uses it
(`cohort_process`). NumPy alone is needed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib import __version__
from SAMFineTuneLib.cohort.cohort_folder import STATE_FILE, Cohort
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, data_folder, sha256_of, staged_folder, write_text
from SAMFineTuneLib.service import cohort_messages as messages
from SAMFineTuneLib.service import protocol
from SAMFineTuneLib.service.cohort_uploads import NOTHING_ADDED
from SAMFineTuneLib.service.link import HttpLink, LinkError
from SAMFineTuneLib.service.server_address import parse_address
from SAMFineTuneLib.service.wire import WireError, decode, encode
from SAMFineTuneLib.typed_json import loaded

_SERVER_FILE = "server.json"
_PART = 4 << 20  # bytes of an image in one request
_STEP = 0.05  # s of waiting for the network at a time, and between two tries
_ONCE = ("next", "reopen")  # pieces that would do something else the second time
_REFUSALS = ("user", "size", "message", "cohort", NOTHING_ADDED)  # another try would fail alike


class Unreached(UserError):
    """The server did not answer, or not properly: another try may succeed later."""


@dataclass(frozen=True)
class CohortPlace:
    """The server and name of a cohort."""

    address: str
    """The server's address, as the user enters it."""
    cohort: str = ""
    """The cohort's name there; empty for the server itself."""
    certificate: str = ""
    """File (PEM) of an authority to trust besides those that the computer knows."""


def mirror(place: CohortPlace) -> Path:
    """The mirror folder of a cohort on a server; created if needed. UserError for a name that is a path."""
    if not _is_name(place.cohort or "all"):
        raise UserError(f"“{place.cohort}” is not the name of a cohort on a server; give the name of its folder there.")
    digest = hashlib.sha256(f"{place.address} {place.cohort}".encode()).hexdigest()[:16]
    folder = data_folder() / "cohorts" / f"server-{digest}" / (place.cohort or "all")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(folder / _SERVER_FILE, json.dumps(asdict(place)))
    return folder


def _is_name(text: str) -> bool:
    return text not in ("", ".", "..") and not any(sign in text for sign in "/\\:")


def place_of(folder: str | Path) -> CohortPlace | None:
    """The place of a mirror's cohort; None for a folder that is not a mirror."""
    try:
        return CohortPlace(**loaded((Path(folder) / _SERVER_FILE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def how_far(event: Mapping[str, Any]) -> str:
    """An event of progress of a training, or of proposing, as a sentence without a full stop."""
    if event["what"] == "train":
        return event["text"]
    return f"Proposing case {min(event['done'] + 1, event['total'])} of {event['total']}"


class ServedCohort:
    """A cohort on a server. Every call waits for the answer.

    Args:
        folder: its mirror.
        token: the server's.
        patience: seconds for which to retry when a server that answered before does not answer.

    Raises:
        UserError: without a token, and for an address that cannot be used; Unreached while there is no connection.
    """

    def __init__(self, folder: Path, token: str, patience: float = 0.0) -> None:
        self.folder, self.place = Path(folder), place_of(folder)
        if not token:
            raise Unreached(f"Connect to the server {self.place.address} first, in the tab Settings.")
        self._link = HttpLink(parse_address(self.place.address), token, self.place.certificate or None)
        self._known, self._after = "", -1
        self.running: dict[str, str] = {}
        """The server's work for the cohort, `train` or `propose` → its progress, as `follow` last received it."""
        self._patience, self._answered, self._greeted = patience, False, False

    def names(self) -> tuple[str, ...]:
        """The cohorts that the server has."""
        try:
            found = self._ask("list", messages.ListCohorts(), messages.Cohorts).names
        except UserError as error:
            if getattr(error, "kind", "") == "path":  # a server without cohorts
                return ()
            raise
        return tuple(filter(_is_name, found))

    def follow(self, by: str = "") -> messages.CohortNews:
        """Update the mirror, and renew what `by` has taken. Returns what has changed."""
        message = messages.FollowCohort(self.place.cohort, self._known, self._after, by)
        news = self._ask("follow", message, messages.CohortNews)
        if news.state:
            keys = [case["key"] for case in loaded(news.state)["cases"]]
            if not all(key.isalnum() for key in keys):  # they become names of files
                raise UserError("The server's cohort has keys that cannot be used; update the server.")
            write_text(self.folder / STATE_FILE, news.state.decode())
            self._known = hashlib.sha256(news.state).hexdigest()
        self._after = news.after
        self.running = (self.running or {"": "The server trains or proposes"}) if news.busy else {}
        for event in news.events:
            if news.busy and event["event"] == "progress":
                self.running = {event["what"]: how_far(event)}
        return news

    @property
    def cohort(self) -> Cohort:
        """The cohort as the mirror has it; read only."""
        return Cohort(self.folder)

    def do(
        self, what: str, window: str, number: int, labels: np.ndarray | None = None,
        progress: Callable[[int, int, str], None] | None = None, **values: Any,
    ) -> Mapping[str, Any]:  # fmt: skip
        """Have the server do a piece of work.

        Args:
            what: the piece, see `cohort_messages.CohortPiece`.
            window: the word of a queue, and
            number: of a piece in it, which tell this piece from all others: asked for twice, it is done once.
            labels: [k, j, i] to send along.
            progress: called with the progress of long work; it may raise to stop waiting.
            values: of the piece.

        Returns:
            The event with which it ended.

        Raises:
            Unreached: when it is not known whether it was done; ask again, with the same window and number.
            UserError: when the server refuses it.
        """
        if labels is not None:
            plain = np.ascontiguousarray(labels, labels.dtype.newbyteorder("<"))
            values |= {"shape": plain.shape, "dtype": plain.dtype.str, "labels": zlib.compress(plain, 1)}
        piece = messages.CohortPiece(self.place.cohort, window, number, what, **values)
        while (event := (told := self._ask("piece", piece, messages.CohortTold)).event) is None:
            if progress is not None:
                now = told.progress or {}
                progress(now.get("done", 0), now.get("total", 0), now.get("text", ""))
        if event["event"] == "failed":
            raise UserError(event["text"])
        return event

    def upload(self, packed: Path, progress: Callable[[float], None]) -> str:
        """Send a packed image, from where an earlier try stopped.

        Args:
            packed: its file.
            progress: called with the fraction that has arrived; it may raise to stop.

        Returns:
            The digest by which the server knows it.

        Raises:
            Unreached: while there is no connection; the same call continues later.
            UserError: when it is too large, or the server's disk is full.
        """
        digest, size = sha256_of(packed), packed.stat().st_size
        with open(packed, "rb") as file:
            at, part = -1, b""
            while at < size:
                message = messages.CohortUpload(self.place.cohort, digest, size, max(at, 0), part)
                at = self._ask("upload", message, protocol.Received).received
                progress(at / size)
                file.seek(at)
                part = file.read(_PART)
        return digest

    def fetch(
        self, which: str, case: str, target: Path, window: str = "0" * 8, number: int = 0,
        each: Callable[[], None] = lambda: None,
    ) -> bool:  # fmt: skip
        """Download a file of a case.

        Args:
            which: see `cohort_messages.CohortFile`.
            case: its key, "" for a file of the whole cohort.
            target: where the file is written.
            window: which panel or program asked for the file to be made.
            number: of its piece of work.
            each: called after each part; it raises to stop the download.

        Returns:
            Whether the server has this file.
        """
        with atomic_write(target, durable=False) as temporary, open(temporary, "wb") as file:
            size, at = 1, 0
            while at < size:
                message = messages.CohortFile(self.place.cohort, window, number, which, case, at)
                part = self._ask("file", message, messages.CohortPart)
                if not part.data and at < part.size:
                    raise Unreached("The server no longer has the requested case; request it again.")
                size, at = part.size, at + len(part.data)
                file.write(part.data)
                each()
        if not size:
            target.unlink()
        return size > 0

    def fetch_case(
        self, event: Mapping[str, Any], window: str, number: int, folder: Path, each: Callable[[], None] = lambda: None
    ) -> dict[str, str]:
        """Download the voxels and labels that the piece `open` laid out, and the case's confidence.

        Args:
            event: the one with which the piece ended.
            window, number: of the piece.
            folder: where the files go.
            each: called after each part.

        Returns:
            The paths of `voxels` and `labels`, empty for one that is not there.
        """
        key, found = event["case"], {"voxels": "", "labels": ""}
        for which in (which for which in found if event[which]):
            path = folder / f"{key}-{number}-{which}.npy"
            if self.fetch(which, key, path, window, number, each):
                found[which] = str(path)
        self.fetch("confidence", key, self.cohort.proposal(key) / "confidence.json")
        return found

    def fetch_results(self, window: str, number: int, folder: Path) -> None:
        """Download the results of an `export` or a `report`.

        Args:
            window: which program asked for the piece.
            number: of the piece.
            folder: new; it appears complete or not at all.
        """
        with tempfile.TemporaryDirectory() as place:
            packed = Path(place) / "results.zip"
            if not self.fetch("results", "", packed, window, number):
                raise Unreached("The server no longer has the requested files; request them again.")
            with staged_folder(folder) as building, zipfile.ZipFile(packed) as archive:
                archive.extractall(building)

    def close(self) -> None:
        """End the connection."""
        self._link.close()

    def _ask(self, action: str, message: Any, kind: type) -> Any:
        """Send a message, and wait for its answer; retry while patience lasts, if that does nothing twice."""
        again = self._answered and getattr(message, "what", "") not in _ONCE
        until = time.monotonic() + (self._patience if again else 0.0)
        while True:
            try:
                answer = self._ask_once(action, message, kind)
                self._answered = True
                return answer
            except Unreached:
                if time.monotonic() >= until:
                    raise
                time.sleep(_STEP)

    def _ask_once(self, action: str, message: Any, kind: type) -> Any:
        if not self._greeted:
            self._exchange("hello", protocol.Hello(protocol.PROTOCOL, __version__), protocol.Hello)
            self._greeted = True
        return self._exchange(f"cohorts/{action}", message, kind)

    def _exchange(self, path: str, message: Any, kind: type) -> Any:
        try:
            self._link.send(f"/v1/{path}", encode(message))
            while (response := self._link.step(_STEP)) is None:
                pass
            if response.status == 200:
                return decode(response.read(), kind)
            refusal = decode(response.read(), protocol.Refusal)
        except LinkError as error:
            self._link.close()
            self._greeted = False  # the next one may be of another version
            raise Unreached(str(error)) from error
        except WireError as error:
            raise Unreached(f"The server's answer is not valid ({error}); update it.") from error
        other = refusal.kind == "protocol"
        text = protocol.other_protocol(__version__, refusal.version) if other else refusal.error
        error = (UserError if refusal.kind in _REFUSALS else Unreached)(text)
        error.kind = refusal.kind
        raise error

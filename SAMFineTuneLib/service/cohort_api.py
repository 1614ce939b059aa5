"""Cohorts of a server, for the windows and commands of several people.

    POST /v1/cohorts/list      the cohorts of the server
    POST /v1/cohorts/follow    the state of one, and its background work
    POST /v1/cohorts/piece     a piece of work, with labels where it has some; the answer comes when it is done
    POST /v1/cohorts/file      a part of a case's voxels, labels, picture or confidence
    POST /v1/cohorts/upload    a part of an image that is to be added

The pieces are those that a window on the cohort's own computer puts into its queue, and the same program does them
(`cohort_process`): what reads or writes images in a process for each window, so that no thread of the server is busy
while others wait for their masks; training and proposing in one that all share; the rest at once, in the thread of the
request. A queue lies on the disk, so a piece that has arrived is done even after a crash, and a client that asks again
gets its event. Clients name a cohort and a case; they choose only the name of their queue, of letters and digits.
"""

from __future__ import annotations

import math
import re
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import LEASE_ON_SERVER, CohortState, Lease, as_json
from SAMFineTuneLib.cohort.confidence import CONFIDENCE
from SAMFineTuneLib.cohort.patients import patient_digest
from SAMFineTuneLib.cohort.review import stay_taken
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import cohort_messages as messages
from SAMFineTuneLib.service import protocol
from SAMFineTuneLib.service.cohort_pieces import AT_ONCE, RESULTS
from SAMFineTuneLib.service.cohort_uploads import NOTHING_ADDED, add_part, upload_path
from SAMFineTuneLib.service.cohort_work import CohortWork, picture_path, take_up
from SAMFineTuneLib.service.protocol import Limits, Refused
from SAMFineTuneLib.service.wire import WireError, decode

_WITH_IMAGES = ("open", "grid", "picture", "check", "keep", "accept", "receive", *RESULTS)
_LONG = ("train", "propose", "stop")
_FOLDERS = re.compile(r"“(?:/|[A-Za-z]:[/\\])[^”]*[/\\](?=[^/\\”])")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[\w-]{1,64}")
_WINDOW = re.compile(r"[0-9a-f]{8,64}(-[a-z]{1,16})?")
_LONGEST_WAIT = 10.0  # s for which an answer is kept back while a piece is done
_TELL_AFTER = 1.0  # s after which an answer reports the progress of a long piece
_LOOK_EVERY = 0.03  # s between two checks whether it is done
_PROCESS_RESTS = 60.0  # s without a piece after which a window's process ends; the next piece starts another one
_PART = 8 << 20  # bytes of a file in one answer
_LAID_OUT = ("voxels", "labels", "results")
_KINDS = {kind: np.dtype(kind) for kind in ("|b1", "|u1", "|i1", "<u2", "<i2", "<i4")}
_UNTIL_TOLD = 1e11  # s since 1970, in the far future: the next news say when a case is free
_MOST_ENDED = 100  # events kept for a window whose answers were lost


class CohortApi:
    """The cohorts of one server.

    Args:
        folders: of the cohorts. Clients know each by its folder's name.
        limits: of the server.
        may_add: whether clients may add images.

    Raises:
        UserError: where there is no cohort, and for two of one name.
    """

    def __init__(self, folders: Sequence[str | Path], limits: Limits | None = None, may_add: bool = True) -> None:
        self._limits, self._may_add = limits or Limits(), may_add
        self._cohorts: dict[str, Cohort] = {}
        self._told: dict[str, tuple[CohortState, list[str], bytes]] = {}  # the state, which cases are taken, as JSON
        self._windows: dict[tuple[str, str], _Window] = {}
        self._lock = threading.Lock()
        for folder in folders:
            path = Path(folder).expanduser().resolve()
            if self._cohorts.setdefault(path.name, Cohort(path)).folder != path:
                raise UserError(f"Two cohorts are called {path.name}; rename the folder of one of them.")
        for cohort in self._cohorts.values():
            take_up(cohort.folder)
            with suppress(UserError):  # no window could say that it is there while no server ran
                for by in {case.lease.by for case in cohort.state.cases if case.lease}:
                    stay_taken(cohort, by, LEASE_ON_SERVER)
        self._background = {name: CohortWork(cohort.folder) for name, cohort in self._cohorts.items()}
        self.expire()

    def answer(self, action: str, body: protocol.Buffer) -> tuple[Any, bool]:
        """The answer's message, and whether it was a mere poll without news."""
        if action not in _ACTIONS:
            raise Refused(404, "path", "There is nothing at this address; update the server, or this program.")
        kind, act = _ACTIONS[action]
        message = decode(body, kind)
        try:
            answer = act(self, message)
        except UserError as error:
            raise UserError(_without_folders(str(error))) from error
        return answer, isinstance(answer, messages.CohortNews) and not answer.state and not answer.events

    def expire(self) -> None:
        """Restart processes that were stopped from outside, and end queues that have long been unused."""
        for work in self._background.values():
            if not work.is_empty and not work.is_running:
                work.start(outlives=True)
        with self._lock:
            for key, window in list(self._windows.items()):
                idle = time.monotonic() - window.touched
                if idle > _PROCESS_RESTS:
                    window.work.close()
                if idle > self._limits.idle_seconds and window.end():
                    del self._windows[key]

    def close(self) -> None:
        """Let the processes end once all labels are kept. Training and proposing go on."""
        with self._lock:
            for window in self._windows.values():
                window.work.close()

    # ---- inside

    def _list(self, _: messages.ListCohorts) -> messages.Cohorts:
        return messages.Cohorts(tuple(self._cohorts))

    def _follow(self, message: messages.FollowCohort) -> messages.CohortNews:
        cohort, work = self._cohort(message.cohort), self._background[message.cohort]
        if message.by:
            with suppress(UserError):  # the client gets the cohort's state on a full disk, too
                stay_taken(cohort, message.by, LEASE_ON_SERVER)
        state = self._as_told(message.cohort)
        if sha256(state).hexdigest() == message.known:
            state = b""
        busy = not work.is_empty
        events, after = work.events_after(max(0, message.after))
        if message.after < 0:  # a new window needs the running work, not the finished
            while (more := work.events_after(after))[0]:
                events, after = more
            events = events[-1:] if busy else []
        told = [{**event, "text": _without_folders(event.get("text", ""))} for event in events]
        return messages.CohortNews(state, busy, tuple(told), after)

    def _piece(self, piece: messages.CohortPiece) -> messages.CohortTold:
        cohort = self._cohort(piece.cohort)
        if (piece.by or piece.take or piece.what in ("open", "take")) and not _WORD.fullmatch(piece.by):
            raise UserError("Cases are taken under a word of letters and digits; give another one.")
        if piece.what in _WITH_IMAGES:
            more = self._of_image(piece, cohort) if piece.what == "receive" else {}
            return self._window(piece).done(piece, self._limits, more)
        try:
            if piece.what in _LONG:
                told = self._begin(piece)
            elif piece.what in AT_ONCE:
                told = AT_ONCE[piece.what](cohort, _values(piece))
            else:
                raise Refused(404, "path", f"This server does not know “{piece.what[:20]}”; update it.")
        except UserError as error:
            return messages.CohortTold({"event": "failed", "what": piece.what, "text": _without_folders(str(error))})
        return messages.CohortTold({"event": "done", "what": piece.what, "case": piece.case, **(told or {})})

    def _of_image(self, piece: messages.CohortPiece, cohort: Cohort) -> dict[str, Any]:
        """The facts about an image that arrived, without its patient's name."""
        self._require_may_add()
        if not _DIGEST.fullmatch(piece.case):
            raise WireError("its case is not a digest")
        patient = piece.patient and patient_digest(piece.patient, cohort.state.salt)
        return {"packed": str(upload_path(cohort.folder, piece.image)), "patient": patient,
                "largest": self._limits.volume_bytes}  # fmt: skip

    def _upload(self, message: messages.CohortUpload) -> protocol.Received:
        self._require_may_add()
        return protocol.Received(add_part(self._cohort(message.cohort).folder, message, self._limits))

    def _require_may_add(self) -> None:
        if not self._may_add:
            text = "Only its administrator may add scans on this server; ask them to add yours."
            raise Refused(403, NOTHING_ADDED, text)

    def _begin(self, piece: messages.CohortPiece) -> None:
        """Begin or stop long work. The server chooses the device."""
        work = self._background[piece.cohort]
        with self._lock:
            if piece.what == "stop":
                return work.stop()
            if not work.is_empty:
                raise UserError("The server is training or proposing for this cohort already; wait, or stop that.")
            values = {"preset": "quick", "then_propose": "auto"} if piece.what == "train" else {"again": True}
            work.put(piece.what, **values, device="auto")
        return work.start(outlives=True)

    def _file(self, message: messages.CohortFile) -> messages.CohortPart:
        if message.which in _LAID_OUT:
            path = self._window(message).laid_out(message.number, message.which)
        else:
            cohort = self._cohort(message.cohort)
            key = cohort.state.case(message.case).key
            path = {"picture": picture_path(cohort.folder, key),
                    "confidence": cohort.proposal(key) / CONFIDENCE}.get(message.which)  # fmt: skip
        if path is None or not path.is_file():
            return messages.CohortPart(0)
        with open(path, "rb") as file:
            file.seek(max(0, message.offset))
            return messages.CohortPart(path.stat().st_size, file.read(_PART))

    def _cohort(self, name: str) -> Cohort:
        if name not in self._cohorts:
            raise Refused(404, "cohort", f"The server has no cohort {name[:100]}; ask its administrator.")
        return self._cohorts[name]

    def _as_told(self, name: str) -> bytes:
        """A cohort's state as JSON, without the places of images, the salt of patients' digests, and the times and
        processes of leases, which mean something on this computer only.
        """
        state = self._cohorts[name].state
        taken = [case.key for case in state.cases if case.taken()]
        known = self._told.get(name)
        if known is None or known[:2] != (state, taken):
            cases = (
                replace(case, problem=_without_folders(case.problem),
                        lease=Lease(case.lease.by, _UNTIL_TOLD) if case.key in taken else None)
                for case in state.cases
            )  # fmt: skip
            told = as_json(replace(state, cases=tuple(cases), images=("", ""), salt="")).encode()
            self._told[name] = known = state, taken, told
        return known[2]

    def _window(self, message: messages.CohortPiece | messages.CohortFile) -> _Window:
        folder = self._cohort(message.cohort).folder
        if not _WINDOW.fullmatch(message.window) or message.number < 0:
            raise WireError("its window or number is not one")
        with self._lock:
            key = message.cohort, message.window
            window = self._windows.setdefault(key, _Window(folder, message.window))
            window.touched = time.monotonic()
        return window


class _Window:
    """The queue of a client's window on one cohort, and the process that does its pieces."""

    def __init__(self, folder: Path, name: str) -> None:
        self.work = CohortWork(folder, name)
        self.touched = time.monotonic()
        self._lock = threading.Lock()
        self._ended: dict[int, dict[str, Any]] = {}
        self._progress: dict[str, Any] = {}  # the last event of that kind

    def done(self, piece: messages.CohortPiece, limits: Limits, more: dict[str, Any]) -> messages.CohortTold:
        """Queue a piece with `more` values unless it is known, and wait a while for its end."""
        until = time.monotonic() + (_TELL_AFTER if piece.what in RESULTS else _LONGEST_WAIT)
        while time.monotonic() < until:
            with self._lock:
                self.touched = time.monotonic()
                there = self.work.holds(piece.number)  # before looking for its event, which is written first
                event = self._event(piece.number)
                if event is None and not there:
                    self._put(piece, limits, more)
                if event is not None:
                    if event["event"] == "failed":
                        for path in self.work.folder.glob(f"{piece.number:06d}.*"):
                            path.unlink(missing_ok=True)  # the client keeps its labels
                    hidden = {name: name for name in _LAID_OUT if event.get(name)}
                    hidden |= {"text": _without_folders(event["text"])} if "text" in event else {}
                    return messages.CohortTold({**event, **hidden})
                self.work.start()
            time.sleep(_LOOK_EVERY)
        progress = self._progress if self._progress.get("number") == piece.number else None
        return messages.CohortTold(None, progress)

    def laid_out(self, number: int, which: str) -> Path | None:
        """A file that a piece has written for the client."""
        with self._lock:
            path = (self._event(number) or {}).get(which)
        return Path(path) if path else None

    def end(self) -> bool:
        """Delete the queue. Returns whether its process has ended and nothing is left to do."""
        if self.work.is_running or not self.work.is_empty:
            return False
        self.work.forget()
        return True

    def _event(self, number: int) -> dict[str, Any] | None:
        for event in self.work.poll():
            if event.get("event") in ("done", "failed"):
                self._ended[event["number"]] = event
            elif event.get("event") == "progress":
                self._progress = event
        while len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        return self._ended.get(number)

    def _put(self, piece: messages.CohortPiece, limits: Limits, more: dict[str, Any]) -> None:
        laid_out = (*self.work.folder.glob("*-*.npy"), *self.work.folder.glob("*-results.zip"))
        for path in laid_out:  # the client no longer needs the files that were laid out for it
            with suppress(OSError):
                path.unlink()
        _, path = self.work.reserve(piece.number)
        if piece.shape is not None:
            _unpack(piece, path, limits.volume_bytes)
        self.work.put(piece.what, piece.number, **_values(piece), **more, as_kept=piece.shape is None)


def _without_folders(text: str) -> str:
    """A sentence without the folders of this server's files, which clients must not see."""
    return _FOLDERS.sub("“", text)


def _values(piece: messages.CohortPiece) -> dict[str, Any]:
    """A piece as `cohort_process` expects it."""
    names = ("by", "case", "cases", "way", "without", "take", "leaves", "form", "seconds", "prompts")
    return {name: getattr(piece, name) for name in names}


def _unpack(piece: messages.CohortPiece, path: Path, largest: int) -> None:
    """Write the labels of a piece into the queue, at most as many bytes as their shape says."""
    shape, kind = piece.shape, _KINDS.get(piece.dtype)
    if kind is None or min(shape) < 1 or math.prod(shape) * kind.itemsize > largest:
        raise UserError(f"Labels of {shape} are not what this server takes; it takes {largest / 1e9:.1f} GB at most.")
    size, unpacked = math.prod(shape) * kind.itemsize, zlib.decompressobj()
    hidden = path.with_name(f".{path.name}.partial")
    try:
        with open(hidden, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": kind.str, "fortran_order": False, "shape": tuple(shape)}
            )
            data, left, part = piece.labels, size, b"\0"
            while left >= 0 and not unpacked.eof and (data or part):
                part = unpacked.decompress(data, _PART)
                data, left = unpacked.unconsumed_tail, left - len(part)
                file.write(part)
        if left != 0 or not unpacked.eof:
            raise UserError("The labels are not as long as their shape says; send them again.")
        hidden.replace(path)
    except zlib.error as error:
        raise UserError("The labels arrived damaged; send them again.") from error
    finally:
        hidden.unlink(missing_ok=True)


_ACTIONS = {
    "list": (messages.ListCohorts, CohortApi._list),
    "follow": (messages.FollowCohort, CohortApi._follow),
    "piece": (messages.CohortPiece, CohortApi._piece),
    "file": (messages.CohortFile, CohortApi._file),
    "upload": (messages.CohortUpload, CohortApi._upload),
}

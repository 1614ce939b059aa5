"""The conversation with a server: greeting, a session, uploads, intents out and events in, and what goes wrong.

One request is under way at a time, and each call does little, so that the host's window never waits. `SessionClient`
says what is asked for and what the answers mean.
"""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.service.connection import Broken, Connection, Unusable
from SAMFineTuneLib.service.journal import Journal
from SAMFineTuneLib.service.protocol import (
    PROTOCOL,
    Close,
    Hello,
    Opened,
    OpenSession,
    Part,
    Received,
    Refusal,
    Sent,
    Sync,
    Synced,
    Told,
    version_advice,
)
from SAMFineTuneLib.service.uploads import SendingFile, SendingVolume
from SAMFineTuneLib.service.wire import Later, WireError, decode, encode
from SAMFineTuneLib.session.events import Event, Failed, Notice, Status, StatusChanged
from SAMFineTuneLib.session.intents import Install, Intent

_log = logging.getLogger(__name__)

_MOST_DEFECTS = 3  # in a row
_LOCAL_WAIT = 0.004  # a local worker answers within this; waiting saves a round of the host's timer

Handler = tuple[type, Callable[[Any], None]]
"""The kind of message that an answer holds, and what takes it."""


@dataclass
class Upload:
    """Something on its way to the server, and how far it is: announced, all parts there."""

    number: int
    what: SendingVolume | SendingFile
    install: Install | None = None
    """What is asked for once a model's file is there; None for the volume."""
    announced: bool = False
    received: int = 0


class Conversation(ABC):
    """What stands between a session's client and its server; the client adds what its intents and events mean."""

    def __init__(self, connection: Connection, segments_are_steps: bool, clock: Callable[[], float]) -> None:
        self._connection = connection
        self.segments_are_steps = segments_are_steps
        self._clock = clock
        self._status = Status()
        self._state = "stopped"
        self._sentence = ""
        self._wanted = False  # whether anybody has asked for anything yet
        self._closed = False

        self._volume: Volume | None = None
        self._window: IntensityWindow | None = None
        self._journal = Journal()
        self._uploads: list[Upload] = []
        self._upload_number = 0
        self._volume_number = 0  # of the upload of the volume that counts

        self._greeted = False
        self._session: str | None = None
        self._lost: str | None = None  # why the session must be made anew, for the notice
        self._version = self._device = self._opening = ""
        self._model_open: str | None = None  # empty when none could be opened
        self._after = 0
        self._next_look = 0.0
        self._handler: Handler | None = None
        self._defects = 0
        self._inbox: deque[Later[Told]] = deque()
        self._out: list[Event] = []

    # ---- what the host calls

    @property
    def status(self) -> Status:
        """How the worker is."""
        return self._status

    def start(self) -> None:
        """Reach the worker now, rather than when something is asked of it: "Test connection"."""
        self._wanted = True

    def retry(self) -> None:
        """After a failure: try again, because somebody changed something. Another volume or model does so too."""
        self._try_again()
        self._wanted = True

    def pump(self, budget_seconds: float = 0.03) -> list[Event]:
        """Move everything on for about this long, usually much shorter; returns what became true, in order."""
        end = self._clock() + budget_seconds
        while not self._closed and self._clock() < end and self._move():
            pass
        self._update_status()
        told, self._out = self._out, []
        return told

    def close(self) -> None:
        """End the session; a local worker ends with it. Nothing can be asked afterwards."""
        if self._closed:
            return
        self._closed = True
        self._say_goodbye()
        self._connection.close()
        self._state, self._sentence = "stopped", ""
        self._volume = None
        for upload in self._uploads:
            upload.what.close()
        self._uploads = []
        self._journal.clear()
        self._inbox.clear()
        self._update_status()

    def _try_again(self) -> None:
        if self._state == "failed":
            self._state = "stopped"
            self._connection.retry()

    # ---- what the client adds

    @abstractmethod
    def _session_begins(self) -> tuple[list[Intent], list[Intent]]:
        """Intents that a new session hears before and after the journal."""

    @abstractmethod
    def _session_is_lost(self) -> None:
        """Everything is told anew; what was told before may not come again."""

    @abstractmethod
    def _take(self, told: Told) -> None:
        """An event in its turn."""

    @abstractmethod
    def _pause(self) -> float:
        """Seconds until the next look for events."""

    # ---- inside: the conversation

    def _move(self) -> bool:
        """One small thing; returns whether there may be more to do at once."""
        if self._inbox:
            self._take_next()
            return True
        if self._state == "failed" or not self._wanted:
            return False
        try:
            if self._handler is not None:
                return self._receive()
            if not self._connection.ready():
                self._greeted = False
                return False
            return self._send_next()
        except Unusable as error:
            self._give_up(str(error))
        except Broken as error:
            self._break_off(str(error))
        return False

    def _send_next(self) -> bool:
        """Begin the most urgent request, if there is any."""
        if not self._greeted:
            self._request("/v1/hello", Hello(PROTOCOL, __version__), Hello, self._hear_hello)
        elif self._session is None:
            self._request("/v1/sessions", OpenSession(self.segments_are_steps), Opened, self._hear_session)
        elif self._uploads:
            self._send_upload(self._uploads[0])
        elif not self._journal.all_heard or self._clock() >= self._next_look:
            self._send_sync()
        else:
            return False
        return True

    def _request(self, path: str, message: Any, answer: type, handler: Callable[[Any], None]) -> None:
        self._handler = answer, handler
        self._connection.send(path, encode(message))

    def _in_session(self, what: str, message: Any, answer: type, handler: Callable[[Any], None]) -> None:
        self._request(f"/v1/sessions/{self._session}/{what}", message, answer, handler)

    def _receive(self) -> bool:
        response = self._connection.receive(_LOCAL_WAIT if self._connection.is_local else 0.0)
        if response is None:
            return False
        (answer, handler), self._handler = self._handler, None
        try:
            if response.status == 200:
                handler(decode(response.read(), answer))
            else:
                self._hear_refusal(decode(response.read(), Refusal))
        except WireError as error:
            self._count_defect(f"The worker's answer is not what it should be ({error}); update it, or this program.")
        return True

    def _take_next(self) -> None:
        """One event; a newer server's, which is not known here, is left out: nothing waits for it."""
        try:
            told = self._inbox.popleft().read()
        except (WireError, UserError) as error:
            _log.warning("An event was not understood: %s", error)
            return
        self._take(told)

    # ---- inside: greeting

    def _hear_hello(self, hello: Hello) -> None:
        theirs = hello.version
        if hello.protocol != PROTOCOL:
            raise self._other_protocol(theirs)
        if theirs != __version__ and self._version != theirs:
            self._out.append(Notice(
                f"The worker is SAMFineTune {theirs} and this computer's is {__version__}; they work together, but "
                f"{version_advice(__version__, theirs)} when you can."
            ))  # fmt: skip
        if not getattr(self._connection, "encrypted", True) and not self._version:
            self._out.append(Notice("The connection to the server is not encrypted: whoever is on the network between "
                                    "can read along; use an https:// address."))  # fmt: skip
        self._version = theirs
        self._greeted = True

    def _other_protocol(self, theirs: str) -> Unusable:
        return Unusable(
            f"The server runs SAMFineTune {theirs} and this computer {__version__}, which do not understand each "
            f"other; {version_advice(__version__, theirs)}."
        )

    def _hear_session(self, opened: Opened) -> None:
        self._session = opened.session
        self._after = 0
        if self._lost is not None:
            self._out.append(Notice(self._lost))
            self._lost = None
        self._journal.start_over(*self._session_begins())

    # ---- inside: uploads

    def _new_upload(self) -> int:
        self._upload_number += 1
        return self._upload_number

    def _send_volume(self) -> None:
        """The volume goes first, and anew; one that was on its way is forgotten."""
        self._uploads = [one for one in self._uploads if one.install is not None]
        if self._volume is not None:
            self._volume_number = self._new_upload()
            self._uploads.insert(0, Upload(self._volume_number, SendingVolume(self._volume)))

    def _send_upload(self, upload: Upload) -> None:
        what, number = upload.what, upload.number
        if not upload.announced:
            self._in_session("upload", what.announcement(number), Received,
                             functools.partial(self._hear_announced, upload))  # fmt: skip
        elif upload.received < what.size:
            part = np.frombuffer(what.part(upload.received), np.uint8)
            self._in_session("part", Part(number, upload.received, part), Received,
                             functools.partial(self._hear_part, upload, len(part)))  # fmt: skip
        elif upload.install is None:
            self._in_session("uploaded", what.conclusion(number, self._window), Received,
                             functools.partial(self._hear_uploaded, upload))  # fmt: skip
        else:
            self._uploads.remove(upload)
            what.close()
            self._journal.add(upload.install)

    def _hear_announced(self, upload: Upload, _: Received) -> None:
        upload.announced = True

    def _hear_part(self, upload: Upload, size: int, answer: Received) -> None:
        upload.received += size
        if answer.received < upload.received:
            raise WireError("parts are missing")

    def _hear_uploaded(self, upload: Upload, _: Received) -> None:
        if upload in self._uploads:
            self._uploads.remove(upload)
            self._next_look = 0.0

    # ---- inside: intents out, events in

    def _send_sync(self) -> None:
        entries = self._journal.unheard()
        sent = tuple(Sent(entry.number, entry.moment, entry.intent) for entry in entries)
        self._in_session("sync", Sync(sent, self._after), Synced, functools.partial(self._hear_sync, sent))

    def _hear_sync(self, sent: tuple[Sent, ...], answer: Synced) -> None:
        self._journal.hear(min(answer.accepted, sent[-1].number if sent else 0))
        self._defects = 0
        for later in answer.told:
            number = later.plain.get("number") if isinstance(later.plain, dict) else None
            if type(number) is not int:
                raise WireError("an event has no number")
            self._after = max(self._after, number)
        self._inbox.extend(answer.told)
        if not answer.more:
            self._next_look = self._clock() + self._pause()

    # ---- inside: what goes wrong

    def _hear_refusal(self, refusal: Refusal) -> None:
        if refusal.kind == "session":
            self._lose_session()
        elif refusal.kind == "upload":
            for upload in self._uploads:
                upload.announced, upload.received = False, 0
        elif refusal.kind == "protocol":
            raise self._other_protocol(refusal.version)
        elif refusal.kind in ("defect", "message"):
            self._count_defect(refusal.error)
        else:  # token, full, memory, size, ...: another try meets the same
            raise Unusable(refusal.error)

    def _count_defect(self, sentence: str) -> None:
        self._defects += 1
        if self._defects >= _MOST_DEFECTS:
            self._defects = 0
            raise Unusable(sentence)
        raise Broken(sentence)

    def _lose_session(self) -> None:
        """The server knows nothing of us: make everything anew."""
        if self._connection.is_local:
            self._lost = "The worker had stopped and was started again; it gets the volume and your prompts anew."
        else:
            self._lost = "The server had lost the session; it gets the volume and your prompts anew."
        self._session = None
        self._inbox.clear()
        self._session_is_lost()
        self._opening = self._device = ""
        self._model_open = None
        for upload in self._uploads:
            upload.announced, upload.received = False, 0
        self._send_volume()

    def _break_off(self, sentence: str) -> None:
        _log.info("%s", sentence)
        self._sentence = sentence
        self._handler = None
        self._greeted = False
        self._connection.drop()

    def _give_up(self, sentence: str) -> None:
        self._break_off(sentence)
        self._state = "failed"
        self._out.append(Failed(sentence))

    def _say_goodbye(self) -> None:
        """Tell the server, if that goes at once; otherwise the session expires there."""
        if self._session is None or self._handler is not None or self._connection.is_local:
            return
        try:
            self._in_session("close", Close(), Received, lambda _: None)
            self._connection.receive(_LOCAL_WAIT)
        except (Broken, Unusable):
            pass

    # ---- inside: status

    def _update_status(self) -> None:
        status = self._describe()
        if status != self._status:
            self._status = status
            self._out.append(StatusChanged(status))

    def _describe(self) -> Status:
        place, _, precision = self._device.rstrip(")").rpartition(", ")
        about = dict(model=self._model_open or "", device=self._device, precision=precision if place else "",
                     version=self._version)  # fmt: skip
        if self._state == "failed":
            return Status("failed", self._sentence, **about)
        if self._closed or not self._wanted:
            return Status(**about)
        if not self._greeted or self._session is None:
            state = "starting" if self._connection.is_local else "connecting"
            return Status(state, self._connection.waiting, **about)
        if self._uploads and self._uploads[0].install is None:
            upload = self._uploads[0]
            fraction = round(upload.received / upload.what.size, 2)
            return Status("uploading", "The volume is handed to the worker.", fraction, **about)
        if self._opening:
            return Status("ready", f"The model {self._opening} is opened.", **about)
        if self._model_open:
            return Status("ready", f"{self._model_open} on {self._device}", **about)
        return Status("ready", "Ready." if self._model_open is None else "No model is open; choose one.", **about)

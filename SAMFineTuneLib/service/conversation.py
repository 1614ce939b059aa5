"""The requests with which a client greets a server, opens a session, sends volume and intents, and fetches events."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib import __version__
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.service import protocol
from SAMFineTuneLib.service.connection import Broken, Connection, Unusable
from SAMFineTuneLib.service.journal import Journal
from SAMFineTuneLib.service.protocol import PROTOCOL, Received, Told, other_protocol, version_advice
from SAMFineTuneLib.service.send_uploads import SendingFile, SendingVolume
from SAMFineTuneLib.service.wire import Later, WireError, decode, encode
from SAMFineTuneLib.session import events, intents

_log = logging.getLogger(__name__)

_KEPT_BACK = 0.25  # seconds for which the server may keep back an answer without news; a new intent waits for it
_LOCAL_WAIT = 0.004  # seconds that one call waits for an answer of a local worker; saves a round of the host's timer
_MOST_DEFECTS = 3  # in a row


@dataclass
class SentUpload:
    """A volume or file that is being sent to the server, and how much of it has arrived."""

    number: int
    what: SendingVolume | SendingFile
    install: intents.Install | None = None
    """The intent to send once a model's file has arrived; None for the volume."""
    announced: bool = False
    received: int = 0


class Conversation:
    """Talks with one server. It never blocks, and one request is under way at a time.

    A session that the server has lost is opened again; it gets the volume and whatever `opened` adds to the journal.

    Args:
        connection: the way to the server.
        journal: the intents to send.
        segments_are_steps: as in `Session`.
        tell: called with each event that the conversation itself produces.
        opened: called when a session was opened, before the first intent is sent.
        lost: called when the server has lost the session.
    """

    def __init__(
        self,
        connection: Connection,
        journal: Journal,
        segments_are_steps: bool,
        tell: Callable[[events.Event], None],
        opened: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._connection, self._journal, self._segments_are_steps = connection, journal, segments_are_steps
        self._tell, self._opened, self._lost = tell, opened, lost
        self.wanted = False
        """Whether anything was requested yet; nothing is sent before."""
        self.failure = ""
        """Why nothing more is tried until the user changes something, as a sentence."""
        self.greeted = False
        self.version = ""
        self.session: str | None = None
        """The session's name on the server, None while there is none."""
        self.volume: Volume | None = None
        self.window: IntensityWindow | None = None
        self.volume_number = 0
        """Number of the upload of the current volume."""
        self.uploads: list[SentUpload] = []
        self.looked_at: SlicePlane | None = None
        """The plane that the user looks at, until it was sent to the server."""
        self.inbox: deque[Later[Told]] = deque()
        """Events that have arrived but were not handled yet."""
        self._upload_number = 0
        self._loss = ""  # why the session must be created again, for the notice
        self._handler: tuple[type, Callable[[Any], None]] | None = None  # of the answer: its kind, and its handler
        self._after = 0  # number of the last event that has arrived
        self._pause, self._settled = 0.0, True  # see `move`
        self._next_look = 0.0
        self._defects = 0

    def retry(self) -> None:
        """Try again after a failure."""
        self.wanted = True
        if self.failure:
            self.failure = ""
            self._connection.retry()

    def hurry(self) -> None:
        """Have the next request sent without a pause."""
        self._next_look = 0.0

    def move(self, pause: float, settled: bool) -> bool:
        """Take one step; returns whether there may be more to do at once.

        Args:
            pause: seconds until the next look for events.
            settled: whether no answer is expected; while one is, the server may keep its answer back until it has news.
        """
        if self.failure or not self.wanted:
            return False
        self._pause, self._settled = pause, settled
        try:
            if self._handler is not None:
                return self._receive()
            if self._connection.ready():
                return self._send_next()
            self.greeted = False
        except Unusable as error:
            self._break_off(str(error))
            self.failure = str(error)
            self._tell(events.Failed(str(error)))
        except Broken as error:
            self._break_off(str(error))
        return False

    def send_volume(self) -> None:
        """Begin to send the volume, before everything else; stop sending an earlier one."""
        self.uploads = [one for one in self.uploads if one.install is not None]
        if self.volume is not None:
            self.volume_number = self.new_upload_number()
            self.uploads.insert(0, SentUpload(self.volume_number, SendingVolume(self.volume)))

    def send_file(self, file: SendingFile, install: intents.Install) -> None:
        """Send a model's file under the number that the intent names, and then the intent."""
        self.uploads.append(SentUpload(install.upload, file, install))
        self.wanted = True

    def new_upload_number(self) -> int:
        """A number that no other upload of this conversation has."""
        self._upload_number += 1
        return self._upload_number

    def lose_session(self) -> None:
        """The server has lost the session: begin a new one."""
        if self._connection.is_local:
            self._loss = "The worker had stopped and was started again; it gets the volume and your prompts again."
        else:
            self._loss = "The server had lost the session; it gets the volume and your prompts again."
        self.session = None
        self.inbox.clear()
        self._lost()
        self._restart_uploads()
        self.send_volume()

    def close(self) -> None:
        """End the session and the connection."""
        self._say_goodbye()
        self._connection.close()
        self.volume = None
        for upload in self.uploads:
            upload.what.close()
        self.uploads = []
        self.inbox.clear()

    # ---- inside: requests and answers

    def _send_next(self) -> bool:
        """Send the most urgent request, if there is any."""
        if not self.greeted:
            self._request("/v1/hello", protocol.Hello(PROTOCOL, __version__), protocol.Hello, self._hear_hello)
        elif self.session is None:
            opening = protocol.OpenSession(self._segments_are_steps)
            self._request("/v1/sessions", opening, protocol.Opened, self._hear_session)
        elif self.uploads:
            self._send_upload(self.uploads[0])
        elif not self._journal.all_confirmed or time.monotonic() >= self._next_look:
            self._send_sync()
        else:
            return False
        return True

    def _request(self, path: str, message: Any, answer: type, handler: Callable[[Any], None]) -> None:
        self._handler = answer, handler
        self._connection.send(path, encode(message))

    def _in_session(self, what: str, message: Any, answer: type, handler: Callable[[Any], None]) -> None:
        self._request(f"/v1/sessions/{self.session}/{what}", message, answer, handler)

    def _receive(self) -> bool:
        response = self._connection.receive(_LOCAL_WAIT if self._connection.is_local else 0.0)
        if response is None:
            return False
        (answer, handler), self._handler = self._handler, None
        try:
            if response.status == 200:
                handler(decode(response.read(), answer))
            else:
                self._hear_refusal(decode(response.read(), protocol.Refusal))
        except WireError as error:
            self._count_defect(f"The worker's answer is not valid ({error}); update it, or this program.")
        return True

    # ---- inside: greeting and session

    def _hear_hello(self, hello: protocol.Hello) -> None:
        theirs = hello.version
        if hello.protocol != PROTOCOL:
            raise Unusable(other_protocol(__version__, theirs))
        if theirs != __version__ and self.version != theirs:
            self._tell(events.Notice(
                f"The worker is SAMFineTune {theirs} and this computer's is {__version__}; they work together, but "
                f"{version_advice(__version__, theirs)} when you can."
            ))  # fmt: skip
        if not self._connection.encrypted and not self.version:
            self._tell(events.Notice("The connection to the server is not encrypted: others on the network can read "
                                     "it; use an https:// address."))  # fmt: skip
        self.version = theirs
        self.greeted = True

    def _hear_session(self, opened: protocol.Opened) -> None:
        self.session = opened.session
        self._after = 0
        if self._loss:
            self._tell(events.Notice(self._loss))
            self._loss = ""
        self._opened()

    # ---- inside: uploads

    def _send_upload(self, upload: SentUpload) -> None:
        what, number, received = upload.what, upload.number, upload.received
        if not upload.announced:
            action, message = "upload", what.announcement(number)
        elif received < what.size:
            part = np.frombuffer(what.part(received), np.uint8)
            action, message, received = "part", protocol.Part(number, received, part), received + len(part)
        elif upload.install is None:
            action, message, received = "uploaded", what.conclusion(number, self.window), 0
        else:
            self.uploads.remove(upload)
            what.close()
            self._journal.add(upload.install)
            return
        self._in_session(action, message, Received, functools.partial(self._hear_received, upload, action, received))

    def _hear_received(self, upload: SentUpload, action: str, received: int, answer: Received) -> None:
        if answer.received < received:
            raise WireError("parts are missing")
        upload.announced, upload.received = True, received
        if action == "uploaded" and upload in self.uploads:
            self.uploads.remove(upload)
            self._next_look = 0.0

    def _restart_uploads(self) -> None:
        for upload in self.uploads:
            upload.announced, upload.received = False, 0

    # ---- inside: intents out, events in

    def _send_sync(self) -> None:
        entries = self._journal.unconfirmed()
        sent = tuple(protocol.Sent(entry.number, entry.moment, entry.intent) for entry in entries)
        message = protocol.Sync(sent, self._after, 0.0 if self._settled else _KEPT_BACK, self.looked_at)
        self.looked_at = None
        self._in_session("sync", message, protocol.Synced, functools.partial(self._hear_sync, sent))

    def _hear_sync(self, sent: tuple[protocol.Sent, ...], answer: protocol.Synced) -> None:
        self._journal.confirm(min(answer.accepted, sent[-1].number if sent else 0))
        self._defects = 0
        for later in answer.told:
            number = later.plain.get("number") if isinstance(later.plain, dict) else None
            if type(number) is not int:
                raise WireError("an event has no number")
            self._after = max(self._after, number)
        self.inbox.extend(answer.told)
        if not answer.more:
            self._next_look = time.monotonic() + self._pause

    # ---- inside: what goes wrong

    def _hear_refusal(self, refusal: protocol.Refusal) -> None:
        match refusal.kind:
            case "session":
                self.lose_session()
            case "upload":
                self._restart_uploads()
            case "protocol":
                raise Unusable(other_protocol(__version__, refusal.version))
            case "defect" | "message":
                self._count_defect(refusal.error)
            case _:  # token, full, memory, size, ...: another try would fail alike
                raise Unusable(refusal.error)

    def _count_defect(self, sentence: str) -> None:
        self._defects += 1
        if self._defects >= _MOST_DEFECTS:
            self._defects = 0
            raise Unusable(sentence)
        raise Broken(sentence)

    def _break_off(self, sentence: str) -> None:
        _log.info("%s", sentence)
        self._handler = None
        self.greeted = False
        self._connection.drop()

    def _say_goodbye(self) -> None:
        """Close the session on the server if no request is under way; otherwise it expires there."""
        if self.session is None or self._handler is not None or self._connection.is_local:
            return
        try:
            self._in_session("close", protocol.Close(), Received, lambda _: None)
            self._connection.receive(_LOCAL_WAIT)
        except (Broken, Unusable):
            pass

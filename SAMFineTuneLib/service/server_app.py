"""The server's answers, whatever carries them: `ServerApp.handle(Request) -> Response`.

    GET  /, GET /health               a word of text, for people and for those who watch servers; needs no token
    POST /v1/hello                    versions, limits
    POST /v1/sessions                 a new session
    POST /v1/sessions/ID/upload       announce a volume (or a model's file)
    POST /v1/sessions/ID/part         a part of it
    POST /v1/sessions/ID/uploaded     it is whole
    POST /v1/sessions/ID/sync         intents in, events out
    POST /v1/sessions/ID/close        end it

Bodies are messages of `codec`. An answer that is not 200 holds {"error": a sentence, "kind": a word}.
"""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import threading
import time
from typing import Any

import numpy as np

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.service import json_values as plain
from SAMFineTuneLib.service.codec import CodecError, decode, encode
from SAMFineTuneLib.service.host import INTENTS, HostedSession
from SAMFineTuneLib.service.models_api import Library
from SAMFineTuneLib.service.open_models import Engines
from SAMFineTuneLib.service.protocol import MARK, PART_BYTES, PROTOCOL, Limits, Request, Response
from SAMFineTuneLib.service.uploads import FileUpload, Upload, VolumeUpload

_log = logging.getLogger(__name__)

_MOST_EVENTS = 64
_SHOWN = 6  # characters of a session's key in logs: enough to tell sessions apart, too few to use one


class Refused(Exception):
    """A request that gets no 200: status, kind, sentence."""

    def __init__(self, status: int, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.kind, self.sentence = status, kind, sentence


class ServerApp:
    """All sessions of one server. `token` is what every request must carry."""

    def __init__(
        self,
        token: str,
        limits: Limits | None = None,
        engines: Engines | None = None,
        may_change: bool = True,
    ) -> None:
        self.limits = limits or Limits()
        self._token = token.encode()
        self._engines = engines or Engines()
        self._library = Library(lambda: self._engines.store, may_change)
        self._lock = threading.Lock()
        self._sessions: dict[str, HostedSession] = {}

    # ---- requests

    def admit(self, request: Request, length: int) -> Response | None:
        """The refusal of a request of which only the head was read, None when its body may come."""
        try:
            self._check_head(request, length)
        except Refused as refused:
            return _refusal(refused)
        return None

    def greet(self, request: Request) -> Response:
        """Answer a GET, which needs no token: it tells that this is a SAMFineTune server, and no more."""
        text = _GREETINGS.get(request.path.split("?")[0])
        body = (text or "There is nothing at this address.").encode() + b"\n"
        headers = {MARK: str(PROTOCOL), "Content-Type": "text/plain; charset=utf-8"}
        return Response(404 if text is None else 200, [body], headers)

    def handle(self, request: Request) -> Response:
        """Answer a request; never raises."""
        try:
            self._check_head(request, len(request.body))
            message, arrays = self._route(request)
            idle = isinstance(message, dict) and message.pop("idle", False)
            try:
                body = encode(message, arrays)
            except ValueError:  # a model that answers with NaN must not end the conversation
                body = encode(_finite(message), arrays)
            return Response(200, body, {MARK: str(PROTOCOL)}, idle)
        except Refused as refused:
            return _refusal(refused)
        except CodecError as error:
            return _refusal(Refused(400, "message", f"The server did not understand the request: {error}."))
        except UserError as error:
            return _refusal(Refused(422, "user", str(error)))
        except plain.MISUNDERSTOOD:
            _log.info("A request to %s was not understood", loggable_path(request.path), exc_info=True)
            text = "The server did not understand the request; update it, or this program."
            return _refusal(Refused(400, "message", text))
        except Exception as error:
            if is_out_of_memory(error):
                text = "The server has too little free memory for that; crop the volume, or try again later."
                return _refusal(Refused(507, "memory", text))
            _log.exception("Failed at %s", loggable_path(request.path))
            return _refusal(Refused(500, "defect", "The server failed; try again, and tell whoever runs it."))

    def expire(self) -> None:
        """End sessions and uploads that were left alone; called now and then."""
        now = time.monotonic()
        with self._lock:
            idle = [key for key, one in self._sessions.items() if now - one.touched > self.limits.idle_seconds]
            gone = [self._sessions.pop(key) for key in idle]
            for session in self._sessions.values():
                for number, upload in list(session.uploads.items()):
                    if now - upload.touched > self.limits.upload_seconds:
                        session.uploads.pop(number, None)
        for session in gone:
            session.close()

    def close(self) -> None:
        """End all sessions."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.close()

    @property
    def sessions(self) -> int:
        """How many there are."""
        return len(self._sessions)

    # ---- inside

    def _check_head(self, request: Request, length: int) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Refused(401, "token", "The server does not know this token; enter the one of its token file.")
        if length > self.limits.body_bytes:
            raise Refused(413, "size", f"A request has at most {self.limits.body_bytes:,} bytes, not {length:,}.")
        if request.method != "POST":
            raise Refused(405, "method", "This server answers POST requests only.")

    def _route(self, request: Request) -> tuple[Any, dict[str, Any]]:
        parts = request.path.split("?")[0].strip("/").split("/")
        if parts[:1] != ["v1"]:
            raise Refused(404, "path", "There is nothing at this address; check the server's address.")
        message, arrays = decode(request.body)
        if not isinstance(message, dict):
            raise CodecError("it is no object")
        if parts[1:] == ["hello"]:
            return self._hello(message), {}
        if parts[1:] == ["sessions"]:
            return self._create(bool(message.get("segments_are_steps", True))), {}
        if len(parts) == 4 and parts[1] == "sessions" and parts[3] in _ACTIONS:
            return getattr(self, f"_{parts[3]}")(self._find(parts[2]), message, arrays)
        raise Refused(404, "path", "There is nothing at this address; update the server, or this program.")

    def _hello(self, message: dict) -> dict:
        if message.get("protocol") != PROTOCOL:
            raise Refused(409, "protocol", f"This server runs SAMFineTune {__version__}, which speaks another version "
                                           "of the protocol.")  # fmt: skip
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "part_bytes": PART_BYTES,
            "idle_seconds": self.limits.idle_seconds,
            "volume_bytes": self.limits.volume_bytes,
        }

    def _create(self, segments_are_steps: bool) -> dict:
        self.expire()
        if len(self._sessions) >= self.limits.sessions:
            self._end_idle()
        with self._lock:
            if len(self._sessions) >= self.limits.sessions:
                text = f"All {self.limits.sessions} sessions of the server are in use; try again later."
                raise Refused(503, "full", text)
            key = secrets.token_urlsafe(18)
            self._sessions[key] = HostedSession(self._engines, self._library, self.limits, segments_are_steps)
        return {"session": key}

    def _end_idle(self) -> None:
        """End the session that was left alone longest, if it was for a while: somebody else needs its place."""
        with self._lock:
            key, session = min(self._sessions.items(), key=lambda item: item[1].touched, default=(None, None))
            if session is None or time.monotonic() - session.touched < self.limits.spare_seconds:
                return
            del self._sessions[key]
        session.close()
        session.join(1.0)

    def _find(self, key: str) -> HostedSession:
        session = self._sessions.get(key)
        if session is None:
            raise Refused(404, "session", "The server no longer has this session; it ended, or the server restarted.")
        session.touched = time.monotonic()
        return session

    def _upload(self, session: HostedSession, message: dict, _) -> tuple[dict, dict]:
        number = plain.number_from_json(message["upload"])
        largest = self.limits.volume_bytes
        upload = FileUpload(message["file"], largest) if "file" in message else VolumeUpload(message["volume"], largest)
        session.uploads.clear()
        if upload.size > self._free():
            self._end_idle()
        with self._lock:  # two uploads at once must not both take the last of the memory
            if upload.size > self._free():
                raise Refused(507, "memory", "The server's memory is taken by other sessions; try again later, or "
                                             "crop the volume.")  # fmt: skip
            upload.reserve()
            session.uploads[number] = upload
        if isinstance(upload, VolumeUpload):
            session.end_jobs()
        return {"received": 0}, {}

    def _free(self) -> int:
        return self.limits.memory_bytes - sum(one.held_bytes for one in list(self._sessions.values()))

    def _part(self, session: HostedSession, message: dict, arrays: dict) -> tuple[dict, dict]:
        upload = self._find_upload(session, message)
        part = arrays["part"]
        if part.dtype != np.uint8 or part.ndim != 1:
            raise CodecError("its part is not a row of bytes")
        upload.add(plain.number_from_json(message["offset"]), part)
        return {"received": upload.received}, {}

    def _uploaded(self, session: HostedSession, message: dict, _) -> tuple[dict, dict]:
        number = plain.number_from_json(message["upload"])
        if session.finished_upload == number:  # the answer was lost
            return {}, {}
        upload = self._find_upload(session, message)
        if not isinstance(upload, VolumeUpload):
            raise UserError("This upload is not a volume.")
        window = plain.window_from_json(message["window"])
        session.put_volume(number, upload.finish(message["digest"]), window)
        session.uploads.pop(number, None)
        session.finished_upload = number
        return {}, {}

    def _find_upload(self, session: HostedSession, message: dict) -> Upload:
        upload = session.uploads.get(plain.number_from_json(message["upload"]))
        if upload is None:
            raise Refused(404, "upload", "The server no longer has the begun upload; it took too long.")
        return upload

    def _sync(self, session: HostedSession, message: dict, arrays: dict) -> tuple[dict, dict]:
        intents = message["intents"]
        if not all(intent["do"] in INTENTS for intent in intents):
            raise CodecError("it asks for something unknown")
        accepted = session.put(intents, arrays)
        told, arrays, more = session.log.fetch(plain.number_from_json(message["after"]), _MOST_EVENTS)
        return {"accepted": accepted, "events": told, "more": more, "idle": not intents and not told}, arrays

    def _close(self, session: HostedSession, message: dict, _) -> tuple[dict, dict]:
        with self._lock:
            for key in [key for key, one in self._sessions.items() if one is session]:
                del self._sessions[key]
        session.close()
        return {}, {}


_GREETINGS = {
    "/": "A SAMFineTune server. Enter this address and its token in 3D Slicer: module SAMFineTune, section Server.",
    "/health": "ok",
}
_ACTIONS = ("upload", "part", "uploaded", "sync", "close")


def _finite(value: Any) -> Any:
    """A message with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refusal(refused: Refused) -> Response:
    body = encode({"error": refused.sentence, "kind": refused.kind, "version": __version__, "protocol": PROTOCOL})
    return Response(refused.status, body, {MARK: str(PROTOCOL)})


def loggable_path(path: str) -> str:
    """The path without its query, and with only the beginning of a session's key."""
    parts = path.split("?")[0].split("/")
    if parts[1:3] == ["v1", "sessions"] and len(parts) > 3:
        parts[3] = parts[3][:_SHOWN]
    printable = "/".join(parts).encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in printable)[:100]

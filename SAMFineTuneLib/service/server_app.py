"""The server's answers, independent of how requests arrive: `ServerApp.handle(Request) -> Response`.

    GET  /, GET /health               a line of text for browsers and monitoring; needs no token
    POST /v1/hello                    versions, limits
    POST /v1/sessions                 a new session
    POST /v1/sessions/ID/upload       announce a volume (or a model's file)
    POST /v1/sessions/ID/part         a part of it
    POST /v1/sessions/ID/uploaded     it is complete
    POST /v1/sessions/ID/sync         intents in, events out
    POST /v1/sessions/ID/close        end it
    POST /v1/cohorts/ACTION           work on a cohort of the server (see `cohort_api`)

Bodies are messages of `protocol` as bytes (see `wire`). An answer that is not 200 holds a `Refusal`.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.service import protocol
from SAMFineTuneLib.service.host import HostedSession
from SAMFineTuneLib.service.models_api import Library
from SAMFineTuneLib.service.open_models import Engines
from SAMFineTuneLib.service.protocol import MARK, PROTOCOL, Limits, Received, Refused, Request, Response
from SAMFineTuneLib.service.uploads import Upload, VolumeUpload
from SAMFineTuneLib.service.wire import WireError, decode, encode
from SAMFineTuneLib.session.intents import SetVolume

if TYPE_CHECKING:
    from SAMFineTuneLib.service.cohort_api import CohortApi

_log = logging.getLogger(__name__)

_SHOWN = 6  # characters of a session's key in logs: enough to tell sessions apart, too few to use one


class ServerApp:
    """All sessions of one server.

    Args:
        token: every request must carry it.
        limits: memory, sessions, times.
        engines: opens models.
        may_change: whether clients may add and remove models and clear the cache.
        cohorts: the cohorts that clients may work on, if any.
    """

    def __init__(
        self,
        token: str,
        limits: Limits | None = None,
        engines: Engines | None = None,
        may_change: bool = True,
        cohorts: CohortApi | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._token = token.encode()
        self._engines = engines or Engines()
        self._library = Library(self._engines.store, may_change)
        self._cohorts = cohorts
        self._lock = threading.Lock()
        self._sessions: dict[str, HostedSession] = {}

    # ---- requests

    def admit(self, request: Request, length: int) -> Response | None:
        """Check a request by its head alone. Returns the refusal, or None when the body may be read."""
        try:
            self._check_head(request, length)
        except Refused as refused:
            return _refusal(refused)
        return None

    def greet(self, request: Request) -> Response:
        """Answer a GET, which needs no token: it only says that this is a SAMFineTune server."""
        text = _GREETINGS.get(request.path.split("?")[0])
        body = (text or "There is nothing at this address.").encode() + b"\n"
        headers = {MARK: str(PROTOCOL), "Content-Type": "text/plain; charset=utf-8"}
        return Response(404 if text is None else 200, [body], headers)

    def handle(self, request: Request) -> Response:
        """Answer a request; never raises."""
        try:
            self._check_head(request, len(request.body))
            answer, idle = self._route(request)
            return Response(200, encode(answer), {MARK: str(PROTOCOL)}, idle)
        except Refused as refused:
            return _refusal(refused)
        except WireError as error:
            return _refusal(Refused(400, "message", f"The server did not understand the request: {error}."))
        except UserError as error:
            return _refusal(Refused(422, "user", str(error)))
        except Exception as error:
            if is_out_of_memory(error):
                text = "The server has too little free memory for that; crop the volume, or try again later."
                return _refusal(Refused(507, "memory", text))
            _log.exception("Failed at %s", loggable_path(request.path))
            return _refusal(Refused(500, "defect", "The server failed; try again, and tell its administrator."))

    def expire(self) -> None:
        """End sessions and uploads that have long been unused; the server calls this now and then."""
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
        if self._cohorts is not None:
            self._cohorts.expire()

    def close(self) -> None:
        """End all sessions."""
        if self._cohorts is not None:
            self._cohorts.close()
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.close()

    @property
    def sessions(self) -> int:
        """The number of sessions."""
        return len(self._sessions)

    # ---- inside

    def _check_head(self, request: Request, length: int) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Refused(401, "token", "The server does not accept this token; enter the one of its token file.")
        if length > self.limits.body_bytes:
            raise Refused(413, "size", f"A request has at most {self.limits.body_bytes:,} bytes, not {length:,}.")
        if request.method != "POST":
            raise Refused(405, "method", "This server answers POST requests only.")

    def _route(self, request: Request) -> tuple[Any, bool]:
        """The answer's message, and whether it was a mere poll without news."""
        parts = request.path.split("?")[0].strip("/").split("/")
        if parts[:1] != ["v1"]:
            raise Refused(404, "path", "There is nothing at this address; check the server's address.")
        if parts[1:] == ["hello"]:
            return self._hello(decode(request.body, protocol.Hello)), False
        if parts[1:] == ["sessions"]:
            return self._create(decode(request.body, protocol.OpenSession).segments_are_steps), False
        if len(parts) == 4 and parts[1] == "sessions" and parts[3] in _ACTIONS:
            kind, action = _ACTIONS[parts[3]]
            message = decode(request.body, kind)
            answer = action(self, self._find(parts[2]), message)
            return answer, kind is protocol.Sync and not message.intents and not answer.told
        if len(parts) == 3 and parts[1] == "cohorts" and self._cohorts is not None:
            return self._cohorts.answer(parts[2], request.body)
        raise Refused(404, "path", "There is nothing at this address; update the server, or this program.")

    def _hello(self, hello: protocol.Hello) -> protocol.Hello:
        if hello.protocol != PROTOCOL:
            raise Refused(409, "protocol", f"This server runs SAMFineTune {__version__}, which uses another version "
                                           "of the protocol.")  # fmt: skip
        return protocol.Hello(PROTOCOL, __version__)

    def _create(self, segments_are_steps: bool) -> protocol.Opened:
        self.expire()
        if len(self._sessions) >= self.limits.sessions:
            self._end_idle()
        with self._lock:
            if len(self._sessions) >= self.limits.sessions:
                text = f"All {self.limits.sessions} sessions of the server are in use; try again later."
                raise Refused(503, "full", text)
            key = secrets.token_urlsafe(18)
            self._sessions[key] = HostedSession(self._engines, self._library, self.limits, segments_are_steps)
        return protocol.Opened(key)

    def _end_idle(self) -> None:
        """Make room: end the session that has been idle for longest, if nobody has used it for a while."""
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

    def _upload(self, session: HostedSession, message: protocol.AnnounceVolume | protocol.AnnounceFile) -> Received:
        kind = Upload if isinstance(message, protocol.AnnounceFile) else VolumeUpload
        upload = kind(message, self.limits.volume_bytes)
        session.uploads.clear()
        if upload.size > self._free():
            self._end_idle()
        with self._lock:  # two uploads at once must not both take the last of the memory
            if upload.size > self._free():
                raise Refused(507, "memory", "The server's memory is taken by other sessions; try again later, or "
                                             "crop the volume.")  # fmt: skip
            upload.reserve()
            session.uploads[message.upload] = upload
        if isinstance(upload, VolumeUpload):
            session.end_jobs()
        return Received(0)

    def _free(self) -> int:
        return self.limits.memory_bytes - sum(one.held_bytes for one in list(self._sessions.values()))

    def _part(self, session: HostedSession, message: protocol.Part) -> Received:
        upload = self._find_upload(session, message.upload)
        if message.data.dtype != "u1" or message.data.ndim != 1:
            raise WireError("its part is not a row of bytes")
        upload.add(message.offset, message.data)
        return Received(upload.received)

    def _uploaded(self, session: HostedSession, message: protocol.VolumeSent) -> Received:
        if session.finished_upload == message.upload:  # the answer was lost
            return Received(0)
        upload = self._find_upload(session, message.upload)
        if not isinstance(upload, VolumeUpload):
            raise UserError("This upload is not a volume.")
        session.put_volume(message.upload, SetVolume(upload.finish(message.digest), message.window))
        session.uploads.pop(message.upload, None)
        session.finished_upload = message.upload
        return Received(upload.received)

    def _find_upload(self, session: HostedSession, number: int) -> Upload:
        upload = session.uploads.get(number)
        if upload is None:
            raise Refused(404, "upload", "The server no longer has this upload; it took too long.")
        return upload

    def _sync(self, session: HostedSession, message: protocol.Sync) -> protocol.Synced:
        accepted = session.put(message.intents)
        if message.looked_at is not None:
            session.look_at(message.looked_at)
        return protocol.Synced(accepted, *session.log.fetch(message.after, message.wait))

    def _close(self, session: HostedSession, _: protocol.Close) -> Received:
        with self._lock:
            for key in [key for key, one in self._sessions.items() if one is session]:
                del self._sessions[key]
        session.close()
        return Received(0)


_GREETINGS = {
    "/": "A SAMFineTune server. Enter this address and its token in 3D Slicer: module SAMFineTune, tab Settings.",
    "/health": "ok",
}
_ACTIONS = {
    "upload": (protocol.AnnounceVolume | protocol.AnnounceFile, ServerApp._upload),
    "part": (protocol.Part, ServerApp._part),
    "uploaded": (protocol.VolumeSent, ServerApp._uploaded),
    "sync": (protocol.Sync, ServerApp._sync),
    "close": (protocol.Close, ServerApp._close),
}


def _refusal(refused: Refused) -> Response:
    body = encode(protocol.Refusal(refused.sentence, refused.kind, __version__, PROTOCOL))
    return Response(refused.status, body, {MARK: str(PROTOCOL)})


def loggable_path(path: str) -> str:
    """The path without its query, and with only the beginning of a session's key."""
    parts = path.split("?")[0].split("/")
    if parts[1:3] == ["v1", "sessions"] and len(parts) > 3:
        parts[3] = parts[3][:_SHOWN]
    printable = "/".join(parts).encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in printable)[:100]

"""One line a request: when, from where, what kind, how it ended. Never a token, a voxel, or a name of anything."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service.protocol import Request, Response

_log = logging.getLogger("samfinetune.access")
_LARGEST, _KEPT = 10 << 20, 5  # bytes a file, files: older ones are deleted
_SHOWN = 6  # characters of a session's key: enough to tell sessions apart, too few to use one


def log_request(request: Request, received: int, response: Response, seconds: float) -> None:
    """Write a line about a request of `received` bytes that was answered, or refused, after `seconds`."""
    if _log.isEnabledFor(logging.INFO):
        sent = sum(len(memoryview(piece).cast("B")) for piece in response.body)
        _log.info("%s %s %s %d, %d bytes in, %d out, %.0f ms", request.client or "-", request.method,
                  loggable_path(request.path), response.status, received, sent, seconds * 1000)  # fmt: skip


def keep_access_log(path: str | Path) -> None:
    """Also append the lines to a file, which is renewed at 10 MB, with five older ones kept. UserError when it cannot
    be written."""
    try:
        handler = RotatingFileHandler(Path(path).expanduser(), maxBytes=_LARGEST, backupCount=_KEPT, encoding="utf-8")
    except OSError as error:
        raise UserError(f"The access log {path} cannot be written ({error.strerror}); choose another file.") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)


def loggable_path(path: str) -> str:
    """The path without its query, and with only the beginning of a session's key."""
    parts = path.split("?")[0].split("/")
    if parts[1:3] == ["v1", "sessions"] and len(parts) > 3:
        parts[3] = parts[3][:_SHOWN]
    printable = "/".join(parts).encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in printable)[:100]

"""What both ends must agree on: version, addresses, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PROTOCOL = 1
"""Raised with every change that makes an older client or server fail."""

MARK = "X-SAMFineTune-Protocol"
"""Header of every answer: what comes without it comes from something else, such as a proxy."""

DEFAULT_MODEL = "compact"
PART_BYTES = 2 << 20
"""Of a volume, sent in one request: small enough to be hashed and handed over between two frames of a window."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Limits:
    """What one server gives, to keep it alive whatever clients do. Bytes and seconds."""

    sessions: int = 8
    volume_bytes: int = 4 << 30
    memory_bytes: int = 16 << 30
    """Of the volumes of all sessions together."""
    body_bytes: int = 128 << 20
    idle_seconds: float = 1800.0
    """A session that nobody asks for so long ends."""
    spare_seconds: float = 120.0
    """So long, when another one needs its place or its memory; its client makes it anew when it comes back."""
    upload_seconds: float = 120.0
    """An upload to which nothing is added for so long is forgotten."""
    request_seconds: float = 60.0
    """In which a request must have arrived whole."""
    connections: int = 64
    waiting_intents: int = 20_000


@dataclass(frozen=True)
class Request:
    """A request as the application sees it, whatever carried it. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Buffer = b""


@dataclass(frozen=True)
class Response:
    """An answer; `body` is its pieces in order."""

    status: int
    body: Sequence[Buffer] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    idle: bool = False
    """Whether nothing was asked and nothing told: clients look for news many times a second."""

    def read(self) -> Buffer:
        """The body in one piece."""
        return self.body[0] if len(self.body) == 1 else b"".join(self.body)


def version_advice(ours: str, theirs: str) -> str:
    """Which of two different versions of SAMFineTune to update, as the end of a sentence about the server's."""
    return "update the server" if _numbers(theirs) < _numbers(ours) else "update SAMFineTune on this computer"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in str(version).split("."))

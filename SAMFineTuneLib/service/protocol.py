"""Version, limits, and the messages of requests and answers, for both ends.

A request goes to `/v1/hello`, `/v1/sessions`, `/v1/sessions/ID/ACTION` or `/v1/cohorts/ACTION`; each takes one kind of
message and answers with another one, or with a `Refusal`. `wire` makes bytes of them. The messages about cohorts are in
`cohort_messages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.service.wire import Buffer, Later
from SAMFineTuneLib.session.events import Event
from SAMFineTuneLib.session.intents import Intent

PROTOCOL = 4
"""Raised with every change that makes an older client or server fail."""

MARK = "X-SAMFineTune-Protocol"
"""Header of every answer; an answer without it comes from another program, such as a proxy."""

DEFAULT_MODEL = "compact"
PART_BYTES = 2 << 20
"""Of a volume, sent in one request: small enough to be hashed and handed over between two frames of a window."""

# ---- messages


@dataclass(frozen=True)
class Hello:
    """The first message of both ends. Answer: the server's own."""

    protocol: int
    version: str


@dataclass(frozen=True)
class OpenSession:
    """Begin a session; `segments_are_steps` as in `Session`. Answer: `Opened`."""

    segments_are_steps: bool = True


@dataclass(frozen=True)
class Opened:
    """The new session, by which further messages name it."""
    session: str


@dataclass(frozen=True, eq=False)
class AnnounceVolume:
    """A volume will come in parts: little-endian voxels of NumPy's type `dtype` in C order. Answer: `Received`."""

    upload: int
    shape: tuple[int, int, int]
    dtype: str
    affine: np.ndarray
    modality: str


@dataclass(frozen=True)
class AnnounceFile:
    """A model's file of `size` bytes will come in parts. Answer: `Received`."""

    upload: int
    size: int


@dataclass(frozen=True, eq=False)
class Part:
    """The bytes of an upload from `offset` on, uint8 (N,). Answer: `Received`."""

    upload: int
    offset: int
    data: np.ndarray


@dataclass(frozen=True)
class Received:
    """Bytes of the upload that the server has."""

    received: int


@dataclass(frozen=True)
class VolumeSent:
    """All parts of a volume were sent; `digest` is `Volume.digest`. Answer: `Received`."""

    upload: int
    digest: str
    window: IntensityWindow | None = None


@dataclass(frozen=True)
class Sent:
    """An intent with its number, and its moment in the session (see `Session.do`)."""

    number: int
    moment: int | None
    intent: Intent


@dataclass(frozen=True)
class Told:
    """An event with its number, the upload of the volume that it is about, and the last `Sent` before it."""

    number: int
    volume: int
    applied: int
    event: Event


@dataclass(frozen=True)
class Sync:
    """Intents, and the number of the last event that the client has. Answer: `Synced`."""

    intents: tuple[Later[Sent], ...] = ()
    after: int = 0
    wait: float = 0.0
    """Seconds for which the answer may be kept back while there are no events."""
    looked_at: Later[SlicePlane] | None = None
    """The plane that the user looks at, where the next prompt may come."""


@dataclass(frozen=True)
class Synced:
    """The number of the last intent that the server has, and events after the client's last one."""

    accepted: int
    told: tuple[Later[Told], ...] = ()
    more: bool = False
    """Whether there are more events already."""


@dataclass(frozen=True)
class Close:
    """End the session. Answer: `Received` of nothing."""


@dataclass(frozen=True)
class Refusal:
    """An answer that is not 200: a sentence, and a word for the client's program."""

    error: str
    kind: str
    version: str
    protocol: int


class Refused(Exception):
    """A request that is refused: HTTP status, kind and sentence of the answer."""

    def __init__(self, status: int, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.kind, self.sentence = status, kind, sentence


# ---- limits, requests and answers


@dataclass(frozen=True)
class Limits:
    """Limits in bytes and seconds that keep the server running whatever clients send."""

    sessions: int = 8
    volume_bytes: int = 4 << 30
    memory_bytes: int = 16 << 30
    """Of the volumes of all sessions together."""
    body_bytes: int = 128 << 20
    idle_seconds: float = 1800.0
    """A session ends after so long without a request."""
    spare_seconds: float = 120.0
    """The same when another session needs its place or memory; its client restores it with its next request."""
    upload_seconds: float = 120.0
    """An upload is forgotten after so long without a new part."""
    request_seconds: float = 60.0
    """In which a request must have arrived completely."""
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
    """Whether this was a poll without news, as clients send many times a second."""

    def read(self) -> Buffer:
        """The body in one piece."""
        return self.body[0] if len(self.body) == 1 else b"".join(self.body)


def version_advice(ours: str, theirs: str) -> str:
    """Which of two different versions of SAMFineTune to update, as the end of a sentence about the server."""
    return "update the server" if _numbers(theirs) < _numbers(ours) else "update SAMFineTune on this computer"


def other_protocol(ours: str, theirs: str) -> str:
    """The sentence for two versions of SAMFineTune with different protocols."""
    return (
        f"The server runs SAMFineTune {theirs} and this computer {ours}, which are incompatible; "
        f"{version_advice(ours, theirs)}."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in str(version).split("."))

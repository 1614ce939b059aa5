"""The messages about a server's cohorts, for both ends; see `protocol`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ListCohorts:
    """Ask for the server's cohorts. Answer: `Cohorts`."""


@dataclass(frozen=True)
class Cohorts:
    """Names of the cohorts, in order."""
    names: tuple[str, ...]


@dataclass(frozen=True)
class FollowCohort:
    """Ask for a cohort's state, and the server's background work for it. Answer: `CohortNews`."""

    cohort: str
    known: str = ""
    """SHA-256 of the state that the client has."""
    after: int = -1
    """The value of `after` in the last answer, from which the server continues the events; at first -1."""
    by: str = ""
    """Identifier of a window that is open, so that its cases stay taken."""


@dataclass(frozen=True)
class CohortNews:
    """The cohort's state as JSON, empty if the client has it; the events are those of `cohort_work`."""

    state: bytes
    busy: bool
    events: tuple[Any, ...]
    after: int


@dataclass(frozen=True)
class CohortPiece:
    """A piece of work on a cohort, as `cohort_process` does it; sent again until its event comes. Answer: `CohortTold`.

    `window` and `number` identify it; `by` identifies who takes cases.
    """

    cohort: str
    window: str
    number: int
    what: str
    by: str = ""
    case: str = ""
    cases: tuple[str, ...] = ()
    way: str = "random"
    without: tuple[str, ...] = ()
    take: bool = False
    leaves: bool = False
    form: str = "nifti"
    seconds: float | None = None
    prompts: int | None = None
    shape: tuple[int, int, int] | None = None
    """Of the labels [k, j, i] sent along."""
    dtype: str = "|u1"
    labels: bytes = b""
    """Compressed by zlib, C order."""
    image: str = ""
    """SHA-256 of an uploaded packed image to be added."""
    patient: str = ""
    """Of that image, if its files do not name one; the server keeps only a salted digest."""


@dataclass(frozen=True)
class CohortUpload:
    """The bytes from `offset` on of a packed image (see `packed_images`) of `size` bytes. Without bytes it only asks
    how many have arrived. Answer: `Received`, with which the next part begins."""

    cohort: str
    digest: str
    """SHA-256 of the whole."""
    size: int
    offset: int = 0
    data: bytes = b""


@dataclass(frozen=True)
class CohortTold:
    """The event with which a piece ended; None while it runs, possibly with its progress."""

    event: Any = None
    progress: Any = None


@dataclass(frozen=True)
class CohortFile:
    """A part of a file: `voxels`, `labels` or `results` (.zip) as a piece laid them out, `picture` or `confidence` of a
    case. Answer: `CohortPart`."""

    cohort: str
    window: str
    number: int
    which: str
    case: str
    offset: int = 0


@dataclass(frozen=True)
class CohortPart:
    """Bytes from the offset on, of a file of `size` bytes; 0 where there is no such file."""

    size: int
    data: bytes = b""

"""The events that a session sends to its listeners, and a server to its client. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts import Prompt, prompts_from_dict
from SAMFineTuneLib.session.intents import View


@dataclass(frozen=True, eq=False)
class MaskChanged:
    """The mask of a segment on a plane has changed, or is gone."""

    segment: int
    plane: SlicePlane
    packed: PackedMask | None = None
    """None when the mask is gone."""
    score: float | None = None
    """Predicted IoU."""
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    """The segment's positive points on the plane, float32 (N, 2): x and y in pixels."""
    since: int = 0
    """The moment at which the mask last changed; undo and redo return to earlier moments."""

    @cached_property
    def mask(self) -> np.ndarray | None:
        """bool (rows, columns), None when the mask is gone."""
        return None if self.packed is None else self.packed.unpack()

    @property
    def digest(self) -> str:
        """Identifies the mask; empty when it is gone."""
        return "" if self.packed is None else self.packed.digest


@dataclass(frozen=True)
class PromptInfo:
    """A prompt of the session. `view` is the orientation whose slices it lies on, or its oblique plane."""

    number: int
    segment: int
    prompt: Prompt
    view: View

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> PromptInfo:
        """A prompt of a stored session, see `session_file`."""
        (segment,) = prompts_from_dict({"version": 1, "segments": [entry["segment"]]}).segments
        (prompt,) = segment.prompts
        view = entry["view"] if isinstance(entry["view"], str) else SlicePlane.from_dict(entry["view"])
        return cls(int(entry["number"]), segment.value, prompt, view)


@dataclass(frozen=True, eq=False)
class StateChanged:
    """Segments, prompts and history after an intent or a step of work. A newer state replaces those before it."""

    segments: tuple[SegmentInfo, ...]
    prompts: tuple[PromptInfo, ...]
    undo_name: str | None = None
    redo_name: str | None = None
    window: IntensityWindow | None = None
    outdated: tuple[tuple[int, str], ...] = ()
    """Segment and plane key of propagated masks whose prompts have changed since."""
    settled: bool = True
    """Whether every mask that follows from this state has been sent."""
    masks: str | None = None
    """Digest of all masks that were sent, once settled."""


@dataclass(frozen=True)
class Busy:
    """Progress of a job, or of embedding in the background, which has no number."""

    job: int | None
    what: str
    """"propagate", "everything", "embed" or "download"."""
    fraction: float | None
    """0 to 1, None before anything is known."""
    seconds_left: float | None
    text: str
    """For a progress bar."""
    done: int = 0
    """Slices that are done, of `total`; both 0 for a download."""
    total: int = 0


@dataclass(frozen=True)
class Finished:
    """A job, or embedding in the background, is done or was cancelled."""

    job: int | None
    what: str
    cancelled: bool = False
    step: str | None = None
    """The step of its results in the history; empty when they belong to the step before, None without results."""
    document: bytes | None = field(default=None, repr=False)
    """From a worker to its client: the session with the job's results, so that a replay need not run the job again."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object that everything mode found."""

    number: int
    area: int
    """Pixels over all slices."""
    score: float
    """Mean predicted IoU."""
    orientation: str
    slices: tuple[int, int]
    """First and last slice index."""


@dataclass(frozen=True)
class Objects:
    """The objects that a job of everything mode found, largest first."""

    job: int
    objects: tuple[ObjectInfo, ...]


@dataclass(frozen=True)
class Notice:
    """A sentence that the user should read; nothing failed."""

    text: str


@dataclass(frozen=True)
class Failed:
    """A sentence that says what could not be done, and what to do."""

    text: str
    job: int | None = None
    """The job that ended by it."""
    details: str = ""
    """For the log: the runtime's message."""
    request: int | None = None
    """The request that it answers."""
    intent: int | None = None
    """From a worker to its client: the number of the intent that failed."""


@dataclass(frozen=True, eq=False)
class Answered:
    """The answer to a request, in plain JSON values; a client turns stored sessions and masks into values too."""

    request: int
    value: Any


# ---- between a worker and its client, which passes none of these on


@dataclass(frozen=True)
class ModelChanged:
    """The model that answers from now on; empty when none could be opened."""

    model: str
    device: str = ""
    """Its device, as `Engine.device` names it; empty while the model is being opened."""
    opening: bool = False


@dataclass(frozen=True, eq=False)
class Stored:
    """The session after an intent, so that a replay need not compute the step again."""

    step: str
    document: bytes
    """JSON text of `session_file.session_to_dict`."""
    intent: int
    """Number of the intent, whose place it takes in the client's journal."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The stored session that was requested."""

    request: int
    document: bytes
    """JSON text of `session_file.session_to_dict`."""


@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """Masks of found objects; several of these events answer one request."""

    request: int
    masks: tuple[tuple[int, SlicePlane, PackedMask], ...]
    """Number of the object, plane, mask."""
    last: bool = True


# ---- about a client's connection


@dataclass(frozen=True)
class Status:
    """State of the worker."""

    state: str = "stopped"
    """"stopped", "starting" (the local worker), "connecting", "uploading", "ready" or "failed"."""
    sentence: str = ""
    """The state in words."""
    progress: float | None = None
    """0 to 1 while a volume is sent."""
    model: str = ""
    """Model, device and precision that answer; empty before there is an answer."""
    device: str = ""
    precision: str = ""
    version: str = ""
    """Version of the worker."""


@dataclass(frozen=True)
class StatusChanged:
    """The worker's status has changed."""

    status: Status


Event = (
    MaskChanged | StateChanged | Busy | Finished | Objects | Notice | Failed | Answered
    | ModelChanged | Stored | Snapshot | ObjectMasks | StatusChanged
)  # fmt: skip
Listener = Callable[[Event], None]

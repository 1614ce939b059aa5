"""What a session's client tells its host, in the order in which it became true. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts.prompts import Prompt


@dataclass(frozen=True)
class Status:
    """How the worker is. `progress` is 0 to 1 while a volume is sent, else None.

    `state` is "stopped", "starting" (the local worker), "connecting", "uploading", "ready" or "failed"; `sentence`
    says it to the user. `model`, `device` and `precision` are those that answer, empty before there is an answer;
    `version` is the worker's.
    """

    state: str = "stopped"
    sentence: str = ""
    progress: float | None = None
    model: str = ""
    device: str = ""
    precision: str = ""
    version: str = ""


@dataclass(frozen=True)
class PromptInfo:
    """A prompt as the session has it. `view` is the orientation whose slices it lies on, or its oblique plane."""

    number: int
    segment: int
    prompt: Prompt
    view: str | SlicePlane


@dataclass(frozen=True)
class ObjectInfo:
    """An object that everything mode found: pixels over all slices, mean predicted IoU, first and last slice."""

    number: int
    area: int
    score: float
    orientation: str
    slices: tuple[int, int]


@dataclass(frozen=True, eq=False)
class MaskChanged:
    """The mask bool (rows, columns) of a segment on a plane; None takes it back.

    `points` (N, 2) float32 are the segment's positive points there, x and y in pixels of the plane.
    """

    segment: int
    plane: SlicePlane
    mask: np.ndarray | None
    score: float | None
    points: np.ndarray
    since: int = 0
    """The moment at which the mask became what it is: undo and redo come back to the same moments."""
    digest: str = ""
    """What the mask is recognised by; empty without one."""


@dataclass(frozen=True, eq=False)
class StateChanged:
    """The session's state after every intent that was sent; states that were superseded are left out.

    `settled` is true when every mask that follows from it has been told.
    """

    segments: tuple[SegmentInfo, ...]
    prompts: tuple[PromptInfo, ...]
    undo_name: str | None
    redo_name: str | None
    window: IntensityWindow | None
    outdated: tuple[tuple[int, str], ...]
    """Segment and plane key of propagated masks whose prompts have changed since."""
    settled: bool = True


@dataclass(frozen=True)
class Busy:
    """Work under way: `fraction` 0 to 1 of it done (None: not known yet), `text` for the busy line. The background has
    no job number.

    `what` is "propagate", "everything", "embed" or "download".
    """

    job: int | None
    what: str
    fraction: float | None
    seconds_left: float | None
    text: str


@dataclass(frozen=True)
class Finished:
    """A job, or embedding in the background, is done or was cancelled."""

    job: int | None
    what: str
    cancelled: bool = False


@dataclass(frozen=True)
class Objects:
    """What a job of everything mode found, largest first."""

    job: int
    objects: tuple[ObjectInfo, ...]


@dataclass(frozen=True)
class Notice:
    """A sentence the user should read; nothing failed."""

    text: str


@dataclass(frozen=True)
class Failed:
    """A sentence that says what could not be done. `job` or `request` is the one that ended by it, if any.

    `details` are for the log.
    """

    text: str
    job: int | None = None
    details: str = ""
    request: int | None = None


@dataclass(frozen=True, eq=False)
class Answered:
    """The answer to a request."""

    request: int
    value: Any


@dataclass(frozen=True)
class StatusChanged:
    """The worker is another way than before."""

    status: Status


Event = (
    MaskChanged | StateChanged | Busy | Finished | Objects | Notice | Failed | Answered | StatusChanged
)

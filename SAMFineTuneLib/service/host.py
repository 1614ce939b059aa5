"""One client's session on the server: one thread carries out its intents in order and collects its events.

Requests never wait for the model: they put intents into a queue and take events from a log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from SAMFineTuneLib.disk_errors import explained
from SAMFineTuneLib.errors import UserError, cause_of
from SAMFineTuneLib.images.intensity_window import choose_window
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane
from SAMFineTuneLib.service.event_log import EventLog
from SAMFineTuneLib.service.library_requests import LibraryRequests
from SAMFineTuneLib.service.models_api import Library
from SAMFineTuneLib.service.open_models import Engines
from SAMFineTuneLib.service.protocol import Limits, Sent
from SAMFineTuneLib.service.uploads import Upload
from SAMFineTuneLib.service.wire import Later, WireError
from SAMFineTuneLib.session import events, intents
from SAMFineTuneLib.session.doubts import doubts_about_adapter
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import restore, session_to_dict
from SAMFineTuneLib.typed_json import loaded

_log = logging.getLogger(__name__)

_MASKS_AT_ONCE = 16  # found objects' masks in one event


class HostedSession:
    """A `Session` with a thread of its own."""

    def __init__(self, engines: Engines, library: Library, limits: Limits, segments_are_steps: bool = True) -> None:
        self.touched = time.monotonic()
        self.log = EventLog()
        self.uploads: dict[int, Upload] = {}
        self.finished_upload: int | None = None
        self._engines, self._limits = engines, limits
        self._requests = LibraryRequests(library, self.uploads, self._tell, self._fail)
        self._session = Session()
        self._session.segments_are_steps = segments_are_steps
        self._session.listen(self._hear)
        self._queue: deque[tuple[int, int | None, Any]] = deque()
        """Number, moment and intent; an error in place of an intent that was not understood."""
        self._lock = threading.Lock()
        self._accepted = 0
        self._applied = 0
        self._waiting_for_objects: list[tuple[int, intents.Adopt | intents.AskForMasks]] = []
        self._restoring = False
        self._volume_number = self._waiting_bytes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="samfinetune-session", daemon=True)
        self._thread.start()

    # ---- called by the server's threads

    @property
    def held_bytes(self) -> int:
        """Bytes of the volume, of one that is queued to replace it, and of uploads."""
        volume = self._session.volume
        held = volume.array.nbytes if volume is not None else 0
        return held + self._waiting_bytes + sum(one.size for one in list(self.uploads.values()))

    def put(self, sent: Sequence[Later[Sent]]) -> int:
        """Queue intents, except those that were queued before because an answer was lost.

        Args:
            sent: the intents, in ascending order of their numbers.

        Returns:
            The number of the last intent that was queued.

        Raises:
            WireError: for an intent without a number. Any other intent that cannot be read fails in its turn.
            UserError: when too many intents are waiting.
        """
        with self._lock:
            if len(self._queue) + len(sent) > self._limits.waiting_intents:
                raise UserError("The server cannot keep up with so many changes; wait until it has caught up.")
            for later in sent:
                number, moment, intent = _read(later)
                if number > self._accepted:
                    self._accepted = number
                    self._queue.append((number, moment, intent))
                    if isinstance(intent, intents.Cancel):
                        self._cancel(intent)  # a step may take long, and checks this flag meanwhile
            accepted = self._accepted
        if sent:
            self._session.work_arrived.set()
        return accepted

    def look_at(self, plane: Later[SlicePlane]) -> None:
        """Prepare the plane that the user looks at, once there is nothing else to do."""
        with contextlib.suppress(WireError, UserError):
            self._session.looked_at = plane.read()
            self._session.work_arrived.set()

    def end_jobs(self) -> None:
        """Cancel all jobs, because another volume is being sent."""
        for job in self._session.jobs:
            job.cancel(keep_results=False)

    def put_volume(self, upload: int, intent: intents.SetVolume) -> None:
        """Queue a volume. Later intents are about it, and events carry the number of its upload."""
        with self._lock:
            self._waiting_bytes = intent.volume.array.nbytes
            self._queue.append((upload, None, intent))
        self._session.work_arrived.set()

    def close(self) -> None:
        """End the thread after its current step, and free its memory."""
        self._closed = True
        self.end_jobs()
        self._requests.close()
        self.uploads.clear()
        self._session.work_arrived.set()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(seconds)

    # ---- the session's thread

    def _run(self) -> None:
        arrived = self._session.work_arrived
        while not self._closed:
            arrived.clear()
            while not self._closed and self._step():
                pass
            if not self._closed:
                arrived.wait()
        self._session = Session()  # references to this object then keep no volume in memory

    def _step(self) -> bool:
        """Do what is queued, then one step of work; returns whether anything is left to do."""
        with self._lock:
            queued = list(self._queue)
            self._queue.clear()
        for number, moment, intent in queued:
            self._apply(number, moment, intent)
            self._session.state_due = True  # the client waits for a state after its last intent
        more = False
        try:
            more = self._session.work(0.0)
        except Exception as error:
            self._fail(error)
        return more or bool(self._queue)

    def _apply(self, number: int, moment: int | None, intent: Any) -> None:
        if isinstance(intent, intents.SetVolume):
            try:
                self._session.do(intent)
            except Exception as error:
                self._session.forget_volume()  # later intents are not about the former one
                self._fail(error)
            finally:
                self._waiting_bytes = 0
                self._volume_number = number
                self._waiting_for_objects.clear()
            return
        try:
            if isinstance(intent, _NotUnderstood):
                raise intent.error
            handler = _HANDLERS.get(type(intent))
            if handler is None:
                self._session.do(intent, moment)
            else:
                handler(self, number, intent)
        except Exception as error:
            self._fail(error, number, intent)
        self._applied = max(self._applied, number)

    def _fail(self, error: Exception, number: int | None = None, intent: Any = None) -> None:
        """Send what went wrong, as a sentence for the user."""
        text = explained(
            error,
            "The worker has too little memory for that; close other programs, or take a smaller model or volume.",
            "The worker's Python lacks the package {}; install it there.",
        )
        if isinstance(error, WireError):
            text = "The worker did not understand what was asked; update it, or this program."
        text = text or f"The worker failed ({type(error).__name__}); try again, and report it if it stays."
        details = cause_of(error)
        if not isinstance(error, UserError):
            _log.error("Failed at %s", type(intent).__name__ if intent is not None else "work", exc_info=error)
            details = details or f"{type(error).__name__}: {error}"
        job, request = getattr(intent, "job", None), getattr(intent, "request", None)
        self._tell(events.Failed(text, job, details, request, number))

    def _tell(self, event: events.Event) -> None:
        self.log.add(event, self._volume_number, self._applied)

    def _hear(self, event: events.Event) -> None:
        """An event of the session."""
        if isinstance(event, events.Notice) and self._restoring:
            return
        if isinstance(event, events.Finished) and event.step is not None:
            event = dataclasses.replace(event, document=self._document())
        self._tell(event)
        if isinstance(event, events.Finished):
            waiting = [one for one in self._waiting_for_objects if one[1].job == event.job]
            self._waiting_for_objects = [one for one in self._waiting_for_objects if one not in waiting]
            for number, intent in waiting:
                self._apply(number, None, intent)

    def _document(self) -> bytes:
        return json.dumps(session_to_dict(self._session), allow_nan=False, separators=(",", ":")).encode()

    # ---- intents that need more than the session

    def _set_model(self, _: int, intent: intents.SetModel) -> None:
        self._tell(events.ModelChanged(intent.model, opening=True))
        try:
            predictor = self._engines.predictor(intent.model, intent.adapter, intent.device)
        except Exception:
            now = self._session.predictor
            self._tell_model(now.engine if now is not None else None)
            raise
        self._session.set_model(predictor, intent.adapter, self._engines.recipe(intent.adapter))
        self._tell_model(predictor.engine)

    def _tell_model(self, engine) -> None:
        self._tell(events.ModelChanged("") if engine is None else events.ModelChanged(engine.spec.id, engine.device))

    def _find_labels(self, _: int, intent: intents.FindLabels) -> None:
        from SAMFineTuneLib.cases.case_slices import learned_orientations  # with pydicom, for which no worker waits

        volume = self._session.require_volume()
        predictor = self._engines.predictor(intent.model, intent.adapter, intent.device)
        recipe = self._engines.recipe(intent.adapter)
        orientations = (intent.orientation,) if intent.orientation else learned_orientations(volume, recipe)
        window = choose_window(volume, recipe.get("window"))
        for sentence in doubts_about_adapter(volume, recipe):
            self._hear(events.Notice(sentence))
        self._session.find_labels_with(predictor, window, orientations, intent)

    def _must_wait(self, number: int, intent: intents.Adopt | intents.AskForMasks) -> bool:
        """Whether the job that found these objects is running, because a replay runs it again; the intent then waits.
        """
        runs = any(job.number == intent.job for job in self._session.jobs)
        if runs:
            self._waiting_for_objects.append((number, intent))
        return runs

    def _adopt(self, number: int, intent: intents.Adopt) -> None:
        if self._must_wait(number, intent):
            return
        self._session.do(intent)
        self._tell(events.Stored("add found objects", self._document(), number))

    def _ask_for_masks(self, number: int, intent: intents.AskForMasks) -> None:
        if self._must_wait(number, intent):
            return
        volume = self._session.require_volume()
        masks = [
            (item.value, aligned_plane(volume, item.orientation, index), mask)
            for item in self._session.found.of(intent.job, intent.objects)
            for index, mask in sorted(item.masks.items())
        ]
        for first in range(0, len(masks) or 1, _MASKS_AT_ONCE):
            some, last = tuple(masks[first : first + _MASKS_AT_ONCE]), first + _MASKS_AT_ONCE >= len(masks)
            self._tell(events.ObjectMasks(intent.request, some, last))

    def _cancel(self, intent: intents.Cancel) -> None:
        for job in self._session.jobs:
            if job.number == intent.job:
                job.cancel(intent.keep_results)
        self._requests.cancel(intent.job)

    def _take_snapshot(self, _: int, intent: intents.TakeSnapshot) -> None:
        self._tell(events.Snapshot(intent.request, self._document()))

    def _restore(self, _: int, intent: intents.Restore) -> None:
        try:
            document = loaded(intent.document)
        except ValueError as error:
            raise UserError("The stored session is damaged; use another copy of it.") from error
        restore(self._session, document, intent.step)

    def _replay(self, _: int, intent: intents.Replay) -> None:
        self._restoring = intent.begins  # notices that the user has seen are not repeated


_HANDLERS: dict[type, Callable[[HostedSession, int, Any], None]] = {
    intents.SetModel: HostedSession._set_model,
    intents.FindLabels: HostedSession._find_labels,
    intents.Adopt: HostedSession._adopt,
    intents.AskForMasks: HostedSession._ask_for_masks,
    intents.Cancel: lambda host, _, intent: host._cancel(intent),
    intents.TakeSnapshot: HostedSession._take_snapshot,
    intents.Restore: HostedSession._restore,
    intents.Replay: HostedSession._replay,
    intents.Checkpoint: lambda host, _, intent: None,
    intents.Ask: lambda host, number, intent: host._requests.ask(number, intent),
    intents.Download: lambda host, number, intent: host._requests.download(number, intent),
    intents.Install: lambda host, number, intent: host._requests.install(number, intent),
}
"""Every other intent goes to the session."""


@dataclasses.dataclass(frozen=True)
class _NotUnderstood:
    """Stands for an intent that could not be read."""

    error: Exception
    job: int | None
    request: int | None


def _read(later: Later[Sent]) -> tuple[int, int | None, Any]:
    """Number, moment and intent."""
    try:
        sent = later.read()
        return sent.number, sent.moment, sent.intent
    except (WireError, UserError) as error:
        number = later.plain.get("number") if isinstance(later.plain, dict) else None
        if type(number) is not int:
            raise WireError("an intent has no number") from error
        given = later.plain.get("intent")
        job, request = (given.get(name) if isinstance(given, dict) else None for name in ("job", "request"))
        job, request = (value if type(value) is int else None for value in (job, request))
        return number, None, _NotUnderstood(error, job, request)

"""One client's session on the server: its intents in order, worked off by one thread, and what it has to tell.

Requests never wait for the model: they put intents into a queue and take events out of a log.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.inference.settings import EverythingSettings, PropagationSettings
from SAMFineTuneLib.service import json_values as plain
from SAMFineTuneLib.service.event_log import Arrays, EventLog
from SAMFineTuneLib.service.models_api import Cancelled, Library
from SAMFineTuneLib.service.open_models import Engines
from SAMFineTuneLib.service.protocol import Limits
from SAMFineTuneLib.service.uploads import Upload
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.document import details_of
from SAMFineTuneLib.session.jobs import EverythingJob, Job
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import model_notice, read_document, session_to_dict
from SAMFineTuneLib.session.state import PlacedPrompt, State

_log = logging.getLogger(__name__)

_MOST_OBJECT_JOBS = 2  # runs of everything mode whose objects are kept to be adopted


class HostedSession:
    """A `Session` with a thread of its own."""

    def __init__(self, engines: Engines, library: Library, limits: Limits, segments_are_steps: bool = True) -> None:
        self.touched = time.monotonic()
        self.log = EventLog()
        self.uploads: dict[int, Upload] = {}
        self.finished_upload: int | None = None
        self._engines, self._library, self._limits = engines, library, limits
        self._session = Session(immediate=False)
        self._session.segments_are_steps = segments_are_steps
        self._session.listen(self._hear)
        self._queue: deque[tuple[dict[str, Any], np.ndarray | None]] = deque()
        self._lock = threading.Lock()
        self._accepted = 0
        self._applied = 0
        self._jobs: dict[int, Job] = {}
        self._downloads: dict[int, threading.Event] = {}
        self._waiting_for_objects: list[dict[str, Any]] = []
        self._restoring = False
        self._volume_number = self._waiting_bytes = 0
        self._settled = True
        self._told_state: State | None = self._session.state
        self._prompts_as_json: weakref.WeakKeyDictionary[PlacedPrompt, dict] = weakref.WeakKeyDictionary()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="samfinetune-session", daemon=True)
        self._thread.start()

    # ---- called by the server's threads

    @property
    def held_bytes(self) -> int:
        """Of the volume, of one that waits to take its place, and of uploads."""
        volume = self._session.volume
        held = volume.array.nbytes if volume is not None else 0
        return held + self._waiting_bytes + sum(one.size for one in list(self.uploads.values()))

    def put(self, intents: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> int:
        """Queue intents; those that were queued before (the answer was lost) are ignored. Returns the last number."""
        with self._lock:
            if len(self._queue) + len(intents) > self._limits.waiting_intents:
                raise UserError("The server cannot keep up with so many changes; wait until it has worked them off.")
            for intent in intents:
                number = plain.number_from_json(intent["number"])
                if number <= self._accepted:
                    continue
                self._accepted = number
                self._queue.append((intent, arrays.get(f"{number}")))
                if intent.get("do") == "cancel":
                    self._cancel_early(intent)
            accepted = self._accepted
        if intents:
            self._session.work_arrived.set()
        return accepted

    def end_jobs(self) -> None:
        """Another volume is on its way: let nobody wait for the one before."""
        for job in list(self._jobs.values()):
            job.cancel(keep_results=False)

    def put_volume(self, number: int, volume: Volume, window: IntensityWindow | None) -> None:
        """Queue a volume: intents that come after it are about it, and events say its number."""
        with self._lock:
            self._waiting_bytes = volume.array.nbytes
            self._queue.append(({"do": "set_volume", "upload": number, "volume": volume, "window": window}, None))
        self._session.work_arrived.set()

    def close(self) -> None:
        """End the thread after its current step; memory goes with it."""
        self._closed = True
        for job in list(self._jobs.values()):
            job.cancel(keep_results=False)
        for cancelled in list(self._downloads.values()):
            cancelled.set()
        self.uploads.clear()
        self._session.work_arrived.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _cancel_early(self, intent: dict[str, Any]) -> None:
        """A step may take long, and looks at this flag meanwhile; the intent itself comes in its turn."""
        number = intent.get("job")
        if type(number) is not int:
            return  # what is senseless fails in its turn, with a sentence
        if number in self._jobs:
            self._jobs[number].cancel(bool(intent.get("keep", True)))
        if number in self._downloads:
            self._downloads[number].set()

    # ---- the session's thread

    def _run(self) -> None:
        arrived = self._session.work_arrived
        while not self._closed:
            arrived.clear()
            while not self._closed and self._step():
                pass
            if not self._closed:
                arrived.wait()
        self._session = Session(immediate=False)  # whoever still holds this object holds no volume

    def _step(self) -> bool:
        """Apply what is queued, then one step of work; returns whether anything is left to do."""
        queued = self._take()
        for intent, array in queued:
            self._apply(intent, array)
        more = False
        try:
            more = self._session.work(0.0)
        except Exception as error:
            self._fail(error, {})
        if queued or self._session.settled != self._settled or self._session.state is not self._told_state:
            self._tell_state()
        return more or bool(self._queue)

    def _take(self) -> list[tuple[dict[str, Any], np.ndarray | None]]:
        with self._lock:
            queued = list(self._queue)
            self._queue.clear()
        return queued

    def _apply(self, intent: dict[str, Any], array: np.ndarray | None) -> None:
        try:
            if type(intent.get("moment")) is int:  # of an older client it has none
                self._session.begin(intent["moment"])
            getattr(self, f"_do_{intent['do']}")(intent, array)
        except Exception as error:
            self._fail(error, intent)
        self._applied = max(self._applied, intent.get("number", 0))

    def _fail(self, error: Exception, intent: dict[str, Any]) -> None:
        """Tell what went wrong, as a sentence whatever it was."""
        if isinstance(error, UserError):
            text = str(error)
        elif refused := disk_error(error):
            text = str(refused)
        elif is_out_of_memory(error):
            text = "The worker has too little memory for that; close other programs, or take a smaller model or volume."
        elif isinstance(error, ModuleNotFoundError) and error.name:
            text = f"The worker's Python lacks the package {error.name.partition('.')[0]}; install it there."
        elif isinstance(error, plain.MISUNDERSTOOD) and intent:
            text = "The worker did not understand what was asked; update it, or this program."
        else:
            text = f"The worker failed ({type(error).__name__}); try again, and report it if it stays."
        if not isinstance(error, UserError):
            _log.error("Failed at %s", intent.get("do", "work"), exc_info=error)
        details = details_of(error) or f"{type(error).__name__}: {error}"
        known = {name: intent[name] for name in ("job", "request") if type(intent.get(name)) is int}
        self._tell({"event": "failed", "text": text, "details": details, "intent": intent.get("number"), **known})

    def _tell(self, values: dict[str, Any], arrays: Callable[[], Arrays] | None = None, key: Hashable = None) -> None:
        self.log.add({"volume": self._volume_number, **values}, arrays, key)

    def _hear(self, event: events.Event) -> None:
        if isinstance(event, events.MaskChanged):
            self._hear_mask(event)
        elif isinstance(event, events.Busy):
            self._tell_busy(event)
        elif isinstance(event, events.Finished):
            self._hear_finished(event)
        elif isinstance(event, events.Notice):
            if not self._restoring:
                self._tell({"event": "notice", "text": event.text})
        elif isinstance(event, events.Failed):
            self._tell({"event": "failed", "text": event.text, "details": event.details, "job": event.job})

    def _hear_mask(self, event: events.MaskChanged) -> None:
        values = {"event": "mask", "segment": event.segment, "plane": event.plane.to_dict(),
                  "score": None if event.score is None else float(event.score), "since": event.since}  # fmt: skip

        def arrays():
            return {"points": event.points} | ({} if event.packed is None else {"mask": event.packed.data})

        self._tell(values, arrays, key=("mask", event.segment, event.plane.key))

    def _hear_finished(self, event: events.Finished) -> None:
        job = self._jobs.get(event.job)
        if isinstance(job, EverythingJob):
            job.slices = []  # joined by now
            found = [
                {
                    "number": item.value,
                    "area": item.area,
                    "score": item.score,
                    "orientation": item.orientation,
                    "slices": [min(item.masks), max(item.masks)],
                }
                for item in job.objects
            ]
            self._tell({"event": "objects", "job": event.job, "objects": found}, key=("objects", event.job))
        elif event.job is not None:
            self._jobs.pop(event.job, None)
        values = {"event": "finished", "job": event.job, "what": event.what, "cancelled": event.cancelled,
                  "applied": self._applied}  # fmt: skip
        document = None
        if getattr(job, "masks", None) and job.keep_results:
            document = self._document()
        self._tell(values, (lambda: {"document": document}) if document else None, key=("finished", event.job))
        for intent in [intent for intent in self._waiting_for_objects if intent["job"] == event.job]:
            self._waiting_for_objects.remove(intent)
            self._apply(intent, None)

    def _document(self) -> bytes:
        return json.dumps(session_to_dict(self._session), allow_nan=False, separators=(",", ":")).encode()

    def _tell_busy(self, event: events.Busy) -> None:
        self._tell({"event": "busy", "job": event.job, "what": event.what, "done": event.done, "total": event.total,
                      "seconds_left": event.seconds_left}, key=("busy", event.job, event.what))  # fmt: skip

    def _tell_state(self) -> None:
        session = self._session
        with session.unchanged() as state:
            self._settled, self._told_state = session.settled, state
            values = {
                "event": "state",
                "applied": self._applied,
                "settled": self._settled,
                "segments": [[info.value, info.name, list(info.color)] for info in state.segments],
                "prompts": [self._prompt_as_json(placed) for placed in state.prompts],
                "undo": session.undo_name,
                "redo": session.redo_name,
                "window": plain.window_to_json(session.window),
                "outdated": [[info.value, p.key] for info in state.segments for p in state.outdated(info.value)],
                "masks": session.digest_of_told if self._settled else None,
            }
        self._tell(values, key="state")

    def _prompt_as_json(self, placed: PlacedPrompt) -> dict:
        known = self._prompts_as_json.get(placed)
        if known is None:
            known = self._prompts_as_json[placed] = {
                "number": placed.id,
                "segment": placed.segment,
                "prompt": plain.prompt_to_json(placed.prompt),
                "view": plain.view_to_json(placed.view),
            }
        return known

    def _answer(self, intent: dict[str, Any], value: Any, arrays: dict[str, Any] | None = None) -> None:
        self._tell({"event": "answered", "request": plain.number_from_json(intent["request"]), "value": value},
                     (lambda: arrays) if arrays else None)  # fmt: skip

    # ---- intents

    def _do_set_volume(self, intent, _) -> None:
        self._session.set_volume(intent["volume"], intent["window"])
        self._waiting_bytes = 0
        self._jobs.clear()
        self._waiting_for_objects.clear()
        self._volume_number = intent["upload"]

    def _do_set_window(self, intent, _) -> None:
        window = plain.window_from_json(intent["window"])
        if window is None:
            from SAMFineTuneLib.images.intensity_window import choose_window

            window = choose_window(self._session._require_volume(), None)
        if window != self._session.window:
            self._session.set_window(window)

    def _do_set_model(self, intent, _) -> None:
        asked = [plain.text_from_json(intent[name]) for name in ("model", "adapter", "device")]
        self._tell({"event": "opening", "model": asked[0]}, key="model")
        try:
            predictor = self._engines.predictor(*asked)
        except Exception:
            now = self._session.predictor
            self._tell_model(now.engine if now is not None else None)
            raise
        self._session.set_model(predictor, asked[1], self._engines.recipe(asked[1]))
        self._tell_model(predictor.engine)

    def _tell_model(self, engine) -> None:
        model, device = (engine.spec.id, engine.device) if engine is not None else ("", "")
        self._tell({"event": "model", "model": model, "device": device}, key="model")

    def _do_add_segment(self, intent, _) -> None:
        name, value = plain.text_from_json(intent["name"]), plain.number_from_json(intent["value"])
        self._session.add_segment(name, value, _color(intent["color"]))

    def _do_change_segment(self, intent, _) -> None:
        name = None if intent["name"] is None else plain.text_from_json(intent["name"])
        self._session.change_segment(intent["value"], name, _color(intent["color"]))

    def _do_remove_segment(self, intent, _) -> None:
        self._session.remove_segment(intent["value"])

    def _do_add_prompt(self, intent, _) -> None:
        prompt, view = plain.prompt_from_json(intent["prompt"]), plain.view_from_json(intent["view"])
        number = plain.number_from_json(intent["prompt_number"])
        self._session.add_prompt(intent["segment"], prompt, view, number)

    def _do_move_prompt(self, intent, _) -> None:
        view = None if intent["view"] is None else plain.view_from_json(intent["view"])
        self._session.move_prompt(intent["prompt_number"], plain.prompt_from_json(intent["prompt"]), view)

    def _do_delete_prompt(self, intent, _) -> None:
        self._session.delete_prompt(intent["prompt_number"])

    def _do_clear(self, intent, _) -> None:
        plane = None if intent["plane"] is None else plain.plane_from_json(intent["plane"])
        self._session.clear(intent["segment"], plane)

    def _do_undo(self, intent, _) -> None:
        self._session.undo()

    def _do_redo(self, intent, _) -> None:
        self._session.redo()

    def _do_propagate(self, intent, _) -> None:
        settings = PropagationSettings(**(intent["settings"] or {}))
        number = self._free_job(intent)
        job = self._session.propagate(intent["segment"], settings, intent["orientation"], number)
        self._jobs[number] = job

    def _do_everything(self, intent, _) -> None:
        settings = EverythingSettings(**(intent["settings"] or {}))
        number = self._free_job(intent)
        job = self._session.everything(intent["orientation"], settings, intent["first"], intent["last"], number)
        self._keep_found(number, job)

    def _do_find_labels(self, intent, _) -> None:
        from SAMFineTuneLib.cases.case_slices import learned_orientation
        from SAMFineTuneLib.images.intensity_window import choose_window
        from SAMFineTuneLib.session.doubts import doubts_about_adapter

        asked = [plain.text_from_json(intent[name]) for name in ("model", "adapter", "device")]
        number, volume = self._free_job(intent), self._session._require_volume()
        predictor, recipe = self._engines.predictor(*asked), self._engines.recipe(asked[1])
        orientation = intent["orientation"] or learned_orientation(volume, recipe)
        window = choose_window(volume, recipe.get("window"))
        for sentence in doubts_about_adapter(volume, recipe):
            self._session._tell(events.Notice(sentence))
        ends = intent["first"], intent["last"]
        self._keep_found(number, self._session.find_labels(predictor, window, orientation, *ends, number))

    def _keep_found(self, number: int, job: EverythingJob) -> None:
        """With what the jobs before found, as far as it may still be adopted."""
        kept = [known for known, other in self._jobs.items() if isinstance(other, EverythingJob) and other.done]
        for known in kept[: len(kept) - _MOST_OBJECT_JOBS + 1]:
            del self._jobs[known]
        self._jobs[number] = job

    def _free_job(self, intent) -> int:
        number = plain.number_from_json(intent["job"])
        if number in self._jobs:
            raise UserError(f"Job {number} is there already.")
        return number

    def _do_adopt(self, intent, _) -> None:
        job = self._jobs.get(intent["job"])
        if isinstance(job, EverythingJob) and not job.done:  # a replay runs it again
            self._waiting_for_objects.append(intent)
            return
        names = intent.get("names")  # an older client names them afterwards
        names = None if names is None else [plain.text_from_json(name) for name in names]
        self._session.adopt(self._found(intent), [plain.number_from_json(value) for value in intent["values"]], names)
        document = self._document()
        self._tell({"event": "stored", "intent": intent["number"], "step": "add found objects"},
                     lambda: {"document": document})  # fmt: skip

    def _do_object_masks(self, intent, _) -> None:
        arrays, value = {}, []
        from SAMFineTuneLib.images.slice_plane import aligned_plane

        for item in self._found(intent):
            for index, mask in sorted(item.masks.items()):
                plane = aligned_plane(self._session.volume, item.orientation, index)
                arrays[str(len(value))] = mask.data
                value.append({"object": item.value, "plane": plane.to_dict()})
        self._answer(intent, value, arrays)

    def _found(self, intent) -> list:
        job = self._jobs.get(intent["job"])
        if not isinstance(job, EverythingJob) or not job.done:
            raise UserError("These objects are no longer there; find them again.")
        by_number = {item.value: item for item in job.objects}
        if not set(intent["objects"]) <= set(by_number):
            raise UserError("One of these objects is not there; find them again.")
        return [by_number[number] for number in intent["objects"]]

    def _do_cancel(self, intent, _) -> None:
        job = self._jobs.get(intent["job"])
        if job is not None and not job.done:
            job.cancel(bool(intent["keep"]))
        elif intent["job"] in self._downloads:
            self._downloads[intent["job"]].set()

    def _do_embed(self, intent, _) -> None:
        self._session.embed(intent["orientation"], plain.number_from_json(intent["index"]))

    def _do_stop_embedding(self, intent, _) -> None:
        self._session.stop_embedding()

    def _do_tell_again(self, intent, _) -> None:
        """The client shows other masks than it should: all of them once more."""
        self._session.told_again()

    def _do_snapshot(self, intent, _) -> None:
        self._answer(intent, None, {"document": self._document()})

    def _do_checkpoint(self, intent, _) -> None:
        """Stands in a journal for what a client knows of earlier."""

    def _do_restore(self, intent, array) -> None:
        """`step` names a step that can be undone; without it the session starts over with the document.

        The window is the client's to set.
        """
        try:
            document = json.loads(array.tobytes())
        except (ValueError, RecursionError, AttributeError) as error:
            raise UserError("The stored session is damaged; use another copy of it.") from error
        session = self._session
        _, state, made_with = read_document(document, session._require_volume())
        if intent["step"] is not None:
            session.put(plain.text_from_json(intent["step"]), state)
            return
        session.reset(state)
        notice = model_notice(made_with, session.predictor)
        if notice and not self._restoring:
            self._tell({"event": "notice", "text": notice})

    def _do_replay(self, intent, _) -> None:
        """Begin or end of a replay: what the user was told once is not told again."""
        self._restoring = bool(intent["begin"])

    # ---- questions to the library

    def _do_ask(self, intent, _) -> None:
        question = intent["question"]
        if question not in Library.QUESTIONS:
            raise UserError("The server does not know this question; update it.")
        self._beside(intent, lambda: self._library.answer(question, intent))

    def _do_download(self, intent, _) -> None:
        number, model = self._free_job(intent), plain.text_from_json(intent["model"])
        cancelled = self._downloads[number] = threading.Event()

        def report(fraction: float, left: float | None, text: str) -> None:
            self._tell({"event": "busy", "job": number, "what": "download", "fraction": fraction,
                          "seconds_left": left, "text": text}, key=("busy", number, "download"))  # fmt: skip

        def work():
            try:
                return self._library.download(model, report, cancelled.is_set)
            finally:
                del self._downloads[number]
                self._tell({"event": "finished", "job": number, "what": "download", "results": False,
                              "cancelled": cancelled.is_set()})  # fmt: skip

        self._beside(intent, work)

    def _do_install(self, intent, _) -> None:
        upload = self.uploads.pop(plain.number_from_json(intent["upload"]), None)
        if upload is None:
            raise UserError("The model's file has not arrived; import it again.")
        upload.require_whole()
        name = plain.text_from_json(intent["name"])
        model, like = (None if intent[key] is None else plain.text_from_json(intent[key]) for key in ("model", "like"))
        self._beside(intent, lambda: self._library.install(upload.data, name, model, like))

    def _beside(self, intent, work) -> None:
        """Answer what may take long, and needs no session, in a thread of its own."""

        def run() -> None:
            try:
                self._answer(intent, work())
            except Cancelled:
                self._answer(intent, None)
            except Exception as error:
                self._fail(error, intent)

        plain.number_from_json(intent["request"])
        threading.Thread(target=run, name="samfinetune-library", daemon=True).start()


def _color(values) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(part) for part in values)


INTENTS = frozenset(name[4:] for name in dir(HostedSession) if name.startswith("_do_")) - {"set_volume"}
"""What a client may ask of a session."""

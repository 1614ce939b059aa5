"""One session on a worker, as its host sees it: intents go in, events come out of `pump`, nothing blocks.

The client holds what it takes to make the session anew: volume, model, window, and a journal of intents. When the
worker crashes or the line breaks, the volume is sent again and the journal is replayed; the user reads one line.
Prompts, jobs and segments carry numbers that the client chooses, so that all of this may be asked for before the
worker is there. It starts no threads and loads nothing beyond NumPy.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.packed_mask import digest_of_masks
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import LARGEST_VALUE
from SAMFineTuneLib.service.connection import Connection
from SAMFineTuneLib.service.conversation import Conversation, Upload
from SAMFineTuneLib.service.journal import LONG
from SAMFineTuneLib.service.protocol import DEFAULT_MODEL, Told
from SAMFineTuneLib.service.uploads import SendingFile
from SAMFineTuneLib.session import events, intents

_log = logging.getLogger(__name__)

_IDLE_PAUSE = 0.4  # seconds between two looks for news when nothing is expected
_BUSY_PAUSE = 0.004
_JOB_PAUSE = 0.05
_CHECKPOINT = 300  # intents after which the session is stored, so that the journal can be shortened
_MOST_ASKED_AGAIN = 3  # in a row

_BESIDE_VOLUME = (intents.Ask, intents.Download, intents.Install, intents.SetModel, intents.Replay)
_JOBS = {
    intents.Propagate: ("propagate", "Propagating"),
    intents.Everything: ("everything", "Finding objects"),
    intents.FindLabels: ("everything", "Finding objects"),
    intents.Download: ("download", "Downloading"),
}
_OF_ONE_MOMENT = (intents.SetWindow, intents.SetModel, intents.Embed, intents.StopEmbedding, intents.TellAgain)
"""A new session begins with the last ones, or needs none; the journal keeps none of them."""


class Shown(NamedTuple):
    """A mask that was told: where, since which moment it is what it is, and its digest."""

    plane: SlicePlane
    since: int
    digest: str


class SessionClient(Conversation, intents.IntentMethods):
    """One session on a worker. Intents queue; `pump` sends them, fetches answers, keeps the worker alive."""

    def __init__(
        self,
        connection: Connection,
        segments_are_steps: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`segments_are_steps` as in `Session`: False for a host with a table of segments of its own."""
        super().__init__(connection, bool(segments_are_steps), clock)
        self._model = intents.SetModel(DEFAULT_MODEL)
        self._focus: intents.Embed | None = None
        self._embedding = False
        self._prompt_number = self._job_number = self._request_number = 0
        self._segment_values: set[int] = set()
        self._jobs: dict[int, str] = {}
        self._requests: dict[int, type] = {}  # the kind of intent that asked
        self._settled = True
        self._checkpoint = 0  # intent after which the session was stored last
        self._checkpoint_request: int | None = None
        self._object_masks: dict[int, list] = {}  # answers of which a part has come
        self._prompts: dict[int, events.PromptInfo] = {}
        self._moment = 0  # of the newest intent, and the same in every replay
        self._told: dict[tuple[int, str], Shown] = {}  # where the host shows a mask
        self._stale: dict[tuple[int, str], Shown] = {}  # of these, what a new session has not told of yet
        self._asked_again = 0  # in a row, for all masks

    # ---- intents

    def do(self, intent: Any) -> Any:
        """Ask for something. Returns the number that an answer comes under: of the prompt, the job or the request;
        of a segment its label value, of adopted objects all of them; None for what has no number."""
        match intent:
            case intents.SetVolume():
                return self._set_volume(intent)
            case intents.SetWindow():
                self._window = intent.window
                if self._volume is None:
                    return None
            case intents.SetModel():
                self._try_again()
                self._wanted, self._model = True, intent
                if self._session is None:  # a new session begins with it
                    return None
            case intents.Cancel() if intent.job not in self._jobs:
                return None
            case intents.Embed():
                if intent == self._focus:
                    return None
                self._focus, self._embedding = intent, True
            case intents.StopEmbedding():
                self._focus = None
                self._journal.forget(lambda one: isinstance(one, intents.Embed))
            case intents.TellAgain():
                self._stale = dict(self._told)
            case intents.Restore():
                self._end_jobs()
        intent, number = self._numbered(intent)
        if isinstance(intent, _OF_ONE_MOMENT):
            self._journal.forget(lambda one: type(one) is type(intent))
        self._moment += 1
        self._journal.add(intent, self._moment, kept=not isinstance(intent, _OF_ONE_MOMENT))
        self._settled = False
        self._wanted = True
        self._next_look = 0.0
        if len(self._journal) > LONG:
            self._journal.shorten()
        return number

    def set_volume(self, volume: Volume, window: IntensityWindow | None = None) -> None:
        """Start over with another volume; without a window, with the default of its modality. Keeps a reference."""
        self.do(intents.SetVolume(volume, window))

    def set_window(self, window: IntensityWindow | None) -> None:
        """See the volume differently; None is the default of its modality."""
        self.do(intents.SetWindow(window))

    def set_model(self, model_id: str, adapter: str = "", device: str = "auto") -> None:
        """Answer with another model."""
        self.do(intents.SetModel(model_id, adapter, device))

    def find_labels(
        self, model_id: str, adapter: str, device: str = "auto", orientation: str = "", first: int | None = None,
        last: int | None = None,
    ) -> int:  # fmt: skip
        """Find an adapter's labels without prompts; returns the job's number. `Objects` says what was found: an
        object a label, its number that of the class."""
        return self.do(intents.FindLabels(model_id, adapter, device, orientation, first, last))

    # ---- requests: each returns a number, under which `Answered` or `Failed` comes

    def models(self) -> int:
        """Value: a list of dicts with id, name, bytes, licence, where ("bundled", "installed", "download", "import"),
        needs_torch, promptable; what can be added also has licence_note, source, description, needs, how_to_get."""
        return self.do(intents.Ask("models"))

    def adapters(self) -> int:
        """Value: a list of dicts with id."""
        return self.do(intents.Ask("adapters"))

    def cache_info(self) -> int:
        """Value: a dict with entries, bytes, limit."""
        return self.do(intents.Ask("cache_info"))

    def clear_cache(self) -> int:
        """Remove all embeddings from the worker's disk. Value: a dict with freed, in bytes."""
        return self.do(intents.Ask("clear_cache"))

    def remove_model(self, model_id: str) -> int:
        """Delete a model that was added. Value: an empty dict."""
        return self.do(intents.Ask("remove_model", model_id))

    def download(self, model_id: str) -> tuple[int, int]:
        """Fetch a published model, after the user has agreed to its terms; returns the numbers of request and job.

        Value: a dict with model and findings, None when it was cancelled.
        """
        job = self.do(intents.Download(model_id))
        return self._request_number, job

    def import_model(self, path: str, model_id: str | None = None, like: str | None = None) -> int:
        """Send a checkpoint file of this computer to the worker and install it there.

        Value: a dict with model, findings, terms. UserError when the file cannot be read.
        """
        file, upload = SendingFile(path), self._new_upload()
        install, request = self._numbered(intents.Install(upload, file.name, model_id, like))
        self._uploads.append(Upload(upload, file, install))
        self._wanted = True
        return request

    def object_masks(self, job: int, objects: Sequence[int]) -> int:
        """Masks of found objects. Value: a list of (object number, SlicePlane, mask)."""
        return self.do(intents.AskForMasks(job, tuple(objects)))

    def snapshot(self) -> int:
        """The session as `session_to_dict` gives it. Value: that dict."""
        return self.do(intents.TakeSnapshot())

    def restore(self, document: dict[str, Any]) -> None:
        """Go on from such a dict, with nothing to undo; after `set_volume`."""
        window = self._window
        try:
            self._prompt_number = max([self._prompt_number, *(int(one["number"]) for one in document["prompts"])])
            self._segment_values = {int(one["value"]) for one in document["segments"]}
            self._moment = max([self._moment, *(int(moment) for _, _, moment in document.get("since", ()))])
            window = IntensityWindow(**document["window"])
        except (KeyError, TypeError, ValueError, AttributeError):  # the worker finds the sentence for it
            pass
        self.set_window(window)
        self.do(intents.Restore(json.dumps(document, allow_nan=False).encode()))

    def tell_again(self) -> None:
        """Have every mask told once more, and those that are gone taken back."""
        self._asked_again += 1
        self.do(intents.TellAgain())

    # ---- what is known

    @property
    def outstanding(self) -> bool:
        """Whether something is asked for that was not answered yet, or runs: only then do events come."""
        if self._state == "failed" or not self._wanted:
            return bool(self._inbox or self._out)
        waits = self._session is None or bool(self._uploads) or not self._journal.all_heard or not self._settled
        works = self._jobs or self._requests or self._opening
        return waits or bool(works or self._inbox or self._out)

    @property
    def jobs(self) -> set[int]:
        """Numbers of the jobs about the volume that run, as far as is known."""
        return {number for number, what in self._jobs.items() if what != "download"}

    @property
    def segment_values(self) -> set[int]:
        """Label values of segments that the session has or will have, as far as is known."""
        return set(self._segment_values)

    @property
    def told(self) -> Mapping[tuple[int, str], Shown]:
        """The masks that were told, by segment and plane key; all that there are once the session has settled."""
        return self._told

    # ---- inside: intents

    def _set_volume(self, intent: intents.SetVolume) -> None:
        self._try_again()
        self._volume, self._window, self._focus = intent.volume, intent.window, None
        self._end_jobs()
        self._end_requests()
        self._journal.forget(lambda one: not isinstance(one, _BESIDE_VOLUME))
        self._segment_values = set()
        self._told, self._stale = {}, {}
        self._settled = True
        self._send_volume()
        self._wanted = True

    def _numbered(self, intent: Any) -> tuple[Any, Any]:
        """The intent with numbers where it has none, and the number that its answer comes under."""
        number = None
        match intent:
            case intents.AddSegment():
                number = self._free_values(1)[0] if intent.value is None else intent.value
                self._segment_values.add(number)
                intent = replace(intent, value=number)
            case intents.Adopt():
                number = self._free_values(len(intent.objects)) if intent.values is None else intent.values
                self._segment_values |= set(number)
                intent = replace(intent, values=number)
            case intents.AddPrompt():
                number = self._prompt_number + 1 if intent.number is None else intent.number
                self._prompt_number = max(self._prompt_number, number)
                intent = replace(intent, number=number)
        if hasattr(intent, "request"):
            self._request_number = number = self._request_number + 1
            self._requests[number] = type(intent)
            intent = replace(intent, request=number)
        if type(intent) in _JOBS:
            self._job_number = number = self._job_number + 1
            self._jobs[number], text = _JOBS[type(intent)]
            self._out.append(events.Busy(number, self._jobs[number], None, None, text))
            intent = replace(intent, job=number)
        return intent, number

    def _free_values(self, count: int) -> tuple[int, ...]:
        free = (value for value in range(1, LARGEST_VALUE + 1) if value not in self._segment_values)
        return tuple(value for value, _ in zip(free, range(count), strict=False))

    def _end_jobs(self) -> None:
        """The session they belonged to has ended."""
        for number, what in list(self._jobs.items()):
            if what != "download":
                del self._jobs[number]
                self._out.append(events.Finished(number, what, cancelled=True))

    def _end_requests(self) -> None:
        """Questions about a volume that was removed."""
        for number, kind in list(self._requests.items()):
            if kind in (intents.TakeSnapshot, intents.AskForMasks):
                del self._requests[number]
                self._object_masks.pop(number, None)
                if number != self._checkpoint_request:
                    self._out.append(events.Failed("Another volume was opened meanwhile.", request=number))

    def _session_begins(self) -> tuple[list[Any], list[Any]]:
        self._settled = False
        focus = [] if self._focus is None else [self._focus]
        return [intents.Replay(True), self._model], [*focus, intents.Replay(False)]

    def _session_is_lost(self) -> None:
        self._stale = dict(self._told)
        self._object_masks = {}

    # ---- inside: events

    def _pause(self) -> float:
        if not self._settled or self._requests or self._opening:
            return _BUSY_PAUSE
        if self._jobs or self._embedding:
            return _JOB_PAUSE
        return _IDLE_PAUSE

    def _take(self, told: Told) -> None:
        event = told.event
        of_this_volume = told.volume == self._volume_number
        match event:
            case events.MaskChanged() if of_this_volume:
                self._take_mask(event)
            case events.StateChanged() if of_this_volume and told.applied >= self._journal.last:
                self._take_state(event)
            case events.Busy():
                known = event.job is None or event.job in self._jobs
                if known and (event.what == "download" or of_this_volume):
                    self._out.append(event)
            case events.Objects() if of_this_volume:
                self._out.append(event)
            case events.Notice():
                self._out.append(event)
            case events.Finished():
                self._take_finished(event, told.applied)
            case events.Failed():
                self._take_failed(event)
            case events.Answered():
                self._answered(event.request, event.value)
            case events.Snapshot():
                self._take_snapshot(event)
            case events.ObjectMasks():
                self._take_object_masks(event)
            case events.Stored():
                self._journal.replace(event.intent, intents.Restore(event.document, event.step))
                self._checkpoint = self._journal.last
            case events.ModelChanged(opening=True):
                self._opening = event.model
            case events.ModelChanged():
                self._opening, self._model_open, self._device = "", event.model, event.device

    def _take_mask(self, event: events.MaskChanged) -> None:
        place = event.segment, event.plane.key
        self._stale.pop(place, None)
        if event.packed is None:
            self._told.pop(place, None)
        else:
            self._told[place] = Shown(event.plane, event.since, event.digest)
        self._out.append(event)

    def _take_state(self, state: events.StateChanged) -> None:
        known, self._prompts = self._prompts, {info.number: info for info in state.prompts}
        for number, info in self._prompts.items():  # one that is as it was stays the same object: cheap to compare
            if known.get(number) == info:
                self._prompts[number] = known[number]
        self._settled = state.settled
        self._segment_values = {info.value for info in state.segments}
        self._take_back_stale()
        self._compare_masks(state.masks)
        self._out.append(replace(state, prompts=tuple(self._prompts.values())))
        self._store_now_and_then()

    def _take_back_stale(self) -> None:
        """Masks that a lost session had told of, and that did not come again."""
        if not self._settled or "propagate" in self._jobs.values():
            return
        for place, told in self._stale.items():
            self._told.pop(place, None)
            self._out.append(events.MaskChanged(place[0], told.plane))
        self._stale = {}

    def _compare_masks(self, theirs: str | None) -> None:
        """Have all masks told once more when those that were told are others than the session's: some got lost."""
        if theirs is None or "propagate" in self._jobs.values():  # masks come while no state does
            return
        if theirs == digest_of_masks((*place, told.since, told.digest) for place, told in self._told.items()):
            self._asked_again = 0
        elif self._asked_again < _MOST_ASKED_AGAIN:
            _log.warning("Masks got lost on their way; all are told once more")
            self.tell_again()
        elif self._asked_again == _MOST_ASKED_AGAIN:
            self._asked_again += 1
            text = "The masks shown are not those of the session; save the scene and open it again."
            self._out.append(events.Failed(text))

    def _take_finished(self, event: events.Finished, applied: int) -> None:
        job, what = event.job, event.what
        if job is None:
            self._embedding = False
            self._out.append(event)
            return
        if self._jobs.pop(job, None) is None:
            return
        kept = what == "everything" and not event.cancelled  # what it found may be adopted at any time
        ended = intents.Cancel if kept else (intents.Cancel, *_JOBS)
        self._journal.forget(lambda one: getattr(one, "job", None) == job and isinstance(one, ended))
        if event.document is not None:
            self._journal.insert_after(applied, intents.Restore(event.document, what))
            self._checkpoint = self._journal.last
        self._take_back_stale()
        self._out.append(replace(event, document=None))

    def _take_failed(self, event: events.Failed) -> None:
        job, request = event.job, event.request
        if event.intent is not None:
            self._journal.drop(event.intent)
            if self._jobs.pop(job, None) is None:
                job = None
        if request is not None:
            self._forget_request(request)
            if self._requests.pop(request, None) is None or request == self._checkpoint_request:
                return
        self._out.append(replace(event, job=job, intent=None))

    def _take_snapshot(self, event: events.Snapshot) -> None:
        if event.request == self._checkpoint_request:
            self._requests.pop(event.request, None)
            self._journal.keep_checkpoint(event.request, event.document)
        else:
            self._answered(event.request, json.loads(event.document))

    def _take_object_masks(self, event: events.ObjectMasks) -> None:
        """Masks come a few at a time: unpacking all at once would hold up the window."""
        masks = self._object_masks.setdefault(event.request, [])
        masks += [(number, plane, mask.unpack()) for number, plane, mask in event.masks]
        if event.last:
            self._answered(event.request, self._object_masks.pop(event.request))

    def _answered(self, request: int, value: Any) -> None:
        self._forget_request(request)
        if self._requests.pop(request, None) is not None:
            self._out.append(events.Answered(request, value))

    def _forget_request(self, request: int) -> None:
        self._journal.forget(lambda one: getattr(one, "request", None) == request)

    def _store_now_and_then(self) -> None:
        """Long sessions are stored, so that a replay need not begin at their beginning."""
        if self._journal.last - self._checkpoint > _CHECKPOINT:
            self._checkpoint = self._journal.last
            intent, self._checkpoint_request = self._numbered(intents.TakeSnapshot())
            self._journal.add(intent)

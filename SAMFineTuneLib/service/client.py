"""The client of a session on a server: takes intents, returns events from `pump`, and never blocks.

It keeps what it needs to restore the session: volume, model, window, and a journal of intents. After a crash of the
worker or a lost connection, its `Conversation` sends the volume again and replays the journal; the user reads one line.
The client chooses the numbers of prompts, jobs and segments, so that they can be used before the worker runs. It starts
no threads and imports nothing beyond NumPy.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts import LARGEST_VALUE
from SAMFineTuneLib.service.connection import Connection
from SAMFineTuneLib.service.conversation import Conversation
from SAMFineTuneLib.service.journal import LONG, Journal
from SAMFineTuneLib.service.protocol import DEFAULT_MODEL, Told
from SAMFineTuneLib.service.send_uploads import SendingFile
from SAMFineTuneLib.service.shown_masks import Shown, ShownMasks
from SAMFineTuneLib.service.wire import WireError
from SAMFineTuneLib.session import events, intents

_log = logging.getLogger(__name__)

_IDLE_PAUSE = 0.4  # seconds between two checks for news when nothing is expected
_JOB_PAUSE = 0.05
_BUSY_PAUSE = 0.004
_CHECKPOINT = 300  # intents after which the session is stored, so that the journal can be shortened
_MOST_ASKED_AGAIN = 3  # in a row

_BESIDE_VOLUME = (
    intents.Ask, intents.Download, intents.Install, intents.SetModel, intents.SetVolumetric, intents.Replay
)  # fmt: skip
_JOBS = {
    intents.Propagate: "propagate",
    intents.Everything: "everything",
    intents.FindLabels: "everything",
    intents.Download: "download",
}
_DOING = {"propagate": "Propagating", "everything": "Finding objects", "download": "Downloading"}
_OF_ONE_MOMENT = (intents.SetWindow, intents.SetModel, intents.Embed, intents.StopEmbedding, intents.TellAgain)
"""A new session begins with the last ones, or needs none; the journal keeps none of them."""


class SessionClient(intents.IntentMethods):
    """One session on a server. Intents queue; `pump` sends them, fetches events, keeps a local worker alive.

    Args:
        connection: the way to the server.
        segments_are_steps: as in `Session`; False for a host with a table of segments of its own.
    """

    def __init__(self, connection: Connection, segments_are_steps: bool = True) -> None:
        self.segments_are_steps = bool(segments_are_steps)
        self._connection = connection
        self._journal = Journal()
        self._out: list[events.Event] = []
        self._conversation = Conversation(
            connection, self._journal, self.segments_are_steps, self._out.append, self._begin_session,
            self._forget_session,
        )  # fmt: skip
        self._status = events.Status()
        self._closed = False

        self._model = intents.SetModel(DEFAULT_MODEL)
        self._before: dict[int, intents.SetModel] = {}  # the model before each choice, by the choice's number
        self._moment = 0  # of the newest intent; the same in every replay
        self._focus: intents.Embed | None = None
        self._embedding = self._volumetric = False
        self._prompt_number = self._job_number = self._request_number = 0
        self._segment_values: set[int] = set()
        self._jobs: dict[int, str] = {}
        self._requests: dict[int, type] = {}  # the kind of intent that made the request
        self._checkpoint = 0  # intent after which the session was stored last
        self._checkpoint_request: int | None = None

        self._device = self._opening = ""
        self._model_open: str | None = None  # empty when none could be opened
        self._settled = True
        self._prompts: dict[int, events.PromptInfo] = {}
        self._object_masks: dict[int, list] = {}  # answers that have arrived in part
        self._shown = ShownMasks()
        self._asked_again = 0  # in a row, for all masks

    # ---- what the host calls

    @property
    def status(self) -> events.Status:
        """State of the worker."""
        return self._status

    def start(self) -> None:
        """Connect now rather than with the first intent, for "Test connection"."""
        self._conversation.wanted = True

    def retry(self) -> None:
        """Try again after a failure. Choosing another volume or model does so, too."""
        self._conversation.retry()

    def pump(self, budget_seconds: float = 0.03) -> list[events.Event]:
        """Send and receive for at most about this long; returns the events since the last call, in order."""
        end = time.monotonic() + budget_seconds
        while not self._closed and time.monotonic() < end:
            if self._conversation.inbox:
                self._take_next()
            elif not self._conversation.move(self._pause(), self._settled):
                break
        self._update_status()
        told = self._out[:]
        self._out.clear()  # the conversation adds to this very list
        return told

    def close(self) -> None:
        """End the session, and a local worker with it. The client cannot be used afterwards."""
        if self._closed:
            return
        self._closed = True
        self._conversation.close()
        self._journal.clear()
        self._update_status()

    # ---- intents

    def do(self, intent: Any) -> Any:
        """Queue an intent. Returns the number of the prompt, job or request, the label value of a segment, all label
        values of adopted objects, or None."""
        match intent:
            case intents.SetVolume():
                return self._set_volume(intent)
            case intents.SetWindow():
                self._conversation.window = intent.window
                if self._conversation.volume is None:
                    return None
            case intents.SetModel():
                self.retry()
                before, self._model = self._model, intent
                if self._conversation.session is None:  # a new session begins with it
                    return None
            case intents.SetVolumetric() if intent.on == self._volumetric:
                return None
            case intents.SetVolumetric():
                self._volumetric = intent.on
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
                self._shown.await_again()
            case intents.Restore():
                self._end_jobs()
        intent, number = self._numbered(intent)
        if isinstance(intent, _OF_ONE_MOMENT):
            self._journal.forget(lambda one: type(one) is type(intent))
        self._moment += 1
        self._journal.add(intent, self._moment, kept=not isinstance(intent, _OF_ONE_MOMENT))
        if intent is self._model:
            self._before[self._journal.last] = before
        self._settled = False
        self._conversation.wanted = True
        self._conversation.hurry()
        if len(self._journal) > LONG:
            self._journal.shorten()
        return number

    set_model = intents.asks(intents.SetModel)

    @property
    def model(self) -> intents.SetModel:
        """The model that answers, or will: the latest one that was chosen and not refused."""
        return self._model

    @property
    def has_no_model(self) -> bool:
        """Whether the server could open none."""
        return self._model_open == ""

    def look_at(self, plane: SlicePlane) -> None:
        """Have the model prepare the plane that the user looks at while it has nothing else to do."""
        self._conversation.looked_at = plane
        self._conversation.hurry()

    # ---- requests, beside `ask`, `ask_for_masks` and `take_snapshot`: `Answered` or `Failed` comes under their number

    def download(self, model_id: str) -> tuple[int, int]:
        """Fetch a published model, after the user has agreed to its terms; returns the numbers of request and job.

        Value: a dict with model and findings, None when it was cancelled.
        """
        job = self.do(intents.Download(model_id))
        return self._request_number, job

    def import_model(self, path: str, model_id: str | None = None, like: str | None = None) -> int:
        """Send a checkpoint file of this computer to the worker and install it there.

        Args:
            path: the file.
            model_id: of the new model, by default made of the file's name.
            like: id of the model whose architecture it has.

        Returns:
            Number of the request, whose answer's value is a dict with model, findings, terms.

        Raises:
            UserError: when the file cannot be read.
        """
        file, upload = SendingFile(path), self._conversation.new_upload_number()
        install, request = self._numbered(intents.Install(upload, file.name, model_id, like))
        self._conversation.send_file(file, install)
        return request

    def restore(self, document: dict[str, Any]) -> None:
        """Continue from such a document, with nothing to undo; call `set_volume` before."""
        window = self._conversation.window
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
        """Request every mask once more; masks that do not come again are removed."""
        self._asked_again += 1
        self.do(intents.TellAgain())

    # ---- what is known

    @property
    def outstanding(self) -> bool:
        """Whether an answer is missing or a job runs: only then do events come."""
        talk = self._conversation
        if talk.inbox or self._out:
            return True
        if talk.failure or not talk.wanted:
            return False
        waits = talk.session is None or talk.uploads or not self._journal.all_confirmed or not self._settled
        return bool(waits or self._jobs or self._requests or self._opening)

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
        """The masks that the server sent, by segment and plane key; complete once the session has settled."""
        return self._shown.known

    # ---- inside: intents

    def _set_volume(self, intent: intents.SetVolume) -> None:
        talk = self._conversation
        talk.retry()
        talk.volume, talk.window, talk.looked_at = intent.volume, intent.window, None
        self._focus = None
        self._end_jobs()
        self._end_requests()
        self._journal.forget(lambda one: not isinstance(one, _BESIDE_VOLUME))
        self._segment_values = set()
        self._shown.clear()
        self._settled = True
        talk.send_volume()

    def _numbered(self, intent: Any) -> tuple[Any, Any]:
        """Give an intent the numbers that it lacks; returns it and the number that its answer has."""
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
            self._jobs[number] = _JOBS[type(intent)]
            self._tell_job(number)
            intent = replace(intent, job=number)
        return intent, number

    def _tell_job(self, number: int) -> None:
        """Report a job about which no event has come from the server yet."""
        what = self._jobs[number]
        self._out.append(events.Busy(number, what, None, None, _DOING[what]))

    def _free_values(self, count: int) -> tuple[int, ...]:
        free = (value for value in range(1, LARGEST_VALUE + 1) if value not in self._segment_values)
        return tuple(value for value, _ in zip(free, range(count), strict=False))

    def _end_jobs(self, ended: Callable[[int], bool] = lambda number: True) -> None:
        """Report jobs as cancelled whose session has ended."""
        for number in filter(ended, self.jobs):
            self._out.append(events.Finished(number, self._jobs.pop(number), cancelled=True))

    def _end_requests(self) -> None:
        """Report requests about the former volume as failed."""
        for number, kind in list(self._requests.items()):
            if kind in (intents.TakeSnapshot, intents.AskForMasks):
                del self._requests[number]
                self._object_masks.pop(number, None)
                if number != self._checkpoint_request:
                    self._out.append(events.Failed("Another volume was opened meanwhile.", request=number))

    # ---- inside: the server's session

    def _begin_session(self) -> None:
        """Restore a newly opened session to the state of the former one."""
        self._settled = False
        focus = [] if self._focus is None else [self._focus]
        self._journal.start_over([intents.Replay(True), self._model], [*focus, intents.Replay(False)])

    def _forget_session(self) -> None:
        """The server has lost the session; a new one will send all masks again."""
        self._opening = self._device = ""
        self._model_open = None
        self._object_masks = {}
        self._shown.await_again()
        for number in self._jobs:  # each begins anew, and how far it was no longer holds
            self._tell_job(number)

    def _pause(self) -> float:
        """Seconds until the next look for events."""
        if not self._settled or self._requests or self._opening:
            return _BUSY_PAUSE
        return _JOB_PAUSE if self._jobs or self._embedding else _IDLE_PAUSE

    # ---- inside: events

    def _take_next(self) -> None:
        """Handle one event. Unknown ones, from a newer version, are ignored."""
        try:
            told = self._conversation.inbox.popleft().read()
        except (WireError, UserError) as error:
            _log.warning("An event was not understood: %s", error)
            return
        self._take(told)

    def _take(self, told: Told) -> None:
        event = told.event
        of_this_volume = told.volume == self._conversation.volume_number
        match event:
            case events.MaskChanged() if of_this_volume:
                self._shown.take(event)
                self._out.append(event)
            case events.StateChanged() if of_this_volume and told.applied >= self._journal.last:
                self._take_state(event)
            case events.Busy():
                if event.job is not None and event.job < 0:  # the session began it itself
                    self._jobs[event.job] = event.what
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
                self._journal.insert(event.intent, intents.Restore(event.document, event.step), replaces=True)
                self._checkpoint = self._journal.last
            case events.ModelChanged(opening=True):
                self._opening = event.model
            case events.ModelChanged():
                self._opening, self._model_open, self._device = "", event.model, event.device

    def _take_state(self, state: events.StateChanged) -> None:
        known, self._prompts = self._prompts, {info.number: info for info in state.prompts}
        for number, info in self._prompts.items():  # an unchanged one stays the same object, which is cheap to compare
            if _is_same(known.get(number), info):
                self._prompts[number] = known[number]
        self._settled = state.settled
        if state.settled:  # jobs that a lost session began
            self._end_jobs(lambda number: number < 0)
        self._segment_values = {info.value for info in state.segments}
        self._take_back_stale()
        self._compare_masks(state.masks)
        self._out.append(replace(state, prompts=tuple(self._prompts.values())))
        self._store_now_and_then()

    def _take_back_stale(self) -> None:
        """Remove masks of a lost session that did not come again."""
        if self._settled and "propagate" not in self._jobs.values():
            self._out.extend(self._shown.give_up())

    def _compare_masks(self, theirs: str | None) -> None:
        """Request all masks once more when they differ from the session's, because some were lost."""
        if theirs is None or "propagate" in self._jobs.values():  # masks arrive while no state does
            return
        if self._shown.agree(theirs):
            self._asked_again = 0
        elif self._asked_again < _MOST_ASKED_AGAIN:
            _log.warning("Masks got lost on their way; all are sent once more")
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
        kept = what == "everything" and not event.cancelled  # its objects may be adopted at any time
        ended = intents.Cancel if kept else (intents.Cancel, *_JOBS)
        self._journal.forget(lambda one: getattr(one, "job", None) == job and isinstance(one, ended))
        if event.document is not None:
            self._journal.insert(applied, intents.Restore(event.document, event.step))
            self._checkpoint = self._journal.last
        self._take_back_stale()
        self._out.append(replace(event, document=None))

    def _take_failed(self, event: events.Failed) -> None:
        job, request = event.job, event.request
        if event.intent is not None:
            self._journal.drop(event.intent)
            self._take_back_model(event.intent)
            if self._jobs.pop(job, None) is None:
                job = None
        if request is not None:
            self._forget_request(request)
            if self._requests.pop(request, None) is None or request == self._checkpoint_request:
                return
        self._out.append(replace(event, job=job, intent=None))

    def _take_back_model(self, number: int) -> None:
        """When a choice of a model was refused, continue with the model before."""
        before = self._before.pop(number, None)
        later = [one for one in self._before if one > number]
        if before is not None and later:
            self._before[min(later)] = before
        elif before is not None:
            self._model = before

    def _take_snapshot(self, event: events.Snapshot) -> None:
        if event.request == self._checkpoint_request:
            self._requests.pop(event.request, None)
            self._journal.keep_checkpoint(event.request, event.document)
        else:
            self._answered(event.request, json.loads(event.document))

    def _take_object_masks(self, event: events.ObjectMasks) -> None:
        """Unpack masks as they come, a few at a time, so that the window does not stop."""
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
        """Request a stored session now and then, so that a replay of a long session can begin with it."""
        if self._journal.last - self._checkpoint > _CHECKPOINT:
            self._checkpoint = self._journal.last
            intent, self._checkpoint_request = self._numbered(intents.TakeSnapshot())
            self._journal.add(intent)

    # ---- inside: status

    def _update_status(self) -> None:
        status = self._describe()
        if status != self._status:
            self._status = status
            self._out.append(events.StatusChanged(status))

    def _describe(self) -> events.Status:
        talk = self._conversation
        place, _, precision = self._device.rstrip(")").rpartition(", ")
        describe = functools.partial(
            events.Status, model=self._model_open or "", device=self._device, precision=precision if place else "",
            version=talk.version,
        )  # fmt: skip
        if self._closed or not talk.wanted:
            return describe()
        if talk.failure:
            return describe("failed", talk.failure)
        if not talk.greeted or talk.session is None:
            return describe("starting" if self._connection.is_local else "connecting", self._connection.waiting)
        if talk.uploads and talk.uploads[0].install is None:
            upload = talk.uploads[0]
            fraction = round(upload.received / upload.what.size, 2)
            return describe("uploading", "The volume is handed to the worker.", fraction)
        if self._opening:
            return describe("ready", f"The model {self._opening} is opened.")
        if self._model_open:
            return describe("ready", f"{self._model_open} on {self._device}")
        return describe("ready", "Ready." if self._model_open is None else "No model is open; choose one.")


def _is_same(known: events.PromptInfo | None, now: events.PromptInfo) -> bool:
    """Whether a prompt is unchanged. An oblique view is a new object in every message."""
    return known is not None and replace(known, view="") == replace(now, view="") and _key(known) == _key(now)


def _key(info: events.PromptInfo) -> str:
    return info.view if isinstance(info.view, str) else info.view.key

"""One session on a worker, as its host sees it: intents go in, events come out of `pump`, nothing blocks.

The client holds what it takes to make the session anew: volume, model, window, and a journal of intents. When the
worker crashes or the line breaks, the volume is sent again and the journal is replayed; the user reads one line.
Prompts, jobs and segments carry numbers that the client chooses, so that all of this may be asked for before the
worker is there. It starts no threads and loads nothing beyond NumPy.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.packed_mask import digest_of_masks
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import LARGEST_VALUE, Prompt
from SAMFineTuneLib.service import decoding
from SAMFineTuneLib.service import json_values as plain
from SAMFineTuneLib.service.connection import Connection
from SAMFineTuneLib.service.conversation import Conversation, Upload
from SAMFineTuneLib.service.journal import LONG
from SAMFineTuneLib.service.protocol import DEFAULT_MODEL
from SAMFineTuneLib.service.sending import SendingFile
from SAMFineTuneLib.session.events import Answered, Failed, Finished, MaskChanged, Notice

_log = logging.getLogger(__name__)

_IDLE_PAUSE = 0.4  # seconds between two looks for news when nothing is expected
_BUSY_PAUSE = 0.008
_JOB_PAUSE = 0.05
_BESIDE = ("ask", "download", "install", "set_model", "replay")  # not about the volume
_MASKS_AT_ONCE = 16
_CHECKPOINT = 300  # intents after which the session is stored, so that the journal can be shortened
_MOST_ASKED_AGAIN = 3  # in a row


class Shown(NamedTuple):
    """A mask that was told: where, since which moment it is what it is, and what it is recognised by."""

    plane: SlicePlane
    since: int
    digest: str


class SessionClient(Conversation):
    """One session on a worker. Intents queue; `pump` sends them, fetches answers, keeps the worker alive."""

    def __init__(
        self,
        connection: Connection,
        segments_are_steps: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`segments_are_steps` as in `Document`: False for a host with a table of segments of its own."""
        super().__init__(connection, bool(segments_are_steps), clock)
        self._model = (DEFAULT_MODEL, "", "auto")
        self._focus: tuple[str, int] | None = None
        self._prompt_number = self._job_number = self._request_number = 0
        self._segment_values: set[int] = set()
        self._jobs: dict[int, str] = {}
        self._requests: dict[int, str] = {}
        self._settled = True
        self._checkpoint = 0  # intent after which the session was stored last
        self._unpacked: dict[int, list] = {}  # answers of which a part is taken apart
        self._states = decoding.States()
        self._moment = 0  # of the newest intent, and the same in every replay
        self._told: dict[tuple[int, str], Shown] = {}  # where the host shows a mask
        self._stale: dict[tuple[int, str], Shown] = {}  # of these, what a new session has not told of yet
        self._asked_again = 0  # in a row, for all masks

    # ---- intents

    def set_volume(self, volume: Volume, window: IntensityWindow | None = None) -> None:
        """Start over with another volume; without a window, with the default of its modality. Keeps a reference."""
        self._try_again()
        self._volume, self._window, self._focus = volume, window, None
        self._end_jobs()
        self._end_requests()
        self._journal.forget(lambda values: values["do"] not in _BESIDE)
        self._segment_values = set()
        self._told, self._stale = {}, {}
        self._settled = True
        self._send_volume()
        self._wanted = True

    def set_window(self, window: IntensityWindow | None) -> None:
        """See the volume differently; None is the default of its modality."""
        self._window = window
        if self._volume is not None:
            self._journal.forget(lambda values: values["do"] == "set_window")
            self._intend("set_window", kept=False, window=plain.window_to_json(window))

    def set_model(self, model_id: str, adapter: str = "", device: str = "auto") -> None:
        """Answer with another model."""
        self._try_again()
        self._model = (model_id, adapter, device)
        self._journal.forget(lambda values: values["do"] == "set_model")
        if self._session is not None:  # a new session begins with it
            self._intend("set_model", kept=False, **self._model_values())
        self._wanted = True

    def add_segment(self, value: int, name: str, color: Sequence[float] | None = None) -> None:
        """A new segment; `value` must be free."""
        self._segment_values.add(value)
        self._intend("add_segment", value=int(value), name=str(name), color=_color(color))

    def change_segment(self, value: int, name: str | None = None, color: Sequence[float] | None = None) -> None:
        """Rename or recolour a segment."""
        self._intend("change_segment", value=int(value), name=name, color=_color(color))

    def remove_segment(self, value: int) -> None:
        """Remove a segment with its prompts and masks."""
        self._intend("remove_segment", value=int(value))

    def add_prompt(self, segment: int, prompt: Prompt, view: str | SlicePlane = "axial") -> int:
        """Place a prompt on the slices of an orientation or on an oblique plane; returns its number."""
        self._prompt_number += 1
        self._intend("add_prompt", segment=int(segment), prompt_number=self._prompt_number,
                     prompt=plain.prompt_to_json(prompt), view=plain.view_to_json(view))  # fmt: skip
        return self._prompt_number

    def move_prompt(self, number: int, prompt: Prompt, view: str | SlicePlane | None = None) -> None:
        """Put another prompt in the place of one; it keeps its turn in the order."""
        self._intend("move_prompt", prompt_number=int(number), prompt=plain.prompt_to_json(prompt),
                     view=plain.view_to_json(view))  # fmt: skip

    def delete_prompt(self, number: int) -> None:
        """Remove a prompt."""
        self._intend("delete_prompt", prompt_number=int(number))

    def clear(self, segment: int | None = None, plane: SlicePlane | None = None) -> None:
        """Remove prompts and propagated masks: of a segment, on a plane, or both; without either all of them."""
        self._intend("clear", segment=segment, plane=plain.view_to_json(plane))

    def undo(self) -> None:
        """Take back the last step."""
        self._intend("undo")

    def redo(self) -> None:
        """Do again what was undone last."""
        self._intend("redo")

    def propagate(self, segment: int, settings: Any = None, orientation: str | None = None) -> int:
        """Carry a segment's masks through the volume; returns the job's number.

        `settings` is a PropagationSettings or a dict of its fields.
        """
        number = self._new_job("propagate")
        self._intend("propagate", job=number, segment=int(segment), settings=_settings(settings),
                     orientation=orientation)  # fmt: skip
        return number

    def everything(
        self, orientation: str = "axial", settings: Any = None, first: int | None = None, last: int | None = None
    ) -> int:
        """Find all objects of a range of slices; returns the job's number. `Objects` says what was found."""
        number = self._new_job("everything")
        self._intend("everything", job=number, orientation=orientation, settings=_settings(settings),
                     first=first, last=last)  # fmt: skip
        return number

    def find_labels(
        self, model_id: str, adapter: str, device: str = "auto", orientation: str = "", first: int | None = None,
        last: int | None = None,
    ) -> int:  # fmt: skip
        """Find an adapter's labels without prompts, in its own orientation when none is given; returns the job's
        number. `Objects` says what was found: an object a label, its number that of the class."""
        number = self._new_job("everything")
        self._intend("find_labels", job=number, model=model_id, adapter=adapter, device=device,
                     orientation=orientation, first=first, last=last)  # fmt: skip
        return number

    def adopt(
        self,
        job: int,
        objects: Sequence[int],
        values: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> tuple[int, ...]:
        """Make found objects segments, in one step, of these names or of names of their own; returns the label values
        that they get, the lowest that the session has free when none are given."""
        objects = [int(number) for number in objects]
        if values is None:
            free = (value for value in range(1, LARGEST_VALUE + 1) if value not in self._segment_values)
            values = [value for value, _ in zip(free, objects, strict=False)]
        values = [int(value) for value in values]
        self._segment_values |= set(values)
        named = {} if names is None else {"names": [str(name) for name in names]}
        self._intend("adopt", job=int(job), objects=objects, values=values, **named)
        return tuple(values)

    def cancel(self, job: int, keep_results: bool = True) -> None:
        """Stop a job (a download too); what it found stays unless told otherwise."""
        if job in self._jobs:
            self._intend("cancel", job=int(job), keep=bool(keep_results))

    def embed(self, orientation: str, index: int) -> None:
        """Embed slices in the background: this one, its neighbours outwards, the rest. Call again to move on."""
        if self._focus != (orientation, int(index)):
            self._focus = (orientation, int(index))
            self._journal.forget(lambda values: values["do"] == "embed")
            self._intend("embed", kept=False, orientation=orientation, index=int(index))

    def stop_embedding(self) -> None:
        """Embed nothing more in the background."""
        self._focus = None
        self._journal.forget(lambda values: values["do"] == "embed")
        self._intend("stop_embedding", kept=False)

    # ---- requests: each returns a number, under which `Answered` or `Failed` comes

    def models(self) -> int:
        """Value: a list of dicts with id, name, bytes, licence, where ("bundled", "installed", "download", "import"),
        needs_torch, promptable; what can be added also has licence_note, source, description, needs, how_to_get."""
        return self._ask("models")

    def adapters(self) -> int:
        """Value: a list of dicts with id."""
        return self._ask("adapters")

    def cache_info(self) -> int:
        """Value: a dict with entries, bytes, limit."""
        return self._ask("cache_info")

    def clear_cache(self) -> int:
        """Remove all embeddings from the worker's disk. Value: a dict with freed, in bytes."""
        return self._ask("clear_cache")

    def remove_model(self, model_id: str) -> int:
        """Delete a model that was added. Value: an empty dict."""
        return self._ask("remove_model", model=model_id)

    def download(self, model_id: str) -> tuple[int, int]:
        """Fetch a published model, after the user has agreed to its terms; returns the numbers of request and job.

        Value: a dict with model and findings, None when it was cancelled.
        """
        request, job = self._new_request("download"), self._new_job("download")
        self._intend("download", request=request, job=job, model=model_id)
        return request, job

    def import_model(self, path: str, model_id: str | None = None, like: str | None = None) -> int:
        """Send a checkpoint file of this computer to the worker and install it there.

        Value: a dict with model, findings, terms. UserError when the file cannot be read.
        """
        request = self._new_request("install")
        file = SendingFile(path)
        self._uploads.append(Upload(self._new_upload(), file, request))
        self._installs[request] = {"model": model_id, "like": like, "name": file.name}
        self._wanted = True
        return request

    def object_masks(self, job: int, objects: Sequence[int]) -> int:
        """Masks of found objects. Value: a list of (object number, SlicePlane, mask)."""
        request = self._new_request("object_masks")
        self._intend("object_masks", request=request, job=int(job), objects=[int(number) for number in objects])
        return request

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

    @property
    def outstanding(self) -> bool:
        """Whether an answer is on its way, or something waits to be sent."""
        if not self._wanted or self._state == "failed":
            return False
        asked = not self._settled or self._requests or self._opening or self._jobs
        return bool(asked or self._uploads or self._inbox or not self._journal.all_heard)

    def tell_again(self) -> None:
        """Have every mask told once more, and those that are gone taken back."""
        self._asked_again += 1
        self._stale = dict(self._told)
        self._intend("tell_again", kept=False)

    def snapshot(self) -> int:
        """The session as `session_to_dict` gives it. Value: that dict."""
        request = self._new_request("snapshot")
        self._intend("snapshot", request=request)
        return request

    def restore(self, document: dict[str, Any]) -> None:
        """Go on from such a dict, with nothing to undo; after `set_volume`."""
        self._end_jobs()
        try:
            self._prompt_number = max([self._prompt_number, *(int(one["number"]) for one in document["prompts"])])
            self._segment_values = {int(one["value"]) for one in document["segments"]}
            self._moment = max([self._moment, *(int(moment) for _, _, moment in document.get("since", ()))])
            window = plain.window_from_json(document["window"])
        except plain.MISUNDERSTOOD:  # the worker finds the sentence for it
            window = self._window
        self.set_window(window)
        self._intend("restore", json.dumps(document, allow_nan=False).encode(), step=None)

    # ---- inside: intents

    def _intend(self, what: str, document: bytes | None = None, kept: bool = True, **values: Any) -> None:
        self._moment += 1
        self._journal.add({"do": what, "moment": self._moment, **values}, document, kept)
        self._settled = False
        self._wanted = True
        self._next_look = 0.0
        if len(self._journal) > LONG:
            self._journal.shorten()

    def _ask(self, question: str, **values: Any) -> int:
        request = self._new_request(question)
        self._intend("ask", request=request, question=question, **values)
        return request

    def _new_request(self, what: str) -> int:
        self._request_number += 1
        self._requests[self._request_number] = what
        return self._request_number

    def _new_job(self, what: str) -> int:
        self._job_number += 1
        self._jobs[self._job_number] = what
        self._out.append(decoding.asked_for(self._job_number, what))
        return self._job_number

    def _model_values(self) -> dict[str, str]:
        return dict(zip(("model", "adapter", "device"), self._model, strict=True))

    def _end_jobs(self) -> None:
        """The session they belonged to is no more."""
        for number, what in list(self._jobs.items()):
            if what != "download":
                del self._jobs[number]
                self._out.append(Finished(number, what, cancelled=True))

    def _refused(self, values: dict[str, Any], sentence: str) -> None:
        job = values.get("job") if self._jobs.pop(values.get("job"), None) else None
        request = values.get("request")
        self._requests.pop(request, None)
        self._out.append(Failed(sentence, job, request=request))

    def _session_begins(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        first = [{"do": "replay", "begin": True}, {"do": "set_model", **self._model_values()}]
        last = [{"do": "replay", "begin": False}]
        if self._focus is not None:
            last.insert(0, {"do": "embed", "orientation": self._focus[0], "index": self._focus[1]})
        self._settled = False
        return first, last

    def _session_is_lost(self) -> None:
        self._stale = dict(self._told)
        self._unpacked = {}

    def _end_requests(self) -> None:
        """Questions about a volume that was removed."""
        for number, what in list(self._requests.items()):
            if what in ("snapshot", "object_masks"):
                del self._requests[number]
                self._unpacked.pop(number, None)
                self._out.append(Failed("Another volume was opened meanwhile.", request=number))

    # ---- inside: events

    def _pause(self) -> float:
        if not self._settled or self._requests or self._opening:
            return _BUSY_PAUSE
        if self._jobs or self._focus is not None:
            return _JOB_PAUSE
        return _IDLE_PAUSE

    def _take_event(self, values: dict[str, Any], arrays: dict[str, Any]) -> None:
        try:
            handler = _EVENTS.get(values["event"])
            if handler is not None:  # a newer server's; nothing here waits for it
                handler(self, values, arrays)
        except plain.MISUNDERSTOOD as error:
            _log.warning("An event was not understood: %r", error)

    def _is_about_the_volume(self, values: dict) -> bool:
        return values.get("volume") == self._volume_number

    def _take_mask(self, values: dict, arrays: dict) -> None:
        if self._is_about_the_volume(values):
            event = decoding.mask_changed(values, arrays)
            place = event.segment, event.plane.key
            self._stale.pop(place, None)
            if event.mask is None:
                self._told.pop(place, None)
            else:
                self._told[place] = Shown(event.plane, event.since, event.digest)
            self._out.append(event)

    def _take_state(self, values: dict, _: dict) -> None:
        if self._is_about_the_volume(values) and values["applied"] >= self._journal.last:
            state = self._states.changed(values)
            self._settled = state.settled
            self._segment_values = {info.value for info in state.segments}
            self._take_back_stale()
            self._compare_masks(values.get("masks"))
            self._out.append(state)
            self._store_now_and_then()

    def _take_back_stale(self) -> None:
        """Masks that a lost session had told of, and that did not come again."""
        if not self._settled or "propagate" in self._jobs.values():
            return
        for place, told in self._stale.items():
            self._told.pop(place, None)
            self._out.append(MaskChanged(place[0], told.plane))
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
            self._out.append(Failed("The masks shown are not those of the session; save the scene and open it again."))

    def _take_busy(self, values: dict, _: dict) -> None:
        known = values["job"] is None or values["job"] in self._jobs
        if known and (values["what"] == "download" or self._is_about_the_volume(values)):
            self._out.append(decoding.busy(values))

    def _take_finished(self, values: dict, arrays: dict) -> None:
        job, what = values["job"], values["what"]
        if job is None:
            self._out.append(Finished(None, what, values["cancelled"]))
            return
        if self._jobs.pop(job, None) is None:
            return
        kept = what == "everything" and not values["cancelled"]  # what it found may be adopted at any time
        ended = ("cancel",) if kept else ("cancel", what, "find_labels")
        self._journal.forget(lambda one: one.get("job") == job and one["do"] in ended)
        if "document" in arrays:
            document = arrays["document"].tobytes()
            self._journal.insert_after(values["applied"], {"do": "restore", "step": what}, document)
            self._checkpoint = self._journal.last
        self._take_back_stale()
        self._out.append(Finished(job, what, values["cancelled"]))

    def _take_stored(self, values: dict, arrays: dict) -> None:
        document = arrays["document"].tobytes()
        self._journal.replace(values["intent"], {"do": "restore", "step": values["step"]}, document)
        self._checkpoint = self._journal.last

    def _take_objects(self, values: dict, _: dict) -> None:
        if self._is_about_the_volume(values):
            self._out.append(decoding.objects(values))

    def _take_notice(self, values: dict, _: dict) -> None:
        self._out.append(Notice(str(values["text"])))

    def _take_failed(self, values: dict, _: dict) -> None:
        job, request = values.get("job"), values.get("request")
        if values.get("intent") is not None:
            self._journal.drop(values["intent"])
            if self._jobs.pop(job, None) is None:
                job = None
        if request is not None:
            self._journal.forget(lambda one: one.get("request") == request)
            if self._requests.pop(request, None) in (None, "checkpoint"):
                return
        self._out.append(Failed(str(values["text"]), job, str(values.get("details", "")), request))

    def _take_answered(self, values: dict, arrays: dict) -> None:
        request, value = values["request"], values["value"]
        if self._requests.get(request) == "object_masks" and not self._unpack_some(request, values, arrays):
            return
        what = self._requests.pop(request, None)
        if what == "checkpoint":
            self._journal.keep_checkpoint(request, arrays["document"].tobytes())
            return
        self._journal.forget(lambda one: one.get("request") == request)
        if what is None:
            return
        if what == "snapshot":
            value = json.loads(arrays["document"].tobytes())
        elif what == "object_masks":
            value = self._unpacked.pop(request)
        self._out.append(Answered(request, value))

    def _unpack_some(self, request: int, values: dict, arrays: dict) -> bool:
        """Unpack a few of many masks; whether that was all, else the event comes once more."""
        done = self._unpacked.setdefault(request, [])
        done += decoding.object_masks(values["value"], arrays, len(done), _MASKS_AT_ONCE)
        if len(done) < len(values["value"]):
            self._inbox.appendleft((values, arrays))
            return False
        return True

    def _take_model(self, values: dict, _: dict) -> None:
        self._opening = ""
        self._model_open, self._device = str(values["model"]), str(values["device"])

    def _take_opening(self, values: dict, _: dict) -> None:
        self._opening = str(values["model"])

    def _store_now_and_then(self) -> None:
        """Long sessions are stored, so that a replay needs not begin at their beginning."""
        if self._journal.last - self._checkpoint > _CHECKPOINT:
            self._checkpoint = self._journal.last
            self._journal.add({"do": "snapshot", "request": self._new_request("checkpoint")})


_EVENTS = {
    "mask": SessionClient._take_mask,
    "state": SessionClient._take_state,
    "busy": SessionClient._take_busy,
    "finished": SessionClient._take_finished,
    "stored": SessionClient._take_stored,
    "objects": SessionClient._take_objects,
    "notice": SessionClient._take_notice,
    "failed": SessionClient._take_failed,
    "answered": SessionClient._take_answered,
    "model": SessionClient._take_model,
    "opening": SessionClient._take_opening,
}


def _settings(settings: Any) -> dict | None:
    return dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else settings


def _color(color: Sequence[float] | None) -> list[float] | None:
    return None if color is None else [float(part) for part in color]

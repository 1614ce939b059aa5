"""A session whose masks a server makes, for programs that may wait: scripts and the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow, SegmentInfo, Volume
from SAMFineTuneLib.images.slice_extraction import write
from SAMFineTuneLib.inference.automatic_head import class_segments
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.connection import Connection
from SAMFineTuneLib.service.protocol import DEFAULT_MODEL
from SAMFineTuneLib.session import events, intents
from SAMFineTuneLib.session.answers import Answer
from SAMFineTuneLib.session.masks import Masks
from SAMFineTuneLib.session.propagation_job import PropagationJob
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import read_document, session_to_dict
from SAMFineTuneLib.session.state import Place, State

_PAUSE = 0.004  # seconds between two checks for news
_FAREWELL = 1.0  # seconds that `close` waits for answers


class _ServerMasks(Masks):
    """Masks that a server makes: `ask` fetches those of planes with prompts."""

    ask: Callable[[Place], Answer]

    def answer(self, place: Place) -> Answer | None:
        task = self._history.state.tasks.get(place)
        return self.ask(place) if task is not None and task.prompts else super().answer(place)


class ServerSession(Session):
    """Segments, prompts and undo are kept here; the server gets them when a mask is requested. Close it at the end.

    Args:
        connection: the way to the server.
        volume, window: what is segmented.
        model: id of a model of the server; None for the adapter's base, or else the bundled model.
        adapter: name of an adapter of the server.
        device: what the server computes on, "auto" for its own choice.
        tell: called with each sentence that the server has for the user.
        told: sentences that the user has seen already.
        lost: called with a sentence when the server stops answering and is tried again.
    """

    _kind_of_masks = _ServerMasks

    def __init__(
        self,
        connection: Connection,
        volume: Volume,
        window: IntensityWindow,
        model: str | None = None,
        adapter: str = "",
        device: str = "auto",
        tell: Callable[[str], None] = lambda sentence: None,
        told: Iterable[str] = (),
        lost: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        super().__init__()
        self._client = SessionClient(connection)
        self._wished, self.adapter, self._device = model, adapter, device
        self._facts: dict[str, Any] | None = None
        self._say, self._known = tell, set(told)
        self._lost, self._answering = lost, False
        self._received: dict[Place, events.MaskChanged] = {}
        self._sent: State | None = None
        self._masks.ask = self._ask
        self.set_volume(volume, window)

    def connect(self) -> events.Status:
        """Send the volume and have the model opened; returns a sentence about the server and its device.

        Raises:
            UserError: when the server cannot be reached, or has no such model or adapter.
        """
        self._client.set_model(*self._model())
        self._client.set_volume(self.volume, self.window)
        self._wait_until(lambda _: bool(self._client.status.device))
        return self._client.status

    def close(self) -> None:
        """End the session on the server, which forgets the volume."""
        end = time.monotonic() + _FAREWELL
        while self._client.outstanding and time.monotonic() < end:  # one request at a time: end the one under way
            self._client.pump()
            time.sleep(_PAUSE)
        self._client.close()

    def do(self, intent: Any, moment: int | None = None) -> Any:
        """As `Session.do`; a propagation is complete when this returns."""
        if isinstance(intent, intents.Propagate):
            return self._propagate_there(intent)
        return super().do(intent, moment)

    def adapter_facts(self) -> dict[str, Any]:
        """The server's facts about the adapter, as in `Library.answer`; UserError when it does not have it."""
        if self._facts is None:
            rows = {row["id"]: row for row in self._answer_to(self._client.ask("adapters"))}
            if self.adapter not in rows:
                there = f"it has {', '.join(sorted(rows))}" if rows else "it has none"
                raise UserError(f"The server has no adapter “{self.adapter}”: {there}.")
            self._facts = rows[self.adapter]
        return self._facts

    def segment_labels(
        self, orientation: str = "", progress: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[np.ndarray, tuple[SegmentInfo, ...]]:
        """Find the adapter's labels without prompts.

        Args:
            orientation: of the slices; empty for the one that the adapter learned from.
            progress: called with the number of slices done, and of all.

        Returns:
            A label map, uint8 [k, j, i], and what its values mean.
        """
        job = self._client.find_labels(*self._model(), orientation)

        def hear(event: events.Event) -> None:
            if isinstance(event, events.Busy) and event.total:
                progress(event.done, event.total)
            elif isinstance(event, events.Notice):
                self._tell_once(event.text)

        found = self._wait_until(lambda event: isinstance(event, events.Objects) and event.job == job, hear)
        labels = np.zeros(self.volume.shape, np.uint8)
        masks = self._answer_to(self._client.ask_for_masks(job, [one.number for one in found.objects]))
        for value, plane, mask in masks:
            write(mask, plane, labels, self.volume, value, protect=False)
        return labels, class_segments(self.adapter_facts()["classes"])

    # ---- inside

    def _model(self) -> tuple[str, str, str]:
        """Id of the model, name of the adapter, device."""
        model = self._wished or (self.adapter_facts()["model"] if self.adapter else DEFAULT_MODEL)
        return model, self.adapter, self._device

    def _answer_to(self, request: int) -> Any:
        return self._wait_until(lambda event: isinstance(event, events.Answered) and event.request == request).value

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._known:
            self._known.add(sentence)
            self._say(sentence)

    def _propagate_there(self, intent: intents.Propagate) -> PropagationJob:
        self._send_state()
        number = self._client.do(intent)
        self._wait_until(lambda event: isinstance(event, events.Finished) and event.job == number, self._tell)
        _, state, _ = read_document(self._answer_to(self._client.take_snapshot()), self.require_volume())
        self.put("propagate", state)
        self._sent = self.state
        job = PropagationJob(self._jobs.new_number(intent.job), intent.segment)
        job.done = True
        return job

    def _ask(self, place: Place) -> Answer:
        self._send_state()
        told = self._received.get(place)
        if told is None or told.packed is None:
            raise UserError(f"The server sent no mask for slice {place[1]}; try again.")
        return Answer(told.packed, told.score)

    def _send_state(self) -> None:
        """Bring the server to the state of this session, and fetch its masks."""
        if self.state is not self._sent:
            self._client.restore(session_to_dict(self))
            self._wait_until(lambda event: isinstance(event, events.StateChanged) and event.settled)
            self._sent = self.state

    def _wait_until(
        self,
        wanted: Callable[[events.Event | None], bool],
        hear: Callable[[events.Event], None] | None = None,
    ) -> events.Event | None:
        """Keep the conversation going until an event is the wanted one, and return it.

        Args:
            wanted: called with each event, and with None when there was none.
            hear: handles progress and notices; by default notices are passed on as sentences.

        Raises:
            UserError: when the server says that something failed, or cannot be reached.
        """
        while True:
            heard = self._client.pump()
            for event in heard:
                if isinstance(event, events.MaskChanged):
                    self._received[event.segment, event.plane.key] = event
                elif isinstance(event, events.Failed):
                    raise UserError(event.text)
                elif isinstance(event, (events.Busy, events.Notice)) and hear is not None:
                    hear(event)
                elif isinstance(event, events.Notice):
                    self._tell_once(event.text)
            status = self._client.status
            if self._answering and status.state == "connecting":
                self._lost(status.sentence)
            self._answering = bool(status.device) and status.state != "connecting"
            if status.state == "failed":
                raise UserError(status.sentence)
            for event in (*heard, None):
                if wanted(event):
                    return event
            time.sleep(_PAUSE)

"""What the user has made of a volume: segments, prompts and the masks that follow from them, with undo.

Prompts are the truth and masks follow from them (see `answers`), so undo and redo only exchange states, and a new
window or model makes the masks anew. `session.Session` adds what takes long.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.images import IntensityWindow, SegmentInfo, Volume, choose_window
from SAMFineTuneLib.images.packed_mask import PackedMask, digest_of_masks
from SAMFineTuneLib.images.slice_extraction import write
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.session import edits, events
from SAMFineTuneLib.session.answers import Answer, Answers
from SAMFineTuneLib.session.doubts import (
    doubt_about_place,
    doubts_about_adapter,
    doubts_about_placing,
    doubts_about_voxels,
)
from SAMFineTuneLib.session.history import History
from SAMFineTuneLib.session.state import Place, PlacedPrompt, State, changes

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor


def locked(method):
    """One intent or step at a time, whichever threads they come from."""

    @functools.wraps(method)
    def guarded(self, *args, **kwargs):
        with self._lock:
            return method(self, *args, **kwargs)

    return guarded


@dataclass(frozen=True)
class Told:
    """A mask as listeners know it, and the moment since when it is what it is."""

    plane: SlicePlane = field(compare=False)
    mask: PackedMask
    since: int


class Document:
    """Volume, window, model, and a `State` over which there is a history.

    A wrong intent raises UserError and changes nothing. With `immediate` an intent returns when the masks it
    concerns are made; if the model then fails, the intent holds all the same and UserError says why there is no
    mask. Otherwise masks are made when asked for, or by `Session.work`.
    """

    def __init__(
        self,
        volume: Volume | None = None,
        predictor: Predictor | None = None,
        window: IntensityWindow | None = None,
        immediate: bool = True,
    ) -> None:
        self.immediate = immediate
        self.work_arrived = threading.Event()
        """Set when there is something for `work` to do."""
        self.volume: Volume | None = None
        self.window: IntensityWindow | None = None
        self.predictor: Predictor | None = None
        self.segments_are_steps = True
        """Whether adding, changing and removing a segment can be undone. False for a host with a table of segments of
        its own: they then hold for every state there is, and undo and redo step by prompt."""
        self.adapter = ""
        """Name of the adapter the model carries, empty without one."""
        self._lock = threading.RLock()
        self._listeners = events.Listeners()
        self._recipe: Mapping[str, Any] = {}
        self._history = History(State())
        self._next_number = 1
        self._moment = 0
        self._quiet_until = 0  # doubts about masks of that moment and before were told, perhaps in another session
        self._answers: Answers | None = None
        self._told: dict[Place, Told] = {}
        self._pending: dict[Place, SlicePlane] = {}
        if predictor is not None:
            self.set_model(predictor)
        if volume is not None:
            self.set_volume(volume, window)

    # ---- what it works on

    @locked
    def set_volume(self, volume: Volume, window: IntensityWindow | None = None) -> None:
        """Start over with another volume; without a window, with the default of its modality."""
        window = window or choose_window(volume, None)
        self.reset(State())
        while self._pending and self._answers:  # nothing but masks that are gone
            self._refresh()
        self.volume, self.window = volume, window
        for sentence in (*doubts_about_voxels(volume), *doubts_about_adapter(volume, self._recipe)):
            self._tell(events.Notice(sentence))
        self._restart_answers()

    @locked
    def set_window(self, window: IntensityWindow) -> None:
        """See the volume differently; masks that come from prompts are made anew by `work`, or when asked for."""
        self.window = window
        self._restart_answers()

    @locked
    def set_model(self, predictor: Predictor, adapter: str = "", recipe: Mapping[str, Any] | None = None) -> None:
        """Answer with another model; masks that come from prompts are made anew by `work`, or when asked for.

        `recipe` is that of the adapter's card: what it says about the adapter and the volume is told.
        """
        self.predictor, self.adapter, self._recipe = predictor, adapter, recipe or {}
        doubts = doubts_about_adapter(self.volume, self._recipe) if self.volume is not None else ()
        for sentence in (*predictor.engine.notices, *doubts):
            self._tell(events.Notice(sentence))
        self._restart_answers()

    @locked
    def reset(self, state: State) -> None:
        """Go on from a state, with nothing to undo."""
        before, self._history = self.state, History(state)
        self._count_from(state)
        self._quiet_until = self._moment
        self._announce(before)

    @locked
    def put(self, name: str, state: State) -> None:
        """Go on from a state, whose moments hold, by a step that can be undone."""
        self._count_from(state)
        self._go_on(name, state)

    @locked
    def begin(self, moment: int) -> None:
        """What is asked for next happens at this moment, by the caller's count, which never goes back."""
        self._moment = moment - 1

    # ---- segments and prompts

    @property
    def state(self) -> State:
        """All that can be undone; immutable."""
        return self._history.state

    @contextmanager
    def unchanged(self) -> Iterator[State]:
        """The state, while nobody else changes anything."""
        with self._lock:
            yield self.state

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        """In the order in which they are protected: an earlier one keeps its voxels."""
        return self.state.segments

    @property
    def prompts(self) -> tuple[PlacedPrompt, ...]:
        """All prompts in the order in which they came."""
        return self.state.prompts

    @locked
    def add_segment(self, name: str, value: int | None = None, color: edits.Color | None = None) -> SegmentInfo:
        """A new segment; value and colour are chosen when not given."""
        info = edits.add_segment(self.state, name, value, color).segments[-1]
        self._edit_segments("add segment", info.value, False, lambda s: edits.add_segment(s, name, info.value, color))
        return self.segments[-1]

    @locked
    def change_segment(self, value: int, name: str | None = None, color: edits.Color | None = None) -> None:
        """Rename or recolour a segment."""
        edits.find_segment(self.state, value)
        self._edit_segments("change segment", value, True, lambda s: edits.change_segment(s, value, name, color))

    @locked
    def remove_segment(self, value: int) -> None:
        """Remove a segment with its prompts and masks."""
        edits.find_segment(self.state, value)
        self._edit_segments("remove segment", value, True, lambda s: edits.remove_segment(s, value))

    @locked
    def add_prompt(
        self, segment: int, prompt: Prompt, view: str | SlicePlane = "axial", number: int | None = None
    ) -> int:
        """Place a prompt on the slices of an orientation, or on an oblique plane; returns the prompt's number.

        `number` is the caller's choice, one that no prompt of this session has had.
        """
        if number is None:
            number = self._next_number
        elif number < self._next_number:
            raise UserError(f"The number {number} belongs to another prompt; choose a higher one.")
        placed = edits.place_prompt(self.state, self._require_volume(), number, segment, prompt, view)
        self._next_number = number + 1
        self._apply("add prompt", edits.add_prompt(self.state, placed))
        self._hint(placed)
        return number

    @locked
    def move_prompt(self, number: int, prompt: Prompt, view: str | SlicePlane | None = None) -> None:
        """Put another prompt in the place of one; it keeps its turn in the order."""
        old = edits.find_prompt(self.state, number)
        view = old.view if view is None else view
        placed = edits.place_prompt(self.state, self._require_volume(), number, old.segment, prompt, view)
        self._apply("move prompt", edits.move_prompt(self.state, placed))

    @locked
    def delete_prompt(self, number: int) -> None:
        """Remove a prompt; a plane that has no other and no propagated mask has no mask any more."""
        edits.find_prompt(self.state, number)
        self._apply("delete prompt", edits.delete_prompt(self.state, number))

    @locked
    def clear(self, segment: int | None = None, plane: SlicePlane | None = None) -> None:
        """Remove prompts and propagated masks: of a segment, on a plane, or both; without either all of them."""
        if segment is not None:
            edits.find_segment(self.state, segment)

        def unwanted(place: Place) -> bool:
            return segment in (None, place[0]) and (plane is None or plane.key == place[1])

        if any(unwanted(place) for place in self.state.tasks):
            self._apply("clear", self.state.without(unwanted))

    # ---- undo

    @property
    def undo_name(self) -> str | None:
        """What `undo` takes back, None when there is nothing."""
        return self._history.undo_name

    @property
    def redo_name(self) -> str | None:
        """What `redo` does again, None when there is nothing."""
        return self._history.redo_name

    @locked
    def undo(self) -> str | None:
        """Take back the last step (a prompt, a segment, a whole propagation); returns its name, None without one."""
        before = self.state
        name = self._history.undo()
        self._announce(before)
        return name

    @locked
    def redo(self) -> str | None:
        """Do again what was undone last; returns its name, None without one."""
        before = self.state
        name = self._history.redo()
        self._announce(before)
        return name

    # ---- results

    @property
    def settled(self) -> bool:
        """Whether every mask is made that follows from the state, or there is no model to make it."""
        return not (self._pending and self._answers)

    @locked
    def answer(self, segment: int, plane: SlicePlane | str) -> Answer | None:
        """Packed mask and score of a segment on a plane or its key; None where it has none."""
        return self._answer((segment, plane if isinstance(plane, str) else plane.key))

    @locked
    def mask(self, segment: int, plane: SlicePlane | str) -> np.ndarray | None:
        """Mask bool (rows, columns) of a segment on a plane or its key; None where it has none."""
        answer = self.answer(segment, plane)
        return None if answer is None else answer.mask.unpack()

    @locked
    def score(self, segment: int, plane: SlicePlane | str) -> float | None:
        """The predicted IoU of that mask; None where there is none."""
        answer = self.answer(segment, plane)
        return None if answer is None else answer.score

    @locked
    def since(self, segment: int, plane: SlicePlane | str) -> int:
        """The moment at which the mask of a segment on a plane or its key became what it is: of two masks of one
        place with the same moment, the prompts are the same. 0 where there is none."""
        return self._since((segment, plane if isinstance(plane, str) else plane.key))

    @locked
    def told_again(self) -> None:
        """Tell every mask once more, to listeners that missed some."""
        for place, told in list(self._told.items()):
            self._tell_mask(place, told.plane, self._answer(place))

    @property
    def digest_of_told(self) -> str:
        """What all masks that were told are recognised by."""
        return digest_of_masks((*place, told.since, told.mask.digest) for place, told in self._told.items())

    @locked
    def state_event(self) -> events.StateChanged:
        """The state as it is told."""
        state = self.state
        return events.StateChanged(
            state.segments,
            tuple(events.PromptInfo(one.id, one.segment, one.prompt, one.view) for one in state.prompts),
            self.undo_name,
            self.redo_name,
            self.window,
            tuple((info.value, plane.key) for info in state.segments for plane in state.outdated(info.value)),
            self.settled,
            self.digest_of_told if self.settled else None,
        )

    @locked
    def planes(self, segment: int) -> list[SlicePlane]:
        """The planes on which a segment has prompts or propagated masks."""
        return [task.plane for place, task in self.state.tasks.items() if place[0] == segment]

    @locked
    def outdated(self, segment: int) -> list[SlicePlane]:
        """Planes whose propagated mask comes from prompts that were changed since."""
        return self.state.outdated(segment)

    @locked
    def labelmap(self, onto: np.ndarray | None = None, overwrite: bool = False) -> np.ndarray:
        """All segments as a label map [k, j, i], uint8 or uint16; masks that are not made yet are made now.

        Segments are written in their order and never into voxels that have another value, be it from an earlier
        segment or from `onto` (an existing label map, which is copied), unless `overwrite`. Where planes of one
        segment cross, the one prompted last counts.
        """
        volume = self._require_volume()
        kind = np.dtype(np.uint8 if max((info.value for info in self.segments), default=0) < 256 else np.uint16)
        labelmap = np.zeros(volume.shape, kind) if onto is None else np.array(onto, np.promote_types(onto.dtype, kind))
        for info in self.segments:
            for place, task in self.state.tasks.items():
                if place[0] == info.value:
                    mask = self._answer(place).mask.unpack()
                    placed = [given.points[given.labels == 1] for given in task.prompts]
                    points = np.concatenate(placed) if placed else None
                    write(mask, task.plane, labelmap, volume, info.value, not overwrite, points)
        return labelmap

    def listen(self, listener: events.Listener) -> Callable[[], None]:
        """Tell a listener every event from now on; returns the function that ends it."""
        return self._listeners.add(listener)

    # ---- inside

    def _tell(self, event: events.Event) -> None:
        self._listeners.tell(event)

    def _tell_mask(self, place: Place, plane: SlicePlane, answer: Answer | None) -> None:
        if answer is None:
            self._tell(events.MaskChanged(place[0], plane))
            return
        points = [part.points[part.labels == 1] for part in self.state.prompts_at(place)]
        merged = np.concatenate(points) if points else np.zeros((0, 2), np.float32)
        self._tell(events.MaskChanged(place[0], plane, answer.mask, answer.score, merged, self._since(place)))

    def _count_from(self, state: State) -> None:
        self._next_number = max([self._next_number, *(placed.id + 1 for placed in state.prompts)])
        self._moment = max([self._moment, *state.since.values()])

    def _next_moment(self) -> int:
        self._moment += 1
        return self._moment

    def _since(self, place: Place) -> int:
        return self.state.since.get(place, 0)

    def _require_volume(self) -> Volume:
        if self.volume is None:
            raise UserError("There is no volume yet; open one first.")
        return self.volume

    def _require_predictor(self) -> Predictor:
        if self.predictor is None:
            raise UserError("There is no model yet; choose one first.")
        return self.predictor

    def _restart_answers(self) -> None:
        """Volume, window or model are others: nothing that was answered holds any more."""
        if self.volume is None or self.predictor is None:
            return
        self._answers = Answers(self.predictor, self.volume, self.window)
        self._pending |= {place: task.plane for place, task in self.state.tasks.items() if task.prompts}
        self.work_arrived.set()

    def _answer(self, place: Place) -> Answer | None:
        task = self.state.tasks.get(place)
        if task is None:
            return None
        if not task.prompts:
            return Answer(task.base.mask, task.base.score)
        self._require_predictor()
        try:
            return self._answers.answer(task)
        except Exception as error:
            raise as_sentence(error, f"segment {task.plane}") from error

    def _hint(self, placed: PlacedPrompt) -> None:
        for sentence in doubts_about_placing(self.volume, placed):
            self._tell(events.Notice(sentence))
        for plane, _ in placed.parts:
            task = self.state.tasks[(placed.segment, plane.key)]
            if task.base is None and not any(part.says_where for part in task.prompts):
                self._tell(events.Notice(f"There are only negative points on {plane}; add a positive point or a box."))

    def _edit_segments(self, name: str, value: int, there: bool, edit: Callable[[State], State]) -> None:
        """A step, or an edit of all states in which the segment is there (or not)."""
        if self.segments_are_steps:
            self._apply(name, edit(self.state))
            return

        def where_it_fits(state: State) -> State:
            return edit(state) if any(info.value == value for info in state.segments) == there else state

        before = self.state
        self._history.rewrite(where_it_fits, State.same_as)
        self._announce(before)

    def _apply(self, name: str, state: State, moment: int | None = None) -> None:
        self._go_on(name, state.stamped(self.state, self._next_moment() if moment is None else moment))

    def _go_on(self, name: str, state: State) -> None:
        before = self.state
        self._history.push(name, state)
        self._announce(before)

    def _announce(self, before: State) -> None:
        """Tell what differs from an earlier state, and have the masks that follow from it made."""
        after = self.state
        if before.segments != after.segments or before.prompts != after.prompts:
            self._tell(self.state_event())
        for info in after.segments:
            if after.outdated(info.value) and not before.outdated(info.value):
                text = f"Slices of {info.name} were propagated from prompts that have changed since; propagate again."
                self._tell(events.Notice(text))
        changed = {(value, plane.key): plane for value, plane in changes(before, after)}
        self._pending |= changed
        for place in changed:  # at once: no mask that is made may find its room taken by one that is gone
            if place not in after.tasks:
                self._refresh(place)
        self.work_arrived.set()
        while self.immediate and self._pending and self._answers:
            self._refresh()

    def _refresh(self, place: Place | None = None) -> None:
        """Bring a place, or the one that changed last, up to date."""
        place = next(reversed(self._pending)) if place is None else place
        plane = self._pending.pop(place)
        answer = self._answer(place)
        now = None if answer is None else Told(plane, answer.mask, self._since(place))
        if now == self._told.get(place):
            return
        if now is None:
            del self._told[place]
        else:
            self._told[place] = now
        self._tell_mask(place, plane, answer)
        if now is not None and now.since > self._quiet_until:
            if doubt := doubt_about_place(self.state, place, answer):
                self._tell(events.Notice(doubt))


def as_sentence(error: Exception, task: str) -> UserError:
    """An error of the model's runtime as a sentence; the trace goes to the log."""
    if isinstance(error, UserError):
        return error
    logging.getLogger(__name__).error("The model failed to %s", task, exc_info=error)
    if is_out_of_memory(error):
        return UserError(
            f"There is too little memory to {task}; close other programs, or choose a smaller model or another device."
        )
    return UserError(f"The model could not {task} ({error}); try again, or choose another model or device.")


def details_of(error: BaseException) -> str:
    """What lies behind a sentence, for the log."""
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause is not None else ""

"""The interactive session: the one object that panels, servers and the command line talk to.

It holds the volume, the window, the model, and a `State` of segments, prompts and propagated masks. Callers send
intents (`do`, or the methods named after them) and draw the results: events say what changed, `mask` and `labelmap`
give the results. Masks follow from prompts (see `answers`), so undo and redo only exchange states, and a new window or
model makes all masks again.

`work` does anything long, a step at a time: masks that must be made, then jobs (see `running_jobs`), then embedding in
the background. A session belongs to the thread that calls it; other threads may only set `work_arrived` and cancel
jobs.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.errors import UserError, cause_of
from SAMFineTuneLib.images import IntensityWindow, SegmentInfo, Volume, choose_window
from SAMFineTuneLib.images.slice_extraction import write
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.inference.automatic_head import class_slices
from SAMFineTuneLib.inference.everything_mode import everything
from SAMFineTuneLib.inference.object_linking import link
from SAMFineTuneLib.session import edits, events, intents
from SAMFineTuneLib.session.answers import Answer, Answers
from SAMFineTuneLib.session.doubts import doubts_about_adapter, doubts_about_placing, doubts_about_voxels
from SAMFineTuneLib.session.history import History
from SAMFineTuneLib.session.jobs import EverythingJob, Job, joined_labels
from SAMFineTuneLib.session.masks import Masks
from SAMFineTuneLib.session.propagation_job import PropagationJob, propagation_from_prompts, propagation_of_whole
from SAMFineTuneLib.session.running_jobs import RunningJobs, busy_with
from SAMFineTuneLib.session.slice_embedding import SliceEmbedding
from SAMFineTuneLib.session.state import Place, PlacedPrompt, State

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor


class Session(intents.IntentMethods):
    """Volume, window, model, and a history of states, from which masks follow.

    A wrong intent raises UserError and changes nothing. Masks are made when they are requested, or by `work`.

    Args:
        volume: the volume to segment; None until `set_volume`.
        predictor: the model that answers; None until `set_model`.
        window: how grey values become pictures; None is the default of the volume's modality.
    """

    _kind_of_masks = Masks  # other ones where something else makes the masks

    def __init__(
        self,
        volume: Volume | None = None,
        predictor: Predictor | None = None,
        window: IntensityWindow | None = None,
    ) -> None:
        self.work_arrived = threading.Event()
        """Set when there is something for `work` to do."""
        self.volume: Volume | None = None
        self.window: IntensityWindow | None = None
        self.predictor: Predictor | None = None
        self.adapter = ""
        """Name of the adapter that the model carries, empty without one."""
        self.segments_are_steps = True
        """Whether adding, changing and removing a segment can be undone. False for a host with its own table of
        segments: such changes then apply to every state of the history."""
        self.volumetric = False
        """Whether prompts segment the whole object; see `intents.SetVolumetric`."""
        self.state_due = False
        """Whether the next `work` sends listeners the state, even when it has not changed."""
        self.looked_at: SlicePlane | None = None
        """The plane that the user looks at: `work` prepares it when there is nothing else to do, and sets this to
        None. Another thread may set it, and then `work_arrived`."""
        self._listeners: list[events.Listener] = []
        self._history = History(State())
        self._masks = self._kind_of_masks(self._history, lambda: self._jobs.propagations, self._tell)
        self._jobs = RunningJobs(self._history, self._masks, self._apply, self._tell)
        self.found = self._jobs.found
        self._recipe: Mapping[str, Any] = {}
        self._next_number = 1  # of a prompt
        self._moment = 0
        self._settled = True  # as listeners know it
        self._embedding = SliceEmbedding(lambda progress: self._tell(busy_with("embed", progress)))
        if predictor is not None:
            self.set_model(predictor)
        if volume is not None:
            self.set_volume(volume, window)

    def do(self, intent: Any, moment: int | None = None) -> Any:
        """Carry out an intent.

        Args:
            intent: one of `intents`.
            moment: the caller's count of intents, which never decreases; by default the session counts.

        Returns:
            The new segment, the prompt's number or the job, if there is one.

        Raises:
            UserError: when it cannot be done; then nothing has changed.
        """
        moment = self._moment + 1 if moment is None else moment
        self._moment = moment - 1
        result = self._handle(intent)
        self._moment = max(self._moment, moment)
        return result

    @functools.singledispatchmethod
    def _handle(self, intent: Any) -> Any:
        raise TypeError(f"A session cannot do {type(intent).__name__}.")

    # ---- volume, window, model

    @_handle.register
    def _set_volume(self, intent: intents.SetVolume) -> None:
        volume = intent.volume
        window = intent.window or choose_window(volume, None)
        self.forget_volume()
        self.volume, self.window = volume, window
        self.notice(*doubts_about_voxels(volume), *doubts_about_adapter(volume, self._recipe))
        self._restart_masks()

    def forget_volume(self) -> None:
        """Drop the volume and everything that was made on it."""
        self._jobs.stop()
        self.found.clear()
        self._stop_embedding(intents.StopEmbedding())
        self.reset(State())
        self._masks.finish()  # only masks that are removed
        self.volume = self.window = self._masks.answers = None

    @_handle.register
    def _set_window(self, intent: intents.SetWindow) -> None:
        window = intent.window or choose_window(self.require_volume(), None)
        if window != self.window:
            self._jobs.stop()
            self.window = window
            self._restart_masks()

    @_handle.register
    def _set_volumetric(self, intent: intents.SetVolumetric) -> None:
        self.volumetric, self.state_due = intent.on, True
        if not intent.on:
            self._jobs.stop_answers()
        self.work_arrived.set()

    def set_model(self, predictor: Predictor, adapter: str = "", recipe: Mapping[str, Any] | None = None) -> None:
        """Use another model. Jobs end, and `work` makes all masks of prompts again.

        Args:
            predictor: the model that answers from now on.
            adapter: name of the adapter that it carries.
            recipe: the recipe on the adapter's card; a notice says when it does not fit the volume.
        """
        self._jobs.stop()
        self.predictor, self.adapter, self._recipe = predictor, adapter, recipe or {}
        self.notice(*predictor.engine.notices)
        if self.volume is not None:
            self.notice(*doubts_about_adapter(self.volume, self._recipe))
        self._restart_masks()

    def reset(self, state: State) -> None:
        """Continue from a state, with nothing to undo."""
        self._count_from(state)
        self._masks.forget_doubts(self._moment)
        self._travel(self._history.reset, state)

    def put(self, name: str, state: State) -> None:
        """Continue from a state that carries its own moments.

        Args:
            name: of the step, which can be undone; empty to make it part of the step before.
            state: the new state.
        """
        self._count_from(state)
        self._travel(self._history.push, name, state)

    # ---- segments and prompts

    @property
    def state(self) -> State:
        """Everything that can be undone; immutable."""
        return self._history.state

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        """The segments in the order in which they are protected: an earlier one keeps its voxels."""
        return self.state.segments

    @property
    def prompts(self) -> tuple[PlacedPrompt, ...]:
        """All prompts in the order in which they came."""
        return self.state.prompts

    @_handle.register
    def _add_segment(self, intent: intents.AddSegment) -> SegmentInfo:
        value = edits.add_segment(self.state, intent.value, intent.name, intent.color).segments[-1].value
        self._edit_segments("add segment", edits.add_segment, value, intent.name, intent.color)
        return self.segments[-1]

    @_handle.register
    def _change_segment(self, intent: intents.ChangeSegment) -> None:
        edits.find_segment(self.state, intent.value)
        self._edit_segments("change segment", edits.change_segment, intent.value, intent.name, intent.color)

    @_handle.register
    def _remove_segment(self, intent: intents.RemoveSegment) -> None:
        edits.find_segment(self.state, intent.value)
        self._edit_segments("remove segment", edits.remove_segment, intent.value)

    @_handle.register
    def _add_prompt(self, intent: intents.AddPrompt) -> int:
        number = self._next_number if intent.number is None else intent.number
        if number < self._next_number:
            raise UserError(f"The number {number} belongs to another prompt; choose a higher one.")
        volume = self.require_volume()
        placed = edits.place_prompt(self.state, volume, number, intent.segment, intent.prompt, intent.view)
        self._next_number = number + 1
        self._apply("add prompt", edits.add_prompt(edits.carry_to_point(self.state, placed), placed))
        self.notice(*doubts_about_placing(volume, placed))
        for plane, _ in placed.parts:
            task = self.state.tasks[(placed.segment, plane.key)]
            if task.base is None and not any(part.says_where for part in task.prompts):
                self.notice(f"There are only negative prompts on {plane}; add a positive point or a box.")
        return number

    @_handle.register
    def _move_prompt(self, intent: intents.MovePrompt) -> None:
        old = edits.find_prompt(self.state, intent.number)
        view = old.view if intent.view is None else intent.view
        placed = edits.place_prompt(self.state, self.require_volume(), old.id, old.segment, intent.prompt, view)
        self._apply("move prompt", edits.move_prompt(self.state, placed))

    @_handle.register
    def _delete_prompt(self, intent: intents.DeletePrompt) -> None:
        edits.find_prompt(self.state, intent.number)
        self._apply("delete prompt", edits.delete_prompt(self.state, intent.number))

    @_handle.register
    def _clear(self, intent: intents.Clear) -> None:
        if intent.segment is not None:
            edits.find_segment(self.state, intent.segment)
        key = None if intent.plane is None else intent.plane.key

        def unwanted(place: Place) -> bool:
            return intent.segment in (None, place[0]) and key in (None, place[1])

        if any(unwanted(place) for place in self.state.tasks):
            self._apply("clear", self.state.without(unwanted))

    # ---- undo

    @property
    def undo_name(self) -> str | None:
        """Name of the step that undo takes back, None without one."""
        return self._history.undo_name

    @property
    def redo_name(self) -> str | None:
        """Name of the step that redo repeats, None without one."""
        return self._history.redo_name

    @_handle.register
    def _undo(self, _: intents.Undo) -> str | None:
        return self._travel(self._history.undo)

    @_handle.register
    def _redo(self, _: intents.Redo) -> str | None:
        return self._travel(self._history.redo)

    # ---- results

    @property
    def settled(self) -> bool:
        """Whether all masks of the state are made, or there is no model to make them."""
        return self._masks.settled and not self._due

    def answer(self, segment: int, plane: SlicePlane | str) -> Answer | None:
        """Packed mask and score of a segment on a plane or its key; None where it has none."""
        return self._masks.answer((segment, plane if isinstance(plane, str) else plane.key))

    def mask(self, segment: int, plane: SlicePlane | str) -> np.ndarray | None:
        """Mask bool (rows, columns) of a segment on a plane or its key; None where it has none."""
        answer = self.answer(segment, plane)
        return None if answer is None else answer.mask.unpack()

    def score(self, segment: int, plane: SlicePlane | str) -> float | None:
        """The predicted IoU of that mask, calibrated where the model says how; None where there is none."""
        answer = self.answer(segment, plane)
        return None if answer is None else answer.score

    def planes(self, segment: int) -> list[SlicePlane]:
        """The planes on which a segment has prompts or propagated masks."""
        found = {key: task.plane for (owner, key), task in self.state.tasks.items() if owner == segment}
        for job in self._jobs.propagations:
            found |= {key: item.plane for (owner, key), item in job.masks.items() if owner == segment}
        return list(found.values())

    def labelmap(self) -> np.ndarray:
        """All segments as a label map [k, j, i], uint8 or uint16; masks that are not made yet are made now.

        Segments are written in their order, and an earlier one keeps its voxels. Where planes of one segment cross,
        the one prompted last counts.
        """
        volume = self.require_volume()
        kind = np.min_scalar_type(max((info.value for info in self.segments), default=0))
        labelmap = np.zeros(volume.shape, kind)
        for info in self.segments:
            for place, task in self.state.tasks.items():
                if place[0] == info.value:
                    mask = self._masks.answer(place).mask.unpack()
                    placed = [given.points[given.labels == 1] for given in task.prompts]
                    points = np.concatenate(placed) if placed else None
                    write(mask, task.plane, labelmap, volume, info.value, True, points)
        return labelmap

    def listen(self, listener: events.Listener) -> Callable[[], None]:
        """Call a listener with every event from now on. Returns the function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def notice(self, *sentences: str) -> None:
        """Send sentences that the user should read."""
        for sentence in sentences:
            self._tell(events.Notice(sentence))

    @_handle.register
    def _tell_again(self, _: intents.TellAgain) -> None:
        self._masks.tell_again()

    # ---- jobs

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs that run. `Job.cancel` may be called from any thread, also while a step is under way."""
        return self._jobs.all

    @_handle.register
    def _propagate(self, intent: intents.Propagate) -> PropagationJob:
        info = edits.find_segment(self.state, intent.segment)
        self.require_volume()
        self._require_predictor()
        if any(job.segment == intent.segment for job in self._jobs.propagations):
            raise UserError(f"Segment {info.name} is being propagated already; wait for it or cancel it.")
        number = self._jobs.new_number(intent.job)
        job, begin = propagation_from_prompts(self._masks, self.state, intent, number, self._moment + 1)
        self._moment = job.moment
        return self._start(job, begin)

    @property
    def _due(self) -> list[int]:
        """Segments whose whole object has to be segmented."""
        if not self.volumetric or self.volume is None or self.predictor is None:
            return []
        return [info.value for info in self.segments if info.value in self.state.due]

    def _answer_whole(self, segment: int) -> None:
        self._start(*propagation_of_whole(self._masks, self.state, segment, self._moment), first=True)

    @_handle.register
    def _everything(self, intent: intents.Everything) -> EverythingJob:
        volume, predictor = self.require_volume(), self._require_predictor()
        asked = intent.orientation, intent.settings, intent.first, intent.last
        job = EverythingJob(self._jobs.new_number(intent.job), functools.partial(link, settings=intent.settings))
        return self._start(job, everything, predictor, volume, self.window, *asked)

    def find_labels_with(
        self, predictor: Predictor, window: IntensityWindow, orientations: Sequence[str], intent: intents.FindLabels
    ) -> EverythingJob:
        """Find the labels of a model with an automatic head; the job's objects can be adopted as segments.

        Args:
            predictor: the model, which need not be the one that answers prompts.
            window: how grey values become pictures for it.
            orientations: the slices to look at; answers of several are averaged.
            intent: the first and the last slice, and the job's number.
        """
        job, volume = EverythingJob(self._jobs.new_number(intent.job), joined_labels), self.require_volume()
        return self._start(job, class_slices, predictor, volume, window, orientations, intent.first, intent.last)

    @_handle.register
    def _adopt(self, intent: intents.Adopt) -> tuple[SegmentInfo, ...]:
        known = len(self.segments)
        objects = self.found.of(intent.job, intent.objects)
        state = edits.adopt_objects(self.state, self.require_volume(), objects, intent.values, intent.names)
        if len(state.segments) > known:
            self._apply("add found objects", state)
        return self.segments[known:]

    @_handle.register
    def _cancel(self, intent: intents.Cancel) -> None:
        self._jobs.cancel(intent.job, intent.keep_results)

    @_handle.register
    def _embed(self, intent: intents.Embed) -> None:
        volume, predictor = self.require_volume(), self._require_predictor()
        self._embedding.begin(predictor, volume, self.window, (intent.orientation, intent.index))
        self.work_arrived.set()

    @_handle.register
    def _stop_embedding(self, _: intents.StopEmbedding) -> None:
        if self._embedding.active:
            self._tell(events.Finished(None, "embed", cancelled=True))
        self._embedding.stop()

    def work(self, budget_seconds: float = 0.05) -> bool:
        """Do at least one step, more until the budget is spent; returns whether anything is left to do."""
        end = time.monotonic() + budget_seconds
        while self._step() and time.monotonic() < end:
            pass
        self._tell_state()
        return bool(not self.settled or self._jobs.all or self._embedding.active or self.looked_at)

    def finish(self, job: Job) -> None:
        """Work until a job is done, for hosts that can wait."""
        while not job.done:
            self.work(0.0)

    # ---- inside

    def _tell(self, event: events.Event) -> None:
        """Call every listener; one that fails is logged and does not stop the others."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                logging.getLogger(__name__).exception("A listener failed on %s", type(event).__name__)

    def _tell_state(self) -> None:
        """Send the state if it has changed, or if a caller has asked for it."""
        if not self.state_due and self.settled == self._settled:
            return
        self.state_due, self._settled = False, self.settled
        state = self.state
        self._tell(
            events.StateChanged(
                state.segments,
                tuple(events.PromptInfo(one.id, one.segment, one.prompt, one.view) for one in state.prompts),
                self.undo_name,
                self.redo_name,
                self.window,
                tuple((info.value, plane.key) for info in state.segments for plane in state.outdated(info.value)),
                self._settled,
                self._masks.digest if self._settled else None,
            )
        )

    def _count_from(self, state: State) -> None:
        self._next_number = max([self._next_number, *(placed.id + 1 for placed in state.prompts)])
        self._moment = max([self._moment, *state.since.values()])

    def require_volume(self) -> Volume:
        """The volume; UserError without one."""
        if self.volume is None:
            raise UserError("There is no volume yet; open one first.")
        return self.volume

    def _require_predictor(self) -> Predictor:
        if self.predictor is None:
            raise UserError("There is no model yet; choose one first.")
        return self.predictor

    def _restart_masks(self) -> None:
        """The volume, window or model has changed: forget all answers and make the masks again."""
        self.state_due = True
        if self.volume is None or self.predictor is None:
            return
        self._masks.restart(Answers(self.predictor, self.volume, self.window))
        if self._embedding.focus is not None:
            self._embed(intents.Embed(*self._embedding.focus))
        self.work_arrived.set()

    def _edit_segments(self, name: str, edit: Callable[..., State], value: int, *fields: Any) -> None:
        """Edit segments in a step, or if segments are not steps, in every state of the history that it fits."""
        if self.segments_are_steps:
            self._apply(name, edit(self.state, value, *fields))
            return

        def where_it_fits(state: State) -> State:
            there = any(info.value == value for info in state.segments)
            return state if there == (edit is edits.add_segment) else edit(state, value, *fields)

        self._travel(self._history.rewrite, where_it_fits)

    def _apply(self, name: str, state: State, moment: int | None = None) -> None:
        if moment is None:
            moment = self._moment = self._moment + 1
        stamped = state.stamped(self.state, moment)
        if self.volumetric and name:
            values = {info.value for info in state.segments}
            changed = {value for value in values if state.prompted(value) != self.state.prompted(value)}
            stamped = replace(stamped, due=stamped.due | changed)
        self._travel(self._history.push, name, stamped)

    def _travel(self, change: Callable[..., str | None], *inputs: Any) -> str | None:
        """Change the history, send what changed with it, and queue the masks that follow from the new state."""
        before, name = self.state, change(*inputs)
        after = self.state
        self._jobs.stop_overtaken()
        for info in after.segments:
            if info.value not in after.due and after.outdated(info.value) and not before.outdated(info.value):
                self.notice(f"Slices of {info.name} were propagated from prompts that have changed since; "
                             "propagate again.")  # fmt: skip
        self.state_due = True
        self._masks.state_changed(before)
        self.work_arrived.set()
        return name

    def _start(self, job: Job, begin: Callable[..., Iterator], *inputs: Any, first: bool = False) -> Any:
        """Begin a job; see `RunningJobs.start`."""
        self._jobs.start(job, begin, *inputs, first=first)
        self.work_arrived.set()
        return job

    def _step(self) -> bool:
        """Do the most urgent step; False when there was nothing to do."""
        job, embeds = None, self._embedding.active
        try:
            if not self._masks.settled:
                self._masks.refresh()
            elif (segment := next(iter(set(self._due) - {one.segment for one in self._jobs.propagations}), None)):
                self._answer_whole(segment)
            elif self._jobs.all:
                job = self._jobs.all[0]
                self._jobs.step(job)
            elif self.looked_at is not None:
                self._look()
            elif not self._embedding.active:
                return False
            elif not self._embedding.step():
                self._tell(events.Finished(None, "embed"))
        except UserError as error:
            number = job.number if job is not None else None
            self._tell(events.Failed(str(error), number, cause_of(error)))
            if embeds and not self._embedding.active:
                self._tell(events.Finished(None, "embed", cancelled=True))
        return True

    def _look(self) -> None:
        """Prepare the plane that the user looks at. A failure is ignored here: the first prompt reports it."""
        plane, self.looked_at = self.looked_at, None
        if self._masks.answers is not None:
            with suppress(Exception):
                self._masks.answers.prepare(plane)

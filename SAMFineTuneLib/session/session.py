"""The interactive session: the one object that panels, servers and the command line talk to.

It holds the volume, the window, the model, and a `State` of segments, prompts and propagated masks. Callers send
intents (`add_prompt`, `undo`, `propagate`, ...) and draw what it says: events tell listeners what changed, `mask` and
`labelmap` give the results.

Anything long is worked off by `work`, a step at a time: masks that must be made anew, then jobs, then embedding in
the background. A host without threads calls it from a timer, one with threads uses `jobs.WorkThread`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow, SegmentInfo, Volume
from SAMFineTuneLib.images.slice_extraction import picture
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane, number_of_slices
from SAMFineTuneLib.inference.automatic_head import class_slices
from SAMFineTuneLib.inference.everything_mode import Object3D, everything
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.progress import Progress
from SAMFineTuneLib.inference.propagation import PropagationEnd, Seed, planned_planes, propagate
from SAMFineTuneLib.inference.settings import EverythingSettings, PropagationSettings
from SAMFineTuneLib.session import edits, events
from SAMFineTuneLib.session.answers import Answer
from SAMFineTuneLib.session.document import Document, as_sentence, details_of, locked
from SAMFineTuneLib.session.jobs import Embedding, EverythingJob, Job, LabelsJob, PropagationJob
from SAMFineTuneLib.session.state import Place, State

_DOING = {"propagate": "Propagating", "everything": "Finding objects", "embed": "Preparing slices"}


class Session(Document):
    """A document with jobs: propagation, everything mode, embedding in the background."""

    def __init__(
        self,
        volume: Volume | None = None,
        predictor: Predictor | None = None,
        window: IntensityWindow | None = None,
        immediate: bool = True,
    ) -> None:
        self._jobs: list[PropagationJob | EverythingJob] = []
        self._embedding: Embedding | None = None
        self._focus: tuple[str, int] | None = None
        super().__init__(volume, predictor, window, immediate)

    @locked
    def set_volume(self, volume: Volume, window: IntensityWindow | None = None) -> None:
        """Start over with another volume; without a window, with the default of its modality."""
        self._stop_jobs()
        self.stop_embedding()
        super().set_volume(volume, window)

    @locked
    def set_window(self, window: IntensityWindow) -> None:
        """See the volume differently; jobs end, masks that come from prompts are made anew."""
        self._stop_jobs()
        super().set_window(window)

    @locked
    def set_model(self, predictor: Predictor, adapter: str = "", recipe: Mapping[str, Any] | None = None) -> None:
        """Answer with another model; jobs end, masks that come from prompts are made anew. See `Document.set_model`."""
        self._stop_jobs()
        super().set_model(predictor, adapter, recipe)

    @locked
    def planes(self, segment: int) -> list[SlicePlane]:
        """The planes on which a segment has prompts or propagated masks."""
        found = {plane.key: plane for plane in super().planes(segment)}
        for job in self._propagations():
            found |= {key: item.plane for (owner, key), item in job.masks.items() if owner == segment}
        return list(found.values())

    @locked
    def propagate(
        self,
        segment: int,
        settings: PropagationSettings | None = None,
        orientation: str | None = None,
        number: int | None = None,
    ) -> PropagationJob:
        """Carry a segment's prompted slices through the volume; `work` does it, slice by slice.

        `orientation` says whose slices ("axial", ..., "oblique") when the segment is prompted in several. `number`
        is what the caller calls the job.
        """
        info = edits.find_segment(self.state, segment)
        volume, predictor = self._require_volume(), self._require_predictor()
        if any(job.segment == segment for job in self._propagations()):
            raise UserError(f"Segment {info.name} is being propagated already; wait for it or cancel it.")
        prompted = [task for place, task in self.state.tasks.items() if place[0] == segment and task.prompts]
        orientations = sorted({task.plane.orientation for task in prompted})
        if orientation is None and len(orientations) > 1:
            raise UserError(f"Segment {info.name} has prompts on {' and '.join(orientations)} slices; choose which.")
        seeds, sources = [], []
        for task in prompted:
            mask = self._answer((segment, task.plane.key)).mask.unpack()
            if orientation in (None, task.plane.orientation) and mask.any():
                seeds.append(Seed(task.plane, mask))
                sources.append((task.plane.key, task.prompts))
        covers = planned_planes(volume, seeds, settings)
        job = PropagationJob(segment, tuple(sources), covers, number, self._next_moment())
        job.steps = propagate(
            predictor, volume, self.window, seeds, settings, functools.partial(self._report, job), job.is_cancelled
        )
        return self._start(job)

    @locked
    def everything(
        self,
        orientation: str = "axial",
        settings: EverythingSettings | None = None,
        first: int | None = None,
        last: int | None = None,
        number: int | None = None,
    ) -> EverythingJob:
        """Find all objects of a range of slices; the job's `objects` can be adopted as segments."""
        volume, predictor = self._require_volume(), self._require_predictor()
        job = EverythingJob(settings, number)
        report = functools.partial(self._report, job)
        job.steps = everything(
            predictor, volume, self.window, orientation, settings, first, last, report, job.is_cancelled
        )
        return self._start(job)

    @locked
    def find_labels(
        self,
        predictor: Predictor,
        window: IntensityWindow,
        orientation: str = "axial",
        first: int | None = None,
        last: int | None = None,
        number: int | None = None,
    ) -> LabelsJob:
        """Find the labels of a model with an automatic head, which needs not be the one that answers prompts; the
        job's `objects` can be adopted as segments."""
        job = LabelsJob(number)
        report = functools.partial(self._report, job)
        job.steps = class_slices(
            predictor, self._require_volume(), window, orientation, first, last, report, job.is_cancelled
        )
        return self._start(job)

    @locked
    def adopt(
        self,
        objects: Iterable[Object3D],
        values: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> tuple[SegmentInfo, ...]:
        """Make found objects segments, in one step; returns them. Values and names are chosen when not given."""
        known = len(self.segments)
        state = edits.adopt_objects(self.state, self._require_volume(), objects, values, names)
        if len(state.segments) > known:
            self._apply("add found objects", state)
        return self.segments[known:]

    @locked
    def embed(self, orientation: str, index: int) -> None:
        """Embed slices in the background: this one, its neighbours outwards, the rest. Call again to move on."""
        volume, _ = self._require_volume(), self._require_predictor()
        aligned_plane(volume, orientation, index)
        self._focus = (orientation, index)
        self._embedding = Embedding(
            number_of_slices(volume, orientation),
            index,
            functools.partial(aligned_plane, volume, orientation),
            functools.partial(self._tell_busy, None, "embed"),
        )
        self.work_arrived.set()

    @locked
    def stop_embedding(self) -> None:
        """Embed nothing more in the background."""
        if self._embedding is not None:
            self._tell(events.Finished(None, "embed", cancelled=True))
        self._embedding = self._focus = None

    @locked
    def work(self, budget_seconds: float = 0.05) -> bool:
        """Do at least one step, more until the budget is spent; returns whether anything is left to do."""
        end = time.monotonic() + budget_seconds
        while self._step() and time.monotonic() < end:
            pass
        return bool((self._pending and self._answers) or self._jobs or self._embedding)

    def finish(self, job: Job) -> None:
        """Work until a job is done, for hosts that have nothing else to do meanwhile."""
        while not job.done:
            self.work(0.0)

    # ---- inside

    def _report(self, job: Job, progress: Progress) -> None:
        job.progress = progress
        self._tell_busy(job.number, job.what, progress)

    def _tell_busy(self, job: int | None, what: str, progress: Progress) -> None:
        done, total = progress.done, progress.total
        text = f"{_DOING[what]}: {done} of {total} slices"
        fraction = done / total if total else 1.0
        self._tell(events.Busy(job, what, fraction, progress.seconds_left, text, done, total))

    def _propagations(self) -> list[PropagationJob]:
        return [job for job in self._jobs if isinstance(job, PropagationJob)]

    def _restart_answers(self) -> None:
        super()._restart_answers()
        if self._focus is not None:
            self.embed(*self._focus)

    def _answer(self, place: Place) -> Answer | None:
        """What a running propagation has found counts already, where there are no prompts."""
        if not self.state.prompts_at(place):
            for job in self._propagations():
                if place in job.masks:
                    return Answer(job.masks[place].mask, job.masks[place].score)
        return super()._answer(place)

    def _since(self, place: Place) -> int:
        if not self.state.prompts_at(place):
            for job in self._propagations():
                if place in job.masks:
                    return job.moment
        return super()._since(place)

    def _announce(self, before: State) -> None:
        for job in self._propagations():
            if not job.cancelled and not self.state.agrees(job.segment, job.sources):
                job.cancel(keep_results=False)
                self._tell(events.Notice("The propagation was stopped because the prompts it started from changed."))
        super()._announce(before)

    def _step(self) -> bool:
        """One step of what is most urgent; False when there was nothing."""
        job = None
        try:
            if self._pending and self._answers:
                self._refresh()
            elif self._jobs:
                job = self._jobs[0]
                self._step_job(job)
            elif self._embedding is not None:
                self._step_embedding(self._embedding)
            else:
                return False
        except UserError as error:
            number = job.number if job is not None else None
            self._tell(events.Failed(str(error), number, details_of(error)))
        return True

    def _start(self, job):
        self._jobs.append(job)
        self.work_arrived.set()
        return job

    def _stop_jobs(self) -> None:
        for job in list(self._jobs):
            job.cancel(keep_results=False)
            self._end_job(job)

    def _step_job(self, job: PropagationJob | EverythingJob) -> None:
        try:
            item = None if job.cancelled and not job.keep_results else next(job.steps, None)
        except Exception as error:
            job.cancel()
            self._end_job(job)
            raise as_sentence(error, f"finish to {job.what}") from error
        if item is None:
            self._end_job(job)
        elif isinstance(item, PropagationEnd):
            self._tell(events.Notice(item.reason))
        elif isinstance(job, PropagationJob):
            self._pending[job.take(item)] = item.plane
            self._refresh()
        else:
            job.slices.append(item)

    def _end_job(self, job: PropagationJob | EverythingJob) -> None:
        self._jobs.remove(job)
        job.done = True
        if isinstance(job, EverythingJob):
            job.link()
        else:
            self._pending |= {place: item.plane for place, item in job.masks.items()}
            if job.keep_results and (state := job.commit(self.state)) is not self.state:
                self._apply("propagate", state, job.moment)
        self._tell(events.Finished(job.number, job.what, job.cancelled))

    def _step_embedding(self, embedding: Embedding) -> None:
        plane = embedding.next()
        if plane is None:
            self._embedding = None
            self._tell(events.Finished(None, "embed"))
            return
        try:
            self.predictor.embed(picture(self.volume, plane, self.window))
        except Exception as error:
            self._embedding = self._focus = None
            raise as_sentence(error, f"embed {plane}") from error
        embedding.advance()

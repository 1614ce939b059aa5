"""Long computations of a session, which `Session.work` does step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SlicePlane
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.everything_mode import Object3D, SliceMasks, link
from SAMFineTuneLib.inference.progress import Progress
from SAMFineTuneLib.inference.propagation import PropagatedSlice
from SAMFineTuneLib.inference.settings import EverythingSettings
from SAMFineTuneLib.session.events import ObjectInfo, Objects
from SAMFineTuneLib.session.state import Place, PropagatedMask, Sources, State

_MOST_FOUND = 2  # jobs whose objects are kept


class Job:
    """A computation under way. `progress` is its last one, `done` is true when it will do nothing more.

    `number` comes back in its events.
    """

    what = "job"

    def __init__(self, number: int) -> None:
        self.number = number
        self.progress: Progress | None = None
        self.done = False
        self.cancelled = False
        self.keep_results = True
        self.steps: Iterator[Any] = iter(())

    def cancel(self, keep_results: bool = True) -> None:
        """Stop before the next slice; what was found so far stays (and can be undone) unless told otherwise."""
        self.cancelled = True
        self.keep_results = self.keep_results and keep_results

    def is_cancelled(self) -> bool:
        return self.cancelled


class PropagationJob(Job):
    """A propagation. `masks` are its results so far; a session's state gets them when it ends."""

    what = "propagate"

    def __init__(
        self, number: int, segment: int, sources: Sources, covers: list[SlicePlane], moment: int = 0
    ) -> None:
        """`moment` is when it was asked for: its masks are what they are since then."""
        super().__init__(number)
        self.segment = segment
        self.moment = moment
        self.sources = sources
        self.covers = frozenset(plane.key for plane in covers)
        self.masks: dict[Place, PropagatedMask] = {}

    def take(self, item: PropagatedSlice) -> Place:
        """Keep a slice."""
        sources = tuple(source for source in self.sources if source[0] in item.sources)
        place = (self.segment, item.plane.key)
        self.masks[place] = PropagatedMask(item.plane, PackedMask.of(item.mask), item.score, sources)
        return place

    def commit(self, state: State) -> State:
        """The state with the results. A complete run replaces all earlier masks where it could have gone.

        Where there are prompts by now that say what is meant, they count alone; negative points correct what came.
        """

        def replaced(place: Place) -> bool:
            covered = place in self.masks or (not self.cancelled and place[1] in self.covers)
            return place[0] == self.segment and covered and not state.prompts_at(place)

        kept = {place: item for place, item in state.propagated.items() if not replaced(place)}
        found = {
            place: item
            for place, item in self.masks.items()
            if not any(part.says_where for part in state.prompts_at(place))
        }
        if not found and len(kept) == len(state.propagated):
            return state
        return replace(state, propagated=kept | found)


class EverythingJob(Job):
    """Everything mode; `objects` are there when it is done."""

    what = "everything"

    def __init__(self, number: int, settings: EverythingSettings | None = None) -> None:
        super().__init__(number)
        self.objects: list[Object3D] = []
        self.slices: list[SliceMasks] = []
        self._settings = settings

    def link(self) -> None:
        """Join what was found in the slices."""
        self.objects = link(self.slices, self._settings)


class LabelsJob(EverythingJob):
    """An automatic head's labels; one of `objects` is all that was found of a label, its value the class's number."""

    def link(self) -> None:
        """Gather each label's slices."""
        found: dict[int, dict[int, PackedMask]] = {}
        for item in self.slices:
            for value, mask in item.masks.items():
                found.setdefault(value, {})[item.index] = mask
        orientation = self.slices[0].plane.orientation if self.slices else "axial"
        self.objects = [
            Object3D(value, masks, 1.0, orientation, sum(int(mask.unpack().sum()) for mask in masks.values()))
            for value, masks in sorted(found.items())
        ]


class FoundObjects:
    """What the last jobs found, as long as it may be adopted."""

    def __init__(self) -> None:
        self._jobs: dict[int, EverythingJob] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._jobs.clear()

    def has(self, job: int) -> bool:
        """Whether it is known what the job found."""
        return job in self._jobs

    def keep(self, job: EverythingJob) -> Objects:
        """Join what a job has found in its slices, and forget the oldest; returns the event that tells it."""
        job.link()
        job.slices = []
        self._jobs[job.number] = job
        for number in list(self._jobs)[:-_MOST_FOUND]:
            del self._jobs[number]
        return Objects(
            job.number,
            tuple(
                ObjectInfo(one.value, one.area, float(one.score), one.orientation, (min(one.masks), max(one.masks)))
                for one in job.objects
            ),
        )

    def of(self, job: int, objects: Iterable[int]) -> list[Object3D]:
        """Objects of a job by their numbers; UserError when one is not there."""
        if job not in self._jobs:
            raise UserError("These objects are no longer there; find them again.")
        by_number = {item.value: item for item in self._jobs[job].objects}
        if not set(objects) <= set(by_number):
            raise UserError("One of these objects is not there; find them again.")
        return [by_number[number] for number in objects]

"""Long computations of a session, which `Session.work` does step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.automatic_head import SliceClasses
from SAMFineTuneLib.inference.everything_mode import Object3D
from SAMFineTuneLib.inference.propagation import PropagatedSlice
from SAMFineTuneLib.session.events import ObjectInfo, Objects
from SAMFineTuneLib.session.state import Place, PropagatedMask, Sources, State, WholeAnswer

_MOST_FOUND = 2  # jobs whose objects are kept


@dataclass(eq=False)
class Job:
    """A computation under way."""

    what: ClassVar[str]
    number: int
    """Comes back in its events."""
    steps: Iterator[Any] = field(default=iter(()), init=False)
    done: bool = field(default=False, init=False)
    """Whether it will do nothing more."""
    cancelled: bool = field(default=False, init=False)
    keep_results: bool = field(default=True, init=False)
    overtaken: bool = field(default=False, init=False)
    """Whether prompts, window or model have changed since."""

    def cancel(self, keep_results: bool = True) -> None:
        """Stop before the next slice; what was found so far stays (and can be undone) unless told otherwise."""
        self.cancelled = True
        self.keep_results = self.keep_results and keep_results


@dataclass(eq=False)
class PropagationJob(Job):
    """A propagation."""

    what = "propagate"
    segment: int
    sources: Sources = ()
    covers: frozenset[str] = frozenset()
    """Keys of the planes that it may reach."""
    moment: int = 0
    """When it was asked for: its masks are what they are since then."""
    known: Mapping[Place, PropagatedMask] | None = None
    """For the answer to a prompt in 3-D: the masks of the answer before, which stay where they come again. `sources`
    are then all prompts of the segment, and the answer belongs to the step that the prompts belong to."""
    whole: WholeAnswer | None = None
    """What such an answer follows from."""
    masks: dict[Place, PropagatedMask] = field(default_factory=dict, init=False)
    """Its results so far that are new; the session's state gets them when it ends."""
    again: dict[Place, PropagatedMask] = field(default_factory=dict, init=False)
    """Results that are as they were."""
    ends: list[str] = field(default_factory=list, init=False)
    """Where it ended early or left slices empty, and why."""

    def take(self, item: PropagatedSlice) -> Place:
        """Add a slice."""
        sources = tuple(source for source in self.sources if source[0] in item.sources)
        place = (self.segment, item.plane.key)
        mask = PackedMask.of(item.mask)
        before = (self.known or {}).get(place)
        if before is not None and before.mask == mask:
            self.again[place] = PropagatedMask(item.plane, before.mask, item.score, sources)
        else:
            self.masks[place] = PropagatedMask(item.plane, mask, item.score, sources)
        return place

    def holds(self, state: State) -> bool:
        """Whether the state still has the prompts from which the propagation started."""
        if self.known is None:
            return state.agrees(self.segment, self.sources)
        return state.prompted(self.segment) == self.sources

    def commit(self, state: State) -> State:
        """The state with the results. A complete run replaces all earlier masks where it could have gone.

        Where there are prompts by now that say what is meant, they count alone; negative points correct what came.
        The answer to a prompt in 3-D replaces the one before wherever that was, but not found objects.
        """
        results = self.masks | self.again

        def replaced(place: Place) -> bool:
            may_go = place[1] in self.covers if self.known is None else bool(state.propagated[place].sources)
            covered = place in results or (not self.cancelled and may_go)
            return place[0] == self.segment and covered and not state.prompts_at(place)

        kept = {place: item for place, item in state.propagated.items() if not replaced(place)}
        found = {
            place: item
            for place, item in results.items()
            if not any(part.says_where for part in state.prompts_at(place))
        }
        if self.known is not None:
            whole = {value: answer for value, answer in state.whole.items() if value != self.segment}
            if self.whole is not None and not self.cancelled:
                whole[self.segment] = self.whole
            return replace(state, propagated=kept | found, due=state.due - {self.segment}, whole=whole)
        return replace(state, propagated=kept | found) if found or len(kept) < len(state.propagated) else state


@dataclass(eq=False)
class EverythingJob(Job):
    """Everything mode, or an automatic head's labels."""

    what = "everything"
    join: Callable[[list[Any]], list[Object3D]]
    """Makes objects of what was found in the slices."""
    slices: list[Any] = field(default_factory=list, init=False)
    objects: list[Object3D] = field(default_factory=list, init=False)
    """There when the job is done."""


def joined_labels(slices: list[SliceClasses]) -> list[Object3D]:
    """An object for each label that an automatic head found; its value is the number of the class."""
    found: dict[int, dict[int, PackedMask]] = {}
    for item in slices:
        for value, mask in item.masks.items():
            found.setdefault(value, {})[item.index] = mask
    orientation = slices[0].plane.orientation if slices else "axial"
    return [
        Object3D(value, masks, 1.0, orientation, sum(int(mask.unpack().sum()) for mask in masks.values()))
        for value, masks in sorted(found.items())
    ]


class FoundObjects(dict[int, EverythingJob]):
    """The objects of the last jobs, which may become segments."""

    def keep(self, job: EverythingJob) -> Objects:
        """Join what a job found on its slices to objects and forget the oldest job; returns the event for listeners."""
        job.objects, job.slices = job.join(job.slices), []
        self[job.number] = job
        for number in list(self)[:-_MOST_FOUND]:
            del self[number]
        return Objects(
            job.number,
            tuple(
                ObjectInfo(one.value, one.area, float(one.score), one.orientation, (min(one.masks), max(one.masks)))
                for one in job.objects
            ),
        )

    def of(self, job: int, objects: Iterable[int]) -> list[Object3D]:
        """Objects of a job by their numbers; UserError when one is not there."""
        if job not in self:
            raise UserError("These objects are no longer there; find them again.")
        by_number = {item.value: item for item in self[job].objects}
        if not set(objects) <= set(by_number):
            raise UserError("One of these objects is not there; find them again.")
        return [by_number[number] for number in objects]

"""The propagation of a segment: the masks from which it starts, its results, and the resulting state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow, SlicePlane
from SAMFineTuneLib.images.intensity_window import joined
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.propagation import planned_planes, propagate
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, Seed
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.inference.slice_stack import stack_through
from SAMFineTuneLib.session import edits, intents
from SAMFineTuneLib.session.answers import Answer, Answers
from SAMFineTuneLib.session.jobs import Job
from SAMFineTuneLib.session.state import Place, PropagatedMask, Sources, State, Task, WholeAnswer

if TYPE_CHECKING:
    from SAMFineTuneLib.session.masks import Masks

_OVERGROWN = 2.0
"""Area, relative to the largest mask with positive prompts, above which a mask that negative points alone correct is
ignored.
"""

Begin = Callable[..., Iterator[Any]]
"""Begins a job's steps; called with a function that takes a Progress, and one that returns whether the job was
cancelled.
"""


@dataclass(eq=False)
class PropagationJob(Job):
    """A propagation."""

    what = "propagate"
    segment: int
    sources: Sources = ()
    covers: frozenset[str] = frozenset()
    """Keys of the planes that it may reach."""
    moment: int = 0
    """When it was requested, which is the moment of its masks."""
    known: Mapping[Place, PropagatedMask] | None = None
    """For the answer to a prompt in 3-D: the masks of the previous answer, which stay where they recur. `sources` are
    then all prompts of the segment, and the answer belongs to the step that the prompts belong to.
    """
    whole: WholeAnswer | None = None
    """The prompts, window and model of such an answer."""
    masks: dict[Place, PropagatedMask] = field(default_factory=dict, init=False)
    """Its new results so far; the session's state gets them when it ends."""
    again: dict[Place, PropagatedMask] = field(default_factory=dict, init=False)
    """Results that are unchanged."""
    ends: list[str] = field(default_factory=list, init=False)
    """Sentences about where it ended early or left slices empty, and why."""

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
        """The state with the results.

        A complete run replaces all earlier masks on the slices that it could have reached. Where the user has meanwhile
        placed prompts that define the object, the result is dropped; negative points correct it. The answer to a prompt
        in 3-D replaces the whole answer before it, but no found objects.
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


def propagation_from_prompts(
    masks: Masks, state: State, intent: intents.Propagate, number: int, moment: int
) -> tuple[PropagationJob, Begin]:
    """Plan a `Propagate`, from all slices of the segment that have prompts.

    Args:
        masks: those of the session, whose model, volume and window are used.
        state: the session's.
        intent: the intent.
        number: of the job.
        moment: of its masks.

    Returns:
        The job, and the function that begins it.

    Raises:
        UserError: when it is unclear which slices are meant, or they have no masks.
    """
    segment, orientation = intent.segment, intent.orientation
    prompted = [task for place, task in state.tasks.items() if place[0] == segment and task.prompts]
    orientations = sorted({task.plane.orientation for task in prompted})
    if orientation is None and len(orientations) > 1:
        name = edits.find_segment(state, segment).name
        raise UserError(f"Segment {name} has prompts on {' and '.join(orientations)} slices; choose which.")
    start, sources, kept = _Start(masks.answers), [], {}
    chosen = [task for task in prompted if orientation in (None, task.plane.orientation)]
    found = [(task, masks.answer((segment, task.plane.key))) for task in chosen]
    for task, answer in found:
        if _is_overgrown(task, answer, found):
            continue
        if start.add(task.plane, answer):
            sources.append((task.plane.key, task.prompts))
        elif task.base is not None and task.plane.index is not None:  # the user has rejected the mask propagated there
            kept[task.plane.index] = None
    covers = frozenset(plane.key for plane in planned_planes(masks.answers.volume, start.seeds, intent.settings))
    job = PropagationJob(number, segment, tuple(sources), covers, moment)
    return job, start.begin(intent.settings, kept=kept)


def propagation_of_whole(masks: Masks, state: State, segment: int, moment: int) -> tuple[PropagationJob, Begin]:
    """Plan the answer for a whole object, from all its prompted slices that are parallel to the one prompted last.

    Slices between unchanged prompted ones keep their masks.

    Args:
        masks: of the session.
        state: with the prompts.
        segment: its label value.
        moment: when the answer was asked for.

    Returns:
        The job, whose number is the negative of the segment's value, and the function that begins it.
    """
    seen = masks.answers
    start, kept = _Start(seen), {}
    planes = [state.tasks[(segment, key)].plane for key, _ in state.prompted(segment)]
    stack = stack_through(seen.volume, planes[-1]) if planes else None
    found = []
    for plane in planes:
        with suppress(UserError):  # it has no mask, as the user was told, or lies across
            answer = masks.answer((segment, plane.key))
            stack.place(plane, answer.mask.unpack())
            found.append((state.tasks[(segment, plane.key)], answer))
    for task, answer in found:
        plane = task.plane
        if not _is_overgrown(task, answer, found) and not start.add(plane, answer) and task.base is not None:
            kept |= {plane.index: None} if plane.index is not None else {}
    bounded = any(one.segment == segment and len(one.parts) > 1 for one in state.prompts)
    settings = PropagationSettings(direction="fill" if bounded and len(start.seeds) > 1 else "both")
    job = PropagationJob(-segment, segment, state.prompted(segment), frozenset(), moment, state.propagated)
    if not start.seeds:
        return job, lambda *_: iter(())
    if planes[-1].index is not None:
        seeds = {seed.plane.index for seed in start.seeds}
        counted = seeds | kept.keys()
        known = {plane.index: state.prompts_at((segment, plane.key)) for plane in planes if plane.index in counted}
        job.whole = WholeAnswer((planes[-1].orientation, start.window, seen.predictor.engine.digest), known)
        before = state.whole.get(segment)
        for plane in planned_planes(seen.volume, start.seeds, settings) if before is not None else ():
            if plane.index not in kept and before.holds(job.whole, plane.index):
                item = state.propagated.get(place := (segment, plane.key))
                kept[plane.index] = None if item is None else item.mask.unpack()
                job.again |= {} if item is None else {place: item}
    return job, start.begin(settings, kept=kept)


def _is_overgrown(task: Task, answer: Answer, found: Sequence[tuple[Task, Answer]]) -> bool:
    """Whether a propagated mask that negative points alone correct is still so large, compared with those of positive
    prompts, that it does not show the structure.
    """
    if any(part.says_where for part in task.prompts):
        return False
    defined = [other.mask.count for one, other in found if any(part.says_where for part in one.prompts)]
    return bool(defined) and answer.mask.count > _OVERGROWN * max(defined)


class _Start:
    """The masks from which a propagation starts, and the window in which the model sees the slices."""

    def __init__(self, seen: Answers) -> None:
        self._seen, self._windows = seen, [seen.window]
        self.seeds: list[Seed] = []

    @property
    def window(self) -> IntensityWindow:
        return joined(self._windows)

    def add(self, plane: SlicePlane, answer: Answer) -> bool:
        """Also start from a slice if its mask is not empty; returns whether it was added."""
        mask = answer.mask.unpack()
        if mask.any():
            self.seeds.append(Seed(plane, mask))
            self._windows += answer.windows
        return bool(mask.any())

    def begin(self, settings: PropagationSettings, **options: Any) -> Begin:
        seen = self._seen
        return functools.partial(propagate, seen.predictor, seen.volume, self.window, self.seeds, settings, **options)

"""Keeps the masks of a session up to date, and remembers which masks listeners have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError, model_error
from SAMFineTuneLib.images import SlicePlane
from SAMFineTuneLib.images.packed_mask import PackedMask, digest_of_masks
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.answers import Answer, Answers
from SAMFineTuneLib.session.doubts import doubt_about_place, doubts_about_window
from SAMFineTuneLib.session.history import History
from SAMFineTuneLib.session.state import Place, State, changes

if TYPE_CHECKING:
    from SAMFineTuneLib.session.propagation_job import PropagationJob


@dataclass(frozen=True)
class ToldMask:
    """A mask as listeners know it, and the moment of its last change."""

    plane: SlicePlane = field(compare=False)
    mask: PackedMask
    since: int


class Masks:
    """Makes the masks that follow from the current state of a history, and sends those that have changed.

    Args:
        history: of the session.
        propagations: returns the running propagations, whose slices count on planes without prompts.
        tell: called with each event.
    """

    def __init__(
        self,
        history: History,
        propagations: Callable[[], Iterable[PropagationJob]],
        tell: Callable[[events.Event], None],
    ) -> None:
        self.answers: Answers | None = None
        self._history, self._propagations, self._tell = history, propagations, tell
        self._told: dict[Place, ToldMask] = {}
        self._pending: dict[Place, SlicePlane] = {}
        self._widened: set[int] = set()  # segments for which a notice named the wider window
        self._quiet_until = 0  # doubts about masks up to this moment were reported, perhaps in another session

    @property
    def settled(self) -> bool:
        """Whether all masks are made, or there is no volume or model to make them with."""
        return not (self._pending and self.answers)

    @property
    def digest(self) -> str:
        """Identifies all masks that listeners know, with their moments."""
        return digest_of_masks((*place, told.since, told.mask.digest) for place, told in self._told.items())

    def answer(self, place: Place) -> Answer | None:
        """The mask of a place and its score, computed now if necessary. None without a mask.

        Raises:
            UserError: when the model fails, or there is none.
        """
        state = self._history.state
        if (carried := self._carried(place)) is not None:
            item = carried.masks[place]
            return Answer(item.mask, item.score)
        task = state.tasks.get(place)
        if task is None:
            return None
        if not task.prompts:
            return Answer(task.base.mask, task.base.score)
        if self.answers is None:
            raise UserError("There is no model yet; choose one first.")
        try:
            return self.answers.answer(task)
        except Exception as error:
            raise model_error(error, f"segment {task.plane}") from error

    def since(self, place: Place) -> int:
        """The moment at which the mask of a place last changed; 0 without a mask."""
        carried = self._carried(place)
        return self._history.state.since.get(place, 0) if carried is None else carried.moment

    def restart(self, answers: Answers) -> None:
        """Make every mask of prompts again, after a change of volume, window or model."""
        self.answers = answers
        self._widened.clear()
        self.expect((place, task.plane) for place, task in self._history.state.tasks.items() if task.prompts)

    def expect(self, places: Iterable[tuple[Place, SlicePlane]]) -> None:
        """Queue the masks of these places, which may have changed."""
        self._pending |= dict(places)

    def state_changed(self, before: State) -> None:
        """After a change of the state, queue the masks that may differ, and report removed ones at once."""
        after = self._history.state
        changed = {(value, plane.key): plane for value, plane in changes(before, after)}
        self.expect(changed.items())
        for place in changed:  # removed masks must not occupy the voxels of new ones
            if place not in after.tasks:
                self.refresh(place)

    def forget_doubts(self, moment: int) -> None:
        """Send no more doubts about masks up to this moment."""
        self._quiet_until = moment

    def refresh(self, place: Place | None = None) -> None:
        """Make the mask of a place, by default of the place that changed last, and send it when it differs.

        Raises:
            UserError: when the model fails.
        """
        place = next(reversed(self._pending)) if place is None else place
        plane = self._pending.pop(place)
        answer = self.answer(place)
        now = None if answer is None else ToldMask(plane, answer.mask, self.since(place))
        if now == self._told.get(place):
            return
        if now is None:
            del self._told[place]
        else:
            self._told[place] = now
        self._tell(self._event(place, plane, answer))
        if now is not None and now.since > self._quiet_until:
            if doubt := doubt_about_place(self._history.state, place, answer):
                self._tell(events.Notice(doubt))
            if answer.windows and place[0] not in self._widened:
                self._widened.add(place[0])
                name = next(info.name for info in self._history.state.segments if info.value == place[0])
                for sentence in doubts_about_window(name, self.answers.window, answer):
                    self._tell(events.Notice(sentence))

    def finish(self) -> None:
        """Make all masks now."""
        while not self.settled:
            self.refresh()

    def tell_again(self) -> None:
        """Send every mask once more, because listeners missed some."""
        for place, told in list(self._told.items()):
            self._tell(self._event(place, told.plane, self.answer(place)))

    def _carried(self, place: Place) -> PropagationJob | None:
        """The running propagation whose slice counts at a place."""
        if self._history.state.prompts_at(place):
            return None
        return next((job for job in self._propagations() if place in job.masks), None)

    def _event(self, place: Place, plane: SlicePlane, answer: Answer | None) -> events.MaskChanged:
        if answer is None:
            return events.MaskChanged(place[0], plane)
        points = [part.points[part.labels == 1] for part in self._history.state.prompts_at(place)]
        merged = np.concatenate(points) if points else np.zeros((0, 2), np.float32)
        return events.MaskChanged(place[0], plane, answer.mask, answer.score, merged, self.since(place))

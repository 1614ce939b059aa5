"""Propagates masks from slice to slice: the mask of a slice gives the prompts of the next one, to which it is carried
along with the picture first (`slice_registration`).

The protocol is that of MedicoSAM's 3-D evaluation (Archit et al. 2025, arXiv 2501.11734): a direction ends when the new
mask overlaps the previous one too little. In addition, each connected piece of a mask is propagated on its own, so that
two kidneys in one segment are two boxes rather than one around both. A piece also ends where its area changes too much,
where the model's score is low, and where its grey values, or their contrast to the surroundings, differ from those on
the prompted slice: with a mask prompt, the model repeats the shape long after the structure has ended, which neither
IoU nor predicted IoU reveals.

Between two prompted slices the masks grow from both ends towards the middle; the slice where they meet is prompted
with the union of its two neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import interpolate, overlap
from SAMFineTuneLib.inference.piece_prompts import prompted_by_piece
from SAMFineTuneLib.inference.piece_tracks import followed_pieces
from SAMFineTuneLib.inference.progress import Cancelled, Meter
from SAMFineTuneLib.inference.propagation_plan import Front, PropagatedSlice, PropagationEnd, PropagationPlan
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.inference.slice_registration import carried_mask
from SAMFineTuneLib.inference.unchanged_structure import appearance

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor

_GREY_SHIFT = 2.0
"""A piece ends where its mean grey value is further from the prompted slice's than this many standard deviations of the
grey values there."""
_STANDS_OUT = 1.0
"""Contrast between a structure and its rim, in standard deviations of its grey values, above which the structure must
stay brighter, or darker, than its rim."""


@dataclass(frozen=True, eq=False)
class _Refused:
    """The slice to which a mask was not propagated, and why."""

    index: int
    reason: str


class StepwisePropagation:
    """One propagation.

    Args:
        predictor: the model.
        shown: index → picture of the slice.
        settings: when to stop.
        plan: where it starts, and which slices it should reach.
        cancelled: called before each slice; true ends the propagation.
        meter: counts the slices.
    """

    def __init__(
        self,
        predictor: Predictor,
        shown: Callable[[int], np.ndarray],
        settings: PropagationSettings,
        plan: PropagationPlan,
        cancelled: Cancelled,
        meter: Meter,
    ) -> None:
        self.predictor, self._picture, self.settings = predictor, lru_cache(4)(shown), settings
        self.plan, self.cancelled, self.meter = plan, cancelled, meter
        self._absent: set[int] = set()

    def slices(self, kept: Mapping[int, np.ndarray | None]) -> Iterator[PropagatedSlice | PropagationEnd]:
        """Yield as `propagation.propagate` does."""
        self._absent = {index for index, mask in kept.items() if mask is None}
        starts = [
            replace(front, prompted=appearance(self._picture(front.index), front.mask)) for front in self.plan.starts
        ]
        for lower, upper in zip(starts, starts[1:], strict=False):
            if not kept.keys() >= set(self.plan.between(lower.index, upper.index)):
                yield from self._between(lower, upper)
        for step in self.plan.steps:
            if not kept.keys() >= set(self.plan.beyond(step)):
                yield from self._outward(starts[-1 if step > 0 else 0], step)

    def _outward(self, front: Front, step: int) -> Iterator[PropagatedSlice | PropagationEnd]:
        wanted = self.plan.beyond(step)
        if not wanted:
            return
        while front.index != wanted[-1]:
            if self.cancelled():
                return
            results = self._advance(front, step, wanted[-1])
            if isinstance(results, _Refused):
                self.meter.skip(len([index for index in wanted if (index - front.index) * step > 0]))
                where = self.plan.where(results.index)
                yield PropagationEnd(f"Propagation ended before {where}: {results.reason}.")
                return
            for result in results:
                front = front.moved(front.index + step, result)
                if front.index in wanted:
                    self.meter.step()
                    yield result

    def _between(self, lower: Front, upper: Front) -> Iterator[PropagatedSlice | PropagationEnd]:
        """Fill the gap between two known slices from both ends."""
        ends = (lower.index, upper.index)
        wanted = self.plan.between(*ends)
        fronts = {1: lower, -1: upper}
        alive = [1, -1]
        refusals: list[str] = []
        while alive and fronts[-1].index - fronts[1].index > 1:
            if self.cancelled():
                return
            step = alive[0]
            front, other = fronts[step], fronts[-step]
            index = front.index + step
            carried, meets = front, None
            if index + step == other.index and len(alive) == 2:
                # The last slice of the gap is prompted from both sides, unless they contradict each other.
                if overlap(self._expected(front, index), self._expected(other, index)) < self.settings.min_overlap:
                    both = " and ".join(map(self.plan.where, ends))
                    yield PropagationEnd(
                        f"The masks that come from {both} do not agree where they meet, at {self.plan.where(index)}; "
                        "prompt a slice there."
                    )
                else:
                    carried, meets = replace(front, sources=front.sources + other.sources), other
            results = self._advance(carried, step, other.index - step, other, meets)
            if isinstance(results, _Refused):
                refusals.append(results.reason)
                alive.remove(step)
                continue
            alive.reverse()
            for result in results:
                front = fronts[step] = front.moved(front.index + step, result)
                if front.index in wanted:
                    self.meter.step()
                    yield result
        empty = (fronts[1].index + 1, fronts[-1].index - 1)
        if empty[0] <= empty[1]:
            self.meter.skip(len(self.plan.between(empty[0] - 1, empty[1] + 1)))
            where = " to ".join(dict.fromkeys(map(self.plan.where, empty)))
            stays = "stays" if empty[0] == empty[1] else "stay"
            yield PropagationEnd(
                f"Between {self.plan.where(ends[0])} and {self.plan.where(ends[1])}, {where} {stays} empty: "
                f"{refusals[-1]}; prompt a slice there."
            )

    def _advance(
        self, front: Front, step: int, last: int, beyond: Front | None = None, meets: Front | None = None
    ) -> list[PropagatedSlice] | _Refused:
        """The mask on the next slice. Where that slice is interpolated and the structure not found, also the masks up
        to the next slice where it is, `last` at most; `beyond` is the known mask behind that, and `meets` a front from
        the other side that prompts the slice, too."""
        skipped: list[int] = []
        for index in range(front.index + step, last + step, step):
            result = self._carry(front, index, meets)
            if not isinstance(result, _Refused):
                return [*self._bridge(front, skipped, index, result.mask, result.score), result]
            if index not in self.plan.interpolated:
                return result
            skipped.append(index)
        if beyond is None or overlap(front.mask, beyond.mask) < self.settings.min_overlap:
            return result
        return self._bridge(front, skipped, beyond.index, beyond.mask, front.best)

    def _bridge(
        self, front: Front, skipped: list[int], end: int, mask: np.ndarray, score: float
    ) -> list[PropagatedSlice]:
        """Interpolate shapes between a front's mask and the one on slice `end`, for the slices between."""
        found = []
        for index in skipped:
            shape = interpolate(front.mask, mask, (index - front.index) / (end - front.index))
            found.append(
                PropagatedSlice(self.plan.stack.plane(index), shape, score, overlap(front.mask, shape), front.sources)
            )
        return found

    def _expected(self, front: Front, index: int) -> np.ndarray:
        """A front's mask as it is expected on slice `index`: its pieces carried along with the picture."""
        if index in self.plan.interpolated:
            return front.mask
        expected = np.zeros_like(front.mask)
        for piece in followed_pieces(front.mask):
            share = carried_mask(piece.astype(np.float32), front.index, index, self._picture, self.plan.stack.count)
            expected |= share > 0.5 if (share > 0.5).any() else piece
        return expected

    def _carry(self, front: Front, index: int, meets: Front | None) -> PropagatedSlice | _Refused:
        """The mask on slice `index`, prompted by what is expected there from a neighbouring slice's mask."""
        if index in self._absent:
            return _Refused(index, "the structure is not there")
        shown, expected = self._picture(index), self._expected(front, index)
        if meets is not None:
            expected = expected | self._expected(meets, index)
        found = np.zeros(front.mask.shape, dtype=bool)
        scores, refusals = [], []
        for piece in followed_pieces(expected):
            answer = prompted_by_piece(self.predictor, shown, piece)
            new, score = answer.mask_near(piece), answer.score
            reason = self._doubt(piece, new, score, front, index, None if index in self.plan.interpolated else shown)
            if reason:
                refusals.append(reason)
            else:
                found |= new
                scores.append(score)
        if not scores:
            return _Refused(index, refusals[0])
        shared = overlap(front.mask, found)
        return PropagatedSlice(self.plan.stack.plane(index), found, min(scores), shared, front.sources)

    def _doubt(
        self, before: np.ndarray, after: np.ndarray, score: float, front: Front, index: int, shown: np.ndarray | None
    ) -> str | None:
        """Why the mask `after` on slice `index`, which continues the piece `before`, is doubtful, or None. On an
        interpolated slice, without grey values `shown`, only its shape counts."""
        old, new = np.count_nonzero(before), np.count_nonzero(after)
        if new == 0:
            return "the structure is not found there"
        if score < self.settings.min_score * front.best:
            return f"the model is unsure (predicted IoU {score:.2f} after {front.best:.2f})"
        if not 1 / self.settings.max_area_change <= new / old <= self.settings.max_area_change:
            return f"the area changes from {old} to {new} pixels"
        shared = overlap(before, after)
        if shared < self.settings.min_overlap:
            return f"the mask has too little in common with what the slice before leads to expect (IoU {shared:.2f})"
        if shown is None:
            return None
        here, prompted = appearance(shown, after), front.prompted
        if abs(here.grey - prompted.grey) > _GREY_SHIFT * prompted.spread:
            return (f"what the mask covers looks different (mean grey value {here.grey:.0f} instead of "
                    f"{prompted.grey:.0f})")  # fmt: skip
        between = self.plan.starts[0].index < index < self.plan.starts[-1].index  # where it cannot have ended
        stands_out = abs(prompted.contrast) >= _STANDS_OUT * prompted.spread
        if stands_out and not between and here.contrast * prompted.contrast < 0:
            was, now = ("brighter", "darker") if prompted.contrast > 0 else ("darker", "brighter")
            return f"what the mask covers is {now} than what is around it, not {was} as on the prompted slice"
        return None

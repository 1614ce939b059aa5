"""Propagates masks with the volume memory, which answers for a block of slices at once.

Each connected piece of a structure is propagated separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import overlap
from SAMFineTuneLib.inference.memory_propagation import (
    MOST_SLICES,
    SliceAnswer,
    Slices,
    propagate_with_memory,
    together,
)
from SAMFineTuneLib.inference.piece_prompts import prompted_by_piece, touching_pieces
from SAMFineTuneLib.inference.piece_tracks import followed_pieces, piece_tracks, shared_out
from SAMFineTuneLib.inference.progress import Cancelled, Meter
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, PropagationEnd, PropagationPlan

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor


class BlockPropagation:
    """One propagation; the slices nearest to a known mask come first.

    Args:
        predictor: the model, which has a volume memory.
        shown: returns the picture (H, W) of a slice from its index.
        plan: where it starts, and which slices it should reach.
        cancelled: called before each slice; true ends the propagation.
        meter: counts the slices.
        kept: as in `propagation.propagate`.
    """

    def __init__(
        self,
        predictor: Predictor,
        shown: Callable[[int], np.ndarray],
        plan: PropagationPlan,
        cancelled: Cancelled,
        meter: Meter,
        kept: Mapping[int, np.ndarray | None],
    ) -> None:
        self.predictor, self.plan, self.meter = predictor, plan, meter
        self._picture = lru_cache(2 * MOST_SLICES)(shown)
        self.known = {front.index: front.mask for front in plan.starts}
        lowest, highest = plan.starts[0].index, plan.starts[-1].index
        # The range includes the slices between a start and the requested range, which have to be passed.
        self.first = min(plan.first, lowest) if -1 in plan.steps else lowest
        self.last = max(plan.last, highest) if 1 in plan.steps else highest
        stack = Slices(
            self._picture,
            plan.stack.count,
            plan.stack.distance / plan.stack.plane(lowest).pixel_size,
            plan.interpolated,
        )
        memory, parts = predictor.engine.memory, piece_tracks(self.known)
        kept_masks = {index: mask for index, mask in kept.items() if mask is not None}
        answered = [
            _as_answers({index: own.get(index) for index in kept}, plan.starts[0].mask.shape)
            for own in shared_out(kept_masks, parts)
        ]
        self.blocks = together(
            propagate_with_memory(memory, stack, part, self.first, self.last, self._outlined, cancelled, own)
            for part, own in zip(parts, answered, strict=True)
        )
        self.kept = kept
        self.masks = self.known | kept_masks
        self.wanted = set(plan.indices) - kept.keys()

    def slices(self) -> Iterator[PropagatedSlice | PropagationEnd | None]:
        """Yield as `propagation.propagate` does."""
        absent = {index for index, mask in self.kept.items() if mask is None}
        for answers in self.blocks:
            if not answers:
                yield None
            for index in sorted(answers.keys() - self.kept.keys(), key=self._steps_to_known):
                answer = answers[index]
                neighbour = self._neighbour(index, absent)
                if neighbour is None or not answer.there:
                    absent.add(index)
                    continue
                touching = touching_pieces(answer.mask, neighbour)
                self.masks[index] = np.any(touching, axis=0) if touching else answer.mask
                if index in self.wanted:
                    self.meter.step()
                    shared = overlap(neighbour, self.masks[index])
                    plane, sources = self.plan.stack.plane(index), self._sources(index)
                    yield PropagatedSlice(plane, self.masks[index], answer.expected_iou, shared, sources)
        self.meter.skip(len(self.wanted - self.masks.keys()))
        yield from self._ends(absent)

    def _outlined(self, index: int, mask: np.ndarray) -> np.ndarray:
        """Probability (H, W) that each pixel belongs to the structure, from prompting the model with each piece of a
        mask."""
        if index in self.plan.interpolated:
            return mask.astype(np.float32)
        probabilities = [
            prompted_by_piece(self.predictor, self._picture(index), piece).probability_near(piece)
            for piece in followed_pieces(mask)
        ]
        return np.max(probabilities, axis=0)

    def _steps_to_known(self, index: int) -> int:
        return min(abs(index - start) for start in self.known)

    def _neighbour(self, index: int, absent: set[int]) -> np.ndarray | None:
        """The mask on the slice before `index`, coming from the nearest known slice; None where the structure has ended
        before it."""
        start = min(self.known, key=lambda known: abs(index - known))
        before = index + (1 if start > index else -1)
        if before in self.masks:
            return self.masks[before]
        lowest, highest = self.plan.starts[0].index, self.plan.starts[-1].index
        return self.known[start] if lowest < index < highest and before in absent else None

    def _sources(self, index: int) -> tuple[str, ...]:
        """Keys of the prompted planes on either side."""
        below = [front for front in self.plan.starts if front.index < index][-1:]
        above = [front for front in self.plan.starts if front.index > index][:1]
        return tuple(key for front in (*below, *above) for key in front.sources)

    def _ends(self, absent: set[int]) -> Iterator[PropagationEnd]:
        """Report which slices stay empty, and why."""
        lowest, highest = self.plan.starts[0].index, self.plan.starts[-1].index
        for low, high in zip(self.plan.starts, self.plan.starts[1:], strict=False):
            empty = [index for index in self.plan.between(low.index, high.index) if index in absent]
            if empty:
                where = " to ".join(dict.fromkeys(self.plan.where(index) for index in (empty[0], empty[-1])))
                yield PropagationEnd(
                    f"Between {self.plan.where(low.index)} and {self.plan.where(high.index)}, {where} "
                    f"{'stays' if len(empty) == 1 else 'stay'} empty: the structure is not found there; prompt a slice "
                    "there."
                )
        for step in self.plan.steps:
            wanted = self.plan.beyond(step)
            outermost, end = (highest, self.last + 1) if step > 0 else (lowest, self.first - 1)
            ended = next((index for index in range(outermost + step, end, step) if index in absent), None)
            if wanted and ended is not None:
                yield PropagationEnd(
                    f"Propagation ended before {self.plan.where(ended)}: the structure is not found there."
                )


def _as_answers(kept: Mapping[int, np.ndarray | None], shape: tuple[int, int]) -> dict[int, SliceAnswer]:
    nothing = SliceAnswer(np.zeros(shape, np.float32), 0.0)
    return {
        index: nothing if mask is None else SliceAnswer(mask.astype(np.float32), 1.0) for index, mask in kept.items()
    }

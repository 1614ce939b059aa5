"""Propagates a segment through the volume, slice by slice, from one or several slices that have a mask.

The protocol is that of MedicoSAM's 3-D evaluation (Archit et al. 2025, arXiv 2501.11734): the mask of a slice gives the
prompts of the next one, and a direction ends when the new mask overlaps the previous one too little. In addition, each
connected piece of a mask is propagated on its own, so that two kidneys in one segment are two boxes rather than one
around both. A piece also ends where its area changes too much, where the model's score is low, and where the mask looks
unlike the prompted slice's, in its grey values or beside what is around it: a mask prompt repeats its shape long after
the structure has ended, which neither IoU nor predicted IoU reveals.

Slices that were interpolated when the volume was read (`Volume.interpolated`) never end a direction: where the model
does not find the structure on them, they get the shape between the masks on either side.

Between two prompted slices the masks grow from both ends towards the middle; the slice where they meet is prompted
with the union of its two neighbours. Beyond the outermost prompted slices, `direction` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow, SlicePlane, Volume, picture
from SAMFineTuneLib.images.slice_plane import view_axes
from SAMFineTuneLib.inference.input_crop import bounding_box, view_of_box
from SAMFineTuneLib.inference.mask_shapes import interior_points, interpolate, overlap, pieces
from SAMFineTuneLib.inference.memory_propagation import (
    MOST_SLICES,
    SliceAnswer,
    Slices,
    propagate_with_memory,
    together,
)
from SAMFineTuneLib.inference.piece_tracks import followed_pieces, piece_tracks, shared_out
from SAMFineTuneLib.inference.progress import Cancelled, Meter, Progress
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.inference.slice_stack import Stack, stack_through
from SAMFineTuneLib.inference.unchanged_structure import Appearance, appearance
from SAMFineTuneLib.prompts import PlanePrompts

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Prediction, Predictor

_LEVELS = tuple(np.log(share / (1 - share)) for share in (0.1, 0.3, 0.5, 0.7, 0.9))
"""Logits at which a mask is cut to tell how likely its pixels are."""
_GREY_SHIFT = 2.0
"""A piece ends where its mean grey value is further from the prompted slice's than this many standard deviations of the
grey values there."""
_BOX_MARGIN = 0.05
"""The box for the next slice is wider than the mask by this fraction of its side, at least one pixel."""
_STANDS_OUT = 1.0
"""Standard deviations of its grey values between a structure and its rim, above which it must stay on that side."""


@dataclass(frozen=True, eq=False)
class Seed:
    """A slice whose mask is known."""

    plane: SlicePlane
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class PropagatedSlice:
    """A slice to which the mask was propagated."""

    plane: SlicePlane
    mask: np.ndarray
    score: float
    """The lowest predicted IoU among the mask's pieces."""
    overlap: float
    """IoU with the mask it was derived from."""
    sources: tuple[str, ...]
    """Keys of the prompted planes from which it comes."""


@dataclass(frozen=True)
class PropagationEnd:
    """Where and why a direction ended before the end of the range, as a sentence."""

    reason: str


def derive_prompts(mask: np.ndarray, zoom: bool) -> PlanePrompts:
    """Prompts for the next slice from the mask (rows, columns) of the previous one, connected and not empty.

    They are the mask and up to three points, the most interior, for a model that zooms (the bundled one was measured
    with them), and the mask and a box for others.
    """
    if zoom:
        return replace(_inner_points(mask), mask=mask)
    rows, columns = mask.shape
    x0, y0, x1, y1 = bounding_box(mask)
    margin = np.maximum(_BOX_MARGIN * np.array([x1 - x0 + 1, y1 - y0 + 1]), 1)
    box = np.clip(np.concatenate([(x0, y0) - margin, (x1, y1) + margin]), 0, [columns - 1, rows - 1] * 2)
    return PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), box, mask)


def propagate(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    seeds: Sequence[Seed],
    settings: PropagationSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Cancelled = lambda: False,
    kept: Mapping[int, np.ndarray | None] = MappingProxyType({}),
) -> Iterator[PropagatedSlice | PropagationEnd | None]:
    """Propagate masks through a volume, slice by slice.

    Args:
        predictor: the model that segments each slice.
        volume: the volume.
        window: how its grey values become pictures.
        seeds: slices with a known mask; they are parallel.
        settings: where to propagate, and when to stop.
        progress: called after each slice.
        cancelled: asked before each slice.
        kept: masks, by index, of slices between two prompted ones, or beyond the last, that have their answer; None
            where the structure is not. These slices do not come again.

    Yields:
        The masks, those nearest to their seed first, without the seeds' own; and why a direction ended early. None
        after a part of the work that gave no mask yet, so that the caller can do what is more urgent.

    Raises:
        UserError: when a seed's mask is empty, the seeds do not belong to one stack of slices, or `fill` has fewer
            than two.
    """
    settings = settings or PropagationSettings()
    plan = _make_plan(volume, seeds, settings)
    meter = Meter(len(set(plan.indices) - kept.keys()), progress)
    memory = getattr(predictor.engine, "memory", None)
    if memory is not None:
        return _Remembered(memory, predictor, volume, window, plan, cancelled, meter, kept).slices()
    return _Run(predictor, volume, window, settings, plan, cancelled, meter).slices(kept)


def planned_planes(
    volume: Volume, seeds: Sequence[Seed], settings: PropagationSettings | None = None
) -> list[SlicePlane]:
    """The slices that `propagate` returns when no direction ends early; raises UserError as it does."""
    plan = _make_plan(volume, seeds, settings or PropagationSettings())
    return [plan.stack.plane(index) for index in plan.indices]


@dataclass(frozen=True, eq=False)
class _Front:
    """A mask on slice `index`, how it looks where it started, and the best score on its way."""

    index: int
    mask: np.ndarray
    sources: tuple[str, ...]
    prompted: Appearance | None = None
    """How it looks where it started."""
    best: float = 0.0

    def moved(self, index: int, result: PropagatedSlice) -> _Front:
        return replace(self, index=index, mask=result.mask, best=max(self.best, result.score))


@dataclass(frozen=True, eq=False)
class _Refused:
    """The slice to which a mask was not propagated, and why."""

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class _Plan:
    """Where the masks start, and which slices they should reach."""

    stack: Stack
    starts: list[_Front]
    steps: tuple[int, ...]
    """Directions beyond the outermost starts: 1 and -1."""
    first: int
    last: int
    interpolated: frozenset[int]
    """Slices of the stack that were interpolated when the volume was read."""

    def where(self, index: int) -> str:
        return str(self.stack.plane(index))

    def beyond(self, step: int) -> range:
        """Slices after the outermost start, nearest first."""
        if step > 0:
            return range(max(self.starts[-1].index + 1, self.first), self.last + 1)
        return range(min(self.starts[0].index - 1, self.last), self.first - 1, -1)

    def between(self, low: int, high: int) -> range:
        """Slices after `low` and before `high`."""
        return range(max(low + 1, self.first), min(high - 1, self.last) + 1)

    @property
    def indices(self) -> list[int]:
        gaps = zip(self.starts, self.starts[1:], strict=False)
        found = [index for low, high in gaps for index in self.between(low.index, high.index)]
        return found + [index for step in self.steps for index in self.beyond(step)]


def _make_plan(volume: Volume, seeds: Sequence[Seed], settings: PropagationSettings) -> _Plan:
    if not seeds:
        raise UserError("There is no mask to propagate; prompt the segment on at least one slice first.")
    stack = stack_through(volume, seeds[0].plane)
    starts = {}
    for seed in seeds:
        if not seed.mask.any():
            raise UserError(f"The mask on {seed.plane} is empty; change its prompts before propagating.")
        index, mask = stack.place(seed.plane, seed.mask)
        starts[index] = _Front(index, mask, (seed.plane.key,))
    if settings.direction == "fill" and len(starts) < 2:
        raise UserError("Filling needs the segment on two slices of the same orientation; prompt another slice.")
    up = 1 if stack.up_is_increasing else -1
    steps = {"both": (1, -1), "up": (up,), "down": (-up,), "fill": ()}[settings.direction]
    first = max(settings.first or 0, 0)
    last = stack.count - 1 if settings.last is None else min(settings.last, stack.count - 1)
    return _Plan(
        stack, [starts[index] for index in sorted(starts)], steps, first, last, _interpolated(volume, seeds[0].plane)
    )


def _interpolated(volume: Volume, plane: SlicePlane) -> frozenset[int]:
    """Indices of a plane's parallel slices that were interpolated on reading: only the volume's own slices can be."""
    is_own = plane.index is not None and view_axes(volume, plane.orientation)[2] == 2
    return volume.interpolated if is_own else frozenset()


class _Remembered:
    """One propagation with the volume memory: the slices in blocks, those nearest to a known mask first."""

    def __init__(self, memory, predictor, volume, window, plan, cancelled, meter, kept) -> None:
        self.predictor, self.plan, self.meter = predictor, plan, meter
        self._picture = lru_cache(2 * MOST_SLICES)(lambda index: picture(volume, plan.stack.plane(index), window))
        self.known = {front.index: front.mask for front in plan.starts}
        lowest, highest = plan.starts[0].index, plan.starts[-1].index
        # All slices on the way count, also those before the range begins.
        self.first = min(plan.first, lowest) if -1 in plan.steps else lowest
        self.last = max(plan.last, highest) if 1 in plan.steps else highest
        stack = Slices(
            self._picture,
            plan.stack.count,
            plan.stack.distance / plan.stack.plane(lowest).pixel_size,
            plan.interpolated,
        )
        parts = piece_tracks(self.known)
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

    def _outlined(self, index: int, mask: np.ndarray, by_points: bool) -> np.ndarray:
        """How likely each pixel belongs to the structure, prompted with each piece of the memory's mask, or with inner
        points of it alone."""
        if index in self.plan.interpolated:
            return mask.astype(np.float32)
        shares = [
            prompted_by_piece(self.predictor, self._picture(index), piece, by_points).share_near(piece)
            for piece in followed_pieces(mask)
        ]
        return np.max(shares, axis=0)

    def _steps_to_known(self, index: int) -> int:
        return min(abs(index - start) for start in self.known)

    def _neighbour(self, index: int, absent: set[int]) -> np.ndarray | None:
        """The mask of the slice next to `index` on the way from the nearest known one; None where the structure has
        ended before."""
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
        """Say which slices stay empty, and why."""
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


class _Run:
    """One propagation from slice to slice, with what does not change on its way."""

    def __init__(self, predictor, volume, window, settings, plan, cancelled, meter) -> None:
        self.predictor, self.volume, self.window = predictor, volume, window
        self.settings, self.plan, self.cancelled, self.meter = settings, plan, cancelled, meter

    def slices(self, kept: Mapping[int, np.ndarray | None]) -> Iterator[PropagatedSlice | PropagationEnd]:
        starts = [
            replace(front, prompted=appearance(self._picture(front.index), front.mask)) for front in self.plan.starts
        ]
        for lower, upper in zip(starts, starts[1:], strict=False):
            if not kept.keys() >= set(self.plan.between(lower.index, upper.index)):
                yield from self._between(lower, upper)
        for step in self.plan.steps:
            if not kept.keys() >= set(self.plan.beyond(step)):
                yield from self._outward(starts[-1 if step > 0 else 0], step)

    def _picture(self, index: int) -> np.ndarray:
        return picture(self.volume, self.plan.stack.plane(index), self.window)

    def _outward(self, front: _Front, step: int) -> Iterator[PropagatedSlice | PropagationEnd]:
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

    def _between(self, lower: _Front, upper: _Front) -> Iterator[PropagatedSlice | PropagationEnd]:
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
            carried = front
            if index + step == other.index and len(alive) == 2:
                # The last slice of the gap is prompted from both sides, unless they contradict each other.
                if overlap(front.mask, other.mask) < self.settings.min_overlap:
                    both = " and ".join(map(self.plan.where, ends))
                    yield PropagationEnd(
                        f"The masks that come from {both} do not agree where they meet, at {self.plan.where(index)}; "
                        "prompt a slice there."
                    )
                else:
                    carried = replace(front, mask=front.mask | other.mask, sources=front.sources + other.sources)
            results = self._advance(carried, step, other.index - step, other)
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
        self, front: _Front, step: int, last: int, beyond: _Front | None = None
    ) -> list[PropagatedSlice] | _Refused:
        """The mask on the next slice. Where that slice is interpolated and the structure not found, also the masks up
        to the next slice where it is, `last` at most; `beyond` is the known mask behind that."""
        skipped: list[int] = []
        for index in range(front.index + step, last + step, step):
            result = self._carry(front, index)
            if not isinstance(result, _Refused):
                return [*self._bridge(front, skipped, index, result.mask, result.score), result]
            if index not in self.plan.interpolated:
                return result
            skipped.append(index)
        if beyond is None or overlap(front.mask, beyond.mask) < self.settings.min_overlap:
            return result
        return self._bridge(front, skipped, beyond.index, beyond.mask, front.best)

    def _bridge(
        self, front: _Front, skipped: list[int], end: int, mask: np.ndarray, score: float
    ) -> list[PropagatedSlice]:
        """Interpolate shapes between a front's mask and the one on slice `end`, for the slices between."""
        found = []
        for index in skipped:
            shape = interpolate(front.mask, mask, (index - front.index) / (end - front.index))
            found.append(
                PropagatedSlice(self.plan.stack.plane(index), shape, score, overlap(front.mask, shape), front.sources)
            )
        return found

    def _carry(self, front: _Front, index: int) -> PropagatedSlice | _Refused:
        """The mask on slice `index`, prompted by a neighbouring slice's mask."""
        shown = self._picture(index)
        carried = np.zeros(front.mask.shape, dtype=bool)
        scores, refusals = [], []
        for piece in followed_pieces(front.mask):
            answer = prompted_by_piece(self.predictor, shown, piece)
            new, score = answer.mask_near(piece), answer.score
            reason = self._doubt(piece, new, score, front, index, None if index in self.plan.interpolated else shown)
            if reason:
                refusals.append(reason)
            else:
                carried |= new
                scores.append(score)
        if not scores:
            return _Refused(index, refusals[0])
        shared = overlap(front.mask, carried)
        return PropagatedSlice(self.plan.stack.plane(index), carried, min(scores), shared, front.sources)

    def _doubt(
        self, before: np.ndarray, after: np.ndarray, score: float, front: _Front, index: int, shown: np.ndarray | None
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
            return f"the mask has too little in common with the slice before (IoU {shared:.2f})"
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


def _inner_points(mask: np.ndarray) -> PlanePrompts:
    points = interior_points(mask, 3)
    return PlanePrompts(points, np.ones(len(points), np.int64))


@dataclass(frozen=True, eq=False)
class PieceAnswer:
    """The model's answer to the prompts that a piece of a mask gives."""

    prediction: Prediction
    candidate: int

    @property
    def score(self) -> float:
        """Predicted IoU."""
        return float(self.prediction.scores[self.candidate])

    def mask_near(self, piece: np.ndarray) -> np.ndarray:
        """The mask's piece that continues the piece."""
        return _continued(self.prediction.masks[self.candidate], piece)

    def share_near(self, piece: np.ndarray) -> np.ndarray:
        """How likely each pixel belongs to the structure (H, W), in fifths; 0 far from the piece's own mask."""
        logits = self.prediction.low_res_candidates[self.candidate]
        levels = self.prediction.to_masks(logits[None], levels=_LEVELS)
        return np.mean([_continued(level, piece) for level in levels], axis=0, dtype=np.float32)


def prompted_by_piece(
    predictor: Predictor, shown: np.ndarray, piece: np.ndarray, by_points: bool = False
) -> PieceAnswer:
    """Prompt the model on a picture with a piece of a mask from elsewhere, or with its most interior points alone."""
    spec = predictor.engine.spec
    # The piece defines the view; points alone would not.
    view = view_of_box(shown.shape, bounding_box(piece), spec.input_size) if spec.zoom else None
    prompts = _inner_points(piece) if by_points else derive_prompts(piece, spec.zoom)
    prediction = predictor.predict(shown, prompts, view=view)
    merits = np.array([overlap(candidate, piece) for candidate in prediction.masks])
    return PieceAnswer(prediction, int(np.argmax(merits * prediction.scores)))


def touching_pieces(mask: np.ndarray, before: np.ndarray) -> list[np.ndarray]:
    """The pieces of `mask` that overlap `before`, largest first."""
    return [piece for piece in pieces(mask) if (piece & before).any()]


def _continued(mask: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The piece of `mask` that overlaps `before` most; nothing where none does."""
    return max(
        touching_pieces(mask, before), key=lambda piece: np.count_nonzero(piece & before), default=np.zeros_like(mask)
    )

"""Propagates a segment with the volume memory: all its known masks answer for many slices at once.

The memory (`models.architectures.volume_memory`) sees a block of slices around the structure, with the known masks, and
with these carried along with the picture (`slice_registration`) as an earlier answer. The block is cut around them. On
every slice it says where the structure is, and whether it is there at all; propagation ends at the first slice where it
is not. Then the slice model is prompted with the memory's answer on each slice, and a mean of both counts: the memory
knows where the structure is, the slice model where its border is. Where the structure goes on at an end of the block,
the next block overlaps this one and has its answers as the earlier ones.

A mask that spreads steeply into other grey values has leaked: the structure ends there. It also ends where it had
become narrow and widens again: that is something else.
The memory lets long structures end although nothing changes. Where its answer is much smaller than the mask of the
slice before or the nearest known one, or there is none, the slice model is prompted with the mask of the slice before,
too; its answer counts where the structure is found unchanged (`unchanged_structure`).

Slices that are much closer to each other than the cells of the block are wide are left out, and so are those that were
interpolated when the volume was read; their masks are interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from SAMFineTuneLib.inference.block_path import BlockPath, path_through
from SAMFineTuneLib.inference.mask_shapes import overlap
from SAMFineTuneLib.inference.onnx_memory import VolumeMemory
from SAMFineTuneLib.inference.progress import Cancelled
from SAMFineTuneLib.inference.slice_registration import carried_masks, joined
from SAMFineTuneLib.inference.unchanged_structure import appearance, is_unchanged
from SAMFineTuneLib.models.volume_block import channels, grey_evidence, stretch

MOST_SLICES = 32
"""Slices of a block."""
OVERLAP = 10
"""Slices that a block shares with the one before."""
_FINEST = 0.5  # cells from slice to slice: slices between closer ones are left out
_OUTLINED = 2 / 3  # share of the slice model in the mean
_SHRUNK = 0.85  # share of the area of another slice; below, the structure may have been lost
_STEEP = 1.0  # growth of a mask's radius, in distances from slice to slice, above which it may have leaked
_ALIKE = 0.85  # IoU with the slice before, from which on a mask has not leaked, however much it grew
_NARROW = 0.3  # share of the known slice's area below which a structure has almost ended
_WIDENS = 1.5  # growth of a structure's area after it had almost ended; above, it is something else
_REFERENCES = 5  # known slices beyond a block that tell what the structure looks like


@dataclass(frozen=True, eq=False)
class SliceAnswer:
    """The structure on a slice: its `share` of each pixel (H, W), 0 to 1, and how likely it is there at all."""

    share: np.ndarray
    presence: float

    @property
    def mask(self) -> np.ndarray:
        return self.share > 0.5

    @property
    def there(self) -> bool:
        return self.presence > 0.5 and bool(self.mask.any())

    @property
    def expected_iou(self) -> float:
        """IoU of the mask with what the shares say."""
        inside = self.share[self.mask]
        return float(inside.sum() / max(len(inside) + self.share.sum() - inside.sum(), 1e-6)) * self.presence


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices that the memory may look at and answer for."""

    picture: Callable[[int], np.ndarray]
    """Index → picture (H, W), 0 to 255."""
    count: int
    distance: float
    """From slice to slice, in pixels of a slice."""
    unseen: frozenset[int] = frozenset()
    """Slices that show nothing of their own, as those interpolated when the volume was read."""


def propagate_with_memory(
    memory: VolumeMemory,
    slices: Slices,
    known: Mapping[int, np.ndarray],
    first: int,
    last: int,
    outlined: Callable[[int, np.ndarray], np.ndarray],
    cancelled: Cancelled = lambda: False,
    answered: Mapping[int, SliceAnswer] = MappingProxyType({}),
) -> Iterator[dict[int, SliceAnswer]]:
    """Answer for the slices `first` to `last`, block after block.

    Args:
        memory: the network.
        slices: the stack.
        known: masks (H, W) of some slices, not all of them empty; an empty one says that the structure is not there.
        first, last: outermost slices that are asked for.
        outlined: how likely each pixel of a slice belongs to the structure (H, W), 0 to 1, as the slice model says when
            it is prompted with a mask.
        cancelled: asked before each block and each slice.
        answered: answers that are there already, and stay.

    Yields:
        New answers by slice, also where the structure is not there, those near known slices first; nothing after a
        part of the work that gave none yet. They do not change later.
    """
    run = _Run(memory, slices, known, outlined, cancelled, answered)
    filled = sorted(index for index, mask in known.items() if mask.any())
    groups = _grouped(filled)
    for group in groups:
        spare = max((MOST_SLICES - (group[-1] - group[0] + 1)) // 2, OVERLAP)
        if cancelled():
            return
        yield from run.block(max(first, group[0] - spare), min(last, group[-1] + spare))
    for step in (1, -1):
        while not cancelled():
            edge = run.edge(filled, step)
            ahead = MOST_SLICES - OVERLAP
            start, stop = (edge - OVERLAP + 1, edge + ahead) if step > 0 else (edge - ahead, edge + OVERLAP - 1)
            limit = last if step > 0 else first
            if not run.goes_on(edge) or (limit - edge) * step <= 0:
                break
            yield from run.block(max(start, first), min(stop, last))


def together(parts: Iterable[Iterator[dict[int, SliceAnswer]]]) -> Iterator[dict[int, SliceAnswer]]:
    """Answers of one part as they come; of several, all at once when the last one is done, joined on each slice."""
    first, *others = parts
    if not others:
        yield from first
        return
    found: dict[int, SliceAnswer] = {}
    for blocks in (first, *others):
        for answers in blocks:
            for index, answer in answers.items():
                if index not in found or not found[index].there:
                    found[index] = answer
                elif answer.there:
                    share = np.maximum(found[index].share, answer.share)
                    found[index] = SliceAnswer(share, max(found[index].presence, answer.presence))
            yield {}
    yield found


def _grouped(indices: list[int]) -> list[list[int]]:
    """Known slices that fit into one block together."""
    groups = [[indices[0]]]
    for index in indices[1:]:
        if index - groups[-1][0] < MOST_SLICES - 2:
            groups[-1].append(index)
        else:
            groups.append([groups[-1][-1], index] if index - groups[-1][-1] < 2 * MOST_SLICES else [index])
    return groups


class _Run:
    """What is known and what was answered so far."""

    def __init__(self, memory, slices, known, outlined, cancelled, answered) -> None:
        self.memory, self.slices, self.known, self.outlined = memory, slices, known, outlined
        self.cancelled = cancelled
        self.found: dict[int, SliceAnswer] = dict(answered)
        self.corrects = bool(answered)
        self.narrowest: dict[bool, int] = {}  # smallest area in pixels below (False) and above the known slices
        self._prompted = lru_cache(None)(lambda index: appearance(slices.picture(index), known[index]))

    def edge(self, filled: list[int], step: int) -> int:
        """The outermost slice that is known or answered, as seen from the prompts in a direction."""
        index = filled[-1 if step > 0 else 0]
        while index + step in self.found or index + step in self.known:
            index += step
        return index

    def goes_on(self, index: int) -> bool:
        """Whether the structure is still there on a slice."""
        if index in self.known:
            return bool(self.known[index].any())
        return index in self.found and self.found[index].there

    def block(self, start: int, stop: int) -> Iterator[dict[int, SliceAnswer]]:
        """Answer for slices that have no answer yet."""
        missing = [i for i in range(start, stop + 1) if i not in self.found and i not in self.known]
        if not missing:
            return
        if self.corrects:  # little is missing: the block is no longer than it needs to be
            start, stop = max(start, missing[0] - OVERLAP), min(stop, missing[-1] + OVERLAP)
        indices = range(start, stop + 1)
        before = {index: self.found[index] for index in indices if index in self.found}
        guess = yield from self._guess(before, missing)
        if self.cancelled():
            return
        answers = self._ask(indices, {**guess, **before})
        yield {}
        new = {index: answer for index, answer in answers.items() if index not in self.found}
        for index in sorted(new, key=lambda index: min(abs(index - known) for known in self.known)):
            if self.cancelled():
                return
            answer = self.found[index] = new[index]
            if index not in self.known:
                self.found[index] = self._answer(index, answer)
                yield {index: self.found[index]}

    def _guess(
        self, before: Mapping[int, SliceAnswer], missing: list[int]
    ) -> Generator[dict[int, SliceAnswer], None, dict[int, SliceAnswer]]:
        """What the memory is shown as its first answer: the nearest masks, carried along with the picture, the less
        sure the further they have come."""
        shares = {index: mask for index, mask in self.known.items() if mask.any()}
        shares |= {index: answer.share for index, answer in before.items() if answer.there}
        carried, stack = [], self.slices
        for each in carried_masks(shares, missing, stack.picture, stack.count, stack.distance):
            if self.cancelled():
                return {}
            carried.append(each)
            yield {}
        return {index: SliceAnswer(share, 1.0) for index, share in joined(carried).items()}

    def _answer(self, index: int, answer: SliceAnswer) -> SliceAnswer:
        """What counts on a slice, given the memory's answer."""
        before = self._mask(self._towards_known(index))
        if self._is_beyond(index) and not before.any():  # the structure has ended on the way
            return replace(answer, presence=0.0)
        outlined = self._outlined(index, answer)
        found = self._unchanged(index, outlined) or outlined
        ended = self._leaks(index, found) or self._reappears(index, found)
        return replace(found, presence=0.0) if ended else found

    def _outlined(self, index: int, answer: SliceAnswer) -> SliceAnswer:
        """The mean of the memory's and the slice model's answer to its mask."""
        if not answer.there:
            return answer
        share = (1 - _OUTLINED) * answer.share + _OUTLINED * self.outlined(index, answer.mask)
        return replace(answer, share=share) if (share > 0.5).any() else answer

    def _unchanged(self, index: int, answer: SliceAnswer) -> SliceAnswer | None:
        """The slice model's answer to the mask of the slice before, where the structure goes on as it was prompted and
        `answer` falls behind that mask or the prompted one."""
        start, before = self._nearest(index), self._mask(self._towards_known(index))
        area = np.count_nonzero(answer.mask) if answer.there else 0
        largest = max(np.count_nonzero(before), np.count_nonzero(self.known[start]))
        if not (before.any() and self.known[start].any()) or area >= _SHRUNK * largest:
            return None
        if not self._prompted(start).stands_out:
            return None
        share = self.outlined(index, before)
        mask = share > 0.5
        if np.count_nonzero(mask) <= area or not is_unchanged(
            self._prompted(start), self.slices.picture(index), mask, before
        ):
            return None
        return SliceAnswer(share, overlap(mask, before))

    def _leaks(self, index: int, answer: SliceAnswer) -> bool:
        """Whether a mask beyond the outermost known slices spreads from the slice before into something else."""
        start, before = self._nearest(index), self._mask(self._towards_known(index))
        if not (answer.there and self._is_beyond(index) and self.known[start].any()):
            return False
        new = answer.mask & ~before
        grown = np.sqrt(np.count_nonzero(answer.mask) / np.pi) - np.sqrt(np.count_nonzero(before) / np.pi)
        if grown <= max(_STEEP * self.slices.distance, 1) or not new.any() or overlap(answer.mask, before) >= _ALIKE:
            return False
        like = self._prompted(start)
        return abs(float(self.slices.picture(index)[new].mean()) - like.grey) > like.grey_tolerance

    def _reappears(self, index: int, answer: SliceAnswer) -> bool:
        """Whether the structure had almost ended on the way from the outermost known slice, and now widens again."""
        if not (answer.there and self._is_beyond(index)):
            return False
        side, area = index > max(self.known), np.count_nonzero(answer.mask)
        narrowest = self.narrowest[side] = min(area, self.narrowest.get(side, area))
        return area > _WIDENS * narrowest and narrowest < _NARROW * np.count_nonzero(self.known[self._nearest(index)])

    def _is_beyond(self, index: int) -> bool:
        """Whether a slice is beyond the outermost known ones."""
        return not min(self.known) < index < max(self.known)

    def _nearest(self, index: int) -> int:
        """The known slice nearest to a slice."""
        return min(self.known, key=lambda known: abs(index - known))

    def _towards_known(self, index: int) -> int:
        """The next slice on the way to the nearest known one."""
        return index + (1 if self._nearest(index) > index else -1)

    def _mask(self, index: int) -> np.ndarray:
        """What is known or answered of a slice; empty where nothing is."""
        if index in self.known:
            return self.known[index]
        there = index in self.found and self.found[index].there
        return self.found[index].mask if there else np.zeros((1, 1), bool)

    def _path(self, answers: Mapping[int, SliceAnswer], indices: Iterable[int]) -> BlockPath:
        masks = {index: answers[index].mask for index in indices if index in answers and answers[index].there}
        masks |= {index: self.known[index] for index in indices if index in self.known and self.known[index].any()}
        if not masks:  # only when a block begins beyond all that is there
            masks = {index: mask for index, mask in self.known.items() if mask.any()}
        return path_through(masks, self.slices.count)

    def _ask(self, indices: range, earlier: Mapping[int, SliceAnswer]) -> dict[int, SliceAnswer]:
        """The memory's answer for a block, given an earlier one on some of its slices."""
        path = self._path(earlier, indices)
        shown = self._shown(indices, path)
        references = self._references(shown)
        cells = stretch(np.stack([path.cut(self.slices.picture(index), index) for index in (*shown, *references)]))
        image, elsewhere = cells[: len(shown)], cells[len(shown) :]
        known = np.array([index in self.known for index in shown])
        masks, before = np.zeros_like(image), np.full_like(image, 0.5)
        for number, index in enumerate(shown):
            if known[number]:
                masks[number] = path.cut(self.known[index], index)
            elif index in earlier:
                before[number] = path.cut(earlier[index].share, index)
        told = [path.cut(self.known[index], index) for index in references]
        evidence = grey_evidence(image, np.concatenate([image[known], elsewhere]), np.stack([*masks[known], *told]))
        distance = self.slices.distance * float(np.median(np.diff(shown)) if len(shown) > 1 else 1)
        logits, presence = self.memory(
            _whole(channels(image, evidence, known, masks, before, distance / path.cell), len(shown))
        )
        shares, presence = (1 / (1 + np.exp(-values[: len(shown)])) for values in (logits, presence))
        return self._placed(shares, presence, shown, path)

    def _shown(self, indices: range, path: BlockPath) -> list[int]:
        """The slices of a block that the memory sees: known ones, both ends, and others at a useful distance."""
        needed = {indices[0], indices[-1], *self.known}
        seen = [index for index in indices if index not in self.slices.unseen or index in needed]
        step = max(1, round(_FINEST * path.cell / self.slices.distance))
        fixed = [seen[0], *(index for index in seen[1:-1] if index in self.known), seen[-1]]
        chosen = {fixed[-1]}
        for low, high in zip(fixed, fixed[1:], strict=False):
            between = [index for index in seen if low <= index < high]
            chosen.update(between[:: min(step, max(len(between), 1))])
        return sorted(chosen)

    def _references(self, shown: list[int]) -> list[int]:
        """Known slices beyond a block, nearest first."""
        middle = (shown[0] + shown[-1]) / 2
        others = [index for index, mask in self.known.items() if index not in shown and mask.any()]
        return sorted(others, key=lambda index: abs(index - middle))[:_REFERENCES]

    def _placed(self, shares, presence, shown: list[int], path: BlockPath) -> dict[int, SliceAnswer]:
        """Answers for all slices between the first and the last that were shown; others are interpolated."""
        shape = next(iter(self.known.values())).shape
        found = {}
        for index in range(shown[0], shown[-1] + 1):
            upper = int(np.searchsorted(shown, index))
            lower = upper if shown[upper] == index else upper - 1
            part = 0.0 if lower == upper else (index - shown[lower]) / (shown[upper] - shown[lower])
            cells, sure = ((1 - part) * values[lower] + part * values[upper] for values in (shares, presence))
            found[index] = SliceAnswer(path.paste(cells, index, shape), float(sure))
        return found


def _whole(block: np.ndarray, count: int) -> np.ndarray:
    """A block whose number of slices is a multiple of 4: the last one again, as one of which nothing is known."""
    missing = -count % 4
    if not missing:
        return block
    block = np.concatenate([block, np.repeat(block[:, -1:], missing, axis=1)], axis=1)
    block[2:5, count:] = 0
    return block

"""The mask that follows from the prompts of one segment on one plane.

Prompts are answered in the order in which they came. A point or scribble that follows others is a correction: the
logits of the answer before it are fed back as the mask prompt, as Segment Anything's interactive training does it
(Kirillov et al. 2023, appendix A). A box or a mask starts over, so nothing is fed back into it. The
answer is a function of the ordered prompts alone: replaying them, after undo or after loading, gives the same mask.

Several boxes on one plane are several objects. Each point then belongs to the nearest box, and the segment's mask
is the union. On a plane that holds a propagated mask, points correct that mask, as if it had been the answer to points
in its interior; a box or a mask replaces it, and a negative point in the middle of a piece of it removes that piece.
Without a box, a mask, a lasso or a positive point there is nothing to segment, and the mask is empty.

The model gets a lasso that begins an answer as a rough mask with points spread over it: of points, box and mask, alone
and together, that had the best Dice (docs/development-log.md). One that follows others changes the pixels that it
encloses and nothing else, because asking the model as well lowered Dice on all data. Whatever the model answers, the
last lasso around a pixel decides about it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.images import IntensityWindow, SlicePlane, Volume, extract
from SAMFineTuneLib.images.intensity_window import widened_where_hidden
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.mask_shapes import interior_points, pieces, pieces_with
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.session.state import Task

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.prediction import Prediction
    from SAMFineTuneLib.inference.predictor import Predictor

_PREDICTIONS = 64
_ANSWERS = 1024
_PICTURES = 8
_INTERIOR = 3
"""Maximum number of points that represent a mask to be corrected."""
_MIDDLE = 0.4
"""Least share of a piece that the largest disc in it around a point covers when the point is in its middle."""
_LASSO_POINTS = 8
"""Maximum number of points inside a lasso that the model gets."""
_FRAME = 0.15
"""Width of the surroundings of a box or mask, in sides of the box; at least 2 pixels."""
_AROUND = 1
"""Pixels on each side of a point that count as prompted."""


@dataclass(frozen=True)
class Answer:
    """A mask and the lowest expected IoU of its objects (0 without any)."""

    mask: PackedMask
    score: float
    windows: tuple[IntensityWindow, ...] = ()
    """The windows in which the model saw the slice, if the volume's own would have hidden the prompted structure."""


class Recent:
    """The most recently used results of a computation."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """None when it is not kept."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: Hashable, item: Any) -> Any:
        """Keep an item as the most recent, drop the oldest beyond the limit, and return the item."""
        self._items[key] = item
        self._items.move_to_end(key)
        while len(self._items) > self._limit:
            self._items.popitem(last=False)
        return item


class Answers:
    """Masks of one volume in one window by one model; recent answers are remembered."""

    def __init__(self, predictor: Predictor, volume: Volume, window: IntensityWindow) -> None:
        self.predictor, self.volume, self.window = predictor, volume, window
        self._values, self._pictures = Recent(_PICTURES), Recent(_PICTURES)
        self._predictions, self._answers = Recent(_PREDICTIONS), Recent(_ANSWERS)

    def picture(self, plane: SlicePlane, window: IntensityWindow | None = None) -> np.ndarray:
        """The picture of a plane for the model, uint8 (rows, columns), in the volume's window or another."""
        window = window or self.window
        key = plane.key, window
        found = self._pictures.get(key)
        return found if found is not None else self._pictures.put(key, window.apply(self._extracted(plane)))

    def prepare(self, plane: SlicePlane) -> None:
        """Compute what the first point on a plane needs, wherever it will be."""
        self.predictor.prepare(self.picture(plane))

    def answer(self, task: Task) -> Answer:
        """The mask of a task that has prompts."""
        key = (task.plane.key, task.base.mask if task.base else None, task.prompts)
        found = self._answers.get(key)
        return found if found is not None else self._answers.put(key, self._compute(task))

    def _compute(self, task: Task) -> Answer:
        base = _without_denied(task.base.mask, task.prompts) if task.base else None
        if base is not None and not base.count and not any(part.says_where for part in task.prompts):
            return Answer(base, 0.0)
        asked = _asked_of_model(task.prompts, base)
        union, scores, wider = np.zeros(task.plane.shape, dtype=bool), [], []
        if task.base and not asked:
            union, scores = base.unpack(), [task.base.score]
        for own in objects(asked):
            if (window := self._window_of(task.plane, base, own)) != self.window:
                wider.append(window)
            prediction = self._predict(task.plane, base, own)
            if prediction is not None:
                union |= prediction.mask
                scores.append(prediction.expected_iou)
        for part in task.prompts:
            union = part.within_regions(union)
        return Answer(PackedMask.of(union), min(scores, default=0.0), tuple(wider))

    def _extracted(self, plane: SlicePlane) -> np.ndarray:
        found = self._values.get(plane.key)
        return found if found is not None else self._values.put(plane.key, extract(self.volume, plane))

    def _window_of(
        self, plane: SlicePlane, base: PackedMask | None, prompts: tuple[PlanePrompts, ...]
    ) -> IntensityWindow:
        """The window that shows what the prompts of one object define: their box, their mask, the mask that they
        correct, or the first points, so that a click that follows sees the same picture."""
        given = combine(prompts)
        if given.box is None and given.mask is None:
            if base is not None:
                given = replace(given, mask=base.unpack())
            else:
                given = next((one for one in prompts if one.says_where), given)
        return window_for(self._extracted(plane), given, self.window)

    def _predict(
        self, plane: SlicePlane, base: PackedMask | None, prompts: tuple[PlanePrompts, ...]
    ) -> Prediction | None:
        """The prediction after the last prompt, through those before it whose logits are fed back."""
        start = len(prompts) - 1
        while start > 0 and _is_correction(prompts[start]):
            start -= 1
        previous = None
        for count in range(start + 1, len(prompts) + 1):
            so_far = prompts[:count]
            key = (plane.key, base, so_far)
            given = combine(so_far)
            corrects = base if given.box is None and given.mask is None else None
            if corrects is None and not given.says_where:
                continue
            found = self._predictions.get(key)
            if found is None:
                feed = previous if previous is not None and previous.mask.any() else None
                shown = self.picture(plane, self._window_of(plane, corrects, so_far))
                if corrects is not None:
                    given, taken = self._correcting(shown, corrects.unpack(), given)
                    feed = taken if feed is None else feed
                found = _only_best(self.predictor.predict(shown, given, previous=feed))
                self._predictions.put(key, found)
            previous = found
        return previous

    def _correcting(
        self, shown: np.ndarray, mask: np.ndarray, given: PlanePrompts
    ) -> tuple[PlanePrompts, Prediction | None]:
        """The points that correct an existing mask, and the mask as if it were an answer.

        They include points of the mask's interior, because points outside it alone say little about the structure.
        """
        inside = interior_points(mask, _INTERIOR)
        points = np.concatenate([inside, given.points])
        labels = np.concatenate([np.ones(len(inside), np.int64), given.labels])
        taken = self.predictor.taken(shown, mask, len(inside)) if mask.any() else None
        return replace(given, points=points, labels=labels, mask=mask), taken


def _without_denied(base: PackedMask, prompts: tuple[PlanePrompts, ...]) -> PackedMask:
    """A propagated mask without the pieces that have a negative point in their middle, unless a prompt says what
    belongs to it: a user who excludes a part of a piece seldom points at its middle.
    """
    points = np.concatenate([one.points for one in prompts]).astype(int) if prompts else np.zeros((0, 2), int)
    if not len(points) or any(one.says_where for one in prompts):
        return base
    mask = base.unpack()
    points = points[((points >= 0) & (points < mask.shape[::-1])).all(axis=1)]
    kept = mask.copy()
    for piece in pieces(mask):
        depth = ndimage.distance_transform_edt(np.pad(piece, 1))[1:-1, 1:-1]
        if np.pi * depth[points[:, 1], points[:, 0]].max(initial=0) ** 2 >= _MIDDLE * np.count_nonzero(piece):
            kept &= ~piece
    return PackedMask.of(kept)


def _asked_of_model(prompts: tuple[PlanePrompts, ...], base: PackedMask | None) -> tuple[PlanePrompts, ...]:
    """The prompts without lassos that follow others, which change the pixels they enclose without a model."""
    asked, says_where = [], base is not None
    for one in prompts:
        if one.region is None or (one.says_where and not says_where):
            asked.append(one)
        says_where |= one.says_where
    return tuple(asked)


def combine(prompts: tuple[PlanePrompts, ...]) -> PlanePrompts:
    """The prompts of one object as one; it has at most one box, and its masks and lassos are united."""
    boxes = [one.box for one in prompts if one.box is not None]
    lassos = [one.region > 0 for one in prompts if one.region is not None]
    masks = [one.mask for one in prompts if one.mask is not None] + lassos
    spread = [_spread_points(lasso, _LASSO_POINTS) for lasso in lassos]
    return PlanePrompts(
        points=np.concatenate([one.points for one in prompts] + spread),
        labels=np.concatenate([one.labels for one in prompts] + [np.ones(len(one)) for one in spread]),
        box=boxes[0] if boxes else None,
        mask=np.any(masks, axis=0) if masks else None,
    )


def window_for(values: np.ndarray, prompts: PlanePrompts, window: IntensityWindow) -> IntensityWindow:
    """The window in which a model should see a slice, wider than the volume's if that hides the prompted structure.

    Args:
        values: the volume on the slice (rows, columns), in its own units.
        prompts: what the window must show: a box, else a mask, else positive points.
        window: the window of the volume.

    Returns:
        `window` itself, or a wider one.
    """
    box = prompts.box
    if box is None and prompts.mask is not None:
        box = bounding_box(prompts.mask)
    if box is not None:
        inside = _within(values.shape, box)
        around = _within(values.shape, box, np.maximum(_FRAME * (box[2:] - box[:2] + 1), 2)) & ~inside
        under = inside if prompts.box is not None else prompts.mask
        return widened_where_hidden(window, values, under, around, pieces_with)
    under = np.zeros(values.shape, bool)
    for point in prompts.points[prompts.labels == 1]:
        under |= _within(values.shape, np.tile(point, 2), _AROUND)
    return widened_where_hidden(window, values, under, None, pieces_with)


def _within(shape: tuple[int, ...], box: np.ndarray, margin: np.ndarray | float = 0) -> np.ndarray:
    """Pixels (rows, columns) of a box x0, y0, x1, y1, enlarged by a margin."""
    found = np.zeros(shape, bool)
    left, top = np.rint(box[:2] - margin).astype(int).clip(0)
    right, bottom = (np.rint(box[2:] + margin).astype(int) + 1).clip(0)
    found[top:bottom, left:right] = True
    return found


def _spread_points(pixels: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the pixels, bool (rows, columns), as x and y (n, 2): evenly by row, anywhere in their row."""
    places = np.argwhere(pixels)[:, ::-1]
    chosen = np.linspace(0, len(places) - 1, count + 2).astype(int)[1:-1]
    return places[np.unique(chosen)].astype(np.float32)


def objects(prompts: tuple[PlanePrompts, ...]) -> list[tuple[PlanePrompts, ...]]:
    """The prompts of each object: one object a box when there are several, else one in all."""
    boxes = [number for number, one in enumerate(prompts) if one.box is not None]
    if len(boxes) < 2:
        return [prompts] if prompts else []
    edges = np.stack([prompts[number].box for number in boxes])
    areas = np.prod(edges[:, 2:] - edges[:, :2], axis=1)
    owned: list[list[PlanePrompts]] = [[] for _ in boxes]
    for number, one in enumerate(prompts):
        if number in boxes:
            owned[boxes.index(number)].append(one)
            continue
        shape = one.mask if one.region is None else one.region > 0
        centre = one.points.mean(axis=0) if shape is None else np.argwhere(shape)[:, ::-1].mean(axis=0)
        outside = np.maximum(np.maximum(edges[:, :2] - centre, centre - edges[:, 2:]), 0).sum(axis=1)
        owned[int(np.lexsort((areas, outside))[0])].append(one)
    return [tuple(own) for own in owned]


def _is_correction(one: PlanePrompts) -> bool:
    return one.box is None and one.mask is None and one.region is None


def _only_best(prediction: Prediction) -> Prediction:
    """Without the candidates that were not chosen: they would take several times the memory."""
    best = [prediction.best]
    return replace(
        prediction, scores=prediction.scores[best], low_res_candidates=prediction.low_res_candidates[best], chosen=0
    )

"""Prompts on one picture to a mask, over cached embeddings.

All prompts of a plane are answered together, as `segment_anything.SamPredictor` does; with a model marked `zoom`
the predictor also decides where to look (see `view`). A box, a mask or several points say how large the object
is. A single point does not: the model is asked at several scales, and the scale with the most trustworthy answer
is the view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.cache import Embedding, EmbeddingCache, embedding_key
from SAMFineTuneLib.inference.engine import Engine, embedding_digest
from SAMFineTuneLib.inference.masks import pieces_asked_for, stability_score
from SAMFineTuneLib.inference.view import View, bounding_box, box_around_prompts, square_view, view_of_box
from SAMFineTuneLib.models.preprocess import InputGeometry, geometry, prepare
from SAMFineTuneLib.prompts import PlanePrompts

_POINT_SCALES = (1.0, 0.5, 0.25, 0.125)  # sides of a lone point's views, in longer picture sides
_STABILITY_OFFSET = 1.0  # as in Segment Anything
_CUT_PENALTY = 0.5  # how much of its score a mask loses when all of its outline lies on the view's cut edges


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one set of prompts on a picture of H x W pixels.

    `masks` (M, H, W) bool and `scores` (M,) are the candidates, M = 1, 3 or 4; `mask` and `score` the one with the
    best predicted IoU. `low_res` (h, w) are its logits in the model's own small grid, over `view`; they are what
    the next prediction takes as `previous`. Masks are computed when they are asked for.
    """

    scores: np.ndarray
    low_res_candidates: np.ndarray
    view: View
    to_masks: Callable[[np.ndarray], np.ndarray]
    """Low-resolution logits (M, h, w) to masks (M, H, W)."""

    @cached_property
    def masks(self) -> np.ndarray:
        return self.to_masks(self.low_res_candidates)

    @cached_property
    def mask(self) -> np.ndarray:
        return self.to_masks(self.low_res[None])[0]

    @property
    def best(self) -> int:
        return int(np.argmax(self.scores))

    @property
    def score(self) -> float:
        return float(self.scores[self.best])

    @property
    def low_res(self) -> np.ndarray:
        return self.low_res_candidates[self.best]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Raw decoder output for B prompts in one view: logits (B, 4, h, w), predicted IoU (B, 4)."""

    low_res: np.ndarray
    scores: np.ndarray
    view: View
    geometry: InputGeometry

    def logits(self, prompt: int, tokens: slice | list[int]) -> np.ndarray:
        """Logits (M, rows, columns) of the view's own pixels."""
        return self.geometry.logits_to_picture(self.low_res[prompt, tokens])


class Predictor:
    """Answers prompts with one engine. Pictures are `uint8` (H, W), or (H, W, 3)."""

    def __init__(self, engine: Engine, cache: EmbeddingCache | None = None):
        self.engine = engine
        self.cache = cache if cache is not None else EmbeddingCache()
        self.encoder_calls = 0

    def embed(self, picture: np.ndarray, view: View | None = None) -> tuple[Embedding, InputGeometry]:
        """Embedding of a picture or of a view of it, from the cache where it is there."""
        cropped = (view or View.whole(picture.shape)).crop(picture)

        def compute() -> Embedding:
            self.encoder_calls += 1
            return self.engine.encode(prepare(cropped, self.engine.spec)[0])

        key = embedding_key(cropped, f"{embedding_digest(self.engine)}|{self.engine.spec.input_rule}")
        return self.cache.get_or_compute(key, compute), geometry(cropped.shape, self.engine.spec)

    def predict(
        self,
        picture: np.ndarray,
        prompts: PlanePrompts,
        multimask: bool | None = None,
        previous: Prediction | None = None,
        view: View | None = None,
    ) -> Prediction:
        """Masks for all prompts of one picture.

        `multimask` gives three candidates; by default it does so for one positive point alone, which is
        ambiguous; a model that ranks all its candidates gives four. `previous` feeds an earlier answer back as a
        mask prompt, and keeps its view while that holds all prompts. `view` overrides where a zooming model looks.
        Raises UserError without any prompt, and for a model whose head takes none.
        """
        if "promptable" not in self.engine.spec.heads:
            raise UserError(
                f"Model '{self.engine.spec.id}' finds {', '.join(self.engine.spec.classes[1:])} by itself and takes "
                "no prompts; choose a promptable model."
            )
        if not len(prompts.points) and prompts.box is None and prompts.mask is None:
            raise UserError("There is no prompt on this slice; place a point or a box first.")
        lone_point = len(prompts.points) == 1 and prompts.labels[0] == 1 and prompts.box is None
        lone_point = lone_point and prompts.mask is None and previous is None
        tokens = self._candidates(lone_point if multimask is None else multimask, by_default=multimask is None)
        if view is None:
            view = self._choose_view(picture, prompts, previous)
        decoded = self._decode_prompts(picture, prompts, view, previous)
        return self._to_prediction(decoded, tokens, picture.shape, prompts)

    def _candidates(self, ambiguous: bool, by_default: bool) -> slice:
        """Which of the decoder's four masks are candidates."""
        if by_default and self.engine.spec.ranks_all:
            return slice(0, 4)
        return slice(1, 4) if ambiguous else slice(0, 1)

    def predict_classes(self, picture: np.ndarray) -> np.ndarray:
        """Class of every pixel, uint8 (H, W), by the automatic head: 0 is background. No prompt is needed.

        Raises UserError for a model without such a head.
        """
        if "automatic" not in self.engine.spec.heads:
            raise UserError(
                f"Model '{self.engine.spec.id}' finds nothing without prompts; give points or boxes, or an adapter "
                "that was trained with an automatic head."
            )
        embedding, place = self.embed(picture)
        return place.logits_to_picture(self.engine.decode_classes(embedding)[0]).argmax(axis=0).astype(np.uint8)

    def predict_boxes(self, picture: np.ndarray, boxes: np.ndarray) -> list[Prediction]:
        """One prediction a box; `boxes` is (B, 4) x0, y0, x1, y1. Boxes that share a view share one decoder run."""
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        views = [self._zoomed(picture, box) for box in boxes]
        predictions: dict[int, Prediction] = {}
        for view in dict.fromkeys(views):
            members = [index for index, other in enumerate(views) if other == view]
            corners = boxes[members].reshape(-1, 2, 2)
            decoded = self.decode(picture, corners, np.tile(np.float32([2, 3]), (len(members), 1)), view=view)
            for position, index in enumerate(members):
                candidates = self._candidates(False, by_default=True)
                alone = PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), box=boxes[index])
                predictions[index] = self._to_prediction(decoded, candidates, picture.shape, alone, position)
        return [predictions[index] for index in range(len(boxes))]

    def decode(
        self,
        picture: np.ndarray,
        coords: np.ndarray,
        labels: np.ndarray,
        mask_input: np.ndarray | None = None,
        view: View | None = None,
    ) -> Decoded:
        """Run the decoder for B prompts at once.

        `coords` (B, N, 2) are x, y in picture pixels, `labels` (B, N) as in `Engine.decode`, `mask_input`
        (B, h, w) low-resolution logits of this view.
        """
        view = view or View.whole(picture.shape)
        embedding, place = self.embed(picture, view)
        coords = _to_input(view.to_view(coords), labels, place)
        size = self.engine.spec.low_res_size
        given = mask_input is not None
        masks = np.zeros((len(coords), size, size), np.float32) if mask_input is None else mask_input
        low_res, scores = self.engine.decode(
            embedding,
            coords,
            np.asarray(labels, np.float32),
            np.asarray(masks, np.float32)[:, None],
            np.full(len(coords), given, np.float32),
        )
        return Decoded(low_res, scores, view, place)

    def _decode_prompts(
        self, picture: np.ndarray, prompts: PlanePrompts, view: View, previous: Prediction | None = None
    ) -> Decoded:
        coords = np.asarray(prompts.points, np.float32).reshape(-1, 2)
        labels = np.asarray(prompts.labels, np.float32)
        if prompts.box is not None:
            coords = np.concatenate([coords, np.asarray(prompts.box, np.float32).reshape(2, 2)])
            labels = np.concatenate([labels, np.float32([2, 3])])
        else:  # segment-anything pads when there is no box; the decoder was trained that way
            coords = np.concatenate([coords, np.zeros((1, 2), np.float32)])
            labels = np.concatenate([labels, np.float32([-1])])
        mask_input = None
        if previous is not None and previous.view == view:
            mask_input = previous.low_res[None]
        elif previous is not None or prompts.mask is not None:
            mask = previous.mask if previous is not None else prompts.mask
            place = geometry(view.crop(picture).shape, self.engine.spec)
            mask_input = place.mask_to_low_res(view.crop(mask))
        return self.decode(picture, coords[None], labels[None], mask_input, view)

    def _to_prediction(
        self, decoded: Decoded, tokens: slice, shape: tuple[int, ...], prompts: PlanePrompts, prompt: int = 0
    ) -> Prediction:
        one_piece = self.engine.spec.one_piece
        to_masks = partial(_to_masks, decoded.geometry, decoded.view, (shape[0], shape[1]), prompts, one_piece)
        return Prediction(decoded.scores[prompt, tokens], decoded.low_res[prompt, tokens], decoded.view, to_masks)

    def _choose_view(self, picture: np.ndarray, prompts: PlanePrompts, previous: Prediction | None) -> View:
        """Where to look. Prompts decide, in the order in which they came, so that a replay looks the same way."""
        if not self.engine.spec.zoom:
            return View.whole(picture.shape)
        around = box_around_prompts(prompts)
        if previous is not None and previous.view.contains(np.asarray(prompts.points).reshape(-1, 2)):
            if around is None or previous.view.contains(around.reshape(2, 2)):
                return previous.view
        if previous is not None and (before := bounding_box(previous.mask)) is not None:
            around = before if around is None else _union(around, before)
        if around is None:
            return View.whole(picture.shape)
        if prompts.box is None and prompts.mask is None and previous is None:
            first = np.flatnonzero(prompts.labels == 1)[0]
            found = self._view_for_point(picture, prompts.points[first])
            if found.contains(prompts.points):
                return found
            in_found = np.float32([found.left, found.top, found.left + found.columns - 1, found.top + found.rows - 1])
            quarter = np.float32([found.columns, found.rows, -found.columns, -found.rows]) / 4
            around = _union(around, in_found + quarter)
        return self._zoomed(picture, around)

    def _zoomed(self, picture: np.ndarray, box: np.ndarray) -> View:
        return view_of_box(picture.shape, box) if self.engine.spec.zoom else View.whole(picture.shape)

    def _view_for_point(self, picture: np.ndarray, point: np.ndarray) -> View:
        """Where to look for the object under one point, whose size is unknown.

        Each view proposes masks. A good one is expected to be good (predicted IoU), has a definite outline
        (stability), is found again in other views, and does not run into the view's edges; its view wins.
        """
        lone = PlanePrompts(np.asarray(point, np.float32)[None], np.ones(1, np.int64))
        longer = max(picture.shape[:2])
        center = (float(point[0]), float(point[1]))
        # A view with fewer pixels than the model's input shows it no more, only less of the surroundings.
        least = min(longer, self.engine.spec.input_size)
        sides = [longer * scale for scale in _POINT_SCALES if longer * scale >= least]
        views = list(dict.fromkeys(square_view(picture.shape, center, side) for side in sides))
        if len(views) == 1:
            return views[0]
        proposals = [self._proposals(picture, lone, view) for view in views]
        agreement = _agreement(np.stack([masks for masks, _ in proposals]))
        merits = np.stack([scores for _, scores in proposals]) * agreement
        return views[int(np.argmax(merits.max(axis=1)))]

    def _proposals(self, picture: np.ndarray, prompts: PlanePrompts, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Masks (3, H, W) in the picture, and predicted IoU times stability (3,) less what the view's edges cut."""
        decoded = self._decode_prompts(picture, prompts, view)
        masks = decoded.logits(0, slice(1, 4)) > 0
        whole = np.array([1.0 - _CUT_PENALTY * _cut_fraction(mask, view, picture.shape) for mask in masks])
        merits = decoded.scores[0, 1:] * stability_score(decoded.low_res[0, 1:], _STABILITY_OFFSET) * whole
        return view.paste(masks, picture.shape[:2], False), merits


def _to_masks(
    place: InputGeometry,
    view: View,
    shape: tuple[int, int],
    prompts: PlanePrompts,
    one_piece: bool,
    low_res: np.ndarray,
) -> np.ndarray:
    """Masks (M, *shape) of low-resolution logits (M, h, w) over a view."""
    masks = view.paste(place.logits_to_picture(low_res) > 0, shape, False)
    if not one_piece:
        return masks
    # What lies apart is another object of the same looks, unless the user points at it.
    marked = _marked(prompts, shape)
    return np.stack([pieces_asked_for(mask, marked, largest=prompts.box is not None) for mask in masks])


def _agreement(masks: np.ndarray) -> np.ndarray:
    """Mean IoU (V, M) of each of M masks of V views (V, M, H, W) with its like in the two views that agree best."""
    views, count = masks.shape[:2]
    flat = masks.reshape(views * count, -1).astype(np.float32)  # counts up to 16 million pixels are exact
    common = flat @ flat.T
    areas = np.diagonal(common)
    iou = common / np.maximum(areas[:, None] + areas - common, 1.0)
    best = iou.reshape(views, count, views, count).max(axis=3)
    best[np.arange(views), :, np.arange(views)] = 0.0  # not in the view itself
    return np.sort(best, axis=2)[:, :, -min(2, views - 1) :].mean(axis=2)


def _to_input(coords: np.ndarray, labels: np.ndarray, place: InputGeometry) -> np.ndarray:
    """Prompts of a view, in its pixels, to the model's input.

    A box names its outermost pixels. Where the model counts pixel centres, an enlarged pixel is several input
    pixels, and the box must name the outermost of those.
    """
    inputs = place.to_input(coords)
    if place.coordinates == "centred":
        half_pixel = (np.float32(place.scale) - 1) / 2
        inputs[labels == 2] -= half_pixel
        inputs[labels == 3] += half_pixel
    inputs[labels == -1] = 0.0
    return inputs


def _cut_fraction(mask: np.ndarray, view: View, shape: tuple[int, ...]) -> float:
    """Part of a mask's extent that runs into edges of the view which are not edges of the picture (0 to 1)."""
    edges = (
        (view.top > 0, mask[0]),
        (view.left > 0, mask[:, 0]),
        (view.top + view.rows < shape[0], mask[-1]),
        (view.left + view.columns < shape[1], mask[:, -1]),
    )
    return min(1.0, sum(float(edge.mean()) for cut, edge in edges if cut))


def _union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(first[:2], second[:2]), np.maximum(first[2:], second[2:])])


def _marked(prompts: PlanePrompts, shape: tuple[int, int]) -> np.ndarray:
    """Pixels (rows, columns) that prompts name as the object's: positive points and the mask."""
    marked = np.zeros(shape, bool) if prompts.mask is None else np.array(prompts.mask, bool)
    columns, rows = np.rint(prompts.points[prompts.labels == 1].reshape(-1, 2)).astype(int).T
    marked[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)] = True
    return marked

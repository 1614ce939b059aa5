"""Predicts a mask from prompts on one picture, over cached embeddings.

All prompts of a plane are answered together, as `segment_anything.SamPredictor` does. With a model marked `zoom` the
predictor also chooses the view (see `input_crop`). A box, a mask or several points define the object's size: the
answers in a fitting view, a narrower and a wider one are averaged. A single point does not: the model begins with the
narrowest view in which it loses no detail. It also looks at wider views, up to the whole picture, where the answer is
large, and at those and a narrower one where it is unsure. The answer is the best reading among all of them, averaged
with those that agree (see `mask_candidates`). A click that corrects an answer changes it around the click (see
`click_corrections`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.click_corrections import as_told, changed_near
from SAMFineTuneLib.inference.embedding_cache import Embedding, EmbeddingCache, embedding_key
from SAMFineTuneLib.inference.engine import Engine, decodes_at_once, embedding_digest
from SAMFineTuneLib.inference.expected_iou import expected_iou, kind_of
from SAMFineTuneLib.inference.input_crop import (
    View,
    bounding_box,
    box_around_prompts,
    extent_of_points,
    view_of_box,
    views_around,
    views_of_point,
)
from SAMFineTuneLib.inference.mask_candidates import joined, most_agreed, of_largest_expected_dice, weights
from SAMFineTuneLib.inference.mask_shapes import overlap
from SAMFineTuneLib.inference.prediction import Decoded, Prediction, masks_of_logits
from SAMFineTuneLib.models.preprocess import InputGeometry, geometry, prepare
from SAMFineTuneLib.prompts import PlanePrompts

_SURE = 8.0
"""Logits are clipped to this absolute value before they are averaged, so that no view overrules the others."""
_NEGLIGIBLE = 0.05
"""Readings with a smaller weight, relative to the chosen one's, are left out of the mean."""
_SMALLEST_SHARE = 1e-6
"""Least weight of the chosen reading, which keeps the mean finite."""
_TOO_WIDE = 2.5
"""A view is replaced when its side is this many times that of the view that fits the answer."""
_QUICK = 0.25
"""An encoder that takes more seconds does not run before there is a prompt."""
_LARGE = 0.6
"""Longer side of a lone point's answer, relative to its view, above which wider views are tried as well."""
_UNSURE = 0.5
"""Predicted IoU of a lone point's answer below which wider views and a narrower one are tried as well."""


class Predictor:
    """Predicts masks from prompts with one engine. Pictures are `uint8` (H, W), or (H, W, 3)."""

    def __init__(self, engine: Engine, cache: EmbeddingCache | None = None):
        self.engine = engine
        self.cache = cache if cache is not None else EmbeddingCache()
        self.encoder_calls = 0
        self._encoder_seconds = 0.0  # of the last call

    def embed(self, picture: np.ndarray, view: View | None = None) -> tuple[Embedding, InputGeometry]:
        """The embedding of a picture or of a view of it, cached, and its geometry in the model's input."""
        cropped = (view or View.whole(picture.shape)).crop(picture)

        def compute() -> Embedding:
            begun = time.perf_counter()
            embedding = self.engine.encode(prepare(cropped, self.engine.spec)[0])
            self.encoder_calls += 1
            self._encoder_seconds = time.perf_counter() - begun
            return embedding

        key = embedding_key(cropped, f"{embedding_digest(self.engine)}|{self.engine.spec.input_rule}")
        return self.cache.get_or_compute(key, compute), geometry(cropped.shape, self.engine.spec)

    def prepare(self, picture: np.ndarray) -> None:
        """Embed the whole picture before there is a prompt, unless the encoder is so slow that a prompt on another
        picture would have to wait for it."""
        if self._encoder_seconds <= _QUICK:
            self.embed(picture)

    def predict(
        self,
        picture: np.ndarray,
        prompts: PlanePrompts,
        previous: Prediction | None = None,
        view: View | None = None,
    ) -> Prediction:
        """Predict a mask from all prompts of one picture.

        Args:
            picture: uint8 (H, W) or (H, W, 3).
            prompts: points, box and mask in its pixels.
            previous: an earlier answer, used as a mask prompt; its view is kept while it fits.
            view: the only view a zooming model looks at; by default it chooses its views.

        Returns:
            One candidate, or three for one positive point, which is ambiguous. A model that ranks all its candidates
            gives their mean, then all four.

        Raises:
            UserError: without any prompt, or for a model that takes no prompts.
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
        ranked = self.engine.spec.ranks_all
        if ranked and lone_point:
            answer = self._read_point(picture, prompts, [view]) if view else self._search_point(picture, prompts)
            return self._calibrated(answer, prompts, False)
        first = view or self._choose_view(picture, prompts, previous)
        if ranked:
            views = [view] if view else self._views_around(picture.shape, first, prompts)
            answer = self._joined(self._decode_views(picture, prompts, views, previous), picture.shape, prompts)
            return self._calibrated(self._corrected(answer, prompts, previous), prompts, previous is not None)
        (decoded,) = self._decode_views(picture, prompts, [first], previous)
        tokens = slice(1, 4) if lone_point else slice(0, 1)
        return self._to_prediction(decoded, tokens, picture.shape, prompts)

    def taken(self, picture: np.ndarray, mask: np.ndarray, points: int) -> Prediction:
        """Turn a mask (H, W), not empty, into the answer to a number of `points`, for use as `previous`."""
        view = self._zoomed(picture, bounding_box(mask))
        low_res = geometry((view.rows, view.columns), self.engine.spec).mask_to_low_res(view.crop(mask))
        return Prediction(np.ones(1, np.float32), low_res, view, lambda _: mask[None], points=points)

    def class_logits(self, picture: np.ndarray) -> np.ndarray:
        """Logits of the automatic head, float32 (C, H, W), background first.

        Raises:
            UserError: for a model without such a head.
        """
        if "automatic" not in self.engine.spec.heads:
            raise UserError(
                f"Model '{self.engine.spec.id}' finds nothing without prompts; give points or boxes, or an adapter "
                "that was trained with an automatic head."
            )
        embedding, place = self.embed(picture)
        return place.logits_to_picture(self.engine.decode_classes(embedding)[0])

    def decode(
        self,
        picture: np.ndarray,
        coords: np.ndarray,
        labels: np.ndarray,
        mask_input: np.ndarray | None = None,
        view: View | None = None,
    ) -> Decoded:
        """Run the decoder for B sets of prompts at once.

        Args:
            picture: uint8 (H, W) or (H, W, 3).
            coords: (B, N, 2) as x, y in the picture's pixels.
            labels: (B, N), as in `Engine.decode`.
            mask_input: low-resolution logits (B, h, w) of the view.
            view: by default the whole picture.
        """
        return self._decoding(picture, coords, labels, mask_input, view or View.whole(picture.shape))()

    def _decoding(
        self, picture: np.ndarray, coords: np.ndarray, labels: np.ndarray, mask_input: np.ndarray | None, view: View
    ) -> Callable[[], Decoded]:
        """Embed the view, and return a function that runs the decoder on it."""
        embedding, place = self.embed(picture, view)
        coords = place.prompts_to_input(view.to_view(coords), labels)
        size = self.engine.spec.low_res_size
        given = mask_input is not None
        masks = np.zeros((len(coords), size, size), np.float32) if mask_input is None else mask_input

        def run() -> Decoded:
            low_res, scores = self.engine.decode(
                embedding,
                coords,
                np.asarray(labels, np.float32),
                np.asarray(masks, np.float32)[:, None],
                np.full(len(coords), given, np.float32),
            )
            return Decoded(low_res, scores, view, place)

        return run

    def _decode_views(
        self, picture: np.ndarray, prompts: PlanePrompts, views: list[View], previous: Prediction | None = None
    ) -> list[Decoded]:
        """Decode the prompts in each view, in parallel where that is faster."""
        ready = [
            self._decoding(picture, *self._decoder_inputs(picture, prompts, view, previous), view) for view in views
        ]
        if len(ready) == 1 or not decodes_at_once(self.engine):
            return [run() for run in ready]
        with ThreadPoolExecutor(len(ready)) as pool:
            return list(pool.map(lambda run: run(), ready))

    def _decoder_inputs(
        self, picture: np.ndarray, prompts: PlanePrompts, view: View, previous: Prediction | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Coordinates, labels and logits for the decoder, from the prompts and the `previous` answer in a view."""
        coords = np.asarray(prompts.points, np.float32).reshape(-1, 2)
        # Negative points outside the view do not matter there, and training has none outside the input.
        used = view.shows(coords) | (prompts.labels == 1)
        coords, labels = coords[used], np.asarray(prompts.labels, np.float32)[used]
        if prompts.box is not None:
            coords = np.concatenate([coords, np.asarray(prompts.box, np.float32).reshape(2, 2)])
            labels = np.concatenate([labels, np.float32([2, 3])])
        else:  # segment-anything adds a padding point when there is no box, and decoders are trained that way
            coords = np.concatenate([coords, np.zeros((1, 2), np.float32)])
            labels = np.concatenate([labels, np.float32([-1])])
        mask_input = None
        if previous is not None:
            mask_input = self._moved(previous.fed_back, previous.view, view, -_SURE)[None]
        elif prompts.mask is not None:
            place = geometry(view.crop(picture).shape, self.engine.spec)
            mask_input = place.mask_to_low_res(view.crop(prompts.mask))
        return coords[None], labels[None], mask_input

    def _to_prediction(
        self, decoded: Decoded, tokens: slice, shape: tuple[int, ...], prompts: PlanePrompts
    ) -> Prediction:
        one_piece = self.engine.spec.one_piece
        to_masks = partial(masks_of_logits, decoded.geometry, decoded.view, (shape[0], shape[1]), prompts, one_piece)
        return Prediction(decoded.scores[0, tokens], decoded.low_res[0, tokens], decoded.view, to_masks)

    def _joined(self, decoded: list[Decoded], shape: tuple[int, ...], prompts: PlanePrompts) -> Prediction:
        """The mean over the best candidates of all views, followed by each candidate of the first view."""
        first, *others = decoded
        answers, scores = zip(*(joined(one.low_res[0], one.scores[0]) for one in decoded), strict=True)
        own = np.clip(answers[0], -_SURE, _SURE)
        unseen = first.geometry.logits_to_picture(own[None])[0]
        seen = [
            self._moved(answer, one.view, first.view, unseen) for answer, one in zip(answers[1:], others, strict=True)
        ]
        every = self._to_prediction(first, slice(0, 4), shape, prompts)
        return replace(
            every,
            agreement=float(np.mean([overlap(own > 0, other > 0) for other in seen])) if seen else 1.0,
            scores=np.append(np.float32(np.mean(scores)), every.scores),
            low_res_candidates=np.stack([np.mean([own, *seen], axis=0), *every.low_res_candidates]),
            chosen=0,
        )

    def _corrected(self, answer: Prediction, prompts: PlanePrompts, previous: Prediction | None) -> Prediction:
        """The answer, limited to changes around new clicks, and with the clicked pixels as the user said."""
        place = geometry((answer.view.rows, answer.view.columns), self.engine.spec)
        points, logits = answer.view.to_view(prompts.points), answer.low_res
        clicks = place.to_low_res(points)
        positive, to_masks = prompts.labels == 1, answer.to_masks
        if previous is not None:
            before = self._moved(previous.low_res, previous.view, answer.view, -_SURE)
            new, first_reading = slice(previous.points, None), previous.reading is not None
            logits = changed_near(before, logits, clicks[new], positive[new], first_reading)
            if not first_reading:  # a correction that cuts a mask in two does not mean that a part is another object
                to_masks = partial(to_masks, before=previous.mask)
        logits = as_told(logits, clicks, place.shares(points), positive)
        return replace(
            answer,
            to_masks=to_masks,
            low_res_candidates=np.stack([logits, *answer.low_res_candidates[1:]]),
            points=len(prompts.points),
        )

    def _calibrated(self, answer: Prediction, prompts: PlanePrompts, corrected: bool) -> Prediction:
        calibration, kind = self.engine.spec.calibration, kind_of(prompts, corrected)
        if not calibration:
            return answer
        return replace(
            answer, calibrated=expected_iou(calibration, kind, answer.score, answer.low_res, answer.agreement)
        )

    def _moved(self, low_res: np.ndarray, view: View, other: View, unseen: np.ndarray | float) -> np.ndarray:
        """Resample logits (h, w) of `view` to the `other` view, whose pixels beyond `view` get the value `unseen`."""
        if view == other:
            return low_res
        here, there = (geometry((one.rows, one.columns), self.engine.spec) for one in (view, other))
        pixels = here.logits_to_picture(np.clip(low_res, -_SURE, _SURE)[None])[0]
        return there.picture_to_low_res(view.shown_in(other, pixels, unseen), -_SURE)

    def _choose_view(self, picture: np.ndarray, prompts: PlanePrompts, previous: Prediction | None) -> View:
        """Choose the view from the prompts in the order in which they came, so that a replay has the same views."""
        if not self.engine.spec.zoom:
            return View.whole(picture.shape)
        asked = box_around_prompts(prompts)
        if previous is not None:
            return self._kept_view(picture, asked, previous)
        if asked is None:
            return View.whole(picture.shape)
        if prompts.box is None and prompts.mask is None:
            inside = prompts.points[prompts.labels == 1]
            if len(inside) == 1:
                return self._search_point(picture, PlanePrompts(inside, np.ones(1, np.int64))).view
            asked = extent_of_points(inside, self.engine.spec.input_size)
        return self._zoomed(picture, asked)

    def _kept_view(self, picture: np.ndarray, asked: np.ndarray | None, previous: Prediction) -> View:
        """The view of the `previous` answer, or another one where that does not fit.

        It does not fit when it does not contain the box `asked` (x0, y0, x1, y1), or is much too wide for that box and
        the answer.
        """
        kept, answer = previous.view, bounding_box(previous.mask)
        filled = [box for box in (asked, answer) if box is not None]
        if not filled:
            return kept
        fitting = self._zoomed(picture, _union(filled[0], filled[-1]))
        too_wide = max(kept.rows, kept.columns) > _TOO_WIDE * max(fitting.rows, fitting.columns)
        holds = asked is None or kept.contains(asked.reshape(2, 2))
        return kept if holds and not too_wide else fitting

    def _zoomed(self, picture: np.ndarray, box: np.ndarray) -> View:
        spec = self.engine.spec
        return view_of_box(picture.shape, box, spec.input_size) if spec.zoom else View.whole(picture.shape)

    def _views_around(self, shape: tuple[int, ...], view: View, prompts: PlanePrompts) -> list[View]:
        """The views of a zooming model for prompts that define the object's size."""
        if not self.engine.spec.zoom:
            return [view]
        corners = [prompts.points.reshape(-1, 2), np.reshape([] if prompts.box is None else prompts.box, (-1, 2))]
        return views_around(shape, view, np.concatenate(corners))

    def _search_point(self, picture: np.ndarray, prompts: PlanePrompts) -> Prediction:
        """Answer a lone point, whose object may have any size, in few views, because each costs an encoder call.

        The first view is the last but one of `views_of_point`. Where its answer is large, the wider views are used as
        well; where it is unsure, the narrower one, too. In large pictures, the whole picture replaces the wider views.
        """
        if not self.engine.spec.zoom:
            return self._read_point(picture, prompts, [View.whole(picture.shape)])
        views = views_of_point(picture.shape, prompts.points[0], self.engine.spec.input_size)
        first, coarse = views[-2:][0], 2 * self.engine.spec.input_size
        answer = self._read_point(picture, prompts, [first])
        box = bounding_box(answer.mask)
        size = 0.0 if box is None else (box[2:] - box[:2] + 1).max() / max(first.rows, first.columns)
        if answer.score >= _UNSURE and size <= _LARGE:
            return answer
        between = [view for view in views[1:-2] if max(view.rows, view.columns) < coarse]
        narrower = [] if answer.score >= _UNSURE else views[-1:]
        return self._read_point(picture, prompts, list(dict.fromkeys([views[0], *between, first, *narrower])))

    def _read_point(self, picture: np.ndarray, prompts: PlanePrompts, views: list[View]) -> Prediction:
        """The best reading of a lone point in some views, averaged with those that agree with it (`most_agreed`).

        The candidates of its view follow it.
        """
        decoded = self._decode_views(picture, prompts, views)
        logits = [one.logits(0, slice(0, 4)) for one in decoded]
        trust = [
            weights(one.low_res[0], one.scores[0], own > 0, one.view, picture.shape)
            for one, own in zip(decoded, logits, strict=True)
        ]
        pasted = [view.paste(own > 0, picture.shape[:2], False) for view, own in zip(views, logits, strict=True)]
        number, alike = most_agreed(np.concatenate(pasted), np.concatenate(trust))
        home, candidate = decoded[number // 4], number % 4
        share = alike * np.concatenate(trust)
        agreement = float(share.sum() / max(np.concatenate(trust).sum(), _SMALLEST_SHARE))
        share[number] = max(share[number], _SMALLEST_SHARE)
        inside = np.zeros((home.view.rows, home.view.columns), np.float32)
        share[share < _NEGLIGIBLE * share[number]] = 0.0
        for reading in np.flatnonzero(share):
            seen = views[reading // 4].shown_in(home.view, logits[reading // 4][reading % 4], -_SURE)
            inside += share[reading] / (1 + np.exp(-np.clip(seen, -_SURE, _SURE)))
        joint = of_largest_expected_dice(home.geometry.picture_to_low_res(inside / share.sum(), 0.0))
        every = self._to_prediction(home, slice(0, 4), picture.shape, prompts)
        return replace(
            every,
            scores=np.append(every.scores[candidate], every.scores),
            low_res_candidates=np.stack([joint, *every.low_res_candidates]),
            chosen=0,
            reading=every.low_res_candidates[candidate].copy(),
            points=1,
            agreement=agreement,
        )


def _union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(first[:2], second[:2]), np.maximum(first[2:], second[2:])])



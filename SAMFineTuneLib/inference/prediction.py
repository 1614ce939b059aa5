"""A model's answer to the prompts on one picture, and how its logits become masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from SAMFineTuneLib.inference.input_crop import View
from SAMFineTuneLib.inference.mask_shapes import pieces_asked_for
from SAMFineTuneLib.models.preprocess import InputGeometry
from SAMFineTuneLib.prompts import PlanePrompts

_BEYOND_BOX = 2.0
"""Logits above which pixels outside a box belong to the object; inside it is 0."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one set of prompts on a picture of H x W pixels.

    `masks` (M, H, W) bool and `scores` (M,) predicted IoU are the candidates, M = 1, 3, 4 or 5; `mask` and `score` are
    those of the `chosen` one, or else of the one with the best predicted IoU. `low_res` (h, w) are its logits on the
    model's small grid over `view`. A further prediction gets `fed_back` (h, w) as its mask prompt. Masks are computed
    on first access.
    """

    scores: np.ndarray
    low_res_candidates: np.ndarray
    view: View
    to_masks: Callable[..., np.ndarray]
    """Turns low-resolution logits (M, h, w) into masks (M, H, W), or (L M, H, W) for L thresholds `levels`."""
    chosen: int | None = None
    reading: np.ndarray | None = None
    """For a lone point: logits (h, w) of the best reading, before it was averaged with others."""
    points: int = 0
    """How many points this answer was given; later ones are new to the next prediction."""
    agreement: float = 1.0
    """IoU of the views' or readings' masks with each other."""
    calibrated: float | None = None
    """The calibrated IoU of `mask`; None for a model without a calibration."""

    @cached_property
    def masks(self) -> np.ndarray:
        """All candidates (M, H, W), bool."""
        return self.to_masks(self.low_res_candidates)

    @cached_property
    def mask(self) -> np.ndarray:
        """The answer, bool (H, W): the chosen candidate, or else the best one."""
        return self.to_masks(self.low_res[None])[0]

    @property
    def best(self) -> int:
        """Index of the candidate that is the answer."""
        return int(np.argmax(self.scores)) if self.chosen is None else self.chosen

    @property
    def score(self) -> float:
        """The model's predicted IoU of the answer."""
        return float(self.scores[self.best])

    @property
    def expected_iou(self) -> float:
        """The IoU to show to users, calibrated where possible. Choices among answers use `score`."""
        return self.score if self.calibrated is None else self.calibrated

    @property
    def low_res(self) -> np.ndarray:
        """Logits (h, w) of the answer."""
        return self.low_res_candidates[self.best]

    @property
    def fed_back(self) -> np.ndarray:
        """Logits (h, w) that the next prediction gets as its mask prompt."""
        return self.low_res if self.reading is None else self.reading


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


def masks_of_logits(
    place: InputGeometry,
    view: View,
    shape: tuple[int, int],
    prompts: PlanePrompts,
    one_piece: bool,
    low_res: np.ndarray,
    levels: Sequence[float] = (0.0,),
    before: np.ndarray | None = None,
) -> np.ndarray:
    """Threshold low-resolution logits (M, h, w) of a view.

    Args:
        place: of the view in the model's input.
        view: the view.
        shape: rows and columns of the whole picture.
        prompts: what the logits answer.
        one_piece: whether the model's masks are limited to the box and to the pieces that the prompts point at.
        low_res: the logits.
        levels: L thresholds.
        before: the mask (H, W) that the answer corrects.

    Returns:
        Masks (L M, *shape).
    """
    least = _BEYOND_BOX * view.crop(_beyond_box(prompts, shape)) if one_piece else 0.0
    pixels = place.logits_to_picture(low_res)
    masks = view.paste(np.concatenate([pixels > least + np.float32(level) for level in levels]), shape, False)
    if not one_piece:
        return masks
    # Separate pieces are other objects that look alike, unless the user points at them.
    marked = _marked(prompts, shape)
    return np.stack([pieces_asked_for(mask, marked, prompts.box is not None, before) for mask in masks])


def _beyond_box(prompts: PlanePrompts, shape: tuple[int, int]) -> np.ndarray:
    """Pixels (rows, columns) outside the box; none without a box, or when a positive point lies outside it."""
    beyond = np.zeros(shape, bool)
    if prompts.box is None:
        return beyond
    low, high = np.asarray(prompts.box, np.float32).reshape(2, 2)
    positive = prompts.points[prompts.labels == 1].reshape(-1, 2)
    if ((positive < low - 0.5) | (positive > high + 0.5)).any():
        return beyond
    left, top = np.floor(low).astype(int).clip(0)
    right, bottom = (np.ceil(high).astype(int) + 1).clip(0)
    beyond[:] = True
    beyond[top:bottom, left:right] = False
    return beyond


def _marked(prompts: PlanePrompts, shape: tuple[int, int]) -> np.ndarray:
    """Pixels (rows, columns) of positive points and of the mask prompt."""
    marked = np.zeros(shape, bool) if prompts.mask is None else np.array(prompts.mask, bool)
    columns, rows = np.rint(prompts.points[prompts.labels == 1].reshape(-1, 2)).astype(int).T
    marked[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)] = True
    return marked

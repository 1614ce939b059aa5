"""Prompts the model on one slice with a connected piece of the mask on another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.inference.input_crop import bounding_box, view_of_box
from SAMFineTuneLib.inference.mask_shapes import interior_points, overlap, pieces
from SAMFineTuneLib.prompts import PlanePrompts

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.prediction import Prediction
    from SAMFineTuneLib.inference.predictor import Predictor

_LEVELS = tuple(np.log(share / (1 - share)) for share in (0.1, 0.3, 0.5, 0.7, 0.9))
"""Thresholds, in logits, of the masks whose mean is the probability of each pixel."""
_BOX_MARGIN = 0.05
"""Margin of the box around the mask, as a fraction of its side; at least one pixel."""


def derive_prompts(mask: np.ndarray, zoom: bool) -> PlanePrompts:
    """Prompts for the next slice from the mask (rows, columns) of the previous one, connected and not empty.

    A model that zooms gets the mask and up to three of its most interior points, which gave the best results with the
    bundled model; others get the mask and a box.
    """
    if zoom:
        points = interior_points(mask, 3)
        return PlanePrompts(points, np.ones(len(points), np.int64), mask=mask)
    rows, columns = mask.shape
    x0, y0, x1, y1 = bounding_box(mask)
    margin = np.maximum(_BOX_MARGIN * np.array([x1 - x0 + 1, y1 - y0 + 1]), 1)
    box = np.clip(np.concatenate([(x0, y0) - margin, (x1, y1) + margin]), 0, [columns - 1, rows - 1] * 2)
    return PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), box, mask)


@dataclass(frozen=True, eq=False)
class PieceAnswer:
    """The model's answer to prompts derived from a piece of a mask, and its candidate that fits the piece best."""

    prediction: Prediction
    candidate: int

    @property
    def score(self) -> float:
        """Predicted IoU."""
        return float(self.prediction.scores[self.candidate])

    def mask_near(self, piece: np.ndarray) -> np.ndarray:
        """The piece of the answer's mask that continues the given piece."""
        return continued(self.prediction.masks[self.candidate], piece)

    def probability_near(self, piece: np.ndarray) -> np.ndarray:
        """Probability (H, W), in steps of a fifth, that a pixel belongs to the structure that continues the piece."""
        logits = self.prediction.low_res_candidates[self.candidate]
        levels = self.prediction.to_masks(logits[None], levels=_LEVELS)
        return np.mean([continued(level, piece) for level in levels], axis=0, dtype=np.float32)


def prompted_by_piece(predictor: Predictor, shown: np.ndarray, piece: np.ndarray) -> PieceAnswer:
    """Prompt the model on a picture with a piece of another slice's mask."""
    spec = predictor.engine.spec
    view = view_of_box(shown.shape, bounding_box(piece), spec.input_size) if spec.zoom else None
    prediction = predictor.predict(shown, derive_prompts(piece, spec.zoom), view=view)
    merits = np.array([overlap(candidate, piece) for candidate in prediction.masks])
    return PieceAnswer(prediction, int(np.argmax(merits * prediction.scores)))


def touching_pieces(mask: np.ndarray, before: np.ndarray) -> list[np.ndarray]:
    """The pieces of `mask` that overlap `before`, largest first."""
    return [piece for piece in pieces(mask) if (piece & before).any()]


def continued(mask: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The piece of `mask` that overlaps `before` most; an empty mask where none does."""
    return max(
        touching_pieces(mask, before), key=lambda piece: np.count_nonzero(piece & before), default=np.zeros_like(mask)
    )

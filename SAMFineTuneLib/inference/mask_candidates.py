"""Which of a decoder's candidates is the answer, for a model that ranks all of them.

Prompts that say what is meant have one answer, in which the candidates are joined. One point alone does not: it may
mean a part or the whole, and each candidate of each view is another reading; the answer joins those that are alike.
"""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.inference.input_crop import View
from SAMFineTuneLib.inference.mask_shapes import stability_score

JOINED = 3  # candidates that are joined, the most trusted ones
_STABILITY_OFFSET = 1.0  # as in Segment Anything
_CUT_PENALTY = 0.5  # how much of its weight a mask loses when all of its outline lies on the view's cut edges
_LOWEST = 1e-6  # a probability above zero: logits stay finite, and a reading that nothing overlaps keeps its weight


def joined(low_res: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Candidates' logits (T, h, w) and predicted IoU (T,) -> logits (h, w) of one answer, positive inside, its score.

    Probabilities are averaged over the most trusted candidates. The mask of the largest expected IoU q holds what is
    likelier than q / (1 + q) (for Dice: than half of it; Lipton et al., 2014), so that an answer in doubt is
    no smaller than the object; logits are shifted by that much.
    """
    trusted = np.argsort(-scores, kind="stable")[:JOINED]
    inside = (1 / (1 + np.exp(-low_res[trusted].clip(-30, 30)))).mean(axis=0).clip(_LOWEST, 1 - _LOWEST)
    score = float(scores[trusted].mean())
    threshold = np.clip(score / (1 + score), _LOWEST, 0.5)
    return np.float32(np.log(inside / (1 - inside)) - np.log(threshold / (1 - threshold))), score


def weights(
    low_res: np.ndarray, scores: np.ndarray, masks: np.ndarray, view: View, shape: tuple[int, ...]
) -> np.ndarray:
    """How good a reading of a point each of T candidates of one view is by itself (T,).

    A good one is expected to be good (predicted IoU), has a definite outline (stability), and does not run into the
    view's edges. `masks` (T, rows, columns) are in the view's pixels, `shape` is the picture's.
    """
    whole = np.array([1.0 - _CUT_PENALTY * _cut_fraction(mask, view, shape) for mask in masks])
    return np.sqrt(scores.clip(0)) * stability_score(low_res, _STABILITY_OFFSET) * whole


def most_agreed(masks: np.ndarray, weights: np.ndarray) -> tuple[int, np.ndarray]:
    """The reading (n, H, W) that the others, each by its weight (n,), overlap most: of largest expected IoU, if each of
    them is what is meant as often as its weight says (minimum Bayes risk), and of weight itself. Where none overlaps
    another, the one of the largest weight. -> its number, and the IoU of each reading with it (n,)."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)  # counts up to 16 million pixels are exact
    common = flat @ flat.T
    areas = np.diagonal(common)
    iou = common / np.maximum(areas[:, None] + areas - common, 1.0)
    np.fill_diagonal(iou, 0.0)
    best = int(np.argmax(weights * (iou @ weights + _LOWEST)))
    alike = iou[best]
    alike[best] = 1.0
    return best, alike


def of_largest_expected_dice(inside: np.ndarray) -> np.ndarray:
    """Probabilities (h, w), independent -> logits, positive where the mask of the largest expected Dice is."""
    falling = np.sort(inside, axis=None)[::-1].astype(np.float64)
    expected = 2 * falling.cumsum() / (np.arange(1, falling.size + 1) + falling.sum())
    last = int(np.argmax(expected))
    threshold = falling[last : last + 2].mean().clip(_LOWEST, 1 - 2 * _LOWEST)
    inside = inside.clip(_LOWEST, 1 - _LOWEST)
    return np.float32(np.log(inside / (1 - inside)) - np.log(threshold / (1 - threshold)))


def _cut_fraction(mask: np.ndarray, view: View, shape: tuple[int, ...]) -> float:
    """Part of a mask's extent that runs into edges of the view which are not edges of the picture (0 to 1)."""
    edges = (
        (view.top > 0, mask[0]),
        (view.left > 0, mask[:, 0]),
        (view.top + view.rows < shape[0], mask[-1]),
        (view.left + view.columns < shape[1], mask[:, -1]),
    )
    return min(1.0, sum(float(edge.mean()) for cut, edge in edges if cut))

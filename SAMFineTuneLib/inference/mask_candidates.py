"""Makes one answer from a decoder's candidates, for a model whose predicted IoU ranks all of them.

For prompts that define the object, the answer is the mean of the candidates with the best predicted IoU. A lone point
may mean a part or the whole: each candidate of each view is a reading of it, and the answer averages the readings that
agree.
"""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.inference.input_crop import View
from SAMFineTuneLib.inference.mask_shapes import stability_score

JOINED = 3  # number of candidates that are averaged
_STABILITY_OFFSET = 1.0  # as in Segment Anything
_CUT_PENALTY = 0.5  # fraction of its weight that a mask loses when its outline lies on edges that cut the picture
_LOWEST = 1e-6  # least probability, which keeps logits finite, and least agreement of a reading


def joined(low_res: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Average the probabilities of the candidates with the best predicted IoU.

    The mask of the largest expected IoU q holds the pixels with a probability above q / (1 + q) (for Dice: above half
    of it; Lipton et al., 2014). The logits are shifted by that threshold, so that a doubtful answer is not too small.

    Args:
        low_res: logits (T, h, w) of the candidates.
        scores: their predicted IoU (T,).

    Returns:
        Logits (h, w), positive inside, and their score.
    """
    trusted = np.argsort(-scores, kind="stable")[:JOINED]
    inside = (1 / (1 + np.exp(-low_res[trusted].clip(-30, 30)))).mean(axis=0).clip(_LOWEST, 1 - _LOWEST)
    score = float(scores[trusted].mean())
    threshold = np.clip(score / (1 + score), _LOWEST, 0.5)
    return np.float32(np.log(inside / (1 - inside)) - np.log(threshold / (1 - threshold))), score


def weights(
    low_res: np.ndarray, scores: np.ndarray, masks: np.ndarray, view: View, shape: tuple[int, ...]
) -> np.ndarray:
    """Weigh the candidates of one view as readings of a lone point.

    A good reading has a high predicted IoU, a definite outline (stability), and is not cut by the view's edges.

    Args:
        low_res: logits (T, h, w).
        scores: predicted IoU (T,).
        masks: the masks (T, rows, columns) in the view's pixels.
        view: the view.
        shape: rows and columns of the whole picture.

    Returns:
        Weights (T,).
    """
    cut = [sum(float(edge.mean()) for edge in edges_that_cut(mask, view, shape)) for mask in masks]
    whole = 1.0 - _CUT_PENALTY * np.minimum(cut, 1.0)
    return np.sqrt(scores.clip(0)) * stability_score(low_res, _STABILITY_OFFSET) * whole


def most_agreed(masks: np.ndarray, weights: np.ndarray) -> tuple[int, np.ndarray]:
    """Choose the reading on which the others agree most.

    With the weights as the probabilities that a reading is what the user means, it is the one with the largest expected
    IoU (minimum Bayes risk) times its own weight. When no reading overlaps another, it is the one with the largest
    weight.

    Args:
        masks: readings (n, H, W).
        weights: (n,).

    Returns:
        The index of the reading, and the IoU (n,) of each reading with it.
    """
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
    """Turn probabilities (h, w) of independent pixels into logits (h, w), positive in the mask of the largest expected
    Dice."""
    falling = np.sort(inside, axis=None)[::-1].astype(np.float64)
    expected = 2 * falling.cumsum() / (np.arange(1, falling.size + 1) + falling.sum())
    last = int(np.argmax(expected))
    threshold = falling[last : last + 2].mean().clip(_LOWEST, 1 - 2 * _LOWEST)
    inside = inside.clip(_LOWEST, 1 - _LOWEST)
    return np.float32(np.log(inside / (1 - inside)) - np.log(threshold / (1 - threshold)))


def edges_that_cut(mask: np.ndarray, view: View, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The pixels of a view's mask along those edges of the view that lie inside the picture."""
    edges = (
        (view.top > 0, mask[0]),
        (view.left > 0, mask[:, 0]),
        (view.top + view.rows < shape[0], mask[-1]),
        (view.left + view.columns < shape[1], mask[:, -1]),
    )
    return [edge for cuts, edge in edges if cuts]

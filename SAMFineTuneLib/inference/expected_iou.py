"""Calibrates a model's predicted IoU, so that it estimates the IoU that the mask will really have.

A decoder's predicted IoU ranks its own candidates well, but its values are off. For a model whose spec has a
`calibration`, a logistic function (Platt 1999) for each kind of prompt computes the expected IoU from the predicted
one, the mask's stability when the threshold moves (Kirillov et al. 2023), and the agreement of views or readings. It is
fitted on synthetic pictures by `Testing/benchmarks/calibrated_iou.py`. The choice among candidates uses the predicted
IoU itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import stability_score
from SAMFineTuneLib.models.spec import CALIBRATED_KINDS
from SAMFineTuneLib.prompts import PlanePrompts

_OFFSET = 1.0  # logits by which the threshold moves
_LEAST = 0.01  # values are clipped to this distance from 0 and 1


def kind_of(prompts: PlanePrompts, corrected: bool) -> str:
    """Which of `CALIBRATED_KINDS` the prompts are: a lone point, a box, or clicks (several points, or a correction)."""
    lone = len(prompts.points) == 1 and prompts.box is None and prompts.mask is None
    point, box, clicks = CALIBRATED_KINDS
    return clicks if corrected else point if lone else box if prompts.box is not None else clicks


def evidence(score: float, low_res: np.ndarray, agreement: float) -> np.ndarray:
    """The features of the logistic function.

    Args:
        score: the model's predicted IoU.
        low_res: logits (h, w) of the mask, from which its stability is computed.
        agreement: IoU of the views' or readings' masks with each other.

    Returns:
        (4,): 1, and the logits of predicted IoU, stability and agreement.
    """
    values = np.clip([score, stability_score(low_res, _OFFSET), agreement], _LEAST, 1 - _LEAST)
    return np.concatenate([[1.0], np.log(values / (1 - values))])


def expected_iou(
    calibration: Mapping[str, Sequence[float]], kind: str, score: float, low_res: np.ndarray, agreement: float
) -> float:
    """Calibrate a predicted IoU.

    Args:
        calibration: weights (4,) of `evidence` by kind of prompt; for a kind that is missing, the score is returned.
        kind: one of `CALIBRATED_KINDS`.
        score: predicted IoU.
        low_res: the answer's logits (h, w).
        agreement: IoU of the views' or readings' masks with each other.

    Returns:
        The expected IoU, 0 to 1.
    """
    if kind not in calibration:
        return score
    return 1 / (1 + math.exp(-float(np.dot(calibration[kind], evidence(score, low_res, agreement)))))

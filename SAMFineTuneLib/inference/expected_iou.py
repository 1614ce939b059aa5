"""The IoU to expect of an answer: a model's predicted IoU, calibrated.

A decoder's predicted IoU orders its own candidates; it is not the share of answers that are right. A model whose spec
has a `calibration` gets a logistic map of it (Platt 1999) for each kind of prompt, together with how stable the mask is
when the threshold moves (Kirillov et al. 2023) and how well the views or readings agree. The map is fitted on synthetic
pictures by `Testing/benchmarks/calibrated_iou.py`. Choices among candidates use the predicted IoU itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import stability_score
from SAMFineTuneLib.models.spec import CALIBRATED_KINDS
from SAMFineTuneLib.prompts import PlanePrompts

_OFFSET = 1.0  # logits by which the threshold moves
_LEAST = 0.01  # shares are kept this far from 0 and 1


def kind_of(prompts: PlanePrompts, corrected: bool) -> str:
    """Which of `CALIBRATED_KINDS` the prompts are: a lone point, a box, or clicks: several points and corrections."""
    lone = len(prompts.points) == 1 and prompts.box is None and prompts.mask is None
    point, box, clicks = CALIBRATED_KINDS
    return clicks if corrected else point if lone else box if prompts.box is not None else clicks


def evidence(score: float, low_res: np.ndarray, agreement: float) -> np.ndarray:
    """What the map from signals to the expected IoU weighs.

    Args:
        score: the model's predicted IoU.
        low_res: logits (h, w) of the mask, which show how stable it is.
        agreement: IoU of the views' or readings' masks with each other.

    Returns:
        1, and the logits of predicted IoU, stability and agreement.
    """
    shares = np.clip([score, stability_score(low_res, _OFFSET), agreement], _LEAST, 1 - _LEAST)
    return np.concatenate([[1.0], np.log(shares / (1 - shares))])


def expected_iou(
    calibration: Mapping[str, Sequence[float]], kind: str, score: float, low_res: np.ndarray, agreement: float
) -> float:
    """Calibrate a predicted IoU.

    Args:
        calibration: weights of `evidence` by kind of prompt; without the kind, the score stays as it is.
        kind: one of `CALIBRATED_KINDS`.
        score: predicted IoU.
        low_res: the answer's logits (h, w).
        agreement: IoU of the views' or readings' masks with each other.

    Returns:
        0 to 1.
    """
    if kind not in calibration:
        return score
    return 1 / (1 + math.exp(-float(np.dot(calibration[kind], evidence(score, low_res, agreement)))))

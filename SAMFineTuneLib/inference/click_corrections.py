"""Limits what a corrective click changes in a mask, and sets the clicked pixels to what the user said.

A click corrects its surroundings, but the model's new answer may differ anywhere. So the mask far from a click changes
only where the model is sure. An outline is often off by the same small distance all around, so one click may move all
of it by a small step.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.inference.mask_shapes import overlap

_REACH = 2.0
"""Radius around a click in which the new answer counts without further conditions, in units of the click's distance
from the outline."""
_LOGITS_PER_REACH = 4.0
"""Logits that the new answer needs, for each further such radius away from the click, to change the mask."""
_CONTRARY = 4.0
"""Further logits that it needs to remove pixels after positive clicks alone, or to add some after negative ones."""
_AT_OUTLINE = 0.5
"""Largest number of logits that it needs to move the outline by one cell, anywhere."""
_SMALL_STEP = 0.7
"""Least IoU of the masks before and after for which `_AT_OUTLINE` applies."""
_FIRST_READING = 0.5
"""Factor on these logits when the earlier answer is one reading of a lone point, which the next click may revise."""
_MARGIN = 1.0
"""Least absolute value of the logit at a clicked place, which is positive inside and negative outside."""
_NARROWEST = 0.4
"""Least radius of such a change in cells; a narrower one would not reach the neighbouring cells."""


def changed_near(
    before: np.ndarray, after: np.ndarray, clicks: np.ndarray, positive: np.ndarray, first_reading: bool = False
) -> np.ndarray:
    """Keep an earlier answer where a new one differs from it far from all clicks and with small logits.

    A click close to the outline points at a small error and affects few cells; a click far from it affects many. A
    missing part is seldom thicker than the mask that is there, so that thickness limits how far a positive click
    reaches. Elsewhere the outline may move by one cell, unless that changes much of the mask, as it does in a thin one.
    Positive clicks alone seldom mean that something should be removed, and negative clicks alone seldom mean that
    something is missing. An answer with nothing or everything inside may change anywhere.

    Args:
        before: logits (h, w) of the answer that the user corrects.
        after: logits (h, w) of the answer to all clicks.
        clicks: the new clicks (n, 2), x and y in cells of the logits.
        positive: (n,), whether a click is positive.
        first_reading: whether the earlier answer was to a lone point.

    Returns:
        The logits (h, w) to show.
    """
    inside = before > 0
    if not len(clicks) or inside.all() or not inside.any():
        return after
    thickness = max(ndimage.distance_transform_edt(inside).max(), 1.0)
    needed = np.min([_needed(inside, click, thickness) for click in clicks], axis=0)
    contrary = _CONTRARY * (inside == positive[0]) if positive.all() or not positive.any() else 0.0
    share = _FIRST_READING if first_reading else 1.0
    for most in (_AT_OUTLINE, np.inf):
        least = np.where(_at_outline(inside), np.minimum(needed, most), needed) * share + contrary
        stays = (inside != (after > 0)) & (np.abs(after) < least)
        answer = np.where(stays, before, after)
        if overlap(answer > 0, inside) >= _SMALL_STEP:
            break
    return answer


def as_told(logits: np.ndarray, clicks: np.ndarray, shares: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Change logits so that positive clicks are inside the mask, and negative ones outside.

    A click on the wrong side changes its surroundings as well, up to half the distance to the outline and to the
    nearest click of the other kind. Where both kinds are in one place, the last click counts.

    Args:
        logits: (h, w).
        clicks: (n, 2), x and y in cells of the logits.
        shares: (n, h, w), the weights of the logits in the clicked pixels; see `InputGeometry.shares`.
        positive: (n,), whether a click is positive.

    Returns:
        The changed logits (h, w).
    """
    rows, columns = np.indices(logits.shape)
    for click, share, wanted in zip(clicks, shares, positive, strict=True):
        here = (share * logits).sum()
        if not share.any() or (here > 0) == wanted:
            continue
        away = np.hypot(columns - click[0], rows - click[1])
        outline = away[(logits > 0) == wanted]
        reach = max(outline.min() / 2, 1.0) if outline.size else 1.0
        contrary = np.hypot(*(clicks[positive != wanted] - click).T)
        reach = max(min(reach, contrary.min(initial=np.inf) / 2), _NARROWEST)
        bump = np.exp(-((away / reach) ** 2))
        raised = (abs(here) + _MARGIN) * bump / (share * bump).sum()
        logits = (logits + (raised if wanted else -raised)).astype(np.float32)
    return logits


def _needed(inside: np.ndarray, click: np.ndarray, thickness: float) -> np.ndarray:
    """The least absolute logits (h, w) that overrule the mask `inside` after one click."""
    rows, columns = np.indices(inside.shape)
    away = np.hypot(columns - click[0], rows - click[1])
    here = inside[np.unravel_index(np.argmin(away), away.shape)]
    to_outline = away[inside != here].min()
    return _LOGITS_PER_REACH * (away / (_REACH * (to_outline if here else min(to_outline, thickness))) - 1)


def _at_outline(inside: np.ndarray) -> np.ndarray:
    """Cells (h, w) that have a neighbour on the other side of the outline."""
    return (inside & ~ndimage.binary_erosion(inside, border_value=1)) | (~inside & ndimage.binary_dilation(inside))

"""Limits what a corrective click changes in a mask, and sets the clicked pixels to what the user said.

A click corrects its surroundings, but the model's new answer may differ anywhere. So the mask far from a click changes
only where the model is sure. Its outline, however, is often off by the same small step all around; one click tells.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.inference.mask_shapes import overlap

_REACH = 2.0
"""How far a click counts for its surroundings, in units of its distance from the outline."""
_LOGITS_PER_REACH = 4.0
"""Logits by which the model must be surer, for each further reach away from the click, to change the mask."""
_CONTRARY = 4.0
"""Logits by which the model must be surer to take away after positive clicks alone, or to add after negative ones."""
_AT_OUTLINE = 0.5
"""Logits by which the model must be surer, at most, to move the outline by one cell, anywhere."""
_SMALL_STEP = 0.7
"""IoU of the masks before and after, below which this does not count."""
_FIRST_READING = 0.5
"""Share of these logits when the earlier answer is one reading of a lone point, which the next click may revise."""
_MARGIN = 1.0
"""Logits of a clicked place, at least: positive inside, negative outside."""
_NARROWEST = 0.4
"""Cells: a narrower change would miss its neighbours."""


def changed_near(
    before: np.ndarray, after: np.ndarray, clicks: np.ndarray, positive: np.ndarray, first_reading: bool = False
) -> np.ndarray:
    """Keep an earlier answer where a new one differs far from all clicks and without certainty.

    A click close to the outline points at a small error and counts for few cells, one far from it for many. A missing
    part is seldom thicker than the mask that is there, so a positive click does not count for more than that, however
    far it is. Anywhere else the outline may move by one cell, unless that changes much of the mask, as in a thin one.
    Clicks that are all positive seldom mean that something is to be taken away, nor negative ones that something is
    missing. An answer without an outline, with nothing or everything inside, may change anywhere.

    Args:
        before: logits (h, w) of the answer that the user corrects.
        after: logits (h, w) of the answer to all clicks.
        clicks: the new clicks (n, 2), x and y in cells of the logits.
        positive: (n,), whether a click is positive.
        first_reading: whether the earlier answer is that to a lone point.

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

    A click that is on the wrong side takes its surroundings along, up to half the distance to the outline and to the
    nearest contrary click. Of contrary clicks in one place the last one counts.

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
    """How large logits must be in each cell (h, w) to overrule the mask `inside`, for one click."""
    rows, columns = np.indices(inside.shape)
    away = np.hypot(columns - click[0], rows - click[1])
    here = inside[np.unravel_index(np.argmin(away), away.shape)]
    to_outline = away[inside != here].min()
    return _LOGITS_PER_REACH * (away / (_REACH * (to_outline if here else min(to_outline, thickness))) - 1)


def _at_outline(inside: np.ndarray) -> np.ndarray:
    """Cells (h, w) that have a neighbour on the other side of the outline."""
    return (inside & ~ndimage.binary_erosion(inside, border_value=1)) | (~inside & ndimage.binary_dilation(inside))

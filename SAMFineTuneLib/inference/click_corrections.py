"""What a click may change in an answer, and what it must.

Whoever corrects a mask means the surroundings of the click; a model that is asked anew may answer otherwise anywhere.
So what lies far from a click changes only where the model is sure, and the clicked places themselves become what
was said of them.
"""

from __future__ import annotations

import numpy as np

_REACH = 3.0
"""How far a click speaks for its surroundings, in units of its distance from the outline."""
_LOGITS_PER_REACH = 4.0
"""How much surer the model must be, for each further reach away from the click, to change what was there."""
_MARGIN = 1.0
"""Logits by which a clicked place is what was said of it, at least."""
_NARROWEST = 0.4
"""Cells: a narrower change would miss those around it."""


def changed_near(before: np.ndarray, after: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Logits (h, w) of an answer `after` new clicks (n, 2), x and y of its cells, on the answer `before` (h, w).

    Where the two disagree, far from all clicks and without certainty, it stays as it was. A click close to the outline
    points at a small error and speaks for little, one far from it for much. An answer of which nothing or all is
    inside has no outline, and may change anywhere.
    """
    inside = before > 0
    if not len(clicks) or inside.all() or not inside.any():
        return after
    needed = np.min([_needed(inside, click) for click in clicks], axis=0)
    stays = (inside != (after > 0)) & (np.abs(after) < needed)
    return np.where(stays, before, after)


def as_told(logits: np.ndarray, clicks: np.ndarray, shares: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Logits (h, w) such that clicks (n, 2), x and y of its cells, are inside where `positive` (n,) and else outside.

    `shares` (n, h, w) say which logits make the clicked pixels' ones. A place that is not as told becomes so with its
    surroundings, half as far as the outline and the next click that says otherwise are away. Of contrary clicks in one
    place the last one counts.
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


def _needed(inside: np.ndarray, click: np.ndarray) -> np.ndarray:
    """How sure an answer must be in each cell (h, w) to overrule what was `inside`."""
    rows, columns = np.indices(inside.shape)
    away = np.hypot(columns - click[0], rows - click[1])
    here = inside[np.unravel_index(np.argmin(away), away.shape)]
    return _LOGITS_PER_REACH * (away / (_REACH * away[inside != here].min()) - 1)

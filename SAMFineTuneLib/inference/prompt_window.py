"""Widens an intensity window where it hides what lies under a prompt: contrast-filled vessels that are all white, a
lung that is all black.

The window stays as it is unless more than half of what is prompted lies beyond one of its ends, and a border is hidden
there: around a box there must be more of the same white or black, and what is joined to a point in it must have other
values, too. A bone or a single vessel among soft tissue is answered better in the window that shows it all white. The
new window reaches as far beyond that end as it takes to bring the median of the hidden values a quarter of its width
inside.
"""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.images import IntensityWindow
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.mask_shapes import pieces
from SAMFineTuneLib.prompts import PlanePrompts

_HIDDEN = 0.5
"""Share of the prompted pixels beyond an end of the window, above which it is widened."""
_HIDDEN_AROUND = 0.4
"""The same for pixels around a box or mask: its border cannot be seen there."""
_UNLIKE = 0.2
"""Share of what is joined to a point in the same white or black that differs from it, above which there are borders."""
_DIFFERENCE = 0.15
"""How much a value must differ for that, in widths of the window."""
_FRAME = 0.15
"""Width of what counts as around, in sides of the box; at least 2 pixels."""
_AROUND = 1
"""Pixels on each side of a point that count as prompted."""
_WITHIN = 0.25
"""How far inside the new window the hidden values lie, in its widths."""


def window_for(values: np.ndarray, prompts: PlanePrompts, window: IntensityWindow) -> IntensityWindow:
    """The window in which a model should see a slice.

    Args:
        values: the volume on the slice (rows, columns), in its own units.
        prompts: what the window must show: a box, else a mask, else positive points.
        window: the window of the volume.

    Returns:
        `window` itself, or a wider one.
    """
    box = prompts.box
    if box is None and prompts.mask is not None:
        box = bounding_box(prompts.mask)
    if box is not None:
        inside = _within(values.shape, box)
        around = _within(values.shape, box, np.maximum(_FRAME * (box[2:] - box[:2] + 1), 2)) & ~inside
        under = inside if prompts.box is not None else prompts.mask
    else:
        under, around = np.zeros(values.shape, bool), None
        for point in prompts.points[prompts.labels == 1]:
            under |= _within(values.shape, np.tile(point, 2), _AROUND)
    for beyond, other in ((values < window.low, window.high), (values > window.high, window.low)):
        hidden = under & beyond
        if np.count_nonzero(hidden) <= _HIDDEN * np.count_nonzero(under):
            continue
        middle = float(np.median(values[hidden]))
        if not np.isfinite(middle):
            continue
        if around is None:
            joined = values[np.any([piece for piece in pieces(beyond) if (piece & hidden).any()], axis=0)]
            borders = (np.abs(joined - middle) > _DIFFERENCE * window.width).mean() > _UNLIKE
        else:
            borders = np.count_nonzero(around & beyond) > _HIDDEN_AROUND * np.count_nonzero(around)
        if borders:
            reach = other + (middle - other) / (1 - _WITHIN)
            return IntensityWindow(min(reach, other), max(reach, other), "widened under a prompt")
    return window


def _within(shape: tuple[int, ...], box: np.ndarray, margin: np.ndarray | float = 0) -> np.ndarray:
    """Pixels (rows, columns) of a box x0, y0, x1, y1, enlarged by a margin."""
    found = np.zeros(shape, bool)
    left, top = np.rint(box[:2] - margin).astype(int).clip(0)
    right, bottom = (np.rint(box[2:] + margin).astype(int) + 1).clip(0)
    found[top:bottom, left:right] = True
    return found

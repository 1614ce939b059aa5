"""Draws a slice of a session for people: masks, prompts and a legend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.images import SlicePlane, overlay_image, picture
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.session.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

_INSIDE, _OUTSIDE, _ROUGH = (0.16, 0.86, 0.24), (0.94, 0.2, 0.2), (1.0, 0.82, 0.16)
"""Colours of lassos, as of points, and of mask prompts, as of boxes."""


def draw_slice(
    session: Session, labelmap: np.ndarray | None, plane: SlicePlane, legend: Mapping[int, str] | None = None
) -> Image:
    """Draw a slice.

    Args:
        session: with a volume.
        labelmap: its label map [k, j, i]; None for one without segments.
        plane: the slice.
        legend: label value → text; None for the names of the segments on the slice.

    Returns:
        A Pillow image.
    """
    labels = None if labelmap is None else extract_labels(labelmap, session.volume, plane)
    here = [task for (_, key), task in session.state.tasks.items() if key == plane.key]
    given = [part for task in here for part in task.prompts]
    words = legend or {info.value: info.name for info in session.segments}
    return overlay_image(
        picture(session.volume, plane, session.window),
        [(labels == info.value, info.color) for info in session.segments],
        [(*point, bool(sign)) for part in given for point, sign in zip(part.points, part.labels, strict=True)],
        [part.box for part in given if part.box is not None],
        [(words[info.value], info.color) for info in session.segments
         if info.value in words and (labels == info.value).any()],
        [(shape, color) for part in given for shape, color in _outlined(part) if shape.any()],
    )  # fmt: skip


def _outlined(part: PlanePrompts) -> Iterator[tuple[np.ndarray, tuple[float, float, float]]]:
    """Shapes among the prompts of a plane, bool (rows, columns), each with its colour."""
    if part.mask is not None:
        yield part.mask, _ROUGH
    if part.region is not None:
        yield part.region > 0, _INSIDE
        yield part.region < 0, _OUTSIDE

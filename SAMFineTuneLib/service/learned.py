"""What an adapter learned from, as far as it matters for using it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, view_axes
from SAMFineTuneLib.images.volume import Volume


def learned_orientation(volume: Volume, recipe: Mapping[str, Any]) -> str:
    """Of the slices that the adapter of a recipe learned from; else that in which the volume was acquired."""
    from SAMFineTuneLib.cases.cases import slice_axis

    if recipe.get("orientation") in ORIENTATIONS:
        return recipe["orientation"]
    across = 2 - slice_axis(volume)
    return next(name for name in ORIENTATIONS if view_axes(volume, name)[2] == across)

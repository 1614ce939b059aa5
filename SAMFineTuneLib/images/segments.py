"""What a label map's values mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SegmentInfo:
    """One structure of a label map: name, voxel value (1 or more), colour (red, green, blue in 0 to 1)."""

    name: str
    value: int
    color: tuple[float, float, float]

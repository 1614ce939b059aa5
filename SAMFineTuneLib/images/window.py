"""Intensity windows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntensityWindow:
    """Voxel values `low` … `high` become black … white."""

    low: float
    high: float
    name: str = ""

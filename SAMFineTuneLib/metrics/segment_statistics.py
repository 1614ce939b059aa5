"""Measurements of a segment in its volume: size, grey values and extent."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.slice_plane import view_axes
from SAMFineTuneLib.images.volume import Volume


@dataclass(frozen=True)
class SegmentStatistics:
    """One segment in one volume; grey values and extent are None where the segment is empty. Voxels without a real
    number as value count for its size alone.

    Extents are measured along the volume's own axes, each named after the direction of the patient closest to it, and
    include the outermost voxels whole.
    """

    segment: str
    value: int
    voxels: int
    milliliters: float
    mean: float | None = None
    standard_deviation: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    extent_right_left_mm: float | None = None
    extent_anterior_posterior_mm: float | None = None
    extent_superior_inferior_mm: float | None = None


def segment_statistics(
    volume: Volume, labelmap: np.ndarray, segments: Sequence[SegmentInfo]
) -> list[SegmentStatistics]:
    """Measure segments.

    Args:
        volume: the volume.
        labelmap: label values [k, j, i] of the volume's shape.
        segments: which label values to measure, and their names.

    Returns:
        One entry a segment, in their order.
    """
    milliliters = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    # The volume's axis (of i, j, k) that runs closest to R, A and S: slices of these orientations are stacked along it.
    axes = [view_axes(volume, orientation)[2] for orientation in ("sagittal", "coronal", "axial")]
    measured = []
    for info in segments:
        where = np.nonzero(labelmap == info.value)
        count = len(where[0])
        if not count:
            measured.append(SegmentStatistics(info.name, info.value, 0, 0.0))
            continue
        values = volume.array[where].astype(np.float64)
        values = values[np.isfinite(values)]
        grey = [float(of(values)) for of in (np.mean, np.std, np.min, np.max)] if len(values) else [None] * 4
        extent = [float(np.ptp(where[2 - axis]) + 1) * float(volume.spacing[axis]) for axis in axes]
        measured.append(SegmentStatistics(info.name, info.value, count, count * milliliters, *grey, *extent))
    return measured


def write_statistics(path: str | Path, rows: Iterable[tuple[str, SegmentStatistics]]) -> None:
    """Write statistics as CSV, whole or not at all; each row begins with the name of its volume."""
    # Names of files keep bytes that are not UTF-8.
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["volume", *(field.name for field in fields(SegmentStatistics))])
        for volume, row in rows:
            writer.writerow([volume, *(f"{v:.6g}" if isinstance(v, float) else v for v in vars(row).values())])

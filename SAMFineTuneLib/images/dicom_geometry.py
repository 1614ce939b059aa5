"""From the frames of one series, in any order, to an ordered stack with one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.dicom_headers import Frame
from SAMFineTuneLib.images.volume import affine_from_lps

# A gap may differ from the usual one by this part before it is called uneven. Rounded positions of real
# scanners stay below 1 %, a missing or inserted slice is at 50 % and more.
_EVEN = 0.05


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames by slice index k, None where a slice is missing; the RAS affine; sentences about what is odd."""

    frames: tuple[Frame | None, ...]
    affine: np.ndarray
    warnings: tuple[str, ...]


def same_stack(a: Frame, b: Frame) -> bool:
    """Whether two frames can be slices of one volume: same size, same pixels, same orientation (to 0.5°)."""
    return (
        (a.rows, a.columns) == (b.rows, b.columns)
        and _close(a.orientation, b.orientation, 0.01)
        and _close(a.pixel_spacing, b.pixel_spacing, 0.01)
        and (a.position is None) == (b.position is None)
    )


def _close(a: np.ndarray | None, b: np.ndarray | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance if a.size == 6 else 0))


def stack_frames(frames: Sequence[Frame]) -> Stack:
    """Order frames that are all `same_stack` along their normal and derive the volume's geometry.

    Slices missing from an otherwise even stack become None, so that all others stay where they are in the
    patient. Raises UserError for repeated positions, tilted gantries and useless orientations.
    """
    first = frames[0]
    notes: list[str] = []
    if first.orientation is None:
        row, column = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
        notes.append("The images do not say how they are oriented; axial slices are assumed.")
    else:
        row, column = _directions(first.orientation)
    normal = np.cross(row, column)
    if first.pixel_spacing is None:
        notes.append("The images do not say how large a pixel is; 1 mm is assumed.")
        pixel_spacing = np.ones(2)
    else:
        pixel_spacing = first.pixel_spacing

    if first.position is None:
        ordered, gap = _in_stored_order(frames, notes)
        origin = np.zeros(3)
    elif len(frames) == 1:
        ordered, gap, origin = (first,), _nominal_gap(first, notes), first.position
    else:
        ordered, gap, origin = _along_normal(frames, normal, float(pixel_spacing.min()), notes)

    spacing = (pixel_spacing[1], pixel_spacing[0], gap)
    affine = affine_from_lps(origin, np.column_stack((row, column, normal)), spacing)
    return Stack(tuple(ordered), affine, tuple(notes))


def _directions(orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit row and column direction, made exactly perpendicular (files round to a few digits)."""
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 0.99 or max(lengths) > 1.01 or abs(row @ column) > 0.01:
        raise UserError(
            "The images' orientation (ImageOrientationPatient) is not two perpendicular directions; export "
            "the series again."
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _nominal_gap(frame: Frame, notes: list[str]) -> float:
    """Distance between slices where positions cannot tell it."""
    for gap in (frame.slice_gap, frame.thickness):
        if gap is not None and abs(gap) > 0:
            return abs(gap)
    notes.append("The images do not say how thick a slice is; 1 mm is assumed.")
    return 1.0


def _in_stored_order(frames: Sequence[Frame], notes: list[str]) -> tuple[list[Frame], float]:
    unnumbered = np.inf

    def order(frame: Frame) -> tuple:
        return (unnumbered if frame.instance is None else frame.instance, str(frame.file), frame.number)

    notes.append(
        "The images do not say where they lie in the patient; "
        + ("they are stacked in the order of their numbers, and " if len(frames) > 1 else "")
        + "positions in millimetres count from the first pixel."
    )
    return sorted(frames, key=order), _nominal_gap(frames[0], notes)


def _along_normal(
    frames: Sequence[Frame], normal: np.ndarray, pixel: float, notes: list[str]
) -> tuple[list[Frame | None], float, np.ndarray]:
    """(frames by k, gap in mm, position of k = 0) for two or more frames with positions."""
    heights = np.array([frame.position @ normal for frame in frames])
    order = np.argsort(heights, kind="stable")
    frames = [frames[n] for n in order]
    heights = heights[order]
    gaps = np.diff(heights)
    usual = float(np.median(gaps[gaps > 1e-3])) if (gaps > 1e-3).any() else 0.0
    repeated = int((gaps <= max(1e-3, 0.01 * usual)).sum())
    if repeated:
        raise UserError(
            f"This series holds {len(frames)} images at only {len(frames) - repeated} positions (time "
            "points, echoes or repeats); export the one to be segmented as a series of its own."
        )
    _check_straight(frames, normal, heights, pixel)

    ratios = gaps / usual
    steps = np.rint(ratios)
    if (np.abs(ratios - 1) <= _EVEN).all():
        return list(frames), float(gaps.mean()), frames[0].position
    missing = int(steps.sum()) - len(gaps)
    if (steps >= 1).all() and (np.abs(ratios - steps) <= _EVEN * steps).all() and missing <= len(frames):
        slices: list[Frame | None] = [frames[0]]
        for frame, step in zip(frames[1:], steps.astype(int), strict=True):
            slices += [None] * (step - 1) + [frame]
        where = ", ".join(f"{gaps[n]:.4g} mm after slice {n + 1}" for n in np.flatnonzero(steps > 1))
        plural = "slices are" if missing > 1 else "slice is"
        notes.append(
            f"{missing} {plural} missing from this series (usual distance {usual:.4g} mm, but {where}); each "
            "is left blank, so that all others stay in their place."
        )
        return slices, float((heights[-1] - heights[0]) / steps.sum()), frames[0].position
    mean = float(gaps.mean())
    off = float(np.abs(heights - heights[0] - mean * np.arange(len(frames))).max())
    widest = int(gaps.argmax())
    notes.append(
        f"The slices are unevenly spaced ({gaps.min():.4g} to {gaps.max():.4g} mm, the widest gap after "
        f"slice {widest + 1}); an even spacing of {mean:.4g} mm is used, so positions are off by up to "
        f"{off:.3g} mm."
    )
    return list(frames), mean, frames[0].position


def _check_straight(frames: Sequence[Frame], normal: np.ndarray, heights: np.ndarray, pixel: float) -> None:
    """Refuse slices that are shifted sideways against each other by more than half a pixel."""
    positions = np.array([frame.position for frame in frames])
    sideways = positions - positions[0] - (heights - heights[0])[:, None] * normal
    shift = float(np.linalg.norm(sideways, axis=1).max())
    if shift > 0.5 * pixel:
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), heights[-1] - heights[0]))
        raise UserError(
            f"The slices of this series are shifted sideways by up to {shift:.3g} mm (a gantry tilted by "
            f"{angle:.3g}°), which no straight label map can follow; load it in Slicer with acquisition "
            "geometry regularization, harden the transform and export it as NRRD."
        )

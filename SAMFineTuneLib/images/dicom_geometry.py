"""Orders the frames of one series into a stack, and derives its matrix from voxels to RAS.

Own code, because ITK's series reader assumes even distances: a missing slice would shift all that follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.dicom_headers import Frame
from SAMFineTuneLib.images.volume import affine_from_lps, describe_place

# A gap may differ from the usual one by this part before it is called uneven. Rounded positions of real
# scanners stay below 1 %; a missing or inserted slice differs by 50 % or more.
_EVEN = 0.05
# Slices may be off an even grid by this part of a slice before they are interpolated onto one.
_OFF = 0.1
# Gaps are interpolated up to the larger of a length in mm and a number of usual distances; wider ones split the stack.
_BRIDGED_MM = 30.0
_BRIDGED_GAPS = 4.0
_FINEST = 8.0  # uneven series get at most this many times as many slices as they have images
_SAME_HEIGHT = 1e-3  # mm
_MOSTLY = 0.9  # part of the gaps that are equal where images belong to one scan; others are missing slices


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice of which there is an image, `lower`; or one that is interpolated from the frames below and above it,
    `share` of the way from one to the other."""

    lower: Frame
    upper: Frame | None = None
    share: float = 0.0


@dataclass(frozen=True, eq=False)
class DicomStack:
    """The slices, the RAS affine, and warnings, as sentences."""

    slices: tuple[Slice, ...]
    affine: np.ndarray
    warnings: tuple[str, ...]

    @property
    def frames(self) -> list[Frame | None]:
        """The frame of each slice k, None where it is interpolated."""
        return [one.lower if one.upper is None else None for one in self.slices]

    @property
    def resampled(self) -> bool:
        """Whether some frames lie between slices, so that the slices around them are interpolated."""
        return len(self.sources) > sum(one.upper is None for one in self.slices)

    @property
    def sources(self) -> list[Frame]:
        """All frames from which slices are made, each once."""
        frames = [frame for one in self.slices for frame in (one.lower, one.upper) if frame is not None]
        return list({id(frame): frame for frame in frames}.values())


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


def places_of(frames: Sequence[Frame]) -> np.ndarray:
    """Number the places of frames along their normal.

    Frames without a position are distinguished by their instance numbers.

    Returns:
        For each frame (n,) the number of its place: 0 for the lowest, equal for frames at the same place.
    """
    if frames[0].position is None:
        order = [(frame.instance is None, frame.instance or n, frame.number) for n, frame in enumerate(frames)]
        numbered = {key: n for n, key in enumerate(sorted(set(order)))}
        return np.array([numbered[key] for key in order])
    order, heights = _sorted_heights(frames, normal_of(frames[0]))
    gaps = np.diff(heights)
    numbers = np.empty(len(frames), int)
    numbers[order] = np.concatenate([[0], np.cumsum(gaps > _repeat_below(gaps))])
    return numbers


def normal_of(frame: Frame) -> np.ndarray:
    """Direction (3,) in LPS along which slices are stacked; axial where the frame says nothing."""
    if frame.orientation is None:
        return np.array([0.0, 0.0, 1.0])
    return np.cross(frame.orientation[:3], frame.orientation[3:]) * (-1 if frame.backwards else 1)


def place_name(frame: Frame) -> str:
    """Where a frame lies, for messages: the coordinate that changes most from slice to slice, "S 27.5 mm"."""
    return describe_place(frame.position, normal_of(frame))


def split_at_wide_gaps(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Split frames with distinct positions where a gap is too wide to interpolate; the lowest part comes first."""
    if len(frames) < 2 or frames[0].position is None:
        return [list(frames)]
    order, heights = _sorted_heights(frames, normal_of(frames[0]))
    gaps = np.diff(heights)
    widest = max(_BRIDGED_MM, _BRIDGED_GAPS * _grid_step(gaps)) + _SAME_HEIGHT
    cuts = np.flatnonzero(gaps > widest) + 1
    return [[frames[n] for n in piece] for piece in np.split(order, cuts)]


def evenly_spaced(frames: Sequence[Frame]) -> bool:
    """Whether frames fit on top of each other at three or more places, most of them equally far apart, as the slices of
    one scan do."""
    first = frames[0]
    if first.position is None or not all(same_stack(first, frame) for frame in frames):
        return False
    gaps = np.diff(_sorted_heights(frames, normal_of(first))[1])
    gaps = gaps[gaps > _repeat_below(gaps)]
    return len(gaps) > 1 and bool(np.mean(np.abs(gaps / np.median(gaps) - 1) <= _EVEN) >= _MOSTLY)


def _sorted_heights(frames: Sequence[Frame], normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order (n,) of frames along the normal, and in this order their heights (n,) in mm."""
    heights = np.array([frame.position for frame in frames]) @ normal
    order = np.argsort(heights, kind="stable")
    return order, heights[order]


def _repeat_below(gaps: np.ndarray) -> float:
    """Distance in mm up to which two frames are at the same place."""
    real = gaps[gaps > _SAME_HEIGHT]
    return max(_SAME_HEIGHT, 0.01 * float(np.median(real))) if len(real) else _SAME_HEIGHT


def _grid_step(gaps: np.ndarray) -> float:
    """The usual distance of slices: a low quantile, because slices are more often missing than inserted."""
    return float(np.quantile(gaps, 0.25, method="lower"))


def stack_frames(frames: Sequence[Frame], step: float | None = None) -> DicomStack:
    """Order frames along their normal and derive the volume's geometry.

    Slices missing from an otherwise even stack, and slices of an even grid through an uneven one, are interpolated
    `between` two frames, so that every image stays at its place in the patient.

    Args:
        frames: frames that are `same_stack` with each other, in any order.
        step: distance of slices in mm, if images that cannot be read reveal it.

    Raises:
        UserError: for repeated positions, a tilted gantry, or directions that are not perpendicular.
    """
    first = frames[0]
    notes: list[str] = []
    if first.orientation is None:
        row, column = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
        notes.append("The images do not say how they are oriented; axial slices are assumed.")
    else:
        row, column = _directions(first.orientation)
    normal = np.cross(row, column) * (-1 if first.backwards else 1)
    if first.pixel_spacing is None:
        notes.append("The images do not say how large a pixel is in the patient; 1 mm is assumed.")
        pixel_spacing = np.ones(2)
    else:
        pixel_spacing = first.pixel_spacing

    if first.position is None:
        slices, gap = _in_stored_order(frames, notes)
        origin = np.zeros(3)
    elif len(frames) == 1:
        slices, gap, origin = [Slice(first)], _nominal_gap(first, notes), first.position
    else:
        slices, gap = _along_normal(frames, normal, float(pixel_spacing.min()), step, notes)
        origin = slices[0].lower.position

    spacing = (pixel_spacing[1], pixel_spacing[0], gap)
    affine = affine_from_lps(origin, np.column_stack((row, column, normal)), spacing)
    return DicomStack(tuple(slices), affine, tuple(notes))


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
    """Distance between slices in mm when there are no positions to measure it."""
    for gap in (frame.slice_gap, frame.thickness):
        if gap is not None and abs(gap) > 0:
            return abs(gap)
    notes.append("The images do not say how thick a slice is; 1 mm is assumed.")
    return 1.0


def _in_stored_order(frames: Sequence[Frame], notes: list[str]) -> tuple[list[Slice], float]:
    numbered = len({(frame.instance, frame.number) for frame in frames}) == len(frames)
    order = "numbers" if numbered else "names, because they are not numbered one by one"
    notes.append(
        "The images do not say where they lie in the patient; "
        + (f"they are stacked in the order of their {order}, and " if len(frames) > 1 else "")
        + "positions in millimetres count from the first pixel."
    )
    ordered = sorted(frames, key=lambda one: (one.instance is None, one.instance, str(one.file), one.number))
    return list(map(Slice, ordered)), _nominal_gap(frames[0], notes)


def _along_normal(
    frames: Sequence[Frame], normal: np.ndarray, pixel: float, known: float | None, notes: list[str]
) -> tuple[list[Slice], float]:
    """The slices, and their distance in mm, of two or more frames with positions."""
    order, heights = _sorted_heights(frames, normal)
    frames = [frames[n] for n in order]
    gaps = np.diff(heights)
    _check_single(frames, gaps)
    _check_straight(frames, normal, heights, pixel)

    mean = float(gaps.mean())
    off = float(np.abs(heights - heights[0] - mean * np.arange(len(frames))).max())
    usual = known or _grid_step(gaps)
    if (np.abs(gaps / mean - 1) <= _EVEN).all() and off <= _OFF * mean and mean < 1.5 * usual:
        return list(map(Slice, frames)), mean

    steps = np.rint(gaps / usual)
    if (np.abs(gaps / usual - steps) <= _EVEN * steps).all() and steps.max() > 1:
        places = np.concatenate([[0], np.cumsum(steps)]).astype(int)
        step = float((heights[-1] - heights[0]) / places[-1])
        if np.abs(heights - heights[0] - step * places).max() <= _OFF * step:
            notes.append(_missing(frames, gaps, steps, usual))
            return _on_grid(frames, places), step
    if off <= _OFF * mean:
        notes.append(
            f"The slices are unevenly spaced ({gaps.min():.4g} to {gaps.max():.4g} mm); an even spacing of "
            f"{mean:.4g} mm is used, so positions are off by up to {off:.3g} mm."
        )
        return list(map(Slice, frames)), mean
    step = max(usual, mean / _FINEST)
    places = (heights - heights[0]) / step
    notes.append(
        f"The slices are unevenly spaced ({gaps.min():.4g} to {gaps.max():.4g} mm, the widest gap after "
        f"{place_name(frames[int(gaps.argmax())])}); they were interpolated onto slices every {step:.4g} mm, each "
        "where it lies in the patient."
    )
    return _on_grid(frames, places), step


def _on_grid(frames: Sequence[Frame], places: np.ndarray) -> list[Slice]:
    """The slices of an even grid: frames that lie on it, or interpolations of those around.

    `places` (n,) are the frames' positions on the grid in slices from the first one, ascending.
    """
    slices = []
    for k in range(int(np.rint(places[-1])) + 1):
        n = min(int(np.searchsorted(places, k - _EVEN)), len(frames) - 1)
        if abs(places[n] - k) <= _EVEN:
            slices.append(Slice(frames[n]))
        else:
            share = (k - places[n - 1]) / (places[n] - places[n - 1])
            slices.append(Slice(frames[n - 1], frames[n], float(min(share, 1.0))))
    return slices


def _missing(frames: Sequence[Frame], gaps: np.ndarray, steps: np.ndarray, usual: float) -> str:
    wide = np.flatnonzero(steps > 1)
    count = int(steps.sum()) - len(gaps)
    where = [f"between {place_name(frames[n])} and {place_name(frames[n + 1])}" for n in wide]
    if len(where) > 3:
        where = [f"at {len(where)} places from {place_name(frames[wide[0]])} to {place_name(frames[wide[-1] + 1])}"]
    are, they_are = ("slices are", "they are") if count > 1 else ("slice is", "it is")
    return (
        f"{count} {are} missing from this series (usual distance {usual:.4g} mm): {', '.join(where)}; {they_are} "
        "interpolated from the slices around, so check what is segmented there."
    )


def _check_single(frames: Sequence[Frame], gaps: np.ndarray) -> None:
    """Raise UserError when several images have one position."""
    repeated = np.flatnonzero(gaps <= _repeat_below(gaps))
    if len(repeated):
        first = frames[repeated[0]]
        names = " and ".join(f"“{one.file.name}”" for one in frames[repeated[0] : repeated[0] + 2])
        raise UserError(
            f"This series holds {len(frames)} images at only {len(frames) - len(repeated)} positions, and nothing in "
            f"them says which belong together (for example {names} at {place_name(first)}); export the images to be "
            "segmented as a series of their own."
        )


def _check_straight(frames: Sequence[Frame], normal: np.ndarray, heights: np.ndarray, pixel: float) -> None:
    """Raise UserError when slices are shifted sideways by more than half a pixel."""
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

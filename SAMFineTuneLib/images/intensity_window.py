"""Intensity windows: which voxel values become black and white in the 8-bit picture that a model sees.

A window is chosen once for a volume, never slice by slice, so that the same tissue has the same grey on every slice
and in every run. It is widened only where it hides the structure that the user points at: contrast-filled vessels that
are all white, a lung that is all black.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.images.volume import Volume

CT_PRESETS = {  # name -> (level, width) in Hounsfield units, the values common in radiology textbooks
    "abdomen": (40.0, 400.0),
    "liver": (60.0, 160.0),
    "mediastinum": (50.0, 350.0),
    "lung": (-600.0, 1500.0),
    "bone": (400.0, 1800.0),
    "spine": (50.0, 250.0),
    "brain": (40.0, 80.0),
    "stroke": (40.0, 40.0),
    "subdural": (75.0, 215.0),
    "angio": (300.0, 600.0),
}
_PICTURE_MODALITIES = ("US", "XC", "ES", "GM", "OP")  # their grey values are those to display
DEFAULT_PERCENTILES = (0.5, 99.5)
_HIDDEN = 0.5
"""Share of the prompted pixels beyond an end of the window, above which it is widened."""
_HIDDEN_AROUND = 0.4
"""The same for pixels around a box or mask: its border cannot be seen there."""
_UNLIKE = 0.2
"""Share of the white or black piece around a point whose values differ from the point's, above which it has hidden
borders.
"""
_DIFFERENCE = 0.15
"""How much a value must differ for that, in widths of the window."""
_WITHIN = 0.25
"""How far inside the new window the hidden values lie, in its widths."""
_SAMPLE = 500_000  # voxels; larger volumes are judged by an even sample of about this size


@dataclass(frozen=True)
class IntensityWindow:
    """Values up to `low` are black, from `high` on white, linear between; `name` says where the window comes from.

    Raises:
        UserError: when a limit is not finite or `high` is not above `low`.
    """

    low: float
    high: float
    name: str = ""

    def __post_init__(self) -> None:
        limits = f"{self.low:g} to {self.high:g}"
        if not all(map(math.isfinite, (self.low, self.high, self.high - self.low))):
            raise UserError(f"The intensity window {limits} is not finite: give two ordinary numbers.")
        if not self.high > self.low:
            raise UserError(f"The intensity window {limits} is empty: its second number must be the larger.")

    @classmethod
    def from_level(cls, level: float, width: float, name: str = "", dicom: bool = False) -> IntensityWindow:
        """From level (centre) and width; `dicom=True` takes them as WindowCenter and WindowWidth of the VOI
        LUT function LINEAR (DICOM PS3.3 C.11.2.1.2), which is white from centre - 0.5 + (width - 1) / 2."""
        if dicom and width > 1:
            return cls(level - 0.5 - (width - 1) / 2, level - 0.5 + (width - 1) / 2, name)
        return cls(level - width / 2, level + width / 2, name)

    @property
    def level(self) -> float:
        """Its middle, as in "level and width"."""
        return (self.low + self.high) / 2

    @property
    def width(self) -> float:
        """From its lower to its upper end."""
        return self.high - self.low

    def apply(self, array: np.ndarray) -> np.ndarray:
        """uint8 of the same shape: 0 at `low` and 255 at `high`, rounded to the nearest (halves to even).

        Voxels that are not a number become 0, infinite ones 0 or 255.
        """
        array = np.asarray(array)
        single = array.dtype.itemsize <= 2 or array.dtype == np.float32  # float32 holds these exactly
        grey = array.astype(np.float32 if single else np.float64)
        grey -= grey.dtype.type(self.low)
        grey *= grey.dtype.type(255.0 / (self.high - self.low))
        np.clip(grey, 0, 255, out=grey)
        np.rint(grey, out=grey)
        return np.nan_to_num(grey, copy=False, nan=0.0).astype(np.uint8)

    def __str__(self) -> str:
        limits = f"{self.low:g} to {self.high:g}"
        return f"{self.name}, {limits}" if self.name else limits


def joined(windows: Sequence[IntensityWindow]) -> IntensityWindow:
    """The narrowest window that includes all of these; it has the name of the last one."""
    lows, highs = zip(*((window.low, window.high) for window in windows), strict=True)
    return IntensityWindow(min(lows), max(highs), windows[-1].name)


def widened_where_hidden(
    window: IntensityWindow,
    values: np.ndarray,
    under: np.ndarray,
    around: np.ndarray | None,
    pieces_with: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> IntensityWindow:
    """The window in which a model should see a slice on which something is prompted.

    The window stays unless more than half of the prompted pixels lie beyond one of its ends, and a border is hidden
    there: around a box there must be more of the same white or black, and the piece connected to a point in it must
    have other values, too. A bone or a single vessel among soft tissue is answered better in the window that shows it
    all white. The new window reaches so far beyond that end that the median of the hidden values lies a quarter of its
    width inside.

    Args:
        window: the window of the volume.
        values: the volume on the slice (rows, columns), in its own units.
        under: bool (rows, columns), the prompted pixels.
        around: bool (rows, columns), their surroundings; None with points alone.
        pieces_with: gives the connected pieces of a mask that hold any of some pixels, all bool (rows, columns).

    Returns:
        `window` itself, or a wider one.
    """
    for beyond, other in ((values < window.low, window.high), (values > window.high, window.low)):
        hidden = under & beyond
        if np.count_nonzero(hidden) <= _HIDDEN * np.count_nonzero(under):
            continue
        middle = float(np.median(values[hidden]))
        if not np.isfinite(middle):
            continue
        if around is None:
            joined_to = values[pieces_with(beyond, hidden)]
            borders = (np.abs(joined_to - middle) > _DIFFERENCE * window.width).mean() > _UNLIKE
        else:
            borders = np.count_nonzero(around & beyond) > _HIDDEN_AROUND * np.count_nonzero(around)
        if borders:
            reach = other + (middle - other) / (1 - _WITHIN)
            return IntensityWindow(min(reach, other), max(reach, other), "widened under a prompt")
    return window


def choose_window(volume: Volume, request: str | None = None) -> IntensityWindow:
    """Choose the window for a volume; `str` of the result says which was chosen and why.

    The default is

    * CT: the file's own window when it is made for soft tissue (level -50 to 150 HU, width at most 600 HU: a head CT
      keeps its brain window), otherwise the abdomen preset. Scanners store lung and bone windows with the
      reconstruction kernel; such a window would hide every soft organ, so only "dicom" uses it.
    * pictures of 8 bits (PNG, ultrasound): 0 to 255, as they are.
    * no modality (NIfTI, NRRD), lowest value a whole number of -900 or less: as a CT, and `name` says so.
    * MR and all others: percentiles 0.5 and 99.5 of the volume, because windows in MR files differ between slices.

    Percentiles of volumes of a million voxels or more come from an even sample of 300 000 to 500 000 voxels, always
    the same ones, which makes them wrong by about a hundredth of a percent of the voxels. "minmax" reads every voxel.

    Args:
        volume: the volume to show.
        request: None or "auto" for the default, "dicom" (the window stored in the file), a CT preset ("ct-abdomen",
            "ct-lung", … see CT_PRESETS), "percentiles", "percentiles:LOW,HIGH", "minmax" or "LOW,HIGH".

    Raises:
        UserError: for an unknown request, a CT preset for another modality, or a volume without finite voxels.
    """
    text = (request or "auto").strip().lower()
    if text == "auto":
        return _default_window(volume)
    if text == "dicom":
        if volume.window is None:
            raise UserError("This volume has no DICOM window: choose another, such as ct-abdomen, minmax or LOW,HIGH.")
        return volume.window
    if text == "minmax":
        return _window_or_constant(*_finite_range(volume.array), "minimum and maximum of the volume")
    if text == "percentiles":
        return _percentiles(volume.array, *DEFAULT_PERCENTILES)
    if text.startswith("percentiles:"):
        limits = _numbers(text.partition(":")[2])
        if limits is None or not 0 <= limits[0] < limits[1] <= 100:
            raise UserError(f'The window "{text}" needs two rising percentages, for instance percentiles:1,99.')
        return _percentiles(volume.array, *limits)
    preset = text.removeprefix("ct-")
    if preset in CT_PRESETS:
        return _preset(volume, preset)
    limits = _numbers(text)
    if limits is None:
        presets = ", ".join(f"ct-{name}" for name in CT_PRESETS)
        raise UserError(
            f'"{text}" is not an intensity window: give two numbers as LOW,HIGH, or one of auto, dicom, minmax, '
            f"percentiles, percentiles:LOW,HIGH, {presets}."
        )
    return IntensityWindow(*limits, "as given")


def modality_of(volume: Volume) -> str:
    """The modality in the file; without one "CT" when the lowest value is a whole number of -900 or less, else ""."""
    if volume.modality:
        return volume.modality.upper()
    lowest, _ = _finite_range(_even_sample(volume.array))
    return "CT" if lowest <= -900 and lowest == round(lowest) else ""


def _default_window(volume: Volume) -> IntensityWindow:
    modality = volume.modality.upper()
    if modality == "CT":
        stored = volume.window
        if stored is None:
            return _preset(volume, "abdomen")
        if -50 <= stored.level <= 150 and stored.width <= 600:
            return stored
        own = f"{stored.low:g} to {stored.high:g}"
        why = f" (the file's own window, {own}, is not for soft tissue; ask for it with dicom)"
        return _preset(volume, "abdomen", why)
    is_picture = volume.array.shape[0] == 1 or modality in _PICTURE_MODALITIES
    if volume.array.dtype == np.uint8 and is_picture:
        return IntensityWindow(0.0, 255.0, "8-bit picture as it is")
    if not modality and modality_of(volume) == "CT":
        lowest, _ = _finite_range(_even_sample(volume.array))
        why = f" (guessed: no modality in the file, values from {lowest:g} look like Hounsfield units)"
        return _preset(volume, "abdomen", why)
    return _percentiles(volume.array, *DEFAULT_PERCENTILES)


def _preset(volume: Volume, preset: str, why: str = "") -> IntensityWindow:
    if volume.modality.upper() not in ("", "CT"):
        raise UserError(
            f"The window ct-{preset} is in Hounsfield units, but this volume is {volume.modality}: "
            "choose percentiles, minmax, dicom or LOW,HIGH."
        )
    return IntensityWindow.from_level(*CT_PRESETS[preset], f"CT {preset} preset in HU{why}")


def _percentiles(array: np.ndarray, lower: float, upper: float) -> IntensityWindow:
    """`lower` over all voxels, `upper` over those that are not background (exactly 0, or the lowest value), so that the
    same share of the body is white however much air surrounds it."""
    name = f"percentiles {lower:g} and {upper:g} of the volume"
    sample = _even_sample(array)
    sample = sample[np.isfinite(sample)].astype(np.float64)
    if sample.size == 0:
        return _window_or_constant(*_finite_range(array), name)
    lowest = sample.min()
    body = sample[(sample != 0) & (sample != lowest)]
    low = float(np.percentile(sample, lower))
    high = float(np.percentile(body if body.size else sample, upper))
    if not high > low:  # nearly all voxels share one value
        low, high = _finite_range(array)
    return _window_or_constant(low, high, name)


def _even_sample(array: np.ndarray) -> np.ndarray:
    """About _SAMPLE voxels, evenly spread with a step that shares no factor with the lengths of the axes; all voxels
    when the volume is not twice as large, or the sample holds no finite number."""
    step = max(1, array.size // _SAMPLE)
    while any(math.gcd(step, length) > 1 for length in array.shape):
        step += 1
    sample = array.reshape(-1)[::step]
    return sample if np.isfinite(sample).any() else array


def _finite_range(array: np.ndarray) -> tuple[float, float]:
    if array.size == 0:
        raise UserError("This volume has no voxels, so it has no intensity window.")
    lowest, highest = float(array.min()), float(array.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        finite = array[np.isfinite(array)]
        if finite.size == 0:
            raise UserError("This volume holds no finite voxel value, so it cannot be shown or segmented.")
        lowest, highest = float(finite.min()), float(finite.max())
    return lowest, highest


def _window_or_constant(low: float, high: float, name: str) -> IntensityWindow:
    if high > low:
        return IntensityWindow(low, high, name)
    # One value everywhere is shown black. The width must not vanish in floating point numbers of that size.
    return IntensityWindow(low, low + max(1.0, abs(low) * 1e-3), f"{name} (constant volume)")


def _numbers(text: str) -> tuple[float, float] | None:
    parts = re.split(r"\s*[,;]\s*|\s+", text.strip())
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        return None
    return low, high

"""Warnings about prompts and masks that are valid, but may not be what the user means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from SAMFineTuneLib.images import IntensityWindow, SlicePlane, Volume, extract
from SAMFineTuneLib.images.intensity_window import modality_of
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_plane import format_ras
from SAMFineTuneLib.session.answers import Answer
from SAMFineTuneLib.session.state import Place, PlacedPrompt, State

LEAST_IOU = 0.4
"""An answer of which less is to be expected is doubtful."""
_LEAST_STEPS = 64
"""Of 32-bit numbers between a volume's lowest and highest value: with fewer, structures may look alike."""
_AROUND = 1  # pixels on each side of a point that are looked at


def doubts_about_voxels(volume: Volume) -> list[str]:
    """Warnings about a volume with a single grey value, or with values that are not numbers or no 32-bit ones."""
    array = volume.array
    if array.dtype.kind == "f" and (count := array.size - np.count_nonzero(np.isfinite(array))):
        return [f"{count} of {array.size} voxels hold no real number and are treated as black."]
    low, high = float(array.min()), float(array.max())
    if low == high:
        return [f"All voxels of the volume hold the value {low:g}, so there is nothing to be found."]
    with np.errstate(over="ignore", invalid="ignore"):
        step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    if not step <= (high - low) / _LEAST_STEPS:
        return [
            f"The volume's values, {low:g} to {high:g}, are too large or too close together for numbers of 32 bits, "
            "with which models compute; rescale them first."
        ]
    return []


def doubts_about_adapter(volume: Volume, recipe: Mapping[str, Any]) -> list[str]:
    """A warning when an adapter was trained on another modality than the volume's; none where either is unknown.

    `recipe` is that of the adapter's card.
    """
    learned, seen = str(recipe.get("modality") or ""), modality_of(volume)
    if not learned or not seen or learned == seen:
        return []
    return [f"The adapter learned from {learned}, and this volume is {seen}: its answers may well be wrong."]


def doubts_about_placing(volume: Volume, placed: PlacedPrompt) -> list[str]:
    """A warning about where a prompt was placed."""
    remark = placed.prompt.remark(volume, placed.view) if isinstance(placed.view, str) else None
    return [remark] if remark else []


def doubts_about_points(volume: Volume, window: IntensityWindow, state: State) -> list[str]:
    """Warnings about positive points outside the box of their segment, or where all is black or white.

    Args:
        volume: what is segmented.
        window: the grey values that the model sees.
        state: with the prompts.
    """
    names = {info.value: info.name for info in state.segments}
    told = []
    for (value, _), task in state.tasks.items():
        boxes = [part.box for part in task.prompts if part.box is not None]
        points = [point for part in task.prompts for point in part.points[part.labels == 1]]
        values = extract(volume, task.plane) if points else None
        for point in points:
            where = f"A positive point of {names[value]} at {format_ras(task.plane.pixel_to_ras(point))}"
            if boxes and not any((box[:2] <= point).all() and (point <= box[2:]).all() for box in boxes):
                told.append(
                    f"{where} lies outside the box on {task.plane}; widen the box, or give the point a segment of "
                    "its own."
                )
            if (shade := _uniform_shade(values, point, window)) is not None:
                told.append(
                    f"{where} lies where the window {window.low:g} to {window.high:g} shows nothing but {shade}; "
                    "check the coordinates, or choose another window."
                )
    return told


def _uniform_shade(values: np.ndarray, point: np.ndarray, window: IntensityWindow) -> str | None:
    """ "black" or "white" when a point and all pixels around it are beyond the same end of the window."""
    column, row = np.rint(point).astype(int)
    around = values[max(0, row - _AROUND) : row + _AROUND + 1, max(0, column - _AROUND) : column + _AROUND + 1]
    if not around.size:
        return None
    if around.max() <= window.low:
        return "black"
    return "white" if around.min() >= window.high else None


def doubts_about_window(name: str, window: IntensityWindow, answer: Answer) -> list[str]:
    """Sentences that say in which window the model saw a slice, where it is not the volume's.

    Args:
        name: of the segment.
        window: the volume's.
        answer: the model's.
    """
    return [
        f"The window {window.low:g} to {window.high:g} hides what is prompted of {name}, so the model sees "
        f"{wider.low:.0f} to {wider.high:.0f} there."
        for wider in answer.windows
    ]


def is_doubtful(score: float, mask: PackedMask) -> bool:
    """Whether an answer is one that the user should check."""
    return score < LEAST_IOU and any(mask.data)


def doubt_about_answer(name: str, score: float, plane: SlicePlane | None = None) -> str | None:
    """A warning about a mask that is not empty when little IoU is to be expected of it; else None.

    Args:
        name: of the segment.
        score: the expected IoU.
        plane: of the mask, which the warning then names.
    """
    if score >= LEAST_IOU:
        return None
    where = "" if plane is None else f" on {plane}"
    return (
        f"The model is unsure about {name}{where} (predicted IoU {score:.2f}): check the mask, and add a point or draw "
        "the box closer."
    )


def doubt_about_place(state: State, place: Place, answer: Answer) -> str | None:
    """A warning about the mask that a prompt on one slice has just made.

    Args:
        state: with the prompts.
        place: segment and key of the plane.
        answer: the model's.

    Returns:
        None without a doubt, for prompts over many slices, and for propagated masks: their callers judge these as a
        whole.
    """
    value, key = place
    there = [one for one in state.prompts if one.segment == value and any(plane.key == key for plane, _ in one.parts)]
    if not there or len(there[-1].parts) > 1 or not any(part.says_where for part in state.prompts_at(place)):
        return None
    plane = there[-1].parts[0][0]
    name = next(info.name for info in state.segments if info.value == value)
    if not answer.mask.unpack().any():
        return f"Nothing was found for {name} on {plane}: check prompts and window, or add a point."
    return doubt_about_answer(name, answer.score, plane)

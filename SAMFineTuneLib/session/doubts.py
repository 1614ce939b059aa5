"""Warnings about prompts and masks that are valid, but may not be intended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.images import IntensityWindow, SlicePlane, Volume, extract
from SAMFineTuneLib.images.intensity_window import modality_of
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_extraction import covered_voxels
from SAMFineTuneLib.images.slice_plane import format_ras
from SAMFineTuneLib.session.state import Place, PlacedPrompt, State

if TYPE_CHECKING:
    from SAMFineTuneLib.session.answers import Answer
    from SAMFineTuneLib.session.session import Session

LEAST_IOU = 0.4
"""An answer with a lower expected IoU is doubtful."""
_LEAST_STEPS = 64
"""Of 32-bit numbers between a volume's lowest and highest value: with fewer, structures may look alike."""
_AROUND = 1  # pixels on each side of a point that are checked
_MUCH = 0.05  # part of a segment: touching structures overlap by less


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
    """A warning when an adapter was trained on another modality than the volume's; none if either is unknown.

    `recipe` is that of the adapter's card.
    """
    learned, seen = str(recipe.get("modality") or ""), modality_of(volume)
    if not learned or not seen or learned == seen:
        return []
    return [f"The adapter learned from {learned}, and this volume is {seen}: its answers are likely to be wrong."]


def doubts_about_placing(volume: Volume, placed: PlacedPrompt) -> list[str]:
    """A warning about where a prompt was placed."""
    remark = placed.prompt.remark(volume, placed.view) if isinstance(placed.view, str) else None
    return [remark] if remark else []


def doubts_about_points(volume: Volume, window: IntensityWindow, state: State) -> list[str]:
    """Warnings about positive points outside the box of their segment, or in a part that is all black or white.

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
    """Sentences about the window in which the model saw a slice, if it is not the volume's.

    Args:
        name: of the segment.
        window: the volume's.
        answer: the model's.
    """
    return [
        f"The window {window.low:g} to {window.high:g} hides the prompted part of {name}, so the model sees "
        f"{wider.low:.0f} to {wider.high:.0f} there."
        for wider in answer.windows
    ]


def is_doubtful(score: float, mask: PackedMask) -> bool:
    """Whether an answer is one that the user should check."""
    return score < LEAST_IOU and any(mask.data)


def doubt_about_answer(name: str, score: float, plane: SlicePlane | None = None) -> str | None:
    """A warning about a mask that is not empty but has a low expected IoU; else None.

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


def doubts_about_masks(session: Session) -> list[str]:
    """Warnings about all prompts of a session and their masks, which are made if necessary."""
    state = session.state
    told = doubts_about_points(session.volume, session.window, state)
    names = {info.value: info.name for info in session.segments}
    scores: dict[int, float] = {}  # the lowest of each segment
    for (value, _), task in state.tasks.items():
        if task.prompts:
            answer = session.answer(value, task.plane)
            scores[value] = min(scores.get(value, 1.0), answer.score)
            told += doubts_about_window(names[value], session.window, answer)
    for value, name in names.items():
        if not any(session.mask(value, plane).any() for plane in session.planes(value)):
            told.append(f"Nothing was found for {name}: check prompts and window, or add a point.")
        elif value in scores and (doubt := doubt_about_answer(name, scores[value])):
            told.append(doubt)
    return told


def doubts_about_overlaps(session: Session, labelmap: np.ndarray) -> list[str]:
    """Warnings about segments that lost many of their voxels to earlier segments in a label map [k, j, i] of a session.
    """
    told, flat = [], labelmap.reshape(-1)
    for info in session.segments[1:]:
        places = [covered_voxels(session.mask(info.value, plane), plane, session.volume)
                  for plane in session.planes(info.value)]  # fmt: skip
        found = np.unique(np.ravel_multi_index(np.concatenate(places, axis=1), labelmap.shape)) if places else ()
        others = np.count_nonzero((flat[found] != 0) & (flat[found] != info.value)) if len(found) else 0
        if others > _MUCH * len(found):
            told.append(
                f"{info.name} lacks {others} of the {len(found)} voxels that were found for it: these belong to "
                "earlier segments; correct those, or give this one before them."
            )
    return told

"""Values of the library as plain JSON and back; what comes from the other end is checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane
from SAMFineTuneLib.prompts import Prompt, PromptSet, SegmentPrompts
from SAMFineTuneLib.prompts.prompts_file import prompts_from_dict, prompts_to_dict

_LARGEST_SIDE = 16384  # pixels of a plane
_LARGEST_PLANE = 1 << 26
_LONGEST_TEXT = 1000

MISUNDERSTOOD = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What a message raises that has not the form it should have."""


def prompt_to_json(prompt: Prompt) -> dict:
    """A prompt in the form of our prompts file."""
    return prompts_to_dict(PromptSet((SegmentPrompts("segment", 1, None, (prompt,)),)))["segments"][0]


def prompt_from_json(values: Any) -> Prompt:
    """UserError for anything that is not one prompt."""
    (segment,) = prompts_from_dict({"version": 1, "segments": [values]}).segments
    if len(segment.prompts) != 1:
        raise UserError("A prompt is a point, a box, a scribble or a mask, one at a time.")
    return segment.prompts[0]


def view_to_json(view: str | SlicePlane | None) -> Any:
    """An orientation, or a plane."""
    return view.to_dict() if isinstance(view, SlicePlane) else view


def view_from_json(values: Any) -> str | SlicePlane:
    """UserError for anything but an orientation or a plane of a sensible size."""
    if isinstance(values, str):
        if values not in ORIENTATIONS:
            raise UserError(f'"{values[:40]}" is no orientation: choose one of {", ".join(ORIENTATIONS)}.')
        return values
    return plane_from_json(values)


def plane_from_json(values: Any) -> SlicePlane:
    """UserError for anything but a plane of a sensible size."""
    plane = SlicePlane.from_dict(values)
    if max(plane.shape) > _LARGEST_SIDE or plane.shape[0] * plane.shape[1] > _LARGEST_PLANE:
        raise UserError(f"A plane of {plane.shape[0]} × {plane.shape[1]} pixels is too large; zoom in.")
    return plane


def window_to_json(window: IntensityWindow | None) -> dict | None:
    """Limits and name."""
    return None if window is None else {"low": window.low, "high": window.high, "name": window.name}


def window_from_json(values: Any) -> IntensityWindow | None:
    """UserError or one of MISUNDERSTOOD for anything else."""
    if values is None:
        return None
    return IntensityWindow(float(values["low"]), float(values["high"]), text_from_json(values.get("name", "")))


def text_from_json(value: Any) -> str:
    """A text of sensible length."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise UserError(f"A name is a text of at most {_LONGEST_TEXT} characters; choose a shorter one.")
    return value


def number_from_json(value: Any) -> int:
    """A whole number that fits 53 bits."""
    if type(value) is not int or abs(value) >= 1 << 53:
        raise TypeError("no whole number")
    return value


def pack(mask: np.ndarray) -> np.ndarray:
    """A mask (rows, columns) as uint8, one bit a pixel."""
    return np.packbits(np.asarray(mask, dtype=bool))


def unpack(bits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mask bool (rows, columns) of `pack`; ValueError when the sizes do not agree."""
    count = shape[0] * shape[1]
    if bits.dtype != np.uint8 or bits.size != -(-count // 8):
        raise ValueError("a mask of another size")
    return np.unpackbits(bits, count=count).reshape(shape).view(bool)

"""Prompts grouped by segment, and the planes on which they are placed."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.segment_info import check_name
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane, oblique_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts.prompt_kind import Prompt, Ras, checked_ras, require_kind

LARGEST_VALUE = 65535  # labelmaps are uint8 or uint16


@dataclass(frozen=True)
class SegmentPrompts:
    """All prompts of one structure. `value` is its number in the labelmap, `color` (r, g, b) from 0 to 1."""

    name: str
    value: int = 1
    color: tuple[float, float, float] | None = None  # None picks one by the value
    prompts: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        value = self.value
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= LARGEST_VALUE:
            raise UserError(f"The label value of segment {self.name} must be a whole number from 1 to {LARGEST_VALUE}.")
        color = segment_color(value) if self.color is None else tuple(float(part) for part in self.color)
        if len(color) != 3 or not all(0 <= part <= 1 for part in color):
            raise UserError(f"The color of segment {self.name} needs three numbers from 0 to 1.")
        object.__setattr__(self, "value", int(value))
        object.__setattr__(self, "color", color)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for prompt in self.prompts:
            require_kind(prompt)


@dataclass(frozen=True)
class ObliqueView:
    """An oblique plane by a point and two directions in RAS, not yet bound to a volume."""

    origin: Ras
    right: Ras
    down: Ras

    def __post_init__(self) -> None:
        for name in ("origin", "right", "down"):
            object.__setattr__(self, name, checked_ras(getattr(self, name), f"A plane's {name}"))


@dataclass(frozen=True)
class PromptSet:
    """Prompts by segment, and the planes on which they are placed: `view`, or else the slices of `orientation`."""

    segments: tuple[SegmentPrompts, ...]
    orientation: str = "axial"
    view: ObliqueView | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if self.orientation not in ORIENTATIONS:
            choices = ", ".join(ORIENTATIONS)
            raise UserError(f'"{self.orientation}" is not an orientation: choose one of {choices}.')
        for what in ("name", "value"):
            values = [getattr(segment, what) for segment in self.segments]
            for value in values:
                if values.count(value) > 1:
                    raise UserError(f"Two segments have the same {what}, {value}: give each its own.")


def prompt_planes(volume: Volume, prompts: PromptSet) -> tuple[SlicePlane, ...]:
    """The oblique plane of a prompt set, or none when it uses the volume's own slices."""
    view = prompts.view
    return () if view is None else (oblique_plane(volume, view.origin, view.right, view.down),)


def merge_prompts(sets: Sequence[PromptSet]) -> PromptSet:
    """Merge several files. Segments of the same name become one; label values that clash are renumbered.

    The first file's orientation counts, and the first oblique plane.
    """
    merged: dict[str, SegmentPrompts] = {}
    for segment in (segment for one in sets for segment in one.segments):
        known = merged.get(segment.name)
        if known is None:
            taken = {other.value for other in merged.values()}
            value = segment.value if segment.value not in taken else free_value(taken)
            merged[segment.name] = SegmentPrompts(segment.name, value, segment.color, segment.prompts)
        else:
            both = known.prompts + segment.prompts
            merged[segment.name] = SegmentPrompts(known.name, known.value, known.color, both)
    view = next((one.view for one in sets if one.view is not None), None)
    return PromptSet(tuple(merged.values()), sets[0].orientation, view)


def free_value(taken: Collection[int]) -> int:
    """The lowest label value that is not taken."""
    return next(value for value in itertools.count(1) if value not in taken)


def free_segment_name(name: str, taken: Collection[str], number: int | None = None) -> str:
    """The name, followed by a number from 2 on if it is taken; with `number`, always by one, from this one on."""
    if number is None and name not in taken:
        return name
    return next(free for count in itertools.count(number or 2) if (free := f"{name} {count}") not in taken)


def segment_color(value: int) -> tuple[float, float, float]:
    """A color for a label value; neighbouring values get hues far apart (golden ratio)."""
    return colorsys.hsv_to_rgb((0.02 + (value - 1) * 0.6180339887) % 1.0, 0.75, 0.95)

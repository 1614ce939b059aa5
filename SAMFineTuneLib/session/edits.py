"""Edits of a session's state: pure functions that return the state with one change.

Wrong input raises UserError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SegmentInfo, SlicePlane, Volume, aligned_plane
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.mask_shapes import moved_to
from SAMFineTuneLib.inference.object_linking import Object3D
from SAMFineTuneLib.prompts import Prompt, SegmentPrompts
from SAMFineTuneLib.prompts.plane_prompts import placed_view, planes_of
from SAMFineTuneLib.prompts.prompt_set import free_segment_name, free_value
from SAMFineTuneLib.session.intents import Color
from SAMFineTuneLib.session.state import PlacedPrompt, PropagatedMask, State


def find_segment(state: State, value: int) -> SegmentInfo:
    """The segment with a label value."""
    for item in state.segments:
        if item.value == value:
            return item
    raise UserError(f"There is no segment with value {value}; add it first.")


def find_prompt(state: State, number: int) -> PlacedPrompt:
    """The placed prompt with a number."""
    for item in state.prompts:
        if item.id == number:
            return item
    raise UserError("This prompt no longer exists; it was deleted or its addition undone.")


def add_segment(state: State, value: int | None, name: str, color: Color | None = None) -> State:
    """The state with a new last segment; UserError when it cannot be added.

    Args:
        state: before.
        value: its label value, by default the lowest free one.
        name: its name.
        color: by default that of its value.
    """
    return replace(state, segments=(*state.segments, _checked_segment(state.segments, name, value, color)))


def change_segment(state: State, value: int, name: str | None = None, color: Color | None = None) -> State:
    """The state with another name or colour of a segment; UserError when the name is taken.

    Args:
        state: before.
        value: the segment's label value.
        name: None keeps it.
        color: None keeps it.
    """
    old = find_segment(state, value)
    others = tuple(item for item in state.segments if item is not old)
    new = _checked_segment(
        others, old.name if name is None else name, value, old.color if color is None else color
    )
    return replace(state, segments=tuple(new if item is old else item for item in state.segments))


def remove_segment(state: State, value: int) -> State:
    """The state without a segment, its prompts and masks."""
    old = find_segment(state, value)
    left = state.without(lambda place: place[0] == value)
    return replace(left, segments=tuple(item for item in state.segments if item is not old))


def place_prompt(
    state: State, volume: Volume, number: int, segment: int, prompt: Prompt, view: str | SlicePlane
) -> PlacedPrompt:
    """Put a prompt on the slices that it concerns; the state does not change.

    Args:
        state: with the segment.
        volume: whose slices.
        number: the prompt's number.
        segment: its label value.
        prompt: what it is; a mask prompt lies on its own plane.
        view: orientation of the slices, or an oblique plane.

    Raises:
        UserError: when it cannot be placed there.
    """
    view = placed_view(prompt, view)
    alike = [one.id for one in state.prompts if one.segment == segment and one.prompt.noun == prompt.noun]
    nth = 1 + (alike.index(number) if number in alike else len(alike))
    parts = planes_of(volume, prompt, view, find_segment(state, segment).name, nth)
    return PlacedPrompt(number, segment, prompt, view, tuple(parts.items()))


def add_prompt(state: State, placed: PlacedPrompt) -> State:
    """The state with one more prompt, the last in order."""
    return replace(state, prompts=(*state.prompts, placed))


def carry_to_point(state: State, placed: PlacedPrompt) -> State:
    """The state with a mask, for a point to correct, on a slice that propagation has left empty.

    A lone point says where the structure is, but not how large; the nearest propagated mask does. Where that does not
    show the point, it is moved there.

    Args:
        state: before.
        placed: the prompt that is going to be added.

    Returns:
        The same state if the slice has a mask or prompts, the prompt is not a positive point, or nothing was propagated
        along these slices.
    """
    (plane, part), *others = placed.parts
    place = (placed.segment, plane.key)
    shape = next((one for one in (part.box, part.mask, part.region) if one is not None), None)
    lone_point = shape is None and len(part.points) == 1 and part.labels[0] == 1
    if others or not lone_point or plane.index is None or place in state.tasks:
        return state
    near = [
        item
        for (segment, _), item in state.propagated.items()
        if segment == placed.segment and item.sources and item.plane.orientation == plane.orientation
    ]
    if not near:
        return state
    nearest = min(near, key=lambda item: abs(item.plane.index - plane.index))
    mask = PackedMask.of(moved_to(nearest.mask.unpack(), part.points[0]))
    return replace(state, propagated={**state.propagated, place: replace(nearest, plane=plane, mask=mask)})


def move_prompt(state: State, placed: PlacedPrompt) -> State:
    """The state with a prompt in place of the one of the same number."""
    return replace(state, prompts=tuple(placed if item.id == placed.id else item for item in state.prompts))


def delete_prompt(state: State, number: int) -> State:
    """The state without a prompt."""
    return replace(state, prompts=tuple(item for item in state.prompts if item.id != number))


def adopt_objects(
    state: State,
    volume: Volume,
    objects: Sequence[Object3D],
    values: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> State:
    """The state with a new segment for each object that was found without prompts.

    Args:
        state: before.
        volume: whose slices.
        objects: the objects.
        values: label values, by default free ones.
        names: their names, followed by a number if another segment has the name; by default "Object" and a number.

    Raises:
        UserError: when a value is taken, or an object is a segment already.
    """
    _refuse_kept(state, volume, objects)
    values = [None] * len(objects) if values is None else values
    names = [""] * len(objects) if names is None else names
    for given, what in ((values, "label values"), (names, "names")):
        if len(given) != len(objects):
            raise UserError(f"{len(objects)} objects need as many {what}, not {len(given)}.")
    segments, propagated = state.segments, dict(state.propagated)
    for item, value, name in zip(objects, values, names, strict=True):
        taken, wished = {info.name for info in segments}, name.strip()
        free = free_segment_name(wished or "Object", taken, None if wished else item.value)
        info = _checked_segment(segments, free, value, None)
        segments = (*segments, info)
        for index, mask in item.masks.items():
            plane = aligned_plane(volume, item.orientation, index)
            propagated[(info.value, plane.key)] = PropagatedMask(plane, mask, item.score, ())
    return replace(state, segments=segments, propagated=propagated)


def _refuse_kept(state: State, volume: Volume, objects: Sequence[Object3D]) -> None:
    """Raise UserError when one of the objects is a segment already."""
    kept = []
    for item in objects:
        masks = {aligned_plane(volume, item.orientation, index).key: mask for index, mask in item.masks.items()}
        for info in state.segments:
            own = [state.propagated.get((info.value, key)) for key in masks]
            if masks and all(one and one.mask == mask for one, mask in zip(own, masks.values(), strict=True)):
                kept.append(info.name)
    if kept:
        are = "is a segment already" if len(kept) == 1 else "are segments already"
        raise UserError(f"What was found {are}: {', '.join(kept[:5])}; choose other objects to keep.")


def _checked_segment(
    others: tuple[SegmentInfo, ...], name: str, value: int | None, color: Color | None
) -> SegmentInfo:
    taken = {item.value for item in others}
    if value is None:
        value = free_value(taken)
    checked = SegmentPrompts(name, value, color)
    name = name.strip()
    if value in taken:
        raise UserError(f"The value {value} belongs to another segment; choose another one.")
    if name in {item.name for item in others}:
        raise UserError(f"There is a segment named {name} already; choose another name.")
    return SegmentInfo(name, value, checked.color)

"""Events as they come over the line, as those of `events`."""

from __future__ import annotations

from typing import Any

import numpy as np

from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.service import json_values as plain
from SAMFineTuneLib.session.events import Busy, MaskChanged, ObjectInfo, Objects, PromptInfo, StateChanged

_DOING = {"propagate": "Propagating", "everything": "Finding objects", "embed": "Preparing slices",
          "download": "Downloading"}  # fmt: skip


def mask_changed(values: dict[str, Any], arrays: dict[str, np.ndarray]) -> MaskChanged:
    """A mask, unpacked."""
    plane = SlicePlane.from_dict(values["plane"])
    packed = None
    if "mask" in arrays:
        packed = PackedMask.of(plain.unpack(arrays["mask"], plane.shape))
    points = np.array(arrays["points"], np.float32).reshape(-1, 2)
    return MaskChanged(values["segment"], plane, packed, values["score"], points, int(values.get("since", 0)))


class States:
    """Takes states apart; a prompt that is as it was before stays the same object, which saves the work."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[dict, PromptInfo]] = {}

    def changed(self, values: dict[str, Any]) -> StateChanged:
        """A whole state."""
        self._known = {one["number"]: (one, self._prompt(one)) for one in values["prompts"]}
        return StateChanged(
            tuple(SegmentInfo(name, value, tuple(color)) for value, name, color in values["segments"]),
            tuple(info for _, info in self._known.values()),
            values["undo"],
            values["redo"],
            plain.window_from_json(values["window"]),
            tuple((value, key) for value, key in values["outdated"]),
            bool(values["settled"]),
        )

    def _prompt(self, one: dict[str, Any]) -> PromptInfo:
        before, info = self._known.get(one["number"], (None, None))
        if before == one:
            return info
        prompt, view = plain.prompt_from_json(one["prompt"]), plain.view_from_json(one["view"])
        return PromptInfo(one["number"], one["segment"], prompt, view)


def asked_for(job: int, what: str) -> Busy:
    """A job that the worker has not yet said anything about."""
    return Busy(job, what, None, None, _DOING.get(what, what))


def busy(values: dict[str, Any]) -> Busy:
    """Progress, with a text for the busy line."""
    what, left = values["what"], values["seconds_left"]
    if "text" in values:
        return Busy(values["job"], what, values["fraction"], left, values["text"])
    done, total = values["done"], values["total"]
    text = f"{_DOING.get(what, what)}: {done} of {total} slices"
    return Busy(values["job"], what, done / total if total else 1.0, left, text)


def objects(values: dict[str, Any]) -> Objects:
    """What everything mode found."""
    return Objects(
        values["job"],
        tuple(
            ObjectInfo(one["number"], one["area"], one["score"], one["orientation"], tuple(one["slices"]))
            for one in values["objects"]
        ),
    )


def object_masks(
    value: list[dict], arrays: dict[str, np.ndarray], first: int, most: int
) -> list[tuple[int, SlicePlane, np.ndarray]]:
    """(object number, plane, mask) of so many slices from `first` on."""
    found = []
    for position, one in enumerate(value[first : first + most], first):
        plane = SlicePlane.from_dict(one["plane"])
        found.append((one["object"], plane, plain.unpack(arrays[str(position)], plane.shape)))
    return found

"""A session as JSON: its volume, window, model, segments and prompts, and results that take long to compute.

The file holds the volume's digest, the window, the model's name and digest, segments, prompts in their order, and
propagated masks (zlib over one bit a pixel, base64). Masks that follow from prompts are made again. It holds no path
and nothing that identifies a patient, unless a segment's name does. The history is not kept.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow, Volume
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane
from SAMFineTuneLib.images.volume import same_grid
from SAMFineTuneLib.prompts import PlanePrompts, PromptSet, SegmentPrompts, prompts_to_dict
from SAMFineTuneLib.session import edits
from SAMFineTuneLib.session.events import PromptInfo
from SAMFineTuneLib.session.state import PlacedPrompt, PropagatedMask, State, WholeAnswer

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.session.session import Session

FORMAT = "samfinetune-session"
VERSION = 1
_SAME_PLACE = 1e-3  # mm

MadeWith = tuple[str, str, str]
"""Id, digest and adapter of the model that made the masks."""


def session_to_dict(session: Session) -> dict[str, Any]:
    """Plain values for JSON; raises UserError without a volume."""
    if session.volume is None:
        raise UserError("There is nothing to save yet; open a volume first.")
    state, window, model = session.state, session.window, None
    if session.predictor is not None:
        engine = session.predictor.engine
        model = {"id": engine.spec.id, "digest": engine.digest, "adapter": session.adapter}
    return {
        "format": FORMAT,
        "version": VERSION,
        "volume": {
            "digest": session.volume.digest,
            "shape": list(session.volume.shape),
            "voxels": session.volume.voxels_digest,
            "affine": session.volume.affine.tolist(),
        },
        "window": {"low": window.low, "high": window.high, "name": window.name},
        "model": model,
        "segments": [{"name": s.name, "value": s.value, "color": list(s.color)} for s in state.segments],
        "prompts": [_prompt_to_dict(state, placed) for placed in state.prompts],
        "propagated": [_propagated_to_dict(state, segment, item) for (segment, _), item in state.propagated.items()],
        "since": [[*place, state.since[place]] for place in state.tasks if state.since.get(place)],
        "due": sorted(state.due),
        "whole": [
            _whole_to_dict(value, whole)
            for value, whole in state.whole.items()
            if whole.known == _known(state, session.volume, value, whole.seen[0], whole.known)
        ],
    }


def restore(session: Session, values: Any, step: str | None = None) -> None:
    """Continue from the document of `session_to_dict`, in the session's window.

    It is a step with the name `step`, which can be undone; with an empty name part of the step before; with None a new
    beginning: the user is then told if another model made the masks.

    Raises:
        UserError: when the document belongs to another volume or is damaged.
    """
    _, state, made_with = read_document(values, session.require_volume())
    if step is not None:
        session.put(step, state)
        return
    session.reset(state)
    if notice := _model_notice(made_with, session.predictor):
        session.notice(notice)


def read_document(values: Any, volume: Volume) -> tuple[IntensityWindow, State, MadeWith | None]:
    """Window, state and model of `session_to_dict`; UserError when the volume is another one or it is damaged."""
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError("This is not a session of SAMFineTune; use another copy of it.")
    if values.get("version") != VERSION:
        raise UserError(
            f"The session has version {values.get('version')}, but this program reads version {VERSION}: update it."
        )
    try:
        saved = values["volume"]
        if not _is_volume(saved, volume):
            raise UserError(
                f"The session belongs to another volume (of {_size(saved['shape'])} voxels) than this one (of "
                f"{_size(volume.shape)}); open the volume it was saved with."
            )
        window = IntensityWindow(**values["window"])
        state = _state_from_dict(values, volume)
        model = values["model"]
        made_with = None if model is None else (str(model["id"]), str(model["digest"]), str(model["adapter"]))
        return window, state, made_with
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"The stored session is damaged ({type(error).__name__}); use another copy of it.") from error


def _is_volume(saved: dict[str, Any], volume: Volume) -> bool:
    """Whether it is the volume of the document; its place may have been rounded by a file in between."""
    if saved["digest"] == volume.digest:
        return True
    same_voxels = saved.get("voxels") == volume.voxels_digest
    return same_voxels and same_grid(saved.get("affine", np.nan), volume.affine, volume.shape, _SAME_PLACE)


def _model_notice(made_with: MadeWith | None, predictor: Predictor | None) -> str:
    """A warning when another model made the session's masks; empty when not."""
    if predictor is None or made_with is None or made_with[1] == predictor.engine.digest:
        return ""
    notice = f"The session was made with model {made_with[0]}"
    notice += f" and adapter {made_with[2]}" if made_with[2] else ""
    return notice + f", and continues with {predictor.engine.spec.id}: masks may differ from those you saw."


def _prompt_to_dict(state: State, placed: PlacedPrompt) -> dict[str, Any]:
    info = edits.find_segment(state, placed.segment)
    alone = PromptSet((SegmentPrompts(info.name, info.value, info.color, (placed.prompt,)),))
    view = placed.view if isinstance(placed.view, str) else placed.view.to_dict()
    left = None
    if placed.trimmed:
        left = [plane.key for plane, _ in placed.parts]
    return {"number": placed.id, "view": view, "planes": left, "segment": prompts_to_dict(alone)["segments"][0]}


def _propagated_to_dict(state: State, segment: int, item: PropagatedMask) -> dict[str, Any]:
    return {
        "segment": segment,
        "plane": item.plane.to_dict(),
        "pixels": base64.b64encode(zlib.compress(item.mask.data)).decode("ascii"),
        "score": item.score,
        "sources": [key for key, _ in item.sources],
        "outdated": not state.agrees(segment, item.sources),
    }


def _whole_to_dict(segment: int, whole: WholeAnswer) -> dict[str, Any]:
    orientation, window, model = whole.seen
    seen = {"orientation": orientation, "window": dataclasses.asdict(window), "model": model}
    return {"segment": segment, "known": sorted(whole.known)} | seen


def _whole_from_dict(entry: dict[str, Any], state: State, volume: Volume) -> tuple[int, WholeAnswer]:
    segment, orientation = int(entry["segment"]), entry["orientation"]
    seen = (orientation, IntensityWindow(**entry["window"]), str(entry["model"]))
    return segment, WholeAnswer(seen, _known(state, volume, segment, orientation, entry["known"]))


def _known(
    state: State, volume: Volume, segment: int, orientation: str, indices: Iterable[int]
) -> dict[int, tuple[PlanePrompts, ...]]:
    """A segment's prompts on slices of an orientation, by index."""
    planes = [aligned_plane(volume, orientation, int(index)) for index in indices]
    return {plane.index: state.prompts_at((segment, plane.key)) for plane in planes}


def _state_from_dict(values: dict[str, Any], volume: Volume) -> State:
    state = State()
    for entry in values["segments"]:
        state = edits.add_segment(state, entry["value"], entry["name"], tuple(entry["color"]))
    for entry in values["prompts"]:
        info = PromptInfo.from_dict(entry)
        placed = edits.place_prompt(state, volume, info.number, info.segment, info.prompt, info.view)
        if entry["planes"] is not None:
            placed = placed.only_on(set(entry["planes"]))
        state = edits.add_prompt(state, placed)
    propagated = {}
    for entry in values["propagated"]:
        plane = SlicePlane.from_dict(entry["plane"])
        segment = edits.find_segment(state, entry["segment"]).value
        changed = (PlanePrompts(),)  # equal to no prompt there is
        sources = tuple(
            (str(key), changed if entry["outdated"] else state.prompts_at((segment, key))) for key in entry["sources"]
        )
        mask = PackedMask(_unpacked(entry["pixels"], plane.shape), plane.shape)
        propagated[(segment, plane.key)] = PropagatedMask(plane, mask, float(entry["score"]), sources)
    since = {(int(segment), str(key)): int(moment) for segment, key, moment in values.get("since", ())}
    due = frozenset(int(segment) for segment in values.get("due", ()))
    whole = dict(_whole_from_dict(entry, state, volume) for entry in values.get("whole", ()))
    return State(state.segments, state.prompts, propagated, since, due, whole)


def _unpacked(pixels: str, shape: tuple[int, int]) -> bytes:
    size = -(-shape[0] * shape[1] // 8)
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(pixels, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError("pixels") from error
    if len(data) != size:
        raise ValueError("pixels")
    return data


def _size(shape: Any) -> str:
    return " × ".join(str(int(length)) for length in shape)

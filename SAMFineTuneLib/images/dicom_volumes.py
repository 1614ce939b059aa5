"""Splits the images of one DICOM series into volumes (echoes, b-values, phases, parts) and leaves copies out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.dicom_geometry import place_name, places_of, split_at_wide_gaps
from SAMFineTuneLib.images.dicom_headers import Frame
from SAMFineTuneLib.images.dicom_pixels import pixel_digest
from SAMFineTuneLib.images.dicom_traits import KINDS, ORDERS, Kind, Trait


@dataclass(frozen=True, eq=False)
class SeriesVolume:
    """Frames of a series that form one volume, the words that distinguish it from the others, and notes for the user.
    """

    frames: tuple[Frame, ...]
    label: str = ""
    notes: tuple[str, ...] = ()

    def part(self, frames: Sequence[Frame], words: str) -> SeriesVolume:
        """Some of the frames as a volume, distinguished from the other parts by `words`."""
        return replace(self, frames=tuple(frames), label=f"{self.label}, {words}" if self.label else words)


def volumes_of(frames: Sequence[Frame]) -> list[SeriesVolume]:
    """Split frames that fit on top of each other into volumes; as a rule they are one.

    Several images at one position are split by the traits that explain the repeats; of copies with the same pixels one
    is kept. Images that no trait distinguishes stay together, and `stack_frames` refuses them.
    """
    found = [SeriesVolume(tuple(frames))]
    if not _repeats(places_of(frames)):
        return _pieces(found[0])
    for name, kind in KINDS.items():
        found = [part for volume in found for part in _split(volume, name, kind)]
    found = [_without_copies(volume) for volume in found]
    for name, kind in ORDERS.items():
        found = [part for volume in found for part in _split(volume, name, kind)]
    return [piece for volume in found for piece in _pieces(volume)]


def _repeats(places: np.ndarray) -> int:
    return len(places) - len(np.unique(places))


def _split(volume: SeriesVolume, name: str, kind: Kind) -> list[SeriesVolume]:
    """Split a volume by one trait when that leaves fewer repeated positions; else return it unchanged."""
    places = places_of(volume.frames)
    if not _repeats(places):
        return [volume]
    values = [frame.traits.get(name) for frame in volume.frames]
    known = sorted({value for value in values if value is not None}, key=_order)
    most = int(np.bincount(places).max())
    if 1 < len(known) + (None in values) <= most:
        numbered = [0 if value is None else known.index(value) + 1 for value in values]
        typical = dict(enumerate(known, start=1))
    elif kind.ranked and (ranks := _ranks(places, values, kind.running)) is not None:
        numbered = ranks
        typical = {n: float(np.median([v for v, r in zip(values, ranks, strict=True) if r == n])) for n in set(ranks)}
    else:
        return [volume]
    labels = {n: kind.label.format(n=n, value=value) for n, value in typical.items()}
    parts = []
    for n in sorted(set(numbered)):
        chosen = [frame for frame, own in zip(volume.frames, numbered, strict=True) if own == n]
        parts.append(volume.part(chosen, labels.get(n, f"no {name}")))
    left = sum(_repeats(places_of(part.frames)) for part in parts)
    return parts if left < _repeats(places) else [volume]


def _ranks(places: np.ndarray, values: Sequence[Trait | None], running: bool) -> list[int] | None:
    """Rank values at each place: 1 for the lowest, 2 for the next…; None unless all places have the same number.

    For `running` values also None unless the volumes, or the places, follow each other without overlap.
    """
    counts = np.bincount(places)
    if counts.min() != counts.max() or any(isinstance(value, (str, tuple, type(None))) for value in values):
        return None
    order = np.lexsort((values, places))  # by place, then by value
    table = np.asarray(values, float)[order].reshape(len(counts), -1)  # [place, rank]
    if (np.diff(table, axis=1) <= 0).any():
        return None
    if running and not (_one_after_another(table) or _one_after_another(table.T)):
        return None
    ranks = np.empty(len(values), int)
    ranks[order] = np.tile(np.arange(1, table.shape[1] + 1), len(counts))
    return ranks.tolist()


def _one_after_another(table: np.ndarray) -> bool:
    """Whether the columns' ranges of values do not overlap."""
    low, high = table.min(axis=0), table.max(axis=0)
    order = np.argsort(low)
    return bool((low[order][1:] > high[order][:-1]).all())


def _order(value: Trait) -> tuple:
    """Sort key: numbers before words before directions, because a damaged header may mix them."""
    return (0, value) if isinstance(value, (int, float)) else (1, value) if isinstance(value, str) else (2, value)


def _without_copies(volume: SeriesVolume) -> SeriesVolume:
    """Keep one of the frames with equal pixels at one position, and drop damaged ones that have a sound copy."""
    places = places_of(volume.frames)
    repeated = np.bincount(places)[places] > 1
    kept: list[Frame] = []
    first: dict[tuple[int, bytes], Frame] = {}
    copies: list[tuple[Frame, Frame]] = []
    damaged: list[tuple[int, Frame, UserError]] = []
    for frame, place, again in zip(volume.frames, places.tolist(), repeated.tolist(), strict=True):
        try:
            shown = (place, pixel_digest(frame) if again else b"")
        except UserError as error:
            damaged.append((place, frame, error))
            continue
        if shown in first:
            copies.append((frame, first[shown]))
        else:
            first[shown] = frame
            kept.append(frame)
    notes = [_copies_note(copies)] if copies else []
    sound = {place for place, _ in first}
    for place, frame, error in damaged:
        if place in sound:
            notes.append(left_out(frame, error))
        else:  # reading it will raise the error
            sound.add(place)
            kept.append(frame)
    return replace(volume, frames=tuple(kept), notes=(*volume.notes, *notes))


def left_out(frame: Frame, error: UserError) -> str:
    """A sentence about a frame whose pixels cannot be decoded."""
    where = "" if frame.position is None else f" at {place_name(frame)}"
    return f"The slice of “{frame.file.name}”{where} was left out: {error}"


def _copies_note(copies: Sequence[tuple[Frame, Frame]]) -> str:
    copy, original = copies[0]
    where = "" if copy.position is None else f" at {place_name(copy)}"
    names = f"“{copy.file.name}” shows the same slice{where} as “{original.file.name}”"
    if len(copies) == 1:
        return f"{names} and was left out."
    return f"{len(copies)} images show the same slice as another one and were left out (for example {names})."


def _pieces(volume: SeriesVolume) -> list[SeriesVolume]:
    """The volume, split where a gap is too wide to interpolate."""
    pieces = split_at_wide_gaps(volume.frames)
    if len(pieces) == 1:
        return [volume]
    ends = [" to ".join(dict.fromkeys(map(place_name, (piece[0], piece[-1])))) for piece in pieces]
    return [volume.part(piece, f"part at {end}") for piece, end in zip(pieces, ends, strict=True)]

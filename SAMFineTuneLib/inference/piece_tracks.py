"""Follows the separate pieces of a structure from one known slice to the next: two kidneys, several cartilages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import pieces

SMALLEST_PIECE = 0.1
"""Pieces of a mask below this fraction of its largest piece are not followed."""


def followed_pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of a mask, largest first, without specks."""
    found = pieces(mask)
    sizes = [np.count_nonzero(piece) for piece in found]
    return [piece for piece, size in zip(found, sizes, strict=True) if size >= SMALLEST_PIECE * sizes[0]]


def piece_tracks(known: Mapping[int, np.ndarray]) -> list[dict[int, np.ndarray]]:
    """Divide known masks into parts, each of which is one structure through the slices.

    A piece continues on the next known slice as the piece that it overlaps most. Pieces that overlap none there are
    paired with those nearest to them. Pieces that merge into one, or split from one, are one part.

    Args:
        known: masks (H, W), not empty, by slice index.

    Returns:
        The masks of each part by slice index; a part may be absent from some slices.
    """
    order = sorted(known)
    found = {index: followed_pieces(known[index]) for index in order}
    part = {(index, number): (index, number) for index in order for number in range(len(found[index]))}

    def first(piece: tuple[int, int]) -> tuple[int, int]:
        while part[piece] != piece:
            piece = part[piece]
        return piece

    def join(one: tuple[int, int], other: tuple[int, int]) -> None:
        part[first(one)] = first(other)

    for here, there in zip(order, order[1:], strict=False):
        shared = np.array(
            [[np.count_nonzero(one & other) for other in found[there]] for one in found[here]], dtype=float
        )
        for one in np.flatnonzero(shared.any(axis=1)):
            join((here, int(one)), (there, int(shared[one].argmax())))
        for other in np.flatnonzero(shared.any(axis=0)):
            join((here, int(shared[:, other].argmax())), (there, int(other)))
        alone = [np.flatnonzero(~shared.any(axis=axis)).tolist() for axis in (1, 0)]
        while all(alone):
            one, other = min(
                ((one, other) for one in alone[0] for other in alone[1]),
                key=lambda pair: _distance(found[here][pair[0]], found[there][pair[1]]),
            )
            join((here, one), (there, other))
            alone[0].remove(one)
            alone[1].remove(other)
    tracks: dict[tuple[int, int], dict[int, np.ndarray]] = {}
    for index, number in part:
        own = tracks.setdefault(first((index, number)), {})
        own[index] = own[index] | found[index][number] if index in own else found[index][number]
    return list(tracks.values())


def shared_out(
    masks: Mapping[int, np.ndarray], parts: Sequence[Mapping[int, np.ndarray]]
) -> list[dict[int, np.ndarray]]:
    """Divide the masks of further slices among the parts that `piece_tracks` made.

    Slices near those of the parts come first. A piece goes to the part that it overlaps most on that part's nearest
    slice so far; where it overlaps none, to the nearest part.

    Args:
        masks: (H, W), not empty, by slice index.
        parts: the masks of each part by slice index.

    Returns:
        The masks of each part by slice index; a part may be absent from some slices.
    """
    latest = [dict(part) for part in parts]
    found: list[dict[int, np.ndarray]] = [{} for _ in parts]
    known = {index for part in parts for index in part}
    for index in sorted(masks, key=lambda index: min(abs(index - one) for one in known)):
        near = [own[min(own, key=lambda one: abs(one - index))] for own in latest]
        for piece in pieces(masks[index]):
            merits = [(np.count_nonzero(piece & mask), -_distance(piece, mask)) for mask in near]
            own = found[merits.index(max(merits))]
            own[index] = own[index] | piece if index in own else piece
        for own, so_far in zip(found, latest, strict=True):
            if index in own:
                so_far[index] = own[index]
    return found


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Pixels between the centres of two pieces."""
    return float(np.linalg.norm(np.argwhere(one).mean(axis=0) - np.argwhere(other).mean(axis=0)))

"""Follows the separate pieces of a structure from one known slice to the next: two kidneys, several cartilages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import pieces

SMALLEST_PIECE = 0.1
"""Pieces of a mask below this fraction of its largest piece are not followed."""


def large_pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of a mask, largest first, without specks."""
    found = pieces(mask)
    sizes = [np.count_nonzero(piece) for piece in found]
    return [piece for piece, size in zip(found, sizes, strict=True) if size >= SMALLEST_PIECE * sizes[0]]


def piece_tracks(known: Mapping[int, np.ndarray]) -> list[dict[int, np.ndarray]]:
    """Divide known masks into parts that belong together through the slices.

    On the next known slice, a piece goes on as the piece that it overlaps most, or else as the nearest one. Pieces that
    meet on one slice, or come from one piece, are one part.

    Args:
        known: masks (H, W), not empty, by slice.

    Returns:
        Masks by slice, of each part; a part may lack slices.
    """
    order = sorted(known)
    found = {index: large_pieces(known[index]) for index in order}
    part = {(index, number): (index, number) for index in order for number in range(len(found[index]))}

    def first(piece: tuple[int, int]) -> tuple[int, int]:
        while part[piece] != piece:
            piece = part[piece]
        return piece

    for here, there in zip(order, order[1:], strict=False):
        fewer, more = (here, there) if len(found[here]) <= len(found[there]) else (there, here)
        for number, piece in enumerate(found[more]):
            goes_on = min(range(len(found[fewer])), key=lambda other: _apart(piece, found[fewer][other]))
            part[first((more, number))] = first((fewer, goes_on))
    tracks: dict[tuple[int, int], dict[int, np.ndarray]] = {}
    for index, number in part:
        own = tracks.setdefault(first((index, number)), {})
        own[index] = own[index] | found[index][number] if index in own else found[index][number]
    return list(tracks.values())


def _apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Less for pieces that overlap more, and then for those whose centres are nearer."""
    centers = [np.argwhere(piece).mean(axis=0) for piece in (one, other)]
    return -float(np.count_nonzero(one & other)), float(np.linalg.norm(centers[0] - centers[1]))

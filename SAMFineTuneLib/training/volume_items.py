"""Training items of the volume memory: a synthetic volume, a structure in it, and the slices that are known of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.inference.slice_registration import carried_masks, joined
from SAMFineTuneLib.models.volume_block import CELLS, channels, grey_evidence, sampling, stretch
from SAMFineTuneLib.training.synthetic_canvas import smooth_noise
from SAMFineTuneLib.training.synthetic_volumes import SyntheticVolume

MOST_SLICES = 28
CARRIED = 0.6
"""Part of the structures whose known masks are carried along with the picture as an earlier answer."""


@dataclass(frozen=True)
class VolumeItem:
    """`block` (6, D, 64, 64); `target` (D, 64, 64) shares 0 to 1; `present` (D,) bool; `known` (D,) bool."""

    block: np.ndarray
    target: np.ndarray
    present: np.ndarray
    known: np.ndarray


def draw_items(rng: np.random.Generator, volume: SyntheticVolume, count: int) -> list[VolumeItem]:
    """Up to `count` structures of a volume, each with prompts of its own."""
    found = []
    # One length for all, so that they make one batch.
    length = min(len(volume.image), MOST_SLICES if rng.random() < 0.75 else int(rng.integers(8, MOST_SLICES + 1)))
    for number in rng.permutation(len(volume.objects)):
        if len(found) == count:
            break
        mask = _one_piece(rng, volume.mask(number))
        if mask is not None:
            item = _item(rng, volume, mask, length)
            if item is not None:
                found.append(item)
    return found


def _one_piece(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray | None:
    if mask.sum() < 40 or mask.mean() > 0.35:
        return None
    pieces, number = ndimage.label(mask)
    if number > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        mask = pieces == 1 + int(np.argmax(np.log(sizes) + rng.gumbel(size=number)))
    if mask.sum() < 40 or mask.any((1, 2)).sum() < 3:
        return None
    return mask


def _item(rng: np.random.Generator, volume: SyntheticVolume, mask: np.ndarray, length: int) -> VolumeItem | None:
    areas = mask.sum((1, 2))
    there = np.flatnonzero(areas >= max(4, 0.02 * areas.max()))
    chosen = _prompted(rng, there)
    drawn = {k: _as_answered(rng, volume, mask, k) for k in chosen}
    drawn = {k: own for k, own in drawn.items() if own.any()}
    if not drawn:
        return None
    around = np.any(list(drawn.values()), axis=0)
    rows, columns = np.flatnonzero(around.any(1)), np.flatnonzero(around.any(0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(longer * rng.uniform(1.5, 2.8), 14)
    if side > 110:
        return None
    center = [(line[0] + line[-1] + 1) / 2 + 0.08 * side * rng.uniform(-1, 1) for line in (rows, columns)]
    size = mask.shape[1]
    starts = [
        float(np.clip(c - side / 2, 0, size - side)) if side < size else (size - side) / 2 for c in center
    ]
    down, across = (sampling(size, start, side) for start in starts)
    image = stretch(down @ volume.image @ across.T)
    target = down @ mask.astype(np.float32) @ across.T
    seen = np.stack([down @ own.astype(np.float32) @ across.T for own in drawn.values()])
    evidence = grey_evidence(image, image[list(drawn)], seen)
    masks, known = np.zeros_like(image), np.zeros(len(image), bool)
    for k, own in zip(drawn, seen, strict=True):
        masks[k], known[k] = own, True
    empty = np.flatnonzero(~mask.any((1, 2)))
    if len(empty) and rng.random() < 0.12:  # the user says that it has ended
        known[rng.choice(empty, min(len(empty), int(rng.integers(1, 3))), replace=False)] = True
    earlier = np.full_like(image, 0.5)
    part = _window(rng, len(image), length, there, np.flatnonzero(known))
    if rng.random() < CARRIED and known[part].any():
        _carry(rng, volume, drawn, earlier, part, known, (down, across))
    elif rng.random() < 0.4 or not known[part].any():
        _fill_earlier(rng, volume, mask, earlier, there, part, (down, across), not known[part].any())
    ratio = volume.step / (side / CELLS)
    image, evidence, masks, earlier, target = (one[part] for one in (image, evidence, masks, earlier, target))
    known = known[part]
    if not known.any() and not (earlier != 0.5).any():
        return None
    block = channels(image, evidence, known, masks, earlier, ratio)
    block, target = _turned(rng, block, target.astype(np.float32))
    return VolumeItem(block, target, target.max((1, 2)) > 0.4, block[3, :, 0, 0] > 0)


def _prompted(rng: np.random.Generator, there: np.ndarray) -> list[int]:
    """Which slices are known: the middle, both ends and the middle, quarters too, or any."""
    kind, last = rng.random(), len(there) - 1
    if kind < 0.5:
        at = [last * np.clip(0.5 + 0.13 * rng.standard_normal(), 0, 1)]
    elif kind < 0.64:
        at = [0, last / 2, last]
    elif kind < 0.77:
        at = [0, last / 4, last / 2, 3 * last / 4, last]
    else:
        at = rng.uniform(0, last, int(rng.integers(1, 5)))
    return sorted({int(there[int(round(one))]) for one in at})


def _as_answered(rng: np.random.Generator, volume: SyntheticVolume, mask: np.ndarray, k: int) -> np.ndarray:
    """A slice's mask with the faults that a model's answer has: a border that wanders, parts of a neighbour."""
    own = mask[k]
    if rng.random() < 0.15:
        return own
    area = own.sum()
    width = np.sqrt(area)
    depth = ndimage.distance_transform_edt(own) - ndimage.distance_transform_edt(~own)
    amount = width * 0.06 * rng.uniform(0, 1) + 0.3
    wander = smooth_noise(rng, rng.uniform(3, 12), (1, *own.shape))[0]
    answer = depth + amount * wander + 0.4 * amount * rng.standard_normal() > 0
    if rng.random() < 0.15:
        neighbour = volume.tissue[k] == rng.choice(volume.tissue[k][ndimage.binary_dilation(own, iterations=2)])
        near = -depth < 0.25 * width * rng.uniform(0, 1)
        answer = answer | (neighbour & near)
    return answer if answer.any() else own


def _window(rng: np.random.Generator, count: int, length: int, there: np.ndarray, known: np.ndarray) -> slice:
    """The slices of the block: all, where they are not too many, else those around something of the structure."""
    about = int(rng.choice(known if len(known) and rng.random() < 0.75 else there))
    first = int(np.clip(about - rng.integers(length // 4, 3 * length // 4 + 1), 0, count - length))
    return slice(first, first + length)


def _fill_earlier(rng, volume, mask, earlier, there, part, weights, needed) -> None:
    """An earlier answer for some neighbouring slices, with the faults of one."""
    inside = np.arange(part.start, part.stop)
    inside = inside[(inside >= there[0] - 1) & (inside <= there[-1] + 1)]
    if not len(inside):
        return
    length = int(rng.integers(1, max(2, (2 * len(inside)) // 3 + 1)))
    if rng.random() < 0.5 or needed:  # the front of a propagation enters from one side
        chosen = inside[:length] if rng.random() < 0.5 else inside[-length:]
    else:
        first = int(rng.integers(0, len(inside) - length + 1))
        chosen = inside[first : first + length]
    down, across = weights
    for k in chosen:
        own = _as_answered(rng, volume, mask, k) if mask[k].any() else mask[k]
        soft = ndimage.gaussian_filter(down @ own.astype(np.float32) @ across.T, rng.uniform(0.5, 1.5))
        earlier[k] = np.clip(soft, 0.02, 0.98)


def _carry(rng, volume, drawn, earlier, part, known, weights) -> None:
    """The known masks, carried along with the picture, as the earlier answer that propagation begins with."""
    missing = [k for k in range(part.start, part.stop) if not known[k]]
    shares = {k: own for k, own in drawn.items() if part.start <= k < part.stop}
    farthest = math.exp(rng.uniform(-1.2, 0.5))
    carried = carried_masks(shares, missing, volume.image.__getitem__, len(volume.image), volume.step, farthest)
    down, across = weights
    for k, share in joined(carried).items():
        earlier[k] = down @ share @ across.T


def _turned(rng: np.random.Generator, block: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored, turned by quarters, and from the last slice to the first."""
    turn = int(rng.integers(4))
    block, target = np.rot90(block, turn, (-2, -1)), np.rot90(target, turn, (-2, -1))
    if rng.random() < 0.5:
        block, target = block[..., ::-1], target[..., ::-1]
    if rng.random() < 0.5:
        block, target = block[:, ::-1], target[::-1]
    return np.ascontiguousarray(block), np.ascontiguousarray(target)

"""Training items of the volume memory: a synthetic volume, a structure in it, and the slices that are known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.inference.block_path import BlockPath, path_through
from SAMFineTuneLib.inference.slice_registration import carried_masks, joined
from SAMFineTuneLib.models.volume_block import channels, grey_evidence, stretch
from SAMFineTuneLib.training.synthetic_canvas import smooth_noise
from SAMFineTuneLib.training.synthetic_volumes import SyntheticVolume

MOST_SLICES = 28
CARRIED = 0.85
"""Part of the structures that are shown as propagation shows them: with masks carried along with the picture as the
earlier answer."""
LARGEST_SIDE = 110.0
"""Canvas voxels: larger structures fill the whole picture, and are left out."""


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
    count, areas = len(volume.image), mask.sum((1, 2))
    there = np.flatnonzero(areas >= max(4, 0.02 * areas.max()))
    drawn = {k: _as_answered(rng, volume, mask, k) for k in _prompted(rng, there)}
    drawn = {k: own for k, own in drawn.items() if own.any()}
    if not drawn:
        return None
    known = dict(drawn)
    empty = np.flatnonzero(~mask.any((1, 2)))
    if len(empty) and rng.random() < 0.12:  # the user says that it has ended
        ends = rng.choice(empty, min(len(empty), int(rng.integers(1, 3))), replace=False)
        known |= {int(k): mask[k] for k in ends}
    part = _window(rng, count, length, there, list(known))
    inside = {k: own for k, own in known.items() if k in part}
    if rng.random() < CARRIED:
        earlier = _as_propagated(rng, volume, mask, inside, part, there)
    elif rng.random() < 0.4 or not inside:
        earlier = _some_answers(rng, volume, mask, part, there, not inside)
    else:
        earlier = {}
    meant = {k: own > 0.5 for k, own in (earlier | inside).items() if (own > 0.5).any()}
    if not meant:
        return None
    path = _around(rng, meant, count)
    if path.side > LARGEST_SIDE:
        return None
    beyond = [k for k in drawn if k not in part]
    cells = stretch(np.stack([path.cut(volume.image[k], k) for k in (*part, *beyond)]))
    image, elsewhere = cells[: len(part)], cells[len(part) :]
    masks, before, is_known = np.zeros_like(image), np.full_like(image, 0.5), np.array([k in inside for k in part])
    for number, k in enumerate(part):
        if k in inside:
            masks[number] = path.cut(inside[k], k)
        elif k in earlier:
            before[number] = path.cut(earlier[k], k)
    told = np.stack([*masks[is_known], *(path.cut(drawn[k], k) for k in beyond)])
    evidence = grey_evidence(image, np.concatenate([image[is_known], elsewhere]), told)
    target = np.stack([path.cut(mask[k], k) for k in part])
    block = channels(image, evidence, is_known, masks, before, volume.step / path.cell)
    block, target = _turned(rng, block, target)
    return VolumeItem(block, target, target.max((1, 2)) > 0.4, block[3, :, 0, 0] > 0)


def _around(rng: np.random.Generator, masks: Mapping[int, np.ndarray], count: int) -> BlockPath:
    """The block that follows masks (H, W) of some of `count` slices, as propagation cuts it, a little off."""
    path = path_through(masks, count)
    side = path.side * math.exp(rng.uniform(-0.25, 0.3))
    return BlockPath(path.centers + 0.04 * side * rng.standard_normal(2), side)


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


def _window(rng: np.random.Generator, count: int, length: int, there: np.ndarray, known: list[int]) -> range:
    """The slices of the block: all, where they are not too many, else those around something of the structure."""
    about = int(rng.choice(known if rng.random() < 0.75 else there))
    first = int(np.clip(about - rng.integers(length // 4, 3 * length // 4 + 1), 0, count - length))
    return range(first, first + length)


def _as_propagated(rng, volume, mask, known, part, there) -> dict[int, np.ndarray]:
    """What propagation begins a block with: the answers of the block before, at one end of this one, if there is one,
    and these and the known masks carried along with the picture."""
    before = {}
    if not known or rng.random() < 0.25:
        slices = part[: int(rng.integers(3, 11))] if rng.random() < 0.5 else part[-int(rng.integers(3, 11)) :]
        before = _answers(rng, volume, mask, [k for k in slices if k not in known and there[0] <= k <= there[-1]])
    shares = {k: own for k, own in (known | before).items() if (own > 0.5).any()}
    missing = {k for k in part if k not in known and k not in before}
    farthest = math.exp(rng.uniform(-0.7, 0.3))
    picture = volume.image.__getitem__
    return joined(carried_masks(shares, missing, picture, len(volume.image), volume.step, farthest)) | before


def _some_answers(rng, volume, mask, part, there, needed) -> dict[int, np.ndarray]:
    """An earlier answer for some neighbouring slices."""
    inside = [k for k in part if there[0] - 1 <= k <= there[-1] + 1]
    if not inside:
        return {}
    length = int(rng.integers(1, max(2, (2 * len(inside)) // 3 + 1)))
    if rng.random() < 0.5 or needed:  # the front of a propagation enters from one side
        chosen = inside[:length] if rng.random() < 0.5 else inside[-length:]
    else:
        first = int(rng.integers(0, len(inside) - length + 1))
        chosen = inside[first : first + length]
    return _answers(rng, volume, mask, chosen)


def _answers(rng, volume, mask, indices) -> dict[int, np.ndarray]:
    """The structure's share of each pixel (H, W) of some slices, with the faults of an answer."""
    answers = {}
    for k in indices:
        own = _as_answered(rng, volume, mask, k) if mask[k].any() else mask[k]
        answers[k] = np.clip(ndimage.gaussian_filter(own.astype(np.float32), rng.uniform(0.3, 1.2)), 0.02, 0.98)
    return answers


def _turned(rng: np.random.Generator, block: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored, turned by quarters, and from the last slice to the first."""
    turn = int(rng.integers(4))
    block, target = np.rot90(block, turn, (-2, -1)), np.rot90(target, turn, (-2, -1))
    if rng.random() < 0.5:
        block, target = block[..., ::-1], target[..., ::-1]
    if rng.random() < 0.5:
        block, target = block[:, ::-1], target[::-1]
    return np.ascontiguousarray(block), np.ascontiguousarray(target)

"""Endless labelled pictures that look like medical slices without being any.

In the spirit of SynthSeg and SynthMorph (Billot 2023, Hoffmann 2022): random shapes (`synthetic_shapes`), random scenes
and contrasts (`synthetic_scenes`), random scanners (`synthetic_scanner`). Everything is drawn on a 128 x 128 grid from
one seed, in about 15 milliseconds. Arrays are [row, column].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.training.synthetic_scanner import SIZE, Rng, cut_to_shape, display, look_closer, scan
from SAMFineTuneLib.training.synthetic_scenes import SCENE_ODDS, SCENES, Canvas

GENERATOR_VERSION = 2
MIN_AREA = 24


@dataclass(frozen=True)
class SyntheticPicture:
    """One picture: `image` uint8 (128, 128), `masks` boolean (M, 128, 128), `shape` (rows, columns) that hold picture.

    Beyond `shape` lies padding (the scanner's `PADDING_VALUE`). Masks may be nested: a ring, its hole, both together.
    """

    image: np.ndarray
    masks: np.ndarray
    shape: tuple[int, int]


def _usable(masks: list[np.ndarray], limit: int, rng: Rng) -> np.ndarray:
    """At most `limit` objects in one piece, neither tiny nor the whole picture; large ones are likelier."""
    chosen = []
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    for index in np.argsort(-0.5 * np.log(areas + 1.0) - rng.gumbel(size=len(areas))):
        mask, area = masks[index], int(areas[index])
        if area < MIN_AREA or area > 0.7 * SIZE * SIZE:
            continue
        parts, found = ndimage.label(mask)
        if found > 1:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            if sizes.max() < 0.9 * area:
                mask = parts == sizes.argmax()
                if sizes.max() < MIN_AREA:
                    continue
        chosen.append(mask)
        if len(chosen) == limit:
            break
    return np.stack(chosen) if chosen else np.zeros((0, SIZE, SIZE), bool)


def _attempt(rng: Rng, limit: int) -> SyntheticPicture:
    """One picture, possibly without a usable object."""
    zoomed, closer = rng.random(2) < (0.35, 0.6)
    canvas = Canvas(rng)
    SCENES[rng.choice(len(SCENES), p=SCENE_ODDS)](canvas, zoomed)
    masks = _usable(canvas.objects, 2 * limit, rng)
    picture = scan(rng, canvas.image, 4.0 if zoomed else 1.6)
    if closer and not zoomed and len(masks):
        picture, masks = look_closer(rng, picture, masks)
    image, masks, shape = cut_to_shape(rng, display(rng, picture), masks)
    return SyntheticPicture(image, _usable(list(masks), limit, rng), shape)


def synthetic_picture(seed: int | tuple[int, ...], limit: int = 8) -> SyntheticPicture:
    """The picture of `seed` with one to `limit` objects; the same seed gives the same picture."""
    rng = np.random.default_rng(seed)
    while not len((picture := _attempt(rng, limit)).masks):
        pass
    return picture

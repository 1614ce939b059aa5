"""Labelled synthetic volumes that resemble medical ones, from which the volume memory learns.

In the spirit of SynthSeg and SynthMorph (Billot 2023, Hoffmann 2022), as `synthetic_pictures`, in three dimensions:
organs, hollow walls, parts of walls, branching vessels, mosaics, bodies; structures that end, that touch others of the
same grey, and that others continue behind a gap. Slices are 0.6 to 8 canvas voxels apart and as thick, so that a
structure's border is seen through several of them or jumps from one to the next. Everything follows from one seed.

Arrays are [slice, row, column]. A canvas is isotropic; positions are voxels of the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.training.synthetic_canvas import CANVAS, SyntheticCanvas, smooth_noise

GENERATOR_VERSION = 2


@dataclass(frozen=True)
class SyntheticVolume:
    """A scanned scene: `image` (D, 96, 96) float32 whole numbers 0 to 255, `tissue` (D, 96, 96) uint8, `objects`
    (k, tissues) bool: the tissues of each object that may be asked for, `step` canvas voxels from slice to slice."""

    image: np.ndarray
    tissue: np.ndarray
    objects: np.ndarray
    step: float

    def mask(self, number: int) -> np.ndarray:
        """Object `number`, bool (D, 96, 96)."""
        return self.objects[number][self.tissue]


def synthetic_volume(seed: Sequence[int]) -> SyntheticVolume:
    """Draw a scene and scan it."""
    rng = np.random.default_rng(seed)
    scene = SyntheticCanvas(rng)
    rng.choice((_organs, _organs, _body, _vessels, _mosaic, _walls, _columns))(scene)
    step = float(np.exp(rng.uniform(math.log(0.9), math.log(7))))
    image, tissue = _scan(rng, scene.render(), scene.tissue, step)
    return SyntheticVolume(image, tissue, np.stack(scene.objects)[:, : scene.used], step)


# ---------------------------------------------------------------- scenes


def _anywhere(rng: np.random.Generator, share: float = 1.0) -> np.ndarray:
    """A position, in the middle `share` of the canvas."""
    return np.array([size * (0.5 + share * rng.uniform(-0.5, 0.5)) for size in CANVAS])


def _radii(rng: np.random.Generator, low: float = 3.0, high: float = 24.0) -> np.ndarray:
    radius = math.exp(rng.uniform(math.log(low), math.log(high)))
    return (radius * np.exp(rng.uniform(-0.6, 0.5, 3))).astype(np.float32)


def _organ(scene: SyntheticCanvas, center: np.ndarray, radii: np.ndarray, tone: float | None = None) -> None:
    """A blob, at times in a capsule, with structure inside, divided, or with one like it behind its end."""
    rng = scene.rng
    if scene.full:
        return
    level, where = scene.blob(center, radii)
    if rng.random() < 0.25:
        scene.paint(level < 1 + rng.uniform(0.05, 0.3), scene.tone(scene.tone_at(center)), where, register=False)
    tone = scene.tone(scene.tone_at(center)) if tone is None else tone
    number = scene.paint(level < 1, tone, where)
    kind = rng.random()
    if kind < 0.18:
        _divide(scene, number, where)
    elif kind < 0.34:
        _hollow(scene, number, level, where)
    elif kind < 0.5:
        nodes = rng.uniform(1, 5) * 48 / max(radii.max(), 4)
        field = smooth_noise(rng, min(nodes, 24))[where]
        scene.paint(field > rng.uniform(-0.2, 1.2), scene.tone(tone), where, number, register=False)
    if rng.random() < 0.35 and not scene.full:
        _ghost(scene, center, radii, tone)


def _divide(scene: SyntheticCanvas, number: int, where: tuple[slice, ...]) -> None:
    """Two parts with hardly a border, of which each may be asked for, as the head and body of a hippocampus."""
    rng = scene.rng
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    middle = [(part.start + part.stop) / 2 for part in where]
    field = sum(
        (scene.place[axis][where] - middle[axis]) * np.float32(direction[axis]) for axis in range(3)
    ) + 3 * scene.lobes[0][where]  # fmt: skip
    tone = scene.tones[number]
    tone = tone + 0.03 * rng.standard_normal() if rng.random() < 0.5 else scene.tone(tone)
    scene.paint(field > 0, tone, where, number)
    scene.register(number)


def _hollow(scene: SyntheticCanvas, number: int, level: np.ndarray, where: tuple[slice, ...]) -> None:
    """A lumen; the wall without it, often only a part of it, may be asked for: rings and crescents on a slice."""
    rng = scene.rng
    tone = scene.tones[number]
    scene.paint(level < rng.uniform(0.4, 0.88), scene.tone(tone), where, number)
    scene.register(number)
    if rng.random() < 0.5:
        around = smooth_noise(rng, rng.uniform(1, 3))[where]
        scene.paint(around > rng.uniform(-0.3, 0.8), scene.tone(tone), where, number)
        scene.register(number)


def _ghost(scene: SyntheticCanvas, center: np.ndarray, radii: np.ndarray, tone: float) -> None:
    """Something of the same grey beyond an end of a structure, or beside it."""
    rng = scene.rng
    away = rng.standard_normal(3) * (1, 0.5, 0.5) if rng.random() < 0.6 else rng.standard_normal(3)
    away = away / np.linalg.norm(away) * radii.mean() * rng.uniform(1.1, 2.2)
    level, where = scene.blob(center + away, radii * np.exp(rng.uniform(-0.6, 0.4, 3)).astype(np.float32))
    scene.paint(level < 1, tone + 0.02 * rng.standard_normal(), where)


def _vessel(scene: SyntheticCanvas, tone: float | None = None, low: float = 1.5, high: float = 7.0) -> None:
    rng = scene.rng
    if scene.full:
        return
    start = _anywhere(rng, 0.8)
    width = math.exp(rng.uniform(math.log(low), math.log(high)))
    level = scene.tube(start, rng.uniform(30, 110), width, int(rng.integers(0, 4)))
    tone = scene.tone(scene.tone_at(start)) if tone is None else tone
    wall = rng.random() < 0.3 and width > 3
    outer = scene.paint(level < 1, tone)
    if wall:
        scene.paint(level < rng.uniform(0.5, 0.8), scene.tone(tone), inside=outer)
        scene.register(outer)


def _along(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise that is the same everywhere on a slice (D, 1, 1)."""
    return smooth_noise(rng, rng.uniform(1, 4), (1, 1, CANVAS[0])).reshape(-1, 1, 1)


def _column(scene: SyntheticCanvas) -> None:
    """Something that most slices cut across, as an aorta or a spinal cord: often from the first slice to the last,
    at times in a wall, at times straight and of one width."""
    rng = scene.rng
    if scene.full:
        return
    along = np.arange(CANVAS[0], dtype=np.float32)[:, None, None]
    middle = CANVAS[0] / 2
    lean, wander = 0.25 * rng.standard_normal(2), rng.uniform(0, 3) * (rng.random() < 0.7)
    radius = math.exp(rng.uniform(math.log(2.5), math.log(14)))
    offsets = []
    for axis in (1, 2):
        center = CANVAS[axis] * rng.uniform(0.2, 0.8) + lean[axis - 1] * (along - middle)
        center = center + wander * _along(rng)
        place = scene.place[axis] if rng.random() < 0.5 else np.arange(CANVAS[axis], dtype=np.float32)
        place = place if place.ndim == 3 else place.reshape([-1 if one == axis else 1 for one in range(3)])
        width = radius * math.exp(rng.uniform(-0.3, 0.3))
        offsets.append((place - center) / width)
    level = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2)
    if rng.random() < 0.6:
        level = level * np.exp(rng.uniform(0.05, 0.3) * _along(rng))
    for end in (along < rng.uniform(0, middle), along > rng.uniform(middle, CANVAS[0])):
        if rng.random() < 0.3:
            level = np.where(end, np.float32(9), level)
    near = scene.tones[int(rng.integers(scene.used))]
    if rng.random() < 0.4:
        near = scene.tone(near)
        wall = scene.paint(level < rng.uniform(1.15, 2.2), near, register=False)
        if rng.random() < 0.5:
            scene.register(wall)
    scene.paint(level < 1, scene.tone(near))


def _columns(scene: SyntheticCanvas) -> None:
    """Several of them beside organs."""
    rng = scene.rng
    _background(scene)
    for _ in range(int(rng.integers(1, 7))):
        _organ(scene, _anywhere(rng), _radii(rng, 4, 24))
    for _ in range(int(rng.integers(1, 5))):
        _column(scene)


def _background(scene: SyntheticCanvas) -> None:
    rng = scene.rng
    if rng.random() < 0.7:
        _paint_mosaic(scene, int(rng.integers(2, 6)), False)


def _paint_mosaic(scene: SyntheticCanvas, cells: int, register: bool) -> None:
    """Divide the canvas by the arg-max of smooth noises, at times with a seam of other tissue."""
    rng = scene.rng
    nodes, rough = rng.uniform(1.5, 6), rng.uniform(0.1, 0.4) * (rng.random() < 0.5)
    fields = [smooth_noise(rng, nodes) + (rough * smooth_noise(rng, 3 * nodes) if rough else 0) for _ in range(cells)]
    order = np.sort(np.stack(fields), axis=0)
    best = order[-1]
    base = scene.tone()
    for field in fields:
        scene.paint(field == best, scene.tone(base), register=register)
    if rng.random() < 0.4:
        scene.paint(best - order[-2] < rng.uniform(0.08, 0.4), scene.tone(base), register=False)


def _organs(scene: SyntheticCanvas) -> None:
    """Organs on a background, the last in full view."""
    rng = scene.rng
    _background(scene)
    for _ in range(int(rng.integers(5, 14))):
        _organ(scene, _anywhere(rng), _radii(rng))
    for _ in range(int(rng.integers(0, 3))):
        _vessel(scene)
    _organ(scene, _anywhere(rng, 0.5), _radii(rng, 6, 20))


def _body(scene: SyntheticCanvas) -> None:
    """A body outline that runs through all slices, with organs, a spine and ribs, before air."""
    rng = scene.rng
    scene.tones[0] = rng.uniform(0, 0.1) if rng.random() < 0.8 else rng.uniform(0, 1)
    scene.strengths[0] = 0.0
    middle = np.array([CANVAS[0] / 2, CANVAS[1] / 2, CANVAS[2] / 2])
    y = (scene.place[1] - middle[1]) / rng.uniform(28, 46)
    x = (scene.place[2] - middle[2]) / rng.uniform(34, 47)
    level = np.sqrt(x * x + y * y)
    base = rng.uniform(0.2, 0.8)
    skin = scene.paint(level < 1, scene.tone(base), register=False)
    inner = scene.paint(level < rng.uniform(0.8, 0.95), scene.tone(base), inside=skin, register=False)
    scene.paint(level < rng.uniform(0.6, 0.8), scene.tone(base), inside=inner, register=False)
    for _ in range(int(rng.integers(4, 12))):
        _organ(scene, middle + rng.uniform(-0.8, 0.8, 3) * (CANVAS[0] / 2, 30, 36), _radii(rng, 3, 20))
    bone = scene.tone(base)
    for _ in range(int(rng.integers(0, 5))):
        _vessel(scene, bone + 0.03 * rng.standard_normal(), 1.5, 4)
    for _ in range(int(rng.integers(0, 3))):
        _vessel(scene, None, 2, 7)
    for _ in range(int(rng.integers(0, 3))):
        _column(scene)


def _vessels(scene: SyntheticCanvas) -> None:
    """Vessels and ducts, many of one grey, beside organs."""
    rng = scene.rng
    _background(scene)
    for _ in range(int(rng.integers(0, 5))):
        _organ(scene, _anywhere(rng), _radii(rng, 5, 24))
    shared = scene.tone()
    for _ in range(int(rng.integers(2, 7))):
        _vessel(scene, shared + 0.02 * rng.standard_normal() if rng.random() < 0.5 else None)


def _mosaic(scene: SyntheticCanvas) -> None:
    """A mosaic in which every piece is an object, with some organs on top."""
    rng = scene.rng
    _paint_mosaic(scene, int(rng.integers(3, 10)), True)
    for _ in range(int(rng.integers(0, 5))):
        _organ(scene, _anywhere(rng), _radii(rng))


def _walls(scene: SyntheticCanvas) -> None:
    """Layers around each other: shells, crescents beside a convex neighbour."""
    rng = scene.rng
    _background(scene)
    for _ in range(int(rng.integers(2, 5))):
        center, radii = _anywhere(rng, 0.7), _radii(rng, 8, 24)
        level, where = scene.blob(center, radii)
        tone = scene.tone(scene.tone_at(center))
        scene.paint(level < 1, tone, where)
        if rng.random() < 0.6:
            number = scene.used - 1
            _hollow(scene, number, level, where)
        aside = center + rng.standard_normal(3) * radii.mean() * 0.6
        level, where = scene.blob(aside, radii * rng.uniform(0.5, 0.95))
        scene.paint(level < 1, scene.tone(tone), where)
    for _ in range(int(rng.integers(0, 5))):
        _organ(scene, _anywhere(rng), _radii(rng, 3, 12))


# ---------------------------------------------------------------- scanner


def _scan(
    rng: np.random.Generator, image: np.ndarray, tissue: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Slices `step` canvas voxels apart, as a scanner and a viewer show them -> image 0 to 255, tissue."""
    count = max(5, int((CANVAS[0] - 1) / step))
    first = rng.uniform(0, CANVAS[0] - 1 - (count - 1) * step) if (count - 1) * step < CANVAS[0] - 1 else 0.0
    at = np.clip(first + step * np.arange(count), 0, CANVAS[0] - 1)
    # A slice is about as thick as the distance to the next one.
    sigma = max(0.35, 0.35 * step * rng.uniform(0.4, 1.1))
    profile = np.exp(-0.5 * ((at[:, None] - np.arange(CANVAS[0])) / sigma) ** 2).astype(np.float32)
    image = np.tensordot(profile / profile.sum(1, keepdims=True), image, (1, 0))
    tissue = tissue[np.rint(at).astype(int)]
    blur = rng.uniform(0.2, 1.0)
    image = ndimage.gaussian_filter(image, (0, blur, blur))
    if rng.random() < 0.4:
        image = image * (1 + rng.uniform(0, 0.25) * smooth_noise(rng, rng.uniform(1, 2), image.shape))
    if rng.random() < 0.25:  # slices acquired one after the other differ in brightness
        image = image * (1 + rng.uniform(0.01, 0.08) * rng.standard_normal((count, 1, 1), dtype=np.float32))
    strength = math.exp(rng.uniform(math.log(0.004), math.log(0.09)))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < 0.3:
        noise = 2.0 * ndimage.gaussian_filter(noise, (0, 0.8, 0.8))
    image = image + strength * noise
    if rng.random() < 0.2:
        image = np.hypot(image, strength * rng.standard_normal(image.shape, dtype=np.float32))
    most = rng.choice((0.0, 0.05, 0.25), p=(0.25, 0.6, 0.15))
    low, high = np.quantile(image[:, ::3, ::3], (most * rng.uniform(0, 1), 1 - most * rng.uniform(0, 1)))
    image = np.clip((image - low) / max(high - low, 1e-3), 0, 1)
    if rng.random() < 0.4:
        image = image ** math.exp(rng.uniform(-0.6, 0.6))
    if rng.random() < 0.2:
        image = 1 - image
    span = rng.uniform(0.4, 1) if rng.random() < 0.3 else 1.0
    return np.floor(255 * (rng.uniform(0, 1) * (1 - span) + span * image)).astype(np.float32), tissue

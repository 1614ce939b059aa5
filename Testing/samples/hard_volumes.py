"""Volumes with structures that are hard to follow from slice to slice: seeded phantoms, unlike the training volumes.

Rings with bright or dark content, crescents beside a convex neighbour, thin diagonal plates, branching vessels, and
bodies that end next to look-alikes. Each kind comes with slices of 0.5 to 6 mm, acquired in each direction. Every slice
is the mean of what lies within its thickness, so ends fade. Grey values vary slowly, and there is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.images import Volume

SIZE = 96  # pixels of a slice
SLICES = {0.5: 36, 1.0: 30, 2.0: 20, 3.0: 16, 6.0: 10}
"""Millimetres between slices, and slices that a structure runs through."""
BEYOND = 8  # slices without it at each end
PARTS = 4  # thin layers that are averaged in a slice
DIRECTIONS = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
"""Axes (R, A, S are 0, 1, 2) along columns, rows and slices."""


def hard_volumes() -> Iterator[tuple[str, Volume, np.ndarray]]:
    """Name, volume and mask [k, j, i] of each phantom, the same at every call."""
    for number, kind in enumerate(KINDS):
        for place, spacing in enumerate(SLICES):
            direction = list(DIRECTIONS)[(number + place) % len(DIRECTIONS)]
            volume, mask = hard_volume(kind, spacing, direction, seed=100 * number + place)
            yield f"{kind}, {spacing:g} mm, {direction}", volume, mask


def hard_volume(kind: str, spacing: float, direction: str, seed: int) -> tuple[Volume, np.ndarray]:
    """A phantom with a structure of a kind (a key of KINDS), acquired in slices of `direction`, `spacing` mm apart."""
    random = np.random.default_rng(seed)
    count = SLICES[spacing] + 2 * BEYOND
    layers = np.arange(count * PARTS)
    along = ((layers + 0.5) / PARTS - BEYOND) / SLICES[spacing]  # 0 to 1 within the structure
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2 + random.uniform(-6, 6, (2, 1, 1))
    draw = KINDS[kind](random)
    contrast = random.choice((-1, 1)) * random.uniform(35, 60)
    grey, inside = np.full((len(layers), SIZE, SIZE), 110.0), np.zeros((len(layers), SIZE, SIZE), bool)
    for layer, position in enumerate(along):
        structure, others = draw(x, y, float(position))
        for shape, relative in others:
            grey[layer][shape] = 110 + relative * contrast
        if 0 <= position <= 1:
            grey[layer][structure], inside[layer] = 110 + contrast, structure
    grey, part = (np.mean(one.reshape(count, PARTS, SIZE, SIZE), axis=1) for one in (grey, inside.astype(float)))
    body = (x / (0.47 * SIZE)) ** 2 + (y / (0.44 * SIZE)) ** 2 <= 1
    slow = ndimage.gaussian_filter(random.normal(size=grey.shape), (4, 18, 18))
    grey = np.where(body, grey + 8 * slow / slow.std(), 15)
    grey = ndimage.gaussian_filter(grey, (0, 0.6, 0.6)) + random.normal(0, 5, grey.shape)
    pixel = min(spacing, 0.9)
    affine = np.zeros((4, 4))
    affine[DIRECTIONS[direction], (0, 1, 2)] = pixel, pixel, spacing
    affine[3, 3] = 1
    return Volume(np.clip(np.rint(grey), 0, 255).astype(np.int16), affine, modality="MR"), (part > 0.5) & body


def _swelling(position: float, ends: float = 0.5) -> float:
    """Relative size along a structure: 1 in its middle, `ends` where it begins and ends."""
    return ends + (1 - ends) * np.sqrt(max(1 - (2 * position - 1) ** 2, 0))


def _disc(x: np.ndarray, y: np.ndarray, centre, radius) -> np.ndarray:
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= max(radius, 0) ** 2


def _ring(random: np.random.Generator) -> Callable:
    radius, wall, content = random.uniform(13, 20), random.uniform(3, 5), random.choice((-0.9, 1.8))
    drift = random.uniform(-8, 8, 2)

    def draw(x, y, position):
        centre, outer = drift * (position - 0.5), radius * _swelling(position)
        whole, hollow = _disc(x, y, centre, outer), _disc(x, y, centre, outer - wall)
        return whole & ~hollow, [(hollow, content if 0 <= position <= 1 else 0.0)]

    return draw


def _crescent(random: np.random.Generator) -> Callable:
    radius, angle, turn = random.uniform(14, 20), random.uniform(0, 2 * np.pi), random.uniform(-1, 1)
    width = random.uniform(5, 8)

    def draw(x, y, position):
        way = angle + turn * position
        towards = np.array([np.cos(way), np.sin(way)])
        size = radius * _swelling(position)
        neighbour = _disc(x, y, -width * towards, size)
        return _disc(x, y, (0, 0), size) & ~neighbour, [(neighbour, -0.8)]

    return draw


def _diagonal(random: np.random.Generator) -> Callable:
    long, thin, angle = random.uniform(20, 28), random.uniform(2.5, 4), random.choice((-1, 1)) * np.pi / 4
    turn, drift = random.uniform(-0.5, 0.5), random.uniform(-10, 10, 2)

    def draw(x, y, position):
        way, centre = angle + turn * (position - 0.5), drift * (position - 0.5)
        u = (x - centre[0]) * np.cos(way) + (y - centre[1]) * np.sin(way)
        v = (y - centre[1]) * np.cos(way) - (x - centre[0]) * np.sin(way)
        return (u / (long * _swelling(position))) ** 2 + (v / thin) ** 2 <= 1, []

    return draw


def _vessel(random: np.random.Generator) -> Callable:
    radius, angle, fork = random.uniform(4.5, 7), random.uniform(0, np.pi), random.uniform(0.35, 0.5)
    reach, drift = random.uniform(16, 22), random.uniform(-8, 8, 2)

    def draw(x, y, position):
        start = drift * (position - 0.5)
        apart = reach * max(position - fork, 0) / (1 - fork) * np.array([np.cos(angle), np.sin(angle)])
        thick = radius * (1 if position < fork else 0.75)
        return _disc(x, y, start + apart, thick) | _disc(x, y, start - apart, 0.85 * thick), []

    return draw


def _beside_look_alikes(random: np.random.Generator) -> Callable:
    radius, angle = random.uniform(10, 15), random.uniform(0, 2 * np.pi)
    shift, gap = random.uniform(2, 6, 2), random.uniform(0.05, 0.12)
    side = np.array([np.cos(angle), np.sin(angle)])

    def draw(x, y, position):
        size = radius * _swelling(position, 0.6)
        structure = _disc(x, y, (0, 0), size)
        neighbour = _disc(x, y, 1.9 * radius * side, 0.8 * radius)
        others = [(neighbour & ~_disc(x, y, (0, 0), size + 2), 0.95)]
        if position < -gap or position > 1 + gap:  # the next one begins where this one has just ended
            others.append((_disc(x, y, shift, 0.8 * radius), 0.95))
        return structure, others

    return draw


KINDS = {
    "ring": _ring,
    "crescent": _crescent,
    "thin diagonal": _diagonal,
    "branching vessel": _vessel,
    "beside look-alikes": _beside_look_alikes,
}

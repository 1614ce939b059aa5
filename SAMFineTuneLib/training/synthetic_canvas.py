"""The canvas on which `synthetic_volumes` paints: tissues, shapes, and the objects to segment.

Arrays are [slice, row, column]. A canvas is isotropic; positions are voxels of the canvas.
"""

from __future__ import annotations

import math

import numpy as np

CANVAS = (56, 96, 96)
_BUMP = 0.55  # width of one node's influence, in distances between nodes


def _weights(size: int, nodes: float, count: int) -> np.ndarray:
    distance = (np.arange(size, dtype=np.float32)[:, None] + 0.5) / size * max(nodes, 1) - np.arange(count)
    weight = np.exp(-0.5 * (distance / _BUMP) ** 2)
    return (weight / np.maximum(np.linalg.norm(weight, axis=1, keepdims=True), 1e-3)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, nodes: float, shape: tuple[int, ...] = CANVAS) -> np.ndarray:
    """Noise of zero mean and unit deviation with about `nodes` bumps across a row."""
    across = [nodes * size / shape[-1] for size in shape]
    counts = [math.ceil(max(number, 1)) + 1 for number in across]
    field = rng.standard_normal(counts, dtype=np.float32)
    for axis, (size, number, count) in enumerate(zip(shape, across, counts, strict=True)):
        field = np.moveaxis(np.tensordot(_weights(size, number, count), field, (1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def _rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)


class SyntheticCanvas:
    """A canvas under construction: `tissue` numbers; object k is made of the tissues `objects[k]`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.tissue = np.zeros(CANVAS, np.uint8)
        self.tones, self.strengths, self.patterns = [], [], []
        self.objects: list[np.ndarray] = []
        self.parts: dict[int, np.ndarray | None] = {}
        self.spread = math.exp(rng.uniform(math.log(0.05), math.log(0.6)))
        self.texture = rng.uniform(0.2, 1) * self.spread if rng.random() < 0.35 else rng.uniform(0, 0.55) ** 2
        self.used = 0
        self._new(rng.uniform(0, 1))
        bend = rng.uniform(0, 7) if rng.random() < 0.8 else 0.0
        axes = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in CANVAS), indexing="ij", sparse=True)
        nodes = rng.uniform(1.5, 5)
        self.place = [axis + bend * smooth_noise(rng, nodes) for axis in axes]
        self.lobes = [smooth_noise(rng, rng.uniform(2, 9)) for _ in range(3)]

    @property
    def full(self) -> bool:
        return self.used > 56

    def _new(self, tone: float) -> int:
        rng = self.rng
        self.tones.append(tone)
        self.strengths.append(self.texture * rng.uniform(0.2, 1) * (rng.random() < 0.55))
        self.patterns.append(int(rng.integers(3)))
        self.used += 1
        return self.used - 1

    def tone(self, near: float | None = None) -> float:
        """A tissue's mean; often close to `near`, and now and then hardly visible beside it."""
        rng = self.rng
        if near is None or rng.random() < 0.2:
            return rng.uniform(0, 1)
        step = max(abs(self.spread * rng.standard_normal()), rng.uniform(0, 0.06))
        return near + step * rng.choice((-1, 1))

    def tone_at(self, position: np.ndarray) -> float:
        inside = tuple(int(np.clip(p, 0, size - 1)) for p, size in zip(position, CANVAS, strict=True))
        return self.tones[self.tissue[inside]]

    def paint(
        self, mask: np.ndarray, tone: float, where: tuple[slice, ...] = (), inside: int | None = None,
        register: bool = True,
    ) -> int:  # fmt: skip
        """Paint `mask`, which covers the part `where` of the canvas, as a new tissue, cut to tissue `inside` if given,
        of whose objects it then is a part. Returns its number."""
        part = self.tissue[where]
        if inside is not None:
            mask = mask & (part == inside)
        number = self._new(tone)
        part[mask] = number
        if inside is not None:
            for one in self.objects:
                one[number] = one[inside]
        if register:
            self.register(number)
        return number

    def register(self, *tissues: int) -> None:
        """Register these tissues together as an object to segment."""
        one = np.zeros(256, bool)
        one[list(tissues)] = True
        self.objects.append(one)

    def box(self, center: np.ndarray, reach: float) -> tuple[slice, ...]:
        """The part of the canvas within `reach` of a position."""
        return tuple(
            slice(int(np.clip(c - reach, 0, size - 1)), int(np.clip(c + reach + 1, 1, size)))
            for c, size in zip(center, CANVAS, strict=True)
        )

    def blob(self, center: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
        """Level function of a lobed, turned, at times bent ellipsoid: below 1 inside; and the part it covers."""
        rng = self.rng
        where = self.box(center, 2.0 * radii.max() + 8)
        turn = _rotation(rng) / radii[:, None]
        offset = [place[where] - np.float32(c) for place, c in zip(self.place, center, strict=True)]
        u, v, w = (sum(turn[row, axis] * offset[axis] for axis in range(3)) for row in range(3))
        if rng.random() < 0.4:
            bend = rng.uniform(-1, 1)
            v = v + bend * (u * u - 0.4)
        level = np.sqrt(u * u + v * v + w * w)
        if rng.random() < 0.6:
            level = level / np.clip(1 + rng.uniform(0.05, 0.35) * self.lobes[int(rng.integers(3))][where], 0.4, 2)
        return level, where

    def tube(self, start: np.ndarray, length: float, width: float, branches: int) -> np.ndarray:
        """Level function of a wandering tube with side branches: below 1 inside, 0 along its middle."""
        rng = self.rng
        level = np.full(CANVAS, 9.0, np.float32)
        heading = rng.standard_normal(3)
        starts = [(start, heading / np.linalg.norm(heading), width)]
        for branch in range(1 + branches):
            position, heading, thick = starts[int(rng.integers(len(starts))) if branch else 0]
            steps = 5 if branch else 8
            bend = 0.25 * rng.standard_normal(3)
            for number in range(steps):
                heading = heading + bend + 0.25 * rng.standard_normal(3)
                heading = heading / np.linalg.norm(heading)
                reach = heading * length / steps
                own = thick * (1 - 0.3 * number / steps)
                where = self.box(position + reach / 2, length / steps / 2 + 3 * own + 6)
                offset = [place[where] - np.float32(c) for place, c in zip(self.place, position, strict=True)]
                along = sum(o * np.float32(r) for o, r in zip(offset, reach, strict=True)) / (reach @ reach)
                along = np.clip(along, 0, 1)
                squared = sum((o - along * np.float32(r)) ** 2 for o, r in zip(offset, reach, strict=True))
                level[where] = np.minimum(level[where], np.sqrt(squared) / own)
                position = position + reach
                side = heading + rng.uniform(0.6, 1.4) * rng.standard_normal(3)
                starts.append((position, side / np.linalg.norm(side), 0.75 * thick))
        return level

    def render(self) -> np.ndarray:
        """Intensities, about 0 to 1."""
        rng = self.rng
        image = np.asarray(self.tones, np.float32)[self.tissue]
        if not any(self.strengths):
            return image
        coarse = rng.uniform(4, 12)
        fields = (
            smooth_noise(rng, math.exp(rng.uniform(math.log(3), math.log(40)))),
            sum(0.6 * 0.7**octave * smooth_noise(rng, coarse * 2**octave) for octave in range(3)),
            2.5 * (smooth_noise(rng, rng.uniform(8, 24)) > rng.uniform(0.4, 1.2)),
        )
        strengths = np.asarray(self.strengths, np.float32)
        for number, field in enumerate(fields):
            own = np.where(np.asarray(self.patterns) == number, strengths, 0).astype(np.float32)
            image += own[self.tissue] * field
        return image

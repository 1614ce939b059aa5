"""Scenes of synthetic pictures: tissues, organs, vessels and bodies, painted one over the other.

A scene paints a `Canvas` and registers its objects. `zoomed` scenes are seen from near, as the predictor looks at the
surroundings of a prompt. Coordinates are view units, -1 to 1 across the picture.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.training.synthetic_scanner import SIZE, Rng, smooth_noise
from SAMFineTuneLib.training.synthetic_shapes import AXIS, STRAIGHT, blob, tube, warped_grid


class Canvas:
    """The picture under construction: intensities about 0..1 and the objects painted so far."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.image = np.full((SIZE, SIZE), rng.uniform(0, 1), np.float32)
        self.objects: list[np.ndarray] = []
        # How far apart tissues are in this picture: many real borders are faint.
        self.spread = np.exp(rng.uniform(np.log(0.1), np.log(0.6)))
        self.texture = rng.uniform(0, 0.6) ** 2

    def tone(self, near: float | None = None) -> float:
        """A tissue's mean; often close to `near`, never within a just visible step of it."""
        if near is None or self.rng.random() < 0.2:
            return float(self.rng.uniform(0, 1))
        step = max(abs(self.rng.normal(0, self.spread)), 0.05)
        return float(near + step * self.rng.choice([-1, 1]))

    def fill(self, mask: np.ndarray, tone: float) -> None:
        """Paint `mask` with `tone`, sometimes with texture, a gradient or spots."""
        rng, value = self.rng, np.float32(tone)
        kind = rng.random()
        if kind < 0.45:
            self.image[mask] = value
            return
        strength = self.texture * rng.uniform(0.2, 1)
        if kind < 0.9:
            pattern = smooth_noise(rng, np.exp(rng.uniform(np.log(2), np.log(64))))[mask]
        else:
            pattern = 2.5 * (smooth_noise(rng, rng.integers(8, 40))[mask] > rng.uniform(0.4, 1.2))
        self.image[mask] = value + np.float32(strength) * pattern

    def cover(self, mask: np.ndarray) -> None:
        """What lies under a newly painted `mask` is no longer visible: cut it out of the earlier objects."""
        self.objects = [earlier & ~mask for earlier in self.objects]

    def paint(self, mask: np.ndarray, tone: float | None = None, nested: bool = False) -> float:
        """Paint and register an object; `nested` keeps it inside the object below as well. Returns its tone."""
        if not mask.any():
            return 0.5
        if tone is None:
            tone = self.tone(float(self.image[mask].mean()))
        self.fill(mask, tone)
        if not nested:
            self.cover(mask)
        self.objects.append(mask)
        return tone


def _partition(canvas: Canvas, inside: np.ndarray | None = None, register: bool = True) -> None:
    """Divide the picture (or `inside`) by the arg-max of smooth noises, sometimes with a seam of other tissue."""
    rng = canvas.rng
    count = int(rng.integers(2, 9))
    fields = smooth_noise(rng, rng.integers(2, 9), count)
    if rng.random() < 0.6:
        fields = fields + rng.uniform(0.1, 0.5) * smooth_noise(rng, rng.integers(8, 24), count)
    label = fields.argmax(axis=0)
    base = canvas.tone()
    tones = [canvas.tone(base) for _ in range(count)]
    region = np.ones((SIZE, SIZE), bool) if inside is None else inside
    seam = None
    if rng.random() < 0.4:
        top = np.partition(fields, count - 2, axis=0)
        seam = top[-1] - top[-2] < rng.uniform(0.08, 0.5)
    for value in range(count):
        mask = (label == value) & region
        if not mask.any():
            continue
        canvas.fill(mask, tones[value])
        if register:
            parts, found = ndimage.label(mask & ~seam if seam is not None else mask)
            sizes = np.bincount(parts.ravel(), minlength=found + 1)
            canvas.objects += [parts == i for i in range(1, found + 1) if 40 < sizes[i] < 0.5 * SIZE * SIZE]
    if seam is not None:
        canvas.fill(seam & region, canvas.tone(base))


def _background(canvas: Canvas) -> None:
    """What lies behind everything: tissue mosaics, a smooth field or plain."""
    kind = canvas.rng.random()
    if kind < 0.55:
        _partition(canvas, register=False)
    elif kind < 0.85:
        canvas.image += np.float32(canvas.spread) * smooth_noise(canvas.rng, canvas.rng.integers(2, 12))


def _radius(rng: Rng, zoomed: bool) -> float:
    """Half an object's width in view units: 20-70 % of a zoomed view, else small to middling."""
    return float(rng.uniform(0.2, 0.7) if zoomed else np.exp(rng.uniform(np.log(0.05), np.log(0.45))))


def _inner_structure(canvas: Canvas, level: np.ndarray, mask: np.ndarray) -> None:
    """Parts inside an organ: wall and lumen, a lesion, zones or vessels that are not to be taken for its border."""
    rng, kind = canvas.rng, canvas.rng.random()
    if kind < 0.25:
        lumen = level < rng.uniform(0.35, 0.9)
        canvas.paint(lumen & mask, nested=True)
        canvas.objects.append(mask & ~lumen)
    elif kind < 0.5:
        x, y = _interior_point(rng, mask)
        lesion = (blob(rng, x, y, rng.uniform(0.2, 0.6) * _width_of(mask), STRAIGHT) < 1) & mask
        canvas.paint(lesion, nested=True)
    elif kind < 0.75:
        _partition(canvas, inside=mask, register=rng.random() < 0.3)
    else:
        _spots(canvas, mask)


def _spots(canvas: Canvas, mask: np.ndarray) -> None:
    """Small round and long things inside an organ that belong to it: vessels, ducts, nodules, gas."""
    rng, width = canvas.rng, _width_of(mask)
    tone = canvas.tone(float(canvas.image[mask].mean()))
    for _ in range(int(rng.integers(1, 7))):
        x, y = _interior_point(rng, mask)
        if rng.random() < 0.3:
            spot = tube(rng, x, y, rng.uniform(0.5, 1.5) * width, rng.uniform(0.05, 0.12) * width, 0)
        else:
            spot = blob(rng, x, y, rng.uniform(0.05, 0.3) * width, STRAIGHT) < 1
        canvas.fill(spot & mask, tone)


def _width_of(mask: np.ndarray) -> float:
    """Radius in view units of the disc of the same area."""
    return float(np.sqrt(mask.sum() / np.pi) * 2 / SIZE)


def _interior_point(rng: Rng, mask: np.ndarray) -> tuple[float, float]:
    """A random pixel of `mask` in view units."""
    index = rng.choice(np.flatnonzero(mask))
    return float(AXIS[index % SIZE]), float(AXIS[index // SIZE])


def _organ(canvas: Canvas, x: float, y: float, radius: float, structured: float = 0.4) -> None:
    """One blob, sometimes with a capsule, with structure inside at the chance of `structured`."""
    rng = canvas.rng
    level = blob(rng, x, y, radius, warped_grid(rng, rng.choice([0.0, 0.02, 0.05, 0.1])))
    mask = level < 1
    if not mask.any():
        return
    if rng.random() < 0.25:
        canvas.fill((level < 1 + rng.uniform(0.04, 0.2)) & ~mask, canvas.tone(float(canvas.image[mask].mean())))
    canvas.paint(mask)
    if rng.random() < structured:
        _inner_structure(canvas, level, mask)


def _scene_blobs(canvas: Canvas, zoomed: bool) -> None:
    """A few organs on a background, the last painted in full view."""
    rng = canvas.rng
    _background(canvas)
    for _ in range(int(rng.integers(2, 6) if zoomed else rng.integers(4, 12))):
        _organ(canvas, *rng.uniform(-1, 1, 2), _radius(rng, zoomed and rng.random() < 0.6))
    if zoomed:
        _organ(canvas, *rng.uniform(-0.3, 0.3, 2), _radius(rng, True), structured=0.6)


def _scene_partition(canvas: Canvas, zoomed: bool) -> None:
    """A mosaic in which every piece is an object, with an organ or two on top."""
    _partition(canvas)
    for _ in range(int(canvas.rng.integers(0, 3))):
        _organ(canvas, *canvas.rng.uniform(-0.8, 0.8, 2), _radius(canvas.rng, zoomed))


def _scene_tubes(canvas: Canvas, zoomed: bool) -> None:
    """Vessels, ducts, bowel: thin, bent, branching, some with a wall."""
    rng = canvas.rng
    _background(canvas)
    for _ in range(int(rng.integers(0, 3))):
        _organ(canvas, *rng.uniform(-1, 1, 2), _radius(rng, zoomed))
    for _ in range(int(rng.integers(1, 5))):
        width = np.exp(rng.uniform(np.log(0.025), np.log(0.18 if zoomed else 0.08)))
        vessel = tube(rng, *rng.uniform(-0.7, 0.7, 2), rng.uniform(0.5, 1.5), width, int(rng.integers(0, 4)))
        canvas.paint(vessel)
        if width > 0.07 and rng.random() < 0.4:
            lumen = ndimage.binary_erosion(vessel, iterations=int(rng.integers(1, 4)))
            canvas.paint(lumen, nested=True)


def _scene_repeats(canvas: Canvas, zoomed: bool) -> None:
    """Many alike: nodules, vertebrae, cells, teeth; each one is an object."""
    rng = canvas.rng
    _background(canvas)
    radius = rng.uniform(0.15, 0.35) if zoomed else rng.uniform(0.05, 0.16)
    tone, grid = canvas.tone(float(canvas.image.mean())), warped_grid(rng, 0.08)
    row = rng.random() < 0.5
    turn, gap = rng.uniform(0, np.pi), radius * rng.uniform(2.1, 3.2)
    for i in range(int(rng.integers(4, 14))):
        along = (i - 5) * gap
        x, y = (along * np.cos(turn), along * np.sin(turn)) if row else rng.uniform(-0.95, 0.95, 2)
        mask = blob(rng, x, y, radius * rng.uniform(0.8, 1.2), grid) < 1
        canvas.paint(mask, tone + rng.normal(0, 0.02))


def _scene_body(canvas: Canvas, zoomed: bool) -> None:
    """A trunk, limb or head on air, seen whole or from near: skin, fat, organs, spine with its canal, ribs."""
    rng = canvas.rng
    zoom, x0, y0 = (rng.uniform(1.3, 4), *rng.uniform(-0.6, 0.6, 2)) if zoomed else (rng.uniform(0.9, 1.3), 0.0, 0.0)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - x0) * zoom, (y - y0) * zoom

    bend = rng.uniform(0, 0.04) * zoom
    grid = warped_grid(rng, bend)
    half_width, half_height = rng.uniform(0.8, 1), rng.uniform(0.55, 0.9)
    level = np.hypot((grid[0] / zoom + x0) / half_width, (grid[1] / zoom + y0) / half_height)
    canvas.image[:] = rng.uniform(0, 0.1) + 0.02 * smooth_noise(rng, 64)
    fat, muscle = rng.uniform(0.1, 0.9, 2)
    skin = rng.uniform(0.75, 0.95)
    body, trunk, cavity = level < 1, level < skin, level < skin - rng.uniform(0.05, 0.15)
    canvas.paint(body, fat)
    canvas.paint(trunk, muscle, nested=True)
    canvas.fill(cavity, canvas.tone(fat))
    canvas.objects += [trunk & ~cavity, cavity]
    organ_tone = rng.uniform(0.2, 0.8)
    for _ in range(int(rng.integers(4, 12))):
        x, y = place(*(rng.uniform(-0.6, 0.6, 2) * (1, 0.75)))
        shape = blob(rng, x, y, zoom * np.exp(rng.uniform(np.log(0.04), np.log(0.4))), warped_grid(rng, 0.03 * zoom))
        mask = (shape < 1) & cavity
        canvas.paint(mask, canvas.tone(organ_tone))
        if mask.any() and rng.random() < 0.25:
            _inner_structure(canvas, shape, mask)
    bone = rng.uniform(0.7, 1.3) if rng.random() < 0.7 else rng.uniform(0, 0.3)
    sx, sy = place(rng.normal(0, 0.05), rng.uniform(0.3, 0.5))
    spine = blob(rng, sx, sy, zoom * rng.uniform(0.08, 0.16), grid)
    canvas.paint(spine < 1, bone)
    canal = blob(rng, sx, sy + zoom * 0.15, zoom * rng.uniform(0.04, 0.08), grid)
    canvas.paint((canal < 1.5) & (canal > 1), bone)
    canvas.paint(canal < 1, canvas.tone(muscle))
    rib_radius = zoom * rng.uniform(0.02, 0.06)
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(0, 9))):
        x, y = place(0.8 * skin * np.cos(angle), 0.62 * skin * np.sin(angle))
        canvas.paint(blob(rng, x, y, rib_radius, grid) < 1, bone)


def _scene_crowd(canvas: Canvas, zoomed: bool) -> None:
    """Organs pressed against each other as in an abdomen: few tones, seams of fat that come and go.

    A neighbour of the same grey value that reaches into an object's box is what boxes are most often misled by.
    """
    rng = canvas.rng
    count = int(rng.integers(3, 9) if zoomed else rng.integers(6, 16))
    grid = warped_grid(rng, rng.choice([0.03, 0.06, 0.12]))
    typical = rng.uniform(0.3, 0.8) if zoomed else rng.uniform(0.12, 0.35)
    centres = rng.uniform(-1.1, 1.1, (count, 2))
    if zoomed:
        centres[0] = rng.uniform(-0.3, 0.3, 2)
    levels = np.stack([blob(rng, x, y, typical * np.exp(rng.uniform(-0.5, 0.5)), grid) for x, y in centres])
    nearest, next_nearest = np.partition(levels, 1, axis=0)[:2]
    seam = rng.uniform(0.02, 0.2) * np.clip(0.8 + smooth_noise(rng, rng.integers(4, 12)), 0.1, None)
    gap = (nearest > rng.uniform(0.9, 1.8)) | (next_nearest - nearest < seam)
    _background(canvas)
    if rng.random() < 0.7:
        canvas.fill(gap, canvas.tone())
    palette = [canvas.tone(float(canvas.image[gap].mean()) if gap.any() else None) for _ in range(rng.integers(1, 4))]
    order = levels.argmin(axis=0)
    for value in range(count):
        mask = (order == value) & ~gap
        if not mask.any():
            continue
        canvas.paint(mask, palette[rng.integers(len(palette))] + rng.normal(0, 0.02))
        if rng.random() < 0.4:
            _inner_structure(canvas, levels[value], mask)


SCENES = (_scene_blobs, _scene_partition, _scene_tubes, _scene_repeats, _scene_body, _scene_crowd)
SCENE_ODDS = (0.26, 0.12, 0.12, 0.10, 0.20, 0.20)

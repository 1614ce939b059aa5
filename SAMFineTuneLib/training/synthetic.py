"""Endless labelled pictures that look like medical slices without being any.

In the spirit of SynthSeg and SynthMorph (Billot 2023, Hoffmann 2022): random shapes, random contrasts, random
scanners. Everything is drawn on a 128 x 128 grid from one seed, in about 15 milliseconds.

Coordinates are view units: x and y run from -1 to 1 across the picture. Arrays are [row, column].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.training.synthetic_scanner import (
    SIZE,
    Rng,
    cut_to_shape,
    display,
    look_closer,
    scan,
    smooth_noise,
)

GENERATOR_VERSION = 1
MIN_AREA = 24
_AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
_X, _Y = np.meshgrid(_AXIS, _AXIS)


@dataclass(frozen=True)
class SyntheticPicture:
    """One picture: `image` uint8 (128, 128), `masks` boolean (M, 128, 128), `shape` (rows, columns) that hold picture.

    Beyond `shape` lies padding (the scanner's `PADDING_VALUE`). Masks may be nested: a ring, its hole, both together.
    """

    image: np.ndarray
    masks: np.ndarray
    shape: tuple[int, int]


# ---------------------------------------------------------------- shapes


def _warped_grid(rng: Rng, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, bent by smooth noise of `strength` view units."""
    bend = strength * smooth_noise(rng, rng.integers(3, 9), 2)
    return _X + bend[0], _Y + bend[1]


def _blob(rng: Rng, x: float, y: float, radius: float, grid: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Level function of a lobed, turned ellipse: below 1 inside; its size grows linearly with the level."""
    turn, aspect = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.7, 0.7))
    cosine, sine = np.cos(turn), np.sin(turn)
    dx, dy = grid[0] - np.float32(x), grid[1] - np.float32(y)
    u = (cosine * dx + sine * dy) * np.float32(aspect**0.5 / radius)
    v = (cosine * dy - sine * dx) * np.float32(aspect**-0.5 / radius)
    level = np.sqrt(u * u + v * v)
    if rng.random() < 0.7:
        angle = np.linspace(-np.pi, np.pi, 257)
        lobes = sum(
            rng.normal() * rng.uniform(0.05, 0.25) / k**0.7 * np.cos(k * angle + rng.uniform(0, 6.3))
            for k in rng.choice([1, 2, 3, 4, 5], size=2, replace=False)
        )
        table = (1 / np.clip(1 + lobes, 0.35, 2)).astype(np.float32)
        level *= table[((np.arctan2(v, u) + np.float32(np.pi)) * np.float32(256 / 2 / np.pi)).astype(np.int16)]
    return level


def _tube(rng: Rng, x: float, y: float, length: float, width: float, branches: int) -> np.ndarray:
    """Boolean mask of a wandering tube with side branches."""
    mask = np.zeros((SIZE, SIZE), bool)
    starts = [(x, y, rng.uniform(0, 2 * np.pi), width)]
    for branch in range(1 + branches):
        px, py, heading, thick = starts[rng.integers(len(starts)) if branch else 0]
        steps = int(rng.integers(5, 10))
        bend = rng.normal(0, 0.25)
        for step in range(steps):
            heading += bend + rng.normal(0, 0.25)
            qx, qy = px + length / steps * np.cos(heading), py + length / steps * np.sin(heading)
            _stamp(mask, px, py, qx, qy, thick * (1 - 0.3 * step / steps))
            px, py = qx, qy
            starts.append((px, py, heading + rng.choice([-1, 1]) * rng.uniform(0.4, 1.2), thick * 0.75))
    return mask


def _stamp(mask: np.ndarray, ax: float, ay: float, bx: float, by: float, radius: float) -> None:
    """Draw the thick segment a-b into `mask`, looking only at the pixels around it."""
    x0, x1 = (int((v + 1) * SIZE / 2) for v in (min(ax, bx) - radius, max(ax, bx) + radius))
    y0, y1 = (int((v + 1) * SIZE / 2) for v in (min(ay, by) - radius, max(ay, by) + radius))
    rows, columns = slice(max(y0, 0), max(y1 + 2, 0)), slice(max(x0, 0), max(x1 + 2, 0))
    dx, dy = _X[rows, columns] - ax, _Y[rows, columns] - ay
    if not dx.size:
        return
    ex, ey = bx - ax, by - ay
    along = np.clip((dx * ex + dy * ey) / (ex * ex + ey * ey + 1e-9), 0, 1)
    mask[rows, columns] |= (dx - along * ex) ** 2 + (dy - along * ey) ** 2 < radius**2


# ---------------------------------------------------------------- a scene being painted


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
    """Parts inside an organ: wall and lumen, a lesion, zones that are not to be mistaken for the organ's border."""
    rng, kind = canvas.rng, canvas.rng.random()
    if kind < 0.35:
        lumen = level < rng.uniform(0.35, 0.9)
        canvas.paint(lumen & mask, nested=True)
        canvas.objects.append(mask & ~lumen)
    elif kind < 0.65:
        x, y = _interior_point(rng, mask)
        lesion = (_blob(rng, x, y, rng.uniform(0.2, 0.6) * _width_of(mask), (_X, _Y)) < 1) & mask
        canvas.paint(lesion, nested=True)
    else:
        _partition(canvas, inside=mask, register=rng.random() < 0.3)


def _width_of(mask: np.ndarray) -> float:
    """Radius in view units of the disc of the same area."""
    return float(np.sqrt(mask.sum() / np.pi) * 2 / SIZE)


def _interior_point(rng: Rng, mask: np.ndarray) -> tuple[float, float]:
    """A random pixel of `mask` in view units."""
    index = rng.choice(np.flatnonzero(mask))
    return float(_AXIS[index % SIZE]), float(_AXIS[index // SIZE])


def _organ(canvas: Canvas, x: float, y: float, radius: float) -> None:
    """One blob, sometimes with a capsule, sometimes with structure inside."""
    rng = canvas.rng
    level = _blob(rng, x, y, radius, _warped_grid(rng, rng.choice([0.0, 0.02, 0.05, 0.1])))
    mask = level < 1
    if not mask.any():
        return
    if rng.random() < 0.25:
        canvas.fill((level < 1 + rng.uniform(0.04, 0.2)) & ~mask, canvas.tone(float(canvas.image[mask].mean())))
    canvas.paint(mask)
    if rng.random() < 0.4:
        _inner_structure(canvas, level, mask)


def _scene_blobs(canvas: Canvas, zoomed: bool) -> None:
    """A few organs on a background, the last painted in full view."""
    rng = canvas.rng
    _background(canvas)
    for _ in range(int(rng.integers(2, 6) if zoomed else rng.integers(4, 12))):
        _organ(canvas, *rng.uniform(-1, 1, 2), _radius(rng, zoomed and rng.random() < 0.6))
    if zoomed:
        _organ(canvas, *rng.uniform(-0.3, 0.3, 2), _radius(rng, True))


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
        tube = _tube(rng, *rng.uniform(-0.7, 0.7, 2), rng.uniform(0.5, 1.5), width, int(rng.integers(0, 4)))
        canvas.paint(tube)
        if width > 0.07 and rng.random() < 0.4:
            lumen = ndimage.binary_erosion(tube, iterations=int(rng.integers(1, 4)))
            canvas.paint(lumen, nested=True)


def _scene_repeats(canvas: Canvas, zoomed: bool) -> None:
    """Many alike: nodules, vertebrae, cells, teeth; each one is an object."""
    rng = canvas.rng
    _background(canvas)
    radius = rng.uniform(0.15, 0.35) if zoomed else rng.uniform(0.05, 0.16)
    tone, grid = canvas.tone(float(canvas.image.mean())), _warped_grid(rng, 0.08)
    row = rng.random() < 0.5
    turn, gap = rng.uniform(0, np.pi), radius * rng.uniform(2.1, 3.2)
    for i in range(int(rng.integers(4, 14))):
        along = (i - 5) * gap
        x, y = (along * np.cos(turn), along * np.sin(turn)) if row else rng.uniform(-0.95, 0.95, 2)
        mask = _blob(rng, x, y, radius * rng.uniform(0.8, 1.2), grid) < 1
        canvas.paint(mask, tone + rng.normal(0, 0.02))


def _scene_body(canvas: Canvas, zoomed: bool) -> None:
    """A trunk, limb or head on air, seen whole or from near: skin, fat, organs, spine with its canal, ribs."""
    rng = canvas.rng
    zoom, x0, y0 = (rng.uniform(1.3, 4), *rng.uniform(-0.6, 0.6, 2)) if zoomed else (rng.uniform(0.9, 1.3), 0.0, 0.0)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - x0) * zoom, (y - y0) * zoom

    bend = rng.uniform(0, 0.04) * zoom
    grid = _warped_grid(rng, bend)
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
        shape = _blob(rng, x, y, zoom * np.exp(rng.uniform(np.log(0.04), np.log(0.4))), _warped_grid(rng, 0.03 * zoom))
        mask = (shape < 1) & cavity
        canvas.paint(mask, canvas.tone(organ_tone))
        if mask.any() and rng.random() < 0.25:
            _inner_structure(canvas, shape, mask)
    bone = rng.uniform(0.7, 1.3) if rng.random() < 0.7 else rng.uniform(0, 0.3)
    sx, sy = place(rng.normal(0, 0.05), rng.uniform(0.3, 0.5))
    spine = _blob(rng, sx, sy, zoom * rng.uniform(0.08, 0.16), grid)
    canvas.paint(spine < 1, bone)
    canal = _blob(rng, sx, sy + zoom * 0.15, zoom * rng.uniform(0.04, 0.08), grid)
    canvas.paint((canal < 1.5) & (canal > 1), bone)
    canvas.paint(canal < 1, canvas.tone(muscle))
    rib_radius = zoom * rng.uniform(0.02, 0.06)
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(0, 9))):
        x, y = place(0.8 * skin * np.cos(angle), 0.62 * skin * np.sin(angle))
        canvas.paint(_blob(rng, x, y, rib_radius, grid) < 1, bone)


SCENES = (_scene_blobs, _scene_partition, _scene_tubes, _scene_repeats, _scene_body)
SCENE_ODDS = (0.34, 0.18, 0.14, 0.10, 0.24)


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
    zoomed, closer = rng.random(2) < (0.35, 0.4)
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

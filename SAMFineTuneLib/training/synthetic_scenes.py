"""Scenes of synthetic pictures: tissues, organs, vessels and bodies, painted one over the other, n pictures at once.

A scene paints a `Canvas` and registers its objects. Positions are view units, -1 to 1 across the canvas.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from SAMFineTuneLib.simulation.device_random import Random
from SAMFineTuneLib.training.synthetic_shapes import CANVAS, blob, grid, smooth_noise, tube, warped_grid, wide

MOST_TISSUES = 64
_PATTERNS = 4
_FRAME = 28  # tissues that a body's last organ, muscles and bones have at most
_SPOTS = _PATTERNS - 1  # the pattern of spots; the others are smooth


class Canvas:
    """n pictures under construction, as numbers of tissues: `tissue` (n, S, S) uint8, 0 is the background.

    Tissue k of a picture has a tone and a pattern. Object k is made of one or several tissues, `made_of` (n, k,
    tissue), and may be asked for when `registered` (n, k). What a painted tissue covers no longer belongs to what
    lies below.
    """

    def __init__(self, rng: Random, count: int) -> None:
        self.rng, self.count, self.used = rng, count, 1
        self.tissue = torch.zeros(count, CANVAS, CANVAS, dtype=torch.uint8, device=rng.device)
        self.made_of = torch.zeros(count, MOST_TISSUES, MOST_TISSUES, dtype=torch.bool, device=rng.device)
        self.made_of[:, 0, 0] = True
        self.registered = torch.zeros(count, MOST_TISSUES, dtype=torch.bool, device=rng.device)
        self.tones = torch.zeros(count, MOST_TISSUES, device=rng.device)
        self.strengths = torch.zeros(count, MOST_TISSUES, device=rng.device)
        self.patterns = torch.zeros(count, MOST_TISSUES, dtype=torch.long, device=rng.device)
        # How far apart tissues are in this picture: many real borders are faint, and no match for the texture.
        self.spread = rng.log_uniform(0.05, 0.6, count)
        related = rng.uniform(0.2, 1.2, count) * self.spread
        self.texture = torch.where(rng.chance(0.35, count), related, rng.uniform(0, 0.6, count) ** 2)
        self._dye(0, rng.uniform(0, 1, count))
        self._rows = torch.arange(count, device=rng.device)

    @property
    def full(self) -> bool:
        """Whether the canvas has no room for another organ with its parts."""
        return self.used > MOST_TISSUES - 6

    def tone(self, near: Tensor | None = None) -> Tensor:
        """A tissue's mean (n,); often close to `near` (n,), and now and then hardly or not at all visible beside it."""
        anywhere = self.rng.uniform(0, 1, self.count)
        if near is None:
            return anywhere
        step = torch.maximum((self.spread * self.rng.normal(self.count)).abs(), self.rng.uniform(0, 0.06, self.count))
        close = near + step * (1.0 - 2.0 * self.rng.chance(0.5, self.count))
        return torch.where(self.rng.chance(0.2, self.count), anywhere, close)

    def tissue_at(self, x: Tensor, y: Tensor) -> Tensor:
        """Number (n,) of the tissue at a position."""
        column, row = (((value + 1) * (CANVAS / 2)).long().clamp(0, CANVAS - 1) for value in (x, y))
        return self.tissue[self._rows, row, column].long()

    def tone_at(self, x: Tensor, y: Tensor) -> Tensor:
        """Tone (n,) at a position."""
        return self.tones[self._rows, self.tissue_at(x, y)]

    def paint(
        self, mask: Tensor, tone: Tensor, inside: Tensor | int | None = None, register: Tensor | bool = True
    ) -> int:
        """Paint a new tissue.

        Args:
            mask: (n, S, S).
            tone: of each picture's tissue.
            inside: number of the tissue, of each picture or of all, to which the mask is cut, and of whose objects the
                new tissue is then a part.
            register: whether it is an object of its own.

        Returns:
            Its number.
        """
        number = self._add(tone, register)
        if inside is not None:
            host = torch.as_tensor(inside, device=self.rng.device).expand(self.count)
            mask = mask & (self.tissue == wide(host).to(torch.uint8))
            self.made_of[:, :, number] |= self.made_of[self._rows, :, host]
        self.tissue = torch.where(mask, number, self.tissue)
        return number

    def paint_all(self, label: Tensor, tones: list[Tensor], where: Tensor, register: Tensor | bool = True) -> range:
        """Paint tissues by `label` (n, S, S), which counts `tones`, where `where` is true. Returns their numbers."""
        first = self.used
        for tone in tones:
            self._add(tone, register)
        self.tissue = torch.where(where, (first + label).to(torch.uint8), self.tissue)
        return range(first, self.used)

    def register_alone(self, number: int, register: Tensor | bool = True) -> None:
        """Register a tissue without its parts as one more object: a wall without its lumen."""
        self.made_of[:, self._new(register), number] = True

    def render(self) -> Tensor:
        """Intensities (n, S, S), about 0 to 1."""
        rng = self.rng
        stretch = torch.where(rng.chance(0.3, self.count), rng.log_uniform(0.2, 5, self.count), 1.0)
        fields = [smooth_noise(rng, rng.log_uniform(2, 64, self.count), stretch) for _ in range(_SPOTS - 1)]
        coarse = rng.log_uniform(3, 12, self.count)  # and all that is finer: the look of glands and bowels
        fields.append(sum(0.6 * 0.7**octave * smooth_noise(rng, coarse * 2**octave, stretch) for octave in range(4)))
        spots = smooth_noise(rng, rng.uniform(8, 40, self.count)) > wide(rng.uniform(0.4, 1.2, self.count))
        fields = torch.stack([*fields, 2.5 * spots], dim=1).flatten(2)
        tissue = self.tissue.flatten(1).long()
        pattern = fields.gather(1, self.patterns.gather(1, tissue)[:, None])[:, 0]
        image = self.tones.gather(1, tissue) + self.strengths.gather(1, tissue) * pattern
        return image.reshape(self.tissue.shape)

    def _new(self, register: Tensor | bool) -> int:
        """The number of one more object."""
        if self.used == MOST_TISSUES:
            raise RuntimeError(f"a scene has more than {MOST_TISSUES} tissues")
        self.used += 1
        self.registered[:, self.used - 1] = register
        return self.used - 1

    def _add(self, tone: Tensor, register: Tensor | bool) -> int:
        """The number of a new tissue, which is an object."""
        number = self._new(register)
        self.made_of[:, number, number] = True
        self._dye(number, tone)
        return number

    def _dye(self, number: int, tone: Tensor) -> None:
        """Give tissue `number` a tone, and often a pattern."""
        rng = self.rng
        self.tones[:, number] = tone
        self.strengths[:, number] = self.texture * rng.uniform(0.2, 1, self.count) * rng.chance(0.55, self.count)
        smooth = rng.integers(0, _SPOTS, self.count)
        self.patterns[:, number] = torch.where(rng.chance(0.2, self.count), _SPOTS, smooth)


# ---------------------------------------------------------------- parts of scenes


def _competition(fields: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Which of the fields is the largest (n, S, S), and by how much."""
    best, label = fields[0], torch.zeros_like(fields[0], dtype=torch.long)
    second = torch.full_like(best, -math.inf)
    for number, field in enumerate(fields[1:], 1):
        wins = field > best
        second = torch.where(wins, best, torch.maximum(second, field))
        best = torch.where(wins, field, best)
        label = torch.where(wins, number, label)
    return label, best - second


def _mosaic(canvas: Canvas, where: Tensor | None = None, register: bool = True) -> None:
    """Divide the pictures by the arg-max of smooth noises, sometimes with a seam of other tissue."""
    rng, count = canvas.rng, canvas.count
    cells = int(rng.shared.integers(2, 9))
    nodes, finer = rng.uniform(2, 9, count), rng.uniform(8, 24, count)
    rough = rng.uniform(0.1, 0.5, count) * rng.chance(0.6, count)
    fields = [smooth_noise(rng, nodes) + wide(rough) * smooth_noise(rng, finer) for _ in range(cells)]
    label, lead = _competition(fields)
    base = canvas.tone()
    tones = [canvas.tone(base) for _ in range(cells)]
    where = torch.ones_like(label, dtype=torch.bool) if where is None else where
    canvas.paint_all(label, tones, where, register)
    seam = wide(rng.uniform(0.08, 0.5, count) * rng.chance(0.4, count))
    canvas.paint(where & (lead < seam), canvas.tone(base), register=False)


def _background(canvas: Canvas) -> None:
    """The background: tissue mosaics, a smooth field or plain."""
    rng, count = canvas.rng, canvas.count
    shaded = rng.chance(0.5, count)
    canvas.strengths[:, 0] = torch.where(shaded, canvas.spread, canvas.strengths[:, 0])
    if rng.shared.random() < 0.8:
        _mosaic(canvas, rng.chance(0.7, count, 1, 1).expand_as(canvas.tissue), register=False)


def _radius(rng: Random, count: int) -> Tensor:
    """Half an object's width in view units, small to large."""
    return rng.log_uniform(0.05, 0.55, count)


def _organ(
    canvas: Canvas, x: Tensor, y: Tensor, radius: Tensor, here: Tensor, tone: Tensor | None = None,
    structured: float = 0.5,
) -> None:  # fmt: skip
    """One blob in those pictures where it is `here` (n,), at times with a capsule, with structure inside."""
    if canvas.full:
        return
    rng, count = canvas.rng, canvas.count
    bend = rng.uniform(0, 0.12, count) * rng.chance(0.75, count)
    level = blob(rng, x, y, radius, warped_grid(rng, bend))
    if rng.shared.random() < 0.35:
        canvas.paint(_rim(rng, level, radius, here), canvas.tone(canvas.tone_at(x, y)), register=False)
    number = canvas.paint(level < wide(here.float()), canvas.tone(canvas.tone_at(x, y)) if tone is None else tone)
    if rng.shared.random() < structured:
        _inside(canvas, number, level, (x, y, radius))


def _rim(rng: Random, level: Tensor, radius: Tensor, here: Tensor) -> Tensor:
    """Around an organ in most pictures, and under it: a capsule, or fluid and fat that lie along a part of it."""
    count = len(radius)
    rim = level < wide((1 + rng.uniform(0.04, 0.25, count)) * (here & rng.chance(0.7, count)))
    part = smooth_noise(rng, rng.uniform(0.7, 2, count) / radius.clamp(min=0.1))
    return rim & (part > wide(torch.where(rng.chance(0.5, count), rng.uniform(-0.5, 0.8, count), -9.0)))


def _inside(canvas: Canvas, number: int, level: Tensor, disc: tuple[Tensor, Tensor, Tensor]) -> None:
    """Structure inside an organ, in most of the pictures; much of it belongs to the organ and must not be taken for
    its border."""
    if canvas.full:
        return
    rng, count = canvas.rng, canvas.count
    x, y, radius = disc
    here = rng.chance(0.8, count)
    kind = rng.shared.choice(("wall", "lesion", "zones", "spots", "vessels", "filling", "bundles"))
    own = canvas.tones[:, number]
    if kind == "wall":
        lumen = level < wide(rng.uniform(0.35, 0.9, count) * here)
        canvas.paint(lumen, canvas.tone(own), number)
        canvas.register_alone(number, here)
        if rng.shared.random() < 0.4:
            canvas.paint(level < wide(rng.uniform(0.2, 0.4, count) * here), canvas.tone(own), canvas.used - 2)
    elif kind == "lesion":
        away, turn = radius * rng.uniform(0, 0.7, count), rng.uniform(0, 2 * math.pi, count)
        lesion = blob(rng, x + away * turn.cos(), y + away * turn.sin(), rng.uniform(0.2, 0.6, count) * radius,
                      grid(rng.device))  # fmt: skip
        canvas.paint(lesion < wide(here.float()), canvas.tone(own), number)
    elif kind == "zones":
        # As many bumps across the canvas as make one to three across the organ.
        field = smooth_noise(rng, rng.uniform(1, 3, count) / radius.clamp(min=0.1))
        sharp = field > wide(rng.uniform(-0.6, 0.8, count) + 9.0 * ~here)
        canvas.paint(sharp, canvas.tone(own), number, rng.chance(0.25, count))
    elif kind == "spots":
        field = smooth_noise(rng, rng.uniform(2, 8, count) / radius.clamp(min=0.1))
        canvas.paint(field > wide(rng.uniform(0.8, 1.8, count) + 9.0 * ~here), canvas.tone(own), number, False)
    elif kind == "vessels":
        field = smooth_noise(rng, rng.uniform(1.5, 6, count) / radius.clamp(min=0.1))
        canvas.paint(field.abs() < wide(rng.uniform(0.05, 0.25, count) * here), canvas.tone(own), number, False)
    elif kind == "bundles":
        _divide(canvas, number, radius, here)
    else:
        _fill_to_a_level(canvas, number, level, disc, here)


def _divide(canvas: Canvas, number: int, radius: Tensor, here: Tensor) -> None:
    """Bundles or lobes of about one tone, often with seams, as muscles and kidneys have them: all of it is organ."""
    rng, count = canvas.rng, canvas.count
    nodes = rng.uniform(0.7, 2, count) / radius.clamp(min=0.1)
    label, lead = _competition([smooth_noise(rng, nodes) for _ in range(int(rng.shared.integers(2, 5)))])
    own, alike = canvas.tones[:, number], rng.chance(0.5, count)
    seam = lead < wide(rng.uniform(0.05, 0.3, count) * (here & rng.chance(0.7, count)))
    canvas.paint(seam, canvas.tone(own), number, False)
    for part in range(1, int(label.max()) + 1):
        tone = torch.where(alike, own + 0.02 * rng.normal(count), canvas.tone(own))
        canvas.paint((label == part) & wide(here), tone, number, rng.chance(0.4, count))


def _fill_to_a_level(
    canvas: Canvas, number: int, level: Tensor, disc: tuple[Tensor, Tensor, Tensor], here: Tensor
) -> None:
    """Gas above fluid, as in a stomach or a bowel: a part cut off by a straight line, inside a wall or without one."""
    rng, count = canvas.rng, canvas.count
    columns, rows = grid(rng.device)
    x, y, radius = disc
    tilt = 0.2 * rng.normal(count) + math.pi / 2 * rng.integers(0, 4, count)
    height = (columns - wide(x)) * wide(tilt.sin()) + (rows - wide(y)) * wide(tilt.cos())
    within = level < wide(rng.uniform(0.6, 1.1, count) * here)
    canvas.paint(
        within & (height > wide(radius * rng.uniform(-0.6, 0.6, count))), canvas.tone(), number,
        rng.chance(0.25, count),
    )  # fmt: skip


# ---------------------------------------------------------------- scenes


def _scene_blobs(canvas: Canvas) -> None:
    """A few organs on a background, the last painted in full view."""
    rng, count = canvas.rng, canvas.count
    _background(canvas)
    for number in range(int(rng.shared.integers(4, 12))):
        _organ(canvas, *rng.uniform(-1, 1, 2, count), _radius(rng, count), rng.chance(0.75, count) | (number == 0))
    _organ(canvas, *rng.uniform(-0.4, 0.4, 2, count), rng.log_uniform(0.15, 0.5, count), rng.chance(0.7, count),
           structured=0.7)  # fmt: skip


def _scene_mosaic(canvas: Canvas) -> None:
    """A mosaic in which every piece is an object, with an organ or two on top."""
    rng, count = canvas.rng, canvas.count
    _mosaic(canvas)
    for _ in range(int(rng.shared.integers(0, 3))):
        _organ(canvas, *rng.uniform(-0.8, 0.8, 2, count), _radius(rng, count), rng.chance(0.7, count))


def _scene_tubes(canvas: Canvas) -> None:
    """Vessels, ducts, bowel: thin, bent, branching, some with a wall."""
    rng, count = canvas.rng, canvas.count
    _background(canvas)
    for _ in range(int(rng.shared.integers(0, 3))):
        _organ(canvas, *rng.uniform(-1, 1, 2, count), _radius(rng, count), rng.chance(0.7, count))
    for _ in range(int(rng.shared.integers(1, 5))):
        width = rng.log_uniform(0.025, 0.16, count)
        x, y = rng.uniform(-0.7, 0.7, 2, count)
        near = canvas.tone_at(x, y)
        level = tube(rng, x, y, rng.uniform(0.5, 1.5, count), width, int(rng.shared.integers(0, 4)))
        number = canvas.paint(level < 1, canvas.tone(near))
        walled = rng.chance(0.5, count) & (width > 0.06)
        lumen = level < wide(rng.uniform(0.4, 0.85, count) * walled)
        canvas.paint(lumen, canvas.tone(canvas.tones[:, number]), number)


def _scene_repeats(canvas: Canvas) -> None:
    """Many alike: nodules, vertebrae, cells, teeth; each one is an object."""
    rng, count = canvas.rng, canvas.count
    _background(canvas)
    radius = rng.log_uniform(0.05, 0.3, count)
    tone, place = canvas.tone(canvas.tones[:, 0]), warped_grid(rng, rng.uniform(0, 0.1, count))
    in_row = rng.chance(0.5, count)
    turn, gap = rng.uniform(0, math.pi, count), radius * rng.uniform(2.1, 3.2, count)
    for number in range(int(rng.shared.integers(4, 14))):
        along = (number - 5) * gap
        x, y = rng.uniform(-0.95, 0.95, 2, count)
        x, y = torch.where(in_row, along * turn.cos(), x), torch.where(in_row, along * turn.sin(), y)
        level = blob(rng, x, y, radius * rng.uniform(0.8, 1.2, count), place)
        canvas.paint(level < 1, tone + 0.02 * rng.normal(count))


def _scene_body(canvas: Canvas) -> None:
    """A trunk, limb or head on air, seen whole or from near: skin, fat, organs, spine with its canal, ribs."""
    rng, count = canvas.rng, canvas.count
    near = rng.chance(0.5, count)
    zoom = torch.where(near, rng.uniform(1.2, 3, count), rng.uniform(0.9, 1.2, count))
    x0, y0 = rng.uniform(-0.6, 0.6, 2, count) * near
    place = warped_grid(rng, rng.uniform(0, 0.04, count) * zoom)
    half_width, half_height = rng.uniform(0.8, 1, count), rng.uniform(0.55, 0.9, count)
    level = torch.hypot(
        (place[0] / wide(zoom) + wide(x0)) / wide(half_width), (place[1] / wide(zoom) + wide(y0)) / wide(half_height)
    )
    canvas.tones[:, 0], canvas.strengths[:, 0] = rng.uniform(0, 0.1, count), 0.02
    fat, muscle = rng.uniform(0.1, 0.9, 2, count)
    skin = rng.uniform(0.75, 0.95, count)
    body = canvas.paint(level < 1, fat)
    trunk = canvas.paint(level < wide(skin), muscle, body)
    cavity = canvas.paint(level < wide(skin - rng.uniform(0.05, 0.15, count)), canvas.tone(fat), trunk)
    canvas.register_alone(trunk)
    typical = rng.uniform(0.2, 0.8, count)
    for _ in range(int(rng.shared.integers(4, 12))):
        if canvas.used > MOST_TISSUES - _FRAME:
            break
        x, y = (rng.uniform(-0.6, 0.6, count) - x0) * zoom, (rng.uniform(-0.45, 0.45, count) - y0) * zoom
        radius = zoom * rng.log_uniform(0.04, 0.4, count)
        shape = blob(rng, x, y, radius, warped_grid(rng, 0.03 * zoom * rng.uniform(0, 1.5, count)))
        here = rng.chance(0.8, count)
        number = canvas.paint(shape < wide(here.float()), canvas.tone(typical), cavity)
        if rng.shared.random() < 0.3:
            _inside(canvas, number, shape, (x, y, radius))
    _muscles(canvas, x0, y0, zoom, muscle)
    bone = torch.where(rng.chance(0.7, count), rng.uniform(0.7, 1.3, count), rng.uniform(0, 0.3, count))
    sx, sy = (0.05 * rng.normal(count) - x0) * zoom, (rng.uniform(0.3, 0.5, count) - y0) * zoom
    canvas.paint(blob(rng, sx, sy, zoom * rng.uniform(0.08, 0.16, count), place) < 1, bone)
    canal = blob(rng, sx, sy + 0.15 * zoom, zoom * rng.uniform(0.04, 0.08, count), place)
    arch = canvas.paint(canal < 1.5, bone, register=False)
    canvas.paint(canal < 1, canvas.tone(muscle), arch)
    for _ in range(int(rng.shared.integers(0, 9))):
        angle = rng.uniform(0, 2 * math.pi, count)
        x, y = (0.8 * skin * angle.cos() - x0) * zoom, (0.62 * skin * angle.sin() - y0) * zoom
        canvas.paint(blob(rng, x, y, zoom * rng.uniform(0.02, 0.06, count), place) < 1, bone)


def _muscles(canvas: Canvas, x0: Tensor, y0: Tensor, zoom: Tensor, tone: Tensor) -> None:
    """A pair of long muscles on either side of where the spine comes, of bundles between which there may be fat."""
    rng, count = canvas.rng, canvas.count
    here, radius = rng.chance(0.6, count), zoom * rng.uniform(0.08, 0.2, count)
    away, height = rng.uniform(0.12, 0.3, count), rng.uniform(0.4, 0.6, count)
    for side in (-1, 1):
        x, y = (side * away - x0) * zoom, (height - y0) * zoom
        level = blob(rng, x, y, radius, warped_grid(rng, 0.06 * zoom * rng.uniform(0, 1, count)))
        canvas.paint(_rim(rng, level, radius, here), canvas.tone(tone), register=False)
        number = canvas.paint(level < wide(here.float()), tone + 0.02 * rng.normal(count))
        if not canvas.full and rng.shared.random() < 0.7:
            _divide(canvas, number, radius, here)


def _scene_crowd(canvas: Canvas) -> None:
    """Organs pressed against each other as in an abdomen: few tones, seams of fat that come and go.

    A neighbour of the same grey value that reaches into an object's box is what boxes are most often misled by.
    """
    rng, count = canvas.rng, canvas.count
    _background(canvas)
    organs = int(rng.shared.integers(5, 15))
    place = warped_grid(rng, rng.log_uniform(0.02, 0.12, count))
    typical = rng.uniform(0.15, 0.5, count)
    xs, ys = rng.uniform(-1.1, 1.1, 2, organs, count)
    radii = typical * rng.uniform(-0.5, 0.5, organs, count).exp()
    levels = [blob(rng, x, y, radius, place) for x, y, radius in zip(xs, ys, radii, strict=True)]
    label, lead = _competition([-level for level in levels])
    nearest = torch.stack(levels).amin(0)
    rough = (0.8 + smooth_noise(rng, rng.uniform(4, 12, count))).clamp(min=0.1)
    gap = (nearest > wide(rng.uniform(0.9, 1.8, count))) | (lead < wide(rng.uniform(0.02, 0.2, count)) * rough)
    canvas.paint(gap & wide(rng.chance(0.7, count)), canvas.tone(), register=False)
    filled = canvas.tone_at(*rng.uniform(-1, 1, 2, count))
    palette = torch.stack([canvas.tone(filled) for _ in range(3)])
    colours = int(rng.shared.integers(1, 4))
    own = [palette[int(rng.shared.integers(colours))] + 0.02 * rng.normal(count) for _ in range(organs)]
    numbers = canvas.paint_all(label, own, ~gap)
    for number, level, x, y, radius in zip(numbers, levels, xs, ys, radii, strict=True):
        if rng.shared.random() < 0.45:
            _inside(canvas, number, level, (x, y, radius))


SCENES = (_scene_blobs, _scene_mosaic, _scene_tubes, _scene_repeats, _scene_body, _scene_crowd)
SCENE_ODDS = (0.27, 0.11, 0.11, 0.09, 0.20, 0.22)

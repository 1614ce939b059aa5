"""The effects of a scanner and a viewer on a synthetic scene: blur, artefacts, resolution, noise, window; n pictures at
once.

Views, blurs and changes of resolution are products with small matrices, one for each picture. Pictures are float32
(n, row, column) of 128 x 128, intensities about 0..1 until `display`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from SAMFineTuneLib.simulation.device_random import Random
from SAMFineTuneLib.training.synthetic_shapes import CANVAS, wide

SIZE = 128
_COARSEST = 4.0  # view pixels a pixel of the scanner is wide at most


def gaussian_rows(position: Tensor, sigma: Tensor, samples: int) -> Tensor:
    """Weights (n, R, samples) that blur around each `position` (n, R) with `sigma` (n,), both in samples."""
    at = torch.arange(samples, device=position.device)
    # The nearest sample first, so that a position outside sees the border and not nothing.
    position = position.clamp(0, samples - 1)
    weight = torch.exp(-0.5 * ((position[:, :, None] - at) / wide(sigma.clamp(min=0.3))) ** 2)
    return weight / weight.sum(-1, keepdim=True)


def look(rng: Random, image: Tensor, start: Tensor, side: Tensor) -> Tensor:
    """Canvases (n, S, S) seen through the views that begin at `start` (n, 2) as x, y and are `side` (n,) canvas pixels
    wide -> (n, 128, 128), blurred by the scanner."""
    count = len(side)
    step = side / SIZE
    blur = rng.uniform(0.3, 1.1, count)
    line = torch.arange(SIZE, device=side.device) + 0.5
    columns, rows = (
        gaussian_rows(
            start[:, axis, None] + line * step[:, None] - 0.5,
            (step * torch.hypot(blur * rng.uniform(-0.2, 0.2, count).exp(), torch.full_like(blur, 0.4))).clamp(min=0.5),
            CANVAS,
        )
        for axis in (0, 1)
    )
    return rows @ image @ columns.transpose(1, 2)


def scan(rng: Random, picture: Tensor, closeness: Tensor) -> Tensor:
    """Bias field, artefacts, anisotropic resolution, noise and interpolation back to 128 x 128.

    `closeness` (n,) 0 to 1 says from how near a view looks: what is near may be coarser.
    """
    count = len(picture)
    biased = wide(rng.uniform(0, 0.3, count) * rng.chance(0.4, count))
    picture = _partly_soft(rng, picture) * (1 + biased * _slow_field(rng, count)) * _coil(rng, count)
    picture = _disturbed(rng, picture)
    finest = math.log(1.5) + closeness * (math.log(_COARSEST) - math.log(1.5))
    coarse = (rng.uniform(0, 1, count) * finest * rng.chance(0.6, count)).exp()
    uneven = (rng.uniform(0, 0.7, count) * rng.chance(0.25, count)).exp()
    upright = rng.chance(0.5, count)
    pixel = [torch.where(upright == (axis == 0), coarse * uneven, coarse).clamp(max=_COARSEST) for axis in (0, 1)]
    samples = [(SIZE / side).round() for side in pixel]
    cubic = rng.chance(0.35, count)
    down = [_averaging(number) for number in samples]
    up = [_interpolation(number, cubic) for number in samples]
    seen = _noisy(rng, down[0] @ picture @ down[1].transpose(1, 2))
    return up[0] @ seen @ up[1].transpose(1, 2)


def _partly_soft(rng: Random, picture: Tensor) -> Tensor:
    """Blur a part of one picture in three: where a thick slice cuts a surface at a slant, its border is a slope."""
    count = len(picture)
    width = torch.where(rng.chance(0.33, count), rng.log_uniform(1.5, 6, count), 0.0)
    line = torch.arange(SIZE, device=picture.device, dtype=torch.float32)
    rows = gaussian_rows(line.expand(count, -1), width, SIZE)
    share = (0.5 + 1.5 * _slow_field(rng, count)).clamp(0, 1) * wide(width > 0)
    return torch.lerp(picture, rows @ picture @ rows.transpose(1, 2), share)


def _slow_field(rng: Random, count: int) -> Tensor:
    """A field (n, 128, 128) of unit size with one or two bumps across: what a coil is not even in."""
    line = torch.linspace(-1, 1, SIZE, device=rng.device)
    turn, phase = rng.uniform(0, 2 * math.pi, 2, count)
    slope = line[None, None, :] * wide(turn.cos()) + line[None, :, None] * wide(turn.sin())
    return 1.4 * torch.sin(wide(rng.uniform(0.5, 3, count)) * slope + wide(phase))


def _coil(rng: Random, count: int) -> Tensor:
    """Brightness (n, 128, 128) that in one picture of twelve falls off from one place, as around a surface coil."""
    line = torch.linspace(-1, 1, SIZE, device=rng.device)
    x, y = rng.uniform(-0.9, 0.9, 2, count)
    near = rng.chance(1 / 12, count) / rng.log_uniform(0.3, 1.5, count) ** 2
    return 1 / (1 + wide(near) * ((line[None, None, :] - wide(x)) ** 2 + (line[None, :, None] - wide(y)) ** 2))


def _averaging(samples: Tensor) -> Tensor:
    """(n, 128, 128): the first `samples` (n,) rows average over equal stretches of the axis, the others are zero."""
    row = torch.arange(SIZE, device=samples.device)
    width = wide(SIZE / samples)
    left, pixel = row[None, :, None] * width, row[None, None, :]
    overlap = (torch.minimum(left + width, pixel + 1.0) - torch.maximum(left, pixel.float())).clamp(min=0)
    return overlap / width * (row[None, :, None] < wide(samples))


def _interpolation(samples: Tensor, cubic: Tensor) -> Tensor:
    """(n, 128, 128): from the first `samples` (n,) values, which span the axis, to 128; linear, or Catmull-Rom."""
    row = torch.arange(SIZE, device=samples.device)
    position = (row + 0.5)[None, :, None] * wide(samples / SIZE) - 0.5
    position = torch.minimum(position.clamp(min=0), wide(samples) - 1)
    d = (position - row[None, None, :]).abs()
    linear = (1 - d).clamp(min=0)
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    smooth = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    weight = torch.where(wide(cubic), smooth, linear) * (row[None, None, :] < wide(samples))
    return weight / weight.sum(-1, keepdim=True)


def _noisy(rng: Random, picture: Tensor) -> Tensor:
    """Add acquisition noise at the scanner's own resolution: white, Rician, Poisson, grainy or in streaks."""
    count = len(picture)
    strength = rng.log_uniform(0.004, 0.09, count)
    white, other = rng.normal(*picture.shape), rng.normal(*picture.shape)
    kind = rng.uniform(0, 1, count)
    poisson, grain = wide((kind > 0.55) & (kind < 0.7)), wide((kind >= 0.7) & (kind < 0.9))
    streaks, rice = wide(kind >= 0.9), wide(kind < 0.2)
    coarse = torch.nn.functional.avg_pool2d(white[:, None], 3, 1, 1)[:, 0] * 2.5
    noise = torch.where(grain, coarse, white)
    noise = torch.where(poisson, white * picture.clamp(0.02, 2).sqrt(), noise)
    noise = torch.where(streaks, 0.7 * white + 0.7 * other[:, :, :1], noise)
    louder = picture + wide(strength) * noise
    return torch.where(rice, torch.hypot(louder, wide(strength) * other), louder)


def _disturbed(rng: Random, picture: Tensor) -> Tensor:
    """Add an artefact to one picture in six or seven, along its rows or its columns."""
    count = len(picture)
    kind = rng.uniform(0, 1, count)
    turned = wide(rng.chance(0.5, count))
    picture = torch.where(turned, picture.transpose(1, 2), picture)
    begin = 0.0
    for end, artefact in ((0.06, _ghosts), (0.09, _metal), (0.12, _ringing), (0.15, _thick_slice)):
        chosen = ((kind >= begin) & (kind < end)).nonzero()[:, 0]
        if len(chosen):
            picture = picture.index_copy(0, chosen, artefact(rng, picture[chosen]))
        begin = end
    return torch.where(turned, picture.transpose(1, 2), picture)


def _ghosts(rng: Random, picture: Tensor) -> Tensor:
    """Copies far away, or near ones of something that moved."""
    count, line = len(picture), torch.arange(SIZE, device=rng.device)
    far = rng.chance(0.6, count)
    shift = torch.where(far, rng.integers(SIZE // 12, SIZE // 2, count), rng.integers(1, 4, count))
    strength = torch.where(far, rng.uniform(0.03, 0.2, count), torch.ones(count, device=rng.device))
    copies = sum(
        picture.gather(1, ((line + sign * shift[:, None]) % SIZE)[:, :, None].expand_as(picture)) for sign in (1, -1)
    )
    return (picture + wide(strength) * copies) / wide(1 + 2 * strength)


def _metal(rng: Random, picture: Tensor) -> Tensor:
    """Streaks around a place."""
    count, line = len(picture), torch.arange(SIZE, device=rng.device)
    x, y = rng.uniform(0, SIZE, 2, count)
    right, down = line[None, None, :] - wide(x), line[None, :, None] - wide(y)
    number = (torch.atan2(down, right) / (2 * math.pi) + 0.5) * wide(rng.integers(24, 120, count))
    values = rng.normal(count, 121).gather(1, number.long().flatten(1)).reshape(number.shape)
    return picture + wide(rng.uniform(0.5, 2, count)) * values / (12 + torch.hypot(down, right))


def _ringing(rng: Random, picture: Tensor) -> Tensor:
    """High frequencies are lost."""
    frequencies = torch.fft.rfft(picture, dim=1)
    kept = rng.uniform(0.3, 0.6, len(picture)) * frequencies.shape[1]
    number = torch.arange(frequencies.shape[1], device=rng.device)
    return torch.fft.irfft(frequencies * (number[None, :, None] < wide(kept)), SIZE, dim=1)


def _thick_slice(rng: Random, picture: Tensor) -> Tensor:
    """Neighbouring slices show an object larger and smaller."""
    count, line = len(picture), torch.arange(SIZE, device=rng.device)
    scale = rng.uniform(0.03, 0.14, count)[:, None]
    middle, narrow = (SIZE - 1) / 2, torch.full((count,), 0.5, device=rng.device)
    total = picture
    for factor in (1 + scale, 1 - scale):
        weights = gaussian_rows(middle + (line - middle) * factor, narrow, SIZE)
        total = total + weights @ picture @ weights.transpose(1, 2)
    return total / 3


def display(rng: Random, picture: Tensor) -> Tensor:
    """Window, gamma, inversion and range -> whole numbers 0 to 255, as float32."""
    count = len(picture)
    sample = picture[:, ::3, ::3].flatten(1).sort(dim=1).values
    # How much a narrow window takes for black and for white.
    kind = rng.uniform(0, 1, count)
    most = torch.where(kind < 0.25, 0.0, torch.where(kind < 0.85, 0.05, 0.25))
    low, high = (
        sample.gather(1, ((sample.shape[1] - 1) * share).long()[:, None])[:, :, None]
        for share in (most * rng.uniform(0, 1, count), 1 - most * rng.uniform(0, 1, count))
    )
    picture = ((picture - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
    gamma = (rng.uniform(-0.6, 0.6, count) * rng.chance(0.4, count)).exp()
    picture = picture ** wide(gamma)
    picture = torch.where(wide(rng.chance(0.2, count)), 1 - picture, picture)
    span = torch.where(rng.chance(0.4, count), rng.uniform(0.35, 1, count), 1.0)
    return (255 * (wide(rng.uniform(0, 1, count) * (1 - span)) + wide(span) * picture)).floor()

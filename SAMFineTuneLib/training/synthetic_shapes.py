"""Shapes of synthetic pictures: smooth noise, lobed ellipses, branching tubes; a batch of n pictures at once.

Positions are view units: x and y run from -1 to 1 across the canvas. Tensors are (n, row, column); what belongs to a
picture as a whole is (n,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from SAMFineTuneLib.simulation.device_random import Random

CANVAS = 192
"""Side of the canvas that a scene is painted on; `synthetic_scanner.look` looks at a part of it or at the whole."""
_BUMP = 0.55  # width of one node's influence, in distances between nodes


def grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """x (1, 1, S) and y (1, S, 1) of the canvas' pixels."""
    axis = (torch.arange(CANVAS, device=device) + 0.5) * (2 / CANVAS) - 1
    return axis[None, None, :], axis[None, :, None]


def wide(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1), to be combined with pictures."""
    return values[:, None, None]


def smooth_noise(rng: Random, nodes: Tensor, stretch: Tensor | None = None) -> Tensor:
    """Noise (n, S, S) of zero mean and unit deviation with about `nodes` (n,) bumps across.

    `stretch` (n,) makes the bumps that much longer along y than along x.
    """
    most = int(nodes.max().clamp(2, CANVAS / 2).ceil()) + 1
    position = (torch.arange(CANVAS, device=nodes.device) + 0.5) / CANVAS
    node = torch.arange(most, device=nodes.device)

    def weights(across: Tensor) -> Tensor:
        distance = position[None, :, None] * wide(across.clamp(2, most - 1)) - node
        weight = torch.exp(-0.5 * (distance / _BUMP) ** 2)
        return weight / weight.norm(dim=-1, keepdim=True)

    along = nodes if stretch is None else nodes / stretch
    return weights(along) @ rng.normal(len(nodes), most, most) @ weights(nodes).transpose(1, 2)


def warped_grid(rng: Random, strength: Tensor) -> tuple[Tensor, Tensor]:
    """x and y (n, S, S) of every pixel, bent by smooth noise of `strength` (n,) view units."""
    x, y = grid(rng.device)
    nodes = rng.uniform(3, 9, len(strength))
    return x + wide(strength) * smooth_noise(rng, nodes), y + wide(strength) * smooth_noise(rng, nodes)


def blob(rng: Random, x: Tensor, y: Tensor, radius: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
    """Level function (n, S, S) of a lobed, turned ellipse, some long and bent as a spleen is: below 1 inside; its size
    grows linearly with the level."""
    count = len(radius)
    bent = rng.chance(0.3, count)
    aspect = torch.where(bent, rng.uniform(-0.8, -0.1, count), rng.uniform(-0.35, 0.35, count)).exp()
    turn = rng.uniform(0, math.pi, count)
    cosine, sine = turn.cos(), turn.sin()
    dx, dy = place[0] - wide(x), place[1] - wide(y)
    u = wide(cosine * aspect / radius) * dx + wide(sine * aspect / radius) * dy
    v = wide(cosine / (aspect * radius)) * dy - wide(sine / (aspect * radius)) * dx
    v = v + wide(bent * rng.uniform(-1, 1, count)) * (u * u - 0.4)
    level = (u * u + v * v).sqrt()
    # Lobes: a few terms of a Fourier series of the direction, as the real part of a polynomial of u + iv.
    order = torch.arange(1, 6, device=rng.device)
    size = rng.normal(count, 5) * rng.uniform(0.05, 0.25, count, 5) / order**0.7
    size = size * rng.chance(0.4, count, 5) * rng.chance(0.7, count, 1)
    factor = torch.polar(size.abs(), rng.uniform(0, 2 * math.pi, count, 5))
    direction = torch.complex(u, v) / level.clamp(min=1e-4)
    series = wide(factor[:, 4]) * direction
    for k in (3, 2, 1, 0):
        series = (series + wide(factor[:, k])) * direction
    return level / (1 + series.real).clamp(0.35, 2)


def tube(rng: Random, x: Tensor, y: Tensor, length: Tensor, width: Tensor, branches: int) -> Tensor:
    """Level function (n, S, S) of a wandering tube with side branches: below 1 inside, 0 along its middle."""
    columns, rows = grid(rng.device)
    count, level = len(width), None
    starts = [(x, y, rng.uniform(0, 2 * math.pi, count), width)]
    for branch in range(1 + branches):
        px, py, heading, thick = starts[int(rng.shared.integers(len(starts))) if branch else 0]
        steps = 6 if branch else 8
        bend = 0.25 * rng.normal(count)
        for step in range(steps):
            heading = heading + bend + 0.25 * rng.normal(count)
            ex, ey = length / steps * heading.cos(), length / steps * heading.sin()
            dx, dy = columns - wide(px), rows - wide(py)
            along = ((dx * wide(ex) + dy * wide(ey)) / wide(ex * ex + ey * ey + 1e-9)).clamp(0, 1)
            squared = (dx - along * wide(ex)) ** 2 + (dy - along * wide(ey)) ** 2
            near = squared / wide((thick * (1 - 0.3 * step / steps)) ** 2)
            level = near if level is None else torch.minimum(level, near)
            px, py = px + ex, py + ey
            side = 1.0 - 2.0 * rng.chance(0.5, count)
            starts.append((px, py, heading + side * rng.uniform(0.4, 1.2, count), 0.75 * thick))
    return level.sqrt()

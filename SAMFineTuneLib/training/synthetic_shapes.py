"""Shapes of synthetic pictures: lobed ellipses and branching tubes.

Coordinates are view units: x and y run from -1 to 1 across the picture. Arrays are [row, column], 128 x 128.
"""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.training.synthetic_scanner import SIZE, Rng, smooth_noise

AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1
X, Y = np.meshgrid(AXIS, AXIS)
STRAIGHT = (X, Y)
"""x and y of every pixel."""


def warped_grid(rng: Rng, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, bent by smooth noise of `strength` view units."""
    bend = strength * smooth_noise(rng, rng.integers(3, 9), 2)
    return X + bend[0], Y + bend[1]


def blob(rng: Rng, x: float, y: float, radius: float, grid: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
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


def tube(rng: Rng, x: float, y: float, length: float, width: float, branches: int) -> np.ndarray:
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
    dx, dy = X[rows, columns] - ax, Y[rows, columns] - ay
    if not dx.size:
        return
    ex, ey = bx - ax, by - ay
    along = np.clip((dx * ex + dy * ey) / (ex * ex + ey * ey + 1e-9), 0, 1)
    mask[rows, columns] |= (dx - along * ex) ** 2 + (dy - along * ey) ** 2 < radius**2

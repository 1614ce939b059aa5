"""What a scanner and a viewer do to a synthetic scene: blur, resolution, noise, window, zoom, padding.

Smooth noise, blurs and changes of resolution are products with small matrices, so that each costs well under a
millisecond. Pictures are float32 arrays [row, column] of 128 x 128, intensities about 0..1 until `display`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

SIZE = 128
PADDING_VALUE = 110

Rng = np.random.Generator


# ---------------------------------------------------------------- matrices


@lru_cache(maxsize=256)
def _upsampling(nodes: int, order: int = 3) -> np.ndarray:
    """(128, nodes) spline interpolation from `nodes` samples that span the axis."""
    positions = (np.arange(SIZE) + 0.5) * nodes / SIZE - 0.5
    columns = [ndimage.map_coordinates(row, [positions], order=order, mode="nearest") for row in np.eye(nodes)]
    return np.stack(columns, axis=1).astype(np.float32)


@lru_cache(maxsize=256)
def _averaging(nodes: int) -> np.ndarray:
    """(nodes, 128) mean over equal stretches of the axis."""
    edges = np.linspace(0, SIZE, nodes + 1)
    left, right = edges[:-1, None], edges[1:, None]
    pixel = np.arange(SIZE)
    overlap = np.clip(np.minimum(right, pixel + 1) - np.maximum(left, pixel), 0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=256)
def _gaussian(tenths: int) -> np.ndarray:
    """(128, 128) Gaussian blur along one axis, sigma in tenths of a pixel."""
    distance = np.arange(SIZE)[:, None] - np.arange(SIZE)
    kernel = np.exp(-0.5 * (distance / (tenths / 10)) ** 2)
    kernel[kernel < 1e-6] = 0  # denormal numbers would make the product many times slower
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


def _blur(picture: np.ndarray, sigma_y: float, sigma_x: float) -> np.ndarray:
    rows, columns = (_gaussian(max(1, round(10 * sigma))) for sigma in (sigma_y, sigma_x))
    return rows @ picture @ columns.T


def smooth_noise(rng: Rng, nodes: int, count: int | None = None) -> np.ndarray:
    """Zero-mean unit-ish noise (128, 128), or (count, 128, 128), with about `nodes` bumps across."""
    nodes = max(2, min(int(nodes), SIZE))
    shape = (nodes, nodes) if count is None else (count, nodes, nodes)
    up = _upsampling(nodes)
    return up @ rng.standard_normal(shape, dtype=np.float32) @ up.T


# ---------------------------------------------------------------- the scanner and the viewer


def _noisy(rng: Rng, picture: np.ndarray) -> np.ndarray:
    """Add one kind of acquisition noise at the scanner's own resolution."""
    strength = np.float32(np.exp(rng.uniform(np.log(0.004), np.log(0.09))))
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    kind = rng.choice(["gauss", "rice", "poisson", "grain", "streaks"], p=[0.35, 0.2, 0.15, 0.2, 0.1])
    if kind == "rice":
        return np.hypot(picture + strength * noise, strength * rng.standard_normal(picture.shape, dtype=np.float32))
    if kind == "poisson":
        noise = noise * np.sqrt(np.clip(picture, 0.02, 2))
    elif kind == "grain":
        noise = 2 * ndimage.gaussian_filter(noise, rng.uniform(0.5, 1.5), truncate=2)
    elif kind == "streaks":
        noise = 0.7 * noise + 0.7 * rng.standard_normal((picture.shape[0], 1), dtype=np.float32)
    return picture + strength * noise


def _disturbed(rng: Rng, picture: np.ndarray) -> np.ndarray:
    """Add one artefact: ghosts of a moving patient, movement, streaks of metal, ringing, a thick slice."""
    kind = rng.choice(["ghosts", "movement", "streaks", "ringing", "thick"])
    axis = int(rng.integers(2))
    if kind == "ghosts":
        shift, strength = int(rng.integers(SIZE // 12, SIZE // 2)), np.float32(rng.uniform(0.03, 0.2))
        return picture + strength * (np.roll(picture, shift, axis) + np.roll(picture, -shift, axis))
    if kind == "movement":
        shift = int(rng.integers(1, 4))
        return (np.roll(picture, shift, axis) + picture + np.roll(picture, -shift, axis)) / 3
    if kind == "streaks":
        row, column = np.unravel_index(int(rng.choice([np.argmax(picture), rng.integers(picture.size)])), picture.shape)
        down, right = np.arange(SIZE)[:, None] - row, np.arange(SIZE) - column
        rays = rng.standard_normal(int(rng.integers(24, 120))).astype(np.float32)
        turn = (np.arctan2(down, right) / (2 * np.pi) + 0.5) * (len(rays) - 1)
        return picture + np.float32(rng.uniform(0.5, 2)) * rays[turn.astype(int)] / (12 + np.hypot(down, right))
    if kind == "ringing":
        frequencies = np.fft.rfft(picture, axis=axis)
        cut = [slice(None)] * 2
        cut[axis] = slice(int(rng.uniform(0.3, 0.6) * frequencies.shape[axis]), None)
        frequencies[tuple(cut)] = 0
        return np.fft.irfft(frequencies, SIZE, axis).astype(np.float32)
    width = SIZE * rng.uniform(0.86, 0.97)
    nearer = _interpolation((SIZE - width) / 2, width)
    farther = _interpolation((SIZE - SIZE**2 / width) / 2, SIZE**2 / width)
    return (picture + nearer @ picture @ nearer.T + farther @ picture @ farther.T) / 3


def scan(rng: Rng, picture: np.ndarray, finest: float) -> np.ndarray:
    """Bias field, blur, artefacts, anisotropic resolution, noise and interpolation back to 128 x 128.

    The coarsest pixel is `finest` picture pixels wide, so that small objects stay visible.
    """
    if rng.random() < 0.4:
        picture = picture * (1 + np.float32(rng.uniform(0, 0.3)) * smooth_noise(rng, rng.integers(2, 4)))
    picture = _blur(picture, *(rng.uniform(0.3, 1.1) * np.exp(rng.uniform(-0.2, 0.2, 2))))
    if rng.random() < 0.15:
        picture = _disturbed(rng, picture)
    coarse = np.exp(rng.uniform(0, np.log(finest))) if rng.random() < 0.6 else 1.0
    anisotropy = np.exp(rng.uniform(0, 0.7)) if rng.random() < 0.2 else 1.0
    pixel = np.clip(np.array([coarse, coarse * anisotropy])[rng.permutation(2)], 1, finest)
    rows, columns = (max(int(SIZE / side), 16) for side in pixel)
    seen = _noisy(rng, _averaging(rows) @ picture @ _averaging(columns).T)
    order = int(rng.choice([0, 1, 3], p=[0.05, 0.6, 0.35]))
    return _upsampling(rows, order) @ seen @ _upsampling(columns, order).T


def display(rng: Rng, picture: np.ndarray) -> np.ndarray:
    """Window, gamma, inversion and range -> uint8."""
    sample = picture[::3, ::3]
    cut = rng.choice([0.0, 5.0, 25.0], p=[0.25, 0.6, 0.15])  # percent: what a narrow window takes for black and white
    low, high = np.percentile(sample, [rng.uniform(0, cut), rng.uniform(100 - cut, 100)])
    picture = np.clip((picture - low) / max(high - low, 1e-3), 0, 1)
    if rng.random() < 0.4:
        picture = picture ** np.float32(np.exp(rng.uniform(-0.6, 0.6)))
    if rng.random() < 0.2:
        picture = 1 - picture
    if rng.random() < 0.4:
        span = rng.uniform(0.35, 1)
        picture = rng.uniform(0, 1 - span) + span * picture
    return (255 * picture).astype(np.uint8)


def _interpolation(start: float, width: float) -> np.ndarray:
    """(128, 128) linear resampling of the pixels `start`..`start + width` (may reach outside) to 128."""
    at = np.clip(start + (np.arange(SIZE) + 0.5) * width / SIZE - 0.5, 0, SIZE - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(SIZE)), 0).astype(np.float32)


def look_closer(rng: Rng, picture: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop to about twice one object's box and enlarge, as the predictor does around a prompt."""
    mask = masks[rng.integers(len(masks))]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    width = float(np.clip(side * rng.uniform(1.4, 3), 20, SIZE))
    wobble = rng.uniform(-0.15, 0.15, 2) * width
    starts = [np.clip((line[0] + line[-1] + 1) / 2 + shift - width / 2, -2, SIZE + 2 - width)
              for line, shift in zip((rows, columns), wobble, strict=True)]  # fmt: skip
    vertical, horizontal = (_interpolation(start, width) for start in starts)
    # The enlarged mask is blurred before the threshold, or its border would be a staircase no real object has.
    sigma = max(0.35 * SIZE / width, 0.3)
    soft = (
        _gaussian(round(10 * sigma))
        @ vertical
        @ masks.astype(np.float32)
        @ horizontal.T
        @ _gaussian(round(10 * sigma)).T
    )
    return vertical @ picture @ horizontal.T, soft > 0.5


def cut_to_shape(rng: Rng, image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Sometimes keep only an oblong part; the rest becomes padding, as with real oblong pictures."""
    rows = columns = SIZE
    if rng.random() < 0.2:
        short = int(rng.integers(SIZE // 2, SIZE))
        rows, columns = (short, SIZE) if rng.random() < 0.5 else (SIZE, short)
        image, masks = image.copy(), masks.copy()
        for array, value in ((image, PADDING_VALUE), (masks, False)):
            array[..., rows:, :] = value
            array[..., :, columns:] = value
    return image, masks, (rows, columns)

"""Augmentations of finetune-SAM (Gu et al., 2024): equalise, brightness and contrast, scale and crop, rotation.
Also differences between scanners: bias field, blur, noise (as in SynthSeg, Billot et al., 2023).

A picture and its classes go through the same transform; classes by the nearest pixel, so that no new class arises. Left
and right are never exchanged, because they differ in a patient.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_EQUALISE = 0.1  # probability
_COLOUR = 0.3  # change of brightness, contrast and gamma
_SCALES = (0.5, 1.5)
_DEGREES = 45.0
_SHIFT = 0.1  # of the longer side
_SCANNER = 0.5  # probability of each of the following
_BIAS = 0.3  # logarithm of the field at its strongest
_BLUR = 0.005  # Gaussian's sigma, of the longer side
_NOISE = 0.06  # deviation, in a picture of 0..1


def augment(
    rng: np.random.Generator, picture: np.ndarray, classes: np.ndarray, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Augment a picture and its classes.

    Args:
        rng: Draws the changes.
        picture: uint8 [rows, columns].
        classes: uint8 [rows, columns].
        strength: 1 for the augmentations of finetune-SAM, 0 for none.

    Returns:
        Changed copies of both.
    """
    if strength <= 0:
        return picture, classes
    moved, labels = _move(rng, picture, classes, strength)
    return _shade(rng, moved, strength), labels


def _move(
    rng: np.random.Generator, picture: np.ndarray, classes: np.ndarray, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate, scale and shift; pixels from outside repeat the picture's edge and have no class."""
    angle = np.deg2rad(rng.uniform(-_DEGREES, _DEGREES) * strength)
    low, high = (1 + (scale - 1) * strength for scale in _SCALES)
    scale = np.exp(rng.uniform(np.log(max(low, 0.1)), np.log(high)))
    shift = rng.uniform(-_SHIFT, _SHIFT, 2) * strength * max(picture.shape)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    middle = (np.array(picture.shape) - 1) / 2
    offset = middle - matrix @ (middle + shift)
    moved = ndimage.affine_transform(picture, matrix, offset, order=1, mode="nearest")
    labels = ndimage.affine_transform(classes, matrix, offset, order=0, mode="constant", cval=0)
    return moved, labels


def _shade(rng: np.random.Generator, picture: np.ndarray, strength: float) -> np.ndarray:
    equalised = rng.random() < _EQUALISE * min(strength, 1.0)
    brightness, contrast, gamma = 1 + _COLOUR * strength * rng.uniform(-1, 1, 3)
    grey = (_equalise(picture) if equalised else picture) / np.float32(255)
    middle = grey.mean()
    grey = np.clip(((grey - middle) * contrast + middle) * brightness, 0, 1) ** np.float32(gamma)
    grey = np.clip(_scan(rng, grey, strength), 0, 1)
    return np.rint(255 * grey).astype(np.uint8)


def _scan(rng: np.random.Generator, grey: np.ndarray, strength: float) -> np.ndarray:
    """The picture as another scanner might show it; grey values of about 0 to 1."""
    biased, blurred, noisy = rng.random(3) < _SCANNER * min(strength, 1.0)
    bias, blur, noise = (most * strength * rng.random() for most in (_BIAS, _BLUR, _NOISE))
    if biased:
        turn, phase = rng.uniform(0, 2 * np.pi, 2)
        rows, columns = (np.linspace(-np.pi / 2, np.pi / 2, size, dtype=np.float32) for size in grey.shape)
        wave = np.sin(np.cos(turn) * rows[:, None] + np.sin(turn) * columns + phase)
        grey = grey * np.exp(np.float32(bias) * wave)
    if blurred:
        grey = ndimage.gaussian_filter(grey, blur * max(grey.shape))
    if noisy:
        grey = grey + np.float32(noise) * rng.standard_normal(grey.shape, dtype=np.float32)
    return grey


def _equalise(picture: np.ndarray) -> np.ndarray:
    """Replace grey values by their share of darker pixels."""
    counts = np.bincount(picture.ravel(), minlength=256)
    first = counts[np.flatnonzero(counts)[0]]
    below = np.cumsum(counts) - first
    return np.rint(255 * below / max(1, below[-1])).clip(0, 255).astype(np.uint8)[picture]

"""Size, contrast and complexity of objects of known shape."""

from __future__ import annotations

import numpy as np
import pytest

from SAMFineTuneLib.evaluation.factors import complexity, contrast, elliptic_fourier, series


def disc(shape=(128, 128)):
    rows, columns = np.indices(shape) - np.array(shape)[:, None, None] / 2
    return rows**2 + columns**2 <= 30**2


def test_a_disc_is_of_the_first_order():
    assert complexity(disc()) == 1


def test_a_star_needs_more_than_a_square_and_a_square_more_than_a_disc():
    rows, columns = np.indices((128, 128)) - 64.0
    star = np.hypot(rows, columns) <= 35 + 15 * np.cos(5 * np.arctan2(rows, columns))
    square = (abs(rows) <= 30) & (abs(columns) <= 30)
    assert 1 < complexity(square) < complexity(star) <= 20


def test_holes_and_position_do_not_count():
    square = np.zeros((90, 90), bool)
    square[5:65, 20:80] = True
    holed = square.copy()
    holed[30:40, 40:50] = False
    moved = np.roll(square, (15, 5), (0, 1))
    assert complexity(holed) == complexity(square) == complexity(moved)


def test_the_series_gives_back_the_polygon_it_came_from():
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    outline = np.stack([50 + 30 * np.cos(angles) + 4 * np.cos(3 * angles), 40 + 20 * np.sin(angles)], axis=1)
    coefficients, centre = elliptic_fourier(outline, 60)
    back = series(coefficients, centre, 4000)
    nearest = np.linalg.norm(outline[:, None] - back[None], axis=2).min(axis=1)
    assert centre == pytest.approx(outline.mean(axis=0), abs=1.0) and nearest.max() < 0.1


def test_contrast_is_that_to_the_surround_only():
    mask = disc()
    picture = np.where(mask, 180, 100).astype(np.uint8)
    picture[:10] = 255  # far away
    assert contrast(picture, mask) == pytest.approx(80 / 255, abs=1e-6)
    assert contrast(255 - picture, mask) == pytest.approx(80 / 255, abs=1e-6)
    assert contrast(picture, np.ones_like(mask)) == 0.0

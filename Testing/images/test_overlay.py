"""Overlay pictures: what is drawn, where, and that the file is whole."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from SAMFineTuneLib.images.overlay import overlay_picture


def drawn(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image).astype(int)


def test_small_pictures_are_enlarged_evenly_and_large_ones_are_not(tmp_path):
    overlay_picture(tmp_path / "small.png", np.full((50, 100), 90, np.uint8))
    overlay_picture(tmp_path / "large.png", np.full((40, 700), 90, np.uint8))
    assert drawn(tmp_path / "small.png").shape == (300, 600, 3)
    assert drawn(tmp_path / "large.png").shape == (40, 700, 3)
    assert (drawn(tmp_path / "small.png") == 90).all()


def test_a_mask_has_a_full_outline_and_a_translucent_inside_and_stays_in_its_pixels(tmp_path):
    mask = np.zeros((64, 64), bool)
    mask[10:20, 30:50] = True
    overlay_picture(tmp_path / "mask.png", np.full((64, 64), 100, np.uint8), [(mask, (1, 0, 0))])
    colors = drawn(tmp_path / "mask.png")
    scale = colors.shape[0] // 64
    colored = (colors[..., 0] != colors[..., 1]).reshape(64, scale, 64, scale).any(axis=(1, 3))
    assert np.array_equal(colored, mask)
    assert tuple(colors[10 * scale, 40 * scale]) == (255, 0, 0)  # outline
    r, g, b = colors[15 * scale, 40 * scale]
    assert 100 < r < 255 and 40 < g == b < 100  # the picture shows through


def test_prompts_are_drawn_at_their_pixels(tmp_path):
    points = [(10, 20, True), (50.0, 40.0, False)]
    overlay_picture(tmp_path / "p.png", np.zeros((64, 64), np.uint8), points=points, boxes=[(5, 6, 58, 60)])
    colors = drawn(tmp_path / "p.png")
    scale = colors.shape[0] // 64
    green, red = (
        colors[20 * scale + scale // 2, 10 * scale + scale // 2],
        colors[int(40.5 * scale), int(50.5 * scale)],
    )
    assert green[1] > 200 > green[0] and red[0] > 200 > red[1]
    on_box = colors[int(6.5 * scale) - 1 : int(6.5 * scale) + 2, 30 * scale].max(axis=0)
    assert on_box[0] > 200 and on_box[1] > 150


def test_prompts_beyond_the_picture_and_boxes_the_wrong_way_round_are_no_error(tmp_path):
    overlay_picture(
        tmp_path / "p.png",
        np.zeros((600, 600), np.uint8),
        points=[(-20, 900, True)],
        boxes=[(50, 60, 10, 20)],
    )
    assert drawn(tmp_path / "p.png").any()


def test_two_masks_keep_their_own_colors(tmp_path):
    first, second = np.zeros((2, 600, 600), bool)
    first[:100], second[500:] = True, True
    overlay_picture(
        tmp_path / "m.png",
        np.zeros((600, 600), np.uint8),
        [(first, (0, 1, 0)), (second, (0, 0, 1)), (first[::-1] & 0, (1, 1, 1))],
    )
    colors = drawn(tmp_path / "m.png")
    assert colors[50, 300].argmax() == 1 and colors[550, 300].argmax() == 2 and not colors[300].any()


def test_a_failure_leaves_neither_a_new_nor_a_damaged_file(tmp_path):
    path = tmp_path / "picture.png"
    overlay_picture(path, np.zeros((8, 8), np.uint8))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="shape"):
        overlay_picture(path, np.zeros((8, 8), np.uint8), [(np.ones((8, 9), bool), (1, 0, 0))])
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["picture.png"]

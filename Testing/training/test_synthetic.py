"""The generator of synthetic pictures: deterministic, well-formed, varied."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from SAMFineTuneLib.training import synthetic  # noqa: E402
from SAMFineTuneLib.training.synthetic import SCENES, synthetic_picture  # noqa: E402
from SAMFineTuneLib.training.synthetic_scanner import (  # noqa: E402
    PADDING_VALUE,
    SIZE,
    cut_to_shape,
    look_closer,
    smooth_noise,
)


@pytest.fixture(scope="module")
def pictures():
    return [synthetic_picture((11, i)) for i in range(60)]


def test_the_same_seed_gives_the_same_picture(pictures):
    again = synthetic_picture((11, 5))
    np.testing.assert_array_equal(again.image, pictures[5].image)
    np.testing.assert_array_equal(again.masks, pictures[5].masks)


def test_other_seeds_give_other_pictures(pictures):
    assert len({picture.image.tobytes() for picture in pictures}) == len(pictures)


def test_pictures_and_masks_have_their_types(pictures):
    for picture in pictures:
        assert picture.image.shape == (SIZE, SIZE) and picture.image.dtype == np.uint8
        assert picture.masks.shape[1:] == (SIZE, SIZE) and picture.masks.dtype == bool
        assert 1 <= len(picture.masks) <= 8


def test_every_object_is_visible_and_none_is_the_whole_picture(pictures):
    areas = np.array([mask.sum() for picture in pictures for mask in picture.masks])
    assert areas.min() >= synthetic.MIN_AREA and areas.max() <= 0.7 * SIZE * SIZE


def test_no_object_reaches_into_the_padding(pictures):
    oblong = [picture for picture in pictures if picture.shape != (SIZE, SIZE)]
    assert oblong, "some pictures must be oblong"
    for picture in oblong:
        rows, columns = picture.shape
        assert not picture.masks[:, rows:].any() and not picture.masks[:, :, columns:].any()
        assert (picture.image[rows:] == PADDING_VALUE).all() and (picture.image[:, columns:] == PADDING_VALUE).all()


def test_objects_come_in_many_sizes_and_some_are_nested(pictures):
    areas = [mask.sum() for picture in pictures for mask in picture.masks]
    assert np.percentile(areas, 10) < 150 and np.percentile(areas, 90) > 1500
    nested = sum((a & b).sum() == b.sum() < a.sum() for p in pictures for a in p.masks for b in p.masks if a is not b)
    assert nested > 3


def test_the_limit_of_objects_is_kept():
    assert all(len(synthetic_picture((12, i), limit=2).masks) <= 2 for i in range(10))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("zoomed", [False, True])
def test_every_scene_paints_objects_inside_the_picture(scene, zoomed):
    found = 0
    for seed in range(6):
        canvas = synthetic.Canvas(np.random.default_rng(seed))
        scene(canvas, zoomed)
        found += len(canvas.objects)
        assert np.isfinite(canvas.image).all()
        assert all(mask.shape == (SIZE, SIZE) and mask.dtype == bool for mask in canvas.objects)
    assert found


def test_what_is_painted_over_is_no_longer_part_of_the_object_below():
    canvas = synthetic.Canvas(np.random.default_rng(0))
    left, middle = np.zeros((2, SIZE, SIZE), bool)
    left[:, :80], middle[:, 60:100] = True, True
    canvas.paint(left, 0.2)
    canvas.paint(middle, 0.8)
    assert not (canvas.objects[0] & canvas.objects[1]).any()


def test_a_nested_part_stays_in_its_whole():
    canvas = synthetic.Canvas(np.random.default_rng(0))
    whole, part = np.zeros((2, SIZE, SIZE), bool)
    whole[20:100, 20:100], part[40:60, 40:60] = True, True
    canvas.paint(whole, 0.2)
    canvas.paint(part, 0.8, nested=True)
    assert canvas.objects[0][50, 50] and canvas.objects[1][50, 50]


def test_mask_and_picture_stay_together_when_looked_at_closely():
    mask = np.zeros((1, SIZE, SIZE), bool)
    mask[0, 50:66, 70:90] = True
    picture, closer = look_closer(np.random.default_rng(3), mask[0].astype(np.float32), mask)
    assert closer.sum() > 2 * mask.sum()
    assert ((picture > 0.5) ^ closer[0]).sum() < 0.06 * closer.sum()


def test_smooth_noise_is_centred_and_of_unit_size():
    noise = smooth_noise(np.random.default_rng(0), 12, 50)
    assert noise.shape == (50, SIZE, SIZE)
    assert abs(noise.mean()) < 0.05 and 0.5 < noise.std() < 1.2


def test_cutting_leaves_the_input_alone():
    image, masks = np.full((SIZE, SIZE), 7, np.uint8), np.ones((1, SIZE, SIZE), bool)
    shapes = [cut_to_shape(np.random.default_rng(seed), image, masks)[2] for seed in range(40)]
    assert any(shape != (SIZE, SIZE) for shape in shapes)
    assert (image == 7).all() and masks.all()

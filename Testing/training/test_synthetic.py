"""The generator of synthetic pictures: deterministic, well-formed, varied."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from SAMFineTuneLib.simulation.device_random import Random  # noqa: E402
from SAMFineTuneLib.training import synthetic_pictures as synthetic  # noqa: E402
from SAMFineTuneLib.training import synthetic_scanner  # noqa: E402
from SAMFineTuneLib.training.synthetic_pictures import synthetic_pictures  # noqa: E402
from SAMFineTuneLib.training.synthetic_scanner import SIZE  # noqa: E402
from SAMFineTuneLib.training.synthetic_scenes import MOST_TISSUES, SCENES, Canvas  # noqa: E402
from SAMFineTuneLib.training.synthetic_shapes import CANVAS, smooth_noise  # noqa: E402


@pytest.fixture(scope="module")
def pictures():
    return synthetic_pictures((11,), 64, 4)


def rectangle(top, bottom, left, right):
    mask = torch.zeros(1, CANVAS, CANVAS, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


def tone(value):
    return torch.tensor([value])


def objects(canvas):
    """Masks (k, S, S) of the registered objects of a canvas' only picture."""
    numbers = canvas.registered[0].nonzero()[:, 0]
    return canvas.made_of[0, numbers][:, canvas.tissue[0].long()]


def test_the_same_seed_gives_the_same_pictures(pictures):
    again = synthetic_pictures((11,), 64, 4)
    for name in ("image", "shape", "masks", "points", "beyond"):
        assert torch.equal(getattr(again, name), getattr(pictures, name)), name
    assert not torch.equal(synthetic_pictures((12,), 64, 4).image, pictures.image)


def test_all_pictures_of_a_batch_differ(pictures):
    assert len({picture.numpy().tobytes() for picture in pictures.image}) == len(pictures.image)


def test_pictures_are_whole_grey_values(pictures):
    image = pictures.image
    assert image.shape == (64, SIZE, SIZE) and image.min() >= 0 and image.max() <= 255
    assert torch.equal(image, image.floor())
    assert image.flatten(1).std(1).median() > 20, "most pictures have contrast"


def test_every_object_is_there_and_its_point_lies_in_it(pictures):
    masks, points = pictures.masks.flatten(0, 1), pictures.points.flatten(0, 1)
    assert masks.flatten(1).any(1).all()
    column, row = (points + 0.5).long().clamp(0, SIZE - 1).unbind(1)
    around = torch.nn.functional.max_pool2d(masks.float()[:, None], 3, 1, 1)[:, 0]
    assert (around[torch.arange(len(masks)), row, column] > 0).all(), "at most in the pixel beside it"


def test_objects_are_in_one_piece_and_of_many_sizes(pictures):
    ndimage = pytest.importorskip("scipy.ndimage")
    masks = pictures.masks.flatten(0, 1).numpy()
    pieces = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks]
    largest = [np.bincount(piece.ravel())[1:].max() / np.count_nonzero(piece) for piece in pieces]
    assert np.mean(np.array(largest) > 0.98) > 0.9
    areas = masks.sum((1, 2))
    assert np.percentile(areas, 10) < 250 and np.percentile(areas, 90) > 2000
    assert areas.min() >= 4


def test_some_objects_are_nested(pictures):
    masks = pictures.masks.flatten(2).float()
    common = masks @ masks.transpose(1, 2)
    area = masks.sum(2)
    nested = (common == area[:, None]) & (area[:, None] < 0.9 * area[:, :, None])
    assert nested.any((1, 2)).sum() > 5


def test_what_lies_beyond_the_view_is_counted_for_objects_that_its_edge_cuts(pictures):
    beyond, masks = pictures.beyond, pictures.masks
    cut = masks[..., 0].any(2) | masks[..., -1].any(2) | masks[..., 0, :].any(2) | masks[..., -1, :].any(2)
    assert not beyond[~cut].any() and (beyond[cut] > 0).float().mean() > 0.5
    assert (beyond >= 0).all()


def test_no_object_reaches_into_the_padding(pictures):
    oblong = (pictures.shape < SIZE).any(1).nonzero()[:, 0].tolist()
    assert 4 <= len(oblong) < 32
    for number in oblong:
        rows, columns = pictures.shape[number].tolist()
        for array in (pictures.masks[number], pictures.image[number]):
            assert not array[..., rows:, :].any() and not array[..., :, columns:].any()


def test_a_picture_alone_can_be_drawn():
    alone = synthetic_pictures((5, 7), 1, 2)
    assert alone.masks.shape == (1, 2, SIZE, SIZE) and alone.masks.flatten(2).any(2).all()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_scene_paints_objects(scene):
    for seed in range(8):
        canvas = Canvas(Random((seed,)), 3)
        scene(canvas)
        assert canvas.used <= MOST_TISSUES
        image = canvas.render()
        assert image.shape == (3, CANVAS, CANVAS) and torch.isfinite(image).all()
        areas = synthetic._areas(canvas.tissue, canvas.made_of)
        assert ((areas > 60) & canvas.registered).any(1).all(), "an object in each picture"


def test_what_is_painted_over_is_no_longer_part_of_the_object_below():
    canvas = Canvas(Random((0,)), 1)
    canvas.paint(rectangle(0, CANVAS, 0, 80), tone(0.2))
    canvas.paint(rectangle(0, CANVAS, 60, 100), tone(0.8))
    left, middle = objects(canvas)
    assert not (left & middle).any() and left.sum() == 60 * CANVAS and middle.sum() == 40 * CANVAS


def test_a_part_stays_in_its_whole_and_its_wall_can_be_asked_for():
    canvas = Canvas(Random((0,)), 1)
    number = canvas.paint(rectangle(20, 100, 20, 100), tone(0.2))
    canvas.paint(rectangle(40, 140, 40, 60), tone(0.8), inside=number)
    canvas.register_alone(number)
    whole, part, wall = objects(canvas)
    assert whole[50, 50] and part[50, 50] and not wall[50, 50] and wall[25, 25]
    assert not part[120, 50], "a part is cut to what it is a part of"
    assert torch.equal(whole, part | wall)


def test_parts_that_are_not_objects_belong_to_the_whole():
    canvas = Canvas(Random((0,)), 1)
    number = canvas.paint(rectangle(20, 100, 20, 100), tone(0.2))
    canvas.paint(rectangle(40, 60, 40, 60), tone(0.8), inside=number, register=False)
    (whole,) = objects(canvas)
    assert whole.sum() == 80 * 80


def test_picture_and_tissue_of_a_view_lie_over_each_other():
    mask = rectangle(70, 100, 60, 120)
    start, side = torch.tensor([[40.0, 50.0]]), torch.tensor([100.0])
    picture = synthetic_scanner.look(Random((3,)), mask.float(), start, side)
    seen = synthetic._seen_tissue(mask.to(torch.uint8), start, side)
    assert seen.sum() > 1.5 * mask.sum()
    assert ((picture > 0.5) ^ (seen > 0)).sum() < 0.04 * seen.sum()


def test_resampling_down_and_up_keeps_constants_and_places():
    samples = torch.tensor([128.0, 50.0, 31.0])
    down = synthetic_scanner._averaging(samples)
    for cubic in (False, True):
        up = synthetic_scanner._interpolation(samples, torch.tensor([cubic] * 3))
        both = up @ down
        torch.testing.assert_close(both.sum(-1), torch.ones(3, SIZE))
        line = torch.arange(SIZE).float()
        there_and_back = both @ line
        torch.testing.assert_close(there_and_back[:, 10:-10], line.expand(3, -1)[:, 10:-10], atol=0.51, rtol=0)


def test_smooth_noise_is_centred_and_of_unit_size():
    noise = smooth_noise(Random((0,)), torch.full((60,), 12.0))
    assert noise.shape == (60, CANVAS, CANVAS)
    assert noise.mean().abs() < 0.05 and 0.9 < noise.std() < 1.1


def test_a_view_without_any_object_shows_what_is_there():
    made_of = torch.eye(MOST_TISSUES, dtype=torch.bool)[None]
    registered = torch.zeros(1, MOST_TISSUES, dtype=torch.bool)
    registered[0, 5] = True
    visible = torch.zeros(1, MOST_TISSUES)
    visible[0, 0], visible[0, 3] = 100, 900
    chosen, beyond = synthetic._choose(Random((0,)), visible, visible, made_of, registered, 2)
    assert chosen[0, :, 3].all() and chosen.sum() == 2 and not beyond.any()
    visible[0, 5] = 4  # too small, but better than what is no object
    chosen, _ = synthetic._choose(Random((0,)), visible, visible, made_of, registered, 2)
    assert chosen[0, :, 5].all()

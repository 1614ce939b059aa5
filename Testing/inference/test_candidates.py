"""Which candidate is the answer, and how several become one."""

from __future__ import annotations

import numpy as np
import pytest

from SAMFineTuneLib.inference.input_crop import View
from SAMFineTuneLib.inference.mask_candidates import joined, most_agreed, of_largest_expected_dice, weights


def logits(probability):
    probability = np.asarray(probability, dtype=np.float64)
    return np.float32(np.log(probability / (1 - probability)))


@pytest.mark.parametrize("seed", range(5))
def test_the_joined_answer_has_the_largest_expected_dice_of_all_thresholds(seed):
    """Pixels are independent; the expected Dice is estimated from drawn truths and compared with every threshold."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.6, 0.9, 400)
    truths = rng.random((1000, 400)) < probability

    def expected(mask):
        return float(np.mean(2 * (truths & mask).sum(1) / (truths.sum(1) + mask.sum())))

    best = max(expected(probability > threshold) for threshold in np.linspace(0.05, 0.95, 19))
    # The predicted IoU of an honest model is that of its answer.
    mask = probability > best / 2
    score = float(np.mean((truths & mask).sum(1) / (truths | mask).sum(1)))
    low_res = np.tile(logits(probability.reshape(20, 20).clip(1e-4, 1 - 1e-4)), (4, 1, 1))
    answer, found = joined(low_res, np.full(4, score, np.float32))
    assert found == pytest.approx(score)
    assert expected(answer.ravel() > 0) > best - 0.01
    assert expected(answer.ravel() > 0) > expected(probability > 0.5), "a threshold of a half is too high"


def test_a_sure_answer_keeps_its_threshold():
    low_res = np.random.default_rng(0).normal(0, 4, (4, 8, 8)).astype(np.float32)
    answer, score = joined(np.tile(low_res[:1], (4, 1, 1)), np.ones(4, np.float32))
    np.testing.assert_allclose(answer, low_res[0], atol=1e-3)
    assert score == 1


def test_the_candidate_that_is_trusted_least_does_not_count():
    good, odd = np.full((8, 8), 3.0, np.float32), np.full((8, 8), -30.0, np.float32)
    answer, score = joined(np.stack([good, odd, good, good]), np.float32([0.9, 0.1, 0.8, 0.7]))
    assert (answer > 2.9).all() and score == pytest.approx(0.8)


def test_logits_stay_finite_whatever_is_answered():
    for value in (-1e4, 0.0, 1e4):
        answer, _ = joined(np.full((4, 4, 4), value, np.float32), np.zeros(4, np.float32))
        assert np.isfinite(answer).all()


def test_a_reading_that_runs_into_the_views_edge_has_less_weight():
    inside, cut = np.zeros((2, 16, 16), bool)
    inside[4:12, 4:12], cut[:, 8:] = True, True
    masks = np.stack([inside, cut])
    low_res = np.where(masks, 8.0, -8.0).astype(np.float32)
    scores = np.float32([0.5, 0.5])
    in_the_middle = weights(low_res, scores, masks, View(10, 10, 16, 16), (64, 64))
    assert in_the_middle[1] < in_the_middle[0]
    whole = weights(low_res, scores, masks, View(0, 0, 16, 16), (16, 16))
    assert whole[1] == pytest.approx(whole[0]), "the picture's own edge cuts nothing"


def test_weight_grows_with_predicted_iou_and_with_a_definite_outline():
    mask = np.zeros((3, 16, 16), bool)
    mask[:, 4:12, 4:12] = True
    steep = np.where(mask, 8.0, -8.0).astype(np.float32)
    steep[2, 2:14, 2:14] = np.maximum(steep[2, 2:14, 2:14], -0.5)  # hardly outside
    found = weights(steep, np.float32([0.8, 0.4, 0.8]), mask, View(0, 0, 16, 16), (16, 16))
    assert found[0] > found[1] and found[0] > found[2]


def readings():
    masks = np.zeros((6, 20, 20), bool)
    masks[0, 2:12, 2:12] = True  # found three times, a little different each time
    masks[1, 2:12, 2:13] = True
    masks[2, 3:12, 2:12] = True
    masks[3, 5:7, 5:7] = True  # a part of it
    masks[4] = True  # everything
    return masks  # and one that is empty


def test_what_is_found_again_and_again_is_what_is_meant():
    best, alike = most_agreed(readings(), np.full(6, 0.5))
    assert best == 0 and alike.argmax() == 0 and alike[0] == 1
    np.testing.assert_allclose(alike[1:], [100 / 110, 0.9, 0.04, 0.25, 0], atol=1e-6)
    assert most_agreed(readings(), np.array([0.5, 0.5, 0.5, 0.9, 0.9, 1.0]))[0] == 0, "though others are surer"


def test_among_likes_the_surest_wins():
    assert most_agreed(readings(), np.array([0.5, 0.5, 0.9, 0.1, 0.1, 0.1]))[0] == 2


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_readings_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    masks, trust = rng.random((8, 12, 12)) < rng.random((8, 1, 1)), rng.random(8)
    order = rng.permutation(8)
    assert order[most_agreed(masks[order], trust[order])[0]] == most_agreed(masks, trust)[0]


def test_where_nothing_overlaps_the_surest_wins():
    masks = np.zeros((3, 6, 6), bool)
    masks[0, 0], masks[1, 2], masks[2, 4] = True, True, True
    assert most_agreed(masks, np.array([0.2, 0.6, 0.5]))[0] == 1


def test_a_reading_alone_is_the_answer_even_when_it_is_empty():
    assert most_agreed(np.zeros((1, 4, 4), bool), np.ones(1)) == (0, [1])


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_larger_expected_dice(seed):
    rng = np.random.default_rng(seed)
    inside = rng.beta(0.6, 0.9, (20, 20)).astype(np.float32)
    truths = rng.random((1000, 20, 20)) < inside

    def expected(mask):
        return float(np.mean(2 * (truths & mask).sum((1, 2)) / (truths.sum((1, 2)) + mask.sum())))

    found = of_largest_expected_dice(inside)
    assert expected(found > 0) > max(expected(inside > at) for at in np.linspace(0.05, 0.95, 37)) - 0.003
    assert np.array_equal(np.argsort(found, axis=None), np.argsort(inside, axis=None)), "only the threshold moves"


def test_what_is_certain_is_the_mask_and_nothing_is_everything_alike():
    certain = np.zeros((8, 8), np.float32)
    certain[2:5, 2:6] = 1
    assert np.array_equal(of_largest_expected_dice(certain) > 0, certain == 1)
    for value in (0.0, 1.0):
        assert np.isfinite(of_largest_expected_dice(np.full((4, 4), value, np.float32))).all()

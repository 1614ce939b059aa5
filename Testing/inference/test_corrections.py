"""What a click may change in an answer, and what it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SAMFineTuneLib.inference.click_corrections import as_told, changed_near
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.preprocess import InputGeometry
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts

SIDE = 64
NOWHERE = np.zeros((0, 2))


def disc(x: float, y: float, radius: float, logit: float = 5.0) -> np.ndarray:
    rows, columns = np.indices((SIDE, SIDE))
    return np.where(np.hypot(columns - x, rows - y) <= radius, logit, -logit).astype(np.float32)


def click(x: float, y: float) -> np.ndarray:
    return np.float64([[x, y]])


POSITIVE, NEGATIVE = np.array([True]), np.array([False])


def grown(logit: float) -> np.ndarray:
    """A disc that grew at the left end, and at the right one, by pieces of this logit."""
    left, right = (disc(x, 32, 5, 1.0) > 0 for x in (18, 46))
    disc_itself = disc(32, 32, 12)
    return np.where((left | right) & (disc_itself < 0), np.float32(logit), disc_itself)


def test_an_unsure_change_stays_out_where_nobody_clicked():
    before = disc(32, 32, 12)
    answer = changed_near(before, grown(1.0), click(17, 32), POSITIVE) > 0
    assert answer[32, 15] and not answer[32, 49], "only the piece that was clicked"
    far = answer ^ (before > 0)
    far[:, :32] = False
    assert not (far & ~ndimage.binary_dilation(before > 0)).any(), "and elsewhere one cell at most"


@pytest.mark.parametrize("radius", [11, 13])
def test_the_outline_may_move_by_one_cell_all_around(radius):
    before, after = disc(32, 32, 12), disc(32, 32, radius, 1.0)
    answer = changed_near(before, after, click(44 if radius < 12 else 45, 32), NEGATIVE if radius < 12 else POSITIVE)
    one_cell = (ndimage.binary_erosion if radius < 12 else ndimage.binary_dilation)(before > 0)
    assert np.array_equal(answer > 0, (after > 0) & one_cell if radius > 12 else (after > 0) | one_cell)
    assert (answer > 0)[32, 20 if radius < 12 else 19] == (radius > 12), "on the far side, too"


def test_a_thin_mask_is_not_taken_away_by_a_click_at_one_end():
    before = np.full((SIDE, SIDE), -5, np.float32)
    before[31:34, 10:54] = 5  # three cells wide
    after = np.where(before > 0, np.float32(-1), before)
    answer = changed_near(before, after, click(12, 32), NEGATIVE) > 0
    assert not answer[32, 12] and answer[31:34, 24:54].all()


def test_a_click_far_from_a_small_mask_does_not_flood_the_view():
    before, after = disc(10, 32, 3), np.full((SIDE, SIDE), 3, np.float32)
    answer = changed_near(before, after, click(50, 32), POSITIVE) > 0
    assert answer[32, 50] and answer[32, 44] and not answer[32, 30] and not answer[5, 50]


def test_a_sure_change_is_made_anywhere():
    before, after = disc(32, 32, 12), grown(9.0)
    far = changed_near(before, after, click(14, 32), POSITIVE)  # 6 cells from the outline: it speaks for 12 cells
    assert np.array_equal(far, after)
    assert not (changed_near(before, after, click(19, 32), POSITIVE) > 0)[32, 49], "a click at the outline means little"


def test_where_there_is_no_outline_or_no_new_click_all_may_change():
    after = grown(1.0)
    for before, clicks in ((disc(32, 32, 12), NOWHERE), (np.full_like(after, -3), click(17, 32)),
                           (np.full_like(after, 3), click(17, 32))):  # fmt: skip
        assert changed_near(before, after, clicks, np.ones(len(clicks), bool)) is after


def test_all_new_clicks_count():
    before, after = disc(32, 32, 12), grown(1.0)
    both = changed_near(before, after, np.concatenate([click(17, 32), click(47, 32)]), np.array([True, True]))
    assert np.array_equal(both, after)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4))
def test_every_cell_is_as_before_or_as_after_and_the_clicked_one_as_after(seed, count):
    random = np.random.default_rng(seed)
    before, after = random.normal(0, 3, (2, SIDE, SIDE)).astype(np.float32)
    clicks = random.integers(0, SIDE, (count, 2))
    positive = after[clicks[:, 1], clicks[:, 0]] > 0
    answer = changed_near(before, after, clicks.astype(float), positive)
    assert (((answer > 0) == (before > 0)) | ((answer > 0) == (after > 0))).all()
    assert np.array_equal(answer[clicks[:, 1], clicks[:, 0]], after[clicks[:, 1], clicks[:, 0]])
    again = changed_near(after, after, clicks.astype(float), positive)
    assert np.array_equal(again, after), "what agrees is left alone"


@pytest.mark.parametrize("positive", [POSITIVE, NEGATIVE])
def test_a_click_takes_nothing_away_that_it_is_meant_to_add_unless_the_model_is_sure(positive):
    sign = 1 if positive.all() else -1
    before, less = sign * disc(32, 32, 12), sign * disc(32, 32, 9, 1.0)
    assert np.array_equal(changed_near(before, less, click(38, 32), positive) > 0, before > 0), "against the click"
    assert not np.array_equal(changed_near(before, less, click(38, 32), ~positive) > 0, before > 0), "what it asks for"
    sure = 8 * less
    assert np.array_equal(changed_near(before, sure, click(38, 32), positive), sure)


def test_the_answer_to_a_lone_point_changes_more_easily():
    before, after = disc(32, 32, 12), grown(8.0)
    settled, first = (changed_near(before, after, click(16, 32), POSITIVE, lone) > 0 for lone in (False, True))
    assert not settled[32, 49] and first[32, 49]


def told(logits: np.ndarray, place: InputGeometry, pixels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return as_told(logits, place.to_low_res(pixels), place.shares(pixels), positive)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(24, 300), st.integers(24, 300)),
    positive=st.booleans(),
)
def test_a_clicked_pixel_is_what_was_said_of_it(seed, shape, positive):
    random = np.random.default_rng(seed)
    longest = max(shape)
    content = tuple(max(1, int(side * 128 / longest + 0.5)) for side in shape)
    place = InputGeometry(shape, content, 128, SIDE, "centred")
    logits = random.normal(0, 4, (SIDE, SIDE)).astype(np.float32)
    x, y = random.integers(0, shape[1]), random.integers(0, shape[0])
    answer = place.logits_to_picture(told(logits, place, np.float64([[x, y]]), np.array([positive])))
    assert (answer[y, x] > 0) == positive


def test_a_clicked_place_takes_its_surroundings_along_and_nothing_far():
    place = InputGeometry((SIDE, SIDE), (SIDE, SIDE), SIDE, SIDE, "centred")
    logits = disc(32, 32, 20)
    hole = told(logits, place, np.float64([[32, 32]]), np.array([False])) > 0
    assert not hole[32, 32] and not hole[32, 35] and hole[32, 47], "outline 20 away: a hole, and the rest stays"
    kept = told(logits, place, np.float64([[32, 32], [32, 34]]), np.array([True, False])) > 0
    assert kept[32, 32] and not kept[34, 32], "two clicks of two minds, both as told"
    same = told(logits, place, np.float64([[32, 32], [2, 2], [200, 3]]), np.array([True, False, True]))
    assert same is logits, "as told already, or not in the picture"


def test_with_the_bundled_model_no_click_is_ignored_and_small_errors_are_corrected_where_they_are():
    random = np.random.default_rng(4)
    rows, columns = np.indices((200, 240))
    truth = ((columns - 110) / 60) ** 2 + ((rows - 100) / 38) ** 2 <= 1
    picture = np.clip(random.normal(np.where(truth, 120, 95), 16), 0, 255).astype(np.uint8)
    predictor = Predictor(open_engine(Store().get()))
    xy, labels = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    prompts = PlanePrompts(xy, labels, box=np.float32([50, 62, 170, 138]))
    answer = predictor.predict(picture, prompts)
    for x, y, label in ((110, 100, 0), (60, 66, 1), (165, 100, 0), (110, 136, 0), (50, 130, 1), (130, 62, 0)):
        xy, labels = np.concatenate([xy, np.float32([[x, y]])]), np.append(labels, label)
        before, answer = answer.mask, predictor.predict(
            picture, PlanePrompts(xy, labels, box=prompts.box), previous=answer
        )
        found = answer.mask[xy[:, 1].astype(int), xy[:, 0].astype(int)]
        assert found.tolist() == (labels == 1).tolist()
        assert before.any() and answer.mask.any()


class Growing:
    """Answers with a disc, and with a larger one as soon as its answer is fed back."""

    device, digest, notices = "test", "growing", ()

    spec = ModelSpec(
        id="growing", name="growing", architecture="compact", input_size=SIDE, low_res_size=SIDE,
        coordinates="centred", ranks_all=True,
    )  # fmt: skip

    def encode(self, image):
        return {"image": image}

    def decode(self, embedding, point_coords, point_labels, mask_input, has_mask_input):
        logits = grown(1.0) if has_mask_input[0] else disc(32, 32, 12)
        return np.tile(logits, (1, 4, 1, 1)), np.full((1, 4), 0.99, np.float32)


@pytest.mark.parametrize("added", [1, 3])
def test_only_clicks_that_are_new_give_leave_to_change(added):
    """Scribbles are several points at once, and earlier points have had their say."""
    predictor = Predictor(Growing())
    first = PlanePrompts(np.float32([[32, 32], [32, 40]]), np.ones(2, np.int64))
    found = predictor.predict(np.zeros((SIDE, SIDE), np.uint8), first)
    assert found.points == 2
    new = np.float32([[17, 32], [17, 30], [47, 32]])[:added]
    more = PlanePrompts(np.concatenate([first.points, new]), np.ones(2 + added, np.int64))
    mask = predictor.predict(np.zeros((SIDE, SIDE), np.uint8), more, previous=found).mask
    assert mask[32, 15] and bool(mask[32, 49]) == (added == 3)

"""Where a zooming model looks: squares from a fixed ladder that always hold the prompts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from SAMFineTuneLib.inference.input_crop import (
    SMALLEST_SIDE,
    View,
    bounding_box,
    square_view,
    view_of_box,
    views_around,
    views_of_point,
)

SHAPES = st.tuples(st.integers(1, 700), st.integers(1, 700))
PART = st.floats(0, 1)


@st.composite
def boxes_in_pictures(draw):
    rows, columns = draw(SHAPES)
    x = sorted(draw(st.tuples(PART, PART)))
    y = sorted(draw(st.tuples(PART, PART)))
    box = np.float32([x[0] * (columns - 1), y[0] * (rows - 1), x[1] * (columns - 1), y[1] * (rows - 1)])
    return (rows, columns), box


@given(boxes_in_pictures(), st.sampled_from([64, 128, 1024]))
def test_the_view_lies_in_the_picture_holds_the_box_and_leaves_room_around_it(case, pixels):
    (rows, columns), box = case
    view = view_of_box((rows, columns), box, pixels)
    assert 0 <= view.top and view.top + view.rows <= rows and 0 <= view.left and view.left + view.columns <= columns
    assert view.contains(box.reshape(2, 2))
    longer = max(box[2] - box[0], box[3] - box[1]) + 1
    if view != View.whole((rows, columns)):
        assert max(view.rows, view.columns) >= min(1.5 * longer, rows, columns) or longer < SMALLEST_SIDE
        assert view.rows <= max(2.5 * longer, min(5 * longer, 1.25 * pixels), SMALLEST_SIDE)


@given(SHAPES, st.floats(1, 900), PART, PART)
def test_views_of_neighbouring_prompts_are_often_the_same(shape, side, x, y):
    rows, columns = shape
    center = (x * (columns - 1), y * (rows - 1))
    view = square_view(shape, center, side)
    again = square_view(shape, (view.left + view.columns / 2, view.top + view.rows / 2), max(view.rows, view.columns))
    assert again.rows == view.rows or View.whole(shape) in (again, view)


@given(boxes_in_pictures())
def test_cropping_and_pasting_are_inverse_and_points_move_along(case):
    (rows, columns), box = case
    picture = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    view = view_of_box((rows, columns), box, 128)
    pasted = view.paste(view.crop(picture), (rows, columns), -1)
    inside = pasted >= 0
    assert inside.sum() == view.rows * view.columns and np.array_equal(pasted[inside], picture[inside])
    x, y = np.round(box[:2]).astype(int)
    in_view_x, in_view_y = view.to_view(np.float32([[x, y]]))[0].astype(int)
    assert view.crop(picture)[in_view_y, in_view_x] == picture[y, x]


def test_a_view_is_no_smaller_than_the_models_input_where_that_costs_the_object_little():
    """What is enlarged is seen no better, only with less around it; but a tiny object is enlarged."""
    boxes = [np.float32([200, 200, 199 + side, 199 + side]) for side in (100, 50, 20, 4)]
    sides = [view_of_box((512, 512), box, 128).rows for box in boxes]
    assert sides == [192, 136, 68, SMALLEST_SIDE]


VIEWS = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(lambda part: View(*part))


@given(VIEWS, VIEWS)
def test_one_view_shows_of_another_what_both_hold(view, other):
    picture = np.arange(1, 1601).reshape(40, 40)
    expected = other.crop(view.paste(view.crop(picture), picture.shape, 0))
    assert np.array_equal(view.shown_in(other, view.crop(picture), 0), expected)


@given(boxes_in_pictures())
def test_further_views_hold_all_points_and_come_after_the_first(case):
    (rows, columns), box = case
    first = view_of_box((rows, columns), box, 128)
    views = views_around((rows, columns), first, box.reshape(2, 2))
    assert views[0] == first and 1 <= len(set(views)) == len(views) <= 3
    assert all(view.contains(box.reshape(2, 2)) for view in views)
    for view in views:
        assert 0 <= view.top and view.top + view.rows <= rows and 0 <= view.left and view.left + view.columns <= columns
    points = np.float32([[-5, -5], *box.reshape(2, 2)])
    assert first.shows(points).tolist() == [False, True, True]
    assert views_around((rows, columns), first, points) == [first], "nothing holds what is not in the picture"


@given(SHAPES, PART, PART, st.sampled_from([64, 128, 1024]))
def test_views_of_a_point_go_from_the_whole_to_one_smaller_than_the_input(shape, x, y, pixels):
    rows, columns = shape
    point = np.float32([x * (columns - 1), y * (rows - 1)])
    views = views_of_point(shape, point, pixels)
    sides = [max(view.rows, view.columns) for view in views]
    assert views[0] == View.whole(shape) and sides == sorted(sides, reverse=True) and len(views) <= 5
    assert all(view.contains(point[None]) for view in views)
    assert sides[-1] <= max(0.8 * min(max(shape), 2 * pixels), SMALLEST_SIDE) or len(views) == 1
    assert max(shape) < 3 * SMALLEST_SIDE or len(views) > 1


def test_the_box_of_a_mask_names_its_outermost_pixels():
    mask = np.zeros((9, 12), bool)
    assert bounding_box(mask) is None
    mask[2:5, 7] = True
    assert bounding_box(mask).tolist() == [7, 2, 7, 4]

"""Lassos in a session: the answer holds what they enclose, or leaves it out, whatever the model says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from region_engine import WINDOW, phantom, region_predictor
from stored_sessions import restored

from SAMFineTuneLib.images import aligned_plane, oblique_plane
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import BoxPrompt, LassoPrompt, PointPrompt
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import session_to_dict

SLICE = 9


@pytest.fixture
def session():
    session = Session(phantom()[0], region_predictor(), WINDOW)
    session.add_segment("tube")
    return session


def plane_of(session):
    return aligned_plane(session.volume, "axial", SLICE)


def lasso(plane, corners, positive=True):
    return LassoPrompt(tuple(map(tuple, plane.pixel_to_ras(np.array(corners, float)))), positive)


def square(x, y, half=3.4):
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def inside(plane, corners):
    """The pixels in a square."""
    rows, columns = np.indices(plane.shape)
    (left, top), (right, bottom) = np.min(corners, axis=0), np.max(corners, axis=0)
    return (columns > left) & (columns < right) & (rows > top) & (rows < bottom)


def start(session):
    """A point in the middle of the tube; its place in pixels."""
    at = session.volume.ijk_to_ras((round(14 + 0.3 * SLICE), 16, SLICE))
    session.add_prompt(1, PointPrompt(tuple(at)))
    return plane_of(session).ras_to_pixel(at)


def test_a_lasso_alone_is_in_the_answer_and_can_be_undone(session):
    plane = plane_of(session)
    corners = square(16, 16)
    session.add_prompt(1, lasso(plane, corners))
    assert session.mask(1, plane)[inside(plane, corners)].all()
    session.undo()
    assert session.mask(1, plane) is None
    session.redo()
    assert session.mask(1, plane)[inside(plane, corners)].all()


def test_lassos_after_a_point_change_what_they_enclose_and_nothing_else(session):
    plane, at = plane_of(session), start(session)
    before = session.mask(1, plane)
    far, near = square(55.2, 25.1, 2.4), square(at[0] + 1, at[1], 1.4)
    calls = session.predictor.encoder_calls
    session.add_prompt(1, lasso(plane, far))
    session.add_prompt(1, lasso(plane, near, positive=False))
    expected = (before | inside(plane, far)) & ~inside(plane, near)
    assert np.array_equal(session.mask(1, plane), expected) and not np.array_equal(expected, before)
    assert session.predictor.encoder_calls == calls
    session.add_prompt(1, lasso(plane, near))  # the last one decides
    assert session.mask(1, plane)[inside(plane, near)].all()
    session.add_prompt(1, BoxPrompt(*(tuple(plane.pixel_to_ras(at + side)) for side in (-6, 6))))
    assert session.mask(1, plane)[inside(plane, far)].all()


def test_a_negative_lasso_alone_says_nothing_of_where_the_structure_is(session):
    plane = plane_of(session)
    session.add_prompt(1, lasso(plane, square(17, 16), positive=False))
    assert not session.mask(1, plane).any()
    start(session)
    found = session.mask(1, plane)
    assert found.any() and not found[inside(plane, square(17, 16))].any()


def test_lassos_correct_propagated_masks(session):
    start(session)
    session.finish(session.propagate(1, PropagationSettings()))
    plane = aligned_plane(session.volume, "axial", SLICE + 2)
    before = session.mask(1, plane)
    assert before.any()
    middle = np.argwhere(before).mean(axis=0)[::-1]
    session.add_prompt(1, lasso(plane, square(*middle, 1.6), positive=False))
    assert np.array_equal(session.mask(1, plane), before & ~inside(plane, square(*middle, 1.6)))


def test_a_saved_session_keeps_lassos_and_masks(session):
    plane, at = plane_of(session), start(session)
    session.add_prompt(1, lasso(plane, square(55.2, 25.1, 2.4)))
    session.add_prompt(1, lasso(plane, square(*at, 1.2), positive=False))
    values = json.loads(json.dumps(session_to_dict(session)))
    again = restored(values, session.volume, session.predictor)
    assert np.array_equal(again.mask(1, plane), session.mask(1, plane))


def test_lassos_lie_on_oblique_planes(session):
    volume = session.volume
    centre = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2)
    plane = oblique_plane(volume, centre, (1.0, 0.2, 0.1), (0.1, -0.3, -1.0))
    corners = square(plane.shape[1] / 2, plane.shape[0] / 2)
    session.add_prompt(1, lasso(plane, corners), plane)
    assert session.mask(1, plane)[inside(plane, corners)].all()

"""Prompts that answer for the whole object: the session propagates by itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from region_engine import WINDOW, phantom, region_predictor
from region_memory import RegionMemory
from test_session import Heard, box, point, ras, tube

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import Box3DPrompt, PointPrompt
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import restore, session_to_dict

SLICES = 24


@pytest.fixture(params=["memory", "prompts"])
def scene(request):
    """A session in 3-D on the phantom with one segment, with and without a volume memory, and all it tells."""
    volume, labels = phantom(slices=SLICES)
    predictor = region_predictor()
    predictor.engine.memory = RegionMemory() if request.param == "memory" else None
    session = Session(volume, predictor, WINDOW)
    told = Heard()
    session.listen(told)
    session.add_segment("tube")
    session.set_volumetric(True)
    settle(session)
    told.fetch()
    return session, labels, told


def settle(session):
    while session.work():
        pass
    assert session.settled and not session.jobs


def shown(session, value=1):
    """The labelmap's voxels of a segment."""
    return session.labelmap() == value


def notices(told):
    return [event.text for event in told if isinstance(event, events.Notice)]


def masks(told):
    return [event for event in told if isinstance(event, events.MaskChanged)]


def test_a_click_answers_for_the_whole_object_nearest_slices_first(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    assert not session.settled
    settle(session)
    assert np.array_equal(shown(session), labels == 1)
    order = [event.plane.index for event in masks(told)]
    assert order[0] == 11 and sorted(order) == list(range(SLICES))
    above = [index for index in order if index > 11]
    below = [index for index in order if index < 11]
    assert above == sorted(above) and below == sorted(below, reverse=True)
    assert not notices(told)
    (finished,) = [event for event in told if isinstance(event, events.Finished)]
    assert finished.job < 0 and not finished.cancelled


def test_one_undo_takes_the_click_back_with_its_slices_and_redo_brings_them_again(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    settle(session)
    calls = session.predictor.engine.decoder_calls
    assert session.undo() == "add prompt"
    settle(session)
    assert not shown(session).any() and not session.prompts
    session.redo()
    settle(session)
    assert np.array_equal(shown(session), labels == 1)
    assert session.predictor.engine.decoder_calls == calls, "nothing is computed again"


def test_off_as_today(scene):
    session, labels, told = scene
    session.set_volumetric(False)
    session.add_prompt(1, point(session, *tube(11)))
    settle(session)
    assert [plane.index for plane in session.planes(1)] == [11]
    session.set_volumetric(True)  # what was placed before stays as it is
    settle(session)
    assert [plane.index for plane in session.planes(1)] == [11]
    session.add_prompt(1, point(session, *tube(5)))
    settle(session)
    assert np.array_equal(shown(session), labels == 1)


def test_a_correction_tells_only_the_slices_that_change(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    settle(session)
    told.fetch()
    session.add_prompt(1, point(session, *tube(4)))  # says what is known already
    settle(session)
    assert {event.plane.index for event in masks(told)} <= {4}
    assert np.array_equal(shown(session), labels == 1)
    state = [event for event in told if isinstance(event, events.StateChanged)][-1]
    assert state.settled and not state.outdated


def test_a_correction_computes_only_up_to_the_second_prompted_slice_from_it(scene):
    session, labels, told = scene
    for k in (4, 11, 18):
        session.add_prompt(1, point(session, *tube(k)))
        settle(session)
    told.fetch()
    i, j, k = tube(7)
    session.add_prompt(1, point(session, i + 4, j, k, positive=False))
    settle(session)
    (busy,) = {event.total for event in told if isinstance(event, events.Busy)}
    assert busy == 18 - 3, "the slices below 18 without the prompted ones"
    assert {event.plane.index for event in masks(told)} <= set(range(5, 11))
    assert np.array_equal(shown(session)[11:], (labels == 1)[11:])
    session.set_window(IntensityWindow(0, 250))
    settle(session)
    told.fetch()
    session.add_prompt(1, point(session, *tube(20)))
    settle(session)
    assert max(event.total for event in told if isinstance(event, events.Busy)) == SLICES - 5, "it looks different now"


def test_after_a_cancelled_answer_all_is_computed(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 6:
        session.work(0.0)
    session.cancel(session.jobs[0].number)
    settle(session)
    session.add_prompt(1, point(session, *tube(18)))
    settle(session)
    assert np.array_equal(shown(session), labels == 1)


def test_a_prompt_during_the_answer_begins_it_anew_without_a_word(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 4:
        session.work(0.0)
    session.add_prompt(1, point(session, *tube(13)))
    settle(session)
    assert np.array_equal(shown(session), labels == 1) and not notices(told)
    assert [event.cancelled for event in told if isinstance(event, events.Finished)] == [True, False]
    session.undo()  # the first click's answer had not come
    settle(session)
    assert np.array_equal(shown(session), labels == 1) and len(session.prompts) == 1
    session.undo()
    settle(session)
    assert not shown(session).any()


def test_undo_of_a_change_under_way_begins_it_anew(scene):
    session, labels, told = scene
    number = session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 4:
        session.work(0.0)
    session.delete_prompt(number)
    session.undo()  # before the cancelled answer has ended
    settle(session)
    assert np.array_equal(shown(session), labels == 1)


@pytest.mark.parametrize("keep", [True, False])
def test_cancelling_stops_it_and_keeps_what_came(scene, keep):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 6:
        session.work(0.0)
    (job,) = session.jobs
    session.cancel(job.number, keep)
    settle(session)
    assert len(session.planes(1)) == (6 if keep else 1) and session.undo_name == "add prompt"
    session.undo()
    settle(session)
    session.redo()
    settle(session)
    assert len(session.planes(1)) == (6 if keep else 1), "it does not begin again"


def test_switching_off_stops_it(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 6:
        session.work(0.0)
    session.set_volumetric(False)
    settle(session)
    assert len(session.planes(1)) == 6


def test_moving_and_deleting_prompts(scene):
    session, labels, told = scene
    number = session.add_prompt(1, point(session, *tube(11)))
    settle(session)
    session.move_prompt(number, PointPrompt(ras(session, 12, 44, 11)))
    settle(session)
    assert np.array_equal(shown(session), labels == 3)
    session.delete_prompt(number)
    settle(session)
    assert not shown(session).any() and not notices(told)
    session.undo()
    settle(session)
    assert np.array_equal(shown(session), labels == 3)
    session.undo()
    settle(session)
    assert np.array_equal(shown(session), labels == 1)


def test_several_segments_answer_one_after_another(scene):
    session, labels, told = scene
    session.add_segment("second tube")
    session.add_prompt(1, point(session, *tube(11)))
    session.add_prompt(2, PointPrompt(ras(session, 12, 44, 11)))
    settle(session)
    for value, label in ((1, 1), (2, 3)):
        assert np.array_equal(shown(session, value), labels == label)
    session.undo()
    settle(session)
    assert np.array_equal(shown(session), labels == 1) and not shown(session, 2).any()


def test_a_removed_segment_ends_its_answer(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 4:
        session.work(0.0)
    session.remove_segment(1)
    settle(session)
    assert not session.segments
    session.undo()
    settle(session)
    assert np.array_equal(shown(session), labels == 1)


def test_the_orientation_of_the_last_prompt_counts(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    settle(session)
    session.add_prompt(1, point(session, *tube(11)), "coronal")
    settle(session)
    orientations = [plane.orientation for plane in session.planes(1)]
    assert orientations.count("axial") == 1 and orientations.count("coronal") > 5


def test_where_the_object_ends_is_said_and_not_again_while_nothing_changes(scene):
    session, labels, told = scene
    session.add_prompt(1, PointPrompt(ras(session, 44, 36, 11)))
    settle(session)
    assert len(notices(told)) == 2 and all("ended before axial slice" in text for text in notices(told))
    told.fetch()
    session.add_prompt(1, PointPrompt(ras(session, 47, 36, 11)))
    settle(session)
    assert not notices(told)
    session.add_segment("another tube")
    session.add_prompt(2, point(session, *tube(11)))  # runs through all slices
    settle(session)
    assert not notices(told)


def test_a_negative_point_corrects_the_slice_it_is_on(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    settle(session)
    before = shown(session)
    i, j, k = tube(15)
    session.add_prompt(1, point(session, i + 4, j, k, positive=False))
    settle(session)
    changed = before & ~shown(session)
    assert changed[15].any()
    session.undo()
    settle(session)
    assert np.array_equal(shown(session), before)


@pytest.mark.parametrize("volumetric", [True, False])
def test_a_negative_point_in_the_middle_of_a_propagated_mask_ends_the_object_there(scene, volumetric):
    session, labels, told = scene
    session.set_volumetric(volumetric)
    session.add_prompt(1, point(session, *tube(11)))
    if not volumetric:
        session.finish(session.propagate(1))
    settle(session)
    session.add_prompt(1, point(session, *tube(16), positive=False))
    if not volumetric:
        assert not shown(session)[16].any() and np.array_equal(shown(session)[17:], labels[17:] == 1)
        session.finish(session.propagate(1))
    settle(session)
    assert np.array_equal(shown(session)[:16], labels[:16] == 1) and not shown(session)[16:].any()
    (said,) = [text for text in notices(told) if "ended before" in text]
    assert "ended before axial slice 16" in said
    session.undo()
    settle(session)
    if not volumetric:
        session.undo()
    assert np.array_equal(shown(session), labels == 1)
    session.redo()
    i, j, k = tube(16)
    session.add_prompt(1, point(session, i + 2, j, k))
    settle(session)
    assert shown(session)[16].any(), "what is said to belong to it stays"


def test_what_exclusions_leave_of_a_flood_is_not_taken_for_the_structure(scene):
    session, labels, told = scene
    session.set_volumetric(False)
    session.add_prompt(1, point(session, *tube(11)))
    session.finish(session.propagate(1))
    predict = session.predictor.predict

    def flooded(shown, prompts, previous=None, view=None):
        answer = predict(shown, prompts, previous, view)
        if not (prompts.labels == 0).any():
            return answer
        return replace(answer, to_masks=lambda *_: np.ones((1, *shown.shape), bool))

    session.predictor.predict = flooded
    i, j, k = tube(16)
    session.add_prompt(1, point(session, i + 4, j, k, positive=False))
    assert shown(session)[16].all()
    session.finish(session.propagate(1))
    assert np.array_equal(shown(session)[:16], labels[:16] == 1)
    assert np.array_equal(shown(session)[17:], labels[17:] == 1), "nothing follows from it"


def test_a_point_on_a_slice_left_empty_means_what_the_nearest_mask_shows(scene):
    session, labels, told = scene
    session.set_volumetric(False)
    session.add_prompt(1, point(session, *tube(11)))
    session.finish(session.propagate(1, PropagationSettings(first=8, last=14)))
    assert {plane.index for plane in session.planes(1)} == set(range(8, 15))
    corrected = []
    predict = session.predictor.predict

    def remembered(shown, prompts, previous=None, view=None):
        corrected.append(previous)
        return predict(shown, prompts, previous, view)

    session.predictor.predict = remembered
    session.add_prompt(1, point(session, *tube(17)))
    settle(session)
    (previous,) = corrected
    assert previous is not None and previous.mask.sum() == (labels[14] == 1).sum(), "the mask of slice 14"
    assert np.array_equal(shown(session)[17], labels[17] == 1)
    session.undo()
    settle(session)
    assert 17 not in [plane.index for plane in session.planes(1)]
    i, j, k = tube(17)
    session.add_prompt(1, box(session, (i - 5, j - 5), (i + 5, j + 5), k))
    settle(session)
    assert corrected[-1] is None, "a box says itself how large the structure is"


def test_a_box_in_3d_says_where_the_object_ends(scene):
    session, labels, told = scene
    session.add_prompt(1, Box3DPrompt(ras(session, 17, 16, 11), (30.0, 24.0, 28.0)))
    settle(session)
    assert set(np.flatnonzero(shown(session).any(axis=(1, 2)))) == set(range(8, 15))


def test_a_click_into_nothing_leaves_nothing(scene):
    session, labels, told = scene
    session.add_prompt(1, PointPrompt(ras(session, 60, 2, 11)))
    settle(session)
    assert not shown(session).any() and len(session.prompts) == 1


def test_an_engine_that_fails_is_one_sentence(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 4:
        session.work(0.0)

    def fail(*inputs):
        raise RuntimeError("out of order")

    if session.predictor.engine.memory is not None:
        session.predictor.engine.memory.__class__ = type("Broken", (RegionMemory,), {"__call__": fail})
    session.predictor.engine.broken = True
    settle(session)
    failed = [event.text for event in told if isinstance(event, events.Failed)]
    assert len(failed) == 1 and "propagate the segment" in failed[0]
    assert session.undo_name == "add prompt"


def test_another_model_answers_again_what_was_not_finished(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(11)))
    while len(session.planes(1)) < 4:
        session.work(0.0)
    session.set_model(region_predictor(digest="other"))
    settle(session)
    assert np.array_equal(shown(session), labels == 1)


def test_the_document_says_whether_the_answer_is_whole(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(6)))
    settle(session)
    session.add_prompt(1, point(session, *tube(11)))
    session.work(0.0)
    early = json.loads(json.dumps(session_to_dict(session)))
    settle(session)
    late = json.loads(json.dumps(session_to_dict(session)))
    for document, begins in ((early, True), (late, False)):
        other = Session(session.volume, session.predictor, WINDOW)
        other.set_volumetric(True)
        restore(other, document)
        heard = Heard()
        other.listen(heard)
        settle(other)
        assert np.array_equal(shown(other), labels == 1)
        assert any(isinstance(event, events.Finished) for event in heard) == begins
        heard.fetch()
        other.add_prompt(1, point(session, *tube(18)))
        settle(other)
        totals = {event.total for event in heard if isinstance(event, events.Busy)}
        assert totals == {SLICES - 3 - 6}, "what lies below the first prompt is kept"


def test_the_document_knows_no_answer_whose_prompts_have_changed(scene):
    session, labels, told = scene
    number = session.add_prompt(1, point(session, *tube(11)))
    settle(session)
    session.set_volumetric(False)
    session.move_prompt(number, PointPrompt(ras(session, 12, 44, 11)))
    settle(session)
    document = json.loads(json.dumps(session_to_dict(session)))
    assert document["whole"] == [] and document["due"] == []


def test_an_explicit_propagation_is_refused_while_the_answer_comes(scene):
    session, labels, told = scene
    session.add_prompt(1, box(session, (8, 9), (24, 23), 11))
    while len(session.planes(1)) < 4:
        session.work(0.0)
    with pytest.raises(UserError, match="already"):
        session.propagate(1)
    settle(session)
    assert np.array_equal(shown(session), labels == 1)

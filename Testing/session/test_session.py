from __future__ import annotations

import numpy as np
import pytest
from immediate_session import ImmediateSession
from region_engine import WINDOW, phantom, region_predictor

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow, aligned_plane, oblique_plane, picture
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import Box3DPrompt, BoxPrompt, MaskPrompt, PointPrompt, ScribblePrompt
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.session import Session


class Heard(list):
    """A listener that keeps events until they are fetched."""

    __call__ = list.append

    def fetch(self):
        """All events since the last call."""
        events = list(self)
        self.clear()
        return events


@pytest.fixture
def scene():
    """A session on the phantom with one segment, and everything it says."""
    volume, labels = phantom()
    session = ImmediateSession(volume, region_predictor(), WINDOW)
    told = Heard()
    session.listen(told)
    session.add_segment("tube")
    told.fetch()
    return session, labels, told


def ras(session, i, j, k):
    return tuple(session.volume.ijk_to_ras((i, j, k)))


def point(session, i, j, k, positive=True):
    return PointPrompt(ras(session, i, j, k), positive)


def box(session, low, high, k):
    return BoxPrompt(ras(session, *low, k), ras(session, *high, k))


def tube(k):
    """A voxel in the middle of the phantom's leaning tube."""
    return round(14 + 0.3 * k), 16, k


def is_label(session, labels, plane, value):
    return extract_labels(labels, session.volume, plane) == value


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)


# ---- prompts and masks


def notices(told):
    return [event.text for event in told.fetch() if isinstance(event, events.Notice)]


def test_an_answer_that_is_empty_or_that_the_model_doubts_is_said(scene):
    session, _, told = scene
    number = session.add_prompt(1, point(session, *tube(9)))
    assert notices(told) == []
    session.delete_prompt(number)
    told.fetch()
    session.add_prompt(1, point(session, 60, 2, 9))  # where it is dark
    (said,) = notices(told)
    assert said.startswith("Nothing was found for tube on axial slice 9 (S ")
    decode = session.predictor.engine.decode
    session.predictor.engine.decode = lambda *given: (decode(*given)[0], decode(*given)[1] * np.float32(0.4))
    session.add_prompt(1, point(session, *tube(12)))
    (said,) = notices(told)
    assert "unsure about tube on axial slice 12 (S " in said and "predicted IoU 0.3" in said


def test_a_point_gives_the_mask_of_its_slice_and_says_so(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(9)))
    plane = aligned_plane(session.volume, "axial", 9)
    said = told.fetch()
    assert [(event.segment, event.plane.key) for event in said if isinstance(event, events.MaskChanged)] == [
        (1, plane.key)
    ]
    assert any(isinstance(event, events.StateChanged) and event.prompts for event in said)
    assert dice(session.mask(1, plane), is_label(session, labels, plane, 1)) > 0.95
    assert session.mask(1, aligned_plane(session.volume, "axial", 10)) is None
    assert session.score(1, plane.key) == pytest.approx(0.92)


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
def test_every_orientation_has_its_own_planes(scene, orientation):
    session, labels, _ = scene
    session.add_prompt(1, point(session, 44, 36, 11), orientation)
    (plane,) = session.planes(1)
    assert plane.orientation == orientation
    assert dice(session.mask(1, plane), is_label(session, labels, plane, 2)) > 0.9


def test_an_oblique_plane_takes_prompts(scene):
    session, labels, _ = scene
    plane = oblique_plane(session.volume, ras(session, 44, 36, 11), (-1, 0, 0), (0, -1, 0.2))
    session.add_prompt(1, point(session, 44, 36, 11), plane)
    assert [item.key for item in session.planes(1)] == [plane.key]
    assert dice(session.mask(1, plane), is_label(session, labels, plane, 2)) > 0.8


def test_a_correction_feeds_the_answer_before_it_back(scene):
    session, _, _ = scene
    plane = aligned_plane(session.volume, "axial", 9)
    session.add_prompt(1, point(session, *tube(9)))
    before = session.mask(1, plane)
    session.add_prompt(1, point(session, 12, 44, 9))  # the other tube: nothing connects them but the feedback
    both = session.mask(1, plane)
    assert np.array_equal(both & before, before) and both.sum() > before.sum()
    session.add_prompt(1, point(session, 12, 44, 9, positive=False))
    x, y = np.rint(plane.ras_to_pixel(ras(session, 12, 44, 9))).astype(int)
    assert not session.mask(1, plane)[y, x]


def test_one_more_prompt_is_one_more_decoder_call_and_undo_none(scene):
    session, _, _ = scene
    engine = session.predictor.engine
    session.add_prompt(1, box(session, (5, 5), (30, 30), 9))
    session.add_prompt(1, point(session, *tube(9)))
    calls, encoded = engine.decoder_calls, session.predictor.encoder_calls
    session.add_prompt(1, point(session, 25, 25, 9, positive=False))
    assert engine.decoder_calls == calls + 1
    session.undo()
    session.redo()
    assert engine.decoder_calls == calls + 1
    assert session.predictor.encoder_calls == encoded == 1


def test_a_replay_in_a_fresh_session_gives_the_same_masks(scene):
    session, _, _ = scene
    prompts = [
        point(session, *tube(9)),
        point(session, 12, 44, 9),
        point(session, 14, 44, 9, positive=False),
        ScribblePrompt((ras(session, 16, 14, 9), ras(session, 18, 18, 9))),
    ]
    for prompt in prompts:
        session.add_prompt(1, prompt)
    fresh = Session(session.volume, region_predictor(), WINDOW)
    fresh.add_segment("tube")
    for prompt in prompts:
        fresh.add_prompt(1, prompt)
    plane = aligned_plane(session.volume, "axial", 9)
    assert np.array_equal(session.mask(1, plane), fresh.mask(1, plane))


def test_moving_and_deleting_a_prompt_makes_its_planes_anew(scene):
    session, labels, told = scene
    number = session.add_prompt(1, point(session, *tube(9)))
    told.fetch()
    session.move_prompt(number, point(session, *tube(15)))
    changed = {event.plane.index for event in told.fetch() if isinstance(event, events.MaskChanged)}
    assert changed == {9, 15}
    nine, fifteen = (aligned_plane(session.volume, "axial", index) for index in (9, 15))
    assert session.mask(1, nine) is None
    assert dice(session.mask(1, fifteen), is_label(session, labels, fifteen, 1)) > 0.95
    session.delete_prompt(number)
    assert session.mask(1, fifteen) is None and session.planes(1) == []
    assert not session.labelmap().any()


def test_a_moved_prompt_keeps_its_turn(scene):
    session, _, _ = scene
    plane = aligned_plane(session.volume, "axial", 9)
    first = session.add_prompt(1, point(session, *tube(9)))
    session.add_prompt(1, point(session, *tube(9), positive=False))
    session.move_prompt(first, point(session, 15, 15, 9))
    straight = Session(session.volume, region_predictor(), WINDOW)
    straight.add_segment("tube")
    straight.add_prompt(1, point(session, 15, 15, 9))
    straight.add_prompt(1, point(session, *tube(9), positive=False))
    assert np.array_equal(session.mask(1, plane), straight.mask(1, plane))


def test_two_boxes_on_a_slice_are_two_objects_and_points_belong_to_the_nearest(scene):
    session, labels, _ = scene
    plane = aligned_plane(session.volume, "axial", 9)
    session.add_prompt(1, box(session, (9, 8), (24, 24), 9))
    session.add_prompt(1, box(session, (5, 37), (19, 51), 9))
    both = extract_labels(labels, session.volume, plane)
    assert dice(session.mask(1, plane), np.isin(both, (1, 3))) > 0.95
    session.add_prompt(1, point(session, 12, 44, 9, positive=False))
    mask = session.mask(1, plane)
    assert dice(mask & (both != 3), both == 1) > 0.95
    assert 0 < (mask & (both == 3)).sum() < (both == 3).sum()


def test_a_3d_box_prompts_every_slice_it_reaches_and_a_slices_own_box_goes_before_it(scene):
    session, labels, _ = scene
    centre = ras(session, 44, 36, 11)
    session.add_prompt(1, Box3DPrompt(centre, (36.0, 36.0, 40.0)))
    indices = sorted(plane.index for plane in session.planes(1))
    assert indices == list(range(6, 17))
    plane = aligned_plane(session.volume, "axial", 11)
    assert dice(session.mask(1, plane), is_label(session, labels, plane, 2)) > 0.95
    session.add_prompt(1, box(session, (34, 26), (44, 46), 11))  # only the left half
    assert session.mask(1, plane).sum() < 0.7 * is_label(session, labels, plane, 2).sum()
    session.clear(1, plane)
    assert plane.key not in {item.key for item in session.planes(1)} and len(session.planes(1)) == 10


def test_a_mask_prompt_lies_on_its_own_plane(scene):
    session, labels, _ = scene
    plane = aligned_plane(session.volume, "coronal", 36)
    session.add_prompt(1, MaskPrompt(is_label(session, labels, plane, 2), plane))
    assert [item.key for item in session.planes(1)] == [plane.key]
    assert dice(session.mask(1, plane), is_label(session, labels, plane, 2)) > 0.8


def test_only_negative_points_make_an_empty_mask_and_a_notice(scene):
    session, _, told = scene
    session.add_prompt(1, point(session, *tube(9), positive=False))
    assert not session.mask(1, aligned_plane(session.volume, "axial", 9)).any()
    assert any("only negative" in event.text for event in told.fetch() if isinstance(event, events.Notice))


# ---- segments and the label map


def test_an_earlier_segment_keeps_its_voxels(scene):
    session, labels, _ = scene
    session.add_prompt(1, point(session, *tube(9)))
    session.add_segment("greedy")
    plane = aligned_plane(session.volume, "axial", 9)
    session.add_prompt(2, MaskPrompt(np.ones(plane.shape, bool), plane))
    session.add_prompt(2, point(session, *tube(9)))
    labelmap = session.labelmap()
    assert labelmap.dtype == np.uint8 and (labelmap[9][labels[9] == 1] == 1).mean() > 0.9


def test_label_values_above_255_need_a_wider_label_map(scene):
    session, _, _ = scene
    info = session.add_segment("far", value=300)
    session.add_prompt(info.value, point(session, *tube(9)))
    labelmap = session.labelmap()
    assert labelmap.dtype == np.uint16 and set(np.unique(labelmap)) == {0, 300}


def test_segments_are_added_changed_and_removed(scene):
    session, _, _ = scene
    second = session.add_segment(" liver ", color=(1.0, 0.0, 0.0))
    assert (second.name, second.value, second.color) == ("liver", 2, (1.0, 0.0, 0.0))
    session.change_segment(2, name="spleen")
    assert [item.name for item in session.segments] == ["tube", "spleen"]
    session.add_prompt(2, point(session, *tube(9)))
    session.remove_segment(2)
    assert session.prompts == () and [item.value for item in session.segments] == [1]
    assert session.undo() == "remove segment" and len(session.prompts) == 1
    assert session.mask(2, session.planes(2)[0]).any()


def test_a_host_with_a_table_of_segments_undoes_by_prompt(scene):
    """Segments then hold for every state there is: what undo leaves, what redo brings back."""
    session, _, _ = scene
    session.segments_are_steps = False
    before = session.add_prompt(1, point(session, *tube(9)))
    session.add_segment("liver")
    session.add_prompt(2, point(session, *tube(5)))
    session.change_segment(2, name="spleen")
    session.change_segment(1, name="vein")
    assert session.undo() == "add prompt" and [placed.id for placed in session.prompts] == [before]
    assert [info.name for info in session.segments] == ["vein", "spleen"]
    assert session.undo() == "add prompt" and session.undo() == "add segment"  # from before the host's table
    assert [info.name for info in session.segments] == ["spleen"]
    for _ in range(3):
        session.redo()
    assert [info.name for info in session.segments] == ["vein", "spleen"] and len(session.prompts) == 2
    with pytest.raises(UserError, match="named spleen"):
        session.change_segment(1, name="spleen")
    session.remove_segment(2)
    assert session.undo_name == "add prompt" and session.redo_name is None
    assert session.undo() == "add prompt" and session.prompts == ()
    assert [info.name for info in session.segments] == ["vein"]  # the removed one's prompt is no step any more
    session.redo()
    assert [placed.id for placed in session.prompts] == [before]


@pytest.mark.parametrize(
    ("intent", "match"),
    [
        (lambda s: s.add_segment("tube"), "named tube"),
        (lambda s: s.add_segment(""), "name"),
        (lambda s: s.add_segment("x", value=1), "another segment"),
        (lambda s: s.add_segment("x", value=0), "value"),
        (lambda s: s.add_segment("x", color=(2, 0, 0)), "color"),
        (lambda s: s.change_segment(9, name="x"), "value 9"),
        (lambda s: s.remove_segment(9), "value 9"),
        (lambda s: s.add_prompt(9, PointPrompt((0, 0, 0))), "value 9"),
        (lambda s: s.add_prompt(1, PointPrompt((900, 0, 0))), "outside"),
        (lambda s: s.add_prompt(1, point(s, 5, 5, 5), "diagonal"), "orientation"),
        (lambda s: s.move_prompt(77, point(s, 5, 5, 5)), "no longer exists"),
        (lambda s: s.delete_prompt(77), "no longer exists"),
        (lambda s: s.clear(9), "value 9"),
        (lambda s: s.propagate(1), "no mask"),
        (lambda s: s.propagate(9), "value 9"),
        (lambda s: s.everything(first=5, last=99), "does not fit"),
        (lambda s: s.embed("axial", 99), "99"),
    ],
)
def test_a_wrong_intent_is_refused_and_changes_nothing(scene, intent, match):
    session, _, told = scene
    before = session.state
    with pytest.raises(UserError, match=match):
        intent(session)
    assert session.state is before and told.fetch() == [] and not session.work()


def test_without_volume_or_model_it_says_what_is_missing():
    session = Session()
    session.add_segment("a")
    with pytest.raises(UserError, match="no volume"):
        session.add_prompt(1, PointPrompt((0, 0, 0)))
    with pytest.raises(UserError, match="no volume"):
        session.labelmap()
    volume, _ = phantom()
    session.set_volume(volume)
    session.add_segment("a")
    session.add_prompt(1, point(session, 5, 5, 5))
    with pytest.raises(UserError, match="no model"):
        session.labelmap()
    session.set_model(region_predictor())
    assert session.labelmap().shape == volume.shape


def test_a_failing_model_is_a_sentence_and_loses_nothing(scene):
    session, _, told = scene
    session.predictor.engine.broken = True
    with pytest.raises(UserError, match="could not segment axial slice 9"):
        session.add_prompt(1, point(session, *tube(9)))
    assert len(session.prompts) == 1
    session.immediate = False
    session.set_window(IntensityWindow(0, 254))
    told.fetch()
    session.work(1.0)
    assert any(isinstance(event, events.Failed) for event in told.fetch())
    session.predictor.engine.broken = False
    assert session.mask(1, session.planes(1)[0]).any()


# ---- another window, model, volume


def test_a_new_window_or_model_makes_masks_anew_in_the_background(scene):
    session, _, told = scene
    session.add_prompt(1, point(session, *tube(9)))
    plane = session.planes(1)[0]
    before = session.mask(1, plane)
    told.fetch()
    session.set_window(IntensityWindow(0, 2000))  # now everything is dark
    (state,) = told.fetch()
    assert state.window == session.window and not state.settled
    while session.work():
        pass
    assert [event.plane.key for event in told.fetch() if isinstance(event, events.MaskChanged)] == [plane.key]
    assert not session.mask(1, plane).any()
    session.set_window(WINDOW)
    assert np.array_equal(session.mask(1, plane), before)
    session.set_model(region_predictor(digest="other", tolerance=255.0))
    assert session.mask(1, plane).sum() > before.sum()


def test_another_volume_starts_over(scene):
    session, _, told = scene
    session.add_prompt(1, point(session, *tube(9)))
    told.fetch()
    volume, _ = phantom(flip=True)
    session.set_volume(volume)
    assert session.segments == () and session.prompts == () and session.undo_name is None
    assert session.window is not None
    said = told.fetch()
    assert any(isinstance(event, events.MaskChanged) for event in said)
    assert any(isinstance(event, events.StateChanged) and not event.segments for event in said)


# ---- propagation, everything, embedding


def test_a_propagation_arrives_slice_by_slice_and_is_one_step_of_undo(scene):
    session, labels, told = scene
    session.add_prompt(1, point(session, *tube(9)))
    told.fetch()
    job = session.propagate(1)
    session.work(0.0)
    first = [event for event in told.fetch() if isinstance(event, events.MaskChanged)]
    assert len(first) == 1 and session.mask(1, first[0].plane).any() and not job.done
    session.finish(job)
    said = told.fetch()
    assert job.done and said[-1].settled
    assert [event.cancelled for event in said if isinstance(event, events.Finished)] == [False]
    progress = [event for event in said if isinstance(event, events.Busy)]
    assert progress[-1].done == progress[-1].total == 23
    assert dice(session.labelmap() == 1, labels == 1) > 0.95
    told.fetch()
    assert session.undo() == "propagate"
    assert len(session.planes(1)) == 1
    assert len([event for event in told.fetch() if isinstance(event, events.MaskChanged)]) == 23
    session.redo()
    assert dice(session.labelmap() == 1, labels == 1) > 0.95


def test_a_cancelled_propagation_keeps_or_drops_what_it_found(scene):
    session, _, told = scene
    session.add_prompt(1, point(session, *tube(9)))
    job = session.propagate(1)
    for _ in range(4):
        session.work(0.0)
    job.cancel()
    session.finish(job)
    assert len(session.planes(1)) == 5 and session.undo_name == "propagate"
    session.undo()
    job = session.propagate(1)
    for _ in range(4):
        session.work(0.0)
    told.fetch()
    job.cancel(keep_results=False)
    session.finish(job)
    while session.work():
        pass
    assert len(session.planes(1)) == 1 and session.undo_name == "add prompt"
    said = told.fetch()
    assert len([event for event in said if isinstance(event, events.MaskChanged)]) == 4
    assert [event.cancelled for event in said if isinstance(event, events.Finished)] == [True]


def test_a_propagated_slice_is_corrected_by_a_point(scene):
    session, _, _ = scene
    session.add_prompt(1, point(session, *tube(9)))
    session.finish(session.propagate(1))
    plane = aligned_plane(session.volume, "axial", 12)
    carried = session.mask(1, plane)
    i, j, k = tube(12)
    session.add_prompt(1, point(session, i + 3, j, k, positive=False))
    corrected = session.mask(1, plane)
    assert corrected.any() and (corrected & carried).sum() == corrected.sum() < carried.sum()
    session.delete_prompt(session.prompts[-1].id)
    assert np.array_equal(session.mask(1, plane), carried)


def test_negative_points_wait_for_what_a_propagation_brings(scene):
    session, labels, _ = scene
    i, j, k = tube(12)
    session.add_prompt(1, point(session, i + 3, j, k, positive=False))
    session.add_prompt(1, point(session, *tube(9)))
    plane = aligned_plane(session.volume, "axial", 12)
    assert not session.mask(1, plane).any()
    session.finish(session.propagate(1))
    mask, tube_there = session.mask(1, plane), is_label(session, labels, plane, 1)
    assert 0.5 * tube_there.sum() < (mask & tube_there).sum() < tube_there.sum()


def test_masks_from_changed_prompts_are_outdated_until_propagated_again(scene):
    session, _, told = scene
    number = session.add_prompt(1, point(session, *tube(9)))
    session.finish(session.propagate(1, PropagationSettings(first=7, last=11)))
    assert session.state.outdated(1) == []
    told.fetch()
    session.move_prompt(number, point(session, 15, 15, 9))
    assert {plane.index for plane in session.state.outdated(1)} == {7, 8, 10, 11}
    assert any("propagate again" in event.text for event in told.fetch() if isinstance(event, events.Notice))
    session.finish(session.propagate(1, PropagationSettings(first=7, last=11)))
    assert session.state.outdated(1) == []


def test_a_second_run_replaces_the_first_where_it_could_have_gone(scene):
    session, _, _ = scene
    session.add_prompt(1, point(session, *tube(9)))
    session.finish(session.propagate(1))
    session.finish(session.propagate(1, PropagationSettings(min_overlap=1.0, direction="up")))  # ends at once
    assert sorted(plane.index for plane in session.planes(1)) == list(range(10))


def test_a_propagation_ends_when_its_prompts_change(scene):
    session, _, told = scene
    number = session.add_prompt(1, point(session, *tube(9)))
    job = session.propagate(1)
    session.work(0.0)
    with pytest.raises(UserError, match="already"):
        session.propagate(1)
    told.fetch()
    session.delete_prompt(number)
    assert job.cancelled
    while session.work():
        pass
    assert session.planes(1) == [] and not session.labelmap().any()
    assert any("stopped" in event.text for event in told.fetch() if isinstance(event, events.Notice))


def test_other_prompts_may_come_while_it_runs(scene):
    session, _, _ = scene
    session.add_prompt(1, point(session, *tube(9)))
    session.add_segment("other")
    job = session.propagate(1)
    session.work(0.0)
    session.add_prompt(2, point(session, 12, 44, 9))
    session.finish(job)
    assert len(session.planes(1)) == 24 and len(session.planes(2)) == 1
    assert session.undo() == "propagate"
    assert len(session.planes(1)) == 1 and len(session.planes(2)) == 1


def test_prompts_in_two_orientations_need_a_choice(scene):
    session, _, _ = scene
    session.add_prompt(1, point(session, 44, 36, 11))
    session.add_prompt(1, point(session, 44, 36, 11), "coronal")
    with pytest.raises(UserError, match="axial and coronal"):
        session.propagate(1)
    session.finish(session.propagate(1, orientation="coronal"))
    assert len([plane for plane in session.planes(1) if plane.orientation == "coronal"]) > 5


def test_everything_finds_objects_that_can_be_adopted(scene):
    session, labels, told = scene
    told.fetch()
    job = session.everything(first=8, last=12)
    session.finish(job)
    assert len(job.objects) >= 3
    added = session.adopt(job.number, [item.value for item in job.objects])
    assert [info.name for info in added] == [f"Object {n}" for n in range(1, len(added) + 1)]
    labelmap = session.labelmap()
    for value in (1, 2, 3):
        truth = labels[8:13] == value
        assert max(dice(labelmap[8:13] == info.value, truth) for info in added) > 0.9
    assert session.undo() == "add found objects" and len(session.segments) == 1


def test_the_background_embeds_outwards_from_the_asked_slice(scene, monkeypatch):
    session, _, told = scene
    seen = []
    embed = session.predictor.embed
    monkeypatch.setattr(session.predictor, "embed", lambda shown, view=None: seen.append(shown) or embed(shown, view))
    session.embed("axial", 9)
    for _ in range(3):
        session.work(0.0)
    wanted = [picture(session.volume, aligned_plane(session.volume, "axial", index), WINDOW) for index in (9, 8, 10)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, wanted, strict=True))
    told.fetch()
    while session.work():
        pass
    assert session.predictor.encoder_calls == 24
    said = told.fetch()
    assert said[-2].done == 24 and said[-1] == events.Finished(None, "embed")
    session.embed("axial", 3)
    session.stop_embedding()
    assert not session.work() and told.fetch()[-1] == events.Finished(None, "embed", cancelled=True)
    session.add_prompt(1, point(session, *tube(20)))
    assert session.predictor.encoder_calls == 24  # every slice is there


def test_slices_that_cannot_be_kept_are_not_prepared_until_they_can(scene, tmp_path):
    session, _, told = scene
    session.predictor.cache = EmbeddingCache(tmp_path / "cache")
    session.embed("axial", 9)
    session.work(0.0)
    (tmp_path / "cache").rename(tmp_path / "away")
    (tmp_path / "cache").write_text("not a folder")
    while session.work():
        pass
    failed, finished = told.fetch()[-2:]
    assert failed.text.startswith("The prepared slices cannot be kept. ") and str(tmp_path) in failed.text
    assert finished == events.Finished(None, "embed", cancelled=True) and session.predictor.encoder_calls == 2
    (tmp_path / "cache").unlink()
    session.embed("axial", 9)
    while session.work():
        pass
    assert told.fetch()[-1] == events.Finished(None, "embed") and session.predictor.cache.info().entries == 22


def test_masks_go_before_jobs_and_jobs_before_the_background(scene):
    session, _, told = scene
    session.add_prompt(1, point(session, *tube(9)))
    session.embed("axial", 0)
    job = session.propagate(1, PropagationSettings(first=9, last=10))
    session.immediate = False
    session.add_prompt(1, point(session, *tube(20)))
    told.fetch()
    while session.work(0.0):
        pass
    kinds = [type(event).__name__ + getattr(event, "what", "") for event in told.fetch()]
    assert kinds.index("MaskChanged") < kinds.index("Busypropagate") < kinds.index("Busyembed")
    assert job.done


def test_a_listener_that_fails_does_not_stop_the_session(scene, caplog):
    session, _, told = scene

    def bad(event):
        raise RuntimeError("no")

    stop = session.listen(bad)
    session.add_prompt(1, point(session, *tube(9)))
    assert any(isinstance(event, events.MaskChanged) for event in told.fetch())
    assert "listener failed" in caplog.text
    stop()
    caplog.clear()
    session.undo()
    assert caplog.text == ""


# ---- what a caller at a distance needs


def test_a_caller_may_number_prompts_jobs_and_objects(scene):
    session, _, told = scene
    assert session.add_prompt(1, point(session, *tube(9)), number=40) == 40
    assert session.add_prompt(1, point(session, *tube(10))) == 41
    for number in (40, 41, 7):
        with pytest.raises(UserError, match="belongs to another prompt"):
            session.add_prompt(1, point(session, *tube(11)), number=number)
    session.undo()
    with pytest.raises(UserError):  # redo may bring it back
        session.add_prompt(1, point(session, *tube(11)), number=41)
    told.fetch()
    session.finish(session.propagate(1, job=5))
    said = told.fetch()
    assert {event.job for event in said if isinstance(event, (events.Busy, events.Finished))} == {5}
    job = session.everything("axial", first=8, last=12, job=6)
    session.finish(job)
    with pytest.raises(UserError, match="as many label values"):
        session.adopt(6, [1, 2], [3])
    assert [info.value for info in session.adopt(6, [1], [9])] == [9]
    with pytest.raises(UserError, match="belongs to another segment"):
        session.adopt(6, [2], [9])
    assert [info.value for info in session.adopt(6, [2], [7])] == [7]


def test_a_job_that_fails_says_which_and_why(scene):
    session, _, told = scene
    session.add_prompt(1, point(session, *tube(9)))
    job = session.propagate(1, job=5)
    session.predictor.engine.broken = True
    told.fetch()
    session.finish(job)
    (failed,) = [event for event in told.fetch() if isinstance(event, events.Failed)]
    assert failed.job == 5 and "broken" in failed.details


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory."), RuntimeError("Failed to allocate memory for buffer")]
)
def test_too_little_memory_is_a_sentence_of_its_own(scene, error, monkeypatch):
    session, _, _ = scene

    def refuse(*_):
        raise error

    monkeypatch.setattr(session.predictor.engine, "decode", refuse)
    with pytest.raises(UserError, match="too little memory to segment axial slice 9"):
        session.add_prompt(1, point(session, *tube(9)))


def test_settled_says_whether_masks_are_to_come(scene):
    session, _, _ = scene
    session.immediate = False
    assert session.settled
    session.add_prompt(1, point(session, *tube(9)))
    assert not session.settled
    while session.work():
        pass
    plane = aligned_plane(session.volume, "axial", 9)
    assert session.settled and session.answer(1, plane).mask.unpack().any()
    assert session.answer(1, "axial:10") is None


def test_a_state_may_be_put_as_a_step(scene):
    session, _, _ = scene
    session.add_prompt(1, point(session, *tube(9)), number=12)
    state = session.state
    session.undo()
    session.put("add prompt", state)
    assert session.undo_name == "add prompt" and session.redo_name is None and len(session.prompts) == 1
    assert session.add_prompt(1, point(session, *tube(10))) == 13
    session.undo()
    session.undo()
    assert session.prompts == ()

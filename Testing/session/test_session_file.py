from __future__ import annotations

import json

import numpy as np
import pytest
from region_engine import WINDOW, phantom, region_predictor
from stored_sessions import restored

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume, aligned_plane, oblique_plane
from SAMFineTuneLib.images.volume import VolumeSource
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import Box3DPrompt, BoxPrompt, MaskPrompt, PointPrompt, ScribblePrompt
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import session_to_dict


@pytest.fixture
def session():
    """A session with every kind of prompt, in three orientations, and a propagated segment."""
    volume, labels = phantom()

    def ras(i, j, k):
        return tuple(volume.ijk_to_ras((i, j, k)))

    session = Session(volume, region_predictor(), WINDOW)
    session.add_segment("tube", color=(0.1, 0.2, 0.3))
    session.add_segment("ball", value=300)
    session.add_prompt(1, PointPrompt(ras(17, 16, 9)))
    session.add_prompt(1, PointPrompt(ras(15, 14, 9), False))
    session.finish(session.propagate(1, PropagationSettings(first=6, last=12)))
    session.add_prompt(1, PointPrompt(ras(18, 16, 11), False))
    session.add_prompt(300, Box3DPrompt(ras(44, 36, 11), (40.0, 40.0, 30.0)))
    session.clear(300, aligned_plane(volume, "axial", 11))
    session.add_prompt(300, BoxPrompt(ras(30, 36, 5), ras(58, 36, 17)), "coronal")
    session.add_prompt(300, ScribblePrompt((ras(44, 30, 11), ras(44, 40, 11))), "sagittal")
    plane = aligned_plane(volume, "axial", 20)
    session.add_prompt(300, MaskPrompt(labels[20][::1, ::1] == 3, plane))
    tilted = oblique_plane(volume, ras(44, 36, 11), (-1, 0, 0), (0, -1, 0.2))
    session.add_prompt(300, PointPrompt(ras(44, 36, 11)), tilted)
    return session


def same(a, b):
    assert [(s.name, s.value, s.color) for s in a.segments] == [(s.name, s.value, s.color) for s in b.segments]
    assert [(p.id, p.segment, [x.key for x, _ in p.parts]) for p in a.prompts] == [
        (p.id, p.segment, [x.key for x, _ in p.parts]) for p in b.prompts
    ]
    assert a.window == b.window
    for info in a.segments:
        planes = {plane.key for plane in a.planes(info.value)}
        assert {plane.key for plane in b.planes(info.value)} == planes
        for key in planes:
            assert np.array_equal(a.mask(info.value, key), b.mask(info.value, key)), key
            assert a.score(info.value, key) == b.score(info.value, key)
        assert {x.key for x in a.state.outdated(info.value)} == {x.key for x in b.state.outdated(info.value)}
    assert np.array_equal(a.labelmap(), b.labelmap())


def document(session):
    """What a scene stores of a session, through JSON."""
    return json.loads(json.dumps(session_to_dict(session), allow_nan=False))


def test_a_session_comes_back_as_it_was(session):
    again = restored(document(session), session.volume, region_predictor())
    same(session, again)
    assert document(again) == document(session)


def test_it_goes_on_where_it_was(session):
    again = restored(document(session), session.volume, region_predictor())
    assert again.undo_name is None
    number = again.add_prompt(1, PointPrompt(tuple(session.volume.ijk_to_ras((12, 44, 9)))))
    assert number > max(placed.id for placed in session.prompts)
    again.undo()
    same(session, again)


def test_outdated_masks_stay_outdated(session):
    session.delete_prompt(session.prompts[1].id)
    assert session.state.outdated(1)
    again = restored(document(session), session.volume, region_predictor())
    same(session, again)


def test_nothing_in_it_says_whose_volume_it_is(tmp_path):
    volume, _ = phantom()
    source = VolumeSource(
        files=(tmp_path / "DOE^JANE" / "1.dcm",), format="DICOM", series_uid="1.2.3.99", description="Jane Doe abdomen"
    )
    named = Volume(volume.array, volume.affine, modality="CT", source=source)
    session = Session(named, region_predictor(), WINDOW)
    session.add_segment("tube")
    session.add_prompt(1, PointPrompt(tuple(volume.ijk_to_ras((17, 16, 9)))))
    text = json.dumps(session_to_dict(session))
    assert not any(word in text for word in ("DOE", "Doe", "1.2.3.99", str(tmp_path), "dcm"))


def test_another_volume_is_refused(session):
    other, _ = phantom(flip=True)
    with pytest.raises(UserError, match="belongs to another volume .*24 × 56 × 64"):
        restored(document(session), other, region_predictor())


def test_another_model_is_said(session):
    told = []
    restored(document(session), session.volume, region_predictor(digest="newer"), listener=told.append)
    assert any("masks may differ" in event.text for event in told if isinstance(event, events.Notice))
    told.clear()
    restored(document(session), session.volume, region_predictor(), listener=told.append)
    assert not any(isinstance(event, events.Notice) for event in told)


def test_without_a_model_prompts_are_kept(session):
    again = restored(document(session), session.volume)
    assert len(again.prompts) == len(session.prompts)
    again.set_model(region_predictor())
    same(session, again)


def test_there_must_be_a_volume_to_save():
    with pytest.raises(UserError, match="open a volume"):
        session_to_dict(Session())


def test_documents_that_are_not_sessions_are_refused(session):
    for values in (None, [], {}, {"format": "other"}):
        with pytest.raises(UserError, match="not a session"):
            restored(values, session.volume)


def test_damage_anywhere_is_one_sentence(session):
    whole = json.dumps(session_to_dict(session))
    with pytest.raises(UserError, match="version"):
        restored(json.loads(whole) | {"version": 99}, session.volume)

    def damaged(values):
        """The same values, each time with one of them lost or replaced."""
        for key in list(values) if isinstance(values, dict) else range(len(values)):
            if isinstance(values, list) and key > 0:
                break  # entries of a list are alike
            kept = values[key]
            for wrong in (None, "x", [], {}, -7):
                if type(wrong) is not type(kept):
                    values[key] = wrong
                    yield key
            values[key] = kept
            if isinstance(kept, dict | list):
                yield from damaged(kept)

    values = json.loads(whole)
    refused = 0
    for key in damaged(values):
        try:
            restored(values, session.volume)
        except UserError as error:
            refused += 1
            assert str(error).endswith("."), key
    assert refused > 50
    assert json.dumps(values) == whole


def test_a_place_rounded_by_a_file_is_the_same_volume(session):
    """Scenes keep geometry as text; another place, or other voxels, is another volume."""
    values = document(session)
    volume = session.volume
    nudge = np.zeros((4, 4))
    nudge[:3] = 1e-7
    same(restored(values, Volume(volume.array, volume.affine + nudge), region_predictor()), session)
    nudge[0, 3] = 0.5
    changed = volume.array.copy()
    changed[0, 0, 0] += 1
    for other in (Volume(volume.array, volume.affine + nudge), Volume(changed, volume.affine)):
        with pytest.raises(UserError, match="another volume"):
            restored(values, other)
    del values["volume"]["voxels"]
    with pytest.raises(UserError, match="another volume"):
        restored(values, Volume(volume.array, volume.affine + 1e-9 * np.eye(4, k=1)))

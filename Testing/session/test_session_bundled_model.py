"""Session, propagation and everything mode with the model that ships with the library, on the body phantom."""

from __future__ import annotations

import numpy as np
import pytest
from stored_sessions import restored

from SAMFineTuneLib.images import aligned_plane, body_phantom
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.settings import EverythingSettings, PropagationSettings
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import session_to_dict


@pytest.fixture(scope="module")
def predictor():
    return Predictor(open_engine(Store().get(), device="cpu"), EmbeddingCache())


@pytest.fixture(scope="module")
def body():
    return body_phantom(shape=(16, 160, 160), spacing=(2.2, 2.2, 6.0))


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def value_of(names, organ):
    return next(value for value, name in names.items() if name == organ)


def box_around(volume, labels, value, index, orientation="axial"):
    plane = aligned_plane(volume, orientation, index)
    x0, y0, x1, y1 = bounding_box(extract_labels(labels, volume, plane) == value)
    low, high = plane.pixel_to_ras([(x0, y0), (x1, y1)])
    return BoxPrompt(tuple(low), tuple(high))


def boxed(predictor, body, organ):
    """A session with one box, on the organ's largest slice, and that slice."""
    volume, labels, names = body
    value = value_of(names, organ)
    index = int(np.argmax((labels == value).sum(axis=(1, 2))))
    session = Session(volume, predictor)
    session.add_segment(organ)
    session.add_prompt(1, box_around(volume, labels, value, index))
    return session, index


@pytest.mark.parametrize("organ", ["liver", "aorta"])
def test_one_box_is_carried_through_an_organ(predictor, body, organ):
    volume, labels, names = body
    truth = labels == value_of(names, organ)
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    middle = int(there[len(there) // 2])
    session = Session(volume, predictor)
    session.add_segment(organ)
    session.add_prompt(1, box_around(volume, labels, value_of(names, organ), middle))
    on_its_slice = dice(session.labelmap()[middle] == 1, truth[middle])
    assert on_its_slice > 0.8
    session.finish(session.propagate(1))
    found = session.labelmap() == 1
    near = slice(max(there[0], middle - 3), min(there[-1], middle + 3) + 1)
    assert dice(found[near], truth[near]) > 0.75
    covered = set(np.flatnonzero(found.any(axis=(1, 2))))
    assert len(covered - set(there)) <= 3  # it ends with the organ, give or take


def test_filling_between_two_slices_stays_on_the_organ(predictor, body):
    volume, labels, names = body
    value = value_of(names, "aorta")
    session = Session(volume, predictor)
    session.add_segment("aorta")
    for index in (4, 11):
        session.add_prompt(1, box_around(volume, labels, value, index))
    session.finish(session.propagate(1, PropagationSettings(direction="fill")))
    found = session.labelmap() == 1
    assert sorted(np.flatnonzero(found.any(axis=(1, 2)))) == list(range(4, 12))
    assert dice(found[4:12], (labels == value)[4:12]) > 0.8


def test_a_correction_helps_and_survives_saving(predictor, body):
    volume, labels, names = body
    value = value_of(names, "liver")
    session, index = boxed(predictor, body, "liver")
    plane = aligned_plane(volume, "axial", index)
    reference = extract_labels(labels, volume, plane) == value
    before = session.mask(1, plane)
    wrong = np.argwhere(before != reference)
    assert len(wrong)
    row, column = wrong[len(wrong) // 2]
    point = PointPrompt(tuple(plane.pixel_to_ras((column, row))), bool(reference[row, column]))
    calls = predictor.encoder_calls
    session.add_prompt(1, point)
    after = session.mask(1, plane)
    assert predictor.encoder_calls == calls  # the same view of an embedded slice
    assert dice(after, reference) > dice(before, reference) - 0.01
    again = restored(session_to_dict(session), volume, predictor)
    assert np.array_equal(again.mask(1, plane), after)


def test_clicks_correct_carried_masks_where_they_are_wrong(predictor, body):
    volume, labels, names = body
    value = value_of(names, "spleen")
    session, middle = boxed(predictor, body, "spleen")
    session.finish(session.propagate(1))
    carried = [plane for plane in session.planes(1) if plane.index != middle]
    assert len(carried) > 2
    gained = []
    for plane in carried:
        reference = extract_labels(labels, volume, plane) == value
        before = session.mask(1, plane)
        wrong = np.argwhere(before != reference)
        if not len(wrong) or not reference.any():
            continue
        row, column = wrong[np.argmax(np.hypot(*(wrong - np.argwhere(reference).mean(axis=0)).T))]
        wanted = bool(reference[row, column])
        session.add_prompt(1, PointPrompt(tuple(plane.pixel_to_ras((column, row))), wanted))
        after = session.mask(1, plane)
        assert after[row, column] == wanted
        gained.append(dice(after, reference) - dice(before, reference))
        session.undo()
        assert np.array_equal(session.mask(1, plane), before)
    assert len(gained) > 2 and np.mean(gained) > 0 and min(gained) > -0.05


def test_everything_mode_finds_the_large_organs(predictor, body):
    volume, labels, names = body
    session = Session(volume, predictor)
    settings = EverythingSettings(points_per_side=10, layers=0)
    job = session.everything(settings=settings, first=7, last=8)
    session.finish(job)
    assert job.objects
    session.adopt(job.number, [item.value for item in job.objects])
    planes = {index: aligned_plane(volume, "axial", index) for index in (7, 8)}
    truth = {index: extract_labels(labels, volume, plane) for index, plane in planes.items()}

    def best(organ):
        value = value_of(names, organ)
        return max(dice(item.masks[k].unpack(), truth[k] == value) for item in job.objects for k in item.masks)

    assert max(best("liver"), best("vertebra")) > 0.7

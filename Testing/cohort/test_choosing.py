"""The next case: which one, why, and never one that is done or taken."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMFineTuneLib.cohort.choosing import WAYS, features_file, next_case
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import STATES, CohortCase, CohortState, Lease, Proposal, Review
from SAMFineTuneLib.errors import UserError


def proposed(key: str, dice: float, **more) -> CohortCase:
    return CohortCase(key, f"{key}.nii.gz", key, "proposed", Proposal(1, {"liver": dice}), **more)


def accepted(key: str) -> CohortCase:
    return CohortCase(key, f"{key}.nii.gz", key, "accepted", review=Review(1))


def cohort_of(folder, *cases: CohortCase, features: dict | None = None) -> Cohort:
    cohort = Cohort.create(folder / "own", CohortState({1: "liver"}, cases, ("", "")))
    for key, values in (features or {}).items():
        file = features_file(cohort, key)
        file.parent.mkdir(exist_ok=True)
        np.save(file, np.float32(values))
    return cohort


def test_teaching_weighs_doubt_and_distance(tmp_path):
    cohort = cohort_of(
        tmp_path, accepted("known"), proposed("sure-far", 0.95), proposed("doubtful-near", 0.5),
        proposed("doubtful-far", 0.6),
        features={"known": [0, 0], "sure-far": [5, 0], "doubtful-near": [0.1, 0], "doubtful-far": [4, 1]},
    )  # fmt: skip
    choice = next_case(cohort, "teaching")
    assert choice.case.key == "doubtful-far"
    assert "2nd most doubtful" in choice.reason and "a Dice of 0.60 is expected of liver" in choice.reason
    assert next_case(cohort, "easiest").case.key == "sure-far"
    assert next_case(cohort, "order").case.key == "sure-far"
    assert next_case(cohort, "teaching", without=["doubtful-far"]).case.key != "doubtful-far"


def test_a_case_that_a_colleague_works_on_counts_as_known(tmp_path):
    taken = proposed("taken", 0.2, lease=Lease("somebody", time.time() + 60))
    features = {"known": [0], "taken": [9], "like-taken": [9.1], "between": [5]}
    cohort = cohort_of(
        tmp_path, accepted("known"), taken, proposed("like-taken", 0.5), proposed("between", 0.5), features=features
    )
    assert next_case(cohort, "teaching", by="me").case.key == "between"
    assert next_case(cohort, "teaching", by="somebody").case.key == "taken"


def test_without_embeddings_the_most_doubtful_teaches(tmp_path):
    cohort = cohort_of(tmp_path, accepted("known"), proposed("a", 0.9), proposed("b", 0.3), proposed("c", 0.5))
    choice = next_case(cohort, "teaching")
    assert choice.case.key == "b" and "most doubtful" in choice.reason
    file = features_file(cohort, "b")
    file.parent.mkdir()
    file.write_bytes(b"half a file")
    assert next_case(cohort, "teaching").case.key == "b"


def test_before_anything_is_proposed_it_is_the_first_and_says_so(tmp_path):
    cohort = cohort_of(tmp_path, accepted("known"), *(CohortCase(key, key, key) for key in "ab"))
    for way in ("teaching", "easiest"):
        choice = next_case(cohort, way)
        assert choice.case.key == "a" and "without proposals" in choice.reason


def test_begun_work_comes_first(tmp_path):
    begun = CohortCase("begun", "begun", "p", "corrected")
    cohort = cohort_of(tmp_path, *(proposed(key, 0.1) for key in "abcdefgh"), begun)
    assert all(next_case(cohort, way).case == begun for way in ("random", "teaching", "easiest"))


def test_by_default_any_case_may_come(tmp_path):
    cohort = cohort_of(tmp_path, accepted("known"), *(proposed(key, 0.1) for key in "abc"))
    assert {next_case(cohort).case.key for _ in range(100)} == {*"abc"}


def test_cases_whose_images_are_not_there_come_last(tmp_path):
    cohort = cohort_of(tmp_path, *(proposed(key, 0.1, trouble="gone") for key in "abcdefgh"), proposed("there", 0.9))
    for way in ("random", "teaching", "easiest", "order"):
        choice = next_case(cohort, way)
        assert choice.case.key == "there" and choice.reason == "It is the only case left."
    assert next_case(cohort, "random", without=["there"]).case.key in "abcdefgh", "the image may be back"


def test_an_unknown_way_is_refused(tmp_path):
    with pytest.raises(UserError, match="random, teaching, easiest, order"):
        next_case(cohort_of(tmp_path, proposed("a", 0.1)), "hardest")


@st.composite
def cases(draw) -> CohortCase:
    key, state = draw(st.uuids()).hex, draw(st.sampled_from(STATES))
    until = draw(st.sampled_from([0.0, time.time() + 3600]))
    lease = draw(st.none() | st.builds(Lease, st.sampled_from(["me", "somebody"]), st.just(until)))
    values = draw(st.dictionaries(st.sampled_from(["liver", "spleen"]), st.floats(0, 1)))
    proposal = None if state == "untouched" else Proposal(1, values)
    return CohortCase(key, key, key, state, proposal, Review(1) if state == "accepted" else None, lease)


@settings(max_examples=40)
@given(st.lists(cases(), max_size=8), st.sampled_from(WAYS), st.data())
def test_what_is_left_is_offered_and_nothing_else(tmp_path_factory, cases, way, data):
    folder = tmp_path_factory.mktemp("cohort")
    having = data.draw(st.lists(st.sampled_from(cases), unique_by=lambda one: one.key)) if cases else []
    features = {case.key: [n, n % 3] for n, case in enumerate(having)}
    without = {case.key for case in cases[:1]} if data.draw(st.booleans()) else set()
    left = [case for case in cases if case.state not in ("accepted", "refused") and not case.taken("me")]
    left = [case for case in left if case.key not in without]
    choice = next_case(cohort_of(folder, *cases, features=features), way, "me", without)
    assert (choice is None) == (not left)
    if choice:
        assert choice.case in left and choice.reason.endswith(".") and choice.reason[0].isupper()

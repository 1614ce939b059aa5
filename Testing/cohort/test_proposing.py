"""Proposals: what is written for which cases, and that neither failures nor other people's work are run over."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from ending_jobs import EndingJob, do_or_end
from proposed_cohorts import untouched_cohort, with_adapter

from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.choosing import next_case
from SAMFineTuneLib.cohort.confidence import expected, read_confidence
from SAMFineTuneLib.cohort.proposal_files import read_signals
from SAMFineTuneLib.cohort.proposing import Proposed, propose
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS, accept, refuse, release, take
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import executors
from SAMFineTuneLib.images import read_volume


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort whose three cases are proposed, and the progress that `propose` reported."""
    cohort, told = with_adapter(untouched_cohort(tmp_path_factory.mktemp("cohort"))), []
    return cohort, propose(cohort, device="cpu", progress=lambda *now: told.append(now)), told


def keys(cohort) -> list[str]:
    return [case.key for case in cohort.state.cases]


def test_every_case_gets_labels_and_confidence(made):
    cohort, result, told = made
    assert list(result.done) == keys(cohort) and not result.failed
    assert told == [(0, 3, "a"), (1, 3, "b"), (2, 3, "c"), (3, 3, "")]
    for case in cohort.state.cases:
        assert (case.state, case.problem, case.proposal.adapter) == ("proposed", "", 1)
        labels = read_labels(cohort.proposal(case.key) / PROPOSED_LABELS).array
        assert labels.shape == read_volume(cohort.image(case)).shape and set(np.unique(labels)) <= {0, 1, 2}
        confidence = read_confidence(cohort, case.key)
        assert set(confidence.slices) == {"blob", "other"} == set(case.proposal.confidence)
        for value, name in cohort.state.labels.items():
            found = (labels == value).any(axis=(1, 2))
            assert [one is not None for one, here in zip(confidence.slices[name], found, strict=True) if here] == [
                True
            ] * int(found.sum()), "every slice with a mask has a confidence"
    assert any(case.proposal.doubtful for case in cohort.state.cases), "weights that were never trained are doubtful"


def test_what_is_done_is_not_done_again(made):
    cohort, *_ = made
    assert propose(cohort, device="cpu").done == () == propose(cohort, device="cpu", again=True).done


def test_without_an_adapter_nothing_is_proposed(tmp_path):
    with pytest.raises(UserError, match="No adapter is in use yet"):
        propose(untouched_cohort(tmp_path, 1), device="cpu")


def test_a_case_that_fails_does_not_stop_the_others(tmp_path):
    cohort = with_adapter(untouched_cohort(tmp_path))
    first, second, third = keys(cohort)
    image = cohort.image(cohort.state.case(second))
    image.rename(image.with_name("elsewhere.nii.gz"))
    result = propose(cohort, device="cpu")
    assert result.done == (first, third) and result.failed == (second,)
    failed = cohort.state.case(second)
    assert failed.state == "untouched" and "is not at" in failed.problem and failed.problem.endswith(".")
    image.with_name("elsewhere.nii.gz").rename(image)
    assert propose(cohort, device="cpu").done == (second,) and cohort.state.case(second).problem == ""


def test_annotated_cases_can_be_compared_with_those_proposed(tmp_path):
    cohort = untouched_cohort(tmp_path, 3)
    first, *rest = keys(cohort)
    accept(cohort, first, np.ones((6, 32, 32), np.uint8))
    with_adapter(cohort)
    assert propose(cohort, device="cpu").done == tuple(rest) and not cohort.proposal(first).exists()
    choice = next_case(cohort, "teaching")
    assert choice.case.key in rest and "most unlike the 1 case accepted or being reviewed" in choice.reason


def test_a_stop_keeps_what_is_done(tmp_path):
    cohort = with_adapter(untouched_cohort(tmp_path))
    now = {"done": 0}
    first = keys(cohort)[0]
    told = lambda done, total, name: now.update(done=done)  # noqa: E731
    result = propose(cohort, device="cpu", progress=told, cancelled=lambda: now["done"] > 0)
    assert result.done == (first,) and [case.key for case in cohort.state.those("proposed")] == [first]
    assert propose(cohort, device="cpu").done == tuple(keys(cohort)[1:])


def test_other_peoples_cases_are_left_alone(tmp_path):
    cohort = with_adapter(untouched_cohort(tmp_path))
    first, second, third = keys(cohort)
    take(cohort, first, "somebody")
    refuse(cohort, second)
    began = []

    def told(done, total, name):  # while the third is segmented somebody accepts it
        if name == "c" and not began:
            began.append(name)
            accept(cohort, third, np.ones((6, 32, 32), np.uint8))

    assert propose(cohort, device="cpu", progress=told) == propose(cohort, device="cpu") and began
    assert [case.state for case in cohort.state.cases] == ["untouched", "refused", "accepted"]
    assert not any(cohort.proposal(key).exists() for key in keys(cohort))
    release(cohort, first, "somebody")
    assert propose(cohort, device="cpu").done == (first,)


def test_an_adapter_that_is_gone_or_damaged_is_one_sentence_that_says_what_to_do(tmp_path):
    cohort = with_adapter(untouched_cohort(tmp_path, count=1))
    (cohort.adapter(1) / "card.json").write_text("{")
    with pytest.raises(UserError, match="The cohort's adapter 1 is damaged .*; put its folder .* back from a backup"):
        propose(cohort, device="cpu")
    shutil.rmtree(cohort.adapter(1))
    with pytest.raises(UserError, match="The cohort's adapter 1 is gone; put its folder .* back from a backup"):
        propose(cohort, device="cpu")
    assert cohort.state.cases[0].state == "untouched"


def test_a_new_adapter_replaces_proposals_only_when_asked(made, tmp_path):
    cohort = with_adapter(untouched_cohort(tmp_path, 2))
    propose(cohort, device="cpu")
    first, second = keys(cohort)
    take(cohort, second, "somebody")
    before = (cohort.proposal(second) / PROPOSED_LABELS).read_bytes()
    with_adapter(cohort, 2)
    assert propose(cohort, device="cpu").done == ()
    assert propose(cohort, device="cpu", again=True).done == (first,)
    assert [case.proposal.adapter for case in cohort.state.cases] == [2, 1]
    assert (cohort.proposal(second) / PROPOSED_LABELS).read_bytes() == before


def test_an_engine_gives_the_same(made, tmp_path):
    alone, *_ = made
    cohort, told = with_adapter(untouched_cohort(tmp_path)), []
    result = propose(cohort, device="cpu", engine=executors.local(2), progress=lambda *now: told.append(now))
    assert set(result.done) == set(keys(alone)) and told[-1][:2] == (3, 3)
    for case in alone.state.cases:
        labels = [read_labels(one.proposal(case.key) / PROPOSED_LABELS).array for one in (alone, cohort)]
        assert (labels[0] != labels[1]).mean() < 0.01


def test_a_case_that_ends_its_process_has_a_problem_and_does_not_stop_the_others(tmp_path):
    cohort = untouched_cohort(tmp_path)
    judge, second, third = keys(cohort)
    accept(cohort, judge, cohort.image(cohort.state.case(judge)).parent.parent / "labels" / "a.nii.gz")
    with_adapter(cohort, held_out=(judge,))

    def engine(do, jobs):
        """The jobs of the judge and of the second case end their processes."""
        ending = [job for job in jobs if job.case in (judge, second)]
        yield from ((job, do(job)) for job in jobs if job not in ending)
        if ending:
            list(executors.local(2)(do_or_end, [EndingJob(job.case, True) for job in ending for _ in range(2)]))

    result = propose(cohort, device="cpu", engine=engine)
    assert result == Proposed(done=(third,), failed=(second,))
    assert "ended its process" in cohort.state.case(second).problem
    assert propose(cohort, device="cpu").done == (second,) and cohort.state.case(second).problem == ""


def test_accepted_cases_calibrate_whether_proposed_before_or_held_out(tmp_path):
    cohort = with_adapter(untouched_cohort(tmp_path / "proposed"))
    first, second, third = keys(cohort)
    propose(cohort, [first, second], device="cpu")
    for key in (first, second):
        accept(cohort, key)  # as they were proposed, so that the third is trusted more than usual
    assert propose(cohort, device="cpu").done == (third,)
    usual, _ = expected(read_signals(cohort.proposal(third))[0], "")
    assert mean_of(read_confidence(cohort, third)) > mean_of(usual) + 0.02

    other = untouched_cohort(tmp_path / "held out")
    for key in (first, second):
        accept(other, key, cohort.accepted(key))
    with_adapter(other, held_out=(first, second))
    before = [other.accepted(key).read_bytes() for key in (first, second)]
    assert propose(other, device="cpu").done == (third,)
    assert read_confidence(other, third) == read_confidence(cohort, third)
    assert [other.accepted(key).read_bytes() for key in (first, second)] == before
    assert [case.state for case in other.state.cases] == ["accepted", "accepted", "proposed"]
    assert not other.proposal(first).exists()


def mean_of(confidence) -> float:
    return np.mean([one for own in confidence.slices.values() for one in own if one is not None])


def test_what_a_kill_leaves_is_not_read(tmp_path):
    cohort = with_adapter(untouched_cohort(tmp_path, 2))
    first, second = keys(cohort)
    program = (
        "import os, signal, sys\n"
        "from SAMFineTuneLib.cohort import proposing\n"
        "from SAMFineTuneLib.cohort.cohort_folder import Cohort\n"
        "whole = proposing.as_text\n"
        "def die(confidence):\n"  # in the midst of writing the second case, while it holds the lock
        "    return os.kill(os.getpid(), signal.SIGKILL) if len(done) else done.append(1) or whole(confidence)\n"
        "done, proposing.as_text = [], die\n"
        "proposing.propose(Cohort(sys.argv[1]), device='cpu')\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(cohort.folder)])
    assert killed.returncode
    assert [case.state for case in cohort.state.cases] == ["proposed", "untouched"]
    assert read_confidence(cohort, second) is None
    assert propose(cohort, device="cpu").done == (second,)

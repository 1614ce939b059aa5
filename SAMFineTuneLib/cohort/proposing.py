"""Segments the cases of a cohort with the adapter in use, with the confidence of each proposal.

Each case is done by itself, in this process or, with an engine of `evaluation.executors`, in others. Its files and its
new state are written here, together, while nobody else can change the cohort, and only if the case is still open: one
that was taken, corrected or accepted meanwhile keeps what it has. Finished cases stay when the rest is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from SAMFineTuneLib.cohort.case_segmentation import CaseJob, CaseStopped, SegmentedCase, opened_adapter, segment_case
from SAMFineTuneLib.cohort.choosing import features_file
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState, Proposal
from SAMFineTuneLib.cohort.confidence import Calibration, as_text, expected
from SAMFineTuneLib.cohort.proposal_files import calibration_of, judged_folder, write_features, write_proposal
from SAMFineTuneLib.cohort.running_work import PROPOSALS, announced
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.evaluation.executors import Engine

_THREADS = 1  # ONNX Runtime's threads in each of several processes
_ENDED = (
    "Segmenting it ended its process, probably because memory ran out; close other programs, or use fewer --jobs, and "
    "propose again."
)
_JUDGES = 6  # cases held out that are segmented to calibrate


@dataclass(frozen=True)
class Proposed:
    """Keys of the cases with a new proposal, and of those whose `problem` says why they have none."""

    done: tuple[str, ...]
    failed: tuple[str, ...]


def propose(
    cohort: Cohort,
    names: Sequence[str] | None = None,
    device: str = "auto",
    again: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    cancelled: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
) -> Proposed:
    """Segment untouched cases with the adapter in use.

    Args:
        cohort: the cohort.
        names: keys or names of the cases; default: all.
        device: `auto`, `cpu`, `cuda`, …
        again: whether to segment cases that an earlier adapter proposed, too.
        progress: called with the number of cases done, of all, and the name of the next one, "" at the end.
        cancelled: called before every slice, or with an engine after every case; True stops.
        engine: of `evaluation.executors`, spreads the cases over processes or a cluster; all need the cohort's folder
            and images at the same paths.

    Returns:
        What was done. Cases that are corrected, accepted, refused or taken are left alone.

    Raises:
        UserError: when no adapter is in use yet, or it cannot run.
        DiskError: when the cohort's disk refuses.
    """
    state = cohort.state
    if state.adapter is None:
        raise UserError(
            "No adapter is in use yet, so nothing can be proposed: accept a few cases, then train one with "
            "“samfinetune cohort train”."
        )
    number = state.adapter.number
    wanted = None if names is None else {state.case(name).key for name in names}
    cases = [case for case in state.cases if (wanted is None or case.key in wanted) and _waits(case, number, again)]
    if not cases:
        return Proposed((), ())
    judges = [case for case in state.accepted if case.key in state.adapter.held_out][-_JUDGES:]
    judges = [case for case in judges if not judged_folder(cohort, number, case.key).exists()]
    others = [case for case in state.accepted if case not in judges and not features_file(cohort, case.key).exists()]
    with announced(cohort.folder / PROPOSALS) as announce:

        def tell(done: int, total: int, name: str) -> None:
            announce(f"Proposing case {min(done + 1, total)} of {total}")
            progress(done, total, name)

        run = _Run(cohort, number, device, engine, len(judges) + len(others) + len(cases), tell, cancelled)
        opened_adapter(cohort.folder.resolve(), number, device, run.threads)  # raises for an adapter that cannot run
        for job, result in run.segmented(judges):
            if not result.problem:
                write_proposal(judged_folder(cohort, number, job.case), result)
                write_features(cohort, job.case, result)
        for job, result in run.segmented(others, only_features=True):
            write_features(cohort, job.case, result)
        calibration = calibration_of(cohort.state, cohort)
        done, failed = [], []
        for job, result in run.segmented(cases):
            if _put(cohort, job, result, again, calibration):
                (failed if result.problem else done).append(job.case)
        return Proposed(tuple(done), tuple(failed))


@dataclass
class _Run:
    """Segments cases one after another here, or elsewhere with an engine, until `cancelled` returns True."""

    cohort: Cohort
    adapter: int
    device: str
    engine: Engine | None
    total: int
    tell: Callable[[int, int, str], None]
    cancelled: Callable[[], bool]
    done: int = 0

    @property
    def threads(self) -> int | None:
        return None if self.engine is None else _THREADS

    def segmented(
        self, cases: Sequence[CohortCase], only_features: bool = False
    ) -> Iterator[tuple[CaseJob, SegmentedCase]]:
        """Yields each case with its result, as soon as it is ready."""
        folder = self.cohort.folder.resolve()
        following = {} if self.engine is not None else dict(enumerate(case.name for case in cases))
        jobs = [CaseJob(folder, case.key, self.adapter, self.device, self.threads, only_features) for case in cases]
        results = self._one_by_one(jobs) if self.engine is None else _with_lost(self.engine(segment_case, jobs), jobs)
        if not jobs or self.cancelled():
            return
        self.tell(self.done, self.total, following.get(0, ""))
        try:
            with closing(results):
                for place, (job, result) in enumerate(results, start=1):
                    yield job, result
                    self.done += 1
                    self.tell(self.done, self.total, following.get(place, ""))
                    if self.cancelled():
                        return
        except CaseStopped:
            return

    def _one_by_one(self, jobs: Sequence[CaseJob]) -> Iterator[tuple[CaseJob, SegmentedCase]]:
        for job in jobs:
            yield job, segment_case(job, self.cancelled)


def _with_lost(results: Iterator[tuple[CaseJob, SegmentedCase]], jobs: Sequence[CaseJob]) -> Iterator:
    """An engine's results, and a problem for each job that ended its process."""
    from SAMFineTuneLib.evaluation.executors import LostJobs

    left = {job.case: job for job in jobs}
    try:
        with closing(results):
            for job, result in results:
                del left[job.case]
                yield job, result
    except LostJobs:
        for job in left.values():
            yield job, SegmentedCase(problem=_ENDED)


def _waits(case: CohortCase, adapter: int, again: bool) -> bool:
    """Whether a case may get a proposal now."""
    earlier = case.proposal is not None and case.proposal.adapter != adapter
    return not case.taken() and (case.state == "untouched" or (again and case.state == "proposed" and earlier))


def _put(cohort: Cohort, job: CaseJob, result: SegmentedCase, again: bool, calibration: Calibration) -> bool:
    """Write the proposal of a case, unless the case is no longer open. Returns whether it was written."""
    still = []

    def changed(state: CohortState) -> CohortState:
        if not _waits(state.case(job.case), job.adapter, again):
            return state
        still.append(job.case)
        if result.problem:
            return state.with_case(job.case, problem=result.problem)
        confidence, whole = expected(result.signals, result.orientation, calibration)
        write_proposal(cohort.proposal(job.case), result, as_text(confidence))
        proposal = Proposal(job.adapter, whole, confidence.doubtful)
        return state.with_case(job.case, state="proposed", problem="", proposal=proposal)

    write_features(cohort, job.case, result)
    cohort.change(changed)
    return bool(still)

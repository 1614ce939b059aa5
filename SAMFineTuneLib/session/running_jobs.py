"""The jobs that a session runs, step by step; their results go into the state or among the found objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError, model_error
from SAMFineTuneLib.inference.progress import Progress
from SAMFineTuneLib.inference.propagation_plan import PropagationEnd
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.jobs import EverythingJob, FoundObjects, Job
from SAMFineTuneLib.session.propagation_job import PropagationJob

if TYPE_CHECKING:
    from SAMFineTuneLib.session.history import History
    from SAMFineTuneLib.session.masks import Masks
    from SAMFineTuneLib.session.state import State

_END = object()  # of a job's steps
_VERBS = {"propagate": "propagate the segment", "everything": "find objects"}
_DOING = {"propagate": "Propagating", "everything": "Finding objects", "embed": "Preparing slices"}


class RunningJobs:
    """The running jobs, the most urgent first, and the objects that the last ones have found.

    Args:
        history: of the session.
        masks: of the session; a propagation's masks are sent as they come.
        apply: puts a new state into the history; called with the step's name, the state and its moment.
        tell: called with each event.
    """

    def __init__(
        self,
        history: History,
        masks: Masks,
        apply: Callable[[str, State, int], None],
        tell: Callable[[events.Event], None],
    ) -> None:
        self.found = FoundObjects()
        self._history, self._masks, self._apply, self._tell = history, masks, apply, tell
        self._jobs: list[Job] = []
        self._next_number = 1
        self._told_ends: dict[int, list[str]] = {}  # by segment, the ends of its last answer in 3-D

    @property
    def all(self) -> tuple[Job, ...]:
        """The jobs in the order in which they are worked on."""
        return tuple(self._jobs)

    @property
    def propagations(self) -> list[PropagationJob]:
        """The jobs that propagate a segment."""
        return [job for job in self._jobs if isinstance(job, PropagationJob)]

    def new_number(self, wanted: int | None) -> int:
        """The number of a new job: the wanted one, which must be free, or else the next one."""
        number = self._next_number if wanted is None else wanted
        if any(job.number == number for job in self._jobs) or number in self.found:
            raise UserError(f"Job {number} exists already.")
        self._next_number = max(self._next_number, number + 1)
        return number

    def start(self, job: Job, begin: Callable[..., Iterator], *inputs: Any, first: bool = False) -> None:
        """Begin a job.

        Args:
            job: the new job.
            begin: makes its steps from `inputs`, a function that takes a Progress, and one that returns whether it was
                cancelled.
            inputs: see `begin`.
            first: work on it before the others.
        """

        def report(progress: Progress) -> None:
            self._tell(busy_with(job.what, progress, job.number))

        job.steps = begin(*inputs, report, lambda: job.cancelled)
        self._jobs.insert(0 if first else len(self._jobs), job)

    def cancel(self, number: int, keep_results: bool) -> None:
        """Cancel the job of that number, if it runs; see `Job.cancel`."""
        for job in self._jobs:
            if job.number == number:
                job.cancel(keep_results)

    def stop(self) -> None:
        """End all jobs now, without their results."""
        for job in self.all:
            job.cancel(keep_results=False)
            job.overtaken = True
            self._end(job)

    def stop_answers(self) -> None:
        """Cancel the answers to prompts in 3-D, which keep the slices that are done."""
        for job in self.propagations:
            if job.known is not None:
                job.cancel()

    def stop_overtaken(self) -> None:
        """Cancel propagations that no longer fit the state's prompts; their results are dropped."""
        for job in self.propagations:
            if not job.cancelled and not job.holds(self._history.state):
                job.cancel(keep_results=False)
                job.overtaken = True
                if job.known is None:
                    self._notice("The propagation was stopped because the prompts it started from changed.")

    def step(self, job: Job) -> None:
        """Do the next step of a job; UserError when that fails, and the job has then ended."""
        try:
            item = _END if job.cancelled and not job.keep_results else next(job.steps, _END)
        except Exception as error:
            job.cancel()
            self._end(job)
            raise model_error(error, _VERBS[job.what]) from error
        if item is _END:
            self._end(job)
        elif item is None:
            return
        elif isinstance(item, PropagationEnd):
            job.ends.append(item.reason)
            if job.known is None:  # an answer to a prompt reports only what is new, when it is complete
                self._notice(item.reason)
        elif isinstance(job, PropagationJob):
            place = job.take(item)
            if place in job.masks:
                self._masks.expect([(place, item.plane)])
                self._masks.refresh(place)
        else:
            job.slices.append(item)

    def _end(self, job: Job) -> None:
        self._jobs.remove(job)
        job.done = True
        step = None
        if isinstance(job, EverythingJob):
            self._tell(self.found.keep(job))
        else:
            step = self._end_propagation(job)
        self._tell(events.Finished(job.number, job.what, job.cancelled, step))

    def _end_propagation(self, job: PropagationJob) -> str | None:
        """Put the results into the state. Returns the name of the step, empty for part of the one before, None when the
        state stays as it is."""
        self._masks.expect((place, item.plane) for place, item in job.masks.items())
        whole = job.known is not None
        if not job.keep_results:
            job.masks, job.again = {}, {}
        if whole and not job.cancelled:
            for reason in job.ends:
                if reason not in self._told_ends.get(job.segment, ()):
                    self._notice(reason)
            self._told_ends[job.segment] = job.ends
        wanted = not job.overtaken if whole else job.keep_results
        before = self._history.state
        if not wanted or (state := job.commit(before)) is before:
            return None
        step = "" if whole else "propagate"
        self._apply(step, state, job.moment)
        return step

    def _notice(self, sentence: str) -> None:
        self._tell(events.Notice(sentence))


def busy_with(what: str, progress: Progress, job: int | None = None) -> events.Busy:
    """The event about the progress of a job, or of "embed", which is not a job."""
    done, total = progress.done, progress.total
    text = f"{_DOING[what]}: {done} of {total} slices"
    return events.Busy(job, what, done / total if total else 1.0, progress.seconds_left, text, done, total)

"""The list of jobs: one protocol for one method on one case. A job holds everything that it needs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from SAMFineTuneLib.cases.cases import SHORT, Case
from SAMFineTuneLib.cases.labelled_case import LabelChoice, read_labelled
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation.automatic_protocol import automatic, everything
from SAMFineTuneLib.evaluation.evaluation_settings import Settings
from SAMFineTuneLib.evaluation.factors import factor_rows
from SAMFineTuneLib.evaluation.interactive_protocol import interactive
from SAMFineTuneLib.evaluation.methods import Entry, OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row, to_csv
from SAMFineTuneLib.evaluation.single_prompt_protocol import perturbation, strategy
from SAMFineTuneLib.evaluation.volume_protocol import volumes
from SAMFineTuneLib.simulation.cosmos_prompts import STRATEGIES

FORMAT = 3
"""Part of every job's key: raise it when results of a protocol or a metric change."""

Protocol = Callable[[OpenMethod, Subject, Settings], Iterator[Row]]
_PROTOCOLS: dict[str, Protocol] = {
    "S1": everything,
    **{name: functools.partial(strategy, name) for name in STRATEGIES},
    "perturbation": perturbation,
    "interactive": interactive,
    "3d": volumes,
    "automatic": automatic,
}
_NOT_FOR_BASELINES = ("S1", "perturbation", "3d", "automatic")
_WITHOUT_PROMPTS = ("automatic",)


@dataclass(frozen=True)
class Job:
    """A protocol for a method on a case; without a method, the factors of the case's objects."""

    case: Case
    digest: str
    patient: str
    """What identifies the patient in the rows."""
    choice: LabelChoice
    names: tuple[str, ...]
    entry: Entry | None
    protocol: str
    settings: Settings
    device: str = "auto"

    @property
    def key(self) -> str:
        """Hex digest of everything that decides the rows: equal for jobs with equal rows."""
        who = ("", "") if self.entry is None else (self.entry.name, self.entry.digest)
        parts = [FORMAT, self.digest, self.patient, str(self.choice), self.names, who, self.settings.of(self.protocol)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def list_jobs(
    cases: Sequence[tuple[Case, str, str]],
    choice: LabelChoice,
    names: Sequence[str],
    entries: Sequence[Entry],
    settings: Settings,
    device: str = "auto",
) -> list[Job]:
    """All jobs, case by case; `cases` come with their digests and what identifies the patient."""
    jobs = []
    for case, digest, patient in cases:
        for entry in (None, *entries):
            jobs += [
                Job(case, digest, patient, choice, tuple(names), entry, protocol, settings, device)
                for protocol in settings.protocols
                if _concerns(protocol, entry)
            ]
    return jobs


def do(job: Job) -> str:
    """The rows of a job as text."""
    subject = _subject(job.case, job.choice, job.names, job.settings.window, job.settings.orientation)
    if subject.digest != job.digest:
        raise UserError(f"Case {job.case.id} has changed since the evaluation began; begin anew in another folder.")
    if job.entry is None:
        rows = factor_rows(subject, job.settings)
    else:
        rows = _PROTOCOLS[job.protocol](_opened(job.entry, job.device), subject, job.settings)
    return to_csv(replace(row, patient=job.patient, case=job.digest[:SHORT]) for row in rows)


def _concerns(protocol: str, entry: Entry | None) -> bool:
    if entry is None or protocol == "factors":
        return entry is None and protocol == "factors"
    if entry.is_baseline:
        return protocol not in _NOT_FOR_BASELINES
    return ("automatic" if protocol in _WITHOUT_PROMPTS else "promptable") in entry.heads


@functools.lru_cache(maxsize=2)
def _subject(case: Case, choice: LabelChoice, names: tuple[str, ...], window: str | None, orientation: str) -> Subject:
    """The case that this process works on; jobs come case by case."""
    return Subject(read_labelled(case, choice, names), window, orientation)


@functools.lru_cache(maxsize=8)
def _opened(entry: Entry, device: str) -> OpenMethod:
    return OpenMethod(entry, device)

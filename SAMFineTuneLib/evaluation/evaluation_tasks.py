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
from SAMFineTuneLib.evaluation import slice_protocols
from SAMFineTuneLib.evaluation.automatic_protocol import automatic
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.factors import factor_rows
from SAMFineTuneLib.evaluation.methods import ListedMethod, OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row, to_csv
from SAMFineTuneLib.evaluation.volume_protocol import volumes
from SAMFineTuneLib.simulation.cosmos_prompts import STRATEGIES

FORMAT = 3
"""Part of every job's key: raise it when results of a protocol or a metric change."""

_PROTOCOLS: dict[str, Callable[[OpenMethod, Subject, EvaluationSettings], Iterator[Row]]] = {
    "S1": slice_protocols.everything,
    **{name: functools.partial(slice_protocols.strategy, name) for name in STRATEGIES},
    "perturbation": slice_protocols.perturbation,
    "interactive": slice_protocols.interactive,
    "3d": volumes,
    "automatic": automatic,
}
_NOT_FOR_BASELINES = ("S1", "perturbation", "3d", "automatic")


@dataclass(frozen=True)
class Tested:
    """A case that tests, with its digest, that of its chosen labels, and the one that stands for its patient."""

    case: Case
    digest: str
    classes: str
    patient: str

    @property
    def short(self) -> str:
        """The short digest that identifies the case in the rows."""
        return self.digest[:SHORT]


@dataclass(frozen=True)
class Setup:
    """Shared by all jobs of an evaluation: the labels, the settings, the device."""

    choice: LabelChoice
    names: tuple[str, ...]
    settings: EvaluationSettings
    device: str = "auto"


@dataclass(frozen=True)
class EvaluationJob:
    """A protocol for a method on a case; without a method, the factors of the case's objects."""

    tested: Tested
    entry: ListedMethod | None
    protocol: str
    setup: Setup

    @property
    def key(self) -> str:
        """Hex digest of everything that decides the rows: equal for jobs with equal rows."""
        who = ("", "") if self.entry is None else (self.entry.name, self.entry.digest)
        case = self.tested.digest, self.tested.classes, self.tested.patient
        parts = [FORMAT, *case, str(self.setup.choice), who, self.setup.settings.of(self.protocol)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def list_jobs(cases: Sequence[Tested], entries: Sequence[ListedMethod], setup: Setup) -> list[EvaluationJob]:
    """All jobs, case by case: of each protocol one for every method that it concerns."""
    return [
        EvaluationJob(tested, entry, protocol, setup)
        for tested in cases
        for entry in (None, *entries)
        for protocol in setup.settings.protocols
        if _concerns(protocol, entry)
    ]


def do(job: EvaluationJob) -> str:
    """The rows of a job as text."""
    subject = subject_of(job.tested, job.setup)
    if job.entry is None:
        rows = factor_rows(subject, job.setup.settings)
    else:
        rows = _PROTOCOLS[job.protocol](opened(job.entry, job.setup.device), subject, job.setup.settings)
    return to_csv(replace(row, patient=job.tested.patient, case=job.tested.short) for row in rows)


def _concerns(protocol: str, entry: ListedMethod | None) -> bool:
    if entry is None or protocol == "factors":
        return entry is None and protocol == "factors"
    if entry.is_baseline:
        return protocol not in _NOT_FOR_BASELINES
    return ("automatic" if protocol == "automatic" else "promptable") in entry.heads


@functools.lru_cache(maxsize=2)
def subject_of(tested: Tested, setup: Setup) -> Subject:
    """The case that this process works on; jobs come case by case. UserError when its files have changed."""
    labelled = read_labelled(tested.case, setup.choice, setup.names)
    if (labelled.digest, labelled.classes_digest) != (tested.digest, tested.classes):
        raise UserError(f"Case {tested.case.id} has changed since the evaluation began; start again in another folder.")
    return Subject(labelled, setup.settings.window, setup.settings.orientation)


@functools.lru_cache(maxsize=8)
def opened(entry: ListedMethod, device: str) -> OpenMethod:
    """A method that is ready to answer, kept for further jobs."""
    return OpenMethod(entry, device)

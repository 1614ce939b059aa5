"""An evaluation from cases to report: finished jobs are kept, missing ones are done, then everything is reported.

It leaves a folder with:

| file | content |
|---|---|
| `results.csv` | every measurement, a row for each case, object, protocol and step; equal for equal evaluations |
| `report.html` | tables, curves, box plots and pictures in one file |
| `summary.json` | the tables as numbers, the settings, the methods |
| `pictures/` | best, median and worst answers |
| `cases.csv` | which file is which case and patient: the only file with names, not to be passed on |
| `parts/` | the rows of each job, which `--resume` need not do again |
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from SAMFineTuneLib import __version__
from SAMFineTuneLib.cases.case_slices import LEAST_PIXELS
from SAMFineTuneLib.cases.case_survey import survey
from SAMFineTuneLib.cases.cases import SHORT, Case
from SAMFineTuneLib.cases.labelled_case import LabelChoice
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import evaluation_report as report
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.evaluation.evaluation_report import Evaluation
from SAMFineTuneLib.evaluation.evaluation_settings import Settings
from SAMFineTuneLib.evaluation.evaluation_tasks import Job, list_jobs
from SAMFineTuneLib.evaluation.example_pictures import draw_overlays
from SAMFineTuneLib.evaluation.executors import Engine, local
from SAMFineTuneLib.evaluation.methods import Entry
from SAMFineTuneLib.evaluation.result_rows import Row, from_csv, to_csv
from SAMFineTuneLib.evaluation.tables import Results, all_tables
from SAMFineTuneLib.files import atomic_write, require_writable
from SAMFineTuneLib.inference.progress import Meter, Progress
from SAMFineTuneLib.process_lock import LOCK, Owner, ProcessLock, owning

PARTS, PICTURES = "parts", "pictures"
RESULTS, REPORT, SUMMARY, KEY = "results.csv", "report.html", "summary.json", "cases.csv"


@dataclass(frozen=True)
class _Listed:
    """A case with its digest, and the digest that stands for its patient."""

    case: Case
    digest: str
    patient: str

    @property
    def short(self) -> str:
        return self.digest[:SHORT]


def evaluate(
    cases: Sequence[Case],
    output: str | Path,
    entries: Sequence[Entry],
    settings: Settings | None = None,
    labels: LabelChoice | None = None,
    engine: Engine | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    seconds: Seconds | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate methods on cases and write everything into the folder `output`.

    UserError where the cases cannot be used, where the folder holds something else or another process works in it, and
    where no case is left that an adapter has not learned from. An interruption loses only the jobs that were under way.
    """
    settings, engine = settings or Settings(), engine or local()
    folder = Path(output).expanduser()
    _require_free(folder, resume)
    found = survey(cases, labels or LabelChoice(), least=1)
    listed, notes = _without_taught(_listed(cases, found.digests), entries)
    notes += _notes_on(entries, settings)
    work = [(one.case, one.digest, one.patient) for one in listed]
    jobs = list_jobs(work, found.choice, found.names, entries, settings, device)
    if not jobs:
        raise UserError("There is nothing to do: none of the methods can answer the chosen protocols; choose others.")
    with owning(folder, lambda owner: _is_running(folder, owner)):
        _require_contents(folder, resume)
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        _write(folder / KEY, _key_of(listed))
        _do(jobs, folder / PARTS, engine, progress)
        rows = [row for job in jobs for row in _read_part(folder / PARTS, job) or ()]
        if not rows:
            nothing = f"No label has a piece of {LEAST_PIXELS} pixels or more on any slice, so nothing was measured."
            notes.append(nothing)
        _write(folder / RESULTS, to_csv(rows))
        results = Results(rows, [entry.name for entry in entries])
        tables = all_tables(results, seconds or Seconds())
        known = {one.short: one.case for one in listed}
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        overlays = list(
            draw_overlays(folder / PICTURES, results, entries, known, found.choice, found.names, settings, device)
        )
        patients = len({one.patient for one in listed})
        written = (*found.nameless_notes, *notes)
        evaluation = Evaluation(folder, tuple(tables), written, len(listed), patients, found.names)
        summary = json.dumps(_summary(evaluation, entries, settings), indent=1, ensure_ascii=False)
        _write(folder / SUMMARY, f"{summary}\n")
        _write(folder / REPORT, report.page(evaluation, entries, settings, results, overlays))
        return replace(evaluation, notes=(*found.notes, *notes))


# ---------------------------------------------------------------- cases


def _listed(cases: Sequence[Case], digests: dict[str, str]) -> list[_Listed]:
    """Cases in the order of digests, which renaming files does not change; a patient is named by the first case."""
    ordered = sorted(cases, key=lambda case: digests[case.id])
    first: dict[str, str] = {}
    for case in ordered:
        first.setdefault(case.patient, digests[case.id][:SHORT])
    return [_Listed(case, digests[case.id], first[case.patient]) for case in ordered]


def _without_taught(listed: Sequence[_Listed], entries: Sequence[Entry]) -> tuple[list[_Listed], list[str]]:
    """Cases of patients that no adapter learned from, and a sentence for each adapter that learned from the others."""
    notes, seen = [], set()
    for entry in entries:
        own = {one.patient for one in listed if one.digest in entry.taught}
        if own:
            notes.append(f"{entry.name} learned from {len(own)} of the patients; no method is tested on their cases.")
            seen |= own
    rest = [one for one in listed if one.patient not in seen]
    if not rest:
        raise UserError(
            "An adapter learned from every one of these patients, so they cannot test it; give cases of other patients."
        )
    return rest, notes


def _notes_on(entries: Sequence[Entry], settings: Settings) -> list[str]:
    notes = [f"{entry.name}: {notice}" for entry in entries for notice in entry.notices]
    if "automatic" in settings.protocols:
        without = [entry.name for entry in entries if not entry.is_baseline and "automatic" not in entry.heads]
        if without:
            notes.append(f"{', '.join(without)}: no automatic head, so segmenting without prompts was not "
                         "measured.")  # fmt: skip
    return notes


def _key_of(listed: Sequence[_Listed]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "patient", "name", "image", "label"))
    for one in listed:
        writer.writerow((one.short, one.patient, one.case.id, one.case.image, one.case.label))
    return text.getvalue()


# ---------------------------------------------------------------- work


def _require_free(folder: Path, resume: bool) -> None:
    if owner := ProcessLock(folder / LOCK).owner:
        raise UserError(_is_running(folder, owner))
    _require_contents(folder, resume)
    require_writable(folder)


def _is_running(folder: Path, owner: Owner) -> str:
    return f"The evaluation in {folder} is running ({owner}); wait until it is done, or {owner.how_to_stop}."


def _require_contents(folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the results.")
    if folder.is_dir() and any(one.name != LOCK for one in folder.iterdir()):
        if not (folder / PARTS).is_dir():
            raise UserError(f"{folder} holds something else; give a new folder for the results.")
        if not resume:
            raise UserError(f"{folder} holds an evaluation already; go on with it by --resume, or give a new folder.")


def _do(jobs: Sequence[Job], parts: Path, engine: Engine, progress: Callable[[Progress], None] | None) -> None:
    """Do the missing jobs; a job's rows are on disk before it counts as done."""
    missing = [job for job in jobs if _read_part(parts, job) is None]
    meter = Meter(len(jobs), progress)
    meter.skip(len(jobs) - len(missing))
    for job, text in engine(missing) if missing else ():
        _write(parts / f"{job.key}.csv", text)
        meter.step()


def _read_part(parts: Path, job: Job) -> list[Row] | None:
    """The rows of a finished job; None where they are missing or incomplete."""
    try:
        return from_csv((parts / f"{job.key}.csv").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


# ---------------------------------------------------------------- telling


def _summary(evaluation: Evaluation, entries: Sequence[Entry], settings: Settings) -> dict[str, Any]:
    return {
        "version": __version__,
        "settings": asdict(settings),
        "cases": evaluation.cases,
        "patients": evaluation.patients,
        "labels": list(evaluation.labels),
        "contestants": [
            {"name": entry.name, "kind": entry.kind, "digest": entry.digest} for entry in entries
        ],
        "notes": list(evaluation.notes),
        "tables": [table.as_dict() for table in evaluation.tables],
    }  # fmt: skip


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")

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

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from SAMFineTuneLib import __version__
from SAMFineTuneLib.cases.case_slices import LEAST_PIXELS
from SAMFineTuneLib.cases.case_survey import Survey, survey
from SAMFineTuneLib.cases.cases import SHORT, Case
from SAMFineTuneLib.cases.labelled_case import LabelChoice
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import evaluation_report as report
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.evaluation.evaluation_report import Evaluation
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.evaluation_tasks import EvaluationJob, Setup, Tested, do, list_jobs
from SAMFineTuneLib.evaluation.example_pictures import draw_overlays
from SAMFineTuneLib.evaluation.executors import Engine, local
from SAMFineTuneLib.evaluation.methods import ListedMethod
from SAMFineTuneLib.evaluation.result_rows import Results, Row, from_csv, to_csv
from SAMFineTuneLib.evaluation.tables import LEAST_OBJECTS, all_tables
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.inference.progress import Meter, Progress
from SAMFineTuneLib.process_lock import LOCK, owning
from SAMFineTuneLib.report_page import csv_text

PARTS, PICTURES = "parts", "pictures"
RESULTS, REPORT, SUMMARY, KEY = "results.csv", "report.html", "summary.json", "cases.csv"


def evaluate(
    cases: Sequence[Case],
    output: str | Path,
    entries: Sequence[ListedMethod],
    settings: EvaluationSettings | None = None,
    labels: LabelChoice | None = None,
    engine: Engine | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    seconds: Seconds | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate methods on cases and write everything into a folder. An interruption loses only the jobs under way.

    Args:
        cases: images with labels, as `cases.find_cases` returns them.
        output: the folder, new unless `resume`.
        entries: the methods, from `methods.enter` and `methods.enter_baselines`.
        settings: protocols, slices, seed and so on.
        labels: which labels count, by default all.
        engine: where the jobs run, by default in processes of this computer.
        resume: continue an evaluation in the folder.
        progress: called after each job.
        seconds: duration of an annotator's actions.
        device: where the models run, such as "auto", "cpu" or "cuda".

    Raises:
        UserError: if the cases cannot be used, the folder holds something else or another process works in it, or no
            case is left that an adapter has not learned from.
    """
    settings, engine = settings or EvaluationSettings(), engine or local()
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the results.")
    with owning(folder, f"The evaluation in {folder}"):
        _require_contents(folder, resume)
        found = survey(cases, labels or LabelChoice(), least=1)
        tested, notes = _without_taught(_tested(cases, found), entries)
        notes += _notes_on(entries, settings)
        setup = Setup(found.choice, found.names, settings, device)
        jobs = list_jobs(tested, entries, setup)
        if not jobs:
            raise UserError(
                "There is nothing to do: none of the methods can answer the chosen protocols; choose others."
            )
        (folder / PARTS).mkdir(exist_ok=True)
        named = [(one.short, one.patient, one.case.id, one.case.image, one.case.label) for one in tested]
        write_text(folder / KEY, csv_text([("case", "patient", "name", "image", "label"), *named]))
        _do(jobs, folder / PARTS, engine, progress)
        rows = [row for job in jobs for row in _read_part(folder / PARTS, job) or ()]
        if not rows:
            least = f"{LEAST_PIXELS} pixels or more"
            notes.append(f"No label has a piece of {least} on any slice, so nothing was measured.")
        write_text(folder / RESULTS, to_csv(rows))
        results = Results(rows, [entry.name for entry in entries])
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        overlays = list(draw_overlays(folder / PICTURES, results, entries, tested, setup))
        tables = all_tables(results, seconds or Seconds())
        if rows and "factors" in settings.protocols and all(table.name != "factors" for table in tables):
            notes.append(f"What makes objects hard (factors) was not computed: that takes one of S2 to S6 and answers "
                         f"to {LEAST_OBJECTS} objects or more.")  # fmt: skip
        evaluation = Evaluation(
            folder, tables, (*found.nameless_notes, *notes), len(tested), len({one.patient for one in tested}),
            found.names,
        )  # fmt: skip
        summary = {
            "version": __version__, "settings": asdict(settings), "cases": evaluation.cases,
            "patients": evaluation.patients, "labels": evaluation.labels,
            "contestants": [{"name": entry.name, "kind": entry.kind, "digest": entry.digest} for entry in entries],
            "notes": evaluation.notes, "tables": [table.as_dict() for table in evaluation.tables],
        }  # fmt: skip
        write_text(folder / SUMMARY, f"{json.dumps(summary, indent=1, ensure_ascii=False)}\n")
        write_text(folder / REPORT, report.page(evaluation, entries, settings, results, overlays))
        return replace(evaluation, notes=(*found.notes, *notes))


def _require_contents(folder: Path, resume: bool) -> None:
    if any(one.name != LOCK for one in folder.iterdir()):
        if not (folder / PARTS).is_dir():
            raise UserError(f"{folder} holds something else; give a new folder for the results.")
        if not resume:
            raise UserError(f"{folder} holds an evaluation already; continue it with --resume, or give a new folder.")


# ---------------------------------------------------------------- cases


def _tested(cases: Sequence[Case], found: Survey) -> list[Tested]:
    """Cases in the order of digests, which renaming files does not change; a patient is named by the first case."""
    ordered = sorted(cases, key=lambda case: found.digests[case.id])
    first: dict[str, str] = {}
    for case in ordered:
        first.setdefault(case.patient, found.digests[case.id][:SHORT])
    return [Tested(case, found.digests[case.id], found.classes[case.id], first[case.patient]) for case in ordered]


def _without_taught(cases: Sequence[Tested], entries: Sequence[ListedMethod]) -> tuple[list[Tested], list[str]]:
    """Cases of patients that no adapter learned from, and a sentence for each adapter that learned from the others."""
    notes, seen = [], set()
    for entry in entries:
        own = {one.patient for one in cases if one.digest in entry.taught}
        if own:
            notes.append(f"{entry.name} learned from {len(own)} of the patients; no method is tested on their cases.")
            seen |= own
    rest = [one for one in cases if one.patient not in seen]
    if not rest:
        raise UserError(
            "An adapter learned from every one of these patients, so they cannot test it; give cases of other patients."
        )
    return rest, notes


def _notes_on(entries: Sequence[ListedMethod], settings: EvaluationSettings) -> list[str]:
    notes = [f"{entry.name}: {notice}" for entry in entries for notice in entry.notices]
    if "automatic" in settings.protocols:
        without = [entry.name for entry in entries if not entry.is_baseline and "automatic" not in entry.heads]
        if without:
            notes.append(f"{', '.join(without)}: no automatic head, so segmenting without prompts was not "
                         "measured.")  # fmt: skip
    return notes


# ---------------------------------------------------------------- work


def _do(
    jobs: Sequence[EvaluationJob], parts: Path, engine: Engine, progress: Callable[[Progress], None] | None
) -> None:
    """Do the missing jobs; a job's rows are on disk before it counts as done."""
    missing = [job for job in jobs if _read_part(parts, job) is None]
    meter = Meter(len(jobs), progress)
    meter.skip(len(jobs) - len(missing))
    for job, text in engine(do, missing) if missing else ():
        write_text(parts / f"{job.key}.csv", text)
        meter.step()


def _read_part(parts: Path, job: EvaluationJob) -> list[Row] | None:
    """The rows of a finished job; None where they are missing or incomplete."""
    try:
        return from_csv((parts / f"{job.key}.csv").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, AttributeError):
        return None

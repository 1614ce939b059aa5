"""The process in which a training runs: `python -m SAMFineTuneLib.service.training_process FOLDER`.

It does the job in the folder, and writes events about its progress (see `trainings`). When it is asked to stop, or
when the program that started it has ended, it writes a checkpoint and ends within a second or two. After a crash or a
kill, the last checkpoint is at most a minute old.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.disk_errors import explained
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import trainings as files
from SAMFineTuneLib.service.child_process import when_parent_ends
from SAMFineTuneLib.service.folder_process import LOG, OUTLIVES, STOP, EventFile, run_in
from SAMFineTuneLib.service.trainings import TrainingJob
from SAMFineTuneLib.training.stopping import Stopped, StopSigns, stopping

if TYPE_CHECKING:
    from SAMFineTuneLib.cases.case_survey import Survey
    from SAMFineTuneLib.cases.cases import Case
    from SAMFineTuneLib.models.spec import ModelFolder
    from SAMFineTuneLib.training.fine_tuning import TrainingProgress
    from SAMFineTuneLib.training.training_plan import Plan
    from SAMFineTuneLib.training.training_settings import TrainingSettings

NEEDED = ("torch", "peft", "scipy", "safetensors")
_NICE = 5  # lower priority than Slicer and the worker that answers clicks


def main(arguments: list[str]) -> int:
    """Do the job of the folder that is the only argument; returns the exit code."""
    folder = Path(arguments[0])
    return run_in(folder, lambda: _begin(folder))


def _begin(folder: Path) -> int:
    tell = EventFile(folder, files.ENDS)

    def leave() -> None:
        if tell("stopped"):
            os._exit(0)

    stop = StopSigns([signal.SIGTERM], leave, (folder / STOP).exists)
    tell("begin", pid=os.getpid())
    if hasattr(os, "nice"):
        os.nice(_NICE)
    if not os.environ.get(OUTLIVES):
        when_parent_ends(stop.ask)
    with stop:
        return _work(folder, tell, stop)


def _work(folder: Path, tell: EventFile, stop: StopSigns) -> int:
    try:
        job = TrainingJob.read(folder)
        _check(folder, job, tell, stop) if job.only_check else _train(folder, job, tell, stop)
        return 0
    except Stopped:
        tell("stopped")
        return 0
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        sentence = explained(
            error,
            "The training ran out of memory: close other programs and resume it, or start another one with fewer "
            "pictures a step (under Advanced) or a smaller base model.",
            "Training needs the package {}, which is not installed.",
        )
        failed = f"The training failed ({type(error).__name__}); its log is {folder / LOG}."
        tell("failed", text=sentence or failed)
        return 1


def _check(folder: Path, job: TrainingJob, tell: EventFile, stop: StopSigns) -> None:
    """Report what the cases contain, and how long a training would take if its packages are installed."""
    from SAMFineTuneLib.cases.case_survey import survey
    from SAMFineTuneLib.training.training_settings import TrainingSettings

    cases, settings = _cases(folder, job), TrainingSettings.from_dict(job.settings)
    if all(find_spec(name) for name in NEEDED):
        found, effort = _planned(cases, folder, job, settings, stop)
    else:
        found, effort = survey(cases, settings.labels, exclusive="automatic" in settings.heads), {}
    patients = len({case.patient for case in cases})
    tell("checked", cases=len(cases), patients=patients, names=list(found.names), wanted=list(found.choice.wanted),
         slices=sum(found.slices.values()), notes=list(found.notes), **effort)  # fmt: skip
    _forget_cases(folder, job)


def _planned(
    cases: tuple[Case, ...], folder: Path, job: TrainingJob, settings: TrainingSettings, stop: StopSigns
) -> tuple[Survey, dict[str, Any]]:
    """What the cases contain, and the estimated effort of a training."""
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.training.training_plan import make_plan
    from SAMFineTuneLib.training.training_time import measure_pace

    look = stopping(lambda: stop.asked)
    plan = make_plan(cases, folder / files.OUTPUT, Store().get(job.model), settings, look=look)
    return plan.found, {**_outline(plan), "seconds": measure_pace(plan, look).seconds}


def _outline(plan: Plan) -> dict[str, Any]:
    return {"trainings": len(plan.trainings), "steps": max(plan.steps)}


def _train(folder: Path, job: TrainingJob, tell: EventFile, stop: StopSigns) -> None:
    from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
    from SAMFineTuneLib.models.adapters.merged_export import make_ready
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.training.training_settings import TrainingSettings

    store, base, settings = AdapterStore(), Store().get(job.model), TrainingSettings.from_dict(job.settings)
    output = folder / files.OUTPUT

    def is_delivered() -> bool:
        """Whether the store has this adapter already, from a run that ended before it could report it."""
        try:
            return store.get(job.name).digest == read_adapter_folder(output).digest
        except UserError:
            return False

    if not is_delivered():
        store.check_new(job.name)
    unknown = {"part": 1, "parts": 1, "step": 0, "steps": 0, "loss": None, "dice": None, "seconds_left": None}
    tell("progress", stage="cases", **unknown)
    cases = _cases(folder, job)
    trained = (output / "card.json").is_file()  # left by a run that ended before the adapter was in the store
    notes = [] if trained else _fine_tune(cases, output, base, settings, tell, stop)
    tell("progress", stage="export", **unknown)
    delivered = is_delivered()
    note = make_ready(store.get(job.name).path if delivered else output, base)
    if not delivered:
        store.add(output, job.name)
    card = read_adapter_folder(output).card
    tell("done", adapter=job.name, base=base.spec.id, labels=list(card.labels), heads=list(card.method.heads),
         evidence=str(card.recipe.get("evidence", "")), notes=[*notes, *([note] if note else [])], seconds=card.seconds,
         gains=[gain.summary() for gain in card.gains])  # fmt: skip
    _forget_cases(folder, job)


def _fine_tune(
    cases: tuple[Case, ...],
    output: Path,
    base: ModelFolder,
    settings: TrainingSettings,
    tell: EventFile,
    stop: StopSigns,
) -> Sequence[str]:
    """Train the adapter, or resume its training; returns notes for the user."""
    from SAMFineTuneLib.training.fine_tuning import fine_tune
    from SAMFineTuneLib.training.training_plan import working_folder

    def show(progress: TrainingProgress) -> None:
        stop.learning = progress.stage == "training"
        tell("progress", **vars(progress))

    def planned(plan: Plan) -> None:
        tell("plan", **_outline(plan), notes=list(plan.found.notes))
        print(*plan.found.nameless_notes, sep="\n", flush=True)  # into the log

    resume = (working_folder(output) / "run.json").exists()
    return fine_tune(cases, output, base, settings, show, lambda: stop.asked, resume, planned=planned).notes


def _cases(folder: Path, job: TrainingJob) -> tuple[Case, ...]:
    from SAMFineTuneLib.cases.cases import find_cases
    from SAMFineTuneLib.cases.exported_cases import read_cases

    return find_cases(job.source) if job.source else read_cases(folder / files.CASES)


def _forget_cases(folder: Path, job: TrainingJob) -> None:
    """Delete the images of patients as soon as they are no longer needed."""
    if not job.source:
        shutil.rmtree(folder / files.CASES, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

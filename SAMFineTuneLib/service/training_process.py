"""The process in which a training runs: `python -m SAMFineTuneLib.service.training_process FOLDER`.

It does what the folder's job says and writes down what happens. When it is asked to stop, or when whoever started it is
gone, it stops at its next step and leaves a checkpoint; a crash or a kill leaves the last one, at most a minute old.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import training_job as files
from SAMFineTuneLib.service.training_job import ProcessLock, TrainingJob

if TYPE_CHECKING:
    from SAMFineTuneLib.models.spec import ModelFolder
    from SAMFineTuneLib.training.cases import Case
    from SAMFineTuneLib.training.run import Result

OUTLIVES = "SAMFINETUNE_TRAINING_OUTLIVES"
"""Variable that lets a training go on when the program that started it has ended."""
NEEDED = ("torch", "peft", "scipy", "safetensors")
_TRIES, _BETWEEN = 20, 0.05  # s
_NICE = 5  # so that the window, and the worker that answers clicks, come first


def main(arguments: list[str]) -> int:
    """Work off the job in a folder."""
    folder = Path(arguments[0])
    lock = ProcessLock(folder / files.LOCK)
    if not any(lock.take() or time.sleep(_BETWEEN) for _ in range(_TRIES)):  # somebody may just be looking
        print("another process works in this folder", file=sys.stderr)
        return 2
    tell = _Events(folder / files.EVENTS)
    try:
        tell("begin", pid=os.getpid())
        return _work(folder, tell, _stop_signs(folder))
    finally:
        lock.release()


def _work(folder: Path, tell: _Events, stop: Callable[[], bool]) -> int:
    from SAMFineTuneLib.inference.document import is_out_of_memory

    try:
        job = TrainingJob.read(folder)
        _check(folder, job, tell) if job.only_check else _train(folder, job, tell, stop)
        return 0
    except UserError as error:
        sentence = str(error)
    except _Stop:
        tell("stopped")
        return 0
    except Exception as error:
        traceback.print_exc()
        if is_out_of_memory(error):
            sentence = (
                "The training ran out of memory: close other programs, or choose under Advanced fewer pictures a step, "
                "or a smaller base model."
            )
        elif isinstance(error, ModuleNotFoundError) and error.name:
            sentence = f"Training needs the package {error.name.partition('.')[0]}, which is not installed."
        else:
            sentence = f"The training failed ({type(error).__name__}); its log is {folder / files.LOG}."
    tell("failed", text=sentence)
    return 1


class _Stop(Exception):
    """The training was stopped, and can be resumed."""


def _check(folder: Path, job: TrainingJob, tell: _Events) -> None:
    from SAMFineTuneLib.training.cases import survey
    from SAMFineTuneLib.training.settings import Settings

    cases = _cases(folder, job)
    settings = Settings.from_dict(job.settings)
    found = survey(cases, settings.labels, exclusive="automatic" in settings.heads)
    tell("checked", cases=len(cases), patients=len({case.patient for case in cases}), names=list(found.names),
         wanted=list(found.choice.wanted), slices=sum(found.slices.values()), notes=list(found.notes))  # fmt: skip
    _forget_cases(folder, job)


def _train(folder: Path, job: TrainingJob, tell: _Events, stop: Callable[[], bool]) -> None:
    from SAMFineTuneLib.models.adapter_store import AdapterStore
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.training.settings import Settings

    store, base, settings = AdapterStore(), Store().get(job.model), Settings.from_dict(job.settings)
    store.check_new(job.name)
    tell("progress", stage="cases", part=1, parts=1, step=0, steps=0, loss=None, dice=None, seconds_left=None)
    cases = _cases(folder, job)
    result = _fine_tuned(cases, folder, base, settings, tell, stop)
    tell("progress", stage="export", part=1, parts=1, step=0, steps=0, loss=None, dice=None, seconds_left=None)
    _deliver(result, store, job, base, tell)
    _forget_cases(folder, job)


def _fine_tuned(cases: tuple[Case, ...], folder: Path, base: ModelFolder, settings, tell: _Events, stop) -> Result:
    from SAMFineTuneLib.models.adapter_folder import read_adapter_folder
    from SAMFineTuneLib.training.run import Result, Stopped, fine_tune, working_folder

    output = folder / files.OUTPUT
    if (output / "card.json").is_file():  # it was trained, but not delivered
        card = read_adapter_folder(output).card
        return Result(output, output / "report", card, str(card.recipe.get("evidence", "")), ())
    resume = (working_folder(output) / "run.json").exists()
    try:
        return fine_tune(cases, output, base, settings, lambda one: tell("progress", **vars(one)), stop, resume)
    except Stopped:
        raise _Stop from None


def _deliver(result: Result, store, job: TrainingJob, base: ModelFolder, tell: _Events) -> None:
    from SAMFineTuneLib.models.tuned_export import add_ready

    note = add_ready(store, result.adapter, job.name, base)
    card = result.card
    tell("done", adapter=job.name, base=base.spec.id, labels=list(card.labels), heads=list(_heads(result)),
         evidence=result.evidence, notes=[*result.notes, *([note] if note else [])], seconds=card.seconds,
         gains=[{"prompt": gain.prompt, "label": gain.label, "cases": len(gain.cases), "before": gain.means[0],
                 "after": gain.means[1], "interval_before": gain.interval_before,
                 "interval_after": gain.interval_after} for gain in card.gains])  # fmt: skip


def _heads(result: Result) -> tuple[str, ...]:
    from SAMFineTuneLib.models.adapter_folder import read_adapter_folder

    return read_adapter_folder(result.adapter).card.method.heads


def _cases(folder: Path, job: TrainingJob) -> tuple[Case, ...]:
    from SAMFineTuneLib.service.exported_cases import read_cases
    from SAMFineTuneLib.training.cases import find_cases

    return find_cases(job.source) if job.source else read_cases(folder / files.CASES)


def _forget_cases(folder: Path, job: TrainingJob) -> None:
    """Images of patients lie about no longer than needed."""
    if not job.source:
        shutil.rmtree(folder / files.CASES, ignore_errors=True)


class _Events:
    """Writes an object a line, at once."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")

    def __call__(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()


def _stop_signs(folder: Path) -> Callable[[], bool]:
    """Whether to stop: somebody asked, the system did, or whoever started this is gone."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in Slicer's terminal is meant for Slicer
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.nice(_NICE)
    if not os.environ.get(OUTLIVES):
        threading.Thread(target=_watch_parent, args=(asked,), name="samfinetune-parent", daemon=True).start()
    return lambda: asked.is_set() or (folder / files.STOP).exists()


def _watch_parent(asked: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be held when Python finishes
        pass
    asked.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Starts and follows training processes on this computer. A training may outlive the window that started it.

A training has a folder (see `folder_process`), in which `job.json` says what to do. Nothing here waits.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import data_folder, write_text
from SAMFineTuneLib.service.folder_process import EVENTS, FolderProcess
from SAMFineTuneLib.typed_json import loaded

JOB, CASES, OUTPUT = "job.json", "cases", "adapter"
ENDS = ("done", "failed", "stopped", "checked")
"""Events with which a training ends."""
_FORMAT = 1
_MODULE = "SAMFineTuneLib.service.training_process"
_CHECK = ".check"


@dataclass(frozen=True)
class TrainingJob:
    """The job of a training."""

    name: str
    """Of the adapter that it makes."""
    model: str = "compact"
    """Id of the base model."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As `Settings.to_dict` gives them."""
    source: str = ""
    """A folder or list of cases; empty for cases in the training's own folder."""
    only_check: bool = False
    """Only examine the cases and estimate the effort."""

    def write(self, folder: Path) -> None:
        """Write the job into a training's folder."""
        write_text(folder / JOB, json.dumps({"format": _FORMAT, **asdict(self)}))

    @classmethod
    def read(cls, folder: Path) -> TrainingJob:
        """Read the job from a training's folder; UserError when there is none."""
        try:
            values = loaded((folder / JOB).read_text(encoding="utf-8"))
            if values.pop("format", None) != _FORMAT:
                raise UserError(f"The training in {folder} is from another version of SAMFineTune; delete that folder.")
            return cls(**values)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"There is no usable training in {folder}; delete that folder.") from error


def trainings_folder() -> Path:
    """The folder with a folder for each training."""
    return data_folder() / "trainings"


def find_runs() -> list[TrainingRun]:
    """All trainings of this user, latest first."""
    found = []
    for job in trainings_folder().glob(f"*/{JOB}"):
        with suppress(FileNotFoundError):  # another window has deleted it meanwhile
            found += [(-job.stat().st_mtime, job.parent)] if job.parent.name != _CHECK else []
    return [TrainingRun(folder) for _, folder in sorted(found)]


def new_run(name: str) -> TrainingRun:
    """Make an empty folder for a training, which only this user can read.

    Args:
        name: of the adapter that the training will make.

    Raises:
        UserError: when an adapter or an unfinished training has the name.
    """
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

    store = AdapterStore()
    if name and (store.folder / name).exists():
        raise UserError(f"There is an adapter {name} already; choose another name.")
    store.check_new(name)
    path = trainings_folder() / name
    run = TrainingRun(path)
    if run.is_running:
        raise UserError(f"The training {name} is running{run.owner}; wait until it is done, or stop it.")
    while run.poll():
        pass
    if path.exists() and run.can_resume:
        raise UserError(f"There is an unfinished training {name}: resume it, delete it, or choose another name.")
    return _empty_run(path)


def check_run() -> TrainingRun:
    """Make an empty folder for examining cases, which `find_runs` leaves out; UserError while it is in use."""
    run = TrainingRun(trainings_folder() / _CHECK)
    if run.is_running:
        raise UserError("Cases are being checked already; wait for that.")
    return _empty_run(run.folder)


def _empty_run(path: Path) -> TrainingRun:
    """A training in a new folder, which only this user can read."""
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror or error}); choose another name.") from error
    return TrainingRun(path)


def free_name(wished: str) -> str:
    """The wanted name, made valid, with a number appended if an adapter or training has it."""
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", wished).strip("-.") or "adapter"
    stores = (AdapterStore().folder, trainings_folder())
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not any((store / name).exists() for store in stores))


class TrainingRun(FolderProcess):
    """One training, by its folder.

    `poll` brings `state` up to date: "new", "running", "done", "failed", "stopped", "checked" or "interrupted" (it
    ended without saying why).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _MODULE, "The training")
        self.state = "new"
        self.last: dict[str, Any] = {}
        """The event that ended the training; empty before."""

    @property
    def name(self) -> str:
        """Name of the adapter that the training makes."""
        return self.folder.name

    @property
    def report(self) -> Path:
        """The page of the report, which exists when the training is done."""
        return self.folder / OUTPUT / "report" / "index.html"

    @property
    def job(self) -> TrainingJob:
        """The training's job, read from its folder."""
        return TrainingJob.read(self.folder)

    def start(self, executable: str | None = None, environment: Mapping[str, str] | None = None,
              outlives: bool = False) -> None:  # fmt: skip
        """Start the training, or resume it; UserError when it runs already, or cannot be started."""
        if self.is_running:
            raise UserError(f"The training {self.name} is running already{self.owner}.")
        try:
            with open(self.folder / EVENTS, "a", encoding="utf-8") as file:
                file.write('\n{"event": "start"}\n')  # a killed process may have left half a line
        except OSError as error:
            raise disk_error(error, self.folder) or error from error
        super().start(executable, environment, outlives)
        self.state, self.last = "running", {}

    @property
    def owner(self) -> str:
        """The process that works on it, in brackets; empty when none is known."""
        owner = self._lock.owner
        return f" ({owner})" if owner else ""

    @property
    def can_resume(self) -> bool:
        """Whether it can continue where it ended."""
        output = self.folder / OUTPUT
        begun = (output.parent / f".{output.name}.training" / "run.json").exists()
        return begun or ((output / "card.json").exists() and self.state not in ("done", "new"))

    def rewind(self) -> None:
        """Let `poll` read all events from the first one again."""
        self.state, self.last, self._position = "new", {}, 0

    def poll(self) -> list[dict[str, Any]]:
        """Read the events since the last call, at most as many as a few milliseconds allow."""
        running = self.is_running  # asked before reading: the next call reads what is written meanwhile
        events = super().poll()
        for event in events:
            kind = event.get("event")
            if kind in ("start", "begin"):
                self.state, self.last = "running", {}
            elif kind in ENDS:
                self.last = event
        if not events and self.state == "running" and not running:
            self.state = self.last.get("event", "interrupted")
        return events

    def discard(self) -> None:
        """Delete the training's folder, but not the adapter that it made; UserError while it runs."""
        if self.is_running:
            raise UserError(f"The training {self.name} is running{self.owner}; stop it first.")
        shutil.rmtree(self.folder, ignore_errors=True)

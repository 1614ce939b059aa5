"""A whole fine-tuning: from cases to an adapter with evidence of what it gained.

First come the adapters for evidence: each is trained without the cases that test it (cross-validation). Then the
adapter that is delivered learns from all cases. With `shots` or given test cases, the tested adapter is the delivered
one. A hidden folder beside the output keeps all results until the end, so that a run that was killed can go on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, with_objects
from SAMFineTuneLib.cases.cases import Case
from SAMFineTuneLib.cases.splits import Fold
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, staged_folder
from SAMFineTuneLib.images import overlay_picture
from SAMFineTuneLib.metrics.mask_metrics import dice, mean_dice
from SAMFineTuneLib.models.adapters.adapter_card import Card, Gain
from SAMFineTuneLib.models.adapters.tuning import attach, save_adapter
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.spec import ModelFolder
from SAMFineTuneLib.process_lock import owning
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.report_page import REFERENCE, paint
from SAMFineTuneLib.training.evidence import (
    WAYS,
    NetworkEngine,
    advice,
    answer_slice,
    evidence_of,
    gains,
    measure_case,
)
from SAMFineTuneLib.training.memory import device_of
from SAMFineTuneLib.training.network_tuning import NetworkTuning, tune
from SAMFineTuneLib.training.plan import (
    STATE,
    Plan,
    check_folders,
    is_running,
    looking,
    make_plan,
    working_folder,
)  # fmt: skip
from SAMFineTuneLib.training.process_group import ProcessGroup, join_process_group
from SAMFineTuneLib.training.rehearsal import rehearsal_of
from SAMFineTuneLib.training.stopping import Stopped, interruptible, stopping
from SAMFineTuneLib.training.training_items import Items
from SAMFineTuneLib.training.training_loop import History
from SAMFineTuneLib.training.training_report import REPORT, write_report
from SAMFineTuneLib.training.training_settings import Settings
from SAMFineTuneLib.training.training_time import Clock

__all__ = ["Plan", "Progress", "Result", "Stopped", "fine_tune", "make_plan", "working_folder"]

_FORMAT = 3
_PICTURES = 6  # held-out cases that the report shows
_VALIDATION_SLICES = 4  # labelled slices of a validation case that are looked at
_TIME = "seconds.json"  # in the working folder: how long the run has worked
_NOTE_TIME = 5.0  # s between two notes of that


@dataclass(frozen=True)
class Progress:
    """Progress of a fine-tuning. `stage` is "cases", "before", "training", "testing" or "report"."""

    stage: str
    part: int
    """Number of the present training, from 1; the last one makes the delivered adapter."""
    parts: int
    step: int = 0
    steps: int = 0
    loss: float | None = None
    dice: float | None = None
    """Of the last validation."""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Result:
    """The finished adapter and its evidence."""

    adapter: Path
    report: Path
    card: Card
    evidence: str
    """What the figures before and after refer to."""
    notes: tuple[str, ...]


def fine_tune(
    cases: Sequence[Case],
    output: str | Path,
    base: ModelFolder,
    settings: Settings,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    resume: bool = False,
    test: Sequence[Case] = (),
    planned: Callable[[Plan], None] | None = None,
) -> Result:
    """Train an adapter from cases and write it into a folder, with its card and a report.

    Args:
        cases: Cases to learn from.
        output: Folder of the adapter; must not exist.
        base: The model to adapt.
        settings: How it is trained.
        progress: Told how far the training is.
        cancel: Asked many times a second whether to stop.
        resume: Whether to go on with an interrupted training of `output`.
        test: Cases to test on; without any, `splits.split` decides.
        planned: Told the plan before the work begins.

    Raises:
        Stopped: When `cancel` says so; a later call with `resume` goes on.
        UserError: For cases, settings or folders that cannot be used, and while another process trains into `output`.
    """
    output = Path(output).expanduser()
    group, device = join_process_group(device_of(settings.device))
    group.part_of(settings.batch)
    report, look = progress or (lambda _: None), stopping(cancel or (lambda: False))
    work = working_folder(output)
    if group.first:
        report(Progress("cases", 1, 1))
    plan = make_plan(cases, output, base, settings, resume, test, look, group.first)
    if planned and group.first:
        planned(plan)
    with owning(work, lambda owner: is_running(output, owner)) if group.first else nullcontext():
        if group.first:
            check_folders(output, resume)
        run = _Run(plan, work, group, torch.device(device), report, look)
        run.begin(resume)
        try:
            for part in range(len(plan.folds.parts)):
                run.part(part)
            network, history = run.final()
        finally:
            run.note_time()
        card = _card(run, history)
        if group.first:
            run.tell("report")
            _write_adapter(run, network, card)
    if group.first:
        shutil.rmtree(work, ignore_errors=True)
    group.from_first(None)  # no process reads the folder before it is there
    return Result(output, output / REPORT, card, run.evidence, (*plan.found.notes, *advice(card.gains)))


# ---------------------------------------------------------------- the run


@dataclass
class _Run:
    """State that the parts of a run share. The working folder holds the results of finished parts."""

    plan: Plan
    work: Path
    group: ProcessGroup
    device: torch.device
    report: Callable[[Progress], None]
    look: Callable[[], None]
    """Raises Stopped when the user asked to stop."""
    clock: Clock = field(default_factory=Clock)
    now: int = 0
    delivered: tuple[nn.Module, History] | None = None

    def __post_init__(self) -> None:
        plan = self.plan
        self.base, self.settings, self.found, self.folds = plan.base, plan.settings, plan.found, plan.folds

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways of prompting that the trained heads can answer."""
        heads = self.settings.method.heads
        return tuple(way for way in WAYS if ("automatic" if way == "automatic" else "promptable") in heads)

    @property
    def evidence(self) -> str:
        """What the figures refer to, as a sentence."""
        return evidence_of(self.folds)

    @property
    def parts(self) -> int:
        """Number of trainings."""
        return len(self.plan.trainings)

    def begin(self, resume: bool) -> None:
        """Write down what is trained; on resuming, check that it is the same as in the interrupted run."""
        here = json.loads(json.dumps({
            "format": _FORMAT, "settings": _comparable(self.settings), "base": self.base.spec.id,
            "base_sha256": dict(self.base.spec.sha256), "cases": sorted(self.found.digests.values()),
        }))  # fmt: skip
        path = self.work / STATE
        before = json.loads(path.read_text()) if resume and self.group.first else here
        if before.get("format") != _FORMAT:
            raise UserError(
                "The interrupted training was begun by another version of SAMFineTune, and this one cannot go on with "
                f"it; delete {self.work} to start anew."
            )
        if before != here:
            raise UserError(
                "The interrupted training had other settings, another model or other cases; give the same again, or "
                f"delete {self.work} to start anew."
            )
        if self.group.first:
            _write_json(path, here)
            self.clock.worked = _seconds(self.work / _TIME)
        self.group.from_first(None)
        tests = sum(len(part.test) for part in self.folds.parts)
        self.clock.expect(sum(self.plan.steps), tests)

    def tell(self, stage: str, **values: Any) -> None:
        """Report progress, and write down now and then how long the run has worked."""
        if self.group.first:
            place = min(self.now + 1, self.parts), self.parts
            self.report(Progress(stage, *place, seconds_left=self.clock.left, **values))
            if self.clock.is_due(_NOTE_TIME):
                self.note_time()

    def note_time(self) -> None:
        """Write down how long the run has worked, for a later session."""
        if self.group.first and (self.work / STATE).exists():
            with suppress(UserError):  # what went wrong before matters more
                _write_json(self.work / _TIME, self.clock.worked)

    def part(self, number: int) -> None:
        """Train and test the adapter of one fold, unless an earlier session did."""
        self.now = number
        fold, folder = self.folds.parts[number], self.work / f"part-{number}"
        done = self.group.from_first((folder / "result.json").exists())
        if done and self.parts > len(self.folds.parts):
            self.clock.skip(self.plan.steps[number], len(fold.test))
            return
        self.before(fold, number)
        network, history = self.train(folder, number)
        after = self.group.from_first(self.test(network, fold, folder, "after") if self.group.first else None)
        if self.group.first and not done:
            curves = {"loss": history.loss, "validated": history.validated, "dice": history.dice}
            _write_json(folder / "result.json", {"after": after, "history": curves})
        self.delivered = network, history

    def final(self) -> tuple[nn.Module, History]:
        """The delivered adapter: the tested one, or one that learned from all cases."""
        if self.parts == len(self.folds.parts):
            return self.delivered
        self.now = self.parts - 1
        return self.train(self.work / "final", self.now)

    def train(self, folder: Path, number: int) -> tuple[nn.Module, History]:
        """Attach and train the network of training `number`."""
        folder.mkdir(parents=True, exist_ok=True)
        fold = self.plan.trainings[number]
        shown, empty = self.plan.training_slices(fold.train, self._look)
        settings = self.settings.for_slices(len(shown))
        network = attach(load_network(self.base.file("weights"))[1], self.base.spec, settings.method, settings.seed)
        interruptible(network, self._look)
        tuning = NetworkTuning(
            network, self.base.spec, settings, Items(shown, empty, self.base.spec, settings, number),
            self.device, self.group, rehearsal_of(self.base.spec, settings, number),
            self._validator(network, fold.test), _Told(self, settings.steps), self.look,
        )  # fmt: skip
        history = tune(tuning, folder / "checkpoint.pt", number)
        if history.ended:
            self.clock.skip(settings.steps - history.step, 0)
        return network.eval(), history

    def _look(self) -> None:
        """Look within a computation; not where other processes would wait for this one's part of it."""
        if self.group.size == 1:
            self.look()

    def _validator(self, network: nn.Module, cases: Sequence[Case]) -> Callable[[], float] | None:
        if not cases:
            return None
        shown = []
        for case in cases:  # only the validated slices stay in memory
            own = list(looking(self.plan.slices(case), self._look))
            empty = evenly([one for one in own if not one.labelled], _VALIDATION_SLICES)
            shown.append(evenly(with_objects(own, case.id), _VALIDATION_SLICES) + empty)

        def validate() -> float:
            engine = NetworkEngine(network, self.base.spec, self.device)
            found = [measure_case(engine, own, len(self.found.names), self.ways) for own in shown]
            return mean_dice(value for case in found for values in case.values() for value in values) or 0.0

        return validate

    # ---- testing

    def before(self, fold: Fold, number: int) -> None:
        """Answers of the base to a fold's test cases."""
        ways = tuple(way for way in self.ways if way != "automatic")
        path = self.work / f"before-{number}.json"
        if ways and self.group.first and not path.exists():
            network = interruptible(load_network(self.base.file("weights"))[1], self._look).to(self.device)
            _write_json(path, self._measure(network, fold, "before", ways, number))
        self.group.from_first(None)

    def test(self, network: nn.Module, fold: Fold, folder: Path, stage: str) -> dict[str, Any]:
        """Answers of a trained network to a fold's test cases."""
        path = folder / "after.json"
        if path.exists():
            return json.loads(path.read_text())
        found = self._measure(network, fold, "after", self.ways, self.now)
        _write_json(path, found)
        return found

    def _measure(
        self, network: nn.Module, fold: Fold, stage: str, ways: Sequence[str], number: int
    ) -> dict[str, dict[str, list[float | None]]]:
        """Dice of every test case by its digest and the way of prompting; draws pictures of the first cases."""
        engine = NetworkEngine(network, self.base.spec, self.device)
        shown = sum(len(part.test) for part in self.folds.parts[:number])
        found = {}
        for place, case in enumerate(fold.test):
            self.look()
            self.tell("before" if stage == "before" else "testing")
            with self.clock.test():
                own = list(looking(self.plan.slices(case), self._look))
                measured = measure_case(engine, own, len(self.found.names), ways, self.settings.test_slices)
            found[self.found.digests[case.id]] = {way: list(values) for way, values in measured.items()}
            if shown + place < _PICTURES:
                self._draw(engine, own, ways, f"case-{shown + place + 1}", stage)
        return found

    def _draw(
        self, engine: NetworkEngine, slices: Sequence[LabelledSlice], ways: Sequence[str], name: str, stage: str
    ) -> None:
        """Reference, prompts and answer on the slice that shows most, and a caption."""
        most = max(slices, key=lambda one: int(np.count_nonzero((one.classes > 0) & ~one.ignored)))
        for way in ways:
            prompts: list[PlanePrompts] = []
            masks, reference = answer_slice(engine, most, way, len(self.found.names), prompts.append)
            pairs = zip(self.found.names, masks, reference, strict=True)
            found = {label: value for label, *pair in pairs if (value := dice(*pair)) is not None}
            legend = [(f"{label}, {way}, {stage}: Dice {value:.3f}", paint(self.found.names.index(label)))
                      for label, value in found.items()]  # fmt: skip
            path = self.work / "pictures" / f"{name}-{way.replace(' ', '-')}-{stage}.png"
            overlay_picture(
                path, most.picture, [(mask, paint(number)) for number, mask in enumerate(masks)],
                points=[(x, y, True) for one in prompts for x, y in one.points.tolist()],
                boxes=[one.box for one in prompts if one.box is not None],
                outlines=[(mask, REFERENCE) for mask in reference], legend=[*legend, ("reference", REFERENCE)],
            )  # fmt: skip
            figures = ", ".join(f"{label} {value:.3f}" for label, value in found.items()) or "not defined"
            caption = f"{name.replace('-', ' ')}, {way}, {stage}: Dice on this slice {figures}"
            _write_json(path.with_suffix(".json"), {"stage": stage, "caption": caption})


class _Told:
    """Turns a training's history into progress."""

    def __init__(self, run: _Run, steps: int) -> None:
        self._run, self._steps, self._begun = run, steps, False

    def __call__(self, history: History) -> None:
        run, step = self._run, history.step
        if not self._begun:  # neither a checkpoint's steps nor reading cases count for the pace
            run.clock.skip(step, 0)
            self._begun = True
        else:
            run.clock.stepped()
        recent = history.loss[-10:]
        run.tell(
            "training", step=step, steps=self._steps, loss=sum(recent) / len(recent),
            dice=history.dice[-1] if history.dice else None,
        )  # fmt: skip


def _comparable(settings: Settings) -> dict[str, Any]:
    """The settings that must be equal in a resumed run."""
    free = ("device", "precision", "micro_batch", "checkpointing")
    return {name: value for name, value in settings.to_dict().items() if name not in free}


def _seconds(path: Path) -> float:
    """How long earlier sessions of a run worked."""
    try:
        return float(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return 0.0


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


# ---------------------------------------------------------------- card and report


def _gains(run: _Run) -> tuple[Gain, ...]:
    before, after, patients = {}, {}, {}
    for number, fold in enumerate(run.folds.parts):
        patients |= {run.found.digests[case.id]: case.patient for case in fold.test}
        path = run.work / f"before-{number}.json"
        before |= json.loads(path.read_text()) if path.exists() else {}
        after |= json.loads((run.work / f"part-{number}" / "after.json").read_text())
    return gains(before, after, patients, run.found.names, run.ways)


def _card(run: _Run, history: History) -> Card:
    if not run.group.first:
        return Card()
    thin = max(1, len(history.loss) // 200)
    curves = {
        "steps": tuple(range(thin, len(history.loss) + 1, thin)),
        "loss": tuple(round(float(np.mean(history.loss[end - thin : end])), 5)
                      for end in range(thin, len(history.loss) + 1, thin)),
        "validated": tuple(history.validated),
        "dice": tuple(history.dice),
    }  # fmt: skip
    rehearsed = "synthetic pictures" if rehearsal_of(run.base.spec, run.settings) else None
    recipe = {
        **run.settings.recipe(), "steps": len(history.loss), "kept step": history.best, "rehearsal": rehearsed,
        "evidence": run.evidence, "modality": run.plan.modality or None,
    }  # fmt: skip
    return Card(
        labels=run.found.names,
        recipe={name: value for name, value in recipe.items() if value is not None},
        cases=tuple(sorted(run.found.digests[case.id] for case in run.folds.final)),
        gains=_gains(run),
        curves=curves,
        seconds=run.clock.worked,
        hardware=_hardware(run.device),
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _write_adapter(run: _Run, network: nn.Module, card: Card) -> None:
    """Write adapter and report together, so that a training that is stopped or killed meanwhile can be resumed."""
    with staged_folder(run.plan.output) as folder:
        save_adapter(folder, network, run.base, run.settings.method, card)
        _write_report(run, folder, card)


def _write_report(run: _Run, output: Path, card: Card) -> None:
    histories = {}
    for number in range(len(run.folds.parts)):
        path = run.work / f"part-{number}" / "result.json"
        if path.exists():
            histories[f"fold {number + 1}"] = json.loads(path.read_text())["history"]
    folder = output / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    pictures = run.work / "pictures"
    for file in sorted(pictures.iterdir()) if pictures.is_dir() else ():
        shutil.copyfile(file, folder / file.name)
    evidence = " ".join([run.evidence, *advice(card.gains)])
    told = replace(card, method=run.settings.method, base=run.base.spec.id)
    write_report(folder, told, evidence, histories, run.found.nameless_notes)

"""A whole fine-tuning: from cases to an adapter with evidence of what it gained.

First come the adapters for evidence: each is trained without the cases that test it (cross-validation). Then the
adapter that is delivered learns from all cases. With `shots` or given test cases, the tested adapter is the delivered
one. A hidden folder beside the output keeps all results until the end, so that a killed run can continue.
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
from SAMFineTuneLib.cases.cases import SHORT, Case
from SAMFineTuneLib.cases.splits import Fold
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import staged_folder, write_text
from SAMFineTuneLib.metrics.mask_metrics import dice, mean_dice
from SAMFineTuneLib.models.adapters.adapter_card import Card
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder
from SAMFineTuneLib.models.adapters.tuning import save_adapter
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.spec import ModelFolder
from SAMFineTuneLib.process_lock import owning
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.report_page import draw_answers
from SAMFineTuneLib.training import evidence
from SAMFineTuneLib.training.device_memory import device_of
from SAMFineTuneLib.training.evidence import NetworkEngine
from SAMFineTuneLib.training.network_tuning import NetworkTuning, tune
from SAMFineTuneLib.training.process_group import ProcessGroup, join_process_group
from SAMFineTuneLib.training.rehearsal import rehearsal_of
from SAMFineTuneLib.training.stopping import interruptible, stopping
from SAMFineTuneLib.training.training_items import Items
from SAMFineTuneLib.training.training_loop import TrainingHistory
from SAMFineTuneLib.training.training_plan import (
    STATE,
    Plan,
    attached,
    check_folders,
    looking,
    make_plan,
    working_folder,
)
from SAMFineTuneLib.training.training_report import REPORT, smooth, write_report
from SAMFineTuneLib.training.training_settings import TrainingSettings
from SAMFineTuneLib.training.training_time import Clock

_FORMAT = 4
_PICTURES = 6  # held-out cases that the report shows
_VALIDATION_SLICES = 4  # labelled slices of a validation case that are measured
_TIME = "seconds.json"  # in the working folder: how long the run has worked
_NOTE_TIME = 5.0  # s between two notes of that
_RESULT = "result.json"  # in the folder of a part: that it was tested, and the course of its training


@dataclass(frozen=True)
class TrainingProgress:
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
    """A sentence that says which cases the figures before and after come from."""
    notes: tuple[str, ...]


def fine_tune(
    cases: Sequence[Case],
    output: str | Path,
    base: ModelFolder,
    settings: TrainingSettings,
    progress: Callable[[TrainingProgress], None] = lambda progress: None,
    cancel: Callable[[], bool] = lambda: False,
    resume: bool = False,
    test: Sequence[Case] = (),
    planned: Callable[[Plan], None] = lambda plan: None,
    start: AdapterFolder | None = None,
) -> Result:
    """Train an adapter from cases and write it into a folder, with its card and a report.

    Args:
        cases: Cases to learn from.
        output: Folder of the adapter; must not exist.
        base: The model to adapt.
        settings: How it is trained.
        progress: Called with the progress.
        cancel: Called many times a second; True stops the training.
        resume: Whether to continue an interrupted training of `output`.
        test: Cases to test on; without any, `splits.split` decides.
        planned: Called with the plan before the work begins.
        start: An adapter of the same base and method whose weights every training begins with; none: the base alone.

    Raises:
        Stopped: When `cancel` returns True; a later call with `resume` continues.
        UserError: For cases, settings or folders that cannot be used, and while another process trains into `output`.
    """
    output = Path(output).expanduser()
    group, device = join_process_group(device_of(settings.device))
    group.part_of(settings.batch)
    if group.first:
        progress(TrainingProgress("cases", 1, 1))
    look = stopping(cancel)
    plan = make_plan(cases, output, base, settings, resume, test, look, group.first, start)
    if group.first:
        planned(plan)
    run = _Run(plan, working_folder(output), group, torch.device(device), progress, look)
    card = Card()
    with owning(run.work, f"The training of {output}") if group.first else nullcontext():
        if group.first:
            check_folders(output, resume)
        run.begin(resume)
        try:
            for number in range(len(plan.trainings)):
                trained = run.part(number)
        finally:
            run.note_time()
        if group.first:
            run.tell("report")
            network, history = trained
            card = _card(run, history)
            # Together, so that a training that is stopped or killed meanwhile can be resumed.
            with staged_folder(output) as folder:
                save_adapter(folder, network, base, plan.settings.method, card)
                _write_report(run, folder / REPORT, card)
    if group.first:
        shutil.rmtree(run.work, ignore_errors=True)
    group.from_first(None)  # no process reads the folder before it exists
    return Result(output, output / REPORT, card, run.evidence, (*plan.found.notes, *evidence.advice(card.gains)))


# ---------------------------------------------------------------- the run


@dataclass
class _Run:
    """State that the parts of a run share. The working folder holds the results of finished parts."""

    plan: Plan
    work: Path
    group: ProcessGroup
    device: torch.device
    report: Callable[[TrainingProgress], None]
    look: Callable[[], None]
    """Raises Stopped when the user asked to stop."""
    clock: Clock = field(default_factory=Clock)
    now: int = 0
    """Number of the present training."""

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways of prompting that the trained heads can answer."""
        return evidence.ways_of(self.plan.settings.heads)

    @property
    def evidence(self) -> str:
        """A sentence that says which cases the figures come from."""
        return evidence.evidence_of(self.plan.folds)

    @property
    def within(self) -> Callable[[], None]:
        """`look` within a computation, where the processes of a group do not wait for each other."""
        return self.group.alone(self.look)

    def begin(self, resume: bool) -> None:
        """Record what is trained; when resuming, check that the interrupted run trained the same."""
        plan, free = self.plan, ("device", "precision", "micro_batch", "checkpointing")
        settings = {name: value for name, value in plan.settings.to_dict().items() if name not in free}
        here = json.loads(json.dumps({
            "format": _FORMAT, "settings": settings, "base": plan.base.spec.id,
            "base_sha256": dict(plan.base.spec.sha256), "cases": sorted(plan.found.digests.values()),
            "classes": sorted(plan.found.classes.values()),
            **({"start": plan.start.digest} if plan.start else {}),
        }))  # fmt: skip
        before = _read_json(self.work / STATE) if resume and self.group.first else here
        if before.get("format") != _FORMAT:
            raise UserError(
                "The interrupted training was started by another version of SAMFineTune, and this one cannot continue "
                f"it; delete {self.work} to start again."
            )
        if before != here:
            raise UserError(
                "The interrupted training had other settings, another model, or other cases or labels; give the same "
                f"again, or delete {self.work} to start again."
            )
        if self.group.first:
            _write_json(self.work / STATE, here)
            with suppress(OSError, ValueError, TypeError):  # without the file the time of earlier sessions is lost
                self.clock = Clock(float(_read_json(self.work / _TIME)))
        self.group.from_first(None)
        self.clock.expect(sum(plan.steps), sum(len(part.test) for part in plan.folds.parts))

    def tell(self, stage: str, **values: Any) -> None:
        """Report progress, and record now and then how long the run has worked."""
        if self.group.first:
            place = self.now + 1, len(self.plan.trainings)
            self.report(TrainingProgress(stage, *place, seconds_left=self.clock.left, **values))
            if self.clock.is_due(_NOTE_TIME):
                self.note_time()

    def note_time(self) -> None:
        """Record how long the run has worked, for a later session."""
        if self.group.first and (self.work / STATE).exists():
            with suppress(UserError):  # an earlier error matters more
                _write_json(self.work / _TIME, self.clock.worked)

    def part(self, number: int) -> tuple[nn.Module, TrainingHistory] | None:
        """Train adapter `number` and test it. Parts that an earlier session finished are skipped; None if it finished
        all.
        """
        plan, self.now = self.plan, number
        fold = plan.folds.parts[number] if number < len(plan.folds.parts) else None
        folder = self.work / (f"part-{number}" if fold else "final")
        done = self.group.from_first((folder / _RESULT).exists())
        if done and number < len(plan.trainings) - 1:
            self.clock.expect(-plan.steps[number], -len(fold.test))
            return None
        before, ways = self.work / f"before-{number}.json", [way for way in self.ways if way != "automatic"]
        if fold and ways and self.group.first and not before.exists():
            network = interruptible(load_network(plan.base.file("weights"))[1], self.within).to(self.device)
            _write_json(before, self._measure(network, fold, "before", ways))
        self.group.from_first(None)
        network, history = self._train(folder)
        if fold and self.group.first and not done:
            after = self._measure(network, fold, "after", self.ways)
            curves = {"loss": history.loss, "validated": history.validated, "dice": history.dice}
            _write_json(folder / _RESULT, {"after": after, "history": curves})
        self.group.from_first(None)
        return network, history

    def _train(self, folder: Path) -> tuple[nn.Module, TrainingHistory]:
        """Attach and train the network of the present training."""
        folder.mkdir(parents=True, exist_ok=True)
        plan, number = self.plan, self.now
        base, fold = plan.base, plan.trainings[number]
        shown, empty = plan.training_slices(fold.train, self.within)
        settings = plan.settings.for_slices(len(shown))
        network = attached(base, settings, plan.start)
        interruptible(network, self.within)
        begun = False

        def told(history: TrainingHistory) -> None:
            nonlocal begun
            if begun:
                self.clock.count("step")
            else:  # neither a checkpoint's steps nor reading cases count for the pace
                self.clock.expect(-history.step, 0)
            begun, recent = True, history.loss[-10:]
            self.tell("training", step=history.step, steps=settings.steps, loss=sum(recent) / len(recent),
                      dice=history.dice[-1] if history.dice else None)  # fmt: skip

        tuning = NetworkTuning(
            network, base.spec, settings, Items(shown, empty, base.spec, settings, number), self.device, self.group,
            rehearsal_of(base.spec, settings, number), self._validator(network, fold.test), told, self.look,
        )  # fmt: skip
        history = tune(tuning, folder / "checkpoint.pt", number)
        if history.ended:
            self.clock.expect(history.step - settings.steps, 0)
        return network.eval(), history

    def _validator(self, network: nn.Module, cases: Sequence[Case]) -> Callable[[], float] | None:
        if not cases:
            return None
        shown = []
        for case in cases:  # only the validated slices stay in memory
            own = list(looking(self.plan.slices(case), self.within))
            empty = evenly([one for one in own if not one.labelled], _VALIDATION_SLICES)
            shown.append(evenly(with_objects(own, case.id), _VALIDATION_SLICES) + empty)
        engine = NetworkEngine(network, self.plan.base.spec, self.device)

        def validate() -> float:
            found = [evidence.measure_case(engine, own, len(self.plan.found.names), self.ways) for own in shown]
            return mean_dice(value for case in found for values in case.values() for value in values) or 0.0

        return validate

    def _measure(
        self, network: nn.Module, fold: Fold, stage: str, ways: Sequence[str]
    ) -> dict[str, dict[str, Sequence[float | None]]]:
        """Dice of every test case by its digest and the way of prompting; draws pictures of the first cases."""
        plan = self.plan
        engine = NetworkEngine(network, plan.base.spec, self.device)
        earlier = sum(len(part.test) for part in plan.folds.parts[: self.now])
        found = {}
        for place, case in enumerate(fold.test, start=earlier + 1):
            self.look()
            self.tell("before" if stage == "before" else "testing")
            self.clock.restart()
            own = list(looking(plan.slices(case), self.within))
            found[plan.found.digests[case.id]] = evidence.measure_case(
                engine, own, len(plan.found.names), ways, plan.settings.test_slices
            )
            self.clock.count("test")
            if place <= _PICTURES:
                self._draw(engine, own, ways, f"case-{place}", stage)
        return found

    def _draw(
        self, engine: NetworkEngine, slices: Sequence[LabelledSlice], ways: Sequence[str], name: str, stage: str
    ) -> None:
        """Reference, prompts and answer on the slice that shows most, and a caption."""
        labels = self.plan.found.names
        most = max(slices, key=lambda one: int(np.count_nonzero((one.classes > 0) & ~one.ignored)))
        for way in ways:
            prompts: list[PlanePrompts] = []
            masks, reference = evidence.answer_slice(engine, most, way, len(labels), prompts.append)
            pairs = enumerate(zip(masks, reference, strict=True))
            found = {number: value for number, pair in pairs if (value := dice(*pair)) is not None}
            legend = {n: f"{labels[n]}, {way}, {stage}: Dice {value:.3f}" for n, value in found.items()}
            path = self.work / "pictures" / f"{name}-{way.replace(' ', '-')}-{stage}.png"
            draw_answers(path, most.picture, dict(enumerate(masks)), reference, prompts, legend)
            figures = ", ".join(f"{labels[n]} {value:.3f}" for n, value in found.items()) or "not defined"
            caption = f"{name.replace('-', ' ')}, {way}, {stage}: Dice on this slice {figures}"
            _write_json(path.with_suffix(".json"), {"stage": stage, "caption": caption})

    def results(self) -> list[dict[str, Any]]:
        """The results of every tested training."""
        return [_read_json(self.work / f"part-{number}" / _RESULT) for number in range(len(self.plan.folds.parts))]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content))


# ---------------------------------------------------------------- card and report


def _card(run: _Run, history: TrainingHistory) -> Card:
    plan, before, after = run.plan, {}, {}
    for number, result in enumerate(run.results()):
        path = run.work / f"before-{number}.json"
        before |= _read_json(path) if path.exists() else {}
        after |= result["after"]
    digests = plan.found.digests
    learned_before = set(plan.start.card.cases) if plan.start else set()
    patients = {digests[case.id]: case.patient for part in plan.folds.parts for case in part.test}
    steps, losses = zip(*smooth(history.loss, 200), strict=True)
    recipe = {
        **plan.settings.recipe(), "steps": history.step, "kept step": history.best,
        "rehearsal": "synthetic pictures" if rehearsal_of(plan.base.spec, plan.settings) else None,
        "evidence": run.evidence, "modality": plan.modality or None,
        "start": plan.start and f"adapter {plan.start.digest[:SHORT]}",
    }  # fmt: skip
    return Card(
        labels=plan.found.names,
        recipe={name: value for name, value in recipe.items() if value is not None},
        cases=tuple(sorted({digests[case.id] for case in plan.folds.final} | learned_before)),
        gains=evidence.gains(before, after, patients, plan.found.names, run.ways),
        curves={"steps": steps, "loss": [round(loss, 5) for loss in losses],
                "validated": history.validated, "dice": history.dice},
        seconds=run.clock.worked,
        hardware=_hardware(run.device),
    )  # fmt: skip


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _write_report(run: _Run, folder: Path, card: Card) -> None:
    pictures, plan = run.work / "pictures", run.plan
    shutil.copytree(pictures, folder) if pictures.is_dir() else folder.mkdir()
    histories = {f"fold {number}": result["history"] for number, result in enumerate(run.results(), start=1)}
    told = replace(card, method=plan.settings.method, base=plan.base.spec.id)
    words = " ".join([run.evidence, *evidence.advice(card.gains)])
    write_report(folder, told, words, histories, plan.found.nameless_notes)

"""What `samfinetune train` prints: the cases, the plan, progress and the result, for people or as lines of JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli.long_work import ProgressLine, time_left
from SAMFineTuneLib.wording import counted, duration, readable_size

if TYPE_CHECKING:
    from SAMFineTuneLib.cases.case_survey import Survey
    from SAMFineTuneLib.cases.cases import Case
    from SAMFineTuneLib.cases.splits import Fold
    from SAMFineTuneLib.training.fine_tuning import Result, TrainingProgress
    from SAMFineTuneLib.training.training_plan import Plan

_FIRST_STEPS = 5  # after which the total time is estimated
_STAGES = {"cases": "reading the cases", "before": "testing the base", "testing": "testing the adapter",
           "report": "writing the adapter and its report"}  # fmt: skip


def show_cases(args: argparse.Namespace, cases: Sequence[Case], test: Sequence[Case], found: Survey) -> None:
    """Print how many cases, patients, labels and slices there are."""
    patients, slices = (len({case.patient for case in some}) for some in (cases, test)), sum(found.slices.values())
    learn, tested = patients
    if args.json_progress:
        emit({"event": "cases", "cases": len(cases), "patients": learn, "tests": len(test),
              "labels": list(found.names), "slices": slices, "notes": list(found.notes)})  # fmt: skip
        return
    others = f"; {len(test)} to test on, of {tested} patients" if test else ""
    print(f"cases       {len(cases)}, of {learn} patients{others}, {slices} labelled slices")
    print(f"labels      {', '.join(found.names)}")
    for note in found.notes:
        print(f"note        {note}")


def outline(plan: Plan) -> dict[str, Any]:
    """The plan, as values for JSON."""
    return {"base": plan.base.spec.id, "preset": plan.settings.preset, "device": plan.device,
            "trainings": len(plan.trainings), "steps": list(plan.steps), "bytes": plan.bytes_needed,
            "split": [{"learn": len(fold.train), "validate": len(fold.test), "test": len(test)}
                      for fold, test in _trainings(plan)]}  # fmt: skip


def _trainings(plan: Plan) -> list[tuple[Fold, tuple[Case, ...]]]:
    """Each training with the cases that test it; the delivered one of a cross-validation has none."""
    return list(zip_longest(plan.trainings, (part.test for part in plan.folds.parts), fillvalue=()))


def show_plan(plan: Plan) -> None:
    """Print the plan."""
    settings, spec = plan.settings, plan.base.spec
    print(f"base        {spec.id} ({spec.name})")
    if plan.start is not None:
        learned = len(plan.start.card.cases)
        print(f"start       adapter {plan.start.name}, which learned from {counted(learned, 'case')}")
    print(f"recipe      {settings.method}; {' and '.join(settings.heads)}; {settings.batch} pictures a step, "
          f"{settings.rounds} rounds on each object, learning rate {settings.rate:g}")  # fmt: skip
    print(f"preset      {settings.preset}: {_trainings_of(plan)}")
    for number, (fold, test) in enumerate(_trainings(plan), start=1):
        parts = [f"learns from {_named(fold.train)}"]
        parts += [f"is validated on {_named(fold.test)}"] if fold.test else []
        parts.append(f"is tested on {_named(test)}" if test else "is not tested")
        last = " (the adapter)" if number == len(plan.trainings) else ""
        print(f"training {number:<3d}{', '.join(parts)}{last}")
    needed, free = readable_size(plan.bytes_needed), readable_size(plan.bytes_free)
    print(f"disk        up to {needed} until it is done; {free} free")


def _trainings_of(plan: Plan) -> str:
    least, most = min(plan.steps), max(plan.steps)
    steps = counted(most, "step") if least == most else f"{least} to {most} steps"
    return f"1 training of {steps}" if len(plan.steps) == 1 else f"{len(plan.steps)} trainings of {steps} each"


def _named(cases: Sequence[Case]) -> str:
    names = ", ".join(case.id for case in cases[:5]) + (", …" if len(cases) > 5 else "")
    return f"{counted(len(cases), 'case')} ({names})"


def show_result(result: Result, args: argparse.Namespace, added: str, note: str) -> None:
    """Print the result, and where it lies.

    Args:
        result: of the training.
        args: of the command.
        added: the adapter's name on this computer, "" when it was not added.
        note: for the user, or "".
    """
    from SAMFineTuneLib.training.training_report import gain_in_words

    notes = [*result.notes, *([note] if note else [])]
    gains = [gain.summary() for gain in result.card.gains]
    if args.json_progress:
        emit({"event": "done", "adapter": str(result.adapter), "report": str(result.report / "index.html"),
              "added": added, "evidence": result.evidence, "gains": gains, "notes": notes})  # fmt: skip
        return
    for note in notes:
        print(f"note        {note}")
    print(f"evidence    {result.evidence}")
    for gain in result.card.gains:
        cases = counted(len(gain.cases), "case")
        print(f"Dice        {gain.prompt}, {gain.label}: {gain_in_words(gain)}, {cases}")
    print(f"report      {result.report / 'index.html'}")
    print(f"written     {result.adapter}")
    if added:
        print(f"added       use it with --adapter {added}, or choose it in Slicer")


def emit(content: dict[str, Any]) -> None:
    """Print one line of JSON at once."""
    print(json.dumps(content), flush=True)


class TrainingOutput(ProgressLine):
    """Prints progress for people, or as JSON objects on stdout."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json, self._begun = as_json, time.monotonic()
        self._stage: tuple | None = None
        self._steps = 0

    def plan(self, plan: Plan) -> None:
        """Print the plan."""
        if self._json:
            emit({"event": "plan", **outline(plan), "notes": list(plan.found.notes)})
            return
        self.note(f"preset      {plan.settings.preset}: {_trainings_of(plan)}")
        for note in plan.found.notes:
            self.note(f"note        {note}")

    def __call__(self, progress: TrainingProgress) -> None:
        if self._json:
            emit({"event": "progress", **vars(progress)})
            return
        stage, training = (progress.stage, progress.part), progress.stage == "training"
        self._steps += training
        if training and self._steps == _FIRST_STEPS and progress.seconds_left is not None:
            whole = time.monotonic() - self._begun + progress.seconds_left
            self.note(f"time        about {duration(whole)} in all on this computer, estimated from its first steps")
        super().__call__(describe(progress), stage != self._stage or progress.step == progress.steps > 0)
        self._stage = stage


def describe(progress: TrainingProgress) -> str:
    """Progress as one line for people."""
    if progress.stage != "training":
        text = _STAGES[progress.stage]
    else:
        text = f"step {progress.step} of {progress.steps}, loss {progress.loss:.3f}"
        if progress.dice is not None:
            text += f", validation Dice {progress.dice:.3f}"
    if progress.parts > 1 and progress.stage not in ("cases", "report"):
        text = f"training {progress.part} of {progress.parts}: {text}"
    return text + time_left(progress.seconds_left)

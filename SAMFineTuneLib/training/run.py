"""A whole fine-tuning: cases in, an adapter with evidence out.

Evidence first: adapters of the recipe are trained without the cases that test them (cross-validation), and answer
those before and after. Then the adapter that is delivered learns from all cases. With `shots` or given test cases the
tested adapter is the delivered one. Everything is kept in a hidden folder beside the output until it is finished, so
that a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.images import overlay_picture
from SAMFineTuneLib.models.load import load_network
from SAMFineTuneLib.models.spec import ModelFolder
from SAMFineTuneLib.models.tuning import Card, Gain, attach, save_adapter
from SAMFineTuneLib.training.cases import Case, Survey, read_labelled, survey
from SAMFineTuneLib.training.clock import Clock
from SAMFineTuneLib.training.evidence import advice, evidence_of, gains
from SAMFineTuneLib.training.gang import Gang, join_gang
from SAMFineTuneLib.training.held_out import WAYS, NetworkEngine, answer_slice, mean_dice, measure_case
from SAMFineTuneLib.training.items import Items
from SAMFineTuneLib.training.loop import History, Stopped, Training, train
from SAMFineTuneLib.training.rehearsal import rehearsal_of
from SAMFineTuneLib.training.report import REPORT, write_report
from SAMFineTuneLib.training.settings import Settings
from SAMFineTuneLib.training.slices import LabelledSlice, evenly, slices_of, with_objects
from SAMFineTuneLib.training.splits import Fold, Folds, set_aside, split

__all__ = ["Progress", "Result", "Stopped", "fine_tune", "working_folder"]

_FORMAT = 2
_PICTURES = 6  # held-out cases that the report shows
_VALIDATION_SLICES = 4  # labelled slices of a validation case that are looked at
_MANY_PATIENTS = 10  # from so many on, a tenth is set aside for validation
_COLOURS = ((0.2, 0.9, 0.2), (0.95, 0.35, 0.2))  # reference, answer


@dataclass(frozen=True)
class Progress:
    """How far a fine-tuning is. `stage` is "cases", "before", "training", "testing" or "report"."""

    stage: str
    part: int
    """The training that goes on, from 1; the last is that of the delivered adapter."""
    parts: int
    step: int = 0
    steps: int = 0
    loss: float | None = None
    dice: float | None = None
    """Of the last validation."""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Result:
    """What came of it."""

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
) -> Result:
    """Train an adapter of `base` from cases and write it into the folder `output`, with card and report.

    `test` are cases that the adapter is tested on; without, see `splits.split`. `cancel` is asked at every step: then
    Stopped is raised, and a later call with `resume` goes on. UserError for cases, settings or folders that cannot be.
    """
    output = Path(output).expanduser()
    gang, device = join_gang(_device(settings.device))
    work = working_folder(output)
    if gang.first:
        _check_folders(output, work, resume)
    report, cancelled = progress or (lambda _: None), cancel or (lambda: False)
    settings = replace(settings, small_base=base.spec.architecture == "compact")
    run = _Run(base, settings, work, gang, torch.device(device), report, cancelled)
    run.tell("cases")
    taken = {case.id for case in cases}
    test = [replace(case, id=f"test/{case.id}") if case.id in taken else case for case in test]
    folds = _folds(cases, test, settings)
    found = survey([*cases, *test], settings.labels, exclusive="automatic" in settings.heads)
    run.prepare(found, folds, resume)
    for part in range(len(folds.parts)):
        run.part(part)
    network, history = run.final()
    card = _card(run, history)
    if gang.first:
        run.tell("report")
        save_adapter(output, network, base, run.settings.method, card)
        _write_report(run, output, card)
        shutil.rmtree(work, ignore_errors=True)
    gang.from_first(None)  # nobody reads the folder before it is there
    return Result(output, output / REPORT, card, run.evidence, (*found.notes, *advice(card.gains)))


def working_folder(output: str | Path) -> Path:
    """Where an unfinished training keeps its checkpoints."""
    output = Path(output).expanduser().resolve()
    return output.parent / f".{output.name}.training"


def _check_folders(output: Path, work: Path, resume: bool) -> None:
    if (output / "card.json").exists():
        raise UserError(f"{output} holds an adapter already; choose another name, or remove that one first.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already and is not empty; choose another name.")
    if resume and not (work / "run.json").exists():
        raise UserError(f"There is no interrupted training of {output} to resume; start it without --resume.")
    if not resume and (work / "run.json").exists():
        raise UserError(
            f"An interrupted training of {output} lies in {work}; go on with --resume, or delete that folder."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Nothing can be written beside {output} ({error.strerror}); choose another place.") from error


def _folds(cases: Sequence[Case], test: Sequence[Case], settings: Settings) -> Folds:
    folds = settings.folds
    patients = len({case.patient for case in cases})
    if folds is None and settings.shots is None and not test and patients > 1:
        folds = min(patients, max(2, settings.fold_limit))
    return split(cases, settings.shots, folds, settings.seed, test)


def _device(name: str) -> str:
    if name != "auto":
        kind = name.partition(":")[0]
        able = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not able.get(kind, False):
            usable = ", ".join(one for one, there in able.items() if there)
            raise UserError(f"PyTorch here cannot train on {name!r}; choose one of: auto, {usable}.")
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------- the run


@dataclass
class _Run:
    """What the parts of a run share. Results of finished parts lie in the working folder."""

    base: ModelFolder
    settings: Settings
    work: Path
    gang: Gang
    device: torch.device
    report: Callable[[Progress], None]
    cancelled: Callable[[], bool]
    found: Survey | None = None
    folds: Folds | None = None
    clock: Clock = field(default_factory=Clock)
    now: int = 0
    delivered: tuple[nn.Module, History] | None = None

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways of prompting that the trained heads answer."""
        heads = self.settings.method.heads
        return tuple(way for way in WAYS if ("automatic" if way == "automatic" else "promptable") in heads)

    @property
    def evidence(self) -> str:
        """What the figures refer to, as a sentence."""
        return evidence_of(self.folds)

    @property
    def parts(self) -> int:
        """Trainings altogether."""
        return len(self.folds.parts) + (0 if self.folds.kind in ("shots", "given") else 1) if self.folds else 1

    def prepare(self, found: Survey, folds: Folds, resume: bool) -> None:
        """Settle labels and folds; on resuming, see that they are the ones of the interrupted run."""
        self.settings = self.settings.for_labels(found.names, found.choice)
        self.found, self.folds = found, folds
        here = json.loads(json.dumps({
            "format": _FORMAT, "settings": _comparable(self.settings), "base": self.base.spec.id,
            "base_sha256": dict(self.base.spec.sha256), "cases": sorted(found.digests.values()),
        }))  # fmt: skip
        path = self.work / "run.json"
        if resume and self.gang.first and json.loads(path.read_text()) != here:
            raise UserError(
                "The interrupted training had other settings, another model or other cases; give the same again, or "
                f"delete {self.work} to start anew."
            )
        if self.gang.first:
            _write_json(path, here)
        self.gang.from_first(None)
        tests = sum(len(part.test) for part in folds.parts)
        self.clock.expect(self.settings.steps * self.parts, tests)

    def tell(self, stage: str, **values: Any) -> None:
        """Report progress; Stopped when the user wants no more."""
        if self.gang.first:
            place = min(self.now + 1, self.parts), self.parts
            self.report(Progress(stage, *place, seconds_left=self.clock.left, **values))

    def part(self, number: int) -> None:
        """Train and test the adapter of one fold, unless that was done."""
        self.now = number
        fold, folder = self.folds.parts[number], self.work / f"part-{number}"
        done = self.gang.from_first((folder / "result.json").exists())
        if done and self.parts > len(self.folds.parts):
            self.clock.skip(self.settings.steps, len(fold.test))
            return
        self.before(fold, number)
        network, history = self.train(fold.train, folder, number)
        after = self.gang.from_first(self.test(network, fold, folder, "after") if self.gang.first else None)
        if self.gang.first and not done:
            _write_json(folder / "result.json", {"after": after, "history": vars(history)})
        self.delivered = network, history

    def final(self) -> tuple[nn.Module, History]:
        """The delivered adapter: the tested one, or one that learned from all cases."""
        if self.parts == len(self.folds.parts):
            return self.delivered
        self.now = self.parts - 1
        return self.train(self.folds.final, self.work / "final", self.now)

    def train(self, cases: Sequence[Case], folder: Path, number: int) -> tuple[nn.Module, History]:
        """A freshly attached network, trained on cases."""
        folder.mkdir(parents=True, exist_ok=True)
        fold = self._with_validation(cases)
        shown, empty = self._training_slices(fold.train)
        settings = self.settings.for_slices(len(shown))
        self.clock.skip(self.settings.steps - settings.steps, 0)
        network = attach(load_network(self.base.file("weights"))[1], self.base.spec, settings.method, settings.seed)
        training = Training(
            network, self.base.spec, settings, Items(shown, empty, self.base.spec, settings, number),
            self.device, self.gang, rehearsal_of(self.base.spec, settings, number),
            self._validator(network, fold.test), _Told(self, settings.steps), self.cancelled,
        )  # fmt: skip
        history = train(training, folder / "checkpoint.pt", number)
        if history.ended:
            self.clock.skip(settings.steps - len(history.loss), 0)
        return network.eval(), history

    def _with_validation(self, cases: Sequence[Case]) -> Fold:
        patients = len({case.patient for case in cases})
        count = self.settings.validation
        if count is None:
            count = patients // 10 if patients >= _MANY_PATIENTS else 0
        if count >= patients:
            raise UserError(f"{count} patients cannot be set aside for validation from {patients}; choose fewer.")
        return set_aside(cases, count, self.settings.seed) if count else Fold(tuple(cases), ())

    def _training_slices(self, cases: Sequence[Case]) -> tuple[list[LabelledSlice], list[LabelledSlice]]:
        shown, empty = [], []
        for case in cases:
            own = list(self.slices(case))
            labelled = with_objects(own, case.id)
            shown += labelled
            empty += evenly([one for one in own if not one.labelled], len(labelled))
        return shown, empty

    def slices(self, case: Case):
        """All slices of a case, as the settings want them."""
        labelled = read_labelled(case, self.found.choice, self.found.names)
        return slices_of(labelled, self.settings.window, self.settings.orientation)

    def _validator(self, network: nn.Module, cases: Sequence[Case]) -> Callable[[], float] | None:
        if not cases:
            return None
        shown = []
        for case in cases:  # only what is looked at is kept in memory
            own = list(self.slices(case))
            empty = evenly([one for one in own if not one.labelled], _VALIDATION_SLICES)
            shown.append(evenly(with_objects(own, case.id), _VALIDATION_SLICES) + empty)

        def dice() -> float:
            engine = NetworkEngine(network, self.base.spec, self.device)
            found = [measure_case(engine, own, len(self.found.names), self.ways) for own in shown]
            return mean_dice(value for case in found for values in case.values() for value in values) or 0.0

        return dice

    # ---- testing

    def before(self, fold: Fold, number: int) -> None:
        """Answers of the base to a fold's test cases."""
        ways = tuple(way for way in self.ways if way != "automatic")
        path = self.work / f"before-{number}.json"
        if ways and self.gang.first and not path.exists():
            network = load_network(self.base.file("weights"))[1].to(self.device)
            _write_json(path, self._measure(network, fold, "before", ways, number))
        self.gang.from_first(None)

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
        """Dice of every test case by its digest and the way of prompting; pictures of the first cases."""
        engine = NetworkEngine(network, self.base.spec, self.device)
        shown = sum(len(part.test) for part in self.folds.parts[:number])
        found = {}
        for place, case in enumerate(fold.test):
            if self.cancelled():
                raise Stopped
            self.tell("before" if stage == "before" else "testing")
            with self.clock.test():
                own = list(self.slices(case))
                dice = measure_case(engine, own, len(self.found.names), ways, self.settings.test_slices)
            found[self.found.digests[case.id]] = {way: list(values) for way, values in dice.items()}
            if shown + place < _PICTURES:
                self._draw(engine, own, ways, f"case-{shown + place + 1}", stage)
        return found

    def _draw(
        self, engine: NetworkEngine, slices: Sequence[LabelledSlice], ways: Sequence[str], name: str, stage: str
    ) -> None:
        """Reference and answer on the slice that shows most."""
        most = max(slices, key=lambda one: int(np.count_nonzero((one.classes > 0) & ~one.ignored)))
        for way in ways:
            masks, reference = answer_slice(engine, most, way, len(self.found.names))
            path = self.work / "pictures" / f"{name}-{way.replace(' ', '-')}-{stage}.png"
            overlay_picture(path, most.picture, [(reference.any(0), _COLOURS[0]), (masks.any(0), _COLOURS[1])])


class _Told:
    """Turns a training's history into progress."""

    def __init__(self, run: _Run, steps: int) -> None:
        self._run, self._steps, self._begun = run, steps, False

    def __call__(self, history: History) -> None:
        run, step = self._run, len(history.loss)
        if not self._begun:  # what a checkpoint had done already, and reading cases, tell nothing about the pace
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
    """What must be equal for a resumed run to be the same run."""
    free = ("device", "precision", "micro_batch", "checkpointing")
    return {name: value for name, value in settings.to_dict().items() if name not in free}


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
    if not run.gang.first:
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
        "evidence": run.evidence,
    }  # fmt: skip
    return Card(
        labels=run.found.names,
        recipe={name: value for name, value in recipe.items() if value is not None},
        cases=tuple(sorted(run.found.digests[case.id] for case in run.folds.final)),
        gains=_gains(run),
        curves=curves,
        seconds=history.seconds,
        hardware=_hardware(run.device),
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _write_report(run: _Run, output: Path, card: Card) -> None:
    histories = {}
    for number in range(len(run.folds.parts)):
        path = run.work / f"part-{number}" / "result.json"
        if path.exists():
            histories[f"fold {number + 1}"] = json.loads(path.read_text())["history"]
    folder = output / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    pictures = run.work / "pictures"
    for picture in sorted(pictures.glob("*.png")) if pictures.is_dir() else ():
        shutil.copyfile(picture, folder / picture.name)
    evidence = " ".join([run.evidence, *advice(card.gains)])
    told = replace(card, method=run.settings.method, base=run.base.spec.id)
    write_report(folder, told, evidence, histories, run.found.nameless_notes)

"""Trains a cohort's next adapter on the accepted cases.

Two candidates learn from the cases that teach: one begins with the base, one goes on from the adapter in use. `judges`
says which cases teach and which judge; `adapter_decision` compares the Dice of the candidates' proposals.

`training/` in the cohort's folder holds an unfinished training, with the label maps that were accepted when it began,
so that it continues after it was stopped or killed, and reviewers may change cases meanwhile.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.cohort.adapter_decision import BASE, Dice, about_left_out, called, decide
from SAMFineTuneLib.cohort.case_segmentation import read_adapter
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortState, TrainedAdapter
from SAMFineTuneLib.cohort.patients import named_patients
from SAMFineTuneLib.cohort.retraining_plan import LABELS, RetrainingPlan, clear_work, divided_cases, retraining_plan
from SAMFineTuneLib.cohort.running_work import TRAINING, sentence_writer
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.files import move_over, write_text
from SAMFineTuneLib.process_lock import owning
from SAMFineTuneLib.typed_json import loaded
from SAMFineTuneLib.wording import same_name

if TYPE_CHECKING:
    from SAMFineTuneLib.cases.cases import Case
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder
    from SAMFineTuneLib.models.spec import ModelFolder
    from SAMFineTuneLib.training import fine_tuning
    from SAMFineTuneLib.training.training_settings import TrainingSettings


@dataclass(frozen=True)
class RetrainingProgress:
    """The progress of a retraining."""

    stage: str
    """`judging`, `training` or `export`."""
    sentence: str
    """The current work, without a full stop, so that the time can follow."""
    part: int = 1
    """Number of the candidate, from 1."""
    parts: int = 1
    step: int = 0
    """Steps of the candidate that are done, or cases that are judged."""
    steps: int = 0
    seconds_left: float | None = None
    """Seconds for all that is left; None while unknown."""


def retrain(
    cohort: Cohort,
    preset: str = "quick",
    device: str = "auto",
    progress: Callable[[RetrainingProgress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    resume: bool = True,
) -> TrainedAdapter:
    """Train on the accepted cases, and use the result if the held-out patients' cases support it.

    Args:
        cohort: the cohort.
        preset: one of `training_settings.PRESETS`.
        device: `auto`, `cpu`, `cuda`, …
        progress: called with a `RetrainingProgress` now and then.
        cancelled: called many times a second; True stops.
        resume: whether to continue a training that was stopped or killed, if its cases are still the same.

    Returns:
        The training's entry in the cohort's history; the adapter lies in `cohort.adapter(number)`.

    Raises:
        Stopped: when `cancelled` returns True; what was learned is kept for `resume`.
        UserError: for too few cases, without PyTorch, without memory, and while another process trains this cohort.
    """
    from SAMFineTuneLib.models.optional_packages import require

    cohort.change(named_patients)  # for one from before names told patients
    divided_cases(cohort.state)  # before PyTorch is loaded, which may take a while
    require("Training", "torch", "safetensors", extra="training")
    try:
        with owning(cohort.folder / TRAINING, "The training of this cohort"):
            announce = sentence_writer(cohort.folder / TRAINING)

            def tell(now: RetrainingProgress) -> None:
                announce(now.sentence)
                progress(now)

            run = _Run(cohort, retraining_plan(cohort, preset, resume), device, tell, cancelled)
            trained = run.trained()
            clear_work(run.work)
        with suppress(OSError):  # a resumed training finds it there, and leaves it
            run.work.rmdir()
        return trained
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                "The training ran out of memory; close other programs and train again: it continues where it stopped."
            ) from error
        raise


# ---------------------------------------------------------------- the run


@dataclass
class _Run:
    """One training; its finished parts lie in the working folder."""

    cohort: Cohort
    plan: RetrainingPlan
    device: str
    tell: Callable[[RetrainingProgress], None]
    cancelled: Callable[[], bool]
    parts: int = 1
    pace: dict[str, float] = field(default_factory=dict)
    """Seconds: of a whole `training`, and of `judging` one case."""

    @property
    def work(self) -> Path:
        return self.cohort.folder / TRAINING

    def trained(self) -> TrainedAdapter:
        """Train the candidates, judge them, and record the better one."""
        from SAMFineTuneLib.models.adapters.merged_export import make_ready
        from SAMFineTuneLib.models.store import Store

        plan, base, before = self.plan, Store().find(self.plan.model), None
        teachers, settings = self._lesson(base)
        candidates: dict[str, AdapterFolder | None] = {BASE: None}
        now, anew = self._adapter_in_use()
        if now is not None:
            if self._may_start_from(now, base, teachers, settings):
                candidates[f"adapter {plan.before}"] = now
            self.parts = len(candidates)
            before = self._judged("before", self.cohort.adapter(plan.before), base, 0)
        found = {}
        for part, (start, adapter) in enumerate(candidates.items(), start=1):
            output = self._output(start)
            if not self._dice_file(start).exists() and not (output / "card.json").exists():
                self._train(teachers, settings, output, base, adapter, part, start)
            found[start] = self._judged(start, output, base, part)
        patients = {case.key: case.patient for case in self.cohort.state.cases}
        trained = decide(found, before, patients, tuple(plan.learned), plan.number)
        trained = replace(trained, reason=f"{anew} {trained.reason}".strip())
        if left_out := len(plan.held_out) - len(plan.compared):
            reason = f"{trained.reason} {about_left_out(left_out)}"
            trained = replace(trained, held_out=tuple(plan.held_out), reason=reason)
        target = self.cohort.adapter(plan.number)
        if not target.exists():  # otherwise it was killed before it could write that
            self._tell("export", "Making the adapter ready for use", self.parts, 0, 0, None)
            output = self._output(trained.start)
            self._tell_card(output, trained, found[trained.start], before, patients)
            note = make_ready(output, base)
            trained = replace(trained, reason=f"{trained.reason} {note}".strip())
            target.parent.mkdir(exist_ok=True)

        def recorded(state: CohortState) -> CohortState:
            if not target.exists():
                move_over(self._output(trained.start), target)
            return replace(state, adapters=(*state.adapters, trained))

        self.cohort.change(recorded)
        return trained

    def _adapter_in_use(self) -> tuple[AdapterFolder | None, str]:
        """The adapter in use, or None and a sentence where it is gone or damaged: the cohort must not end with it."""
        number = self.plan.before
        if number is None:
            return None, ""
        try:
            return read_adapter(self.cohort, number), ""
        except DiskError:
            raise
        except UserError:
            return None, f"Adapter {number} is gone or damaged, so this training began anew."

    def _tell_card(
        self, output: Path, trained: TrainedAdapter, after: Dice, before: Dice | None, patients: Mapping[str, str]
    ) -> None:
        """Write the results on the held-out cases into an adapter's card."""
        from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder, write_card
        from SAMFineTuneLib.training.evidence import gains

        card = read_adapter_folder(output).card
        measured = [
            {case: {"automatic": [own.get(label) for label in card.labels]} for case, own in (dice or {}).items()}
            for dice in (before, after)
        ]
        found = gains(*measured, patients, card.labels, ["automatic"])
        write_card(output, replace(card, gains=found, recipe={**card.recipe, "evidence": trained.reason}))

    def _output(self, start: str) -> Path:
        """The folder of a candidate; its name is the one that the card gets."""
        return self.work / start.replace(" ", "-") / str(self.plan.number)

    def _dice_file(self, who: str) -> Path:
        return self.work / f"{who.replace(' ', '-')}.json"

    def _cases(self, keys: Iterable[str]) -> list[Case]:
        """Cases with the label maps that were accepted when the training began."""
        from SAMFineTuneLib.cases.cases import Case
        from SAMFineTuneLib.cases.label_map import Meaning

        state = self.cohort.state
        own, meaning = [state.case(key) for key in keys], Meaning(names=dict(state.labels))
        often = Counter(case.name for case in state.cases)
        return [  # errors call them as the user does
            Case(one.name if often[one.name] == 1 else one.image, self.cohort.image(one),
                 self.work / LABELS / f"{one.key}.nii.gz", one.patient, meaning)
            for one in own
        ]

    def _look(self) -> None:
        from SAMFineTuneLib.training.stopping import Stopped

        if self.cancelled():
            raise Stopped

    # ---- training

    def _lesson(self, base: ModelFolder) -> tuple[list[Case], TrainingSettings]:
        """The cases that hold something to learn, and the settings of the training."""
        from SAMFineTuneLib.cases.case_slices import is_isotropic
        from SAMFineTuneLib.cases.label_files import read_labels
        from SAMFineTuneLib.models.adapters.tuning_method import Method
        from SAMFineTuneLib.models.optional_packages import require
        from SAMFineTuneLib.training.training_settings import TrainingSettings

        teachers, isotropic = [], True
        for case in self._cases(self.plan.learned):
            label = read_labels(case.label)
            isotropic &= is_isotropic(np.linalg.norm(label.affine[:3, :3], axis=0))
            if label.array.any():
                teachers.append(case)
        # All weights of so small a network can be trained, which finds structures without prompts better than LoRA does
        # (docs/results.md). The held-out patients judge, so every other case can teach.
        method = Method("vanilla" if base.spec.architecture == "compact" else "lora")
        if method.method == "lora":
            require("Training", "peft", extra="training")  # importing it takes seconds
        # The mean of three orientations is better than one where the volumes resolve them (docs/results.md).
        return teachers, TrainingSettings.of_preset(
            self.plan.preset, method=method, orientation="all" if isotropic else "auto", folds=0, validation=0,
            device=self.device, seed=self.plan.number,
        )  # fmt: skip

    def _may_start_from(
        self, adapter: AdapterFolder, base: ModelFolder, teachers: Sequence[Case], settings: TrainingSettings
    ) -> bool:
        """Whether an adapter can be trained further: not if the cases now hold other structures."""
        from SAMFineTuneLib.cases.labelled_case import LabelChoice
        from SAMFineTuneLib.models.adapters.adapter_folder import is_base

        values = sorted({int(value) for case in teachers for value in np.unique(case.read().labels) if value})
        names = tuple(self.cohort.state.labels[value] for value in values)
        method = settings.for_labels(names, LabelChoice()).method
        return is_base(adapter, base) and adapter.card.method == method

    def _train(
        self, teachers: Sequence[Case], settings: TrainingSettings, output: Path, base: ModelFolder,
        start: AdapterFolder | None, part: int, name: str,
    ) -> None:  # fmt: skip
        from SAMFineTuneLib.training.fine_tuning import fine_tune
        from SAMFineTuneLib.training.training_plan import working_folder

        begun, unfinished = time.monotonic(), working_folder(output)
        learned = any(unfinished.rglob("checkpoint.pt"))
        stages = {
            "cases": "reading the cases, to continue where it stopped" if learned else "reading the cases",
            "report": "writing the adapter",
        }

        def told(now: fine_tuning.TrainingProgress) -> None:
            left = now.seconds_left
            if left is not None:
                self.pace["training"] = time.monotonic() - begun + left
                left += (self.parts - part) * self.pace["training"] + self._judging_left(part)
            doing = stages.get(now.stage) or f"step {now.step} of {now.steps}"
            self._tell("training", f"Training {part} of {self.parts}, from {called(name)}: {doing}", part, now.step,
                       now.steps, left)  # fmt: skip

        resume = (unfinished / "run.json").exists()
        fine_tune(teachers, output, base, settings, told, self.cancelled, resume, start=start)

    # ---- judging

    def _judged(self, who: str, folder: Path, base: ModelFolder, part: int) -> Dice:
        """Dice of an adapter's proposals for the compared cases, from its file if they are known already."""
        file = self._dice_file(who)
        if file.exists():
            return loaded(file.read_text("utf-8"))
        from SAMFineTuneLib.inference.open_predictor import open_predictor
        from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder

        adapter = read_adapter_folder(folder)
        cases, labels, found = self._cases(self.plan.compared), self.cohort.state.labels, {}
        predictor = open_predictor(base.path, adapter, self.device, disk_cache=False)
        for done, (key, case) in enumerate(zip(self.plan.compared, cases, strict=True)):
            self._look()
            left = (self.parts - part) * self.pace.get("training", math.nan) + self._judging_left(part, done)
            whose = f"training {part} of {self.parts}" if part else "the adapter in use"
            self._tell("judging", f"Judging what {whose} proposes: case {done + 1} of {len(cases)}", part, done,
                       len(cases), left)  # fmt: skip
            begun = time.monotonic()
            found[key] = dice_of_proposal(predictor, adapter.card.recipe, case, labels, self._look)
            self.pace["judging"] = time.monotonic() - begun
        write_text(file, json.dumps(found))
        return found

    def _judging_left(self, part: int, done: int = 0) -> float:
        """Seconds for judging this candidate and those after it."""
        return ((self.parts - part + 1) * len(self.plan.compared) - done) * self.pace.get("judging", 0.0)

    def _tell(self, stage: str, sentence: str, part: int, step: int, steps: int, left: float | None) -> None:
        known = left is not None and math.isfinite(left)
        self.tell(RetrainingProgress(stage, sentence, part, self.parts, step, steps, left if known else None))


def dice_of_proposal(
    predictor: Predictor, recipe: Mapping[str, Any], case: Case, labels: Mapping[int, str],
    look: Callable[[], None] = lambda: None,
) -> dict[str, float | None]:
    """Measure what an adapter proposes for an accepted case, as whole volumes.

    Args:
        predictor: the adapter on its base.
        recipe: what the adapter's card holds: window and orientations that it has learned.
        case: with the accepted labels.
        labels: the cohort's structures, names by value.
        look: called after each slice; it raises to stop the work.

    Returns:
        Dice by label; None for a label that neither side shows.
    """
    from SAMFineTuneLib.cases.case_slices import learned_orientations
    from SAMFineTuneLib.images import choose_window
    from SAMFineTuneLib.inference.automatic_head import segment_classes
    from SAMFineTuneLib.metrics.mask_metrics import dice

    annotated = case.read()
    volume = annotated.volume
    window, orientations = choose_window(volume, recipe.get("window")), learned_orientations(volume, recipe)
    classes = segment_classes(predictor, volume, window, orientations, lambda _: look())
    numbers = {same_name(name): number for number, name in enumerate(predictor.engine.spec.classes) if number}
    return {
        name: dice(classes == numbers.get(same_name(name), -1), annotated.labels == value)
        for value, name in labels.items()
    }

"""The plan of a fine-tuning, made before it begins. Everything that can be refused is refused here; nothing is written.

`samfinetune train --check` shows a plan; `fine_tuning.fine_tune` makes the same one and carries it out.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cases import case_slices
from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, objects_of, slices_of
from SAMFineTuneLib.cases.case_survey import Survey, survey
from SAMFineTuneLib.cases.cases import Case
from SAMFineTuneLib.cases.labelled_case import read_labelled
from SAMFineTuneLib.cases.splits import Fold, Folds, set_aside, split
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import modality_of
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, require_base
from SAMFineTuneLib.models.spec import ModelFolder
from SAMFineTuneLib.process_lock import owning
from SAMFineTuneLib.training.device_memory import device_of
from SAMFineTuneLib.training.training_settings import TrainingSettings
from SAMFineTuneLib.wording import readable_size

if TYPE_CHECKING:
    from torch import nn

STATE = "run.json"
"""File in the working folder that describes an unfinished training."""
_STATES = 4  # copies of the trained tensors in a checkpoint: themselves, two of the optimiser, the best so far
_SPARE = 64 << 20  # bytes for curves, figures and pictures


@dataclass(frozen=True, eq=False)
class Plan:
    """A fine-tuning that can begin. Only the cases themselves name patients."""

    base: ModelFolder
    settings: TrainingSettings
    output: Path
    device: str
    found: Survey
    folds: Folds
    trainings: tuple[Fold, ...]
    """Cases that each training learns from and is validated on; the last one makes the delivered adapter."""
    counts: dict[str, tuple[int, int]]
    """By case: slices that show something to learn, and all slices."""
    modality: str
    """Of all cases, such as `CT`; "" when they differ or it is not known."""
    bytes_needed: int
    """Disk space that the training needs until it is done."""
    bytes_free: int
    start: AdapterFolder | None = None
    """The adapter from which the trainings continue; None: the base alone."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Optimiser steps of each training, at most: validation may end one earlier."""
        return tuple(self.settings.for_slices(self._shown(fold.train)).steps for fold in self.trainings)

    def _shown(self, cases: Sequence[Case]) -> int:
        return sum(self.counts[case.id][0] for case in cases)

    def slices(self, case: Case) -> Iterator[LabelledSlice]:
        """All slices of a case, as the settings want them."""
        labelled = read_labelled(case, self.found.choice, self.found.names)
        return slices_of(labelled, self.settings.window, self.settings.orientation)

    def training_slices(
        self, cases: Sequence[Case], look: Callable[[], None] = lambda: None
    ) -> tuple[list[LabelledSlice], list[LabelledSlice]]:
        """Slices that show something to learn, and up to as many of each case that show nothing.

        No more are kept in memory than the training shows.
        """
        shown, empty, count = [], [], self._shown(cases)
        settings = self.settings.for_slices(count)
        share = min(1.0, settings.steps * settings.batch / count)
        for case in cases:
            own = list(looking(self.slices(case), look))
            labelled = case_slices.with_objects(own, case.id)
            labelled = evenly(labelled, math.ceil(share * len(labelled)))
            shown += labelled
            empty += evenly([one for one in own if not one.labelled], len(labelled))
        return shown, empty


def make_plan(
    cases: Sequence[Case],
    output: str | Path,
    base: ModelFolder,
    settings: TrainingSettings,
    resume: bool = False,
    test: Sequence[Case] = (),
    look: Callable[[], None] = lambda: None,
    first: bool = True,
    start: AdapterFolder | None = None,
) -> Plan:
    """Check everything that a fine-tuning needs.

    Args:
        cases: Cases to learn from.
        output: Folder of the adapter.
        base: The model to adapt.
        settings: How it is trained.
        resume: Whether to continue an interrupted training.
        test: Cases to test on.
        look: Called often; may raise Stopped.
        first: False in further processes of one training, where the first one checks the folders.
        start: An adapter to continue from, of the same base and method.

    Raises:
        UserError: For any reason to refuse the training.
    """
    output = Path(output).expanduser()
    device = device_of(settings.device)
    if first:
        with owning(working_folder(output), f"The training of {output}"):
            check_folders(output, resume)
    settings = replace(settings, small_base=base.spec.architecture == "compact")
    base.file("weights")
    if start is not None:
        require_base(start, base)
    taken = {case.id for case in cases}
    test = [replace(case, id=f"test/{case.id}") if case.id in taken else case for case in test]
    folds = split(cases, settings.shots, settings.folds, settings.seed, test, settings.fold_limit)
    trainings = [part.train for part in folds.parts]
    if folds.kind not in ("shots", "given"):
        trainings.append(folds.final)
    trainings = tuple(set_aside(learned, settings.validation, settings.seed) for learned in trainings)
    found = survey([*cases, *test], settings.labels, exclusive="automatic" in settings.heads, look=look)
    settings = settings.for_labels(found.names, found.choice)
    if start is not None:
        _require_same_method(start, settings)
        _require_unseen(start, [case for part in folds.parts for case in part.test], found)
    trained = _trained_bytes(base, settings, start)
    taught = {case.id: case for fold in trainings for case in (*fold.train, *fold.test)}
    counts, modalities = {}, set()
    for name, case in (taught | {case.id: case for fold in folds.parts for case in fold.test}).items():
        labelled = read_labelled(case, found.choice, found.names)
        slices = looking(slices_of(labelled, settings.window, settings.orientation), look)
        shown = [bool(objects_of(one)) for one in slices]
        counts[name] = sum(shown), len(shown)
        if name in taught:
            case_slices.require_objects(counts[name][0], name)
        modalities.add(modality_of(labelled.volume))
    needed = trained * (_STATES * len(trainings) + 2) + _SPARE
    needed += 2 * sum(base.file(role).stat().st_size for role in ("encoder", "decoder") if base.has(role))
    free = shutil.disk_usage(next(one for one in output.resolve().parents if one.is_dir())).free
    if free < needed and not resume:
        raise UserError(
            f"Only {readable_size(free)} are free on the disk of {output}, and the training needs about "
            f"{readable_size(needed)}; free some space, or choose another place."
        )
    modality = modalities.pop() if len(modalities) == 1 else ""
    return Plan(base, settings, output, device, found, folds, trainings, counts, modality, needed, free, start)


def working_folder(output: str | Path) -> Path:
    """The hidden folder in which an unfinished training keeps its checkpoints."""
    output = Path(output).expanduser().resolve()
    return output.parent / f".{output.name}.training"


def check_folders(output: Path, resume: bool) -> None:
    """Raise UserError if a training cannot begin or continue."""
    work = working_folder(output)
    if (output / "card.json").exists():
        if resume:
            raise UserError(f"The training of {output} is finished: the folder holds its adapter; leave out --resume "
                            "and choose another name to train again.")  # fmt: skip
        raise UserError(f"{output} holds an adapter already; choose another name, or remove that one first.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already and is not empty; choose another name.")
    if resume and not (work / STATE).exists():
        raise UserError(f"There is no interrupted training of {output} to resume; start it without --resume.")
    if not resume and (work / STATE).exists():
        raise UserError(
            f"An interrupted training of {output} lies in {work}; continue it with --resume, or delete that folder."
        )


def looking(slices: Iterator[LabelledSlice], look: Callable[[], None]) -> Iterator[LabelledSlice]:
    """Yield the slices, and call `look` before each."""
    look()
    for one in slices:
        look()
        yield one


def _require_same_method(start: AdapterFolder, settings: TrainingSettings) -> None:
    """Raise UserError if this training cannot continue from an adapter."""
    before, now = start.card.method, settings.method
    if before == now:
        return
    if before.heads != now.heads or replace(now, classes=before.classes) != before:
        ways = [f"{one} ({' and '.join(one.heads)})" for one in (before, now)]
        raise UserError(
            f"The adapter {start.name} was trained as {ways[0]}, and this training is {ways[1]} or differs in its "
            "details; give the same method, or start from the base."
        )
    raise UserError(
        f"The adapter {start.name} finds {', '.join(before.classes[1:])}, and the cases hold "
        f"{', '.join(now.classes[1:])}; choose the same labels, or start from the base."
    )


def _require_unseen(start: AdapterFolder, tests: Sequence[Case], found: Survey) -> None:
    """Raise UserError if an adapter has learned from a case that is to test the training."""
    if seen := [case.id for case in tests if found.digests[case.id] in start.card.cases]:
        raise UserError(
            f"The adapter {start.name} learned from the case {seen[0]}, which would test this training; give other "
            "test cases or no folds, or start from the base."
        )


def _trained_bytes(base: ModelFolder, settings: TrainingSettings, start: AdapterFolder | None) -> int:
    """Size of what is trained; UserError when the method, or the adapter to start from, does not suit the base."""
    from SAMFineTuneLib.models.adapters.tuning import trainable

    network = attached(base, settings, start)
    return sum(value.numel() * value.element_size() for value in trainable(network).values())


def attached(base: ModelFolder, settings: TrainingSettings, start: AdapterFolder | None = None) -> nn.Module:
    """The base's network with the method attached, as it is before the first step.

    Args:
        base: the model.
        settings: of the training, with the method.
        start: an adapter whose weights it begins with.
    """
    from SAMFineTuneLib.models.adapters.tuning import attach, restore
    from SAMFineTuneLib.models.load_model import load_network

    network = attach(load_network(base.file("weights"))[1], base.spec, settings.method, settings.seed)
    if start is not None:
        restore(network, start)
    return network

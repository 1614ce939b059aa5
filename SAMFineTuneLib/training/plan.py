"""The plan of a fine-tuning, made before it begins. Everything that can be refused is refused here; nothing is written.

`samfinetune train --check` shows a plan; `fine_tuning.fine_tune` makes the same one and carries it out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SAMFineTuneLib.cases import case_slices
from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, objects_of, slices_of
from SAMFineTuneLib.cases.case_survey import Survey, survey
from SAMFineTuneLib.cases.cases import Case
from SAMFineTuneLib.cases.labelled_case import read_labelled
from SAMFineTuneLib.cases.splits import Fold, Folds, set_aside, split
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import readable_size
from SAMFineTuneLib.images.intensity_window import modality_of
from SAMFineTuneLib.models.spec import ModelFolder
from SAMFineTuneLib.process_lock import owning
from SAMFineTuneLib.training.memory import device_of
from SAMFineTuneLib.training.training_settings import Settings

STATE = "run.json"
"""File in the working folder that describes an unfinished training."""
_STATES = 4  # copies of the trained tensors in a checkpoint: themselves, two of the optimiser, the best so far
_SPARE = 64 << 20  # bytes for curves, figures and pictures


@dataclass(frozen=True, eq=False)
class Plan:
    """A fine-tuning that can begin. Only the cases themselves name patients."""

    base: ModelFolder
    settings: Settings
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
        """Slices that show something to learn, and up to as many of each case that show nothing."""
        shown, empty = [], []
        for case in cases:
            own = list(looking(self.slices(case), look))
            labelled = case_slices.with_objects(own, case.id)
            shown += labelled
            empty += evenly([one for one in own if not one.labelled], len(labelled))
        return shown, empty


def make_plan(
    cases: Sequence[Case],
    output: str | Path,
    base: ModelFolder,
    settings: Settings,
    resume: bool = False,
    test: Sequence[Case] = (),
    look: Callable[[], None] = lambda: None,
    first: bool = True,
) -> Plan:
    """Check everything that a fine-tuning needs.

    Args:
        cases: Cases to learn from.
        output: Folder of the adapter.
        base: The model to adapt.
        settings: How it is trained.
        resume: Whether an interrupted training goes on.
        test: Cases to test on.
        look: Called again and again; may raise Stopped.
        first: False in further processes of one training, where the first one checks the folders.

    Raises:
        UserError: For everything that the training would be refused for.
    """
    output = Path(output).expanduser()
    device = device_of(settings.device)
    if first:
        with owning(working_folder(output), f"The training of {output}"):
            check_folders(output, resume)
    settings = replace(settings, small_base=base.spec.architecture == "compact")
    base.file("weights")
    taken = {case.id for case in cases}
    test = [replace(case, id=f"test/{case.id}") if case.id in taken else case for case in test]
    folds = split(cases, settings.shots, settings.folds, settings.seed, test, settings.fold_limit)
    trainings = [part.train for part in folds.parts]
    if folds.kind not in ("shots", "given"):
        trainings.append(folds.final)
    trainings = tuple(set_aside(learned, settings.validation, settings.seed) for learned in trainings)
    found = survey([*cases, *test], settings.labels, exclusive="automatic" in settings.heads, look=look)
    settings = settings.for_labels(found.names, found.choice)
    trained = _trained_bytes(base, settings)
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
    return Plan(base, settings, output, device, found, folds, trainings, counts, modality, needed, free)


def working_folder(output: str | Path) -> Path:
    """The hidden folder in which an unfinished training keeps its checkpoints."""
    output = Path(output).expanduser().resolve()
    return output.parent / f".{output.name}.training"


def check_folders(output: Path, resume: bool) -> None:
    """UserError where a training cannot begin or go on."""
    work = working_folder(output)
    if (output / "card.json").exists():
        raise UserError(f"{output} holds an adapter already; choose another name, or remove that one first.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already and is not empty; choose another name.")
    if resume and not (work / STATE).exists():
        raise UserError(f"There is no interrupted training of {output} to resume; start it without --resume.")
    if not resume and (work / STATE).exists():
        raise UserError(
            f"An interrupted training of {output} lies in {work}; go on with --resume, or delete that folder."
        )


def looking(slices: Iterator[LabelledSlice], look: Callable[[], None]) -> Iterator[LabelledSlice]:
    """The same slices, with a call of `look` before each."""
    look()
    for one in slices:
        look()
        yield one


def _trained_bytes(base: ModelFolder, settings: Settings) -> int:
    """Size of what is trained; UserError when the method does not suit the base."""
    from SAMFineTuneLib.models.adapters.tuning import attach, trainable
    from SAMFineTuneLib.models.load_model import load_network

    network = attach(load_network(base.file("weights"))[1], base.spec, settings.method, settings.seed)
    return sum(value.numel() * value.element_size() for value in trainable(network).values())

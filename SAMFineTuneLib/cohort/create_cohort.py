"""Makes a cohort from images, adds images to one, and finds moved images again."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SAMFineTuneLib.cases.cases import SHORT, Annotated, Case, patient_of_files, patients_by_name
from SAMFineTuneLib.cohort.cohort_folder import Cohort, require_no_cohort
from SAMFineTuneLib.cohort.cohort_labels import renumbered
from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState, Review
from SAMFineTuneLib.cohort.find_images import FoundImage
from SAMFineTuneLib.cohort.image_check import stamp_of
from SAMFineTuneLib.cohort.patients import patient_digest
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_writable
from SAMFineTuneLib.images import Volume, read_volume, write_labelmap
from SAMFineTuneLib.images.segment_info import check_name
from SAMFineTuneLib.wording import same_name, some_sentences, within_sentence


@dataclass(frozen=True)
class NewCohort:
    """A cohort that was just made, and sentences about images that it lacks or that are unusual."""

    cohort: Cohort
    notes: tuple[str, ...]


def create_cohort(
    folder: str | Path,
    images: Sequence[FoundImage],
    labels: Sequence[str] = (),
    model: str = "compact",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NewCohort:
    """Make a cohort: read each image once for its digest, and accept existing labels.

    Args:
        folder: where the cohort is kept; must not hold one.
        images: its images, from `find_images`.
        labels: names of the structures, for label values from 1; by default those of the existing labels.
        model: id or folder of the model that adapters are trained from.
        progress: called with the number of images read, and of all.

    Returns:
        The cohort, and notes: on images that cannot be read or occur twice and are left out, and on what is unusual
        about others, such as a missing slice.

    Raises:
        UserError: when the folder holds a cohort or images, no image can be read, or structures have no names.
    """
    folder = Path(folder).expanduser()
    require_no_cohort(folder)
    require_writable(folder)
    places = [place for one in images for place in (one.image, one.image.parent.resolve())]
    if folder.resolve() in {place for one in places for place in (one.resolve(), *one.parents)}:
        raise UserError(f"“{folder}” holds images; give the cohort a folder of its own beside them.")
    given = [name.strip() for name in labels]
    while given and not given[-1]:  # a comma at the end
        given.pop()
    names = dict(enumerate(given, start=1))
    if not all(given) or len({same_name(name) for name in given}) < len(given):
        told = ", ".join(f"“{name}”" for name in given)
        raise UserError(f"Each label value 1, 2, … needs a name of its own, but they are called {told}; give each "
                        "a different one.")  # fmt: skip
    for name in given:
        check_name(name)
    root = _common_folder([one.image for one in images])
    salt = secrets.token_hex(16)
    read = _read(images, root, folder, names, {}, salt, progress)
    if not read.cases:
        raise UserError(f"None of the images can be read: {some_sentences(read.notes)}")
    if not read.names:
        raise UserError(" ".join(["The cohort needs the names of its structures, such as liver,spleen; give them "
                                  "(--labels on the command line).", *read.notes[:2]]))  # fmt: skip
    state = CohortState(read.names, tuple(read.cases.values()), _places(root, folder), model, salt=salt)
    return NewCohort(Cohort.create(folder, state), tuple(read.notes))


def add_images(
    cohort: Cohort,
    images: Sequence[FoundImage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, ...]:
    """Add images to a cohort, with their labels if they have any. Returns sentences as in `NewCohort`."""
    state = cohort.state
    require_writable(cohort.folder)
    known = {case.key: case for case in state.cases}
    read = _read(images, cohort.images, cohort.folder, dict(state.labels), known, state.salt, progress)

    def added(now: CohortState) -> CohortState:
        there, order = {case.key for case in now.cases}, now.next_order
        new = []
        for case in read.cases.values():
            if case.key not in there:
                new.append(replace(case, review=Review(order)) if case.review else case)
                order += case.review is not None
        return replace(now, cases=(*now.cases, *new))

    cohort.change(added)
    return tuple(read.notes)


def locate_images(
    cohort: Cohort, images: Sequence[FoundImage], progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Find moved images again by their digests. Returns how many of the cohort's images were found."""
    where = {}
    for done, one in enumerate(images):
        progress(done, len(images))
        try:
            where[read_volume(one.image).digest[:SHORT]] = one.image
        except UserError:
            continue  # a file that cannot be read is none of the cohort's
    progress(len(images), len(images))

    def moved(state: CohortState) -> CohortState:
        here = [where[case.key] if case.key in where else cohort.path(case) for case in state.cases]
        root = _common_folder(here)
        found = [{"stamp": stamp_of(path), "trouble": ""} if case.key in where else {}
                 for case, path in zip(state.cases, here, strict=True)]  # fmt: skip
        cases = [replace(case, image=_beneath(root, path), **more)
                 for case, path, more in zip(state.cases, here, found, strict=True)]  # fmt: skip
        return replace(state, cases=tuple(cases), images=_places(root, cohort.folder))

    found = sum(case.key in where for case in cohort.state.cases)
    if found:
        cohort.change(moved)
    return found


# ---------------------------------------------------------------- reading


@dataclass
class _Read:
    """New cases by key, the names of all label values, and notes."""

    cases: dict[str, CohortCase]
    names: dict[int, str]
    notes: list[str]


def _read(
    images: Sequence[FoundImage],
    root: Path,
    folder: Path,
    names: Mapping[int, str],
    known: Mapping[str, CohortCase],
    salt: str,
    progress: Callable[[int, int], None],
) -> _Read:
    """Read images and their labels; the labels of each become its accepted label map."""
    read = _Read({}, dict(names), [])
    named = patients_by_name({str(one.image): one.image for one in images})
    often = Counter(one.image.name for one in images)
    for done, one in enumerate(images):
        progress(done, len(images))
        name = one.image.name if often[one.image.name] == 1 else _beneath(root, one.image)
        read.notes += one.beside
        try:
            volume = read_volume(one.image)
        except UserError as error:
            read.notes.append(f"{name} is left out: {error}")
            continue
        key = volume.digest[:SHORT]
        if same := read.cases.get(key) or known.get(key):
            there = same.name if often[Path(same.image).name] <= 1 else same.image
            read.notes.append(f"{name} is left out: {there} is the same image.")
            continue
        patient = one.patient or _dicom_patient(volume) or named.get(str(one.image))
        digested = one.digested or (patient_digest(patient, salt) if patient else patient_digest(key, ""))
        case = CohortCase(key, _beneath(root, one.image), digested, stamp=stamp_of(one.image))
        if one.labelled is not None:
            case = _accepted(case, one.labelled, folder, bool(names), read)
        read.cases[key] = case
        read.notes += [f"{case.name}: {note}" for note in (*one.notes, *volume.warnings)]
    progress(len(images), len(images))
    return read


def _dicom_patient(volume: Volume) -> str:
    """A digest of the patient of a DICOM image; "" for other images."""
    source = volume.source
    return patient_of_files(source.files) if source is not None and source.format == "DICOM" else ""


def _accepted(case: CohortCase, labelled: Case, folder: Path, named: bool, read: _Read) -> CohortCase:
    """A case with its labels accepted; unchanged, with a note, if they cannot be used."""
    try:
        annotated = labelled.read()
        array, read.names = renumbered(annotated.labels, annotated.meaning, read.names, more=not named)
    except UserError as error:
        read.notes.append(f"The labels of {case.name} are not used: {within_sentence(str(error))}")
        return case
    read.notes += about_labels(case.name, annotated)
    if not array.any():
        read.notes.append(f"The labels of {case.name}: nothing is labelled.")
    write_labelmap(folder / "accepted" / f"{case.key}.nii.gz", array, annotated.volume)
    order = sum(other.state == "accepted" for other in read.cases.values()) + 1
    return replace(case, state="accepted", review=Review(order))


def about_labels(name: str, annotated: Annotated) -> list[str]:
    """Sentences about how the labels of an image were read."""
    return [f"{name}: {note}" for note in annotated.notes if note not in annotated.volume.warnings]


# ---------------------------------------------------------------- places


def _common_folder(paths: Sequence[Path]) -> Path:
    """The folder that contains all paths; that of the first one if they lie on several drives."""
    try:
        return Path(os.path.commonpath([path.parent.resolve() for path in paths]))
    except ValueError:
        return paths[0].parent.resolve()


def _beneath(root: Path, path: Path) -> str:
    """A path relative to a folder, with / between its parts; absolute on another drive."""
    path = path.parent.resolve() / path.name  # not the target of a link, which may have another name
    try:
        return Path(os.path.relpath(path, root.resolve())).as_posix()
    except ValueError:
        return path.as_posix()


def _places(root: Path, folder: Path) -> tuple[str, str]:
    """The folder of the images: relative to the cohort's folder, "" on another drive, and absolute."""
    try:
        beside = Path(os.path.relpath(root, folder.resolve())).as_posix()
    except ValueError:
        beside = ""
    return beside, root.as_posix()

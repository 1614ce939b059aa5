"""Makes a cohort of images, some of which may have labels already.

| given | its images |
|---|---|
| a folder with `images/`, and perhaps `labels/` or `masks/` | all in `images/`; those with labels of their name are accepted |
| nnU-Net's `imagesTr/`, `labelsTr/`, `imagesTs/` | the first channel of all; those with labels are accepted |
| a `.csv` of `image,label,patient` | those listed, all accepted |
| any other folder | its image files, and every folder below it that holds DICOM files, each series by itself |
"""  # noqa: E501

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.case_lists import LISTS
from SAMFineTuneLib.cases.cases import (
    LABEL_FOLDERS,
    SHORT,
    Case,
    dicom_patient,
    find_cases,
    images_by_name,
    patients_of_pictures,
    some_names,
)
from SAMFineTuneLib.cohort.cohort_folder import Cohort, CohortCase, CohortState, Review, require_no_cohort
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume, write_labelmap
from SAMFineTuneLib.images.read_dicom import look_into
from SAMFineTuneLib.images.read_image import VOLUME_FILES, split_choice
from SAMFineTuneLib.images.read_picture import PICTURES

_LOCALIZER = 4  # files: a series of so few is hardly the one to be segmented


@dataclass(frozen=True)
class FoundImage:
    """An image that belongs to a cohort: its file or DICOM folder, its labels if it has any, its patient if known."""

    image: Path
    labelled: Case | None = None
    patient: str = ""


@dataclass(frozen=True)
class NewCohort:
    """A cohort that was just made, and sentences about images that it lacks."""

    cohort: Cohort
    notes: tuple[str, ...]


def find_images(source: str | Path) -> list[FoundImage]:
    """The images of a source (see the table above), by name.

    Raises:
        UserError: when there are none, or labels do not belong to their images.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise UserError(f"“{source}” does not exist; check the path.")
    images = source / "images"
    if source.is_file():
        if source.suffix.lower() not in LISTS:
            raise UserError(f"“{source.name}” is not a folder of images or a list of image,label,patient (.csv).")
        found = [FoundImage(case.image, case, case.patient) for case in find_cases(source)]
    elif (source / "imagesTr").is_dir():
        folders = [source / name for name in ("imagesTr", "imagesTs") if (source / name).is_dir()]
        found = _with_labels(source, folders, source / "labelsTr", channels=True)
    elif images.is_dir():
        labels = [source / name for name in LABEL_FOLDERS if (source / name).is_dir()]
        found = _with_labels(source, [images], next(iter(labels), None), channels=False)
    else:
        found = [FoundImage(path) for path in _anywhere(source)]
    if not found:
        raise UserError(f"“{source}” holds no images; it needs NIfTI, NRRD, MetaImage, PNG or DICOM files.")
    return sorted(found, key=lambda one: one.image)


def create_cohort(
    folder: str | Path,
    images: Sequence[FoundImage],
    labels: Sequence[str] = (),
    model: str = "compact",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NewCohort:
    """Make a cohort: read each image once for its digest, and accept the labels that are there.

    Args:
        folder: where the cohort is kept; must not hold one.
        images: its images, from `find_images`.
        labels: names of the structures, for label values from 1; without any, those of the labels that are there.
        model: id or folder of the model that adapters are trained from.
        progress: told how many images are read, and how many there are.

    Returns:
        The cohort. Images that cannot be read or occur twice are left out, with a note each.

    Raises:
        UserError: when the folder holds a cohort, no image can be read, or structures have no names.
    """
    folder = Path(folder).expanduser()
    require_no_cohort(folder)
    names = {value: name.strip() for value, name in enumerate(labels, start=1)}
    root = _common_folder([one.image for one in images])
    read = _read(images, root, folder, names, {}, progress)
    if not read.cases:
        raise UserError(f"None of the images can be read: {some_names(read.notes, 2, ' ')}")
    if not read.names:
        raise UserError("The cohort needs the names of its structures: give --labels liver,spleen.")
    state = CohortState(read.names, tuple(read.cases.values()), _places(root, folder), model)
    return NewCohort(Cohort.create(folder, state), tuple(read.notes))


def add_images(
    cohort: Cohort,
    images: Sequence[FoundImage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, ...]:
    """Add images to a cohort, with their labels if they have any. -> sentences about those that are left out."""
    state = cohort.state
    known = {case.key: case for case in state.cases}
    read = _read(images, cohort.images, cohort.folder, dict(state.labels), known, progress)

    def added(now: CohortState) -> CohortState:
        there, count = {case.key for case in now.cases}, len(now.accepted)
        new = []
        for case in read.cases.values():
            if case.key not in there:
                count += case.review is not None
                new.append(replace(case, review=replace(case.review, order=count)) if case.review else case)
        return replace(now, cases=(*now.cases, *new))

    cohort.change(added)
    return tuple(read.notes)


def locate_images(
    cohort: Cohort, images: Sequence[FoundImage], progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Find moved images again by their digests. -> how many of the cohort's images were found."""
    where = {}
    for done, one in enumerate(images):
        progress(done, len(images))
        try:
            where[read_volume(one.image).digest[:SHORT]] = one.image
        except UserError:
            continue  # what cannot be read is not one of the cohort's
    progress(len(images), len(images))

    def moved(state: CohortState) -> CohortState:
        here = [where[case.key] if case.key in where else cohort.images / case.image for case in state.cases]
        root = _common_folder(here)
        cases = [replace(case, image=_beneath(root, path)) for case, path in zip(state.cases, here, strict=True)]
        return replace(state, cases=tuple(cases), images=_places(root, cohort.folder))

    found = sum(case.key in where for case in cohort.state.cases)
    if found:
        cohort.change(moved)
    return found


# ---------------------------------------------------------------- finding


def _with_labels(source: Path, folders: Sequence[Path], labels: Path | None, channels: bool) -> list[FoundImage]:
    """The images of some folders, each with its labels where there are any."""
    labelled = {}
    if labels is not None and labels.is_dir() and any(not path.name.startswith(".") for path in labels.iterdir()):
        labelled = {case.image: case for case in find_cases(source)}
    images = [path for folder in folders for path in images_by_name(folder, channels).values()]
    return [FoundImage(path, labelled.get(path)) for path in images]


def _anywhere(source: Path) -> list[Path]:
    """Image files below a folder, and each DICOM series; one of few slices, a localizer, only if there is no other."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.name.lower().endswith((*VOLUME_FILES, *PICTURES))]
    folders = {path.parent for path in files if path not in set(images)}
    for folder in sorted(folders):
        try:
            series, _ = look_into(folder)
        except UserError:
            continue  # holds no DICOM files
        own = [one for one in series if one.files > _LOCALIZER] or series
        images += [folder.with_name(f"{folder.name}#{one.number}") if len(series) > 1 else folder for one in own]
    return images


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
    progress: Callable[[int, int], None],
) -> _Read:
    """Read images and their labels; the labels of each become its accepted label map."""
    read = _Read({}, dict(names), [])
    pictures = patients_of_pictures({str(one.image): one.image for one in images})
    for done, one in enumerate(images):
        progress(done, len(images))
        try:
            volume = read_volume(one.image)
        except UserError as error:
            read.notes.append(f"{one.image.name} is left out: {error}")
            continue
        key = volume.digest[:SHORT]
        if same := read.cases.get(key) or known.get(key):
            read.notes.append(f"{one.image.name} is left out: {same.name} is the same image.")
            continue
        patient = one.patient or dicom_patient(split_choice(one.image)[0]) or pictures.get(str(one.image)) or key
        case = CohortCase(key, _beneath(root, one.image), hashlib.sha256(patient.encode()).hexdigest()[:SHORT])
        if one.labelled is not None:
            case = _accepted(case, one.labelled, folder, bool(names), read)
        read.cases[key] = case
    progress(len(images), len(images))
    return read


def _accepted(case: CohortCase, labelled: Case, folder: Path, named: bool, read: _Read) -> CohortCase:
    """A case with its labels accepted; as it is, with a note, where they cannot be used."""
    try:
        annotated = labelled.read()
    except UserError as error:
        read.notes.append(f"The labels of {case.name} are not used: {error}")
        return case
    values = [int(value) for value in np.unique(annotated.labels) if value and value not in annotated.meaning.ignored]
    if annotated.meaning.members or annotated.meaning.ignored:
        read.notes.append(f"The labels of {case.name} are not used: nnU-Net's regions and ignored voxels are not kept.")
        return case
    unknown = [value for value in values if value not in read.names]
    if named and unknown:
        which = some_names([str(value) for value in unknown])
        read.notes.append(f"The labels of {case.name} are not used: no structure is named for the values {which}.")
        return case
    read.names |= {value: annotated.meaning.names.get(value, f"label {value}") for value in unknown}
    write_labelmap(folder / "accepted" / f"{case.key}.nii.gz", annotated.labels, annotated.volume)
    order = sum(other.state == "accepted" for other in read.cases.values()) + 1
    return replace(case, state="accepted", review=Review(order))


# ---------------------------------------------------------------- places


def _common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all paths; the first one's own where they lie on several drives."""
    try:
        return Path(os.path.commonpath([path.resolve().parent for path in paths]))
    except ValueError:
        return paths[0].resolve().parent


def _beneath(root: Path, path: Path) -> str:
    """A path from a folder, with / between its parts; in full on another drive."""
    path = path.resolve()
    try:
        return Path(os.path.relpath(path, root.resolve())).as_posix()
    except ValueError:
        return path.as_posix()


def _places(root: Path, folder: Path) -> tuple[str, str]:
    """Where images lie: from the cohort's folder, "" on another drive, and in full."""
    try:
        beside = Path(os.path.relpath(root, folder.resolve())).as_posix()
    except ValueError:
        beside = ""
    return beside, root.as_posix()

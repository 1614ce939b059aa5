"""Makes a cohort of images, some of which may have labels already.

| given | its images |
|---|---|
| a folder with `images/`, and perhaps `labels/` or `masks/` | all in `images/`; those with labels of their name are accepted |
| nnU-Net's `imagesTr/`, `labelsTr/`, `imagesTs/` | the first channel of all; those with labels are accepted |
| a `.csv` of `image,label,patient` | those listed; those with a label are accepted; labels and patients may be empty |
| any other folder | its image files, and every folder below it that holds DICOM files, each series by itself |

Slicer segmentations (`.seg.nrrd`) and folders of cohorts are not images. One series of several in a DICOM folder is
named by its UID behind a #, which stays when the folder gets more.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from SAMFineTuneLib.cases.case_lists import LISTS, read_list
from SAMFineTuneLib.cases.cases import (
    LABEL_FOLDERS,
    SHORT,
    Annotated,
    Case,
    find_cases,
    images_by_name,
    patient_of_files,
    patients_of_pictures,
)
from SAMFineTuneLib.cohort.cohort_folder import STATE_FILE, Cohort, CohortCase, CohortState, Review, require_no_cohort
from SAMFineTuneLib.cohort.cohort_labels import renumbered
from SAMFineTuneLib.cohort.image_check import stamp_of
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume, read_volume, write_labelmap
from SAMFineTuneLib.images.read_dicom import NoDicomImages, look_into
from SAMFineTuneLib.images.read_image import ENDINGS, is_dicom, split_choice
from SAMFineTuneLib.wording import some_names, within_sentence

_LOCALIZER = 4  # slices: a series of so few is hardly the one to be segmented


@dataclass(frozen=True)
class FoundImage:
    """An image that belongs to a cohort: its file or DICOM folder, its labels if it has any, its patient if known."""

    image: Path
    labelled: Case | None = None
    patient: str = ""
    digested: str = ""
    """What `patient_digest` made of the patient."""
    notes: tuple[str, ...] = ()
    """Sentences about how it was found."""
    beside: tuple[str, ...] = ()
    """Sentences about what was left out beside it."""


@dataclass(frozen=True)
class NewCohort:
    """A cohort that was just made, and sentences about images that it lacks or that are unusual."""

    cohort: Cohort
    notes: tuple[str, ...]


def find_images(source: str | Path, match: str = "") -> list[FoundImage]:
    """The images of a source (see the table above), by name.

    Args:
        source: a folder or a list.
        match: how labels find their voxels, see `label_grid.MATCHES`.

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
        listed = read_list(source, unlabelled=True)
        found = [
            FoundImage(
                one.image,
                one.label and Case(one.image.name, one.image, one.label, match=match),
                one.patient,
                notes=one.notes,
            )
            for one in listed
        ]
    elif (source / "imagesTr").is_dir():
        folders = [source / name for name in ("imagesTr", "imagesTs") if (source / name).is_dir()]
        found = _with_labels(source, folders, source / "labelsTr", True, match)
    elif images.is_dir():
        labels = [source / name for name in LABEL_FOLDERS if (source / name).is_dir()]
        found = _with_labels(source, [images], next(iter(labels), None), False, match)
    else:
        found = _anywhere(source)
    if not found:
        raise UserError(f"“{source}” holds no images; it needs NIfTI, NRRD, MetaImage, PNG or DICOM files.")
    return sorted(found, key=lambda one: split_choice(one.image)[0])  # series of a folder stay in their order


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
        The cohort, and notes: on images that cannot be read or occur twice and are left out, and on what is unusual
        about others, such as a missing slice.

    Raises:
        UserError: when the folder holds a cohort or images, no image can be read, or structures have no names.
    """
    folder = Path(folder).expanduser()
    require_no_cohort(folder)
    if folder.resolve() in {place.resolve() for one in images for place in (one.image, one.image.parent)}:
        raise UserError(f"“{folder}” holds images; give the cohort a folder of its own beside them.")
    given = [name.strip() for name in labels]
    while given and not given[-1]:  # a comma at the end
        given.pop()
    names = dict(enumerate(given, start=1))
    if not all(given) or len({name.casefold() for name in given}) < len(given):
        told = ", ".join(f"“{name}”" for name in given)
        raise UserError(f"The structures of label values 1, 2, … need a name each, and are called {told}; give all a "
                        "name of their own.")  # fmt: skip
    root = _common_folder([one.image for one in images])
    salt = secrets.token_hex(16)
    read = _read(images, root, folder, names, {}, salt, progress)
    if not read.cases:
        raise UserError(f"None of the images can be read: {some_names(read.notes, 2, ' ')}")
    if not read.names:
        raise UserError("The cohort needs the names of its structures, such as liver,spleen; give them (--labels on "
                        "the command line).")
    state = CohortState(read.names, tuple(read.cases.values()), _places(root, folder), model, salt=salt)
    return NewCohort(Cohort.create(folder, state), tuple(read.notes))


def add_images(
    cohort: Cohort,
    images: Sequence[FoundImage],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, ...]:
    """Add images to a cohort, with their labels if they have any. Returns sentences as in `NewCohort`."""
    state = cohort.state
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
            continue  # what cannot be read is not one of the cohort's
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


# ---------------------------------------------------------------- finding


def _with_labels(
    source: Path, folders: Sequence[Path], labels: Path | None, channels: bool, match: str
) -> list[FoundImage]:
    """The images of some folders, each with its labels where there are any."""
    labelled, orphans = {}, []
    if labels is not None and labels.is_dir() and any(not path.name.startswith(".") for path in labels.iterdir()):
        labelled = {case.image: case for case in find_cases(source, match, orphans.append)}
    images = [path for folder in folders for path in images_by_name(folder, channels).values()]
    return _told([FoundImage(path, labelled.get(path)) for path in images], orphans)


def _told(images: list[FoundImage], about: Sequence[str]) -> list[FoundImage]:
    """The images, the first of which has the sentences about what was left out beside them."""
    return [replace(one, beside=tuple(about)) for one in images[:1]] + images[1:]


def _anywhere(source: Path) -> list[FoundImage]:
    """Image files below a folder, and each DICOM series; one of few slices, a localizer, only if there is no other."""
    files = []
    for parent, folders, names in os.walk(source):
        if STATE_FILE in names:  # a cohort's own folder
            folders[:], names = [], []
        folders[:] = [one for one in folders if not one.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    images = [FoundImage(path) for path in files if path.name.lower().endswith(ENDINGS) and not _is_segmentation(path)]
    dicom = {path.parent for path in files if _may_be_dicom(path)}
    for folder in sorted(one for one in dicom if not dicom.intersection(one.parents)):
        try:
            series, lost, _ = look_into(folder)
        except NoDicomImages:
            continue
        except UserError:
            images.append(FoundImage(folder))  # reading it will raise the error, which is told
            continue
        own = [one for one in series if one.size[2] > _LOCALIZER] or series
        names = (one.uid or str(one.number) for one in own)
        if len(series) == 1:
            images.append(FoundImage(folder))
        else:
            images += _told([FoundImage(folder.with_name(f"{folder.name}#{name}")) for name in names], lost)
    return images


def _is_segmentation(path: Path) -> bool:
    """Whether a file is Slicer's kind of label map."""
    return path.name.lower().endswith(".seg.nrrd")


def _may_be_dicom(path: Path) -> bool:
    """Whether a file is marked as DICOM, or has a name that DICOM files have."""
    if not path.suffix or path.suffix.lower() in (".dcm", ".ima", ".dicom") or path.suffix[1:].isdigit():
        return True
    try:
        return is_dicom(path)
    except OSError:
        return False


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
    pictures = patients_of_pictures({str(one.image): one.image for one in images})
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
        patient = one.patient or _dicom_patient(volume) or pictures.get(str(one.image))
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


@lru_cache
def patient_digest(patient: str, salt: str) -> str:
    """A digest of a patient: salted, so that those of two cohorts cannot be compared, and slow, so that it takes long
    to try numbers. Cohorts from before there was a salt keep the plain one."""
    if not salt:
        return hashlib.sha256(patient.encode()).hexdigest()[:SHORT]
    return hashlib.scrypt(patient.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1).hex()[:SHORT]


def _accepted(case: CohortCase, labelled: Case, folder: Path, named: bool, read: _Read) -> CohortCase:
    """A case with its labels accepted; as it is, with a note, where they cannot be used."""
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
    """Sentences about what became of the labels of an image when they were read."""
    notes = (note for note in annotated.notes if note not in annotated.volume.warnings)
    return [f"The labels of {name}: {within_sentence(note)}" for note in notes]


# ---------------------------------------------------------------- places


def _common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all paths; the first one's own where they lie on several drives."""
    try:
        return Path(os.path.commonpath([path.parent.resolve() for path in paths]))
    except ValueError:
        return paths[0].parent.resolve()


def _beneath(root: Path, path: Path) -> str:
    """A path from a folder, with / between its parts; in full on another drive."""
    path = path.parent.resolve() / path.name  # not what a link points to, which may have another name
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

"""Annotated cases: an image with its labels, and where such cases are found. No PyTorch here.

| given | what it holds |
|---|---|
| a folder with `images/` and `labels/` or `masks/` | pairs of one name: NIfTI, NRRD, MetaImage, PNG, DICOM folders; labels also `.seg.nrrd`, DICOM SEG |
| a folder with `imagesTr/` and `labelsTr/` | nnU-Net's layout; the first channel, `_0000`; names, regions and ignored labels from `dataset.json` |
| a `.csv` file | lines of `image,label` or `image,label,patient`, paths relative to the file; see `case_lists` |

An image without labels is not annotated yet and is left out. Labels without an image are an error, but for a cohort,
which leaves them out.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from SAMFineTuneLib.cases.case_lists import read_list
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cases.label_grid import MATCHES, fit_labels
from SAMFineTuneLib.cases.label_map import Meaning
from SAMFineTuneLib.cases.nnunet_labels import read_meaning
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.images_below import LABEL_FOLDERS, LABEL_SUFFIX
from SAMFineTuneLib.images.read_image import ENDINGS, read_volume, split_choice
from SAMFineTuneLib.images.read_picture import PICTURES
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.wording import some_names, within_sentence

_CHANNEL = re.compile(r"_(\d{4})$")
_SUBJECT = re.compile(r"(sub-[0-9A-Za-z]+)(?=[_.]|$)")  # of BIDS
SHORT = 12
"""Digits of a case's digest that identify it in files that are passed on."""


class Annotated(NamedTuple):
    """An image, its `labels` [k, j, i] uint16 in the image's grid, what they mean, and notes on what was corrected."""

    volume: Volume
    labels: np.ndarray
    meaning: Meaning
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """An annotated image. `patient` is equal for cases of one patient; neither `patient` nor `id` is ever stored."""

    id: str
    image: Path
    label: Path
    patient: str = ""
    meaning: Meaning = field(default_factory=Meaning, hash=False)
    """What label values mean, as far as a file beside them (`dataset.json`) says."""
    match: str = ""
    """How labels find their voxels; one of `label_grid.MATCHES`."""
    notes: tuple[str, ...] = ()
    """Sentences about how the case was found."""

    def read(self) -> Annotated:
        """Image and labels; UserError, naming the case, when they cannot be read or do not belong together."""
        try:
            volume, labels = read_volume(self.image), read_labels(self.label)
            fitted = fit_labels(labels, volume, self.match)
        except UserError as error:
            raise UserError(f"Case {self.id}: {within_sentence(str(error))}") from error
        notes = (*self.notes, *volume.warnings, *labels.notes, *fitted.notes)
        return Annotated(volume, fitted.array, labels.meaning.over(self.meaning), notes)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of voxels, geometry and labels; nothing in it identifies a patient."""
        annotated = self.read()
        return digest_of(annotated.volume, annotated.labels)


def digest_of(volume: Volume, labels: np.ndarray) -> str:
    """Hex SHA-256 of an image and its labels [k, j, i]."""
    digest = hashlib.sha256(volume.digest.encode())
    digest.update(np.ascontiguousarray(labels, "<u2").data)
    return digest.hexdigest()


# ---------------------------------------------------------------- finding


def find_cases(
    path: str | Path, match: str = "", about_orphans: Callable[[str], None] | None = None
) -> tuple[Case, ...]:
    """Find annotated cases.

    Args:
        path: A folder, or a list such as a .csv file.
        match: How labels find their voxels, one of `label_grid.MATCHES`.
        about_orphans: Called with a sentence about labels without an image, which are then left out.

    Returns:
        The cases, sorted by name.

    Raises:
        UserError: When there are none, when a name occurs twice, and when labels have no image without `about_orphans`.
    """
    path = Path(path).expanduser()
    if match not in MATCHES:
        raise UserError(f"Labels cannot be matched by {match!r}; choose index or position, or leave it out.")
    if not path.exists():
        raise UserError(f"“{path}” does not exist; check the path.")
    if path.is_file():
        cases = _from_list(path)
    elif not any(path.iterdir()):  # which also refuses a folder that may not be looked into
        raise UserError(f"“{path}” is empty, so it holds no cases; give a folder with images and labels.")
    elif (path / "imagesTr").is_dir():
        cases = _from_nnunet(path, about_orphans)
    else:
        cases = _from_folder(path, about_orphans)
    return tuple(sorted(_with_patients([replace(case, match=match) for case in cases]), key=lambda case: case.id))


def _from_folder(path: Path, about_orphans: Callable[[str], None] | None) -> list[Case]:
    images = path / "images"
    found = [path / name for name in LABEL_FOLDERS if (path / name).is_dir()]
    if not images.is_dir() or not found:
        raise UserError(
            f"“{path}” holds no cases: it needs images/ and labels/ (or masks/) with files of the same names, "
            "imagesTr/ and labelsTr/, or give a .csv of image,label."
        )
    if len(found) > 1:
        names = " and ".join(f"{folder.name}/" for folder in found)
        raise UserError(f"“{path}” holds {names}; keep the one whose labels are meant.")
    return _pairs(images, found[0], about_orphans)


def _from_nnunet(path: Path, about_orphans: Callable[[str], None] | None) -> list[Case]:
    if not (path / "labelsTr").is_dir():
        raise UserError(f"“{path}” has imagesTr/ but no labelsTr/; put the labels there.")
    meaning = read_meaning(path / "dataset.json")
    return _pairs(path / "imagesTr", path / "labelsTr", about_orphans, meaning, channels=True)


def _pairs(
    images: Path,
    labels: Path,
    about_orphans: Callable[[str], None] | None,
    meaning: Meaning = Meaning(),  # noqa: B008
    channels: bool = False,
) -> list[Case]:
    pictures, maps = images_by_name(images, channels), images_by_name(labels, label=True)
    if orphans := sorted(maps.keys() - pictures.keys()):
        lacking = f"labels without an image of that name in {images}: {some_names(orphans)}"
        if about_orphans is None:
            raise UserError(f"There are {lacking}; give both the same name.")
        about_orphans(f"Left out: {lacking}.")
    both = sorted(pictures.keys() & maps.keys())
    if not both and about_orphans is None:
        raise UserError(f"No image in {images} has labels of its name in {labels}; give both the same name.")
    counts = Counter(_without_channel(path)[0] for path in images.iterdir()) if channels else {}
    return [
        Case(name, pictures[name], maps[name], meaning=meaning, notes=_about_channels(counts.get(name, 1)))
        for name in both
    ]


def _about_channels(count: int) -> tuple[str, ...]:
    return (f"Of the image's {count} channels the first (_0000) is used.",) if count > 1 else ()


def _without_channel(path: Path) -> tuple[str | None, str]:
    """The name of an image and its channel in nnU-Net's layout, "0000" where the name has none."""
    name = _bare_name(path)
    match = _CHANNEL.search(name or "")
    return (name[: match.start()], match[1]) if match else (name, "0000")


def images_by_name(folder: Path, channels: bool = False, label: bool = False) -> dict[str, Path]:
    """Images, or labels, of a folder by the name that both share. Folders count as DICOM series.

    Args:
        folder: where they lie, without its sub-folders.
        channels: the names end with a channel, as nnU-Net writes them; only the first channel of a case is an image.
        label: drop the endings that label files have, such as "_label", so that image and label get one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name, channel = _without_channel(path) if channels else (_bare_name(path), "0000")
        if name is None or channel != "0000":
            continue
        if label:
            name = LABEL_SUFFIX.sub("", name)
        if name in found:
            raise UserError(f"{folder} holds {found[name].name} and {path.name}, both named {name}; keep one of them.")
        found[name] = path
    return found


def _bare_name(path: Path) -> str | None:
    """A file's name without its ending; None for files that are not images."""
    if path.name.startswith((".", "__MACOSX")):
        return None
    if path.is_dir():
        return path.name
    if path.exists() and not path.is_file():  # such as a named pipe
        return None
    lower = path.name.lower()
    for ending in sorted((*ENDINGS, ".dcm", ".seg.nrrd"), key=len, reverse=True):
        if lower.endswith(ending) and len(lower) > len(ending):
            return path.name[: -len(ending)]
    return None


def _from_list(path: Path) -> list[Case]:
    """The cases of a list; those with one name in several folders have the folder's name before it."""
    cases = [
        Case(_bare_name(entry.image) or entry.image.name, entry.image, entry.label, entry.patient, notes=entry.notes)
        for entry in read_list(path)
    ]
    names = [case.id for case in cases]
    doubled = {name for name in names if names.count(name) > 1}
    if len({(case.image.resolve(), case.label.resolve()) for case in cases}) < len(cases):
        raise UserError(f"A case is listed twice: {some_names(sorted(doubled))}; list each once.")
    return [replace(one, id=f"{one.image.parent.name}/{one.id}") if one.id in doubled else one for one in cases]


def _with_patients(cases: Sequence[Case]) -> list[Case]:
    """Every case with its patient: from the list, from DICOM, from its name, or else the case itself."""
    named = patients_by_name({case.id: case.image for case in cases if not case.patient})
    return [
        replace(case, patient=case.patient or dicom_patient(case.image) or named.get(case.id) or case.id)
        for case in cases
    ]


def patients_by_name(images: Mapping[str, Path]) -> dict[str, str]:
    """Patients of images by their names, where these tell.

    Names of BIDS begin with the subject, as in `sub-01_ses-2_T1w`. Slices of one patient are numbered, as in
    `RUNMC03_12` and `RUNMC03_16`; these numbers are ignored if all slices would be of one patient.
    """
    subjects = {name: _SUBJECT.match(image.name) for name, image in images.items()}
    subjects = {name: match[1] for name, match in subjects.items() if match}
    pictures = {name: image.stem for name, image in images.items()
                if name not in subjects and image.suffix.lower() in PICTURES}  # fmt: skip
    channel = "_0000" if all(stem.endswith("_0000") for stem in pictures.values()) else ""  # of nnU-Net
    begins = {name: re.sub(r"[_-][a-z]*\d+$", "", stem.removesuffix(channel), flags=re.IGNORECASE)
              for name, stem in pictures.items()}  # fmt: skip
    return subjects | (begins if len(set(begins.values())) > 1 else {})


def dicom_patient(image: Path) -> str:
    """A digest of the PatientID in a DICOM file, or in the first one below a folder; "" when there is none."""
    image, _ = split_choice(image)
    return patient_of_files(sorted(image.rglob("*")) if image.is_dir() else [image])


def patient_of_files(files: Iterable[Path]) -> str:
    """A digest of the PatientID in the first DICOM file; "" when there is none."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    for file in filter(Path.is_file, files):  # reading a pipe would wait
        try:
            number = str(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID"))
        except (InvalidDicomError, OSError):
            continue
        return hashlib.sha256(number.encode()).hexdigest()[:16] if number not in ("", "None") else ""
    return ""

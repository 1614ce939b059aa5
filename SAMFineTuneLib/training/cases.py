"""Annotated cases: an image, its labels, and what is wrong with them, in a sentence. No PyTorch here.

Where cases come from:

| given | what it holds |
|---|---|
| a folder with `images/` and `labels/` or `masks/` | pairs of one name: NIfTI, NRRD, MetaImage, PNG, DICOM folders; labels also `.seg.nrrd`, DICOM SEG |
| a folder with `imagesTr/` and `labelsTr/` | nnU-Net's layout; the first channel, `_0000`; names from `dataset.json` |
| a `.csv` file | lines of `image,label` or `image,label,patient`, paths relative to the file |

An image without labels is left out: it is not annotated yet. Labels without an image are an error.
"""  # noqa: E501

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read import ENDINGS, read_volume
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.training.label_files import fit_labels, read_labels

LABEL_FOLDERS = ("labels", "masks", "segmentations")
_LABEL_SUFFIX = re.compile(r"[._-](seg|segmentation|label|labels|mask|masks|gt)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")
_HEADER = ("image", "images", "img", "volume", "scan")
_ANY = ("any", "foreground")


@dataclass(frozen=True)
class Case:
    """An annotated image. `patient` is equal for cases of one patient; neither it nor `id` is ever stored."""

    id: str
    image: Path
    label: Path
    patient: str = ""
    names: Mapping[int, str] = field(default_factory=dict, hash=False)
    """Names of label values that come from beside the files (`dataset.json`)."""

    def read(self) -> tuple[Volume, np.ndarray, dict[int, str]]:
        """The image, its labels [k, j, i] uint16 in the image's grid, and the names of values, as far as known."""
        volume = read_volume(self.image)
        labels = read_labels(self.label)
        return volume, fit_labels(labels, volume, self.id), {**self.names, **labels.names}

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of voxels, geometry and labels; nothing in it identifies a patient."""
        volume, labels, _ = self.read()
        return digest_of(volume, labels)


def digest_of(volume: Volume, labels: np.ndarray) -> str:
    """Hex SHA-256 of an image and its labels [k, j, i]."""
    digest = hashlib.sha256(volume.digest.encode())
    digest.update(np.ascontiguousarray(labels, "<u2").data)
    return digest.hexdigest()


# ---------------------------------------------------------------- finding


def find_cases(path: str | Path, labels: str | Path | None = None) -> tuple[Case, ...]:
    """The cases of a folder or of a CSV file, sorted by name; `labels` is a folder of labels that lies elsewhere.

    UserError when there are none, when a name occurs twice, and when labels have no image.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"“{path}” does not exist; check the path.")
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise UserError(f"“{path.name}” is no list of cases; give a folder with images/ and labels/, or a .csv.")
        cases = _from_csv(path)
    elif labels is not None:
        cases = _pairs(path, Path(labels).expanduser(), {})
    elif (path / "imagesTr").is_dir():
        cases = _from_nnunet(path)
    else:
        cases = _from_folder(path)
    return tuple(sorted(_with_patients(cases), key=lambda case: case.id))


def _from_folder(path: Path) -> list[Case]:
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
    return _pairs(images, found[0], {})


def _from_nnunet(path: Path) -> list[Case]:
    if not (path / "labelsTr").is_dir():
        raise UserError(f"“{path}” has imagesTr/ but no labelsTr/; put the labels there.")
    return _pairs(path / "imagesTr", path / "labelsTr", _nnunet_names(path / "dataset.json"), channels=True)


def _nnunet_names(path: Path) -> dict[int, str]:
    """Label names of nnU-Net's `dataset.json`, of version 1 (value: name) or 2 (name: value)."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["labels"]
        pairs = [(int(a), b) if str(a).isdigit() else (b, a) for a, b in entries.items()]
        return {int(value): str(name) for value, name in pairs if isinstance(value, int) and value > 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"“{path}” cannot be read as nnU-Net's dataset.json; mend or remove it.") from error


def _pairs(images: Path, labels: Path, names: Mapping[int, str], channels: bool = False) -> list[Case]:
    pictures, maps = _by_name(images, channels), _by_name(labels, label=True)
    if orphans := sorted(maps.keys() - pictures.keys()):
        raise UserError(
            f"There are labels without an image of that name in {images}: {_some(orphans)}; give both the same name."
        )
    both = sorted(pictures.keys() & maps.keys())
    if not both:
        raise UserError(f"No image in {images} has labels of its name in {labels}; give both the same name.")
    return [Case(name, pictures[name], maps[name], names=names) for name in both]


def _by_name(folder: Path, channels: bool = False, label: bool = False) -> dict[str, Path]:
    """Images, or labels, of a folder by the name that both share. Folders are DICOM series."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = _bare_name(path)
        if name is None:
            continue
        if channels and (match := _CHANNEL.search(name)):
            if match[1] != "0000":
                continue
            name = name[: match.start()]
        if label:
            name = _LABEL_SUFFIX.sub("", name)
        if name in found:
            raise UserError(f"{folder} holds {found[name].name} and {path.name}, both named {name}; keep one of them.")
        found[name] = path
    return found


def _bare_name(path: Path) -> str | None:
    """A file's name without its ending; None for what is no image."""
    if path.name.startswith("."):
        return None
    if path.is_dir():
        return path.name
    lower = path.name.lower()
    for ending in sorted((*ENDINGS, ".dcm", ".seg.nrrd"), key=len, reverse=True):
        if lower.endswith(ending) and len(lower) > len(ending):
            return path.name[: -len(ending)]
    return None


def _from_csv(path: Path) -> list[Case]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if rows and rows[0][0].lower() in _HEADER:
        rows = rows[1:]
    if not rows:
        raise UserError(f"“{path.name}” lists no cases; write a line image,label for each.")
    cases = []
    for number, row in enumerate(rows, start=1):
        if len(row) not in (2, 3) or not row[0] or not row[1]:
            raise UserError(f"Entry {number} of “{path.name}” is not image,label or image,label,patient; correct it.")
        image, label = (path.parent / Path(cell).expanduser() for cell in row[:2])
        for file in (image, label):
            if not file.exists():
                raise UserError(f"“{path.name}” lists {file}, which does not exist; correct entry {number}.")
        cases.append(Case(_bare_name(image) or image.name, image, label, row[2] if len(row) == 3 else ""))
    return _told_apart(cases)


def _told_apart(cases: list[Case]) -> list[Case]:
    """Cases of one file name in several folders get the folder's name before theirs."""
    names = [case.id for case in cases]
    doubled = {name for name in names if names.count(name) > 1}
    if len({(case.image.resolve(), case.label.resolve()) for case in cases}) < len(cases):
        raise UserError(f"A case is listed twice: {_some(sorted(doubled))}; list each once.")
    return [
        Case(f"{case.image.parent.name}/{case.id}", case.image, case.label, case.patient)
        if case.id in doubled else case
        for case in cases
    ]  # fmt: skip


def _with_patients(cases: Sequence[Case]) -> list[Case]:
    """Every case with its patient: as listed, as DICOM says, or for pictures as their names say; else its own."""
    named = _patients_of_pictures([case for case in cases if not case.patient])
    told = []
    for case in cases:
        patient = case.patient or _dicom_patient(case.image) or named.get(case.id) or case.id
        told.append(Case(case.id, case.image, case.label, patient, case.names))
    return told


def _patients_of_pictures(cases: Sequence[Case]) -> dict[str, str]:
    """Pictures are slices, and slices of one patient are numbered: `RUNMC03_12` and `RUNMC03_16`.

    Nothing is concluded where all would be one patient, or where the beginning has no number of its own.
    """
    pictures = [case for case in cases if case.image.suffix.lower() in (".png", ".jpg", ".jpeg")]
    begins = {case.id: re.sub(r"[_-][a-z]*\d+$", "", case.id, flags=re.IGNORECASE) for case in pictures}
    return begins if len(set(begins.values())) > 1 else {}


def _dicom_patient(image: Path) -> str:
    """A digest of the patient's number in the first file of a DICOM folder; "" when there is none."""
    if not image.is_dir():
        return ""
    import pydicom
    from pydicom.errors import InvalidDicomError

    for file in sorted(image.iterdir()):
        try:
            number = str(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID"))
        except (InvalidDicomError, OSError):
            continue
        return hashlib.sha256(number.encode()).hexdigest()[:16] if number not in ("", "None") else ""
    return ""


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---------------------------------------------------------------- choosing labels


@dataclass(frozen=True)
class LabelChoice:
    """What is to be learned: `wanted` values or names, each a class of its own; `merged`: whatever is labelled, as
    one. Nothing wanted and not merged: every label there is."""

    wanted: tuple[str, ...] = ()
    merged: bool = False

    @classmethod
    def parse(cls, text: str | Iterable[str | int] | None) -> LabelChoice:
        """From `1,2`, `liver,spleen`, `any` (all labels as one), a sequence of such, or None for every label."""
        if text is None:
            return cls()
        parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
        parts = [part.strip() for part in parts if part.strip()]
        if not parts:
            raise UserError("No label is named; give values or names with commas between them, or any.")
        if len(parts) == 1 and parts[0].lower() in _ANY:
            return cls(merged=True)
        if len(set(parts)) < len(parts):
            raise UserError(f"A label is named twice in {','.join(parts)}; name each once.")
        return cls(tuple(parts))

    def __str__(self) -> str:
        return "any" if self.merged else ",".join(self.wanted) or "all labels"


@dataclass(frozen=True, eq=False)
class Labelled:
    """A case that was read: the image, and `classes` [k, j, i] uint8 with 0 for background and n for the n-th of the
    chosen `names`."""

    case: Case
    volume: Volume
    classes: np.ndarray
    names: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Survey:
    """What a look at all cases found: the `names` of the labels to learn, `choice` with every label settled,
    sentences worth reading, digests and numbers of labelled slices by case."""

    names: tuple[str, ...]
    choice: LabelChoice
    notes: tuple[str, ...]
    digests: Mapping[str, str]
    slices: Mapping[str, int]


def read_labelled(case: Case, choice: LabelChoice, names: Sequence[str]) -> Labelled:
    """A case with the chosen labels numbered from 1, named as `names` (see `survey`)."""
    volume, labels, known = case.read()
    classes = np.zeros(labels.shape, np.uint8)
    for number, values in enumerate(_values(choice, labels, known), start=1):
        if values:
            classes[np.isin(labels, values)] = number
    return Labelled(case, volume, classes, tuple(names), digest_of(volume, labels))


def survey(cases: Sequence[Case], choice: LabelChoice, least: int = 3) -> Survey:
    """Read every case once and check it; UserError for what cannot be learned from.

    `least` labelled slices are needed altogether. Checked: labels that no case has, cases without any, labels that
    do not lie on their image, one image in two cases, too few slices.
    """
    if not cases:
        raise UserError("There are no cases to learn from.")
    held, known, digests, voxels = {}, {}, {}, {}
    for case in cases:
        volume, labels, names = case.read()
        held[case.id] = [int(value) for value in np.unique(labels) if value]
        known[case.id] = names
        digests[case.id] = digest_of(volume, labels)
        voxels.setdefault(volume.voxels_digest, []).append(case.id)
    for same in voxels.values():
        if len(same) > 1:
            raise UserError(f"The cases {_some(same)} hold the same image; keep one of them.")
    settled = _settle(choice, cases, held, known)
    names = _names(settled, held, known)
    notes, slices = [], {}
    for case in cases:
        labelled = read_labelled(case, settled, names)
        present = set(np.unique(labelled.classes).tolist()) - {0}
        if not present:
            raise UserError(
                f"Case {case.id} holds nothing of {' or '.join(names)}"
                f"{'' if held[case.id] else ' and no label at all'}; label it, or leave the case out."
            )
        if missing := [name for number, name in enumerate(names, start=1) if number not in present]:
            notes.append(f"Case {case.id} has no {' and no '.join(missing)}.")
        slices[case.id] = _labelled_slices(labelled)
    if sum(slices.values()) < least:
        count = sum(slices.values())
        raise UserError(
            f"There {'is only 1 labelled slice' if count == 1 else f'are only {count} labelled slices'} in all; "
            f"learning needs {least} or more, so label further slices or cases."
        )
    return Survey(names, settled, tuple(notes), digests, slices)


def slice_axis(volume: Volume) -> int:
    """Axis of the array (0 is k) across the slices that were acquired: the one of the widest spacing, k if equal."""
    spacing = volume.spacing[::-1]  # along the array's axes
    widest = int(np.argmax(spacing))
    return widest if spacing[widest] > 1.2 * spacing[0] else 0


def _labelled_slices(labelled: Labelled) -> int:
    others = tuple(axis for axis in range(3) if axis != slice_axis(labelled.volume))
    return int(labelled.classes.any(axis=others).sum())


def _settle(choice: LabelChoice, cases: Sequence[Case], held: Mapping, known: Mapping) -> LabelChoice:
    """The choice with every label named; masks in pictures, whose values mean little, are merged."""
    everything = sorted({value for values in held.values() for value in values})
    if not everything:
        raise UserError("The labels of all cases are empty; label something first.")
    if not choice.wanted and not choice.merged:
        pictures = all(case.label.suffix.lower() in (".png", ".jpg", ".jpeg") for case in cases)
        if pictures or len(everything) > 32:
            return LabelChoice(merged=True)
        named = _consistent_names(known)
        return LabelChoice(tuple(named.get(value, str(value)) for value in everything))
    for wanted in choice.wanted:
        if not any(_value_of(wanted, held[case.id], known[case.id]) is not None for case in cases):
            names = sorted({name for by_value in known.values() for name in by_value.values()})
            there = ", ".join(map(str, everything)) + (f" ({', '.join(names)})" if names else "")
            raise UserError(f"No case has the label {wanted}; the cases hold {there}.")
    return choice


def _consistent_names(known: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    """Names of values, where all cases that name a value give it one name that no other value has."""
    found: dict[int, set[str]] = {}
    for by_value in known.values():
        for value, name in by_value.items():
            found.setdefault(value, set()).add(name)
    single = {value: next(iter(names)) for value, names in found.items() if len(names) == 1}
    names = list(single.values())
    return {value: name for value, name in single.items() if names.count(name) == 1 and "," not in name}


def _names(choice: LabelChoice, held: Mapping, known: Mapping) -> tuple[str, ...]:
    """What the classes are called: by the files where they agree, else `label 1`."""
    if choice.merged:
        named = {name for by_value in known.values() for name in by_value.values()}
        return (next(iter(named)) if len(named) == 1 else "foreground",)
    by_value = _consistent_names(known)
    return tuple(by_value.get(int(one), f"label {one}") if one.isdigit() else one for one in choice.wanted)


def _values(choice: LabelChoice, labels: np.ndarray, known: Mapping[int, str]) -> list[list[int]]:
    """For each class the values it has in one case."""
    there = [int(value) for value in np.unique(labels) if value]
    if choice.merged:
        return [there]
    found = [_value_of(wanted, there, known) for wanted in choice.wanted]
    return [[] if value is None else [value] for value in found]


def _value_of(wanted: str, there: Sequence[int], known: Mapping[int, str]) -> int | None:
    """The value that a name or number means in one case; None when the case lacks it."""
    for value, name in known.items():
        if name.casefold() == wanted.casefold() and value in there:
            return value
    if wanted.isdigit() and int(wanted) in there:
        return int(wanted)
    return None

"""Annotated cases: an image, its labels, and what is wrong with them, in a sentence. No PyTorch here.

Where cases come from:

| given | what it holds |
|---|---|
| a folder with `images/` and `labels/` or `masks/` | pairs of one name: NIfTI, NRRD, MetaImage, PNG, DICOM folders; labels also `.seg.nrrd`, DICOM SEG |
| a folder with `imagesTr/` and `labelsTr/` | nnU-Net's layout; the first channel, `_0000`; names, regions and what is to be ignored from `dataset.json` |
| a `.csv` file | lines of `image,label` or `image,label,patient`, paths relative to the file; see `case_lists` |

An image without labels is left out: it is not annotated yet. Labels without an image are an error.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from SAMFineTuneLib.cases.case_lists import read_list
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cases.label_grid import MATCHES, fit_labels
from SAMFineTuneLib.cases.label_map import Labels, Meaning, count_values, voxels
from SAMFineTuneLib.cases.nnunet import read_meaning
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_image import ENDINGS, read_volume
from SAMFineTuneLib.images.read_picture import PICTURES
from SAMFineTuneLib.images.volume import Volume

LABEL_FOLDERS = ("labels", "masks", "segmentations")
_LABEL_SUFFIX = re.compile(r"[._-](seg|segmentation|label|labels|mask|masks|gt)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")
_ANY = ("any", "foreground")
IGNORED = 255
"""The class of voxels that were left undecided: they count for nothing."""
_MOST_CLASSES = 254
_MANY_VALUES = 16  # of labels, of which an image should have more
_SHADES = 250  # from which on all values of an 8-bit picture are white
_MANY_SHADES = 32  # values of pictures from which on they are hardly labels
SHORT = 12
"""Digits of a case's digest that stand for it in what is passed on."""
_FILE = re.compile(r"“[^”]*\.(?:nii|gz|nrrd|nhdr|mha|mhd|png|jpe?g|dcm|ima|dicom|csv|tsv|txt)”", re.IGNORECASE)
_LIKE_EACH_OTHER = 5  # notes that differ only in numbers, of which so many are shown


class Annotated(NamedTuple):
    """An image, its `labels` [k, j, i] uint16 in the image's grid, what they mean, and what was mended."""

    volume: Volume
    labels: np.ndarray
    meaning: Meaning
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """An annotated image. `patient` is equal for cases of one patient; neither it nor `id` is ever stored."""

    id: str
    image: Path
    label: Path
    patient: str = ""
    meaning: Meaning = field(default_factory=Meaning, hash=False)
    """What label values mean, as far as it is said beside the files (`dataset.json`)."""
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
            raise UserError(f"Case {self.id}: {_within_sentence(str(error))}") from error
        notes = (*self.notes, *volume.warnings, *labels.notes, *fitted.notes)
        return Annotated(volume, fitted.array, labels.meaning.over(self.meaning), notes)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of voxels, geometry and labels; nothing in it identifies a patient."""
        annotated = self.read()
        return digest_of(annotated.volume, annotated.labels)


def _within_sentence(text: str) -> str:
    """A sentence as it follows a colon."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def digest_of(volume: Volume, labels: np.ndarray) -> str:
    """Hex SHA-256 of an image and its labels [k, j, i]."""
    digest = hashlib.sha256(volume.digest.encode())
    digest.update(np.ascontiguousarray(labels, "<u2").data)
    return digest.hexdigest()


# ---------------------------------------------------------------- finding


def find_cases(path: str | Path, labels: str | Path | None = None, match: str = "") -> tuple[Case, ...]:
    """The cases of a folder or of a CSV file, sorted by name; `labels` is a folder of labels that lies elsewhere,
    `match` says how labels find their voxels (`label_grid.MATCHES`).

    UserError when there are none, when a name occurs twice, and when labels have no image.
    """
    path = Path(path).expanduser()
    if match not in MATCHES:
        raise UserError(f"Labels cannot be matched by {match!r}; choose index or position, or leave it out.")
    if not path.exists():
        raise UserError(f"“{path}” does not exist; check the path.")
    if path.is_file():
        cases = _from_list(path)
    elif labels is not None:
        cases = _pairs(path, Path(labels).expanduser())
    elif (path / "imagesTr").is_dir():
        cases = _from_nnunet(path)
    else:
        cases = _from_folder(path)
    return tuple(sorted(_with_patients([replace(case, match=match) for case in cases]), key=lambda case: case.id))


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
    return _pairs(images, found[0])


def _from_nnunet(path: Path) -> list[Case]:
    if not (path / "labelsTr").is_dir():
        raise UserError(f"“{path}” has imagesTr/ but no labelsTr/; put the labels there.")
    return _pairs(path / "imagesTr", path / "labelsTr", read_meaning(path / "dataset.json"), channels=True)


def _pairs(images: Path, labels: Path, meaning: Meaning = Meaning(), channels: bool = False) -> list[Case]:  # noqa: B008
    pictures, maps = _by_name(images, channels), _by_name(labels, label=True)
    if orphans := sorted(maps.keys() - pictures.keys()):
        raise UserError(
            f"There are labels without an image of that name in {images}: {_some(orphans)}; give both the same name."
        )
    both = sorted(pictures.keys() & maps.keys())
    if not both:
        raise UserError(f"No image in {images} has labels of its name in {labels}; give both the same name.")
    further = _further_channels(images) if channels else {}
    return [
        Case(name, pictures[name], maps[name], meaning=meaning, notes=_about_channels(further.get(name, 0)))
        for name in both
    ]


def _further_channels(folder: Path) -> dict[str, int]:
    """How many channels beside the first each image has."""
    counts: dict[str, int] = {}
    for path in folder.iterdir():
        match = _CHANNEL.search(_bare_name(path) or "")
        if match and match[1] != "0000":
            name = match.string[: match.start()]
            counts[name] = counts.get(name, 0) + 1
    return counts


def _about_channels(further: int) -> tuple[str, ...]:
    return (f"Of the image's {further + 1} channels the first (_0000) is used.",) if further else ()


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
    """A file's name without its ending; None for what is not an image."""
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
    return _told_apart([
        Case(_bare_name(entry.image) or entry.image.name, entry.image, entry.label, entry.patient, notes=entry.notes)
        for entry in read_list(path)
    ])  # fmt: skip


def _told_apart(cases: list[Case]) -> list[Case]:
    """Cases of one file name in several folders get the folder's name before theirs."""
    names = [case.id for case in cases]
    doubled = {name for name in names if names.count(name) > 1}
    if len({(case.image.resolve(), case.label.resolve()) for case in cases}) < len(cases):
        raise UserError(f"A case is listed twice: {_some(sorted(doubled))}; list each once.")
    return [
        replace(case, id=f"{case.image.parent.name}/{case.id}") if case.id in doubled else case
        for case in cases
    ]  # fmt: skip


def _with_patients(cases: Sequence[Case]) -> list[Case]:
    """Every case with its patient: as listed, as DICOM says, or for pictures as their names say; else its own."""
    named = _patients_of_pictures([case for case in cases if not case.patient])
    told = []
    for case in cases:
        patient = case.patient or _dicom_patient(case.image) or named.get(case.id) or case.id
        told.append(replace(case, patient=patient))
    return told


def _patients_of_pictures(cases: Sequence[Case]) -> dict[str, str]:
    """Pictures are slices, and slices of one patient are numbered: `RUNMC03_12` and `RUNMC03_16`.

    Nothing is concluded where all would be one patient, or where the beginning has no number of its own.
    """
    pictures = [case for case in cases if case.image.suffix.lower() in PICTURES]
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


def _some(names: Sequence[str], most: int = 4, joint: str = ", ") -> str:
    return joint.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
    """A case that was read: the image, and `classes` [k, j, i] uint8: 0 for background, n for the n-th of the chosen
    `names`, IGNORED for what was left undecided. Where chosen labels overlap, `overlaps` says which classes a value
    stands for."""

    case: Case
    volume: Volume
    classes: np.ndarray
    names: tuple[str, ...]
    digest: str
    overlaps: Mapping[int, Labels] = field(default_factory=dict)

    @property
    def ignored(self) -> np.ndarray:
        """Voxels [k, j, i] that count for nothing."""
        return self.classes == IGNORED

    def mask(self, number: int) -> np.ndarray:
        """Voxels [k, j, i] of the n-th class."""
        return class_mask(self.classes, self.overlaps, number)


def class_mask(classes: np.ndarray, overlaps: Mapping[int, Labels], number: int) -> np.ndarray:
    """Where an array of classes holds class `number`."""
    shared = [value for value, numbers in overlaps.items() if number in numbers]
    return np.isin(classes, [number, *shared]) if shared else classes == number


def numbers_in(classes: np.ndarray, overlaps: Mapping[int, Labels]) -> list[int]:
    """The classes that an array of classes holds, in order."""
    values = np.unique(classes).tolist()
    return sorted({n for value in values if value not in (0, IGNORED) for n in overlaps.get(value, (value,))})


@dataclass(frozen=True)
class Survey:
    """What a look at all cases found: the `names` of the labels to learn, `choice` with every label settled,
    sentences about all cases and `told` about one each, digests and numbers of labelled slices by case."""

    names: tuple[str, ...]
    choice: LabelChoice
    about_all: tuple[str, ...]
    told: tuple[tuple[str, str], ...]
    digests: Mapping[str, str]
    slices: Mapping[str, int]

    @property
    def notes(self) -> tuple[str, ...]:
        """The sentences worth reading, for whoever has the cases."""
        return (*self.about_all, *_joined_notes(self.told))

    @property
    def nameless_notes(self) -> tuple[str, ...]:
        """The same for files that are passed on: cases are called by their digests, files not at all."""
        told = [(self.digests[case][:SHORT], _FILE.sub("the file", note)) for case, note in self.told]
        return (*self.about_all, *_joined_notes(told))


def read_labelled(case: Case, choice: LabelChoice, names: Sequence[str]) -> Labelled:
    """A case with the chosen labels numbered from 1, named as `names` (see `survey`)."""
    volume, labels, meaning, _ = case.read()
    classes, overlaps = _classes(labels, meaning, choice)
    return Labelled(case, volume, classes, tuple(names), digest_of(volume, labels), overlaps)


def _classes(labels: np.ndarray, meaning: Meaning, choice: LabelChoice) -> tuple[np.ndarray, dict[int, Labels]]:
    """`classes` and `overlaps` of a `Labelled`."""
    values = list(count_values(labels))
    chosen = _labels_of_classes(choice, meaning.labels_in(values), meaning.names)
    table = np.zeros(max(values) + 1, np.uint8)
    shared: dict[Labels, int] = {}
    for value in values:
        own = meaning.labels_of(value)
        numbers = tuple(number for number, wanted in enumerate(chosen, start=1) if wanted.intersection(own))
        if value in meaning.ignored:
            table[value] = IGNORED
        elif len(numbers) > 1:
            table[value] = shared.setdefault(numbers, len(chosen) + 1 + len(shared))
        elif numbers:
            table[value] = numbers[0]
    return table[labels], {value: numbers for numbers, value in shared.items()}


def survey(
    cases: Sequence[Case],
    choice: LabelChoice,
    least: int = 3,
    exclusive: bool = False,
    look: Callable[[], None] = lambda: None,
) -> Survey:
    """Look at every case and check it; UserError for what cannot be learned from. `look` is called before each.

    `least` labelled slices are needed altogether; with `exclusive` no voxel may be of two chosen labels. Checked:
    labels that no case has, cases without any, labels that do not lie on their image, one image in two cases, too few
    slices.
    """
    if not cases:
        raise UserError("There are no cases to learn from.")
    held, known, digests, same_voxels, counts = {}, {}, {}, {}, {}
    told: list[tuple[str, str]] = []
    for case in cases:
        look()
        volume, labels, meaning, notes = case.read()
        counts[case.id] = count_values(labels)
        _require_not_swapped(case, volume, len(counts[case.id]))
        held[case.id] = meaning.labels_in(counts[case.id])
        known[case.id] = meaning.names
        digests[case.id] = digest_of(volume, labels)
        same_voxels.setdefault(volume.voxels_digest, []).append(case.id)
        told += [(case.id, note) for note in notes]
        if undecided := sum(counts[case.id].get(value, 0) for value in meaning.ignored):
            told.append((case.id, f"Counted for nothing, as “ignore”: {voxels(undecided)}."))
    for same in same_voxels.values():
        if len(same) > 1:
            raise UserError(f"The cases {_some(same)} hold the same image; keep one of them.")
    settled, about_all = _settle(choice, cases, held, known, counts)
    names = _names(settled, known)
    slices = {}
    for case in cases:
        look()
        labelled = read_labelled(case, settled, names)
        present = set(numbers_in(labelled.classes, labelled.overlaps))
        if not present:
            raise UserError(
                f"Case {case.id} holds nothing of {_some(names, joint=' or ')}"
                f"{'' if held[case.id] else ' and no label at all'}; label it, or leave the case out."
            )
        if missing := [name for number, name in enumerate(names, start=1) if number not in present]:
            told.append((case.id, f"There is no {_some(missing, joint=' and no ')}."))
        for value, numbers in labelled.overlaps.items():
            told.append((case.id, _about_overlap(case, labelled, value, numbers, exclusive)))
        slices[case.id] = _labelled_slices(labelled)
    if sum(slices.values()) < least:
        count = sum(slices.values())
        raise UserError(
            f"There {'is only 1 labelled slice' if count == 1 else f'are only {count} labelled slices'} in all; "
            f"learning needs {least} or more, so label further slices or cases."
        )
    return Survey(names, settled, about_all, tuple(told), digests, slices)


def _require_not_swapped(case: Case, volume: Volume, values: int) -> None:
    """UserError when the labels hold more different values than the image."""
    if values > _MANY_VALUES and (of_image := len(np.unique(volume.array))) < values:
        raise UserError(
            f"Case {case.id}: the image holds {of_image} different values, its labels {values}; check that image and "
            "labels are not mixed up."
        )


def _about_overlap(case: Case, labelled: Labelled, value: int, numbers: Labels, exclusive: bool) -> str:
    """A sentence about the voxels of several labels; UserError where they must be `exclusive`."""
    both = " and ".join(f"“{labelled.names[number - 1]}”" for number in numbers)
    count = voxels(int(np.count_nonzero(labelled.classes == value)))
    if exclusive:
        raise UserError(
            f"Case {case.id}: {both} overlap in {count}, and what finds labels without a prompt gives each "
            "voxel one label: choose labels that do not overlap, or let the adapter answer prompts only (--heads "
            "promptable; in Slicer, Answers)."
        )
    return f"{both} overlap in {count}, counted for each."


def _joined_notes(told: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each different note with the cases that it is about; of many that differ only in numbers and files,
    the first ones."""
    by_note: dict[str, list[str]] = {}
    for case, note in told:
        by_note.setdefault(note, []).append(case)
    shown: dict[str, int] = {}
    lines, left = [], {}
    for note, cases in by_note.items():
        kind = re.sub(r"“[^”]*”|[\d.,e+-]+", "", note)
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] > _LIKE_EACH_OTHER:
            left.setdefault(kind, []).extend(cases)
            continue
        many = len(cases) > 1
        lines.append(f"Case{'s' if many else ''} {_some(cases)}: {_within_sentence(note)}")
    return lines + [f"The same, with other figures, holds for cases {_some(cases)}." for cases in left.values()]


def slice_axis(volume: Volume) -> int:
    """Axis of the array (0 is k) across the slices that were acquired: the one of the widest spacing, k if equal."""
    spacing = volume.spacing[::-1]  # along the array's axes
    widest = int(np.argmax(spacing))
    return widest if spacing[widest] > 1.2 * spacing[0] else 0


def _labelled_slices(labelled: Labelled) -> int:
    others = tuple(axis for axis in range(3) if axis != slice_axis(labelled.volume))
    return int(((labelled.classes > 0) & ~labelled.ignored).any(axis=others).sum())


def _settle(
    choice: LabelChoice, cases: Sequence[Case], held: Mapping, known: Mapping, counts: Mapping
) -> tuple[LabelChoice, tuple[str, ...]]:
    """The choice with every label named, and sentences about it."""
    everything = sorted({label for labels in held.values() for label in labels})
    if not everything:
        raise UserError("The labels of all cases are empty; label something first.")
    if not choice.wanted and not choice.merged:
        if all(case.label.suffix.lower() in PICTURES for case in cases):
            return _settle_pictures(everything, counts)
        choice = _all_labels(everything, known)
    if len(choice.wanted) > _MOST_CLASSES:
        raise UserError(
            f"The cases hold {len(choice.wanted)} labels, and {_MOST_CLASSES} can be told apart: choose with --label."
        )
    for wanted in choice.wanted:
        if not any(_label_of(wanted, held[case.id], known[case.id]) is not None for case in cases):
            names = sorted({name for by_label in known.values() for name in by_label.values()})
            there = _some(list(map(str, everything)), 40) + (f" ({_some(names, 40)})" if names else "")
            raise UserError(f"No case has the label {wanted}; the cases hold {there}.")
    return choice, ()


def _all_labels(everything: Sequence[int], known: Mapping) -> LabelChoice:
    named = _consistent_names(known)
    return LabelChoice(tuple(named.get(label, str(label)) for label in everything))


def _settle_pictures(everything: Sequence[int], counts: Mapping) -> tuple[LabelChoice, tuple[str, ...]]:
    """What masks in pictures mean: one value is one label, whatever it is, and so are shades of white; else each value
    is a label."""
    if len(everything) == 1:
        return LabelChoice(merged=True), ()
    if _SHADES <= everything[0] and everything[-1] <= 255:
        found = ", ".join(f"{value} in {sum(own.get(value, 0) for own in counts.values())}" for value in everything)
        return LabelChoice(merged=True), (f"The masks are white in several shades ({found} pixels): one label.",)
    if len(everything) > _MANY_SHADES:
        raise UserError(
            f"The masks hold {len(everything)} grey values from {everything[0]} to {everything[-1]}, as soft edges do: "
            "choose the values that are labels with --label 1,2, or --label any if all of them are one."
        )
    return _all_labels(everything, {}), ()


def _consistent_names(known: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    """Names of labels, where all cases that name a number give it one name that no other number has."""
    found: dict[int, set[str]] = {}
    for by_label in known.values():
        for label, name in by_label.items():
            found.setdefault(label, set()).add(name)
    single = {label: next(iter(names)) for label, names in found.items() if len(names) == 1}
    names = list(single.values())
    return {label: name for label, name in single.items() if names.count(name) == 1 and "," not in name}


def _names(choice: LabelChoice, known: Mapping) -> tuple[str, ...]:
    """What the classes are called: by the files where they agree, else `label 1`."""
    if choice.merged:
        named = {name for by_label in known.values() for name in by_label.values()}
        return (next(iter(named)) if len(named) == 1 else "foreground",)
    by_label = _consistent_names(known)
    return tuple(by_label.get(int(one), f"label {one}") if one.isdigit() else one for one in choice.wanted)


def _labels_of_classes(choice: LabelChoice, there: Sequence[int], names: Mapping[int, str]) -> list[set[int]]:
    """For each class the labels that it takes in one case."""
    if choice.merged:
        return [set(there)]
    found = [_label_of(wanted, there, names) for wanted in choice.wanted]
    return [set() if label is None else {label} for label in found]


def _label_of(wanted: str, there: Sequence[int], names: Mapping[int, str]) -> int | None:
    """The label that a name or number means in one case; None when the case lacks it. UserError when it has two."""
    named = [label for label, name in names.items() if name.casefold() == wanted.casefold() and label in there]
    if len(named) > 1:
        raise UserError(
            f"In one case {len(named)} labels are named {wanted} ({_some(list(map(str, named)))}); rename one, or "
            "choose by number."
        )
    if named:
        return named[0]
    if wanted.isdigit() and int(wanted) in there:
        return int(wanted)
    return None

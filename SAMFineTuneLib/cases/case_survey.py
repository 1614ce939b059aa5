"""Checks all cases before anything is learned from them: their labels, and what is wrong with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.cases.cases import SHORT, Case, digest_of
from SAMFineTuneLib.cases.label_map import Labels, count_values
from SAMFineTuneLib.cases.labelled_case import LabelChoice, Labelled, label_of, read_labelled, slice_axis
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_picture import PICTURES
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.wording import counted, same_name, some_names, within_sentence

_MOST_CLASSES = 254
_MANY_VALUES = 16  # number of different labels, of which an image should have more values
_SHADES = 250  # values of an 8-bit picture from here on are white
_MANY_SHADES = 32  # number of values from which on pictures are unlikely to hold labels
_FILE = re.compile(r"“[^”]*\.(?:nii|gz|nrrd|nhdr|mha|mhd|png|jpe?g|dcm|ima|dicom|csv|tsv|txt)”", re.IGNORECASE)
_LIKE_EACH_OTHER = 5  # shown notes that differ only in numbers


@dataclass(frozen=True)
class Survey:
    """The results of the check: `names` of the labels to learn, `choice` with every label named, sentences about all
    cases and `told` about single ones; by case its digest, that of its chosen labels, its number of labelled slices.
    """

    names: tuple[str, ...]
    choice: LabelChoice
    about_all: tuple[str, ...]
    told: tuple[tuple[str, str], ...]
    digests: Mapping[str, str]
    classes: Mapping[str, str]
    slices: Mapping[str, int]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user who has the cases."""
        return (*self.about_all, *_joined_notes(self.told))

    @property
    def nameless_notes(self) -> tuple[str, ...]:
        """The same sentences for files that are passed on, with digests instead of the names of cases and files."""
        told = [(self.digests[case][:SHORT], _FILE.sub("the file", note)) for case, note in self.told]
        return (*self.about_all, *_joined_notes(told))


def survey(
    cases: Sequence[Case],
    choice: LabelChoice,
    least: int = 3,
    exclusive: bool = False,
    look: Callable[[], None] = lambda: None,
) -> Survey:
    """Check every case.

    Args:
        cases: All cases.
        choice: The labels to learn or measure.
        least: Labelled slices that are needed altogether.
        exclusive: Whether a voxel may have one chosen label only.
        look: Called before each case; may raise.

    Raises:
        UserError: For labels that no case has, cases without any, labels that do not lie on their image, one image in
            two cases, and too few slices.
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
            told.append((case.id, f"Not counted, as they are labelled “ignore”: {counted(undecided, 'voxel')}."))
    for same in same_voxels.values():
        if len(same) > 1:
            raise UserError(f"The cases {some_names(same)} hold the same image; keep one of them.")
    settled, about_all = _settle(choice, cases, held, known, counts)
    names = _names(settled, known)
    slices, classes = {}, {}
    for case in cases:
        look()
        labelled = read_labelled(case, settled, names)
        present = labelled.numbers
        if not present:
            raise UserError(
                f"Case {case.id} holds nothing of {some_names(names, joint=' or ')}"
                f"{'' if held[case.id] else ' and no label at all'}; label it, or leave the case out."
            )
        if missing := [name for number, name in enumerate(names, start=1) if number not in present]:
            told.append((case.id, f"There is no {some_names(missing, joint=' and no ')}."))
        for value, numbers in labelled.overlaps.items():
            told.append((case.id, _about_overlap(case, labelled, value, numbers, exclusive)))
        slices[case.id], classes[case.id] = _labelled_slices(labelled), labelled.classes_digest
    if sum(slices.values()) < least:
        count = sum(slices.values())
        raise UserError(
            f"There {'is only 1 labelled slice' if count == 1 else f'are only {count} labelled slices'} in all; "
            f"learning needs {least} or more, so label further slices or cases."
        )
    return Survey(names, settled, about_all, tuple(told), digests, classes, slices)


def _require_not_swapped(case: Case, volume: Volume, values: int) -> None:
    """Raise UserError when the labels hold more different values than the image, as when the files are mixed up."""
    if values > _MANY_VALUES and (of_image := len(np.unique(volume.array))) < values:
        raise UserError(
            f"Case {case.id}: the image holds {of_image} different values, its labels {values}; check that image and "
            "labels are not mixed up."
        )


def _about_overlap(case: Case, labelled: Labelled, value: int, numbers: Labels, exclusive: bool) -> str:
    """A sentence about the voxels of several labels; UserError where they must be `exclusive`."""
    both = " and ".join(f"“{labelled.names[number - 1]}”" for number in numbers)
    count = counted(int(np.count_nonzero(labelled.classes == value)), "voxel")
    if exclusive:
        raise UserError(
            f"Case {case.id}: {both} overlap in {count}, and the automatic head gives each voxel one label: choose "
            "labels that do not overlap, or let the adapter answer prompts only "
            "(“samfinetune train --heads promptable”; in Slicer, Answers)."
        )
    return f"{both} overlap in {count}, counted for each."


def _joined_notes(told: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each note with the cases that it is about; of notes that differ only in numbers and files, the first
    few."""
    by_note: dict[str, list[str]] = {}
    for case, note in told:
        by_note.setdefault(note, []).append(case)
    alike: dict[str, list[str]] = {}
    for note in by_note:
        alike.setdefault(re.sub(r"“[^”]*”|[\d.,e+-]+", "", note), []).append(note)
    lines = [
        f"Case{'s' * (len(cases) > 1)} {some_names(cases)}: {within_sentence(note)}"
        for note, cases in by_note.items()
        if any(note in notes[:_LIKE_EACH_OTHER] for notes in alike.values())
    ]
    left = [[case for note in notes[_LIKE_EACH_OTHER:] for case in by_note[note]] for notes in alike.values()]
    return lines + [f"The same, with other figures, holds for cases {some_names(cases)}." for cases in left if cases]


def _labelled_slices(labelled: Labelled) -> int:
    others = tuple(axis for axis in range(3) if axis != slice_axis(labelled.volume))
    return int(((labelled.classes > 0) & ~labelled.ignored).any(axis=others).sum())


def _settle(
    choice: LabelChoice, cases: Sequence[Case], held: Mapping, known: Mapping, counts: Mapping
) -> tuple[LabelChoice, tuple[str, ...]]:
    """The choice with every label named, and sentences for the user about it."""
    everything = sorted({label for labels in held.values() for label in labels})
    if not everything:
        raise UserError("The labels of all cases are empty; label something first.")
    if not choice.wanted and not choice.merged:
        if all(case.label.suffix.lower() in PICTURES for case in cases):
            return _settle_pictures(everything, counts)
        choice = LabelChoice(_every_label(everything, held, known))
    if len(choice.wanted) > _MOST_CLASSES:
        raise UserError(
            f"The cases hold {len(choice.wanted)} labels, and {_MOST_CLASSES} can be told apart; choose some of them, "
            "as “samfinetune train --label 1,2” does."
        )
    for wanted in choice.wanted:
        if not any(label_of(wanted, held[case.id], known[case.id]) is not None for case in cases):
            names = sorted({name for by_label in known.values() for name in by_label.values()})
            there = some_names(list(map(str, everything)), 40) + (f" ({some_names(names, 40)})" if names else "")
            raise UserError(f"No case has the label {wanted}; the cases hold {there}.")
    return choice, tuple(
        f"Label {one} is named {some_names(names, joint=' and ')} in different cases, and counts as one label: choose "
        "labels by name (--label) if these are several structures."
        for one in choice.wanted
        if len(names := _names_of(one, known)) > 1
    )


def _every_label(everything: Sequence[int], held: Mapping, known: Mapping) -> tuple[str, ...]:
    """Each label by the name that it has in all cases, or all by name if cases number them differently; by number if
    names do not distinguish them.
    """
    consistent = _consistent_names(known)
    if not consistent.keys() >= set(everything):
        names = [[same_name(known[case].get(label, "")) for label in labels] for case, labels in held.items()]
        told_apart = all(len(set(own)) == len(own) and "" not in own and "," not in "".join(own) for own in names)
        if told_apart:
            spelled = {same_name(known[case][label]): known[case][label] for case in held for label in held[case]}
            return tuple(spelled[name] for name in sorted(spelled))
    return tuple(consistent.get(label, str(label)) for label in everything)


def _names_of(number: str, known: Mapping) -> list[str]:
    """The names that a label chosen by number has in the cases, without those that differ in case alone."""
    found = [by_label[int(number)] for by_label in known.values() if number.isdigit() and int(number) in by_label]
    return sorted({same_name(name): name for name in found}.values())


def _settle_pictures(everything: Sequence[int], counts: Mapping) -> tuple[LabelChoice, tuple[str, ...]]:
    """The labels of masks in pictures: one value, or shades of white, are one label; else each value is a label."""
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
    return LabelChoice(tuple(map(str, everything))), ()


def _consistent_names(known: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
    """Names of labels by number, where all cases agree on a name that no other number has."""
    pairs = {pair for by_label in known.values() for pair in by_label.items()}
    labels = Counter(label for label, _ in pairs)
    single = {label: name for label, name in pairs if labels[label] == 1}
    names = Counter(single.values())
    return {label: name for label, name in single.items() if names[name] == 1 and "," not in name}


def _names(choice: LabelChoice, known: Mapping) -> tuple[str, ...]:
    """Names of the classes: those in the files where they agree, else `label 1`."""
    if choice.merged:
        named = {name for by_label in known.values() for name in by_label.values()}
        return (next(iter(named)) if len(named) == 1 else "foreground",)
    by_label = _consistent_names(known)
    return tuple(by_label.get(int(one), f"label {one}") if one.isdigit() else one for one in choice.wanted)

"""A case for training and measuring: its image, and the chosen labels numbered from 1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from SAMFineTuneLib.cases.cases import Case, digest_of
from SAMFineTuneLib.cases.label_map import Labels, Meaning, count_values
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.wording import same_name, some_names

IGNORED = 255
"""The class of undecided voxels, which are ignored."""
_ANY = ("any", "foreground")


@dataclass(frozen=True)
class LabelChoice:
    """The labels to learn or measure: `wanted` values or names, each as its own class, or `merged`: all labels as one
    class. Neither: every label."""

    wanted: tuple[str, ...] = ()
    merged: bool = False

    @classmethod
    def parse(cls, text: str | Iterable[str | int] | None) -> LabelChoice:
        """Read `1,2`, `liver,spleen`, `any` (all labels as one), a sequence of those, or None for every label."""
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


class Classified:
    """Labels as an array `classes` uint8 with 0 for background, n for the n-th of the chosen labels, and IGNORED for
    undecided voxels. Where chosen labels overlap, `overlaps` maps a value to its classes.
    """

    classes: np.ndarray
    overlaps: Mapping[int, Labels]

    @property
    def numbers(self) -> list[int]:
        """The classes that occur, in order."""
        values = np.unique(self.classes).tolist()
        return sorted({n for value in values if value not in (0, IGNORED) for n in self.overlaps.get(value, (value,))})

    @property
    def ignored(self) -> np.ndarray:
        """Voxels that the annotator left undecided, which do not count."""
        return self.classes == IGNORED

    def mask(self, number: int) -> np.ndarray:
        """The mask of the n-th class, bool [k, j, i]."""
        shared = [value for value, numbers in self.overlaps.items() if number in numbers]
        return np.isin(self.classes, [number, *shared]) if shared else self.classes == number


@dataclass(frozen=True, eq=False)
class Labelled(Classified):
    """A case in memory: the image, its classes [k, j, i], and their names."""

    case: Case
    volume: Volume
    classes: np.ndarray
    names: tuple[str, ...]
    digest: str
    overlaps: Mapping[int, Labels] = field(default_factory=dict)

    @cached_property
    def classes_digest(self) -> str:
        """Hex SHA-256 of names and classes. Unlike `digest` it changes with the meaning of label values."""
        digest = hashlib.sha256(f"{self.names} {sorted(self.overlaps.items())}".encode())
        digest.update(np.ascontiguousarray(self.classes).data)
        return digest.hexdigest()


def read_labelled(case: Case, choice: LabelChoice, names: Sequence[str]) -> Labelled:
    """Read a case with the chosen labels, numbered from 1 and named as `names` (see `case_survey.survey`)."""
    volume, labels, meaning, _ = case.read()
    classes, overlaps = _classes(labels, meaning, choice)
    return Labelled(case, volume, classes, tuple(names), digest_of(volume, labels), overlaps)


def slice_axis(volume: Volume) -> int:
    """Array axis (0 is k) across the acquired slices: the axis of the widest spacing, k if all are about equal."""
    spacing = volume.spacing[::-1]  # along the array's axes
    widest = int(np.argmax(spacing))
    return widest if spacing[widest] > 1.2 * spacing[0] else 0


def _classes(labels: np.ndarray, meaning: Meaning, choice: LabelChoice) -> tuple[np.ndarray, dict[int, Labels]]:
    """`classes` and `overlaps` of a `Labelled`."""
    values = list(count_values(labels))
    there = meaning.labels_in(values)
    chosen = [{label_of(wanted, there, meaning.names)} for wanted in choice.wanted]
    if choice.merged:
        chosen = [set(there)]
    table = np.zeros(max(values) + 1, np.uint8)
    shared: dict[Labels, int] = {}
    for value in values:
        own = meaning.labels_of(value)
        numbers = tuple(number for number, wanted in enumerate(chosen, start=1) if wanted.intersection(own))
        if value in meaning.ignored:
            table[value] = IGNORED
        elif len(numbers) > 1:
            own_class = shared.setdefault(numbers, len(chosen) + 1 + len(shared))
            if own_class >= IGNORED:
                raise UserError(
                    f"{len(chosen)} labels that overlap in more than {IGNORED - 1 - len(chosen)} ways cannot be told "
                    "apart; choose some of them, as “samfinetune train --label 1,2” does."
                )
            table[value] = own_class
        elif numbers:
            table[value] = numbers[0]
    return table[labels], {value: numbers for numbers, value in shared.items()}


def label_of(wanted: str, there: Sequence[int], names: Mapping[int, str]) -> int | None:
    """The label that a name or number means in a case; UserError when two labels of the case have the name.

    Args:
        wanted: the name, in any case of letters, or the number as text. A name counts before a number.
        there: the labels that the case has.
        names: of the labels.

    Returns:
        The label, or None when the case lacks it.
    """
    named = [label for label, name in names.items() if same_name(name) == same_name(wanted) and label in there]
    if len(named) > 1:
        raise UserError(
            f"In one case {len(named)} labels are named {wanted} ({some_names(list(map(str, named)))}); rename one, or "
            "choose by number."
        )
    if named:
        return named[0]
    if wanted.isdigit() and int(wanted) in there:
        return int(wanted)
    return None

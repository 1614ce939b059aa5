"""The results of an evaluation: a row for each case, object, protocol and step, as in `results.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from SAMFineTuneLib.metrics.patient_statistics import Estimate, estimate, patient_means
from SAMFineTuneLib.report_page import csv_text


@dataclass(frozen=True)
class Row:
    """One measurement. Numbers that do not apply or are not defined are None, and empty in the file.

    Digests stand for cases and patients, so a results folder that is passed on names nobody.
    """

    method: str
    patient: str
    case: str
    label: str
    protocol: str
    variant: str
    """The variant of the protocol."""
    object: str = ""
    """A piece on a slice: plane, number of the label, number of the piece. Empty for whole volumes."""
    step: int = 1
    """Number of the answer in a sequence, or of the round in 3-D, from 1."""
    distance: float | None = None
    """Signed distance in mm from the prompted slice, in 3-D."""
    dice: float | None = None
    """Dice of the candidate with the best predicted IoU, which is what a user gets."""
    oracle: float | None = None
    """Dice of the candidate that agrees best with the reference."""
    iou: float | None = None
    hd95: float | None = None
    nsd: float | None = None
    score: float | None = None
    """IoU that the model predicted."""
    false_ml: float | None = None
    """Millilitres found in a case without the label."""
    area: float | None = None
    """Of the object, in mm²."""
    contrast: float | None = None
    complexity: float | None = None
    over: float | None = None
    """Slices beyond an end of the label that got a mask, mean of both ends, in 3-D."""
    short: float | None = None
    """Slices of the label beyond the mask's end, mean of both ends, in 3-D."""


class Results:
    """The rows of an evaluation by method, protocol, variant and step, in their given order."""

    def __init__(self, rows: Iterable[Row], methods: Sequence[str]) -> None:
        self.methods = tuple(methods)
        self._by: dict[tuple, list[Row]] = {}
        for row in rows:
            self._by.setdefault((row.method, row.protocol, row.variant, row.step), []).append(row)

    def of(self, method: str, protocol: str, variant: str = "", step: int = 1) -> list[Row]:
        """The rows of a method by a protocol, after a step."""
        return self._by.get((method, protocol, variant, step), [])

    def each(self, protocol: str, variants: Iterable[str] = ("",)) -> Iterator[tuple[str, str, list[Row]]]:
        """Variant, method and rows of the first step, wherever there are any."""
        for variant in variants:
            for name in self.methods:
                if found := self.of(name, protocol, variant):
                    yield variant, name, found

    def course(self, method: str, protocol: str, variant: str) -> list[list[Row]]:
        """The rows of a method by a protocol, of every step from the first to the last."""
        steps = sorted(key[3] for key in self._by if key[:3] == (method, protocol, variant))
        return [self.of(method, protocol, variant, step) for step in steps]


_NAMES = [field.name for field in fields(Row)]
_COLUMNS = ["contestant" if name == "method" else name for name in _NAMES]  # as in files of all versions
_READ = {**dict.fromkeys(("method", "patient", "case", "label", "protocol", "variant", "object"), str), "step": int}


def by_patient(rows: Sequence[Row], values: str | Sequence[float | None]) -> dict[str, float]:
    """One value for each patient, of a column or of one value for each row; rows without a value do not count."""
    if isinstance(values, str):
        values = [getattr(row, values) for row in rows]
    return patient_means(((row.patient, row.case, row.label), value) for row, value in zip(rows, values, strict=True))


def mean(rows: Sequence[Row], column: str | Sequence[float | None] = "dice") -> Estimate | None:
    """The mean over patients of a column, or of one value for each row."""
    return estimate(by_patient(rows, column))


def counts(rows: Sequence[Row]) -> str:
    """Numbers of objects, cases and patients, such as `12, 4, 3`."""
    return f"{len(rows)}, {len({row.case for row in rows})}, {len({row.patient for row in rows})}"


def counts_of(rows: Sequence[Row]) -> str:
    """Such as `12 objects of 4 cases and 3 patients`."""
    words = zip(counts(rows).split(", "), ("object", "case", "patient"), strict=True)
    objects, cases, patients = (f"{number} {word}{'s' * (number != '1')}" for number, word in words)
    return f"{objects} of {cases} and {patients}"


def to_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV with a header; six decimals, so that reading gives what was written."""
    return csv_text([_COLUMNS, *([getattr(row, name) for name in _NAMES] for row in rows)], digits=6)


def from_csv(text: str) -> list[Row]:
    """The rows that `to_csv` wrote; ValueError for any other text."""
    header, *lines = csv.reader(io.StringIO(text, newline="")) if text else ([],)
    if header != _COLUMNS:
        raise ValueError("These are not rows of an evaluation.")
    read = [_READ.get(name, _number) for name in _NAMES]
    return [Row(*(read_one(cell) for read_one, cell in zip(read, line, strict=True))) for line in lines]


def _number(cell: str) -> float | None:
    return float(cell) if cell else None

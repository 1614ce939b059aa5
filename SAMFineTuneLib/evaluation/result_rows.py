"""The table that everything ends in: a row per case, object, protocol and step, as `results.csv` has it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from SAMFineTuneLib.metrics.mask_metrics import Agreement
from SAMFineTuneLib.metrics.patient_statistics import patient_means


@dataclass(frozen=True)
class Row:
    """One measurement. Numbers that do not apply, or are not defined, are None and empty in the file.

    Cases and patients are known by digests: a results folder that is passed on names nobody.
    """

    method: str
    patient: str
    case: str
    label: str
    protocol: str
    variant: str
    """What exactly was done within the protocol."""
    object: str = ""
    """A piece on a slice: plane, number of the label, number of the piece. Empty for whole volumes."""
    step: int = 1
    """Which answer of a sequence, from 1; rounds in 3-D."""
    distance: float | None = None
    """Millimetres from the prompted slice, with a sign, in 3-D."""
    dice: float | None = None
    """Of the candidate with the best predicted IoU: what a user gets."""
    oracle: float | None = None
    """Dice of the best candidate, which only the reference can tell."""
    iou: float | None = None
    hd95: float | None = None
    nsd: float | None = None
    score: float | None = None
    """The IoU that the model predicted."""
    false_ml: float | None = None
    """Millilitres found where the reference has nothing at all."""
    area: float | None = None
    """Of an object, in square millimetres."""
    contrast: float | None = None
    complexity: float | None = None


_NAMES = [field.name for field in fields(Row)]
_COLUMNS = ["contestant" if name == "method" else name for name in _NAMES]  # the file's name for it, from the beginning
_TEXT = ("method", "patient", "case", "label", "protocol", "variant", "object")


def numbers_of(found: Agreement) -> dict[str, float | None]:
    """An agreement as columns of a row."""
    return {"dice": found.dice, "iou": found.iou, "hd95": found.hd95, "nsd": found.nsd}


def by_patient(rows: Sequence[Row], values: str | Sequence[float | None]) -> dict[str, float]:
    """One value for each patient, of a column or of one value for each row; rows without a value do not count."""
    if isinstance(values, str):
        values = [getattr(row, values) for row in rows]
    return patient_means(((row.patient, row.case, row.label), value) for row, value in zip(rows, values, strict=True))


def to_csv(rows: Iterable[Row]) -> str:
    """Rows as text with a header; six decimals, so that what is read back is what was written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in _NAMES])
    return text.getvalue()


def from_csv(text: str) -> list[Row]:
    """Rows of a text that `to_csv` wrote; ValueError for any other."""
    header, *lines = csv.reader(io.StringIO(text, newline="")) if text else ([],)
    if header != _COLUMNS:
        raise ValueError("These are not rows of an evaluation.")
    return [Row(*(_value(name, cell) for name, cell in zip(_NAMES, line, strict=True))) for line in lines]


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _value(name: str, cell: str) -> str | float | int | None:
    if name in _TEXT:
        return cell
    if name == "step":
        return int(cell)
    return float(cell) if cell else None

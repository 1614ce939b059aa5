"""Lists of cases as spreadsheets and people write them: any separator, encoding and order of columns.

A line is `image,label` or `image,label,patient`; paths are relative to the list. A first line of column names allows
another order and further columns. Where labels are not needed, a line may be `image`, or `image,,patient`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_image import ENDINGS, split_choice

LISTS = (".csv", ".tsv", ".txt")
_SEPARATORS = (",", ";", "\t", "|")
_COLUMNS = {
    "image": ("image", "images", "image path", "image file", "img", "volume", "scan", "path", "bild", "bilder"),
    "label": ("label", "labels", "label path", "label file", "mask", "masks", "mask path", "segmentation",
              "segmentations", "seg", "annotation", "gt", "ground truth", "maske", "masken", "segmentierung"),
    "patient": ("patient", "patient id", "patientid", "patients", "subject", "subject id", "case", "case id"),
}  # fmt: skip
_ABOUT_PATIENTS = re.compile("age|sex|gender|weight|height|birth|alter|geschlecht|gewicht|geburt|größe")
_PARTS = ("split", "set", "subset", "fold", "partition", "part", "train test")  # columns that divide the lines
_IN_ORDER = {"image": 0, "label": 1, "patient": 2}
_NOT_TEXT = {
    b"PK\x03\x04": "a packed file, such as an Excel workbook (.xlsx) or a .zip",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a compressed file (.gz)",
    b"{\\rtf": "a document in Rich Text",
}
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"),
          (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # fmt: skip


class ListedCase(NamedTuple):
    """A line of a list: files that exist, and the patient, "" where the line names none."""

    image: Path
    label: Path | None
    """None only where labels are not needed."""
    patient: str
    notes: tuple[str, ...] = ()


def read_list(path: Path, unlabelled: bool = False) -> list[ListedCase]:
    """The entries of a list, which need labels unless `unlabelled`; UserError when the file is not a list, or names
    files that do not exist."""
    text = _text(path)
    if path.suffix.lower() not in LISTS:
        raise UserError(f"“{path.name}” is not a list of cases; give a folder with images/ and labels/, or a .csv.")
    rows = _rows(text, path.parent)
    needed = ("image",) if unlabelled else ("image", "label")
    columns, notes = _columns(rows[0], path, needed) if rows else ({}, ())
    most = max(len(rows[0]), 3) if columns else 3
    rows = rows[1:] if columns else rows
    if not rows:
        raise UserError(f"“{path.name}” lists no cases; write a line “{','.join(needed)}” for each.")
    entries = [
        _entry(row, columns or _IN_ORDER, most, needed, number, path, notes) for number, row in enumerate(rows, start=1)
    ]
    return _with_patients(entries) if any(entry.patient for entry in entries) else entries


def _with_patients(entries: Sequence[ListedCase]) -> list[ListedCase]:
    """Entries whose patients are spelled as on their first line, because P1 and p1 are one; those without one get a
    note.
    """
    spelled: dict[str, str] = {}
    return [
        entry._replace(patient=spelled.setdefault(entry.patient.casefold(), entry.patient))
        if entry.patient
        else entry._replace(notes=(*entry.notes, "The list names no patient for it, so it counts as a patient of its "
                                                 "own."))
        for entry in entries
    ]


def _entry(
    row: Sequence[str],
    columns: dict[str, int],
    most: int,
    needed: Sequence[str],
    number: int,
    path: Path,
    notes: tuple[str, ...],
) -> ListedCase:
    cells = {name: row[place] if place < len(row) else "" for name, place in columns.items()}
    if not all(cells[name] for name in needed) or len(row) > most:
        shortest = ",".join(needed)
        raise UserError(f"Entry {number} of “{path.name}” is not {shortest} or image,label,patient; correct it.")
    files: dict[str, Path | None] = {}
    for name in ("image", "label"):
        cell = cells.get(name, "")
        files[name] = _found(cell, path.parent) if cell else None
        if cell and files[name] is None:
            raise UserError(f"“{path.name}” lists {path.parent / cell}, which does not exist; correct entry {number}.")
    if files["label"] is not None and files["image"].is_file() and files["image"].resolve() == files["label"].resolve():
        raise UserError(f"Entry {number} of “{path.name}” gives one file as image and as labels; correct it.")
    return ListedCase(files["image"], files["label"], cells.get("patient", ""), notes)


def _found(cell: str, folder: Path) -> Path | None:
    """The file or folder that a cell names, None if it does not exist. Windows' separators are understood on every
    system, and the number of a series may follow the name (`case1#2`).
    """
    for text in (cell, cell.replace("\\", "/")):
        with suppress(OSError, ValueError, RuntimeError):  # not a path
            file = folder / Path(text).expanduser()
            if split_choice(file)[0].exists():
                return file
    return None


def _text(path: Path) -> str:
    """The file's text in any encoding that spreadsheets use; when it is not text, a UserError that says what it is."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"“{path}” cannot be read ({error.strerror}); check its permissions.") from error
    kind = next((kind for start, kind in _NOT_TEXT.items() if data.startswith(start)), "")
    if data.startswith(b"PK\x03\x04") and b"xl/" in data:
        kind = "an Excel workbook (.xlsx)"
    if data.lstrip()[:1] == b"<":
        kind = "a web page or XML"
    if kind:
        raise UserError(f"“{path.name}” is {kind}, whatever its name says; save the list as CSV (Excel: Save As).")
    for encoding in (*_wide_encodings(data), "utf-8", "cp1252", "latin-1"):
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding)
            break
    if "\x00" in text:
        raise UserError(f"“{path.name}” is not a text file; give a list of image,label as CSV.")
    return text


def _wide_encodings(data: bytes) -> list[str]:
    """The encoding that a byte order mark names; without one, UTF-16 where every other byte is zero."""
    if marked := [encoding for mark, encoding in _MARKS if data.startswith(mark)]:
        return marked[:1]
    start = data[:200]
    zeros = {"utf-16-le": start[1::2].count(0), "utf-16-be": start[0::2].count(0)}
    return [encoding for encoding, count in zeros.items() if count > len(start) // 4]


def _rows(text: str, folder: Path) -> list[list[str]]:
    """The cells of non-empty lines, divided by the separator that finds most images and labels."""
    empty = ' "' + "".join(_SEPARATORS)
    lines = [line for line in text.splitlines() if line.strip(empty) and not line.lstrip().startswith("#")]
    separators = _SEPARATORS
    if lines and lines[0].strip().lower().startswith("sep="):  # Excel's own line
        separators, lines = (lines[0].strip()[4:5] or ",",), lines[1:]
    return max((_split(lines, separator) for separator in separators), key=lambda rows: _entries(rows, folder))


def _entries(rows: list[list[str]], folder: Path) -> tuple[int, int]:
    """The number of rows among the first that name two files; if none does, the number of cells in the first row."""
    found = sum(sum(_is_file(cell, folder) for cell in row[:8]) >= 2 for row in rows[:50])
    return found, len(rows[0]) if rows and not found else 0


def _split(lines: list[str], separator: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, skipinitialspace=True)
    rows = []
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            rows.append(cells[: max(place for place, cell in enumerate(cells, start=1) if cell)])
    return rows


def _is_file(cell: str, folder: Path) -> bool:
    return bool(cell) and (cell.lower().endswith((*ENDINGS, ".dcm")) or _found(cell, folder) is not None)


def _columns(row: Sequence[str], path: Path, needed: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The columns by the names in the first line, and sentences for the user if that is a guess, or columns that divide
    the lines are not used; nothing if the first line is already an entry.
    """
    words = [" ".join(cell.casefold().replace("_", " ").replace("-", " ").split()) for cell in row]
    found: dict[str, int] = {}
    for place, word in reversed(list(enumerate(words))):
        found |= {name: place for name, known in _COLUMNS.items() if word in known}
        if word.startswith("patient") and not _ABOUT_PATIENTS.search(word):  # such as `Patient ID (hospital)`
            found["patient"] = place
    if all(name in found for name in needed):
        parts = [cell for cell, word in zip(row, words, strict=True) if word in _PARTS]
        told = (
            f"The column “{cell}” of “{path.name}” is not used: every line counts. Give each part as a list of its own."
            for cell in parts
        )
        return found, tuple(told)
    is_entry = any(_is_file(cell, path.parent) or "/" in cell or "\\" in cell for cell in row[:2])
    if is_entry or len(row) < 2:
        return {}, ()
    if found:
        lacking = " or ".join(name for name in needed if name not in found)
        raise UserError(
            f"The first line of “{path.name}” ({', '.join(row)}) has no column {lacking}; name the columns image, "
            "label and patient."
        )
    return _IN_ORDER, (f"The first line of “{path.name}” ({', '.join(row)}) was read as names of columns.",)

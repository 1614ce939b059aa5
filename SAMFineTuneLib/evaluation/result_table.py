"""A table of an evaluation: plain values for JSON, Markdown for documents, text for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib.metrics.patient_statistics import Difference, Estimate
from SAMFineTuneLib.wording import in_brackets

MEANS = (
    "Means over patients (objects within labels, labels within cases, cases within patients), in brackets the 95 % "
    "interval of a bootstrap over patients."
)
"""Ends the note of most tables."""
Cell = str | int | float | Estimate | Difference | None


@dataclass(frozen=True)
class Table:
    """A table with a title, a note on how to read it, and rows of cells under a header."""

    name: str
    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [[asdict(cell) if is_dataclass(cell) else cell for cell in row] for row in self.rows]
        return {**vars(self), "rows": rows}

    def as_markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *([text_of(cell) for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def text_of(cell: Cell) -> str:
    """A cell as text; `–` where it has no value."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return "–" if np.isnan(cell) else "<0.001" if 0 < cell < 0.001 else f"{cell:.3f}"
    if isinstance(cell, Estimate):
        return f"{cell.mean:.3f}{in_brackets(cell.interval)}"
    return str(cell)


def naturally(label: str) -> tuple[str, int]:
    """The key that sorts `label 2` before `label 10`."""
    word, _, number = label.rpartition(" ")
    return (word, int(number)) if number.isdigit() else (label, 0)

"""The tables of docs/results.md, from evaluations of the same kind on several sets of images.

    python Testing/benchmarks/results_tables.py CT=ct "hippocampus MR=hippocampus" "prostate MR=prostate"

Each argument is a name and a folder that `samfinetune evaluate` wrote. Prints Markdown: of each table of the report the
columns and rows that the document shows, the sets one after the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from SAMFineTuneLib.evaluation.slice_protocols import HEADLINE, WAYS

MODEL = "compact"
HEADLINES = [str(way) for way in HEADLINE]
# One digit is enough in these.
COARSE = ("HD95", "too many", "missed", "with prompts", "by hand", "saved", "prompts to 0.85", "prompts to 0.90")
WITHOUT_INTERVALS = ("perturbation", "distance", "prompts, everybody")
# Name of the report's table, columns shown (none: all), and values that a row must have in a column.
SHOWN = (
    ("prompts", ("prompt", "Dice", "best candidate", "HD95", "NSD"), {"method": [MODEL]}),
    ("labels", ("label", "S2", "S3", "S4", "S5", "S6"), {"method": [MODEL]}),
    ("everything", ("best of all masks", "best score", "objects, cases, patients"), {"method": [MODEL]}),
    ("perturbation", ("prompt", "unit", "in place", "0–10", "10–20", "20–30"), {"method": [MODEL]}),
    ("interactive", (), {"way": HEADLINES, "method": [MODEL, "growing", "walker", "levelset"]}),
    ("clicks", (), {"way": HEADLINES, "method": [MODEL]}),
    ("ways", ("way", "1", "3", "8"), {"way": [str(way) for way in WAYS], "method": [MODEL]}),
    ("volume boxes", ("slices with boxes", "Dice", "HD95", "NSD", "too many", "missed"), {"method": [MODEL]}),
    ("volume clicks", (), {"method": [MODEL]}),
    ("volumes", ("start", "after", "Dice", "HD95", "NSD"), {"method": [MODEL]}),
    ("distance", ("start", "prompted slice", "0–5 mm", "5–10 mm", "10–20 mm", "20–40 mm"), {"method": [MODEL]}),
    ("seconds", ("task", "with prompts", "by hand", "saved"), {"method": [MODEL]}),
    ("factors", ("prompt", "size", "contrast", "complexity", "objects"), {"method": [MODEL], "prompt": ["S2", "S5"]}),
)


def main() -> None:
    sets = {}
    for argument in sys.argv[1:]:
        name, _, folder = argument.partition("=")
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        sets[name] = {table["name"]: table for table in summary["tables"]}
    for name, columns, wanted in SHOWN:
        rows, header = [], columns
        for images, tables in sets.items():
            table = "interactive" if name == "ways" else name
            if table in tables:
                own = tables[table]["header"]
                header = max(columns or own, header, key=len)
                for row in (dict(zip(own, row, strict=True)) for row in tables[table]["rows"]):
                    if all(row[column] in values for column, values in wanted.items()):
                        rows.append([images, *(text(row.get(column), column, name) for column in header)])
        show(name, header, rows)
    show("prompts, everybody", *everybody(sets))


def everybody(sets: dict) -> tuple[tuple[str, ...], list[list[str]]]:
    """Dice of every method, a column a strategy."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for images, tables in sets.items():
        for who, prompt, dice, *_ in tables["prompts"]["rows"]:
            found.setdefault((images, who), {})[prompt.partition(":")[0]] = text(dice, "Dice", "prompts, everybody")
    strategies = tuple(dict.fromkeys(strategy for row in found.values() for strategy in row))
    return ("method", *strategies), [[*key, *(row.get(one, "–") for one in strategies)] for key, row in found.items()]


def show(name: str, header: tuple[str, ...], rows: list[list[str]]) -> None:
    if rows:
        print(f"## {name}\n\n| images | {' | '.join(header)} |\n|{'---|' * (len(header) + 1)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")


def text(cell, column: str, table: str) -> str:
    """A cell of `summary.json` for people; estimates and differences are dictionaries there."""
    form = ".1f" if column in COARSE else ".3f"
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return format(cell, form)
    if not isinstance(cell, dict):
        return str(cell).removesuffix(", mask fed back, centre") if column == "way" and table != "ways" else str(cell)
    mean, low, high = cell["mean"], cell["low"], cell["high"]
    span = "" if low is None or table in WITHOUT_INTERVALS else f" ({low:{form}} to {high:{form}})"
    return f"{mean:{form}}{span}"


if __name__ == "__main__":
    main()

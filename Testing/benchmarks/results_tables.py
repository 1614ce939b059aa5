"""The tables of docs/results.md, from evaluations of the same kind on several sets of images.

    python Testing/benchmarks/results_tables.py CT=ct "hippocampus MR=hippocampus" "prostate MR=prostate"

Each argument is a name and a folder that `samfinetune evaluate` wrote. Prints Markdown: every table of the report once,
the sets' rows one after the other, with the name in the first column. What is the same everywhere is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from SAMFineTuneLib.evaluation.statistics import Difference, Estimate
from SAMFineTuneLib.evaluation.tables import text_of


def main() -> None:
    found: dict[str, tuple[str, dict[str, list]]] = {}
    for argument in sys.argv[1:]:
        name, _, folder = argument.partition("=")
        for table in json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))["tables"]:
            title, sets = found.setdefault(table["name"], (table["title"], {}))
            sets[name] = [table["header"], *table["rows"]]
    for title, sets in found.values():
        header = max((rows[0] for rows in sets.values()), key=len)
        print(f"## {title}\n\n| images | {' | '.join(header)} |\n|{'---|' * (len(header) + 1)}")
        for name, (_, *rows) in sets.items():
            for row in rows:
                cells = [text_of(read(cell)) for cell in row]
                print(f"| {name} | {' | '.join(cells + ['–'] * (len(header) - len(cells)))} |")
        print()


def read(cell):
    """An estimate or a difference, which JSON holds as a dictionary."""
    if not isinstance(cell, dict):
        return cell
    return Difference(**cell) if "p" in cell else Estimate(**cell)


if __name__ == "__main__":
    main()

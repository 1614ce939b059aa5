"""`report.html`: one file that opens in any browser without a network; its pictures are embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from SAMFineTuneLib import report_page
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.example_pictures import Overlay
from SAMFineTuneLib.evaluation.figures import all_figures
from SAMFineTuneLib.evaluation.methods import ListedMethod
from SAMFineTuneLib.evaluation.result_rows import Results, by_patient, counts_of
from SAMFineTuneLib.evaluation.result_table import Table, text_of
from SAMFineTuneLib.metrics.patient_statistics import difference, estimate
from SAMFineTuneLib.simulation.cosmos_prompts import STRATEGIES
from SAMFineTuneLib.wording import counted

_HEADLINES = ("S5", "S2")
_IN_WORDS = {"S5": "a tight box", "S2": "one point"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of an evaluation and their folder."""

    folder: Path
    tables: list[Table]
    notes: tuple[str, ...]
    """Sentences worth reading; in the folder they call cases by their digests."""
    cases: int
    patients: int
    labels: tuple[str, ...]


def page(
    evaluation: Evaluation,
    entries: Sequence[ListedMethod],
    settings: EvaluationSettings,
    results: Results,
    overlays: Sequence[Overlay],
) -> str:
    """Write the whole report as HTML.

    Args:
        evaluation: the results: tables, notes, numbers of cases and patients.
        entries: the methods.
        settings: of the evaluation.
        results: all rows.
        overlays: the example pictures, already drawn.
    """
    labels = ", ".join(evaluation.labels)
    facts = [
        ("cases", f"{evaluation.cases}, of {evaluation.patients} patients"),
        ("labels", labels if len(labels) < 200 else f"{len(evaluation.labels)}"),
        ("methods", ", ".join(f"{entry.name} ({entry.kind})" for entry in entries)),
        ("protocols", ", ".join(settings.protocols)),
        ("on", " and ".join(_measured_on(settings))),
        ("seed", str(settings.seed)),
    ]
    parts = [report_page.bullets(evaluation.notes)]
    for table in evaluation.tables:
        rows = [[None if text_of(cell) == text_of(None) else text_of(cell) for cell in row] for row in table.rows]
        parts += [report_page.heading(table.title, table.note, table.name), report_page.table(table.header, rows)]
    for name, png in all_figures(results).items():
        parts += [report_page.heading(name), f"<p>{report_page.image(report_page.embedded(png), name)}</p>"]
    if overlays:
        parts += [report_page.heading("Best, median and worst", "By Dice over all objects."),
                  report_page.key(evaluation.labels)]  # fmt: skip
        order = sorted(overlays, key=lambda one: (one.method, one.strategy, -one.row.dice))
        for _, group in groupby(order, key=lambda one: (one.method, one.strategy)):
            shown = ((report_page.embedded(one.file.read_bytes()), _caption(one)) for one in group)
            parts.append(report_page.pictures(shown))
    title = f"Evaluation of {', '.join(entry.name for entry in entries if not entry.is_baseline)}"
    return report_page.page(title, headline(results, entries), facts, parts)


def _measured_on(settings: EvaluationSettings) -> Iterator[str]:
    chosen, whole = set(settings.protocols), {"3d", "automatic"}
    if chosen - whole:
        yield f"up to {counted(settings.slices, 'slice')} of each label and case"
    if chosen & whole:
        yield "whole volumes"


def headline(results: Results, entries: Sequence[ListedMethod]) -> str:
    """Dice of the first method with a box and with a point, and what the other models and adapters gain, in words."""
    first, *others = [entry.name for entry in entries if not entry.is_baseline] or [entry.name for entry in entries]
    sentences = []
    for strategy in _HEADLINES:
        own = by_patient(results.of(first, strategy), "dice")
        if (mean := estimate(own)) is None:
            continue
        count = counts_of(results.of(first, strategy))
        words = f"With {_IN_WORDS[strategy]}, {first} reaches a Dice of {text_of(mean)} on {count}"
        for name in others:
            if gap := difference(own, by_patient(results.of(name, strategy), "dice")):
                change = "more" if gap.mean >= 0 else "less"
                span = "" if gap.low is None else f" (difference {gap.low:+.3f} to {gap.high:+.3f})"
                words += f"; {name} reaches {abs(gap.mean):.3f} {change}{span}"
        sentences.append(f"{words}.")
    return " ".join(sentences) or "Single prompts were not measured; the tables below hold what was."


def _caption(one: Overlay) -> str:
    row = one.row
    return (
        f"{one.method}, {one.strategy} ({STRATEGIES[one.strategy]}), {one.rank}: Dice {row.dice:.3f}; {row.label}, "
        f"case {row.case}, {row.object.split('/')[0].replace(':', ' slice ')}"
    )

"""The report of a fine-tuning: `report/index.html` with curves, a table and pictures, `curves.csv`, `dice.csv`.

The two curves are SVG written here rather than by matplotlib, because trainings also run inside Slicer, where a
plotting library would have to be installed for them alone.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from SAMFineTuneLib import report_page
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.models.adapters.adapter_card import Card, Gain, duration

REPORT = "report"
_WIDTH, _HEIGHT, _MARGIN = 640, 260, 46

Curve = Sequence[tuple[float, float]]


def write_report(
    folder: Path, card: Card, evidence: str, folds: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()
) -> Path:
    """Write the report of an adapter.

    Args:
        folder: Folder of the report, which already holds its pictures.
        card: The adapter's card.
        evidence: What the figures refer to, as a sentence.
        folds: Histories of the cross-validation's trainings, by name.
        notes: Sentences about the cases that name nobody.

    Returns:
        The page.
    """
    curves = {"this adapter": list(zip(card.curves.get("steps", ()), card.curves.get("loss", ()), strict=True))}
    for name, history in folds.items():
        curves.setdefault(name, smooth(history["loss"]))
    _write(folder / "loss.svg", draw_curves(curves, "loss"))
    dice = {"this adapter": list(zip(card.curves.get("validated", ()), card.curves.get("dice", ()), strict=True))}
    dice |= {name: list(zip(history["validated"], history["dice"], strict=True)) for name, history in folds.items()}
    dice = {name: curve for name, curve in dice.items() if curve}
    if dice:
        _write(folder / "dice.svg", draw_curves(dice, "validation Dice"))
    _write(folder / "curves.csv", _curves_table(curves, dice))
    _write(folder / "dice.csv", _dice_table(card))
    _write(folder / "index.html", _page(folder, card, evidence, bool(dice), notes))
    return folder / "index.html"


def smooth(values: Sequence[float], points: int = 100) -> list[tuple[int, float]]:
    """Means of up to `points` parts of a curve that begins at step 1, each at its last step."""
    size = max(1, len(values) // points)
    ends = range(size, len(values) + 1, size)
    return [(end, sum(values[end - size : end]) / size) for end in ends]


def draw_curves(curves: Mapping[str, Curve], title: str) -> str:
    """Draw curves as SVG: steps on x, values from zero to the largest on y."""
    points = [point for curve in curves.values() for point in curve]
    right = max((x for x, _ in points), default=1) or 1
    top = max((y for _, y in points), default=1.0) or 1.0

    def place(x: float, y: float) -> str:
        across = _MARGIN + x / right * (_WIDTH - 2 * _MARGIN)
        return f"{across:.1f},{_HEIGHT - _MARGIN + max(0.0, y) / top * (2 * _MARGIN - _HEIGHT):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_MARGIN}" y="20">{html.escape(title)}</text>',
    ]
    for share in (0, 0.5, 1):
        x, y = place(right * share, 0).split(",")[0], place(0, top * share).split(",")[1]
        parts.append(f'<line x1="{_MARGIN}" y1="{y}" x2="{_WIDTH - _MARGIN}" y2="{y}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{_MARGIN - 6}" y="{y}" text-anchor="end">{top * share:.3g}</text>')
        parts.append(f'<text x="{x}" y="{_HEIGHT - _MARGIN + 18}" text-anchor="middle">{right * share:.0f}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = report_page.colour(number)
        line = " ".join(place(x, y) for x, y in curve)
        width = 1 if number else 2
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2.5" fill="{colour}"/>'
                  for p in line.split() if len(curve) < 20]  # fmt: skip
        parts.append(
            f'<text x="{_WIDTH - _MARGIN}" y="{20 + 14 * number}" text-anchor="end" fill="{colour}">'
            f"{html.escape(name)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _curves_table(curves: Mapping[str, Curve], dice: Mapping[str, Curve]) -> str:
    rows = [("training", "figure", "step", "value")]
    for figure, found in (("loss", curves), ("validation Dice", dice)):
        rows += [(name, figure, x, f"{y:.6g}") for name, curve in found.items() for x, y in curve]
    return _csv(rows)


def _dice_table(card: Card) -> str:
    rows = [("prompt", "label", "case (digest)", "before", "after")]
    for gain in card.gains:
        rows += [(gain.prompt, gain.label, *values)
                 for values in zip(gain.cases, gain.before, gain.after, strict=True)]  # fmt: skip
    return _csv(rows)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        ["" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    return text.getvalue()


def headline(gains: Sequence[Gain]) -> str:
    """What the adapter reaches on held-out cases, and its gain, for all labels together, in words."""
    sentences = []
    for gain in {gain.prompt: gain for gain in gains}.values():  # of each way its last: all labels together
        before, after = gain.means
        if after is None:
            continue
        how = "Without a prompt" if gain.prompt == "automatic" else f"With {gain.prompt.replace('1 ', 'one ')}"
        cases = f"{len(gain.cases)} held-out case{'s' * (len(gain.cases) != 1)}"
        words = f"{how}, the adapter reaches a Dice of {_figure(after, gain.interval_after)} on {cases}"
        if before is not None:
            change = "more" if after >= before else "less"
            words += f", {abs(after - before):.3f} {change} than the base{_span(gain.interval_gain, 'difference ')}"
        sentences.append(f"{words}.")
    return " ".join(sentences) or "No case was held out, so the gain of this adapter is not known."


def gain_in_words(gain: Gain) -> str:
    """Dice before and after, and the gain, each with its interval."""
    before, after = gain.means
    words = f"{_figure(before, gain.interval_before)} before, {_figure(after, gain.interval_after)} after"
    if before is None or after is None:
        return words
    return f"{words}, gain {after - before:+.3f}{_span(gain.interval_gain)}"


def _page(folder: Path, card: Card, evidence: str, dice: bool, notes: Sequence[str]) -> str:
    title = f"Adapter of {card.base} for {', '.join(card.labels)}"
    facts = [("base", card.base), ("method", str(card.method)), ("preset", str(card.recipe["preset"])),
             ("steps", str(card.recipe["steps"])), ("cases", str(len(card.cases)))]  # fmt: skip
    if card.seconds is not None:
        facts.append(("time", f"{duration(card.seconds)} on {card.hardware}"))
    parts = [report_page.heading("What it gained", evidence)]
    if card.gains:
        parts.append(report_page.table(
            ("prompt", "label", "cases", "Dice before", "Dice after", "gain"), [_gain_cells(one) for one in card.gains]
        ))  # fmt: skip
        parts.append("<p class='note'>Means over cases; in brackets the 95 % bootstrap interval over patients. Single "
                     "cases are in dice.csv.</p>")  # fmt: skip
    if notes:
        parts += [report_page.heading("About the cases"), report_page.bullets(notes)]
    if shown := _pictures(folder):
        parts += [report_page.heading("Held-out cases", "The slice of each case that shows most."),
                  report_page.key(card.labels)]  # fmt: skip
        parts += [report_page.pictures(group) for group in shown]
    parts += [report_page.heading("Course of the training"), f"<p>{report_page.image('loss.svg', 'loss by step')}</p>"]
    if dice:
        parts.append(f"<p>{report_page.image('dice.svg', 'validation Dice by step')}</p>")
    return report_page.page(title, headline(card.gains), facts, parts)


def _gain_cells(gain: Gain) -> tuple[str | None, ...]:
    before, after = gain.means
    both = before is not None and after is not None
    return (
        gain.prompt, gain.label, str(len(gain.cases)),
        None if before is None else _figure(before, gain.interval_before),
        None if after is None else _figure(after, gain.interval_after),
        f"{after - before:+.3f}{_span(gain.interval_gain)}" if both else None,
    )  # fmt: skip


def _pictures(folder: Path) -> list[list[tuple[str, str]]]:
    """File and caption of each picture; those of one case and prompt, before and after, together."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for picture in sorted(folder.glob("case-*.png"), key=lambda path: (_case_of(path), path.name)):
        about = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
        group = groups.setdefault(picture.stem.rpartition("-")[0], [])
        group.insert(0 if about["stage"] == "before" else len(group), (picture.name, about["caption"]))
    return list(groups.values())


def _case_of(picture: Path) -> int:
    return int(picture.stem.split("-")[1])


def _figure(mean: float | None, span: tuple[float, float] | None = None) -> str:
    return "no answer" if mean is None else f"{mean:.3f}{_span(span)}"


def _span(span: tuple[float, float] | None, what: str = "") -> str:
    return f" ({what}{span[0]:.3f} to {span[1]:.3f})" if span else ""


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

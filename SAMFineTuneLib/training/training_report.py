"""The report of a fine-tuning: `report/index.html` with curves, a table and pictures, `curves.csv`, `dice.csv`.

The two curves are SVG written here rather than by matplotlib, because trainings also run inside Slicer, where a
plotting library would have to be installed for them alone.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from SAMFineTuneLib import report_page
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.models.adapters.adapter_card import Card, Gain
from SAMFineTuneLib.wording import counted, duration, in_brackets

REPORT = "report"
_WIDTH, _HEIGHT, _MARGIN = 640, 260, 46
_LINE = 14  # of the names of curves

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
    own = card.curves
    curves = {"this adapter": list(zip(own.get("steps", ()), own.get("loss", ()), strict=True))}
    dice = {"this adapter": list(zip(own.get("validated", ()), own.get("dice", ()), strict=True))}
    for name, history in folds.items():
        curves[name] = smooth(history["loss"])
        dice[name] = list(zip(history["validated"], history["dice"], strict=True))
    dice = {name: curve for name, curve in dice.items() if curve}
    rows: list[tuple] = [("training", "figure", "step", "value")]
    for file, figure, found in (("loss.svg", "loss", curves), ("dice.svg", "validation Dice", dice)):
        rows += [(name, figure, x, f"{y:.6g}") for name, curve in found.items() for x, y in curve]
        if found:
            write_text(folder / file, draw_curves(found, figure))
    write_text(folder / "curves.csv", report_page.csv_text(rows))
    rows = [("prompt", "label", "case (digest)", "before", "after")]
    for gain in card.gains:
        values = zip(gain.cases, gain.before, gain.after, strict=True)
        rows += [(gain.prompt, gain.label, *one) for one in values]
    write_text(folder / "dice.csv", report_page.csv_text(rows))
    write_text(folder / "index.html", _page(folder, card, evidence, notes))
    return folder / "index.html"


def smooth(values: Sequence[float], points: int = 100) -> list[tuple[int, float]]:
    """Means of up to `points` parts of a curve that begins at step 1, each at its last step."""
    size = max(1, len(values) // points)
    ends = range(size, len(values) + 1, size)
    return [(end, sum(values[end - size : end]) / size) for end in ends]


def draw_curves(curves: Mapping[str, Curve], title: str, main: str | None = None) -> str:
    """Draw curves as SVG: steps on x, values from zero to a round one above the largest on y.

    Args:
        curves: By name; each keeps its colour where others are empty.
        title: What they show.
        main: Name of the thick one; default: the first.
    """
    points = [point for curve in curves.values() for point in curve]
    right = max((x for x, _ in points), default=1) or 1
    largest = max((y for _, y in points), default=1.0) or 1.0
    across, up = _ticks(right, whole=True), _ticks(largest)
    top = up[-1]
    main = main or next(iter(curves), None)
    names = _LINE * max(0, len(curves) - 1)  # so that they stand above the curves
    bottom = _HEIGHT + names - _MARGIN

    def place(x: float, y: float) -> str:
        height = max(0.0, y) / top * (_HEIGHT - 2 * _MARGIN)
        return f"{_MARGIN + x / right * (_WIDTH - 2 * _MARGIN):.1f},{bottom - height:.1f}"

    def text(x: float | str, y: float | str, words: str, how: str = "") -> str:
        return f'<text x="{x}" y="{y}" {how}>{html.escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT + names}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT + names}" fill="white"/>',
        text(_MARGIN, 20, title),
    ]
    for value in up:
        y = place(0, value).split(",")[1]
        parts.append(f'<line x1="{_MARGIN}" y1="{y}" x2="{_WIDTH - _MARGIN}" y2="{y}" stroke="#d0d7de"/>')
        parts.append(text(_MARGIN - 6, y, f"{value:g}", 'text-anchor="end"'))
    for value in across if across[-1] <= right else across[:-1]:
        parts.append(text(place(value, 0).split(",")[0], bottom + 18, f"{value:g}", 'text-anchor="middle"'))
    for number, (name, curve) in enumerate(curves.items()):
        colour, width = report_page.colour(number), 2 if name == main else 1
        places = [place(x, y) for x, y in curve]
        line = f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        parts += [line, text(_WIDTH - _MARGIN, 20 + _LINE * number, name, f'text-anchor="end" fill="{colour}"')]
        for x, y in (one.split(",") for one in places if len(places) < 20):
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(largest: float, whole: bool = False) -> list[float]:
    """Round values from zero to the first one that is not below the largest, five at most."""
    size = 10.0 ** math.floor(math.log10(largest / 4))
    step = next(one * size for one in (1, 2, 5, 10) if one * size >= largest / 4)
    step = max(1.0, step) if whole else step
    return [number * step for number in range(math.ceil(largest / step - 1e-9) + 1)]


def headline(gains: Sequence[Gain]) -> str:
    """The adapter's Dice on held-out cases, and its gain, for all labels together, in words."""
    sentences = []
    for gain in {gain.prompt: gain for gain in gains}.values():  # of each way its last: all labels together
        before, after = gain.means
        if after is None:
            continue
        how = "Without a prompt" if gain.prompt == "automatic" else f"With {gain.prompt.replace('1 ', 'one ')}"
        cases = counted(len(gain.cases), "held-out case")
        words = f"{how}, the adapter reaches a Dice of {_figures(gain)[1]} on {cases}"
        if before is not None:
            change = "more" if after >= before else "less"
            span = in_brackets(gain.interval_gain, "difference ")
            words += f", {abs(after - before):.3f} {change} than the base{span}"
        sentences.append(f"{words}.")
    return " ".join(sentences) or "No case was held out, so the gain of this adapter is not known."


def gain_in_words(gain: Gain) -> str:
    """Dice before and after, and the gain, each with its interval."""
    before, after, change = ("no answer" if one is None else one for one in _figures(gain))
    words = f"{before} before, {after} after"
    return words if None in gain.means else f"{words}, gain {change}"


def _page(folder: Path, card: Card, evidence: str, notes: Sequence[str]) -> str:
    title = f"Adapter of {card.base} for {', '.join(card.labels)}"
    facts = [("base", card.base), ("method", str(card.method)), ("preset", str(card.recipe["preset"])),
             ("steps", str(card.recipe["steps"])), ("cases", str(len(card.cases)))]  # fmt: skip
    if card.seconds is not None:
        facts.append(("time", f"{duration(card.seconds)} on {card.hardware}"))
    parts = [report_page.heading("What it gained", evidence)]
    if card.gains:
        parts.append(report_page.table(
            ("prompt", "label", "cases", "Dice before", "Dice after", "gain"),
            [(gain.prompt, gain.label, str(len(gain.cases)), *_figures(gain)) for gain in card.gains],
        ))  # fmt: skip
        parts.append("<p class='note'>Means over cases; in brackets the 95 % bootstrap interval over patients. Single "
                     "cases are in dice.csv.</p>")  # fmt: skip
    if notes:
        parts += [report_page.heading("About the cases"), report_page.bullets(notes)]
    if shown := _pictures(folder):
        parts += [report_page.heading("Held-out cases", "The slice of each case that shows most."),
                  report_page.key(card.labels)]  # fmt: skip
        parts += [report_page.pictures(group) for group in shown]
    parts.append(report_page.heading("Course of the training"))
    for file, words in (("loss.svg", "loss by step"), ("dice.svg", "validation Dice by step")):
        if (folder / file).exists():
            parts.append(f"<p>{report_page.image(file, words)}</p>")
    return report_page.page(title, headline(card.gains), facts, parts)


def _pictures(folder: Path) -> list[list[tuple[str, str]]]:
    """File and caption of each picture; those of one case and prompt, before and after, together."""
    shown = []
    for picture in folder.glob("case-*.png"):
        about = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
        case, way = int(picture.stem.split("-")[1]), picture.stem.rpartition("-")[0]
        shown.append(((case, way), about["stage"] != "before", picture.name, about["caption"]))
    groups = groupby(sorted(shown), key=lambda one: one[0])
    return [[(name, caption) for *_, name, caption in group] for _, group in groups]


def _figures(gain: Gain) -> tuple[str | None, str | None, str | None]:
    """Dice before, after, and the difference, with their intervals; None where there is no answer."""
    before, after = gain.means
    return (
        None if before is None else f"{before:.3f}{in_brackets(gain.interval_before)}",
        None if after is None else f"{after:.3f}{in_brackets(gain.interval_after)}",
        None if None in gain.means else f"{after - before:+.3f}{in_brackets(gain.interval_gain)}",
    )

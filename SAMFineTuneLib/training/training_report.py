"""The report of a fine-tuning: `report/index.html` with curves, a table and pictures, `curves.csv`, `dice.csv`.

Plain HTML and SVG, written here: it opens in any browser, offline, and needs no plotting library.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.models.adapters.adapter_card import Card

REPORT = "report"
_WIDTH, _HEIGHT, _MARGIN = 640, 260, 46
_COLOURS = ("#1f6feb", "#8b949e", "#bf8700", "#1a7f37", "#cf222e", "#8250df")

Curve = Sequence[tuple[float, float]]


def write_report(
    folder: Path, card: Card, evidence: str, folds: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()
) -> Path:
    """Write the report of a card into a folder that holds its pictures; `folds` are histories by name, `notes` are
    sentences about the cases that name nobody."""
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
    """Means of up to `points` pieces of a curve that begins at step 1, each at its last step."""
    size = max(1, len(values) // points)
    ends = range(size, len(values) + 1, size)
    return [(end, sum(values[end - size : end]) / size) for end in ends]


def draw_curves(curves: Mapping[str, Curve], title: str) -> str:
    """An SVG with one line a curve, step on x, from zero to the largest value on y."""
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
        colour = _COLOURS[min(number, len(_COLOURS) - 1)]
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


def _page(folder: Path, card: Card, evidence: str, dice: bool, notes: Sequence[str]) -> str:
    title = f"Adapter of {card.base} for {', '.join(card.labels)}"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #d0d7de}img{max-width:100%}"
        ".pictures img{width:19em;margin:.3em}</style>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(str(card.method))}; {card.recipe['steps']} steps, preset {card.recipe['preset']}.</p>",
        f"<h2>What it gained</h2><p>{html.escape(evidence)}</p>",
    ]
    if card.gains:
        rows = "".join(
            f"<tr><td>{html.escape(gain.prompt)}<td>{html.escape(gain.label)}<td>{len(gain.cases)}"
            f"<td>{_figure(gain.means[0], gain.interval_before)}<td>{_figure(gain.means[1], gain.interval_after)}"
            for gain in card.gains
        )
        parts.append(
            "<table><tr><th>prompt<th>label<th>cases<th>Dice before<th>Dice after" + rows + "</table>"
            "<p>Mean over cases with the 95 % bootstrap interval over patients; single cases are in dice.csv.</p>"
        )
    if notes:
        parts.append("<h2>About the cases</h2><ul>" + "".join(f"<li>{html.escape(note)}" for note in notes) + "</ul>")
    parts.append("<h2>Course</h2><p><img src='loss.svg' alt='loss by step'></p>")
    if dice:
        parts.append("<p><img src='dice.svg' alt='validation Dice by step'></p>")
    if pictures := sorted(path.name for path in folder.glob("case-*.png")):
        parts.append("<h2>Held-out cases</h2><p>Green: the reference. Red: the answer.</p>")
        for name in dict.fromkeys(picture.rpartition("-")[0] for picture in pictures):
            shown = [f"{name}-{stage}.png" for stage in ("before", "after") if f"{name}-{stage}.png" in pictures]
            images = "".join(f"<img src='{one}' alt='{one[:-4]}' title='{one[:-4]}'>" for one in shown)
            words = name.replace("case-", "case ", 1).replace("-", " ")
            after = ", ".join(one.removesuffix(".png").rpartition("-")[2] for one in shown)
            parts.append(f"<h3>{words}: {after}</h3><p class='pictures'>{images}</p>")
    return "\n".join([*parts, "</html>", ""])


def _figure(mean: float | None, span: tuple[float, float] | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.3f}" + (f" ({span[0]:.3f}–{span[1]:.3f})" if span else "")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""The style that all reports share: one HTML page with a headline, facts, tables and pictures, readable offline.

Labels and methods have the colours of Okabe and Ito ("Color Universal Design", 2008), which people with any kind of
colour blindness can tell apart.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from SAMFineTuneLib.images import overlay_picture
from SAMFineTuneLib.inference.input_crop import View, bounding_box, square_view
from SAMFineTuneLib.prompts import PlanePrompts

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442", "#000000")
REFERENCE = (1.0, 1.0, 1.0)
"""Colour of the reference's outline in pictures."""
_SENTENCE = 40  # characters from which on a cell may be broken into lines
_SMALLEST = 48  # pixels of a picture's side at least
_ON_PICTURES = 7  # colours that are visible on grey values
_STYLE = """
body{font:15px/1.45 sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#1f2328}
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em}h3{font-size:1em}
p.headline{font-size:1.15em;max-width:46em}
p.note{color:#57606a;max-width:52em}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
td,th{padding:.25em .7em;text-align:left;border-bottom:1px solid #d0d7de;vertical-align:top}
.wide td{white-space:nowrap}
.wide td.text{white-space:normal;min-width:20em}
img{max-width:100%}
body>svg{display:block;width:100%;max-width:44em}
.pictures{display:flex;flex-wrap:wrap;gap:1em}
.pictures figure{margin:0;width:19em}
.pictures img{width:19em}
figcaption{font-size:12px;color:#57606a}
.key span{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em;border:1px solid #57606a;vertical-align:-1px}
ul{padding-left:1.2em}
"""


def csv_text(rows: Iterable[Iterable[object]], digits: int = 4) -> str:
    """Rows as CSV: numbers with `digits` decimals, nothing where a value is None."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [f"{cell:.{digits}f}" if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    return text.getvalue()


def colour(number: int) -> str:
    """Colour of a label or a method, counted from 0, as `#rrggbb`; the colours repeat after eight."""
    return COLOURS[number % len(COLOURS)]


def paint(number: int) -> tuple[float, float, float]:
    """Colour of a label, counted from 0, on a picture: red, green, blue from 0 to 1."""
    text = COLOURS[number % _ON_PICTURES]
    return tuple(int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))


def close_up(mask: np.ndarray, sides: float) -> View:
    """The square around what a mask (rows, columns) shows, `sides` times as wide as that, for a picture."""
    box = bounding_box(mask).reshape(2, 2)
    side = max(_SMALLEST, sides * float(np.ptp(box, axis=0).max() + 1))
    return square_view(mask.shape, tuple(box.mean(axis=0)), side)


def draw_answers(
    file: Path,
    picture: np.ndarray,
    answers: Mapping[int, np.ndarray],
    references: Iterable[np.ndarray],
    prompts: Sequence[PlanePrompts],
    legend: Mapping[int, str],
    view: View | None = None,
) -> None:
    """Draw answers, prompts and the outlines of references over a slice, as PNG.

    Args:
        file: The picture to write.
        picture: uint8 (rows, columns).
        answers: Masks (rows, columns) by the number of their label.
        references: Correct masks (rows, columns).
        prompts: The prompts.
        legend: Lines of text by the number of a label.
        view: The part that is shown; default: everything.
    """
    view = view or View.whole(picture.shape)
    overlay_picture(
        file,
        view.crop(picture),
        [(view.crop(mask), paint(number)) for number, mask in answers.items()],
        points=[(x, y, bool(label)) for one in prompts
                for (x, y), label in zip(view.to_view(one.points).tolist(), one.labels, strict=True)],
        boxes=[view.to_view(one.box.reshape(2, 2)).ravel() for one in prompts if one.box is not None],
        outlines=[(view.crop(mask), REFERENCE) for mask in references],
        legend=[*((text, paint(number)) for number, text in legend.items()), ("reference", REFERENCE)],
    )  # fmt: skip


def page(title: str, headline: str, facts: Iterable[tuple[str, str]], parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: Heading.
        headline: The result in a sentence or two.
        facts: Pairs of what and how; date and version are added.
        parts: HTML from the functions below.
    """
    from SAMFineTuneLib import __version__

    today = datetime.now(timezone.utc).date().isoformat()
    facts = [*facts, ("made", f"{today} with SAMFineTune {__version__}")]
    rows = "".join(f"<tr><th>{html.escape(what)}<td>{html.escape(how)}" for what, how in facts)
    return "\n".join([
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p class='headline'>{html.escape(headline)}</p>",
        f"<table>{rows}</table>",
        *parts,
        "</body></html>",
        "",
    ])  # fmt: skip


def heading(text: str, note: str = "", name: str = "") -> str:
    """Heading of a section, with a sentence or two on how to read it.

    Args:
        text: the heading.
        note: the sentences.
        name: anchor for links, none for "".
    """
    anchor = f" id='{html.escape(name)}'" if name else ""
    return f"<h2{anchor}>{html.escape(text)}</h2>" + (f"<p class='note'>{html.escape(note)}</p>" if note else "")


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list; nothing without any."""
    return "<ul>" + "".join(f"<li>{html.escape(one)}" for one in sentences) + "</ul>" if sentences else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """A table of texts; None is a cell without a value, and columns of such cells alone are left out."""
    shown = [place for place in range(len(header)) if any(row[place] is not None for row in rows)]
    head = "".join(f"<th>{html.escape(header[place])}" for place in shown)
    body = "".join(
        "<tr>" + "".join(_cell("–" if row[place] is None else row[place]) for place in shown) for row in rows
    )
    return f"<div class='wide'><table><tr>{head}{body}</table></div>"


def _cell(text: str) -> str:
    """A cell; sentences may be broken into lines."""
    return f"<td{' class=text' * (len(text) > _SENTENCE)}>{html.escape(text)}"


def image(source: str, words: str) -> str:
    """A picture by its file's name or from `embedded`."""
    return f'<img alt="{html.escape(words)}" src="{html.escape(source)}">'


def pictures(shown: Iterable[tuple[str, str]]) -> str:
    """Pictures side by side, each with its caption."""
    figures = (f"<figure>{image(source, words)}<figcaption>{html.escape(words)}</figcaption></figure>"
               for source, words in shown)  # fmt: skip
    return f"<div class='pictures'>{''.join(figures)}</div>"


def key(labels: Sequence[str], filled: str = "the answer", outlined: str = "the reference") -> str:
    """A legend of the colours in pictures.

    Args:
        labels: in the order of their colours.
        filled: what filled areas are.
        outlined: what white lines are.
    """
    boxes = "".join(
        f"<span style='background:{COLOURS[number % _ON_PICTURES]}'></span>{html.escape(label)}"
        for number, label in enumerate(labels)
    )
    prompts = " Green dots: points inside; yellow rectangles: boxes." if filled == "the answer" else ""
    return f"<p class='key'>Filled, {filled}:{boxes}. White line: {outlined}.{prompts}</p>"


def embedded(png: bytes) -> str:
    """A PNG file's content as the source of `image` or `pictures`, so that the page is one file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

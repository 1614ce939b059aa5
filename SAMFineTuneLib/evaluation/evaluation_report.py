"""`report.html`: one file that opens in any browser without a network; pictures lie in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from SAMFineTuneLib.evaluation.example_pictures import Overlay
from SAMFineTuneLib.evaluation.tables import Table, text_of
from SAMFineTuneLib.simulation.cosmos_prompts import STRATEGIES

_STYLE = """
body{font:15px/1.45 sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#1f2328}
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em}
p.note{color:#57606a;max-width:52em}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
td,th{padding:.25em .7em;text-align:left;border-bottom:1px solid #d0d7de;vertical-align:top}
.wide td{white-space:nowrap}
img{max-width:100%}
.overlays{display:flex;flex-wrap:wrap;gap:1em}
.overlays figure{margin:0;width:19em}
.overlays img{width:19em}
figcaption{font-size:12px;color:#57606a}
ul{padding-left:1.2em}
"""


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    tables: Iterable[Table],
    figures: Mapping[str, bytes],
    overlays: Sequence[Overlay],
) -> str:
    """The whole report as HTML."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        "<table>" + "".join(f"<tr><th>{html.escape(a)}<td>{html.escape(b)}" for a, b in facts) + "</table>",
    ]
    if notes:
        parts.append("<ul>" + "".join(f"<li>{html.escape(note)}" for note in notes) + "</ul>")
    for table in tables:
        parts.append(_table(table))
    for name, png in figures.items():
        parts.append(f"<h2>{html.escape(name)}</h2><p>{_image(png, name)}</p>")
    if overlays:
        parts.append("<h2>Best, median and worst</h2><p class='note'>By Dice over all objects. Green: the reference. "
                     "Red: the answer. Prompts as dots and yellow boxes.</p>")  # fmt: skip
        for group in sorted({(one.contestant, one.strategy) for one in overlays}):
            shown = [one for one in overlays if (one.contestant, one.strategy) == group]
            shown.sort(key=lambda one: -one.row.dice)
            parts.append(f"<h3>{html.escape(group[0])}, {group[1]}: {STRATEGIES[group[1]]}</h3><div class='overlays'>")
            parts += [_figure(one) for one in shown]
            parts.append("</div>")
    return "\n".join([*parts, "</body></html>", ""])


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}" for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(text_of(cell))}" for cell in row) for row in table.rows)
    return (
        f"<h2 id='{table.name}'>{html.escape(table.title)}</h2><p class='note'>{html.escape(table.note)}</p>"
        f"<div class='wide'><table><tr>{head}{rows}</table></div>"
    )


def _figure(one: Overlay) -> str:
    row = one.row
    words = f"{one.rank}: Dice {row.dice:.3f}; {row.label}, case {row.case}, {row.object.split('/')[0]}"
    return f"<figure>{_image(one.file.read_bytes(), words)}<figcaption>{html.escape(words)}</figcaption></figure>"


def _image(png: bytes, words: str) -> str:
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'

"""Curves and box plots of an evaluation, as PNG bytes. Needs matplotlib, but no window."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib.evaluation.result_rows import Results, Row, mean
from SAMFineTuneLib.evaluation.slice_protocols import WAYS
from SAMFineTuneLib.evaluation.volume_protocol import BY_SLICE, STARTS
from SAMFineTuneLib.evaluation.volume_sessions import CLICKED
from SAMFineTuneLib.evaluation.volume_tables import BANDS, by_distance
from SAMFineTuneLib.report_page import colour
from SAMFineTuneLib.simulation.cosmos_prompts import MOVES, STRATEGIES


@dataclass(frozen=True)
class _Curve:
    """Means of groups of rows along x; dashed curves have no interval and no entry in the legend."""

    method: str
    groups: Sequence[Sequence[Row]]
    dashed: bool = False


@dataclass(frozen=True)
class _Panel:
    """Curves in one pair of axes: `ticks` name the groups along x."""

    title: str
    x: str
    ticks: Sequence[object]
    curves: list[_Curve]
    column: str = "dice"


def all_figures(results: Results) -> dict[str, bytes]:
    """PNG files by title, for the protocols that have rows."""
    drawn = {
        "Dice of objects by prompt": _boxes(results),
        "Dice by number of prompts": _curves(results, _interactive(results)),
        "Dice by distance from the prompted slice": _curves(results, _distance(results)),
        "Dice with misplaced prompts": _curves(results, _perturbation(results), rows=2),
        "Volumes by clicks after a box": _curves(results, _volume_clicks(results)),
        "Volumes by rounds of correction": _curves(results, _rounds(results)),
    }
    return {title: png for title, png in drawn.items() if png is not None}


def _boxes(results: Results) -> bytes | None:
    """Box plots of all objects rather than means, because they show the range that a user may see."""
    shown = [way for way in STRATEGIES if any(results.of(name, way) for name in results.methods)]
    if not shown:
        return None
    figure, (axes,) = _canvas(1, 1.4)
    count = len(results.methods)
    for number, name in enumerate(results.methods):
        ways = [way for way in shown if results.of(name, way)]
        places = [shown.index(way) + (number - (count - 1) / 2) * 0.8 / count for way in ways]
        dice = [[row.dice for row in results.of(name, way)] for way in ways]
        drawn = axes.boxplot(dice, positions=places, widths=0.7 / count, patch_artist=True, manage_ticks=False,
                             medianprops={"color": "black"}, flierprops={"markersize": 3})  # fmt: skip
        for box in drawn["boxes"]:
            box.set_facecolor(colour(number))
            box.set_alpha(0.6)
        axes.plot([], [], color=colour(number), linewidth=6, alpha=0.6, label=name)
    axes.set_xticks(range(len(shown)), [f"{way}\n{STRATEGIES[way]}" for way in shown], fontsize=8)
    return _finished(figure, [axes])


def _interactive(results: Results) -> Iterable[_Panel]:
    """One panel for each first prompt: corrections in the middle of errors, dashed without the mask fed back."""
    for start in dict.fromkeys(way.start for way in WAYS):
        ways = {str(way): way for way in WAYS if way.start == start and way.correction == "centre"}
        curves = [_Curve(name, results.course(name, "interactive", way), dashed=not ways[way].feedback)
                  for way, name, _ in results.each("interactive", ways)]  # fmt: skip
        steps = max((len(curve.groups) for curve in curves), default=0)
        yield _Panel(f"from {start} (dashed: mask not fed back)", "prompts", range(1, steps + 1), curves)


def _distance(results: Results) -> Iterable[_Panel]:
    ticks = ["0", *(f"{low}–{high}" if np.isfinite(high) else f"{low}+" for low, high in BANDS)]
    for start in STARTS:
        curves = [_Curve(name, by_distance(found)) for _, name, found in results.each("3d", [start + BY_SLICE])]
        yield _Panel(f"from {start}", "mm from the prompted slice", ticks, curves)


def _perturbation(results: Results) -> Iterable[_Panel]:
    """One panel for each way of moving a prompt, for the first strategy that it applies to."""
    panels = {}
    for (way, what, unit), bands in MOVES.items():
        curves = [
            _Curve(name, [results.of(name, way), *(results.of(name, "perturbation", str(how)) for how in bands)])
            for _, name, _ in results.each("perturbation", [str(bands[0])])
        ]
        ticks = ["0", *(f"{how.low}–{how.high}" for how in bands)]
        across = "pixels" if unit == "px" else "% of the longer side"
        panels.setdefault((what, unit), _Panel(f"{way}, {what}", across, ticks, curves))
    return panels.values()


def _volume_clicks(results: Results) -> Iterable[_Panel]:
    """Dice and NSD of whole volumes after a box and each click."""
    for column, title in (("dice", "Dice"), ("nsd", "NSD")):
        curves = [_Curve(name, results.course(name, "3d", CLICKED)) for _, name, _ in results.each("3d", [CLICKED])]
        steps = max((len(curve.groups) for curve in curves), default=0)
        yield _Panel(title, "clicks after the box", range(steps), curves, column)


def _rounds(results: Results) -> Iterable[_Panel]:
    for start in STARTS:
        curves = [_Curve(name, results.course(name, "3d", start)) for _, name, _ in results.each("3d", [start])]
        steps = max((len(curve.groups) for curve in curves), default=0)
        yield _Panel(f"from {start}", "corrections", range(steps), curves)


def _curves(results: Results, panels: Iterable[_Panel], rows: int = 1) -> bytes | None:
    """Panels side by side, without those that have no curves; None where none has any."""
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        return None
    figure, grid = _canvas(len(panels) // rows, rows=rows)
    for axes, panel in zip(grid, panels, strict=True):
        for curve in panel.curves:
            _draw(axes, curve, panel.column, colour(results.methods.index(curve.method)))
        axes.set_xticks(range(len(panel.ticks)), panel.ticks)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(panel.x)
    return _finished(figure, grid)


def _draw(axes: Any, curve: _Curve, column: str, colour: str) -> None:
    """Means of groups of rows, their intervals shaded; groups without values are left out."""
    points = [(place, found) for place, rows in enumerate(curve.groups) if (found := mean(rows, column))]
    axes.plot([place for place, _ in points], [found.mean for _, found in points], "--" if curve.dashed else "-",
              marker="o", markersize=3, color=colour, label=None if curve.dashed else curve.method)  # fmt: skip
    spans = [(place, found.low, found.high) for place, found in points if found.low is not None]
    if spans and not curve.dashed:
        axes.fill_between(*zip(*spans, strict=True), color=colour, alpha=0.1, linewidth=0)


def _canvas(columns: int, width: float = 1.0, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * width * columns + 0.6, 2.8 * rows + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())


def _finished(figure: Any, panels: Sequence[Any]) -> bytes:
    panels[0].set_ylabel("Dice")
    for axes in panels:
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()

"""Curves and box plots of an evaluation, as PNG bytes. Needs matplotlib, but no window."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from SAMFineTuneLib.evaluation.interactive_protocol import WAYS
from SAMFineTuneLib.evaluation.result_rows import by_patient
from SAMFineTuneLib.evaluation.tables import BANDS, Results
from SAMFineTuneLib.evaluation.volume_protocol import BY_SLICE, STARTS
from SAMFineTuneLib.evaluation.volume_sessions import CLICKED
from SAMFineTuneLib.metrics.patient_statistics import estimate
from SAMFineTuneLib.report_page import colour
from SAMFineTuneLib.simulation.cosmos_prompts import PERTURBATIONS, STRATEGIES

_UNIT = (0.0, 1.02)


def all_figures(results: Results) -> dict[str, bytes]:
    """PNG files by title, for the protocols that have rows."""
    drawn = {
        "Dice of objects by prompt": _boxes(results),
        "Dice by number of prompts": _interactive(results),
        "Dice by distance from the prompted slice": _distance(results),
        "Dice with misplaced prompts": _perturbation(results),
        "Volumes by clicks after a box": _volume_clicks(results),
        "Volumes by rounds of correction": _rounds(results),
    }
    return {title: png for title, png in drawn.items() if png is not None}


def _boxes(results: Results) -> bytes | None:
    """Box plots of all objects rather than means, since they show what a user may meet."""
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


def _interactive(results: Results) -> bytes | None:
    """One panel for each first prompt: corrections in the middle of errors, dashed without the mask fed back."""
    starts = list(dict.fromkeys(way.start for way in WAYS))
    if not any(results.asked("interactive", str(way)) for way in WAYS):
        return None
    figure, panels = _canvas(len(starts))
    for axes, start in zip(panels, starts, strict=True):
        for way in WAYS:
            if way.start != start or way.correction != "centre":
                continue
            for name in results.asked("interactive", str(way)):
                steps = results.steps(name, "interactive", str(way))
                found = [results.of(name, "interactive", str(way), step) for step in steps]
                number = results.methods.index(name)
                _curve(axes, steps, found, number, name if way.feedback else None, "-" if way.feedback else "--",
                       shaded=way.feedback)  # fmt: skip
        axes.set_title(f"from {start} (dashed: mask not fed back)", fontsize=9)
        axes.set_xlabel("prompts")
    return _finished(figure, panels)


def _distance(results: Results) -> bytes | None:
    shown = [start for start in STARTS if results.asked("3d", start + BY_SLICE)]
    if not shown:
        return None
    figure, panels = _canvas(len(shown))
    for axes, start in zip(panels, shown, strict=True):
        for name in results.asked("3d", start + BY_SLICE):
            found = results.of(name, "3d", start + BY_SLICE)
            groups = [[row for row in found if row.distance == 0]]
            groups += [[row for row in found if row.distance and low <= abs(row.distance) < high]
                       for low, high in BANDS]  # fmt: skip
            _curve(axes, range(len(groups)), groups, results.methods.index(name), name)
        names = ["0", *(f"{low}–{high}" if np.isfinite(high) else f"{low}+" for low, high in BANDS)]
        axes.set_xticks(range(len(names)), names)
        axes.set_title(f"from {start}", fontsize=9)
        axes.set_xlabel("mm from the prompted slice")
    return _finished(figure, panels)


def _perturbation(results: Results) -> bytes | None:
    kinds = list(dict.fromkeys((how.what, how.unit) for how in PERTURBATIONS))
    names = results.asked("perturbation", str(PERTURBATIONS[0]))
    if not names:
        return None
    figure, panels = _canvas(len(kinds) // 2, rows=2)
    for axes, kind in zip(panels, kinds, strict=True):
        strategy = next(how.strategy for how in PERTURBATIONS if (how.what, how.unit) == kind)
        bands = [how for how in PERTURBATIONS if (how.strategy, how.what, how.unit) == (strategy, *kind)]
        for name in names:
            found = [results.of(name, strategy), *(results.of(name, "perturbation", str(how)) for how in bands)]
            _curve(axes, range(4), found, results.methods.index(name), name)
        axes.set_xticks(range(4), ["0", *(f"{how.low}–{how.high}" for how in bands)])
        axes.set_title(f"{strategy}, {kind[0]}", fontsize=9)
        axes.set_xlabel("pixels" if kind[1] == "px" else "% of the longer side")
    return _finished(figure, panels)


def _volume_clicks(results: Results) -> bytes | None:
    """Dice and NSD of whole volumes after a box and each click."""
    names = results.asked("3d", CLICKED)
    if not names:
        return None
    figure, panels = _canvas(2)
    for axes, column in zip(panels, ("dice", "nsd"), strict=True):
        for name in names:
            steps = results.steps(name, "3d", CLICKED)
            found = [results.of(name, "3d", CLICKED, step) for step in steps]
            clicks = [step - 1 for step in steps]
            _curve(axes, clicks, found, results.methods.index(name), name, column=column)
        axes.set_xticks(clicks)
        axes.set_xlabel("clicks after the box")
    panels[1].set_title("NSD", fontsize=9)
    return _finished(figure, panels)


def _rounds(results: Results) -> bytes | None:
    shown = [start for start in STARTS if results.asked("3d", start)]
    if not shown:
        return None
    figure, panels = _canvas(len(shown))
    for axes, start in zip(panels, shown, strict=True):
        for name in results.asked("3d", start):
            steps = results.steps(name, "3d", start)
            found = [results.of(name, "3d", start, step) for step in steps]
            _curve(axes, [step - 1 for step in steps], found, results.methods.index(name), name)
        axes.set_xticks([step - 1 for step in steps])
        axes.set_title(f"from {start}", fontsize=9)
        axes.set_xlabel("corrections")
    return _finished(figure, panels)


def _curve(
    axes: Any, x: Sequence[int], groups: Sequence[Sequence], number: int, label: str | None, style: str = "-",
    shaded: bool = True, column: str = "dice",
) -> None:  # fmt: skip
    """Means of groups of rows, their intervals shaded; groups without rows are left out."""
    points = [(place, estimate(by_patient(rows, column))) for place, rows in zip(x, groups, strict=True) if rows]
    points = [(place, mean) for place, mean in points if mean is not None]
    where = [place for place, _ in points]
    axes.plot(where, [mean.mean for _, mean in points], style, marker="o", markersize=3, color=colour(number),
              label=label)  # fmt: skip
    spans = [(place, mean.low, mean.high) for place, mean in points if mean.low is not None]
    if shaded and spans:
        axes.fill_between(*zip(*spans, strict=True), color=colour(number), alpha=0.1, linewidth=0)


def _canvas(columns: int, width: float = 1.0, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * width * columns + 0.6, 2.8 * rows + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())


def _finished(figure: Any, panels: Sequence[Any]) -> bytes:
    panels[0].set_ylabel("Dice")
    for axes in panels:
        axes.set_ylim(*_UNIT)
        axes.grid(alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()

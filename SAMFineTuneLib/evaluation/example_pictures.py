"""Pictures of answers: the best, the median and the worst object for each method and strategy.

An evaluation does not keep masks. Prompts follow from the case alone, so the few answers that are shown are computed
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from SAMFineTuneLib.cases.cases import Case
from SAMFineTuneLib.cases.labelled_case import LabelChoice, read_labelled
from SAMFineTuneLib.evaluation.evaluation_settings import Settings
from SAMFineTuneLib.evaluation.methods import Entry, OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.evaluation.tables import Results
from SAMFineTuneLib.images import overlay_picture
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.report_page import REFERENCE, paint
from SAMFineTuneLib.simulation.cosmos_prompts import prompts_for

SHOWN = ("S2", "S5")
_MARGIN = 0.75  # around the object, in parts of its longer side
_SMALLEST = 48  # pixels of a picture's side at least


@dataclass(frozen=True)
class Overlay:
    """A picture and what it shows."""

    file: Path
    method: str
    strategy: str
    rank: str
    row: Row


def draw_overlays(
    folder: Path,
    results: Results,
    entries: Sequence[Entry],
    cases: Mapping[str, Case],
    choice: LabelChoice,
    names: Sequence[str],
    settings: Settings,
    device: str = "auto",
) -> Iterator[Overlay]:
    """Draw into a folder; `cases` by their short digests. Baselines are not drawn."""
    wanted = [
        (row, entry, strategy, rank)
        for entry in entries
        if not entry.is_baseline
        for strategy in SHOWN
        for rank, row in ranked(results.of(entry.name, strategy))
    ]
    opened: dict[str, OpenMethod] = {}
    subject, of = None, ""
    for row, entry, strategy, rank in sorted(wanted, key=lambda item: item[0].case):
        if of != row.case:
            of = row.case
            labelled = read_labelled(cases[of], choice, names)
            subject = Subject(labelled, settings.window, settings.orientation)
        if entry.name not in opened:
            opened[entry.name] = OpenMethod(entry, device)
        number = [one.name for one in entries].index(entry.name) + 1
        file = folder / f"{number}-{strategy}-{rank}.png"
        _draw(file, subject, row, strategy, opened[entry.name], settings)
        yield Overlay(file, entry.name, strategy, rank, row)


def ranked(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The best, the median and the worst row by Dice; fewer where there are fewer rows."""
    order = sorted(rows, key=lambda row: (-row.dice, row.case, row.object))
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    chosen = {place: rank for rank, place in reversed(places.items())} if order else {}
    return [(rank, order[place]) for place, rank in sorted(chosen.items())]


def _draw(
    file: Path, subject: Subject, row: Row, strategy: str, method: OpenMethod, settings: Settings
) -> None:
    thing = next(one for one in subject.objects(settings.slices) if one.name == row.object)
    prompts = prompts_for(strategy, thing.mask, thing.ignored)
    answer = thing.counted(method.answer(thing.picture, prompts).mask)
    top, left, bottom, right = _around(thing.mask)
    part = slice(top, bottom), slice(left, right)
    overlay_picture(
        file,
        thing.picture[part],
        [(answer[part], paint(thing.number - 1))],
        points=[(float(x) - left, float(y) - top, bool(label))
                for (x, y), label in zip(prompts.points, prompts.labels, strict=True)],
        boxes=[] if prompts.box is None else [prompts.box - [left, top, left, top]],
        outlines=[(thing.mask[part], REFERENCE)],
        legend=[(f"{row.label}, {strategy}: Dice {row.dice:.3f}", paint(thing.number - 1)), ("reference", REFERENCE)],
    )  # fmt: skip


def _around(mask) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the part of a picture that is shown."""
    x0, y0, x1, y1 = (int(edge) for edge in bounding_box(mask))
    side = max(_SMALLEST, (max(x1 - x0, y1 - y0) + 1) * (1 + 2 * _MARGIN))
    middles = (y0 + y1) / 2, (x0 + x1) / 2
    top, left = (max(0, round(middle - side / 2)) for middle in middles)
    bottom, right = (
        min(length, round(middle + side / 2) + 1) for middle, length in zip(middles, mask.shape, strict=True)
    )
    return top, left, bottom, right

"""Pictures of answers: the best, the median and the worst object for each method and strategy.

An evaluation does not keep masks. Prompts follow from the case alone, so the few answers that are shown are computed
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from SAMFineTuneLib.evaluation.evaluation_tasks import Setup, Tested, opened, subject_of
from SAMFineTuneLib.evaluation.methods import ListedMethod, OpenMethod
from SAMFineTuneLib.evaluation.objects import SliceObject
from SAMFineTuneLib.evaluation.result_rows import Results, Row
from SAMFineTuneLib.report_page import close_up, draw_answers
from SAMFineTuneLib.simulation.cosmos_prompts import prompts_for

SHOWN = ("S2", "S5")
_SHOWN_SIDE = 2.5  # of the object's longer side


@dataclass(frozen=True)
class Overlay:
    """A picture and what it shows."""

    file: Path
    method: str
    strategy: str
    rank: str
    row: Row


def draw_overlays(
    folder: Path, results: Results, entries: Sequence[ListedMethod], cases: Sequence[Tested], setup: Setup
) -> Iterator[Overlay]:
    """Draw the best, the median and the worst answer of each method by some strategies. Baselines are not drawn.

    Args:
        folder: that gets a file for each picture.
        results: all rows, of which the pictures are chosen.
        entries: the methods.
        cases: the tested cases.
        setup: of the evaluation.

    Yields:
        Each picture once its file is written.
    """
    by_name = {tested.short: tested for tested in cases}
    wanted = [
        (row, number, entry, strategy, rank)
        for number, entry in enumerate(entries, start=1)
        if not entry.is_baseline
        for strategy in SHOWN
        for rank, row in ranked(results.of(entry.name, strategy))
    ]
    for row, number, entry, strategy, rank in sorted(wanted, key=lambda item: item[0].case):
        things = subject_of(by_name[row.case], setup).objects(setup.settings.slices)
        file = folder / f"{number}-{strategy}-{rank}.png"
        thing = next(one for one in things if one.name == row.object)
        _draw(file, thing, row, strategy, opened(entry, setup.device))
        yield Overlay(file, entry.name, strategy, rank, row)


def ranked(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The best, the median and the worst row by Dice; fewer where there are fewer rows."""
    order = sorted(rows, key=lambda row: (-row.dice, row.case, row.object))
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    chosen = {place: rank for rank, place in reversed(places.items())} if order else {}
    return [(rank, order[place]) for place, rank in sorted(chosen.items())]


def _draw(file: Path, thing: SliceObject, row: Row, strategy: str, method: OpenMethod) -> None:
    prompts = prompts_for(strategy, thing.mask, thing.ignored)
    answer = thing.counted(method.answer(thing.picture, prompts).mask)
    draw_answers(file, thing.picture, {thing.number - 1: answer}, [thing.mask], [prompts],
                 {thing.number - 1: f"{row.label}, {strategy}: Dice {row.dice:.3f}"},
                 close_up(thing.mask, _SHOWN_SIDE))  # fmt: skip

"""A simulated annotator corrects an answer click by click (MedicoSAM, arXiv 2501.11734): first prompt, corrections.

Each further step adds one point where the answer is wrong: in the middle of its largest wrong piece, as a careful
annotator would, or anywhere in what is wrong; with or without the previous answer as a mask prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from SAMFineTuneLib.evaluation.evaluation_settings import Settings
from SAMFineTuneLib.evaluation.methods import OpenMethod
from SAMFineTuneLib.evaluation.objects import SliceObject, Subject
from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.evaluation.single_prompt_protocol import judged, row_of
from SAMFineTuneLib.simulation.corrections import correction, with_click
from SAMFineTuneLib.simulation.cosmos_prompts import prompts_for


@dataclass(frozen=True)
class Way:
    """How a sequence goes: `start` "point" or "box", `feedback` of the mask, `correction` "centre" or "random"."""

    start: str
    feedback: bool
    correction: str

    def __str__(self) -> str:
        return f"from {self.start}, {'mask fed back' if self.feedback else 'no mask'}, {self.correction}"


WAYS = tuple(
    Way(start, feedback, correction)
    for start in ("point", "box")
    for feedback in (True, False)
    for correction in ("centre", "random")
)
HEADLINE = tuple(Way(start, True, "centre") for start in ("point", "box"))
_FIRST = {"point": "S2", "box": "S5"}


def interactive(method: OpenMethod, subject: Subject, settings: Settings) -> Iterator[Row]:
    """Correct every object in every way; baselines, which take no mask prompt, in half of the ways."""
    for thing in subject.objects(settings.slices):
        for way in WAYS:
            if way.feedback or not method.entry.is_baseline:
                yield from _sequence(method, subject, thing, way, settings)


def _sequence(
    method: OpenMethod, subject: Subject, thing: SliceObject, way: Way, settings: Settings
) -> Iterator[Row]:
    rng = subject.random(settings.seed, thing.name, way.start, way.correction)
    prompts = prompts_for(_FIRST[way.start], thing.mask, thing.ignored)
    answer = method.answer(thing.picture, prompts)
    row = judged(answer, thing, row_of(method, subject, thing, "interactive", str(way)), settings)
    yield row
    for step in range(2, settings.steps + 1):
        if (click := correction(thing.counted(answer.mask), thing.mask, way.correction, rng)) is not None:
            prompts = with_click(prompts, *click)
            answer = method.answer(thing.picture, prompts, answer if way.feedback else None)
            row = judged(answer, thing, row, settings)
        row = replace(row, step=step)  # where nothing is wrong any more, nothing is clicked
        yield row

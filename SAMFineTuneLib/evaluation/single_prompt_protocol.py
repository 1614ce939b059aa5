"""One prompt, one answer: the strategies S2 to S6, and the same prompts misplaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from SAMFineTuneLib.evaluation.evaluation_settings import Settings
from SAMFineTuneLib.evaluation.methods import OpenMethod
from SAMFineTuneLib.evaluation.objects import SliceObject, Subject
from SAMFineTuneLib.evaluation.result_rows import Row, numbers_of
from SAMFineTuneLib.metrics.mask_metrics import agreement, dice
from SAMFineTuneLib.simulation.cosmos_prompts import PERTURBATIONS, perturbed, prompts_for


def strategy(name: str, method: OpenMethod, subject: Subject, settings: Settings) -> Iterator[Row]:
    """Prompt every object by one strategy."""
    for thing in subject.objects(settings.slices):
        answer = method.answer(thing.picture, prompts_for(name, thing.mask, thing.ignored))
        yield judged(answer, thing, row_of(method, subject, thing, name), settings)


def perturbation(method: OpenMethod, subject: Subject, settings: Settings) -> Iterator[Row]:
    """Prompt every object by every perturbation; `strategy` has the prompts in their place."""
    for thing in subject.objects(settings.slices):
        for how in PERTURBATIONS:
            rng = subject.random(settings.seed, thing.name, str(how).replace(how.strategy, "", 1))
            prompts = perturbed(prompts_for(how.strategy, thing.mask, thing.ignored), how, thing.mask, rng)
            answer = method.answer(thing.picture, prompts)
            row = row_of(method, subject, thing, "perturbation", str(how))
            yield judged(answer, thing, row, settings)


def row_of(method: OpenMethod, subject: Subject, thing: SliceObject, protocol: str, variant: str = "") -> Row:
    """A row about an object, without measurements."""
    return Row(method.name, "", subject.digest, thing.label, protocol, variant, thing.name)


def judged(answer, thing: SliceObject, row: Row, settings: Settings) -> Row:
    """The row with the measurements of an answer: of the candidate that a user gets, and of the best candidate."""
    mask = thing.counted(answer.mask)
    found = agreement(mask, thing.mask, thing.spacing, settings.tolerance or 2 * thing.spacing[0])
    oracle = max(dice(mask, thing.mask) for mask in thing.counted(answer.masks))
    return replace(row, oracle=oracle, score=answer.score, **numbers_of(found))

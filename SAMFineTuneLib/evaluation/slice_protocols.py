"""Protocols for single objects on slices: one prompt (S2 to S6), misplaced prompts, corrections, everything mode (S1).

Corrections follow MedicoSAM (arXiv 2501.11734): each further step adds one point where the answer is wrong: in the
middle of its largest wrong piece, as a careful annotator would, or anywhere in the error; with or without the previous
answer as a mask prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.evaluation.baselines import BaselineAnswer
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.methods import OpenMethod
from SAMFineTuneLib.evaluation.objects import SliceObject, Subject
from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.inference.everything_mode import automatic_masks
from SAMFineTuneLib.inference.settings import EverythingSettings
from SAMFineTuneLib.metrics.mask_metrics import agreement, dice
from SAMFineTuneLib.simulation.corrections import correction, with_click
from SAMFineTuneLib.simulation.cosmos_prompts import PERTURBATIONS, perturbed, prompts_for

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.prediction import Prediction


@dataclass(frozen=True)
class Way:
    """A kind of sequence: `start` "point" or "box", `feedback` of the mask, `correction` "centre" or "random"."""

    start: str
    feedback: bool
    correction: str

    def __str__(self) -> str:
        return f"from {self.start}, {'mask fed back' if self.feedback else 'no mask'}, {self.correction}"


WAYS = tuple(Way(*one) for one in product(("point", "box"), (True, False), ("centre", "random")))
HEADLINE = tuple(Way(start, True, "centre") for start in ("point", "box"))
_FIRST = {"point": "S2", "box": "S5"}


def everything(method: OpenMethod, subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """S1: the best of all masks of a slice for each object (`oracle`), and the mask with the best score.

    The second mask does not depend on the object, as in the study: it shows how far scores alone lead.

    Args:
        method: the open method.
        subject: the case.
        settings: of the evaluation.
    """
    if method.predictor is None or "promptable" not in method.entry.heads:
        return
    seen: dict[str, BaselineAnswer] = {}
    for thing in subject.objects(settings.slices):
        if thing.plane.key not in seen:
            found = automatic_masks(method.predictor, thing.picture, EverythingSettings())
            masks = [one.mask.unpack() for one in found] or [np.zeros(thing.mask.shape, bool)]
            seen[thing.plane.key] = BaselineAnswer(np.stack(masks), found[0].score if found else None)
        yield _judged(seen[thing.plane.key], thing, _row(method, subject, thing, "S1"), settings)


def strategy(name: str, method: OpenMethod, subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """Prompt every object of a case by one strategy.

    Args:
        name: a key of `STRATEGIES`.
        method: the open method.
        subject: the case.
        settings: of the evaluation.
    """
    for thing in subject.objects(settings.slices):
        answer = method.answer(thing.picture, prompts_for(name, thing.mask, thing.ignored))
        yield _judged(answer, thing, _row(method, subject, thing, name), settings)


def perturbation(method: OpenMethod, subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """Prompt every object of a case by every perturbation; `strategy` has the prompts in their right place.

    Args:
        method: the open method.
        subject: the case.
        settings: of the evaluation.
    """
    for thing in subject.objects(settings.slices):
        for how in PERTURBATIONS:
            rng = subject.random(settings.seed, thing.name, str(how).replace(how.strategy, "", 1))
            prompts = perturbed(prompts_for(how.strategy, thing.mask, thing.ignored), how, thing.mask, rng)
            answer = method.answer(thing.picture, prompts)
            yield _judged(answer, thing, _row(method, subject, thing, "perturbation", str(how)), settings)


def interactive(method: OpenMethod, subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """Correct every object of a case in every way; baselines, which take no mask prompt, in half of the ways.

    Args:
        method: the open method.
        subject: the case.
        settings: of the evaluation.
    """
    for thing in subject.objects(settings.slices):
        for way in WAYS:
            if way.feedback or not method.entry.is_baseline:
                yield from _sequence(method, subject, thing, way, settings)


def _sequence(
    method: OpenMethod, subject: Subject, thing: SliceObject, way: Way, settings: EvaluationSettings
) -> Iterator[Row]:
    rng = subject.random(settings.seed, thing.name, way.start, way.correction)
    prompts = prompts_for(_FIRST[way.start], thing.mask, thing.ignored)
    answer = method.answer(thing.picture, prompts)
    row = _judged(answer, thing, _row(method, subject, thing, "interactive", str(way)), settings)
    yield row
    for step in range(2, settings.steps + 1):
        if (click := correction(thing.counted(answer.mask), thing.mask, way.correction, rng)) is not None:
            prompts = with_click(prompts, *click)
            answer = method.answer(thing.picture, prompts, answer if way.feedback else None)
            row = _judged(answer, thing, row, settings)
        row = replace(row, step=step)  # without an error there is nothing to click
        yield row


def _row(method: OpenMethod, subject: Subject, thing: SliceObject, protocol: str, variant: str = "") -> Row:
    """A row about an object, without measurements."""
    return Row(method.name, "", subject.digest, thing.label, protocol, variant, thing.name)


def _judged(answer: Prediction | BaselineAnswer, thing: SliceObject, row: Row, settings: EvaluationSettings) -> Row:
    """The row with the measurements of an answer: of the candidate that a user gets, and of the best candidate."""
    mask = thing.counted(answer.mask)
    found = agreement(mask, thing.mask, thing.spacing, settings.tolerance or 2 * thing.spacing[0])
    oracle = max(dice(mask, thing.mask) for mask in thing.counted(answer.masks))
    return replace(row, oracle=oracle, score=answer.score, **vars(found))

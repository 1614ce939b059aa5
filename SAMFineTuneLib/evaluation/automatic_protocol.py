"""Protocols without prompts: everything on a slice (S1 of COSMOS), and the classes of an automatic head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from SAMFineTuneLib.evaluation.evaluation_settings import Settings
from SAMFineTuneLib.evaluation.methods import OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row, numbers_of
from SAMFineTuneLib.evaluation.single_prompt_protocol import row_of
from SAMFineTuneLib.inference.automatic_head import segment_classes
from SAMFineTuneLib.inference.everything_mode import automatic_masks
from SAMFineTuneLib.inference.settings import EverythingSettings
from SAMFineTuneLib.metrics.mask_metrics import Agreement, agreement, dice


def everything(method: OpenMethod, subject: Subject, settings: Settings) -> Iterator[Row]:
    """S1: the best of all masks of a slice for each object (`oracle`), and the mask with the best score.

    The second mask does not depend on the object, as in the study: it shows how far scores alone lead.
    """
    if method.predictor is None or "promptable" not in method.entry.heads:
        return
    seen: dict[str, list] = {}
    for thing in subject.objects(settings.slices):
        if thing.plane.key not in seen:
            seen[thing.plane.key] = automatic_masks(method.predictor, thing.picture, EverythingSettings())
        masks = [thing.counted(one.mask.unpack()) for one in seen[thing.plane.key]]
        answer = masks[0] if masks else np.zeros(thing.mask.shape, bool)
        found = agreement(answer, thing.mask, thing.spacing, settings.tolerance or 2 * thing.spacing[0])
        oracle = max((dice(mask, thing.mask) for mask in masks), default=0.0)
        score = seen[thing.plane.key][0].score if masks else None
        row = row_of(method, subject, thing, "S1")
        yield Row(**{**vars(row), **numbers_of(found), "oracle": oracle, "score": score})


def automatic(method: OpenMethod, subject: Subject, settings: Settings) -> Iterator[Row]:
    """Compare the automatic head's answer on every slice with each label; nothing for methods without such a head.

    Where a case lacks a label, Dice is not defined; the row then holds the millilitres that were found.
    """
    if "automatic" not in method.entry.heads:
        return
    volume, counted = subject.labelled.volume, ~subject.labelled.ignored
    classes = segment_classes(method.predictor, volume, subject.grey, subject.seen_along)
    spacing = volume.spacing[::-1]
    for number, own in matched(subject.labels, method.entry.classes):
        answer, reference = (classes == own) & counted, subject.labelled.mask(number)
        flat = min(volume.shape) == 1
        tolerance = settings.tolerance or (2 * float(spacing[1:].max()) if flat else float(spacing.max()))
        lacking = not reference.any()
        found = Agreement() if lacking else agreement(answer, reference, spacing, tolerance)
        yield Row(method.name, "", subject.digest, subject.labels[number - 1], "automatic", "", **numbers_of(found),
                  false_ml=float(answer.sum() * spacing.prod() / 1000) if lacking else None)  # fmt: skip


def matched(labels: Sequence[str], classes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of a label's number and its class's number, both from 1.

    Matched by name; by order where no name agrees but there are as many classes as labels.
    """
    by_name = {name.casefold(): number for number, name in enumerate(classes, start=1)}
    pairs = [(number, by_name[label.casefold()]) for number, label in enumerate(labels, start=1)
             if label.casefold() in by_name]  # fmt: skip
    if not pairs and len(labels) == len(classes):
        return [(number, number) for number in range(1, len(labels) + 1)]
    return pairs

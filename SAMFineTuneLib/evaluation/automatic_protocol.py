"""The protocol without prompts: the classes of an automatic head in whole volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from SAMFineTuneLib.cases.case_slices import learned_orientations
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.methods import OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.inference.automatic_head import segment_classes
from SAMFineTuneLib.metrics.mask_metrics import Agreement, agreement
from SAMFineTuneLib.wording import same_name


def automatic(method: OpenMethod, subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """Compare the automatic head's answer with each label as whole volumes.

    Yields nothing for a method without such a head. Where a case lacks a label, Dice is not defined; the row then holds
    the millilitres that were found.

    Args:
        method: the open method.
        subject: the case.
        settings: of the evaluation.
    """
    if "automatic" not in method.entry.heads:
        return
    volume, counted = subject.labelled.volume, ~subject.labelled.ignored
    learned = learned_orientations(volume, method.recipe)
    orientations = learned if subject.orientation == "auto" else (subject.seen_along,)
    classes = segment_classes(method.predictor, volume, subject.grey, orientations)
    spacing = volume.spacing[::-1]
    for number, own in matched(subject.labels, method.entry.classes):
        answer, reference = (classes == own) & counted, subject.labelled.mask(number)
        flat = min(volume.shape) == 1
        tolerance = settings.tolerance or (2 * float(spacing[1:].max()) if flat else float(spacing.max()))
        lacking = not reference.any()
        found = Agreement() if lacking else agreement(answer, reference, spacing, tolerance)
        yield Row(method.name, "", subject.digest, subject.labels[number - 1], "automatic", "", **vars(found),
                  false_ml=float(answer.sum() * spacing.prod() / 1000) if lacking else None)  # fmt: skip


def matched(labels: Sequence[str], classes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of a label's number and its class's number, both from 1.

    Matched by name; by order where no name agrees but there are as many classes as labels.
    """
    by_name = {same_name(name): number for number, name in enumerate(classes, start=1)}
    pairs = [(number, by_name[same_name(label)]) for number, label in enumerate(labels, start=1)
             if same_name(label) in by_name]  # fmt: skip
    if not pairs and len(labels) == len(classes):
        return [(number, number) for number in range(1, len(labels) + 1)]
    return pairs

"""Evidence: how well a network answers held-out cases before and after fine-tuning.

Dice is measured for one box, for one point, and without a prompt, on what a user would get: the predictor chooses the
view and takes the candidate with the best predicted IoU. Every object (a connected piece of 20 pixels or more) gets one
prompt, and the answers for a structure are united on each slice. Dice counts all measured slices of a case together, in
the slices' own pixels, foreground only. The automatic head is measured on every slice, empty ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, objects_of
from SAMFineTuneLib.cases.splits import Folds
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.torch_engine import TorchEngine
from SAMFineTuneLib.metrics.mask_metrics import Overlap, mean_dice
from SAMFineTuneLib.metrics.patient_statistics import difference, estimate, patient_means
from SAMFineTuneLib.models.adapters.adapter_card import Gain
from SAMFineTuneLib.models.preprocess import prepare
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.simulation.first_prompts import exact_prompt

WAYS = ("1 box", "1 point", "automatic")
_MEMORY = 64 << 20

Measured = Mapping[str, Mapping[str, Sequence[float | None]]]
"""By the digest of a case and the way of prompting: Dice of every label."""


class NetworkEngine(TorchEngine):
    """A network in training, with its present weights; NaN in its answers is not an error."""

    digest = embedding_digest = device = ""

    def __init__(self, network: nn.Module, spec: ModelSpec, device: torch.device) -> None:
        self.spec, self.notices, self._torch = spec, [], torch
        self._network, self.place, self._dtype = network, device, torch.float32

    encode, decode, decode_classes = TorchEngine.run_encoder, TorchEngine.run_decoder, TorchEngine.run_classes


def ways_of(heads: Sequence[str]) -> tuple[str, ...]:
    """The ways of prompting that trained heads can answer."""
    return tuple(way for way in WAYS if ("automatic" if way == "automatic" else "promptable") in heads)


def measure_case(
    engine: NetworkEngine,
    slices: Sequence[LabelledSlice],
    classes: int,
    ways: Iterable[str],
    most: int = 1000,
) -> dict[str, tuple[float | None, ...]]:
    """Measure the Dice of a case.

    Args:
        engine: the network.
        slices: all slices of the case.
        classes: the number of classes, which are 1 to `classes`.
        ways: of prompting, `WAYS` or some of them.
        most: at most this many slices that show something are prompted.

    Returns:
        For each way one value a class, None where it has none.
    """
    labelled = [one for one in slices if objects_of(one)]
    found = {}
    for way in ways:
        sums = [Overlap()] * classes
        shown = slices if way == "automatic" else evenly(labelled, most)
        for one in shown:
            for label, pair in enumerate(zip(*answer_slice(engine, one, way, classes), strict=True)):
                sums[label] += Overlap.of(*pair)
        # Prompts are made from the reference, so a class that it lacks cannot be tested with them.
        found[way] = tuple(one.dice if one.reference or way == "automatic" else None for one in sums)
    return found


def answer_slice(
    engine: NetworkEngine, one: LabelledSlice, way: str, classes: int,
    asked: Callable[[PlanePrompts], None] = lambda prompts: None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Ask for all objects of a slice.

    Args:
        engine: the network.
        one: the slice.
        way: of prompting.
        classes: the number of classes.
        asked: called with every prompt.

    Returns:
        Masks (classes, rows, columns), and the reference masks. A class that the slice does not show has an empty mask,
        unless the automatic head finds it. Ignored pixels are in no mask.
    """
    numbers = range(1, classes + 1)
    if way == "automatic":
        found = automatic_classes(engine, one.picture)
        masks, reference = (np.stack(own) for own in ([found == n for n in numbers], [one.mask(n) for n in numbers]))
        return masks & ~one.ignored, reference
    predictor = Predictor(engine, EmbeddingCache(memory_bytes=_MEMORY))
    masks, reference = np.zeros((2, classes, *one.classes.shape), bool)
    for thing in objects_of(one):
        reference[thing.label - 1] |= thing.mask
        prompts = exact_prompt(thing.mask, by_box=way == "1 box")
        asked(prompts)
        masks[thing.label - 1] |= predictor.predict(one.picture, prompts).mask
    return masks & ~one.ignored, reference


def automatic_classes(engine: NetworkEngine, picture: np.ndarray) -> np.ndarray:
    """Class of every pixel, uint8 [rows, columns], by the automatic head."""
    image, place = prepare(picture, engine.spec)
    logits = engine.decode_classes(engine.encode(image))[0]
    return place.logits_to_picture(logits).argmax(0).astype(np.uint8)


def evidence_of(folds: Folds) -> str:
    """One or two sentences that say which cases the figures of a run come from."""
    held = sum(len(part.test) for part in folds.parts)
    if folds.kind == "none":
        return "No case was held out, so the adapter's gain is not known."
    if folds.kind in ("shots", "given"):
        whose = "1 case of a patient" if held == 1 else f"{held} cases of patients"
        return f"This adapter answered {whose} that it did not learn from."
    way = "each patient once" if folds.kind == "leave-one-out" else f"{len(folds.parts)} groups of patients in turn"
    return (
        f"Cross-validation: {len(folds.parts)} adapters of this recipe were trained leaving out {way}, and answered "
        f"the {held} cases left out. This adapter itself learned from all {len(folds.final)} cases."
    )


def advice(gains: Sequence[Gain]) -> tuple[str, ...]:
    """A sentence for the user if the base answered better than the adapter, over all labels together."""
    worse = []
    for gain in {gain.prompt: gain for gain in gains}.values():  # of each way its last: all labels together
        before, after = gain.means
        if before is not None and after is not None and after < before:
            worse.append(f"{gain.prompt} (Dice {before:.3f}, with the adapter {after:.3f})")
    if not worse:
        return ()
    return (f"The base answered the held-out cases better with {' and '.join(worse)}; keep it for such prompts.",)


def gains(
    before: Measured, after: Measured, patients: Mapping[str, str], names: Sequence[str], ways: Sequence[str]
) -> tuple[Gain, ...]:
    """Compare Dice before and after a training, for every way of prompting and label, with intervals.

    Args:
        before: the base's.
        after: the adapter's.
        patients: by the cases' digests.
        names: of the classes.
        ways: of prompting.
    """
    labels = [(name, [number]) for number, name in enumerate(names)]
    if len(names) > 1:
        labels.append(("all labels", list(range(len(names)))))
    found = []
    for way in ways if after else ():
        for label, numbers in labels:
            dice = [
                {case: mean_dice(values[number] for number in numbers) if (values := measured.get(case, {}).get(way))
                 else None for case in after}
                for measured in (before, after)
            ]  # fmt: skip
            by_patient = [patient_means(((patients[case], case), value) for case, value in one.items()) for one in dice]
            spans = [one and one.interval for one in (*map(estimate, by_patient), difference(*by_patient))]
            found.append(Gain(way, tuple(after), *(tuple(one.values()) for one in dice), label, *spans))
    return tuple(found)

"""Few-shot fine-tuning of the bundled model against its variants and a U-Net from scratch, on the same cases.

    python Testing/benchmarks/few_shot.py hippocampus -o figures.json
    python Testing/benchmarks/few_shot.py prostate --seeds 5 -o figures.json

Five patients teach, all others test (hippocampus: fifteen). Each variant is a whole `samfinetune train`, with
the figures of its card: Dice a case over all labels, mean with a 95 % bootstrap interval over test cases (with several
seeds over all of them, each once a seed). What is in the output file already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from unet import predict_classes, train_unet

from SAMFineTuneLib.cases.case_slices import evenly, slices_of, with_objects
from SAMFineTuneLib.cases.case_survey import survey
from SAMFineTuneLib.cases.cases import find_cases
from SAMFineTuneLib.cases.labelled_case import LabelChoice, read_labelled
from SAMFineTuneLib.cases.splits import split
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.metrics.mask_metrics import Overlap, mean_dice
from SAMFineTuneLib.metrics.patient_statistics import bootstrap_interval
from SAMFineTuneLib.models.adapters.tuning_method import Method
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.training.fine_tuning import fine_tune
from SAMFineTuneLib.training.training_settings import PRESETS, TrainingSettings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = {"hippocampus": ("hippocampus-mri", None), "prostate": ("prostate-mri-5shot", "any")}
VARIANTS = {
    "LoRA encoder+decoder": Method("lora", "encoder+decoder"),
    "LoRA decoder": Method("lora", "decoder"),
    "vanilla encoder+decoder": Method("vanilla", "encoder+decoder"),
    "vanilla decoder": Method("vanilla", "decoder"),
    "Adapter encoder+decoder": Method("adapter", "encoder+decoder"),
    "U-Net from scratch": None,
}
UNET_STEPS, UNET_BATCH = 1000, 4
UNET_SHOWN = 300  # times that it sees each slice at most
HIPPOCAMPI = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", choices=SETS)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated; default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--preset", choices=PRESETS, default="quick")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    folder, labels = SETS[arguments.cases]
    cases = find_cases(DATA / folder)[: HIPPOCAMPI if arguments.cases == "hippocampus" else None]
    done = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for seed in range(arguments.seeds):
        for name in arguments.variants.split(","):
            key = f"{arguments.cases}, {name}, {arguments.preset if VARIANTS[name] else UNET_STEPS}, seed {seed}"
            if key not in done:
                settings = TrainingSettings.of_preset(
                    arguments.preset, shots=5, seed=seed, labels=LabelChoice.parse(labels),
                    method=VARIANTS[name] or Method(),
                )  # fmt: skip
                done[key] = tuned(cases, settings) if VARIANTS[name] else from_scratch(cases, settings)
                with atomic_write(arguments.output) as temporary:
                    temporary.write_text(json.dumps(done, indent=1))
            print(f"seed {seed} {name}: {done[key]['seconds']:.0f} s", flush=True)
    print_table(done, arguments)


def tuned(cases, settings: TrainingSettings) -> dict:
    """Dice by way of prompting, before and after, a value a test case; seconds of the whole and of the training."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        card = fine_tune(cases, Path(folder) / "adapter", Store().get(), settings).card
    found = {"seconds": time.monotonic() - started, "training seconds": card.seconds}
    for gain in card.gains:
        if gain.label == card.gains[-1].label:  # all labels together, or the only one
            found[gain.prompt] = {"before": list(gain.before), "after": list(gain.after)}
    return found


def from_scratch(cases, settings: TrainingSettings) -> dict:
    """The same of a U-Net, which knows no prompts."""
    fold = split(cases, settings.shots, seed=settings.seed).parts[0]
    found = survey([*fold.train, *fold.test], settings.labels)

    def slices(case):
        return list(slices_of(read_labelled(case, found.choice, found.names)))

    shown, empty = [], []
    for case in fold.train:
        own = slices(case)
        shown += with_objects(own, case.id)
        empty += [one for one in own if not one.labelled]
    started = time.monotonic()
    steps = min(UNET_STEPS, UNET_SHOWN * len(shown) // UNET_BATCH)
    network = train_unet(shown, evenly(empty, len(shown)), len(found.names) + 1, steps, UNET_BATCH, settings.seed)
    seconds = time.monotonic() - started
    dice = []
    for case in fold.test:
        sums = [Overlap()] * len(found.names)
        for one in slices(case):
            answer = predict_classes(network, one.picture)
            for label in range(len(sums)):
                sums[label] += Overlap.of(answer == label + 1, one.classes == label + 1)
        dice.append(mean_dice(one.dice for one in sums))
    return {"seconds": seconds, "training seconds": seconds, "automatic": {"before": [], "after": dice}}


def print_table(done: dict, arguments: argparse.Namespace) -> None:
    """A line a variant and way of prompting."""
    print("| variant | prompt | n | before | after | gain | training |\n|---|---|---|---|---|---|---|")
    for name in arguments.variants.split(","):
        preset = arguments.preset if VARIANTS[name] else UNET_STEPS
        runs = [done[f"{arguments.cases}, {name}, {preset}, seed {seed}"] for seed in range(arguments.seeds)]
        seconds = np.median([run["training seconds"] for run in runs])
        for way in ("1 box", "1 point", "automatic"):
            after = [value for run in runs if way in run for value in run[way]["after"]]
            before = [value for run in runs if way in run for value in run[way]["before"]]
            before = [value for value in before if value is not None]
            if after:
                gain = with_span(np.subtract(after, before)) if before else "-"
                known = with_span(before) if before else "-"
                print(f"| {name} | {way} | {len(after)} | {known} | {with_span(after)} | {gain} | {seconds:.0f} s |")


def with_span(values) -> str:
    """Mean and 95 % bootstrap interval."""
    low, high = bootstrap_interval(list(values))
    return f"{np.mean(values):.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()

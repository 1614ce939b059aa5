"""A cohort as a simulated annotator works through it: does each case become quicker, and do proposals become better?

    python Testing/benchmarks/cohort_loop.py -o loop --way random
    python Testing/benchmarks/cohort_loop.py -o loop --way teaching --beside

40 hippocampi are the cohort, 20 others judge and are touched by nothing. What the annotator is offered for a case is
the proposal of the adapter in use, or else, for each part, the bundled model's answer to one box on the middle one of
its slices, propagated through the volume. On every slice with a Dice below 0.90 he clicks in the middle of the largest
error until it is reached, ten times at most; the best answer is kept, with its errors. Where nothing is offered he
begins with a box, an empty slice is emptied by one click, and pieces below 20 pixels are painted; each of these counts
as one prompt. Seconds are those of `evaluation.annotator`.

After 5, 10, 20 and 40 accepted cases an adapter is trained (`cohort.retraining`), and the one in use proposes for the
judges. Ways: `teaching` and `random` choose the next case, `none` never trains. The first five cases are the same for
all. With `--beside` a plain U-Net (`unet.py`) learns from the same accepted cases, and `samfinetune train` from the
first five. All results are in OUTPUT/WAY.json; a second call goes on where the first one was stopped. Computing is told
in seconds of the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from unet import predict_classes, train_unet

from SAMFineTuneLib.cases.case_slices import (
    LEAST_PIXELS,
    LabelledSlice,
    evenly,
    learned_orientations,
    slices_of,
    with_objects,
)
from SAMFineTuneLib.cases.cases import Case, find_cases
from SAMFineTuneLib.cases.label_map import Meaning
from SAMFineTuneLib.cases.labelled_case import LabelChoice, read_labelled
from SAMFineTuneLib.cohort.cohort_folder import STATE_FILE, Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase, Proposal
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import FoundImage
from SAMFineTuneLib.cohort.retraining import dice_of_proposal, retrain
from SAMFineTuneLib.cohort.review import accept
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.images import choose_window, write
from SAMFineTuneLib.inference.automatic_head import class_slices
from SAMFineTuneLib.inference.open_predictor import open_predictor
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.propagation import propagate
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, Seed
from SAMFineTuneLib.metrics.mask_metrics import Overlap, dice
from SAMFineTuneLib.metrics.patient_statistics import bootstrap_interval
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.simulation.corrections import correction, with_click
from SAMFineTuneLib.simulation.first_prompts import exact_prompt
from SAMFineTuneLib.training.fine_tuning import fine_tune
from SAMFineTuneLib.training.training_settings import TrainingSettings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus-mri"
PARTS = {1: "anterior", 2: "posterior"}
MARKS = (5, 10, 20, 40)
GOOD, CLICKS = 0.90, 10
JUDGES = 20
UNET_STEPS, UNET_BATCH = 1000, 4
WAYS = ("teaching", "random", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS, default="random")
    parser.add_argument("--most", type=int, default=MARKS[-1], help="accepted cases at which to end (40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", action="store_true", help="also the U-Net and `train` on the first five")
    arguments = parser.parse_args()
    loop = Loop(arguments.output, arguments.way, arguments.seed)
    loop.run(arguments.most)
    if arguments.beside:
        loop.beside(arguments.most)
    loop.print_table()


class Loop:
    """One way through the cohort; its results so far are in a file."""

    def __init__(self, output: Path, way: str, seed: int) -> None:
        cases = find_cases(DATA)
        order = np.random.default_rng(seed).permutation(len(cases))
        self.way, self.seed = way, seed
        self.judges = [cases[place] for place in sorted(order[:JUDGES])]
        self.order = [cases[place].id for place in order[JUDGES:]]
        self.cases = {case.id: case for case in cases if case.id in self.order}
        self.file, folder = output / f"{way}.json", output / way
        self.done = json.loads(self.file.read_text()) if self.file.exists() else {"accepted": [], "marks": {}}
        if (folder / STATE_FILE).exists():
            self.cohort = Cohort(folder)
        else:
            images = [FoundImage(self.cases[name].image) for name in self.order]
            self.cohort = create_cohort(folder, images, list(PARTS.values())).cohort

    def run(self, most: int) -> None:
        """Accept cases up to `most`, and train and judge at the marks."""
        while True:
            count = len(self.cohort.state.accepted)
            if count in MARKS and self.way != "none" and str(count) not in self.done["marks"]:
                self.mark(count)
            if count >= min(most, len(self.order)):
                return
            self.accept_next()

    # ---- a case

    def accept_next(self) -> None:
        """Correct what is offered for the next case, and accept it."""
        started = time.process_time()
        predictor, adapter, recipe = self.predictor()
        case, place = self.next_case(), len(self.cohort.state.accepted)
        slices = Read(self.cases[case.name])
        offered = found_without_prompts(predictor, slices, recipe) if adapter else propagated(predictor, slices)
        boxes = 0 if adapter else len(offered)
        volume, labels = slices.volume, np.zeros(slices.volume.shape, np.uint8)
        clicks, looks, poor, before = 0, 0, 0, {}
        for value, name in PARTS.items():
            masks = offered.get(value, {})
            overlap = Overlap()
            for place_of, one in enumerate(slices.slices):
                mask = masks.get(place_of, np.zeros(one.classes.shape, bool))
                overlap += Overlap.of(mask, one.mask(value))
                mask, more, boxed = corrected(predictor, one, mask, one.mask(value))
                clicks, boxes, looks = clicks + more, boxes + boxed, looks + bool(mask.any() or more)
                poor += one.mask(value).any() and dice(mask, one.mask(value)) < GOOD
                write(mask, one.plane, labels, volume, value, protect=True)
            before[name] = overlap.dice
        times = Seconds()
        seconds = boxes * times.box + clicks * times.point + (looks + boxes + clicks) * times.look
        if adapter:  # what the labels began as says who may judge fairly
            self.cohort.change(lambda state: state.with_case(case.key, proposal=Proposal(adapter, {})))
        accept(self.cohort, case.key, labels, seconds, boxes + clicks)
        reached = {name: dice(labels == value, slices.reference(value)) for value, name in PARTS.items()}
        self.done["accepted"].append({
            "case": case.name, "prompts": boxes + clicks, "boxes": boxes, "seconds": seconds, "poor slices": int(poor),
            "offered": before, "accepted": reached, "adapter": adapter, "computing": time.process_time() - started,
        })  # fmt: skip
        self.write()
        print(f"{self.way} {place + 1}: {self.done['accepted'][-1]}", flush=True)

    def predictor(self) -> tuple[Predictor, int | None, dict]:
        """What answers the annotator: the adapter in use, its number and recipe, or the bundled model."""
        now = self.cohort.state.adapter
        if now is None or self.way == "none":
            return open_predictor("compact", disk_cache=False), None, {}
        adapter = read_adapter_folder(self.cohort.adapter(now.number))
        return open_predictor(adapter=adapter, disk_cache=False), now.number, adapter.card.recipe

    def next_case(self) -> CohortCase:
        state = self.cohort.state
        if self.way == "teaching" and len(state.accepted) >= MARKS[0]:
            from SAMFineTuneLib.cohort.choosing import next_case
            from SAMFineTuneLib.cohort.proposing import propose

            propose(self.cohort, again=True)
            return next_case(self.cohort, "teaching").case
        left = {case.name: case for case in state.those("untouched", "proposed")}
        return next(left[name] for name in self.order if name in left)

    # ---- a mark

    def mark(self, count: int) -> None:
        """Train, and judge what the adapter in use proposes for the twenty others."""
        started, told = time.process_time(), [0.0]

        def tell(now) -> None:
            if time.monotonic() - told[0] > 60:
                told[0] = time.monotonic()
                print(f"{self.way}: {now.sentence}, {now.seconds_left or 0:.0f} s left", flush=True)

        # A call that was killed before it could judge finds the training in the history.
        trained = {len(one.learned) + len(one.held_out): one for one in self.cohort.state.adapters}.get(count)
        trained = trained or retrain(self.cohort, progress=tell)
        training = time.process_time() - started
        predictor, adapter, recipe = self.predictor()
        own = {case.id: dice_of_proposal(predictor, recipe, case, PARTS) for case in self.judges} if adapter else {}
        self.done["marks"][str(count)] = {
            "training": training, "judging": time.process_time() - started - training, "adapter": adapter,
            "reason": trained.reason, "start": trained.start, "held out": len(trained.held_out), "judges": own,
        }  # fmt: skip
        self.write()
        print(f"{self.way} {count}: {trained.reason} Judges: {mean_of(own)}", flush=True)

    def write(self) -> None:
        write_text(self.file, json.dumps(self.done, indent=1))

    # ---- beside it

    def beside(self, most: int) -> None:
        """A U-Net on the same accepted cases, and `samfinetune train` on the first five."""
        for count in [mark for mark in MARKS if mark <= most]:
            if f"U-Net {count}" not in self.done:
                self.done[f"U-Net {count}"] = self.unet(self.accepted(count))
                self.write()
        if "train" not in self.done:
            self.done["train"] = self.trained_on(self.accepted(MARKS[0]))
            self.write()

    def accepted(self, count: int) -> list[Case]:
        state, meaning = self.cohort.state, Meaning(names=PARTS)
        return [
            Case(case.key, self.cohort.image(case), self.cohort.accepted(case.key), case.patient, meaning)
            for case in state.accepted[:count]
        ]

    def unet(self, cases: list[Case]) -> dict:
        shown, empty, started = [], [], time.process_time()
        for case in cases:
            own = Read(case).slices
            shown += with_objects(own, case.id)
            empty += [one for one in own if not one.labelled]
        network = train_unet(shown, evenly(empty, len(shown)), len(PARTS) + 1, UNET_STEPS, UNET_BATCH, self.seed)
        found = {}
        for case in self.judges:
            sums = dict.fromkeys(PARTS, Overlap())
            for one in Read(case).slices:
                classes = predict_classes(network, one.picture)
                sums = {value: sums[value] + Overlap.of(classes == value, one.mask(value)) for value in PARTS}
            found[case.id] = {name: sums[value].dice for value, name in PARTS.items()}
        return {"seconds": time.process_time() - started, "judges": found}

    def trained_on(self, cases: list[Case]) -> dict:
        output, started = self.file.parent / f"{self.way}-train", time.process_time()
        if not (output / "card.json").exists():
            fine_tune(cases, output, Store().get(), TrainingSettings.of_preset("quick", folds=0), resume=False)
        adapter = read_adapter_folder(output)
        predictor, recipe = open_predictor(adapter=adapter, disk_cache=False), adapter.card.recipe
        own = {case.id: dice_of_proposal(predictor, recipe, case, PARTS) for case in self.judges}
        return {"seconds": time.process_time() - started, "judges": own}

    # ---- the table

    def print_table(self) -> None:
        accepted = self.done["accepted"]
        print("| cases | prompts a case | annotator, s a case | Dice of what was offered |\n|---|---|---|---|")
        for low in range(0, len(accepted), 5):
            own = accepted[low : low + 5]
            offered = [np.mean([value or 0 for value in one["offered"].values()]) for one in own]
            print(f"| {low + 1} to {low + len(own)} | {with_span([one['prompts'] for one in own], 1)} | "
                  f"{np.mean([one['seconds'] for one in own]):.0f} | {with_span(offered)} |")  # fmt: skip
        print("\n| accepted | Dice of proposals for the judges | computing, s |\n|---|---|---|")
        for count, one in self.done["marks"].items():
            print(f"| {count} | {mean_of(one['judges'])} | {one['training']:.0f} |")
        for name, one in self.done.items():
            if isinstance(one, dict) and "judges" in one:
                print(f"| {name} | {mean_of(one['judges'])} | {one['seconds']:.0f} |")


# ---------------------------------------------------------------- what is offered


class Read:
    """A case with its reference: the slices as they were acquired."""

    def __init__(self, case: Case) -> None:
        self.labelled = read_labelled(case, LabelChoice(tuple(map(str, PARTS))), tuple(PARTS.values()))
        self.volume, self.slices = self.labelled.volume, list(slices_of(self.labelled))

    def reference(self, value: int) -> np.ndarray:
        return self.labelled.mask(value)


Offered = dict[int, dict[int, np.ndarray]]
"""By label and place of the slice: a mask."""


def found_without_prompts(predictor: Predictor, slices: Read, recipe: dict) -> Offered:
    """The adapter's proposal."""
    volume, found = slices.volume, {value: {} for value in PARTS}
    orientations = learned_orientations(volume, recipe)
    for place, item in enumerate(class_slices(predictor, volume, choose_window(volume, None), orientations)):
        for value, mask in item.masks.items():
            found[value][place] = mask.unpack()
    return found


def propagated(predictor: Predictor, slices: Read) -> Offered:
    """One box for each part, propagated through the volume by the bundled model."""
    places = {one.plane.key: place for place, one in enumerate(slices.slices)}
    found: Offered = {}
    for value in PARTS:
        shown = [place for place, one in enumerate(slices.slices) if one.mask(value).sum() >= LEAST_PIXELS]
        if not shown:
            continue
        middle = slices.slices[shown[len(shown) // 2]]
        mask = predictor.predict(middle.picture, exact_prompt(middle.mask(value), by_box=True)).mask
        found[value] = {places[middle.plane.key]: mask}
        seeds = [Seed(middle.plane, mask)]
        for item in propagate(predictor, slices.volume, choose_window(slices.volume, None), seeds):
            if isinstance(item, PropagatedSlice):
                found[value][places[item.plane.key]] = item.mask
    return found


def corrected(
    predictor: Predictor, one: LabelledSlice, offered: np.ndarray, reference: np.ndarray
) -> tuple[np.ndarray, int, int]:
    """What the annotator leaves on a slice, with how many clicks and boxes."""
    if not reference.any():
        return reference, int(offered.any()), 0
    reached = dice(offered, reference) or 0.0
    if reached >= GOOD:
        return offered, 0, 0
    if reference.sum() < LEAST_PIXELS:
        return reference, 1, 0
    best, mask, answer = (reached, offered), offered, None
    prompts = PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    boxed = int(not offered.any())
    if not boxed:
        answer = predictor.taken(one.picture, offered, 0)
    for number in range(CLICKS):
        if boxed and number == 0:
            prompts = exact_prompt(reference, by_box=True)
        else:
            prompts = with_click(prompts, *correction(mask, reference, "centre", np.random.default_rng(0)))
        answer = predictor.predict(one.picture, prompts, previous=answer)
        mask = answer.mask
        best = max(best, (dice(mask, reference) or 0.0, mask), key=lambda pair: pair[0])
        if best[0] >= GOOD:
            break
    return best[1], number + 1 - boxed, boxed


def mean_of(found: dict[str, dict[str, float | None]]) -> str:
    """Mean Dice over the judges of both parts, with its interval."""
    if not found:
        return "no adapter in use"
    return with_span([np.mean([value or 0.0 for value in own.values()]) for own in found.values()])


def with_span(values, digits: int = 3) -> str:
    """Mean and 95 % bootstrap interval."""
    low, high = bootstrap_interval(list(values))
    return f"{np.mean(values):.{digits}f}" + ("" if low is None else f" ({low:.{digits}f}–{high:.{digits}f})")


if __name__ == "__main__":
    main()

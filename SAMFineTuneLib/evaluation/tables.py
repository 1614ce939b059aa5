"""Collects all tables of an evaluation; makes those about prompts on a slice, what makes objects hard, and an
annotator's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from SAMFineTuneLib.evaluation import annotator
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.evaluation.factors import FACTORS, REFERENCE
from SAMFineTuneLib.evaluation.result_rows import Results, Row, by_patient, counts, mean
from SAMFineTuneLib.evaluation.result_table import MEANS, Cell, Table, naturally
from SAMFineTuneLib.evaluation.slice_protocols import HEADLINE, WAYS
from SAMFineTuneLib.evaluation.volume_protocol import BY_SLICE, STARTS
from SAMFineTuneLib.evaluation.volume_tables import (
    automatic_table,
    distance_table,
    volume_box_table,
    volume_click_table,
    volume_table,
)
from SAMFineTuneLib.metrics import patient_statistics
from SAMFineTuneLib.metrics.patient_statistics import Estimate, difference, estimate
from SAMFineTuneLib.simulation.cosmos_prompts import MOVES, STRATEGIES

WANTED = (0.85, 0.9)
"""Dice to reach, where prompts are counted."""
_CORRELATION_RESAMPLES = 500  # each takes a least-squares fit
LEAST_OBJECTS = 8
"""For a correlation."""
_COUNTED = "objects, cases, patients"


def all_tables(results: Results, seconds: Seconds) -> list[Table]:
    """All tables that have rows."""
    made = [prompt_table(results), label_table(results), paired_table(results), everything_table(results),
            perturbation_table(results), interactive_table(results), clicks_table(results), volume_box_table(results),
            volume_click_table(results), volume_table(results), distance_table(results),
            automatic_table(results), factor_table(results), seconds_table(results, seconds)]
    return [table for table in made if table.rows]  # fmt: skip


def prompt_table(results: Results) -> Table:
    """S2 to S6, the main table."""
    rows = [
        (name, f"{way}: {what}", *(mean(found, column) for column in ("dice", "oracle", "iou", "hd95", "nsd")),
         counts(found))
        for name in results.methods for way, what in STRATEGIES.items() if (found := results.of(name, way))
    ]  # fmt: skip
    return Table(
        "prompts", "One prompt, one answer",
        "Dice is that of the candidate with the best predicted IoU, which is what a user gets; “best candidate” is "
        "chosen with the reference and only shows what the model could offer. HD95 in mm, over answers that are not "
        "empty. " + MEANS,
        ("method", "prompt", "Dice", "best candidate", "IoU", "HD95", "NSD", _COUNTED), rows,
    )  # fmt: skip


def label_table(results: Results) -> Table:
    """Dice by label, where there are several labels."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for way in STRATEGIES:
        for _, name, found in results.each(way):
            for row in found:
                groups.setdefault((row.label, name), {}).setdefault(way, []).append(row)
    labels = sorted({label for label, _ in groups}, key=naturally)
    rows = [
        (label, name, *(mean(found.get(way, ())) for way in STRATEGIES), counts(next(iter(found.values()))))
        for label in labels for name in results.methods if (found := groups.get((label, name)))
    ]  # fmt: skip
    header = ("label", "method", *STRATEGIES, _COUNTED)
    return Table("labels", "Dice by label", MEANS, header, rows if len(labels) > 1 else ())


def paired_table(results: Results) -> Table:
    """All methods compared with the first one, patient by patient."""
    first, *others = results.methods or ("",)
    rows = [
        (name, way, gap) for name in others for way in STRATEGIES
        if (gap := difference(*(by_patient(results.of(one, way), "dice") for one in (first, name))))
    ]  # fmt: skip
    corrected = patient_statistics.holm([gap.p for *_, gap in rows])
    return Table(
        "paired", f"Differences in Dice to {first}",
        "Positive: better. p of Wilcoxon's two-sided signed-rank test over patients, and corrected for the number of "
        "comparisons in this table (Holm). With fewer than six patients no difference can reach 0.05.",
        ("method", "prompt", "difference", "p", "p, corrected", "patients"),
        [(*row, row[2].p, p, row[2].patients) for row, p in zip(rows, corrected, strict=True)],
    )  # fmt: skip


def everything_table(results: Results) -> Table:
    return Table(
        "everything", "S1: everything mode",
        "The best of all masks on the slice for each object, and the mask with the best predicted IoU, which does not "
        "depend on the object. " + MEANS,
        ("method", "best of all masks", "best score", _COUNTED),
        [(name, mean(found, "oracle"), mean(found), counts(found)) for _, name, found in results.each("S1")],
    )  # fmt: skip


def perturbation_table(results: Results) -> Table:
    """Dice lost when prompts are misplaced."""
    rows = []
    for _, name, _ in results.each("perturbation", [str(next(iter(MOVES.values()))[0])]):
        for (way, what, unit), bands in MOVES.items():
            right = by_patient(results.of(name, way), "dice")
            moved = [by_patient(results.of(name, "perturbation", str(how)), "dice") for how in bands]
            # Without the strategy itself, Dice instead of the loss.
            cells = [difference(right, one) if right else estimate(one) for one in moved]
            rows.append((name, f"{way} {what}", unit, estimate(right), *cells))
    return Table(
        "perturbation", "Misplaced prompts",
        "Dice with the prompt in its place, and the change when it is moved; per cent are of the object's longer side. "
        "Boxes are shifted, or made larger or smaller on all sides. " + MEANS,
        ("method", "prompt", "unit", "in place", "0–10", "10–20", "20–30"), rows,
    )  # fmt: skip


def interactive_table(results: Results) -> Table:
    """Dice after each prompt: it shows after how many clicks a model is no longer ahead of baselines (COSMOS)."""
    courses = {(way, name): results.course(name, "interactive", way)
               for way, name, _ in results.each("interactive", map(str, WAYS))}  # fmt: skip
    steps = range(max(map(len, courses.values()), default=0))
    rows = [(*key, *(mean(course[step]).mean if step < len(course) else None for step in steps))
            for key, course in courses.items()]  # fmt: skip
    return Table(
        "interactive", "Dice after 1, 2, 3, … prompts",
        "The first prompt, then one click in each step where the answer is wrong. COSMOS found Segment Anything ahead "
        "of other interactive methods with few points and behind them with many: compare with the baselines. Means "
        "over patients.",
        ("way", "method", *(str(step + 1) for step in steps)), rows,
    )  # fmt: skip


def clicks_table(results: Results) -> Table:
    """Number of prompts until Dice is good enough."""
    rows = []
    for way, name, things in results.each("interactive", map(str, WAYS)):
        courses, cells = _dice_by_step(results, name, way), []
        for wanted in WANTED:
            needed = [annotator.clicks_to(dice, wanted) for dice in courses]
            cells.append(mean(things, [float(count is not None) for count in needed]))
            cells.append(mean(things, [count or len(courses[0]) for count in needed]))
        rows.append((way, name, *cells))
    header = [f"{what} {wanted:.2f}" for wanted in WANTED for what in ("part that reaches", "prompts to")]
    return Table(
        "clicks", "Prompts until Dice is good",
        "Objects that do not reach it count with all steps, so means of prompts are lower bounds where the part that "
        "reaches is below 1. " + MEANS,
        ("way", "method", *header), rows,
    )  # fmt: skip


def factor_table(results: Results) -> Table:
    """What makes objects hard: rank correlations of Dice with each factor, the other factors held constant."""
    known = {(row.case, row.object): row for row in results.of(REFERENCE, "factors")}
    rows = []
    for name in results.methods:
        for way in STRATEGIES:
            found = [row for row in results.of(name, way) if (row.case, row.object) in known]
            if len(found) >= LEAST_OBJECTS:
                facts = [known[row.case, row.object] for row in found]
                rows.append((name, way, *_correlations(found, facts), len(found)))
    return Table(
        "factors", "What makes objects hard",
        "Partial rank correlation (Spearman) of Dice with each factor, without what the other two explain; bootstrap "
        "intervals over patients. Size is the area in mm², contrast the difference of mean grey values to "
        "the surroundings, complexity the order of the elliptic Fourier series that reaches Dice 0.97 with the object.",
        ("method", "prompt", "size", "contrast", "complexity", "objects"), rows,
    )  # fmt: skip


def _correlations(found: Sequence[Row], facts: Sequence[Row]) -> Iterator[Cell]:
    dice = np.array([row.dice for row in found], float)
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(found):
        groups.setdefault(row.patient, []).append(place)
    places_of = [np.array(places) for _, places in sorted(groups.items())]
    columns = {factor: np.array([getattr(row, factor) for row in facts], float) for factor in FACTORS}
    for factor, own in columns.items():
        others = np.array([column for name, column in columns.items() if name != factor])

        def partial(places: np.ndarray, own=own, others=others) -> float:
            return patient_statistics.partial_spearman(dice[places], own[places], others[:, places])

        def of_patients(drawn: np.ndarray, partial=partial) -> float:
            return partial(np.concatenate([places_of[number] for number in drawn]))

        value, patients = partial(np.arange(len(dice))), range(len(places_of))
        yield None if np.isnan(value) else Estimate(
            value, *patient_statistics.bootstrap_interval(patients, of_patients, _CORRELATION_RESAMPLES), len(patients)
        )


def seconds_table(results: Results, seconds: Seconds) -> Table:
    """An annotator's time with and without the method."""
    rows, wanted = [], annotator.GOOD_ENOUGH
    for way in HEADLINE:
        for _, name, things in results.each("interactive", [str(way)]):
            used = [annotator.seconds_for_object(dice, way.start, seconds, wanted)
                    for dice in _dice_by_step(results, name, str(way))]  # fmt: skip
            times = [(spent, seconds.outline) for spent in used]
            rows.append((name, f"an object on a slice, from {way.start}", *_mean_times(things, times)))
    for start in STARTS:
        for _, name, found in results.each("3d", [start + BY_SLICE]):
            volumes: dict[tuple, list[Row]] = {}
            for row in found:
                volumes.setdefault((row.case, row.label), []).append(row)
            times = [annotator.seconds_for_volume(own, start, seconds, wanted) for own in volumes.values()]
            things = [own[0] for own in volumes.values()]
            rows.append((name, f"a label in a volume, from {start}", *_mean_times(things, times)))
    return Table(
        "seconds", "An annotator's time",
        f"Seconds, by assumptions: {seconds.box:g} for a box, {seconds.point:g} for a point, {seconds.look:g} to look "
        f"at a mask, {seconds.outline:g} for an outline by hand. A mask is accepted from Dice {wanted:g}; others are "
        "drawn by hand as well, so the saving can be negative. " + MEANS,
        ("method", "task", "with prompts", "by hand", "saved"), rows,
    )  # fmt: skip


def _dice_by_step(results: Results, method: str, way: str) -> list[list[float]]:
    """Dice of each object by step, in the order of the first step's rows."""
    steps = [{(row.case, row.object): row.dice for row in rows} for rows in results.course(method, "interactive", way)]
    return [[step[thing] for step in steps] for thing in steps[0]]


def _mean_times(things: Sequence[Row], times: Sequence[tuple[float, float]]) -> Iterator[Cell]:
    """Mean seconds with prompts, by hand, and saved, from pairs of seconds with prompts and by hand."""
    used, by_hand = zip(*times, strict=True)
    saved = [without - spent for spent, without in times]
    return (mean(things, values) for values in (used, by_hand, saved))

"""The tables of an evaluation: numbers for `summary.json`, text for the report and for documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib.evaluation import annotator
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.evaluation.interactive_protocol import HEADLINE, WAYS
from SAMFineTuneLib.evaluation.result_rows import Row, by_patient
from SAMFineTuneLib.evaluation.volume_protocol import BY_SLICE, STARTS
from SAMFineTuneLib.evaluation.volume_sessions import BOXES, CLICKED, CLICKS
from SAMFineTuneLib.metrics.patient_statistics import (
    Difference,
    Estimate,
    bootstrap_interval,
    difference,
    estimate,
    holm,
    partial_spearman,
)
from SAMFineTuneLib.simulation.cosmos_prompts import PERTURBATIONS, STRATEGIES

WANTED = (0.85, 0.9)
"""Dice to reach when prompts are counted."""
BANDS = ((0, 5), (5, 10), (10, 20), (20, 40), (40, 80), (80, float("inf")))
"""Millimetres from the prompted slice."""
_CORRELATION_RESAMPLES = 500  # each takes a least-squares fit
_MEAN = (
    "Means over patients (objects within labels, labels within cases, cases within patients), in brackets the 95 % "
    "interval of a bootstrap over patients."
)

Cell = str | int | float | Estimate | Difference | None


@dataclass(frozen=True)
class Table:
    """A table with a title, a note on how to read it, and rows of cells under a header."""

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [[asdict(cell) if is_dataclass(cell) else cell for cell in row] for row in self.rows]
        return {"name": self.name, "title": self.title, "note": self.note, "header": list(self.header), "rows": rows}

    def as_markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *([text_of(cell) for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def text_of(cell: Cell) -> str:
    """A cell as text; `–` where it has no value."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return "–" if np.isnan(cell) else "<0.001" if 0 < cell < 0.001 else f"{cell:.3f}"
    if isinstance(cell, (Estimate, Difference)):
        span = "" if cell.low is None else f" ({cell.low:.3f} to {cell.high:.3f})"
        return f"{cell.mean:.3f}{span}"
    return str(cell)


class Results:
    """The rows of an evaluation by method, protocol, variant and step, in their given order."""

    def __init__(self, rows: Iterable[Row], methods: Sequence[str]) -> None:
        self.methods = tuple(methods)
        self._by: dict[tuple, list[Row]] = {}
        for row in rows:
            self._by.setdefault((row.method, row.protocol, row.variant, row.step), []).append(row)

    def of(self, method: str, protocol: str, variant: str = "", step: int = 1) -> list[Row]:
        return self._by.get((method, protocol, variant, step), [])

    def asked(self, protocol: str, variant: str = "") -> list[str]:
        """Methods that have such rows."""
        return [name for name in self.methods if self.of(name, protocol, variant)]

    def steps(self, method: str, protocol: str, variant: str) -> list[int]:
        return sorted(key[3] for key in self._by if key[:3] == (method, protocol, variant))


def all_tables(results: Results, seconds: Seconds) -> list[Table]:
    """All tables that have rows."""
    made = [prompt_table(results), label_table(results), paired_table(results), everything_table(results),
            perturbation_table(results), interactive_table(results), clicks_table(results), volume_box_table(results),
            volume_click_table(results), volume_table(results), distance_table(results),
            automatic_table(results), factor_table(results), seconds_table(results, seconds)]
    return [table for table in made if table.rows]  # fmt: skip


def prompt_table(results: Results) -> Table:
    """S2 to S6, the main table."""
    rows = []
    for name in results.methods:
        for strategy, what in STRATEGIES.items():
            if found := results.of(name, strategy):
                means = [estimate(by_patient(found, column)) for column in ("dice", "oracle", "iou", "hd95", "nsd")]
                rows.append((name, f"{strategy}: {what}", *means, _counts(found)))
    return Table(
        "prompts", "One prompt, one answer",
        "Dice is that of the candidate with the best predicted IoU, which is what a user gets; “best candidate” is "
        "chosen with the reference and only shows what the model could offer. HD95 in mm, over answers that are not "
        "empty. " + _MEAN,
        ("method", "prompt", "Dice", "best candidate", "IoU", "HD95", "NSD", "objects, cases, patients"), tuple(rows),
    )  # fmt: skip


def label_table(results: Results) -> Table:
    """Dice by label, where there are several labels."""
    rows = []
    labels = sorted({row.label for name in results.methods for way in STRATEGIES for row in results.of(name, way)},
                    key=_naturally)  # fmt: skip
    for label in labels if len(labels) > 1 else ():
        for name in results.methods:
            found = {way: [row for row in results.of(name, way) if row.label == label] for way in STRATEGIES}
            if any(found.values()):
                counts = next(_counts(rows) for rows in found.values() if rows)
                means = (estimate(by_patient(rows, "dice")) for rows in found.values())
                rows.append((label, name, *means, counts))
    return Table("labels", "Dice by label", _MEAN, ("label", "method", *STRATEGIES, "objects, cases, patients"),
                 tuple(rows))  # fmt: skip


def paired_table(results: Results) -> Table:
    """All methods compared with the first one, patient by patient."""
    first, *others = results.methods or ("",)
    rows = []
    for name in others:
        for strategy in STRATEGIES:
            gap = difference(by_patient(results.of(first, strategy), "dice"),
                             by_patient(results.of(name, strategy), "dice"))  # fmt: skip
            if gap:
                rows.append((name, strategy, gap, gap.p, gap.patients))
    corrected = holm([row[3] for row in rows])
    return Table(
        "paired", f"Differences in Dice to {first}",
        "Positive: better. p of Wilcoxon's two-sided signed-rank test over patients, and corrected for the number of "
        "comparisons in this table (Holm). With fewer than six patients no difference can reach 0.05.",
        ("method", "prompt", "difference", "p", "p, corrected", "patients"),
        tuple((*row[:4], p, row[4]) for row, p in zip(rows, corrected, strict=True)),
    )  # fmt: skip


def everything_table(results: Results) -> Table:
    rows = [
        (name, estimate(by_patient(found, "oracle")), estimate(by_patient(found, "dice")), _counts(found))
        for name in results.methods if (found := results.of(name, "S1"))
    ]  # fmt: skip
    return Table(
        "everything", "S1: everything mode",
        "The best of all masks on the slice for each object, and the mask with the best predicted IoU, which does not "
        "depend on the object. " + _MEAN,
        ("method", "best of all masks", "best score", "objects, cases, patients"), tuple(rows),
    )  # fmt: skip


def perturbation_table(results: Results) -> Table:
    """Dice lost when prompts are misplaced."""
    kinds = list(dict.fromkeys((how.strategy, how.what, how.unit) for how in PERTURBATIONS))
    rows = []
    for name in results.asked("perturbation", str(PERTURBATIONS[0])):
        for kind in kinds:
            bands = [how for how in PERTURBATIONS if (how.strategy, how.what, how.unit) == kind]
            right = by_patient(results.of(name, kind[0]), "dice")
            moved = [by_patient(results.of(name, "perturbation", str(how)), "dice") for how in bands]
            if right:
                cells = [difference(right, one) for one in moved]
            else:  # without the strategy itself, Dice instead of the loss
                cells = [estimate(one) for one in moved]
            rows.append((name, f"{kind[0]} {kind[1]}", kind[2], estimate(right), *cells))
    return Table(
        "perturbation", "Misplaced prompts",
        "Dice with the prompt in its place, and the change when it is moved; per cent are of the object's longer side. "
        "Boxes are shifted, or made larger or smaller on all sides. " + _MEAN,
        ("method", "prompt", "unit", "in place", "0–10", "10–20", "20–30"), tuple(rows),
    )  # fmt: skip


def interactive_table(results: Results) -> Table:
    """Dice after each prompt: it shows from how many clicks on a model is no longer ahead of baselines (COSMOS)."""
    rows = []
    longest = 0
    for way in WAYS:
        for name in results.asked("interactive", str(way)):
            steps = results.steps(name, "interactive", str(way))
            longest = max(longest, len(steps))
            means = [estimate(by_patient(results.of(name, "interactive", str(way), step), "dice")) for step in steps]
            rows.append((str(way), name, *(mean.mean for mean in means)))
    return Table(
        "interactive", "Dice after 1, 2, 3, … prompts",
        "The first prompt, then one click in each step where the answer is wrong. COSMOS found Segment Anything ahead "
        "of other interactive methods with few points and behind them with many: compare with the baselines. Means "
        "over patients.",
        ("way", "method", *(str(step) for step in range(1, longest + 1))),
        tuple((*row, *[None] * (longest + 2 - len(row))) for row in rows),
    )  # fmt: skip


def clicks_table(results: Results) -> Table:
    """Number of prompts until Dice is good enough."""
    rows = []
    for way in WAYS:
        for name in results.asked("interactive", str(way)):
            cells: list[Cell] = []
            things, courses = sequences_of(results, name, str(way))
            for wanted in WANTED:
                needed = [annotator.clicks_to(dice, wanted) for dice in courses]
                cells.append(estimate(by_patient(things, [float(count is not None) for count in needed])))
                cells.append(estimate(by_patient(things, [count or len(courses[0]) for count in needed])))
            rows.append((str(way), name, *cells))
    header = [f"{what} {wanted:.2f}" for wanted in WANTED for what in ("part that reaches", "prompts to")]
    return Table(
        "clicks", "Prompts until Dice is good",
        "Objects that do not reach it count with all steps, so means of prompts are lower bounds where the part that "
        "reaches is below 1. " + _MEAN,
        ("way", "method", *header), tuple(rows),
    )  # fmt: skip


def volume_box_table(results: Results) -> Table:
    """Whole volumes from boxes on one, three and five slices."""
    rows = []
    for variant in BOXES.values():
        for name in results.asked("3d", variant):
            found = results.of(name, "3d", variant)
            means = [estimate(by_patient(found, column)) for column in ("dice", "hd95", "nsd", "over", "short")]
            rows.append((name, variant, *means, _counts(found)))
    return Table(
        "volume boxes", "Whole volumes from boxes on a few slices",
        "The middle slice, the outermost ones and the middle, or those and the quarters get tight boxes. One box is "
        "propagated in both directions, between several the slices are filled. “Too many” are slices beyond an end of "
        "the label that got a mask, “missed” slices of the label beyond the mask's end, means of both ends. HD95 in "
        "mm. " + _MEAN,
        ("method", "slices with boxes", "Dice", "HD95", "NSD", "too many", "missed", "labels, cases, patients"),
        tuple(rows),
    )  # fmt: skip


def volume_click_table(results: Results) -> Table:
    """Whole volumes from a box and clicks at the largest error, with the area under the curve of the clicks."""
    rows = []
    for name in results.asked("3d", CLICKED):
        courses = [results.of(name, "3d", CLICKED, step) for step in results.steps(name, "3d", CLICKED)]
        for column, title in (("dice", "Dice"), ("nsd", "NSD")):
            values = np.array([[getattr(row, column) for row in own] for own in courses])
            area = np.sum(values[1:-1] + values[2:], axis=0) / 2  # trapezoids between the clicks
            means = [estimate(by_patient(own, column)).mean for own in courses]
            rows.append((name, title, *means, estimate(by_patient(courses[0], area.tolist())), _counts(courses[0])))
    return Table(
        "volume clicks", "Whole volumes from a box and five clicks",
        "The protocol of the CVPR 2025 challenge of interactive 3-D segmentation: boxes on the middle slice, then five "
        "clicks, each in the middle of the largest error of the volume. The area under the curve is over the five "
        "answers to clicks, so 4 would be perfect. Means over patients.",
        ("method", "measure", "box", *(str(click) for click in range(1, CLICKS + 1)), "area under the curve",
         "labels, cases, patients"), tuple(rows),
    )  # fmt: skip


def volume_table(results: Results) -> Table:
    """Whole volumes, after the first prompt and after each round of correction."""
    rows = []
    for start in STARTS:
        for name in results.asked("3d", start):
            for step in results.steps(name, "3d", start):
                found = results.of(name, "3d", start, step)
                means = [estimate(by_patient(found, column)) for column in ("dice", "hd95", "nsd")]
                what = "first prompt" if step == 1 else f"{step - 1} correction{'s' * (step > 2)}"
                rows.append((name, start, what, *means, _counts(found)))
    return Table(
        "volumes", "Whole volumes from the middle slice",
        "The middle slice is prompted and its mask propagated through the volume; each correction is on the slice "
        "with the most wrong pixels. HD95 in mm. " + _MEAN,
        ("method", "start", "after", "Dice", "HD95", "NSD", "labels, cases, patients"), tuple(rows),
    )  # fmt: skip


def distance_table(results: Results) -> Table:
    """Dice of slices by how far they are from the prompted one."""
    rows = []
    for start in STARTS:
        for name in results.asked("3d", start + BY_SLICE):
            found = results.of(name, "3d", start + BY_SLICE)
            prompted = [row for row in found if row.distance == 0]
            bands = [[row for row in found if row.distance and low <= abs(row.distance) < high] for low, high in BANDS]
            rows.append((name, start, *(estimate(by_patient(band, "dice")) for band in (prompted, *bands))))
    ends = [f"{low}–{high} mm" if np.isfinite(high) else f"{low} mm and more" for low, high in BANDS]
    return Table(
        "distance", "Dice by distance from the prompted slice",
        "Slices that show the label or got a mask, before any correction; a mask without the label has Dice 0, and so "
        "has a slice that was not reached. " + _MEAN,
        ("method", "start", "prompted slice", *ends), tuple(rows),
    )  # fmt: skip


def automatic_table(results: Results) -> Table:
    rows = []
    for name in results.asked("automatic"):
        found = results.of(name, "automatic")
        for label in sorted({row.label for row in found}, key=_naturally):
            own = [row for row in found if row.label == label]
            means = [estimate(by_patient(own, column)) for column in ("dice", "hd95", "nsd", "false_ml")]
            rows.append((name, label, *means, _counts(own)))
    return Table(
        "automatic", "Without a prompt",
        "Whole volumes by the automatic head. Cases that lack a label do not count in its Dice; what was found there "
        "is given separately, in mL. " + _MEAN,
        ("method", "label", "Dice", "HD95", "NSD", "found in cases without it, mL", "labels, cases, patients"),
        tuple(rows),
    )  # fmt: skip


def factor_table(results: Results) -> Table:
    """What makes objects hard: rank correlations of Dice with each factor, the other factors held constant."""
    from SAMFineTuneLib.evaluation.factors import REFERENCE

    known = {(row.case, row.object): row for row in results.of(REFERENCE, "factors")}
    rows = []
    for name in results.methods if known else ():
        for strategy in STRATEGIES:
            found = [row for row in results.of(name, strategy) if (row.case, row.object) in known]
            if len(found) >= 8:
                facts = [known[row.case, row.object] for row in found]
                rows.append((name, strategy, *_correlations(found, facts), len(found)))
    return Table(
        "factors", "What makes objects hard",
        "Partial rank correlation (Spearman) of Dice with each factor, without what the other two explain; bootstrap "
        " intervals over patients. Size is the area in mm², contrast the difference of mean grey values to "
        "the surroundings, complexity the order of the elliptic Fourier series that reaches Dice 0.97 with the object.",
        ("method", "prompt", "size", "contrast", "complexity", "objects"), tuple(rows),
    )  # fmt: skip


def _correlations(found: Sequence[Row], facts: Sequence[Row]) -> Iterator[Cell]:
    columns = np.array([[row.area, row.contrast, row.complexity] for row in facts], float).T
    dice = np.array([row.dice for row in found], float)
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(found):
        groups.setdefault(row.patient, []).append(place)
    places_of = [np.array(places) for _, places in sorted(groups.items())]
    for number in range(3):
        others = [number_ for number_ in range(3) if number_ != number]

        def partial(places: np.ndarray, number=number, others=others) -> float:
            return partial_spearman(dice[places], columns[number][places], columns[others][:, places])

        def of_patients(drawn: np.ndarray, partial=partial) -> float:
            return partial(np.concatenate([places_of[number] for number in drawn]))

        value, patients = partial(np.arange(len(dice))), range(len(places_of))
        yield None if np.isnan(value) else Estimate(
            value, *bootstrap_interval(patients, of_patients, _CORRELATION_RESAMPLES), len(patients)
        )


def seconds_table(results: Results, seconds: Seconds) -> Table:
    """An annotator's time with and without the method."""
    rows, wanted = [], annotator.GOOD_ENOUGH
    for way in HEADLINE:
        for name in results.asked("interactive", str(way)):
            things, courses = sequences_of(results, name, str(way))
            used = [annotator.seconds_for_object(dice, way.start, seconds, wanted) for dice in courses]
            rows.append((name, f"an object on a slice, from {way.start}",
                         *_times(things, [(spent, seconds.outline) for spent in used])))  # fmt: skip
    for start in STARTS:
        for name in results.asked("3d", start + BY_SLICE):
            by_volume: dict[tuple, list[Row]] = {}
            for row in results.of(name, "3d", start + BY_SLICE):
                by_volume.setdefault((row.case, row.label), []).append(row)
            times = [annotator.seconds_for_volume(own, start, seconds, wanted) for own in by_volume.values()]
            rows.append((name, f"a label in a volume, from {start}",
                         *_times([own[0] for own in by_volume.values()], times)))  # fmt: skip
    return Table(
        "seconds", "An annotator's time",
        f"Seconds, by assumptions: {seconds.box:g} for a box, {seconds.point:g} for a point, {seconds.look:g} to look "
        f"at a mask, {seconds.outline:g} for an outline by hand. A mask is accepted from Dice {wanted:g}; others are "
        "drawn by hand as well, so the saving can be negative. " + _MEAN,
        ("method", "task", "with prompts", "by hand", "saved"), tuple(rows),
    )  # fmt: skip


def sequences_of(results: Results, method: str, way: str) -> tuple[list[Row], list[list[float]]]:
    """The first rows of all objects, and for each its Dice by step."""
    steps = [
        {(row.case, row.object): row for row in results.of(method, "interactive", way, step)}
        for step in results.steps(method, "interactive", way)
    ]
    return list(steps[0].values()), [[one[key].dice for one in steps] for key in steps[0]]


def _times(rows: Sequence[Row], times: Sequence[tuple[float, float]]) -> tuple[Cell, ...]:
    """Means of seconds with prompts, by hand, and saved, from pairs of seconds with prompts and by hand."""
    used, by_hand, saved = ([one[0] for one in times], [one[1] for one in times], [one[1] - one[0] for one in times])
    return tuple(estimate(by_patient(rows, values)) for values in (used, by_hand, saved))


def counts_of(rows: Sequence[Row]) -> str:
    """Such as `12 objects of 4 cases and 3 patients`."""
    numbers = (len(rows), len({row.case for row in rows}), len({row.patient for row in rows}))
    words = zip(numbers, ("object", "case", "patient"), strict=True)
    objects, cases, patients = (f"{number} {word}{'s' * (number != 1)}" for number, word in words)
    return f"{objects} of {cases} and {patients}"


def _counts(rows: Sequence[Row]) -> str:
    return f"{len(rows)}, {len({row.case for row in rows})}, {len({row.patient for row in rows})}"


def _naturally(label: str) -> tuple[str, int]:
    """`label 2` before `label 10`."""
    word, _, number = label.rpartition(" ")
    return (word, int(number)) if number.isdigit() else (label, 0)

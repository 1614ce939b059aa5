"""What the rows say, as tables: numbers for `summary.json`, text for the report and for documents."""

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
"""Dice that clicks are counted to."""
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
    """A table with a title, a sentence or two on how to read it, and rows of cells under a header."""

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
        """As a document has it."""
        lines = [self.header, ["---"] * len(self.header), *([text_of(cell) for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def text_of(cell: Cell) -> str:
    """A cell for people."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return "–" if np.isnan(cell) else "<0.001" if 0 < cell < 0.001 else f"{cell:.3f}"
    if isinstance(cell, (Estimate, Difference)):
        span = "" if cell.low is None else f" ({cell.low:.3f} to {cell.high:.3f})"
        return f"{cell.mean:.3f}{span}"
    return str(cell)


class Results:
    """The rows of an evaluation by who, what and how; order as given."""

    def __init__(self, rows: Iterable[Row], methods: Sequence[str]) -> None:
        self.methods = tuple(methods)
        self._by: dict[tuple, list[Row]] = {}
        for row in rows:
            self._by.setdefault((row.method, row.protocol, row.variant, row.step), []).append(row)

    def of(self, method: str, protocol: str, variant: str = "", step: int = 1) -> list[Row]:
        return self._by.get((method, protocol, variant, step), [])

    def asked(self, protocol: str, variant: str = "") -> list[str]:
        """Methods with such rows."""
        return [name for name in self.methods if self.of(name, protocol, variant)]

    def steps(self, method: str, protocol: str, variant: str) -> list[int]:
        return sorted(key[3] for key in self._by if key[:3] == (method, protocol, variant))


def all_tables(results: Results, seconds: Seconds) -> list[Table]:
    """Every table that there are rows for."""
    made = [prompt_table(results), label_table(results), paired_table(results), everything_table(results),
            perturbation_table(results), interactive_table(results), clicks_table(results), volume_table(results),
            distance_table(results), automatic_table(results), factor_table(results), seconds_table(results, seconds)]
    return [table for table in made if table.rows]  # fmt: skip


def prompt_table(results: Results) -> Table:
    """S2 to S6: the headline."""
    rows = []
    for name in results.methods:
        for strategy, what in STRATEGIES.items():
            if found := results.of(name, strategy):
                means = [estimate(by_patient(found, column)) for column in ("dice", "oracle", "iou", "hd95", "nsd")]
                rows.append((name, f"{strategy}: {what}", *means, _counts(found)))
    return Table(
        "prompts", "One prompt, one answer",
        "Dice is that of the candidate with the best predicted IoU, which is what a user gets; “best candidate” is "
        "chosen with the reference's help and only says what the model had to offer. HD95 in mm, over the answers that "
        "are not empty. " + _MEAN,
        ("who", "prompt", "Dice", "best candidate", "IoU", "HD95", "NSD", "objects, cases, patients"), tuple(rows),
    )  # fmt: skip


def label_table(results: Results) -> Table:
    """The same by label, where there are several."""
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
    return Table("labels", "Dice by label", _MEAN, ("label", "who", *STRATEGIES, "objects, cases, patients"),
                 tuple(rows))  # fmt: skip


def paired_table(results: Results) -> Table:
    """Everybody against the first method, patient by patient."""
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
        "Positive: better. p of Wilcoxon's signed-rank test over patients, two-sided, and corrected for the number of "
        "comparisons in this table (Holm). With fewer than six patients no difference can reach 0.05.",
        ("who", "prompt", "difference", "p", "p, corrected", "patients"),
        tuple((*row[:4], p, row[4]) for row, p in zip(rows, corrected, strict=True)),
    )  # fmt: skip


def everything_table(results: Results) -> Table:
    rows = [
        (name, estimate(by_patient(found, "oracle")), estimate(by_patient(found, "dice")), _counts(found))
        for name in results.methods if (found := results.of(name, "S1"))
    ]  # fmt: skip
    return Table(
        "everything", "S1: everything mode",
        "The best of all masks found on the slice for each object, and the mask with the best predicted IoU, which "
        "knows nothing of the object. " + _MEAN,
        ("who", "best of all masks", "best score", "objects, cases, patients"), tuple(rows),
    )  # fmt: skip


def perturbation_table(results: Results) -> Table:
    """Points of Dice lost to prompts out of place."""
    kinds = list(dict.fromkeys((how.strategy, how.what, how.unit) for how in PERTURBATIONS))
    rows = []
    for name in results.asked("perturbation", str(PERTURBATIONS[0])):
        for kind in kinds:
            bands = [how for how in PERTURBATIONS if (how.strategy, how.what, how.unit) == kind]
            right = by_patient(results.of(name, kind[0]), "dice")
            moved = [by_patient(results.of(name, "perturbation", str(how)), "dice") for how in bands]
            if right:
                cells = [difference(right, one) for one in moved]
            else:  # the prompts in place were not asked for: what is left instead of what is lost
                cells = [estimate(one) for one in moved]
            rows.append((name, f"{kind[0]} {kind[1]}", kind[2], estimate(right), *cells))
    return Table(
        "perturbation", "Prompts out of place",
        "Dice with the prompt in its place, and the difference that moving it makes; per cent are of the object's "
        "longer side. Boxes are shifted, or made larger or smaller on all sides. " + _MEAN,
        ("who", "prompt", "unit", "in place", "0–10", "10–20", "20–30"), tuple(rows),
    )  # fmt: skip


def interactive_table(results: Results) -> Table:
    """Dice after each prompt: where a learned prior wins and where many clicks make it needless (COSMOS, finding 6)."""
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
        "The first prompt, then a click a step where the answer is wrong. COSMOS found Segment Anything ahead of other "
        "interactive methods with few points and outpaced with many: compare the columns with the baselines'. Means "
        "over patients.",
        ("way", "who", *(str(step) for step in range(1, longest + 1))),
        tuple((*row, *[None] * (longest + 2 - len(row))) for row in rows),
    )  # fmt: skip


def clicks_table(results: Results) -> Table:
    """How many prompts until it is good enough."""
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
        "Objects that never get there within the steps count with all of the steps, so that means of prompts are lower "
        "bounds where the part that reaches is below 1. " + _MEAN,
        ("way", "who", *header), tuple(rows),
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
        "The middle slice is prompted and its mask carried through the volume; each correction is on the slice with "
        "the most wrong pixels. HD95 in mm. " + _MEAN,
        ("who", "start", "after", "Dice", "HD95", "NSD", "labels, cases, patients"), tuple(rows),
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
        "Slices that show the label or got a mask, before any correction; a mask where nothing is has Dice 0, as has a "
        "slice that was not reached. " + _MEAN,
        ("who", "start", "prompted slice", *ends), tuple(rows),
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
        "By the automatic head, whole volumes. Cases that lack a label do not count in its Dice; what was found there "
        "nevertheless is told apart, in mL. " + _MEAN,
        ("who", "label", "Dice", "HD95", "NSD", "found where nothing is, mL", "labels, cases, patients"), tuple(rows),
    )  # fmt: skip


def factor_table(results: Results) -> Table:
    """Which objects are hard: rank correlations of Dice with each factor, the other factors held."""
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
        "Spearman's rank correlation of Dice with each factor, with the other two taken away (partial), over objects; "
        "intervals draw whole patients. Size is the area in mm², contrast the difference of mean grey values to the "
        "surround, complexity the order of the elliptic Fourier series that reaches Dice 0.97 with the object.",
        ("who", "prompt", "size", "contrast", "complexity", "objects"), tuple(rows),
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
    """What an annotator gains."""
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
        f"Seconds, from assumptions: {seconds.box:g} for a box, {seconds.point:g} for a point, {seconds.look:g} to "
        f"look at a mask, {seconds.outline:g} for an outline by hand. A mask is taken from Dice {wanted:g}; what never "
        "gets there is drawn by hand as well, so that saving can be negative. " + _MEAN,
        ("who", "task", "with prompts", "by hand", "saved"), tuple(rows),
    )  # fmt: skip


def sequences_of(results: Results, method: str, way: str) -> tuple[list[Row], list[list[float]]]:
    """The first rows of all objects, and for each its Dice by step."""
    steps = [
        {(row.case, row.object): row for row in results.of(method, "interactive", way, step)}
        for step in results.steps(method, "interactive", way)
    ]
    return list(steps[0].values()), [[one[key].dice for one in steps] for key in steps[0]]


def _times(rows: Sequence[Row], times: Sequence[tuple[float, float]]) -> tuple[Cell, ...]:
    """With prompts, by hand, saved; of pairs of seconds with prompts and by hand."""
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

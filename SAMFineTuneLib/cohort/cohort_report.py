"""The report of a cohort: `index.html`, which opens offline, and its figures as `cases.csv`.

It shows how close proposals came to the accepted labels, case by case in the order of acceptance, and how much work
accepting took. Cases are called by their keys; nothing in it names a patient.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from SAMFineTuneLib import report_page
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cases.labelled_case import slice_axis
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase, TrainedAdapter
from SAMFineTuneLib.cohort.review import fair_proposal
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation.annotator import Seconds
from SAMFineTuneLib.files import staged_folder, write_text
from SAMFineTuneLib.images import Volume, aligned_plane, choose_window, overlay_image, picture, read_volume
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, view_axes
from SAMFineTuneLib.metrics.mask_metrics import dice, mean_dice, surface_distances
from SAMFineTuneLib.training.training_report import draw_curves
from SAMFineTuneLib.wording import counted, duration

REPORT, PAGE = "report", "index.html"
"""Its folder in the cohort's, and its page."""
_FEW = 5  # cases at the beginning and at the end that are compared
_SHOWN_SIDE = 2.0  # of the structures' longer side
_MOST_CURVES, _MEAN = 6, "mean of five cases"


@dataclass(frozen=True)
class Compared:
    """An accepted case, and how close its proposal was; both are empty for a case without a proposal, or with one by an
    adapter that had learned from it.
    """

    case: CohortCase
    dice: Mapping[str, float]
    """By label, where it is in the proposal or was accepted."""
    distance: Mapping[str, float]
    """By label, where it is in both: mean distance of the two surfaces in mm."""
    outlines: int
    """Slices on which a label was accepted, counted once for each label."""

    @property
    def mean(self) -> float | None:
        """Mean Dice over labels; None for a case that was not proposed."""
        return mean_dice(self.dice.values())


def write_report(
    cohort: Cohort,
    folder: str | Path,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Path:
    """Write the report of a cohort.

    Args:
        cohort: the cohort.
        folder: where it goes; an earlier report there is replaced.
        progress: called with the number of finished cases, of all cases, and the name of the next one.

    Returns:
        The page.

    Raises:
        UserError: when nothing is accepted yet.
    """
    folder, accepted = Path(folder).expanduser(), cohort.state.accepted
    if not accepted:
        raise UserError("No case is accepted yet, so there is nothing to report; accept one first.")
    compared = []
    for done, case in enumerate(accepted):
        progress(done, len(accepted), case.name)
        compared.append(_compare(cohort, case))
    progress(len(accepted), len(accepted), "")
    labels = list(cohort.state.labels.values())
    rows: list[tuple] = [("order", "case", "adapter", "label", "Dice", "surface distance (mm)", "prompts", "seconds")]
    for number, one in enumerate(compared, start=1):
        review, proposal = one.case.review, one.case.proposal
        rows += [(number, one.case.key, proposal.adapter if proposal else None, label, one.dice.get(label),
                  one.distance.get(label), review and review.prompts, review and review.seconds)
                 for label in labels]  # fmt: skip
    with staged_folder(folder) as building:
        write_text(building / "cases.csv", report_page.csv_text(rows))
        write_text(building / PAGE, _page(cohort, compared))
    return folder / PAGE


def _compare(cohort: Cohort, case: CohortCase) -> Compared:
    accepted = read_labels(cohort.accepted_labels(case))
    labels = cohort.state.labels
    axes = tuple(axis for axis in range(3) if axis != slice_axis(Volume(accepted.array, accepted.affine)))
    outlines = sum(int((accepted.array == value).any(axis=axes).sum()) for value in labels)
    proposed = fair_proposal(cohort, case, accepted.array.shape)
    if proposed is None:
        return Compared(case, {}, {}, outlines)
    spacing = np.linalg.norm(accepted.affine[:3, :3], axis=0)[::-1]
    found, distances = {}, {}
    for value, name in labels.items():
        first, second = proposed == value, accepted.array == value
        if (overlap := dice(first, second)) is not None:
            found[name] = overlap
        if first.any() and second.any():
            distances[name] = float(np.concatenate(surface_distances(first, second, spacing)).mean())
    return Compared(case, found, distances, outlines)


# ---------------------------------------------------------------- in words


def headline(compared: Sequence[Compared]) -> str:
    """The quality of proposals now and at first, and the work that a case takes, in words."""
    count = len(compared)
    begin = f"{counted(count, 'case')} {'are' if count != 1 else 'is'} accepted"
    known = [one.mean for one in compared if one.mean is not None]
    if not known:
        return f"{begin}; none had been proposed by an adapter, so nothing can be said about proposals yet."
    first, last = _ends(known)
    if first is None:
        some = "all" if len(known) == count else f"{len(known)}"
        were = "was" if len(known) == 1 else "were"
        sentences = [f"{begin}, {some} of which {were} proposed, with a mean Dice of {last:.2f} to what was accepted."]
    else:
        change = "more" if last >= first else "less"
        sentences = [f"{begin}; the last {_FEW} proposals had a mean Dice of {last:.2f} with what was accepted, "
                     f"{abs(last - first):.2f} {change} than the first {_FEW}."]  # fmt: skip
    for what, unit in (("prompts", "prompts"), ("seconds", "seconds of work")):
        first, last = _ends(_taken(compared, what))
        if first is not None:
            sentences.append(f"The last {_FEW} cases took {last:.0f} {unit} each, the first {_FEW} took {first:.0f}.")
    return " ".join([*sentences, *([saved] if (saved := _time_saved(compared)) else [])])


def _time_saved(compared: Sequence[Compared]) -> str:
    """Working time compared with contouring, with the assumption it rests on; empty where no time was measured."""
    measured = [one for one in compared if one.case.review and one.case.review.seconds is not None and one.outlines]
    if not measured:
        return ""
    outline = Seconds().outline
    taken = sum(one.case.review.seconds for one in measured)
    by_hand = sum(one.outlines for one in measured) * outline
    share = f"{100 * (1 - taken / by_hand):.0f} % less" if taken <= by_hand else f"{taken / by_hand:.1f} times as much"
    return (
        f"The {len(measured)} cases with measured time took {duration(taken)}, {share} than contouring: their "
        f"{sum(one.outlines for one in measured)} outlines on slices would take {duration(by_hand)} at {outline:g} s "
        "each, an assumption that was not measured here."
    )


def _ends(values: Sequence[float]) -> tuple[float | None, float]:
    """Means of the first and the last few values; None and the mean of all where these would overlap."""
    if len(values) < 2 * _FEW:
        return None, float(np.mean(values)) if values else 0.0
    return float(np.mean(values[:_FEW])), float(np.mean(values[-_FEW:]))


def _taken(compared: Sequence[Compared], what: str) -> list[float]:
    values = (getattr(one.case.review, what) for one in compared if one.case.review)
    return [float(value) for value in values if value is not None]


# ---------------------------------------------------------------- the page


def _page(cohort: Cohort, compared: Sequence[Compared]) -> str:
    state = cohort.state
    labels = list(state.labels.values())
    counts = ", ".join(f"{len(found)} {name}" for name in ("accepted", "corrected", "proposed", "untouched", "refused")
                       if (found := state.those(name)))  # fmt: skip
    facts = [("cases", f"{len(state.cases)}: {counts}"), ("labels", ", ".join(labels)), ("model", state.model),
             ("adapter in use", str(state.adapter.number) if state.adapter else "none")]  # fmt: skip
    table = report_page.table(
        ("order", "case", "adapter", *(f"Dice, {label}" for label in labels),
         *(f"distance, {label}" for label in labels), "prompts", "seconds"),
        [_row(number, one, labels) for number, one in enumerate(compared, start=1)],
    )  # fmt: skip
    if any(one.dice for one in compared):
        parts = [report_page.heading(
            "Proposals against what was accepted",
            "By case, in the order in which they were first accepted; proposals by an adapter that had learned from "
            "the case itself are left out. Who accepts a case begins with its proposal, so both agree more than two "
            "independent annotators would; evidence about an adapter comes from the patients held out, below.",
        ), *_curves(compared, labels), table,
            "<p class='note'>Distance: mean distance between the surfaces of both, in mm. A case without an adapter "
            "was annotated by prompts alone. cases.csv holds the same.</p>"]  # fmt: skip
    else:
        parts = [report_page.heading("Accepted cases", "In the order in which they were first accepted."), table]
    parts.append(report_page.heading("Work", _time_saved(compared) or "No working time was measured."))
    for what in ("prompts", "seconds"):
        curve = [(number, float(value)) for number, one in enumerate(compared, start=1)
                 if one.case.review and (value := getattr(one.case.review, what)) is not None]  # fmt: skip
        if curve:
            parts.append(draw_curves({"each case": curve}, f"{what.capitalize()} by case accepted"))
            parts.append(f"<p class='note'>Median {median(value for _, value in curve):.0f} {what} a case.</p>")
    if state.adapters:
        parts += [report_page.heading("Adapters", "An adapter replaces the one before only when cases of patients held "
                                      "out, whom no adapter learned from, say so."),
                  report_page.table(("adapter", "date", "from", "learned from", "held out", "Dice", "before", "gain",
                                     "in use", "evidence"), [_adapter_row(one) for one in state.adapters])]  # fmt: skip
    if shown := _pictures(cohort, compared):
        parts += [report_page.heading("Worst, median and best proposal", "The slice of each case that shows most."),
                  report_page.key(labels, "the proposal", "what was accepted"),
                  report_page.pictures(shown)]  # fmt: skip
    title = f"Cohort of {len(state.cases)} cases: {', '.join(labels)}"
    return report_page.page(title, headline(compared), facts, parts)


def _curves(compared: Sequence[Compared], labels: Sequence[str]) -> list[str]:
    drawn = []
    for name, title in (("dice", "Dice by case accepted"), ("distance", "Surface distance in mm by case accepted")):
        values = [(number, getattr(one, name)) for number, one in enumerate(compared, start=1)]
        known = [(number, float(np.mean(list(found.values())))) for number, found in values if found]
        mean = [
            (number, float(np.mean([value for _, value in known[max(0, place - 4) : place + 1]])))
            for place, (number, _) in enumerate(known)
        ]
        each = {label: [(number, found[label]) for number, found in values if label in found] for label in labels}
        curves = {"each case": known} if len(labels) == 1 else each if len(labels) <= _MOST_CURVES else {}
        if known:
            drawn.append(draw_curves({**curves, _MEAN: mean}, title, _MEAN))
    return drawn


def _row(number: int, one: Compared, labels: Sequence[str]) -> list[str | None]:
    review, proposal = one.case.review, one.case.proposal
    return [
        str(number), one.case.key, str(proposal.adapter) if proposal else None,
        *(f"{one.dice[label]:.3f}" if label in one.dice else None for label in labels),
        *(f"{one.distance[label]:.2f}" if label in one.distance else None for label in labels),
        str(review.prompts) if review and review.prompts is not None else None,
        f"{review.seconds:.0f}" if review and review.seconds is not None else None,
    ]  # fmt: skip


def _adapter_row(one: TrainedAdapter) -> list[str | None]:
    after, before = one.mean, one.mean_before
    if after is None:  # of an earlier version
        after, before = mean_dice(one.dice.values()), mean_dice(one.dice_before.values())
    gain = None if after is None or before is None else f"{after - before:+.3f}"
    if gain and one.interval:
        gain += f" ({one.interval[0]:+.3f} to {one.interval[1]:+.3f})"
    return [
        str(one.number), one.date, one.start, counted(len(one.learned), "case"), counted(len(one.held_out), "case"),
        None if after is None else f"{after:.3f}", None if before is None else f"{before:.3f}", gain,
        "yes" if one.in_use else "no", one.reason,
    ]  # fmt: skip


def _pictures(cohort: Cohort, compared: Sequence[Compared]) -> list[tuple[str, str]]:
    """A picture of the worst, the median and the best proposal, with its caption; fewer where images are missing."""
    order = sorted((one for one in compared if one.mean is not None), key=lambda one: one.mean)
    places = {0: "worst", len(order) // 2: "median", len(order) - 1: "best"} if order else {}
    shown = []
    for place in sorted(places):
        one = order[place]
        try:
            volume = read_volume(cohort.image(one.case))
        except UserError:
            continue  # the image was moved; the figures stand without it
        accepted = read_labels(cohort.accepted(one.case.key)).array
        proposed = fair_proposal(cohort, one.case, accepted.shape)
        if proposed is not None and accepted.shape == volume.shape and accepted.any():
            shown.append((report_page.embedded(_drawn(cohort, volume, accepted, proposed)),
                          f"{places[place]}, case {one.case.key}: Dice {one.mean:.3f}"))  # fmt: skip
    return shown


def _drawn(cohort: Cohort, volume: Volume, accepted: np.ndarray, proposed: np.ndarray) -> bytes:
    """The slice with the largest accepted structures, as PNG: proposal filled, accepted outlined in white."""
    axis = slice_axis(volume)
    orientation = next(name for name in ORIENTATIONS if 2 - view_axes(volume, name)[2] == axis)
    others = tuple(other for other in range(3) if other != axis)
    plane = aligned_plane(volume, orientation, int((accepted > 0).sum(axis=others).argmax()))
    found, right = (extract_labels(array, volume, plane) for array in (proposed, accepted))
    view = report_page.close_up((found > 0) | (right > 0), _SHOWN_SIDE)
    values = list(enumerate(cohort.state.labels))
    image = overlay_image(
        view.crop(picture(volume, plane, choose_window(volume))),
        [(view.crop(found == value), report_page.paint(number)) for number, value in values],
        outlines=[(view.crop(right == value), report_page.REFERENCE) for _, value in values],
    )
    png = io.BytesIO()
    image.save(png, format="PNG")
    return png.getvalue()

"""How well a few boxes give an object in three dimensions: 3-D Dice, and how far past its ends it is carried.

    python Testing/benchmarks/volumes.py -o figures.json
    python Testing/benchmarks/volumes.py --sets ct --boxes 1 --most 5 --model FOLDER

The slices of a structure that show 20 pixels or more are its own. It gets a tight box on the middle one, on the
outermost ones and the middle, or on those and the quarters; `Segmenter.propagate` carries one box in both directions
and fills between several. "contour" is the morphological interpolation of Slicer's *Fill between slices*, which starts
from the model's answers to the same boxes; "every" has a box on each slice. `over` is how many slices beyond an
end of the structure got a mask, `short` how many at that end got none, both as means over the two ends.

Sets are `ct` and `hippocampus` of `shared/data`, `phantoms` (hard cases, see Testing/samples/hard_volumes.py), or any
folder or list of cases that `samfinetune evaluate` takes.
With `-o` the figures of each structure are kept in a JSON file, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "samples"))
from contour_interpolation import fill_between
from hard_volumes import hard_volumes

from SAMFineTuneLib.cases.case_slices import LEAST_PIXELS, learned_orientations
from SAMFineTuneLib.cases.case_survey import survey
from SAMFineTuneLib.cases.cases import Case, find_cases
from SAMFineTuneLib.cases.labelled_case import LabelChoice, read_labelled
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation.volume_sessions import ends, spread
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.images import Volume
from SAMFineTuneLib.images.slice_plane import view_axes
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.mask_shapes import pieces
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.progress import Meter, Progress
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.metrics.mask_metrics import dice
from SAMFineTuneLib.metrics.patient_statistics import bootstrap_interval
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.segmenter import Segmenter

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LEAST_SLICES = 5
"""Structures on fewer slices are left out: five boxes would be every slice."""
MOST = 30


@dataclass(frozen=True, eq=False)
class Structure:
    """A labelled structure: `mask` bool [k, j, i] on the grid of `volume`."""

    group: str
    name: str
    volume: Volume
    mask: np.ndarray

    @property
    def orientation(self) -> str:
        """Slices are prompted as they were acquired."""
        return learned_orientations(self.volume, {})[0]

    @property
    def axis(self) -> int:
        """The array's axis across these slices."""
        return 2 - view_axes(self.volume, self.orientation)[2]

    @property
    def own_slices(self) -> np.ndarray:
        """Indices of the slices that show enough of it for a box."""
        pixels = np.count_nonzero(np.moveaxis(self.mask, self.axis, 0), axis=(1, 2))
        return np.flatnonzero(pixels >= LEAST_PIXELS)

    def boxes_on(self, index: int) -> Iterator[tuple[list[float], list[float]]]:
        """Two corners (i, j, k) of the tight box round each large enough piece on one of its slices."""
        on_slice = pieces(np.moveaxis(self.mask, self.axis, 0)[index])
        large = [piece for piece in on_slice if np.count_nonzero(piece) >= LEAST_PIXELS]
        for piece in large or on_slice[:1]:
            places = np.argwhere(piece).astype(float)
            low, high = places.min(axis=0), places.max(axis=0)
            thin = 0.5 * (low == high)  # a box as thin as a pixel would have no area
            yield tuple(np.insert(end, self.axis, index)[::-1].tolist() for end in (low - thin, high + thin))


def ct_structures() -> Iterator[Structure]:
    folder = DATA / "ct-abdomen-dicom"
    yield from structures_of("ct", [Case("abdomen", folder / "series", folder / "segmentation.nii.gz")], LabelChoice())


def hippocampi() -> Iterator[Structure]:
    """Anterior and posterior part as one structure."""
    yield from structures_of("hippocampus", find_cases(DATA / "hippocampus-mri"), LabelChoice(merged=True))


def phantoms() -> Iterator[Structure]:
    for name, volume, mask in hard_volumes():
        yield Structure("phantoms", name, volume, mask)


def structures_of(group: str, cases: Sequence[Case], choice: LabelChoice) -> Iterator[Structure]:
    """Structures on enough slices of annotated cases, case by case."""
    found = survey(cases, choice, least=1)
    for case in cases:
        labelled = read_labelled(case, found.choice, found.names)
        for number, label in enumerate(found.names, start=1):
            name = f"{case.id}, {label}"
            one = Structure(group, name, labelled.volume, labelled.mask(number) & ~labelled.ignored)
            if len(one.own_slices) >= LEAST_SLICES:
                yield one


SETS = {"ct": ct_structures, "hippocampus": hippocampi, "phantoms": phantoms}


def structures(name: str, most: int | None) -> list[Structure]:
    """The first structures of a set by its name, or of a folder or list of cases."""
    if name in SETS:
        if name != "phantoms" and not DATA.is_dir():
            raise UserError(f"The set {name} is not on this computer: there is no folder {DATA}.")
        found = SETS[name]()
    else:
        found = structures_of(name, find_cases(name), LabelChoice())
    return list(itertools.islice(found, most))


def segment(
    predictor: Predictor, one: Structure, places: Sequence[int], carry: str | None, settings: dict | None = None
) -> np.ndarray:
    """The mask [k, j, i] from boxes on slices, carried in a direction of `Segmenter.propagate` or not at all."""
    segmenter = Segmenter(one.volume, predictor=predictor, tell=lambda _: None)
    for index in places:
        for corners in one.boxes_on(index):
            segmenter.box(*corners, space="ijk", orientation=one.orientation)
    session = segmenter.predict().session
    starts = [plane for value, plane in segmenter.prompted_planes if session.mask(value, plane).any()]
    if carry is not None and len(starts) >= (2 if carry == "fill" else 1):
        if settings:
            session.finish(session.propagate(1, PropagationSettings(direction=carry, **settings)))
        else:
            segmenter.propagate(direction=carry)
    return segmenter.mask()


def measure(predictor: Predictor, one: Structure, counts: Sequence[int], settings: dict) -> dict:
    """The figures of a structure."""
    own = one.own_slices.tolist()
    every = segment(predictor, one, own, None)
    figures = {"slices": len(own), "every": dice(every, one.mask), "boxes": {}, "contour": {}}
    for count in counts:
        places = spread(own, count)
        start = time.perf_counter()
        mask = segment(predictor, one, places, "both" if count == 1 else "fill", settings)
        seconds = time.perf_counter() - start
        over, short = ends(mask, one.mask, one.axis)
        figures["boxes"][str(count)] = {
            "dice": dice(mask, one.mask), "over": over, "short": short, "seconds": round(seconds, 3),
        }  # fmt: skip
        if count > 1:
            boxed = np.zeros_like(np.moveaxis(every, one.axis, 0))
            boxed[places] = np.moveaxis(every, one.axis, 0)[places]
            filled = np.moveaxis(fill_between(boxed), 0, one.axis)
            figures["contour"][str(count)] = {"dice": dice(filled, one.mask)}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sets", default=",".join(SETS), help="names, folders or lists, with commas between (default: all names)")
    add("--boxes", default="1,3,5", help="how many slices get boxes (default 1,3,5)")
    add("--most", type=int, default=MOST, metavar="N", help=f"structures of each set (default {MOST})")
    add("--all", action="store_const", const=None, dest="most", help="all structures of each set")
    add("--each", action="store_true", help="print a line for each structure, too")
    add("--model", default="compact", help="a model's id or folder (default: the bundled one)")
    add("--settings", default="", help="of the propagation, such as min_overlap=0.3 (default: the usual ones)")
    add("--threads", type=int, metavar="N", help="processor cores that an answer may use (default: all)")
    add("-o", "--output", type=Path, help="JSON file for the figures; what it holds is not measured again")
    args = parser.parse_args()
    try:
        counts = parse_counts(args.boxes)
        chosen = [one for name in args.sets.split(",") for one in structures(name, args.most)]
        engine = open_engine(Store().find(args.model), threads=args.threads)
        settings = parse_settings(args.settings)
        parts = (engine.digest, engine.memory.digest if engine.memory else "", args.settings)
        figures = started(args.output, " ".join(filter(None, parts)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    run(Predictor(engine, EmbeddingCache()), chosen, counts, settings, figures, args.output)
    rows = {}
    for one in chosen:
        own = figures["structures"][key_of(one)]
        rows.setdefault(one.group, []).append(own)
        if args.each:
            rows[key_of(one)] = [own]
    figures["sets"] = {name: means(own, counts) for name, own in rows.items()}
    save(figures, args.output)
    print(table(figures["sets"], counts))
    return 0


def parse_counts(text: str) -> list[int]:
    try:
        counts = [int(count) for count in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UserError("--boxes takes whole numbers from 1, with commas between, for example 1,3,5.")
    return counts


def parse_settings(text: str) -> dict[str, float]:
    """Values of `PropagationSettings` by name; UserError where they cannot be used."""
    values = dict(item.partition("=")[::2] for item in text.split(",") if item)
    try:
        settings = {name: float(value) for name, value in values.items()}
        PropagationSettings(**settings)
    except (TypeError, ValueError):
        raise UserError(f"{text!r} are not settings of a propagation; give some as min_overlap=0.3.") from None
    return settings


def key_of(one: Structure) -> str:
    return f"{one.group}: {one.name}"


def started(output: Path | None, model: str) -> dict:
    """The figures in the file; UserError where they are another model's or made with other settings."""
    if output is None or not output.exists():
        return {"model": model, "structures": {}}
    figures = json.loads(output.read_text(encoding="utf-8"))
    if figures["model"] != model:
        raise UserError(f"{output} holds the figures of another model or of other settings; give another file.")
    return figures


def save(figures: dict, output: Path | None) -> None:
    if output is not None:
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def run(
    predictor: Predictor, chosen: Sequence[Structure], counts: Sequence[int], settings: dict, figures: dict,
    output: Path | None,
) -> None:  # fmt: skip
    """Measure what is missing; the figures of a structure are on disk before the next one begins."""
    known = figures["structures"]
    meter = Meter(len(chosen), tell)
    for one in chosen:
        before = known.get(key_of(one), {"boxes": {}, "contour": {}})
        missing = [count for count in counts if str(count) not in before["boxes"]]
        if not missing:
            meter.skip(1)
            continue
        found = measure(predictor, one, missing, settings)
        for kind in ("boxes", "contour"):
            found[kind] = before[kind] | found[kind]
        known[key_of(one)] = found
        save(figures, output)
        scores = "  ".join(f"{count}: {found['boxes'][str(count)]['dice']:.3f}" for count in counts)
        print(f"{key_of(one):44.44} {found['slices']:3} slices  {scores}  every: {found['every']:.3f}", file=sys.stderr)
        meter.step()


def tell(progress: Progress) -> None:
    left = "" if progress.seconds_left is None else f", {progress.seconds_left / 60:.0f} min left"
    print(f"{progress.done} of {progress.total} structures{left}", file=sys.stderr, flush=True)


def means(own: Sequence[dict], counts: Sequence[int]) -> dict:
    """Means over structures; Dice with both ends of its 95 % bootstrap interval."""

    def spans(values: list[float]) -> list[float | None]:
        return [float(np.mean(values)), *bootstrap_interval(values)]

    found = {"structures": len(own), "slices": float(np.mean([one["slices"] for one in own]))}
    found["every"] = spans([one["every"] for one in own])
    for count in map(str, counts):
        boxes = [one["boxes"][count] for one in own]
        found[f"{count} boxes"] = spans([one["dice"] for one in boxes])
        found[f"{count} boxes, over"] = float(np.mean([one["over"] for one in boxes]))
        found[f"{count} boxes, short"] = float(np.mean([one["short"] for one in boxes]))
        if count != "1":
            found[f"{count} boxes, contour"] = spans([one["contour"][count]["dice"] for one in own])
    return found


def table(sets: dict[str, dict], counts: Sequence[int]) -> str:
    """A row a set, as Markdown."""
    columns = {"structures": "structures", "slices": "slices"}
    for count in counts:
        columns[f"{count} boxes"] = "1 box, carried" if count == 1 else f"{count} boxes, filled"
        if count == 1:
            columns |= {"1 boxes, over": "over", "1 boxes, short": "short"}
        else:
            columns[f"{count} boxes, contour"] = "contour"
    columns["every"] = "every slice boxed"
    lines = [["set", *columns.values()], ["---"] * (len(columns) + 1)]
    lines += [[name, *(as_text(found[column]) for column in columns)] for name, found in sets.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_text(value: int | float | list) -> str:
    if isinstance(value, list):
        mean, low, high = value
        return f"{mean:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())

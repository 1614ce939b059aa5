"""`samfinetune demo`: the whole way from a DICOM series to a label map, on a phantom whose organs are known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from SAMFineTuneLib.images import Volume
    from SAMFineTuneLib.prompts import PromptSet

_EPILOG = """examples:
  samfinetune demo
  samfinetune demo -o somewhere --seed 3

Leaves in the folder: dicom (the series), prompts.json, organs.seg.nrrd (opens in Slicer), picture.png.
"""
_MARGIN = 1.0  # pixels a person leaves between an organ and the box drawn round it


def add_parser(subparsers) -> None:
    """Add `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="try everything on an artificial body, without data of your own",
        description="Make an artificial body with known organs, write it as a DICOM series, read it back, draw one "
        "box round each organ on one slice, let the bundled model do the rest, and measure how well it did.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", default="demo", help="where to put it (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="another number makes another body (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Make, segment, measure."""
    from SAMFineTuneLib.cli import batch, describe
    from SAMFineTuneLib.images import body_phantom, choose_window, read_volume, write_dicom_series, write_labelmap
    from SAMFineTuneLib.inference.cache import open_cache
    from SAMFineTuneLib.inference.engine import open_engine
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.prompts import write_prompts

    if args.seed < 0:
        raise UserError("--seed must be 0 or more.")
    folder = _folder(args.output)
    phantom, truth, names = body_phantom(args.seed)
    series = folder / "dicom"
    files = write_dicom_series(phantom, series)
    print(f"A body with {len(names)} organs was written as {len(files)} DICOM files into {series}.\n")

    volume = read_volume(series)
    window = choose_window(volume)
    prompts = _box_round_each(volume, truth, names)
    write_prompts(folder / "prompts.json", prompts)
    predictor = Predictor(open_engine(Store().get()), open_cache())
    describe.print_inputs(volume, window, predictor)
    outcome = batch.answer(batch.place(volume, window, prompts, "both"), predictor, "both")
    segments = outcome.session.segments
    write_labelmap(folder / "organs.seg.nrrd", outcome.labelmap, volume, segments)
    batch.draw(outcome, folder / "picture.png", batch.busiest_plane(outcome))

    print(f"\n{'Dice (1 is perfect)':<21}{'box slice':>10}{'whole body':>12}{'volume':>12}")
    for info in segments:
        found, known = outcome.labelmap == info.value, truth == info.value
        k = outcome.prompted[info.value][0].index
        print(f"{info.name:<21}{dice(found[k], known[k]):>10.2f}{dice(found, known):>12.2f}"
              f"{batch.milliliters(outcome, info.value):>9.1f} mL")  # fmt: skip
    print(f"\nThe label map is {folder / 'organs.seg.nrrd'}, a picture of it {folder / 'picture.png'}.")
    print("The same by hand:")
    print(f"  samfinetune segment {series} -o organs.seg.nrrd --prompts {folder / 'prompts.json'} --propagate both")
    return 0


def dice(found: np.ndarray, known: np.ndarray) -> float:
    """Overlap of two masks: twice their common voxels over the sum of both."""
    return 2 * int((found & known).sum()) / max(1, int(found.sum()) + int(known.sum()))


def _folder(path: str) -> Path:
    """The demo's folder, where an earlier demo may be written over, but nobody's own files."""
    from SAMFineTuneLib.images import list_series

    folder = Path(path).expanduser()
    series = folder / "dicom"
    if any(place.exists() and not place.is_dir() for place in (folder, series)):
        raise UserError(f"{path} is a file; give the demo another folder with -o.")
    if series.exists() and any(series.iterdir()):
        if {entry.description for entry in list_series(series)} != {"Body phantom"}:
            raise UserError(f"{series} holds images that are not the demo's; give the demo another folder with -o.")
    return folder


def _box_round_each(volume: Volume, truth: np.ndarray, names: dict[int, str]) -> PromptSet:
    """One box for each organ, on the slice where it is largest, its corners in RAS as a person would draw them.

    The smallest organ comes first: an earlier segment keeps its voxels, so no large one can spill into a small one.
    """
    from SAMFineTuneLib.images import aligned_plane
    from SAMFineTuneLib.images.resample import extract_labels
    from SAMFineTuneLib.prompts import BoxPrompt, PromptSet, SegmentPrompts

    segments = []
    for value in sorted(names, key=lambda value: int((truth == value).sum())):
        k = int((truth == value).sum(axis=(1, 2)).argmax())
        plane = aligned_plane(volume, "axial", k)
        rows, columns = (extract_labels(truth, volume, plane) == value).nonzero()
        low = columns.min() - _MARGIN, rows.min() - _MARGIN
        high = columns.max() + _MARGIN, rows.max() + _MARGIN
        corners = plane.pixel_to_ras([low, high])
        segments.append(SegmentPrompts(names[value], value, prompts=(BoxPrompt(tuple(corners[0]), tuple(corners[1])),)))
    return PromptSet(tuple(segments))

"""`samfinetune demo`: the whole way from a DICOM series to a label map, on a phantom whose organs are known; or a
cohort of phantoms to try `samfinetune cohort` with.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import console, outputs
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_writable, sha256_of, staged_folder, write_text
from SAMFineTuneLib.typed_json import loaded

if TYPE_CHECKING:
    import numpy as np

    from SAMFineTuneLib.images import Volume
    from SAMFineTuneLib.prompts import PromptSet
    from SAMFineTuneLib.segmenter import Segmenter

_EPILOG = """examples:
  samfinetune demo
  samfinetune demo -o somewhere --seed 3
  samfinetune demo --cohort              a cohort of eight bodies, to try `samfinetune cohort` and the panel with

Leaves in the folder: dicom (the series), prompts.json, organs.seg.nrrd (opens in Slicer), picture.png. A later demo
renews them, unless one was changed.
"""
SERIES, PROMPTS, LABELS, PICTURE = "dicom", "prompts.json", "organs.seg.nrrd", "picture.png"
_SIGNED = ".demo.json"  # the SHA-256 of what the demo wrote
_BODIES, _ACCEPTED, _ORGANS = 8, 5, ("liver", "spleen", "right kidney")
_MARGIN = 1.0  # pixels a person leaves between an organ and the box drawn round it


def add_parser(subparsers) -> None:
    """Add `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="try everything on an artificial body, without data of your own",
        description="Make an artificial body with known organs, write it as a DICOM series, read it back, draw one "
        "box round each organ on one slice, let the bundled model do the rest, and measure how well it did.",
        epilog=_EPILOG,
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to put it (default: demo, or demo-cohort)")
    parser.add_argument("--cohort", action="store_true", help="make a cohort of phantoms instead")
    parser.add_argument("--seed", type=int, default=0, help="another number makes another body (default: 0)")
    outputs.add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Make, segment, measure."""
    from SAMFineTuneLib.metrics.mask_metrics import dice

    if args.seed < 0:
        raise UserError("--seed must be 0 or more.")
    if args.cohort:
        return _make_cohort(outputs.require_new_folder(args.output or "demo-cohort"), args.seed)
    folder = Path(args.output or "demo").expanduser()
    earlier = _earlier_files(folder, args.overwrite)
    require_writable(folder)
    with staged_folder(folder, earlier) as building:
        segmenter, truth = _demonstrate(building, args.seed)
        _sign(building)
    print(f"\n{'Dice (1 is perfect)':<21}{'box slice':>10}{'whole body':>12}{'volume':>12}")
    planes, labelmap = dict(segmenter.prompted_planes), segmenter.labelmap
    for row in segmenter.statistics():
        found, known = labelmap == row.value, truth == row.value
        k = planes[row.value].index
        print(f"{row.segment:<21}{dice(found[k], known[k]):>10.2f}{dice(found, known):>12.2f}"
              f"{row.milliliters:>9.1f} mL")  # fmt: skip
    print(f"\nThe label map is {folder / LABELS}, a picture of it {folder / PICTURE}.")
    print("The same by hand:")
    print(f"  samfinetune segment {folder / SERIES} -o organs.seg.nrrd --prompts {folder / PROMPTS} --propagate both")
    return 0


def _demonstrate(folder: Path, seed: int) -> tuple[Segmenter, np.ndarray]:
    """Write everything into a folder; returns the found and the true labels [k, j, i]."""
    from SAMFineTuneLib.cli import describe
    from SAMFineTuneLib.images import body_phantom, write_dicom_series
    from SAMFineTuneLib.images.overlay import save_png, side_by_side
    from SAMFineTuneLib.metrics.mask_metrics import dice
    from SAMFineTuneLib.prompts import write_prompts
    from SAMFineTuneLib.segmenter import Segmenter

    phantom, truth, names = body_phantom(seed)
    files = write_dicom_series(phantom, folder / SERIES)
    print(f"A body with {len(names)} organs was written as {len(files)} DICOM files.\n")
    segmenter = Segmenter(folder / SERIES, tell=console.note)
    prompts = _box_round_each(segmenter.volume, truth, names)
    write_prompts(folder / PROMPTS, prompts)
    segmenter.prompts(prompts)
    describe.print_inputs(segmenter.volume, segmenter.session.window, describe.Answering.of(segmenter.predictor))
    planes = dict(segmenter.prompted_planes)
    segmenter.propagate().save(folder / LABELS, overwrite=True)
    labelmap = segmenter.labelmap
    legend = {value: f"{name}, Dice {dice(labelmap == value, truth == value):.2f}" for value, name in names.items()}
    by_slice = {plane.key: plane for plane in planes.values()}  # organs whose boxes lie on one slice share a picture
    images = [
        segmenter.slice_image(plane, {value: legend[value] for value in names if planes[value].key == key})
        for key, plane in by_slice.items()
    ]
    save_png(folder / PICTURE, side_by_side(images))
    return segmenter, truth


def _make_cohort(folder: Path, seed: int) -> int:
    """Write different bodies, a cohort of them, and the true labels of those that are still to be segmented."""
    import numpy as np

    from SAMFineTuneLib.cohort.create_cohort import create_cohort
    from SAMFineTuneLib.cohort.find_images import find_images
    from SAMFineTuneLib.images import body_phantom, write_labelmap
    from SAMFineTuneLib.images.sitk_images import write_image

    with staged_folder(folder) as building:
        (building / "images").mkdir()
        for number in range(1, _BODIES + 1):
            random = np.random.default_rng((seed, number))
            spacing = (*2 * (float(random.uniform(2.6, 3.0)),), float(random.uniform(4.5, 6.0)))
            volume, truth, names = body_phantom(1000 * seed + number, (int(random.integers(22, 27)), 128, 128), spacing)
            labels = np.zeros_like(truth)
            for value, name in names.items():
                if name in _ORGANS:
                    labels[truth == value] = _ORGANS.index(name) + 1
            name = f"body{number}.nii.gz"
            write_image(building / "images" / name, volume)
            write_labelmap(building / ("labels" if number <= _ACCEPTED else "answers") / name, labels, volume)
    cohort = create_cohort(folder / "cohort", find_images(folder), _ORGANS).cohort
    left = [case.name for case in cohort.state.those("untouched")]
    print(f"{folder} holds {_BODIES} bodies and the cohort of them: {_ACCEPTED} are accepted, {', '.join(left)} are "
          f"left. Open {cohort.folder} in the panel's Cohort tab, or:")  # fmt: skip
    print(f"""
  samfinetune cohort status {cohort.folder}
  samfinetune cohort train {cohort.folder}
  samfinetune cohort propose {cohort.folder}
  samfinetune cohort next {cohort.folder}
  samfinetune cohort accept {cohort.folder} {left[0]} --labels {folder / "answers" / left[0]}.nii.gz
  samfinetune cohort report {cohort.folder}

The folder answers holds the true labels of those left, in place of your corrections. Training needs PyTorch,
which pip install "samfinetune[training]" installs.""")
    return 0


def _earlier_files(folder: Path, overwrite: bool) -> list[Path]:
    """The files of an earlier demo in a folder. UserError if other files are in the way, or a file has been changed
    since, unless it may be overwritten.
    """
    series = folder / SERIES
    if any(place.exists() and not place.is_dir() for place in (folder, series)):
        raise UserError(f"{folder} is a file; give the demo another folder with -o.")
    try:
        signed = loaded((folder / _SIGNED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        signed = {}
    there = [path for path in (folder / PROMPTS, folder / LABELS, folder / PICTURE) if os.path.lexists(path)]
    there += sorted(series.iterdir()) if series.is_dir() else []
    for path in there:
        name = path.relative_to(folder).as_posix()
        if name not in signed and path.parent == series:
            raise UserError(f"{series} holds images that are not the demo's; give the demo another folder with -o.")
        if not overwrite and (name not in signed or not path.is_file() or sha256_of(path) != signed[name]):
            what = "was changed since the demo wrote it" if name in signed else "is not the demo's"
            raise UserError(f"“{path}” {what}: give the demo another folder with -o, or add --overwrite to replace it.")
    return there


def _sign(folder: Path) -> None:
    """Remember what was written, so that a later demo can tell whether it is still its own."""
    files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}
    write_text(folder / _SIGNED, json.dumps(files, indent=1))


def _box_round_each(volume: Volume, truth: np.ndarray, names: dict[int, str]) -> PromptSet:
    """One box for each organ, on the slice where it is largest, its corners in RAS as a person would draw them.

    The smallest organ comes first: an earlier segment keeps its voxels, so no large one can spill into a small one.
    """
    from SAMFineTuneLib.images import aligned_plane
    from SAMFineTuneLib.images.slice_extraction import extract_labels
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

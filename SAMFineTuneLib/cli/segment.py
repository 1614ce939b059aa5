"""`samfinetune segment`: prompts in, label map out; with `--auto`, see `automatic`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.cli import arguments, outputs
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.cli.batch import Outcome
    from SAMFineTuneLib.images import SlicePlane, Volume
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.prompts import PromptSet

_EPILOG = """examples:
  one box on an axial slice, its corners as Slicer shows them (right, anterior, superior in mm):
    samfinetune segment path/to/dicom -o liver.seg.nrrd --label Liver --box 120,60,-40,-10,-80,-40
  a point inside, one outside, carried through the volume in both directions:
    samfinetune segment head.nii.gz -o tumour.nii.gz --point -12,3,40 --negative-point -30,3,40 --propagate both
  voxel coordinates (column, row, slice, from 0) on sagittal slices:
    samfinetune segment head.nii.gz -o tumour.nii.gz --space ijk --point 88,120,70 --orientation sagittal
  several organs from a prompts file, or points and boxes that Slicer saved as markups:
    samfinetune segment path/to/dicom -o organs.seg.nrrd --prompts organs.json
    samfinetune segment path/to/dicom -o liver.dcm --prompts liver.mrk.json --prompts liver_negative.mrk.json
  the same with an adapter that `samfinetune train` made, and without any prompt, volume by volume:
    samfinetune segment head.nii.gz -o tumour.nii.gz --adapter tumour --point -12,3,40
    samfinetune segment path/to/volumes -o path/to/results --auto --adapter tumour

OUT's ending chooses the format: .nii.gz, .nii, .nrrd, .mha label map; .seg.nrrd Slicer segmentation with names
and colours; .dcm DICOM SEG. The scan itself is never changed, and a result that is there already only with --overwrite.
"""


def add_parser(subparsers) -> None:
    """Add `segment`."""
    parser = subparsers.add_parser(
        "segment",
        help="segment a volume from points and boxes, or by itself",
        description="Segment a volume from points and boxes, or with --auto without any, and write a label map that "
        "lies exactly on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_volume(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True,
                        help="label map to write, see below; with --auto also a folder")  # fmt: skip
    prompts = parser.add_argument_group("prompts (each may be given several times)")
    prompts.add_argument("--point", metavar="R,A,S", action="append", default=[], help="a point inside the structure")
    prompts.add_argument("--negative-point", metavar="R,A,S", action="append", default=[], help="a point outside it")
    prompts.add_argument("--box", metavar="R,A,S,R,A,S", action="append", default=[],
                         help="opposite corners of a box: on one slice, or of a box over several slices")  # fmt: skip
    prompts.add_argument("--prompts", metavar="FILE", action="append", default=[],
                         help="prompts file (.json) or Slicer markups (.mrk.json, .fcsv)")  # fmt: skip
    prompts.add_argument("--label", metavar="NAME", help="name of the segment that typed prompts belong to")
    prompts.add_argument("--space", choices=("ras", "ijk"), default="ras",
                         help="typed coordinates are RAS in mm (default) or voxels i,j,k")  # fmt: skip
    prompts.add_argument("--orientation", choices=arguments.ORIENTATIONS,
                         help="slices to segment on (default: what the prompts file says, else axial)")  # fmt: skip
    parser.add_argument("--propagate", choices=("none", "up", "down", "both", "fill"), default="none",
                        help="carry the masks on to other slices, or fill between prompted ones")  # fmt: skip
    automatic = parser.add_argument_group("without prompts")
    automatic.add_argument("--auto", action="store_true",
                           help="find what the model or adapter was trained to find; VOLUME may be a folder of "
                           "volumes, or of DICOM folders")  # fmt: skip
    automatic.add_argument("--format", metavar="ENDING", default=".seg.nrrd",
                           help="ending of files in a folder OUT (default: .seg.nrrd, which keeps names)")  # fmt: skip
    automatic.add_argument("--skip-existing", action="store_true",
                           help="leave out volumes whose result is there already")  # fmt: skip
    parser.add_argument("--picture", metavar="FILE.png", help="also draw prompts and masks of one prompted slice")
    outputs.add_overwrite(parser)
    arguments.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Read, answer, write, and say what was done."""
    from SAMFineTuneLib.cli import batch, describe
    from SAMFineTuneLib.images import check_output_path, choose_window, read_volume, write_labelmap
    from SAMFineTuneLib.session.doubts import doubts_about_adapter

    if args.auto:
        from SAMFineTuneLib.cli import automatic

        return automatic.run(args)
    if args.skip_existing:
        raise UserError("--skip-existing is for the volumes of --auto; leave it out.")
    check_output_path(args.output)
    targets = [Path(path).expanduser() for path in (args.output, args.picture) if path]
    _require_not_read(targets, [Path(path).expanduser() for path in (args.volume, *args.prompts)])
    outputs.require_new(targets, args)
    volume = read_volume(args.volume, args.series)
    _require_not_read(targets, volume.source.files if volume.source is not None else ())
    _check_outputs(args, volume)
    prompts = gather_prompts(args, volume)
    window = choose_window(volume, args.window)
    session = batch.place(volume, window, prompts, args.propagate)
    adapter = arguments.find_adapter(args)
    predictor = arguments.open_predictor(args, adapter)
    describe.print_inputs(volume, window, predictor, args.adapter)
    for doubt in (*batch.doubts(session), *doubts_about_adapter(volume, adapter.card.recipe if adapter else {})):
        print(f"note        {doubt}")
    outcome = batch.answer(session, predictor, args.propagate)
    report(outcome, predictor)
    outputs.require_new(targets, args)  # somebody may have written there meanwhile
    for note in write_labelmap(args.output, outcome.labelmap, volume, session.segments):
        print(f"note        {note}")
    print(f"written     {args.output}")
    if args.picture:
        batch.draw(outcome, args.picture, batch.busiest_plane(outcome))
        print(f"written     {args.picture}")
    return 0


def gather_prompts(args: argparse.Namespace, volume: Volume) -> PromptSet:
    """Typed prompts and prompt files as one set. UserError without any, or when a name is wanting."""
    from dataclasses import replace

    from SAMFineTuneLib.prompts import PromptSet, SegmentPrompts, merge_prompts, read_prompts

    files = [read_prompts(path, volume) for path in args.prompts]
    named = merge_prompts(files) if files else PromptSet(())
    typed = _typed_prompts(args, volume)
    names = [segment.name for segment in named.segments]
    if not typed and not names:
        raise UserError("There is nothing to segment from: add --point, --box or --prompts FILE.")
    if typed:
        if len(names) > 1 and args.label is None:
            raise UserError(f"Say with --label which of {', '.join(names)} the typed prompts belong to.")
        label = args.label or (names[0] if names else "Segment 1")
        named = merge_prompts([*files, PromptSet((SegmentPrompts(label, prompts=typed),), named.orientation)])
    elif args.label is not None:
        if len(names) > 1:
            raise UserError(f"--label names one segment, but the prompts hold {len(names)}: {', '.join(names)}.")
        named = replace(named, segments=(replace(named.segments[0], name=args.label),))
    for segment in named.segments:
        if not segment.prompts:
            raise UserError(f"Segment {segment.name} has no prompts: place some, or leave it out of the file.")
    return replace(named, orientation=args.orientation) if args.orientation else named


def _typed_prompts(args: argparse.Namespace, volume: Volume) -> tuple:
    """Boxes first: points that follow a box correct its answer."""
    from SAMFineTuneLib.images.slice_plane import require_voxels
    from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt

    def positions(option: str, text: str, count: int) -> list[tuple[float, ...]]:
        """`count` positions in RAS; those given in voxels are checked in voxels, so that a complaint is in them too."""
        given = np.reshape(_numbers(option, text, 3 * count), (count, 3))
        if args.space == "ijk":
            require_voxels(volume, given, f"{option} {text}")
            given = volume.ijk_to_ras(given)
        return [tuple(position) for position in given.tolist()]

    return (
        *(BoxPrompt(*positions("--box", text, 2)) for text in args.box),
        *(PointPrompt(*positions("--point", text, 1), True) for text in args.point),
        *(PointPrompt(*positions("--negative-point", text, 1), False) for text in args.negative_point),
    )


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        example = "-12,3.5,40" if count == 3 else "120,60,-40,-10,-80,-40"
        raise UserError(f"{option} {text} is not {count} numbers with commas between them, as in {option}={example}.")
    return numbers


def report(outcome: Outcome, predictor: Predictor) -> None:
    """Print what was found and how much had to be computed."""
    from SAMFineTuneLib.cli import batch
    from SAMFineTuneLib.session.doubts import doubt_about_answer

    for info in outcome.session.segments:
        planes, filled = outcome.prompted[info.value], outcome.filled[info.value]
        print(f"segment     {info.name}: {batch.milliliters(outcome, info.value):.2f} mL on {_slices(filled)}, "
              f"prompted on {_planes(planes)}, predicted IoU {outcome.scores[info.value]:.2f}")  # fmt: skip
        if not filled:
            print(f"note        nothing was found for {info.name}: check prompts and window, or add a point")
        elif doubt := doubt_about_answer(info.name, outcome.scores[info.value]):
            print(f"note        {doubt}")
    print(f"embeddings  {predictor.encoder_calls} computed, {predictor.cache.hits} times taken from the cache")
    if predictor.cache.failure is not None:
        print(f"note        embeddings are not kept for the next time: {predictor.cache.failure}")


def _slices(count: int) -> str:
    return "1 slice" if count == 1 else f"{count} slices"


def _planes(planes: list[SlicePlane]) -> str:
    return str(planes[0]) if len(planes) == 1 else f"{len(planes)} {planes[0].orientation} slices"


def _check_outputs(args: argparse.Namespace, volume: Volume) -> None:
    """Find out before the long work what the formats ask for."""
    if args.picture and not args.picture.lower().endswith(".png"):
        raise UserError(f"The picture {args.picture} must end in .png.")
    if args.output.lower().endswith(".dcm"):
        from SAMFineTuneLib.images.dicom_seg import check_dicom_seg

        check_dicom_seg(volume)


def _require_not_read(targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    for target in targets:
        if target.exists() and any(file.exists() and target.samefile(file) for file in inputs):
            raise UserError(f"{target} is a file that was read, and those are never overwritten; choose another name.")

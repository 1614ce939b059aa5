"""`samfinetune segment`: prompts in, label maps out; with `--auto` without prompts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli import arguments, console, outputs
from SAMFineTuneLib.cli.given_prompts import gather_prompts
from SAMFineTuneLib.cli.segment_jobs import SegmentedVolume, SegmentJob, find_jobs, run_jobs, with_prompts
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import only_new, require_apart, require_not_read
from SAMFineTuneLib.wording import counted

if TYPE_CHECKING:
    from SAMFineTuneLib.images import IntensityWindow, Volume
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.metrics.segment_statistics import SegmentStatistics
    from SAMFineTuneLib.segmenter import Segmenter
    from SAMFineTuneLib.service.server_session import ServerSession

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
  several volumes, each with the prompts in the file of its name, and a table of what was found:
    samfinetune segment path/to/volumes -o path/to/results --prompts path/to/prompts --statistics results.csv
  the same on a server of the department, which has its own models and adapters:
    samfinetune segment head.nii.gz -o tumour.nii.gz --point -12,3,40 --server https://gpu:8577 --token-file token.txt

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
    )
    arguments.add_volume(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True,
                        help="label map to write, see below; a folder for several volumes")  # fmt: skip
    prompts = parser.add_argument_group("prompts (each may be given several times)")
    prompts.add_argument("--point", metavar="R,A,S", action="append", default=[], help="a point inside the structure")
    prompts.add_argument("--negative-point", metavar="R,A,S", action="append", default=[], help="a point outside it")
    prompts.add_argument("--box", metavar="R,A,S,R,A,S", action="append", default=[],
                         help="opposite corners of a box: on one slice, or of a box over several slices")  # fmt: skip
    prompts.add_argument("--prompts", metavar="FILE", action="append", default=[],
                         help="prompts file (.json) or Slicer markups (.mrk.json, .fcsv); for several volumes a folder "
                         "of files, each named after its volume")  # fmt: skip
    prompts.add_argument("--label", metavar="NAME", help="name of the segment that typed prompts belong to")
    prompts.add_argument("--space", choices=("ras", "ijk"), default="ras",
                         help="typed coordinates are RAS in mm (default) or voxels i,j,k")  # fmt: skip
    prompts.add_argument("--orientation", choices=arguments.ORIENTATIONS,
                         help="slices to segment on (default: as in the prompts file, else axial)")  # fmt: skip
    parser.add_argument("--propagate", choices=("none", "up", "down", "both", "fill"), default="none",
                        help="propagate the masks to other slices, or fill between prompted ones")  # fmt: skip
    parser.add_argument("--auto", action="store_true",
                        help="without prompts: find what the model or adapter was trained to find")  # fmt: skip
    several = parser.add_argument_group("several volumes (VOLUME is a folder of volumes, or of DICOM folders)")
    several.add_argument("--format", metavar="ENDING", default=".seg.nrrd",
                         help="ending of files in a folder OUT (default: .seg.nrrd, which keeps names)")  # fmt: skip
    several.add_argument("--skip-existing", action="store_true",
                         help="leave out volumes whose result exists already")  # fmt: skip
    parser.add_argument("--picture", metavar="FILE.png", help="also draw prompts and masks of one prompted slice")
    parser.add_argument("--statistics", metavar="FILE.csv",
                        help="also write volume, grey values and extent of every segment")  # fmt: skip
    outputs.add_overwrite(parser)
    arguments.add_model(parser)
    arguments.add_server(parser)
    console.add_json(parser)


_PROMPTS = ("point", "negative_point", "box", "prompts", "label", "picture")  # not possible with --auto


def run(args: argparse.Namespace) -> int:
    """Read, segment, write, and print a summary."""
    source, output = Path(args.volume).expanduser(), Path(args.output).expanduser()
    for path, ending, what in ((args.statistics, ".csv", "table"), (args.picture, ".png", "picture")):
        if path and not path.lower().endswith(ending):
            raise UserError(f"The {what} {path} must end in {ending}.")
    if args.auto:
        given = [f"--{name.replace('_', '-')}" for name in _PROMPTS if getattr(args, name)]
        if given or args.propagate != "none":
            raise UserError(f"--auto needs no {given[0] if given else '--propagate'}; leave one of them out.")
        return run_jobs(args, find_jobs(source, output, args.format), lambda: _automatically(args))
    folders = [path for path in args.prompts if Path(path).expanduser().is_dir()]
    if folders:
        if len(args.prompts) > 1 or args.point or args.negative_point or args.box or args.picture:
            raise UserError("A folder of --prompts is for several volumes: leave out other prompts and --picture.")
        jobs = with_prompts(find_jobs(source, output, args.format), Path(folders[0]).expanduser())
        return run_jobs(
            args, jobs, lambda: _from_prompts(args, None if args.server else arguments.open_predictor(args))
        )
    if args.skip_existing:
        raise UserError("--skip-existing is for several volumes, with --auto or a folder of --prompts; leave it out.")
    job = SegmentJob(source, output, tuple(Path(path).expanduser() for path in args.prompts))
    targets = [path for path in _targets(args, job) if path.name]
    for target in targets:
        require_not_read(target, (source, *job.prompts))
    outputs.require_new(targets, args)
    return run_jobs(args, [job], lambda: _from_prompts(args, None))


def _from_prompts(args: argparse.Namespace, predictor: Predictor | None) -> Callable[[SegmentJob], SegmentedVolume]:
    """The function that segments a volume from prompts; without a predictor it opens the model once they are read."""

    def segment(job: SegmentJob) -> SegmentedVolume:
        from SAMFineTuneLib.images import choose_window
        from SAMFineTuneLib.images.overlay import save_png
        from SAMFineTuneLib.segmenter import Segmenter

        targets, volume = _targets(args, job), _read(args, job)
        for target in targets:
            require_apart(target, volume.source.files if volume.source is not None else ())
        prompts = gather_prompts(args, volume, job.prompts)
        told: list[str] = []
        window = choose_window(volume, args.window)
        with _server_session(args, volume, window, told) as remote:
            adapter = None if remote else args.adapter  # a server has adapters of its own
            segmenter = Segmenter(volume, window=window, adapter=adapter, session=remote, tell=told.append)
            segmenter.prompts(prompts).check_prompts(args.propagate != "none")
            model = None if remote else predictor or arguments.open_predictor(args)
            if model:
                segmenter.use(model)
            inputs = _print_inputs(args, volume, window, remote, model)
            while told:
                console.note(told.pop(0))
            with console.progress("prompts") as progress:
                scores = segmenter.predict(progress).scores
            for info in segmenter.segments if args.propagate != "none" else ():
                if segmenter.filled_planes(info.value):
                    with console.progress(info.name) as progress:
                        segmenter.propagate(info.name, args.propagate, progress)
            statistics = segmenter.statistics()
            details = _report(segmenter, statistics, scores)
            if model:
                print(f"embeddings  {model.encoder_calls} computed, {model.cache.hits} times taken from the cache")
                if model.cache.failure is not None:
                    console.note(f"embeddings are not kept for the next time: {model.cache.failure}")
            outputs.require_new(targets, args)  # another program may have written there meanwhile
            segmenter.save(job.target, args.overwrite)
            for sentence in told:
                console.note(sentence)
            print(f"written     {job.target}", flush=True)
            if args.picture:
                picture = segmenter.slice_image()
                with only_new(not args.overwrite):
                    save_png(args.picture, picture)
                print(f"written     {args.picture}")
            return SegmentedVolume(inputs, statistics, details)

    return segment


def _automatically(args: argparse.Namespace) -> Callable[[SegmentJob], SegmentedVolume]:
    """The function that finds the classes of a model or adapter in a volume, without prompts."""
    if args.server and (not args.adapter or args.window):
        raise UserError("With --server, --auto needs --adapter, and takes the window from it: leave out --window.")
    adapter = None if args.server else arguments.find_adapter(args)
    predictor = None if args.server else arguments.open_predictor(args, adapter)

    def segment(job: SegmentJob) -> SegmentedVolume:
        from SAMFineTuneLib.cases.case_slices import learned_orientations
        from SAMFineTuneLib.images import choose_window, write_labelmap
        from SAMFineTuneLib.inference.automatic_head import class_segments, segment_classes
        from SAMFineTuneLib.metrics.segment_statistics import segment_statistics
        from SAMFineTuneLib.session.doubts import doubts_about_adapter

        volume, told = _read(args, job), []
        require_apart(job.target, volume.source.files if volume.source is not None else ())
        session = _server_session(args, volume, choose_window(volume, None), told)
        with session as remote, console.progress(job.source.name) as progress:
            recipe = remote.adapter_facts() if remote else adapter.card.recipe if adapter else {}
            window = choose_window(volume, args.window or recipe.get("window"))
            inputs = _print_inputs(args, volume, window, remote, predictor)
            for doubt in doubts_about_adapter(volume, recipe):
                console.note(doubt)
            if remote:
                labels, segments = remote.segment_labels(args.orientation or "", progress)
            else:
                segments = class_segments(predictor.engine.spec.classes)
                orientations = (args.orientation,) if args.orientation else learned_orientations(volume, recipe)
                labels = segment_classes(
                    predictor, volume, window, orientations, lambda now: progress(now.done, now.total)
                )
        statistics = segment_statistics(volume, labels, segments)
        for row in statistics:
            size = f"{row.milliliters:.2f} mL" + ("" if row.voxels else ", nothing was found")
            print(f"segment     {row.value} {row.segment}: {size}")
        outputs.require_new([job.target], args)  # another program may have written there meanwhile
        with only_new(not args.overwrite):
            told += write_labelmap(job.target, labels, volume, segments)
        for sentence in told:
            console.note(sentence)
        print(f"written     {job.target}", flush=True)
        return SegmentedVolume(inputs, statistics)

    return segment


def _targets(args: argparse.Namespace, job: SegmentJob) -> list[Path]:
    """The label map and the picture that a job writes."""
    return [job.target, *([Path(args.picture).expanduser()] if args.picture else [])]


def _read(args: argparse.Namespace, job: SegmentJob) -> Volume:
    """The volume of a job; UserError when its label map cannot have the requested format."""
    from SAMFineTuneLib.images import read_volume
    from SAMFineTuneLib.images.dicom_seg import check_dicom_seg

    volume = read_volume(job.source, args.series)
    if job.target.name.lower().endswith(".dcm"):
        check_dicom_seg(volume)
    return volume


def _server_session(
    args: argparse.Namespace, volume: Volume, window: IntensityWindow, told: list[str]
) -> AbstractContextManager[ServerSession | None]:
    """A session on the server of --server, closed at the end; None without that option."""
    if not args.server:
        return nullcontext()
    from SAMFineTuneLib.service.server_session import ServerSession
    from SAMFineTuneLib.session.doubts import doubts_about_voxels

    known = doubts_about_voxels(volume)
    return closing(ServerSession(
        arguments.connection(args), volume, window, args.model, args.adapter or "", args.device, told.append, known,
        lambda sentence: print("note:", sentence, file=sys.stderr),
    ))  # fmt: skip


def _print_inputs(
    args: argparse.Namespace,
    volume: Volume,
    window: IntensityWindow,
    remote: ServerSession | None,
    predictor: Predictor | None,
) -> dict[str, Any]:
    """Print the volume as the model will see it, on the server or here; also for --json."""
    from SAMFineTuneLib.cli import describe

    answering = describe.Answering.of(predictor) if predictor else None
    if remote:
        status = remote.connect()
        answering = describe.Answering(status.model, "", f"{status.device} of {args.server}")
    return describe.print_inputs(volume, window, answering, args.adapter)


def _report(
    segmenter: Segmenter, statistics: Sequence[SegmentStatistics], scores: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Print what was found; also for --json."""
    details = []
    for info, row in zip(segmenter.segments, statistics, strict=True):
        prompted = [plane for value, plane in segmenter.prompted_planes if value == info.value]
        where = str(prompted[0]) if len(prompted) == 1 else f"{len(prompted)} {prompted[0].orientation} slices"
        filled = len(segmenter.filled_planes(info.value))
        slices, score = counted(filled, "slice"), scores[info.value]
        print(f"segment     {info.name}: {row.milliliters:.2f} mL on {slices}, "
              f"prompted on {where}, predicted IoU {score:.2f}")  # fmt: skip
        details.append({"slices": filled, "prompted_slices": len(prompted), "predicted_iou": round(float(score), 4)})
    return details

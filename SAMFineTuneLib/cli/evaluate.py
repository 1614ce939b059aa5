"""`samfinetune evaluate`: measure models and adapters on annotated cases, with baselines and a report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import console, outputs
from SAMFineTuneLib.cli.arguments import add_engine, add_match_labels, chosen_engine
from SAMFineTuneLib.cli.long_work import ProgressLine, on_interrupt, time_left
from SAMFineTuneLib.files import require_writable

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.progress import Progress

_EPILOG = """CASES is what `samfinetune train` takes: a folder with images/ and labels/ (or masks/), pairs of one name;
nnU-Net's imagesTr/ and labelsTr/; or a .csv of image,label[,patient].

protocols:
  S1            everything on a slice (slow: a thousand prompts and more for each slice)
  S2 … S6       one point; five points; five inside and five outside; a box; a box and a point
  perturbation  misplaced points and boxes
  interactive   the first prompt and seven corrections, with and without the mask fed back
  3d            whole volumes: boxes on 1, 3 and 5 slices, propagated; a box and five clicks at the largest error (CVPR
                2025 challenge); the middle slice prompted, propagated, then corrected slice by slice
  automatic     without prompts, for adapters that were trained for it
  factors       size, contrast and complexity of the objects, against Dice
  prompts       S2 to S6;  all: everything.  Default: everything but S1

examples:
  samfinetune evaluate cases -o results
  samfinetune evaluate cases -o results --model compact --adapter liver --label 1 --protocol S2,S5,3d
  samfinetune evaluate cases -o results --resume               continue a stopped evaluation
  samfinetune evaluate cases -o results --engine dask --scheduler tcp://head-node:8786

Ctrl-C stops the evaluation; --resume continues it. Needs: pip install "samfinetune[evaluation]"
"""


def add_parser(subparsers) -> None:
    """Add `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure models and adapters on annotated cases",
        description="Measure how models, adapters and baselines answer prompts on annotated cases, by the protocols "
        "of published studies, and write a report.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("cases", metavar="CASES", help="folder or .csv of annotated cases")
    add("-o", "--output", metavar="OUT", required=True, help="folder for the results")
    add("--model", metavar="ID", action="append", default=[],
        help="a model's id or its folder; several times to compare (default: compact)")  # fmt: skip
    add("--adapter", metavar="NAME", action="append", default=[],
        help="an adapter's name or its folder, on its own base; several times to compare")  # fmt: skip
    add("--baseline", metavar="NAMES", default="otsu,growing,walker,levelset",
        help="methods without learning to compare with (default: otsu,growing,walker,levelset), or none")  # fmt: skip
    add("--label", metavar="1,2", help="labels to measure, by value or segment name; any: all labels as one; default: "
        "every label")  # fmt: skip
    add_match_labels(parser)
    add("--protocol", metavar="NAMES", help="protocols, separated by commas, see below")
    add("--slices", type=int, default=3, metavar="N", help="slices of each label and case whose objects are prompted "
        "one by one (default 3, evenly spread)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of all random numbers (default 0)")
    add("--resume", action="store_true", help="continue the evaluation in OUT: do only what is missing")
    more = parser.add_argument_group("details")
    add = more.add_argument
    add_engine(more, "one for each core")
    add("--steps", type=int, default=8, help="answers of an interactive sequence (default 8)")
    add("--rounds", type=int, default=3, help="corrections of a volume (default 3)")
    add("--tolerance", type=float, metavar="MM", help="of the NSD (default: two pixels, or a voxel's largest side)")
    add("--seconds", metavar="WHAT=S,…", help="an annotator's times (default: box=7,point=3,look=2,outline=30)")
    add("--window", help="grey values shown as black and white, as in `samfinetune segment`")
    add("--orientation", choices=("auto", "axial", "coronal", "sagittal"), default="auto",
        help="slices to prompt; auto (default): as they were acquired")  # fmt: skip
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    console.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check, measure, report."""
    from SAMFineTuneLib.models.optional_packages import require

    require("Evaluating", "skimage", "matplotlib", extra="evaluation")
    from SAMFineTuneLib.cases.cases import find_cases
    from SAMFineTuneLib.cases.labelled_case import LabelChoice
    from SAMFineTuneLib.evaluation.annotator import Seconds
    from SAMFineTuneLib.evaluation.evaluation_run import PARTS, REPORT, SUMMARY, evaluate
    from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings, parse_protocols
    from SAMFineTuneLib.evaluation.methods import enter, enter_baselines

    settings = EvaluationSettings(
        parse_protocols(args.protocol), args.slices, args.steps, args.rounds, args.seed, args.tolerance, args.window,
        args.orientation,
    )  # fmt: skip
    seconds = Seconds.parse(args.seconds)
    engine = chosen_engine(args)
    baselines = [] if args.baseline == "none" else [name.strip() for name in args.baseline.split(",")]
    require_writable(Path(args.output).expanduser())
    cases = find_cases(args.cases, match=args.match_labels)
    outputs.require_beside(args.output, args.cases, cases)
    entries = [*enter(args.model, args.adapter, args.device), *enter_baselines(baselines)]
    parts = Path(args.output).expanduser() / PARTS
    later = "stopped; continue with the same command and --resume."
    with on_interrupt(later), outputs.resumable(parts), ProgressLine() as line:

        def show(progress: Progress) -> None:
            left = time_left(progress.seconds_left)
            line(f"{progress.done} of {progress.total} jobs{left}", progress.done == progress.total)

        found = evaluate(
            cases, args.output, entries, settings, LabelChoice.parse(args.label), engine, args.resume, show, seconds,
            args.device,
        )  # fmt: skip
    print(f"cases       {found.cases}, of {found.patients} patients; labels {', '.join(found.labels)}")
    for note in found.notes:
        console.note(note)
    for table in found.tables[:1]:
        print(f"\n{table.title}\n{table.as_markdown()}")
    print(f"report      {found.folder / REPORT}")
    print(f"written     {found.folder}")
    console.document(folder=found.folder, **json.loads((found.folder / SUMMARY).read_text(encoding="utf-8")))
    return 0

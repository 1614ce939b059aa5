"""`samfinetune train`: adapt a model to annotated cases, with evidence of the gain."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import outputs
from SAMFineTuneLib.cli.arguments import adapter_names, add_match_labels
from SAMFineTuneLib.cli.long_work import stoppable
from SAMFineTuneLib.cli.training_output import TrainingOutput, emit, outline, show_cases, show_plan, show_result
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_writable
from SAMFineTuneLib.wording import duration

if TYPE_CHECKING:
    from SAMFineTuneLib.cases.cases import Case
    from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
    from SAMFineTuneLib.models.spec import ModelFolder
    from SAMFineTuneLib.training.fine_tuning import Result, TrainingProgress
    from SAMFineTuneLib.training.training_settings import TrainingSettings

_EPILOG = """CASES is a folder with images/ and labels/ (or masks/), pairs of one name; nnU-Net's imagesTr/ and
labelsTr/; or a .csv of image,label[,patient].

examples:
  samfinetune train cases -o liver-adapter --label 1 --check    the plan, and how long it would take here
  samfinetune train cases -o liver-adapter --label 1
  samfinetune train cases -o organs --label liver,spleen --preset balanced
  samfinetune train cases -o liver --shots 5                five cases for training, all others for testing
  samfinetune train train.csv --test val.csv -o prostate --label any
  samfinetune train cases -o liver-adapter --label 1 --resume    continue a stopped training
  samfinetune train new-cases -o liver-2 --label 1 --start liver-adapter      continue from an adapter
  samfinetune segment scan.nrrd -o liver.nrrd --adapter liver-adapter --point -62,18,-40      use it
  torchrun --nproc-per-node 4 -m SAMFineTuneLib.cli train cases -o liver --label 1

The adapter is added to those of this computer under its folder's name or --name, ready for use here and in Slicer.
Ctrl-C stops the training; --resume continues it. Needs PyTorch: pip install "samfinetune[training]"
"""


def add_parser(subparsers) -> None:
    """Add `train`."""
    parser = subparsers.add_parser(
        "train",
        help="adapt a model to your own annotated cases",
        description="Fine-tune a model on annotated cases: an adapter with a card, evidence and a report.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("cases", metavar="CASES", help="folder or .csv of annotated cases")
    add("-o", "--output", metavar="ADAPTER", required=True, help="folder for the adapter; must not exist")
    add("--label", metavar="1,2", help="labels to learn, by value or segment name; any: all labels as one; default: "
        "every label")  # fmt: skip
    add("--test", metavar="CASES", help="cases of other patients to test on")
    add_match_labels(parser)
    add("--model", metavar="ID", default="compact", help="the base: a model's id or its folder (default: compact)")
    add("--preset", choices=("quick", "balanced", "thorough"), default="quick",
        help="250, 800 or 2000 steps for each training; --check shows how many there are and how long they take here "
        "(default: quick)")  # fmt: skip
    add("--method", choices=("lora", "adapter", "vanilla"), default="lora", help="default: lora")
    add("--scope", choices=("decoder", "encoder+decoder"), default="encoder+decoder", help="default: encoder+decoder")
    add("--heads", choices=("both", "promptable", "automatic"), default="both",
        help="whether it answers prompts, finds the labels by itself, or both (default)")  # fmt: skip
    add("--shots", type=int, metavar="N", help="learn from N cases of N patients, test on all other patients")
    add("--folds", type=int, metavar="K", help="folds of the cross-validation; 0: no evidence (default: by preset)")
    add("--name", help="name among the adapters of this computer (default: the name of its folder)")
    add("--no-add", action="store_true", help="leave it in its folder; `samfinetune adapters import` adds it later")
    start = add("--start", metavar="ADAPTER", help="continue from an adapter of the same base, labels and method, as "
        "`samfinetune adapters list` prints it, or its folder (default: from the base)")  # fmt: skip
    start.completer = adapter_names
    add("--resume", action="store_true", help="continue an interrupted training")
    add("--check", action="store_true",
        help="only check, and show the plan and how long it would take here")  # fmt: skip
    add("--json-progress", action="store_true", help="print progress as one JSON object on each line of stdout")
    more = parser.add_argument_group("details")
    add = more.add_argument
    add("--rank", type=int, help="of LoRA (default 4)")
    add("--alpha", type=float, help="of LoRA; its scale is alpha / rank (default: the rank)")
    add("--dropout", type=float, help="of LoRA (default 0)")
    add("--blocks", metavar="8,9,10,11", help="encoder blocks to adapt, counted from 0 (default: all)")
    add("--steps", type=int, help="optimiser steps of each training")
    add("--batch", type=int, help="pictures in each step")
    add("--rounds", type=int, help="rounds on each object: the first prompt and corrections")
    add("--learning-rate", type=float, help="default: what suits the method")
    add("--augment", type=float, help="strength of augmentations, 0 to 2; 1 is finetune-SAM's (default: 1 for few "
        "slices, less for more)")  # fmt: skip
    add("--validation", type=int, metavar="N", help="patients set aside from training for early stopping")
    add("--window", help="grey values shown as black and white, as in `samfinetune segment`")
    add("--orientation", choices=("auto", "all", "axial", "coronal", "sagittal"),
        help="slices to learn from; auto (default): as they were acquired")  # fmt: skip
    add("--test-slices", type=int, help="labelled slices that are prompted in each tested case")
    add("--seed", type=int, default=0, help="seed of all random numbers (default 0)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the image encoder")
    add("--checkpointing", choices=("auto", "on", "off"), default="auto", help="compute encoder blocks twice to save "
        "memory")  # fmt: skip
    add("--micro-batch", type=int, metavar="N", help="pictures in memory at once")


def run(args: argparse.Namespace) -> int:
    """Check, train, report."""
    try:
        return _check(args) if args.check else _train(args)
    except UserError as error:
        if args.json_progress:
            emit({"event": "error", "message": str(error)})
        raise


def _settings(args: argparse.Namespace) -> TrainingSettings:
    """The settings: options have their names."""
    from dataclasses import fields

    from SAMFineTuneLib.cases.labelled_case import LabelChoice
    from SAMFineTuneLib.models.adapters.tuning_method import Method
    from SAMFineTuneLib.training.training_settings import TrainingSettings

    given = {one.name: getattr(args, one.name) for one in fields(TrainingSettings) if hasattr(args, one.name)}
    given["labels"] = LabelChoice.parse(args.label)
    given["heads"] = ("promptable", "automatic") if args.heads == "both" else (args.heads,)
    lora = {name: value for name in ("rank", "alpha", "dropout") if (value := getattr(args, name)) is not None}
    if lora and args.method != "lora":
        raise UserError(f"--{next(iter(lora))} belongs to --method lora; leave it out with --method {args.method}.")
    if args.blocks and (args.method == "vanilla" or args.scope == "decoder"):
        raise UserError("--blocks are of an encoder that gets LoRA or Adapters; leave them out here.")
    blocks = None if args.blocks is None else _numbers(args.blocks)
    given["method"] = Method(args.method, args.scope, blocks=blocks, **{"alpha": lora.get("rank", 4), **lora})
    return TrainingSettings.of_preset(**given)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--blocks {text} is not a list of numbers with commas between them, as in 8,9,10,11."
        ) from None


def _check(args: argparse.Namespace) -> int:
    """Show the plan; refuse whatever `_train` would refuse."""
    from SAMFineTuneLib.cases.case_survey import survey

    settings, store, cases, test, start = _asked(args)
    try:
        _require_packages(args.method)
    except UserError:  # the cases can be shown nevertheless
        exclusive = "automatic" in settings.heads
        show_cases(args, cases, test, survey([*cases, *test], settings.labels, exclusive=exclusive))
        raise
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.training.training_plan import make_plan
    from SAMFineTuneLib.training.training_time import measure_pace

    plan = make_plan(cases, args.output, Store().find(args.model), settings, args.resume, test, start=start)
    show_cases(args, cases, test, plan.found)
    if not args.json_progress:
        show_plan(plan)
    pace = measure_pace(plan)
    if args.json_progress:
        emit({"event": "plan", **outline(plan), "seconds": pace.seconds})
    else:
        tried = "a step" if pace.steps == 1 else f"{pace.steps} steps"
        print(f"time        about {duration(pace.seconds)} on {plan.device}, estimated from {tried} and some answers")
    return 0


def _asked(
    args: argparse.Namespace,
) -> tuple[TrainingSettings, AdapterStore, tuple[Case, ...], tuple[Case, ...], AdapterFolder | None]:
    """Settings, adapters of this computer, cases, test cases, and the adapter to start from; UserError for mistakes
    that can be found at once.
    """
    from SAMFineTuneLib.cases.cases import find_cases
    from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

    settings, store = _settings(args), AdapterStore()
    require_writable(Path(args.output).expanduser())
    finished = args.resume and (Path(args.output).expanduser() / "card.json").exists()
    if not args.no_add and not finished:  # of a finished one the plan says that it is
        try:
            store.check_new(_name(args))  # now rather than after hours of training
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; with --no-add it stays in its folder only.") from error
    start = store.find(args.start) if args.start else None
    cases, test = (find_cases(some, match=args.match_labels) if some else () for some in (args.cases, args.test))
    for given, found in ((args.cases, cases), (args.test, test)):
        outputs.require_beside(args.output, given or "", found)
    return settings, store, cases, test, start


def _name(args: argparse.Namespace) -> str:
    return args.name or Path(args.output).expanduser().resolve().name


def _require_packages(method: str) -> None:
    from SAMFineTuneLib.models.optional_packages import require

    lora = ("peft",) if method == "lora" else ()  # importing it takes seconds
    require("Training", *lora, "torch", extra="training")


def _train(args: argparse.Namespace) -> int:
    _require_packages(args.method)
    from SAMFineTuneLib.errors import is_out_of_memory
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.training.fine_tuning import fine_tune
    from SAMFineTuneLib.training.stopping import Stopped
    from SAMFineTuneLib.training.training_plan import STATE, working_folder

    settings, store, cases, test, start = _asked(args)
    base, begun = Store().find(args.model), working_folder(args.output) / STATE

    def stopped() -> str:
        how = "continue with the same command and --resume" if begun.exists() else "nothing was learned yet"
        return f"stopped; {how}."

    def tell(progress: TrainingProgress) -> None:
        stop.learning = progress.stage == "training"
        show(progress)

    with stoppable(stopped) as stop, outputs.resumable(begun), TrainingOutput(args.json_progress) as show:
        try:
            result = fine_tune(
                cases, args.output, base, settings, tell, lambda: stop.asked, args.resume, test, show.plan, start
            )
        except Stopped:
            if args.json_progress:
                emit({"event": "stopped"})
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise UserError(
                    "The training ran out of memory; close other programs and go on with --resume, which may be given "
                    "--micro-batch 1 and --checkpointing on to need less."
                ) from error
            raise
    if not int(os.environ.get("RANK", "0")):  # under torchrun the first process reports
        added, note = _add(store, "" if args.no_add else _name(args), result, base)
        show_result(result, args, added, note)
    return 0


def _add(store: AdapterStore, name: str, result: Result, base: ModelFolder) -> tuple[str, str]:
    """The adapter's name on this computer, "" when it was not added, and a note for the user or ""."""
    from SAMFineTuneLib.models.adapters.merged_export import make_ready

    if not name:
        return "", make_ready(result.adapter, base)
    try:
        note = make_ready(result.adapter, base)
        store.add(result.adapter, name)
        return name, note
    except UserError as error:  # the trained adapter is kept in any case
        return "", str(error)

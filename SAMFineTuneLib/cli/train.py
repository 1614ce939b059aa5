"""`samfinetune train`: adapt a model to annotated cases, with evidence of what it gained."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli.arguments import add_match_labels
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.models.adapter_store import AdapterStore
    from SAMFineTuneLib.models.spec import ModelFolder
    from SAMFineTuneLib.training.run import Progress, Result
    from SAMFineTuneLib.training.settings import Settings

_EPILOG = """CASES is a folder with images/ and labels/ (or masks/), pairs of one name; nnU-Net's imagesTr/ and
labelsTr/; or a .csv of image,label[,patient].

examples:
  samfinetune train cases -o liver-adapter --label 1
  samfinetune train cases -o organs --label liver,spleen --preset balanced
  samfinetune train cases -o liver --shots 5                five cases teach, all others test
  samfinetune train train.csv --test val.csv -o prostate --label any
  samfinetune train cases -o liver-adapter --label 1 --resume    goes on where it was stopped
  samfinetune segment scan.nrrd -o liver.nrrd --adapter liver-adapter --point -62,18,-40      uses it
  torchrun --nproc-per-node 4 -m SAMFineTuneLib.cli train cases -o liver --label 1

The adapter joins those of this computer under its folder's name, or under --name, ready to be used here and in Slicer.
Ctrl-C stops; --resume goes on. Needs PyTorch: pip install "samfinetune[training]"
"""
_LINE_SECONDS = 10.0  # between lines of progress when nobody watches a terminal
_STAGES = {"cases": "reading the cases", "before": "testing the base", "testing": "testing the adapter",
           "report": "writing the adapter and its report"}  # fmt: skip


def add_parser(subparsers) -> None:
    """Add `train`."""
    parser = subparsers.add_parser(
        "train",
        help="adapt a model to annotated cases of one's own",
        description="Fine-tune a model on annotated cases: an adapter with a card, evidence and a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("cases", metavar="CASES", help="folder or .csv of annotated cases")
    add("-o", "--output", metavar="ADAPTER", required=True, help="folder for the adapter; must not exist")
    add("--label", metavar="1,2", help="labels to learn, by value or segment name; any: whatever is labelled as one; "
        "default: every label")  # fmt: skip
    add("--test", metavar="CASES", help="cases, of other patients, to test on")
    add_match_labels(parser)
    add("--model", metavar="ID", default="compact", help="the base: a model's id or its folder (default: compact)")
    add("--preset", choices=("quick", "balanced", "thorough"), default="quick",
        help="minutes, a quarter of an hour, or an hour and more on two cores with the bundled model")  # fmt: skip
    add("--method", choices=("lora", "adapter", "vanilla"), default="lora", help="default: lora")
    add("--scope", choices=("decoder", "encoder+decoder"), default="encoder+decoder", help="default: encoder+decoder")
    add("--heads", choices=("both", "promptable", "automatic"), default="both",
        help="whether it answers prompts, finds the labels by itself, or both (default)")  # fmt: skip
    add("--shots", type=int, metavar="N", help="learn from N cases of as many patients; all other patients test")
    add("--folds", type=int, metavar="K", help="folds of the cross-validation; 0: no evidence; default by preset")
    add("--name", help="under which it joins the adapters of this computer (default: the name of its folder)")
    add("--no-add", action="store_true", help="leave it in its folder only; `samfinetune adapters import` adds it")
    add("--resume", action="store_true", help="go on with an interrupted training")
    add("--check", action="store_true", help="only look at the cases and say what would be done")
    add("--json-progress", action="store_true", help="one JSON object a line on stdout instead of text")
    more = parser.add_argument_group("details")
    add = more.add_argument
    add("--rank", type=int, default=4, help="of LoRA (default 4)")
    add("--alpha", type=float, help="of LoRA; its scale is alpha / rank (default: the rank)")
    add("--dropout", type=float, default=0.0, help="of LoRA (default 0)")
    add("--blocks", metavar="8,9,10,11", help="encoder blocks to adapt, counted from 0 (default: all)")
    add("--steps", type=int, help="optimiser steps of each training")
    add("--batch", type=int, help="pictures a step")
    add("--rounds", type=int, help="prompting rounds on each object: the first prompt and corrections")
    add("--learning-rate", type=float, help="default: what suits the method")
    add("--augment", type=float, help="strength of augmentations, 0 to 2; 1 is finetune-SAM's (default: 1 for few "
        "slices, less for more)")  # fmt: skip
    add("--validation", type=int, metavar="N", help="patients set aside from training for early stopping")
    add("--window", help="grey values that become black and white, as in `samfinetune segment`")
    add("--orientation", choices=("auto", "all", "axial", "coronal", "sagittal"),
        help="slices to learn from; auto (default): as they were acquired")  # fmt: skip
    add("--test-slices", type=int, help="labelled slices of each tested case that are prompted")
    add("--seed", type=int, default=0, help="start of all random numbers (default 0)")
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
            _emit({"event": "error", "message": str(error)})
        raise


def _settings(args: argparse.Namespace) -> Settings:
    from SAMFineTuneLib.models.method import Method
    from SAMFineTuneLib.training.cases import LabelChoice
    from SAMFineTuneLib.training.settings import Settings

    method = Method(
        args.method, args.scope, args.rank, args.alpha or args.rank, args.dropout,
        None if args.blocks is None else _numbers(args.blocks),
    )  # fmt: skip
    heads = ("promptable", "automatic") if args.heads == "both" else (args.heads,)
    names = ("shots", "folds", "steps", "batch", "rounds", "learning_rate", "augment", "validation", "window",
             "orientation", "test_slices", "seed", "device", "precision", "checkpointing", "micro_batch")  # fmt: skip
    given = {name: getattr(args, name) for name in names}
    return Settings.of_preset(
        args.preset, method=method, heads=heads, labels=LabelChoice.parse(args.label), **given
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--blocks {text} is no list of numbers with commas between them, as in 8,9,10,11.") from None


def _check(args: argparse.Namespace) -> int:
    """Say what was found in the cases, without PyTorch."""
    from SAMFineTuneLib.training.cases import find_cases, survey

    settings = _settings(args)
    cases = find_cases(args.cases, match=args.match_labels)
    found = survey(cases, settings.labels, exclusive="automatic" in settings.heads)
    patients = len({case.patient for case in cases})
    if args.json_progress:
        _emit({"event": "cases", "cases": len(cases), "patients": patients, "labels": list(found.names),
               "slices": sum(found.slices.values()), "notes": list(found.notes)})  # fmt: skip
        return 0
    print(f"cases       {len(cases)}, of {patients} patients, {sum(found.slices.values())} labelled slices")
    print(f"labels      {', '.join(found.names)}")
    for note in found.notes:
        print(f"note        {note}")
    return 0


def _train(args: argparse.Namespace) -> int:
    try:
        import peft  # noqa: F401
        import scipy  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'Training needs {error.name}, which is not installed: pip install "samfinetune[training]".'
        ) from error
    from SAMFineTuneLib.models.adapter_store import AdapterStore
    from SAMFineTuneLib.training.cases import find_cases
    from SAMFineTuneLib.training.run import Stopped, fine_tune

    settings = _settings(args)
    store, name = AdapterStore(), args.name or Path(args.output).expanduser().resolve().name
    if not args.no_add:
        _check_name(store, name)  # now rather than when hours were spent
    cases = find_cases(args.cases, match=args.match_labels)
    test = find_cases(args.test, match=args.match_labels) if args.test else ()
    base = open_base(args.model)
    show = _JsonLines() if args.json_progress else _Report()
    with _interrupts() as wants_to_stop:
        try:
            result = fine_tune(cases, args.output, base, settings, show, wants_to_stop, args.resume, test)
        except Stopped:
            if args.json_progress:
                _emit({"event": "stopped"})
            raise KeyboardInterrupt("stopped; go on with the same command and --resume.") from None
    show.close()
    if int(os.environ.get("RANK", "0")):  # torchrun: the first process tells
        return 0
    added, note = _add(store, "" if args.no_add else name, result, base)
    _finish(result, args, added, note)
    return 0


def _check_name(store: AdapterStore, name: str) -> None:
    try:
        store.check_new(name)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; with --no-add it stays in its folder only.") from error


def _add(store: AdapterStore, name: str, result: Result, base: ModelFolder) -> tuple[str, str]:
    """The adapter's name on this computer, "" when it was not added, and a sentence worth saying or ""."""
    from SAMFineTuneLib.models.tuned_export import add_ready, make_ready

    if not name:
        return "", make_ready(result.adapter, base)
    try:
        return name, add_ready(store, result.adapter, name, base)
    except UserError as error:  # the training must not be in vain
        return "", str(error)


def open_base(name: str) -> ModelFolder:
    """A model by its id or its folder."""
    from SAMFineTuneLib.models.store import Store

    return Store().find(name)


@contextmanager
def _interrupts():
    """Ctrl-C and a polite kill ask the training to stop at its next step; a second Ctrl-C ends it at once."""
    asked = []

    def ask(number, frame) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread, where there are no signals to catch
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(result: Result, args: argparse.Namespace, added: str, note: str) -> None:
    notes = [*result.notes, *([note] if note else [])]
    gains = [
        {"prompt": gain.prompt, "label": gain.label, "cases": len(gain.cases), "before": gain.means[0],
         "after": gain.means[1], "interval_before": gain.interval_before, "interval_after": gain.interval_after}
        for gain in result.card.gains
    ]  # fmt: skip
    if args.json_progress:
        _emit({"event": "done", "adapter": str(result.adapter), "report": str(result.report / "index.html"),
               "added": added, "evidence": result.evidence, "gains": gains, "notes": notes})  # fmt: skip
        return
    for note in notes:
        print(f"note        {note}")
    print(f"evidence    {result.evidence}")
    for gain in gains:
        print(f"Dice        {gain['prompt']}, {gain['label']}: {_figure(gain, 'before')} before, "
              f"{_figure(gain, 'after')} after, {gain['cases']} cases")  # fmt: skip
    print(f"report      {result.report / 'index.html'}")
    print(f"written     {result.adapter}")
    if added:
        print(f"added       use it with --adapter {added}, or choose it in Slicer")


def _figure(gain: dict[str, Any], stage: str) -> str:
    if gain[stage] is None:
        return "no answer"
    span = gain[f"interval_{stage}"]
    return f"{gain[stage]:.3f}" + (f" ({span[0]:.3f} to {span[1]:.3f})" if span else "")


def _emit(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


class _JsonLines:
    """A JSON object a report, on stdout."""

    def __call__(self, progress: Progress) -> None:
        _emit({"event": "progress", **vars(progress)})

    def close(self) -> None:
        """Nothing is left open."""


class _Report:
    """Prints how far the training is: in place on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = 0.0
        self._stage: tuple | None = None

    def __call__(self, progress: Progress) -> None:
        stage = (progress.stage, progress.part)
        due = time.monotonic() - self._printed > (0.5 if self._terminal else _LINE_SECONDS)
        if due or stage != self._stage or progress.step == progress.steps > 0:
            self._printed, self._stage = time.monotonic(), stage
            end = "" if self._terminal else "\n"
            start = "\r" if self._terminal else ""
            close = "\x1b[K" if self._terminal else ""
            print(f"{start}{describe(progress)}{close}", end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if self._terminal:
            print(file=sys.stderr)


def describe(progress: Progress) -> str:
    """One line for people."""
    if progress.stage != "training":
        text = _STAGES[progress.stage]
    else:
        text = f"step {progress.step} of {progress.steps}, loss {progress.loss:.3f}"
        if progress.dice is not None:
            text += f", validation Dice {progress.dice:.3f}"
    if progress.parts > 1 and progress.stage not in ("cases", "report"):
        text = f"training {progress.part} of {progress.parts}: {text}"
    return text if progress.seconds_left is None else f"{text}, {_left(progress.seconds_left)} left"


def _left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"

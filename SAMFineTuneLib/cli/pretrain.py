"""`samfinetune pretrain`: the compact model on synthetic pictures, or any encoder on unlabelled volumes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import outputs
from SAMFineTuneLib.cli.train import open_base, stop_signs
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.training.stopping import StopSigns

_EPILOG = """examples:
  samfinetune pretrain --synthetic -o compact --minutes 60
  samfinetune pretrain --synthetic -o compact --steps 20000 --seed 7     the same weights on every run
  samfinetune pretrain --synthetic -o compact --minutes 60 --resume      goes on where it was stopped
  samfinetune pretrain --synthetic -o better --minutes 60 --start compact   learns on from another run's weights
  samfinetune pretrain --volumes scans -o ours --steps 1000    the bundled model's encoder, on unlabelled volumes

The folder is a complete model for `samfinetune segment --model FOLDER`. Ctrl-C stops and writes a checkpoint, as
happens every few minutes anyway; --resume goes on from the last. Needs PyTorch: pip install "samfinetune[training]"
"""
_LINE_SECONDS = 10.0  # between lines of progress when nobody watches a terminal
_STOPPED = "stopped; go on with the same command and --resume."


def add_parser(subparsers) -> None:
    """Add `pretrain`."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train a model without annotations: on synthetic pictures or on unlabelled volumes",
        description="Train the compact model on pictures made up on the way, without any data, or the image encoder of "
        "a model on unlabelled volumes (masked auto-encoding).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--synthetic", action="store_true", help="train the compact model on synthetic pictures")
    parser.add_argument("--volumes", metavar="FOLDER", help="train an encoder on the unlabelled volumes of a folder")
    parser.add_argument("--model", metavar="ID", default="compact", help="with --volumes: whose encoder (compact)")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where the model is written")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--steps", type=int, help="stop after this many steps; repeatable to the last bit")
    parser.add_argument("--batch", type=int, help="pictures a step of --synthetic (8, or 256 on a graphics card)")
    parser.add_argument("--seed", type=int, default=0, help="start of all random numbers (default 0)")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint, if there is one")
    parser.add_argument("--start", metavar="FOLDER", help="begin with the weights of this compact model's folder")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")


def run(args: argparse.Namespace) -> int:
    """Train, print progress, say where the model lies."""
    if bool(args.synthetic) == bool(args.volumes):
        raise UserError("Say what to learn from: --synthetic for made-up pictures, or --volumes FOLDER.")
    if args.volumes and (args.minutes or args.start or args.batch):
        raise UserError("With --volumes use --steps and --model, not --minutes, --start and --batch.")
    if args.minutes is None and args.steps is None:
        raise UserError("Say how long to train: add --minutes 60, --steps 20000, or both.")
    if not all(value is None or value > 0 for value in (args.minutes, args.steps, args.batch)):
        raise UserError("--minutes, --steps and --batch must be above zero.")
    if args.seed < 0:
        raise UserError("--seed must be a whole number from 0.")
    try:
        import scipy  # noqa: F401  volumes are augmented with it
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'Pre-training needs {error.name}, which is not installed: pip install "samfinetune[training]".'
        ) from error
    from SAMFineTuneLib.training.plan import device_of
    from SAMFineTuneLib.training.training_loop import Stopped

    device = device_of(args.device)
    with stop_signs(_leave) as stop:
        try:
            return _masked(args, device, stop) if args.volumes else _synthetic(args, device, stop)
        except Stopped:
            raise KeyboardInterrupt(_STOPPED) from None


def _leave() -> None:
    """End before the first step, where nothing is learned yet."""
    print(f"\nsamfinetune: {_STOPPED}", file=sys.stderr, flush=True)
    os._exit(130)


def _synthetic(args: argparse.Namespace, device: str, stop: StopSigns) -> int:
    """Pre-train the compact model on synthetic pictures."""
    from SAMFineTuneLib.training.synthetic_pretraining import CHECKPOINT_NAME, pretrain_synthetic

    report = _Report()

    def show(state: dict) -> None:
        stop.learning = True
        report(state)

    with outputs.resumable(Path(args.output) / CHECKPOINT_NAME):
        folder = pretrain_synthetic(
            Path(args.output),
            minutes=args.minutes,
            steps=args.steps,
            seed=args.seed,
            batch_size=args.batch,
            resume=args.resume,
            start=Path(args.start) if args.start else None,
            device=device,
            progress=show,
            cancel=lambda: stop.asked,
        )
    report.close()
    print(f"The model is in {folder}; use it with: samfinetune segment VOLUME -o OUT --model {folder}")
    return 0


def _masked(args: argparse.Namespace, device: str, stop: StopSigns) -> int:
    """Pre-train an encoder on unlabelled volumes."""
    from SAMFineTuneLib.training.masked_autoencoding import CHECKPOINT_NAME, pretrain_masked

    printed = 0.0

    def show(course) -> None:
        nonlocal printed
        stop.learning = True
        if time.monotonic() - printed > _LINE_SECONDS or course.step == course.steps:
            printed = time.monotonic()
            print(f"step {course.step} of {course.steps}, {course.seconds / 60:.1f} min, error of what was blanked "
                  f"{course.loss:.3f}, embeddings moved by {course.held:.3f}", file=sys.stderr, flush=True)  # fmt: skip

    with outputs.resumable(Path(args.output) / CHECKPOINT_NAME):
        model = pretrain_masked(
            args.volumes, args.output, open_base(args.model), steps=args.steps, seed=args.seed, resume=args.resume,
            device=device, progress=show, cancel=lambda: stop.asked,
        )  # fmt: skip
    print(f"The model is in {model.path}; adapt it with: samfinetune train CASES -o ADAPTER --model {model.path}")
    return 0


class _Report:
    """Prints how far the training is: in place on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = 0.0
        self._state: dict | None = None

    def __call__(self, state: dict) -> None:
        self._state = state
        if time.monotonic() - self._printed > (0.5 if self._terminal else _LINE_SECONDS):
            self._printed = time.monotonic()
            self._print("" if self._terminal else "\n")

    def close(self) -> None:
        """Print where it ended."""
        if self._state is not None:
            self._print("\n")

    def _print(self, end: str) -> None:
        state = self._state
        line = (
            f"step {state['step']}, {state['pictures']} pictures, {state['minutes']:.1f} min, "
            f"loss {state['loss']:.3f}, IoU of the first answer {state['iou']:.2f}"
        )
        if self._terminal:
            line = f"\r{100 * state['fraction']:.0f} %, {line}\x1b[K"
        print(line, end=end, file=sys.stderr, flush=True)

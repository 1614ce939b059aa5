"""`samfinetune pretrain`: the compact model on synthetic pictures, or any encoder on unlabelled volumes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from SAMFineTuneLib.cli import outputs
from SAMFineTuneLib.errors import UserError

_EPILOG = """examples:
  samfinetune pretrain --synthetic -o compact --minutes 60
  samfinetune pretrain --synthetic -o compact --steps 20000 --seed 7     the same weights on every run
  samfinetune pretrain --synthetic -o compact --minutes 60 --resume      goes on where it was stopped
  samfinetune pretrain --synthetic -o better --minutes 60 --start compact   learns on from another run's weights
  samfinetune pretrain --volumes scans -o ours --steps 1000    the bundled model's encoder, on unlabelled volumes

The folder is a complete model for `samfinetune segment --model FOLDER`. Ctrl-C stops; --resume goes on from the
last checkpoint, which is written every few minutes. Needs PyTorch: pip install "samfinetune[training]"
"""
_LINE_SECONDS = 10.0  # between lines of progress when nobody watches a terminal


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
    if not (args.minutes or args.steps):
        raise UserError("Say how long to train: add --minutes 60, --steps 20000, or both.")
    if (args.minutes or 0) < 0 or (args.steps or 0) < 0 or (args.batch is not None and args.batch < 1):
        raise UserError("--minutes, --steps and --batch must be above zero.")
    try:
        import scipy  # noqa: F401  volumes are augmented with it
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'Pre-training needs {error.name}, which is not installed: pip install "samfinetune[training]".'
        ) from error
    if args.volumes:
        return _masked(args)
    from SAMFineTuneLib.training.pretrain import CHECKPOINT_NAME, pretrain_synthetic

    report = _Report()
    with outputs.resumable(Path(args.output) / CHECKPOINT_NAME):
        folder = pretrain_synthetic(
            Path(args.output),
            minutes=args.minutes,
            steps=args.steps,
            seed=args.seed,
            batch_size=args.batch,
            resume=args.resume,
            start=Path(args.start) if args.start else None,
            device=args.device,
            progress=report,
        )
    report.close()
    print(f"The model is in {folder}; use it with: samfinetune segment VOLUME -o OUT --model {folder}")
    return 0


def _masked(args: argparse.Namespace) -> int:
    """Pre-train an encoder on unlabelled volumes."""
    from SAMFineTuneLib.cli.train import open_base
    from SAMFineTuneLib.training.masked import CHECKPOINT_NAME, pretrain_masked

    printed = 0.0

    def show(course) -> None:
        nonlocal printed
        if time.monotonic() - printed > _LINE_SECONDS or course.step == course.steps:
            printed = time.monotonic()
            print(f"step {course.step} of {course.steps}, {course.seconds / 60:.1f} min, error of what was blanked "
                  f"{course.loss:.3f}, embeddings moved by {course.held:.3f}", file=sys.stderr, flush=True)  # fmt: skip

    with outputs.resumable(Path(args.output) / CHECKPOINT_NAME):
        model = pretrain_masked(args.volumes, args.output, open_base(args.model), steps=args.steps, seed=args.seed,
                                resume=args.resume, device=args.device, progress=show)  # fmt: skip
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

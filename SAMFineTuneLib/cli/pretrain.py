"""`samfinetune pretrain`: the compact model or a volume memory on synthetic images, or any encoder on real volumes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli import console, outputs
from SAMFineTuneLib.cli.long_work import ProgressLine, stoppable
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.training.pretraining import PretrainingProgress

_EPILOG = """examples:
  samfinetune pretrain --synthetic -o compact --minutes 60
  samfinetune pretrain --synthetic -o compact --steps 20000 --seed 7     the same weights in every run
  samfinetune pretrain --synthetic -o compact --minutes 60 --resume      continue a stopped run
  samfinetune pretrain --synthetic -o better --minutes 60 --start compact   begin with another run's weights
  samfinetune pretrain --memory -o carrying --minutes 90       a model's memory for whole volumes, for --propagate
  samfinetune pretrain --volumes scans -o ours --steps 1000    the bundled model's encoder, on unlabelled volumes

The folder is a complete model for `samfinetune segment --model FOLDER`. Ctrl-C stops and writes a checkpoint, which
is also written now and then; --resume continues from the last one. Needs PyTorch: pip install "samfinetune[training]"
"""
_MEASURED = {"loss": "loss", "iou": "IoU of the first answer", "dice": "Dice", "moved": "embeddings moved by"}


def add_parser(subparsers) -> None:
    """Add `pretrain`."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train a model without annotations: on synthetic images or on unlabelled volumes",
        description="Train the compact model on synthetic pictures, or its memory for whole volumes on synthetic "
        "volumes, both without any data; or a model's image encoder on unlabelled volumes (masked auto-encoding).",
        epilog=_EPILOG,
    )
    parser.add_argument("--synthetic", action="store_true", help="train the compact model on synthetic pictures")
    parser.add_argument("--memory", action="store_true", help="train a model's volume memory on synthetic volumes")
    parser.add_argument("--volumes", metavar="FOLDER", help="train an encoder on the unlabelled volumes of a folder")
    parser.add_argument("--model", metavar="ID",
                        help="whose encoder --volumes trains, or which model gets the memory (compact)")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where the model is written")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    parser.add_argument("--steps", type=int, help="stop after this many steps; repeatable to the last bit")
    parser.add_argument("--batch", type=int, help="pictures in each step of --synthetic (8, or 256 on a graphics card)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default 0)")
    parser.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint, if there is one")
    parser.add_argument("--start", metavar="FOLDER", help="begin with the weights, or the memory, of this model")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")


def run(args: argparse.Namespace) -> int:
    """Train, print progress, and print where the model is."""
    from SAMFineTuneLib.training.training_settings import MOST

    if [bool(args.synthetic), args.memory, bool(args.volumes)].count(True) != 1:
        raise UserError(
            "Choose what to learn from: --synthetic for synthetic pictures, --memory for synthetic volumes, or "
            "--volumes FOLDER."
        )
    if args.synthetic and args.model:
        raise UserError("--synthetic trains the compact model; leave out --model.")
    if args.volumes and (args.minutes or args.start or args.batch):
        raise UserError("With --volumes use --steps and --model, not --minutes, --start and --batch.")
    if args.memory and args.batch:
        raise UserError("--batch belongs to --synthetic; each step of --memory shows one volume.")
    if args.minutes is None and args.steps is None:
        raise UserError("Choose how long to train: add --minutes 60, --steps 20000, or both.")
    if not all(value is None or 0 < value <= MOST for value in (args.minutes, args.steps, args.batch)):
        raise UserError(f"--minutes, --steps and --batch must be above zero, and at most {MOST}.")
    if not 0 <= args.seed <= MOST:
        raise UserError(f"--seed must be a whole number from 0 to {MOST}.")
    from SAMFineTuneLib.models.optional_packages import require

    require("Pre-training", "torch", extra="training")
    from SAMFineTuneLib.training.device_memory import device_of

    options = {"steps": args.steps, "seed": args.seed, "resume": args.resume, "device": device_of(args.device)}
    learn = _masked if args.volumes else _memory if args.memory else _synthetic
    with stoppable(lambda: "stopped; continue with the same command and --resume.") as stop, ProgressLine() as line:

        def show(progress: PretrainingProgress) -> None:
            stop.learning = True
            line(_words(progress, "volumes" if args.memory else "pictures"), progress.used >= 1)

        learn(args, **options, progress=show, cancel=lambda: stop.asked)
    return 0


def _words(progress: PretrainingProgress, shown: str) -> str:
    measured = ", ".join(f"{words} {progress.measured[name]:.3f}" for name, words in _MEASURED.items()
                         if name in progress.measured)  # fmt: skip
    return (
        f"{100 * progress.used:.0f} %, step {progress.step}, {progress.pictures} {shown}, "
        f"{progress.seconds / 60:.1f} min, {measured}"
    )


def _synthetic(args: argparse.Namespace, **options: Any) -> None:
    """Pre-train the compact model on synthetic pictures."""
    from SAMFineTuneLib.training.synthetic_pretraining import CHECKPOINT_NAME, pretrain_synthetic

    with outputs.resumable(Path(args.output) / CHECKPOINT_NAME):
        folder = pretrain_synthetic(
            Path(args.output), minutes=args.minutes, batch_size=args.batch,
            start=Path(args.start) if args.start else None, **options,
        )  # fmt: skip
    print(f"The model is in {folder}; use it with: samfinetune segment VOLUME -o OUT --model {folder}")


def _memory(args: argparse.Namespace, **options: Any) -> None:
    """Pre-train a volume memory on synthetic volumes."""
    from SAMFineTuneLib.models.spec import read_model_folder
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.training.memory_pretraining import CHECKPOINT_NAME, pretrain_memory

    with outputs.resumable(Path(args.output) / CHECKPOINT_NAME):
        folder = pretrain_memory(
            Path(args.output), Store().find(args.model or "compact"), minutes=args.minutes,
            start=read_model_folder(args.start) if args.start else None, **options,
        )  # fmt: skip
    print(f"The model is in {folder}; use it with: samfinetune segment VOLUME -o OUT --propagate both --model {folder}")


def _masked(args: argparse.Namespace, **options: Any) -> None:
    """Pre-train an encoder on unlabelled volumes."""
    from SAMFineTuneLib.models.store import Store
    from SAMFineTuneLib.training.masked_autoencoding import CHECKPOINT_NAME, pretrain_masked

    with outputs.resumable(Path(args.output) / CHECKPOINT_NAME):
        model = pretrain_masked(
            args.volumes, args.output, Store().find(args.model or "compact"), tell=console.note, **options
        )
    print(f"The model is in {model.path}; adapt it with: samfinetune train CASES -o ADAPTER --model {model.path}")

"""`samfinetune embed`: computes the embeddings of all slices in advance."""

from __future__ import annotations

import argparse

from SAMFineTuneLib.cli import arguments, console
from SAMFineTuneLib.errors import UserError

_EPILOG = """examples:
  samfinetune embed path/to/dicom --model sam-vit-b                        all axial slices
  samfinetune embed head.nii.gz --model sam-vit-b --orientation sagittal

Ctrl-C stops; the same command continues. `samfinetune segment` with the same series, window and model
then answers without computing embeddings. See also: samfinetune cache info
"""


def add_parser(subparsers) -> None:
    """Add `embed`."""
    parser = subparsers.add_parser(
        "embed",
        help="compute the embeddings of all slices in advance",
        description="Compute the embeddings of all slices in advance, so that prompts are answered quickly.",
        epilog=_EPILOG,
    )
    arguments.add_volume(parser)
    parser.add_argument("--orientation", choices=arguments.ORIENTATIONS, default="axial", help="default: axial")
    arguments.add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Compute the embeddings slice by slice, with a progress bar."""
    from SAMFineTuneLib.cli import describe
    from SAMFineTuneLib.images import aligned_plane, choose_window, number_of_slices, picture, read_volume

    if args.no_cache:
        raise UserError("Without the cache on disk, embeddings would be lost at the end; leave out --no-cache.")
    volume = read_volume(args.volume, args.series)
    window = choose_window(volume, args.window)
    predictor = arguments.open_predictor(args)
    describe.print_inputs(volume, window, describe.Answering.of(predictor))
    if predictor.engine.spec.zoom:
        print("note        this model crops around prompts; only whole slices can be embedded in advance")
    count, done = number_of_slices(volume, args.orientation), 0
    try:
        with console.progress("embed") as show:
            for done in range(count):
                predictor.embed(picture(volume, aligned_plane(volume, args.orientation, done), window))
                if predictor.cache.failure is not None:
                    raise predictor.cache.failure
                show(done + 1, count)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped after {done} of {count} slices; the same command continues there.") from None
    print(f"embeddings  {predictor.encoder_calls} computed, {count - predictor.encoder_calls} were there already")
    return 0

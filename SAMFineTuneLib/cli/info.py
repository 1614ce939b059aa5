"""`samfinetune info`: prints series, geometry and grey values of a volume."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from SAMFineTuneLib.cli import arguments, console

_EPILOG = """examples:
  samfinetune info path/to/dicom                 a folder of DICOM files, in any order
  samfinetune info path/to/dicom --series 2      one of several series in it
  samfinetune info head.nii.gz --window minmax   what another grey-value window would be
  samfinetune info path/to/dicom --json          the same for a program
"""


def add_parser(subparsers) -> None:
    """Add `info`."""
    parser = subparsers.add_parser(
        "info",
        help="print series, geometry and grey values of a volume",
        description="Print how a volume was understood: series, geometry, grey values and their window.",
        epilog=_EPILOG,
    )
    arguments.add_volume(parser)
    console.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the series of a folder; when there is one, or one was asked for, also its geometry and values."""
    from SAMFineTuneLib.cli import describe
    from SAMFineTuneLib.images import choose_window, read_volume
    from SAMFineTuneLib.images.read_dicom import look_into
    from SAMFineTuneLib.images.slice_plane import format_bounds

    if Path(args.volume).is_dir() and args.series is None:
        series, _, notes = look_into(args.volume)
        if len(series) > 1:
            print(f"{args.volume} holds {len(series)} series or volumes; ask for one with --series, by number or UID:")
            for entry in series:
                print(f"  {entry}")
            for note in notes:
                console.note(note, 9)
            console.document(volume=args.volume, series=[asdict(entry) for entry in series])
            return 0
    volume = read_volume(args.volume, args.series)
    window = choose_window(volume, args.window)
    corner = volume.affine[:3, 3]
    rows = [
        ("read", describe.what(volume)),
        ("grid", describe.grid(volume)),
        ("axes", describe.orientation(volume)),
        ("corner", "the first voxel lies at R {:.1f}, A {:.1f}, S {:.1f} mm".format(*corner)),
        ("range", f"the volume covers {format_bounds(volume)}"),
        ("values", f"{volume.array.min():g} to {volume.array.max():g} ({volume.array.dtype})"),
        ("window", str(window)),
    ]
    if volume.source is not None and volume.source.series_uid:
        rows.insert(1, ("series", volume.source.series_uid))
    for label, text in rows:
        print(f"{label:<9}{text}")
    for warning in volume.warnings:
        console.note(warning, 9)
    console.document(**describe.facts(volume, window))
    return 0

"""The prompts that `samfinetune segment` is given: typed, and from files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.images import Volume
    from SAMFineTuneLib.prompts import PromptSet


def gather_prompts(args: argparse.Namespace, volume: Volume, paths: Iterable[Path]) -> PromptSet:
    """Typed prompts and prompt files as one set. UserError without any, or when a name is missing."""
    from dataclasses import replace

    from SAMFineTuneLib.prompts import PromptSet, SegmentPrompts, merge_prompts, read_prompts

    files = [read_prompts(path, volume) for path in paths]
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
    """The prompts that were typed. Boxes come first, because points that follow a box correct its mask."""
    from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt
    from SAMFineTuneLib.prompts.checked_json import Coordinates

    coordinates = Coordinates(args.space, volume)

    def positions(option: str, text: str, count: int) -> list[tuple[float, ...]]:
        given = np.reshape(_numbers(option, text, 3 * count), (count, 3)).tolist()
        points = [coordinates.point(position, f"{option} {text}") for position in given]
        coordinates.require_inside(given, f"{option} {text}")
        return points

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

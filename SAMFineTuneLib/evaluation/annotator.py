"""An annotator's time: prompts and corrections compared with drawing every outline by hand.

The seconds are assumptions, printed with every result:

| what | seconds | why |
|---|---|---|
| a box | 7 | two corners; Papadopoulos et al. (ICCV 2017) measured this for their quickest way of boxing |
| a point | 3 | finding the place and clicking; Bearman et al. (ECCV 2016) measured 2.4 for the first click on an object |
| a look | 2 | judging a mask on a slice |
| an outline by hand | 30 | an assumption on the low side: COCO's outlines took 79 each (Lin et al. 2014) |

An object that does not become good enough is drawn by hand, in addition to the clicks spent on it.
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation.result_rows import Row

GOOD_ENOUGH = 0.85
"""Dice from which a mask is accepted."""


@dataclass(frozen=True)
class Seconds:
    """Seconds that an annotator needs for each action."""

    box: float = 7.0
    point: float = 3.0
    look: float = 2.0
    outline: float = 30.0

    @classmethod
    def parse(cls, text: str | None) -> Seconds:
        """Read `outline=60,point=2`; times that are not given keep their defaults."""
        if not text:
            return cls()
        names = [field.name for field in fields(cls)]
        given = {}
        for part in text.split(","):
            found = re.fullmatch(rf"\s*({'|'.join(names)})\s*=\s*(\d+\.?\d*|\.\d+)\s*", part)
            if not found:
                raise UserError(
                    f"{part.strip()!r} is not a time; give seconds for {', '.join(names)}, as in outline=60,point=2."
                )
            given[found[1]] = float(found[2])
        return cls(**given)


def clicks_to(dice: Sequence[float | None], wanted: float) -> int | None:
    """Number of prompts after which Dice (by step) first reaches `wanted`; None when it never does."""
    return next((step for step, value in enumerate(dice, start=1) if value is not None and value >= wanted), None)


def seconds_for_object(dice: Sequence[float | None], start: str, seconds: Seconds, wanted: float) -> float:
    """Estimate the seconds for an object on a slice, with a look at every answer; one that no answer fits is outlined.

    Args:
        dice: after each prompt.
        start: the first prompt: "box", or anything else for a point.
        seconds: duration of an annotator's actions.
        wanted: the Dice that is good enough.
    """
    needed = clicks_to(dice, wanted)
    prompts = needed or len(dice)
    first = seconds.box if start == "box" else seconds.point
    spent = first + (prompts - 1) * seconds.point + prompts * seconds.look
    return spent if needed else spent + seconds.outline


def seconds_for_volume(rows: Iterable[Row], start: str, seconds: Seconds, wanted: float) -> tuple[float, float]:
    """Estimate the seconds for a label in a volume with the model's help, and by hand.

    With help: one prompted slice, a look at every slice that shows the label or got a mask, an outline for each that is
    not good enough, and a click to empty each that should be empty. By hand: an outline for each slice that shows the
    label.

    Args:
        rows: one a slice.
        start: the prompt of the slice: "box", or anything else for two points.
        seconds: duration of an annotator's actions.
        wanted: the Dice that is good enough.
    """
    rows = list(rows)
    shown = [row for row in rows if row.area]
    prompt = seconds.box if start == "box" else 2 * seconds.point
    poor = sum(row.dice < wanted for row in shown)
    mending = poor * seconds.outline + (len(rows) - len(shown)) * seconds.point
    return prompt + len(rows) * seconds.look + mending, len(shown) * seconds.outline

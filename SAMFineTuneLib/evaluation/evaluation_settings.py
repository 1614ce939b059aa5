"""The settings of an evaluation: protocols, objects, seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.simulation.cosmos_prompts import STRATEGIES

PROTOCOLS = ("S1", *STRATEGIES, "perturbation", "interactive", "3d", "automatic", "factors")
DEFAULT_PROTOCOLS = (*STRATEGIES, "perturbation", "interactive", "3d", "automatic", "factors")
"""All but S1, which takes longer than all others together."""
GROUPS = {"all": PROTOCOLS, "prompts": tuple(STRATEGIES)}


@dataclass(frozen=True)
class EvaluationSettings:
    """Everything that decides the results: equal settings, cases and methods give equal rows."""

    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    slices: int = 3
    """Slices of each label of a case on which its objects are prompted, evenly spread; volumes are always whole."""
    steps: int = 8
    """Answers in an interactive sequence: the first prompt and corrections."""
    rounds: int = 3
    """Corrections of a volume."""
    seed: int = 0
    tolerance: float | None = None
    """Tolerance of the NSD in mm; None: two pixels on slices, and the largest side of a voxel in volumes."""
    window: str | None = None
    orientation: str = "auto"

    def __post_init__(self) -> None:
        if self.slices < 1 or self.steps < 1 or self.rounds < 0 or self.seed < 0:
            raise UserError("Slices and steps are 1 or more, rounds and the seed 0 or more.")
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise UserError("The tolerance of the NSD is a number of millimetres, 0 or more.")

    def of(self, protocol: str) -> dict[str, Any]:
        """The settings that decide the results of one protocol; they show whether a job was done already."""
        everywhere = {"protocol": protocol, "tolerance": self.tolerance, "window": self.window,
                      "orientation": self.orientation}  # fmt: skip
        own = {"interactive": ("slices", "steps", "seed"), "perturbation": ("slices", "seed"), "3d": ("rounds",),
               "automatic": ()}.get(protocol, ("slices",))  # fmt: skip
        return everywhere | {name: value for name, value in asdict(self).items() if name in own}


def parse_protocols(text: str | Sequence[str] | None) -> tuple[str, ...]:
    """Read `S2,S5,interactive`; `prompts` means S2 to S6, `all` everything. In the order of PROTOCOLS."""
    if text is None:
        return DEFAULT_PROTOCOLS
    named = [part.strip() for part in (text.split(",") if isinstance(text, str) else text) if part.strip()]
    by_lower = {name.lower(): (name,) for name in PROTOCOLS} | GROUPS
    unknown = [f"There is no protocol {name!r}" for name in named if name.lower() not in by_lower]
    if unknown or not named:
        raise UserError(f"{(*unknown, 'No protocol is named')[0]}; choose from {', '.join((*PROTOCOLS, *GROUPS))}.")
    chosen = {name for one in named for name in by_lower[one.lower()]}
    return tuple(name for name in PROTOCOLS if name in chosen)

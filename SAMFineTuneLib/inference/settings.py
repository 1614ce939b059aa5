"""Settings of propagation and everything mode, for clients as well, which have no model."""

from __future__ import annotations

from dataclasses import dataclass

from SAMFineTuneLib.errors import UserError

DIRECTIONS = ("both", "up", "down", "fill")


@dataclass(frozen=True)
class PropagationSettings:
    """How far a mask is propagated, and when it ends early."""

    direction: str = "both"
    """One of DIRECTIONS. Up is towards superior, anterior or the patient's right; fill only closes gaps between
    masks."""
    first: int | None = None
    """Lowest slice index that may be written; None is the volume's first."""
    last: int | None = None
    """Highest slice index that may be written; None is the volume's last."""
    min_overlap: float = 0.4
    """A piece ends where its IoU with itself on the previous slice falls below this."""
    max_area_change: float = 2.5
    """A piece ends where its area grows or shrinks by more than this factor from one slice to the next."""
    min_score: float = 0.5
    """A piece ends where the predicted IoU is below this fraction of the best one so far in its direction."""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            choice = ", ".join(DIRECTIONS)
            raise UserError(f"Unknown propagation direction '{self.direction}'; choose one of {choice}.")
        if not 0 <= self.min_overlap <= 1 or not 0 <= self.min_score <= 1:
            raise UserError("The smallest overlap and the smallest score of a propagation lie between 0 and 1.")
        if self.max_area_change <= 1:
            raise UserError("The largest area change of a propagation is a factor above 1, for example 2.5.")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise UserError(f"The slice range {self.first} to {self.last} is empty; give the lower index first.")


@dataclass(frozen=True)
class EverythingSettings:
    """How densely everything mode prompts, and which objects it keeps."""

    points_per_side: int = 32
    """Points of the grid along each side of a slice."""
    layers: int | None = None
    """Number of finer layers; layer n has 2**n by 2**n tiles. By default 1 for a model that zooms, 0 for others."""
    min_slices: int = 2
    """Objects on fewer slices are dropped."""

    def __post_init__(self) -> None:
        if not 1 <= self.points_per_side <= 256:
            raise UserError("Everything mode takes 1 to 256 points per side, for example 32.")
        if self.layers is not None and not 0 <= self.layers <= 4:
            raise UserError("Everything mode takes 0 to 4 finer layers.")
        if self.min_slices < 1:
            raise UserError("Everything mode keeps objects of 1 slice or more.")

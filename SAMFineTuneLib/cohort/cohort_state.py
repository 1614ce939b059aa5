"""What a cohort's `cohort.json` holds: labels, cases with their states, and the adapters trained on them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.segment_info import check_name
from SAMFineTuneLib.process_lock import has_ended
from SAMFineTuneLib.typed_json import made
from SAMFineTuneLib.wording import same_name

STATES = ("untouched", "proposed", "corrected", "accepted", "refused")
LEASE = 600.0
"""Seconds for which a case stays taken after the last sign of its reviewer."""
LEASE_ON_SERVER = 60.0
"""The same for a window on a server's cohort, which reports to the server every second."""
_FORMAT, _READABLE = 2, (1, 2)
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".dcm")
_LARGEST_LABEL = 2**16 - 1


@dataclass(frozen=True)
class Proposal:
    """An adapter's proposal for a case."""

    adapter: int
    """Number of the training that made it."""
    confidence: Mapping[str, float]
    """Label → expected Dice of the whole structure, 0 to 1."""
    doubtful: int = 0
    """Slices that are expected below 0.8 Dice."""

    @property
    def lowest(self) -> float:
        """Confidence of the label that is least sure."""
        return min(self.confidence.values(), default=0.0)


@dataclass(frozen=True)
class Review:
    """The work of accepting a case. A reopened case keeps it, and accepting it again adds to it."""

    order: int
    """Its place in the order in which cases were accepted for the first time, from 1."""
    seconds: float | None = None
    """Working time; None where it was not measured."""
    prompts: int | None = None
    """Number of prompts placed; None where they were not counted."""
    dice: Mapping[str, float] = field(default_factory=dict)
    """Label → Dice of the proposal with what was accepted; empty where nothing was proposed, or the adapter had learned
    from the case."""


@dataclass(frozen=True)
class Lease:
    """A reviewer's claim on a case: `by` is a random word that identifies the reviewer; until the time `until`, in
    seconds since 1970 by this computer's clock, others leave the case alone."""

    by: str
    until: float
    process: str = ""
    """The process whose end also ends the lease, see `process_lock.this_process`; "" for none."""


@dataclass(frozen=True)
class CohortCase:
    """An image of the cohort and its state."""

    key: str
    image: str
    """Path of the file or DICOM folder, relative to the cohort's images."""
    patient: str
    """A digest that is equal for the cases of one patient, and differs from those of other cohorts."""
    state: str = "untouched"
    proposal: Proposal | None = None
    review: Review | None = None
    lease: Lease | None = None
    problem: str = ""
    """Why proposing failed, as a sentence."""
    stamp: str = ""
    """Sizes and times of the image's files when it was last known to be unchanged, see `image_check`."""
    trouble: str = ""
    """The problem with the image: one of `image_check.TROUBLES`, or ""."""

    @property
    def name(self) -> str:
        """The image's file name without its ending, or a DICOM folder's name."""
        name = Path(self.image).name
        return next((name[: -len(end)] for end in _ENDINGS if name.lower().endswith(end) and name != end), name)

    def taken(self, by: str = "") -> bool:
        """Whether somebody other than `by` works on it."""
        lease = self.lease
        return lease is not None and lease.by != by and lease.until > time.time() and not has_ended(lease.process)


@dataclass(frozen=True)
class TrainedAdapter:
    """A training on accepted cases, and whether its adapter replaced the one before."""

    number: int
    learned: tuple[str, ...]
    """Keys of the cases that it learned from."""
    held_out: tuple[str, ...]
    """Keys of the held-out cases, from which no adapter learned: those that judged it, and possibly others."""
    start: str
    """`base`, or `adapter N` if it continued from an earlier one."""
    dice: Mapping[str, float]
    """Label → mean Dice of its proposals for the cases that judged it."""
    dice_before: Mapping[str, float]
    """The same of the adapter in use before; empty for the first one."""
    interval: tuple[float, float] | None
    """95 % interval of the mean gain over the one before; None for the first one, and for a single patient."""
    in_use: bool
    """Whether the evidence let it replace the one before."""
    reason: str
    """The evidence, as a sentence."""
    date: str
    """Year-month-day."""
    mean: float | None = None
    """Mean Dice over the patients compared, which decides; None where earlier versions did not keep it."""
    mean_before: float | None = None
    """The same of the adapter in use before."""


@dataclass(frozen=True)
class CohortState:
    """The content of `cohort.json`."""

    labels: Mapping[int, str]
    """Label value → name."""
    cases: tuple[CohortCase, ...]
    images: tuple[str, str]
    """The folder of the images: relative to the cohort's folder, and absolute."""
    model: str = "compact"
    adapters: tuple[TrainedAdapter, ...] = ()
    salt: str = ""
    """Random hexadecimal digits that go into the digests of patients; "" in cohorts from before there was one."""

    def case(self, name: str) -> CohortCase:
        """The case of a key, the beginning of a key, or a name.

        Raises:
            UserError: when there is none, or more than one.
        """
        found = [one for one in self.cases if one.key == name] or [one for one in self.cases if one.name == name]
        found = found or [one for one in self.cases if len(name) >= 4 and one.key.startswith(name)]
        if len(found) == 1:
            return found[0]
        if found:
            keys = ", ".join(one.key for one in found)
            raise UserError(f"Several cases are called {name}; give one of their keys: {keys}.")
        raise UserError(f"The cohort has no case {name}; “samfinetune cohort status” lists its cases.")

    def those(self, *states: str) -> tuple[CohortCase, ...]:
        """The cases in some states."""
        return tuple(one for one in self.cases if one.state in states)

    @property
    def accepted(self) -> tuple[CohortCase, ...]:
        """The accepted cases in the order of their acceptance."""
        return tuple(sorted(self.those("accepted"), key=lambda one: one.review.order if one.review else 0))

    @property
    def next_order(self) -> int:
        """The number of the next case to be accepted."""
        return max((one.review.order for one in self.cases if one.review), default=0) + 1

    @property
    def adapter(self) -> TrainedAdapter | None:
        """The adapter in use: the last one that the evidence supported."""
        return next((one for one in reversed(self.adapters) if one.in_use), None)

    def taught(self, case: CohortCase) -> bool:
        """Whether the adapter that proposed a case, or one before it, learned from the case."""
        made_by = case.proposal.adapter if case.proposal else 0
        return any(case.key in one.learned for one in self.adapters if one.number <= made_by)

    def with_case(self, key: str, **changes: Any) -> CohortState:
        """The state with one case changed."""
        return replace(self, cases=tuple(replace(one, **changes) if one.key == key else one for one in self.cases))


def as_json(state: CohortState) -> str:
    """A state as `cohort.json` has it."""
    return json.dumps({"format": _FORMAT, **asdict(state)}, indent=1)


def parsed(values: dict[str, Any], path: Path) -> CohortState:
    """The state in the JSON of a file; UserError for one of another version, ValueError for one that is damaged."""
    if values.get("format") not in _READABLE:
        raise UserError(f"“{path}” was written by another version of SAMFineTune; update this one to open it.")
    state = made(CohortState, values)
    keys = {case.key for case in state.cases}
    if len(keys) < len(state.cases) or not all(re.fullmatch(r"[\w-]+", key) for key in keys):
        raise ValueError("keys of cases")
    if unknown := {case.state for case in state.cases} - {*STATES}:
        raise ValueError(f"unknown state {unknown.pop()}")
    if not all(0 < value <= _LARGEST_LABEL for value in state.labels):
        raise ValueError("label values")
    names = {same_name(name) for name in state.labels.values()}
    if len(names) < len(state.labels) or "" in names:
        raise UserError(f"“{path}” gives two labels the same name, or a label no name; give each its own there.")
    for name in names:
        check_name(name)
    bytes.fromhex(state.salt)
    return state

"""The folder of a cohort: its cases, how far each of them is, and the adapters that were trained on them.

| in the folder | what it holds |
|---|---|
| `cohort.json` | labels, cases, adapters: `Cohort.state` |
| `proposals/KEY/` | a label map that an adapter proposes, and how sure it is of each slice |
| `corrected/KEY.nii.gz` | work on a case that is not accepted yet |
| `accepted/KEY.nii.gz` | the accepted label map of a case |
| `adapters/N/` | the adapter of training N |

A case's key is the beginning of its image's digest. Images are never altered, and apart from the path of each image
nothing here names a patient. Every change reads `cohort.json` anew and replaces it while it holds a lock, so that
windows and commands may work on one cohort together and a kill leaves the state before or after a change.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.process_lock import LOCK, ProcessLock

STATE_FILE = "cohort.json"
STATES = ("untouched", "proposed", "corrected", "accepted", "refused")
LEASE = 600.0
"""Seconds for which a case stays taken after the last sign of the one who works on it."""
_FORMAT = 1
_PATIENCE = 20.0  # s to wait for another process that writes


@dataclass(frozen=True)
class Proposal:
    """What an adapter proposes for a case."""

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
    """What accepting a case took."""

    order: int
    """How many cases were accepted before it, plus 1."""
    seconds: float | None = None
    """Working time; None where it was not measured."""
    prompts: int | None = None
    """Points, boxes and other prompts that were placed; None where they were not counted."""
    dice: Mapping[str, float] = field(default_factory=dict)
    """Label → Dice of the proposal with what was accepted; empty where nothing was proposed."""


@dataclass(frozen=True)
class Lease:
    """Who works on a case, as a random word, and until when others leave it alone, in seconds since 1970."""

    by: str
    until: float


@dataclass(frozen=True)
class CohortCase:
    """An image of the cohort and how far it is."""

    key: str
    image: str
    """Path of the file or DICOM folder, relative to the cohort's images."""
    patient: str
    """A digest that is equal for the cases of one patient."""
    state: str = "untouched"
    proposal: Proposal | None = None
    review: Review | None = None
    lease: Lease | None = None
    problem: str = ""
    """Why proposing failed, as a sentence."""

    @property
    def name(self) -> str:
        """The image's file name without its ending."""
        name = Path(self.image).name
        return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else name.rsplit(".", 1)[0] or name

    def taken(self, by: str = "") -> bool:
        """Whether somebody other than `by` works on it."""
        return self.lease is not None and self.lease.by != by and self.lease.until > time.time()


@dataclass(frozen=True)
class TrainedAdapter:
    """A training on accepted cases, and whether its adapter replaced the one before."""

    number: int
    learned: tuple[str, ...]
    """Keys of the cases that it learned from."""
    held_out: tuple[str, ...]
    """Keys of the cases that judged it and that no adapter learned from."""
    start: str
    """`base`, or `adapter N` where it went on from an earlier one."""
    dice: Mapping[str, float]
    """Label → mean Dice of its proposals for the cases held out."""
    dice_before: Mapping[str, float]
    """The same of the adapter in use before; empty for the first one."""
    interval: tuple[float, float] | None
    """95 % interval of the mean gain over the one before; None where that is not defined."""
    in_use: bool
    """Whether the evidence let it replace the one before."""
    reason: str
    """The evidence, as a sentence."""
    date: str
    """Year-month-day."""


@dataclass(frozen=True)
class CohortState:
    """What `cohort.json` holds."""

    labels: Mapping[int, str]
    """Label value → name."""
    cases: tuple[CohortCase, ...]
    images: tuple[str, str]
    """Where the images lie: from the cohort's folder, and in full."""
    model: str = "compact"
    adapters: tuple[TrainedAdapter, ...] = ()

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
    def adapter(self) -> TrainedAdapter | None:
        """The adapter in use: the last one that the evidence let in."""
        return next((one for one in reversed(self.adapters) if one.in_use), None)

    def with_case(self, key: str, **changes: Any) -> CohortState:
        """The state with one case changed."""
        return replace(self, cases=tuple(replace(one, **changes) if one.key == key else one for one in self.cases))


class Cohort:
    """A cohort on disk.

    Args:
        folder: its folder.

    Raises:
        UserError: when it holds no cohort, or one of a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._read: tuple[tuple[int, int], CohortState] | None = None
        self.state  # noqa: B018 - refuses a folder that holds no cohort

    @classmethod
    def create(cls, folder: str | Path, state: CohortState) -> Cohort:
        """Write a new cohort; UserError when the folder holds one."""
        folder = Path(folder).expanduser()
        require_no_cohort(folder)
        write_text(folder / STATE_FILE, json.dumps(_plain(state), indent=1))
        return cls(folder)

    @property
    def state(self) -> CohortState:
        """What the file says now."""
        path = self.folder / STATE_FILE
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if self._read is None or self._read[0] != stamp:
                self._read = (stamp, _parsed(json.loads(path.read_text("utf-8")), path))
        except FileNotFoundError:
            raise UserError(f"“{self.folder}” holds no cohort; create one with “samfinetune cohort create”.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"“{path}” is damaged ({error}); restore it from a backup.") from error
        except OSError as error:
            raise UserError(f"“{path}” cannot be read: {error.strerror}.") from error
        return self._read[1]

    def change(self, change: Callable[[CohortState], CohortState]) -> CohortState:
        """Replace the state by what `change` makes of it, which may raise to leave it as it is. -> the new state."""
        with self._alone():
            self._read = None
            new = change(self.state)
            write_text(self.folder / STATE_FILE, json.dumps(_plain(new), indent=1))
            self._read = None
            return self.state

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = ProcessLock(self.folder / LOCK)
        until = time.monotonic() + _PATIENCE
        try:
            while not lock.take():
                if time.monotonic() > until:
                    raise UserError(f"“{self.folder}” is being written ({lock.owner}); try again.")
        except OSError as error:
            raise disk_error(error, self.folder) or error from error
        try:
            yield
        finally:
            lock.release()

    # ---- where things lie

    @property
    def images(self) -> Path:
        """The folder that the images' paths start from."""
        beside, full = self.state.images
        here = Path(os.path.normpath(self.folder / beside)) if beside else Path(full)
        return here if here.is_dir() or not Path(full).is_dir() else Path(full)

    def image(self, case: CohortCase) -> Path:
        """The image of a case; UserError when it is not there."""
        path = self.images / case.image
        if not path.exists():
            raise UserError(
                f"The image of case {case.name} is not at “{path}”; if the images were moved, tell where they are with "
                "“samfinetune cohort locate”."
            )
        return path

    def proposal(self, key: str) -> Path:
        """Folder of what is proposed for a case."""
        return self.folder / "proposals" / key

    def corrected(self, key: str) -> Path:
        """Label map of a case that somebody works on."""
        return self.folder / "corrected" / f"{key}.nii.gz"

    def accepted(self, key: str) -> Path:
        """Accepted label map of a case."""
        return self.folder / "accepted" / f"{key}.nii.gz"

    def adapter(self, number: int) -> Path:
        """Folder of the adapter of a training."""
        return self.folder / "adapters" / str(number)


def require_no_cohort(folder: Path) -> None:
    """UserError when a folder holds a cohort."""
    if (folder / STATE_FILE).exists():
        raise UserError(f"“{folder}” already holds a cohort; choose another folder, or go on with that one.")


# ---------------------------------------------------------------- the file


def _plain(state: CohortState) -> dict[str, Any]:
    plain = asdict(state)
    plain["labels"] = {str(value): name for value, name in state.labels.items()}
    return {"format": _FORMAT, **plain}


def _parsed(values: dict[str, Any], path: Path) -> CohortState:
    if values.get("format") != _FORMAT:
        raise UserError(f"“{path}” was written by another version of SAMFineTune; update this one to open it.")
    return CohortState(
        labels={int(value): str(name) for value, name in values["labels"].items()},
        cases=tuple(_case(one) for one in values["cases"]),
        images=tuple(values["images"]),
        model=str(values["model"]),
        adapters=tuple(_of(TrainedAdapter, one) for one in values["adapters"]),
    )


def _case(values: dict[str, Any]) -> CohortCase:
    parts = {"proposal": Proposal, "review": Review, "lease": Lease}
    own = {name: _of(kind, values[name]) if values.get(name) else None for name, kind in parts.items()}
    found = _of(CohortCase, {**values, **own})
    if found.state not in STATES:
        raise ValueError(f"unknown state {found.state!r}")
    return found


def _of(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from its fields; lists become tuples."""
    names = {one.name for one in fields(kind)}
    return kind(**{
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in names
    })  # fmt: skip

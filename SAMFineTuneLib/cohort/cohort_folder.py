"""The folder of a cohort: its cases, how far each of them is, and the adapters that were trained on them.

| in the folder | what it holds |
|---|---|
| `cohort.json` | labels, cases, adapters: `Cohort.state` |
| `proposals/KEY/` | a label map that an adapter proposes, and how sure it is of each slice |
| `corrected/KEY.nii.gz` | work on a case that is not accepted yet |
| `accepted/KEY.nii.gz` | the accepted label map of a case |
| `features/KEY.npy` | the pooled embedding of an image, by which cases are compared |
| `adapters/N/` | the adapter of training N |
| `training/` | a training that is not finished |
| `judged/N/KEY/` | what it proposes for an accepted case held out, by which its confidence is calibrated |
| `added/KEY/` | an image that came through a server |

A case's key is the beginning of its image's digest. Images are never altered, and apart from the path of each image,
and from what images that came through a server hold themselves, nothing here names a patient. Every change reads
`cohort.json` anew and replaces it while it holds a lock, so that windows and commands may work on one cohort together
and a kill leaves the state before or after a change.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import write_text
from SAMFineTuneLib.process_lock import LOCK, ProcessLock, has_ended

STATE_FILE = "cohort.json"
STATES = ("untouched", "proposed", "corrected", "accepted", "refused")
LEASE = 600.0
"""Seconds for which a case stays taken after the last sign of the one who works on it."""
LEASE_ON_SERVER = 60.0
"""The same for a window on a server's cohort, of which the server hears every second."""
_FORMAT, _READABLE = 2, (1, 2)
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".dcm")
_LARGEST_LABEL = 2**16 - 1
_SHOWN = 40  # characters of a value that does not fit
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
    """What accepting a case took. A case that is reopened keeps it, and accepting it again adds to it."""

    order: int
    """Its place in the order in which cases were accepted for the first time, from 1."""
    seconds: float | None = None
    """Working time; None where it was not measured."""
    prompts: int | None = None
    """Points, boxes and other prompts that were placed; None where they were not counted."""
    dice: Mapping[str, float] = field(default_factory=dict)
    """Label → Dice of the proposal with what was accepted; empty where nothing was proposed, or the adapter had learned
    from the case."""


@dataclass(frozen=True)
class Lease:
    """Who works on a case, as a random word, and until when others leave it alone, in seconds since 1970."""

    by: str
    until: float
    process: str = ""
    """The process with whose end it ends as well, see `process_lock.this_process`; "" for none."""


@dataclass(frozen=True)
class CohortCase:
    """An image of the cohort and how far it is."""

    key: str
    image: str
    """Path of the file or DICOM folder, relative to the cohort's images."""
    patient: str
    """A digest that is equal for the cases of one patient, and belongs to this cohort alone."""
    state: str = "untouched"
    proposal: Proposal | None = None
    review: Review | None = None
    lease: Lease | None = None
    problem: str = ""
    """Why proposing failed, as a sentence."""
    stamp: str = ""
    """Sizes and times of the image's files when it was last known to be the same, see `image_check`."""
    trouble: str = ""
    """What is wrong with the image: one of `image_check.TROUBLES`, or ""."""

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
    """Keys of the cases held out, from which no adapter learned: those that judged it, and maybe others."""
    start: str
    """`base`, or `adapter N` where it went on from an earlier one."""
    dice: Mapping[str, float]
    """Label → mean Dice of its proposals for the cases that judged it."""
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
        """The adapter in use: the last one that the evidence let in."""
        return next((one for one in reversed(self.adapters) if one.in_use), None)

    def taught(self, case: CohortCase) -> bool:
        """Whether the adapter that proposed a case, or one before it, learned from the case."""
        made_by = case.proposal.adapter if case.proposal else 0
        return any(case.key in one.learned for one in self.adapters if one.number <= made_by)

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
        self._read: tuple[tuple[int, ...], CohortState] | None = None
        self.state  # noqa: B018 - refuses a folder that holds no cohort

    @classmethod
    def create(cls, folder: str | Path, state: CohortState) -> Cohort:
        """Write a new cohort; UserError when the folder holds one."""
        folder = Path(folder).expanduser()
        with _alone(folder):
            require_no_cohort(folder)
            write_text(folder / STATE_FILE, as_json(state))
        return cls(folder)

    @property
    def state(self) -> CohortState:
        """The state that the file holds now."""
        path = self.folder / STATE_FILE
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            known = self._read
            if known is None or known[0] != stamp:
                self._read = known = (stamp, _parsed(json.loads(path.read_text("utf-8")), path))
        except FileNotFoundError:
            raise UserError(f"“{self.folder}” holds no cohort; create one with “samfinetune cohort create”.") from None
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"“{path}” is damaged ({error}); restore it from a backup.") from error
        except OSError as error:
            raise UserError(f"“{path}” cannot be read: {error.strerror}.") from error
        return known[1]

    def change(
        self, change: Callable[[CohortState], CohortState], after: Callable[[], None] = lambda: None
    ) -> CohortState:
        """Replace the state, while nobody else can change the cohort.

        Args:
            change: makes the new state of the present one, and moves the files that the new state needs. It may raise
                to leave the state as it is.
            after: called when the new state is on disk; removes the files that it no longer needs.

        Returns:
            The new state.
        """
        with _alone(self.folder):
            self._read = None
            old = self.state
            new = change(old)
            if new != old:
                write_text(self.folder / STATE_FILE, as_json(new))
            after()
            return self.state

    # ---- where things lie

    @property
    def images(self) -> Path:
        """The folder that the images' paths start from."""
        state = self.state
        beside, full = state.images
        places = [Path(os.path.normpath(self.folder.resolve() / beside))] if beside else []
        places.append(Path(full))
        images = [one.image for one in state.cases]
        return next((place for place in places if any(_exists(place / image) for image in images)), places[0])

    def path(self, case: CohortCase) -> Path:
        """Where the image of a case is, or was when it was last found."""
        name, added = Path(case.image).name, self.added(case.key)
        own = added.with_name(name) if name.startswith(case.key) else added / name
        return own if _exists(own) else self.images / case.image

    def image(self, case: CohortCase) -> Path:
        """The image of a case; UserError when it is not there."""
        path = self.path(case)
        if not _exists(path):
            try:
                path.stat()
            except PermissionError as error:
                raise disk_error(error, path) from error
            except OSError:
                pass
            raise UserError(
                f"The image of case {case.name} is not at “{path}”; if the images were moved, tell where they are with "
                "“samfinetune cohort locate”."
            )
        return path

    def added(self, key: str) -> Path:
        """Folder of an image that came through a server, whose place is known even when the cohort alone is moved."""
        return self.folder / "added" / key

    def proposal(self, key: str) -> Path:
        """Folder of what is proposed for a case."""
        return self.folder / "proposals" / key

    def corrected(self, key: str) -> Path:
        """Label map of a case that somebody works on."""
        return self.folder / "corrected" / f"{key}.nii.gz"

    def accepted(self, key: str) -> Path:
        """Accepted label map of a case."""
        return self.folder / "accepted" / f"{key}.nii.gz"

    def accepted_labels(self, case: CohortCase) -> Path:
        """Label map of an accepted case; UserError when it is not there."""
        path = self.accepted(case.key)
        if not path.exists():
            raise UserError(
                f"The accepted labels of case {case.name} are not at “{path}”; put them back, or take back that it was "
                "accepted with “samfinetune cohort reopen”."
            )
        return path

    def adapter(self, number: int) -> Path:
        """Folder of the adapter of a training."""
        return self.folder / "adapters" / str(number)


def require_no_cohort(folder: Path) -> None:
    """UserError when a folder holds a cohort."""
    if (folder / STATE_FILE).exists():
        raise UserError(f"“{folder}” already holds a cohort; choose another folder, or go on with that one.")


def _exists(image: Path) -> bool:
    """Whether an image is there; the choice of a DICOM series may follow its name behind a #."""
    places = (image, image.with_name(image.name.partition("#")[0])) if "#" in image.name else (image,)
    return any(map(os.path.exists, places))  # unlike Path's, it does not raise where looking is not permitted


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the cohort while the block runs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = ProcessLock(folder / LOCK)
        until = time.monotonic() + _PATIENCE
        while not lock.take():
            if time.monotonic() > until:
                raise UserError(f"“{folder}” is being changed ({lock.owner or 'another process'}); try again.")
    except OSError as error:
        raise disk_error(error, folder) or error from error
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------- the file


def as_json(state: CohortState) -> str:
    """A state as `cohort.json` has it."""
    return json.dumps({"format": _FORMAT, **asdict(state)}, indent=1)


def _parsed(values: dict[str, Any], path: Path) -> CohortState:
    if values.get("format") not in _READABLE:
        raise UserError(f"“{path}” was written by another version of SAMFineTune; update this one to open it.")
    state = _made(CohortState, values, "")
    keys = {case.key for case in state.cases}
    if len(keys) < len(state.cases) or not all(re.fullmatch(r"[\w-]+", key) for key in keys):
        raise ValueError("keys of cases")
    if unknown := {case.state for case in state.cases} - {*STATES}:
        raise ValueError(f"unknown state {unknown.pop()}")
    if not all(0 < value <= _LARGEST_LABEL for value in state.labels):
        raise ValueError("label values")
    bytes.fromhex(state.salt)
    return state


def _made(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as a field has it, by the field's type; ValueError with the place of one that does not fit."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None
        return None if value is None else _made(inner[0], value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        own = {name: _made(of, value[name], f"{where}.{name}") for name, of in _types(kind).items() if name in value}
        return kind(**own)
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_made(of, one, f"{where}.{n}") for n, (of, one) in enumerate(zip(kinds, value, strict=True)))
    if origin is Mapping and isinstance(value, dict):
        return {inner[0](name): _made(inner[1], one, f"{where}.{name}") for name, one in value.items()}
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{where.lstrip('.')} is {str(value)[:_SHOWN]}")


_types = cache(get_type_hints)  # of the fields of a dataclass

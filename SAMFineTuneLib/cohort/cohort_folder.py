"""The folder of a cohort: where its files lie, and how its state is read and changed.

| in the folder | what it holds |
|---|---|
| `cohort.json` | labels, cases, adapters: `cohort_state.CohortState` |
| `proposals/KEY/` | a label map that an adapter proposes, and its confidence in each slice |
| `corrected/KEY.nii.gz` | work on a case that is not accepted yet |
| `accepted/KEY.nii.gz` | the accepted label map of a case |
| `features/KEY.npy` | the pooled embedding of an image, by which cases are compared |
| `adapters/N/` | the adapter of training N |
| `training/` | a training that is not finished |
| `judged/N/KEY/` | its proposal for a held-out accepted case, which calibrates its confidence |
| `added/KEY/` | an image that came through a server |

A case's key is the beginning of its image's digest. Images are never altered, and apart from the path of each image,
and from what images that came through a server hold themselves, nothing here names a patient. Every change reads
`cohort.json` anew and replaces it while it holds a lock, so that windows and commands may work on one cohort together
and a kill leaves the state before or after a change. The times in it are those of the drive that the folder is on,
since the clocks of computers that share one may differ.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState, as_json, parsed
from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import beside, write_text
from SAMFineTuneLib.process_lock import LOCK, ProcessLock
from SAMFineTuneLib.typed_json import loaded

STATE_FILE = "cohort.json"
_PATIENCE = 20.0  # s to wait for another process that writes
_CLOCKS_AGREE = 5.0  # s: smaller differences of clocks are ignored; file times may be rounded to 2 s


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
        self._ahead: float | None = None  # s by which the drive's clock is ahead of ours; None until it is needed
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
                state = parsed(loaded(path.read_text("utf-8")), path)
                if self._ahead is None and any(case.lease for case in state.cases):
                    self._ahead = _drive_ahead(self.folder)
                self._read = known = (stamp, _later(state, -(self._ahead or 0.0)))
        except (FileNotFoundError, NotADirectoryError):
            if self._read is not None:
                raise UserError(
                    f"The cohort is no longer in “{self.folder}”; put it back, or open it where it is now."
                ) from None
            raise UserError(f"“{self.folder}” holds no cohort; create one with “samfinetune cohort create”.") from None
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
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
            self._read, self._ahead = None, _drive_ahead(self.folder)
            old = self.state
            new = change(old)
            if new != old:
                write_text(self.folder / STATE_FILE, as_json(_later(new, self._ahead)))
            after()
            return self.state

    # ---- where things lie

    @property
    def images(self) -> Path:
        """The folder that the images' paths start from."""
        places, images = self._places(), [one.image for one in self.state.cases]
        return next((place for place in places if any(_exists(place / image) for image in images)), places[0])

    def _places(self) -> list[Path]:
        """The folders in which the images may be."""
        beside, full = self.state.images
        return [*([Path(os.path.normpath(self.folder.resolve() / beside))] if beside else []), Path(full)]

    def path(self, case: CohortCase) -> Path:
        """The path of a case's image, at least when it was last found."""
        name, added = Path(case.image).name, self.added(case.key)
        own = added.with_name(name) if name.startswith(case.key) else added / name
        paths = [place / case.image for place in self._places()]
        return next((path for path in (own, *paths) if _exists(path)), paths[0])

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
                f"The image of case {case.name} is not at “{path}”; if the images were moved, say where they are with "
                "“samfinetune cohort locate”."
            )
        return path

    def added(self, key: str) -> Path:
        """Folder of an image that came through a server, whose place is known even when the cohort alone is moved."""
        return self.folder / "added" / key

    def proposal(self, key: str) -> Path:
        """Folder of the proposal for a case."""
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
                f"The accepted labels of case {case.name} are not at “{path}”; put them back, or undo the "
                "acceptance with “samfinetune cohort reopen”."
            )
        return path

    def adapter(self, number: int) -> Path:
        """Folder of the adapter of a training."""
        return self.folder / "adapters" / str(number)


def require_no_cohort(folder: Path) -> None:
    """Raise UserError when a folder holds a cohort."""
    if (folder / STATE_FILE).exists():
        raise UserError(f"“{folder}” already holds a cohort; choose another folder, or go on with that one.")


def _exists(image: Path) -> bool:
    """Whether an image exists; its name may be followed by a # and the choice of a DICOM series."""
    places = (image, image.with_name(image.name.partition("#")[0])) if "#" in image.name else (image,)
    return any(map(os.path.exists, places))  # unlike Path's, it does not raise without permission


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


def _drive_ahead(folder: Path) -> float:
    """Seconds by which the clock behind a folder's file times, perhaps a server's, is ahead of ours; 0 where that is
    little, or nothing can be written.
    """
    probe = beside(folder / "clock")
    try:
        probe.write_bytes(b"\0")
        ahead = probe.stat().st_mtime - time.time()
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return ahead if abs(ahead) > _CLOCKS_AGREE else 0.0


def _later(state: CohortState, seconds: float) -> CohortState:
    """A copy of a state whose leases end so much later."""
    if not seconds:
        return state
    leases = ((case, case.lease and replace(case.lease, until=case.lease.until + seconds)) for case in state.cases)
    return replace(state, cases=tuple(replace(case, lease=lease) for case, lease in leases))

"""Segments the cases of a cohort with the adapter in use, and says how far each proposal can be trusted.

Each case is done by itself, in this process or, with an engine of `evaluation.executors`, in others. Its files and its
new state are written here, together, while nobody else can change the cohort, and only if the case is still open: one
that was taken, corrected or accepted meanwhile keeps what it has. What is done stays done when the rest is stopped.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.cohort.choosing import features_file
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState, Proposal
from SAMFineTuneLib.cohort.confidence import (
    CONFIDENCE,
    Calibration,
    Judged,
    Signals,
    as_text,
    calibrate,
    expected,
    signals_of,
)
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS
from SAMFineTuneLib.cohort.running_work import PROPOSALS, announced
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, staged_folder

if TYPE_CHECKING:
    from SAMFineTuneLib.evaluation.executors import Engine
    from SAMFineTuneLib.images import Volume
    from SAMFineTuneLib.inference.predictor import Predictor

_LOOKED_AT = 12  # slices of a case that its pooled embedding is of
_THREADS = 1  # of a process that is one of several
_JUDGES, _SAMPLES = 6, 12  # cases held out that are segmented to calibrate, and accepted cases that calibrate
_SIGNALS = "signals.npz"


@dataclass(frozen=True)
class Proposed:
    """Keys of the cases that have a new proposal, and of those whose `problem` says why they have none."""

    done: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True)
class CaseJob:
    """A case to be segmented, as another process needs it."""

    folder: Path
    case: str
    adapter: int
    device: str
    threads: int | None = None
    only_features: bool = False
    """Whether the case is only embedded, to be compared with others."""

    @property
    def key(self) -> str:
        """Identifies the job among those of all adapters and cohorts."""
        return f"{self.folder}:{self.case}:{self.adapter}:{self.only_features}"


@dataclass(frozen=True)
class SegmentedCase:
    """A case that was segmented: the content of the files of its proposal, or the problem."""

    labels: bytes = b""
    """A NIfTI file."""
    orientation: str = ""
    axis: int = 0
    """Of the label map's array [k, j, i], across the slices."""
    signals: Signals = field(default_factory=dict)
    features: np.ndarray | None = None
    problem: str = ""


class _Stopped(Exception):
    """The proposals are no longer wanted."""


def propose(
    cohort: Cohort,
    names: Sequence[str] | None = None,
    device: str = "auto",
    again: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    cancelled: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
) -> Proposed:
    """Segment untouched cases with the adapter in use.

    Args:
        cohort: the cohort.
        names: keys or names of the cases; default: all.
        device: `auto`, `cpu`, `cuda`, …
        again: whether cases that an earlier adapter proposed are segmented, too.
        progress: told how many cases are done, how many there are, and which one is next, at the end "".
        cancelled: asked before every slice whether to stop; with an engine, after every case.
        engine: of `evaluation.executors`, spreads the cases over processes or a cluster; all need the cohort's folder
            and images at the same paths.

    Returns:
        What was done. Cases that are corrected, accepted, refused or taken by somebody are left alone.

    Raises:
        UserError: when no adapter is in use yet, or it cannot run.
        DiskError: when the cohort's disk refuses.
    """
    state = cohort.state
    if state.adapter is None:
        raise UserError(
            "No adapter is in use yet, so nothing can be proposed: accept a few cases, then train one with "
            "“samfinetune cohort train”."
        )
    number = state.adapter.number
    wanted = None if names is None else {state.case(name).key for name in names}
    cases = [case for case in state.cases if (wanted is None or case.key in wanted) and _waits(case, number, again)]
    if not cases:
        return Proposed((), ())
    judges = [case for case in state.accepted if case.key in state.adapter.held_out][-_JUDGES:]
    judges = [case for case in judges if not _judged(cohort, number, case.key).exists()]
    others = [case for case in state.accepted if case not in judges and not features_file(cohort, case.key).exists()]
    with announced(cohort.folder / PROPOSALS) as announce:

        def tell(done: int, total: int, name: str) -> None:
            announce(f"Proposing case {min(done + 1, total)} of {total}")
            progress(done, total, name)

        run = _Run(cohort, number, device, engine, len(judges) + len(others) + len(cases), tell, cancelled)
        _opened(cohort.folder.resolve(), number, device, run.threads)  # refuses what no case could be segmented with
        for job, result in run.segmented(judges):
            if not result.problem:
                _write(_judged(cohort, number, job.case), result)
                _write_features(cohort, job.case, result)
        for job, result in run.segmented(others, only_features=True):
            _write_features(cohort, job.case, result)
        calibration = _calibration(cohort.state, cohort)
        done, failed = [], []
        for job, result in run.segmented(cases):
            if _put(cohort, job, result, again, calibration):
                (failed if result.problem else done).append(job.case)
        return Proposed(tuple(done), tuple(failed))


@dataclass
class _Run:
    """Segments cases one after the other here, or with an engine elsewhere, until `cancelled` says so."""

    cohort: Cohort
    adapter: int
    device: str
    engine: Engine | None
    total: int
    tell: Callable[[int, int, str], None]
    cancelled: Callable[[], bool]
    done: int = 0

    @property
    def threads(self) -> int | None:
        return None if self.engine is None else _THREADS

    def segmented(
        self, cases: Sequence[CohortCase], only_features: bool = False
    ) -> Iterator[tuple[CaseJob, SegmentedCase]]:
        """Each case with what came out, as it is ready."""
        folder = self.cohort.folder.resolve()
        following = {} if self.engine is not None else dict(enumerate(case.name for case in cases))
        jobs = [CaseJob(folder, case.key, self.adapter, self.device, self.threads, only_features) for case in cases]
        if not jobs or self.cancelled():
            return
        self.tell(self.done, self.total, following.get(0, ""))
        try:
            with closing(self._one_by_one(jobs) if self.engine is None else self.engine(segment_case, jobs)) as results:
                for place, (job, result) in enumerate(results, start=1):
                    yield job, result
                    self.done += 1
                    self.tell(self.done, self.total, following.get(place, ""))
                    if self.cancelled():
                        return
        except _Stopped:
            return

    def _one_by_one(self, jobs: Sequence[CaseJob]) -> Iterator[tuple[CaseJob, SegmentedCase]]:
        for job in jobs:
            yield job, segment_case(job, self.cancelled)


def _waits(case: CohortCase, adapter: int, again: bool) -> bool:
    """Whether a case may get a proposal now."""
    earlier = case.proposal is not None and case.proposal.adapter != adapter
    return not case.taken() and (case.state == "untouched" or (again and case.state == "proposed" and earlier))


# ---------------------------------------------------------------- one case


def segment_case(job: CaseJob, cancelled: Callable[[], bool] = lambda: False) -> SegmentedCase:
    """Segment a case. An error becomes the case's `problem`."""
    try:
        cohort = Cohort(job.folder)
        return _segmented(cohort, cohort.state.case(job.case), job, cancelled)
    except _Stopped:
        raise
    except UserError as error:
        return SegmentedCase(problem=str(error))
    except Exception as error:  # of any kind, such as a file that a library cannot read: the other cases go on
        return SegmentedCase(problem=f"Segmenting it failed ({type(error).__name__}: {error}).")


def _segmented(cohort: Cohort, case: CohortCase, job: CaseJob, cancelled: Callable[[], bool]) -> SegmentedCase:
    from SAMFineTuneLib.cases.case_slices import learned_orientations
    from SAMFineTuneLib.images import choose_window, read_volume
    from SAMFineTuneLib.images.slice_extraction import write
    from SAMFineTuneLib.images.slice_plane import view_axes
    from SAMFineTuneLib.inference.automatic_head import slice_logits

    predictor, recipe = _opened(job.folder, job.adapter, job.device, job.threads)
    volume = read_volume(cohort.image(case))
    window, orientations = choose_window(volume, recipe.get("window")), learned_orientations(volume, recipe)
    orientation = orientations[0]
    features = None
    if not features_file(cohort, case.key).exists():
        features = _pooled(_base(cohort.state.model, job.device, job.threads), volume, orientation, cancelled)
    if job.only_features:
        return SegmentedCase(features=features)
    known = cohort.state.labels
    values = _values(predictor.engine.spec.classes, known)
    labels = np.zeros(volume.shape, np.uint16)
    rows: dict[int, list[tuple[float, ...]]] = {value: [] for value in values.values()}
    before: dict[int, np.ndarray] = {}
    for item in slice_logits(predictor, volume, window, orientations, cancelled=cancelled):
        classes, shares = item.classes, item.shares
        for number, value in values.items():
            mask = classes == number
            if mask.any():
                write(mask, item.plane, labels, volume, value, protect=False)
            rows[value].append(signals_of(mask, shares[number], before.get(value)))
            before[value] = mask
    if cancelled():
        raise _Stopped
    signals = {known[value]: np.array(own, np.float32) for value, own in rows.items()}
    axis = 2 - view_axes(volume, orientation)[2]
    return SegmentedCase(_nifti(labels, volume), orientation, axis, signals, features)


def _values(classes: Sequence[str], labels: dict[int, str]) -> dict[int, int]:
    """Class of the adapter → label value of the cohort, by name."""
    known = {name.casefold(): value for value, name in labels.items()}
    numbers = {name.casefold(): number for number, name in enumerate(classes) if number}
    return {number: known[name] for name, number in numbers.items() if name in known}


def _nifti(labels: np.ndarray, volume: Volume) -> bytes:
    """The content of a NIfTI file of a label map."""
    from SAMFineTuneLib.images import write_labelmap

    with tempfile.TemporaryDirectory() as folder:
        write_labelmap(Path(folder) / PROPOSED_LABELS, labels, volume)
        return (Path(folder) / PROPOSED_LABELS).read_bytes()


def _pooled(predictor: Predictor, volume: Volume, orientation: str, cancelled: Callable[[], bool]) -> np.ndarray:
    """Mean and standard deviation, over a few slices, of the coarsest tensor of the model's embedding: float32 (n,)."""
    from SAMFineTuneLib.cases.case_slices import evenly
    from SAMFineTuneLib.images import aligned_plane, choose_window, number_of_slices, picture

    window, found = choose_window(volume, None), []
    for index in evenly([*range(number_of_slices(volume, orientation))], _LOOKED_AT):
        if cancelled():
            raise _Stopped
        embedding, _ = predictor.embed(picture(volume, aligned_plane(volume, orientation, index), window))
        coarsest = min(embedding.values(), key=lambda one: one.shape[-1] * one.shape[-2])[0]
        found.append(coarsest.reshape(len(coarsest), -1).mean(axis=1))
    return np.concatenate([np.mean(found, axis=0), np.std(found, axis=0)]).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _opened(folder: Path, adapter: int, device: str, threads: int | None) -> tuple[Predictor, dict]:
    """The adapter, ready to answer, and its recipe; kept for further cases."""
    from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
    from SAMFineTuneLib.models.store import Store

    found = read_adapter_folder(Cohort(folder).adapter(adapter))
    return _predictor(Store().to_run(found), device, threads, found), dict(found.card.recipe)


@functools.lru_cache(maxsize=1)
def _base(model: str, device: str, threads: int | None) -> Predictor:
    """The cohort's model without an adapter."""
    from SAMFineTuneLib.models.store import Store

    return _predictor(Store().find(model), device, threads)


def _predictor(model, device: str, threads: int | None, adapter=None) -> Predictor:
    from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
    from SAMFineTuneLib.inference.engine import open_engine
    from SAMFineTuneLib.inference.predictor import Predictor

    # Nobody looks at these slices twice, so that they would only displace others in the cache on disk.
    return Predictor(open_engine(model, device, adapter=adapter, threads=threads), EmbeddingCache(memory_bytes=0))


# ---------------------------------------------------------------- writing


def _put(cohort: Cohort, job: CaseJob, result: SegmentedCase, again: bool, calibration: Calibration) -> bool:
    """Write the proposal of a case, unless the case is no longer open. Returns whether it was written."""
    still = []

    def changed(state: CohortState) -> CohortState:
        if not _waits(state.case(job.case), job.adapter, again):
            return state
        still.append(job.case)
        if result.problem:
            return state.with_case(job.case, problem=result.problem)
        confidence, whole = expected(result.signals, result.orientation, calibration)
        _write(cohort.proposal(job.case), result, as_text(confidence))
        proposal = Proposal(job.adapter, whole, confidence.doubtful)
        return state.with_case(job.case, state="proposed", problem="", proposal=proposal)

    _write_features(cohort, job.case, result)
    cohort.change(changed)
    return bool(still)


def _write(folder: Path, result: SegmentedCase, confidence: str = "") -> None:
    """Write the files of a proposal."""
    with staged_folder(folder) as building:
        (building / PROPOSED_LABELS).write_bytes(result.labels)
        names, rows = [*result.signals], [*result.signals.values()]
        np.savez(building / _SIGNALS, names=names, rows=np.array(rows, np.float32), axis=result.axis)
        if confidence:
            (building / CONFIDENCE).write_text(confidence, "utf-8")


def _write_features(cohort: Cohort, key: str, result: SegmentedCase) -> None:
    if result.features is not None:
        with atomic_write(features_file(cohort, key)) as path:
            np.save(path, result.features)


# ---------------------------------------------------------------- calibrating


def _judged(cohort: Cohort, adapter: int, key: str) -> Path:
    """Folder of what an adapter proposes for an accepted case that it did not learn from."""
    return cohort.folder / "judged" / str(adapter) / key  # not with the adapter, which may be passed on


def _calibration(state: CohortState, cohort: Cohort) -> Calibration:
    """Fit to the accepted cases: to what the adapter in use proposes for those held out, and to what was proposed for
    others before they were learned from."""
    found = []
    for case in reversed(state.accepted):
        judged = _judged(cohort, state.adapter.number, case.key)
        for folder in (judged, *(() if state.taught(case) else (cohort.proposal(case.key),))):
            if (one := _sample(folder, cohort.accepted(case.key), state.labels)) is not None:
                found.append(one)
                break
        if len(found) == _SAMPLES:
            break
    return calibrate(found)


def _sample(folder: Path, accepted: Path, labels: Mapping[int, str]) -> Judged | None:
    """A proposal and what was accepted; None where there are none."""
    from SAMFineTuneLib.cases.label_files import read_labels

    try:
        signals, axis = read_signals(folder)
        proposed, right = read_labels(folder / PROPOSED_LABELS).array, read_labels(accepted).array
        return Judged.of(signals, proposed, right, axis, labels)
    except (OSError, ValueError, KeyError, UserError):
        return None


def read_signals(folder: Path) -> tuple[Signals, int]:
    """The signals in the folder of a proposal, and the axis of its label map [k, j, i] across their slices."""
    with np.load(folder / _SIGNALS, allow_pickle=False) as kept:
        return dict(zip(map(str, kept["names"]), kept["rows"], strict=True)), int(kept["axis"])

"""Segments one case of a cohort with the adapter in use, in this process or in another one."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.cohort.choosing import features_file
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase
from SAMFineTuneLib.cohort.confidence import Signals, signals_of
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import same_name, within_sentence

if TYPE_CHECKING:
    from SAMFineTuneLib.images import Volume
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder

_LOOKED_AT = 12  # slices of a case over which its embedding is pooled


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


class CaseStopped(Exception):
    """The proposals are no longer wanted."""


def segment_case(job: CaseJob, cancelled: Callable[[], bool] = lambda: False) -> SegmentedCase:
    """Segment a case. An error becomes the case's `problem`."""
    try:
        cohort = Cohort(job.folder)
        return _segmented(cohort, cohort.state.case(job.case), job, cancelled)
    except CaseStopped:
        raise
    except UserError as error:
        return SegmentedCase(problem=str(error))
    except Exception as error:  # of any kind, for example from a library that cannot read a file: the other cases go on
        return SegmentedCase(problem=f"Segmenting it failed ({type(error).__name__}: {error}).")


def _segmented(cohort: Cohort, case: CohortCase, job: CaseJob, cancelled: Callable[[], bool]) -> SegmentedCase:
    from SAMFineTuneLib.cases.case_slices import learned_orientations
    from SAMFineTuneLib.images import choose_window, read_volume
    from SAMFineTuneLib.images.slice_extraction import write
    from SAMFineTuneLib.images.slice_plane import view_axes
    from SAMFineTuneLib.inference.automatic_head import slice_logits

    predictor, recipe = opened_adapter(job.folder, job.adapter, job.device, job.threads)
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
        classes, shares = item.classes, item.probabilities
        for number, value in values.items():
            mask = classes == number
            if mask.any():
                write(mask, item.plane, labels, volume, value, protect=False)
            rows[value].append(signals_of(mask, shares[number], before.get(value)))
            before[value] = mask
    if cancelled():
        raise CaseStopped
    signals = {known[value]: np.array(own, np.float32) for value, own in rows.items()}
    axis = 2 - view_axes(volume, orientation)[2]
    return SegmentedCase(_nifti(labels, volume), orientation, axis, signals, features)


def _values(classes: Sequence[str], labels: dict[int, str]) -> dict[int, int]:
    """Class of the adapter → label value of the cohort, by name."""
    known = {same_name(name): value for value, name in labels.items()}
    numbers = {same_name(name): number for number, name in enumerate(classes) if number}
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
            raise CaseStopped
        embedding, _ = predictor.embed(picture(volume, aligned_plane(volume, orientation, index), window))
        coarsest = min(embedding.values(), key=lambda one: one.shape[-1] * one.shape[-2])[0]
        found.append(coarsest.reshape(len(coarsest), -1).mean(axis=1))
    return np.concatenate([np.mean(found, axis=0), np.std(found, axis=0)]).astype(np.float32)


def read_adapter(cohort: Cohort, number: int) -> AdapterFolder:
    """The adapter of a cohort's training; UserError when it is gone or damaged."""
    from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder

    path = cohort.adapter(number)
    try:
        return read_adapter_folder(path)
    except DiskError:
        raise
    except UserError as error:
        what = f"damaged ({within_sentence(str(error)).rstrip('.')})" if path.exists() else "gone"
        raise UserError(
            f"The cohort's adapter {number} is {what}; put its folder “{path}” back from a backup, or train again. "
            "Accepted labels are not affected."
        ) from error


@functools.lru_cache(maxsize=1)
def opened_adapter(folder: Path, adapter: int, device: str, threads: int | None) -> tuple[Predictor, dict]:
    """The adapter, ready to answer, and its recipe; kept for further cases."""
    from SAMFineTuneLib.models.store import Store

    found = read_adapter(Cohort(folder), adapter)
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

    # These slices are never needed again and would only displace others from the cache on disk.
    return Predictor(open_engine(model, device, adapter=adapter, threads=threads), EmbeddingCache(memory_bytes=0))

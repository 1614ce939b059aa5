"""Carries out jobs in processes on this computer or on a Dask cluster, and yields results as they are ready.

A job has a `key`. The function and the jobs must be picklable. A job that ends its process, for example when memory
runs out, does not stop the others: it has no result, and an error at the end says so.

Dask rather than Ray: both are well maintained, but Dask is pure Python and installs wherever this library does, and it
reaches a hospital's cluster (Slurm, Kubernetes, SSH) without further code here.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, Protocol

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import duration

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that keep numerical libraries from starting as many threads in each process as there are cores."""
_LOOK = 0.2  # s between two looks at a Dask cluster
_WITHOUT_WORKERS = 600.0  # s that a Dask cluster may have no worker, as one whose jobs wait in a queue


class LostJobs(UserError):
    """Some jobs ended their process and have no result; the others are done."""


class AnyJob(Protocol):
    """One piece of work."""

    @property
    def key(self) -> str:
        """Identifies it among all jobs."""


Do = Callable[[Any], Any]
Engine = Callable[[Do, Sequence[Any]], Iterator[tuple[Any, Any]]]
"""Takes a function and jobs; yields each job with its result."""


def local(processes: int | None = None) -> Engine:
    """Processes on this computer, by default one for each core."""
    count = _count(processes)

    def run(do: Do, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Any]]:
        if min(count, len(jobs)) == 1:
            return ((job, do(job)) for job in jobs)
        return _in_processes(do, jobs, min(count, len(jobs)))

    return run


def dask(scheduler: str | None = None, processes: int | None = None) -> Engine:
    """Workers of the Dask cluster at a scheduler's address; without an address, of a cluster on this computer.

    Every worker needs this library, and cases, models and adapters at the same paths.
    """
    count = _count(processes)
    try:
        import distributed
    except ImportError as error:
        raise UserError(
            'Spreading the work over a cluster needs Dask: pip install "samfinetune[cluster]".'
        ) from error

    def run(do: Do, jobs: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, Any]]:
        with _client(distributed, scheduler, count) as client:
            waiting = {client.submit(do, job, key=f"{do.__name__}-{job.key}", retries=1): job for job in jobs}
            futures = distributed.as_completed(list(waiting), with_results=True, raise_errors=False)
            for future, result in _as_ready(client, futures):
                try:
                    if future.status in ("error", "cancelled"):  # others may be lost: that would wait
                        future.result()
                except distributed.KilledWorker:  # it ended several
                    continue
                except distributed.CancelledError as error:
                    raise UserError(
                        "The Dask scheduler no longer answers. Finished work is kept; start it again, then give the "
                        "same command again."
                    ) from error
                yield waiting.pop(future), result
        _require_all(len(jobs), len(waiting))

    return run


def _count(processes: int | None) -> int:
    count = processes if processes is not None else os.cpu_count() or 1
    if count < 1:
        raise UserError("Work is spread over 1 process or more; give --jobs 1 or more.")
    return count


def _as_ready(client, futures) -> Iterator[Any]:
    """Dask's futures with their results, as they are ready; UserError when there has been no worker for too long."""
    seen = time.monotonic()
    while not futures.is_empty():
        if futures.has_ready():
            yield next(futures)
            seen = time.monotonic()
            continue
        time.sleep(_LOOK)
        with suppress(OSError):  # the scheduler is gone; the futures are cancelled soon
            if client.nthreads():
                seen = time.monotonic()
        if time.monotonic() - seen > _WITHOUT_WORKERS:
            raise UserError(
                f"The Dask cluster has had no worker for {duration(_WITHOUT_WORKERS)}. What is done is kept; start "
                "workers, then give the same command again."
            )


def _client(distributed, scheduler: str | None, count: int):
    if scheduler is None:
        quiet = logging.CRITICAL  # workers that are stopped while they answer the scheduler log that as an error
        return distributed.Client(n_workers=count, threads_per_worker=1, dashboard_address=None, silence_logs=quiet)
    try:
        return distributed.Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"No Dask scheduler answers at {scheduler}; check the address and that it runs.") from error


def _in_processes(do: Do, jobs: Sequence[AnyJob], count: int) -> Iterator[tuple[AnyJob, Any]]:
    left, lost = list(jobs), 0
    while left:
        try:
            for job, result in _in_pool(do, left, count):
                left.remove(job)
                yield job, result
        except BrokenProcessPool:
            if count == 1:  # with several processes it is unknown which one ended
                del left[0]
                lost += 1
            count = 1
    _require_all(len(jobs), lost)


def _in_pool(do: Do, jobs: Sequence[AnyJob], count: int) -> Iterator[tuple[AnyJob, Any]]:
    others = set(multiprocessing.active_children())
    for variable in _THREADS:  # read by a new process when it loads NumPy
        os.environ.setdefault(variable, "1")
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin_process)
    try:
        waiting = {pool.submit(do, job): job for job in jobs}
        for future in as_completed(waiting) if count > 1 else list(waiting):
            yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # --resume repeats its job


def _require_all(jobs: int, lost: int) -> None:
    if lost:
        raise LostJobs(
            f"{lost} of {jobs} jobs ended their process, probably because it ran out of memory. Finished work is "
            "kept; give the same command again, with fewer --jobs."
        )


def _begin_process() -> None:
    """Ignore Ctrl-C, which the parent handles, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

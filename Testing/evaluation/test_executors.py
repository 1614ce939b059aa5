"""Jobs spread over processes, some of which end unexpectedly."""

from __future__ import annotations

import pytest
from ending_jobs import EndingJob, do_or_end

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import executors


def test_jobs_that_end_their_process_do_not_stop_the_others():
    jobs = [EndingJob(key, key in "be") for key in "abcdef"]
    done = {}
    with pytest.raises(UserError, match="2 of 6 jobs ended their process.* give the same command again, with fewer"):
        for job, result in executors.local(2)(do_or_end, jobs):
            done[job.key] = result
    assert done == {key: key.upper() for key in "acdf"}


def test_a_scheduler_that_ends_is_one_sentence():
    distributed = pytest.importorskip("distributed")
    jobs = [EndingJob(key) for key in "abcdef"]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        results = executors.dask(cluster.scheduler_address)(do_or_end, jobs)
        next(results)
        cluster.close()
        with pytest.raises(UserError, match="scheduler no longer answers.* give the same command again.$"):
            list(results)


def test_a_cluster_without_workers_is_one_sentence(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "_WITHOUT_WORKERS", 1.0)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        with pytest.raises(UserError, match="has had no worker for 1 s.* then give the same command again.$"):
            list(executors.dask(cluster.scheduler_address)(do_or_end, [EndingJob("a")]))

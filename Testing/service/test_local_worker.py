"""Real worker processes with the bundled model: started, killed, started again, ended with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pumped_clients import Host

from SAMFineTuneLib.images import Volume, body_phantom
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import PointPrompt
from SAMFineTuneLib.service import link as http_link
from SAMFineTuneLib.service import worker as local_worker
from SAMFineTuneLib.service.child_process import ChildProcess
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.remote_server import RemoteServer
from SAMFineTuneLib.service.worker import LocalWorker
from SAMFineTuneLib.session.events import Answered, Failed, Finished, MaskChanged, Notice, StateChanged

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")

LONGEST_PUMP = 0.25  # seconds of the processor; 0.05 is meant, the rest is for slow ones


@pytest.fixture(scope="module")
def case():
    """A phantom, and for a slice a voxel (i, j, k) well inside its largest organ."""
    volume, labels, _ = body_phantom(0, shape=(24, 128, 128), spacing=(2.8, 2.8, 8.0))
    sizes = [(labels == value).sum() for value in range(1, labels.max() + 1)]
    organ = labels == int(np.argmax(sizes)) + 1

    def inside(k: int) -> PointPrompt:
        rows = np.argwhere(organ[k])
        j, i = rows[np.abs(rows - rows.mean(axis=0)).sum(axis=1).argmin()]
        return PointPrompt(tuple(volume.ijk_to_ras((i, j, k))))

    return volume, inside, int(organ.sum(axis=(1, 2)).argmax())


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The worker's own models and cache."""
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def start():
    """Starts hosts of clients with a local worker, and closes them."""
    hosts = []

    def start(**settings) -> Host:
        hosts.append(Host(SessionClient(LocalWorker(**settings))))
        return hosts[-1]

    yield start
    for host in hosts:
        host.client.close()


def process_of(host: Host) -> psutil.Process:
    return psutil.Process(host.client._connection._starter.process.pid)


def kill(host: Host) -> None:
    """As the system does when memory runs out."""
    process = process_of(host)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def gone(pid: int, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not has_ended(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return has_ended(pid)


def notices(host: Host) -> list[str]:
    return [event.text for event in host.told if isinstance(event, Notice)]


def masks_of(events, index: int) -> list[np.ndarray]:
    """The events about the mask of a slice."""
    return [event.mask for event in events if isinstance(event, MaskChanged) and event.plane.index == index]


def test_from_nothing_to_a_mask(start, case):
    volume, inside, k = case
    host = start()
    assert host.client.status.state == "stopped"
    assert host.client.pump() == [] and host.client._connection.log is None  # nothing runs before it is needed
    host.client.set_volume(volume)
    host.client.add_segment("organ", 1)
    host.client.add_prompt(1, inside(k))
    host.until_told(StateChanged, 60, settled=True)
    (mask,) = [event for event in host.told if isinstance(event, MaskChanged)]
    assert mask.mask.sum() > 20 and mask.plane.index == k
    status = host.client.status
    assert (status.state, status.model, status.precision) == ("ready", "compact", "fp32") and "CPU" in status.device
    process = process_of(host)
    assert host.client._connection._token not in " ".join(process.cmdline())
    folder = host.client._connection.log.parent
    assert folder.stat().st_mode & 0o077 == 0
    host.client.close()
    assert gone(process.pid) and not folder.exists() and host.client.status.state == "stopped"


def test_a_worker_killed_in_mid_propagation_is_replaced_and_nothing_is_lost(start, case):
    volume, inside, k = case
    host = start()
    client = host.client
    client.set_volume(volume)
    client.add_segment("organ", 1)
    client.add_prompt(1, inside(k))
    job = client.propagate(1, PropagationSettings(direction="both"))
    host.until(lambda events: sum(isinstance(event, MaskChanged) for event in events) >= 3, 60)
    kill(host)
    client.add_segment("second", 2)
    waiting = client.add_prompt(2, inside(k - 1))
    host.longest = 0.0
    host.until(lambda new: any(isinstance(one, MaskChanged) and one.segment == 2 for one in new), 60)
    finished = [one for one in host.told if isinstance(one, Finished)] or [host.until_told(Finished, 60)]
    assert [(one.job, one.cancelled) for one in finished] == [(job, False)]  # before that mask or after it
    client.undo()
    state = host.until_told(StateChanged, 60, settled=True, undo_name="add prompt")
    assert [info.number for info in state.prompts] == [1, waiting] and state.redo_name == "propagate"
    assert len([text for text in notices(host) if "started again" in text]) == 1
    assert len(list(client._connection.log.parent.iterdir())) == 2  # nothing of the first one
    assert host.longest < LONGEST_PUMP, host.longest


def test_a_worker_killed_while_it_starts_again_is_replaced_too(start, case):
    volume, inside, k = case
    host = start()
    host.client.set_volume(volume)
    host.client.add_segment("organ", 1)
    host.until(lambda _: host.client.status.state == "ready", 60)
    first = host.client._connection._starter.process.pid
    kill(host)
    host.client.add_prompt(1, inside(k))
    host.until(lambda _: host.client._connection._starter.process.pid != first, 60)
    kill(host)
    host.until_told(MaskChanged, 60)
    assert not [event for event in host.told if isinstance(event, Failed)]


def test_results_survive_a_worker_that_dies_after_them(start, case):
    """Masks, undo and redo are as before, and the propagation is not run again."""
    volume, inside, k = case
    host = start()
    client = host.client
    client.set_volume(volume)
    client.add_segment("organ", 1)
    client.add_prompt(1, inside(k))
    job = client.propagate(1, PropagationSettings(direction="up", last=k + 4))
    host.until_told(Finished, 60, job=job)
    before = host.until_told(Answered, request=client.take_snapshot()).value
    kill(host)
    after = host.until_told(Answered, 60, request=client.take_snapshot()).value
    assert after == before and len(after["propagated"]) > 1
    count = len([event for event in host.told if isinstance(event, Finished)])
    client.undo()
    state = host.until_told(StateChanged, settled=True, redo_name="propagate")
    client.undo()
    state = host.until_told(StateChanged, settled=True, redo_name="add prompt")
    client.redo()
    client.redo()
    state = host.until_told(StateChanged, settled=True, undo_name="propagate")
    assert len(state.prompts) == 1
    assert host.until_told(Answered, request=client.take_snapshot()).value == before
    assert len([event for event in host.told if isinstance(event, Finished)]) == count


def test_a_carried_mask_is_corrected_alike_by_a_worker_that_came_after(start, case):
    volume, inside, k = case
    host = start()
    client = host.client
    client.set_volume(volume)
    client.add_segment("organ", 1)
    client.add_prompt(1, inside(k))
    host.until_told(Finished, 60, job=client.propagate(1, PropagationSettings(direction="up", last=k + 2)))
    edge = PointPrompt(tuple(np.add(inside(k + 1).ras, (0.0, 20.0, 0.0))), positive=False)
    client.add_prompt(1, edge)
    corrected = host.until_told(MaskChanged, 60).mask
    client.undo()
    carried = host.until_told(MaskChanged, 60).mask
    assert 0 < corrected.sum() < carried.sum()
    kill(host)
    client.add_prompt(1, edge)
    told = host.until(lambda events: bool(masks_of(events, k + 1)), 60)  # it tells those of other slices, too
    assert np.array_equal(masks_of(told, k + 1)[-1], corrected)
    assert len([text for text in notices(host) if "started again" in text]) == 1


def test_a_worker_that_hangs_is_replaced(start, case, monkeypatch):
    volume, inside, k = case
    host = start()
    host.client.set_volume(volume)
    host.client.add_segment("organ", 1)
    host.client.add_prompt(1, inside(k))
    host.until_told(StateChanged, 60, settled=True)
    stopped = process_of(host)
    stopped.suspend()
    host.client.add_prompt(1, inside(k + 1))
    with monkeypatch.context() as patch:
        patch.setattr(http_link, "_SILENCE_SECONDS", 1.0)
        host.until(lambda _: has_ended(stopped.pid))  # the next one may be slower
    host.until_told(StateChanged, 60, settled=True)
    assert len(notices(host)) == 1
    assert host.longest < LONGEST_PUMP


def test_a_worker_that_keeps_dying_is_given_up_until_somebody_tries_again(start, case, monkeypatch):
    monkeypatch.setattr(local_worker, "_MOST_STARTS", 2)
    volume, inside, k = case
    host = start()
    host.client.set_volume(volume)
    for _ in range(2):
        host.until(lambda _: host.client.status.state == "ready", 60)
        kill(host)
        host.client.add_segment("any", 9)
        host.until(lambda _: host.client.status.state != "ready", 60)
    host.until(lambda _: host.client.status.state == "failed", 60)
    (failed,) = [event for event in host.told if isinstance(event, Failed)]
    assert "times within a minute" in failed.text and host.client.status.sentence == failed.text
    host.client.add_segment("organ", 1)
    host.client.add_prompt(1, inside(k))
    host.client.retry()
    host.until_told(MaskChanged, 60)


def test_a_program_that_is_not_there_is_a_sentence(start):
    host = start(executable="/no/such/python")
    host.client.start()
    assert "/no/such/python" in host.until_told(Failed).text


def test_a_worker_that_cannot_run_says_why(start, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'No module named numpy' >&2\nexit 1\n")
    program.chmod(0o755)
    host = start(executable=str(program))
    host.client.start()
    assert "No module named numpy" in host.until_told(Failed).text


def test_the_environment_and_the_starter_are_the_hosts(start, case):
    class Starter(ChildProcess):
        def start(self, command, environment, log):
            self.command, self.environment = command, environment
            super().start(command, environment, log)

    starter = Starter()
    environment = dict(os.environ) | {"FROM_THE_HOST": "1", "PYTHONPATH": "/somewhere"}
    host = start(starter=starter, environment=environment)
    host.client.start()
    host.until(lambda _: host.client.status.state == "ready", 60)
    assert starter.environment["FROM_THE_HOST"] == "1" and starter.environment["PYTHONPATH"].endswith("/somewhere")
    assert starter.command[0] == sys.executable
    assert psutil.Process(starter.process.pid).environ()["FROM_THE_HOST"] == "1"


PARENT = """
    import sys, time
    from SAMFineTuneLib.service.client import SessionClient
    from SAMFineTuneLib.service.worker import LocalWorker

    worker = LocalWorker()
    client = SessionClient(worker)
    client.start()
    while client.status.state != "ready":
        client.pump()
        time.sleep(0.005)
    print(worker._starter.process.pid, worker.log.parent, flush=True)
    if sys.argv[1] == "stay":
        time.sleep(60)
    if sys.argv[1] == "fail":
        raise RuntimeError("a crash in Python")
"""


@pytest.mark.parametrize("end", ["killed", "exit", "fail"])
def test_the_worker_ends_with_its_parent(root, end):
    arguments = [sys.executable, "-c", textwrap.dedent(PARENT), "stay" if end == "killed" else end]
    with subprocess.Popen(
        arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        pid, folder = parent.stdout.readline().split()
        if end == "killed":
            assert psutil.pid_exists(int(pid))
            parent.kill()
        parent.wait(60)
    assert gone(int(pid))
    if end == "killed":
        assert not Path(folder).exists()


def test_two_clients_of_one_server_with_different_volumes(root, case, tmp_path):
    volume, inside, k = case
    other = Volume(volume.array[:, ::-1].copy(), volume.affine, volume.modality)
    token = tmp_path / "token.txt"
    command = [sys.executable, "-m", "SAMFineTuneLib.cli", "serve", "--port", "0", "--token-file", str(token)]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[1]
        assert token.stat().st_mode & 0o077 == 0
        hosts = [Host(SessionClient(RemoteServer(address, token.read_text().strip()))) for _ in range(2)]
        for host, one in zip(hosts, (volume, other), strict=True):
            host.client.set_volume(one)
            host.client.add_segment("organ", 1)
            host.client.add_prompt(1, inside(k))
            host.client.propagate(1, PropagationSettings(first=k - 2, last=k + 2))
        for host in hosts:
            host.until_told(Finished, 90, what="propagate")
        answers = [host.until_told(Answered, request=host.client.take_snapshot()).value for host in hosts]
        assert [answer["volume"]["digest"] for answer in answers] == [volume.digest, other.digest]
        for host in hosts:
            host.client.close()
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        server.stdout.close()

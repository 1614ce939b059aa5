"""Processes of the library that begin with its modules imported, which is most of what the start of one takes.

A process of `multiprocessing` imports them once, and each of these is a fork of it. Everything else is as in a process
of its own: environment, working folder, standard input and log.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, process
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

_PRELOADED = (
    "warm_processes", "onnxruntime", "SAMFineTuneLib.cli.main", "SAMFineTuneLib.cli.serve",
    "SAMFineTuneLib.service.server", "SAMFineTuneLib.service.server_app", "SAMFineTuneLib.service.cohort_process",
    "SAMFineTuneLib.cohort.create_cohort", "SAMFineTuneLib.cohort.review",
)  # fmt: skip
_PYTHON = sys.executable  # which a test may replace with one that cannot be started
_MAINS = {"SAMFineTuneLib.cli": "SAMFineTuneLib.cli.main"}  # module that is run -> the one with its `main(arguments)`


def start_warm(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Have `ChildProcess` start its processes so from now on; `root` is the checkout."""
    from SAMFineTuneLib.service.child_process import ChildProcess

    cold = ChildProcess.start
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join([str(root), str(Path(__file__).parent)]))
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("OPENBLAS_NUM_THREADS", "1")
        multiprocessing.set_forkserver_preload(list(_PRELOADED))
        forkserver.ensure_running()

    def start(child: ChildProcess, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        if command[:2] == [_PYTHON, "-m"]:
            child.process = _WarmProcess(list(command[2:]), dict(environment), str(log))
        else:
            cold(child, command, environment, log)

    patch.setattr(ChildProcess, "start", start)


class _WarmProcess:
    """What `ChildProcess` uses of `subprocess.Popen`."""

    def __init__(self, command: list[str], environment: dict[str, str], log: str) -> None:
        context = multiprocessing.get_context("forkserver")
        reader, writer = context.Pipe(duplex=False)
        self.stdin = os.fdopen(os.dup(writer.fileno()), "wb")
        writer.close()
        self._process = context.Process(target=_run, args=(command, environment, log, reader))
        self._process.start()
        process._children.discard(self._process)  # the end of the tests does not wait for it
        reader.close()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run(command: list[str], environment: dict[str, str], log: str, stdin: Connection) -> None:
    """In the process: run the module of a command."""
    os.dup2(stdin.fileno(), 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(Path(log).parent)
    module, *arguments = command
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(_MAINS.get(module, module)).main(arguments))

"""The worker that a client starts: `samfinetune serve` as a child process, on a random port of this computer.

The worker writes its port into a file in a folder that only this user can read, and reads its token from its
environment. It ends when its standard input closes, and so together with the program that started it, even when that
crashes. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from SAMFineTuneLib.service.child_process import ChildProcess, child_environment, last_line
from SAMFineTuneLib.service.connection import Broken, Connection, Unusable
from SAMFineTuneLib.service.link import HttpLink
from SAMFineTuneLib.service.protocol import Response
from SAMFineTuneLib.service.server_address import Address

TOKEN_VARIABLE = "SAMFINETUNE_TOKEN"

_MOST_STARTS = 4  # within _STARTS_WITHIN seconds: the first and three more
_STARTS_WITHIN = 60.0
_START_SECONDS = 90.0  # a cold disk and a virus scanner
_MOST_FAILURES = 4  # failed exchanges in a row with a living worker
_UNLIMITED = ("--idle-minutes", "1000000", "--memory-gb", "1000", "--volume-gb", "1000")  # it has one client
_FAREWELL = 0.04  # seconds that `close` waits for it to end by itself


class LocalWorker(Connection):
    """A `Connection` to a worker that it starts, watches, and starts again after a crash.

    Args:
        executable: the Python that runs the worker; None is this one.
        environment: the worker's environment variables (in Slicer `slicer.util.startupEnvironment()`); None is this
            process's.
        starter: what holds the process.
    """

    is_local = True

    def __init__(
        self,
        executable: str | None = None,
        environment: Mapping[str, str] | None = None,
        starter: ChildProcess | None = None,
    ) -> None:
        super().__init__(None)
        self.waiting = "The worker starts."
        self._executable = executable or sys.executable
        self._environment = environment
        self._starter = starter or ChildProcess()
        self._token = ""
        self._folder: Path | None = None
        self._started: list[float] = []
        self._running = False  # whether a process was started, which may have ended unnoticed
        self._failures = 0
        self._can_run = False  # whether one has written its port, so that the installation is not what is wrong

    @property
    def log(self) -> Path | None:
        """The file into which the worker prints; None before its first start."""
        return None if self._folder is None else self._folder / "worker.log"

    def ready(self) -> bool:
        """Start the worker, or look whether it has written its port. Raises Unusable when it cannot run."""
        if self._running and not self._starter.alive():
            self._died()
        if not self._running:
            self._start()
            return False
        if self._link is None:
            self._look_for_port()
        return self._link is not None

    def receive(self, wait: float) -> Response | None:
        try:
            answer = self._link.step(wait)
        except OSError as error:
            self._failures += 1
            if self._failures >= _MOST_FAILURES or getattr(error, "silence", False):
                self._give_up_process()
            raise Broken(str(error)) from error
        if answer is not None:
            self._failures = 0
        return answer

    def retry(self) -> None:
        self._started = []

    def close(self) -> None:
        """End the worker, whatever it is doing; the files that it has written are complete."""
        if self._running:
            self._starter.close()
            end = time.monotonic() + _FAREWELL
            while self._starter.alive() and time.monotonic() < end:
                time.sleep(0.002)
        self._give_up_process()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # ---- inside

    def _start(self) -> None:
        now = time.monotonic()
        self._started = [moment for moment in self._started if now - moment < _STARTS_WITHIN]
        if len(self._started) >= _MOST_STARTS:
            raise Unusable(
                f"The worker stopped {len(self._started)} times within a minute, perhaps because it ran out of memory"
                f"{self._last_words()}; close other programs or choose a smaller model, then try again."
            )
        self._started.append(now)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="samfinetune-worker-"))
        for left in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):
                left.unlink()
        self._handshake = self._folder / f"{secrets.token_hex(4)}.json"
        self._token = secrets.token_urlsafe(32)
        serve = ("-m", "SAMFineTuneLib.cli", "serve", "--handshake", str(self._handshake), *_UNLIMITED)
        try:
            environment = child_environment(self._environment, {TOKEN_VARIABLE: self._token})
            self._starter.start([self._executable, *serve], environment, self.log)
        except OSError as error:
            raise Unusable(f"The worker cannot be started with {self._executable} ({error.strerror or error}); check "
                           "the installation.") from error  # fmt: skip
        self._running, self._failures = True, 0
        self.waiting = "The worker starts." if len(self._started) == 1 else "The worker is started again."

    def _look_for_port(self) -> None:
        try:
            port = int(json.loads(self._handshake.read_text(encoding="utf-8"))["port"])
        except (OSError, ValueError, KeyError, TypeError):  # on Windows a file cannot be read while it is renamed
            if time.monotonic() - self._started[-1] > _START_SECONDS:
                self._give_up_process()
                raise Unusable(f"The worker did not start within {_START_SECONDS:.0f} seconds{self._last_words()}; try "
                               "again.") from None  # fmt: skip
            return
        self._link, self._can_run = HttpLink(Address("127.0.0.1", port), self._token), True

    def _died(self) -> None:
        """The process has ended: the next `ready` starts it again. Raises Unusable when none ever wrote its port."""
        self._forget()
        if not self._can_run:
            raise Unusable(f"The worker cannot run{self._last_words()}; check the installation, then try again.")

    def _give_up_process(self) -> None:
        self._starter.kill()
        self._forget()

    def _forget(self) -> None:
        self.drop()
        self._link, self._running = None, False

    def _last_words(self) -> str:
        """The last line that the worker printed, in brackets."""
        said = last_line(self.log) if self.log is not None else ""
        return f" ({said})" if said else ""

"""Programs of this library as child processes: a panel's worker, and trainings."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_DYING = 0.2  # seconds within which the system removes a killed process


class ChildProcess:
    """A process with a pipe as its standard input; may be started again after its end."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start a process.

        Args:
            command: program and arguments.
            environment: all its environment variables.
            log: file that it prints into, and in whose folder it works.

        Raises:
            OSError: when it cannot be started.
        """
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=log.parent,  # Python looks for modules in its working folder first
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def close(self) -> None:
        """Close the process's standard input, which asks it to end."""
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def kill(self) -> None:
        """End the process at once."""
        if self.alive():
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # leaves no zombie
                self.process.wait(timeout=_DYING)
        self.close()


def child_environment(environment: Mapping[str, str] | None, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process that can import this library.

    Args:
        environment: what it is based on; None is the environment of this process.
        variables: what is added.
    """
    library = str(Path(__file__).resolve().parents[2])
    based_on = dict(os.environ if environment is None else environment)
    before = based_on.get("PYTHONPATH")
    path = os.pathsep.join([library, before] if before else [library])
    return {**based_on, "PYTHONPATH": path, "PYTHONUTF8": "1", **variables}


def when_parent_ends(act: Callable[[], None]) -> None:
    """Call a function from a thread when standard input closes, because the parent closed it or has ended."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):  # not sys.stdin, whose lock would be held when Python finishes
                pass
        act()

    threading.Thread(target=watch, name="samfinetune-parent", daemon=True).start()


def last_line(log: Path) -> str:
    """The last line that a child process printed into its log, at most 200 characters; "" without one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace")[-4000:].split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:200] if said else ""

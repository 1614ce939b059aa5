"""The worker on this computer: which Python runs it, and what that finds."""

import os
import sys

import slicer

from . import packages


def local_connection(starter):
    """The worker as a child of Slicer, started by `starter` when something is first asked of it.

    The starter is the standard library's rather than QProcess: `poll` and a closed pipe are all it takes, neither
    waits for anything, and no signal can come after the panel is gone. The worker ends with its standard input, so
    neither a crash of Slicer leaves it behind nor the launcher before Slicer's Python, which a kill would hit instead.
    """
    from SAMFineTuneLib.service.worker import LocalWorker

    return LocalWorker(executable=sys.executable, environment=environment(), starter=starter)


def make_starter():
    """Starts the worker, and leaves no dead process on the system's list when it has ended it."""
    import subprocess

    from SAMFineTuneLib.service.worker import SubprocessStarter

    class Starter(SubprocessStarter):
        def kill(self):
            super().kill()
            if self.process is not None:
                try:
                    self.process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    pass

    return Starter()


def environment():
    """Without what Slicer's launcher has set, since its Python sets that anew; with the packages of our own."""
    surroundings = dict(slicer.util.startupEnvironment())
    folders = packages.installed_folders()
    before = surroundings.get("PYTHONPATH")
    surroundings["PYTHONPATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    return surroundings

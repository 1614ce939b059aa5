"""The worker on this computer: which Python runs it, and what that finds."""

import os
import sys

import slicer

from . import packages


def local_connection(starter):
    """The worker as a child of Slicer, started by `starter` when something is first asked of it.

    The starter is the standard library's rather than QProcess: `poll` and a closed pipe are all it takes, neither waits for
    anything, and no signal can come after the panel is gone. It ends with its standard input, so that neither a
    crash of Slicer nor the launcher in front of Slicer's Python, which a kill would hit instead, leaves it behind.
    """
    from SAMFineTuneLib.service.local_worker import LocalWorker

    return LocalWorker(executable=sys.executable, environment=environment(), starter=starter)


def environment():
    """Without what Slicer's launcher has set, since its Python sets that anew; with the packages of our own."""
    surroundings = dict(slicer.util.startupEnvironment())
    folders = packages.installed_folders()
    before = surroundings.get("PYTHONPATH")
    surroundings["PYTHONPATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    return surroundings
